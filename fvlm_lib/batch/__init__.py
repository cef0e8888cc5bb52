"""Batch runs: what a config says, what a notebook depends on, and one notebook executed by papermill.

Knows configs, notebooks and files; nothing of models or of what a result means. Imports nothing heavy, since the
Snakefile reads it at every start.
"""
