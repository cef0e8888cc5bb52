"""Axes that show what plain ones hide: values near 0 beside one far away, and 0 itself on a log axis. And text that a
font can draw.

Knows nothing of what is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator

FAR = 20.0  # times the median size of the values; an axis on which one lies farther is no plain one
DEEPEST = 6  # decades that a log axis with a 0 shows; what is smaller lies between 0 and the last of them


class _Decades(SymmetricalLogLocator):
    """Ticks at 0 and at decades, at no more of them than labels have room for."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        self.numticks = max(3, self.axis.get_tick_space())  # type: ignore[union-attr]
        return super().tick_values(vmin, vmax)


def spread_axis(axis: Axis, values: Sequence[float], ends: Sequence[float] = (), least: float = 0.0) -> float | None:
    """Make an axis linear around 0 and logarithmic beyond, if a few values lie so far off that the others would be one
    point: the largest of `values` and `ends` (of their intervals) over FAR times the values' median size.

    Values must be finite. Returns where it becomes logarithmic, a power of ten at least of that median and at least
    `least`, below which nobody need tell values from 0; or None if it stays linear.
    """
    sizes = np.abs([value for value in values if value])
    shown = [*values, *(end for end in ends if math.isfinite(end))]
    farthest = max(map(abs, shown), default=0.0)
    if not len(sizes) or farthest <= FAR * np.median(sizes):
        return None
    start = max(least, 10.0 ** math.ceil(math.log10(np.median(sizes))))
    if farthest <= start:
        return None
    _symlog(axis, start, plain=True)
    place = axis.get_transform()
    low, high = place.transform([min(0.0, *shown), max(0.0, *shown)])
    margin = 0.06 * (high - low)
    _set_limits(axis, *place.inverted().transform([low - margin, high + margin]))
    return start


def zero_axis(axis: Axis, values: Iterable[float]) -> None:
    """A log axis for values of which some are 0 or all but: it has a tick "0", a decade before the first one."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    if not positive:
        return
    first = 10.0 ** math.floor(math.log10(max(min(positive), max(positive) * 10.0**-DEEPEST)))
    _symlog(axis, first, plain=False)
    low, high = -0.3 * first, 10.0 ** (math.log10(max(positive)) + 0.3)
    _set_limits(axis, low, high)


def _symlog(axis: Axis, start: float, plain: bool) -> None:
    """Logarithmic beyond ±start, linear between; plain: tick labels as 0.01, not as powers of ten."""
    set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale  # type: ignore[attr-defined]
    set_scale("symlog", linthresh=start, linscale=0.5 if not plain else 1.0)
    axis.set_major_locator(_Decades(base=10, linthresh=start))
    if plain:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    # few a decade, which tell that it is logarithmic: panels are small, and of ticks most of a figure's time is made
    axis.set_minor_locator(SymmetricalLogLocator(base=10, linthresh=start, subs=[1, 2, 5]))


def _set_limits(axis: Axis, low: float, high: float) -> None:
    if axis.axis_name == "x":  # type: ignore[attr-defined]
        axis.axes.set_xlim(low, high)
    else:
        axis.axes.set_ylim(low, high)


def percent(axis: Axis) -> None:
    """Label an axis of shares in percent, with as many digits as its ticks need."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def _runs(marked: np.ndarray) -> list[tuple[int, int, int]]:
    """Row, start and stop of each run of marked cells in the rows of a mask whose first and last column are empty."""
    turns = np.diff(marked.astype(np.int8), axis=1)
    starts, stops = np.argwhere(turns == 1), np.argwhere(turns == -1)
    return [(int(r), int(a) + 1, int(b) + 1) for (r, a), (_, b) in zip(starts, stops, strict=True)]


def outline(ax: Axes, mask: np.ndarray, size: float, **style: object) -> LineCollection:
    """Lines around the areas of a mask (rows, columns), each cell of `size` units of the axes, from (-0.5, -0.5) on,
    as `imshow` places pixels."""
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    above, left = padded[1:, :] != padded[:-1, :], padded[:, 1:] != padded[:, :-1]  # borders above a cell, left of it
    lines = [[(start - 1, row), (stop - 1, row)] for row, start, stop in _runs(above)]
    lines += [[(column, start - 1), (column, stop - 1)] for column, start, stop in _runs(left.T)]
    corners = (np.array(lines).reshape(-1, 2, 2) * size - 0.5).tolist()
    drawn = LineCollection(corners, capstyle="projecting", **style)  # type: ignore[arg-type]
    ax.add_collection(drawn, autolim=False)
    return drawn


def drawable(text: str) -> str:
    """A text on one line in which "·" stands for each character that is none (bytes that are no text, as a tokenizer
    of bytes may yield) or that the font of the figure lacks."""
    known = get_font(findfont(FontProperties()))
    line = " ".join(text.split())
    return "".join(
        one if one.isprintable() and one != "\N{REPLACEMENT CHARACTER}" and known.get_char_index(ord(one)) else "·"
        for one in line
    )
