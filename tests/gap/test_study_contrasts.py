"""Differences between recipes and effects in a study: planted ones are found, and none where there is none."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from planted_study import PARAMETERS, planted_samples, planted_table, write_results

from fvlm_lib.gap.study_contrasts import LOG_LOSS, equal_compute_contrasts, recipe_contrasts
from fvlm_lib.gap.study_effects import effects
from fvlm_lib.gap.study_results import read_study_results

KEYS = ["size", "recipe", "measure"]


def read(folder: Path, table, samples=None):
    return read_study_results(write_results(folder, table, samples))


def of_seeds(spread: float):
    """Numbers that differ by what they are asked for, and are the same whenever that is asked for again."""
    return lambda *of: spread * float(np.random.default_rng(zlib.crc32(repr(of).encode())).normal())


def test_a_recipe_that_does_as_plain_differs_by_exactly_nothing(tmp_path):
    noise = of_seeds(0.3)
    alike = lambda size, recipe, seed, step: 3.0 + noise(size, seed, step)
    table = planted_table(loss=alike, recipes=("plain", "copy"))
    for contrasts in (recipe_contrasts, equal_compute_contrasts):
        found = contrasts(read(tmp_path, table, planted_samples(table)))
        assert len(found) == 12 and not found["resolved"].any()
        assert (found[["difference", "low", "high"]] == 0.0).all(axis=None)


def test_differences_are_paired_by_seed(tmp_path):
    noise, small = of_seeds(1.0), of_seeds(0.001)
    loss = lambda size, recipe, seed, step: 5 + noise(seed) + small(size, recipe, seed) - 0.2 * (recipe == "multi")
    found = recipe_contrasts(read(tmp_path, planted_table(loss=loss))).set_index(KEYS)
    assert [*dict.fromkeys(found.index.get_level_values("size"))] == ["S", "M", "L", "all"]
    for size in ("S", "M", "L", "all"):
        row = found.loc[size, "multi", "loss_inference"]
        assert row["low"] < -0.2 < row["high"] and row["high"] - row["low"] < 0.01 and row["resolved"]
        log_row = found.loc[size, "multi", LOG_LOSS]
        assert log_row["resolved"] and np.exp(log_row["difference"]) == pytest.approx(1 - 0.2 / 5, abs=0.02)
        assert not found.loc[(size, "multi", "gap"), "resolved"] and row["num_lower"] == row["num_seeds"] == 5
    of_sizes = found.xs("loss_inference", level="measure")["difference"]
    assert of_sizes["all"].iloc[0] == pytest.approx(of_sizes[["S", "M", "L"]].mean())


def test_seeds_that_one_recipe_lacks_are_left_out_and_a_size_that_it_lacks_has_no_mean(tmp_path):
    table = planted_table(loss=lambda size, recipe, seed, step: 3.0 + seed * (recipe == "multi"))
    table = table[~((table["recipe"] == "multi") & ((table["size"] == "L") | (table["seed"] == 4)))]
    found = recipe_contrasts(read(tmp_path, table)).set_index(KEYS)
    assert {*found.index.get_level_values("size")} == {"S", "M"}
    row = found.loc["S", "multi", "loss_inference"]
    assert row["num_seeds"] == 4 and row["difference"] == pytest.approx(1.5)
    assert row["num_lower"] == 0  # equal in one, higher in three
    one = recipe_contrasts(read(tmp_path, table[table["seed"] == 1])).set_index(KEYS)
    assert one.loc[("S", "multi", "loss_inference"), "difference"] == pytest.approx(1.0)
    assert one[["low", "high"]].isna().all(axis=None) and not one["resolved"].any()


def test_without_plain_there_is_nothing_to_compare_with(tmp_path):
    results = read(tmp_path, planted_table(recipes=("multi", "rollout")))
    with pytest.raises(ValueError, match="no recipe 'plain' to compare with; its recipes are multi, rollout"):
        recipe_contrasts(results)
    assert len(recipe_contrasts(results, "multi")) == 12
    assert recipe_contrasts(read(tmp_path, planted_table(recipes=("plain",)))).empty


def test_for_equal_compute_a_recipe_is_read_between_its_checkpoints(tmp_path):
    """A power law is straight in logs, so that what is read off it is exact."""
    cost = lambda size, recipe, seed, step: 1e6 * step * (2.0 if recipe == "multi" else 1.0)
    loss = lambda size, recipe, seed, step: (20 + seed) * step**-0.3
    gap = lambda size, recipe, seed, step: 0.1 * np.log10(step)
    table = planted_table(loss=loss, gap=gap, cost=cost, sizes=("S",))
    found = equal_compute_contrasts(read(tmp_path, table)).set_index(KEYS)
    row = found.loc["S", "multi", "loss_inference"]
    assert row["training_flops"] == 3e9 and row["resolved"]
    assert row["difference"] == pytest.approx(22 * (1500**-0.3 - 3000**-0.3))
    assert found.loc[("S", "multi", "gap"), "difference"] == pytest.approx(0.1 * np.log10(0.5))
    # the other way round it is plain that is read between its own
    back = equal_compute_contrasts(read(tmp_path, table), "multi").set_index(KEYS)
    assert back.loc[("S", "plain", "loss_inference"), "difference"] == pytest.approx(-row["difference"])
    # a recipe whose first checkpoint costs more than all of plain's cannot be compared
    table.loc[table["recipe"] == "multi", "training_flops"] *= 100
    assert equal_compute_contrasts(read(tmp_path, table)).empty


def test_planted_effects_are_found_and_none_where_there_is_none(tmp_path):
    noise = of_seeds(0.002)

    def gap(size, recipe, seed, step):
        doubled = np.log2(PARAMETERS[size] / 1e5)
        return (
            0.5 + 0.03 * np.log10(step) - 0.02 * doubled - 0.1 * (recipe == "multi") + noise(size, recipe, seed, step)
        )

    loss = lambda size, recipe, seed, step: 20 * step**-0.3 * np.exp(0.01 * seed)
    found = effects(read(tmp_path, planted_table(loss=loss, gap=gap))).set_index(["outcome", "recipes", "term"])
    for term, planted in {"step": 0.03, "size": -0.02, "multi": -0.1}.items():
        row = found.loc["gap", "all", term]
        assert row["coefficient"] == pytest.approx(planted, abs=0.0015) and row["num_seeds"] == 5
        assert row["low"] < row["coefficient"] < row["high"] and row["resolved"]
    assert found.loc[("log loss_inference", "plain", "step"), "coefficient"] == pytest.approx(-0.3 * np.log(10))
    for term in ("size", "multi"):
        assert found.loc[("log loss_inference", "all", term), "coefficient"] == pytest.approx(0, abs=1e-12)
    assert "against plain" in found.loc[("gap", "all", "multi"), "unit"]


def test_effects_of_equal_seeds_are_those_of_all_runs_together(tmp_path):
    """The coefficients are those of one least-squares fit over all seeds where they have the same checkpoints."""
    table = planted_table(gap=of_seeds(1.0))
    found = effects(read(tmp_path, table)).set_index(["outcome", "recipes", "term"]).sort_index()["coefficient"]
    rows = table[table["num_frames"] == 8]
    design = [
        np.ones(len(rows)),
        np.log10(rows["step"]),
        np.log2(rows["num_text_parameters"]),
        rows["recipe"] == "multi",
    ]
    gap = rows["loss_autoregressive"] - rows["loss_fine_1"]
    together = np.linalg.lstsq(np.column_stack(design).astype(float), gap, rcond=None)[0][1:]
    assert found["gap", "all"][["step", "size", "multi"]].to_numpy() == pytest.approx(together)


def test_what_does_not_vary_is_no_term_and_a_seed_that_lacks_a_recipe_is_left_out(tmp_path):
    table = planted_table(sizes=("S",), steps=(100,))
    assert {*effects(read(tmp_path, table))["term"]} == {"multi"}
    assert effects(read(tmp_path, planted_table(sizes=("S",), steps=(100,), recipes=("plain",)))).empty
    lacking = table[(table["recipe"] == "plain") | (table["seed"] < 3)]
    assert set(effects(read(tmp_path, lacking))["num_seeds"]) == {3}
    one = effects(read(tmp_path, table[table["seed"] == 0]))
    assert one["low"].isna().all() and not one["resolved"].any()
