"""The gap of one checkpoint: sums and counts, intervals, verdicts, shards, and what is refused."""

from __future__ import annotations

import json
import os
import tarfile
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from captioned import write_folder, write_tar
from conftest import DEMO, disk_of, exit_code, tiny_model

from fvlm_lib.data.options import PROCEDURAL_SAMPLES
from fvlm_lib.data.videos import ProceduralVideos
from fvlm_lib.gap import __main__ as gap_command
from fvlm_lib.gap import evaluation, gap, samples
from fvlm_lib.gap.results import read_gap_result
from fvlm_lib.schema import DTYPES
from fvlm_lib.stats import Estimate

VIDEOS = ProceduralVideos(split="test")
CHECKPOINT = DEMO / "S-S" / "step_3000"


@pytest.fixture(scope="module")
def table(trained, tmp_path_factory):
    """The per-sample table of 48 samples, as a file."""
    path = tmp_path_factory.mktemp("table") / "gap.parquet"
    gap.evaluate_inference_gap(trained, VIDEOS, path, 48, 16, floor_samples=0, progress=False)
    return path


@pytest.fixture(scope="module")
def scored(table) -> pd.DataFrame:
    return pd.read_parquet(table)


def test_losses_are_sums_over_tokens_divided_once(trained, scored):
    found = gap.summarize_gap(scored)
    batch = VIDEOS.batch(0, 48)
    with torch.no_grad():
        inference = trained.forward_autoregressive(**batch)
        training = trained.forward_captioning(**batch)
    assert found.num_tokens == 480
    assert found.loss_inference_fine.value == pytest.approx(inference.nll.double().sum().item() / 480, abs=1e-5)
    assert found.loss_training_fine.value == pytest.approx(training.nll.double().sum().item() / 480, abs=1e-5)
    assert found.gap_nats.value == found.loss_inference_fine.value - found.loss_training_fine.value
    assert found.gap_percent.value == pytest.approx(100 * found.gap_nats.value / found.loss_training_fine.value)


def test_nothing_remains_of_the_gap_after_as_many_passes_as_frames(trained):
    assert evaluation.remaining_gap(trained, VIDEOS, 2, 8) < 1e-9
    rows = evaluation.score_videos(evaluation.float64_copy(trained), VIDEOS, 0, 2, 2, (1,), progress=False)
    after_one = (rows["nll_autoregressive"] - rows["nll_fine_1"]).abs() / rows["num_tokens"]
    assert evaluation.remaining_gap(trained, VIDEOS, 2, 1) == pytest.approx(after_one.max(), rel=1e-12)
    assert after_one.max() > 1e-4, "else the first line shows nothing"


def test_a_long_sample_weighs_as_its_tokens():
    table = pd.DataFrame({"num_tokens": [1, 9], "nll_coarse": [5.0, 9.0]})
    table["nll_fine_1"], table["nll_autoregressive"] = table["nll_coarse"], table["nll_coarse"]
    assert gap.summarize_gap(table).loss_coarse.value == 1.4  # and not the mean of 5 and 1


def test_the_gap_keeps_its_sign(scored):
    swapped = scored.rename(columns={"nll_fine_1": "nll_autoregressive", "nll_autoregressive": "nll_fine_1"})
    forward, backward = gap.summarize_gap(scored), gap.summarize_gap(swapped[list(scored)])
    assert forward.gap_nats.value > 0 > backward.gap_nats.value
    assert backward.gap_nats.value == -forward.gap_nats.value


def test_token_losses_add_up_to_the_sample(scored, table):
    for mode in ("coarse", "fine_1", "fine_3", "autoregressive"):
        sums = scored[f"token_nll_{mode}"].map(sum)
        np.testing.assert_allclose(sums, scored[f"nll_{mode}"], rtol=1e-5, atol=1e-6)
    positions = samples.position_losses(table)
    coarse = positions[positions["mode"] == "coarse"]
    assert coarse["count"].tolist() == [48] * 10
    assert coarse["mean"].mean() == pytest.approx(gap.summarize_gap(scored).loss_coarse.value, abs=1e-6)


def test_the_first_query_is_shared_and_later_ones_are_not(table):
    distances = samples.query_distances(table)
    assert len(distances) == 8
    assert distances["mean"][0] == 0
    assert distances["mean"][2] > 0.01


