"""Table and findings from many gaps: answers follow the intervals, in every direction."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fvlm_lib.data.video_files import SkippedVideo
from fvlm_lib.gap import gap, report
from fvlm_lib.gap.findings import compare_gaps, find, findings_markdown, gap_difference, replace_section
from fvlm_lib.gap.fits import drawn_fits, find_power_laws, fit_losses, fits_table, read_fits, write_points
from fvlm_lib.gap.results import read_gap_result
from fvlm_lib.gap.scaling import json_ready, predict_loss
from fvlm_lib.gap.seeds import SeedValues, gaps_by_seed, mean_over_seeds
from fvlm_lib.stats import Estimate

PARAMETERS = {"checkpoint": "x", "num_samples": 200}


def samples(gap_nats: float, training: float = 1.0, noise: float = 0.05, seed: int = 0) -> pd.DataFrame:
    """A per-sample table with the given losses, nats a token."""
    rng = np.random.default_rng(seed)
    tokens = np.full(200, 10)
    fine = 10 * (training + noise * rng.standard_normal(200))
    table = pd.DataFrame({"sample": range(200), "num_frames": 8, "num_tokens": tokens})
    table["nll_coarse"] = fine + 5
    table["nll_fine_1"] = fine
    table["nll_autoregressive"] = fine + 10 * (gap_nats + noise * rng.standard_normal(200))
    table["query_distance"] = [[0.0] * 8] * 200
    for mode in ("coarse", "fine_1", "autoregressive"):
        table[f"token_nll_{mode}"] = [[value / 10] * 10 for value in table[f"nll_{mode}"]]
    return table


def write(path: Path, table: pd.DataFrame, facts: dict | None = None, skipped: Sequence[SkippedVideo] = ()) -> None:
    """The result of an evaluation with this per-sample table."""
    table.to_parquet(path.with_suffix(".parquet"))
    measured = gap.summarize_gap(table, skipped=skipped)
    gap.write_gap(path, measured, path.with_suffix(".parquet"), PARAMETERS, facts)


Runs = dict[str, list[float] | dict[int, list[float]]]
NOT_MEASURED = " in this run; how another seed would do was not measured"


def ladder(tmp_path, gaps: Runs, sizes: dict[str, int], training: float = 1.0):
    """Table and samples of runs with the given gaps at steps 100, 200, ..., or of several seeds of such runs; a name
    ending in -multi is multi-fine. The seed of a single run is not told."""
    tables, results = {}, {}
    for run, seeds in gaps.items():
        for seed, values in seeds.items() if isinstance(seeds, dict) else [(None, seeds)]:
            for i, value in enumerate(values):
                name, step = f"{run}_{seed}_{i}", 100 * (i + 1)
                tables[name] = samples(value, training / (i + 1), seed=len(tables))
                facts = {
                    "name": run, "seed": seed, "step": step, "num_parameters": 2 * sizes[run],
                    "num_text_parameters": sizes[run], "training_flops": step * sizes[run],
                    "multi_fine": run.endswith("-multi"),
                }  # fmt: skip
                path = tmp_path / f"{name}.json"
                write(path, tables[name], facts)
                results[name] = read_gap_result(path, PARAMETERS)
    return report.gap_table(results), tables


# ---- one seed ----------------------------------------------------------------------------------------


def test_findings_follow_the_intervals(tmp_path):
    gaps = {"S": [0.0, 0.02, 0.3], "M": [0.0, 0.01, 0.1], "S-multi": [0.0, 0.0, 0.0]}
    table, tables = ladder(tmp_path, gaps, {"S": 100, "M": 400, "S-multi": 100})
    growth, size, multi, valid = find(table, tables)
    assert growth.answer == f"M: grows in this run; S: grows in this run; S-multi: not resolved{NOT_MEASURED}"
    assert size.answer == f"it is smaller{NOT_MEASURED}"
    assert multi.answer == f"it is small{NOT_MEASURED}"
    assert "S: gap large in this run" in valid.answer
    assert valid.answer.endswith(f"S-multi: gap small{NOT_MEASURED}")


def test_findings_in_the_other_direction(tmp_path):
    gaps = {"S": [0.3, 0.05], "M": [0.3, 0.2], "S-multi": [0.3, 0.2]}
    table, tables = ladder(tmp_path, gaps, {"S": 100, "M": 400, "S-multi": 100})
    growth, size, multi, _ = find(table, tables)
    assert growth.answer == f"shrinks{NOT_MEASURED}"
    assert size.answer == f"it is larger{NOT_MEASURED}"
    assert multi.answer == f"no, it is larger{NOT_MEASURED}"


def test_a_gap_is_told_along_the_whole_training_and_not_by_its_ends(tmp_path):
    table, tables = ladder(tmp_path, {"M": [0.02, -0.02, 0.10, 0.04]}, {"M": 400})
    growth = find(table, tables)[0]
    assert growth.answer == f"goes up and down{NOT_MEASURED}"
    path, changes = growth.evidence
    for row in table.itertuples():
        shown = f"{row.gap_nats:+.4f} [{row.gap_nats_low:+.4f}, {row.gap_nats_high:+.4f}] at step {row.step:,}"
        assert shown in path
    assert "98.3% each, so that all 3 together hold at 95%" in changes
    step = gap_difference(tables["M_None_1"], tables["M_None_0"], level=1 - 0.05 / 3)
    assert f"from step to step: {step.value:+.4f} [{step.low:+.4f}, {step.high:+.4f}]," in changes
    single = gap_difference(tables["M_None_1"], tables["M_None_0"])
    assert step.low < single.low < single.high < step.high


def test_equal_gaps_are_not_resolved(tmp_path):
    table, tables = ladder(tmp_path, {"S": [0.1, 0.1], "M": [0.1, 0.1]}, {"S": 100, "M": 400})
    growth, size, _, _ = find(table, tables)
    assert growth.answer == f"not resolved{NOT_MEASURED}"
    assert size.answer == f"not resolved{NOT_MEASURED}"


def test_gap_difference_is_paired_and_refuses_other_samples():
    ours, theirs = samples(0.3, seed=1), samples(0.1, seed=2)
    change = gap_difference(ours, theirs)
    assert change.low < 0.2 < change.high
    same = gap_difference(ours, ours)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="different samples"):
        gap_difference(ours, theirs.head(100))


# ---- several seeds -----------------------------------------------------------------------------------


def test_two_seeds_of_a_recipe_are_two_runs(tmp_path):
    table, _ = ladder(tmp_path, {"S": {0: [0.1, 0.1], 1: [0.1, 0.1]}, "M": {0: [0.1]}}, {"S": 100, "M": 400})
    assert table["run"].tolist() == ["M", *["S, seed 0"] * 2, *["S, seed 1"] * 2]
    assert table["group"].tolist() == ["M", *["S"] * 4]
    assert table["seed"].tolist() == [0, 0, 0, 1, 1]
    assert table["step"].tolist() == [100, 100, 200, 100, 200]


def test_a_group_joins_runs_of_other_names(tmp_path):
    write(tmp_path / "a.json", samples(0.1))
    result = read_gap_result(tmp_path / "a.json")

    def table(**facts: dict):
        return report.gap_table({name: {**result, "training": told} for name, told in facts.items()})

    joined = table(a={"name": "first", "group": "S", "seed": 0}, b={"name": "second", "group": "S", "seed": 1}, c={})
    assert joined["run"].tolist() == ["c", "first", "second"]
    assert joined["group"].tolist() == ["c", "S", "S"]
    with pytest.raises(ValueError, match="a and b are of one group, S, with the same seed and step"):
        table(a={"name": "S", "seed": 0, "step": 1}, b={"name": "S", "seed": 0, "step": 1})
    with pytest.raises(ValueError, match="the name S is of the groups one and two"):
        table(a={"name": "S", "group": "one"}, b={"name": "S", "group": "two"})


def test_an_interval_over_seeds_is_student_s():
    """Against SciPy, where the videos add nothing."""

    def values(*numbers: float) -> SeedValues:
        return SeedValues(np.array(numbers), np.tile(np.array(numbers)[:, None], 5))

    ours, theirs = [0.12, 0.36, 0.09], [0.03, 0.20, 0.07]
    expected = {
        mean_over_seeds(values(*ours)): stats.ttest_1samp(ours, 0),
        mean_over_seeds(values(*ours) - values(*theirs), level=0.9): stats.ttest_rel(ours, theirs),
        mean_over_seeds(values(*ours, 0.2), values(*theirs)): stats.ttest_ind([*ours, 0.2], theirs, equal_var=False),
    }
    for (found, test), level in zip(expected.items(), (0.95, 0.9, 0.95), strict=True):
        interval = test.confidence_interval(level)
        assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
        assert found.value == pytest.approx((interval.low + interval.high) / 2)
    with pytest.raises(ValueError, match="there is one seed; an interval over seeds needs at least 2"):
        mean_over_seeds(values(*ours), values(0.1))


def test_videos_are_redrawn_the_same_for_all_seeds():
    """Seeds that do the same are one measurement: redrawing the videos alone makes the interval."""
    table = samples(0.2)
    found = gaps_by_seed([table, table, table])
    assert (found.resampled[0] == found.resampled[1]).all()
    assert (mean_over_seeds(found - found).low, mean_over_seeds(found - found).high) == (0, 0)
    gap = (table["nll_autoregressive"] - table["nll_fine_1"]) / 10
    margin = stats.t.ppf(0.975, 2) * gap.std() / 200**0.5
    estimate = mean_over_seeds(found)
    assert estimate.value == pytest.approx(gap.mean())
    assert estimate.high - estimate.value == pytest.approx(margin, rel=0.1)  # of 2000 resamples
    with pytest.raises(ValueError, match="different samples"):
        gaps_by_seed([table, table.head(100)])


def test_what_holds_over_seeds_is_answered_over_seeds(tmp_path):
    seeds = range(4)
    gaps = {
        "S": {seed: [0.01, 0.3 + 0.01 * seed] for seed in seeds},
        "M": {seed: [0.01, 0.1 + 0.01 * seed] for seed in seeds},
        "S-multi": {seed: [0.3, 0.001 * seed] for seed in seeds},
    }
    table, tables = ladder(tmp_path, gaps, {"S": 100, "M": 400, "S-multi": 100})
    growth, size, multi, valid = find(table, tables)
    assert growth.answer == "M: grows over 4 seeds; S: grows over 4 seeds; S-multi: shrinks over 4 seeds"
    assert size.answer == "it is smaller over 4 seeds"
    assert multi.answer == "it is small over 4 seeds"
    assert "S: gap large in each of 4 seeds" in valid.answer
    ids = [[f"{run}_{seed}_1" for seed in seeds] for run in ("M", "S")]
    ours, theirs = (gaps_by_seed([tables[id] for id in side]) for side in ids)
    change = mean_over_seeds(ours - theirs)
    assert f"{change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}] nats a token over 4 seeds" in size.evidence[0]
    assert change.value == pytest.approx(-0.2, abs=0.01)
    assert any(line.startswith("S, mean over 4 seeds, nats a token: ") for line in growth.evidence)
    assert any(line.startswith("S, seed 3, from step to step: ") for line in growth.evidence)


def test_what_each_seed_shows_may_hold_over_none(tmp_path):
    """As in the ladder's three seeds: smaller at every seed, by amounts that differ more than they are large."""
    gaps = {"S": {0: [0.12], 1: [0.36], 2: [0.09]}, "M": {0: [0.03], 1: [0.20], 2: [0.07]}}
    table, tables = ladder(tmp_path, gaps, {"S": 100, "M": 400})
    _, size, _, valid = find(table, tables)
    assert size.answer == "not resolved over 3 seeds"
    for seed in (0, 1, 2):
        alone = table["seed"] == seed
        assert find(table[alone], tables)[1].answer == f"it is smaller{NOT_MEASURED}"
    assert valid.answer.startswith("M: gap ") and valid.answer.endswith(" of 3 seeds")
    assert sum("judged in" in line for line in valid.evidence) == 6


