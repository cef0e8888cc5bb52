"""What a paper asks of figures and tables: the venue's widths and text sizes, vector files with fonts embedded, the
facts of a caption beside them, tables as CSV, Markdown and LaTeX.

Knows nothing of what is shown; the paper's figures themselves are in `paper_figures.py`.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

MIN_TEXT = 6.0  # pt in print; smaller is not readable
MIN_PANEL = 1.6  # inches


@dataclass(frozen=True)
class Venue:
    """Widths of a column and of the whole text in inches, and sizes in pt: `text` of labels, `small` of ticks and
    legends. In a venue of one column both widths are the same."""

    column: float
    full: float
    text: float = 8.0
    small: float = 7.0

    def width(self, wanted: str | float) -> float:
        """Inches of "column", "full", or of a number of inches, which must fit on the page."""
        if isinstance(wanted, str):
            if wanted not in ("column", "full"):
                raise ValueError(f"the width {wanted!r} is none; it is 'column', 'full' or a number of inches")
            return self.column if wanted == "column" else self.full
        if not 1 <= wanted <= self.full:
            raise ValueError(f"a width of {wanted:g} inches does not fit; 1 to {self.full:g} inches do")
        return float(wanted)

    def rc_parameters(self) -> dict[str, Any]:
        """matplotlib's settings for this venue; they must hold while a figure is made and while it is saved."""
        return {
            "font.family": "serif",
            "font.serif": ["STIXGeneral"],  # metrics of Times, as the venues set their text, and in every matplotlib
            "mathtext.fontset": "stix",
            "font.size": self.text,
            "axes.labelsize": self.text,
            "axes.titlesize": self.text,
            "legend.title_fontsize": self.small,
            "legend.fontsize": self.small,
            "xtick.labelsize": self.small,
            "ytick.labelsize": self.small,
            "axes.linewidth": 0.5,
            "lines.linewidth": 1.0,
            "lines.markersize": 3.5,
            "errorbar.capsize": 2,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "xtick.minor.width": 0.4,
            "ytick.minor.width": 0.4,
            "savefig.dpi": 300,
            "savefig.bbox": "standard",  # "tight" would change the width
            "pdf.fonttype": 42,  # TrueType, embedded; the default, Type 3, is refused by some venues
            "ps.fonttype": 42,
        }


VENUES = {
    "neurips": Venue(5.5, 5.5),  # neurips_2025.sty: textwidth=5.5in, one column
    "iclr": Venue(5.5, 5.5),  # iclr2025_conference.tex: "a rectangle 5.5 inches (33 picas) wide"
    "icml": Venue(3.25, 6.75),  # icml2025.sty: textwidth 6.75 in, columnsep 0.25 in
    "cvpr": Venue(3.25, 6.875),  # author kit, sec/2_formatting.tex: columns 3 1/4 in, text 6 7/8 in
    "acl": Venue(7.7 / 2.54, 16.0 / 2.54, 9.0, 8.0),  # acl-style-files, formatting.md: columns 7.7 cm, margins 2.5 cm
}


def find_venue(name: str) -> Venue:
    """The venue of that name; ValueError for one that is not known."""
    if name not in VENUES:
        raise ValueError(f"there is no style {name!r}; known are {', '.join(VENUES)}")
    return VENUES[name]


@dataclass(frozen=True)
class Facts:
    """What a caption must tell: in words, and by itself.

    n: what was counted -> how many. seeds: of what -> seed. interval: what the bars or brackets are. sources: files
    that it was made from. panels: (a), (b), ... -> what is in it.
    """

    caption: str
    n: dict[str, Any]
    seeds: dict[str, Any]
    interval: str
    sources: tuple[str, ...]
    panels: dict[str, str] = field(default_factory=dict)


# ---- figures -----------------------------------------------------------------------------------------


def lay_panels(width: float, count: int, share: bool = False, most: int = 9) -> tuple[Figure, list[Axes]]:
    """A figure of `width` inches with `count` panels, as many a row as are wide enough to read, and at `most` so many.
    share: both axes."""
    rows = math.ceil(count / max(1, min(most, int(width / MIN_PANEL))))
    columns = math.ceil(count / rows)
    panel = min(2.1, max(MIN_PANEL, 0.85 * width / columns)) if columns > 1 else min(2.3, 0.62 * width)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, rows * panel), layout="constrained", squeeze=False, sharex=share,
        sharey=share,
    )  # fmt: skip
    for unused in axes.flat[count:]:
        unused.remove()
    return figure, list(axes.flat[:count])


