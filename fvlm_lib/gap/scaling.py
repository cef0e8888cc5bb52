"""Scaling-law fits with intervals.

Three forms of loss against scale, fitted as in approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556):
Huber loss on the residuals of the log loss, minimised over the logs of the coefficients from many starts.

    power         L = a * C^-b
    offset_power  L = E + B / D^beta
    joint         L = E + A / N^alpha + B / D^beta        (their eq. 2)

Every parameter comes with an interval, from the caller's replicates of the losses or from the residuals.
Too few points give a result that says so, not a number.

This module takes a table of points and knows nothing of where it came from, of models, or of plots. It
treats points as independent: checkpoints along one training run share their noise, and their intervals are
too narrow. As a command: `fvlm scaling --help`.
"""

import argparse
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, nnls

from fvlm_lib.stats import Estimate, percentile_interval

Array = NDArray[np.float64]

MAX_EXPONENT = 5.0  # published exponents of loss against scale lie between 0.03 and 1
# Far beyond delta the Huber loss is a median's: between two runs at each scale any curve would do. This much
# of the square picks the middle one; on an outlier of 50% it pulls a hundredth of what the Huber loss does.
TIE_BREAK = 1e-5


@dataclass(frozen=True)
class Form:
    """An optional floor E plus one power term for each variable."""

    formula: str
    variables: tuple[str, ...]
    parameters: tuple[str, ...]  # E if there is a floor, then the coefficients, then the exponents
    min_points: int  # one more than there are parameters
    min_distinct: int  # values of each variable: with two, E and a power term cannot be told apart


FORMS = {
    "power": Form("L = a * C^-b", ("C",), ("a", "b"), 3, 3),
    "offset_power": Form("L = E + B / D^beta", ("D",), ("E", "B", "beta"), 4, 4),
    "joint": Form("L = E + A / N^alpha + B / D^beta", ("N", "D"), ("E", "A", "B", "alpha", "beta"), 6, 3),
}


@dataclass(frozen=True)
class ScalingFit:
    """One fit, or the reason why there is none (`fitted` False, and what depends on a fit left empty).

    variables: the column behind each symbol of the formula.
    rmse, r2: of the loss itself, not of its log; rmse (nats) is the root of the mean squared residual. r2 is
        None if all losses are equal.
    num_starts, num_starts_at_best: how many starts there were, how many ended at the lowest objective.
    converged: the optimiser reported success from a start that reached the lowest objective.
    at_bound: parameters that the points do not determine: an exponent at 0 or `MAX_EXPONENT`, or an E of
        practically zero (below a ten-thousandth of the smallest loss; being fitted as a log, neither it nor
        the ends of its interval can be zero itself).
    bootstrap: what the intervals come from, "replicates" or "residual".
    """

    form: str
    formula: str
    variables: dict[str, str]
    group: str | None
    num_points: int
    fitted: bool
    reason: str | None = None
    parameters: dict[str, Estimate] = dataclasses.field(default_factory=dict)
    rmse: float | None = None
    r2: float | None = None
    num_starts: int = 0
    num_starts_at_best: int = 0
    converged: bool = False
    at_bound: tuple[str, ...] = ()
    bootstrap: str | None = None
    num_bootstrap: int = 0
    level: float | None = None
    seed: int | None = None


