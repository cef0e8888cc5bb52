"""What a differential encoder did: with one frame, and with all of them. Knows nothing of how it was done."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    encoded: bool (grid_h, grid_w), the patches whose token was computed from this frame's pixels, or is owed.
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
