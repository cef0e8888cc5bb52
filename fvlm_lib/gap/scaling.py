"""Scaling-law fits with intervals.

Three forms of loss against scale, fitted as in approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556):
Huber loss on the residuals of the log loss, minimised over the logs of the coefficients from many starts.

    power         L = a * C^-b
    offset_power  L = E + B / D^beta
    joint         L = E + A / N^alpha + B / D^beta        (their eq. 2)

Every parameter comes with an interval, from the scatter of the points about the law and, where the caller gives
replicates of the losses, from the noise of their evaluation too. A law that does not describe its points, or whose
exponents they do not determine, is rejected and says why. Too few points give a result that says so, not a number.

This module takes a table of points and knows nothing of where it came from, of models, or of plots. How a minimum
is found is in `law_minimum.py`, what is refitted for intervals in `law_bootstrap.py`. Points are independent unless
their `runs` are told: checkpoints along one training run share their noise. As a command: `fvlm scaling --help`.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fvlm_lib.gap.law_bootstrap import default_block_length, resample_log_losses
from fvlm_lib.gap.law_minimum import MAX_EXPONENT, MAX_UNIT, grid_starts, law_design, log_law, minimise, refit
from fvlm_lib.options import Parser, add_seed, option, run
from fvlm_lib.schema import Count, Level, Positive, Resamples
from fvlm_lib.stats import Estimate, percentile_interval

Array = NDArray[np.float64]

# A law with less than this R² of log loss is rejected. Any falling curve has a high one: at four equally spaced log
# scales the best straight line reaches 0.60 on a plateau and a drop, 0.80 on a step, and 0.92 on a parabola from its
# vertex, whose exponent keeps growing. None of them is a power law.
GOOD_R2 = 0.95


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
    r2_log: of the log loss, which is what was fitted: 1 - SS_res / SS_tot. None if all losses are equal.
    rmse_nats: of the loss itself, not of its log: the root of the mean squared residual, in nats.
    rejected: why the law is none of these points, as a sentence: `r2_log` below `GOOD_R2`, or an exponent that is
        not determined. None for a law that holds, and where nothing was fitted. What the parameters of a rejected
        law are, and their intervals, is not to be told as a finding.
    undetermined: parameters that the points do not determine: an exponent that is, or whose interval ends, at 0 or
        `MAX_EXPONENT`, or an E of practically zero (below a ten-thousandth of the smallest loss; being fitted as a
        log, neither it nor the ends of its interval can be zero itself).
    num_starts, num_starts_at_best: how many starts there were, how many ended at the lowest objective.
    converged: the optimiser reported success from a start that reached the lowest objective.
    bootstrap: what the intervals come from, "residuals" or "replicates and residuals".
    block_length: residuals drawn together; 1 where points are independent.
    """

    form: str
    formula: str
    variables: dict[str, str]
    group: str | None
    num_points: int
    fitted: bool
    reason: str | None = None
    parameters: dict[str, Estimate] = dataclasses.field(default_factory=dict)
    r2_log: float | None = None
    rmse_nats: float | None = None
    rejected: str | None = None
    undetermined: tuple[str, ...] = ()
    num_starts: int = 0
    num_starts_at_best: int = 0
    converged: bool = False
    delta: float | None = None
    bootstrap: str | None = None
    num_bootstrap: int = 0
    block_length: int | None = None
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
    runs: ArrayLike | None = None,
    block_length: int | None = None,
    names: Sequence[str] | None = None,
    group: str | None = None,
) -> ScalingFit:
    """Fit one of `FORMS` to n points.

    x: scale, shape (n,), or (n, 2) with columns N and D for "joint"; positive, in any unit. Exponents and E
        do not depend on the unit, the other coefficients do.
    loss: shape (n,), positive, in nats.
    num_bootstrap: refits for the intervals. Each is of the fitted curve plus residuals of the log loss, inflated by
        sqrt(n / (n - p)) for p parameters and drawn with replacement, so that every refit keeps the scales of few
        points. All residuals of one refit also share a factor sqrt((n - p) / chi2), for n - p degrees of freedom
        tell the noise only so well: with it, nominal 95% covered 88 to 97% in simulations of 3 to 16 independent
        points with 1% noise, and 75 to 90% without.
    replicates: shape (R, n), losses of the same points on R resamples of the evaluation samples (see
        `fvlm_lib.stats.resample_statistics`). Each is then refitted in place of `num_bootstrap` draws, with residuals
        drawn for as much of the scatter about the law as evaluation noise does not explain. Replicates alone
        would tell nothing of how far the points lie from the law.
    delta: where the Huber loss turns linear, in units of log loss. The 1e-3 of Hoffmann et al. is nearly least
        absolute deviations: what lies more than 0.1% off counts by its distance, not by its square. The choice
        matters: on a published curve of 87 points E of the offset power law is 1.196 [1.07, 1.26] with 1e-3, 1.08
        with 0.1, and 1.02 by least squares, which is what a delta beyond all residuals gives.
    runs: shape (n,), which training run each point is of. Points along one run are correlated (with their neighbour
        by 0.7 on that curve), and intervals that take them as independent are too narrow. With it residuals are
        drawn in blocks of neighbours of one run: nominal 95% held the exponent in 91 to 95% of simulated curves of
        20 to 87 points with such noise, and in 57 to 72% with residuals drawn one by one (docs/LOG.md, 2026-11-24).
    block_length: points in such a block, by default sqrt(n) for the longest run of n points; at most all of it.
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
    run, block_length = _check_blocks(runs, block_length, len(y))

    shown = dict(zip(law.variables, names, strict=True))
    reason = too_few(form, columns, names)
    if reason:
        return ScalingFit(form, law.formula, shown, group, len(y), False, reason)

    # In a fixed order of points sums round alike and draws meet the same point, however a table is sorted.
    order = np.lexsort((y, run, *columns.T))
    u, log_y = np.log(columns[order]).T, np.log(y[order])  # (V, n), (n,)
    centre = u.mean(axis=1, keepdims=True)  # centred, so that coefficients and exponents hardly correlate
    design = law_design(u - centre, floor="E" in law.parameters)
    results = [minimise(start, design, log_y, delta) for start in grid_starts(design, log_y)]
    objectives = np.array([result.fun for result in results])
    equal = objectives.min() * 1e-4 + 1e-12 / min(delta, MAX_UNIT) ** 2  # or less than log losses of 1e-6 off
    at_best = np.flatnonzero(objectives <= objectives.min() + equal)
    theta = results[int(objectives.argmin())].x
    log_fitted, slopes = log_law(theta, design)

    log_replicates = None if replicates is None else np.log(replicates[:, order])
    resampled = resample_log_losses(
        log_y, log_fitted, slopes, run[order], block_length, log_replicates, num_bootstrap, seed
    )
    thetas = np.array([theta] + [refit(theta, design, losses, delta) for losses in resampled])
    # From the centre back to scale 1: log A = log A_centre + alpha * centre.
    num_terms, num_variables = len(design), len(u)
    thetas[:, num_terms - num_variables : num_terms] += thetas[:, num_terms:] * centre[:, 0]
    with np.errstate(over="ignore"):  # of a steep refit far from scale 1
        thetas[:, :num_terms] = np.exp(thetas[:, :num_terms])
    parameters = {
        name: percentile_interval(values[0], values[1:], level)
        for name, values in zip(law.parameters, thetas.T, strict=True)
    }
    no_floor = ("E",) if "E" in parameters and parameters["E"].value < 1e-4 * y.min() else ()
    reached = {name: _bounds_reached(parameters[name]) for name in law.parameters[num_terms:]}
    loose = {name: bounds for name, bounds in reached.items() if bounds}
    spread = ((log_y - log_y.mean()) ** 2).sum()
    r2_log = float(1 - ((log_fitted - log_y) ** 2).sum() / spread) if np.ptp(y) > 0 else None
    return ScalingFit(
        form=form,
        formula=law.formula,
        variables=shown,
        group=group,
        num_points=len(y),
        fitted=True,
        parameters=parameters,
        r2_log=r2_log,
        rmse_nats=float(np.sqrt(((np.exp(log_fitted) - np.exp(log_y)) ** 2).mean())),
        rejected=_why_rejected(form, r2_log, loose, u, log_y),
        undetermined=(*no_floor, *loose),
        num_starts=len(results),
        num_starts_at_best=len(at_best),
        converged=any(bool(results[i].success) for i in at_best),
        delta=delta,
        bootstrap="residuals" if replicates is None else "replicates and residuals",
        num_bootstrap=len(resampled),
        block_length=block_length,
        level=level,
        seed=seed,
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
    run: str | None = None,
    block_length: int | None = None,
) -> list[ScalingFit]:
    """All fits of a tidy table with one row a point.

    For each value of the column `group`, in sorted order, the power and the offset power law of `loss`
    against `x`; with `params` (model sizes) also the joint law of N = `params` and D = `x` over all rows.
    Without `group`, rows are grouped by `params` if given, for one curve through several sizes is the curve
    of none.

    replicates: shape (R, rows of points), as in `fit_law`. run: the column of its `runs`. So are the other arguments
    and the errors; a wrong value is named by its column and its index in the table.
    """
    if len(points) == 0:
        raise ValueError("the table has no rows; it needs one for each point")
    for column in (x, loss, params, group, run):
        if column is not None and column not in points.columns:
            raise ValueError(f"there is no column '{column}'; the columns are {list(points.columns)}")
    numbers = {column: _numbers(points, column) for column in (x, loss, params) if column is not None}
    labels = None if run is None else _labels(points, run)
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
            runs=None if labels is None else labels[rows],
            block_length=block_length,
            names=columns,
            group=name,
        )

    everything = np.arange(len(points))
    groups: list[tuple[str | None, NDArray[np.int64]]] = [(None, everything)]
    by = group or params
    if by is not None:
        numbered = pd.Series(_labels(points, by))
        groups = [(str(name), rows.index.to_numpy()) for name, rows in numbered.groupby(numbered)]
    fits = [fit(form, rows, [x], name) for name, rows in groups for form in ("power", "offset_power")]
    if params is not None:
        fits.append(fit("joint", everything, [params, x], None))
    return fits


def _columns(form: str, x: ArrayLike) -> Array:
    array, wanted = np.asarray(x, dtype=np.float64), len(FORMS[form].variables)
    columns = array[:, None] if array.ndim == 1 else array
    if columns.ndim != 2 or columns.shape[1] != wanted:
        raise ValueError(f"x has shape {array.shape}; {form} needs {wanted} column(s), one a variable")
    return columns


def too_few(form: str, columns: Array, names: Sequence[str]) -> str | None:
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


def _check_blocks(runs: ArrayLike | None, length: int | None, num_points: int) -> tuple[NDArray[np.int64], int]:
    """The number of each point's run, shape (n,), and the length of blocks."""
    if length is not None and length < 1:
        raise ValueError(f"block_length is {length}; it is a number of points, 1 or more")
    if runs is None:
        if length is not None:
            raise ValueError(f"block_length is {length}, but the runs of the points are not told; blocks are along one")
        return np.zeros(num_points, dtype=np.int64), 1
    labels = np.asarray(runs)
    if labels.shape != (num_points,):
        raise ValueError(f"runs have shape {labels.shape}; for {num_points} points it must be ({num_points},)")
    numbers = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    longest = int(np.bincount(numbers).max())
    return numbers, min(length or default_block_length(longest), longest)


