"""How often the interval of a scaling law's exponent holds the true one, where points along a run are correlated.

Power laws and offset power laws are planted, with residuals of the log loss that are AR(1) along each run, and
fitted with residuals drawn one by one and in blocks. Prints a table, about 10 minutes on one idle core:

    python tests/simulations/scaling_coverage.py
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from fvlm_lib.gap.scaling import fit_law

NOISE = 0.01  # standard deviation of the log loss about the law
EXPONENTS = {"power": 0.1, "offset_power": 0.4}
SETTINGS = [  # form, runs, points a run, correlation of neighbours
    ("power", 1, 20, 0.7),
    ("power", 1, 87, 0.7),
    ("power", 4, 20, 0.7),
    ("power", 1, 20, 0.0),
    ("offset_power", 1, 87, 0.7),
]


def correlated(runs: int, points: int, correlation: float, rng: np.random.Generator) -> np.ndarray:
    """Stationary AR(1) noise of variance 1, a row a run, shape (runs, points)."""
    noise = rng.standard_normal((runs, points))
    for at in range(1, points):
        noise[:, at] = correlation * noise[:, at - 1] + math.sqrt(1 - correlation**2) * noise[:, at]
    return noise


def planted(form: str, x: np.ndarray) -> np.ndarray:
    power = 30 * x ** -EXPONENTS[form]
    return power if form == "power" else 1 + power


def cover(setting: tuple[str, int, int, float, int], curves: int, refits: int) -> tuple[float, float]:
    """Share of the curves whose interval holds the exponent, and the median width of the intervals."""
    form, runs, points, correlation, length = setting
    x = np.tile(np.geomspace(1e3, 1e6, points), runs)
    labels = np.repeat(np.arange(runs), points)
    rng = np.random.default_rng(0)  # the same curves for every length
    held, widths = 0, []
    for seed in range(curves):
        loss = planted(form, x) * np.exp(NOISE * correlated(runs, points, correlation, rng).ravel())
        fit = fit_law(form, x, loss, num_bootstrap=refits, seed=seed, runs=labels, block_length=length)
        exponent = list(fit.parameters.values())[-1]
        held += exponent.low <= EXPONENTS[form] <= exponent.high
        widths.append(exponent.high - exponent.low)
    return held / curves, float(np.median(widths))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--curves", type=int, default=200, help="simulated in each setting (default: %(default)s)")
    parser.add_argument("--refits", type=int, default=80, help="for each interval (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="at once (default: %(default)s)")
    args = parser.parse_args()
    settings, drawn = [], []
    for form, runs, points, correlation in SETTINGS:
        root = math.ceil(math.sqrt(points))
        lengths = {1: "one by one", root: f"blocks of {root}, sqrt(n)"}
        if runs == 1 and form == "power" and correlation:
            cube = math.ceil(points ** (1 / 3))
            lengths[cube] = f"blocks of {cube}, n^(1/3)"
        settings += [(form, runs, points, correlation, length) for length in lengths]
        drawn += lengths.values()
    print("| law | runs x points | correlation | residuals drawn | holds the exponent | median width |")
    print("|:--|:--|:--|:--|:--|:--|", flush=True)
    with ProcessPoolExecutor(args.processes) as pool:
        measured = pool.map(cover, settings, itertools.repeat(args.curves), itertools.repeat(args.refits))
        for (form, runs, points, correlation, _), name, (share, width) in zip(settings, drawn, measured, strict=True):
            print(f"| {form} | {runs} x {points} | {correlation} | {name} | {share:.0%} | {width:.4f} |", flush=True)


if __name__ == "__main__":
    main()
