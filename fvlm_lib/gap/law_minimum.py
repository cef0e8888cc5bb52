"""The minimum of a scaling law's Huber loss in log loss, from many starts.

theta holds the logs of E (if any) and of the coefficients at the centre of the scales, then the exponents: the log of
each term is linear in theta, the log loss is the log of a sum of exponentials (LSE). Which laws there are, and what
comes of a minimum, is `scaling.py`'s subject; which losses are fitted anew for intervals, `law_bootstrap.py`'s.
"""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls

Array = NDArray[np.float64]

MAX_EXPONENT = 5.0  # published exponents of loss against scale lie between 0.03 and 1
# Far beyond delta the Huber loss is a median's: between two runs at each scale any curve would do. This much
# of the square picks the middle one; on an outlier of 50% it pulls a hundredth of what the Huber loss does.
TIE_BREAK = 1e-5
# Residuals are in units of delta, at most this. The unit matters: the plain sum of losses is about 1e-5, less than
# optimisers tolerate, and they stop early (the fault that Besiroglu et al. 2024, arXiv 2404.10102, found in the
# published fit of the joint form); in units of a delta far beyond the residuals it is as small.
MAX_UNIT = 0.1


def law_design(u: Array, floor: bool) -> Array:
    """Log scales (V, n) to the array (terms, n, p) with log terms = design @ theta; p - terms is V."""
    num_terms = floor + len(u)
    design = np.zeros((num_terms, u.shape[1], num_terms + len(u)))
    for term in range(num_terms):
        design[term, :, term] = 1.0
    for variable, scale in enumerate(u):
        design[floor + variable, :, num_terms + variable] = -scale
    return design


def log_law(theta: Array, design: Array) -> tuple[Array, Array]:
    """The law's log loss, shape (n,), and its slopes by theta, shape (n, p)."""
    log_terms = design @ theta  # (terms, n)
    top = log_terms.max(axis=0)
    terms = np.exp(log_terms - top)
    total = terms.sum(axis=0)
    return top + np.log(total), np.einsum("tn,tnp->np", terms / total, design)


def objective(theta: Array, design: Array, log_y: Array, delta: float) -> tuple[float, Array]:
    """Sum of Huber losses (and of the tie-break) and its gradient; residuals in units of delta, at most `MAX_UNIT`."""
    unit = min(delta, MAX_UNIT)
    fitted, slopes = log_law(theta, design)
    residual = (fitted - log_y) / unit
    clipped = np.clip(residual, -delta / unit, delta / unit)
    value = (clipped * (residual - clipped / 2) + TIE_BREAK * residual**2).sum()
    return float(value), (clipped + 2 * TIE_BREAK * residual) @ slopes / unit


def grid_starts(design: Array, log_y: Array) -> list[Array]:
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


def minimise(start: Array, design: Array, log_y: Array, delta: float) -> Any:
    """scipy's result from one start. E is free down to a millionth of the loss, zero for our purposes."""
    num_terms, _, num_parameters = design.shape
    num_variables = num_parameters - num_terms
    low, high = log_y.min(), log_y.max() + 3.0
    bounds = [(low - 15.0, high)] * (num_terms - num_variables) + [(low - 40.0, high)] * num_variables
    bounds += [(0.0, MAX_EXPONENT)] * num_variables
    start = np.clip(start, *np.transpose(bounds))
    tolerance = 1e-12 * max(1.0, objective(start, design, log_y, delta)[0])
    options = {"maxiter": 2000, "ftol": tolerance}
    arguments = (design, log_y, delta)
    return minimize(objective, start, arguments, "SLSQP", jac=True, bounds=bounds, options=options)


def refit(theta: Array, design: Array, log_y: Array, delta: float) -> Array:
    """The better of two minima: from the point fit, and from the best of the grid."""
    best = min(grid_starts(design, log_y), key=lambda start: objective(start, design, log_y, delta)[0])
    results = [minimise(start, design, log_y, delta) for start in (theta, best)]
    return min(results, key=lambda result: result.fun).x
