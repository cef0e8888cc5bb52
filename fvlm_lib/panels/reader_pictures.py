"""What the reader's panel shows of one frame: its patches that were encoded anew, and what is made of two answers.

Data in, pictures and text out; nothing here knows a widget.
"""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np

from fvlm_lib.data.drawn_screens import CELL, GRID
from fvlm_lib.data.screen_questions import Verdict, verdict
from fvlm_lib.figures.palette import BLACK, GREEN, PATHS, VERMILION, Colour
from fvlm_lib.options import printable
from fvlm_lib.panels.pictures import css_colour, draw_changed_patches
from fvlm_lib.vlm.reader_stream import Read

VERDICTS: dict[Verdict, tuple[str, Colour]] = {
    "right": ("right", GREEN),
    "stale": ("stale: right for the frame before", VERMILION),
    "wrong": ("wrong", BLACK),
}
"""In words, with the colour that they are told apart by."""

_LINE = "<div style='line-height:1.4;overflow-wrap:anywhere'>{}</div>"
_CELL = "<t{0} style='text-align:left;padding:0 18px 0 0;line-height:1.5'>{1}</t{0}>"


def draw_read(frame: np.ndarray, read: Read) -> np.ndarray:
    """A frame uint8 (H, W, 3), enlarged; patches that were encoded anew outlined, all others faded."""
    if read.encoded is None:
        return draw_changed_patches(frame, np.ones(GRID, bool), CELL)
    return draw_changed_patches(frame, read.encoded, frame.shape[0] // read.encoded.shape[0])


def describe_encode(read: Read) -> str:
    """A line of HTML: the path of the vision encode, patches that changed, tokens that are new."""
    said = read.answer
    badge = f"<b style='background:{css_colour(PATHS[said.path])};color:#fff;padding:1px 8px'>{said.path}</b>"
    if read.encoded is None:
        return _LINE.format(f"{badge}&ensp;nothing is kept: all patches are encoded")
    return _LINE.format(
        f"{badge}&ensp;{said.changed_patches} of {said.num_patches} patches changed; encoded from this frame: "
        f"{int(read.encoded.sum())}; tokens with another value than before: {read.new_tokens}"
    )


def describe_right(question: str, old: str | None, new: str, first: bool) -> str:
    """A line of HTML: what is asked, what is right of this frame, and what was of the one before; first: there is
    none before."""
    right = f"<i>{html.escape(question)}</i>&ensp;right: <b>{html.escape(new)}</b>"
    if first:
        return _LINE.format(right)
    if old is None:
        return _LINE.format(f"{right}&ensp;·&ensp;the frame before has no answer")
    before = "as on the frame before" if old == new else f"on the frame before: <b>{html.escape(old)}</b>"
    return _LINE.format(f"{right}&ensp;·&ensp;{before}")


def describe_answers(reads: Mapping[str, Read], old: str | None, new: str) -> str:
    """An HTML table, a row a way of computing by its name: the answer, the verdict, rows of the prefill, time to first
    token. old, new: what is right of the frame before, and of this one."""
    heads = ("", "answer", "verdict", "rows of the prefill", "time to first token")
    lines = [[_CELL.format("h", head) for head in heads]]
    for name, read in reads.items():
        said = read.answer
        words, colour = VERDICTS[verdict(said.text, old, new)]
        cells = [
            html.escape(name),
            f"<b>{html.escape(printable(said.text)) or 'nothing'}</b>",
            f"<b style='color:{css_colour(tuple(0.75 * part for part in colour))}'>{words}</b>",
            f"{said.prefill_rows:.1%}",
            f"{said.first_token_ms:.1f} ms",
        ]
        lines.append([_CELL.format("d", cell) for cell in cells])
    rows = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    return f"<div style='overflow-x:auto'><table style='margin:4px 0'>{rows}</table></div>"
