"""The tiny language model of `checkpoints/text-screens`, and the script that trains it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from text_model import SORTS, accuracy, draw_batch, draw_questions, make_model, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from fvlm_lib.data.text_screens import KINDS, MAX_LINES, chat_of, text_screens

FOLDER = ROOT / "checkpoints" / "text-screens"


@pytest.fixture(scope="module")
def shipped():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        FOLDER
    )


def prompt(tokenizer, screen, question) -> torch.Tensor:
    """Token ids (1, L)."""
    chat = chat_of(screen, question)
    return torch.tensor([tokenizer.apply_chat_template(chat, continue_final_message=True)["input_ids"]])


def test_every_word_of_the_screens_has_a_token(shipped):
    _, tokenizer = shipped
    for pair in text_screens(30, lines=MAX_LINES, seed=9):
        for screen, answer in ((pair.before, pair.old), (pair.after, pair.new)):
            ids = prompt(tokenizer, screen, pair.question)[0].tolist()
            assert tokenizer.unk_token_id not in ids
            assert ids[1 : 1 + 3 * len(screen) : 3] == [
                tokenizer.convert_tokens_to_ids(line.split(" ")[0]) for line in screen
            ]
            assert tokenizer.decode(tokenizer(answer)["input_ids"]) == answer


def test_the_template_is_the_same_however_the_answer_begins(shipped):
    _, tokenizer = shipped
    pair = next(text_screens(1))
    asked = tokenizer.apply_chat_template(
        chat_of(pair.before, pair.question)[:1], add_generation_prompt=True, tokenize=False
    )
    begun = tokenizer.apply_chat_template(
        chat_of(pair.before, pair.question), continue_final_message=True, tokenize=False
    )
    assert begun == asked + pair.question.lead


def test_questions_asked_at_once_have_the_loss_of_separate_prompts():
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer).double().eval()
    batch = draw_batch(np.random.default_rng(4), tokenizer, 9, SORTS, 1)  # one screen
    screen, questions = draw_questions(np.random.default_rng(4), 9)
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask")}
    with torch.no_grad():
        together = model(**inputs).logits[0]
        for sort, question, answer in questions:
            alone = model(prompt(tokenizer, screen, question)).logits[0, -1]
            same = (together - alone).abs().amax(-1) < 1e-9
            assert SORTS[int(batch["sort"][0, same])] == sort
            assert tokenizer.decode(batch["target"][0, same]) == answer


def test_the_shipped_model_is_small_and_says_how_it_was_trained(shipped):
    model, _ = shipped
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 4e6
    assert model.config.max_position_embeddings >= 1024
    training = json.loads((FOLDER / "training.json").read_text())
    assert training["num_parameters"] == model.num_parameters()
    for measured in training["held_out"]:
        assert measured["right"].keys() == {*KINDS} and measured["prompts_a_kind"] == 400


def test_the_shipped_model_looks_values_up(shipped):
    measured = accuracy(*shipped, lines=40, count=10, seed=77)["right"]
    assert min(measured[kind] for kind in ("asked", "other", "insert", "scroll")) >= 0.9


def test_the_user_s_message_alone_is_answered_with_the_lead(shipped):
    model, tokenizer = shipped
    pair = next(text_screens(1, lines=24, seed=5))
    inputs = tokenizer.apply_chat_template(
        chat_of(pair.after, pair.question)[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    said = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True) == f"{pair.question.lead} {pair.new}"