def test_sides_of_other_seeds_are_independent(tmp_path):
    gaps = {"S": {0: [0.30], 1: [0.31], 2: [0.32]}, "M": {0: [0.1], 5: [0.11]}}
    table, tables = ladder(tmp_path, gaps, {"S": 100, "M": 400})
    ours, theirs = (table[table["group"] == group] for group in ("M", "S"))
    change = compare_gaps(ours, theirs, tables)
    assert (change.scope, change.by_seed, change.resolved) == ("over 2 and 3 seeds", (), True)
    one = compare_gaps(ours[ours["seed"] == 0], theirs, tables)
    assert (one.ours, one.theirs, one.scope) == ("M, seed 0", "S, seed 0", "in this run")
    assert one.estimate == gap_difference(tables["M_0_0"], tables["S_0_0"])
    assert find(table, tables)[1].answer == "it is smaller over 2 and 3 seeds"


def test_a_seed_that_is_not_trained_to_the_end_does_not_speak_of_it(tmp_path):
    gaps = {"S": {0: [0.1, 0.2, 0.3], 1: [0.1, 0.2]}}
    table, tables = ladder(tmp_path, gaps, {"S": 100})
    growth, _, _, valid = find(table, tables)
    (told,) = (line for line in growth.evidence if line.startswith("S, mean over 2 seeds, nats a token: "))
    assert "at step 200" in told and "at step 300" not in told
    assert growth.answer.endswith("over 2 seeds")
    assert valid.answer == f"gap large{NOT_MEASURED}"


