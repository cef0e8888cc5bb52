"""What the tuning panel shows: screenshots with their changed patches, difference maps, a timeline, lines of HTML.

Pictures are drawn as arrays where matplotlib would take too long to follow a slider, in the colours of `plots.py`.
Data in, pictures and text out; nothing here knows a widget.
"""

from __future__ import annotations

import html
import io

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from fvlm_lib.figures.plots import CHANGED, PATHS, faded, plot_change_timeline
from fvlm_lib.screens.measure import SETTING_COLUMNS, measured_at
from fvlm_lib.vision.changes import TracedFrame
from fvlm_lib.vision.patches import expand_mask
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vision.updates import DEFAULT_TOLERANCE

# ---- a frame ------------------------------------------------------------------------------------------------

SHOWN_WIDTH = 640
"""Pixels; smaller frames are enlarged to about that width, by a whole factor, so that their pixels stay sharp."""

_UNCHANGED = ((1.0, 1.0, 1.0), (0.62, 0.67, 0.75))  # colours of no difference, and of one at the threshold
_DIFFERS = ((0.99, 0.75, 0.30), (0.45, 0.02, 0.10))  # just above the threshold, and the full range


def draw_changed_patches(frame: np.ndarray, mask: np.ndarray, patch_size: int) -> np.ndarray:
    """A screenshot uint8 (H, W, 3), patches outside `mask` (grid_h, grid_w) faded, those in it outlined; enlarged if
    it is small. As `plots.plot_changed_patches`, but areas of changed patches have one outline."""
    factor = max(1, SHOWN_WIDTH // frame.shape[1])
    frame = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = frame.shape[:2]
    pixels = expand_mask(mask, height, width, patch_size * factor)
    drawn = np.where(pixels[..., None], frame, faded(np.arange(256))[frame])
    drawn[pixels & ~_eroded(pixels, 2)] = np.array(CHANGED) * 255
    return drawn


def _eroded(mask: np.ndarray, width: int) -> np.ndarray:
    """The mask without what lies within `width` pixels of its edge; the picture's border is none."""
    for _ in range(width):
        padded = np.pad(mask, 1, mode="edge")
        mask = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def draw_differences(difference: np.ndarray, threshold: float, shape: tuple[int, int], patch_size: int) -> np.ndarray:
    """How much each patch (grid_h, grid_w) differs, in greys up to the threshold and orange to dark red above it;
    uint8 (height, width, 3) of a frame of `shape`, enlarged as `draw_changed_patches` does."""
    factor = max(1, SHOWN_WIDTH // shape[1])
    below = np.clip(difference / max(threshold, 1e-9), 0, 1)[..., None]
    above = np.clip((difference - threshold) / max(1 - threshold, 1e-9), 0, 1)[..., None]
    colours = np.where(
        (difference > threshold)[..., None], _mixed(_DIFFERS, above), _mixed(_UNCHANGED, below)
    )  # (grid_h, grid_w, 3)
    enlarged = (colours * 255).astype(np.uint8).repeat(patch_size * factor, axis=0).repeat(patch_size * factor, axis=1)
    return enlarged[: shape[0] * factor, : shape[1] * factor]


def _mixed(colours: tuple[tuple[float, ...], tuple[float, ...]], share: np.ndarray) -> np.ndarray:
    start, end = map(np.array, colours)
    return start + share * (end - start)


def difference_legend() -> str:
    """The colours of `draw_differences` as HTML."""
    bars = [
        f"<span style='display:inline-block;width:60px;height:10px;background:linear-gradient(to right,"
        f"{css_colour(start)},{css_colour(end)});border:1px solid #999'></span>"
        for start, end in (_UNCHANGED, _DIFFERS)
    ]
    return f"0 {bars[0]} threshold {bars[1]} 1"


def css_colour(colour: tuple[float, ...]) -> str:
    """A colour (red, green, blue) in [0, 1] as CSS."""
    return f"rgb({','.join(str(round(255 * part)) for part in colour)})"


# ---- from tables to text and figures ----------------------------------------------------------------------


def describe_frame(step: TracedFrame, table: pd.DataFrame) -> str:
    """A line of HTML: the path taken, how many patches changed, what was done at the frame; `trace_table`'s table."""
    row, patches = table.iloc[step.index], step.mask.size
    badge = f"<b style='background:{css_colour(PATHS[step.path])};color:#fff;padding:1px 8px'>{step.path}</b>"
    text = f"{step.changed} of {patches} patches changed ({row['changed'] / patches:.2%})"
    if step.changed is None:
        text = f"compared with nothing: all {patches} patches are encoded"
    action = html.escape(row.get("action", ""))
    return f"{badge}&ensp;{text}" + (f"&ensp;·&ensp;<i>{action}</i>" if action else "")


def describe_sequence(table: pd.DataFrame) -> str:
    """A line of HTML: shares over the whole recording after its first frame, which is always encoded in full."""
    later = table[table["frame"] > 0]
    counts = later["path"].value_counts()
    paths = ", ".join(f"{counts[path]} {path}" for path in PATHS if path in counts) or "none"
    changed, encoded = (later[name].sum() / max(later["total"].sum(), 1) for name in ("changed", "encoded"))
    return (
        f"<b>{encoded:.2%}</b> of the patches are encoded anew over the whole recording, {changed:.2%} changed "
        f"({len(later)} frames after the first: {paths})"
    )


def draw_timeline(table: pd.DataFrame, frame: int) -> Figure:
    """`plots.plot_change_timeline` at a panel's size, with a line at the frame shown."""
    figure = Figure(figsize=(6, 3.4), dpi=90)
    ax = figure.add_axes((0.11, 0.15, 0.87, 0.74))  # a layout engine takes longer than the drawing
    plot_change_timeline(ax, table)
    ax.axvline(frame, color="0.2", lw=1, ls=":")
    ax.set_xlim(-0.8, len(table) - 0.2)
    later = (table["changed"] / table["total"])[table["frame"] > 0]
    ax.set_ylim(0, max(0.02, 1.05 * later.max()) if len(later) else 1)  # the first frame, always full, may be cut
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    return figure


def describe_measured(
    measured: pd.DataFrame | str,
    settings: DifferentialSettings,
    size: tuple[int, int],
    patch: int,
    command: str | None,
) -> str:
    """What the benchmark says of these settings, as HTML; measured: of `read_measured`, or why there is nothing.

    Only what was measured at this very setting and size (height, width) is shown, nothing is interpolated. Where
    there is nothing: what was measured, and the `command` that measures this.
    """
    title = "<b>Expected time and error</b>: "
    if isinstance(measured, str):
        return title + html.escape(measured)
    rows = measured_at(measured, settings, size, patch)
    if len(rows):
        tolerance = DEFAULT_TOLERANCE if settings.tolerance is None else settings.tolerance
        own = (rows["tolerance"] == tolerance) if settings.propagate == "gated" else (rows["policy"] == "none")
        return (
            f"{title}measured at this setting on this recording, after the first frame. Errors are relative L2 of a "
            f"token; bold is the tolerance of the settings.{_measured_table(rows, own)}"
        )
    have = measured[measured["policy"].str.match("none|gated")][SETTING_COLUMNS].drop_duplicates()
    known = "".join(
        f"<li>frames of {row.height} × {row.width} in patches of {row.patch_size}: threshold {row.diff_threshold:g}, "
        f"{row.metric}, {row.reference}, partial updates up to {row.max_changed_patches} patches</li>"
        for row in have.itertuples()
    )
    text = f"{title}not measured at this setting. On this recording were measured:<ul>{known}</ul>"
    if command is None:
        return text + "Choose under <i>frames seen at</i> how a tower sees them, to see or measure its time and error."
    return f"{text}To measure this one, write it and run<pre style='white-space:pre-wrap'>{html.escape(command)}</pre>"


def _measured_table(rows: pd.DataFrame, bold: pd.Series) -> str:
    heads = ["tower", "policy", "ms a frame", "ms in full", "speed-up", "mean error", "largest error", "frames", "file"]
    lines = []
    for row, heavy in zip(rows.itertuples(), bold, strict=True):
        errors = [f"{row.error_mean:.3g}", f"{row.error_max:.3g}"]
        if row.tower.startswith("random:"):
            errors = ["–", "–"]  # of random weights they mean nothing
        cells = [row.tower, row.policy, f"{row.ms:.2f}", f"{row.ms_full:.2f}", f"{row.total_speedup:.2f}", *errors]
        weight = "bold" if heavy else "normal"
        cells = [
            f"<td style='padding:0 7px 0 0;white-space:nowrap;line-height:1.5'>{html.escape(str(cell))}</td>"
            for cell in (*cells, row.n, row.file)
        ]
        lines.append(f"<tr style='font-weight:{weight}'>{''.join(cells)}</tr>")
    header = "".join(
        f"<th style='padding:0 7px 0 0;white-space:nowrap;line-height:1.5;text-align:left'>{head}</th>"
        for head in heads
    )
    return f"<table><tr>{header}</tr>{''.join(lines)}</table>"


# ---- files ----------------------------------------------------------------------------------------------


def to_jpeg(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as JPEG with full colour resolution, which thin outlines need; a fifth of PNG's time."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=88, subsampling=0)
    return stream.getvalue()


def to_png(figure: Figure) -> bytes:
    """A matplotlib figure as PNG, at its own resolution."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
