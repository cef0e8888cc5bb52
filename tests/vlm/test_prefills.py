"""A stream whose language model updates its prefill: what it says, what it keeps, and what an error leaves."""

from __future__ import annotations

import copy
import inspect
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from fvlm_lib.data.screens import read_sequence
from fvlm_lib.language.prefill import GatedPrefill
from fvlm_lib.reuse.policies import POLICIES
from fvlm_lib.reuse.policies.budget import Budget
from fvlm_lib.reuse.policies.gated import Gated
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vlm.architectures.architecture import Frame
from fvlm_lib.vlm.prefills import Begun, continued, open_policy
from fvlm_lib.vlm.stream import Decoding, VLMStream, open_encoder
from fvlm_lib.vlm.vlms import VLM

SCREENS = ROOT / "data" / "screens"
PROMPT = "What is on the screen?"
DECODINGS = {
    "greedy": Decoding(max_new_tokens=5),
    "at least": Decoding(max_new_tokens=5, min_new_tokens=5),
    "beams": Decoding(max_new_tokens=5, num_beams=3),
    "sampling": Decoding(max_new_tokens=5, temperature=2.0, top_p=0.9),
    "sampled beams": Decoding(max_new_tokens=5, num_beams=2, temperature=1.5),
    "one token": Decoding(max_new_tokens=1),
}


def stream(vlm: VLM, prefill: object = "gated", tolerance: float | None = None, encoder: dict | None = None, **options):
    """With a differential encoder of the settings `encoder`."""
    decoding = options.pop("decoding", Decoding(max_new_tokens=4))
    opened = open_encoder(vlm, DifferentialSettings(**(encoder or {})))
    return VLMStream(vlm, PROMPT, opened, prefill=prefill, prefill_tolerance=tolerance, decoding=decoding, **options)


def frames(recording: str, count: int) -> list[np.ndarray]:
    return list(read_sequence(SCREENS / recording).head(count))


@pytest.fixture(scope="module")
def doubled(vlms):
    """The LLaVA in float64."""
    vlm = vlms["llava"]
    return VLM(vlm.name, copy.deepcopy(vlm.model).double(), vlm.processor)


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_with_tolerance_0_every_token_is_that_of_the_full_prefill(vlms, doubled, precision, decoding):
    vlm = vlms["llava"] if precision == "float32" else doubled
    gated = stream(vlm, "gated", 0.0, decoding=DECODINGS[decoding])
    full = stream(vlm, "full", decoding=DECODINGS[decoding])
    paths, said = [], set()
    for number, frame in enumerate([*frames("jupyter", 8), *frames("idle", 2)]):
        answer = gated.answer(frame, number)
        assert answer.token_ids == full.answer(frame, number).token_ids
        paths.append(answer.prefill_path)
        said.add(tuple(answer.token_ids))
    assert paths[0] == "full" and set(paths[1:]) <= {"partial", "cached"} and "partial" in paths
    assert len(said) > 1


@pytest.mark.parametrize("architecture", ["llava", "llava_onevision", "fast_vlm"])
@pytest.mark.parametrize("with_encoder", [True, False])
def test_every_architecture(vlms, architecture, with_encoder):
    vlm = vlms[architecture]
    encoder = open_encoder(vlm, DifferentialSettings()) if with_encoder else None
    gated = VLMStream(vlm, PROMPT, encoder, prefill="gated", prefill_tolerance=0.0, decoding=Decoding(4))
    encoder = open_encoder(vlm, DifferentialSettings()) if with_encoder else None
    full = VLMStream(vlm, PROMPT, encoder, prefill="full", decoding=Decoding(4))
    for frame in frames("terminal", 5):
        assert gated.answer(frame).token_ids == full.answer(frame).token_ids
    assert gated.prefill_totals.frames["full"] == 1 and gated.fallbacks == 0


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_answers(vlms, name):
    opened = stream(vlms["llava"], name)
    answers = [opened.answer(frame) for frame in frames("terminal", 4)]
    assert answers[0].prefill_path == "full" and answers[0].prefill_rows == 1.0
    later = {"full": "full", "exact": "exact"}.get(name, "partial")
    assert {answer.prefill_path for answer in answers[1:]} == {later}
    assert opened.prefill_totals.frames[later] >= 3 and opened.fallbacks == 0


