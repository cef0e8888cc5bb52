"""What the figures of prefill show is what their tables say."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from fvlm_lib.figures import prefill_plots

TABLE = pd.DataFrame(
    {
        "policy": ["exact", "changed", "gated 0.1", "gated 0", "first_k 4", "deviation 0.1", "budget 8"],
        "n": 6, "rows": [0.6, 0.1, 0.05, 0.6, 0.2, 0.1, 0.04], "kl": [0, 0.1, 0.01, 0, 0.05, 0.2, 0.4],
        "kl_low": [0, 0.05, 0.005, 0, 0.01, 0.1, 0.2], "kl_high": [0, 0.2, 0.02, 0, 0.1, 0.3, 0.8],
        "stale": [0, 2, 0, 0, 1, 1, 3], "asks": 4, "stale_low": 0.0, "stale_high": 0.6,
    }
)  # fmt: skip


def test_policies_of_a_kind_are_one_line_through_their_rows_and_errors():
    _, ax = plt.subplots()
    prefill_plots.plot_policies(ax, TABLE)
    lines = {line.get_label(): line.get_xydata() for line in ax.get_lines()}
    assert {*lines} == {name for name, _, _ in prefill_plots.KINDS.values()}
    np.testing.assert_allclose(lines["gated, by tolerance"], [[0.05, 0.01], [0.6, 0.0]])
    assert {text.get_text() for text in ax.texts} == {"0.1", "0"}
    plt.close()


def test_stale_answers_are_bars_of_their_share_with_the_counts():
    _, ax = plt.subplots()
    prefill_plots.plot_stale_answers(ax, TABLE)
    assert [bar.get_width() for bar in ax.patches] == [0, 0.5, 0, 0, 0.25, 0.25, 0.75]
    assert [text.get_text() for text in ax.texts] == [f"{stale} of 4" for stale in TABLE["stale"]]
    assert [label.get_text() for label in ax.get_yticklabels()] == [*TABLE["policy"]]
    plt.close()


def test_reach_is_the_mean_over_screens_by_layer_and_place():
    _, ax = plt.subplots()
    reach = [np.array([0, 1, 0.5, 0], np.float32), np.array([0, 0, 0.5, 1], np.float32)]
    prefill_plots.plot_reach(ax, reach, places=2)
    shown = ax.get_images()[0].get_array()
    np.testing.assert_allclose(shown.filled(0), [[0, 0.5], [0.5, 0.5]])
    assert shown.mask.tolist() == [[True, False], [False, False]]
    plt.close()
