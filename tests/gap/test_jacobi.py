"""gap(K): exact frames, what is near enough, tables and files; on the demo's model and by hand."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from captioned import write_folder
from conftest import DEMO, exit_code, tiny_model

from fvlm_lib.data.videos import ProceduralVideos
from fvlm_lib.gap import __main__ as gap_command
from fvlm_lib.gap.evaluation import float64_copy, score_videos
from fvlm_lib.gap.gap import open_evaluation
from fvlm_lib.gap.jacobi import (
    SCHEMA,
    curve_table,
    evaluate_jacobi,
    format_jacobi,
    jacobi_files,
    score_passes,
    summarize_passes,
)
from fvlm_lib.gap.results import read_gap_result

VIDEOS = ProceduralVideos(split="test")
CHECKPOINT = DEMO / "S-S" / "step_3000"


@pytest.fixture(scope="module")
def exact(trained):
    return float64_copy(trained)


@pytest.fixture(scope="module")
def scored(exact) -> pd.DataFrame:
    """Rows of 3 samples, in float64."""
    return pa.concat_tables(score_passes(exact, VIDEOS, 0, 3, 2, progress=False)).to_pandas()


def test_nothing_is_left_after_as_many_passes_as_frames_and_something_before(scored):
    assert scored["passes"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8] * 3
    last = scored[scored["passes"] == 8]
    np.testing.assert_allclose(last["nll"], last["nll_autoregressive"], atol=1e-9)
    assert (last[["query_distance", "token_distance"]] < 1e-9).all(axis=None)
    first = scored[scored["passes"] == 1]
    assert (first[["query_distance", "token_distance"]] > 0.01).all(axis=None)
    curve = summarize_passes(scored)
    assert abs(curve.passes[-1].gap.value) < 1e-9 < 1e-5 < abs(curve.passes[0].gap.value)
    assert max(abs(curve.passes[-1].gap.low), abs(curve.passes[-1].gap.high)) < 1e-9


def test_of_the_first_frames_alone_as_many_passes_are_exact(exact):
    """gap(K) of a video's first K frames is 0, and of one frame more it is not yet."""
    whole = VIDEOS.batch(0, 2)

    class FirstFrames(ProceduralVideos):
        def batch(self, start, stop):
            mask = torch.zeros(2, 8, dtype=torch.long)
            mask[:, :count] = 1
            return {**whole, "frame_mask": mask}

    for count in (1, 3):
        rows = pa.concat_tables(score_passes(exact, FirstFrames(), 0, 2, 2, progress=False)).to_pandas()
        assert rows["passes"].tolist() == [*range(1, count + 1)] * 2
        last = rows[rows["passes"] == count]
        np.testing.assert_allclose(last["nll"], last["nll_autoregressive"], atol=1e-9)
        assert (last[["query_distance", "token_distance"]] < 1e-9).all(axis=None)
        before = rows[rows["passes"] == count - 1]
        assert (before[["query_distance", "token_distance"]] > 1e-6).all(axis=None)


def test_losses_are_those_of_the_gap_and_distances_those_of_the_modes(exact, scored):
    of_gap = score_videos(exact, VIDEOS, 0, 3, 3, (1, 2, 8), progress=False)
    for passes in (1, 2, 8):
        rows = scored[scored["passes"] == passes]
        np.testing.assert_allclose(rows["nll"], of_gap[f"nll_fine_{passes}"], atol=1e-9)
        np.testing.assert_allclose(rows["nll_autoregressive"], of_gap["nll_autoregressive"], atol=1e-9)
    batch = VIDEOS.batch(0, 3)
    batch["pixel_values"] = batch["pixel_values"].double()
    with torch.no_grad():
        fine, sequential = exact.forward_captioning(**batch, num_fine=2), exact.forward_autoregressive(**batch)
    rows = scored[scored["passes"] == 2]
    for column, name in (("query_distance", "queries"), ("token_distance", "visual_tokens")):
        off = (fine[name] - sequential[name]).norm(dim=-1) / sequential[name].norm(dim=-1)  # (B, T)
        np.testing.assert_allclose(rows[column], off.sum(dim=1), rtol=1e-7)


def test_models_that_read_other_tokens_in_the_two_modes_never_come_near(tmp_path):
    class Tiny(ProceduralVideos):
        def batch(self, start, stop):
            batch = VIDEOS.batch(start, stop)
            return {
                **batch,
                "pixel_values": batch["pixel_values"][..., :16, :16],
                "input_ids": batch["input_ids"].clamp(max=19),
            }

    model = tiny_model(mode_tokens=True)
    curve = evaluate_jacobi(model, Tiny(), tmp_path / "a.json", [0, 1, 2], {"norm_samples": 0, "within": 1e-4}, 3)
    assert curve.passes_within is None and curve.outside_again == () and curve.jacobian is None
    assert "loss within 0.0001 nats a token of sequential use: after no number of passes" in format_jacobi(curve)
    assert [file.name for file in tmp_path.iterdir()] == ["a.passes.parquet"]


