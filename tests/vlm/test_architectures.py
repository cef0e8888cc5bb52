"""Every architecture through the same stream: what is kept changes no token, whatever happens to the frames."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Made
from PIL import Image
from torch import nn
from vlm_folders import SAVERS

from fvlm_lib.errors import CheckpointError
from fvlm_lib.vision.flat_patches import flatten_frame, fold_patches
from fvlm_lib.vision.models import open_vision
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vlm.stream import Decoding, VLMStream, open_encoder
from fvlm_lib.vlm.vlms import VLM, check_processor

PROMPT = "What is on the screen?"
SEVERAL = [name for name in SAVERS if name != "qwen3_5"]  # whose prompts may be kept
TILED = ["internvl", "smolvlm", "idefics3"]
QWEN = ["qwen2_5_vl", "qwen3_vl", "qwen3_5"]


def screenshot(height: int = 60, width: int = 90, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def frames() -> dict[str, np.ndarray]:
    """A stream by what happens in it."""
    first, one_patch, two = screenshot(), screenshot(), screenshot(seed=1)
    one_patch[42:46, 52:56] ^= 255
    shown = {"first": first, "the same": first.copy(), "one patch": one_patch, "all": two}
    return shown | {"another size": screenshot(90, 60, 2), "as large again": screenshot(90, 60, 3), "back": first}


@pytest.fixture(scope="module")
def doubles(vlms):
    """The models in float64."""

    def double(name: str) -> VLM:
        return VLM(name, copy.deepcopy(vlms[name].model).double(), vlms[name].processor)

    return Made(double)


def exact(vlm: VLM):
    return open_encoder(vlm, DifferentialSettings(diff_threshold=0.0, propagate="gated", tolerance=0.0))


def stream(vlm: VLM, prefill: str = "exact", encoder: bool = True, **options) -> VLMStream:
    options = {"decoding": Decoding(max_new_tokens=4)} | options
    tolerance = 0.0 if prefill == "gated" else None
    return VLMStream(
        vlm, PROMPT, exact(vlm) if encoder else None, prefill=prefill, prefill_tolerance=tolerance, **options
    )


def own_inputs(vlm: VLM, shown: np.ndarray) -> dict[str, torch.Tensor]:
    """What the model's own processor and chat template make of the prompt."""
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    messages = [{"role": "user", "content": content}]
    text = vlm.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return vlm.processor(text=text, images=Image.fromarray(shown), return_tensors="pt")


@pytest.mark.parametrize("name", [name for name in SAVERS if name != "llava_onevision"])  # whose own way has crops
@pytest.mark.parametrize("size", [(60, 90), (90, 60), (40, 40), (7, 300)])
@torch.no_grad()
def test_prompt_first_token_and_text_are_the_models_own(doubles, name, size):
    vlm, shown = doubles[name], screenshot(*size)
    inputs = own_inputs(vlm, shown)
    opened = stream(vlm, "full", encoder=False, decoding=Decoding(max_new_tokens=6))
    encoded, _ = opened.encode(shown)
    assert vlm.input_ids(opened.prompt_ids, encoded) == inputs["input_ids"][0].tolist()
    said = opened.in_full(shown)
    hidden = vlm.model(**inputs, output_hidden_states=True).hidden_states[-1][:, -1]
    torch.testing.assert_close(said.hidden, hidden, rtol=1e-9, atol=1e-9)
    generated = vlm.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert opened.answer(shown).token_ids == generated[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize("prefill", ["exact", "gated"])
def test_what_is_kept_changes_nothing(doubles, name, prefill, encoder):
    opened = stream(doubles[name], prefill, encoder)
    paths, hidden = {}, []
    for what, shown in frames().items():
        answer, said = opened.watch(shown)
        full = opened.in_full(shown)
        assert said.token_ids == answer.token_ids == full.token_ids, what
        torch.testing.assert_close(said.hidden, full.hidden, rtol=1e-9, atol=1e-9)
        paths[what] = answer.prefill_path
        hidden.append(full.hidden)
    assert paths.pop("first") == "full"
    assert paths.pop("the same") == ("exact" if prefill == "exact" else "cached")
    assert {*paths.values()} == {"exact" if prefill == "exact" else "partial"}
    assert not torch.equal(hidden[0], hidden[2])
    assert opened.fallbacks == 0


@pytest.mark.parametrize("name", SEVERAL)
def test_one_patch_costs_what_stands_behind_it(vlms, name):
    opened = stream(vlms[name], "exact")
    first, same, changed = (opened.answer(frames()[what]) for what in ("first", "the same", "one patch"))
    assert first.reused_tokens == 0
    assert same.reused_tokens == same.prompt_tokens - 1
    assert 0 < changed.reused_tokens < same.reused_tokens


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "smolvlm"])
@pytest.mark.parametrize(
    "decoding", [Decoding(max_new_tokens=5, num_beams=3), Decoding(max_new_tokens=5, temperature=2.0, top_p=0.9)]
)
def test_beams_and_samples_are_those_of_the_full_prefill(doubles, name, decoding):
    streams = [stream(doubles[name], prefill, decoding=decoding) for prefill in ("full", "exact", "gated")]
    for number, what in enumerate(("first", "one patch", "another size")):
        full, *kept = (opened.answer(frames()[what], number).token_ids for opened in streams)
        assert kept == [full, full], what


