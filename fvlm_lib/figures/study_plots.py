"""Figures of a study: what its recipes of training cost, how large their gaps are and what closes them.

Tables in, axes out; the tables are those of `gap/study_analysis.py`, over training seeds. A recipe looks the same in
every figure of a study; a panel is of one size of language model, and its scale that of all. How panels are laid out
is in `study_figures.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fvlm_lib.figures import palette
from fvlm_lib.figures.axes import spread_axis, zero_axis
from fvlm_lib.figures.names import short_count
from fvlm_lib.figures.palette import REFERENCE

PLAIN = "plain"
ALL = "all"  # sizes
SMALLEST_GAP = 1e-3  # nats a token; after many passes gaps are rounding, which no axis need show
MEASURES = {"loss_inference": "inference loss", "gap": "gap"}


def recipe_styles(recipes: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of each recipe, the same for the same set of them: plain first, in black, then the others
    in the order of their names. Up to ten differ in their markers."""
    names = {*recipes}
    looks = {PLAIN: palette.PLAIN} if PLAIN in names else {}
    for place, name in enumerate(sorted(names - {PLAIN})):
        colours, markers, lines = palette.RECIPE_COLOURS, palette.RECIPE_MARKERS, palette.RECIPE_LINES
        rounds = place // len(colours)
        looks[name] = (colours[place % len(colours)], markers[place % len(markers)], lines[rounds % len(lines)])
    return {name: dict(zip(("color", "marker", "linestyle"), look, strict=True)) for name, look in looks.items()}


def size_looks(sizes: Iterable[str]) -> dict[str, tuple[palette.Colour, str]]:
    """Colour and marker of each size, in order; beyond as many as there are they begin again."""
    return dict(zip(sizes, itertools.cycle(palette.SIZES), strict=False))


def size_labels(table: pd.DataFrame) -> dict[str, str]:
    """Each size, the smallest first, with the parameters of its language model: "S (60k)"; table: size,
    num_text_parameters."""
    counts = table.groupby("size")["num_text_parameters"].first().sort_values(kind="stable")
    return {str(size): f"{size} ({short_count(count)})" for size, count in counts.items()}


def plot_compute(ax: Axes, table: pd.DataFrame, size: str) -> Axes:
    """Loss at use against training FLOPs, a line a recipe, of one size; table: of all sizes, size, recipe, step,
    training_flops, on_frontier, loss_inference with _low and _high (`study_means.compute_frontier`).

    What another checkpoint beats for no more compute is hollow. Other sizes stand behind as dots, and the grey line is
    the lowest loss for the compute, of all sizes.
    """
    others = table[table["size"] != size]
    ax.plot(others["training_flops"], others["loss_inference"], ".", color="0.82", ms=2.5, zorder=0)
    best = table[table["on_frontier"]].sort_values("training_flops")
    reach = [*best["training_flops"], table["training_flops"].max()]
    lowest = [*best["loss_inference"], *best["loss_inference"].tail(1)]
    line: dict[str, Any] = {"color": REFERENCE, "lw": 1.6, "alpha": 0.5}
    ax.step(reach, lowest, where="post", **line, zorder=1)
    for recipe, style in recipe_styles(table["recipe"]).items():
        rows = _of(table, size=size, recipe=recipe).sort_values("step")
        _line(ax, rows, "training_flops", "loss_inference", style, label=recipe)
        hollow = rows[~rows["on_frontier"]]
        look = {**style, "linestyle": "", "markerfacecolor": "white", "zorder": 3}
        ax.plot(hollow["training_flops"], hollow["loss_inference"], **look)
    ax.errorbar([], [], **line, label="lowest for the compute")  # errorbar: the legend's last entry
    ax.set_xscale("log")
    _few_ticks(ax.yaxis, table, "loss_inference")
    ax.set_xlabel("training FLOPs")
    ax.set_ylabel("inference loss,\nnats a token")
    return ax


def plot_gap_by_step(ax: Axes, table: pd.DataFrame, size: str) -> Axes:
    """Gap against training steps, a line a recipe, of one size; table: of all sizes, size, recipe, step, gap with _low
    and _high (`study_means.seed_means`). Points of one step stand beside each other; without a gap there are none."""
    for recipe, style, beside in _beside(_styles_of(table, "gap"), 0.16):
        rows = _of(table, size=size, recipe=recipe).sort_values("step")
        _line(ax, rows.assign(step=rows["step"] * 10**beside), "step", "gap", style, label=recipe)
    ax.axhline(0, color=REFERENCE, lw=0.8, zorder=0)
    ax.set_xscale("log")
    ax.set_xlabel("training step")
    ax.set_ylabel("gap, nats a token" + _spread(ax.yaxis, table, "gap"))
    return ax