def test_seeds_without_a_common_step_are_told_apart(tmp_path):
    table, tables = ladder(tmp_path, {"S": {0: [0.1, 0.2], 1: [0.1, 0.2]}}, {"S": 100})
    table["step"] += 50 * table["seed"].astype(int)
    growth = find(table, tables)[0]
    assert growth.answer == f"grows{NOT_MEASURED}"
    assert [line[:9] for line in growth.evidence] == [*["S, seed 0"] * 2, *["S, seed 1"] * 2]


def test_no_fit_mixes_points_of_two_seeds(tmp_path):
    table, tables = ladder(tmp_path, {"S": {0: [0.0] * 3, 1: [0.0] * 3}}, {"S": 100}, training=2.0)
    fits = fit_losses(table, tables, num_bootstrap=5)["loss_training_fine by step"]
    assert [(fit.group, fit.num_points) for fit in fits if fit.form == "power"] == [("S, seed 0", 3), ("S, seed 1", 3)]


# ---- fits, files -------------------------------------------------------------------------------------


def test_scaling_fits_recover_the_planted_law(tmp_path):
    gaps = {"S": [0.0] * 4, "M": [0.0] * 4}
    table, tables = ladder(tmp_path, gaps, {"S": 100, "M": 400}, training=2.0)  # loss = 2 · (step / 100)^-1
    fits = fit_losses(table, tables, num_bootstrap=20)
    assert set(fits) == {f"{loss} by {x}" for loss in report.ESTIMATES[:2] for x in ("step", "training_flops")}
    power = next(f for f in fits["loss_training_fine by step"] if f.group == "S" and f.form == "power")
    assert power.parameters["b"].value == pytest.approx(1.0, abs=0.02)
    assert predict_loss(power, [200])[0] == pytest.approx(1.0, rel=0.02)
    joint = fits["loss_training_fine by step"][-1]
    assert not joint.fitted
    assert "num_parameters" in joint.reason
    assert "not fitted" in fits_table(fits)["fit"].str.cat()
    write_points(table, tmp_path)
    points = pd.read_csv(tmp_path / "training_loss" / "points.csv")
    assert points["loss"].tolist() == pytest.approx(table["loss_training_fine"].tolist(), rel=1e-12)