def _bounds_reached(exponent: Estimate) -> str:
    ends = (exponent.value, exponent.low, exponent.high)
    reached = {"0": min(ends) <= 1e-6, f"{MAX_EXPONENT:g}": max(ends) >= MAX_EXPONENT - 1e-6}
    return " and ".join(bound for bound, there in reached.items() if there)


def _why_rejected(form: str, r2_log: float | None, loose: dict[str, str], u: Array, log_y: Array) -> str | None:
    """`ScalingFit.rejected`. loose: the bounds that exponents reach, of those that do; u: log scales (V, n)."""
    reasons = []
    if r2_log is not None and r2_log < GOOD_R2:
        reasons.append(f"R² of log loss is {r2_log:.2f}, a law needs {GOOD_R2:g}")
    for name, bounds in loose.items():
        reasons.append(f"{len(log_y)} points determine no exponent {name}: its interval reaches {bounds}")
    if reasons and form == "power":  # of a plateau and a drop, say
        scales = np.unique(u[0])
        half = (len(scales) + 1) // 2
        rows = (u[0] <= scales[half - 1], u[0] >= scales[-half])
        lower, upper = (-np.polyfit(u[0][part], log_y[part], 1)[0] for part in rows)
        reasons.append(f"over the lower half of the scales the exponent is {lower:.2f}, over the upper {upper:.2f}")
    return "; ".join(reasons) or None


