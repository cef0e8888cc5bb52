"""Laws of a study and the norm as a predictor: planted ones are found, and refused where there is none."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted_study import PARAMETERS, planted_table, write_results

from fvlm_lib.gap.study_laws import laws
from fvlm_lib.gap.study_norms import norm_points, norm_prediction
from fvlm_lib.gap.study_results import read_study_results

KEYS = ["measure", "recipe", "size", "form"]


def found_laws(folder: Path, **formulas):
    table = planted_table(recipes=("plain",), lengths=(8,), **formulas)
    return laws(read_study_results(write_results(folder, table))).set_index(KEYS)


def test_a_planted_power_law_is_found_with_the_spread_of_its_seeds(tmp_path):
    exponents = [0.28, 0.29, 0.30, 0.31, 0.32]
    found = found_laws(
        tmp_path,
        sizes=("S",),
        loss=lambda size, recipe, seed, step: 20 * (step / 550) ** -exponents[seed],
        gap=lambda size, recipe, seed, step: 0.01 * step**0.2,
    )
    row = found.loc["loss_inference", "plain", "S", "power"]
    assert row["fitted"] and pd.isna(row["refused"]) and row["r2_log"] > 0.999 and row["num_points"] == 4
    assert row["exponent_step"] == pytest.approx(0.30, abs=0.002)
    # the mean of five exponents, whose interval is Student's
    margin = 2.776 * np.std(exponents, ddof=1) / 5**0.5
    assert row["exponent_step_high"] - row["exponent_step"] == pytest.approx(margin, rel=0.05)
    growing = found.loc["abs_gap", "plain", "S", "power"]  # a gap that grows has a negative one
    assert growing["exponent_step"] == pytest.approx(-0.2, abs=1e-3) and pd.isna(growing["refused"])


def test_a_floor_and_a_joint_law_are_found(tmp_path):
    loss = lambda size, recipe, seed, step: 0.8 + 30 * PARAMETERS[size] ** -0.25 + 9 * step**-0.4 * (1 + 0.004 * seed)
    found = found_laws(tmp_path, loss=loss)
    row = found.loc["loss_inference", "plain", "M", "offset_power"]
    assert row["floor"] == pytest.approx(0.8 + 30 * PARAMETERS["M"] ** -0.25, rel=1e-2)
    assert row["exponent_step"] == pytest.approx(0.4, abs=0.01)
    joint = found.loc["loss_inference", "plain", "all", "joint"]
    assert joint["exponent_step"] == pytest.approx(0.4, abs=0.01) and joint["num_points"] == 12
    assert joint["r2_log"] > 0.999


def test_what_the_points_do_not_determine_is_refused(tmp_path):
    rough = lambda size, recipe, seed, step: 9 * step**-0.4 * (1 + 0.02 * np.sin(5 * seed + step))
    found = found_laws(tmp_path, loss=rough)
    assert pd.isna(found.loc[("loss_inference", "plain", "S", "power"), "refused"])
    refused = found.loc[("loss_inference", "plain", "S", "offset_power"), "refused"]
    assert refused.endswith("the points determine no floor: it reaches 0")
    joint = found.loc["loss_inference", "plain", "all", "joint"]  # size does nothing
    assert "no exponent of size" in joint["refused"]


def test_what_is_no_law_is_refused_in_words(tmp_path):
    two = found_laws(tmp_path, steps=(100, 3000), sizes=("S",))
    assert not two["fitted"].any() and "power needs at least 3 points; there are 2" in two["refused"].iloc[0]
    turning = found_laws(tmp_path, sizes=("S",), gap=lambda *of: 0.1 if of[3] > 300 else -0.1)
    assert "not of one sign" in turning.loc[("abs_gap", "plain", "S", "power"), "refused"]
    plateau = found_laws(tmp_path, sizes=("S",), loss=lambda *of: 0.1 if of[3] == 3000 else 3.0)
    assert "a law needs 0.95" in plateau.loc[("loss_inference", "plain", "S", "power"), "refused"]
    one = found_laws(tmp_path, sizes=("S",), seeds=(0,))
    row = one.loc["loss_inference", "plain", "S", "power"]
    assert row["fitted"] and np.isnan(row["exponent_step_low"])


def with_norms(folder: Path, norm, **formulas):
    table = planted_table(lengths=(8,), **formulas)
    keys = table[["size", "recipe", "seed", "step"]].itertuples(index=False, name=None)
    return read_study_results(write_results(folder, table.assign(query_norm=[norm(*key) for key in keys])))


def spread(size, recipe, seed, step) -> float:
    """A gap that differs by all of them, and by chance."""
    number = zlib.crc32(f"{size}/{recipe}/{seed}/{step}".encode())
    return 0.01 * step**0.3 * float(np.exp(np.random.default_rng(number).normal(0, 0.4)))


def test_a_norm_that_the_gap_follows_predicts_it_within_a_size_and_step_too(tmp_path):
    results = with_norms(tmp_path, lambda *of: 3 * spread(*of) ** 0.5, gap=spread)
    found = norm_prediction(results)
    assert found.num_rows == 120 and found.num_runs == 30 and len(norm_points(results)) == 120
    assert found.spearman.value == pytest.approx(1) and found.spearman_within.value == pytest.approx(1)
    assert found.slope.value == pytest.approx(2) and found.slope_within.low == pytest.approx(2)


def test_a_norm_that_follows_steps_alone_predicts_nothing_within_a_step(tmp_path):
    found = norm_prediction(with_norms(tmp_path, lambda *of: float(of[3]), gap=spread))
    assert found.spearman.low > 0.3 and found.spearman_within is None and found.slope_within is None
    other = lambda size, recipe, seed, step: step * spread(size, recipe, seed + 10, step)
    found = norm_prediction(with_norms(tmp_path, other, gap=spread))
    assert found.spearman.low > 0.3
    assert found.spearman_within.low < 0 < found.spearman_within.high


def test_a_checkpoint_that_two_runs_share_counts_once(tmp_path):
    """A run that ends by another recipe begins by the very weights of plain training."""
    norm = lambda size, recipe, seed, step: float(zlib.crc32(f"{size}/{seed}/{step}".encode()))
    gap = lambda size, recipe, seed, step: spread(size, "plain" if step < 3000 else recipe, seed, step)
    alone = with_norms(tmp_path, norm, recipes=("plain",), gap=gap)
    both = with_norms(tmp_path, norm, recipes=("plain", "tuned"), gap=gap)
    hashes = ["/".join(map(str, row)) for row in both.table[["size", "seed", "step"]].itertuples(index=False)]
    last = both.table["step"] == 3000
    both.table["weights_hash"] = [
        f"{of}/{recipe}" if end else of for of, recipe, end in zip(hashes, both.table["recipe"], last, strict=True)
    ]
    points = norm_points(both)
    assert len(norm_points(alone)) == 60 and len(points) == 75
    assert set(points.loc[points["recipe"] == "tuned", "step"]) == {3000}
    assert norm_prediction(both).num_rows == 75
    both.table["weights_hash"] = None  # removed since: nothing tells
    assert len(norm_points(both)) == 120


def test_without_norms_nothing_is_said(tmp_path):
    table = planted_table(lengths=(8,))
    results = read_study_results(write_results(tmp_path, table))
    assert norm_prediction(results) is None and norm_points(results).empty
    assert norm_prediction(with_norms(tmp_path, lambda *of: np.nan)) is None
    one_seed = with_norms(tmp_path, lambda *of: 3 * spread(*of), gap=spread, seeds=(0,))
    assert len(norm_points(one_seed)) == 24 and norm_prediction(one_seed) is None
