"""Plot functions take tidy tables and return axes that show them, with steady colours."""

from __future__ import annotations

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fvlm_lib.figures import plots
from fvlm_lib.gap.scaling import fit_law


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def gaps() -> pd.DataFrame:
    table = pd.DataFrame({"run": ["b", "a", "b", "a"], "step": [300, 100, 100, 300], "gap_nats": [0.3, 0.1, 0.2, 0.0]})
    return table.assign(
        doubtful=["", "training loss", "gap", ""],
        gap_nats_low=table["gap_nats"] - 0.05,
        gap_nats_high=table["gap_nats"] + 0.1,
    )


def test_a_gap_line_goes_by_step_with_its_interval(ax):
    plots.plot_gap(ax, gaps())
    by_label = {container.get_label(): container for container in ax.containers}
    line, _, (bars,) = by_label["b"].lines
    assert line.get_xdata().tolist() == [100, 300]
    assert line.get_ydata().tolist() == [0.2, 0.3]
    low, high = bars.get_segments()[0][:, 1]
    assert (low, high) == (pytest.approx(0.15), pytest.approx(0.3))
    assert ax.get_xscale() == "log"


def test_a_gap_that_hangs_on_few_samples_is_drawn_hollow(ax):
    plots.plot_gap(ax, gaps())
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert [line.get_xydata().tolist() for line in hollow] == [[[100, 0.2]]]
    assert "hollow: interval may be too narrow" in ax.get_legend_handles_labels()[1]
    plots.plot_gap(ax.figure.add_subplot(), gaps().assign(doubtful="training loss"))
    assert "hollow: interval may be too narrow" not in ax.figure.axes[1].get_legend_handles_labels()[1]


def test_runs_keep_their_colour_whatever_the_order():
    one, other = plots.series_styles(["S", "M", "S"]), plots.series_styles(["M", "S"])
    assert one == other
    assert one["S"]["color"] != one["M"]["color"]
    assert one["S"]["marker"] != one["M"]["marker"]


def test_seeds_of_a_recipe_share_its_colour_and_differ_in_markers(ax):
    table = gaps().assign(run=["S, seed 1", "M", "S, seed 0", "M"], group=["S", "M", "S", "M"])
    styles = plots.series_styles(table["run"], table["group"])
    assert styles["S, seed 0"]["color"] == styles["S, seed 1"]["color"] != styles["M"]["color"]
    assert styles["S, seed 0"]["marker"] != styles["S, seed 1"]["marker"]
    plots.plot_gap(ax, table)
    drawn = {container.get_label(): container.lines[0] for container in ax.containers}
    assert {name: line.get_color() for name, line in drawn.items()} == {run: styles[run]["color"] for run in styles}
    assert [len(drawn[run].get_xdata()) for run in ("M", "S, seed 0", "S, seed 1")] == [2, 1, 1]


def test_modes_have_distinct_colours_and_names():
    styles = [plots.mode_style(mode) for mode in ("coarse", "fine_1", "fine_2", "fine_3", "autoregressive", "fine_7")]
    assert len({name for name, _ in styles}) == len({colour for _, colour in styles}) == 6


def test_mode_losses_are_drawn_at_their_values(ax):
    losses = {"coarse": {"value": 1.0, "low": 0.9, "high": 1.2}, "fine_1": {"value": 0.5, "low": 0.4, "high": 0.6}}
    plots.plot_mode_losses(ax, losses)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["coarse", "training (1 fine pass)"]
    assert [container.lines[0].get_xdata()[0] for container in ax.containers] == [1.0, 0.5]


def test_changed_patches_are_framed_and_the_rest_is_faded(ax):
    frame = np.zeros((20, 30, 3), dtype=np.uint8)
    mask = np.zeros((2, 3), dtype=bool)
    mask[1, 2] = True
    plots.plot_changed_patches(ax, frame, mask, 10)
    shown = ax.images[0].get_array()
    assert (shown[10:, 20:] == 0).all()
    assert (shown[:10] == 165).all()
    (framed,) = ax.patches
    assert (framed.get_x(), framed.get_y(), framed.get_width()) == (19.5, 9.5, 10)


def test_a_timeline_has_a_bar_a_frame(ax):
    table = pd.DataFrame(
        {"frame": [0, 1, 2], "path": ["full", "cached", "partial"], "changed": [8, 0, 2], "total": [8, 8, 8]}
    )
    plots.plot_change_timeline(ax, table)
    assert sorted(bar.get_height() for bar in ax.patches) == [0, 0.25, 1]


