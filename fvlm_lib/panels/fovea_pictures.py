"""What the fovea panel shows of a watched video: attention over a frame, curves by frame, the caption's losses.

Data in, pictures and text out; nothing here knows a widget.
"""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from fvlm_lib.figures.plots import mode_style, plot_modes_by_frame
from fvlm_lib.gap.fovea import WatchedVideo
from fvlm_lib.panels.pictures import MarkedChart, Region, css_colour

LABELLED = 36  # patches, up to which each carries its share


def draw_attention(frame: np.ndarray, attention: np.ndarray, highest: float, region: Region) -> np.ndarray:
    """Where a query looks: of a frame uint8 (H, W, 3) the region, each patch the paler the less attention it gets.

    attention: (rows, columns) of patches, shares of 1; `highest` of it is shown in full. Few patches carry their share
    in percent. As `plots.plot_attention`, but as an array: it follows a slider.
    """
    rows, columns = attention.shape
    height, width = frame.shape[0] // rows, frame.shape[1] // columns
    weight = np.clip(attention / max(highest, 1e-12), 0, 1).repeat(height, axis=0).repeat(width, axis=1)[..., None]
    pixels = region.cut((frame * weight + 255 * (1 - weight)).astype(np.uint8))
    factor = region.factor
    for place in range(1, rows):
        if 0 < (line := (place * height - region.top) * factor) < len(pixels):
            pixels[line] = 217
    for place in range(1, columns):
        if 0 < (line := (place * width - region.left) * factor) < pixels.shape[1]:
            pixels[:, line] = 217
    if rows * columns > LABELLED:
        return pixels
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(10, round(picture.width / 22)))
    for (row, column), share in np.ndenumerate(attention):
        at = ((column + 0.06) * width - region.left) * factor, ((row + 0.06) * height - region.top) * factor
        if at[0] >= 0 and at[1] >= 0:
            draw.rectangle(draw.textbbox(at, f"{share:.0%}", font), "white")
            draw.text(at, f"{share:.0%}", "black", font)
    return np.array(picture)


def draw_by_frame(watched: WatchedVideo, column: str, layer: int | None) -> MarkedChart:
    """A column of `WatchedVideo.by_frame`, entropy or query_distance, against the frame, to be marked at any; layer:
    from 0, None for the mean over layers."""
    table = watched.by_frame(layer)
    figure = Figure(figsize=(4.8, 2.4), dpi=120)
    canvas = FigureCanvasAgg(figure)
    ax = figure.add_axes((0.14, 0.2, 0.84, 0.64))
    plot_modes_by_frame(ax, table[table[column].notna()], column)
    if column == "entropy":
        most = np.log(watched.grid[0] * watched.grid[1])
        ax.axhline(most, color="0.5", lw=0.8, ls="--", label="maximum")
        ax.set_ylim(0, 1.08 * most)
        ax.set_ylabel("entropy, nats")
        ax.legend(frameon=False, fontsize="small", ncols=2, loc="lower left", bbox_to_anchor=(0, 0.98), borderpad=0)
    else:
        ax.set_ylabel("relative L2")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return MarkedChart.drawn(canvas, ax)


def describe_look(table: pd.DataFrame, mode: str, frame: int) -> str:
    """A mode's name, and of its look at a frame the entropy, what falls on the CLS token and, where some patches
    changed and others did not, what falls on those that did, as HTML; table: of `WatchedVideo.by_frame`."""
    name, colour = mode_style(mode)
    row = table[(table["mode"] == mode) & (table["frame"] == frame)].iloc[0]
    dark = css_colour(tuple(0.75 * part for part in colour))
    part = row["changed_share"]
    changed = f" · {row['on_changed']:.0%} on the {part:.0%} that changed" if 0 < part < 1 else ""
    return (
        f"<div style='line-height:1.3'><b style='color:{dark}'>{html.escape(name)}</b><br>{row['entropy']:.2f} nats, "
        f"{row['entropy_share']:.0%} of max · CLS {row['other_share']:.0%}{changed}</div>"
    )


def describe_captions(watched: WatchedVideo) -> str:
    """The caption's words with their loss in each mode, the more coloured the larger, and what the model says itself,
    as HTML: a column a word, as many as fit in a line."""
    cell = "<div style='padding:1px 6px;text-align:right;white-space:nowrap;background:{}'>{}</div>"
    label = "<div style='padding:1px 12px 1px 0;white-space:nowrap'>{}</div>"
    names = ["<b>loss, nats; mean</b>"]
    names += [f"{html.escape(mode_style(mode)[0])}; {losses.mean():.3f}" for mode, losses in watched.losses.items()]
    columns = ["".join(label.format(name) for name in (*names, "generated, greedily"))]
    for place in range(max(len(watched.tokens), len(watched.generated))):
        inside = place < len(watched.tokens)
        cells = [cell.format("none", f"<b>{html.escape(watched.tokens[place])}</b>" if inside else "&nbsp;")]
        for mode, losses in watched.losses.items():
            tint = min(losses[place] / 2, 1) * 0.7 if inside else 0
            colour = css_colour(tuple(1 - (1 - part) * tint for part in mode_style(mode)[1]))
            cells.append(cell.format(colour, f"{losses[place]:.3f}" if inside else "&nbsp;"))
        said = watched.generated[place] if place < len(watched.generated) else None
        if said is None:
            cells.append(cell.format("none", "&nbsp;"))
        elif inside and said == watched.tokens[place]:
            cells.append(cell.format("none", html.escape(said)))
        else:
            cells.append(cell.format("none", f"<b style='color:#d55e00'>≠ {html.escape(said)}</b>"))
        columns.append("".join(cells))
    return (
        "<div style='display:flex;flex-wrap:wrap;line-height:1.4'>"
        + "".join(f"<div style='margin-bottom:6px'>{column}</div>" for column in columns)
        + "</div>"
    )
