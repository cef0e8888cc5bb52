"""Whether the norm of the Jacobian of the query recurrence predicts the gap, over the checkpoints of a study.

Both change with training and with size, so that they correlate for that alone; so the same is told within each size and
step. Intervals redraw the runs of one size and seed together (percentile bootstrap), which share first weights and
videos, of the recipes that the study has: they say nothing of other recipes. How a norm is measured is in
`query_jacobian.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fvlm_lib.gap.study_results import StudyResults, cells
from fvlm_lib.stats import Estimate, percentile_interval

COLUMNS = ("size", "recipe", "seed", "step", "query_norm", "gap", "abs_gap")
_NUM_DRAWS = 1000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class NormPrediction:
    """How the size of the gap goes with the norm, each with its 95% interval over runs, drawn by size and seed.

    spearman: rank correlation of norm and |gap| over all checkpoints. slope: of log |gap| on log norm: 1 where a norm
    that is 10% larger goes with a gap that is 10% larger. spearman_within, slope_within: the same of what is left when
    ranks, or logs, are taken within each size and step less their mean there; None where no size and step has two
    checkpoints that differ.
    """

    num_rows: int
    num_runs: int
    spearman: Estimate
    slope: Estimate
    spearman_within: Estimate | None
    slope_within: Estimate | None


def norm_points(results: StudyResults) -> pd.DataFrame:
    """Checkpoints whose norm was measured: size, recipe, seed, step, query_norm, gap and abs_gap, nats a token; no rows
    where none was.

    One checkpoint is one row: those of a run that begins by the steps of another recipe are that recipe's, which their
    `weights_hash` tells, and stand there alone.
    """
    if "query_norm" not in results.table:
        return pd.DataFrame(columns=[*COLUMNS])
    measured = results.trained
    if "weights_hash" in measured:
        measured = measured[~measured["weights_hash"].duplicated() | measured["weights_hash"].isna()]
    norms = measured.set_index([*COLUMNS[:4]])["query_norm"].dropna().to_dict()
    rows = [
        (size, recipe, seed, step, norms[size, recipe, seed, step], gap, abs(gap))
        for (size, recipe, step), cell in cells(results, "gap").items()
        for seed, gap in zip(cell.seeds, map(float, cell.values.values), strict=True)
        if (size, recipe, seed, step) in norms
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS])


def norm_prediction(results: StudyResults, seed: int = 0) -> NormPrediction | None:
    """How the gap goes with the norm; None where fewer than two seeds, or three pairs of a size and a seed, have norms
    and gaps, or these do not differ. Norms and gaps that are 0 are left out.

    seed: of the bootstrap.
    """
    points = norm_points(results)
    points = points[(points["query_norm"] > 0) & (points["abs_gap"] > 0)]
    drawn_by = points.groupby(["size", "seed"]).ngroup().to_numpy()
    cell = points.groupby(["size", "step"]).ngroup().to_numpy()
    norm, gap = points["query_norm"].to_numpy(np.float64), points["abs_gap"].to_numpy(np.float64)
    count = len(np.unique(drawn_by))
    if count < 3 or points["seed"].nunique() < 2 or np.ptp(norm) == 0 or np.ptp(gap) == 0:
        return None
    together = np.zeros_like(cell)
    members = [np.flatnonzero(drawn_by == number) for number in range(count)]
    rng = np.random.default_rng(seed)
    draws = [np.concatenate([members[i] for i in rng.integers(count, size=count)]) for _ in range(_NUM_DRAWS)]

    def estimate(
        statistic: Callable[[Array, Array, NDArray[np.int64]], float], of: NDArray[np.int64]
    ) -> Estimate | None:
        value = statistic(norm, gap, of)
        drawn = np.array([statistic(norm[rows], gap[rows], of[rows]) for rows in draws])
        return None if np.isnan(value) else percentile_interval(value, drawn[np.isfinite(drawn)])

    over_all = [estimate(statistic, together) for statistic in (_spearman, _slope)]
    within = [estimate(statistic, cell) for statistic in (_spearman, _slope)]
    assert over_all[0] is not None and over_all[1] is not None  # norms and gaps differ
    num_runs = points.groupby(["size", "recipe", "seed"]).ngroups
    return NormPrediction(len(points), num_runs, over_all[0], over_all[1], *within)


def _centred(values: Array, cell: NDArray[np.int64]) -> Array:
    """Less the mean of each cell."""
    counts = np.bincount(cell)
    return values - (np.bincount(cell, values) / np.maximum(counts, 1))[cell]


def _ranks(values: Array, cell: NDArray[np.int64]) -> Array:
    """Ranks within each cell as shares of its points, equal values their mean rank, less the mean of the cell."""
    order = np.lexsort((values, cell))
    new = (np.diff(values[order], prepend=np.nan) != 0) | (np.diff(cell[order], prepend=-1) != 0)
    group = np.cumsum(new) - 1  # of equal values in one cell
    ranks = np.empty_like(values)
    ranks[order] = (np.bincount(group, np.arange(len(values))) / np.bincount(group))[group]
    return _centred(ranks / np.bincount(cell)[cell], cell)


def _spearman(norm: Array, gap: Array, cell: NDArray[np.int64]) -> float:
    x, y = _ranks(norm, cell), _ranks(gap, cell)
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / scale) if scale > 1e-9 else np.nan


def _slope(norm: Array, gap: Array, cell: NDArray[np.int64]) -> float:
    x, y = _centred(np.log(norm), cell), _centred(np.log(gap), cell)
    return float((x * y).sum() / (x**2).sum()) if (x**2).sum() > 1e-12 else np.nan
