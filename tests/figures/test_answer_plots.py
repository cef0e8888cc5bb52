"""What the figures of answers show is what their tables say."""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fvlm_lib.figures import answer_plots, palette
from fvlm_lib.vlm.reader_measure import compared_reuse

POLICIES = ["full", "gated 0.1", "gated 0", "mean threshold 0.02", "my own 3"]
TABLE = pd.DataFrame(
    {
        "policy": POLICIES, "n": 8, "right": [1, 0.5, 0.9, 0.75, 0.25], "right_low": [0.9, 0.4, 0.8, 0.6, 0.2],
        "right_high": [1, 0.6, 0.95, 0.8, 0.3], "stale": [0, 0.25, 0, 0.5, 0], "stale_low": 0.0, "stale_high": 0.6,
        "asked": 4, "broken": [0, 4, 1, 2, 6], "rows": [1, 0.125, 0.5, 1, 1],
        "first_token_ms": [40, 10, 20, 32, 8.0], "speedup": [1, 4, 2, 1.25, 5],
        "gone": 0, "gone_stale": 0, "gone_as_full": 0,
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("plot", "share"), [(answer_plots.plot_right_answers, "right"), (answer_plots.plot_stale_answers, "stale")]
)
def test_a_policy_is_a_point_with_its_interval_and_those_of_a_kind_are_a_line(plot, share):
    _, ax = plt.subplots()
    plot(ax, TABLE)
    named = {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}
    assert [*named] == [
        "nothing kept",
        "changed patches alone, by mean difference: 0.02",
        "gated in both stacks: 0 (dark) to 0.1 (light)",
        "my own: 3",
    ]
    gated = named["gated in both stacks: 0 (dark) to 0.1 (light)"]
    np.testing.assert_allclose(gated.get_xydata(), TABLE.loc[[2, 1], ["speedup", share]])
    assert gated.get_linestyle() == "-" and named["nothing kept"].get_linestyle() == "None"
    fills = {(*line.get_xdata(),): line.get_markerfacecolor() for line in ax.get_lines() if len(line.get_xdata()) == 1}
    assert [fills[(2,)], fills[(4,)]] == palette.gated_fills(2)
    bars = {tuple(path.vertices[:, 0]): path.vertices[:, 1] for c in ax.collections for path in c.get_paths()}
    for _, row in TABLE.iterrows():
        np.testing.assert_allclose(bars[(row["speedup"],) * 2], [row[f"{share}_low"], row[f"{share}_high"]])
    plt.close()


def test_times_may_be_those_of_another_model():
    _, ax = plt.subplots()
    answer_plots.plot_right_answers(ax, TABLE.assign(speedup_times=[1, 10, 5, 2, 20]), "speedup_times")
    assert ax.get_lines()[-1].get_xdata() == [20]
    plt.close()


def test_every_policy_that_is_compared_is_named_and_told_apart():
    kinds = {answer_plots.split_policy(policy)[0] for policy in compared_reuse([0.0, 1e-5, 0.2])}
    assert kinds == {*answer_plots.KINDS}
    for (name, *look), (other, *of_other) in itertools.combinations(answer_plots.KINDS.values(), 2):
        assert name != other and look[1] != of_other[1], "markers differ, so grey print suffices"
    assert {colour for _, colour, _ in answer_plots.KINDS.values()} <= {*palette.COLOURS.values()}


def test_right_answers_by_case_are_shares_with_the_numbers_that_are_not_all():
    cases = [("value", "read", True), ("value", "read", False), ("box", "count", True), ("covered", "read", True)]
    right = {"full": [[1, 1], [1, 1], [1, 0], [0, 0]], "none": [[0, 0], [1, 1], [0, 1], [0, 0]]}
    rows = pd.DataFrame(
        [
            {
                "case": case,
                "question": question,
                "asked": asked,
                "gone": case == "covered",
                "policy": policy,
                "is_right": bool(right[policy][i][j]),
            }
            for j in range(2)
            for i, (case, question, asked) in enumerate(cases)
            for policy in right
        ]
    )
    _, ax = plt.subplots()
    answer_plots.plot_right_by_case(ax, rows)
    np.testing.assert_allclose(ax.get_images()[0].get_array(), [[1, 0], [1, 1], [0.5, 0.5]])
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "value, read, asked",
        "value, read",
        "box, count, asked",
    ]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["full", "none"]
    assert {text.get_position(): text.get_text() for text in ax.texts} == {(1, 0): "0", (0, 2): "1", (1, 2): "1"}
    assert "of 2 screens" in ax.get_title()
    plt.close()


def test_the_table_reads_with_intervals_and_the_times_of_both_models():
    readable = answer_plots.readable_table(TABLE)
    assert readable.iloc[1].to_dict() == {
        "policy": "gated 0.1", "right": "0.500 [0.400, 0.600]", "broken": "4 of 8",
        "stale, of asked": "0.250 [0.000, 0.600]", "asked": "4", "rows": "12.5%", "first token, ms": "10.0",
        "times faster": "4.00",
    }  # fmt: skip
    both = answer_plots.readable_table(TABLE.assign(first_token_ms_times=300.0, speedup_times=2.5), "_times")
    assert [*both][:8] == [*readable]
    assert both.iloc[1].to_dict()["first token, ms, real size"] == "300.0"
    assert (both["times faster, real size"] == "2.50").all()
    apart = answer_plots.readable_table(TABLE.assign(gone=7, gone_stale=[0, 1, 2, 3, 4], gone_as_full=[7, 6, 5, 4, 3]))
    assert [*apart][:8] == [*readable]
    assert apart["gone: says what was"].tolist() == ["0 of 7", "1 of 7", "2 of 7", "3 of 7", "4 of 7"]
    assert apart["gone: as nothing kept"].tolist() == ["7 of 7", "6 of 7", "5 of 7", "4 of 7", "3 of 7"]
