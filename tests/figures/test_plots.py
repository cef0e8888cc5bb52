"""Plot functions take tidy tables and return axes that show them, with steady colours."""

from __future__ import annotations

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fvlm_lib.figures import palette, plots, screen_plots
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


def test_seeds_of_a_recipe_share_its_colour_and_differ_in_markers():
    styles = plots.series_styles(["S, seed 1", "M", "S, seed 0"], ["S", "M", "S"])
    assert styles["S, seed 0"]["color"] == styles["S, seed 1"]["color"] != styles["M"]["color"]
    assert styles["S, seed 0"]["marker"] != styles["S, seed 1"]["marker"]


def test_seeds_of_a_recipe_are_a_mean_and_a_band_from_the_lowest_to_the_highest(ax):
    runs = ["M"] * 2 + ["S, seed 0"] * 2 + ["S, seed 1"] * 3
    table = pd.DataFrame(
        {"run": runs, "group": ["M"] * 2 + ["S"] * 5, "seed": [0, 0, 0, 0, 1, 1, 1], "doubtful": "gap"}
    )
    table["step"] = [100, 300, 100, 300, 100, 300, 900]
    table["gap_nats"] = [0.5, 0.4, 0.1, 0.3, 0.3, 0.2, 0.1]
    plots.plot_gap(ax, table.assign(gap_nats_low=table["gap_nats"] - 0.1, gap_nats_high=table["gap_nats"] + 0.1))
    lines = {line.get_label(): line for line in ax.lines}
    mean = lines["S: mean and range of 2 seeds"]  # where both have a gap
    assert mean.get_xdata().tolist() == [100, 300] and mean.get_ydata().tolist() == pytest.approx([0.2, 0.25])
    (band,) = [c for c in ax.collections if isinstance(c, matplotlib.collections.PolyCollection)]
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.round(9).tolist()}
    assert {(100, 0.1), (100, 0.3), (300, 0.2), (300, 0.3)} == corners
    thin = [line for line in ax.lines if line.get_color() == mean.get_color() and line is not mean]
    assert sorted(len(line.get_xdata()) for line in thin) == [2, 3]
    containers = [container.get_label() for container in ax.containers]
    assert containers == ["M", "hollow: interval may be too narrow"]  # only the run alone has the intervals


def test_one_gap_far_off_does_not_make_the_others_one_point(ax):
    table = pd.DataFrame({"run": "a", "step": [100, 300, 1000, 3000], "doubtful": ""})
    table["gap_nats"] = [0.64, 0.004, -0.003, 0.002]
    table = table.assign(gap_nats_low=table["gap_nats"] - 0.001, gap_nats_high=table["gap_nats"] + 0.2)
    plots.plot_gap(ax, table)
    assert ax.get_yscale() == "symlog" and ax.get_ylabel() == "gap, nats a token\n(logarithmic beyond ±0.01)"
    places = ax.transAxes.inverted().transform(ax.transData.transform([(100, y) for y in table["gap_nats"]]))[:, 1]
    assert places[1] - places[2] > 0.1  # 0.007 apart: 1% of a plain axis
    low, high = ax.get_ylim()
    assert low < -0.004 and high > 0.84
    plain = ax.figure.add_subplot()
    plots.plot_gap(plain, table.iloc[1:].assign(gap_nats_high=0.01))
    assert plain.get_yscale() == "linear" and plain.get_ylabel() == "gap, nats a token"


def test_modes_have_distinct_colours_and_names():
    styles = [plots.mode_style(mode) for mode in ("coarse", "fine_1", "fine_2", "fine_3", "autoregressive", "fine_7")]
    assert len({name for name, _ in styles}) == len({colour for _, colour in styles}) == 6


def test_mode_losses_are_drawn_at_their_values(ax):
    losses = {"coarse": {"value": 1.0, "low": 0.9, "high": 1.2}, "fine_1": {"value": 0.5, "low": 0.4, "high": 0.6}}
    plots.plot_mode_losses(ax, losses)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["coarse", "training (1 fine pass)"]
    assert [container.lines[0].get_xdata()[0] for container in ax.containers] == [1.0, 0.5]


