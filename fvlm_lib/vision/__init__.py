"""A vision tower on a stream of frames: patches compared, towers opened at their layers, caches updated.

Patches are compared in `patches.py`, the policy is in `changes.py`, towers are walked in `towers.py`, updated in
`updates.py`, and `differential.py` is the encoder made of them. Knows tensors and frames; nothing of files,
recordings or checkpoints, and of language models only where they keep their tower (`models.py`).
"""
