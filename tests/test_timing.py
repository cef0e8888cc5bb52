"""Times are measured in turn, and summarised as medians with paired ratios."""

from __future__ import annotations

import pandas as pd
import pytest

from fvlm_lib.timing import summarize_times, time_in_turn


def test_calls_are_made_in_turn_after_the_warm_up():
    order = []
    times = time_in_turn(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warmup=2, progress=False
    )
    assert order == ["a", "b"] * 5
    assert times["name"].tolist() == ["a", "b"] * 3
    assert (times["ms"] >= 0).all()
    with pytest.raises(ValueError, match="repeats is 0"):
        time_in_turn({}, repeats=0)


def test_ratios_are_paired_by_round():
    times = pd.DataFrame({"name": ["a", "b"] * 3, "round": [0, 0, 1, 1, 2, 2], "ms": [1, 2, 10, 30, 100, 200]})
    table = summarize_times(times, "a")
    assert table.loc["b", "ms"] == 30
    assert table.loc["b", "ratio"] == 2  # of 2, 3, 2; the medians' own ratio would be 3
    assert table["n"].tolist() == [3, 3]
