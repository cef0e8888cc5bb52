"""Scaling laws of a study: of its losses and of the size of the gap, in steps and size, with intervals by run.

A law is fitted to the means over seeds by `law_minimum.py`, as `scaling.fit_law` does. Its interval is the
jackknife's over seeds: the law is refitted without each seed, all checkpoints of a run left out together, and the
interval is Student's of one degree of freedom less than there are seeds (Efron and Tibshirani 1993, chapter 11). That
takes the scatter about the law as it is: a law that does not describe its points is refused by its R². Evaluation
videos are not redrawn; seeds differ by far more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from fvlm_lib.gap.law_minimum import MAX_EXPONENT, grid_starts, law_design, log_law, minimise, objective
from fvlm_lib.gap.scaling import FORMS, GOOD_R2, too_few
from fvlm_lib.gap.study_results import ALL_SIZES, StudyResults, cells, common_seeds
from fvlm_lib.stats import Estimate

DELTA = 0.1  # least squares of log losses up to 10% off: points are means, and a jackknife needs a smooth fit
SMALLEST_FLOOR = 1e-4  # nats a token; what is lower has vanished
NUM_STARTS = 4  # of the grid, those that are best before they are minimised: a study has a hundred laws and more
_ESTIMATES = ("exponent_step", "exponent_size", "floor")
COLUMNS = (
    "measure", "recipe", "size", "form", "formula", "num_points", "num_seeds", "fitted",
    *(f"{name}{end}" for name in _ESTIMATES for end in ("", "_low", "_high")), "r2_log", "refused",
)  # fmt: skip

Array = NDArray[np.float64]


def laws(results: StudyResults) -> pd.DataFrame:
    """Fits to each recipe: in the step for each size, as a pure power law and with a floor, and jointly in step and
    size.

    Columns: measure (loss_inference, loss_trained or abs_gap, the size of the mean gap), recipe, size ("all" of the
    joint law), form and formula (of `scaling.FORMS`; C and D: training steps, N: parameters of the language model),
    num_points (checkpoints, means over seeds), num_seeds (that all of them have), fitted, exponent_step and, of the
    joint law, exponent_size, floor (E, nats a token), each with _low and _high; r2_log (of the log), refused: in words
    why nothing was fitted, or why the law is none of these points; NaN where it holds.

    An exponent is positive where the measure falls. Of the gap it may be negative: where it grows, the law is fitted in
    1 / step, or 1 / size.
    """
    parameters = results.table.groupby("size")["num_text_parameters"].first()
    rows: list[dict[str, Any]] = []
    for measure, of in (("loss_inference", "loss_inference"), ("loss_trained", "loss_trained"), ("abs_gap", "gap")):
        found = cells(results, of)
        for recipe in results.recipes:
            for size in [*results.sizes, ALL_SIZES]:
                keys = [key for key in found if key[1] == recipe and size in (key[0], ALL_SIZES)]
                if not keys:
                    continue
                seeds = common_seeds(*(found[key] for key in keys))
                steps = np.array([key[2] for key in keys], dtype=np.float64)
                if size == ALL_SIZES:
                    scales, forms = np.column_stack([[parameters[key[0]] for key in keys], steps]), ["joint"]
                else:
                    scales, forms = steps[:, None], ["power", "offset_power"]
                about = {"measure": measure, "recipe": recipe, "size": size, "num_seeds": len(seeds)}
                if not seeds:
                    told = {"refused": "no seed has all its checkpoints", "num_points": len(keys), "fitted": False}
                    rows += [about | told | {"form": form, "formula": FORMS[form].formula} for form in forms]
                    continue
                values = np.stack([found[key].at(seeds).values for key in keys])  # (n, k)
                rows += [about | _law(form, scales.astype(np.float64), values, measure == "abs_gap") for form in forms]
    return pd.DataFrame(rows, columns=[*COLUMNS])


def _law(form: str, scales: Array, values: Array, of_gap: bool) -> dict[str, Any]:
    """One law of values (n, k), points by seeds, at scales (n, V)."""
    law = FORMS[form]
    row = {"form": form, "formula": law.formula, "num_points": len(values), "fitted": False}
    names = ["size", "step"][-scales.shape[1] :]
    means = [values.mean(axis=1)]  # of all seeds, then without each
    if values.shape[1] > 1:
        means += [np.delete(values, seed, axis=1).mean(axis=1) for seed in range(values.shape[1])]
    if refused := too_few(form, scales, names):
        return row | {"refused": refused}
    if any((mean > 0).any() and (mean < 0).any() for mean in means) or any((mean == 0).any() for mean in means):
        whose = "the gap" if of_gap else "the loss"
        return row | {"refused": f"{whose} is 0 or not of one sign over the checkpoints, with and without each seed"}
    log_values = [np.log(np.abs(mean)) for mean in means]
    u = np.log(scales).T  # (V, n)
    u = u - u.mean(axis=1, keepdims=True)
    signs = np.ones(len(u))
    if of_gap:  # exponents of a law are not negative: what grows is fitted in one over its scale
        slopes = np.linalg.lstsq(np.column_stack([np.ones(u.shape[1]), *u]), log_values[0], rcond=None)[0][1:]
        signs = np.where(slopes > 0, -1.0, 1.0)
    has_floor = "E" in law.parameters  # else there is one minimum, found from anywhere
    design = law_design(signs[:, None] * u, floor=has_floor)
    starts = sorted(
        grid_starts(design, log_values[0]), key=lambda start: objective(start, design, log_values[0], DELTA)[0]
    )
    theta = _minimum(starts[: NUM_STARTS if has_floor else 1], design, log_values[0])
    # the best start of the grid too: from theta alone an exponent that nothing determines would stay where it is
    again = [theta, starts[0]] if has_floor else [theta]
    thetas = np.array([theta, *(_minimum(again, design, without) for without in log_values[1:])])
    exponents = thetas[:, len(design) :]  # (1 + k, V)
    estimates = {f"exponent_{name}": _jackknife(signs[i] * exponents[:, i]) for i, name in enumerate(names)}
    if has_floor:
        estimates["floor"] = _jackknife(np.exp(thetas[:, 0]))
    spread = ((log_values[0] - log_values[0].mean()) ** 2).sum()
    r2_log = float(1 - ((log_law(theta, design)[0] - log_values[0]) ** 2).sum() / spread) if spread > 0 else np.nan
    for name, estimate in estimates.items():
        row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    vanished = []  # exponents of terms that add nothing: any would do, and the jackknife leaves them as they are
    for place, name in enumerate(names, start=len(design)):
        other = theta.copy()
        other[place] *= 1.1
        if objective(other, design, log_values[0], DELTA)[0] - objective(theta, design, log_values[0], DELTA)[0] < 1e-9:
            vanished.append(f"exponent_{name}")
    refused = _why_refused(r2_log, exponents, estimates, vanished)
    return row | {"fitted": True, "r2_log": r2_log, "refused": refused}


def _minimum(starts: Sequence[Array], design: Array, log_values: Array) -> Array:
    fits = [minimise(start, design, log_values, DELTA) for start in starts]
    return min(fits, key=lambda fit: float(fit.fun)).x


def _jackknife(values: Array) -> Estimate:
    """The first of the values, and its interval from the others, each without one of k seeds; NaN without others."""
    k = len(values) - 1
    if k < 2:
        return Estimate(float(values[0]), np.nan, np.nan)
    error = np.sqrt((k - 1) / k * ((values[1:] - values[1:].mean()) ** 2).sum())
    margin = stdtrit(k - 1, 0.975) * error
    return Estimate(float(values[0]), float(values[0] - margin), float(values[0] + margin))


def _why_refused(
    r2_log: float, exponents: Array, estimates: Mapping[str, Estimate], vanished: Sequence[str]
) -> str | None:
    reasons = []
    if not r2_log >= GOOD_R2:
        reasons.append(f"R² of the log is {r2_log:.4f}, a law needs {GOOD_R2:g}")
    names = [name for name in estimates if name.startswith("exponent")]
    for name, values in zip(names, exponents.T, strict=True):
        found = estimates[name]
        at_bound = values.min() <= 1e-6 or values.max() >= MAX_EXPONENT - 1e-6
        if at_bound or found.low <= 0 <= found.high or max(abs(found.low), abs(found.high)) >= MAX_EXPONENT:
            of = name.removeprefix("exponent_")
            reasons.append(f"the points determine no exponent of {of}: it reaches 0 or {MAX_EXPONENT:g}")
        elif name in vanished:
            reasons.append(f"the points determine no exponent of {name.removeprefix('exponent_')}: its term vanishes")
    floor = estimates.get("floor")
    if floor and len(names) == 1 and (floor.value < SMALLEST_FLOOR or floor.low <= 0):
        reasons.append("the points determine no floor: it reaches 0")
    return "; ".join(reasons) or None
