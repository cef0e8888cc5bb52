"""Paired, studentised bootstrap over samples for statistics that are built from sums.

A mean loss is `sum(nll) / sum(num_tokens)`: sums and counts are kept apart and divided once, so a long
sample weighs as much as its tokens. The bootstrap (Efron 1979) redraws whole samples with replacement,
sums every column over the same draw, and applies each statistic to those sums. Statistics of one call
therefore share their resamples, so the interval of a difference is a paired one.

Intervals are studentised (bootstrap-t: Efron & Tibshirani 1993, section 12.5; Hall 1988): what is resampled is
the distance from the value in standard errors of the resample. Losses have heavy tails, where a few videos
carry the sum, and the plain percentile interval, which is symmetric to them, covers far too little.

What no interval can know is what its samples do not hold: something that happens to fewer than 3 in n samples
is missing from n samples in one case of twenty. `top_share` tells when a sum hangs on few samples.

This module knows about columns of per-sample numbers and nothing about models, losses or gaps. It assumes
that samples are independent; it does not know of samples cut from one video.

    loss = ratio("nll", "num_tokens")
    bootstrap({"nll": nll, "num_tokens": num_tokens}, {"loss": loss})["loss"]  # Estimate(value, low, high)
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Draws held at once: 2 MB of indices and as much for each gathered column, however many samples there are.
_CHUNK_DRAWS = 250_000

HEAVY_SHARE = 0.2
"""Where the ten largest samples carry more of a sum than this (`top_share`), its interval may be too narrow."""

Sums = Mapping[str, NDArray[np.float64]]
Statistic = Callable[[Sums], NDArray[np.float64]]
"""A function of summed columns. It gets a mapping from column name to sums, all of shape (R,), one a resample
(or one in all, of the samples themselves), and returns that shape; so plain arithmetic is enough."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, in the unit of the value."""

    value: float
    low: float
    high: float


def ratio(numerator: str, denominator: str) -> Statistic:
    """The statistic `sum(numerator) / sum(denominator)`, for example nats a token."""
    return lambda sums: sums[numerator] / sums[denominator]


def difference(statistic: Statistic, reference: Statistic) -> Statistic:
    """The statistic `statistic - reference`, with its sign."""
    return lambda sums: statistic(sums) - reference(sums)


def percent_difference(statistic: Statistic, reference: Statistic) -> Statistic:
    """The statistic `100 * (statistic - reference) / reference`, with its sign, in percent."""
    return lambda sums: 100.0 * (statistic(sums) - reference(sums)) / reference(sums)


