"""Figures of a study show the tables that they are given, and a recipe looks the same in all of them."""

from __future__ import annotations

import itertools

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from fvlm_lib.batch.study_config import read_study_file
from fvlm_lib.figures import palette, study_plots

SIZES = {"S": "S (60k)", "L": "L (400k)"}


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def with_ends(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    """With intervals from 0.1 below to 0.3 above."""
    ends = {f"{name}{end}": table[name] + off for name in names for end, off in (("_low", -0.1), ("_high", 0.3))}
    return table.assign(**ends)


def means() -> pd.DataFrame:
    rows = [
        ("L", 400_000, "plain", 10, 4e9, 2.0, 0.5, False), ("L", 400_000, "plain", 100, 4e10, 1.0, 0.8, True),
        ("L", 400_000, "multi", 10, 8e9, 2.1, 0.1, False), ("L", 400_000, "multi", 100, 8e10, 0.9, 0.2, True),
        ("S", 60_000, "plain", 10, 1e9, 2.5, 0.4, True), ("S", 60_000, "plain", 100, 1e10, 1.5, 0.6, True),
    ]  # fmt: skip
    columns = [
        "size", "num_text_parameters", "recipe", "step", "training_flops", "loss_inference", "gap", "on_frontier",
    ]  # fmt: skip
    return with_ends(pd.DataFrame(rows, columns=columns), "loss_inference", "gap")


def line_of(ax, label: str):
    """The line of that label, and the vertical spans of its bars."""
    container = next(one for one in ax.containers if one.get_label() == label)
    line, _, (bars,) = container.lines
    return line, np.array([segment[:, 1] for segment in bars.get_segments()])


def test_recipes_differ_in_colour_or_line_and_in_grey_print_by_their_markers():
    recipes = {run.recipe for run in read_study_file(ROOT / "config" / "study.yaml").runs.values()}
    styles = study_plots.recipe_styles(recipes)
    assert next(iter(styles)) == "plain" and styles["plain"]["color"] == palette.BLACK
    assert len(styles) == 8 and styles == study_plots.recipe_styles(sorted(recipes, reverse=True))
    assert {style["color"] for style in styles.values()} <= {*palette.COLOURS.values()}
    for one, other in itertools.combinations(styles.values(), 2):
        assert one["marker"] != other["marker"]
        assert (one["color"], one["linestyle"]) != (other["color"], other["linestyle"])
    many = study_plots.recipe_styles(map(str, range(20))).values()
    assert len({(style["color"], style["marker"], style["linestyle"]) for style in many}) == 20


def test_sizes_go_by_their_parameters_and_are_told_with_them():
    assert study_plots.size_labels(means()) == SIZES and [*study_plots.size_labels(means())] == ["S", "L"]


def test_what_is_beaten_for_the_compute_is_hollow_and_the_rest_lies_on_the_frontier(ax):
    study_plots.plot_compute(ax, means(), "L")
    line, bars = line_of(ax, "plain")
    assert line.get_xydata().tolist() == [[4e9, 2.0], [4e10, 1.0]]
    np.testing.assert_allclose(bars, [[1.9, 2.3], [0.9, 1.3]])
    hollow = [one.get_xydata().tolist() for one in ax.lines if one.get_markerfacecolor() == "white"]
    assert hollow == [[[4e9, 2.0]], [[8e9, 2.1]]]
    (frontier,) = [one for one in ax.lines if one.get_drawstyle() == "steps-post"]
    assert frontier.get_xydata().tolist() == [[1e9, 2.5], [1e10, 1.5], [4e10, 1.0], [8e10, 0.9], [8e10, 0.9]]
    behind = next(one for one in ax.lines if one.get_marker() == ".")
    assert behind.get_xydata().tolist() == [[1e9, 2.5], [1e10, 1.5]]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_legend_handles_labels()[1] == ["plain", "multi", "lowest for the compute"]


def test_gaps_by_step_stand_beside_each_other_and_the_axis_is_that_of_all_sizes(ax):
    study_plots.plot_gap_by_step(ax, means(), "S")
    line, bars = line_of(ax, "plain")
    assert line.get_ydata().tolist() == [0.4, 0.6]
    np.testing.assert_allclose(bars, [[0.3, 0.7], [0.5, 0.9]])
    assert all(0.8 < x / step < 1 for x, step in zip(line.get_xdata(), (10, 100), strict=True))
    assert len(line_of(ax, "multi")[0].get_xdata()) == 0, "which size S was not trained by"
    far = means().assign(gap=[0.5, 90.0, 0.1, 0.2, 0.4, 0.6])
    study_plots.plot_gap_by_step(ax, with_ends(far, "gap"), "S")
    assert ax.get_yscale() == "symlog" and "logarithmic beyond ±1" in ax.get_ylabel()


def test_one_seed_has_points_without_bars(ax):
    alone = means().assign(gap_low=np.nan, gap_high=np.nan, loss_inference_low=np.nan, loss_inference_high=np.nan)
    study_plots.plot_compute(ax, alone, "L")
    line, bars = line_of(ax, "plain")
    assert line.get_ydata().tolist() == [2.0, 1.0] and (np.ptp(bars, axis=1) == 0).all()
    study_plots.plot_gap_by_step(ax, alone, "L")
    assert np.isfinite(ax.get_ylim()).all()


def test_what_is_left_of_the_gap_goes_by_passes(ax):
    keys = [("S", "plain", 10), ("S", "plain", 100), ("S", "multi", 100)]
    table = pd.DataFrame(
        [(*key, k, gap / k) for key, gap in zip(keys, (0.3, 0.6, 0.1), strict=True) for k in (1, 2)],
        columns=["size", "recipe", "step", "passes", "gap"],
    )
    study_plots.plot_passes(ax, with_ends(table[table["step"] == 100], "gap"), "S")
    assert line_of(ax, "plain")[0].get_ydata().tolist() == [0.6, 0.3]
    assert line_of(ax, "multi")[0].get_ydata().tolist() == [0.1, 0.05]
    assert ax.get_xticks().tolist() == [1, 2]
    _, by_step = plt.subplots()
    study_plots.plot_passes_by_step(by_step, with_ends(table, "gap"), "plain")
    lines = [line_of(by_step, label)[0] for label in ("step 10", "step 100")]
    assert [line.get_xydata().tolist() for line in lines] == [[[1, 0.3], [2, 0.15]], [[1, 0.6], [2, 0.3]]]
    light, dark = (sum(line.get_markerfacecolor()) for line in lines)
    assert light > dark, "the later the darker"


def test_gaps_that_are_rounding_do_not_stretch_the_axis(ax):
    rows = [("S", "plain", 100, k, gap) for k, gap in enumerate((0.7, 1e-7, -1e-7, 1e-8), start=1)]
    table = pd.DataFrame(rows, columns=["size", "recipe", "step", "passes", "gap"])
    study_plots.plot_passes(ax, table.assign(gap_low=table["gap"], gap_high=table["gap"]), "S")
    assert "logarithmic beyond ±0.001" in ax.get_ylabel()


def test_contrasts_are_points_a_size_and_one_over_all_hollow_where_they_are_not_resolved(ax):
    table = pd.DataFrame(
        [
            ("S", "multi", "gap", -0.3, -0.4, -0.2, True), ("L", "multi", "gap", 0.1, -0.1, 0.3, False),
            ("all", "multi", "gap", -0.1, -0.2, 0.1, False), ("S", "rollout", "gap", -0.5, -0.6, -0.4, True),
            ("S", "multi", "loss_inference", 7.0, 6.0, 8.0, True),
        ],
        columns=["size", "recipe", "measure", "difference", "low", "high", "resolved"],
    )  # fmt: skip
    study_plots.plot_contrasts(ax, table, "gap", SIZES)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["multi", "rollout"]
    points = {one.get_label(): one.lines[0].get_xydata() for one in ax.containers}
    assert [*points] == ["S (60k)", "L (400k)", "all sizes"]
    assert points["S (60k)"][:, 0].tolist() == [-0.3, -0.5] and points["S (60k)"][:, 1].round().tolist() == [0, 1]
    bars = next(one for one in ax.containers if one.get_label() == "L (400k)").lines[2][0].get_segments()[0]
    np.testing.assert_allclose(bars[:, 0], [-0.1, 0.3])
    hollow = [x for one in ax.lines if one.get_markerfacecolor() == "white" for x in one.get_xdata()]
    assert hollow == [0.1, -0.1]
    assert "gap minus plain's" in ax.get_xlabel()


@pytest.mark.parametrize(("what", "scale"), [("gap", "linear"), ("loss_inference", "log")])
def test_lengths_have_their_ticks_and_points_beside_each_other(ax, what, scale):
    table = pd.DataFrame({"size": "S", "recipe": "plain", "num_frames": [8, 16], what: [0.5, 0.7]})
    study_plots.plot_lengths(ax, with_ends(table, what), "S", what)
    assert line_of(ax, "plain")[0].get_ydata().tolist() == [0.5, 0.7]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["8", "16"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", scale)


def test_norms_and_gaps_are_points_darker_with_steps(ax):
    table = pd.DataFrame(
        {"size": ["S", "L", "L"], "step": [10, 10, 100], "query_norm": [0.5, 0.7, np.nan], "gap": [-0.1, 0.2, 0.3]}
    )
    study_plots.plot_norms(ax, table, SIZES)
    points = [(line.get_marker(), line.get_xydata().tolist()) for line in ax.lines if len(line.get_xdata())]
    assert points == [("o", [[0.5, 0.1]]), ("s", [[0.7, 0.2]])], "the one without a norm is left out"
    assert ax.get_legend_handles_labels()[1] == ["S (60k)", "L (400k)", "step 10"]
    assert ax.get_yscale() == "log"


def test_no_size_is_left_out_however_many_there_are(ax):
    sizes = {name: f"{name} (1k)" for name in "ABCDEFGH"}
    norms = pd.DataFrame([(size, 100, 0.5, 0.1) for size in sizes], columns=["size", "step", "query_norm", "gap"])
    study_plots.plot_norms(ax, norms, sizes)
    assert {*sizes.values()} <= {*ax.get_legend_handles_labels()[1]}
    assert sum(len(line.get_xdata()) for line in ax.lines) == len(sizes)
    contrasts = pd.DataFrame(
        [(size, "multi", "gap", -0.1, -0.2, 0.1, True) for size in sizes],
        columns=["size", "recipe", "measure", "difference", "low", "high", "resolved"],
    )
    _, other = plt.subplots()
    study_plots.plot_contrasts(other, contrasts, "gap", sizes)
    assert other.get_legend_handles_labels()[1] == [*sizes.values()]


def test_without_norms_the_axes_say_so_and_a_gap_of_0_has_its_place(ax):
    none = pd.DataFrame(columns=["size", "step", "query_norm", "gap"])
    study_plots.plot_norms(ax, none, SIZES)
    assert [text.get_text() for text in ax.texts] == ["no checkpoint has its norm measured"]
    _, other = plt.subplots()
    study_plots.plot_norms(
        other, pd.DataFrame({"size": "S", "step": 1, "query_norm": [1.0, 2], "gap": [0.0, 1]}), SIZES
    )
    assert other.get_yscale() == "symlog"
    plt.close("all")


@pytest.mark.parametrize("values", [[0.9, 1.3], [0.2, 3.0], [1e-3, 1e3]])
def test_an_axis_has_at_least_two_ticks_with_numbers_within_any_range(ax, values):
    table = means().head(2).assign(loss_inference=values)
    study_plots.plot_compute(ax, table.drop(columns=["loss_inference_low"]).assign(loss_inference_low=values), "L")
    low, high = ax.get_ylim()
    labels = [
        text.get_text() for at, text in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True) if low <= at <= high
    ]
    assert len(labels) >= 2 and all(labels)
