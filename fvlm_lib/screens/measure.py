"""Time and error of encoding policies on a sequence of screenshots, beside the model's own full encode.

`measure_policies` encodes every frame by each policy in turn and by the tower itself, in one run, and returns
one row a frame and policy. What a policy does is `differential.py`'s subject, how a time is taken `timing.py`'s.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
    from fvlm_lib.__main__ import run_as

    run_as("bench-policies")

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fvlm_lib.data.screens import ScreenSequence
from fvlm_lib.reuse.fastest import PackWeights
from fvlm_lib.schema import Count, Metric, Propagate, Reference, Tolerance, check
from fvlm_lib.screens.loaded_towers import LoadedTower
from fvlm_lib.stats import Statistic, bootstrap, ratio
from fvlm_lib.timing import timed
from fvlm_lib.vision.changes import DEFAULT_THRESHOLD, default_limit
from fvlm_lib.vision.differential import DifferentialVisionEncoder
from fvlm_lib.vision.models import open_vision
from fvlm_lib.vision.patches import expand_mask, patch_grid
from fvlm_lib.vision.settings import DifferentialSettings


@dataclass(frozen=True)
class Policy:
    """One way of encoding a stream, by name. Fields as in `DifferentialVisionEncoder`; `partial_updates` False
    treats the tower as one without any."""

    name: str
    diff_threshold: float = DEFAULT_THRESHOLD
    metric: Metric = "max"
    reference: Reference = "encoded"
    propagate: Propagate = "none"
    tolerance: float | None = None
    max_rows: int | None = None
    max_changed_patches: int | None = None
    patch_size: int | None = None
    skip_small_updates: bool = False
    partial_updates: bool = True
    pack_weights: PackWeights = False
    pack_memory: int | None = None


def policies(
    tolerances: Sequence[float],
    pack_weights: PackWeights = False,
    settings: DifferentialSettings | None = None,
    pack_memory: int | None = None,
    max_rows: Sequence[int] = (),
) -> list[Policy]:
    """The policies to compare: whole-frame caching by exact match, as inference servers do; published
    pseudocode (mean difference to the last frame, small changes skipped); partial updates, `none` and `gated`, and for
    each of `max_rows` the top r of Eventful Transformers (`budget`), which knows no tolerance and no limit.
    Of the settings, the partial updates take what says which patches changed, and their limit. Raises ValueError for a
    tolerance that cannot be."""
    check(list[Tolerance], list(tolerances), "tolerances")
    check(list[Count], list(max_rows), "max_rows")
    settings = settings or DifferentialSettings()
    updated = Policy(
        "none", settings.diff_threshold, settings.metric, settings.reference, pack_weights=pack_weights,
        pack_memory=pack_memory, max_changed_patches=settings.max_changed_patches, patch_size=settings.patch_size,
    )  # fmt: skip
    found = [
        Policy("exact match", diff_threshold=0.0, max_changed_patches=0, partial_updates=False),
        Policy(
            "pseudocode", diff_threshold=0.02, metric="mean", reference="previous", skip_small_updates=True,
            partial_updates=False,
        ),
        updated,
    ]  # fmt: skip
    found += [
        replace(updated, name=f"gated {tolerance:g}", propagate="gated", tolerance=tolerance)
        for tolerance in tolerances
    ]
    return found + [
        replace(
            updated, name=f"budget {rows}", propagate="budget", max_rows=rows, tolerance=0.0, max_changed_patches=None
        )
        for rows in max_rows
    ]


class _Opaque(nn.Module):
    """A tower with its architecture hidden, so that no adapter finds it."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower, self.own = tower, open_vision(tower).own

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.own(pixel_values)


def changed_frames(sequence: ScreenSequence, count: int, threshold: float = DEFAULT_THRESHOLD) -> list[int]:
    """Up to `count` frames, evenly spread, in which any pixel differs by more than the threshold (a fraction of the
    range) from the frame before. Raises ValueError where there is none."""
    levels = threshold * 255
    pairs = itertools.pairwise(frame.astype(np.int16) for frame in sequence)
    changed = [
        index
        for index, (before, frame) in enumerate(pairs, 1)
        if before.shape != frame.shape or (np.abs(frame - before) > levels).any()
    ]
    if not changed:
        raise ValueError(f"no frame of {sequence.name} differs from the one before by more than {threshold:g}")
    places = np.linspace(0, len(changed) - 1, min(count, len(changed))).round().astype(int)
    return [changed[place] for place in places]


