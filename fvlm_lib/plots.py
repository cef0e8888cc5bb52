"""Figures: tidy tables in, axes out. Nothing here writes a file or knows where results are kept.

The same thing has the same colour and name in every figure (`MODES`, `series_styles`); the palette is
seaborn's colour-blind-safe one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from fvlm_lib.scaling import ScalingFit, predict_loss

_PALETTE = sns.color_palette("colorblind")
MODES = {  # column of a table -> name, colour
    "coarse": ("coarse", _PALETTE[7]),
    "fine_1": ("training (1 fine pass)", _PALETTE[0]),
    "fine_2": ("2 fine passes", _PALETTE[9]),
    "fine_3": ("3 fine passes", _PALETTE[4]),
    "autoregressive": ("inference (autoregressive)", _PALETTE[1]),
}
_SERIES = [(_PALETTE[2], "o"), (_PALETTE[3], "s"), ((0.2, 0.2, 0.2), "^"), (_PALETTE[8], "D"), (_PALETTE[5], "v")]


def mode_style(mode: str) -> tuple[str, tuple[float, float, float]]:
    """Name and colour of a forward mode."""
    return MODES.get(mode, (mode.replace("fine_", "") + " fine passes", _PALETTE[6]))


def series_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each training run, the same for the same set of names; five differ."""
    styles = (_SERIES[i % len(_SERIES)] for i in range(len(set(names))))
    return {
        name: {"color": colour, "marker": marker}
        for name, (colour, marker) in zip(sorted(set(names)), styles, strict=True)
    }


def plot_mode_losses(ax: Axes, losses: Mapping[str, Mapping[str, float]]) -> Axes:
    """Mean loss of each mode with its interval; losses: mode -> {value, low, high}, nats a token."""
    for place, (mode, loss) in enumerate(losses.items()):
        name, colour = mode_style(mode)
        error = [[loss["value"] - loss["low"]], [loss["high"] - loss["value"]]]
        ax.errorbar(loss["value"], place, xerr=error, fmt="o", color=colour, capsize=3, label=name)
    ax.set_yticks(range(len(losses)), [mode_style(mode)[0] for mode in losses])
    ax.set_ylim(len(losses) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.set_xlabel("loss, nats a token")
    return ax


def plot_position_losses(ax: Axes, table: pd.DataFrame, modes: Sequence[str]) -> Axes:
    """Loss by caption position; table: mode, position, mean, low, high (`gap.position_losses`)."""
    for mode in modes:
        rows = table[table["mode"] == mode].sort_values("position")
        name, colour = mode_style(mode)
        ax.plot(rows["position"] + 1, rows["mean"], "o-", color=colour, label=name, markersize=4)
        ax.fill_between(rows["position"] + 1, rows["low"], rows["high"], color=colour, alpha=0.2, lw=0)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("caption position")
    ax.set_ylabel("loss, nats a token")
    return ax


def plot_query_distance(ax: Axes, table: pd.DataFrame) -> Axes:
    """Distance of training to inference query by frame; table: frame, mean, low, high."""
    colour = _PALETTE[3]
    ax.plot(table["frame"], table["mean"], "o-", color=colour, markersize=4)
    ax.fill_between(table["frame"], table["low"], table["high"], color=colour, alpha=0.2, lw=0)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("frame")
    ax.set_ylabel("relative L2 distance")
    return ax


def plot_gap(ax: Axes, table: pd.DataFrame, x: str = "step") -> Axes:
    """Gap against `x`, a line a run; table: run, `x`, gap_nats, gap_nats_low, gap_nats_high."""
    styles = series_styles(table["run"])
    for run, rows in table.groupby("run"):
        rows = rows.sort_values(x)
        error = [rows["gap_nats"] - rows["gap_nats_low"], rows["gap_nats_high"] - rows["gap_nats"]]
        ax.errorbar(rows[x], rows["gap_nats"], yerr=error, **styles[str(run)], capsize=3, label=run)
    ax.axhline(0, color="0.4", lw=0.8, zorder=0)
    ax.set_xscale("log")
    ax.set_xlabel(AXES.get(x, x))
    ax.set_ylabel("gap, nats a token")
    return ax


AXES = {"step": "training step", "training_flops": "training FLOPs"}


def plot_loss_scaling(ax: Axes, table: pd.DataFrame, x: str, loss: str, fits: Sequence[ScalingFit] = ()) -> Axes:
    """`loss` (with loss_low, loss_high) against `x`, both on log axes, a colour a run; fits as dashed lines.

    Of the fits those are drawn whose group is a run of the table.
    """
    styles = series_styles(table["run"])
    for run, rows in table.groupby("run"):
        rows = rows.sort_values(x)
        error = [rows[loss] - rows[f"{loss}_low"], rows[f"{loss}_high"] - rows[loss]]
        ax.errorbar(rows[x], rows[loss], yerr=error, ls="none", **styles[str(run)], capsize=3, label=run)
        grid = np.geomspace(rows[x].min(), rows[x].max(), 100)
        for fit in fits:
            if fit.fitted and fit.group == run:
                ax.plot(grid, predict_loss(fit, grid), "--", color=styles[str(run)]["color"], lw=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(AXES.get(x, x))
    ax.set_ylabel("loss, nats a token")
    return ax