def test_batches_do_not_change_a_loss_in_float64(trained):
    exact = evaluation.float64_copy(trained)
    tables = [evaluation.score_videos(exact, VIDEOS, 0, 7, size, (1,), progress=False) for size in (1, 3, 7)]
    for table in tables[1:]:
        np.testing.assert_allclose(table["nll_autoregressive"], tables[0]["nll_autoregressive"], atol=1e-9)


def test_the_numerical_floor_is_small_and_grows_with_coarser_arithmetic(trained, scored):
    floor = evaluation.numerical_floor(trained, VIDEOS, scored, 16, 1, 16)
    assert 0 < floor < 1e-5
    import copy

    half = copy.deepcopy(trained).bfloat16()
    rough = evaluation.score_videos(half, VIDEOS, 0, 16, 16, (1,), progress=False)
    assert evaluation.numerical_floor(half, VIDEOS, rough, 16, 1, 16) > 100 * floor


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
def test_shards_join_to_the_same_table_to_the_last_digit(trained, scored, table, tmp_path, num_shards):
    paths = [tmp_path / f"{k}.parquet" for k in range(1, num_shards + 1)]
    for k, path in enumerate(paths, start=1):  # of 7 parts of 3 batches, 4 are empty
        gap.score_shard(trained, VIDEOS, path, k, num_shards, num_samples=48, batch_size=16)
    joined = tmp_path / "joined.parquet"
    samples.join_samples(paths[::-1], joined, 48)
    pd.testing.assert_frame_equal(pd.read_parquet(joined), scored, check_exact=True)
    for read in (samples.position_losses, samples.query_distances, samples.read_samples):
        pd.testing.assert_frame_equal(read(joined), read(table), check_exact=True)


REUSE = {
    "exact": {"diff_threshold": 0.0, "tolerance": 0.0},
    "gated": {"diff_threshold": 0.0, "tolerance": 0.5},
    "stale": {"diff_threshold": 1.0},  # nothing is ever encoded again
}


STILL = ProceduralVideos(split="test", noise_std=0.0)  # with noise every patch changes


def test_what_reuse_costs_is_told_by_setting(trained, tmp_path):
    """Losses of the modes stay what they are, to the last digit; exact reuse costs nothing, blind reuse much."""
    plain = evaluation.score_videos(trained, STILL, 0, 32, 16, (1,), progress=False)
    options = {"num_samples": 32, "batch_size": 16, "num_fine": (1,), "reuse": REUSE}
    evaluate = partial(gap.evaluate_inference_gap, trained, STILL, floor_samples=0, progress=False, **options)
    found = evaluate(tmp_path / "whole.parquet")
    with_reuse = pd.read_parquet(tmp_path / "whole.parquet")
    pd.testing.assert_frame_equal(with_reuse[list(plain)], plain, check_exact=True)
    np.testing.assert_allclose(with_reuse["nll_reuse_exact"], plain["nll_autoregressive"], rtol=1e-4, atol=1e-4)
    table = gap.reuse_table(found)
    assert list(table.index) == ["full encodes", "exact", "gated", "stale"]
    assert table["loss"]["full encodes"] == found.loss_inference_fine.value
    np.testing.assert_allclose(table["cost"], table["loss"] - table["loss"]["full encodes"], atol=1e-12)
    assert abs(table["cost"]["exact"]) < 1e-5 < abs(table["cost"]["gated"]) < table["cost"]["stale"]
    assert table["cost_low"]["stale"] > 0.5, "what moves is not seen any more"
    assert table["encoded"]["stale"] == pytest.approx(1 / 8), "the first of eight frames"
    assert 0.3 < table["encoded"]["exact"] == table["encoded"]["gated"] < 0.7
    assert set(found.losses) == {"coarse", "fine_1", "autoregressive"}
    assert "loss, reuse stale" in gap.format_gap(found) and "12% of patches encoded" in gap.format_gap(found)

    shards = [tmp_path / f"{k}.parquet" for k in (1, 2)]
    for k, shard in enumerate(shards, start=1):
        gap.score_shard(trained, STILL, shard, k, 2, **options)
    assert evaluate(tmp_path / "joined.parquet", shards=shards) == found
    parameters = {"checkpoint": str(CHECKPOINT), "reuse": REUSE}
    gap.write_gap(tmp_path / "gap.json", found, tmp_path / "whole.parquet", parameters)
    written = read_gap_result(tmp_path / "gap.json", parameters)
    assert written["reuse"]["stale"]["cost"]["value"] == found.reuse["stale"].cost.value
    with pytest.raises(ValueError, match="was made with reuse"):
        read_gap_result(tmp_path / "gap.json", {"checkpoint": str(CHECKPOINT)})