# ---- by hand ---------------------------------------------------------------------------------------------


def rows_of(losses: list[list[float]], sequential: list[float], tokens: list[int], off: float = 0.1) -> pd.DataFrame:
    """A table of samples that have as many frames as losses; distances fall by a factor of 10 a pass from `off`."""
    rows = [
        (i, str(i), len(of_sample), tokens[i], k, nll, sequential[i], len(of_sample) * off / 10**k, 0.0)
        for i, of_sample in enumerate(losses)
        for k, nll in enumerate(of_sample, start=1)
    ]
    return pd.DataFrame(rows, columns=SCHEMA.names)


def test_sums_are_divided_once_and_a_shorter_video_keeps_its_last_pass():
    table = rows_of([[3.0, 2.0, 4.0], [5.0, 6.0]], [4.0, 6.0], [2, 8])
    curve = summarize_passes(table.sample(frac=1.0, random_state=0))
    assert (curve.num_frames, curve.num_samples, curve.num_tokens) == (3, 2, 10)
    assert [one.passes for one in curve.passes] == [1, 2, 3]
    assert [one.loss.value for one in curve.passes] == pytest.approx([0.8, 0.8, 1.0])
    assert [one.gap.value for one in curve.passes] == pytest.approx([0.2, 0.2, 0.0])
    assert curve.loss_inference_fine.value == 1.0
    distances = [0.01, 0.001, (3 * 0.0001 + 2 * 0.001) / 5]
    assert [one.query_distance.value for one in curve.passes] == pytest.approx(distances)
    assert all(one.token_distance.value == 0 for one in curve.passes)
    of_table = curve_table(curve)
    assert of_table["gap"].tolist() == [one.gap.value for one in curve.passes]
    assert of_table["loss_high"].tolist() == [one.loss.high for one in curve.passes]


def test_the_smallest_number_of_passes_near_enough_and_those_beyond_that_are_not():
    """All samples alike, so that intervals are points; the gap of two passes is below that of three."""
    table = rows_of([[9.7, 9.995, 10.02, 10.0]] * 3, [10.0] * 3, [1] * 3)
    found = summarize_passes(table, within=0.01, within_query=0.0005)
    assert (found.passes_within, found.outside_again) == (2, (3,))
    assert (found.passes_within_query, found.outside_query_again) == (3, ())
    assert "of sequential use: after 2 passes (the whole interval is), but not after 3" in format_jacobi(found)
    assert summarize_passes(table, within=0.001).passes_within == 4
    assert summarize_passes(table, within=0.5).passes_within == 1
    assert "after 1 pass (" in format_jacobi(summarize_passes(table, within=0.5))
    assert summarize_passes(table, within_query=1e-9).passes_within_query is None


def test_the_whole_interval_must_be_near_enough():
    losses = [[10.0 + (0.5 if i % 2 else -0.5), 10.0] for i in range(12)]
    table = rows_of(losses, [10.0] * 12, [1] * 12)
    found = summarize_passes(table, within=0.1)
    assert found.passes[0].gap.value == 0 and found.passes[0].gap.high > 0.1
    assert found.passes_within == 2


def test_a_gap_that_hangs_on_few_samples_is_marked():
    losses = [[1.0 + (30.0 if i < 3 else 0.1), 1.0] for i in range(100)]
    found = summarize_passes(rows_of(losses, [1.0] * 100, [1] * 100))
    assert [one.doubtful for one in found.passes] == [True, False]
    lines = format_jacobi(found).splitlines()
    assert [" †" in line for line in lines[1:3]] == [True, False] and lines[-1].startswith("† ten samples carry")


def test_what_cannot_be_summarized_is_named():
    table = rows_of([[3.0, 2.0, 4.0], [5.0, 6.0]], [4.0, 6.0], [2, 8])
    with pytest.raises(ValueError, match=r"sample 0 has 3 frames and rows of \[1, 3\] passes"):
        summarize_passes(table.drop(index=1))
    with pytest.raises(ValueError, match="there are rows of 1 samples; an interval needs at least 2"):
        summarize_passes(table[table["sample"] == 0])
    for wrong in ({"within": 0.0}, {"within_query": -1.0}):
        with pytest.raises(ValueError, match="must be above 0"):
            summarize_passes(table, **wrong)
    with pytest.raises(ValueError, match="did you mean 'within'"):
        evaluate_jacobi(tiny_model(), VIDEOS, "a.json", [0, 1], {"witin": 0.1})


def test_nan_names_the_sample_and_the_number_of_passes():
    class OneBroken(ProceduralVideos):
        def batch(self, start, stop):
            batch = VIDEOS.batch(start, stop)
            batch["pixel_values"] = batch["pixel_values"][..., :16, :16].clone()
            batch["input_ids"] = batch["input_ids"].clamp(max=19)
            batch["pixel_values"][1] = float("nan")
            return batch

    with pytest.raises(FloatingPointError, match="autoregressive loss of sample 1, train-0-1, is nan"):
        list(score_passes(tiny_model(), OneBroken(), 0, 2, progress=False))


