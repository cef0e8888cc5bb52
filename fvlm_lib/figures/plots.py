"""Figures of the gap: tidy tables in, axes out. Nothing here writes a file or knows where results are kept.

The same thing has the same colour, marker and name in every figure: they are in `palette.py` and `names.py`. Figures of
screen recordings are in `screen_plots.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fvlm_lib.figures import palette
from fvlm_lib.figures.axes import spread_axis
from fvlm_lib.figures.names import describe_group, describe_runs, name_mode
from fvlm_lib.figures.palette import REFERENCE
from fvlm_lib.gap.scaling import ScalingFit, predict_loss


def mode_style(mode: str) -> tuple[str, palette.Colour]:
    """Name and colour of a forward mode."""
    return name_mode(mode), palette.MODES.get(mode, palette.OTHER_MODE)[0]


def _mode_line(mode: str) -> dict[str, Any]:
    """Colour, marker, line and label of a forward mode, so that it can be told apart in grey too."""
    colour, marker, line = palette.MODES.get(mode, palette.OTHER_MODE)
    return {"color": colour, "marker": marker, "linestyle": line, "markersize": 4, "label": name_mode(mode)}


def series_styles(runs: Sequence[str], groups: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Colour and marker of each training run, the same for the same set of runs. groups: of each run; runs of a group
    (the seeds of a recipe) share its colour. None: every run is a group of its own.

    Five colours, five markers; after the fifth group the same colours come again with other markers, so that 25 groups
    of a run each differ, or five groups of five.
    """
    count = len(palette.SERIES)
    group_of = dict(zip(runs, runs if groups is None else groups, strict=True))
    places = {group: i for i, group in enumerate(sorted(set(group_of.values())))}
    styles = {}
    for group, i in places.items():
        for j, run in enumerate(sorted(name for name in group_of if group_of[name] == group)):
            marker = palette.SERIES[(i + i // count + j) % count][1]
            styles[run] = {"color": palette.SERIES[i % count][0], "marker": marker}
    return styles


def plot_mode_losses(ax: Axes, losses: Mapping[str, Mapping[str, float]], log: bool = False) -> Axes:
    """Mean loss of each mode with its interval; losses: mode -> {value, low, high}, nats a token. log: its axis."""
    for place, (mode, loss) in enumerate(losses.items()):
        error = [[loss["value"] - loss["low"]], [loss["high"] - loss["value"]]]
        look = {**_mode_line(mode), "linestyle": "", "markersize": rcParams["lines.markersize"]}
        ax.errorbar(loss["value"], place, xerr=error, capsize=3, **look)
    ax.set_yticks(range(len(losses)), [name_mode(mode) for mode in losses])
    ax.set_ylim(len(losses) - 0.5, -0.5)
    if log:
        ax.set_xscale("log")
    else:  # from 0, and as far beyond the last interval as points and caps are wide
        ax.set_xlim(0, 1.06 * max(loss["high"] for loss in losses.values()))
    ax.set_xlabel("loss, nats a token")
    return ax


def plot_position_losses(ax: Axes, table: pd.DataFrame, modes: Sequence[str], log: bool = False) -> Axes:
    """Loss by caption position; table: mode, position, mean, low, high (`samples.position_losses`). log: the axis of
    the loss; an interval that reaches below zero then ends at the axis."""
    for mode in modes:
        rows = table[table["mode"] == mode].sort_values("position")
        look = _mode_line(mode)
        ax.plot(rows["position"] + 1, rows["mean"], **look)
        low = rows["low"].clip(lower=rows["mean"] / 100) if log else rows["low"]
        ax.fill_between(rows["position"] + 1, low, rows["high"], color=look["color"], alpha=0.2, lw=0)
    if log:
        ax.set_yscale("log")
        ax.set_ylim(bottom=table.loc[table["mode"].isin(modes), "mean"].min() / 2)
    else:
        ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("caption position")
    ax.set_ylabel("loss, nats a token")
    return ax


def plot_query_distance(ax: Axes, table: pd.DataFrame) -> Axes:
    """Distance of training to inference query by frame; table: frame, mean, low, high."""
    ax.plot(table["frame"], table["mean"], "o-", color=palette.BLACK, markersize=4)
    ax.fill_between(table["frame"], table["low"], table["high"], color=palette.BLACK, alpha=0.2, lw=0)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("frame")
    ax.set_ylabel("relative L2 distance")
    return ax


def plot_gap(ax: Axes, table: pd.DataFrame, x: str = "step", labels: Mapping[str, str] | None = None) -> Axes:
    """Gap against `x`, a line a recipe; table: run, `x`, gap_nats, gap_nats_low, gap_nats_high, and doubtful: a gap
    whose interval may be too narrow is drawn hollow; group, where there is, the recipe of a run.

    A recipe of one seed has the intervals of its gaps. One of several has the line of their mean over the seeds, a
    band from the lowest of them to the highest, and thin lines of each. Where one gap lies so far off that the others
    would be one point, the axis is logarithmic away from 0, and says so. labels: of runs; None: `describe_runs`.
    """
    styles = series_styles(table["run"], table.get("group"))
    labels = labels or describe_runs(table)[0]
    known = _known(ax, table, x)
    for _, of_group in known.groupby("group" if "group" in known else "run"):
        first = str(min(of_group["run"]))
        if of_group["run"].nunique() > 1:
            _plot_seeds(ax, of_group, x, styles, describe_group(of_group, dict(labels)))
            continue
        rows = of_group.sort_values(x)
        error = [rows["gap_nats"] - rows["gap_nats_low"], rows["gap_nats_high"] - rows["gap_nats"]]
        ax.errorbar(rows[x], rows["gap_nats"], yerr=error, **styles[first], capsize=3, label=labels[first])
        hollow = rows[rows["doubtful"].str.contains("gap")]
        ax.plot(hollow[x], hollow["gap_nats"], **styles[first], linestyle="", markerfacecolor="white", zorder=3)
    alone = known.groupby("group" if "group" in known else "run")["run"].transform("nunique") == 1
    if known.loc[alone, "doubtful"].str.contains("gap").any():
        look: dict[str, Any] = {"fmt": "o", "color": REFERENCE, "markerfacecolor": "white"}
        ax.errorbar([], [], label="hollow: interval may be too narrow", **look)  # errorbar: the legend's last entry
    ax.axhline(0, color=REFERENCE, lw=0.8, zorder=0)
    ax.set_xlabel(AXES.get(x, x))
    ax.set_ylabel("gap, nats a token" + _spread(ax, table, "gap_nats"))
    return ax


def _plot_seeds(ax: Axes, table: pd.DataFrame, x: str, styles: Mapping[str, Mapping[str, Any]], label: str) -> None:
    """The gaps of several seeds of a recipe: each as a thin line, and mean, lowest and highest where all have one."""
    step = "step" if table["step"].notna().all() else x
    by_seed = table.pivot_table(index=step, columns="run", values="gap_nats")
    places = table.groupby(step)[x].mean()  # the same for all seeds, unless they were trained at different costs
    for run in by_seed:
        known = by_seed[run].dropna()
        ax.plot(places[known.index], known, **styles[str(run)], lw=0.5, ms=3, alpha=0.6)
    shared = by_seed.dropna()
    at, look = places[shared.index], styles[str(min(table["run"]))]
    ax.plot(at, shared.mean(axis=1), **look, lw=2, label=f"{label}: mean and range of {by_seed.shape[1]} seeds")
    ax.fill_between(at, shared.min(axis=1), shared.max(axis=1), color=look["color"], alpha=0.2, lw=0)


def _spread(ax: Axes, table: pd.DataFrame, value: str, low: str = "", high: str = "") -> str:
    """`axes.spread_axis` of the gaps of a table and their intervals, and what the axis's label says of it."""
    ends = table[[low or f"{value}_low", high or f"{value}_high"]].to_numpy().ravel()
    start = spread_axis(ax.yaxis, table[value], ends)
    return "" if start is None else f"\n(logarithmic beyond ±{start:g})"


def _known(ax: Axes, table: pd.DataFrame, x: str) -> pd.DataFrame:
    """The rows that tell `x`, for which the axis becomes a log one; where none does, the axes say so."""
    rows = table.dropna(subset=[x])
    if rows.empty:
        ax.text(0.5, 0.5, f"no checkpoint tells its {x}", ha="center", va="center", transform=ax.transAxes)
    else:
        ax.set_xscale("log")
    return rows


def plot_gap_passes(ax: Axes, table: pd.DataFrame, styles: Mapping[str, Mapping[str, Any]] | None = None) -> Axes:
    """What is left of the gap after so many fine passes, a line a checkpoint; table: run, label, passes, value,
    low, high (nats a token). styles: of more runs than these, from `series_styles`."""
    styles = styles or series_styles(table["run"])
    for (run, label), rows in table.groupby(["run", "label"]):
        rows = rows.sort_values("passes")
        error = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
        ax.errorbar(rows["passes"], rows["value"], yerr=error, **styles[str(run)], capsize=3, label=label)
    ax.axhline(0, color=REFERENCE, lw=0.8, zorder=0)
    ax.set_xticks(sorted(table["passes"].unique()))
    ax.set_xlabel("fine passes")
    ax.set_ylabel("gap, nats a token" + _spread(ax, table, "value", "low", "high"))
    return ax


AXES = {"step": "training step", "training_flops": "training FLOPs"}


def plot_loss_scaling(
    ax: Axes,
    table: pd.DataFrame,
    x: str,
    loss: str,
    fits: Sequence[ScalingFit] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Axes:
    """`loss` (with loss_low, loss_high) against `x`, both on log axes, styles and labels as in `plot_gap`; fits as
    dashed lines.

    Of the fits those are drawn whose group is a run of the table; where there is none, the axes say so. None: no fits
    were made.
    """
    styles = series_styles(table["run"], table.get("group"))
    labels = labels or describe_runs(table)[0]
    known = _known(ax, table, x)
    if len(known):
        ax.set_yscale("log")
    drawn = False
    for run, rows in known.groupby("run"):
        rows = rows.sort_values(x)
        error = [rows[loss] - rows[f"{loss}_low"], rows[f"{loss}_high"] - rows[loss]]
        ax.errorbar(rows[x], rows[loss], yerr=error, ls="none", **styles[str(run)], capsize=3, label=labels[str(run)])
        grid = np.geomspace(rows[x].min(), rows[x].max(), 100)
        for fit in fits or ():
            if fit.fitted and fit.group == run:
                ax.plot(grid, predict_loss(fit, grid), "--", color=styles[str(run)]["color"], lw=1)
                drawn = True
    if drawn:
        ax.plot([], [], "--", color=REFERENCE, lw=1, label="power law a·C^-b")
    if fits is not None and len(known) and not drawn:
        ax.text(0.04, 0.05, "no power law fits", fontsize=rcParams["legend.fontsize"], transform=ax.transAxes)
    ax.set_xlabel(AXES.get(x, x))
    ax.set_ylabel("loss, nats a token")
    return ax


def plot_attention(ax: Axes, frame: np.ndarray, attention: np.ndarray, highest: float) -> Axes:
    """Where a query looks: a frame uint8 (H, W, 3), each patch the paler the less attention it gets.

    attention: (rows, columns) of patches, shares of 1; `highest` of it is shown in full. Few patches carry their
    share in percent.
    """
    rows, columns = attention.shape
    height, width = frame.shape[:2]
    weight = np.clip(attention / max(highest, 1e-12), 0, 1)
    weight = weight.repeat(-(-height // rows), axis=0).repeat(-(-width // columns), axis=1)[:height, :width, None]
    ax.imshow((frame * weight + 255 * (1 - weight)).astype(np.uint8), interpolation="nearest", extent=(0, 1, 1, 0))
    for place in range(1, max(rows, columns)):
        if place < rows:
            ax.axhline(place / rows, color="0.85", lw=0.5)
        if place < columns:
            ax.axvline(place / columns, color="0.85", lw=0.5)
    if rows * columns <= 36:
        for (row, column), share in np.ndenumerate(attention):
            box = {"facecolor": "white", "alpha": 0.7, "pad": 1, "edgecolor": "none"}
            at = ((column + 0.06) / columns, (row + 0.08) / rows)
            ax.text(*at, f"{share:.0%}", va="top", fontsize="x-small", bbox=box)
    ax.set_aspect(height / width)
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def plot_modes_by_frame(ax: Axes, table: pd.DataFrame, column: str) -> Axes:
    """A column against the frame, a line a mode; table: mode, frame, `column` (`fovea.WatchedVideo.by_frame`)."""
    for mode, rows in table.groupby("mode", sort=False):
        ax.plot(rows["frame"], rows[column], **_mode_line(str(mode)))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("frame")
    return ax
