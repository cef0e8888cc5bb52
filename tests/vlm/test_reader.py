"""The small LLaVA that reads drawn screens: its tokens, its training batches, and what the shipped one knows."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from transformers import LlamaModel

from fvlm_lib.data.drawn_screens import GRID, contents, draw, draw_state
from fvlm_lib.data.screen_questions import KINDS, all_questions, right_answer
from fvlm_lib.vlm import train_reader
from fvlm_lib.vlm.generation import Decoding
from fvlm_lib.vlm.reader import (
    CELL_TOKENS,
    SORTS,
    answered_right,
    draw_batch,
    image_tokens,
    losses,
    make_reader,
    make_tokenizer,
    next_tokens,
    pixel_values,
)
from fvlm_lib.vlm.reader_measure import MOST_WORDS
from fvlm_lib.vlm.stream import VLMStream
from fvlm_lib.vlm.vlms import VLM, load_vlm

READER = ROOT / "checkpoints" / "demo" / "reader"


def screens(count: int, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return [draw_state(rng) for _ in range(count)]


@pytest.fixture(scope="module")
def untrained() -> VLM:
    torch.manual_seed(0)
    model, processor = make_reader(make_tokenizer())
    return VLM("untrained", model.eval().double(), processor)


def test_every_question_and_answer_is_made_of_known_tokens_and_decodes_to_itself():
    tokenizer = make_tokenizer()
    for screen in screens(20):
        for question in all_questions(screen):
            answer = right_answer(question, screen)
            asked, said = tokenizer([question.text, answer])["input_ids"]
            assert tokenizer.unk_token_id not in [*asked, *said]
            assert tokenizer.decode(said) == answer
            assert len(said) < MOST_WORDS
        for content in {content for line in contents(screen) for content in line}:
            assert CELL_TOKENS.get(content, content) in tokenizer.get_vocab()


def test_frames_are_those_of_the_processor(untrained):
    frame = draw(screens(1)[0])
    torch.testing.assert_close(untrained.pixel_values(frame), pixel_values([frame]), rtol=0, atol=1e-6)


def test_a_tree_of_questions_gives_the_logits_of_each_prompt_alone(untrained):
    """Of whole prompts through the model's own forward, image and chat template included."""
    screen, tokenizer = screens(1, seed=3)[0], untrained.processor.tokenizer
    batch = draw_batch([screen], tokenizer, np.random.default_rng(0))
    with torch.no_grad():
        image, _ = image_tokens(untrained.model, batch.pixel_values.double())
        logits = next_tokens(untrained.model, image, batch.trees)[0]
        for question, _, where in batch.asked[:: max(1, len(batch.asked) // 6)]:
            answer = right_answer(question, screen)
            ids = untrained.prompt_ids(question.text)
            place = ids.index(untrained.model.config.image_token_id)
            said = tokenizer(answer)["input_ids"]
            ids = [*ids[:place], *[ids[place]] * (GRID[0] * GRID[1]), *ids[place + 1 :], *said]
            own = untrained.model(input_ids=torch.tensor([ids]), pixel_values=batch.pixel_values.double()).logits[0]
            torch.testing.assert_close(logits[where], own[-len(said) - 1 :], rtol=1e-9, atol=1e-9)
            assert batch.trees["target"][0, where].tolist() == [*said, tokenizer.eos_token_id]


def test_a_spelled_screen_has_its_characters_where_their_image_tokens_would_be(untrained):
    screen, tokenizer = screens(1, seed=5)[0], untrained.processor.tokenizer
    drawn = draw_batch([screen], tokenizer, np.random.default_rng(0))
    spelled = draw_batch([screen], tokenizer, np.random.default_rng(0), spelled=True, blanks=False)
    assert spelled.pixel_values is None
    cells = drawn.cells[0]
    shown = (cells != tokenizer.get_vocab()["<blank>"]).nonzero().flatten()
    ids, positions = spelled.trees["input_ids"][0], spelled.trees["position_ids"][0]
    assert ids[1 : 1 + len(shown)].tolist() == cells[shown].tolist()
    assert positions[1 : 1 + len(shown)].tolist() == (shown + 1).tolist()
    behind = slice(1 + len(cells), None)
    assert positions[1 + len(shown) :].tolist() == drawn.trees["position_ids"][0, behind].tolist()
    assert ids[1 + len(shown) :].tolist() == drawn.trees["input_ids"][0, behind].tolist()
    assert set(losses(untrained.model, spelled)[0]) == set(SORTS)
    whole = draw_batch([screen], tokenizer, np.random.default_rng(0), spelled=True)
    assert whole.trees["input_ids"][0, 1 : 1 + len(cells)].tolist() == cells.tolist()
    assert torch.equal(whole.trees["position_ids"], drawn.trees["position_ids"])


def test_a_step_of_training_lowers_every_loss_it_is_taken_on():
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model, _ = make_reader(tokenizer)
    batch = draw_batch(screens(4), tokenizer, np.random.default_rng(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first, _ = losses(model, batch)
    assert set(first) == {"cells", *SORTS}
    for _ in range(8):
        found, _ = losses(model, batch)
        optimizer.zero_grad()
        torch.stack(list(found.values())).sum().backward()
        optimizer.step()
    assert all(found[name] < first[name] for name in found)


def test_training_writes_a_model_that_loads_and_says_how_it_was_made(tmp_path, capsys):
    arguments = ["--minutes", "0.02", "--batch-size", "2", "--test-screens", "2", "--threads", "1"]
    assert train_reader.main(["--out", str(tmp_path / "reader"), *arguments]) == 0
    about = json.loads((tmp_path / "reader" / "training.json").read_text())
    assert about["steps"] >= 1 and set(about["test"]) == set(KINDS)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == about
    vlm = load_vlm(str(tmp_path / "reader"))
    assert vlm.image_size == (160, 160)
    assert train_reader.main(["--out", str(tmp_path / "reader"), *arguments]) == 2  # which exists
    assert "reader" in capsys.readouterr().err


def test_an_interrupted_training_is_tested_and_saved(tmp_path, capsys):
    steps = itertools.count()

    def interrupt(module: torch.nn.Module, _: object) -> None:
        if isinstance(module, LlamaModel) and next(steps) == 3:
            raise KeyboardInterrupt

    hook = torch.nn.modules.module.register_module_forward_pre_hook(interrupt)
    try:
        arguments = ["--batch-size", "2", "--test-screens", "2", "--threads", "1"]
        assert train_reader.main(["--out", str(tmp_path / "reader"), *arguments]) == 130
    finally:
        hook.remove()
    assert "interrupted at step 3" in capsys.readouterr().out
    about = json.loads((tmp_path / "reader" / "training.json").read_text())
    assert about["interrupted"] and about["steps"] == 3 and load_vlm(str(tmp_path / "reader"))


# ---- the shipped one ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader() -> VLM:
    return load_vlm(str(READER))


def test_the_shipped_reader_is_small():
    assert sum(file.stat().st_size for file in READER.iterdir()) < 8e6


def test_the_shipped_reader_answers_unseen_screens(reader):
    """Less than its own measurement says by what 60 screens may be off."""
    said = json.loads((READER / "training.json").read_text())["test"]
    found = train_reader.share_right(reader.model, reader.processor.tokenizer, 60, seed=7)
    for kind in KINDS:
        assert found[kind]["high"] >= said[kind]["low"], kind


def test_what_the_batched_check_counts_is_what_a_stream_says(reader):
    tokenizer = reader.processor.tokenizer
    around = reader.chat("<question>")
    stream = VLMStream(reader, around, prefill="full", decoding=Decoding(max_new_tokens=MOST_WORDS))
    for screen in screens(3, seed=11):
        batch = draw_batch([screen], tokenizer, np.random.default_rng(0))
        for question, right in answered_right(reader.model, batch)[::4]:
            stream.ask(around.replace("<question>", question.text))
            assert (stream.answer(draw(screen)).text == right_answer(question, screen)) == right