def label_outer(axes: Sequence[Axes]) -> None:
    """Of panels that share their axes, name those at the left and those with no panel below. Unlike matplotlib's
    own `label_outer` this knows of a last row that is not full."""
    for place, ax in enumerate(axes):
        columns = ax.get_gridspec().ncols  # type: ignore[union-attr]
        below, left = place + columns >= len(axes), place % columns == 0
        ax.tick_params(which="both", labelbottom=below, labelleft=left)
        ax.set_xlabel(ax.get_xlabel() if below else "")
        ax.set_ylabel(ax.get_ylabel() if left else "")


def axis_note(axes: Sequence[Axes]) -> str:
    """What the labels of the y axes say in their second line, as a caption's sentence; there it leaves the figure."""
    notes = []
    for ax in axes:
        label, _, note = ax.get_ylabel().partition("\n")
        ax.set_ylabel(label)
        notes.append(note.strip("()"))
    return f"The axis of the gap is {notes[0]}." if notes[0] else ""


def label_panels(axes: Sequence[Axes], names: Sequence[str]) -> dict[str, str]:
    """Write (a), (b), ... and the name over each of several axes, in lines that fit, by which the figure grows; returns
    letter -> name, as in `Facts.panels`."""
    if len(axes) == 1:
        return {}
    letters = [chr(ord("a") + i) for i in range(len(axes))]
    figure, grid = _figure_of(axes[0]), axes[0].get_gridspec()
    titles = [f"({letter}) {name}".strip() for letter, name in zip(letters, names, strict=True)]
    for lines in (1, 2, 3):
        width = math.ceil(max(map(len, titles)) / lines) + 3 * (lines > 1)  # lines end at words
        texts = [textwrap.fill(title, width) for title in titles]
        wrapped = [ax.set_title(text, loc="left") for ax, text in zip(axes, texts, strict=True)]
        if _titles_fit(figure, wrapped):
            break
    more = max(title.get_text().count("\n") for title in wrapped)
    if more and grid is not None:
        figure.set_figheight(figure.get_figheight() + grid.nrows * more * 1.2 * float(wrapped[0].get_fontsize()) / 72)
    return dict(zip(letters, names, strict=True))


