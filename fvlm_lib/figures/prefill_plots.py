"""Figures of how a prompt's prefill is kept: rows computed, error, stale answers, and where a change reaches.

Tidy tables in, axes out, as in `plots.py`. Tables as `vlm.prefill_measure.summarize_prefill` gives them, a row a policy
"gated 0.02", "deviation 0.1", "exact", ...; policies of one kind, which differ in their setting, are one line.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fvlm_lib.figures import palette
from fvlm_lib.figures.axes import percent, zero_axis

KINDS: dict[str, tuple[str, palette.Colour, str]] = {  # of policies -> in words, colour, marker
    "gated": ("gated, by tolerance", *palette.GATED),
    "exact": ("exact prefix", palette.GREY, "o"),
    "changed": ("changed tokens and question", palette.VERMILION, "^"),
    "first_k": ("first k of the screen (EPIC, MPIC)", palette.PLUM, "s"),
    "deviation": ("largest deviation (CacheBlend)", palette.GREEN, "v"),
    "budget": ("at most r a layer (Eventful)", palette.BLACK, "P"),
}


def plot_policies(ax: Axes, table: pd.DataFrame) -> Axes:
    """Mean KL divergence of the answer's token against the share of rows computed, with 95% intervals over screens."""
    kinds = table["policy"].str.split().str[0]
    for kind, (name, colour, marker) in KINDS.items():
        rows = table[kinds == kind].sort_values("rows")
        if not len(rows):
            continue
        ax.plot(rows["rows"], rows["kl"], ls="-", lw=1, marker=marker, color=colour, label=name)
        ax.vlines(rows["rows"], rows["kl_low"].clip(lower=0), rows["kl_high"], color=colour, lw=0.8)
        if kind == "gated":
            for _, row in rows.iterrows():
                ax.annotate(
                    row["policy"].split()[1], (row["rows"], row["kl"]), textcoords="offset points", xytext=(5, 4),
                    fontsize="x-small", color=colour,
                )  # fmt: skip
    zero_axis(ax.yaxis, table[["kl", "kl_high"]].to_numpy().ravel())
    ax.set_xlim(left=0)
    percent(ax.xaxis)
    ax.set_xlabel("rows computed, of all rows and layers")
    ax.set_ylabel("mean KL divergence from a full prefill, nats")
    ax.set_title(f"Error and rows, n = {table['n'].iloc[0]} screens")
    ax.legend(frameon=False, fontsize="small", loc="upper right")
    return ax


def plot_stale_answers(ax: Axes, table: pd.DataFrame) -> Axes:
    """Of the screens whose right answer changed and is given by a full prefill, in how many the one that was right
    before is given, a bar a policy with its 95% interval (Wilson)."""
    places = np.arange(len(table))[::-1]
    for place, (_, row) in zip(places, table.iterrows(), strict=True):
        _, colour, _ = KINDS[row["policy"].split()[0]]
        ax.barh(place, row["stale"] / max(row["asks"], 1), color=colour, height=0.7)
        ax.hlines(place, row["stale_low"], row["stale_high"], color=palette.BLACK, lw=0.8)
        ax.annotate(
            f"{row['stale']} of {row['asks']}", (row["stale_high"], place), textcoords="offset points", xytext=(4, 0),
            va="center", fontsize="x-small",
        )  # fmt: skip
    ax.set_yticks(places, table["policy"], fontsize="small")
    ax.set_xlim(0, 1.2 * table["stale_high"].max())
    percent(ax.xaxis)
    ax.set_xlabel("stale answers, of those that changed")
    ax.set_title("Answers that were right before the change")
    return ax


def plot_reach(ax: Axes, reach: Iterable[np.ndarray], places: int) -> Axes:
    """Share of rows computed by layer and place in the prompt, mean over screens; reach: of each screen,
    (L · places,)."""
    mean = np.stack([*reach]).mean(axis=0).reshape(-1, places)  # (L, places)
    image = ax.imshow(
        np.ma.masked_equal(mean, 0), cmap=palette.FREQUENCY, vmin=0, vmax=1, aspect="auto", origin="lower",
        extent=(0, 1, 0.5, len(mean) + 0.5), interpolation="nearest",
    )  # fmt: skip
    percent(ax.figure.colorbar(image, ax=ax, label="rows computed").ax.yaxis)
    percent(ax.xaxis)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("place in the prompt")
    ax.set_ylabel("layer")
    return ax
