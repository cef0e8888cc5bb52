"""Runs are called in words that suit any batch's table; text that a font lacks is not drawn as boxes."""

from __future__ import annotations

import pandas as pd
import pytest

from fvlm_lib.figures import names
from fvlm_lib.figures.axes import drawable


def table(**runs: tuple) -> pd.DataFrame:
    """run=(parameters of the language model, multi_fine), a row each."""
    rows = [{"run": run, "num_text_parameters": size, "multi_fine": multi} for run, (size, multi) in runs.items()]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("runs", "words", "title"),
    [
        (
            {"M": (661_120, False), "S": (84_544, False), "S_multi": (84_544, True)},
            ["large", "small", "small, trained against the gap"],
            "language model",
        ),
        ({"a": (1e6, False), "b": (3e6, False), "c": (9e6, False)}, ["small", "medium", "large"], "language model"),
        (
            {"a": (84_544, False), "b": (1.345e8, False), "c": (1.7e9, False), "d": (7.2e9, False)},
            ["85k", "134M", "1.7B", "7.2B"],
            "language model",
        ),
        ({"a": (84_544, False), "b": (84_600, True)}, ["one fine pass", "trained against the gap"], "training"),
        (
            {"a": (100, False), "b": (900, False), "c": (900, False)},
            ["small", "large (b)", "large (c)"],
            "language model",
        ),
        ({"a": (100, None), "b": (None, None)}, ["a", "b"], "run"),
        ({"a": (100, False)}, ["a"], "run"),
    ],
)
def test_runs_are_called_by_what_they_differ_in(runs, words, title):
    found, about = names.describe_runs(table(**runs), with_names=False)
    assert (list(found.values()), about) == (words, title)
    told = names.describe_runs(table(**runs))[0]
    for (run, word), alone in zip(told.items(), words, strict=True):
        assert word == (run if alone == run else alone if alone.endswith(")") else f"{alone} ({run})")


def test_a_table_of_names_alone_is_told_by_names():
    assert names.describe_runs(pd.DataFrame({"run": ["b", "a", "b"]})) == ({"b": "b", "a": "a"}, "run")


def test_seeds_are_told_by_number_and_the_recipe_without():
    rows = table(**{"S, seed 0": (100, False), "S, seed 1": (100, False), "M": (900, False)})
    rows = rows.assign(group=["S", "S", "M"], seed=[0, 1, 0])
    words, _ = names.describe_runs(rows)
    assert words == {"S, seed 0": "small (S), seed 0", "S, seed 1": "small (S), seed 1", "M": "large (M)"}
    assert names.describe_group(rows[:2], words) == "small (S)"
    assert names.explain_runs(rows) == "By language model: large is M (900 parameters); small is S (100 parameters)."
    assert names.explain_runs(pd.DataFrame({"run": ["a", "b"]})) == ""


def test_counts_are_short():
    counts = (7, 999, 999_600, 84_544, 1.35e8, 9.96e8, 9.999e8, 7.24e9, 4.05e11)
    assert [names.short_count(n) for n in counts] == ["7", "999", "1M", "85k", "135M", "996M", "1B", "7.2B", "405B"]


def test_what_is_no_text_or_not_in_the_font_is_a_dot():
    assert drawable("a\ufffd b\x1b \n c") == "a· b· c"
    assert drawable("é ü ∑") == "é ü ∑"
    assert drawable("\U0001f9ff") == "·"  # a glyph that matplotlib's font lacks
