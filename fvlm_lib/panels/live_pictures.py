"""What the live panel shows of a stream: a frame with what was computed anew, the look, what was said, what it took.

Data in, pictures and text out; nothing here knows a widget.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fvlm_lib.figures.palette import PATHS
from fvlm_lib.foveated.live import LiveFrame
from fvlm_lib.options import printable
from fvlm_lib.panels.fovea_pictures import draw_attention
from fvlm_lib.panels.live_watch import Said
from fvlm_lib.panels.pictures import css_colour, draw_changed_patches, whole

PARTS = {"encode_ms": "encode", "look_ms": "look", "language_ms": "language model", "caption_ms": "caption"}
"""Columns of `live.live_row` with milliseconds, and what took them."""

_LINE = "<div style='line-height:1.4;overflow-wrap:anywhere'>{}</div>"
_CELL = "<t{0} style='text-align:{1};padding:0 22px 0 0;line-height:1.5;white-space:nowrap'>{2}</t{0}>"


def draw_seen(live: LiveFrame) -> np.ndarray:
    """The frame as the model sees it, patches that were computed anew outlined, all others faded."""
    return draw_changed_patches(live.frame, live.encoded, live.frame.shape[0] // live.encoded.shape[0])


def draw_look(live: LiveFrame) -> np.ndarray:
    """The frame, each patch the paler the less the model looks at it; where it looks most, as it is."""
    return draw_attention(live.frame, live.look, float(live.look.max()), whole(live.frame.shape))


def describe_seen(live: LiveFrame) -> str:
    """Which frame it is, as HTML, the path of its encode and how many of its patches were computed anew."""
    badge = f"<b style='background:{css_colour(PATHS[live.path])};color:#fff;padding:1px 8px'>{live.path}</b>"
    return _LINE.format(
        f"<b>frame {live.index}</b>, {live.seconds:.1f} s&ensp;{badge}<br>"
        f"{int(live.encoded.sum())} of {live.encoded.size} patches computed anew"
    )


def describe_look(live: LiveFrame) -> str:
    """What a look is of, as HTML, and how much of it falls on the patches that were computed anew, against their share
    where that is not all or none."""
    part = live.encoded.mean()
    on = f"{live.look[live.encoded].sum():.0%} on the {part:.0%} computed anew" if 0 < part < 1 else ""
    most = f"{live.look.max():.0%} on the patch looked at most"
    return _LINE.format(f"<b>where it looks</b><br>{on or most}")


def describe_counts(lately: pd.DataFrame) -> str:
    """A line of HTML: frames watched and dropped since the start, frames a second lately; table of
    `Watching.lately`."""
    last = lately.iloc[-1]
    passed = last["seconds"] - lately["seconds"].iloc[0]
    rate = f"<b>{(len(lately) - 1) / passed:.1f}</b> frames a second" if passed > 0 else ""
    counts = f"<b>{last['frame'] + 1}</b> watched&ensp;·&ensp;<b>{last['dropped']}</b> dropped"
    return _LINE.format(counts + (f"&ensp;·&ensp;{rate}" if rate else ""))


def describe_times(lately: pd.DataFrame) -> str:
    """An HTML table of milliseconds: of the last frame, and the median of the last frames, of captions over those at
    which the model was asked; table of `Watching.lately`."""
    lines = [["ms", *PARTS.values()], ["this frame"], [f"median of {len(lately)}"]]
    for column in PARTS:
        asked = lately[column] if column != "caption_ms" else lately[column][lately[column] > 0]
        last = lately[column].iloc[-1]
        lines[1].append(f"{last:.1f}" if last > 0 or column != "caption_ms" else "")
        lines[2].append(f"{asked.median():.1f}" if len(asked) else "")
    rows = ""
    for number, (first, *rest) in enumerate(lines):
        kind = "d" if number else "h"
        cells = [_CELL.format(kind, "left", first), *(_CELL.format(kind, "right", cell) for cell in rest)]
        rows += f"<tr>{''.join(cells)}</tr>"
    return f"<div style='overflow-x:auto'><table style='margin:2px 0'>{rows}</table></div>"


def describe_said(said: Sequence[Said], count: int = 8) -> str:
    """What was said lately, the newest first, as HTML: from when to when and what; of more than one stream with its
    number."""
    if not said:
        return _LINE.format("<b>what it says</b><br><span style='color:#666'>nothing yet</span>")
    several = len({one.stream for one in said}) > 1
    lines = []
    for place, one in enumerate(list(reversed(said))[:count]):
        when = f"{one.first:.1f}" + (f" – {one.last:.1f}" if one.last > one.first else "") + " s"
        if several:
            when = f"stream {one.stream}, {when}"
        text = html.escape(printable(one.text)) or "<i>nothing</i>"
        lines.append(
            f"<div style='color:#666;font-size:90%'>{when}</div>"
            f"<div style='margin:0 0 4px 8px{';font-weight:bold' if place == 0 else ''}'>{text}</div>"
        )
    return _LINE.format("<b>what it says</b>" + "".join(lines))