# ---- files and the command -------------------------------------------------------------------------------


def test_videos_of_several_lengths_on_disk(tmp_path):
    write_folder(tmp_path, 4, captions={1: "a dog runs"})
    data = {"kind": "folder", "path": str(tmp_path), "max_frames": 8, "skip_bad": True}
    model, videos = open_evaluation(CHECKPOINT, data)
    found = evaluate_jacobi(model, videos, tmp_path / "x" / "gap.json", [0, 2, 3], {"norm_samples": 2}, 4)
    rows = pd.read_parquet(tmp_path / "x" / "gap.passes.parquet")
    assert rows.groupby("sample").size().to_dict() == {0: 8, 2: 5, 3: 8}
    assert (found.num_frames, found.num_samples, found.jacobian.num_videos) == (8, 3, 2)
    norms = pd.read_parquet(tmp_path / "x" / "gap.jacobian.parquet")
    assert norms.groupby("sample").size().to_dict() == {0: 7, 2: 4}
    assert abs(found.passes[-1].gap.value) < 1e-4


def test_the_command_tells_prints_and_writes_it(tmp_path, capsys):
    output = tmp_path / "gap.json"
    arguments = ["--checkpoint", CHECKPOINT, "--output", output, "--num-samples", "6", "--floor-samples", "0"]
    options = ["--jacobi", "--within", "0.5", "--norm-samples", "2"]
    assert exit_code(gap_command.main, *arguments, *options) == 0
    printed = capsys.readouterr().out
    assert "loss within 0.5 nats a token of sequential use: after" in printed and "norm of dq(t+1)/dq(t)" in printed
    asked = {"within": 0.5, "within_query": 0.01, "norm_samples": 2}
    content = read_gap_result(output)
    assert content["parameters"]["jacobi"] == asked
    found = content["jacobi"]
    assert [one["passes"] for one in found["passes"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found["passes"][0]["gap"]["value"] == pytest.approx(content["gap_nats"]["value"], abs=1e-5)
    assert found["loss_inference_fine"]["value"] == pytest.approx(content["loss_inference_fine"]["value"], abs=1e-5)
    assert found["jacobian"]["num_videos"] == 2 and len(found["jacobian"]["by_frame"]) == 7
    passes, norms = (pd.read_parquet(file) for file in jacobi_files(output))
    assert len(passes) == 6 * 8 and len(norms) == 2 * 7
    assert list(passes) == SCHEMA.names


def test_a_result_without_it_has_nothing_of_it(tmp_path):
    output = tmp_path / "gap.json"
    arguments = ["--checkpoint", CHECKPOINT, "--output", output, "--num-samples", "2", "--floor-samples", "0"]
    assert exit_code(gap_command.main, *arguments) == 0
    content = json.loads(output.read_text())
    assert "jacobi" not in content and content["parameters"]["jacobi"] is None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gap.json", "gap.parquet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--within", "0.1"], "--within is of --jacobi, which is not there"),
        (["--within-query", "0.1"], "--within-query is of --jacobi, which is not there"),
        (["--norm-samples", "3"], "--norm-samples is of --jacobi, which is not there"),
        (["--jacobi", "--within", "0"], "--within is 0; it must be above 0"),
        (["--jacobi", "--within-query", "nan"], "--within-query is nan"),
        (["--jacobi", "--norm-samples", "-1"], "--norm-samples is -1; it must be at least 0"),
    ],
)
def test_wrong_options_end_with_one_sentence(tmp_path, capsys, arguments, message):
    output = tmp_path / "gap.json"
    assert exit_code(gap_command.main, "--checkpoint", "nowhere", "--output", output, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1] and error[-1].startswith("fvlm gap: ")
    assert not list(tmp_path.iterdir())


def test_a_part_of_the_samples_and_tables_of_something_else_are_refused(tmp_path, capsys):
    shard = ["--checkpoint", "nowhere", "--output", tmp_path / "1.parquet", "--shard", "1/2", "--jacobi"]
    assert exit_code(gap_command.main, *shard) == 2
    assert "--jacobi is of all samples, and --shard of a part" in capsys.readouterr().err
    for name in ("gap.passes.parquet", "gap.jacobian.parquet"):
        other = tmp_path / name
        pd.DataFrame({"of": ["another kind"]}).to_parquet(other)
        content = other.read_bytes()
        arguments = ["--checkpoint", "nowhere", "--output", tmp_path / "gap.json", "--jacobi"]
        assert exit_code(gap_command.main, *arguments) == 2
        assert f"{name}, which would be replaced, is no table of fine passes" in capsys.readouterr().err
        assert other.read_bytes() == content
        other.unlink()
