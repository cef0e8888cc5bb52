"""The gap of a recipe: the mean over its training seeds, with an interval over seeds and videos.

A recipe's gap is the mean over seeds of each seed's gap. Its variance is the sum of two: that of a mean over k seeds,
S²/k with S the standard deviation of the seeds' gaps, and that of redrawing the evaluation videos, the same draw for
every seed. The interval is Student's, of k - 1 degrees of freedom. Of the intervals tried by
`tests/simulations/seed_coverage.py` it is the one that never covers clearly less than 95% where seeds spread evenly
around their mean; where a few seeds are far worse than the rest it covers less, like all of them (table in
docs/LOG.md). It is wide for two or three seeds, since those tell little.

Knows per-sample tables (`samples.read_samples`); one run's own gap is `gap.py`'s subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from fvlm_lib.stats import Estimate, ratio, resample_statistics


@dataclass(frozen=True)
class SeedValues:
    """A statistic at each of k seeds, shape (k,), and on R resamples of the videos, shape (k, R), the same for all."""

    values: NDArray[np.float64]
    resampled: NDArray[np.float64]

    def __getitem__(self, seeds: slice) -> SeedValues:
        return SeedValues(self.values[seeds], self.resampled[seeds])

    def __sub__(self, other: SeedValues) -> SeedValues:
        """Seed by seed."""
        return SeedValues(self.values - other.values, self.resampled - other.resampled)


def check_same_samples(tables: Sequence[pd.DataFrame]) -> None:
    """Raises ValueError where the tables hold different samples."""
    if any(list(table["sample"]) != list(tables[0]["sample"]) for table in tables[1:]):
        raise ValueError("the tables hold different samples; evaluate all on the same ones")


def gaps_by_seed(tables: Sequence[pd.DataFrame], num_fine: int = 1, seed: int = 0) -> SeedValues:
    """The gap of each table, nats a token; tables of `samples.read_samples`, one a training seed, of the same samples.

    seed: of the resamples. Raises ValueError where the tables hold different samples.
    """
    check_same_samples(tables)
    values, resampled = [], []
    for table in tables:
        gap = (table["nll_autoregressive"] - table[f"nll_fine_{num_fine}"]).to_numpy()
        columns = {"gap": gap, "num_tokens": table["num_tokens"].to_numpy()}
        values.append(gap.sum() / columns["num_tokens"].sum())
        resampled.append(resample_statistics(columns, {"gap": ratio("gap", "num_tokens")}, seed=seed)["gap"])
    return SeedValues(np.array(values), np.array(resampled))


def mean_over_seeds(ours: SeedValues, theirs: SeedValues | None = None, level: float = 0.95) -> Estimate:
    """Mean over seeds with its interval, or the difference of two means whose seeds are independent (Welch 1947).

    Of two sides with the same seeds give `ours - theirs`, which is paired seed by seed. Raises ValueError for a side of
    one seed, from which the spread over seeds cannot be told.
    """
    sides = [ours] if theirs is None else [ours, theirs]
    counts = np.array([len(side.values) for side in sides])
    if counts.min() < 2:
        raise ValueError("there is one seed; an interval over seeds needs at least 2")
    value, resampled = ours.values.mean(), ours.resampled.mean(axis=0)
    if theirs is not None:
        value, resampled = value - theirs.values.mean(), resampled - theirs.resampled.mean(axis=0)
    variances = np.array([side.values.var(ddof=1) for side in sides]) / counts  # of each mean, over seeds
    freedom = counts.min() - 1.0
    if len(sides) == 2 and variances.any():
        freedom = variances.sum() ** 2 / (variances**2 / (counts - 1)).sum()
    margin = stdtrit(freedom, (1 + level) / 2) * (variances.sum() + resampled.var(ddof=1)) ** 0.5
    return Estimate(float(value), float(value - margin), float(value + margin))
