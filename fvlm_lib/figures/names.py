"""What runs, modes, paths and policies are called in figures: words in place of the names that code and files use.

Of runs the words come from what their tables tell of sizes and training, so they suit any batch. Draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

MODES = {
    "coarse": "coarse",
    "fine_1": "training (1 fine pass)",
    "autoregressive": "inference (autoregressive)",
}
PATHS = {
    "cached": "tokens kept",
    "partial": "partial update",
    "full": "full encode",
    "skipped": "change skipped",
    "fallback": "full encode after an error",
}
POLICIES = {
    "exact match": "whole frames, exact match",
    "pseudocode": "small changes skipped",
    "none": "changed patches alone",
}
SAME_SIZE = 1.1  # language models whose numbers of parameters differ by less than this factor are of one size
_SIZES = {2: ("small", "large"), 3: ("small", "medium", "large")}


def name_mode(mode: str) -> str:
    """coarse, fine_K or autoregressive in words."""
    return MODES.get(mode, mode.removeprefix("fine_") + " fine passes")


def name_policy(policy: str) -> str:
    """A policy of `measure.policies` in words; any other is called as it is."""
    if policy.startswith("gated "):
        return policy.replace("gated ", "gated at ")
    return POLICIES.get(policy, policy)


def describe_runs(table: pd.DataFrame, with_names: bool = True) -> tuple[dict[str, str], str]:
    """Each run of a table in words, and what the words are about, as a legend's title.

    table: as `report.gap_table` makes it; of its columns only `run` must be there. Words say by what the recipes
    (`group`) differ: the size of the language model (small and large, medium between them; more than three sizes as
    numbers of parameters) and whether it was trained with one fine pass or, by whatever recipe, against the gap. Where
    they do not tell two recipes apart, the recipes' names do. with_names: names stand behind the words always. Seeds of
    a recipe are told by number.
    """
    groups = table["group"] if "group" in table else table["run"]
    group_of = dict(zip(table["run"].astype(str), groups.astype(str), strict=True))
    by_group = {group: table[(groups == group).to_numpy()] for group in sorted(set(group_of.values()))}
    sizes = _size_words([_fact(rows, "num_text_parameters") for rows in by_group.values()])
    several = [_fact(rows, "multi_fine") for rows in by_group.values()]
    parts: list[list[str]] = []
    for size, multi in zip(sizes, several, strict=True):
        told = [size] if size else []
        if len(set(several)) > 1 and None not in several and (multi or not size):
            told.append("trained against the gap" if multi else "one fine pass")
        parts.append(told)
    words = [", ".join(told) for told in parts]
    recipes = {}
    for group, word in zip(by_group, words, strict=True):
        named = f"{word} ({group})" if with_names or words.count(word) > 1 else word
        recipes[group] = named if word else group
    title = "language model" if any(sizes) else "training" if any(words) else "run"
    return {run: recipes[group] + _seed(run, by_group[group]) for run, group in group_of.items()}, title


def describe_group(rows: pd.DataFrame, runs: dict[str, str]) -> str:
    """A recipe of several seeds, `rows` of a table, in the words of `describe_runs`, without the seeds' numbers."""
    run = str(rows["run"].iloc[0])
    return runs[run].removesuffix(_seed(run, rows))


def explain_runs(table: pd.DataFrame) -> str:
    """What stands behind the words of `describe_runs` without names, as a caption's sentence; "" for names alone."""
    words, title = describe_runs(table, with_names=False)
    told = []
    for group, rows in table.groupby("group" if "group" in table else "run"):
        count = _fact(rows, "num_text_parameters")
        size = "" if count is None else f" ({short_count(count)} parameters)"
        told.append(f"{describe_group(rows, words)} is {group}{size}")
    return "" if title == "run" else f"By {title}: {'; '.join(told)}."


def _seed(run: str, rows: pd.DataFrame) -> str:
    """ ", seed 1" for a run that its group has other seeds beside."""
    if rows["run"].nunique() == 1:
        return ""
    seed = _fact(rows[rows["run"] == run], "seed")
    return f", {run}" if seed is None else f", seed {seed:.0f}"


def _fact(rows: pd.DataFrame, name: str) -> float | None:
    """The one value of a column; None where it is not told or not the same in all rows."""
    if name not in rows or rows[name].isna().any() or rows[name].nunique() != 1:
        return None
    return float(rows[name].iloc[0])


def _size_words(counts: Sequence[float | None]) -> list[str]:
    """A word for each number of parameters; empty ones where all are of one size or one is not known."""
    known = sorted(count for count in counts if count is not None)
    if len(known) < len(counts):
        return [""] * len(counts)
    first_of_size: list[float] = []
    for count in known:
        if not first_of_size or count >= SAME_SIZE * first_of_size[-1]:
            first_of_size.append(count)
    if len(first_of_size) == 1:
        return [""] * len(counts)
    words = _SIZES.get(len(first_of_size), tuple(map(short_count, first_of_size)))
    return [words[sum(count >= first for first in first_of_size) - 1] for count in counts if count is not None]


def short_count(count: float) -> str:
    """84544 as 85k, 1.35e8 as 135M, 7.2e9 as 7.2B: two digits, or all before the point."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * unit:
            number = count / unit
            return f"{number:.2g}{letter}" if number < 99.5 else f"{number:.0f}{letter}"
    return f"{count:.0f}"
