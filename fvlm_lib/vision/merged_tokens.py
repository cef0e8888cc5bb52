"""Towers whose own merger makes a token of a square of patches; DeepStack's mergers do so behind some of the blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fvlm_lib.vision.adapters.qwen2_5_vl import merged_order
from fvlm_lib.vision.opened_tower import Grid, Tower


@dataclass(frozen=True)
class Mergers:
    """token_rows: for a grid of patches, the rows of the tower that make each token, tokens in reading order, int64
    (n, r). project: those rows (N, n, r, D) into the language model's width, (N, n, width). deepstack: the same for the
    features of each block that the tower taps."""

    token_rows: Callable[[Grid], Tensor]
    project: Callable[[Tensor], Tensor]
    deepstack: tuple[Callable[[Tensor], Tensor], ...]


def open_mergers(module: Any, tower: Tower) -> Mergers | None:
    """Those of a tower of the Qwen family; None for another."""
    if not hasattr(module, "merger"):
        return None
    order = tower.order

    def token_rows(grid: Grid) -> Tensor:
        rows = order(grid)
        assert rows is not None
        return rows.argsort()[merged_order(module, grid)].unflatten(0, (-1, module.config.spatial_merge_size**2))

    tapped = getattr(module.config, "deepstack_visual_indexes", ())
    return Mergers(
        token_rows,
        functools.partial(_merged, module.merger),
        tuple(functools.partial(_merged, module.deepstack_merger_list[tapped.index(tap)]) for tap in tower.taps),
    )


def _merged(merger: Any, rows: Tensor) -> Tensor:
    tokens: Tensor = merger(rows.flatten(0, 2))  # which takes any number of rows, one token's after the other's
    return tokens.view(*rows.shape[:2], -1)