def test_a_result_made_before_reuse_is_read_where_none_is_asked(trained, table, tmp_path):
    found = gap.summarize_gap(samples.read_samples(table))
    assert found.reuse == {}
    gap.write_gap(tmp_path / "gap.json", found, table, {"checkpoint": str(CHECKPOINT)})
    assert read_gap_result(tmp_path / "gap.json", {"checkpoint": str(CHECKPOINT), "reuse": None})["reuse"] == {}


@pytest.mark.parametrize(
    ("reuse", "message"),
    [
        ({}, "reuse is {}; it must be a "),
        ({"gated": {"tolerance": -1.0}}, "reuse: gated.tolerance is -1.0; it must be at least 0, or null"),
        ({"gated": {"tolerence": 0.1}}, "did you mean 'tolerance'?"),
        ({"a b": {}}, "letters, digits, '_', '.' and '-', at most 100, make an id"),
    ],
)
def test_settings_of_reuse_that_cannot_be_are_refused(trained, tmp_path, reuse, message):
    with pytest.raises(ValueError) as raised:
        gap.evaluate_inference_gap(trained, VIDEOS, tmp_path / "t.parquet", 4, 4, reuse=reuse, progress=False)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "t.parquet").exists()


def test_shards_cover_every_sample_once():
    for count, batch, shards in ((100, 16, 3), (1, 4, 5), (64, 64, 2), (7, 2, 4)):
        bounds = [gap.shard_bounds(count, batch, k, shards) for k in range(1, shards + 1)]
        assert [i for start, stop in bounds for i in range(start, stop)] == list(range(count))


@pytest.mark.parametrize(
    ("percent", "nats", "loss", "verdict"),
    [
        ((1, 2), (0.01, 0.02), 1.0, "small"),
        ((-2, -1), (-0.02, -0.01), 1.0, "small"),
        ((6, 14), (0.06, 0.14), 1.0, "moderate"),
        ((16, 30), (0.16, 0.3), 1.0, "large"),
        ((-30, -16), (-0.3, -0.16), 1.0, "large"),
        ((3, 6), (0.03, 0.06), 1.0, "not resolved: small or moderate"),
        ((-16, 2), (-0.16, 0.02), 1.0, "not resolved: small or moderate or large"),
        ((-40, 26), (-0.002, 0.0002), 0.002, "small"),  # percent of nothing
        ((900, 1100), (0.09, 0.11), 0.01, "moderate"),
    ],
)
def test_the_verdict_is_judged_by_the_whole_interval(percent, nats, loss, verdict):
    middle = [(low + high) / 2 for low, high in (nats, percent)]
    training = Estimate(loss, 0.9 * loss, 1.1 * loss)
    found, unit, reason = gap.judge(Estimate(middle[0], *nats), Estimate(middle[1], *percent), training, None)
    assert found == verdict
    assert (unit == "nats") == ("judged in nats" in reason) == (loss < gap.NEAR_ZERO_LOSS)


@pytest.mark.parametrize(
    ("percent", "nats", "verdict"),
    [
        ((60, 150), (0.06, 0.12), "not resolved: moderate or large"),  # large of the loss, moderate in nats
        ((16, 30), (0.16, 0.3), "large"),
        ((8, 14), (0.008, 0.014), "not resolved: small or moderate"),
        ((1, 3), (0.001, 0.003), "small"),
        ((16, 30), (0.01, 0.03), "not resolved: small or moderate or large"),
    ],
)
def test_where_the_training_loss_may_be_nearly_zero_or_not_both_units_must_agree(percent, nats, verdict):
    training = Estimate(0.107, 0.067, 0.154)  # across NEAR_ZERO_LOSS
    middle = [(low + high) / 2 for low, high in (nats, percent)]
    found, unit, reason = gap.judge(Estimate(middle[0], *nats), Estimate(middle[1], *percent), training, None)
    assert (found, unit) == (verdict, "percent and nats")
    assert "0.107 [0.067, 0.154] may be under 0.1 or not" in reason