def _figure_of(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def _titles_fit(figure: Figure, titles: Sequence[Text]) -> bool:
    """Whether none of the titles over axes reaches into another or out of the figure."""
    figure.draw_without_rendering()
    boxes = [title.get_window_extent() for title in titles]
    inside = all(box.x1 <= figure.bbox.x1 for box in boxes)
    return inside and not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def legend_below(figure: Figure, axes: Sequence[Axes], title: str | None = None) -> None:
    """One legend in place of those of the axes, under the figure, which grows by it, in as few rows as its width
    allows, with a title before its entries. The figure must be of constrained layout."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
        if (own := ax.get_legend()) is not None:
            own.remove()
    for rows in range(1, len(entries) + 1):
        legend = figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=math.ceil(len(entries) / rows),
            frameon=False, columnspacing=1.0, handlelength=1.9, handletextpad=0.6, title=title,
        )  # fmt: skip
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width or rows == len(entries):
            figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)
            return
        legend.remove()


def visible_texts(figure: Figure) -> list[Text]:
    """The texts of a figure that can be seen in it: not those of hidden axes and of ticks beyond the limits."""
    figure.draw_without_rendering()
    hidden: set[Text] = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not (ax.axison and low <= tick.get_loc() <= high):
                    hidden |= {tick.label1, tick.label2}
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text not in hidden]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def save_figure(
    figure: Figure, folder: str | Path, name: str, facts: Facts, style: str, formats: Sequence[str] = ("pdf", "png")
) -> list[Path]:
    """Write `folder`/`name` in each format (pdf, png, svg, eps, ...) and beside it the facts, as JSON.

    Raises ValueError for a text smaller than MIN_TEXT, and for an unknown format.
    """
    if unknown := sorted(set(formats) - set(figure.canvas.get_supported_filetypes())):
        known = ", ".join(sorted(figure.canvas.get_supported_filetypes()))
        raise ValueError(f"{unknown[0]!r} is no format of a figure; known are {known}")
    size, text = min((float(text.get_fontsize()), text.get_text()) for text in visible_texts(figure))
    if size < MIN_TEXT:
        raise ValueError(
            f"the text {text!r} of the figure {name} is {size:.1f} pt, too small to read in print; {MIN_TEXT:g} pt is "
            "the least"
        )
    figure.set_layout_engine("none")  # looking at its texts laid it out; every format would again
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.{suffix}" for suffix in formats]
    for file in files:
        # without the time of day, so that the same results give the same file
        figure.savefig(file, metadata={"CreationDate": None} if file.suffix == ".pdf" else None)
    content = {
        "files": [file.name for file in files],
        "style": style,
        "width_inches": round(figure.get_figwidth(), 4),
        "height_inches": round(figure.get_figheight(), 4),
        "smallest_text_pt": round(size, 2),
        **asdict(facts),
    }
    written = folder / f"{name}.json"
    written.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return [*files, written]


# ---- tables ------------------------------------------------------------------------------------------


def write_table(
    folder: str | Path, name: str, numbers: pd.DataFrame, readable: pd.DataFrame, facts: Facts
) -> list[Path]:
    """Write `folder`/`name`.csv with the numbers, and .md and .tex with the table as people read it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.{suffix}" for suffix in ("csv", "md", "tex")]
    numbers.to_csv(files[0], index=False)
    files[1].write_text(f"{readable.to_markdown(index=False, disable_numparse=True)}\n\n{caption_of(facts)}\n")
    files[2].write_text(latex_table(readable, facts))
    return files


def caption_of(facts: Facts) -> str:
    """The facts in one paragraph."""
    panels = " ".join(f"({letter}) {name}." for letter, name in facts.panels.items())
    counts = ", ".join(f"{count} {what}" for what, count in facts.n.items())
    seeds = ", ".join(f"{what} {seed}" for what, seed in facts.seeds.items() if seed is not None)
    parts = [facts.caption, panels, f"n: {counts}.", f"Seeds: {seeds}." if seeds else "", facts.interval]
    return " ".join(filter(None, parts))


def latex_table(readable: pd.DataFrame, facts: Facts) -> str:
    """A booktabs tabular to \\input into a table environment; needs \\usepackage{booktabs}, nothing else.

    Cells are escaped; `value [low, high]` is set with the interval under its value; numbers get a true minus sign
    and powers of ten.
    """
    shown = readable.fillna("").astype(str)
    styler = shown.style.format(_latex_cell, escape="latex").format_index(_latex_numbers, escape="latex", axis=1)
    long = [column for column in shown if shown[column].str.split(" [", regex=False).str[0].str.len().max() > 24]
    columns = "".join("p{2.4cm}" if column in long else "l" for column in shown)
    tabular = styler.hide(axis="index").to_latex(hrules=True, column_format=columns)
    comment = "".join(f"% {line}\n" for line in caption_of(facts).splitlines())
    tabular = tabular.replace(" \\\\\n", " \\\\ \\addlinespace[1pt]\n")
    return f"{comment}{{\\setlength{{\\tabcolsep}}{{4pt}}%\n{tabular.strip()}}}%\n"


def _latex_numbers(text: str) -> str:
    """An escaped text with -1 as $-$1 and 1e-05 as a power of ten."""
    text = re.sub(r"(?<![\w.])([+-]?\d+(?:\.\d+)?)e([+-])0*(\d+)", _power_of_ten, text)
    return re.sub(r"(?<![\w.$^{}-])-(?=\d)", "$-$", text)


def _power_of_ten(match: re.Match[str]) -> str:
    number, sign, exponent = match.groups()
    return rf"${number}\times 10^{{{'-' if sign == '-' else ''}{exponent}}}$"


def _latex_cell(escaped: str) -> str:
    estimate = re.fullmatch(r"(\S+) (\[.*\])", escaped)
    text = _latex_numbers(escaped)
    if estimate:
        value, interval = map(_latex_numbers, estimate.groups())
        return rf"\begin{{tabular}}[t]{{@{{}}l@{{}}}}{value}\\{{\scriptsize {interval}}}\end{{tabular}}"
    return "{[}" + text[1:] if text.startswith("[") else text  # \\ [ would be read as an option of the line before