def test_changed_patches_are_outlined_and_the_rest_is_faded(ax):
    frame = np.zeros((20, 30, 3), dtype=np.uint8)
    mask = np.zeros((2, 3), dtype=bool)
    mask[1, 2] = True
    screen_plots.plot_changed_patches(ax, frame, mask, 10)
    shown = ax.images[0].get_array()
    assert (shown[10:, 20:] == 0).all()
    assert (shown[:10] == 165).all()
    corners = np.concatenate(ax.collections[0].get_segments())
    assert corners.min(axis=0).tolist() == [19.5, 9.5] and corners.max(axis=0).tolist() == [29.5, 19.5]


def test_patches_side_by_side_have_one_outline_and_a_whole_frame_has_none(ax):
    frame, mask = np.full((40, 40, 3), 9, dtype=np.uint8), np.zeros((4, 4), dtype=bool)
    mask[1:3, 1:4] = True
    screen_plots.plot_changed_patches(ax, frame, mask, 10)
    sides = sorted(np.ravel(side).tolist() for side in ax.collections[0].get_segments())
    assert sides == [[9.5, 9.5, 9.5, 29.5], [9.5, 9.5, 39.5, 9.5], [9.5, 29.5, 39.5, 29.5], [39.5, 9.5, 39.5, 29.5]]
    whole = ax.figure.add_subplot()
    screen_plots.plot_changed_patches(whole, frame, np.ones((4, 4), dtype=bool), 10)
    assert not whole.collections and (whole.images[0].get_array() == 9).all()


def test_where_no_patch_changes_the_map_says_so(ax):
    screen_plots.plot_change_frequency(ax, np.zeros((20, 20, 3), dtype=np.uint8), np.zeros((2, 2)))
    assert [text.get_text() for text in ax.texts] == ["no patch changes"]


def test_a_timeline_has_a_bar_a_frame_and_ends_where_the_later_ones_do(ax):
    table = pd.DataFrame(
        {"frame": [0, 1, 2], "path": ["full", "cached", "partial"], "changed": [8, 0, 2], "total": [8, 8, 8]}
    )
    screen_plots.plot_change_timeline(ax, table)
    assert sorted(bar.get_height() for bar in ax.patches) == [0, 0.25, 1]
    (first,) = [bar for bar in ax.patches if bar.get_hatch()]
    assert (first.get_x() + first.get_width() / 2, first.get_height()) == (0, 1)
    assert 0.25 < ax.get_ylim()[1] < 0.3
    assert ax.get_legend_handles_labels()[1] == ["tokens kept", "partial update", "first frame (all)"]


def test_the_times_of_both_ways_differ_in_line_marker_and_colour_and_have_their_medians(ax):
    table = pd.DataFrame({"frame": [0, 1, 2, 3], "path": ["full", "cached", "partial", "partial"]})
    table = table.assign(first_token_ms=[90.0, 10.0, 20.0, 30.0], first_token_ms_full=[80.0, 40.0, 41.0, 45.0])
    screen_plots.plot_first_token_times(ax, table)
    lines = {line.get_label(): line for line in ax.lines}
    full, kept = (lines[f"{way}, median {ms} ms"] for way, ms in (
        ("every frame in full", 41), ("what did not change is kept", 20)
    ))  # fmt: skip
    assert full.get_ydata().tolist() == [80, 40, 41, 45] and kept.get_ydata().tolist() == [90, 10, 20, 30]
    assert full.get_color() != kept.get_color() and (full.get_linestyle(), kept.get_linestyle()) == ("--", "-")
    assert lines["partial update"].get_xydata().tolist() == [[2, 20], [3, 30]]


