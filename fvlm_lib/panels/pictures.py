"""Pictures of a panel: screenshots with their changed patches, difference maps, charts over frames, lines of HTML.

Pictures are drawn as arrays where matplotlib would take too long to follow a slider, in the colours of `palette.py`.
Data in, pictures and text out; nothing here knows a widget.
"""

from __future__ import annotations

import html
import io
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from fvlm_lib.figures.palette import CHANGED, PATHS
from fvlm_lib.figures.screen_plots import faded, plot_change_timeline
from fvlm_lib.vision.changes import TracedFrame
from fvlm_lib.vision.patches import expand_mask

# ---- a frame ------------------------------------------------------------------------------------------------

SHOWN_WIDTH = 640
"""Pixels; smaller frames are enlarged to about that width, by a whole factor, so that their pixels stay sharp."""

ZOOMED = (800, 1280)
"""Height and width in pixels of what is sent of a frame that is zoomed into; the page shows as much as it has room."""

_UNCHANGED = ((1.0, 1.0, 1.0), (0.62, 0.67, 0.75))  # colours of no difference, and of one at the threshold
_DIFFERS = ((0.99, 0.75, 0.30), (0.45, 0.02, 0.10))  # just above the threshold, and the full range


@dataclass(frozen=True)
class Region:
    """A part of a frame, in pixels, and by which whole factor it is enlarged."""

    top: int
    left: int
    height: int
    width: int
    factor: int = 1

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """The part of an array (H, W) or (H, W, C), enlarged."""
        part = pixels[self.top : self.top + self.height, self.left : self.left + self.width]
        return part.repeat(self.factor, axis=0).repeat(self.factor, axis=1)