def test_a_policy_is_a_name_or_an_object(vlms):
    assert stream(vlms["llava"]).policy == Gated(0.02)
    assert stream(vlms["llava"], "gated", 0.1).policy == Gated(0.1)
    budget = stream(vlms["llava"], Budget(max_rows=16))
    budget.answer(frames("jupyter", 1)[0])
    answers = [budget.answer(frame) for frame in frames("jupyter", 6)[1:]]
    assert max(answer.prefill_rows for answer in answers) <= 2 * 16 / 270  # either half of a block has its own rows
    assert max(answer.prefill_owed for answer in answers) > 0
    assert stream(vlms["llava"]).answer(frames("jupyter", 1)[0]).prefill_owed == 0


def test_what_an_unchanged_frame_costs(vlms):
    opened = stream(vlms["llava"])
    frame = frames("idle", 1)[0]
    first, again = opened.answer(frame), opened.answer(frame)
    assert (first.prefill_path, first.prefill_rows, first.reused_tokens) == ("full", 1.0, 0)
    assert (again.prefill_path, again.prefill_rows, again.reused_tokens) == ("cached", 0.0, first.prompt_tokens)
    assert again.token_ids == first.token_ids


def one_patch(frame: np.ndarray, row: int, column: int) -> np.ndarray:
    """The frame with what becomes one patch of 16 x 16 inverted."""
    changed, (height, width) = frame.copy(), (frame.shape[0] / 16, frame.shape[1] / 16)
    rows = slice(int((row + 0.3) * height), int((row + 0.7) * height))
    changed[rows, int((column + 0.3) * width) : int((column + 0.7) * width)] ^= 255
    return changed


def given_to(opened: VLMStream, monkeypatch) -> list[torch.Tensor | None]:
    """What every prefill from here on is told has changed."""
    found: list[torch.Tensor | None] = []
    own = GatedPrefill.__call__

    def call(self, embeds, **options):
        found.append(options["changed"])
        return own(self, embeds, **options)

    monkeypatch.setattr(GatedPrefill, "__call__", call)
    return found


def test_the_tokens_of_changed_patches_count_under_any_tolerance(vlms, monkeypatch):
    vlm = vlms["llava"]
    frame = frames("idle", 1)[0]
    opened = stream(vlm, "gated", 1e6, {"propagate": "none"})
    told = given_to(opened, monkeypatch)
    place = opened.prompt_ids.index(vlm.model.config.image_token_id)
    opened.answer(frame)
    answer = opened.answer(one_patch(frame, 5, 7))
    assert answer.path == "partial" and answer.prefill_path == "partial"
    assert told[0] is None and told[1].nonzero().tolist() == [[place + 5 * 16 + 7]]
    # that token, the last one, and the few whose attention changed beyond what can be corrected
    assert answer.prompt_tokens - 10 < answer.reused_tokens <= answer.prompt_tokens - 2
    assert 2 / answer.prompt_tokens <= answer.prefill_rows < 10 / answer.prompt_tokens
    opened.follow(one_patch(frame, 9, 3))  # 5, 7 is back, 9, 3 is new
    opened.encode(one_patch(frame, 2, 2))  # encoded, and not answered about
    opened.answer(one_patch(frame, 2, 2))
    tokens = [place + 16 * row + column for row, column in ((2, 2), (5, 7), (9, 3))]
    assert told[2].nonzero().flatten().tolist() == tokens[1:]
    assert told[3].nonzero().flatten().tolist() == [tokens[0], tokens[2]]


def test_a_full_encode_leaves_what_changed_to_be_seen(vlms, monkeypatch):
    opened = stream(vlms["llava"], "gated", 0.02, {"max_changed_patches": 0})
    told = given_to(opened, monkeypatch)
    frame = frames("idle", 1)[0]
    assert [opened.answer(shown).path for shown in (frame, one_patch(frame, 5, 7))] == ["full", "full"]
    assert told == [None, None]


