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
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fvlm_lib.gap.scaling import ScalingFit, predict_loss
from fvlm_lib.vision.patches import expand_mask

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


def series_styles(runs: Sequence[str], groups: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Colour and marker of each training run, the same for the same set of runs. groups: of each run; runs of a group
    (the seeds of a recipe) share its colour. None: every run is a group of its own.

    Five colours, five markers; after the fifth group the same colours come again with other markers, so that 25 groups
    of a run each differ, or five groups of five.
    """
    count = len(_SERIES)
    group_of = dict(zip(runs, runs if groups is None else groups, strict=True))
    places = {group: i for i, group in enumerate(sorted(set(group_of.values())))}
    styles = {}
    for group, i in places.items():
        for j, run in enumerate(sorted(name for name in group_of if group_of[name] == group)):
            styles[run] = {"color": _SERIES[i % count][0], "marker": _SERIES[(i + i // count + j) % count][1]}
    return styles


def plot_mode_losses(ax: Axes, losses: Mapping[str, Mapping[str, float]], log: bool = False) -> Axes:
    """Mean loss of each mode with its interval; losses: mode -> {value, low, high}, nats a token. log: its axis."""
    for place, (mode, loss) in enumerate(losses.items()):
        name, colour = mode_style(mode)
        error = [[loss["value"] - loss["low"]], [loss["high"] - loss["value"]]]
        ax.errorbar(loss["value"], place, xerr=error, fmt="o", color=colour, capsize=3, label=name)
    ax.set_yticks(range(len(losses)), [mode_style(mode)[0] for mode in losses])
    ax.set_ylim(len(losses) - 0.5, -0.5)
    if log:
        ax.set_xscale("log")
    else:
        ax.set_xlim(left=0)
    ax.set_xlabel("loss, nats a token")
    return ax


def plot_position_losses(ax: Axes, table: pd.DataFrame, modes: Sequence[str], log: bool = False) -> Axes:
    """Loss by caption position; table: mode, position, mean, low, high (`samples.position_losses`). log: the axis of
    the loss; an interval that reaches below zero then ends at the axis."""
    for mode in modes:
        rows = table[table["mode"] == mode].sort_values("position")
        name, colour = mode_style(mode)
        ax.plot(rows["position"] + 1, rows["mean"], "o-", color=colour, label=name, markersize=4)
        low = rows["low"].clip(lower=rows["mean"] / 100) if log else rows["low"]
        ax.fill_between(rows["position"] + 1, low, rows["high"], color=colour, alpha=0.2, lw=0)
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
    colour = _PALETTE[3]
    ax.plot(table["frame"], table["mean"], "o-", color=colour, markersize=4)
    ax.fill_between(table["frame"], table["low"], table["high"], color=colour, alpha=0.2, lw=0)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("frame")
    ax.set_ylabel("relative L2 distance")
    return ax


CHANGED = _PALETTE[3]


def faded(pixels: np.ndarray) -> np.ndarray:
    """Pixels 0..255 as uint8, paled towards white: the background of what is shown on them."""
    return (pixels * 0.35 + 255 * 0.65).astype(np.uint8)


def plot_changed_patches(ax: Axes, frame: np.ndarray, mask: np.ndarray, patch_size: int) -> Axes:
    """A screenshot uint8 (H, W, 3), the patches outside `mask` (grid_h, grid_w) faded, those in it framed."""
    height, width = frame.shape[:2]
    pixels = expand_mask(mask, height, width, patch_size)
    ax.imshow(np.where(pixels[..., None], frame, faded(frame)))
    linewidth = rcParams["axes.linewidth"]
    for row, column in zip(*np.nonzero(mask), strict=True):
        corner = (column * patch_size - 0.5, row * patch_size - 0.5)
        ax.add_patch(Rectangle(corner, patch_size, patch_size, fill=False, color=CHANGED, lw=linewidth))
    ax.set_axis_off()
    return ax


def plot_change_frequency(ax: Axes, frame: np.ndarray, frequency: np.ndarray) -> Axes:
    """How often each patch changed, over a pale screenshot; frequency (grid_h, grid_w), share of frames."""
    height, width = frame.shape[:2]
    extent = (0, width, height, 0)
    ax.imshow(faded(frame.mean(axis=2)), cmap="gray", vmin=0, vmax=255, extent=extent)
    shown = np.ma.masked_equal(frequency, 0)
    image = ax.imshow(shown, cmap="rocket_r", vmin=0, vmax=max(frequency.max(), 1e-9), alpha=0.85, extent=extent)
    ax.figure.colorbar(image, ax=ax, label="share of frames", shrink=0.8)
    ax.set_axis_off()
    return ax


PATHS = {
    "cached": _PALETTE[7],
    "partial": _PALETTE[2],
    "full": _PALETTE[3],
    "skipped": _PALETTE[8],
    "fallback": (0.2, 0.2, 0.2),
}


def plot_change_timeline(ax: Axes, table: pd.DataFrame) -> Axes:
    """Share of changed patches a frame, coloured by the path taken; table: frame, changed, total, path."""
    for path, colour in PATHS.items():
        rows = table[table["path"] == path]
        if len(rows):
            ax.bar(rows["frame"], rows["changed"] / rows["total"], color=colour, label=path)
            # where nothing changed there is no bar, so a mark on the axis says which path it was
            ax.plot(rows["frame"], np.zeros(len(rows)), "|", color=colour, ms=6, clip_on=False)
    ax.set_ylim(0, max(0.02, 1.05 * (table["changed"] / table["total"]).max()))
    ax.set_xlabel("frame")
    ax.set_ylabel("changed share of patches")
    ax.legend(title="path", frameon=False)
    return ax


def plot_first_token_times(ax: Axes, table: pd.DataFrame) -> Axes:
    """Time to first token a frame, differential (coloured by path) and full; table as `vlm_bench.measure_answers`
    gives it, of one sequence."""
    ax.plot(table["frame"], table["first_token_ms_full"], "x-", color="0.4", lw=0.8, ms=4, label="every frame in full")
    ax.plot(table["frame"], table["first_token_ms"], "-", color="0.75", lw=0.8, zorder=0)
    for path, colour in PATHS.items():
        rows = table[table["path"] == path]
        if len(rows):
            ax.plot(rows["frame"], rows["first_token_ms"], "o", color=colour, ms=4, label=f"differential: {path}")
    ax.set_ylim(bottom=0)
    ax.set_xlabel("frame")
    ax.set_ylabel("time to first token, ms")
    ax.legend(frameon=False, fontsize="small", ncols=2)
    return ax


POLICIES = {"exact match": (_PALETTE[7], "o"), "pseudocode": (_PALETTE[8], "s"), "none": (_PALETTE[2], "^")}


def plot_speed_error(ax: Axes, table: pd.DataFrame) -> Axes:
    """Speed-up of the whole sequence against mean token error, a point a policy; table as
    `measure.summarize_policies` gives it, or `bootstrap_policies`, with intervals. Errors below 1e-6 stand
    at 1e-6."""
    gated_shades = iter(sns.color_palette("crest", int(table["policy"].str.startswith("gated").sum())))
    for _, row in table.iterrows():
        colour, marker = POLICIES.get(row["policy"]) or (next(gated_shades), "D")
        x, y = max(row["error_mean"], 1e-6), row["total_speedup"]
        ax.plot(x, y, marker, color=colour, label=row["policy"])
        if "error_mean_low" in row and pd.notna(row["error_mean_low"]):
            ax.hlines(y, max(row["error_mean_low"], 1e-6), max(row["error_mean_high"], 1e-6), color=colour, lw=0.8)
            ax.vlines(x, row["total_speedup_low"], row["total_speedup_high"], color=colour, lw=0.8)
    gated = table[table["policy"].str.startswith("gated")].sort_values("error_mean")
    ax.plot(gated["error_mean"].clip(lower=1e-6), gated["total_speedup"], color="0.6", lw=1, zorder=0)
    ax.axhline(1, color="0.4", lw=0.8, zorder=0)
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ax.set_xlabel("mean relative L2 error of a token")
    ax.set_ylabel("speed-up over full encodes")
    ax.legend(title="policy", frameon=False, fontsize="small")
    return ax


def plot_gap(ax: Axes, table: pd.DataFrame, x: str = "step") -> Axes:
    """Gap against `x`, a line a run; table: run, `x`, gap_nats, gap_nats_low, gap_nats_high, and doubtful: a
    gap whose interval may be too narrow is drawn hollow; group, where there is, for the colours (`series_styles`)."""
    styles = series_styles(table["run"], table.get("group"))
    for run, rows in _known(ax, table, x).groupby("run"):
        rows = rows.sort_values(x)
        error = [rows["gap_nats"] - rows["gap_nats_low"], rows["gap_nats_high"] - rows["gap_nats"]]
        style = styles[str(run)]
        ax.errorbar(rows[x], rows["gap_nats"], yerr=error, **style, capsize=3, label=run)
        hollow = rows[rows["doubtful"].str.contains("gap")]
        ax.plot(hollow[x], hollow["gap_nats"], **style, linestyle="", markerfacecolor="white", zorder=3)
    if table["doubtful"].str.contains("gap").any():
        ax.plot([], [], "o", color="0.4", markerfacecolor="white", label="hollow: interval may be too narrow")
    ax.axhline(0, color="0.4", lw=0.8, zorder=0)
    ax.set_xlabel(AXES.get(x, x))
    ax.set_ylabel("gap, nats a token")
    return ax


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
    ax.axhline(0, color="0.4", lw=0.8, zorder=0)
    ax.set_xticks(sorted(table["passes"].unique()))
    ax.set_xlabel("fine passes")
    ax.set_ylabel("gap, nats a token")
    return ax


AXES = {"step": "training step", "training_flops": "training FLOPs"}


def plot_loss_scaling(
    ax: Axes, table: pd.DataFrame, x: str, loss: str, fits: Sequence[ScalingFit] | None = None
) -> Axes:
    """`loss` (with loss_low, loss_high) against `x`, both on log axes, styles as in `plot_gap`; fits as dashed lines.

    Of the fits those are drawn whose group is a run of the table; where there is none, the axes say so. None: no fits
    were made.
    """
    styles = series_styles(table["run"], table.get("group"))
    known = _known(ax, table, x)
    if len(known):
        ax.set_yscale("log")
    drawn = False
    for run, rows in known.groupby("run"):
        rows = rows.sort_values(x)
        error = [rows[loss] - rows[f"{loss}_low"], rows[f"{loss}_high"] - rows[loss]]
        ax.errorbar(rows[x], rows[loss], yerr=error, ls="none", **styles[str(run)], capsize=3, label=run)
        grid = np.geomspace(rows[x].min(), rows[x].max(), 100)
        for fit in fits or ():
            if fit.fitted and fit.group == run:
                ax.plot(grid, predict_loss(fit, grid), "--", color=styles[str(run)]["color"], lw=1)
                drawn = True
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
        name, colour = mode_style(str(mode))
        ax.plot(rows["frame"], rows[column], "o-", color=colour, label=name, markersize=4)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("frame")
    return ax
