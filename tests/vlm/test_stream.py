from __future__ import annotations

import copy

import pytest
import torch
from conftest import ROOT
from transformers import DynamicCache

from fvlm_lib.data.screens import read_sequence
from fvlm_lib.vision.differential import DifferentialVisionEncoder
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vlm.bench import format_answers, measure_answers, summarize_answers
from fvlm_lib.vlm.stream import Decoding, VLMStream, open_encoder
from fvlm_lib.vlm.vlms import VLM

SCREENS = ROOT / "data" / "screens"
RECORDINGS = ["dialog", "fade", "idle", "jupyter", "terminal"]
PROMPT = "What is on the screen?"


def encoder(vlm: VLM, **options) -> DifferentialVisionEncoder:
    return open_encoder(vlm, DifferentialSettings(**options))


def exact(vlm: VLM) -> DifferentialVisionEncoder:
    return encoder(vlm, diff_threshold=0.0, propagate="gated", tolerance=0.0)


@pytest.mark.parametrize("recording", RECORDINGS)
def test_exact_settings_say_what_the_full_path_says(vlms, recording):
    vlm, decoding = vlms["llava"], Decoding(max_new_tokens=4)
    fast = VLMStream(vlm, PROMPT, exact(vlm), decoding=decoding)
    full = VLMStream(vlm, PROMPT, prefill="full", decoding=decoding)
    said = set()
    for frame in read_sequence(SCREENS / recording):
        answer = full.answer(frame)
        assert fast.answer(frame).token_ids == answer.token_ids
        assert answer.reused_tokens == 0
        said.add(tuple(answer.token_ids))
    assert recording in ("idle", "terminal", "fade") or len(said) > 1  # the model does look at the screen


@pytest.mark.parametrize("beams", [1, 3])
def test_reusing_the_prefix_changes_no_token(vlms, beams):
    vlm, decoding = vlms["llava"], Decoding(max_new_tokens=6, num_beams=beams)
    reusing, running = (
        VLMStream(vlm, PROMPT, encoder(vlm), prefill=way, decoding=decoding) for way in ("exact", "full")
    )
    reused = 0
    for frame in read_sequence(SCREENS / "jupyter").head(12):
        answer = reusing.answer(frame)
        assert answer.token_ids == running.answer(frame).token_ids
        reused += answer.reused_tokens
    assert reused > 0


