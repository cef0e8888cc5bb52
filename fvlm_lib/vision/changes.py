"""Which patches of a stream changed since their tokens were computed, and what an encoder does about it.

`ChangeTracker` holds the pixels that frames are compared with, `choose_path` is the policy. Both are what
`differential.py` encodes by, and `trace_changes` runs them without any model, to see what a setting would do.
How much a patch differs is `patches.py`'s subject.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from fvlm_lib.schema import Metric, Reference, Share, check
from fvlm_lib.vision.patches import PatchSize, compute_patch_diff, expand_mask, patch_grid

Path = Literal["full", "partial", "cached", "skipped", "fallback"]

DEFAULT_THRESHOLD = 0.05
"""Largest pixel difference that leaves a patch unchanged. A caret one pixel wide in a screenshot of 1280x800
differs by 0.13 or more even when shrunk to 336x336, wherever it stands, and by 0.85 or more unshrunk."""

DEFAULT_CHANGED_SHARE = 0.75
"""Of a frame's patches, up to which a partial update is made where nobody measured what its products take. An update of
all patches takes about a tenth longer than a full encode: what it gates and keeps costs time too."""


def choose_path(
    changed: int | None, limit: int, *, can_update: bool = True, skip_small_updates: bool = False, owed: int = 0
) -> Path:
    """What to do with a frame of which `changed` patches changed (None: there is nothing to compare with).

    limit: most patches that a partial update is made for. can_update: whether the tower has partial updates;
    if not, `skip_small_updates` says whether up to `limit` changed patches leave the tokens as they are.
    owed: what updates of earlier frames left to be computed, which a frame without changes goes on with.
    """
    if changed is None:
        return "full"
    if changed == 0:
        return "partial" if owed and can_update else "cached"
    if changed > limit or not (can_update or skip_small_updates):
        return "full"
    return "partial" if can_update else "skipped"


class ChangeTracker:
    """The pixels that the next frame is compared with, and the comparison.

    threshold, metric, mean, std: see `patches.compute_patch_diff`. reference: "encoded" compares each patch with
    the pixels that its token was computed from, so that none is ever staler than the threshold; "previous"
    with the last frame, which lets slow drift through.

    Frames are all numpy (H, W, C) or all torch (1, C, H, W). Raises ValueError for a threshold outside [0, 1] and
    an unknown reference.
    """

    def __init__(
        self,
        threshold: float = DEFAULT_THRESHOLD,
        metric: Metric = "max",
        reference: Reference = "encoded",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        check(Share, threshold, "threshold")
        check(Metric, metric, "metric")
        check(Reference, reference, "reference")
        self.threshold, self.metric, self.reference = threshold, metric, reference
        self.mean, self.std = mean, std
        self.pixels: Any = None  # numpy or torch, as the frames are

    def reset(self) -> None:
        """Forget the frames seen."""
        self.pixels = None

    def changed(self, frame: Any, patch_size: PatchSize) -> Any:
        """Mask (grid_h, grid_w) of changed patches; None for a first frame or one of another size.

        Raises ValueError for pixels that cannot be right, also in a first frame; nothing is kept then.
        """
        first = self.pixels is None or self.pixels.shape != frame.shape
        against = frame if first else self.pixels  # a first frame with itself, to refuse what cannot be right
        mask = compute_patch_diff(
            against, frame, patch_size, self.threshold, metric=self.metric, mean=self.mean, std=self.std
        )
        return None if first else mask

    def encoded(self, frame: Any, patch_size: PatchSize, mask: Any = None) -> None:
        """Say that the patches in `mask` (None: all) now have tokens of this frame; of others nothing changes.

        To be called for every frame, with an empty mask where none was encoded.
        """
        first = self.pixels is None or self.pixels.shape != frame.shape
        if mask is None or first or self.reference == "previous":
            self.pixels = frame.copy() if isinstance(frame, np.ndarray) else frame.clone()
        elif mask.any():
            height, width = frame.shape[:2] if isinstance(frame, np.ndarray) else frame.shape[-2:]
            where = expand_mask(mask, height, width, patch_size)
            if isinstance(frame, np.ndarray):
                self.pixels[where] = frame[where]
            else:
                self.pixels[..., where] = frame[..., where]


@dataclass(frozen=True)
class TracedFrame:
    """What a setting does with one frame: index, path, changed patches, mask (grid_h, grid_w; all True if full).

    changed: None for a frame that is compared with nothing. changed_mask: which patches changed, (grid_h, grid_w), all
    of a frame that is compared with nothing; None where a trace does not keep it.
    """

    index: int
    path: Path
    changed: int | None
    mask: np.ndarray
    changed_mask: np.ndarray | None = None


def trace_changes(
    frames: Iterable[np.ndarray],
    patch_size: PatchSize,
    tracker: ChangeTracker,
    max_changed_patches: int | None = None,
) -> Iterator[TracedFrame]:
    """What an encoder with partial updates would do with frames uint8 (H, W, C), one after the other."""
    tracker.reset()
    for index, frame in enumerate(frames):
        grid = patch_grid(frame.shape[0], frame.shape[1], patch_size)
        limit = default_limit(grid) if max_changed_patches is None else max_changed_patches
        mask = tracker.changed(frame, patch_size)
        changed = None if mask is None else int(mask.sum())
        path = choose_path(changed, limit)
        encoded = np.ones(grid, dtype=bool) if path == "full" else mask
        tracker.encoded(frame, patch_size, encoded)
        yield TracedFrame(index, path, changed, encoded, encoded if mask is None else mask)


def default_limit(grid: tuple[int, int]) -> int:
    """The default of `max_changed_patches` for a grid (rows, columns)."""
    return int(DEFAULT_CHANGED_SHARE * grid[0] * grid[1])


def trace_table(traced: Sequence[TracedFrame], actions: Sequence[dict[str, Any]] | None = None) -> pd.DataFrame:
    """One row a frame: frame, path, changed (patches that differ; all in a frame compared with nothing),
    encoded, total, and action, what was done at that frame, if that is known."""
    table = pd.DataFrame(
        {
            "frame": [step.index for step in traced],
            "path": [step.path for step in traced],
            "changed": [step.mask.size if step.changed is None else step.changed for step in traced],
            "encoded": [int(step.mask.sum()) for step in traced],
            "total": [step.mask.size for step in traced],
        }
    )
    if actions is not None:
        table["action"] = [" ".join(filter(None, [a.get("action"), a.get("detail")])) for a in actions]
    return table


def typical_frame(table: pd.DataFrame) -> int:
    """Of the frames with a partial update, the one with the median number of changes; where there is none, of the later
    frames on which anything changed; 0 if there is none of these either."""
    later = table[(table["frame"] > 0) & (table["changed"] > 0)].sort_values("changed", kind="stable")
    partial = later[later["path"] == "partial"]
    chosen = partial if len(partial) else later
    return int(chosen["frame"].iloc[len(chosen) // 2]) if len(chosen) else 0


@dataclass(frozen=True)
class ChangeMaps:
    """Which patches of a recording changed, with the setting that says so, for figures.

    changed: bool (T, grid_h, grid_w), a frame each; all of a frame that is compared with nothing. Where so many changed
    that the whole frame is encoded anew, these are still those that changed. frame: index of the one frame whose
    picture is kept, as `screenshot`, uint8 (H, W, 3). patch_size: pixels. threshold, metric, reference: as in
    `ChangeTracker`.
    """

    changed: np.ndarray
    frame: int
    screenshot: np.ndarray
    patch_size: int
    threshold: float
    metric: str
    reference: str

    def frequency(self) -> np.ndarray:
        """(grid_h, grid_w): the share of the frames after the first in which a patch changed."""
        return self.changed[1:].mean(axis=0) if len(self.changed) > 1 else np.zeros(self.changed.shape[1:])

    def save(self, path: str | PathLike[str]) -> None:
        """Write all fields to one compressed .npz."""
        np.savez_compressed(path, **vars(self))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> ChangeMaps:
        """Read what `save` wrote. Raises ValueError for a file that is missing or holds something else."""
        try:
            with np.load(path) as content:
                values = {name: content[name] for name in cls.__dataclass_fields__}
        except FileNotFoundError:
            raise ValueError(f"{path} is missing; `bash run.sh` makes it") from None
        except (KeyError, ValueError, EOFError, OSError, BadZipFile) as error:
            raise ValueError(f"{path} holds no change maps ({error}); remove it and run `bash run.sh`") from error
        return cls(**{name: value if value.ndim else value.item() for name, value in values.items()})