def test_a_loss_that_hangs_on_few_samples_is_warned_of():
    rng = np.random.default_rng(0)
    nll = rng.gamma(4.0, 1.0, 400)
    failing = np.where(np.arange(400) < 5, 300.0, 0.0)
    table = pd.DataFrame({"num_tokens": 10, "nll_coarse": nll, "nll_fine_1": nll, "nll_autoregressive": nll + failing})
    found = gap.summarize_gap(table)
    share = np.sort(nll + failing)[-10:].sum() / (nll + failing).sum()
    assert "failures in fewer than 3 of 400 samples" in found.warnings["training loss"]  # seen at inference alone
    assert {name: found.warnings[name].split(":")[0] for name in ("inference loss", "gap")} == {
        "inference loss": f"ten of 400 samples carry {share:.0%} of the inference loss",
        "gap": "ten of 400 samples carry 100% of the gap",
    }
    assert "warning: ten of 400 samples carry 100% of the gap" in gap.format_gap(found)


def test_failures_too_rare_to_be_seen_are_warned_of_where_they_would_matter():
    tokens, nothing, failing = np.full(500, 10), np.full(500, 0.01), np.r_[np.full(490, 0.01), np.full(10, 20.0)]
    found = gap.interval_warnings(tokens, nothing, failing)  # seen at inference, so they may happen in training too
    said = "fewer than 3 of 500 samples could add 0.012 nats a token to the training loss of 0.001"
    assert said in found["training loss"]
    assert not gap.interval_warnings(tokens, nothing + 20.0, nothing + 20.0)  # 0.012 of 2 nats a token


def test_a_gap_below_the_floor_is_called_noise():
    tiny = Estimate(1e-8, -1e-8, 3e-8)
    loss = Estimate(1.0, 0.9, 1.1)
    assert "noise" in gap.judge(tiny, tiny, loss, 1e-7)[2]
    assert "noise" not in gap.judge(tiny, tiny, loss, 1e-9)[2]


def test_nan_names_the_sample():
    model = tiny_model()

    class OneBroken(ProceduralVideos):
        def batch(self, start, stop):
            batch = VIDEOS.batch(start, stop)
            batch["pixel_values"] = batch["pixel_values"][..., :16, :16].clone()
            batch["input_ids"] = batch["input_ids"].clamp(max=19)
            for i in range(start, stop):
                if i == 5:
                    batch["pixel_values"][i - start] = float("nan")
            return batch

    with pytest.raises(FloatingPointError, match="coarse loss of sample 5, train-0-5, is nan"):
        evaluation.score_videos(model, OneBroken(), 0, 8, 4, progress=False)