def fit_law(
    form: str,
    x: ArrayLike,
    loss: ArrayLike,
    *,
    replicates: ArrayLike | None = None,
    num_bootstrap: int = 200,
    seed: int = 0,
    level: float = 0.95,
    delta: float = 1e-3,
    names: Sequence[str] | None = None,
    group: str | None = None,
) -> ScalingFit:
    """Fit one of `FORMS` to n points.

    x: scale, shape (n,), or (n, 2) with columns N and D for "joint"; positive, in any unit. Exponents and E
        do not depend on the unit, the other coefficients do.
    loss: shape (n,), positive, in nats.
    replicates: shape (R, n), losses of the same points on R resamples of the evaluation samples (see
        `fvlm_lib.stats.resample_statistics`); each is refitted. Such an interval tells the noise of the
        evaluation, not of training another model. Without them, `num_bootstrap` residual bootstraps:
        residuals of the log loss, inflated by sqrt(n / (n - p)) for p parameters, drawn with replacement
        and added to the fitted curve, so that every refit keeps the scales of few points. All residuals of
        one refit also share a factor sqrt((n - p) / chi2), for n - p degrees of freedom tell the noise only
        so well: with it, nominal 95% covered 88 to 97% in simulations of 3 to 16 points with 1% noise, and
        75 to 90% without.
    delta: where the Huber loss turns linear, in units of log loss (1e-3 in Hoffmann et al.).
    names, group: what to call the columns of x and the set of points in the result.

    About 5 ms a refit. Raises ValueError for an unknown form, wrong shapes, and values that are not
    positive and finite. Points too few for the form are no error: the result has `fitted=False`.
    """
    if form not in FORMS:
        raise ValueError(f"form is '{form}'; known are {', '.join(FORMS)}")
    law = FORMS[form]
    names = tuple(names or law.variables)
    columns, y = _columns(form, x), np.asarray(loss, dtype=np.float64)  # (n, V), (n,)
    if y.shape != columns.shape[:1]:
        raise ValueError(f"loss has shape {y.shape}; for {len(columns)} points it must be ({len(columns)},)")
    for name, column in zip((*names, "loss"), (*columns.T, y), strict=True):
        _check_positive(name, column)
    if num_bootstrap < 2:
        raise ValueError(f"num_bootstrap is {num_bootstrap}; an interval needs at least 2, better 200")
    if delta <= 0:
        raise ValueError(f"delta is {delta}; it must be positive, such as 1e-3")
    if replicates is not None:
        replicates = np.asarray(replicates, dtype=np.float64)
        if replicates.ndim != 2 or replicates.shape[1] != len(y) or len(replicates) < 2:
            raise ValueError(f"replicates have shape {replicates.shape}; they must be (2 or more, {len(y)})")
        for row, replicate in enumerate(replicates):
            _check_positive(f"replicate {row} of the loss", replicate)

    shown = dict(zip(law.variables, names, strict=True))
    reason = _too_few(form, columns, names)
    if reason:
        return ScalingFit(form, law.formula, shown, group, len(y), False, reason)

    # In a fixed order of points sums round alike and draws meet the same point, however a table is sorted.
    order = np.lexsort((y, *columns.T))
    u, log_y = np.log(columns[order]).T, np.log(y[order])  # (V, n), (n,)
    centre = u.mean(axis=1, keepdims=True)  # centred, so that coefficients and exponents hardly correlate
    design = _design(u - centre, floor="E" in law.parameters)
    results = [_minimise(start, design, log_y, delta) for start in _starts(design, log_y)]
    objectives = np.array([result.fun for result in results])
    at_best = np.flatnonzero(objectives <= objectives.min() * (1 + 1e-4) + 1e-6)
    theta = results[int(objectives.argmin())].x
    log_fitted = np.logaddexp.reduce(design @ theta, axis=0)

    if replicates is None:
        log_replicates = _residual_replicates(log_fitted, log_y, len(theta), num_bootstrap, seed)
    else:
        log_replicates = np.log(replicates[:, order])
    thetas = np.array([theta] + [_refit(theta, design, replicate, delta) for replicate in log_replicates])
    # From the centre back to scale 1: log A = log A_centre + alpha * centre.
    num_terms, num_variables = len(design), len(u)
    thetas[:, num_terms - num_variables : num_terms] += thetas[:, num_terms:] * centre[:, 0]
    with np.errstate(over="ignore"):  # of a steep refit far from scale 1
        thetas[:, :num_terms] = np.exp(thetas[:, :num_terms])
    parameters = {
        name: percentile_interval(values[0], values[1:], level)
        for name, values in zip(law.parameters, thetas.T, strict=True)
    }
    at_bound = ["E"] if "E" in parameters and parameters["E"].value < 1e-4 * y.min() else []
    for name in law.parameters[num_terms:]:
        if not 1e-6 < parameters[name].value < MAX_EXPONENT - 1e-6:
            at_bound.append(name)
    squares = ((np.exp(log_fitted) - np.exp(log_y)) ** 2).mean()
    return ScalingFit(
        form=form,
        formula=law.formula,
        variables=shown,
        group=group,
        num_points=len(y),
        fitted=True,
        parameters=parameters,
        rmse=float(np.sqrt(squares)),
        r2=float(1 - squares / y.var()) if np.ptp(y) > 0 else None,
        num_starts=len(results),
        num_starts_at_best=len(at_best),
        converged=any(bool(results[i].success) for i in at_best),
        at_bound=tuple(at_bound),
        bootstrap="residual" if replicates is None else "replicates",
        num_bootstrap=len(log_replicates),
        level=level,
        seed=seed if replicates is None else None,
    )


