"""What each recipe of a study changes against plain training, or another: after equal steps, and for equal compute.

Differences are paired by seed: one seed means the same videos, in training as in evaluation, for every recipe, and the
same first weights within a size. Means over seeds and their intervals are those of `seeds.mean_over_seeds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fvlm_lib.gap.seeds import SeedValues
from fvlm_lib.gap.study_results import (
    ALL_SIZES,
    LOG_LOSS,
    PLAIN,
    Cell,
    StudyResults,
    cells,
    common_seeds,
    is_resolved,
    mean_or_alone,
)

COLUMNS = (
    "size", "recipe", "measure", "step", "training_flops", "num_seeds", "num_lower", "difference", "low", "high",
    "resolved",
)  # fmt: skip
_MEASURES = {"loss_inference": "loss_inference", LOG_LOSS: "loss_inference", "gap": "gap"}  # and what each is made of

Cells = Mapping[tuple[str, str, int], Cell]


def recipe_contrasts(results: StudyResults, reference: str = PLAIN) -> pd.DataFrame:
    """Each recipe minus `reference` at the study's last step, a row a (size, recipe, measure); equal steps and videos.

    Columns: size, recipe, measure (loss_inference, its logarithm `log loss_inference`, of which -0.1 is 10% less, or
    gap), step, training_flops (of the recipe, mean over its seeds), num_seeds (that both recipes have), num_lower (in
    how many of them the difference is negative, which one seed far off the others does not hide), difference with low
    and high (nats a token; bounds NaN for one seed), and resolved: the interval is off zero, by more than the numerical
    floor. Rows of size "all", last, are the mean over sizes of each seed, where a recipe has all sizes. Recipes without
    a seed at the last step are left out. Raises ValueError where the study has no such reference.
    """
    _check(results, reference)
    step = results.last_step
    flops = results.trained.groupby(["size", "recipe", "step"])["training_flops"].mean()
    rows = []
    for measure, of in _MEASURES.items():
        found = cells(results, of)
        if measure == LOG_LOSS:
            found = {key: cell.logs() for key, cell in found.items()}
        differences = {}
        for size, recipe in _others(results, reference):
            ours, theirs = found.get((size, recipe, step)), found.get((size, reference, step))
            seeds = common_seeds(ours, theirs)
            if ours and theirs and seeds:
                differences[size, recipe] = Cell(seeds, ours.at(seeds) - theirs.at(seeds))
        rows += _rows(results, measure, differences, {key: float(flops[(*key, step)]) for key in differences})
    return _table(results, rows)


def equal_compute_contrasts(results: StudyResults, reference: str = PLAIN) -> pd.DataFrame:
    """As `recipe_contrasts`, for equal training FLOPs: those at which the first of the two, recipe or
    `reference`, ends.

    The other run is read between its checkpoints: log loss, and the gap, linear in log FLOPs. training_flops is what
    both are compared at, mean over seeds; step is the study's last. Recipes whose first checkpoint costs more are left
    out.
    """
    _check(results, reference)
    flops = results.trained.set_index(["size", "recipe", "seed", "step"])["training_flops"].to_dict()
    rows = []
    for measure, of in _MEASURES.items():
        found = cells(results, of)
        differences, budgets = {}, {}
        for size, recipe in _others(results, reference):
            sides = [_runs(found, flops, size, name) for name in (recipe, reference)]
            pairs = {}
            for seed in sorted(sides[0].keys() & sides[1].keys()):
                budget = min(side[seed][0][-1] for side in sides)
                if all(side[seed][0][0] <= budget for side in sides):
                    read = [_between(*side[seed], budget, measure != "gap") for side in sides]
                    read = [np.log(curve) for curve in read] if measure == LOG_LOSS else read
                    pairs[seed] = (read[0] - read[1], budget)
            if pairs:
                curves = np.stack([difference for difference, _ in pairs.values()])  # (k, 1 + R)
                differences[size, recipe] = Cell(tuple(pairs), SeedValues(curves[:, 0], curves[:, 1:]))
                budgets[size, recipe] = float(np.mean([budget for _, budget in pairs.values()]))
        rows += _rows(results, measure, differences, budgets)
    return _table(results, rows)


def _check(results: StudyResults, reference: str) -> None:
    if reference not in results.recipes:
        there = ", ".join(results.recipes)
        raise ValueError(f"the study has no recipe {reference!r} to compare with; its recipes are {there}")


def _others(results: StudyResults, reference: str) -> list[tuple[str, str]]:
    return [(size, recipe) for size in results.sizes for recipe in results.recipes if recipe != reference]


def _runs(
    found: Cells, flops: Mapping[tuple[str, str, int, int], float], size: str, recipe: str
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Of each seed of a size and recipe the FLOPs of its checkpoints, rising, (n,), and the measure, (n, 1 + R): its
    value and its resamples."""
    runs: dict[int, list[tuple[float, np.ndarray]]] = {}
    for (of_size, of_recipe, step), cell in found.items():
        if (of_size, of_recipe) == (size, recipe):
            for seed, value, resampled in zip(cell.seeds, cell.values.values, cell.values.resampled, strict=True):
                cost = flops[size, recipe, seed, step]
                runs.setdefault(seed, []).append((cost, np.concatenate([[value], resampled])))
    found_runs = {}
    for seed, points in runs.items():
        points.sort(key=lambda point: point[0])
        found_runs[seed] = (np.array([cost for cost, _ in points]), np.stack([curve for _, curve in points]))
    return found_runs


