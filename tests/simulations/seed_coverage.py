"""How often an interval over training seeds holds the true gap: `python tests/simulations/seed_coverage.py`.

A gap of seed s is the mean over videos v of `true + A_s + B_v + C_sv`: what the seed does, what the video does
whatever the seed, and what it does to this seed alone. Every candidate gets the same draws of it; the table has the
share of intervals that hold the truth (aimed at: 95%) and their median width, in standard deviations of A_s where it is
not zero. The second table is of two recipes whose seeds are drawn together (correlation 0 or 0.9), paired by seed or
taken as independent.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from fvlm_lib.gap.seeds import SeedValues, mean_over_seeds

NUM_VIDEOS, NUM_RESAMPLES, LEVEL = 512, 500, 0.95
VIDEO_SD = 0.26  # of one video's gap, nats a token, as in the demo's plain runs at step 3000
SEED_SDS = {"none": 0.0, "as videos": VIDEO_SD / NUM_VIDEOS**0.5, "ten times": 10 * VIDEO_SD / NUM_VIDEOS**0.5}
Array = NDArray[np.float64]
Interval = tuple[float, float]


def standard(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> Array:
    """Numbers of mean 0 and variance 1."""
    if kind == "normal":
        return rng.standard_normal(shape)
    if kind == "t3":  # heavy on both sides
        return rng.standard_t(3, shape) / 3**0.5
    return (rng.lognormal(size=shape) - np.exp(0.5)) / (np.exp(2) - np.e) ** 0.5  # lognormal: heavy on one


# ---- candidates: the gap of every video (k, N) -> the interval of the mean gap over seeds ------------


class Draws:
    """Fixed resamples of videos, as counts (R, N), and of k seeds, as places (R, k)."""

    def __init__(self, rng: np.random.Generator, k: int):
        self.videos = rng.multinomial(NUM_VIDEOS, [1 / NUM_VIDEOS] * NUM_VIDEOS, NUM_RESAMPLES) / NUM_VIDEOS
        self.seeds = rng.integers(k, size=(NUM_RESAMPLES, k))


def two_level(gaps: Array, draws: Draws) -> Array:
    """The gaps of the drawn seeds on the drawn videos, (R, k)."""
    return np.take_along_axis(draws.videos @ gaps.T, draws.seeds, axis=1)


def video_variance(gaps: Array, draws: Draws) -> float:
    """Of the mean over these seeds, with the videos redrawn."""
    return float((draws.videos @ gaps.mean(axis=0)).var(ddof=1))


def percentile(gaps: Array, draws: Draws) -> Interval:
    low, high = np.percentile(two_level(gaps, draws).mean(axis=1), [2.5, 97.5])
    return low, high


def around(centre: float, error: float, freedom: float) -> Interval:
    margin = student.ppf((1 + LEVEL) / 2, freedom) * error
    return centre - margin, centre + margin


def bootstrap_t(gaps: Array, draws: Draws) -> Interval:
    """The standard error of the two-level bootstrap, Student's quantile."""
    error = two_level(gaps, draws).mean(axis=1).std(ddof=1)
    return around(gaps.mean(), error, len(gaps) - 1)


def by_seed(gaps: Array, draws: Draws) -> SeedValues:
    return SeedValues(gaps.mean(axis=1), gaps @ draws.videos.T)


def sum_of_variances(gaps: Array, draws: Draws) -> Interval:
    """What the library does: variance over seeds and over videos added, Student's quantile of k - 1."""
    found = mean_over_seeds(by_seed(gaps, draws))
    return found.low, found.high


def satterthwaite(gaps: Array, draws: Draws) -> Interval:
    """The same with the degrees of freedom of such a sum (Satterthwaite 1946)."""
    seeds, videos = gaps.mean(axis=1).var(ddof=1) / len(gaps), video_variance(gaps, draws)
    freedom = (seeds + videos) ** 2 / (seeds**2 / (len(gaps) - 1) + videos**2 / (NUM_VIDEOS - 1))
    return around(gaps.mean(), (seeds + videos) ** 0.5, freedom)


def studentised(gaps: Array, draws: Draws) -> Interval:
    """The two-level bootstrap of the mean divided by its standard error (bootstrap-t)."""
    k, videos = len(gaps), video_variance(gaps, draws)
    resampled = two_level(gaps, draws)
    scores = (resampled.mean(axis=1) - gaps.mean()) / (resampled.var(axis=1, ddof=1) / k + videos) ** 0.5
    error = (gaps.mean(axis=1).var(ddof=1) / k + videos) ** 0.5
    low, high = np.percentile(scores, [2.5, 97.5])
    return gaps.mean() - high * error, gaps.mean() - low * error


CANDIDATES: dict[str, Callable[[Array, Draws], Interval]] = {
    "percentile": percentile,
    "two-level error, t(k-1)": bootstrap_t,
    "sum of variances, t(k-1)": sum_of_variances,
    "sum of variances, Satterthwaite": satterthwaite,
    "studentised": studentised,
}


def independent(ours: Array, theirs: Array, draws: Draws) -> Interval:
    """What the library does of two recipes with other seeds: variances over seeds added, videos shared."""
    found = mean_over_seeds(by_seed(ours, draws), by_seed(theirs, draws))
    return found.low, found.high


# ---- the tables --------------------------------------------------------------------------------------


def one_recipe(rng: np.random.Generator, kind: str, sd: float, k: int, shared: Array) -> Array:
    """Gaps (k, N) around a truth of zero. shared: what the video does whatever the seed, (N,), variance 1."""
    own = rng.standard_exponential((k, NUM_VIDEOS)) - 1
    return sd * standard(rng, (k, 1), kind) + VIDEO_SD * 0.5**0.5 * (shared + own)


def shared_videos(rng: np.random.Generator) -> Array:
    return rng.standard_exponential(NUM_VIDEOS) - 1


def tell(found: list[Interval], sd: float) -> str:
    low, high = np.array(found).T
    held = 100 * ((low <= 0) & (high >= 0)).mean()
    return f"{held:.0f}" + (f" ({np.median(high - low) / sd:.1f})" if sd else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    rows = []
    for kind, (size, sd), k in product(("normal", "t3", "lognormal"), SEED_SDS.items(), (2, 3, 5, 10)):
        if sd == 0 and kind != "normal":
            continue
        draws, found = Draws(rng, k), {name: [] for name in CANDIDATES}
        for _ in range(args.repeats):
            gaps = one_recipe(rng, kind, sd, k, shared_videos(rng))
            for name, candidate in CANDIDATES.items():
                found[name].append(candidate(gaps, draws))
        about = {"seeds": kind if sd else "none", "spread": size, "k": k}
        rows.append(about | {name: tell(intervals, sd) for name, intervals in found.items()})
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True), end="\n\n")

    rows = []
    for kind, correlation, k in product(("normal", "t3", "lognormal"), (0.0, 0.9), (2, 3, 5, 10)):
        draws, sd, found = Draws(rng, k), SEED_SDS["ten times"], {"paired": [], "independent": []}
        for _ in range(args.repeats):
            videos, common = shared_videos(rng), standard(rng, (k, 1), kind)
            ours, theirs = (
                one_recipe(rng, kind, sd * (1 - correlation) ** 0.5, k, videos) + sd * correlation**0.5 * common
                for _ in range(2)
            )
            found["paired"].append(sum_of_variances(ours - theirs, draws))
            found["independent"].append(independent(ours, theirs, draws))
        about = {"seeds": kind, "correlation": correlation, "k": k}
        rows.append(about | {name: tell(intervals, sd) for name, intervals in found.items()})
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))


if __name__ == "__main__":
    main()