def test_command_line(tmp_path, capsys):
    output = tmp_path / "gap.json"
    arguments = ["--checkpoint", str(CHECKPOINT), "--output", str(output), "--num-samples", "16"]
    assert gap_command.main([*arguments, "--floor-samples", "4", "--num-fine", "1", "8"]) == 0
    printed = capsys.readouterr().out
    assert "verdict" in printed
    content = json.loads(output.read_text())
    assert content["parameters"]["num_fine"] == [1, 8]
    assert content["losses"]["fine_8"]["value"] == pytest.approx(content["losses"]["autoregressive"]["value"], abs=1e-4)
    assert content["training"]["step"] == 3000
    assert len(pd.read_parquet(output.with_suffix(".parquet"))) == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere"], "no checkpoint folder nowhere"),
        (["--num-samples", "0"], "--num-samples is 0; it must be at least 2"),
        (["--num-samples", "1"], "--num-samples is 1; it must be at least 2"),
        (["--num-fine", "0"], "--num-fine is 0; it must be at least 1"),
        (["--num-fine", "1", "2", "1"], "--num-fine has 1 twice"),
        (["--data", "3"], "--data is 3; it must be a mapping"),
        (["--data", "{"], "--data cannot be read as YAML"),
        (["--data", "{kind: films}"], "films"),
        (["--data", "{kind: procedural, num_frames: 0}"], "data: num_frames is 0"),
        (["--shard", "3/2"], "--shard is 3/2; it must be K/N"),
        (["--shard", "half"], "--shard is half; it must be K/N"),
        (["--shard", "1/2"], "gap.json; of a --shard it is a table"),
    ],
)
def test_wrong_arguments_end_with_one_sentence(tmp_path, capsys, arguments, message):
    output = tmp_path / "gap.json"
    assert exit_code(gap_command.main, "--checkpoint", CHECKPOINT, "--output", output, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert error.startswith("fvlm gap: ")
    assert not output.exists()


# ---- videos on disk ----------------------------------------------------------------------------------


def run(output, data: dict, *arguments: str) -> int:
    shared = ["--checkpoint", str(CHECKPOINT), "--batch-size", "4", "--num-fine", "1", "--floor-samples", "2"]
    return gap_command.main([*shared, "--output", str(output), "--data", json.dumps(data), *arguments])


def test_a_folder_and_tar_shards_of_the_same_videos_give_the_same_result(tmp_path):
    write_folder(tmp_path, 10)
    write_tar(tmp_path, 10)
    for kind, path in {"folder": str(tmp_path), "webdataset": f"{tmp_path}/{{0..1}}.tar"}.items():
        assert run(tmp_path / f"{kind}.json", {"kind": kind, "path": path, "max_frames": 8}) == 0
    one, other = (json.loads((tmp_path / f"{kind}.json").read_text()) for kind in ("folder", "webdataset"))
    del one["parameters"], other["parameters"]
    assert one == other
    assert one["num_samples"] == 10
    # of videos as long as it was trained on the model knows the captions: it sees them, but for eight bits a colour
    rows = pd.read_parquet(tmp_path / "folder.parquet").query("num_frames == 8")
    assert rows["nll_fine_1"].sum() / rows["num_tokens"].sum() < 0.05


def test_a_damaged_video_is_an_error_or_is_skipped_by_name_in_any_number_of_shards(tmp_path, capsys):
    write_folder(tmp_path, 10)
    damaged = tmp_path / "5.mkv"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    data = {"kind": "folder", "path": str(tmp_path)}
    assert run(tmp_path / "whole.json", data) == 2
    assert "sample 5, 5.mkv: " in capsys.readouterr().err
    assert not list(tmp_path.glob("whole*"))

    data["skip_bad"] = True
    assert run(tmp_path / "whole.json", data) == 0
    printed = capsys.readouterr().out
    assert "1 samples skipped" in printed
    assert "5, 5.mkv: " in printed
    result = json.loads((tmp_path / "whole.json").read_text())
    assert result["num_samples"] == 9
    assert [(row["sample"], row["name"]) for row in result["skipped"]] == [(5, "5.mkv")]
    for k in range(1, 8):
        assert run(tmp_path / f"{k}.parquet", data, "--shard", f"{k}/7") == 0
    samples.join_samples([tmp_path / f"{k}.parquet" for k in range(1, 8)], tmp_path / "joined.parquet", 10)
    whole, joined = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("whole", "joined"))
    pd.testing.assert_frame_equal(whole, joined, check_exact=True)
    assert whole["sample"].tolist() == list(range(10))
    assert whole["skipped"].notna().tolist() == [i == 5 for i in range(10)]


def test_names_that_are_not_unicode_are_in_the_table_escaped(tmp_path):
    write_tar(tmp_path, 8)
    with tarfile.open(tmp_path / "0.tar") as source, tarfile.open(tmp_path / "named.tar", "w") as renamed:
        for member in source.getmembers():
            content = source.extractfile(member)
            member.name = os.fsdecode(b"\xff" + os.fsencode(member.name))
            renamed.addfile(member, content)
    output = tmp_path / "gap.json"
    assert run(output, {"kind": "webdataset", "path": str(tmp_path / "named.tar"), "max_frames": 8}) == 0
    assert pd.read_parquet(output.with_suffix(".parquet"))["name"][0].endswith(r"named.tar:\xff00000")


def test_the_commands_options_are_those_of_the_evaluation():
    assert (gap_command.DTYPES, gap_command.PROCEDURAL_SAMPLES) == (DTYPES, PROCEDURAL_SAMPLES)


