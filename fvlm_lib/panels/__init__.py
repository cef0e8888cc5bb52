"""Widgets over the library: tuning a threshold, looking where a foveated model looks, watching a screen with one, and
what is right of a reader's answers about a screen that changes.

What a panel shows is computed by the wings below; here is how it is shown and moved.
"""
