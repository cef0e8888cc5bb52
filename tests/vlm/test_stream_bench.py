"""`fvlm bench-stream` ends in a line for programs, a row for each share or bin and for each that is timed beside."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import DEMO, ROOT, exit_code
from PIL import Image

from fvlm_lib.vlm import stream_bench
from fvlm_lib.vlm.vlms import load_vlm

CHECKPOINT = DEMO / "S-S" / "step_0100"
BESIDE = ["plain stream", "language model alone", "all patch tokens"]


def last_line(capsys, *arguments: object) -> dict:
    assert stream_bench.main(["--checkpoint", str(CHECKPOINT), *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def recording(tmp_path):
    """Five frames: the same twice, one with a change inside of a patch, all new, and the same again."""
    folder = tmp_path / "recording"
    folder.mkdir()
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)  # squashed, a patch is 16 pixels
    corner = frame.copy()
    corner[:8, :8] = ~corner[:8, :8]
    for number, pixels in enumerate([frame, frame, corner, ~frame, ~frame]):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("pack", [[], ["--pack"]])
def test_a_row_for_each_share_and_a_last_line_of_json(capsys, tmp_path, pack):
    settings = tmp_path / "settings.yaml"
    settings.write_text("{tolerance: 0.1, max_changed_patches: 8}")
    rounds = ["--repeats", 2, "--warmup", 1, "--settings", settings]
    last = last_line(capsys, *rounds, "--shares", 0, 0.001, 0.5, 1, "--fps", 2, *pack)
    assert last["benchmark"] == "stream" and last["frames_by_path"] == {"full": 1 + 3, "partial": 6, "cached": 3}
    assert {name: last[name]["changed_patches"] for name in last if name.endswith("changed")} == {
        "0% changed": 0, "0.1% changed": 1, "50% changed": 8, "100% changed": 16,
    }  # fmt: skip
    assert last["plain stream"]["ratio"] == 1 and last["0% changed"]["n"] == 2
    assert last["language model alone"]["ms"] > 0 and last["100% changed"]["faster"] > 0
    assert [last[name]["positions"] for name in BESIDE] == [1, 1, 16] and last["0% changed"]["positions"] == 1
    assert last["plain stream"]["positions_a_minute"] == 120 and last["all patch tokens"]["positions_a_minute"] == 1920


@pytest.mark.parametrize("pack", [[], ["--pack"], ["--pack", "auto"]])
def test_the_frames_of_a_recording_are_told_by_how_much_of_them_changed(capsys, recording, pack):
    vlm = DEMO / "llava-tiny"
    last = last_line(capsys, "--recording", recording, "--warmup", 1, "--vlm", vlm, *pack)
    rows = {name: (row["n"], row["positions"]) for name, row in last.items() if isinstance(row, dict) and "n" in row}
    assert rows == {
        "plain stream": (4, 1), "0% changed": (2, 1), "up to 20% changed": (1, 1), "above 20% changed": (1, 1),
        "language model alone": (4, 1), "all patch tokens": (4, 16), f"all patch tokens of {vlm}": (4, 256),
    }  # fmt: skip
    if pack != ["--pack", "auto"]:  # which measures up to how many changed patches an update is worth it
        assert last["frames_by_path"] == {"full": 2, "partial": 1, "cached": 2}
    assert last["up to 20% changed"]["changed_patches"] == 1 and last["above 20% changed"]["changed_patches"] == 16
    assert last["all_ms"] > 0 and last["all_ms_plain"] > 0


def test_a_vlm_encodes_an_image_and_reads_its_tokens_alone():
    vlm = load_vlm(str(DEMO / "llava-tiny"))
    inputs = stream_bench.image_inputs(vlm, np.zeros((40, 60, 3), dtype=np.uint8))
    config = vlm.model.config
    count = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    assert inputs["input_ids"].tolist() == [[config.image_token_id] * count]
    assert stream_bench.read_image(vlm, inputs).get_seq_length() == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--checkpoint", "random:nothing"], "there is no random:nothing; there are random:dinov2-small-224, "),
        (["--shares", "1.5"], "--shares is 1.5; it must be at most 1"),
        (["--repeats", "300"], "so many rounds and shares are 1819 frames; the language model has 256 positions"),
        (["--pack-memory", "1"], "--pack-memory is of --pack auto, and --pack is no; leave one out"),
        (["--settings", "nowhere.yaml"], "there is no settings file nowhere.yaml"),
        (["--frames", "3"], "--frames is of a --recording; leave it out, or name one"),
        (["--recording", "nowhere"], "nowhere: no such file or directory"),
        (["--recording", "nowhere", "--shares", "0.5"], "--shares is of random frames; leave it or --recording out"),
        (["--recording", "nowhere", "--repeats", "5"], "--repeats is of random frames; leave it or --recording out"),
        (["--vlm", "nowhere"], "there is no folder nowhere; name a model's folder, or a hub id such as OWNER/MODEL"),
        (["--vlm", CHECKPOINT], "step_0100 has no config that can be loaded"),
        (["--vlm", ROOT / "checkpoints" / "text-screens"], "is of the architecture 'llama'; known are llava, "),
    ],
)
def test_what_cannot_be_is_one_line(capsys, arguments, message):
    assert exit_code(stream_bench.main, "--checkpoint", CHECKPOINT, *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("fvlm bench-stream: ") and message in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "2"], "recording: no patch changes in 2 frames of 32 x 32 pixels; take more frames, or a recor"),
        (["--frames", "1"], "recording: no patch changes in 1 frames of 32 x 32 pixels"),
        (["--warmup", "252"], "the warm-up are 257 frames; the language model has 256 positions; take fewer of them"),
    ],
)
def test_a_recording_that_cannot_be_timed_is_one_line(capsys, recording, arguments, message):
    assert exit_code(stream_bench.main, "--checkpoint", CHECKPOINT, "--recording", recording, *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("fvlm bench-stream: ") and message in printed and printed.count("\n") == 1