def test_outputs_that_cannot_be_are_refused_before_anything_is_loaded(tmp_path, capsys):
    table = tmp_path / "mine.parquet"
    pd.DataFrame({"of": ["another kind"]}).to_parquet(table)
    content = table.read_bytes()
    for output, message in {
        tmp_path: "is a folder; name a file in it",
        table: "which its own table would replace",
        table / "gap.json": "mine.parquet is a file, not a folder",
        tmp_path / "mine.json": "mine.parquet, which would be replaced, is no table of a gap",
    }.items():
        assert exit_code(gap_command.main, "--checkpoint", "nowhere", "--output", output) == 2
        assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.parquet"] and table.read_bytes() == content


def test_the_result_is_printed_though_the_disk_does_not_take_it(tmp_path, capsys):
    output = tmp_path / "gap.json"
    arguments = ["--checkpoint", CHECKPOINT, "--output", output, "--num-samples", "8", "--floor-samples", "0"]
    assert exit_code(gap_command.main, *arguments) == 0
    old = output.read_text()
    fits = (tmp_path / "gap.parquet").stat().st_size
    assert fits < output.stat().st_size
    with disk_of(fits, from_the_first_forward=True):
        assert exit_code(gap_command.main, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out.count("verdict") == 2
    for file in (output, tmp_path / "gap.parquet"):
        assert f"note: {file} exists and will be replaced\n" in printed.err
    assert printed.err.endswith(f"fvlm gap: {output}: File too large\n")
    assert output.read_text() == old


def test_captions_of_unknown_words_are_no_score(tmp_path, capsys):
    """They were scored as captions of pads, for which the demo's models have losses too."""
    write_folder(tmp_path, 4, captions={i: "a dog runs" for i in range(4)})
    data = {"kind": "folder", "path": str(tmp_path)}
    problem = "0.mkv: the tokenizer does not know 3 of the 3 words of the caption: a, dog, runs"
    assert run(tmp_path / "gap.json", data) == 2
    assert f"sample 0, {problem}; " in capsys.readouterr().err
    assert run(tmp_path / "gap.json", data | {"skip_bad": True}) == 2
    said = capsys.readouterr().err
    assert f"4 of the 4 samples cannot be used, and an interval needs at least 2; the first of them, {problem}" in said
    assert not (tmp_path / "gap.json").exists()


def test_the_floor_is_measured_where_samples_are_scored(tmp_path):
    write_folder(tmp_path, 8, captions={i: "a dog runs" for i in range(4)})
    assert run(tmp_path / "gap.json", {"kind": "folder", "path": str(tmp_path), "skip_bad": True}) == 0
    result = json.loads((tmp_path / "gap.json").read_text())
    assert 0 < result["numerical_floor"] < 1e-5
    assert len(result["skipped"]) == 4


def test_a_checkpoint_without_tokenizer_is_named(tmp_path, capsys):
    write_folder(tmp_path, 2)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for name in ("config.json", "model.safetensors"):
        (checkpoint / name).write_bytes((CHECKPOINT / name).read_bytes())
    data = {"kind": "folder", "path": str(tmp_path)}
    assert run(tmp_path / "gap.json", data, "--checkpoint", str(checkpoint)) == 2
    assert f"{checkpoint} has no tokenizer" in capsys.readouterr().err


def test_more_samples_than_there_are_is_an_error(tmp_path, capsys):
    write_folder(tmp_path, 3)
    assert run(tmp_path / "gap.json", {"kind": "folder", "path": str(tmp_path)}, "--num-samples", "4") == 2
    assert "num_samples is 4, but there are 3 videos" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"num_samples": 1}, "num_samples is 1; it must be at least 2, or null"),
        ({"num_samples": 10**20}, f"num_samples is {10**20}; it must be at most 1000000000, or null"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"batch_size": True}, "batch_size is True; it must be a whole number"),
        ({"num_fine": []}, "num_fine is []; it must be a list of at least 1"),
        ({"num_fine": [1, 0]}, "num_fine[1] is 0; it must be at least 1"),
        ({"num_fine": [1, 1]}, "num_fine is [1, 1]; it names 1 twice"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"floor_samples": -1}, "floor_samples is -1; it must be at least 0"),
    ],
)
def test_numbers_that_no_evaluation_has_are_refused_in_python_too(trained, tmp_path, numbers, said):
    with pytest.raises(ValueError) as raised:
        gap.evaluate_inference_gap(trained, VIDEOS, tmp_path / "gap.parquet", **numbers)
    assert str(raised.value) == said
    assert not [*tmp_path.iterdir()]
