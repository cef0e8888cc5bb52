"""How often nominal 95% intervals hold the truth, by resampling populations whose truth is known. Prints a table.

    python tests/simulations/interval_coverage.py --videos 5120 --sets 2000     # docs/LOG.md, about 10 minutes

Populations: 5,120 scored videos of three demo checkpoints; captions of which 4% fail at inference; captions
without failures; the mean of exponential numbers. Of each, data sets of n samples are drawn and given both the
percentile and the studentised interval (`fvlm_lib.stats`); `warned` says how often the interval came with a warning
(`gap.interval_warnings`), `not warned` how often those without one hold the truth.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from fvlm_lib.gap.gap import evaluate_inference_gap, interval_warnings, open_evaluation
from fvlm_lib.gap.samples import read_samples
from fvlm_lib.stats import (
    bootstrap,
    difference,
    percent_difference,
    percentile_interval,
    ratio,
    resample_statistics,
)

DEMO = Path(__file__).parents[2] / "checkpoints" / "demo"
TRAINING, INFERENCE = ratio("training", "num_tokens"), ratio("inference", "num_tokens")
STATISTICS = {
    "training loss": TRAINING,
    "gap": difference(INFERENCE, TRAINING),
    "gap %": percent_difference(INFERENCE, TRAINING),
}


def scored(name: str, num_videos: int) -> dict[str, np.ndarray]:
    """Losses of a demo checkpoint on `num_videos` test videos."""
    model, videos = open_evaluation(DEMO / name, {"kind": "procedural", "split": "test"}, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "samples.parquet"
        evaluate_inference_gap(model, videos, table, num_videos, num_fine=(1,), floor_samples=0)
        rows = read_samples(table)
    names = {"num_tokens": "num_tokens", "training": "nll_fine_1", "inference": "nll_autoregressive"}
    return {name: rows[column].to_numpy(dtype=float) for name, column in names.items()}


def synthetic(rng: np.random.Generator, size: int = 100_000) -> dict[str, dict[str, np.ndarray]]:
    """Populations without a model: 4% of captions fail at inference; none fails; exponential numbers."""
    tokens, training = np.full(size, 10.0), rng.gamma(2.0, 0.05, size)
    failing = np.where(rng.random(size) < 0.04, rng.gamma(1.0, 8.0, size), rng.normal(0.0, 0.01, size))
    lengths = rng.integers(5, 40, size).astype(float)
    nll = rng.gamma(4.0, 0.5, size) * lengths
    ones, first, second = np.ones(size), rng.exponential(1.0, size), rng.exponential(1.0, size)
    return {
        "4% fail": {"num_tokens": tokens, "training": training, "inference": training + failing},
        "none fails": {"num_tokens": lengths, "training": nll, "inference": 1.05 * nll + rng.normal(0, 0.5, size)},
        "exponential": {"num_tokens": ones, "training": first, "inference": first + second},
    }


def coverage(
    population: dict[str, np.ndarray], num_samples: int, num_sets: int, num_resamples: int, rng: np.random.Generator
) -> pd.DataFrame:
    """One row a statistic: shares of data sets whose interval holds the population's value, and were warned of."""
    totals = {name: values.sum() for name, values in population.items()}
    truth = {name: float(statistic(totals)) for name, statistic in STATISTICS.items()}
    rows = []
    for number in range(num_sets):
        drawn = rng.integers(len(population["training"]), size=num_samples)
        columns = {name: values[drawn] for name, values in population.items()}
        studentised = bootstrap(columns, STATISTICS, num_resamples, seed=number)
        resampled = resample_statistics(columns, STATISTICS, num_resamples, seed=number)
        warned = interval_warnings(*columns.values())
        for name, value in truth.items():
            plain, t = percentile_interval(studentised[name].value, resampled[name]), studentised[name]
            row = {"statistic": name, "percentile": plain.low <= value <= plain.high}
            row |= {"studentised": t.low <= value <= t.high, "warned": name.removesuffix(" %") in warned}
            rows.append(row | {"not warned": row["studentised"] if not row["warned"] else np.nan})
    table = pd.DataFrame(rows).astype({"not warned": float}).groupby("statistic", sort=False)
    return table.mean().assign(n=num_samples).reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--videos", type=int, default=512, help="scored of each checkpoint, default %(default)s")
    parser.add_argument("--sets", type=int, default=1000, help="data sets drawn, default %(default)s")
    parser.add_argument("--resamples", type=int, default=500, help="of each data set, default %(default)s")
    parser.add_argument("--sizes", type=int, nargs="+", default=[30, 128, 512], help="default %(default)s")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    names = ("S-S", "M-S", "S-S-multi")
    populations = {f"{name}_3000": scored(f"{name}/step_3000", args.videos) for name in names} | synthetic(rng)
    tables = [
        coverage(population, size, args.sets, args.resamples, rng).assign(population=name)
        for name, population in tqdm(populations.items(), unit="population")
        for size in args.sizes
    ]
    table = pd.concat(tables)[["population", "n", "statistic", "percentile", "studentised", "warned", "not warned"]]
    print(table.round(3).to_markdown(index=False))


if __name__ == "__main__":
    main()
