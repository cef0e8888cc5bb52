"""Effects of steps, size of language model and recipe in a study, with intervals over its seeds.

A linear model is fitted by least squares to the runs of each seed by itself, and its coefficients are averaged over
seeds: the analysis by summary measures (Frison and Pocock 1992), which for seeds that have the same checkpoints gives
the fixed effects of a mixed model with coefficients random by seed. The interval is that of `seeds.mean_over_seeds`,
Student's with one degree of freedom less than there are seeds: checkpoints of one run, and runs that share a seed's
videos, do not count as independent, and recipes may differ in their spread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fvlm_lib.gap.seeds import SeedValues
from fvlm_lib.gap.study_results import LOG_LOSS, StudyResults, cells, is_resolved, mean_or_alone

ALL_RECIPES = "all"
COLUMNS = ("outcome", "recipes", "term", "unit", "coefficient", "low", "high", "num_seeds", "resolved")
_STEP, _SIZE = "step", "size"
_UNITS = {_STEP: "for ten times as many steps", _SIZE: "for twice as many parameters of the language model"}
_OUTCOMES = {"gap": ("gap", "nats a token"), LOG_LOSS: ("loss_inference", "log loss")}


def effects(results: StudyResults) -> pd.DataFrame:
    """Linear models of the gap and of the log of the inference loss, on videos of the training's length.

    The terms are log10 of the step, log2 of the parameters of the language model, and, over all recipes together, each
    recipe against the first (plain where it is there), without interactions; then steps and size for each recipe alone
    (`recipes`). A recipe that begins as another counts with the checkpoints that they share. A term is left out where
    it does not vary, or where sizes or steps cannot be told apart by it.

    Columns: outcome (gap, in nats a token, or log loss_inference, where -0.1 is 10% less), recipes, term (step, size or
    a recipe), unit (in words), coefficient with low and high (NaN where there is one seed), num_seeds, resolved (the
    interval is off zero). A seed whose checkpoints do not determine all terms is left out.
    """
    rows: list[dict[str, Any]] = []
    for outcome, (measure, unit) in _OUTCOMES.items():
        points = _points(results, measure, outcome == LOG_LOSS)
        for recipes in [ALL_RECIPES, *results.recipes]:
            chosen = points if recipes == ALL_RECIPES else points[points["recipe"] == recipes]
            rows += [{"outcome": outcome, "recipes": recipes, **row} for row in _fit(chosen, unit, results.recipes)]
    return pd.DataFrame(rows, columns=[*COLUMNS])


def _points(results: StudyResults, measure: str, of_logs: bool) -> pd.DataFrame:
    """A row a checkpoint: recipe, seed, the covariates, and `curve`, the outcome and its resamples, (1 + R,)."""
    parameters = results.table.groupby("size")["num_text_parameters"].first()
    rows = []
    for (size, recipe, step), cell in cells(results, measure).items():
        cell = cell.logs() if of_logs else cell
        for seed, value, resampled in zip(cell.seeds, cell.values.values, cell.values.resampled, strict=True):
            about = {"recipe": recipe, "seed": seed, _STEP: np.log10(step), _SIZE: np.log2(parameters[size])}
            rows.append({**about, "curve": np.concatenate([[value], resampled])})
    return pd.DataFrame(rows, columns=["recipe", "seed", _STEP, _SIZE, "curve"])


def _fit(points: pd.DataFrame, unit: str, recipes: list[str]) -> list[dict[str, Any]]:
    there = [recipe for recipe in recipes if recipe in set(points["recipe"])]
    terms = [term for term in (_STEP, _SIZE) if points[term].nunique() > 1] + there[1:]
    if not terms:
        return []
    found: dict[int, np.ndarray] = {}  # of each seed, the coefficients (terms, 1 + R)
    for seed, rows in points.groupby("seed"):
        columns = [rows[term] if term in _UNITS else rows["recipe"] == term for term in terms]
        design = np.column_stack([np.ones(len(rows)), *columns]).astype(np.float64)
        if np.linalg.matrix_rank(design) == design.shape[1]:
            found[int(seed)] = np.linalg.lstsq(design, np.stack(list(rows["curve"])), rcond=None)[0][1:]
    if not found:
        return []
    coefficients = np.stack(list(found.values()))  # (k, terms, 1 + R)
    rows_of = []
    for number, term in enumerate(terms):
        estimate = mean_or_alone(SeedValues(coefficients[:, number, 0], coefficients[:, number, 1:]))
        what = _UNITS.get(term, f"against {there[0]}")
        numbers = (estimate.value, estimate.low, estimate.high, len(found), is_resolved(estimate))
        rows_of.append(dict(zip(COLUMNS[2:], (term, f"{unit}, {what}", *numbers), strict=True)))
    return rows_of