def fail_once(module: nn.Module, error: BaseException) -> None:
    """Raise `error` at the module's next call, and only then."""

    def fail(*_: object) -> None:
        handle.remove()
        raise error

    handle = module.register_forward_pre_hook(fail)


def part_of_tower(model: nn.Module) -> nn.Module:
    """A module that every encode runs: an MLP, or what is behind the last block of a convolutional tower."""
    parts = dict(open_vision(model).module.named_modules())
    return parts.get("timm_model.final_conv") or next(part for name, part in parts.items() if name.endswith("mlp"))


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("prefill", ["exact", "gated"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_or_error_in_the_tower_leaves_right_answers(vlms, name, prefill, error, caplog):
    vlm, shown = vlms[name], frames()
    expected = {what: stream(vlm, "full", encoder=False).answer(frame).token_ids for what, frame in shown.items()}
    opened = stream(vlm, prefill)
    assert opened.answer(shown["first"]).token_ids == expected["first"]
    fail_once(part_of_tower(vlm.model), error("once"))
    if error is KeyboardInterrupt:
        with pytest.raises(error):
            opened.answer(shown["all"])
    else:
        assert opened.answer(shown["all"]).path == "fallback"
    for what in ("all", "one patch", "another size"):
        assert opened.answer(shown[what]).token_ids == expected[what], what


@pytest.mark.parametrize("name", SEVERAL)
def test_an_interrupted_answer_leaves_the_model_as_it_was(vlms, name):
    vlm, shown = vlms[name], frames()
    before = {id(module): set(vars(module)) for module in vlm.model.modules()}
    opened = stream(vlm, "exact")
    opened.answer(shown["first"])
    decoder = vlm.model.model.text_model if hasattr(vlm.model.model, "text_model") else vlm.model.model.language_model
    fail_once(decoder.layers[1].mlp, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        opened.answer(shown["all"])
    assert {id(module): set(vars(module)) for module in vlm.model.modules()} == before
    assert not any(layer._forward_hooks for layer in decoder.layers)
    full = stream(vlm, "full", encoder=False)
    assert opened.answer(shown["one patch"]).token_ids == full.answer(shown["one patch"]).token_ids


def test_qwen3_5_answers_in_full_and_nothing_of_its_prompts_can_be_kept(vlms):
    vlm = vlms["qwen3_5"]
    opened = stream(vlm, "full")
    assert opened.answer(screenshot()).token_ids == opened.in_full(screenshot()).token_ids
    with pytest.raises(ValueError, match=r"qwen3_5 has layers of linear attention, so its prefix .* --prefill full"):
        stream(vlm, "exact")
    with pytest.raises(ValueError, match=r"^\S+: the language model Qwen3_5TextModel .*linear_attention; compute all"):
        stream(vlm, "gated")


# ---- frames ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QWEN)
def test_a_folded_frame_is_the_picture_and_flattens_to_the_processors_rows(vlms, name):
    vlm, shown = vlms[name], screenshot(64, 96)
    images = vlm.processor.image_processor
    rows = images(images=Image.fromarray(shown), return_tensors="pt")["pixel_values"]
    sizes = images.merge_size, images.temporal_patch_size, images.patch_size
    frame = vlm.pixel_values(shown)
    assert frame.shape == (1, 3, 64, 96)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.image_mean, images.image_std))
    picture = torch.from_numpy(shown).permute(2, 0, 1) / 255
    torch.testing.assert_close(frame[0] * std + mean, picture, rtol=0, atol=1e-5)  # of 64 x 96, it resizes nothing
    assert torch.equal(flatten_frame(frame, *sizes), rows)
    assert torch.equal(fold_patches(rows, (8, 12), *sizes), frame)


@pytest.mark.parametrize("name", TILED)
def test_tiles_stand_in_reading_order_and_the_whole_is_last(vlms, name):
    shown = np.zeros((64, 96, 3), dtype=np.uint8)
    shown[32:, 64:] = 255  # the last of 2 x 3 tiles
    processor = vlms[name].processor
    if name == "internvl":
        shown = shown[:, 32:]  # at most 4 tiles
    assert processor.image_processor.do_normalize
    frame = vlms[name].frame(shown)
    tiles = 4 if name == "internvl" else 6
    assert frame.pixel_values.shape == (tiles + 1, 3, 32, 32)
    assert frame.tiles == ((0, 0) if name == "internvl" else (2, 3))
    bright = frame.pixel_values.mean(dim=(1, 2, 3))
    assert bright.argmax() == tiles - 1 and bright[tiles] > bright[0] == bright[: tiles - 1].max()


@pytest.mark.parametrize("name", [*QWEN, *TILED])
def test_frames_of_any_size_are_fitted_by_the_processor_alone(vlms, name):
    assert vlms[name].image_size is None and vlms[name].share_cut_off(60, 90) == 0
    with pytest.raises(ValueError, match=f"fit is 'pad', but .*{name} takes whole frames of any size"):
        vlms[name].pixel_values(screenshot(), "pad")


# ---- what cannot be ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QWEN)
def test_a_frame_that_is_a_line_is_refused(vlms, name):
    with pytest.raises(ValueError, match="aspect ratio must be smaller than 200"):
        vlms[name].frame(screenshot(1, 300))


def test_more_tiles_than_the_tokenizer_names(vlms):
    vlm = vlms["idefics3"]
    processor = copy.copy(vlm.processor)
    processor.image_processor = copy.copy(processor.image_processor)
    processor.image_processor.size = type(processor.image_processor.size)(longest_edge=128)
    with pytest.raises(ValueError, match=r"^a screenshot of 90 x 60 pixels becomes 3 x 4 tiles, but .*<row_3_col_4>;"):
        VLM(vlm.name, vlm.model, processor).frame(screenshot())


@pytest.mark.parametrize("name", [*QWEN[:2], *TILED])
def test_a_frame_beyond_the_context_is_refused_and_the_next_one_answered(vlms, name, monkeypatch):
    vlm = vlms[name]
    small, large = screenshot(32, 96), screenshot(96, 96)
    least, most = (stream(vlm, encoder=False).answer(shown).prompt_tokens for shown in (small, large))
    assert least < most
    monkeypatch.setattr(vlm.model.config.text_config, "max_position_embeddings", most + 3)
    opened = stream(vlm)
    expected = opened.answer(small).token_ids
    with pytest.raises(ValueError, match=rf"of the image and up to 4 of the answer .* than the {most + 3} positions"):
        opened.answer(large)
    assert opened.answer(small).token_ids == expected


@pytest.mark.parametrize(
    ("name", "attribute", "value", "said"),
    [
        ("qwen2_5_vl", "patch_size", 16, "its processor has patch_size 16, but its vision tower has patch_size 8"),
        ("qwen3_vl", "merge_size", 4, "its processor has merge_size 4, but its vision tower has spatial_merge_size 2"),
        ("internvl", "size", {"height": 48, "width": 48}, "makes tiles of 48 x 48 pixels, .* positions for 32 x 32"),
        ("smolvlm", "max_image_size", {"longest_edge": 64}, "makes tiles of 64 x 64 pixels, .* positions for 32 x 32"),
    ],
)
def test_a_processor_of_other_sizes_than_the_weights(vlms, name, attribute, value, said):
    vlm = vlms[name]
    processor = copy.copy(vlm.processor)
    processor.image_processor = copy.copy(processor.image_processor)
    setattr(processor.image_processor, attribute, value)
    with pytest.raises(CheckpointError, match=rf"{name}: .*{said}"):
        check_processor(dataclasses.replace(vlm, processor=processor))


@pytest.mark.parametrize("name", SAVERS)
def test_a_processor_of_another_kind_of_images(vlms, name):
    processor = copy.copy(vlms[name].processor)
    processor.image_processor = SimpleNamespace()
    with pytest.raises(CheckpointError, match=f"{name}: its processor does not say the height and width"):
        check_processor(dataclasses.replace(vlms[name], processor=processor))


@pytest.mark.parametrize(("name", "attribute"), [("internvl", "image_seq_length"), ("idefics3", "image_seq_len")])
def test_a_processor_with_another_number_of_tokens_a_tile(vlms, name, attribute):
    processor = copy.copy(vlms[name].processor)
    setattr(processor, attribute, 5)
    with pytest.raises(CheckpointError, match=rf"gives a tile 5 image tokens \({attribute}\), .* makes 4"):
        check_processor(dataclasses.replace(vlms[name], processor=processor))


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "smolvlm"])
def test_a_processor_with_another_image_token(vlms, name):
    processor = copy.copy(vlms[name].processor)
    processor.image_token = "<|im_end|>"
    with pytest.raises(CheckpointError, match=r"image token <\|im_end\|> is not its model's, of id \d+"):
        check_processor(dataclasses.replace(vlms[name], processor=processor))