@torch.no_grad()
def measure_policies(
    tower: LoadedTower,
    sequence: ScreenSequence,
    compared: Sequence[Policy],
    progress: bool = True,
    frames: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Encode a sequence by every policy and in full, frame by frame in turn; one row a frame and policy.

    frames: of the sequence, rising, those that are measured; before each, the policies alone encode the one before it.
    None is all; the first frame is always measured.

    Columns: sequence, tower; height, width, patch_size (pixels, of the frames as the tower sees them); policy,
    diff_threshold, metric, reference, max_changed_patches (as in force), tolerance (NaN if none); frame, path,
    changed, total (patches), kept_bytes, ms, ms_full (the tower's own encode of the same frame, beside), error_mean,
    error_p95, error_max (over patch tokens, relative L2 to the full encode), cosine_min, drift (largest difference
    of a pixel from the one its token was computed from, as a fraction of the range).
    """
    vision = open_vision(tower.model)
    if vision.patch_size is None:
        raise ValueError(f"{tower.name} does not say the size of its patches")
    if vision.tiled and not all(policy.partial_updates for policy in compared):
        raise ValueError(
            f"{tower.name} cuts frames into tiles; policies that keep whole frames alone take no tiles: compare none, "
            "gated and budget (--policies)"
        )
    patch, own = vision.patch_size, vision.own
    grid = patch_grid(*tower.image_size, patch)
    encoders = {policy: _encoder(tower, policy, patch) for policy in compared}
    sources: dict[Policy, Tensor] = {}  # the pixels that each token was computed from
    std = torch.tensor(tower.std).view(3, 1, 1)
    own(tower.pixel_values(sequence[0]))  # warm-up
    rows = []
    last = -1
    chosen = range(len(sequence)) if frames is None else sorted({0, *frames})
    for index in tqdm(chosen, desc=f"{sequence.name}", unit="frame", disable=not progress):
        if index > last + 1:
            pixels = tower.pixel_values(sequence[index - 1])
            for policy, encoder in encoders.items():
                _, stats = encoder.encode(pixels, return_stats=True)
                sources[policy] = _sources(sources.get(policy), pixels, stats.encoded, patch)
        last = index
        pixels = tower.pixel_values(sequence[index])
        full, ms_full = timed(lambda: own(pixels))  # noqa: B023 called at once
        for policy, encoder in encoders.items():
            (tokens, stats), ms = timed(lambda: encoder.encode(pixels, return_stats=True))  # noqa: B023
            sources[policy] = _sources(sources.get(policy), pixels, stats.encoded, patch)
            rows.append(
                {
                    "sequence": sequence.name,
                    "tower": tower.name,
                    "height": tower.image_size[0],
                    "width": tower.image_size[1],
                    "patch_size": patch[0],
                    "policy": policy.name,
                    "diff_threshold": policy.diff_threshold,
                    "metric": policy.metric,
                    "reference": policy.reference,
                    "max_changed_patches": encoder.limit(grid),
                    "tolerance": policy.tolerance,
                    "frame": index,
                    "path": stats.path,
                    "changed": stats.changed_patches,
                    "total": stats.num_patches,
                    "kept_bytes": encoder.nbytes,
                    "ms": ms,
                    "ms_full": ms_full,
                    **token_errors(*(all_tokens.flatten(0, 1)[-stats.num_patches :] for all_tokens in (tokens, full))),
                    "drift": ((pixels - sources[policy]) * std).abs().max().item(),
                }
            )
    return pd.DataFrame(rows)


def _sources(before: Tensor | None, pixels: Tensor, encoded: Tensor, patch: tuple[int, int]) -> Tensor:
    """The pixels (N, C, H, W) that tokens were computed from, after those of the patches in `encoded`, (rows, columns)
    or one for each tile, were taken from `pixels`."""
    masks = encoded.reshape(len(pixels), *encoded.shape[-2:])
    height, width = pixels.shape[-2:]
    seen = torch.stack([expand_mask(mask, height, width, patch) for mask in masks])[:, None]  # (N, 1, H, W)
    return torch.where(seen, pixels, pixels if before is None or before.shape != pixels.shape else before)


def token_errors(tokens: Tensor, exact: Tensor) -> dict[str, float]:
    """How far tokens (P, D) are from exact ones: relative L2 a token (mean, 95th percentile, largest), and the
    smallest cosine. Computed in float64."""
    tokens, exact = tokens.double(), exact.double()
    error = (tokens - exact).norm(dim=-1) / exact.norm(dim=-1)
    cosine = nn.functional.cosine_similarity(tokens, exact, dim=-1)
    return {
        "error_mean": error.mean().item(),
        "error_p95": error.quantile(0.95).item(),
        "error_max": error.max().item(),
        "cosine_min": cosine.min().item(),
    }


def _encoder(tower: LoadedTower, policy: Policy, patch: tuple[int, int]) -> DifferentialVisionEncoder:
    return DifferentialVisionEncoder(
        tower.model if policy.partial_updates else _Opaque(tower.model),
        patch_size=policy.patch_size if policy.partial_updates else patch[0],
        diff_threshold=policy.diff_threshold,
        metric=policy.metric,
        max_changed_patches=policy.max_changed_patches,
        skip_small_updates=policy.skip_small_updates,
        reference=policy.reference,
        propagate=policy.propagate,
        tolerance=policy.tolerance,
        max_rows=policy.max_rows,
        image_mean=tower.mean,
        image_std=tower.std,
        pack_weights=policy.pack_weights,
        pack_memory=policy.pack_memory,
    )


SETTING_COLUMNS = ["height", "width", "patch_size", "diff_threshold", "metric", "reference", "max_changed_patches"]


def read_measured(folder: str | Path, sequence: str) -> pd.DataFrame:
    """What the benchmark has measured on a recording, one row a policy and result file of the folder.

    Columns of `summarize_policies` and besides: file, tolerance and the SETTING_COLUMNS that it was measured at.
    Raises ValueError, saying what makes it, where the recording was not measured, or a file is of an older schema.
    """
    tables = []
    for file in sorted(Path(folder).glob("*.parquet")):
        try:
            rows = pd.read_parquet(file)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read ({error}); remove it and run `bash run.sh`") from error
        if missing := [name for name in ("sequence", "policy", "kept_bytes", *SETTING_COLUMNS) if name not in rows]:
            raise ValueError(
                f"{file} is of an older schema, without {', '.join(missing)}; `bash run.sh` makes the batch's results "
                "anew, one of a notebook run by hand is to be removed"
            )
        if len(rows := rows[rows["sequence"] == sequence]):
            measured_at = rows.groupby(["tower", "policy"], sort=False)[["tolerance", *SETTING_COLUMNS]].first()
            tables.append(summarize_policies(rows).join(measured_at, on=["tower", "policy"]).assign(file=file.name))
    if not tables:
        raise ValueError(f"{folder} has no measurement of {sequence}; `bash run.sh` makes those of config/demo.yaml")
    return pd.concat(tables, ignore_index=True)


def measured_at(
    measured: pd.DataFrame, settings: DifferentialSettings, size: tuple[int, int], patch_size: int
) -> pd.DataFrame:
    """Of `read_measured`, the partial updates that were measured at these settings, whatever their tolerance, on
    frames of this size (height, width) seen in patches of this size."""
    limit = settings.max_changed_patches
    values = {
        "height": size[0],
        "width": size[1],
        "patch_size": patch_size,
        "diff_threshold": settings.diff_threshold,
        "metric": settings.metric,
        "reference": settings.reference,
        "max_changed_patches": default_limit(patch_grid(*size, patch_size)) if limit is None else limit,
    }
    same = measured["policy"].str.match("none|gated")
    for name, value in values.items():
        same &= measured[name] == value
    return measured[same]


def summarize_policies(rows: pd.DataFrame) -> pd.DataFrame:
    """Median speed-up and error of each policy over a table's frames after the first of each sequence.

    Columns: n, ms and ms_full (mean a frame), speedup (median of ms_full / ms, with quartiles _q1, _q3),
    total_speedup (of all frames together), error_mean (mean over frames), error_max (largest), drift (largest),
    kept_bytes (largest), first (median of ms / ms_full of the first frames, which are encoded in full and kept),
    cached / partial / full / skipped shares of frames.
    """
    later = rows[rows["frame"] > 0].copy()
    later["ratio"] = later["ms_full"] / later["ms"]
    grouped = later.groupby(["tower", "policy"], sort=False)
    table = pd.DataFrame(
        {
            "n": grouped.size(),
            "ms": grouped["ms"].mean(),
            "ms_full": grouped["ms_full"].mean(),
            "speedup": grouped["ratio"].median(),
            "speedup_q1": grouped["ratio"].quantile(0.25),
            "speedup_q3": grouped["ratio"].quantile(0.75),
            "total_speedup": grouped["ms_full"].sum() / grouped["ms"].sum(),
            "error_mean": grouped["error_mean"].mean(),
            "error_max": grouped["error_max"].max(),
            "drift": grouped["drift"].max(),
            "kept_bytes": grouped["kept_bytes"].max(),
        }
    )
    first = rows[rows["frame"] == 0].copy()
    first["ratio"] = first["ms"] / first["ms_full"]
    table["first"] = first.groupby(["tower", "policy"], sort=False)["ratio"].median()
    for path in ("cached", "partial", "full", "skipped"):
        table[path] = grouped["path"].agg(lambda paths, path=path: (paths == path).mean())
    return table.reset_index()


def bootstrap_policies(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """`summarize_policies`, with 95% intervals of total_speedup and error_mean as columns _low and _high.

    Whole recordings are resampled, for frames of one recording are alike; of few recordings the intervals are
    wide. A speed-up's is one of its log, as of a ratio of times, an error's ends at 0. NaN where there is but one.
    """
    table = summarize_policies(rows).set_index(["tower", "policy"])
    later = rows[rows["frame"] > 0].assign(frames=1)
    speedup: Statistic = lambda sums: np.log(sums["ms_full"] / sums["ms"])
    statistics = {"total_speedup": speedup, "error_mean": ratio("error_mean", "frames")}
    for name in statistics:
        table[[f"{name}_low", f"{name}_high"]] = np.nan
    for which, of_policy in later.groupby(["tower", "policy"]):
        sums = of_policy.groupby("sequence")[["ms_full", "ms", "error_mean", "frames"]].sum()
        if len(sums) > 1:
            columns = {str(name): column.to_numpy() for name, column in sums.items()}
            found = bootstrap(columns, statistics, seed=seed)
            times, error = found["total_speedup"], found["error_mean"]
            table.loc[which, ["total_speedup_low", "total_speedup_high"]] = np.exp([times.low, times.high])
            table.loc[which, ["error_mean_low", "error_mean_high"]] = [max(0.0, error.low), error.high]
    return table.reset_index()