def test_speed_and_error_of_each_policy_are_drawn(ax):
    table = pd.DataFrame(
        {"policy": ["exact match", "none", "gated 0.1"], "error_mean": [0.0, 0.1, 0.05], "total_speedup": [1, 3, 2]}
    )
    plots.plot_speed_error(ax, table)
    points = {line.get_label(): line.get_xydata()[0].tolist() for line in ax.lines if line.get_label()[0] != "_"}
    assert points["exact match"] == [1e-6, 1]
    assert points["none"] == [0.1, 3]


def test_a_column_that_no_checkpoint_tells_is_said_in_the_figure():
    table = pd.DataFrame({"run": ["a", "a"], "step": [1, 2], "training_flops": [None, None], "doubtful": ""})
    for name in ("gap_nats", "loss"):
        table[name] = table[f"{name}_low"] = table[f"{name}_high"] = 1.0
    _, (left, right) = plt.subplots(1, 2)
    for ax, x, scale in ((left, "step", "log"), (right, "training_flops", "linear")):
        for draw in (
            lambda ax, x: plots.plot_gap(ax, table, x),
            lambda ax, x: plots.plot_loss_scaling(ax, table, x, "loss"),
        ):
            draw(ax, x)
            assert ax.get_xscale() == scale
    assert not left.texts
    assert right.texts[0].get_text() == "no checkpoint tells its training_flops"


def test_where_no_law_is_drawn_the_axes_say_so():
    x = np.array([1.0, 10.0, 100.0])
    loss = 2 * x**-0.5
    table = pd.DataFrame({"run": "a", "step": x, "loss": loss, "loss_low": loss * 0.9, "loss_high": loss * 1.1})
    law = fit_law("power", x, loss, num_bootstrap=2, group="a")
    for fits, lines, texts in (([law], 1, []), ([], 0, ["no power law fits"]), (None, 0, [])):
        figure, ax = plt.subplots()
        plots.plot_loss_scaling(ax, table, "step", "loss", fits)
        assert sum(line.get_linestyle() == "--" for line in ax.lines) == lines
        assert [text.get_text() for text in ax.texts] == texts
        plt.close(figure)


def test_intervals_of_policies_are_drawn_where_there_are_some(ax):
    table = pd.DataFrame({"policy": ["none", "gated 0.1"], "error_mean": [0.1, 0.05], "total_speedup": [3.0, 2.0]})
    intervals = {"error_mean_low": [0.05, np.nan], "error_mean_high": [0.2, np.nan]}
    intervals |= {"total_speedup_low": [2.5, np.nan], "total_speedup_high": [4.0, np.nan]}
    plots.plot_speed_error(ax, table.assign(**intervals))
    error, speed = (collection.get_segments()[0].tolist() for collection in ax.collections)
    assert error == [[0.05, 3], [0.2, 3]]
    assert speed == [[0.1, 2.5], [0.1, 4]]


def test_the_gap_left_after_passes_goes_by_passes_with_its_interval(ax):
    table = pd.DataFrame({"run": "a", "label": "a", "passes": [2, 1], "value": [0.1, 0.5], "low": [0.0, 0.3]})
    plots.plot_gap_passes(ax, table.assign(high=[0.3, 0.6]), plots.series_styles(["0", "a"]))
    line, _, (bars,) = ax.containers[0].lines
    assert line.get_xydata().tolist() == [[1, 0.5], [2, 0.1]]
    assert bars.get_segments()[0][:, 1].tolist() == [pytest.approx(0.3), pytest.approx(0.6)]
    assert line.get_color() == plots.series_styles(["0", "a"])["a"]["color"]
    assert ax.get_xticks().tolist() == [1, 2]


def test_losses_on_log_axes_cut_nothing_off(ax):
    table = pd.DataFrame({"mode": "coarse", "position": [0, 1], "mean": [1e-4, 2.0], "low": [-1.0, 1.0]})
    plots.plot_position_losses(ax, table.assign(high=[1.0, 3.0]), ["coarse"], log=True)
    low, high = ax.get_ylim()
    assert low < 1e-4 and high > 3
    _, other = plt.subplots()
    losses = {"coarse": {"value": 9.0, "low": 8.0, "high": 12.0}, "fine_1": {"value": 1e-3, "low": 1e-4, "high": 2e-3}}
    plots.plot_mode_losses(other, losses, log=True)
    low, high = other.get_xlim()
    assert low < 1e-4 and high > 12
    plt.close(other.figure)