def _between(flops: np.ndarray, curves: np.ndarray, budget: float, of_logs: bool) -> np.ndarray:
    """Curves (n, 1 + R) at FLOPs (n,), read at a budget within them."""
    above = int(np.searchsorted(flops, budget))
    if flops[above] == budget:
        return curves[above]
    share = np.log(budget / flops[above - 1]) / np.log(flops[above] / flops[above - 1])
    low, high = np.log(curves[above - 1 : above + 1]) if of_logs else curves[above - 1 : above + 1]
    mixed = low + share * (high - low)
    return np.exp(mixed) if of_logs else mixed


def mean_over_sizes(sides: Sequence[SeedValues]) -> SeedValues:
    """The mean of the sides, seed by seed."""
    values, resampled = ([getattr(side, name) for side in sides] for name in ("values", "resampled"))
    return SeedValues(np.mean(values, axis=0), np.mean(resampled, axis=0))


def _rows(
    results: StudyResults,
    measure: str,
    differences: Mapping[tuple[str, str], Cell],
    flops: Mapping[tuple[str, str], float],
) -> list[dict[str, Any]]:
    told = {key: (cell, flops[key]) for key, cell in differences.items()}
    for recipe in results.recipes:
        of_sizes = [differences.get((size, recipe)) for size in results.sizes]
        if seeds := common_seeds(*of_sizes):
            sides = [cell.at(seeds) for cell in of_sizes if cell]
            told[ALL_SIZES, recipe] = (
                Cell(seeds, mean_over_sizes(sides)),
                float(np.mean([flops[s, recipe] for s in results.sizes])),
            )
    rows = []
    for (size, recipe), (cell, cost) in told.items():
        found = mean_or_alone(cell.values)
        resolved = is_resolved(found, results.numerical_floor)
        lower = int((cell.values.values < 0).sum())
        numbers = (results.last_step, cost, len(cell.seeds), lower, found.value, found.low, found.high, resolved)
        rows.append(dict(zip(COLUMNS, (size, recipe, measure, *numbers), strict=True)))
    return rows


def _table(results: StudyResults, rows: list[dict[str, Any]]) -> pd.DataFrame:
    sizes = [*results.sizes, ALL_SIZES]
    rows.sort(key=lambda row: (sizes.index(row["size"]), results.recipes.index(row["recipe"])))  # stable: by measure
    return pd.DataFrame(rows, columns=[*COLUMNS])