def plot_passes(ax: Axes, table: pd.DataFrame, size: str) -> Axes:
    """gap(K), what is left of the gap after K fine passes, a line a recipe, of one size; table: of one step and all
    sizes, size, recipe, passes, gap with _low and _high (`study_means.passes_curves`)."""
    for recipe, style, beside in _beside(recipe_styles(table["recipe"]), 0.4):
        rows = _of(table, size=size, recipe=recipe).sort_values("passes")
        _line(ax, rows.assign(passes=rows["passes"] + beside), "passes", "gap", style, label=recipe)
    return _passes_axis(ax, table)


def plot_passes_by_step(ax: Axes, table: pd.DataFrame, recipe: str) -> Axes:
    """gap(K) of one recipe, a line a checkpoint, the later the darker; table: of one size and all recipes, recipe,
    step, passes, gap with _low and _high."""
    steps = sorted(table["step"].unique())
    fills = dict(zip(steps, reversed(palette.gated_fills(len(steps))), strict=True))
    for step in steps:
        look = {"color": palette.BLUE, "marker": "o", "markerfacecolor": fills[step], "markeredgecolor": palette.BLUE}
        rows = _of(table, recipe=recipe, step=step).sort_values("passes")
        _line(ax, rows, "passes", "gap", {**look, "linestyle": "-"}, label=f"step {step:,}")
    return _passes_axis(ax, table)


