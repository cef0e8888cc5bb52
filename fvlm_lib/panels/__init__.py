"""Widgets over the library: tuning a threshold, and looking where a foveated model looks.

What a panel shows is computed by the wings below; here is how it is shown and moved.
"""
