"""The sizes at which a panel offers to see frames and patches. Imports nothing, so that a command's options may too."""

from __future__ import annotations

Seen = tuple[int, ...]
"""A frame's height and width, and the tower's patch size, in pixels; empty for the frame as it was recorded."""

AS_RECORDED: Seen = ()
CLIP: Seen = (336, 336, 14)
PATCH_SIZES = (8, 14, 16, 28, 32)  # pixels
PATCH_AS_RECORDED = 16  # pixels, where no tower says; the default of notebooks/changed_patches.ipynb too