def whole(shape: tuple[int, ...]) -> Region:
    """All of a frame (H, W, ...), enlarged if it is small."""
    return Region(0, 0, shape[0], shape[1], max(1, SHOWN_WIDTH // shape[1]))


def zoomed(shape: tuple[int, ...], factor: int, across: float, down: float) -> Region:
    """The part of a frame (H, W, ...) that `ZOOMED` pixels show when one of its pixels is `factor` of those.

    across, down: per cent; of what is left out, that much lies left of the part, and above it.
    """
    height, width = (min(full, shown // factor) for full, shown in zip(shape[:2], ZOOMED, strict=True))
    top, left = round((shape[0] - height) * down / 100), round((shape[1] - width) * across / 100)
    return Region(top, left, height, width, factor)


def magnified(shape: tuple[int, ...], times: int, across: float, down: float) -> Region:
    """The part of a frame (H, W, ...) that is left when it is seen so many times as large; place as in `zoomed`."""
    height, width = max(1, shape[0] // times), max(1, shape[1] // times)
    top, left = round((shape[0] - height) * down / 100), round((shape[1] - width) * across / 100)
    return Region(top, left, height, width, max(1, SHOWN_WIDTH // width))


def find_areas(mask: np.ndarray) -> list[tuple[float, float]]:
    """Where to look at the patches of a mask (grid_h, grid_w): of each area of patches that touch, corners counted, in
    reading order, per cent across and down of its patch nearest to its centre."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    found = []
    for number in range(1, count + 1):
        places = np.argwhere(labels == number)
        row, column = places[((places - places.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        found.append((100 * (column + 0.5) / mask.shape[1], 100 * (row + 0.5) / mask.shape[0]))
    return found


def draw_changed_patches(
    frame: np.ndarray, mask: np.ndarray, patch_size: int, region: Region | None = None
) -> np.ndarray:
    """A screenshot uint8 (H, W, 3), patches outside `mask` (grid_h, grid_w) faded, those in it outlined; of it the
    region, None for `whole`. As `screen_plots.plot_changed_patches`, but areas of changed patches have one outline."""
    region = region or whole(frame.shape)
    height, width = frame.shape[:2]
    pixels = region.cut(expand_mask(mask, height, width, patch_size))
    shown = region.cut(frame)
    drawn = np.where(pixels[..., None], shown, faded(np.arange(256))[shown])
    drawn[pixels & ~_eroded(pixels, 2)] = np.array(CHANGED) * 255
    return drawn


def _eroded(mask: np.ndarray, width: int) -> np.ndarray:
    """The mask without what lies within `width` pixels of its edge; the picture's border is none."""
    for _ in range(width):
        padded = np.pad(mask, 1, mode="edge")
        mask = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def draw_differences(
    difference: np.ndarray, threshold: float, shape: tuple[int, int], patch_size: int, region: Region | None = None
) -> np.ndarray:
    """How much each patch (grid_h, grid_w) differs, in greys up to the threshold and orange to dark red above it;
    uint8 (height, width, 3) of a frame of `shape`, of it the region, None for `whole`."""
    below = np.clip(difference / max(threshold, 1e-9), 0, 1)[..., None]
    above = np.clip((difference - threshold) / max(1 - threshold, 1e-9), 0, 1)[..., None]
    colours = np.where(
        (difference > threshold)[..., None], _mixed(_DIFFERS, above), _mixed(_UNCHANGED, below)
    )  # (grid_h, grid_w, 3)
    enlarged = (colours * 255).astype(np.uint8).repeat(patch_size, axis=0).repeat(patch_size, axis=1)
    return (region or whole(shape)).cut(enlarged[: shape[0], : shape[1]])


def _mixed(colours: tuple[tuple[float, ...], tuple[float, ...]], share: np.ndarray) -> np.ndarray:
    start, end = map(np.array, colours)
    return start + share * (end - start)


def difference_legend() -> str:
    """The colours of `draw_differences` as HTML."""
    bars = [
        f"<span style='display:inline-block;width:36px;height:10px;background:linear-gradient(to right,"
        f"{css_colour(start)},{css_colour(end)});border:1px solid #999'></span>"
        for start, end in (_UNCHANGED, _DIFFERS)
    ]
    return f"0 {bars[0]} threshold {bars[1]} 1"


def css_colour(colour: tuple[float, ...]) -> str:
    """A colour (red, green, blue) in [0, 1] as CSS."""
    return f"rgb({','.join(str(round(255 * part)) for part in colour)})"


# ---- from tables to text and figures ----------------------------------------------------------------------


_LINE = "<div style='line-height:1.4;overflow-wrap:anywhere'>{}</div>"


def describe_frame(step: TracedFrame, table: pd.DataFrame) -> str:
    """A line of HTML: the path taken, how many patches changed, what was done at the frame; `trace_table`'s table."""
    row, patches = table.iloc[step.index], step.mask.size
    badge = f"<b style='background:{css_colour(PATHS[step.path])};color:#fff;padding:1px 8px'>{step.path}</b>"
    text = f"{step.changed} of {patches} patches changed ({row['changed'] / patches:.2%})"
    if step.changed is None:
        text = f"compared with nothing: all {patches} patches are encoded"
    action = html.escape(row.get("action", ""))
    return _LINE.format(f"{badge}&ensp;{text}" + (f"&ensp;·&ensp;<i>{action}</i>" if action else ""))


def describe_sequence(table: pd.DataFrame) -> str:
    """A line of HTML: shares over the whole recording after its first frame, which is always encoded in full."""
    later = table[table["frame"] > 0]
    counts = later["path"].value_counts()
    paths = ", ".join(f"{counts[path]} {path}" for path in PATHS if path in counts) or "none"
    changed, encoded = (later[name].sum() / max(later["total"].sum(), 1) for name in ("changed", "encoded"))
    return _LINE.format(
        f"<b>{encoded:.2%}</b> of the patches are encoded anew over the whole recording, {changed:.2%} changed "
        f"({len(later)} frames after the first: {paths})"
    )


@dataclass(frozen=True)
class MarkedChart:
    """A chart over the frames drawn once, uint8 (H, W, 3), to be marked at any frame: matplotlib takes longer than all
    the rest of a redraw. Frame t stands at `first + t * step`; the axes go from row `top` to `bottom`."""

    pixels: np.ndarray
    first: float
    step: float
    top: int
    bottom: int

    @classmethod
    def drawn(cls, canvas: FigureCanvasAgg, ax: Axes) -> MarkedChart:
        """Draw the canvas, with its one pair of axes."""
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        (first, _), (second, _) = ax.transData.transform([(0, 0), (1, 0)])
        box = ax.get_window_extent()  # from the bottom up
        return cls(pixels, first, second - first, round(len(pixels) - box.y1), round(len(pixels) - box.y0))

    def at(self, frame: int) -> np.ndarray:
        """The picture with a dotted line at a frame."""
        marked = self.pixels.copy()
        column = round(self.first + frame * self.step)
        for row in range(self.top, self.bottom, 6):
            marked[row : min(row + 3, self.bottom), column - 1 : column + 1] = 50
        return marked


def highest_share(table: pd.DataFrame) -> float:
    """The largest share of changed patches after the first frame, which is always full; `trace_table`'s table."""
    later = (table["changed"] / table["total"])[table["frame"] > 0]
    return float(later.max()) if len(later) else 0.95


def draw_timeline(table: pd.DataFrame, highest: float) -> MarkedChart:
    """`screen_plots.plot_change_timeline` of a whole recording at a panel's size, up to the share `highest`.

    table: of `trace_table`.
    """
    figure = Figure(figsize=(4.6, 2.7), dpi=120)
    canvas = FigureCanvasAgg(figure)
    ax = figure.add_axes((0.17, 0.18, 0.81, 0.62))  # a layout engine takes longer than the drawing
    plot_change_timeline(ax, table)
    ax.set_xlim(-0.8, len(table) - 0.2)
    ax.set_ylim(0, max(0.02, 1.05 * highest))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return MarkedChart.drawn(canvas, ax)


# ---- files ----------------------------------------------------------------------------------------------


def to_jpeg(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as JPEG with full colour resolution, which thin outlines need; a fifth of PNG's time."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=88, subsampling=0)
    return stream.getvalue()


def to_png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as PNG, quickly."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