def test_fits_are_read_back_and_only_good_power_laws_are_drawn(tmp_path):
    table, tables = ladder(tmp_path, {"S": [0.0] * 4, "M": [0.0] * 4}, {"S": 100, "M": 400}, training=2.0)
    fits = fit_losses(table, tables, num_bootstrap=5)
    power = fits["loss_training_fine by step"][0]
    endless = replace(power, parameters={**power.parameters, "a": Estimate(1.0, 0.5, math.inf)})
    fits["loss_training_fine by step"][0] = endless
    path = tmp_path / "fits.json"
    path.write_text(json.dumps({name: [json_ready(asdict(fit)) for fit in group] for name, group in fits.items()}))
    assert read_fits(path) == fits
    poor = replace(power, rejected="R² of log loss is 0.49, a law needs 0.95")
    assert drawn_fits([poor, *fits["loss_training_fine by step"]]) == [
        fit for fit in fits["loss_training_fine by step"] if fit.form == "power"
    ]
    with pytest.raises(ValueError, match=r"none\.json is missing; `bash run\.sh` makes it"):
        read_fits(tmp_path / "none.json")
    older = [{"r2": 0.5, **{key: value for key, value in asdict(power).items() if key not in ("r2_log", "rejected")}}]
    path.write_text(json.dumps({"loss_training_fine by step": older}))
    with pytest.raises(ValueError) as caught:
        read_fits(path)
    assert str(caught.value) == (
        f"{path} holds no scaling fits (it is of another version, which differs in r2, r2_log, rejected); "
        "remove it and run `bash run.sh`"
    )


