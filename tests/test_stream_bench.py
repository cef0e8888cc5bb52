"""The benchmark of policies: errors are against the full encode, drift against the pixels of the tokens."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DEMO, ROOT

from fvlm_lib import stream_bench
from fvlm_lib.checkpoints import CheckpointError
from fvlm_lib.screens import read_sequence
from fvlm_lib.stream_bench import (
    Policy,
    bootstrap_policies,
    load_tower,
    measure_policies,
    policies,
    summarize_policies,
)

SCREENS = ROOT / "data" / "screens"
TOWER = str(DEMO / "S-S-multi" / "step_3000")


@pytest.fixture(scope="module")
def tower() -> stream_bench.LoadedTower:
    return load_tower(TOWER, (104, 160))


def measured(tower, name: str, compared: list[Policy], frames: int | None = None) -> pd.DataFrame:
    sequence = read_sequence(SCREENS / name)
    return measure_policies(tower, sequence.head(frames or len(sequence)), compared, progress=False)


def test_the_error_falls_with_the_tolerance_and_the_speed_is_paired(tower):
    rows = measured(tower, "idle", policies([0.1, 0.02, 0.0]), 20)
    table = summarize_policies(rows).set_index("policy")
    errors = table.loc[["none", "gated 0.1", "gated 0.02", "gated 0"], "error_mean"].tolist()
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 3 * errors[2]
    assert table.loc["exact match", "error_max"] < 1e-4
    assert (rows.groupby("frame")["ms_full"].nunique() == 1).all()
    assert set(table["n"]) == {19}


def test_fade_no_token_is_staler_than_the_threshold_but_for_the_pseudocode(tower):
    rows = measured(tower, "fade", policies([0.05]))
    drift = rows.groupby("policy")["drift"].max()
    assert drift["pseudocode"] > 0.15
    assert drift["none"] <= 0.05 + 1e-6
    assert drift["gated 0.05"] <= 0.05 + 1e-6
    assert drift["exact match"] == 0


def test_a_blinking_caret_is_not_missed_at_the_defaults():
    """At the size and grid of a CLIP at 336, and of the screenshot itself: every blink of every recording."""
    from fvlm_lib.changes import ChangeTracker, trace_changes

    shrunk = stream_bench.LoadedTower("", torch.nn.Identity(), (336, 336), (0.0,) * 3, (1.0,) * 3)
    for name in ("idle", "jupyter", "dialog"):
        sequence = read_sequence(SCREENS / name)
        changed = [not action["identical_to_previous"] for action in sequence.actions]
        for frames in (
            list(sequence),
            [(255 * shrunk.pixel_values(f)[0]).round().byte().permute(1, 2, 0).numpy() for f in sequence],
        ):
            traced = list(trace_changes(frames, 14, ChangeTracker()))
            for step, different in zip(traced[1:], changed[1:], strict=True):
                assert (step.path != "cached") == different, (name, step.index, frames[0].shape)


def test_token_errors_are_relative_to_each_token():
    exact = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    errors = stream_bench.token_errors(exact + torch.tensor([[0.0, 0.5], [0.0, 0.0]]), exact)
    assert errors["error_mean"] == pytest.approx(0.05)
    assert errors["error_max"] == pytest.approx(0.1)
    assert errors["cosine_min"] < 1


def test_screenshots_are_squashed_and_normalised(tower):
    frame = np.full((800, 1280, 3), 255, dtype=np.uint8)
    pixels = tower.pixel_values(frame)
    assert pixels.shape == (1, 3, 104, 160)
    assert torch.equal(pixels, torch.ones_like(pixels))  # (1 - 0.5) / 0.5


def test_a_transformers_folder_is_a_tower(tmp_path):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    SiglipVisionModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    loaded = load_tower(str(tmp_path))
    assert (loaded.image_size, loaded.std) == ((32, 32), (0.25,) * 3)
    rows = measure_policies(loaded, read_sequence(SCREENS / "idle").head(3), policies([0.05]), progress=False)
    assert set(rows["total"]) == {16}


@pytest.mark.parametrize("spec", ["random:vgg", "no/such/folder/at-all"])
def test_no_tower_is_an_error(spec, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=spec):
        load_tower(spec)


def test_intervals_of_policies_are_over_whole_recordings():
    """Frames of a recording are alike: of two recordings, however long, every resample mean is one of three."""
    one = {"tower": "t", "policy": "none", "path": "partial", "changed": 1, "total": 4, "error_max": 1.0, "drift": 0.0}
    rows = pd.DataFrame(
        [
            {**one, "sequence": name, "frame": frame, "ms": 1.0, "ms_full": speed, "error_mean": error}
            for name, speed, error in (("slow", 2.0, 0.1), ("fast", 6.0, 0.3))
            for frame in range(50)
        ]
    )
    table = bootstrap_policies(rows).iloc[0]
    shared = summarize_policies(rows)
    assert table[list(shared)].tolist() == shared.iloc[0].tolist()
    assert (table["total_speedup_low"], table["total_speedup"], table["total_speedup_high"]) == (2, 4, 6)
    assert (table["error_mean_low"], table["error_mean_high"]) == (pytest.approx(0.1), pytest.approx(0.3))
    alone = bootstrap_policies(rows[rows["sequence"] == "fast"]).iloc[0]
    assert alone["total_speedup"] == 6
    assert np.isnan(alone["total_speedup_low"])
