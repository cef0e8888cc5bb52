"""A vision transformer taken apart: what an adapter (`adapters/`) gives, and what the walks of `updates.py` need.

Letters as in `towers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fvlm_lib.reuse.blocks import Block, Rotation
from fvlm_lib.reuse.fastest import Products
from fvlm_lib.reuse.windows import Windows

Grid = tuple[int, int]
"""Rows and columns of a frame's patches."""


def _none(grid: Grid) -> None:
    """What most towers have: patches in reading order, no rotary positions, full attention in every block."""


class TakesFrames(Protocol):
    """Which frames a tower takes, of whatever architecture; fields as in `Tower`."""

    @property
    def patch_size(self) -> tuple[int, int]: ...

    @property
    def num_channels(self) -> int: ...

    @property
    def image_size(self) -> tuple[int, int] | None: ...


@dataclass(frozen=True)
class Layout:
    """What of a tower's walk depends on the grid of a frame's patches.

    order: (patches,) int64, which patch, in reading order, each row behind the global tokens is; None is reading order.
    rotation: cos and sin (P, d) of the rows' rotary positions; None where there are none.
    windows: one a block, in which alone its rows attend to each other, None for full attention; () where all have that.
    """

    order: Tensor | None = None
    rotation: Rotation | None = None
    windows: tuple[Windows | None, ...] = ()


@dataclass(frozen=True)
class Tower:
    """A ViT taken apart: frames (N, C, height, width) -> embed -> (N, P, D) -> blocks -> final_norm.

    embeddings: frames -> (N, P, D), with positions, rows in the model's own order. Affine in the pixels: what a patch
    adds to its row of the blank frame's embeddings is project_patches: (n, C, patch_h, patch_w) -> (n, D).
    image_size: (height, width) of the frames, in whole patches, None if any multiple of the patch size will do. Pixels
    behind the last whole patch, such as six of SigLIP's 384 at a patch of 14, no model looks at.
    packed: whether weights of the blocks are packed. products: how long their products take, if that was measured.
    order, rotation, windows: of a frame's grid, as in `Layout`; windows, where there are any, of the model's blocks.
    taps: blocks, rising, whose outputs are also read, before any norm.
    """

    embeddings: Callable[[Tensor], Tensor]
    project_patches: Callable[[Tensor], Tensor]
    pre_norm: nn.Module
    blocks: tuple[Block, ...]
    final_norm: nn.Module
    num_global_tokens: int
    patch_size: tuple[int, int]
    num_channels: int
    image_size: tuple[int, int] | None
    packed: bool = False
    products: Products | None = None
    order: Callable[[Grid], Tensor | None] = _none
    rotation: Callable[[Grid], Rotation | None] = _none
    windows: Callable[[Grid], tuple[Windows | None, ...] | None] = _none
    taps: tuple[int, ...] = ()

    def embed(self, pixel_values: Tensor) -> Tensor:
        """The first block's input (N, P, D) of frames (N, C, height, width)."""
        return self.pre_norm(self.embeddings(pixel_values))

    def grid(self, pixel_values: Tensor) -> Grid:
        """Rows and columns of patches of frames (..., height, width)."""
        height, width = pixel_values.shape[-2:]
        return height // self.patch_size[0], width // self.patch_size[1]

    def layout(self, grid: Grid) -> Layout:
        """What depends on the grid, of the tower's blocks."""
        return Layout(self.order(grid), self.rotation(grid), (self.windows(grid) or ())[: len(self.blocks)])


def check_frame(tower: TakesFrames, pixel_values: Tensor) -> None:
    """ValueError unless pixel_values is one frame (1, C, height, width) that the tower takes."""
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[0] != 1 or shape[1] != tower.num_channels:
        raise ValueError(f"pixel_values has shape {shape}; it must be (1, {tower.num_channels}, height, width)")
    if 0 in shape or any(side % patch for side, patch in zip(shape[2:], tower.patch_size, strict=True)):
        raise ValueError(f"a frame of {shape[2]} x {shape[3]} pixels is not made of patches of {tower.patch_size}")
    if tower.image_size not in (None, shape[2:]):
        raise ValueError(f"a frame of {shape[2]} x {shape[3]} pixels; the tower takes {tower.image_size} only")


def check_patches(tower: TakesFrames, num_patches: int, patches: Tensor, changed: Tensor) -> None:
    """ValueError unless `changed` is bool, one for each of num_patches, and patches (n, C, patch_h, patch_w) are finite
    pixels of those that it marks."""
    if changed.dtype != torch.bool or changed.numel() != num_patches:
        raise ValueError(
            f"changed is {changed.dtype} of shape {tuple(changed.shape)}; it must be bool, one for each of "
            f"{num_patches} patches"
        )
    wanted = (int(changed.sum()), tower.num_channels, *tower.patch_size)
    if tuple(patches.shape) != wanted:
        raise ValueError(f"patches has shape {tuple(patches.shape)}; the patches that changed marks need {wanted}")
    if not patches.isfinite().all():
        raise ValueError("patches has pixels that are NaN or infinite; all must be finite")