def bootstrap(
    columns: Mapping[str, ArrayLike],
    statistics: Mapping[str, Statistic],
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Each statistic of the summed columns with its studentised bootstrap interval.

    columns: per-sample numbers by name, each of shape (N,), all in the same order of samples.
    statistics: by name, functions of the summed columns (see `ratio`, `difference`, `percent_difference`), smooth
        ones: a standard error is that of the statistic linearised at the sums (delta method).
    level: the coverage the intervals aim at. Nominal 95% holds the mean of 30, 128 and 512 exponential numbers in
        94.6, 94.8 and 93.9% of 2,000 data sets (percentile intervals in 91.0, 93.5 and 93.8%); what it reaches on
        losses of which few samples carry the sum is in docs/LOG.md (2026-11-24). Of the mean of 5 normal numbers it
        holds 93%, of 3 and 2, which tell next to nothing of their spread, 88 and 60%.

    Raises ValueError for columns that are empty, unequal in length, shorter than 2 or not finite, and for
    a statistic that is not finite, as a ratio is with a zero denominator.
    """
    _check_level(level)
    arrays = _check_columns(columns)
    whole = {name: array[None] for name, array in arrays.items()}  # (1, N), as a resample
    values = _evaluate_all(statistics, _sums(whole), (1,))
    errors = {name: _standard_error(statistic, whole, arrays) for name, statistic in statistics.items()}
    distances: dict[str, list[NDArray[np.float64]]] = {name: [] for name in statistics}
    for drawn in _resamples(arrays, num_resamples, seed):
        found = _evaluate_all(statistics, _sums(drawn), drawn[next(iter(drawn))].shape[:1])
        for name, statistic in statistics.items():
            # A resample that misses the few samples that carry a sum has next to no error of its own, and would
            # say nothing but that the interval has no end; so it is held above a share of the samples' own.
            floor = errors[name] / np.sqrt(len(next(iter(arrays.values()))))
            error = np.maximum(_standard_error(statistic, drawn, arrays), floor)  # (rows,)
            off = found[name] - values[name]
            distances[name].append(np.divide(off, error, out=np.zeros_like(off), where=error > 0))
    estimates = {}
    for name in statistics:
        value, error = float(values[name][0]), float(errors[name][0])
        t = percentile_interval(0.0, np.concatenate(distances[name]), level)
        estimates[name] = Estimate(value, value - t.high * error, value - t.low * error)
    return estimates


def top_share(values: ArrayLike, count: int = 10) -> float:
    """The share of sum(|values|), (N,), that the `count` largest of them carry; 0 where all are zero."""
    sizes = np.sort(np.abs(np.asarray(values, dtype=np.float64)))
    return float(sizes[-count:].sum() / sizes.sum()) if sizes.any() else 0.0


def resample_statistics(
    columns: Mapping[str, ArrayLike],
    statistics: Mapping[str, Statistic],
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Each statistic on every resample, shape (R,); arguments and errors as in `bootstrap`.

    Two calls with the same seed and the same number of samples draw the same samples. So the losses of
    several checkpoints on one evaluation set, resampled one call each, are paired replicate by replicate:
    stacked into (R, num_checkpoints) they are the `replicates` of `fvlm_lib.gap.scaling.fit_law`.
    """
    return _evaluate_all(statistics, resample_sums(columns, num_resamples, seed), (num_resamples,))


def resample_sums(
    columns: Mapping[str, ArrayLike], num_resamples: int = 2000, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """The sum of each column over each resample, shape (R,); columns and errors as in `bootstrap`.

    One resample is N draws with replacement from the N samples, and all columns are summed over it.
    Memory stays near 2 MB a column for N up to 250,000, and 8 N bytes a column beyond.
    """
    parts = [_sums(drawn) for drawn in _resamples(_check_columns(columns), num_resamples, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _resamples(
    arrays: Mapping[str, NDArray[np.float64]], num_resamples: int, seed: int
) -> Iterator[dict[str, NDArray[np.float64]]]:
    """The resampled columns, (rows, N) each, some rows at a time; a row is a resample."""
    if num_resamples < 2:
        raise ValueError(f"num_resamples is {num_resamples}; a bootstrap needs at least 2, better 1000")
    num_samples = len(next(iter(arrays.values())))
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_DRAWS // num_samples)
    for first in range(0, num_resamples, rows):
        draw = rng.integers(num_samples, size=(min(rows, num_resamples - first), num_samples))
        yield {name: array[draw] for name, array in arrays.items()}


def _sums(drawn: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    # Summed a row at a time, not multiplied as counts: a matrix product rounds equal columns differently, and
    # the difference of a column with itself would not be exactly zero.
    return {name: array.sum(axis=1) for name, array in drawn.items()}


def _standard_error(
    statistic: Statistic, drawn: Mapping[str, NDArray[np.float64]], arrays: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Standard error of the statistic on each of some resamples, (rows,), by the delta method.

    The statistic is linear near its sums, so each sample moves it by its influence, the gradient times the
    sample's distance from the mean; the error is that of a sum of N such (infinitesimal jackknife, Efron 1982).
    """
    sums, influence = _sums(drawn), np.zeros_like(next(iter(drawn.values())))  # (rows, N)
    num_samples = influence.shape[1]
    for name, array in drawn.items():
        step = 1e-6 * (np.abs(sums[name]) + 1e-3 * np.abs(arrays[name]).sum()) + np.finfo(float).tiny  # (rows,)
        above, below = ({**sums, name: sums[name] + sign * step} for sign in (1, -1))
        slope = (np.asarray(statistic(above)) - np.asarray(statistic(below))) / (2 * step)
        if slope.any():
            influence += slope[:, None] * (array - sums[name][:, None] / num_samples)
    return np.sqrt(np.square(influence).sum(axis=-1) * (num_samples / (num_samples - 1.0)))


def percentile_interval(value: float, resampled: ArrayLike, level: float = 0.95) -> Estimate:
    """`value` with the central `level` part of its resampled values, shape (R,), as interval."""
    _check_level(level)
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(np.asarray(resampled, dtype=np.float64), [tail, 100.0 - tail])
    return Estimate(float(value), float(low), float(high))


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}; it is a fraction between 0 and 1, such as 0.95")


def _check_columns(columns: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    arrays: dict[str, NDArray[np.float64]] = {}
    for name, column in columns.items():
        try:
            array = np.ascontiguousarray(column, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"column '{name}' holds something that is not a number: {error}") from error
        if array.ndim != 1 or np.ndim(column) != 1:
            raise ValueError(f"column '{name}' has shape {np.shape(column)}; one number a sample is (N,)")
        bad = np.flatnonzero(~np.isfinite(array))
        if len(bad):
            raise ValueError(f"column '{name}' is {array[bad[0]]} at sample {bad[0]}; it must be finite")
        arrays[name] = array
    lengths = {name: len(array) for name, array in arrays.items()}
    if not lengths:
        raise ValueError("there are no columns; give at least one")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns differ in length: {lengths}; each has one number a sample")
    if min(lengths.values()) < 2:
        raise ValueError(f"there are {min(lengths.values())} samples; a bootstrap needs at least 2")
    return arrays


def _evaluate_all(
    statistics: Mapping[str, Statistic], sums: Sums, shape: tuple[int, ...]
) -> dict[str, NDArray[np.float64]]:
    return {name: _evaluate(name, statistic, sums, shape) for name, statistic in statistics.items()}


def _evaluate(name: str, statistic: Statistic, sums: Sums, shape: tuple[int, ...]) -> NDArray[np.float64]:
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.asarray(statistic(sums), dtype=np.float64)
    except KeyError as error:
        raise ValueError(f"statistic '{name}' wants column {error}; there are {sorted(sums)}") from error
    if values.shape != shape:
        raise ValueError(f"statistic '{name}' has shape {values.shape}; that of its sums is {shape}")
    if not np.isfinite(values).all():
        where = "the samples" if shape == (1,) else f"{(~np.isfinite(values)).sum()} of {shape[0]} resamples"
        raise ValueError(f"statistic '{name}' is not finite on {where}: its denominator must not sum to zero")
    return values
