"""The benchmark of updates runs on any tower, and its last line is for programs."""

from __future__ import annotations

import json

import pytest
from conftest import exit_code
from transformers import CLIPVisionConfig, CLIPVisionModel

from fvlm_lib.reuse.policies.gated import DEFAULT_TOLERANCE
from fvlm_lib.screens import update_bench


def test_a_row_for_each_count_and_a_last_line_of_json(tmp_path, capsys):
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    CLIPVisionModel(config).save_pretrained(tmp_path)
    arguments = ["--tower", str(tmp_path), "--repeats", "2", "--warmup", "0", "--threads", "1"]
    assert update_bench.main([*arguments, "--counts", "1", "16", "--gated", "2"]) == 0
    printed = capsys.readouterr().out
    last = json.loads(printed.splitlines()[-1])
    assert last["full"]["ratio"] == 1 and last["full, kept"]["ms"] > 0
    assert last["16 changed, none"]["floor_ms"] >= last["1 changed, none"]["floor_ms"] > 0
    assert "2 changed, gated 0.02" in last
    assert update_bench.main([*arguments, "--counts", "1", "--gated", "--pack", "auto", "--pack-memory", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "packed copies: 0 MB" in printed and json.loads(printed.splitlines()[-1])["pack"] == "auto"
    assert update_bench.main([*arguments, "--counts", "17"]) == 2
    assert "17 patches cannot change; the tower has 16" in capsys.readouterr().err


def test_a_convolutional_tower_is_timed_too(vlm_folders, capsys):
    arguments = ["--tower", str(vlm_folders["fast_vlm"]), "--size", "128x96", "--repeats", "1", "--threads", "1"]
    assert update_bench.main([*arguments, "--counts", "1", "12", "--gated", "3"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["12 changed, none"]["ms"] > 0 and last["3 changed, gated 0.02"]["ms"] > 0 and not last["packed"]
    assert update_bench.main([*arguments, "--counts", "13"]) == 2
    assert "13 patches cannot change; the tower has 12" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--counts", "0"], "--counts is 0; it must be at least 1"),
        (["--counts", "1", "577"], "577 patches cannot change; the tower has 256"),
        (["--pack-memory", "1"], "--pack-memory is of --pack auto, and --pack is no; leave one out"),
        (["--pack", "auto", "--pack-memory", "0"], "--pack-memory is 0; it must be above 0"),
        (["--pack", "some"], "--pack: invalid choice: 'some'"),
        (["--gated", "0"], "--gated is 0; it must be at least 1"),
        (["--tolerance", "nan"], "--tolerance is nan; it must be a finite number"),
        (["--tolerance", "-0.1"], "--tolerance is -0.1; it must be at least 0"),
        (["--tower", "random:nothing"], "there is no random:nothing"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, arguments, message):
    assert exit_code(update_bench.main, "--tower", "random:clip-tiny", *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"fvlm bench-updates: {message}") and printed.count("\n") == 1


def test_the_defaults_are_those_of_the_library():
    assert update_bench.DEFAULT_TOLERANCE == DEFAULT_TOLERANCE
