"""The benchmark of updates runs on any tower, and its last line is for programs."""

from __future__ import annotations

import json

from transformers import CLIPVisionConfig, CLIPVisionModel

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
    assert last["full"]["ratio"] == 1
    assert last["16 changed, none"]["floor_ms"] >= last["1 changed, none"]["floor_ms"] > 0
    assert "2 changed, gated 0.02" in last
    assert update_bench.main([*arguments, "--counts", "17"]) == 2
    assert "17 patches cannot change; the tower has 16" in capsys.readouterr().err