def test_the_cache_is_that_of_a_fresh_prefill(vlms):
    vlm = vlms["llava"]
    stream = VLMStream(vlm, PROMPT, encoder(vlm), decoding=Decoding(max_new_tokens=5))
    for frame in read_sequence(SCREENS / "terminal").head(6):
        answer = stream.answer(frame)
    assert 0 < answer.reused_tokens < answer.prompt_tokens
    fresh = DynamicCache(config=vlm.model.config)
    with torch.no_grad():
        vlm.model.model.language_model(
            inputs_embeds=stream._prefill._prompt.embeds, past_key_values=fresh, use_cache=True
        )
    assert stream._prefill._past.get_seq_length() == fresh.get_seq_length() == answer.prompt_tokens
    for kept, new in zip(stream._prefill._past.layers, fresh.layers, strict=True):
        torch.testing.assert_close(kept.keys, new.keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(kept.values, new.values, rtol=1e-4, atol=1e-4)


def test_what_is_reused_ends_at_the_first_changed_token(vlms):
    vlm = vlms["llava"]
    frame = read_sequence(SCREENS / "idle")[0]
    stream = VLMStream(vlm, PROMPT, encoder(vlm, propagate="none"), decoding=Decoding(max_new_tokens=1))
    place = stream.prompt_ids.index(vlm.model.config.image_token_id)
    first = stream.answer(frame)
    assert (first.path, first.reused_tokens, first.prompt_tokens) == ("full", 0, len(stream.prompt_ids) - 1 + 256)
    same = stream.answer(frame)
    assert (same.path, same.changed_patches, same.reused_tokens) == ("cached", 0, same.prompt_tokens - 1)
    changed = frame.copy()
    patch_height, patch_width = 800 / 16, 1280 / 16
    changed[int(5.3 * patch_height) : int(5.7 * patch_height), int(7.3 * patch_width) : int(7.7 * patch_width)] ^= 255
    answer = stream.answer(changed)
    assert (answer.path, answer.changed_patches, answer.reused_tokens) == ("partial", 1, place + 5 * 16 + 7)


def test_a_reset_forgets_the_frames(vlms):
    vlm = vlms["llava"]
    frame = read_sequence(SCREENS / "idle")[0]
    stream = VLMStream(vlm, PROMPT, encoder(vlm), decoding=Decoding(max_new_tokens=2))
    first = stream.answer(frame)
    stream.reset()
    again = stream.answer(frame)
    assert (again.path, again.reused_tokens, again.token_ids) == ("full", 0, first.token_ids)


def test_after_an_error_in_the_tower_the_stream_goes_on(vlms):
    vlm = vlms["llava"]
    frames = read_sequence(SCREENS / "terminal").head(6).load()
    calm = VLMStream(vlm, PROMPT, exact(vlm), decoding=Decoding(max_new_tokens=4))
    expected = [calm.answer(frame).token_ids for frame in frames]
    stream = VLMStream(vlm, PROMPT, exact(vlm), decoding=Decoding(max_new_tokens=4))
    answers = []
    for index, frame in enumerate(frames):
        if index == 3:
            _fail_once(vlm.model.model.vision_tower.encoder.layers[1].mlp, RuntimeError("out of memory"))
        answers.append(stream.answer(frame))
    assert [answer.path for answer in answers] == ["full", "partial", "partial", "fallback", "full", "partial"]
    assert stream.encoder.statistics.fallbacks == 1
    assert [answer.token_ids for answer in answers] == expected


def test_an_interrupted_answer_leaves_no_half_cache(vlms):
    vlm = vlms["llava"]
    frames = read_sequence(SCREENS / "terminal").head(3).load()
    stream = VLMStream(vlm, PROMPT, encoder(vlm), decoding=Decoding(max_new_tokens=4))
    expected = [stream.answer(frame).token_ids for frame in frames]
    stream.reset()
    stream.answer(frames[0])
    _fail_once(vlm.model.model.language_model.layers[1].mlp, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        stream.answer(frames[1])
    assert [stream.answer(frame).token_ids for frame in frames[1:]] == expected[1:]


def _fail_once(module: torch.nn.Module, error: BaseException) -> None:
    """Raise `error` at the module's next call, and only then."""

    def fail(*_: object) -> None:
        handle.remove()
        raise error

    handle = module.register_forward_pre_hook(fail)


def test_the_model_is_left_as_it_was(vlms):
    vlm = vlms["llava"]
    before = {id(module): set(vars(module)) for module in vlm.model.modules()}
    stream = VLMStream(vlm, PROMPT, encoder(vlm), decoding=Decoding(max_new_tokens=2))
    for frame in read_sequence(SCREENS / "terminal").head(3):
        stream.answer(frame)
    assert {id(module): set(vars(module)) for module in vlm.model.modules()} == before


def test_sampling_depends_on_seed_and_frame_alone(vlms):
    vlm = vlms["llava"]
    frames = read_sequence(SCREENS / "terminal").head(3).load()

    def answers(seed: int, start: int = 0) -> list[list[int]]:
        decoding = Decoding(max_new_tokens=6, temperature=2.0, top_p=0.9, seed=seed)
        stream = VLMStream(vlm, PROMPT, exact(vlm), decoding=decoding)
        return [stream.answer(frame, number).token_ids for number, frame in enumerate(frames) if number >= start]

    assert answers(0) == answers(0)
    assert answers(0)[1:] == answers(0, start=1)
    assert answers(0) != answers(1)


def test_sliding_windows_are_refused(vlms):
    vlm = vlms["llava_onevision"]
    config = copy.deepcopy(vlm.model.config)
    config.text_config.layer_types = ["sliding_attention"] * 2
    config.text_config.sliding_window = 4
    model = type(vlm.model)(config)
    with pytest.raises(ValueError, match="--prefill full"):
        VLMStream(VLM("sliding", model, vlm.processor), PROMPT)
    VLMStream(VLM("sliding", model, vlm.processor), PROMPT, prefill="full")


def test_the_benchmark_pairs_both_ways(vlms):
    vlm, decoding = vlms["llava"], Decoding(max_new_tokens=3)
    sequences = [read_sequence(SCREENS / name).head(5) for name in ("idle", "terminal")]
    differential = VLMStream(vlm, PROMPT, exact(vlm), decoding=decoding)
    full = VLMStream(vlm, PROMPT, prefill="full", decoding=decoding)
    rows = measure_answers(differential, full, sequences, progress=False)
    assert list(rows["frame"]) == [0, 1, 2, 3, 4] * 2
    assert rows["same_text"].all()
    assert set(rows.loc[rows["frame"] == 0, "path"]) == {"full"}
    parts = rows["preprocess_ms"] + rows["encode_ms"] + rows["prefill_ms"]
    assert (rows["first_token_ms"] - parts).abs().max() < 1e-6
    summary = summarize_answers(rows).set_index(["sequence", "frames"])
    assert summary.loc[("all", "later"), "n"] == 8
    assert summary.loc[("idle", "first"), "n"] == 1
    assert summary.loc[("all", "unchanged"), "n"] == (rows["path"] == "cached").sum() > 0
    later = rows[rows["frame"] > 0]
    ratio = (later["first_token_ms_full"] / later["first_token_ms"]).median()
    assert summary.loc[("all", "later"), "speedup"] == pytest.approx(ratio)
    assert summary.loc[("all", "later"), "same_text"] == 8
    assert "8/8" in format_answers(summary.reset_index())


# ---- what cannot be answered -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens is 9, more than max_new_tokens, which is 8"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"num_beams": 1.5}, "num_beams is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0"),
    ],
)
def test_numbers_that_no_decoding_has_are_refused(numbers, said):
    with pytest.raises(ValueError, match=said):
        Decoding(**numbers)


@pytest.mark.parametrize("architecture", ["llava", "llava_onevision", "fast_vlm"])
def test_a_prompt_beyond_the_context_is_refused_before_a_frame_is_seen(vlms, architecture, monkeypatch):
    vlm = vlms[architecture]
    stream = VLMStream(vlm, PROMPT, encoder(vlm), decoding=Decoding(max_new_tokens=4))
    needed = stream.answer(read_sequence(SCREENS / "idle")[0]).prompt_tokens + 4
    config = vlm.model.config.text_config
    for positions, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(config, "max_position_embeddings", positions)
        if fits:
            VLMStream(vlm, PROMPT, decoding=Decoding(max_new_tokens=4))
            continue
        image = {"llava": 256, "llava_onevision": 37, "fast_vlm": 16}[architecture]
        with pytest.raises(ValueError, match=rf" {image} of the image and up to 4 of the answer .* the {positions} "):
            VLMStream(vlm, PROMPT, decoding=Decoding(max_new_tokens=4))
