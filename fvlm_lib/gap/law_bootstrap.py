"""Which losses a scaling law is fitted to anew for its intervals.

Three sources of noise: the scatter of the points about the law, the noise of their evaluation, and the correlation
of points along one training run. Knows log losses of points and the slopes of a fitted law, nothing of how it is
fitted (`law_minimum.py`) or of what comes of the refits (`scaling.py`).
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def default_block_length(num_points: int) -> int:
    """sqrt(n) points, rounded up, for a run of n. Theory's n^(1/3) (Hall, Horowitz and Jing 1995) is for long runs:
    where neighbours correlate by 0.7, runs of 20 to 200 need longer blocks (docs/LOG.md, 2026-11-24)."""
    return math.isqrt(num_points - 1) + 1


def draw_blocks(runs: NDArray[np.int64], length: int, num_draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of points, shape (num_draws, n): each run filled with blocks of `length` neighbours of one run.

    runs: shape (n,), the number of each point's run from 0; along a run, points in order of their scale. Blocks
    keep the correlation of neighbours (Künsch 1989). They start at any point and go on at the beginning of its
    run where that ends (Politis and Romano 1992), so that all points are as likely. With `length` 1 points are
    drawn one by one.
    """
    follows = np.empty((len(runs), length), dtype=np.int64)  # of each point, the block that starts there
    members = [np.flatnonzero(runs == run) for run in range(runs.max() + 1)]
    for points in members:
        follows[points] = points[(np.arange(len(points))[:, None] + np.arange(length)) % len(points)]
    drawn = np.empty((num_draws, len(runs)), dtype=np.int64)
    for points in members:
        starts = rng.integers(len(runs), size=(num_draws, math.ceil(len(points) / length)))
        drawn[:, points] = follows[starts].reshape(num_draws, -1)[:, : len(points)]
    return drawn


def resample_log_losses(
    log_loss: Array,
    log_fitted: Array,
    slopes: Array,
    runs: NDArray[np.int64],
    block_length: int,
    log_replicates: Array | None,
    num_bootstrap: int,
    seed: int,
) -> Array:
    """Log losses (R, n) to refit: the fitted curve plus drawn residuals, plus the noise of the evaluation.

    log_loss, log_fitted: of the points, shape (n,). slopes: of the law by its p parameters, shape (n, p).
    log_replicates: shape (R, n), of the same points on resamples of the evaluation samples; None: R is
        `num_bootstrap`, and residuals alone are drawn.

    Residuals are inflated by sqrt(m / (m - p)), for m = n / block_length independent blocks, and all of one refit
    share a factor sqrt((m - p) / chi2), for m - p degrees of freedom (at least one) tell the noise only so well.
    What the evaluation explains of the scatter about the law comes with the replicates already, so residuals are
    drawn for the rest of the variance: none where evaluation noise explains all of it, and nearly as they are where
    the points do not lie on the law.
    """
    num_points, num_parameters = slopes.shape
    freedom = max(num_points / block_length - num_parameters, 1.0)
    residuals = (log_loss - log_fitted) * math.sqrt(num_points / block_length / freedom)
    noise = np.zeros((num_bootstrap, num_points))
    if log_replicates is not None:
        noise = log_replicates - log_loss
        along, *_ = np.linalg.lstsq(slopes, noise.T, rcond=None)
        scatter = ((noise.T - slopes @ along) ** 2).sum(axis=0).mean() / (num_points - num_parameters)
        residuals *= math.sqrt(max(0.0, 1 - scatter / max((residuals**2).mean(), 1e-300)))
    rng = np.random.default_rng(seed)
    drawn = residuals[draw_blocks(runs, block_length, len(noise), rng)]
    # Capped against a stray draw of a tiny chi2 with one degree of freedom; percentiles do not see the cap.
    factor = np.minimum(np.sqrt(freedom / rng.chisquare(freedom, size=(len(noise), 1))), 30.0)
    return log_fitted + noise + factor * drawn
