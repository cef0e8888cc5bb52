"""Frames of a stream checked against a full computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import ROOT

from fvlm_lib.data.screens import read_sequence
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vlm.check import CheckTotals, Said, compare, first_token_kl
from fvlm_lib.vlm.stream import Decoding, VLMStream, open_encoder
from fvlm_lib.vlm.vlms import VLM, Encoded

SCREENS = ROOT / "data" / "screens"
PROMPT = "What is on the screen?"
LOOSE = {"propagate": "none", "max_changed_patches": 256}  # so that what is kept is wrong


def frames(recording: str, count: int) -> list[np.ndarray]:
    return list(read_sequence(SCREENS / recording).head(count))


def stream(vlm: VLM, encoder: dict, **options) -> VLMStream:
    decoding = options.pop("decoding", Decoding(max_new_tokens=4))
    return VLMStream(vlm, PROMPT, open_encoder(vlm, DifferentialSettings(**encoder)), decoding=decoding, **options)


def test_the_divergence_is_that_of_the_two_distributions():
    def logits(*values: float) -> torch.Tensor:
        return torch.tensor([values], dtype=torch.float64)

    full, kept = logits(0, math.log(3)), logits(0, 0)  # 1/4 and 3/4; a half each
    assert first_token_kl(full, kept) == pytest.approx(0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5))
    assert first_token_kl(kept, full) == pytest.approx(0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))
    assert first_token_kl(full, full + 7) == pytest.approx(0, abs=1e-15)
    assert first_token_kl(logits(800, 0), logits(0, 800)) == pytest.approx(800)


def test_a_comparison_says_what_differs():
    head = torch.nn.Identity()
    full, kept = Said(torch.tensor([[3.0, 4.0]]), [1, 2]), Said(torch.tensor([[3.0, 4.5]]), [1, 3])
    found = compare(head, kept, full, max_kl=1.0)
    assert found.hidden_error == pytest.approx(0.1) and not found.same_text and not found.failed
    assert found.kl == first_token_kl(full.hidden, kept.hidden)
    assert compare(head, full, full, max_kl=0.0).kl == 0.0 and not compare(head, full, full, max_kl=0.0).failed
    assert compare(head, kept, full, max_kl=found.kl / 2).failed
    assert not compare(head, kept, full).failed
    broken = Said(torch.full((1, 2), torch.nan), [1])
    assert compare(head, broken, full, max_kl=1e9).failed  # NaN is above whatever is allowed


@pytest.mark.parametrize("prefill", ["full", "exact", "gated"])
@pytest.mark.parametrize("decoding", [Decoding(4), Decoding(4, num_beams=3), Decoding(4, temperature=2.0)], ids=repr)
def test_what_is_exact_is_found_exact_and_answers_stay_as_they_are(vlms, prefill, decoding):
    vlm = vlms["llava"]
    exact = {"diff_threshold": 0.0, "tolerance": 0.0}
    tolerance = {"prefill_tolerance": 0.0} if prefill == "gated" else {}
    options = {"prefill": prefill, "decoding": decoding, **tolerance}
    checked, plain = (stream(vlm, exact, check_every=every, **options) for every in (2, None))
    for number, frame in enumerate(frames("jupyter", 5)):
        answer, expected = checked.answer(frame, number), plain.answer(frame, number)
        assert answer.token_ids == expected.token_ids
        assert (answer.reused_tokens, answer.prefill_rows) == (expected.reused_tokens, expected.prefill_rows)
        assert (answer.check is not None) == (number in (1, 3)) and expected.check is None
        if answer.check:
            assert answer.check.kl < 1e-8 and answer.check.hidden_error < 1e-4
            assert answer.check.same_text and not answer.check.failed and answer.check.ms > 0
    totals = checked.check_totals
    assert (totals.count, totals.same_text, totals.failed) == (2, 2, 0)


@pytest.mark.parametrize("architecture", ["llava", "llava_onevision", "fast_vlm"])
def test_every_architecture_is_checked(vlms, architecture):
    opened = stream(vlms[architecture], {"diff_threshold": 0.0, "tolerance": 0.0}, check_every=1)
    for frame in frames("terminal", 3):
        assert opened.answer(frame).check.kl < 1e-8


@pytest.mark.parametrize("prefill", ["exact", "gated"])
def test_a_check_is_of_what_was_kept(vlms, prefill):
    """Its divergence is that of the model's own logits, of the kept tokens and of the frame's."""
    vlm = vlms["llava"]
    opened = stream(vlm, LOOSE, prefill=prefill, check_every=2)
    first, second = frames("jupyter", 8)[0], frames("jupyter", 8)[7]
    opened.answer(first)
    answer = opened.answer(second)
    with torch.no_grad():
        seen = vlm.frame(second)
        full = vlm.prompt(opened.prompt_ids, Encoded(seen, opened._vision.own(seen.pixel_values)))
        full_logits = vlm.model(inputs_embeds=full.embeds).logits[:, -1]
        kept = vlm.prompt(opened.prompt_ids, Encoded(seen, opened.encoder._tokens))
        kept_logits = vlm.model(inputs_embeds=kept.embeds).logits[:, -1]
    expected = first_token_kl(full_logits, kept_logits)
    assert expected > 1e-4
    if prefill == "exact":
        assert answer.check.kl == pytest.approx(expected, rel=0.02)
    else:  # of another prefill
        assert answer.check.kl != pytest.approx(expected, rel=0.05) and answer.check.kl > 0


@pytest.mark.parametrize("prefill", ["exact", "gated"])
def test_a_frame_whose_check_fails_is_answered_from_a_full_computation(vlms, prefill):
    vlm, shown = vlms["llava"], frames("jupyter", 8)
    tolerance = {"prefill_tolerance": 1.0} if prefill == "gated" else {}
    opened = stream(vlm, LOOSE, prefill=prefill, check_every=4, max_kl=0.0, **tolerance)
    full = stream(vlm, LOOSE, prefill="full")
    answers = [opened.answer(frame) for frame in shown]
    assert [answer.check is not None for answer in answers] == [False, False, False, True] * 2
    for index in (3, 7):
        assert answers[index].check.failed and answers[index].check.kl > 0
        assert (answers[index].path, answers[index].prefill_path, answers[index].prefill_rows) == ("full", "full", 1.0)
        full.reset()
        assert answers[index].token_ids == full.answer(shown[index]).token_ids
    # what is kept afterwards is what a stream has that began with that frame
    fresh = stream(vlm, LOOSE, prefill=prefill, **tolerance)
    expected = [fresh.answer(frame) for frame in shown[3:7]]
    assert [answer.token_ids for answer in answers[3:7]] == [answer.token_ids for answer in expected]
    assert [answer.prefill_rows for answer in answers[3:7]] == [answer.prefill_rows for answer in expected]
    assert opened.check_totals.failed == 2
    assert opened.encoder.statistics.total_frames == sum(opened.prefill_totals.frames.values()) == 8  # each once
    assert opened.prefill_totals.rows == pytest.approx(sum(answer.prefill_rows for answer in answers))


@pytest.mark.parametrize("prefill", ["full", "exact", "gated"])
def test_following_checks_as_answering_does(vlms, prefill):
    vlm, shown = vlms["llava"], frames("jupyter", 8)
    tolerance = {"prefill_tolerance": 1.0} if prefill == "gated" else {}
    options = {"prefill": prefill, "check_every": 3, "max_kl": 0.0, **tolerance}
    answering, following = (stream(vlm, LOOSE, **options) for _ in range(2))
    expected = [answering.answer(frame) for frame in shown]
    for frame in shown[:5]:
        following.follow(frame)
    answers = [following.answer(frame) for frame in shown[5:]]
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected[5:]]
    assert answers[0].check == pytest.approx(answers[0].check) and answers[0].check.failed
    assert [answer.path for answer in answers] == [answer.path for answer in expected[5:]]


def test_a_reset_counts_anew(vlms):
    opened = stream(vlms["llava"], {}, check_every=3)
    shown = frames("terminal", 4)
    checked = []
    for _ in range(2):
        opened.reset()
        checked += [opened.answer(frame).check is not None for frame in shown]
    assert checked == [False, False, True, False] * 2


def test_totals_in_a_line():
    totals = CheckTotals()
    assert str(totals) == "0 checks: no sequence had so many frames"
    head = torch.nn.Identity()
    full, kept = Said(torch.tensor([[3.0, 4.0]]), [1, 2]), Said(torch.tensor([[3.0, 4.5]]), [1, 3])
    for said in (full, kept):
        totals.add(compare(head, said, full, max_kl=0.001))
    kl = first_token_kl(full.hidden, kept.hidden)
    assert str(totals) == (
        f"2 checks: KL {kl / 2:.2g} on average, {kl:.2g} at most (nats); same text 1/2; hidden state off by 10.00% at "
        "most; 1 failed"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"check_every": 0}, "check_every is 0; it must be at least 1"),
        ({"check_every": 1.5}, "check_every is 1.5"),
        ({"max_kl": 0.1}, "max_kl is of checks, but check_every is None"),
        ({"check_every": 1, "max_kl": -1.0}, "max_kl is -1.0; it must be at least 0"),
        ({"check_every": 1, "max_kl": math.nan}, "max_kl is nan"),
    ],
)
def test_checks_that_cannot_be(vlms, options, said):
    with pytest.raises(ValueError, match=said):
        stream(vlms["llava"], {}, **options)