def predict_loss(fit: ScalingFit, x: ArrayLike) -> Array:
    """The fitted loss in nats, shape (m,), at scales x, shape (m,) or (m, 2) as in `fit_law`."""
    if not fit.fitted:
        raise ValueError(f"there is no {fit.form} fit to predict from: {fit.reason}")
    columns = _columns(fit.form, x)
    values = np.array([fit.parameters[name].value for name in FORMS[fit.form].parameters])
    coefficients, exponents = np.split(values[-2 * columns.shape[1] :], 2)
    return values[: len(values) % 2].sum() + (coefficients * columns**-exponents).sum(axis=1)  # E, if any


def fit_scaling_laws(
    points: pd.DataFrame,
    x: str,
    loss: str,
    params: str | None = None,
    group: str | None = None,
    *,
    replicates: ArrayLike | None = None,
    num_bootstrap: int = 200,
    seed: int = 0,
    level: float = 0.95,
    delta: float = 1e-3,
) -> list[ScalingFit]:
    """All fits of a tidy table with one row a point.

    For each value of the column `group`, in sorted order, the power and the offset power law of `loss`
    against `x`; with `params` (model sizes) also the joint law of N = `params` and D = `x` over all rows.
    Without `group`, rows are grouped by `params` if given, for one curve through several sizes is the curve
    of none.

    replicates: shape (R, rows of points), as in `fit_law`; so are the other arguments and the errors. A
    wrong value is named by its column and its index in the table.
    """
    if len(points) == 0:
        raise ValueError("the table has no rows; it needs one for each point")
    for column in (x, loss, params, group):
        if column is not None and column not in points.columns:
            raise ValueError(f"there is no column '{column}'; the columns are {list(points.columns)}")
    numbers = {column: _numbers(points, column) for column in (x, loss, params) if column is not None}
    draws = None if replicates is None else np.asarray(replicates, dtype=np.float64)
    if draws is not None and draws.shape[1:] != (len(points),):
        raise ValueError(f"replicates have shape {draws.shape}; they must be (R, {len(points)})")

    def fit(form: str, rows: NDArray[np.int64], columns: list[str], name: str | None) -> ScalingFit:
        return fit_law(
            form,
            np.column_stack([numbers[column][rows] for column in columns]),
            numbers[loss][rows],
            replicates=None if draws is None else draws[:, rows],
            num_bootstrap=num_bootstrap,
            seed=seed,
            level=level,
            delta=delta,
            names=columns,
            group=name,
        )

    everything = np.arange(len(points))
    groups: list[tuple[str | None, NDArray[np.int64]]] = [(None, everything)]
    by = group or params
    if by is not None:
        if points[by].isna().any():
            row = points.index[points[by].isna()][0]
            raise ValueError(f"column '{by}' is empty at row {row}; every row needs its group")
        numbered = points[by].reset_index(drop=True)
        groups = [(str(name), rows.index.to_numpy()) for name, rows in numbered.groupby(numbered)]
    fits = [fit(form, rows, [x], name) for name, rows in groups for form in ("power", "offset_power")]
    if params is not None:
        fits.append(fit("joint", everything, [params, x], None))
    return fits


