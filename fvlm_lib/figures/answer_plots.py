"""Figures of answers about drawn screens that change: right and stale ones against time, and right ones by case.

Tidy tables in, axes out, as in `plots.py`. Rows as `vlm.reader_measure.measure_reader` gives them, a row a screen and
policy; tables as `summarize_reader` makes of them, a row a policy "full", "gated 0.02", "last frame", ...; policies of
one kind, which differ in their setting, are one line.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fvlm_lib.figures import palette
from fvlm_lib.figures.axes import percent

KINDS: dict[str, tuple[str, palette.Colour, str]] = {  # of policies -> in words, colour, marker
    "full": ("nothing kept", palette.BLACK, "*"),
    "none": ("changed patches alone, exact prefix", palette.GREY, "o"),
    "threshold": ("changed patches alone, by threshold", palette.VERMILION, "X"),
    "mean threshold": ("changed patches alone, by mean difference", palette.PLUM, "<"),
    "last frame": ("changed patches alone, since last frame", palette.GREEN, ">"),
    "gated": ("gated in both stacks", *palette.GATED),
    "changed": ("gated vision, changed tokens and question", palette.VERMILION, "^"),
    "first_k": ("gated vision, first k of the screen", palette.PLUM, "s"),
    "deviation": ("gated vision, largest deviation", palette.GREEN, "v"),
    "budget": ("gated vision, at most r a layer", palette.BLACK, "P"),
}
OTHER_KIND: tuple[palette.Colour, str] = (palette.GREY, "h")


def split_policy(policy: str) -> tuple[str, str]:
    """Kind of a policy and setting: "mean threshold 0.02" as "mean threshold" and "0.02"; "" where there is none."""
    kind, _, setting = policy.rpartition(" ")
    return (kind, setting) if setting[:1].isdigit() else (policy, "")


def plot_right_answers(ax: Axes, table: pd.DataFrame, speedup: str = "speedup") -> Axes:
    """Share of right answers against the time to the first token, with 95% intervals over screens. speedup: the column
    of how many times faster than with nothing kept."""
    _plot_share(ax, table, "right", speedup)
    ax.set_ylabel("right answers")
    return ax


def plot_stale_answers(ax: Axes, table: pd.DataFrame, speedup: str = "speedup") -> Axes:
    """Of the questions about what changed, the share whose answer was right before and is no longer, against the time
    to the first token, with 95% intervals over screens. speedup: as above."""
    _plot_share(ax, table, "stale", speedup)
    ax.set_ylabel("stale answers")
    return ax


def _plot_share(ax: Axes, table: pd.DataFrame, share: str, speedup: str) -> None:
    """A point a policy, a line a kind, its settings in the legend; of gated policies, the darker, the lower."""
    split = pd.DataFrame(
        [split_policy(policy) for policy in table["policy"]], index=table.index, columns=["kind", "setting"]
    )
    for value in table.loc[split["kind"] == "full", share]:
        ax.axhline(value, color=palette.REFERENCE, lw=0.6, ls=":", zorder=0)
    ax.axvline(1, color=palette.REFERENCE, lw=0.6, ls=":", zorder=0)
    for kind in sorted(split["kind"].unique(), key=[*KINDS, *split["kind"]].index):
        name, colour, marker = KINDS.get(kind, (kind, *OTHER_KIND))
        settings = split.loc[split["kind"] == kind, "setting"]
        settings = settings.loc[settings.replace("", "0").astype(float).sort_values().index]
        rows, told = table.loc[settings.index], ", ".join(filter(None, settings))
        if kind == "gated" and len(rows) > 1:
            told = f"{settings.iloc[0]} (dark) to {settings.iloc[-1]} (light)"
        ax.plot(
            rows[speedup], rows[share], ls="-" if len(rows) > 1 else "", lw=0.8, marker=marker, color=colour,
            zorder=3 if kind == "full" else 2, label=f"{name}: {told}" if told else name,
        )  # fmt: skip
        ax.vlines(rows[speedup], rows[f"{share}_low"], rows[f"{share}_high"], color=colour, lw=0.6)
        if kind == "gated":
            for (_, row), fill in zip(rows.iterrows(), palette.gated_fills(len(rows)), strict=True):
                ax.plot(row[speedup], row[share], marker=marker, color=colour, mfc=fill, mew=0.8, zorder=2.5)
    percent(ax.yaxis)
    ax.set_xlabel("times faster to the first token")


def plot_right_by_case(ax: Axes, rows: pd.DataFrame) -> Axes:
    """Share of right answers by case (down) and policy (across); where not all are right, their number stands in the
    cell. rows: a row a screen and policy; a case is told by what changed, what is asked, and whether the one is asked
    about in the other. Questions about what is gone have no right answer and are left out."""
    rows = rows[~rows["gone"]]
    keys = ["case", "question", "asked"]
    right = rows.pivot_table("is_right", keys, "policy", aggfunc="sum", sort=False)
    right = right[rows["policy"].unique()]
    counts = rows.groupby([*keys, "policy"]).size()
    of = counts.unstack("policy").loc[right.index, right.columns].to_numpy()
    shares = right.to_numpy(dtype=float) / of
    image = ax.imshow(shares, cmap=palette.FREQUENCY.reversed(), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for (row, column), share in np.ndenumerate(shares):
        if share < 1:
            ax.text(
                column, row, f"{right.iloc[row, column]:.0f}", ha="center", va="center", fontsize="small",
                color="white" if share < 0.6 else "black",
            )  # fmt: skip
    ax.set_xticks(range(right.shape[1]), right.columns, rotation=45, ha="right", rotation_mode="anchor")
    names = [f"{case}, {question}{', asked' if asked else ''}" for case, question, asked in right.index]
    ax.set_yticks(range(len(names)), names)
    percent(ax.figure.colorbar(image, ax=ax, label="right answers").ax.yaxis)
    screens = f"{of.min()}" if of.min() == of.max() else f"{of.min()} to {of.max()}"
    ax.set_title(f"Right answers of {screens} screens each; where no number stands, all")
    return ax


def readable_table(table: pd.DataFrame, suffix: str = "") -> pd.DataFrame:
    """The table by policy as people read it: shares with their 95% intervals, counts, times. suffix: of the columns of
    a second model's times (`first_token_ms` and `speedup`), which then stand beside the first's."""

    def with_interval(name: str) -> pd.Series:
        return table.apply(lambda row: f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]", axis=1)

    readable = pd.DataFrame(
        {
            "policy": table["policy"],
            "right": with_interval("right"),
            "broken": table["broken"].astype(str) + " of " + table["n"].astype(str),
            "stale, of asked": with_interval("stale"),
            "asked": table["asked"].astype(str),
            "rows": table["rows"].map("{:.1%}".format),
        }
    )
    for end, of in (("", ""), *([(suffix, ", real size")] if suffix else [])):
        readable[f"first token, ms{of}"] = table[f"first_token_ms{end}"].map("{:.1f}".format)
        readable[f"times faster{of}"] = table[f"speedup{end}"].map("{:.2f}".format)
    if table["gone"].any():
        readable["gone: says what was"] = table["gone_stale"].astype(str) + " of " + table["gone"].astype(str)
        readable["gone: as nothing kept"] = table["gone_as_full"].astype(str) + " of " + table["gone"].astype(str)
    return readable