def plot_contrasts(ax: Axes, table: pd.DataFrame, measure: str, sizes: Mapping[str, str]) -> Axes:
    """By how much a recipe's measure (loss_inference or gap) exceeds that of plain training, a row a recipe, a point a
    size and one over all; table: size, recipe, measure, difference, low, high, resolved
    (`study_contrasts.recipe_contrasts`). What is not resolved is hollow; an empty table says so. sizes: with their
    labels, in order."""
    recipes = [name for name in recipe_styles(table["recipe"]) if name != PLAIN]
    looks = {**size_looks(sizes), ALL: palette.ALL_SIZES}
    labels = {**sizes, ALL: "all sizes"}
    shown = _of(table, measure=measure)
    present = [size for size in looks if (shown["size"] == size).any()]
    for place, size in enumerate(present):
        rows = _of(shown, size=size)
        beside = 0.62 * ((place + 0.5) / len(present) - 0.5)
        at = np.array([recipes.index(recipe) + beside for recipe in rows["recipe"]])
        colour, marker = looks[size]
        look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": ""}
        error = _error(rows, "difference", "low", "high")
        ax.errorbar(rows["difference"], at, xerr=error, **look, elinewidth=0.8, capsize=0, label=labels[size])
        hollow = ~rows["resolved"].to_numpy(dtype=bool)
        ax.plot(rows["difference"][hollow], at[hollow], **look, markerfacecolor="white", zorder=3)
    ax.axvline(0, color=REFERENCE, lw=0.8, zorder=0)
    if not present:
        ax.text(0.5, 0.5, "nothing is compared with plain", ha="center", va="center", transform=ax.transAxes)
    ax.set_yticks(range(len(recipes)), recipes)
    ax.set_ylim(max(len(recipes), 1) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    spread = _spread(ax.xaxis, shown, "difference", "low", "high")
    ax.set_xlabel(f"{MEASURES[measure]} minus plain's,\nnats a token" + spread)
    return ax


def plot_lengths(ax: Axes, table: pd.DataFrame, size: str, what: str = "gap") -> Axes:
    """`what` (gap or loss_inference) against the number of frames, a line a recipe, of one size; table: of all sizes,
    size, recipe, num_frames, `what` with _low and _high (`study_means.length_curves`)."""
    for recipe, style, beside in _beside(_styles_of(table, what), 0.1):
        rows = _of(table, size=size, recipe=recipe).sort_values("num_frames")
        _line(ax, rows.assign(num_frames=rows["num_frames"] * 10**beside), "num_frames", what, style, label=recipe)
    lengths = sorted(table["num_frames"].unique())
    ax.set_xscale("log")
    ax.set_xticks(lengths, [f"{length:g}" for length in lengths])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", which="minor", length=0)
    ax.set_xlabel("frames")
    if what == "gap":
        ax.axhline(0, color=REFERENCE, lw=0.8, zorder=0)
        ax.set_ylabel("gap, nats a token" + _spread(ax.yaxis, table, what))
    else:
        _few_ticks(ax.yaxis, table, what)
        ax.set_ylabel("inference loss,\nnats a token")
    return ax


def plot_norms(ax: Axes, table: pd.DataFrame, sizes: Mapping[str, str]) -> Axes:
    """|gap| against the norm of the query recurrence's Jacobian, a point a checkpoint, the later the darker, a marker a
    size, on log axes; table: size, step, query_norm, gap. Checkpoints without a norm are left out; where none has one
    the axes say so. sizes: with their labels, in order."""
    known = table.dropna(subset=["query_norm", "gap"])
    ax.set_xlabel("norm of the query's Jacobian")
    ax.set_ylabel("|gap|, nats a token")
    if known.empty:
        ax.text(0.5, 0.5, "no checkpoint has its norm measured", ha="center", va="center", transform=ax.transAxes)
        return ax
    steps = sorted(known["step"].unique())
    fills = dict(zip(steps, reversed(palette.gated_fills(len(steps))), strict=True))
    small = {"linestyle": "", "markersize": 0.8 * rcParams["lines.markersize"]}
    for size, (_, marker) in size_looks(sizes).items():
        for step in steps:
            rows = _of(known, size=size, step=step)
            look = {"marker": marker, "markerfacecolor": fills[step], "markeredgecolor": palette.BLUE, **small}
            ax.plot(rows["query_norm"], rows["gap"].abs(), **look, markeredgewidth=0.4)
        ax.plot([], [], color=palette.BLUE, marker=marker, linestyle="", label=sizes[size])
    for step in steps:
        look = {"marker": "o", "markerfacecolor": fills[step], "markeredgecolor": palette.BLUE, "linestyle": ""}
        ax.plot([], [], **look, label=f"step {step:,}")
    ax.set_xscale("log")
    if (known["gap"] == 0).any():
        zero_axis(ax.yaxis, known["gap"].abs())
    else:
        ax.set_yscale("log")
    _few_ticks(ax.xaxis, known, "query_norm")
    return ax


# ---- what they have in common ------------------------------------------------------------------------


def _of(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows that have these values in these columns."""
    kept = np.ones(len(table), dtype=bool)
    for column, value in wanted.items():
        kept &= (table[column] == value).to_numpy()
    return table[kept]


def _styles_of(table: pd.DataFrame, what: str) -> dict[str, dict[str, Any]]:
    """`recipe_styles` of those recipes that have `what`, as they look among all of the table."""
    there = set(table.loc[table[what].notna(), "recipe"])
    return {recipe: style for recipe, style in recipe_styles(table["recipe"]).items() if recipe in there}


def _beside(styles: Mapping[str, dict[str, Any]], width: float) -> list[tuple[str, dict[str, Any], float]]:
    """Each recipe with its style and how far aside its points stand, evenly over `width`, so that bars show."""
    count = max(len(styles), 1)
    return [(name, style, width * ((i + 0.5) / count - 0.5)) for i, (name, style) in enumerate(styles.items())]


def _error(rows: pd.DataFrame, what: str, low: str = "", high: str = "") -> np.ndarray:
    """Lengths (2, N) of bars; 0 where there is no interval, as of one seed."""
    value, low, high = rows[what], low or f"{what}_low", high or f"{what}_high"
    return np.nan_to_num(np.array([value - rows[low], rows[high] - value], dtype=float)).clip(min=0)


def _line(ax: Axes, rows: pd.DataFrame, x: str, what: str, style: Mapping[str, Any], label: str) -> None:
    look = {"elinewidth": 0.6, "capsize": 0, "linewidth": 0.8, "markeredgewidth": 0.7}
    ax.errorbar(rows[x], rows[what], yerr=_error(rows, what), **{**look, **style}, label=label)


def _spread(axis: Axis, table: pd.DataFrame, what: str, low: str = "", high: str = "") -> str:
    """`axes.spread_axis` for a whole table, and what the axis's label says of it."""
    ends = np.ravel(table[[low or f"{what}_low", high or f"{what}_high"]].to_numpy(dtype=float)).tolist()
    start = spread_axis(axis, table[what].dropna().tolist(), ends, least=SMALLEST_GAP)
    return "" if start is None else f"\n(logarithmic beyond ±{start:g})"


def _passes_axis(ax: Axes, table: pd.DataFrame) -> Axes:
    ax.axhline(0, color=REFERENCE, lw=0.8, zorder=0)
    ax.set_xticks(sorted(table["passes"].unique()))
    ax.set_xlabel("fine passes K")
    ax.set_ylabel("gap(K), nats a token" + _spread(ax.yaxis, table, "gap"))
    return ax


def _few_ticks(axis: Axis, table: pd.DataFrame, what: str) -> None:
    """A log axis with plain numbers at as many ticks as its values, which may be within one decade, need."""
    columns = [name for name in (what, f"{what}_low", f"{what}_high") if name in table]
    values = table[columns].to_numpy(dtype=float)
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return
    set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale  # type: ignore[attr-defined]
    set_scale("log")
    decades = np.log10(values.max() / values.min())
    within = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if decades < 0.7 else (1, 2, 5) if decades < 2 else (1,)
    axis.set_major_locator(LogLocator(base=10, subs=within))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
