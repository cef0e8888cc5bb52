"""What a differential encoder did: with one frame, and with all of them. Knows nothing of how it was done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from fvlm_lib.vision.changes import Path


@dataclass
class FrameStatistics(ModelOutput):
    """What was done with one frame: the path taken, and how many of its patches had changed.

    A dict with attributes, as transformers' outputs are: `stats["path"]` is `stats.path`.

    path: "full", "partial", "cached" (nothing changed), "skipped" (changes too small for a tower without
    partial updates), "fallback" (an error in the differential path, encoded in full).
    changed_patches, num_patches: in a frame that was compared with nothing, all have changed.
    computed_tokens: tokens, global ones included, whose value is new.
    encoded: bool (grid_h, grid_w), the patches whose token was computed from this frame's pixels, or is owed; of a
    tiled one (tiles, grid_h, grid_w).
    owed: with propagate="budget", tokens at all halves of all layers that had moved by more than the tolerance and were
    not computed; they are when their turn comes. 0 otherwise.
    """

    path: Path
    # ModelOutput wants defaults; all of these are always set
    changed_patches: int = None  # type: ignore[assignment]
    num_patches: int = None  # type: ignore[assignment]
    computed_tokens: int = None  # type: ignore[assignment]
    encoded: Tensor = None  # type: ignore[assignment]
    owed: int = None  # type: ignore[assignment]


def joined_tiles(tiles: Sequence[FrameStatistics]) -> FrameStatistics:
    """What was done with a frame, from what was done with each of its tiles: numbers are summed, masks stacked.

    path: "fallback" where one tile's is, else "partial" where some tokens were kept and some not.
    """
    paths = {tile.path for tile in tiles}
    path: Path = "fallback" if "fallback" in paths else "partial"
    if len(paths) == 1:
        (path,) = paths
    return FrameStatistics(
        path,
        sum(tile.changed_patches for tile in tiles),
        sum(tile.num_patches for tile in tiles),
        sum(tile.computed_tokens for tile in tiles),
        torch.stack([tile.encoded for tile in tiles]),
        sum(tile.owed for tile in tiles),
    )


@dataclass
class StreamStatistics:
    """Totals over all frames since the encoder was made, or since `reset_statistics`.

    `frames` counts by path. changed_patches, num_patches: summed over frames that were compared with one
    before; their quotient is the mean change ratio. owed: after the last frame, as in `FrameStatistics`.
    """

    frames: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("full", "partial", "cached", "skipped", "fallback"), 0)
    )
    changed_patches: int = 0
    num_patches: int = 0
    owed: int = 0

    def add(self, frame: FrameStatistics, compared: Iterable[FrameStatistics]) -> None:
        """Count a frame; compared: those of its tiles that were compared with one before."""
        self.frames[frame.path] += 1
        self.owed = frame.owed
        for tile in compared:
            self.changed_patches += tile.changed_patches
            self.num_patches += tile.num_patches

    @property
    def total_frames(self) -> int:
        """All frames, by whatever path."""
        return sum(self.frames.values())

    @property
    def fallbacks(self) -> int:
        """Frames that an error sent to a full encode."""
        return self.frames["fallback"]

    @property
    def mean_change_ratio(self) -> float:
        """Changed patches by patches, over frames that were compared with one before; 0 if there is none."""
        return self.changed_patches / self.num_patches if self.num_patches else 0.0