@pytest.mark.parametrize(("fps", "dashed"), [(20.0, [50, 50]), (4.0, None)])  # 50 and 250 ms from frame to frame
def test_the_parts_of_a_frame_stand_on_top_of_each_other_with_their_medians(ax, fps, dashed):
    table = pd.DataFrame({"frame": [0, 1, 2], "encode_ms": [9.0, 4.0, 6.0], "look_ms": [1.0, 2.0, 2.0]})
    table = table.assign(language_ms=[3.0, 3.0, 3.0], caption_ms=[20.0, 0.0, 30.0])
    screen_plots.plot_live_times(ax, table, fps)
    bars = {bars.get_label(): [(bar.get_y(), bar.get_height()) for bar in bars] for bars in ax.containers}
    assert bars == {
        "encode, median 5.0 ms": [(0, 9), (0, 4), (0, 6)], "look, median 2.0 ms": [(9, 1), (4, 2), (6, 2)],
        "language model, median 3.0 ms": [(10, 3), (6, 3), (8, 3)],
        "caption, median 30.0 ms": [(13, 20), (9, 0), (11, 30)],
    }  # fmt: skip
    assert [list(line.get_ydata()) for line in ax.lines] == ([dashed] if dashed else [])
    assert ax.get_ylim()[1] == pytest.approx(1.05 * (50 if dashed else 41))


def test_speed_and_error_of_each_policy_are_drawn(ax):
    table = pd.DataFrame(
        {"policy": ["exact match", "none", "gated 0.1"], "error_mean": [0.0, 0.1, 0.05], "total_speedup": [1, 3, 2]}
    )
    screen_plots.plot_speed_error(ax, table)
    points = {line.get_label(): line.get_xydata()[0].tolist() for line in ax.lines if line.get_label()[0] != "_"}
    assert points == {
        "whole frames, exact match": [0, 1], "changed patches alone": [0.1, 3], "gated at 0.1": [0.05, 2]
    }  # fmt: skip


def test_no_error_has_a_tick_of_its_own_on_the_axis_of_errors(ax):
    policies = ["exact match", "pseudocode", "gated 0.1", "gated 0", "my own"]
    table = pd.DataFrame({"policy": policies, "error_mean": [0.0, 0.2, 0.01, 3e-4, 0.02], "total_speedup": 2.0})
    screen_plots.plot_speed_error(ax, table)
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    ticks = [(t.get_loc(), t.label1.get_text()) for t in ax.xaxis.get_major_ticks() if low < t.get_loc() < high]
    assert [place for place, _ in ticks] == [0, 1e-4, 1e-3, 1e-2, 1e-1]
    assert ticks[0][1] in ("0", r"$\mathdefault{0}$")
    x = ax.transAxes.inverted().transform(ax.transData.transform([(e, 2) for e in table["error_mean"]]))[:, 0]
    assert 0.03 < x[0] < x[3] < x[2] < x[1] < 0.97
    fills = {line.get_label(): line.get_markerfacecolor() for line in ax.lines}
    assert fills["gated at 0"] == palette.BLUE and fills["gated at 0.1"] == (1, 1, 1)
    assert fills["my own"] == palette.BLACK
    other = ax.figure.add_subplot()
    screen_plots.plot_speed_error(other, table[:1])
    assert other.get_xscale() == "linear"  # of no errors at all


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
        assert sum(line.get_linestyle() == "--" for line in ax.lines if len(line.get_xdata())) == lines
        assert ("power law a·C^-b" in ax.get_legend_handles_labels()[1]) == bool(lines)
        assert [text.get_text() for text in ax.texts] == texts
        plt.close(figure)


def test_intervals_of_policies_are_drawn_where_there_are_some(ax):
    table = pd.DataFrame({"policy": ["none", "gated 0.1"], "error_mean": [0.1, 0.05], "total_speedup": [3.0, 2.0]})
    intervals = {"error_mean_low": [0.05, np.nan], "error_mean_high": [0.2, np.nan]}
    intervals |= {"total_speedup_low": [2.5, np.nan], "total_speedup_high": [4.0, np.nan]}
    screen_plots.plot_speed_error(ax, table.assign(**intervals))
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


def test_losses_that_are_nearly_alike_are_not_cut_off_at_the_right(ax):
    losses = {
        mode: {"value": v, "low": v - 0.004, "high": v + 0.006} for mode, v in (("coarse", 1.74), ("fine_1", 1.7))
    }
    plots.plot_mode_losses(ax, losses)
    low, high = ax.get_xlim()
    assert low == 0 and high > 1.8
    ax.figure.canvas.draw()
    for container in ax.containers:
        marker = container.lines[0].get_window_extent()
        assert marker.x1 + container.lines[0].get_markersize() < ax.bbox.x1


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
