"""What a setting of the differential encoder does to a recording, fast enough to follow a slider.

`compare_patches` looks at the pixels once: over a sequence each patch shows few distinct contents, and how much
any two of them differ is all that any threshold, metric, reference or limit needs. `trace_settings` then does
what `changes.trace_changes` does, with the same result, without touching a pixel. Draws nothing; what was
measured at a setting is `measure.py`'s subject.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from fvlm_lib.schema import Metric
from fvlm_lib.vision.changes import TracedFrame, choose_path, default_limit
from fvlm_lib.vision.patches import GREY_LEVELS, PatchSize, patch_grid
from fvlm_lib.vision.settings import DifferentialSettings

Progress = Callable[..., Iterable[Any]]
"""Called as `tqdm` is, `progress(iterable, desc=...)`; passes the items on and shows how far it is."""


@dataclass(frozen=True)
class PatchDifferences:
    """T frames of one size, patch by patch: which of its contents a patch shows, and how much any two differ.

    P patches of the grid (rows, columns), in reading order. shown: (T, P), the number of the content shown.
    counts: (P,) how many contents a patch has. values: (P,) pixels of a patch times channels. Contents i and j of
    patch p are compared at `starts[p] + i * counts[p] + j` of `largest` and `total`, the largest difference and
    the sum of all, in grey levels.
    """

    grid: tuple[int, int]
    shown: np.ndarray
    counts: np.ndarray
    starts: np.ndarray
    values: np.ndarray
    largest: np.ndarray
    total: np.ndarray

    def between(self, metric: Metric, contents: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Difference (P,) of each patch's content from another, the very numbers of `patches.patch_difference_map`."""
        place = self.starts + contents * self.counts + others
        if metric == "max":
            return self.largest[place] / GREY_LEVELS
        return self.total[place] / (GREY_LEVELS * self.values)


def compare_patches(
    frames: Iterable[np.ndarray], patch_size: PatchSize, progress: Progress = tqdm
) -> list[PatchDifferences]:
    """Compare all contents of every patch; one entry for each run of frames, uint8 (H, W, C), of one size.

    Takes every frame once, and keeps the distinct contents while it works; `progress` is over the comparisons. The
    result takes 5 bytes for each ordered pair of a patch's contents: 70 MB where all 4000 patches differ in all of 60
    frames, under 1 MB on most screens.
    """
    return [_compare(run, patch_size, progress) for _, run in itertools.groupby(frames, key=lambda frame: frame.shape)]


def _compare(frames: Iterable[np.ndarray], patch_size: PatchSize, progress: Progress) -> PatchDifferences:
    shown: list[np.ndarray] = []
    new: list[tuple[np.ndarray, np.ndarray]] = []  # of each frame: patches with a content not seen before, and it
    contents: list[dict[bytes, int]] = []
    previous = None
    for frame in frames:
        if previous is None:
            grid = patch_grid(frame.shape[0], frame.shape[1], patch_size)
            values = _blocks(np.ones_like(frame), grid, patch_size).sum(axis=1, dtype=np.int64)
            contents = [{} for _ in values]
        blocks = _blocks(frame, grid, patch_size)
        number = shown[-1].copy() if shown else np.zeros(len(blocks), dtype=np.int64)
        differs = range(len(blocks)) if previous is None else np.flatnonzero((blocks != previous).any(axis=1))
        first_seen = []
        for patch in differs:
            known = len(contents[patch])
            number[patch] = contents[patch].setdefault(blocks[patch].tobytes(), known)
            if number[patch] == known:
                first_seen.append(patch)
        patches = np.array(first_seen, dtype=np.int64)
        new.append((patches, blocks[patches]))
        shown.append(number)
        previous = blocks

    counts = np.array([len(known) for known in contents])
    starts = np.concatenate([[0], np.cumsum(counts**2)[:-1]])
    largest, total = np.zeros((counts**2).sum(), dtype=np.uint8), np.zeros((counts**2).sum(), dtype=np.uint32)
    with_new = [t for t, (patches, _) in enumerate(new) if len(patches)]
    for place, t in enumerate(progress(with_new, desc="comparing patches")):
        for s in with_new[:place]:
            patches, ours, theirs = np.intersect1d(new[t][0], new[s][0], assume_unique=True, return_indices=True)
            a, b = new[t][1][ours], new[s][1][theirs]
            difference = np.maximum(a, b) - np.minimum(a, b)
            i, j = shown[t][patches], shown[s][patches]
            for cells in (starts[patches] + i * counts[patches] + j, starts[patches] + j * counts[patches] + i):
                largest[cells], total[cells] = difference.max(axis=1), difference.sum(axis=1, dtype=np.uint32)
    return PatchDifferences(grid, np.stack(shown), counts, starts, values, largest, total)


def _blocks(frame: np.ndarray, grid: tuple[int, int], patch_size: PatchSize) -> np.ndarray:
    """The patches of a frame (H, W, C) as rows (P, values); those that the border cuts are filled up with 0."""
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    missing = [(0, grid[0] * height - frame.shape[0]), (0, grid[1] * width - frame.shape[1]), (0, 0)]
    padded = np.pad(frame, missing) if any(after for _, after in missing) else frame
    blocks = padded.reshape(grid[0], height, grid[1], width, -1).swapaxes(1, 2)  # (rows, columns, height, width, C)
    return blocks.reshape(grid[0] * grid[1], -1)


def trace_settings(
    compared: Sequence[PatchDifferences], settings: DifferentialSettings
) -> Iterator[tuple[TracedFrame, np.ndarray]]:
    """What an encoder with partial updates would do with each frame, as `changes.trace_changes` says it.

    Also gives how much each patch differs from what it is compared with, (rows, columns), fractions of the full
    range; 0 in a frame that is compared with nothing. The patch size is that of `compare_patches`.
    """
    index = 0
    for run in compared:
        limit = default_limit(run.grid) if settings.max_changed_patches is None else settings.max_changed_patches
        if settings.propagate == "budget":  # encodes no frame in full because of its changes
            limit = run.grid[0] * run.grid[1]
        reference = run.shown[0]  # the content that the next frame's patches are compared with
        for number, shown in enumerate(run.shown):
            difference = run.between(settings.metric, reference, shown)
            mask = difference > settings.diff_threshold
            changed = int(mask.sum()) if number else None
            path = choose_path(changed, limit)
            encoded = np.ones_like(mask) if path == "full" else mask
            reference = shown if settings.reference == "previous" else np.where(encoded, shown, reference)
            yield TracedFrame(index, path, changed, encoded.reshape(run.grid)), difference.reshape(run.grid)
            index += 1