def test_a_rejected_law_is_told_without_its_numbers(tmp_path):
    """A plateau and a drop: no exponent, no interval of one, but why."""
    table, tables = ladder(tmp_path, {"S": [0.0] * 4, "M": [0.0] * 4}, {"S": 100, "M": 400}, training=2.0)
    table.loc[table["run"] == "M", "loss_training_fine"] = [1.7, 1.3, 0.1, 0.0003]
    fits = fit_losses(table, tables, num_bootstrap=40)
    power = [fit for fit in fits["loss_training_fine by training_flops"] if fit.form == "power"]
    assert [(fit.group, fit.rejected is None) for fit in power] == [("M", False), ("S", True)]
    assert drawn_fits(fits["loss_training_fine by training_flops"]) == [power[1]]
    finding = find_power_laws(fits)
    assert finding.question == (
        "Does the loss follow a power law of training FLOPs (R² of log loss at least 0.95, the exponent determined by "
        "the points)?"
    )
    assert finding.answer.startswith("loss_training_fine of M: no; loss_training_fine of S: yes; ")
    rejected, holds = finding.evidence[:2]
    assert rejected.startswith("loss_training_fine of M: rejected: R² of log loss is 0.")
    assert "4 points determine no exponent b" in rejected and "[" not in rejected and "b = " not in rejected
    assert re.fullmatch(
        r"loss_training_fine of S: b = 1\.0\d \[\S+, \S+\], over evaluation samples and the scatter about the law; "
        r"R² of log loss 1\.00; RMSE of the loss 0\.\d\d nats a token, 4 checkpoints",
        holds,
    )
    rows = fits_table(fits)
    row = rows[(rows["loss"] == "loss_training_fine by step") & (rows["run"] == "M")].iloc[0]
    assert row["fit"].startswith("rejected: R² of log loss is 0.") and "[" not in row["fit"]
    assert row["r2_log"] < 0.95


def test_delta_and_blocks_reach_the_fits(tmp_path):
    table, tables = ladder(tmp_path, {"S": [0.0] * 4}, {"S": 100}, training=2.0)
    fits = fit_losses(table, tables, num_bootstrap=2, seed=3, delta=0.1, block_length=None)
    fit = fits["loss_training_fine by step"][0]
    assert (fit.delta, fit.block_length, fit.seed) == (0.1, 2, 3)


def test_markdown_has_every_answer_and_row(tmp_path):
    table, tables = ladder(tmp_path, {"S": [0.0, 0.3]}, {"S": 100})
    text = findings_markdown(find(table, tables), table)
    assert text.count("**") == 8
    assert text.count("| S ") == 2


def test_a_section_is_replaced_and_nothing_else(tmp_path):
    file = tmp_path / "KNOWLEDGE.md"
    file.write_text("before\n<!-- begin findings -->\nold\n<!-- end findings -->\nafter\n")
    replace_section(file, "findings", "new\n")
    assert file.read_text() == "before\n<!-- begin findings -->\nnew\n<!-- end findings -->\nafter\n"
    file.write_text("no markers")
    with pytest.raises(ValueError, match="begin findings"):
        replace_section(file, "findings", "new")
    assert file.read_text() == "no markers"


def test_a_result_of_other_parameters_or_schema_is_refused(tmp_path):
    path = tmp_path / "a.json"
    table = samples(0.1)
    write(path, table)
    with pytest.raises(ValueError, match=r"a\.json was made with num_samples = 200, the config says 100"):
        read_gap_result(path, {**PARAMETERS, "num_samples": 100})
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "schema": 0}))
    with pytest.raises(ValueError, match="schema 0"):
        read_gap_result(path, PARAMETERS)
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_gap_result(path, PARAMETERS)
    with pytest.raises(FileNotFoundError, match="missing"):
        read_gap_result(tmp_path / "b.json", PARAMETERS)


def test_skipped_samples_are_in_the_table(tmp_path):
    skipped = {"a": [], "b": [SkippedVideo(3, "x.mp4", "it is damaged")]}
    for name, left_out in skipped.items():
        write(tmp_path / f"{name}.json", samples(0.1), {"step": 1}, left_out)
    results = {name: read_gap_result(tmp_path / f"{name}.json", PARAMETERS) for name in skipped}
    assert results["b"]["skipped"] == [{"sample": 3, "name": "x.mp4", "reason": "it is damaged"}]
    table = report.gap_table(results)
    assert table["skipped"].tolist() == [0, 1]
    assert report.readable_table(table)["skipped"].tolist() == [0, 1]
    assert "skipped" not in report.readable_table(report.gap_table({"a": results["a"]}))


def test_checkpoints_that_do_not_tell_their_training_are_left_out_of_the_fits(tmp_path):
    table, tables = ladder(tmp_path, {"S": [0.1, 0.1, 0.1]}, {"S": 100})
    for columns in (["training_flops"], ["step", "training_flops", "num_parameters", "num_text_parameters"]):
        fits = fit_losses(table.assign(**dict.fromkeys(columns)), tables, num_bootstrap=5)
        assert find_power_laws(fits).answer == "not asked: no run has three checkpoints"
        fits_table(fits)