def test_onevisions_newline_is_no_patch(vlms, monkeypatch):
    vlm = vlms["llava_onevision"]
    opened = stream(vlm, "gated", 0.02)
    told = given_to(opened, monkeypatch)
    place = opened.prompt_ids.index(vlm.model.config.image_token_id)
    pixels = vlm.pixel_values(frames("idle", 1)[0])
    shown = iter([pixels, pixels.clone()])
    pixels = next(shown)
    other = pixels.clone()
    other[..., 8:16, 16:24] = 1 - other[..., 8:16, 16:24]
    for values in (pixels, other):
        opened.vlm = SimpleNamespace(
            **vars(vlm), frame=lambda *_, values=values: Frame(values), image_size=vlm.image_size, prompt=vlm.prompt
        )
        opened.answer(frames("idle", 1)[0])
    assert told[0] is None and told[1].nonzero().flatten().tolist() == [place + 6 + 2]


# ---- errors and interrupts ---------------------------------------------------------------------------


def fail_once(module: nn.Module, error: BaseException, at: int = 0) -> None:
    """Raise `error` at the module's call number `at` from now on, and only then."""
    calls = iter(range(10**6))

    def fail(*_: object) -> None:
        if next(calls) == at:
            handle.remove()
            raise error

    handle = module.register_forward_pre_hook(fail)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("beams", [1, 3])
def test_after_an_error_in_the_update_the_stream_goes_on(vlms, caplog, layer, beams):
    vlm, shown = vlms["llava"], frames("terminal", 6)
    options = {"decoding": Decoding(max_new_tokens=4, num_beams=beams)}
    calm = stream(vlm, "full", **options)
    expected = [calm.answer(frame).token_ids for frame in shown]
    opened = stream(vlm, "gated", 0.0, **options)
    answers = []
    for index, frame in enumerate(shown):
        if index == 3:
            fail_once(vlm.model.model.language_model.layers[layer].mlp, RuntimeError("out of memory"))
        with caplog.at_level(logging.ERROR):
            answers.append(opened.answer(frame))
    assert [answer.prefill_path for answer in answers] == ["full", "partial", "partial", "fallback", "full", "partial"]
    assert {answer.path for answer in answers[1:]} == {"partial"}  # of the encode
    assert (answers[3].prefill_rows, answers[3].reused_tokens) == (1.0, 0)
    assert opened.fallbacks == opened.prefill_totals.frames["fallback"] == 1
    assert caplog.text.count("the update of the prefill failed; the frame is answered in full") == 1
    assert [answer.token_ids for answer in answers] == expected


@pytest.mark.parametrize("in_the", ["update", "decoding"])
def test_an_interrupt_passes_through_and_loses_nothing(vlms, in_the):
    vlm, shown = vlms["llava"], frames("terminal", 4)
    decoding = Decoding(max_new_tokens=4, min_new_tokens=4)
    calm = stream(vlm, "gated", 0.05, decoding=decoding)
    expected = [calm.answer(frame) for frame in shown]
    opened = stream(vlm, "gated", 0.05, decoding=decoding)
    opened.answer(shown[0])
    before = copy.deepcopy(opened._prefill.gated._state)
    fail_once(vlm.model.model.language_model.layers[1].mlp, KeyboardInterrupt(), at=1 if in_the == "decoding" else 0)
    with pytest.raises(KeyboardInterrupt):
        opened.answer(shown[1])
    assert "forward" not in vars(vlm.model)
    after = opened._prefill.gated._state
    same = all(torch.equal(a, b) for a, b in zip(before.rows.keys, after.rows.keys, strict=True))
    assert same == (in_the == "update")
    again = opened.answer(shown[1])  # its patches are still those that changed for the prefill
    assert again.token_ids == expected[1].token_ids
    assert again.prefill_path == ("partial" if in_the == "update" else "cached")
    assert [opened.answer(frame).token_ids for frame in shown[2:]] == [answer.token_ids for answer in expected[2:]]
    assert opened.fallbacks == 0


