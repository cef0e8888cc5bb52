"""Models that make one token of s x s patches: Idefics3, SmolVLM and InternVL put their channels side by side (pixel
shuffle) and project them, tile by tile. Space to depth, the inverse of Shi et al.'s sub-pixel convolution (CVPR 2016).

Which patches make a token is asked of the model itself, by shuffling their numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fvlm_lib.vision.opened_tower import Grid


@dataclass(frozen=True)
class PixelShuffle:
    """token_rows: for a grid of patches, the patches, in reading order, that make each token, int64 (n, s * s).
    ValueError for a grid that the model cannot shuffle. project: their features (N, n, s * s, D) into the language
    model's width, (N, n, width)."""

    token_rows: Callable[[Grid], Tensor]
    project: Callable[[Tensor], Tensor]


def open_pixel_shuffle(model: Any) -> PixelShuffle | None:
    """The pixel shuffle of a model with `get_image_features` and its config; None for models of other kinds."""
    kinds = {"idefics3": _idefics3, "smolvlm": _idefics3, "internvl": _internvl}
    opened = kinds.get(getattr(getattr(model, "config", None), "model_type", ""))
    return opened(model) if opened else None


def _idefics3(model: Any) -> PixelShuffle:
    connector = model.connector
    scale = connector.scale_factor

    def shuffled(numbers: Tensor) -> Tensor:
        return connector.pixel_shuffle(numbers.flatten(1, 2), scale)[0]

    return PixelShuffle(
        token_rows=lambda grid: _shuffled_numbers(grid, scale, shuffled),
        project=lambda rows: connector.modality_projection(rows.flatten(-2)),
    )


def _internvl(model: Any) -> PixelShuffle:
    ratio = model.config.downsample_ratio

    def shuffled(numbers: Tensor) -> Tensor:
        return model.pixel_shuffle(numbers, scale_factor=ratio)[0].flatten(0, 1)

    return PixelShuffle(
        token_rows=lambda grid: _shuffled_numbers(grid, round(1 / ratio), shuffled),
        project=lambda rows: model.multi_modal_projector(rows.flatten(-2)),
    )


def _shuffled_numbers(grid: Grid, scale: int, shuffle: Callable[[Tensor], Tensor]) -> Tensor:
    """What `shuffle` makes of the patches' numbers (1, rows, columns, 1): (n, s * s)."""
    rows, columns = grid
    if rows != columns or rows % scale:
        raise ValueError(
            f"a tile of {rows} x {columns} patches; the model shuffles square ones only, of a multiple of {scale}"
        )
    return shuffle(torch.arange(rows * columns).view(1, rows, columns, 1))
