"""Frames as Qwen's processors flatten them into rows of patches, and back: exact inverses of each other.

A row is one patch, its pixels twice (the two frames of a temporal patch, equal for an image). Rows come merge window by
merge window: the m x m patches that become one token stand together, windows in reading order.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def flat_sizes(config: Any) -> tuple[int, int, int]:
    """merge_size, temporal_size and patch_size of a vision tower's config."""
    return config.spatial_merge_size, config.temporal_patch_size, config.patch_size


def fold_patches(rows: Tensor, grid: tuple[int, int], merge_size: int, temporal_size: int, patch_size: int) -> Tensor:
    """The frame (1, C, height, width) of `rows` (P, C · temporal_size · patch_size²); grid: its (rows, columns) of
    patches, whose product is P."""
    height, width = grid[0] // merge_size, grid[1] // merge_size
    pixels = rows.view(height, width, merge_size, merge_size, -1, temporal_size, patch_size, patch_size)
    pixels = pixels[:, :, :, :, :, 0].permute(4, 0, 2, 5, 1, 3, 6)  # (C, height, merge, patch, width, merge, patch)
    return pixels.reshape(1, -1, grid[0] * patch_size, grid[1] * patch_size)


def flatten_frame(frame: Tensor, merge_size: int, temporal_size: int, patch_size: int) -> Tensor:
    """Rows (P, C · temporal_size · patch_size²) of a frame (1, C, height, width) of whole merge windows."""
    side = merge_size * patch_size
    _, channels, height, width = frame.shape
    pixels = frame.view(channels, height // side, merge_size, patch_size, width // side, merge_size, patch_size)
    pixels = pixels.permute(1, 4, 2, 5, 0, 3, 6)  # (height, width, merge, merge, C, patch, patch)
    return (
        pixels.unsqueeze(5)
        .expand(-1, -1, -1, -1, -1, temporal_size, -1, -1)
        .reshape(height * width // patch_size**2, -1)
    )
