"""Plot functions take tidy tables and return axes that show them, with steady colours."""

from __future__ import annotations

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from fvlm_lib import plots


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def gaps() -> pd.DataFrame:
    table = pd.DataFrame({"run": ["b", "a", "b", "a"], "step": [300, 100, 100, 300], "gap_nats": [0.3, 0.1, 0.2, 0.0]})
    return table.assign(gap_nats_low=table["gap_nats"] - 0.05, gap_nats_high=table["gap_nats"] + 0.1)


def test_a_gap_line_goes_by_step_with_its_interval(ax):
    plots.plot_gap(ax, gaps())
    by_label = {container.get_label(): container for container in ax.containers}
    line, _, (bars,) = by_label["b"].lines
    assert line.get_xdata().tolist() == [100, 300]
    assert line.get_ydata().tolist() == [0.2, 0.3]
    low, high = bars.get_segments()[0][:, 1]
    assert (low, high) == (pytest.approx(0.15), pytest.approx(0.3))
    assert ax.get_xscale() == "log"


def test_runs_keep_their_colour_whatever_the_order():
    one, other = plots.series_styles(["S", "M", "S"]), plots.series_styles(["M", "S"])
    assert one == other
    assert one["S"]["color"] != one["M"]["color"]
    assert one["S"]["marker"] != one["M"]["marker"]


def test_modes_have_distinct_colours_and_names():
    styles = [plots.mode_style(mode) for mode in ("coarse", "fine_1", "fine_2", "fine_3", "autoregressive", "fine_7")]
    assert len({name for name, _ in styles}) == len({colour for _, colour in styles}) == 6


def test_mode_losses_are_drawn_at_their_values(ax):
    losses = {"coarse": {"value": 1.0, "low": 0.9, "high": 1.2}, "fine_1": {"value": 0.5, "low": 0.4, "high": 0.6}}
    plots.plot_mode_losses(ax, losses)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["coarse", "training (1 fine pass)"]
    assert [container.lines[0].get_xdata()[0] for container in ax.containers] == [1.0, 0.5]
