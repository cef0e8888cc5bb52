"""Figures of gap(K) show the tables that they are given."""

from __future__ import annotations

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from fvlm_lib.figures import jacobi_plots


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def curve() -> pd.DataFrame:
    table = pd.DataFrame({"passes": [1, 2, 3], "gap": [0.3, -0.1, 0.0], "doubtful": [False, True, False]})
    table["query_distance"], table["token_distance"] = [0.1, 0.01, 0.0], [0.2, 0.02, 1e-7]
    for column in ("gap", "query_distance", "token_distance"):
        table[f"{column}_low"], table[f"{column}_high"] = table[column] - 0.05, table[column] + 0.02
    return table


def test_the_gap_goes_by_passes_with_its_interval_and_what_is_near(ax):
    jacobi_plots.plot_passes_gap(ax, curve(), within=0.02)
    line, _, (bars,) = ax.containers[0].lines
    assert line.get_xydata().tolist() == [[1, 0.3], [2, -0.1], [3, 0.0]]
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([0.25, 0.32])
    hollow = [one for one in ax.lines if one.get_markerfacecolor() == "white"]
    assert [one.get_xydata().tolist() for one in hollow] == [[[2, -0.1]]]
    (band,) = ax.patches
    assert (band.get_y(), band.get_height()) == (-0.02, 0.04)
    assert {"within 0.02 nats", "hollow: interval may be too narrow"} <= {*ax.get_legend_handles_labels()[1]}


def test_without_doubt_nothing_is_hollow_and_without_a_distance_there_is_no_band(ax):
    jacobi_plots.plot_passes_gap(ax, curve().assign(doubtful=False))
    assert not ax.patches and ax.get_legend_handles_labels()[1] == ["gap(K)"]
    assert ax.get_yscale() == "linear"


def test_a_gap_far_off_makes_the_axis_logarithmic_and_it_says_so(ax):
    table = pd.DataFrame({"passes": range(1, 7), "gap": [9.0, 1e-3, 1e-4, 1e-4, 1e-4, 0.0], "doubtful": False})
    jacobi_plots.plot_passes_gap(ax, table.assign(gap_low=table["gap"] - 1e-4, gap_high=table["gap"] + 1e-4))
    assert ax.get_yscale() == "symlog" and "logarithmic beyond" in ax.get_ylabel()


def test_distances_go_down_to_zero(ax):
    jacobi_plots.plot_passes_distance(ax, curve(), within=0.01)
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["queries"].get_xydata().tolist() == [[1, 0.1], [2, 0.01], [3, 0.0]]
    assert lines["visual tokens"].get_ydata().tolist() == [0.2, 0.02, 1e-7]
    assert lines["distance 0.01"].get_ydata()[0] == 0.01
    assert ax.get_ylim()[0] < 0 < 0.2 < ax.get_ylim()[1], "0 is on the axis"


def test_norms_go_by_frame_beside_a_line_at_one(ax):
    table = pd.DataFrame({"frame": [0, 1], "norm": [1.2, 0.8], "relative_norm": [0.6, 0.7]})
    for column in ("norm", "relative_norm"):
        table[f"{column}_low"], table[f"{column}_high"] = table[column] - 0.1, table[column] + 0.1
    jacobi_plots.plot_jacobian_norms(ax, table)
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["largest growth of errors"].get_xydata().tolist() == [[0, 1.2], [1, 0.8]]
    assert lines["of relative errors"].get_ydata().tolist() == [0.6, 0.7]
    assert [line.get_ydata()[0] for line in ax.lines if line.get_label().startswith("_")] == [1]
