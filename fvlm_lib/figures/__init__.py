"""Tidy tables in, axes out: the figures of the batch, and the paper's figures and tables.

Draws from results alone; measures nothing and knows no model.
"""
