from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import DEMO, ROOT
from PIL import Image
from transformers import AutoProcessor
from vlm_folders import SAVERS

from fvlm_lib.data.screens import read_sequence
from fvlm_lib.errors import CheckpointError
from fvlm_lib.vision.differential import DifferentialVisionEncoder
from fvlm_lib.vision.models import open_vision
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vlm import assemble as assemble_llava
from fvlm_lib.vlm.stream import open_encoder
from fvlm_lib.vlm.vlms import VLM, load_vlm

SCREENS = ROOT / "data" / "screens"


@pytest.fixture(scope="module")
def frame():
    return read_sequence(SCREENS / "jupyter")[0]


def test_a_single_crop_of_onevision_is_what_it_makes_of_one_image_among_several(vlms, frame):
    vlm = vlms["llava_onevision"]
    image = Image.fromarray(frame)
    both = vlm.processor.image_processor(images=[[image, image]], return_tensors="pt")
    features = vlm.model.get_image_features(
        both["pixel_values"], image_sizes=both["image_sizes"], batch_num_images=both["batch_num_images"]
    ).pooler_output
    pixel_values = vlm.pixel_values(frame)
    torch.testing.assert_close(open_vision(vlm.model).own(pixel_values)[0], features[0], rtol=1e-4, atol=1e-5)
    encoder = open_encoder(vlm, DifferentialSettings())
    torch.testing.assert_close(encoder.encode(pixel_values)[0], features[0], rtol=1e-4, atol=1e-5)
    changed = pixel_values.clone()
    changed[..., 8:16, 8:16] = -changed[..., 8:16, 8:16]
    tokens, stats = encoder.encode(changed, return_stats=True)
    assert stats.path == "partial"
    assert torch.equal(tokens[0, -1], vlm.model.model.image_newline)  # a newline behind the image's tokens, once
    assert tokens.shape == (1, 37, 32)


@pytest.mark.parametrize("architecture", ["llava", "llava_onevision", "fast_vlm"])
def test_attached_encoder_gives_the_models_own_logits(vlms, frame, architecture):
    vlm = vlms[architecture]
    pixel_values = vlm.pixel_values(frame)
    count = open_vision(vlm.model).own(pixel_values).shape[1]
    ids = [token for token in vlm.prompt_ids("What?")]
    place = ids.index(vlm.model.config.image_token_id)
    ids[place : place + 1] = [vlm.model.config.image_token_id] * count
    inputs = {"input_ids": torch.tensor([ids]), "pixel_values": pixel_values}
    if architecture == "llava_onevision":
        inputs["pixel_values"] = pixel_values[:, None]
        inputs |= {"image_sizes": torch.tensor([[48, 48]]), "batch_num_images": [2]}
    with torch.no_grad():
        expected = vlm.model(**inputs).logits
        encoder = open_encoder(vlm, DifferentialSettings())
        with encoder.attach(vlm.model):
            found = vlm.model(**inputs).logits
    assert encoder.statistics.frames["full"] == 1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_several_crops_are_refused(vlms):
    vlm = vlms["llava_onevision"]
    encoder = DifferentialVisionEncoder(vlm.model)
    with encoder.attach(vlm.model), pytest.raises(ValueError, match="3 crops"):
        vlm.model.model.get_image_features(torch.zeros(1, 3, 3, 48, 48), torch.tensor([[48, 48]]))


def test_the_share_that_a_centre_crop_cuts_off(vlms):
    vlm = vlms["llava"]
    assert vlm.share_cut_off(800, 1280) == 0.0  # squashes
    cropping = _cropping(vlm)
    assert cropping.share_cut_off(800, 1280) == pytest.approx(1 - 800 / 1280)
    assert cropping.share_cut_off(500, 500) == 0.0


@pytest.mark.parametrize(("fit", "edges"), [("processor", False), ("squash", True), ("pad", True)])
def test_squash_and_pad_keep_the_sides_of_a_wide_frame(vlms, fit, edges):
    vlm = _cropping(vlms["llava"])
    frame = np.zeros((80, 160, 3), dtype=np.uint8)
    bright = frame.copy()
    bright[:, :16] = 255
    differs = not torch.equal(vlm.pixel_values(frame, fit), vlm.pixel_values(bright, fit))
    assert differs == edges
    assert vlm.pixel_values(frame, fit).shape == (1, 3, 224, 224)


