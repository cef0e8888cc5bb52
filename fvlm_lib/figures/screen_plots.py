"""Figures of screen recordings: what changes, what an encoder does about it, what that saves and how wrong it is.

Tidy tables in, axes out, as in `plots.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fvlm_lib.figures import palette
from fvlm_lib.figures.axes import outline, percent, zero_axis
from fvlm_lib.figures.names import PATHS as PATH_NAMES
from fvlm_lib.figures.names import name_policy
from fvlm_lib.figures.palette import CHANGED, PATHS, REFERENCE
from fvlm_lib.vision.patches import expand_mask


def faded(pixels: np.ndarray) -> np.ndarray:
    """Pixels 0..255 as uint8, paled towards white: the background of what is shown on them."""
    return (pixels * 0.35 + 255 * 0.65).astype(np.uint8)


def plot_changed_patches(ax: Axes, frame: np.ndarray, mask: np.ndarray, patch_size: int) -> Axes:
    """A screenshot uint8 (H, W, 3), the patches outside `mask` (grid_h, grid_w) faded, the areas of those in it
    outlined. Of a frame of which all changed there is nothing to tell apart, so it is shown as it is."""
    height, width = frame.shape[:2]
    pixels = expand_mask(mask, height, width, patch_size)
    ax.imshow(np.where(pixels[..., None], frame, faded(frame)))
    if not mask.all():
        outline(ax, mask, patch_size, colors=[CHANGED], linewidths=1.5 * rcParams["axes.linewidth"])
    ax.set_axis_off()
    return ax


def plot_change_frequency(ax: Axes, frame: np.ndarray, frequency: np.ndarray) -> Axes:
    """How often each patch changed, over a pale screenshot; frequency (grid_h, grid_w), share of frames. Where no patch
    ever did, the axes say so."""
    height, width = frame.shape[:2]
    extent = (0, width, height, 0)
    ax.imshow(faded(frame.mean(axis=2)), cmap="gray", vmin=0, vmax=255, extent=extent)
    ax.set_axis_off()
    if not frequency.any():
        ax.text(0.5, 0.5, "no patch changes", ha="center", va="center", transform=ax.transAxes)
        return ax
    shown = np.ma.masked_equal(frequency, 0)
    image = ax.imshow(shown, cmap=palette.FREQUENCY, vmin=0, vmax=frequency.max(), alpha=0.75, extent=extent)
    beside = ax.inset_axes((1.03, 0, 0.04, 1))  # so that the picture keeps its size
    percent(ax.figure.colorbar(image, cax=beside, label="of the frames").ax.yaxis)
    return ax


def plot_change_timeline(ax: Axes, table: pd.DataFrame) -> Axes:
    """Share of changed patches a frame, coloured by the path taken; table: frame, changed, total, path.

    The first frame is compared with nothing, so all of it counts as changed: its bar is hollow, and the axis ends
    where the later ones do.
    """
    share = table["changed"] / table["total"]
    first, later = table["frame"] == table["frame"].min(), share[table["frame"] > table["frame"].min()]
    for path, colour in PATHS.items():
        chosen = (table["path"] == path) & ~first
        if chosen.any():
            ax.bar(table.loc[chosen, "frame"], share[chosen], color=colour, label=PATH_NAMES[path])
            # where nothing changed there is no bar, so a mark on the axis says which path it was
            frames = table.loc[chosen, "frame"]
            ax.plot(frames, np.zeros(len(frames)), "|", color=colour, ms=6, clip_on=False)
    colours = [PATHS[path] for path in table.loc[first, "path"]]
    ax.bar(
        table.loc[first, "frame"], share[first], facecolor="white", edgecolor=colours, hatch="////", lw=0.8,
        label="first frame (all)",
    )  # fmt: skip
    ax.set_ylim(0, max(0.02, 1.1 * later.max()) if len(later) else 1.0)
    ax.set_xlabel("frame")
    ax.set_ylabel("changed patches, of all")
    percent(ax.yaxis)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False)
    return ax


def plot_first_token_times(ax: Axes, table: pd.DataFrame) -> Axes:
    """Time to first token a frame, differential (solid, with a filled marker by path) and full (dashed and hollow),
    with the median of each over the frames after the first; table as `vlm.bench.measure_answers` gives it, of one
    sequence."""
    later = table[table["frame"] > table["frame"].min()]
    times = ("first_token_ms", "first_token_ms_full")
    medians = {name: f", median {later[name].median():.0f} ms" if len(later) else "" for name in times}
    ax.plot(
        table["frame"], table["first_token_ms_full"], "s--", color=palette.PLUM, lw=1, ms=4, mfc="white",
        label="every frame in full" + medians["first_token_ms_full"],
    )  # fmt: skip
    label = "what did not change is kept" + medians["first_token_ms"]
    ax.plot(table["frame"], table["first_token_ms"], "-", color=palette.BLUE, lw=1.5, label=label)
    for path, colour in PATHS.items():
        rows = table[table["path"] == path]
        if len(rows):
            look: dict[str, Any] = {"color": colour, "marker": palette.PATH_MARKERS[path], "ms": 6, "zorder": 3}
            ax.plot(rows["frame"], rows["first_token_ms"], ls="", label=PATH_NAMES[path], **look)
    highest = table[["first_token_ms", "first_token_ms_full"]].max(axis=None)
    ax.set_ylim(0, 1.05 * highest)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("frame")
    ax.set_ylabel("time to first token, ms")
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=6)
    return ax


LIVE_PARTS = {  # columns of milliseconds -> what took them, in the order of the work, and its colour
    "encode_ms": ("encode", palette.BLUE),
    "look_ms": ("look", palette.GREEN),
    "language_ms": ("language model", palette.VERMILION),
    "caption_ms": ("caption", palette.GREY),
}


def plot_live_times(ax: Axes, table: pd.DataFrame, fps: float) -> Axes:
    """What each part of watching a frame took, on top of each other, with medians over the frames after the first, of
    captions over those at which the model was asked; dashed, where it is near, the time from one frame to the next at
    `fps`.

    table: a row a frame, with `frame` and the columns of LIVE_PARTS.
    """
    later = table[table["frame"] > table["frame"].min()]
    bottom = np.zeros(len(table))
    for column, (name, colour) in LIVE_PARTS.items():
        taken = later[column][later[column] > 0]
        median = f", median {taken.median():.1f} ms" if len(taken) else ""
        ax.bar(table["frame"], table[column], bottom=bottom, width=0.8, color=colour, label=name + median)
        bottom += table[column].to_numpy()
    highest, between = bottom.max(), 1000 / fps
    if between < 2 * highest:  # farther off, it would leave no room for the bars
        ax.axhline(between, color=REFERENCE, ls="--", lw=1, label=f"{fps:g} frames a second")
        highest = max(highest, between)
    ax.set_ylim(0, 1.05 * highest)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("frame watched")
    ax.set_ylabel("milliseconds")
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return ax


def plot_speed_error(ax: Axes, table: pd.DataFrame) -> Axes:
    """Speed-up of the whole sequence against mean token error, a point a policy; table as
    `measure.summarize_policies` gives it, or `bootstrap_policies`, with intervals. The axis of errors is a log one on
    which 0 has its place. Gated policies are one line, the lighter the higher their tolerance."""
    gated = table["policy"].str.fullmatch(r"gated [\d.e+-]+")
    tolerances = table.loc[gated, "policy"].str.removeprefix("gated ").astype(float)
    fills = dict(zip(tolerances.sort_values().index, palette.gated_fills(len(tolerances)), strict=True))
    errors = [name for name in ("error_mean", "error_mean_low", "error_mean_high") if name in table]
    for place, row in table.iterrows():
        colour, marker = palette.POLICIES.get(row["policy"], palette.OTHER_POLICY)
        size = 1.5 * rcParams["lines.markersize"]  # to be seen behind gated ones, which may lie at the same place
        if place in fills:
            (colour, marker), size = palette.GATED, rcParams["lines.markersize"]
        x, y = row["error_mean"], row["total_speedup"]
        look = {"color": colour, "mfc": fills.get(place, colour), "ms": size, "zorder": 3, "ls": ""}
        ax.plot(x, y, marker=marker, label=name_policy(row["policy"]), **look)
        if "error_mean_low" in row and pd.notna(row["error_mean_low"]):
            ax.hlines(y, row["error_mean_low"], row["error_mean_high"], color=colour, lw=0.8)
            ax.vlines(x, row["total_speedup_low"], row["total_speedup_high"], color=colour, lw=0.8)
    line = table.loc[tolerances.sort_values().index]
    ax.plot(line["error_mean"], line["total_speedup"], color=palette.GATED[0], lw=1, zorder=0)
    ax.axhline(1, color=REFERENCE, lw=0.8, zorder=0)
    zero_axis(ax.xaxis, table[errors].to_numpy().ravel())
    highs = table[[name for name in ("total_speedup", "total_speedup_high") if name in table]]
    ax.set_ylim(0, 1.08 * highs.max(axis=None))
    ax.set_xlabel("mean relative L2 error of a token")
    ax.set_ylabel("speed-up over full encodes")
    ax.legend(frameon=False, fontsize="small")
    return ax
