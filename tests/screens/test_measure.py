"""The benchmark of policies: errors are against the full encode, drift against the pixels of the tokens."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DEMO, ROOT
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, SmolVLMImageProcessor

from fvlm_lib.data.screens import read_sequence
from fvlm_lib.errors import CheckpointError
from fvlm_lib.screens import measure
from fvlm_lib.screens.loaded_towers import LoadedTower, load_tower
from fvlm_lib.screens.measure import (
    SETTING_COLUMNS,
    Policy,
    bootstrap_policies,
    changed_frames,
    measure_policies,
    policies,
    read_measured,
    summarize_policies,
)
from fvlm_lib.vision.differential import DifferentialVisionEncoder
from fvlm_lib.vision.models import open_vision
from fvlm_lib.vision.patches import patch_grid
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vlm.vlms import load_vlm

SCREENS = ROOT / "data" / "screens"
TOWER = str(DEMO / "S-S-multi" / "step_3000")
EXACT = Policy("gated 0", diff_threshold=0.0, propagate="gated", tolerance=0.0)


@pytest.fixture(scope="module")
def tower() -> LoadedTower:
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


def test_frames_that_changed_are_measured_as_in_the_whole_recording(tower):
    sequence = read_sequence(SCREENS / "jupyter").head(12)
    every = changed_frames(sequence, 100, threshold=0.0)
    assert every == [i for i in range(1, 12) if not sequence.actions[i]["identical_to_previous"]]
    few = changed_frames(sequence, 3, threshold=0.0)
    assert len(few) == 3 and few[0] == every[0] and few[-1] == every[-1] and few[1] in every[1:-1]
    whole = measure_policies(tower, sequence, [EXACT], progress=False).set_index("frame")
    some = measure_policies(tower, sequence, [EXACT], progress=False, frames=few).set_index("frame")
    assert some.index.tolist() == [0, *few]
    assert some["changed"].equals(whole.loc[[0, *few], "changed"]) and some["error_max"].max() < 1e-4
    assert summarize_policies(some.reset_index())["n"].tolist() == [3]
    with pytest.raises(ValueError, match="no frame of still differs from the one before by more than"):
        changed_frames(read_sequence([sequence.files[0]] * 3, name="still"), 2)


@pytest.mark.parametrize(("name", "size", "tiles"), [("smolvlm", (32, 32), 5), ("fast_vlm", (128, 128), 1)])
def test_towers_of_tiles_and_of_convolutions_are_measured(vlm_folders, name, size, tiles):
    """640 x 400 becomes 64 x 40, two rows of two tiles of 32, and the small whole."""
    model = load_vlm(str(vlm_folders[name])).model
    cut = SmolVLMImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}) if tiles > 1 else None
    loaded = LoadedTower(name, model, size, (0.5,) * 3, (0.5,) * 3, cut)
    sequence = read_sequence(SCREENS / "dialog").head(4)
    rows = measure_policies(loaded, sequence, [EXACT], progress=False)
    grid = patch_grid(*size, open_vision(model).patch_size)
    assert set(rows["total"]) == {tiles * grid[0] * grid[1]} and rows["error_max"].max() < 1e-3
    assert (rows["drift"] == 0).all() and set(rows["path"]) >= {"full", "partial"}
    one = torch.zeros(1, 3, *size)
    encoder = DifferentialVisionEncoder(model, propagate="gated", tolerance=0.0)
    encoder.encode(one)
    assert rows["kept_bytes"].max() == tiles * encoder.nbytes > tiles * one.nbytes
    if tiles > 1:
        with pytest.raises(ValueError, match="smolvlm cuts frames into tiles; policies that keep whole frames alone"):
            measure_policies(loaded, sequence, policies([]), progress=False)


def test_a_qwen_tower_takes_the_size_of_the_screen_in_whole_merged_patches(vlm_folders):
    folder = str(vlm_folders["qwen3_vl"])
    with pytest.raises(CheckpointError, match=r"does not say the size of its frames; give it \(image_size, --size\)"):
        load_tower(folder)
    loaded = load_tower(folder, (41, 63))
    unit = loaded.model.config.patch_size * loaded.model.config.spatial_merge_size
    assert loaded.image_size == (round(41 / unit) * unit, round(63 / unit) * unit)
    rows = measure_policies(loaded, read_sequence(SCREENS / "idle").head(2), [EXACT], progress=False)
    assert rows["error_max"].max() < 1e-3


def test_the_size_that_is_asked_for_is_had_or_refused_of_random_towers_too():
    with pytest.raises(CheckpointError, match="random:smolvlm2-500m cuts frames into tiles of 512 x 512 pixels; leave"):
        load_tower("random:smolvlm2-500m", (800, 1280))
    other = load_tower("random:clip-tiny", (112, 112))
    with pytest.raises(ValueError, match=r"\(112\*112\) doesn't match model \(224\*224\)"):  # of transformers
        measure_policies(other, read_sequence(SCREENS / "idle").head(2), [EXACT], progress=False)


def test_fade_no_token_is_staler_than_the_threshold_but_for_the_pseudocode(tower):
    rows = measured(tower, "fade", policies([0.05]))
    drift = rows.groupby("policy")["drift"].max()
    assert drift["pseudocode"] > 0.15
    assert drift["none"] <= 0.05 + 1e-6
    assert drift["gated 0.05"] <= 0.05 + 1e-6
    assert drift["exact match"] == 0


def test_a_blinking_caret_is_not_missed_at_the_defaults():
    """At the size and grid of a CLIP at 336, and of the screenshot itself: every blink of every recording."""
    from fvlm_lib.vision.changes import ChangeTracker, trace_changes

    shrunk = LoadedTower("", torch.nn.Identity(), (336, 336), (0.0,) * 3, (1.0,) * 3)
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
    errors = measure.token_errors(exact + torch.tensor([[0.0, 0.5], [0.0, 0.0]]), exact)
    assert errors["error_mean"] == pytest.approx(0.05)
    assert errors["error_max"] == pytest.approx(0.1)
    assert errors["cosine_min"] < 1


def test_screenshots_are_squashed_and_normalised(tower):
    frame = np.full((800, 1280, 3), 255, dtype=np.uint8)
    pixels = tower.pixel_values(frame)
    assert pixels.shape == (1, 3, 104, 160)
    torch.testing.assert_close(pixels, torch.ones_like(pixels))  # (1 - 0.5) / 0.5


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


def test_the_tower_of_a_vision_language_model_is_a_tower():
    """As the model itself uses it: the same tokens of the same frame, of its own size and normalisation."""
    folder = DEMO / "reader"
    loaded, vlm = load_tower(str(folder)), load_vlm(str(folder))
    assert loaded.image_size == vlm.image_size == (160, 160)
    frame = read_sequence(SCREENS / "reader-form")[0]
    pixels = loaded.pixel_values(frame)
    torch.testing.assert_close(pixels, vlm.pixel_values(frame))
    with torch.no_grad():
        seen = loaded.model(pixels).last_hidden_state
        torch.testing.assert_close(seen, vlm.model.model.vision_tower(pixels).last_hidden_state)
    rows = measure_policies(loaded, read_sequence(SCREENS / "reader-form").head(4), policies([0.0]), progress=False)
    assert set(rows["total"]) == {100} and rows.loc[rows["policy"] == "gated 0", "error_max"].max() < 1e-4


def test_the_partial_updates_are_measured_at_the_settings_and_say_so(tower, tmp_path):
    settings = DifferentialSettings(0.3, "mean", 7, 8, "previous")
    rows = measured(tower, "dialog", policies([0.05], settings=settings), 4)
    rows.to_parquet(tmp_path / "dialog.parquet")
    measured(tower, "idle", policies([0.05]), 4).to_parquet(tmp_path / "idle.parquet")
    table = read_measured(tmp_path, "dialog").set_index("policy")
    assert table.loc["none", SETTING_COLUMNS].tolist() == [104, 160, 8, 0.3, "mean", "previous", 7]
    assert table.loc["gated 0.05", SETTING_COLUMNS].tolist() == table.loc["none", SETTING_COLUMNS].tolist()
    assert table.loc["exact match", SETTING_COLUMNS].tolist() == [104, 160, 8, 0.0, "max", "encoded", 0]
    assert table.loc["gated 0.05", "tolerance"] == 0.05 and np.isnan(table.loc["none", "tolerance"])
    later = rows[(rows["frame"] > 0) & (rows["policy"] == "none")]
    assert table.loc["none", "ms"] == pytest.approx(later["ms"].mean())
    assert table.loc["none", "ms_full"] == pytest.approx(later["ms_full"].mean())
    default = read_measured(tmp_path, "idle").set_index("policy").loc["none"]
    assert (default["max_changed_patches"], default["file"]) == (13 * 20 * 3 // 4, "idle.parquet")
    with pytest.raises(ValueError, match="patch_size is 14; the tower's patches"):
        measured(tower, "idle", policies([], settings=DifferentialSettings(patch_size=14)), 2)


def test_missing_and_old_measurements_are_named_with_what_makes_them(tower, tmp_path):
    with pytest.raises(ValueError, match=r"no measurement of idle; `bash run\.sh`"):
        read_measured(tmp_path / "nowhere", "idle")
    rows = measured(tower, "idle", policies([]), 2)
    rows.drop(columns=["diff_threshold", "height"]).to_parquet(tmp_path / "old.parquet")
    with pytest.raises(ValueError, match=r"old\.parquet is of an older schema, without height, diff_threshold"):
        read_measured(tmp_path, "idle")
    (tmp_path / "old.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"old\.parquet cannot be read"):
        read_measured(tmp_path, "idle")


@pytest.fixture
def clip_folder(tmp_path):
    """A tiny CLIP tower of 4 x 4 patches."""
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    CLIPVisionModel(config).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("embeddings.patch_embedding.weight"), r"missing: embeddings\.patch_embedding\.weight"),
        (
            lambda w: w.update({"embeddings.position_embedding.weight": torch.zeros(10, 16)}),
            "of a grid of 3 x 3 patches, not 4 x 4",
        ),
        (
            lambda w: w["post_layernorm.bias"][:3].fill_(float("inf")),
            r"post_layernorm\.bias has 0 NaN and 3 infinite of 16",
        ),
    ],
)
def test_a_tower_whose_weights_do_not_fit_is_refused(clip_folder, change, said):
    weights = load_file(clip_folder / "model.safetensors")
    change(weights)
    save_file(weights, clip_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=said):
        load_tower(str(clip_folder))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", "null", r"config\.json holds null; it must hold a JSON object"),
        ("config.json", '{"model_type": "vgg"}', "clip is no vision tower that can be loaded"),
        ("preprocessor_config.json", "[]", r"preprocessor_config\.json holds a list"),
        ("processor_config.json", '{"image_processor": {"a": 1}}', r"processor_config\.json: its image_mean is None"),
        ("preprocessor_config.json", "{}", "its image_mean is None; it must be three numbers"),
    ],
)
def test_a_towers_files_are_named(clip_folder, file, content, said):
    (clip_folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=said):
        load_tower(str(clip_folder))


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
            {**one, "sequence": name, "frame": frame, "kept_bytes": 8, "ms": 1.0, "ms_full": speed, "error_mean": error}
            for name, speed, error in (("slow", 2.0, 0.1), ("fast", 6.0, 0.3))
            for frame in range(50)
        ]
    )
    table = bootstrap_policies(rows).iloc[0]
    shared = summarize_policies(rows)
    assert table[list(shared)].tolist() == shared.iloc[0].tolist()
    assert 0 < table["total_speedup_low"] < table["total_speedup"] == 4 < table["total_speedup_high"]
    assert 0 <= table["error_mean_low"] < table["error_mean"] < table["error_mean_high"]
    alone = bootstrap_policies(rows[rows["sequence"] == "fast"]).iloc[0]
    assert alone["total_speedup"] == 6
    assert np.isnan(alone["total_speedup_low"])