def test_embeddings_that_are_not_finite_are_refused_and_the_state_kept(vlms):
    vlm, shown = vlms["llava"], frames("terminal", 2)
    opened = stream(vlm, "gated", 0.0)
    opened.answer(shown[0])
    before = opened._prefill.gated._state
    encoded, _ = opened.encode(shown[1])
    encoded.tokens[0, 3, 1] = float("nan")
    with pytest.raises(ValueError, match="have values that are NaN or infinite"):
        opened._begin(encoded)
    assert opened._prefill.gated._state is before
    assert opened.answer(shown[1]).token_ids == stream(vlm, "full").answer(shown[1]).token_ids


def test_following_keeps_a_stream_as_answering_does(vlms):
    vlm, shown = vlms["llava"], frames("jupyter", 6)
    for prefill, tolerance in (("gated", 0.3), ("gated", 0.0), ("budget", None)):
        answering, following = (stream(vlm, prefill, tolerance) for _ in range(2))
        for frame in shown[:4]:
            answering.answer(frame)
            following.follow(frame)
        for frame in shown[4:]:
            a, b = answering.answer(frame), following.answer(frame)
            assert a.token_ids == b.token_ids and a.prefill_rows == b.prefill_rows


def test_generate_goes_on_from_what_is_begun(vlms):
    """The stand-in has the signature that `generate` reads, runs nothing at the first call, and is gone after it."""
    vlm = vlms["llava"]
    gated = GatedPrefill(vlm.model)
    embeds = vlm.model.get_input_embeddings()(torch.arange(7)[None])
    done = gated(embeds)
    begun = Begun(done.past_key_values, "full", 1.0, 0, done.logits, done.hidden)
    own = inspect.signature(vlm.model.forward)
    with continued(vlm.model, begun, beams=2) as past:
        assert past is None
        assert inspect.signature(vlm.model.forward) == own
        output = vlm.model(inputs_embeds=embeds)
        assert torch.equal(output.logits, done.logits[:, None].expand(2, -1, -1))
        assert output.past_key_values.get_seq_length() == 7 and output.past_key_values.layers[0].keys.shape[0] == 2
        assert vlm.model(inputs_embeds=embeds).logits.shape == (1, 7, 259)  # the model's own from here on
    assert "forward" not in vars(vlm.model)
    with pytest.raises(KeyboardInterrupt), continued(vlm.model, begun, beams=1):
        raise KeyboardInterrupt
    assert "forward" not in vars(vlm.model)


# ---- what cannot be ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefill", "tolerance", "said"),
    [
        ("some", None, "prefill is 'some'; it must be one of full, exact, gated, changed, first_k, deviation, budget"),
        (7, None, "prefill is 7; it must be one of full, .* or a policy object"),
        ("exact", 0.1, "prefill_tolerance is of prefill 'gated', but prefill is 'exact'; leave one out"),
        ("gated", -1.0, "prefill_tolerance is -1.0; it must be at least 0"),
        ("gated", float("nan"), "prefill_tolerance is nan"),
        (Gated(0.1), 0.1, "prefill_tolerance is given beside a policy object"),
    ],
)
def test_policies_that_there_are_not(prefill, tolerance, said):
    with pytest.raises(ValueError, match=said):
        open_policy(prefill, tolerance)


def test_a_language_model_that_does_not_fit_is_refused_in_a_sentence(vlms):
    vlm = vlms["llava_onevision"]
    config = copy.deepcopy(vlm.model.config)
    config.text_config.layer_types = ["sliding_attention"] * 2
    config.text_config.sliding_window = 4
    sliding = VLM("sliding", type(vlm.model)(config), vlm.processor)
    with pytest.raises(ValueError, match=r"^sliding: .*layers of the type sliding_attention; use the exact prefix"):
        VLMStream(sliding, PROMPT, prefill="gated")
    assert VLMStream(sliding, PROMPT, prefill="full", decoding=Decoding(2)).answer(frames("idle", 1)[0]).token_ids
