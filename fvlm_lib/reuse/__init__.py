"""What a stack of transformer blocks computed, kept, and computed anew where its input moves.

A vision tower and a causal language model are the same stack of pre-norm blocks. Here is what they share: the block,
the rows that are kept of it, attention and its correction, the walk that computes rows anew, and the policies that say
which rows. Where an architecture keeps its parts is told by the wings `vision` and `language`. Knows nothing of frames,
prompts and text.
"""
