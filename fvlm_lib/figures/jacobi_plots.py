"""Figures of gap(K): how far so many fine passes are from sequential use, and by how much errors of queries grow.

Tables in, axes out; a curve is made in `gap/jacobi.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fvlm_lib.figures import palette
from fvlm_lib.figures.axes import spread_axis, zero_axis
from fvlm_lib.figures.palette import REFERENCE

DISTANCES: dict[str, dict[str, Any]] = {  # column of the table -> how it is drawn
    "query_distance": {"label": "queries", "color": palette.BLUE, "marker": "o", "linestyle": "-"},
    "token_distance": {"label": "visual tokens", "color": palette.VERMILION, "marker": "^", "linestyle": "--"},
}
NORMS: dict[str, dict[str, Any]] = {
    "norm": {"label": "largest growth of errors", "color": palette.GREEN, "marker": "D", "linestyle": "-."},
    "relative_norm": {"label": "of relative errors", "color": palette.PLUM, "marker": "v", "linestyle": ":"},
}


def plot_passes_gap(ax: Axes, table: pd.DataFrame, within: float | None = None) -> Axes:
    """gap(K) against K; table: passes, gap, gap_low, gap_high (nats a token), doubtful, as `jacobi.curve_table` makes
    it. A gap whose interval may be too narrow is hollow. within: what is near enough, a band around 0.

    Where one gap lies so far off that the others would be one point, the axis is logarithmic away from 0, and says so.
    """
    look: dict[str, Any] = {"color": palette.BLACK, "marker": "o"}
    error = [table["gap"] - table["gap_low"], table["gap_high"] - table["gap"]]
    ax.errorbar(table["passes"], table["gap"], yerr=error, **look, capsize=3, label="gap(K)")
    hollow = table[table["doubtful"]]
    if len(hollow):
        label = "hollow: interval may be too narrow"
        ax.plot(hollow["passes"], hollow["gap"], **look, linestyle="", markerfacecolor="white", zorder=3, label=label)
    ax.axhline(0, color=REFERENCE, lw=0.8, zorder=0)
    if within is not None:
        ax.axhspan(-within, within, color=palette.GREEN, alpha=0.2, lw=0, label=f"within {within:g} nats")
    start = spread_axis(ax.yaxis, table["gap"].tolist(), np.ravel(table[["gap_low", "gap_high"]]).tolist())
    ax.set_ylabel("gap, nats a token" + ("" if start is None else f"\n(logarithmic beyond ±{start:g})"))
    return _passes_axis(ax)


def plot_passes_distance(
    ax: Axes, table: pd.DataFrame, within: float | None = None, columns: Sequence[str] = tuple(DISTANCES)
) -> Axes:
    """Distance of queries and visual tokens from those of sequential use against K, on a log axis with a 0.

    table: passes, query_distance and token_distance (relative L2), each with _low and _high. within: a line.
    """
    for column in columns:
        look = DISTANCES[column]
        ax.plot(table["passes"], table[column], **look, markersize=4)
        low = table[f"{column}_low"].clip(lower=0)
        ax.fill_between(table["passes"], low, table[f"{column}_high"], color=look["color"], alpha=0.2, lw=0)
    if within is not None:
        ax.axhline(within, color=REFERENCE, lw=0.8, ls=":", label=f"distance {within:g}")
    zero_axis(ax.yaxis, np.ravel(table[list(columns)]).tolist())
    ax.set_ylabel("relative L2 distance")
    return _passes_axis(ax)


def plot_jacobian_norms(ax: Axes, table: pd.DataFrame) -> Axes:
    """Norm of dq(t+1)/dq(t) by frame t, and of relative errors; table: frame, norm and relative_norm, each with _low
    and _high, as `JacobianNorms.by_frame`. Above the line at 1 the worst error grows."""
    for column, look in NORMS.items():
        ax.plot(table["frame"], table[column], **look, markersize=4)
        low, high = table[f"{column}_low"], table[f"{column}_high"]
        ax.fill_between(table["frame"], low, high, color=look["color"], alpha=0.2, lw=0)
    ax.axhline(1, color=REFERENCE, lw=0.8, zorder=0)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("frame")
    ax.set_ylabel("norm of the query's Jacobian")
    return ax


def _passes_axis(ax: Axes) -> Axes:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("fine passes")
    return ax
