"""The plan of a model: its arithmetic against the model's own forward, its reach against an update, its times."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import DEMO, exit_code
from transformers import AutoModel, CLIPVisionConfig, Dinov2Config, SiglipVisionConfig

from fvlm_lib.foveated.flops import count_flops
from fvlm_lib.reuse.kept import Journal, empty_rows
from fvlm_lib.reuse.policies.gated import Gated
from fvlm_lib.reuse.walk import walk_gated
from fvlm_lib.reuse.windows import consecutive_windows
from fvlm_lib.schema import RANDOM_TOWERS
from fvlm_lib.screens.loaded_towers import load_tower
from fvlm_lib.vision.models import open_vision
from fvlm_lib.vision.towers import open_tower
from fvlm_lib.vlm import plan_command
from fvlm_lib.vlm.plan import plan_text, plan_tower, reach, update_flops, width, windows
from fvlm_lib.vlm.plan_command import ranges
from fvlm_lib.vlm.plan_times import plan_map_times, plan_times
from fvlm_lib.vlm.weightless import open_weightless

SIZE = (40, 64)
SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8}
CONFIGS = {
    "clip": CLIPVisionConfig(**SHAPE, image_size=32, intermediate_size=48),
    "siglip": SiglipVisionConfig(**SHAPE, image_size=32, intermediate_size=48, vision_use_head=False),
    "dinov2": Dinov2Config(**SHAPE, image_size=32, mlp_ratio=2),
}


def saved_config(folder: Path, name: str) -> str:
    CONFIGS[name].save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_towers_arithmetic_is_that_of_its_own_forward(name, tmp_path):
    weightless = open_weightless(saved_config(tmp_path, name), SIZE)
    model = AutoModel.from_config(CONFIGS[name]).eval()
    height, width_ = (40, 64) if name == "dinov2" else (32, 32)  # DINOv2 takes whole patches of any frame
    assert weightless.frame.shape == (1, 3, height, width_)
    with torch.no_grad():
        wanted = count_flops(lambda: model(torch.zeros(1, 3, height, width_)))
    part = plan_tower(weightless)
    assert part.flops == wanted
    blocks = [layer for layer in part.layers if layer.name.startswith("block")]
    assert len(blocks) == 3 and all(0 < layer.attention < layer.flops for layer in blocks)
    weights = sum(weight.nbytes for name, weight in model.named_parameters() if ".layer" in name)
    assert part.nbytes == weights


@pytest.mark.parametrize("name", ["llava", "llava_onevision", "fast_vlm"])
def test_a_models_arithmetic_is_that_of_its_own_forward(name, vlm_folders, vlms):
    weightless = open_weightless(str(vlm_folders[name]), SIZE)
    assert all(weight.is_meta for weight in weightless.model.model.language_model.parameters())
    vlm = vlms[name]
    pixels = vlm.pixel_values(torch.zeros(*SIZE, 3, dtype=torch.uint8).numpy())
    assert weightless.frame.shape == pixels.shape
    text = plan_text(weightless, text_tokens=5)
    tower = plan_tower(weightless)
    inner, head = vlm.model.model.language_model, vlm.model.lm_head
    embeds = torch.zeros(1, text.rows, vlm.model.get_input_embeddings().embedding_dim)
    with torch.no_grad():
        vision = open_vision(vlm.model)
        tokens = vision.own(pixels)
        encode = count_flops(lambda: vision.own(pixels))
        prefill = count_flops(lambda: head(inner(inputs_embeds=embeds).last_hidden_state[:, -1:]))
    assert text.rows == tokens.shape[1] + 5 and text.flops == prefill
    if name == "llava":  # its features are those of the last block but one; the model runs the last all the same
        block = next(layer for layer in tower.layers if layer.name == "block 0")
        assert tower.flops + block.flops == encode
    else:
        assert tower.flops == encode
    assert sum(layer.flops for layer in tower.layers) == tower.flops
    kinds = {layer.name for layer in tower.layers}
    assert {"patches", "projector"} <= kinds or {"timm_model.stages.0", "the rest"} <= kinds


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("patch", [0, 6])
def test_reach_is_what_an_update_at_tolerance_0_computes(name, patch):
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIGS[name]).eval().double()
    tower = open_tower(model)
    frame = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        x = tower.embed(frame)[0]
        kept = empty_rows(tower.blocks, x, gated=True)
        given = torch.ones(len(x), dtype=torch.bool)
        walk_gated(tower.blocks, kept, x, given, Gated(0.0), Journal(new=True))
        given[:] = False
        given[: tower.num_global_tokens] = given[tower.num_global_tokens + patch] = True
        x = x.clone()
        x[tower.num_global_tokens + patch] += 1
        computed = walk_gated(tower.blocks, kept, x, given, Gated(0.0), Journal()).computed  # (L, 2, P)
    assert reach(tower, (4, 4), patch) == computed[:, 1].double().mean(dim=1).tolist()


def test_a_change_reaches_its_window_until_the_next_full_block():
    tower = open_tower(AutoModel.from_config(CONFIGS["siglip"]))
    inside = consecutive_windows(torch.tensor([0, 4, 10, 16]))
    order = torch.arange(16).flip(0)
    windowed = dataclasses.replace(tower, windows=lambda grid: (inside, None, inside), order=lambda grid: order)
    assert reach(windowed, (4, 4), 15) == [4 / 16, 1.0, 1.0]  # of row 0
    assert reach(windowed, (4, 4), 3) == [6 / 16, 1.0, 1.0]  # of row 12
    row = torch.empty(1, 1, 32)
    channels = 32
    less = update_flops(tower, (4, 4), 16, row) - update_flops(windowed, (4, 4), 16, row)
    pairs = 2 * (16 * 16 - (4 * 4 + 6 * 6 + 6 * 6))  # of two blocks
    assert less == 2 * 2 * channels * pairs  # scores, and values weighted with them
    assert windows(dataclasses.replace(windowed, blocks=tower.blocks[:1]), (4, 4)) == [inside]


def test_an_update_of_everything_takes_the_arithmetic_of_the_blocks_and_less_of_less(tmp_path):
    weightless = open_weightless(saved_config(tmp_path, "clip"), SIZE)
    tower = weightless.vision.tower
    row = torch.empty(1, 1, width(tower), device="meta")
    found = [update_flops(tower, (4, 4), count, row) for count in (1, 4, 16)]
    blocks = sum(layer.flops for layer in plan_tower(weightless).layers if layer.name.startswith("block"))
    assert found[0] < found[1] < found[2] == blocks


@pytest.mark.parametrize("pack", [False, True])
def test_times_are_of_every_count_and_factors_are_of_the_full_encode(pack):
    weightless = open_weightless("random:clip-tiny", SIZE)
    times = plan_times(weightless.vision.tower, (16, 16), [1, 256], pack_weights=pack, repeats=3)
    assert [update.changed for update in times.updates] == [1, 256]
    for update in times.updates:
        assert update.ms > 0 and update.factor == times.full_ms / update.ms
        assert update.gated_ms > 0 and update.gated_factor == times.full_ms / update.gated_ms
        assert max(update.factor, update.gated_factor) <= times.floor_factor
    assert times.reading_ms > 0


def test_the_random_towers_are_those_that_are_loaded():
    rows = [plan_tower(open_weightless(name, SIZE)).rows for name in RANDOM_TOWERS]
    assert rows == [577, 257, 5336, 4000, 576, 1024, 1025, None]  # of FastViTHD, there are maps
    assert load_tower("random:clip-tiny").model.config.hidden_size == width(
        open_weightless(RANDOM_TOWERS[1], SIZE).vision.tower
    )


def test_the_command_tells_all_of_it(vlm_folders, capsys):
    arguments = ["--size", "64x40", "--counts", "1", "36", "--threads", "1", "--text-tokens", "4"]
    assert exit_code(plan_command.main, "--model", vlm_folders["llava_onevision"], *arguments) == 0
    printed = capsys.readouterr().out
    assert "a screen of 64 x 40 pixels is a frame of 48 x 48 to the vision tower, 6 x 6 patches" in printed
    assert "block 0-2" in printed and "100.00% behind block 0-2" in printed and "layers.0-1" in printed
    facts = json.loads(printed.splitlines()[-1])
    assert facts["reach"] == [1.0, 1.0, 1.0] and facts["rows"] == 36
    assert [row["less_arithmetic"] for row in facts["updates"]] == [36.0, 1.0]
    assert all(row["factor"] > 0 for row in facts["updates"])
    shares = re.findall(r"(\d+\.\d)%\s+\|\s+\d+\.\d%", printed)
    assert sum(map(float, shares)) == pytest.approx(200, abs=0.5)  # of tower and language model


def test_without_adapter_the_factor_is_1(branched_fast_vlm, capsys):
    assert exit_code(plan_command.main, "--model", branched_fast_vlm, "--counts", 1, 5, "--no-measure") == 0
    printed = capsys.readouterr().out
    assert "TimmWrapperModel has no adapter" in printed
    assert {row["factor"] for row in json.loads(printed.splitlines()[-1])["updates"]} == {1.0}


def test_a_foveated_checkpoint_has_a_plan_without_times(capsys):
    assert exit_code(plan_command.main, "--model", DEMO / "S-S" / "step_3000", "--counts", 1, "--no-measure") == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["updates"]
    assert row["less_arithmetic"] > 1 and "ms" not in row


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "random:clip-tiny", "--size", "1280"], "--size is '1280'; it must be width and height in pixels"),
        (["--model", "random:clip-tiny", "--size", "0x80"], "--size is 0; it must be at least 1"),
        (["--model", "random:clip-tiny", "--counts", "257"], "257 patches cannot change; a frame has 256"),
        (["--model", "random:clip"], "there is no random:clip; known are random:clip-vit-large-patch14-336, "),
        (["--model", "no/such/folder"], "there is no folder no/such/folder; name a model's folder"),
        (["--model", "FOLDER"], "FOLDER has no config.json"),
        (["--model", "DINOV2", "--size", "7x80"], "a frame of 7 x 80 pixels is smaller than a patch of DINOV2, 8 x 8"),
        (
            ["--model", "TEXT"],
            "TEXT is no vision tower: its config says neither the size of frames nor that of patches",
        ),
        (["--model", "PAIR"], "PAIR has no vision tower that can be planned (Unrecognized configuration class"),
        (["--model", "UNKNOWN"], "UNKNOWN has no config that can be loaded"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(options, said, tmp_path, capsys):
    folders = {name: tmp_path / name.lower() for name in ("FOLDER", "DINOV2", "TEXT", "PAIR", "UNKNOWN")}
    for folder in folders.values():
        folder.mkdir()
    CONFIGS["dinov2"].save_pretrained(folders["DINOV2"])
    (folders["TEXT"] / "config.json").write_text('{"model_type": "llama"}')
    (folders["PAIR"] / "config.json").write_text('{"model_type": "encoder-decoder"}')
    (folders["UNKNOWN"] / "config.json").write_text('{"model_type": "nobody"}')
    options = [str(folders.get(word, word)) for word in options]
    for name, folder in folders.items():
        said = said.replace(name, str(folder))
    assert exit_code(plan_command.main, *options, "--no-measure") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fvlm plan: ") and said in line


def test_numbers_in_few_words():
    assert ranges(["0", "1", "2", "4", "6", "7"]) == "0-2, 4, 6-7"
    assert ranges([""]) == ""


def test_a_convolutional_tower_tells_how_far_a_change_reaches_in_its_maps(vlm_folders, capsys):
    """As an update at tolerance 0 does: a map's positions that it writes are among these."""
    assert exit_code(plan_command.main, "--model", vlm_folders["fast_vlm"], "--no-measure") == 0
    said = capsys.readouterr().out
    facts = json.loads(said.splitlines()[-1])
    assert facts["reach"] == sorted(facts["reach"]) and 0 < facts["reach"][0] < facts["reach"][-1] == 1
    assert "of 32 x 32" in said and "fvlm bench-policies" in said


def test_a_convolutional_tower_is_timed_as_a_whole(vlm_folders, capsys):
    arguments = ["--model", vlm_folders["fast_vlm"], "--counts", 1, 16, "--threads", 1]
    assert exit_code(plan_command.main, *arguments) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["changed"] for row in facts["updates"]] == [1, 16]
    for row in facts["updates"]:
        assert row["factor"] == pytest.approx(facts["full_ms"] / row["ms"])
        assert row["exact_factor"] == pytest.approx(facts["full_ms"] / row["exact_ms"])
    assert exit_code(plan_command.main, *arguments[:2], "--counts", 17) == 2
    assert "17 patches cannot change; a frame has 16" in capsys.readouterr().err
    with pytest.raises(TypeError, match="CLIPVisionModel is no convolutional tower"):
        plan_map_times(load_tower("random:clip-tiny").model, (224, 224), [1])