def _labels(points: pd.DataFrame, column: str) -> NDArray[Any]:
    if points[column].isna().any():
        row = points.index[points[column].isna()][0]
        raise ValueError(f"column '{column}' is empty at row {row}; every row needs one")
    return points[column].to_numpy()


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
    """Command line: a CSV of points in, the fits as a JSON list on stdout; see `options.run` for its exit codes."""
    parser = Parser(
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
        "Intervals come from a residual bootstrap; of points along training runs, name the column of the run with\n"
        '--run. A law that does not describe its points has the reason under "rejected". Errors count rows from 0,\n'
        "after the header.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("points", metavar="POINTS.csv", help="table with a header, one row a point")
    add("--x", required=True, metavar="COLUMN", help="scale: FLOPs, tokens or samples seen, ...")
    add("--loss", required=True, metavar="COLUMN", help="loss in nats a token")
    add("--params", metavar="COLUMN", help="model size N; adds the joint law, in which D is --x")
    add("--group", metavar="COLUMN", help="one curve for each value (default: --params, if given)")
    add("--run", metavar="COLUMN", help="training run of a point: residuals are drawn in blocks along it")
    add(
        "--block-length", type=option(Count), metavar="POINTS", help="of such a block (default: sqrt(n) for a run of n)"
    )
    add("--delta", type=option(Positive), default=1e-3, help="Huber's, in log loss (default: %(default)s)")
    add("--num-bootstrap", type=option(Resamples), default=200, metavar="R", help="refits a law (default: %(default)s)")
    add_seed(parser, "the bootstrap")
    add("--level", type=option(Level), default=0.95, help="coverage of the intervals (default: %(default)s)")
    args = parser.parse_args(argv)

    def work() -> None:
        names = ("num_bootstrap", "seed", "level", "delta", "run", "block_length")
        options = {name: getattr(args, name) for name in names}
        try:
            points = pd.read_csv(args.points)
            fits = fit_scaling_laws(points, args.x, args.loss, args.params, args.group, **options)
        except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
            raise ValueError(f"{args.points}: {getattr(error, 'strerror', None) or error}") from error
        print(json.dumps([json_ready(dataclasses.asdict(fit)) for fit in fits], indent=2, allow_nan=False))

    return run(parser.prog, work)


def json_ready(value: Any) -> Any:
    """`value` with null for what JSON has no token for, such as the end of an interval that overflowed."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