# The fit. theta holds the logs of E (if any) and of the coefficients at the centre of the scales, then the
# exponents: the log of each term is linear in theta, the log loss is the log of a sum of exponentials (LSE).


def _design(u: Array, floor: bool) -> Array:
    """Log scales (V, n) to the array (terms, n, p) with log terms = design @ theta; p - terms is V."""
    num_terms = floor + len(u)
    design = np.zeros((num_terms, u.shape[1], num_terms + len(u)))
    for term in range(num_terms):
        design[term, :, term] = 1.0
    for variable, scale in enumerate(u):
        design[floor + variable, :, num_terms + variable] = -scale
    return design


def _objective(theta: Array, design: Array, log_y: Array, delta: float) -> tuple[float, Array]:
    """Sum of Huber losses (and of the tie-break) and its gradient, both in units of delta squared.

    The unit matters: the plain sum is about 1e-5, less than optimisers tolerate, and they stop early (the
    fault that Besiroglu et al. 2024, arXiv 2404.10102, found in the published fit of the joint form).
    """
    log_terms = design @ theta  # (terms, n)
    top = log_terms.max(axis=0)
    terms = np.exp(log_terms - top)
    total = terms.sum(axis=0)
    residual = (top + np.log(total) - log_y) / delta
    clipped = np.clip(residual, -1.0, 1.0)
    value = (clipped * (residual - clipped / 2) + TIE_BREAK * residual**2).sum()
    slope = clipped + 2 * TIE_BREAK * residual
    return float(value), (terms * (slope / total)).ravel() @ design.reshape(-1, design.shape[2]) / delta


def _starts(design: Array, log_y: Array) -> list[Array]:
    """A grid of exponents, each with coefficients from non-negative least squares of the relative error."""
    num_terms, num_points, num_parameters = design.shape
    num_variables = num_parameters - num_terms
    grid = [0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 1.6, 2.5] if num_variables == 1 else [0.1, 0.3, 0.6, 1.2]
    starts = []
    for exponents in itertools.product(grid, repeat=num_variables):
        terms = np.exp(design[:, :, num_terms:] @ np.array(exponents) - log_y)  # (terms, n), over the loss
        coefficients, _ = nnls(terms.T, np.ones(num_points))
        logs = np.log(np.maximum(coefficients, 1e-3 * np.exp(log_y.min())))
        starts.append(np.concatenate([logs, exponents]))
    return starts


def _minimise(start: Array, design: Array, log_y: Array, delta: float) -> Any:
    """scipy's result from one start. E is free down to a millionth of the loss, zero for our purposes."""
    num_terms, _, num_parameters = design.shape
    num_variables = num_parameters - num_terms
    low, high = log_y.min(), log_y.max() + 3.0
    bounds = [(low - 15.0, high)] * (num_terms - num_variables) + [(low - 40.0, high)] * num_variables
    bounds += [(0.0, MAX_EXPONENT)] * num_variables
    start = np.clip(start, *np.transpose(bounds))
    tolerance = 1e-12 * max(1.0, _objective(start, design, log_y, delta)[0])
    options = {"maxiter": 2000, "ftol": tolerance}
    arguments = (design, log_y, delta)
    return minimize(_objective, start, arguments, "SLSQP", jac=True, bounds=bounds, options=options)


def _refit(theta: Array, design: Array, log_y: Array, delta: float) -> Array:
    """The better of two minima: from the point fit, and from the best of the grid."""
    best = min(_starts(design, log_y), key=lambda start: _objective(start, design, log_y, delta)[0])
    results = [_minimise(start, design, log_y, delta) for start in (theta, best)]
    return min(results, key=lambda result: result.fun).x


