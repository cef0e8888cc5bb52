"""Table and findings from many gaps: answers follow the intervals, in every direction."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fvlm_lib.data.video_files import SkippedVideo
from fvlm_lib.gap import gap, report
from fvlm_lib.gap.findings import find, findings_markdown, gap_difference, replace_section
from fvlm_lib.gap.fits import drawn_fits, find_power_laws, fit_losses, fits_table, read_fits, write_points
from fvlm_lib.gap.results import read_gap_result
from fvlm_lib.gap.scaling import json_ready, predict_loss
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


def ladder(tmp_path, gaps: dict[str, list[float]], sizes: dict[str, int], training: float = 1.0):
    """Table and samples of runs with the given gaps at steps 100, 200, ...; a name ending in -multi is multi-fine."""
    tables, results = {}, {}
    for run, values in gaps.items():
        for i, value in enumerate(values):
            name, step = f"{run}_{i}", 100 * (i + 1)
            tables[name] = samples(value, training / (i + 1), seed=len(tables))
            facts = {
                "name": run, "step": step, "num_parameters": 2 * sizes[run], "num_text_parameters": sizes[run],
                "training_flops": step * sizes[run], "multi_fine": run.endswith("-multi"),
            }  # fmt: skip
            path = tmp_path / f"{name}.json"
            write(path, tables[name], facts)
            results[name] = read_gap_result(path, PARAMETERS)
    return report.gap_table(results), tables


def test_findings_follow_the_intervals(tmp_path):
    gaps = {"S": [0.0, 0.02, 0.3], "M": [0.0, 0.01, 0.1], "S-multi": [0.0, 0.0, 0.0]}
    table, tables = ladder(tmp_path, gaps, {"S": 100, "M": 400, "S-multi": 100})
    growth, size, multi, valid = find(table, tables)
    assert growth.answer == "M: grows; S: grows; S-multi: not resolved"
    assert size.answer == "yes"
    assert multi.answer == "yes"
    assert "S: gap large" in valid.answer
    assert "S-multi: gap small" in valid.answer


def test_findings_in_the_other_direction(tmp_path):
    gaps = {"S": [0.3, 0.05], "M": [0.3, 0.2], "S-multi": [0.3, 0.2]}
    table, tables = ladder(tmp_path, gaps, {"S": 100, "M": 400, "S-multi": 100})
    growth, size, multi, _ = find(table, tables)
    assert growth.answer == "shrinks"
    assert size.answer == "no, it is larger"
    assert multi.answer == "no, it is larger"


def test_what_is_not_there_is_not_answered(tmp_path):
    table, tables = ladder(tmp_path, {"S": [0.1]}, {"S": 100})
    growth, size, multi, _ = find(table, tables)
    for finding in (growth, size, multi):
        assert finding.answer.startswith("not asked: ")


def test_equal_gaps_are_not_resolved(tmp_path):
    table, tables = ladder(tmp_path, {"S": [0.1, 0.1], "M": [0.1, 0.1]}, {"S": 100, "M": 400})
    growth, size, _, _ = find(table, tables)
    assert growth.answer == "not resolved"
    assert size.answer == "not resolved"


def test_gap_difference_is_paired_and_refuses_other_samples():
    ours, theirs = samples(0.3, seed=1), samples(0.1, seed=2)
    change = gap_difference(ours, theirs)
    assert change.low < 0.2 < change.high
    same = gap_difference(ours, ours)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="different samples"):
        gap_difference(ours, theirs.head(100))


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
    poor = replace(power, r2=0.49)
    assert drawn_fits([poor, *fits["loss_training_fine by step"]]) == [
        fit for fit in fits["loss_training_fine by step"] if fit.form == "power"
    ]
    with pytest.raises(ValueError, match=r"none\.json is missing; `bash run\.sh` makes it"):
        read_fits(tmp_path / "none.json")


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