def _cropping(vlm):
    """The model with a processor that crops the centre, as CLIP's do."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    images = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    processor = LlavaProcessor(image_processor=images, tokenizer=vlm.processor.tokenizer)
    return VLM(vlm.name, vlm.model, processor)


def test_a_prompt_with_the_image_token_is_taken_as_it_is(vlms):
    vlm = vlms["llava"]
    ids = vlm.prompt_ids("a <image> b")
    assert ids == vlm.processor.tokenizer("a <image> b")["input_ids"]
    with pytest.raises(ValueError, match="2 image tokens"):
        vlm.prompt_ids("<image> and <image>")
    with pytest.raises(ValueError, match=r"no chat template; .*<image>"):
        _cropping(vlm).prompt_ids("What is it?")


@pytest.mark.parametrize("architecture", SAVERS)
def test_a_prompt_is_what_the_models_own_processor_makes_of_it(vlms, architecture):
    vlm = vlms[architecture]
    content = [{"type": "image"}, {"type": "text", "text": 'Where is "OK"?\n{{ 1 }} ü'}]
    own = vlm.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert vlm.prompt_ids(content[1]["text"]) == vlm.processor.tokenizer(own)["input_ids"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for x in", r"cannot be used \(unexpected 'end of template', line 1\)"),
        ("{{ messages[7].content }}", r"cannot be used \(list object has no element 7\)"),
        ("{% for i in range(10**9) %}{% endfor %}", r"cannot be used \(Range too big"),
        ("{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}", "does not end within 2 sec"),
        ("{{ 'a' * 10**10 }}", "needs more than 4 GiB of memory"),
        ("{{ 'a' * 10**7 }}", "gives 10,000,000 characters, of which 1,000,000 are allowed"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ raise_exception('one\nimage alone') }}", r"cannot be used \(one image alone\)"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
        ("{{ ''.__class__ }}", r"puts into the prompt 0 image tokens \(<image>\); it must have one"),
    ],
)
def test_a_chat_template_that_cannot_be_rendered_is_named_within_seconds(vlms, template, reason):
    processor = copy.copy(vlms["llava"].processor)
    processor.chat_template = template
    with pytest.raises(ValueError, match=f"^the chat template of models/broken .*{reason}[^\n]*$"):
        VLM("models/broken", vlms["llava"].model, processor).prompt_ids("What is it?")


def test_assembling(tmp_path, vlm_folders):
    with pytest.raises(CheckpointError, match="name a folder that does not"):
        assemble_llava.assemble_llava("random:llama-tiny", "random:clip-tiny", vlm_folders["llava"])
    with pytest.raises(CheckpointError, match="must be of CLIP or SigLIP"):
        assemble_llava.assemble_llava("random:llama-tiny", str(DEMO / "S-S" / "step_3000"), tmp_path / "new")
    with pytest.raises(CheckpointError, match="no language model"):
        assemble_llava.assemble_llava(str(tmp_path), "random:clip-tiny", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_assembles_what_loads(tmp_path, capsys):
    out = tmp_path / "llava"
    arguments = ["--text", "random:llama-tiny", "--vision", "random:clip-tiny", "--out", str(out)]
    assert assemble_llava.main(arguments) == 0
    assert load_vlm(str(out)).image_size == (224, 224)
    assert assemble_llava.main(arguments) == 2
    assert "exists" in capsys.readouterr().err


# ---- folders that cannot be loaded -------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path, vlm_folders):
    """A copy of the LLaVA folder, to be damaged."""
    return shutil.copytree(vlm_folders["llava"], tmp_path / "llava")


def test_no_processor(damaged):
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (damaged / name).unlink()
    with pytest.raises(CheckpointError, match=r"llava has no processor"):
        load_vlm(str(damaged))


def test_an_architecture_without_images(tmp_path):
    model, tokenizer = assemble_llava.random_llama()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"architecture 'llama'; known are llava, llava_onevision, fast_vlm"):
        load_vlm(str(tmp_path))


def test_a_truncated_weights_file(damaged):
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="has no model that can be loaded"):
        load_vlm(str(damaged))


def test_a_missing_weight_is_named(damaged):
    from safetensors.torch import load_file, save_file

    weights = load_file(damaged / "model.safetensors")
    name = next(name for name in weights if "multi_modal_projector.linear_1.weight" in name)
    del weights[name]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing: .*multi_modal_projector.linear_1.weight"):
        load_vlm(str(damaged))


def test_a_weight_that_is_not_finite_is_named(damaged):
    from safetensors.torch import load_file, save_file

    weights = load_file(damaged / "model.safetensors")
    name = next(name for name in weights if "multi_modal_projector.linear_1.weight" in name)
    weights[name][0, :2] = float("nan")
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"multi_modal_projector.linear_1.weight has 2 NaN and 0 infinite of"):
        load_vlm(str(damaged))


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_processor_for_frames_of_another_grid_is_refused_naming_both(damaged):
    sizes = {"height": 196, "width": 196}
    edit(damaged / "processor_config.json", lambda config: config["image_processor"].update(size=sizes))
    with pytest.raises(CheckpointError, match=r"196 x 196 pixels, a grid of 14 x 14 patches, but .* 224 .*, 16 x 16"):
        load_vlm(str(damaged))


def test_more_tokens_than_embeddings_are_refused(damaged):
    tokenizer = AutoProcessor.from_pretrained(damaged).tokenizer
    tokenizer.add_tokens([f"new{i}" for i in range(9)])
    tokenizer.save_pretrained(damaged)
    with pytest.raises(CheckpointError, match=r"its tokenizer has 268 tokens, but its model embeds 259"):
        load_vlm(str(damaged))


def test_code_in_a_folder_is_not_run(damaged):
    config = json.loads((damaged / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}
    (damaged / "config.json").write_text(json.dumps(config))
    (damaged / "evil.py").write_text(f"open({str(damaged / 'ran')!r}, 'w')")
    with pytest.raises(CheckpointError):
        load_vlm(str(damaged))
    assert not (damaged / "ran").exists()


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_looked_up(name):
    with pytest.raises(CheckpointError, match="there is no folder"):
        load_vlm(name)


def test_the_saved_processor_is_the_loaded_one(vlm_folders, vlms, frame):
    again = AutoProcessor.from_pretrained(vlm_folders["llava"])
    pixels = again.image_processor(images=Image.fromarray(frame), return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, vlms["llava"].pixel_values(frame))
