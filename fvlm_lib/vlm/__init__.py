"""Vision-language models of transformers on a stream: an answer a frame, what did not change kept.

Knows the architectures, the answers and their times; nothing of the foveated model's modes or of gaps.
"""
