"""A study's results are read and checked, and means over seeds are those of planted tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planted_study import planted_samples, planted_table, write_results

from fvlm_lib.gap.study_means import compute_frontier, length_curves, passes_curves, seed_means
from fvlm_lib.gap.study_results import StudyResults, read_study_results


def by_seed(*args) -> float:
    """0.1, and as many hundredths as the seed is."""
    return 0.1 + 0.01 * args[2]


def read(folder: Path, samples: bool = False, **formulas) -> StudyResults:
    table = planted_table(**formulas)
    return read_study_results(write_results(folder, table, planted_samples(table) if samples else None))


def test_the_training_s_length_is_what_all_checkpoints_are_evaluated_on(tmp_path):
    results = read(tmp_path, sizes=("L", "S"), recipes=("multi", "plain"))
    assert results.num_frames == 8 and results.last_step == 3000 and len(results.trained) == 80
    assert results.sizes == ["S", "L"] and results.recipes == ["plain", "multi"] and results.samples is None
    assert read_study_results(tmp_path, num_frames=16).num_frames == 16
    with pytest.raises(ValueError, match="no evaluation on videos of 4 frames; it has those of 8, 16"):
        read_study_results(tmp_path, num_frames=4)


def test_files_that_are_none_of_a_study_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"study\.parquet is missing; `fvlm study-table"):
        read_study_results(tmp_path)
    (tmp_path / "study.parquet").write_text("size,recipe\n")
    with pytest.raises(ValueError, match="is no Parquet table"):
        read_study_results(tmp_path)
    good = planted_table(seeds=(0,), sizes=("S",))
    wrong = {
        "has no column trained_passes": good.drop(columns="trained_passes"),
        "has no rows": good.iloc[:0],
        "loss_coarse is nan at row 1": good.assign(loss_coarse=good["loss_coarse"].where(good.index != 1)),
        r"has S plain 0 100 8 twice": good.iloc[[0, 0, 1]],
        "the recipe multi has several trained_passes": good.assign(trained_passes=[1, 2] * 5),
        "multi has several trained_passes": good.assign(trained_passes=[1] * 9 + [None]),
        "trained_passes of plain is null": good.assign(trained_passes=None),
        "trained_passes is 1.5; it must be a whole number": good.assign(trained_passes=1.5),
        "multi trains 7 passes, and there is no column loss_fine_7": good.assign(trained_passes=7),
    }
    for said, table in wrong.items():
        write_results(tmp_path, table)
        with pytest.raises(ValueError, match=said):
            read_study_results(tmp_path)


def test_samples_must_be_those_of_the_table_and_the_same_in_every_row(tmp_path):
    table = planted_table(seeds=(0, 1), sizes=("S",))
    samples = planted_samples(table)
    write_results(tmp_path, table, samples[samples["seed"] == 0])
    with pytest.raises(ValueError, match="has no samples of S multi 1 100, which the table has"):
        read_study_results(tmp_path)
    write_results(tmp_path, table, samples.iloc[:-1])
    with pytest.raises(ValueError, match="the samples of S multi 1 3000 are not those of the rows before"):
        read_study_results(tmp_path)
    write_results(tmp_path, table, samples.drop(columns="sample"))
    with pytest.raises(ValueError, match="has no column sample"):
        read_study_results(tmp_path)


def test_means_over_seeds_have_student_s_interval(tmp_path):
    means = seed_means(read(tmp_path, gap=by_seed, loss=lambda *of: 2.0))
    row = means.set_index(["size", "recipe", "step"]).loc["M", "multi", 300]
    assert row["num_seeds"] == 5 and row["gap"] == pytest.approx(0.12) and row["loss_trained"] == pytest.approx(1.88)
    margin = 2.7764451052 * np.std([0.10, 0.11, 0.12, 0.13, 0.14], ddof=1) / 5**0.5
    assert row["gap_high"] - row["gap"] == pytest.approx(margin) == row["gap"] - row["gap_low"]
    assert row["loss_inference_low"] == row["loss_inference_high"] == 2.0
    assert row["loss_coarse"] == 2.5 and row["training_flops"] == pytest.approx(6e13)
    assert means["recipe"].iloc[:5].tolist() == ["plain"] * 4 + ["multi"]


def test_the_gap_is_that_of_the_passes_that_are_trained_last(tmp_path):
    results = read(tmp_path, passes=lambda recipe: 3 if recipe == "multi" else 1)
    assert seed_means(results)["gap"].to_numpy() == pytest.approx(0.1)
    curves = passes_curves(results).set_index(["size", "recipe", "step", "passes"]).sort_index()["gap"]
    assert curves["S", "plain", 100].tolist() == pytest.approx([0.1, 0.05, 0.025])
    assert curves["S", "multi", 100].tolist() == pytest.approx([0.4, 0.2, 0.1])


def test_what_is_trained_by_sequential_use_has_no_gap_to_it(tmp_path):
    passes = lambda recipe: None if recipe == "rollout" else 1
    results = read(tmp_path, samples=True, recipes=("plain", "rollout"), passes=passes, gap=lambda *of: -2.0)
    means = seed_means(results)
    means = means[means["recipe"] == "rollout"]
    assert means[["gap", "gap_low", "gap_high", "trained_passes"]].isna().all(axis=None) and len(means) == 12
    assert (means["loss_trained"] == means["loss_inference"]).all()
    curves = passes_curves(results).set_index(["size", "recipe", "step", "passes"])["gap"]
    assert curves["S", "rollout", 100, 1] == pytest.approx(-1.0)  # what its queries are worth in parallel


def test_of_one_seed_there_is_a_mean_and_no_interval(tmp_path):
    results = read(tmp_path, samples=True, seeds=(3,))
    for table in (seed_means(results), passes_curves(results), length_curves(results)):
        assert table["gap"].notna().all() and table[["gap_low", "gap_high"]].isna().all(axis=None)


def test_videos_widen_intervals_as_many_as_the_table_rests_on(tmp_path):
    table = planted_table(seeds=(0, 1), sizes=("S",), recipes=("plain",))
    samples = planted_samples(table)
    few, many = (table.assign(num_samples=number) for number in (40, 160))
    widths = []
    for name, rows in (("few", few), ("many", many)):
        means = seed_means(read_study_results(write_results(tmp_path / name, rows, samples)))
        widths.append((means["gap_high"] - means["gap"]).to_numpy())
        assert means["loss_coarse_low"].to_numpy() == pytest.approx(means["loss_coarse"].to_numpy())
    # a gap that is the same in both seeds, and noise of samples alone: Student's of one degree of freedom
    noise = samples["nll_autoregressive"] - samples["nll_fine_1"]
    error = noise[:40].std(ddof=0) / 5 / 40**0.5
    assert widths[0] == pytest.approx(12.7062 * error, rel=0.15)
    assert widths[1] == pytest.approx(widths[0] / 2)


def test_lengths_are_those_of_the_last_step(tmp_path):
    curves = length_curves(read(tmp_path, gap=by_seed)).set_index(["size", "recipe", "num_frames"])
    assert set(curves["step"]) == {3000} and len(curves) == 12
    assert curves.loc[("L", "plain", 16), "gap"] == pytest.approx(2 * curves.loc[("L", "plain", 8), "gap"])


def test_lengths_are_compared_at_the_seeds_that_all_of_them_have(tmp_path):
    table = planted_table(gap=by_seed, sizes=("S",), recipes=("plain",))
    fewer = table[(table["num_frames"] == 8) | (table["seed"] < 2)]
    curves = length_curves(read_study_results(write_results(tmp_path / "fewer", fewer))).set_index("num_frames")
    assert curves["num_seeds"].tolist() == [2, 2]
    assert curves.loc[16, "gap"] == pytest.approx(2 * curves.loc[8, "gap"])
    apart = table[(table["num_frames"] == 8) == (table["seed"] < 2)]
    assert length_curves(read_study_results(write_results(tmp_path / "apart", apart))).empty


def test_on_the_frontier_is_what_none_beats_for_its_compute(tmp_path):
    cost = lambda size, recipe, seed, step: step * (2.0 if recipe == "multi" else 1.0)
    results = read(tmp_path, sizes=("S",), cost=cost, loss=lambda size, recipe, seed, step: 20 * step**-0.3)
    frontier = compute_frontier(results)
    assert frontier.loc[frontier["on_frontier"], "recipe"].tolist() == ["plain"] * 4
    table = planted_table(sizes=("S",), cost=cost, loss=lambda *of: 20 * of[3] ** -0.3 * (0.1 if of[2] == 4 else 1))
    lucky = table[(table["recipe"] == "multi") | (table["seed"] < 4)]  # a seed that plain lacks
    seen = compute_frontier(read_study_results(write_results(tmp_path / "lucky", lucky)))
    assert seen.loc[seen["on_frontier"], "recipe"].tolist() == ["plain"] * 4
    apart = table[(table["recipe"] == "multi") == (table["seed"] < 2)]
    assert not compute_frontier(read_study_results(write_results(tmp_path / "apart", apart)))["on_frontier"].any()
    same = compute_frontier(read(tmp_path, sizes=("S",), cost=lambda *of: float(of[3])))
    assert same["on_frontier"].all()