def _residual_replicates(log_fitted: Array, log_y: Array, p: int, num_bootstrap: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    freedom = len(log_y) - p
    residuals = (log_y - log_fitted) * math.sqrt(len(log_y) / freedom)
    drawn = rng.choice(residuals, size=(num_bootstrap, len(log_y)))  # (R, n)
    # Capped against a stray draw of a tiny chi2 with one degree of freedom; percentiles do not see the cap.
    factor = np.sqrt(freedom / rng.chisquare(freedom, size=(num_bootstrap, 1)))
    return log_fitted + np.minimum(factor, 30.0) * drawn


# Checks.


def _columns(form: str, x: ArrayLike) -> Array:
    array, wanted = np.asarray(x, dtype=np.float64), len(FORMS[form].variables)
    columns = array[:, None] if array.ndim == 1 else array
    if columns.ndim != 2 or columns.shape[1] != wanted:
        raise ValueError(f"x has shape {array.shape}; {form} needs {wanted} column(s), one a variable")
    return columns


def _too_few(form: str, columns: Array, names: Sequence[str]) -> str | None:
    law = FORMS[form]
    if len(columns) < law.min_points:
        return f"{form} needs at least {law.min_points} points; there are {len(columns)}"
    for name, column in zip(names, columns.T, strict=True):
        distinct = len(np.unique(column))
        if distinct < law.min_distinct:
            return f"{form} needs at least {law.min_distinct} distinct values of {name}; there are {distinct}"
    if len(names) == 2:
        correlation = np.corrcoef(np.log(columns.T))[0, 1]
        if abs(correlation) > 0.999:
            both = " and ".join(names)
            return f"{form} needs {both} to vary apart; their logs correlate by {correlation:.4f}"
    return None


def _check_positive(name: str, column: Array, rows: Any = None, shown: Any = None) -> None:
    bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
    if len(bad):
        value, row = (column if shown is None else shown)[bad[0]], bad[0] if rows is None else rows[bad[0]]
        raise ValueError(f"{name} is {value} at row {row}; it must be a positive, finite number")


def _numbers(points: pd.DataFrame, column: str) -> Array:
    numbers = pd.to_numeric(points[column], errors="coerce").to_numpy(dtype=np.float64)
    _check_positive(f"column '{column}'", numbers, points.index, points[column].to_numpy())
    return numbers


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: a CSV of points in, the fits as a JSON list on stdout. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="fvlm scaling",
        description="Fit scaling laws to a CSV with one row a point and print them as a JSON list:\n\n"
        "  power         L = a * C^-b                       for each group\n"
        "  offset_power  L = E + B / D^beta                 for each group\n"
        "  joint         L = E + A / N^alpha + B / D^beta   over all rows, with --params\n\n"
        'C and D are --x, N is --params. A law with too few points has "fitted": false and the reason.',
        epilog="example: the loss of several model sizes against training samples\n\n"
        "  $ head -3 points.csv\n"
        "  num_params,num_samples,loss\n"
        "  1200000,1000,3.912\n"
        "  1200000,4000,3.518\n"
        "  $ fvlm scaling points.csv --x num_samples --loss loss --params num_params\n\n"
        "Intervals come from a residual bootstrap. Errors count rows from 0, after the header.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("points", metavar="POINTS.csv", help="table with a header, one row a point")
    add("--x", required=True, metavar="COLUMN", help="scale: FLOPs, tokens or samples seen, ...")
    add("--loss", required=True, metavar="COLUMN", help="loss in nats a token")
    add("--params", metavar="COLUMN", help="model size N; adds the joint law, in which D is --x")
    add("--group", metavar="COLUMN", help="one curve for each value (default: --params, if given)")
    add("--num-bootstrap", type=int, default=200, metavar="R", help="refits a law (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    add("--level", type=float, default=0.95, help="coverage of the intervals (default: %(default)s)")
    args = parser.parse_args(argv)
    options = {"num_bootstrap": args.num_bootstrap, "seed": args.seed, "level": args.level}
    try:
        points = pd.read_csv(args.points)
        fits = fit_scaling_laws(points, args.x, args.loss, args.params, args.group, **options)
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        print(f"{parser.prog}: {args.points}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps([json_ready(dataclasses.asdict(fit)) for fit in fits], indent=2, allow_nan=False))
    return 0


def json_ready(value: Any) -> Any:
    """`value` with null for what JSON has no token for, such as the end of an interval that overflowed."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
