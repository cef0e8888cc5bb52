"""Drawn screens are what their state says, cell by cell; changes change one thing; questions have the right answers."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from fvlm_lib.data import drawn_screens
from fvlm_lib.data.drawn_screens import (
    BLANK,
    CELL,
    COLON,
    GRID,
    LABELS,
    MOST_SHIFT,
    OFF,
    ON,
    SIZE,
    THEMES,
    VALUE_CHARACTERS,
    Box,
    Field,
    Screen,
    contents,
    draw,
    draw_state,
    font,
    random_dialog,
)
from fvlm_lib.data.drawn_streams import CHANGES, FADE, changed, screen_pair, screen_stream, write_stream
from fvlm_lib.data.question_trees import QuestionTree, batch_trees
from fvlm_lib.data.screen_questions import KINDS, Question, all_questions, result_of, right_answer, verdict
from fvlm_lib.data.screens import read_sequence

SEEDS = range(40)
SCREENS = ROOT / "data" / "screens"


def screen(seed: int = 0, **options) -> Screen:
    return draw_state(np.random.default_rng(seed), **options)


def plain() -> Screen:
    """A screen whose fields and boxes are known: K 42, A 17, F 93 and a code M, B on, D off; no dialog."""
    fields = (Field("K", "42", (1, 0)), Field("A", "17", (1, 5)), Field("F", "93", (2, 0)), Field("M", "3O8", (2, 5)))
    boxes = (Box("D", False, (3, 0)), Box("E", True, (3, 3)), Box("H", True, (4, 0)))
    listed = tuple(
        Field(label, value, (5 + i, 2)) for i, (label, value) in enumerate(zip("RTV", ("10", "11", "12"), strict=True))
    )
    return replace(screen(), fields=fields, boxes=boxes, listed=listed, bar=(9, 3), dialog=None, theme=0, caret="K")


def test_a_seed_is_a_screen_and_seeds_differ():
    assert screen(3) == screen(3) and np.array_equal(draw(screen(3)), draw(screen(3)))
    assert len({screen(seed) for seed in SEEDS}) == len(SEEDS)
    assert draw(screen()).shape == (*SIZE, 3) and draw(screen()).dtype == np.uint8
    assert {screen(seed).theme for seed in SEEDS} == set(range(len(THEMES)))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_cells_hold_what_the_state_says_and_each_label_once(seed):
    state = screen(seed)
    cells = contents(state)
    for field in state.shown_fields():
        row, column = field.cell
        assert cells[row][column : column + 2 + len(field.value)] == [field.label, COLON, *field.value]
        assert 2 <= len(field.value) <= 3 and set(field.value) <= set(VALUE_CHARACTERS)
    for box in state.shown_boxes():
        row, column = box.cell
        assert cells[row][column : column + 3] == [box.label, COLON, ON if box.on else OFF]
    labels = [item.label for item in (*state.fields, *state.listed, *state.boxes)]
    labels += [state.dialog.field.label] if state.dialog else []
    assert len(set(labels)) == len(labels) and set(labels) <= set(LABELS)
    assert not set(LABELS) & set(VALUE_CHARACTERS)
    known = {BLANK, COLON, ON, OFF, *LABELS, *VALUE_CHARACTERS}
    assert {content for line in cells for content in line} <= known


def test_what_a_dialog_covers_is_not_shown_and_its_own_field_is():
    rng = np.random.default_rng(0)
    for _ in range(50):
        state = replace(plain(), dialog=random_dialog(rng, "X"))
        cells = contents(state)
        shown = {field.label for field in state.shown_fields()}
        assert "X" in shown
        for field in (*state.fields, *state.listed):
            row, column = field.cell
            whole = all(not state.dialog.covers((row, column + i)) for i in range(5))
            assert whole == (field.label in shown)
            assert not whole or cells[row][column] == field.label


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cell_looks_otherwise_only_where_its_content_or_what_touches_it_changes(seed):
    """No glyph crosses the border of its patch, at any shift: another value changes its own cells alone."""
    rng = np.random.default_rng(seed)
    down, right = rng.integers(-MOST_SHIFT, MOST_SHIFT + 1, 2).tolist()
    before = replace(screen(seed), shift=(down, right), caret_shown=False)
    after = changed(before, "glyph", rng)
    cells = np.array(contents(before)) != np.array(contents(after))
    pixels = (draw(before) != draw(after)).any(axis=2)
    seen = pixels.reshape(GRID[0], CELL, GRID[1], CELL).any(axis=(1, 3))
    assert cells.sum() == 1
    assert np.array_equal(seen, cells)


def test_every_change_but_of_a_covered_thing_changes_the_frame_and_one_thing_of_the_state():
    for change in CHANGES:
        for seed in SEEDS:
            before = replace(screen(seed, dialog=False), caret_shown=False)
            after = changed(before, change, np.random.default_rng(seed))
            names = {name for name in vars(before) if getattr(before, name) != getattr(after, name)}
            follows = {"dialog": {"pointer"}, "scroll": {"caret"}}.get(change, set())  # hides nothing; blinks somewhere
            assert len(names - follows) == 1
            assert (draw(before) != draw(after)).any()


def test_a_glyph_is_exchanged_for_one_that_looks_like_it():
    like = {frozenset(pair) for pair in drawn_screens.FLIPS.items()}
    for seed in SEEDS:
        before = screen(seed)
        after = changed(before, "glyph", np.random.default_rng(seed))
        one, other = np.array(contents(before)), np.array(contents(after))
        where = one != other
        assert where.sum() == 1 and frozenset((one[where].item(), other[where].item())) in like


def test_a_list_scrolls_by_a_row_and_a_fade_is_small_and_ends():
    before = plain()
    after = changed(before, "scroll", np.random.default_rng(0))
    assert [(f.label, f.value) for f in after.listed[:2]] == [("T", "11"), ("V", "12")]
    assert [f.cell for f in after.listed] == [f.cell for f in before.listed]
    faded = changed(before, "fade", np.random.default_rng(0))
    difference = np.abs(draw(before).astype(int) - draw(faded)).max()
    assert 0 < difference <= 255 * FADE + 1
    for _ in range(40):
        faded = changed(faded, "fade", np.random.default_rng(0))
        assert 0.58 <= faded.brightness <= 1


def test_right_answers():
    state = plain()
    asked = {
        Question("read", ("K",)): "42",
        Question("read", ("M",)): "3O8",
        Question("read", ("V",)): "12",
        Question("read", ("Y",)): None,
        Question("state", ("E",)): "on",
        Question("state", ("D",)): "off",
        Question("state", ("K",)): None,
        Question("compare", ("K", "A")): "K42, A17: K",
        Question("compare", ("A", "F")): "A17, F93: F",
        Question("compare", ("A", "M")): None,
        Question("count"): "2",
    }
    assert {question: right_answer(question, state) for question in asked} == asked
    assert Question("compare", ("A", "F")).text == "which is larger, A or F?"
    assert [result_of(text) for text in ("K42, A17: K", "42", " yes ")] == ["K", "42", "yes"]
    for seed in SEEDS:
        questions = all_questions(screen(seed))
        assert all(right_answer(question, screen(seed)) is not None for question in questions)
        assert len(set(questions)) == len(questions)


@pytest.mark.parametrize(
    ("answer", "old", "new", "said"),
    [
        ("17", "42", "17", "right"),
        ("42", "42", "17", "stale"),
        ("71", "42", "17", "wrong"),
        ("42", None, "17", "wrong"),
        ("42", "17", "17", "wrong"),
        ("17", "17", "17", "right"),
        ("A42, F17: A", "A42, F17: A", "A42, F93: F", "stale"),
        ("A41, F17: A", "A42, F17: A", "A42, F93: F", "stale"),  # misread, and the same as before comes of it
        ("A42, F93: A", "A42, F17: A", "A42, F93: F", "stale"),
        ("A41, F93: F", "A42, F17: A", "A42, F93: F", "wrong"),
        ("A42, F17: A", "A42, F17: A", "A43, F17: A", "stale"),  # the same comes of it, but it names what was
        ("A43, F17: A", "A42, F17: A", "A43, F17: A", "right"),
        ("A44, F17: A", "A42, F17: A", "A43, F17: A", "wrong"),
        ("", "42", "17", "wrong"),
        ("42", "42", None, "stale"),
        ("A41, F17: A", "A42, F17: A", None, "wrong"),
        ("17", "42", None, "wrong"),
    ],
)
def test_an_answer_is_right_stale_or_wrong(answer, old, new, said):
    assert verdict(answer, old, new) == said


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_has_a_question_whose_answer_changes_or_does_not(kind):
    for change in ("value", "glyph", "box", "scroll", "dialog"):
        possible = {"box": kind in ("state", "count"), "value": kind in ("read", "compare"), "glyph": kind == "read"}
        every_box = (change, kind) == ("box", "count")  # any box that changes is one more or less
        for asked in (True,) if every_box else (True, False) if possible.get(change) else (False,):
            pair = screen_pair(change, kind, 7, asked=asked)
            assert pair == screen_pair(change, kind, 7, asked=asked)
            assert pair.asked == asked
            assert right_answer(pair.question, pair.before) == pair.old
            assert right_answer(pair.question, pair.after) == pair.new


@pytest.mark.parametrize("change", ["dialog", "scroll"])
def test_what_a_question_is_about_can_be_gone(change):
    pair = screen_pair(change, "read", 7, gone=True)
    assert pair == screen_pair(change, "read", 7, gone=True)
    assert pair.asked and pair.old == right_answer(pair.question, pair.before)
    assert pair.new is None and right_answer(pair.question, pair.after) is None


def test_streams_go_one_change_at_a_time_and_are_written_with_their_state(tmp_path):
    stream = list(screen_stream(12, seed=3))
    assert stream == list(screen_stream(12, seed=3))
    assert next(change for _, change in stream) is None and len({change for _, change in stream}) > 3
    folder = write_stream(tmp_path / "reader-form", 6, ("value", "box"), seed=1)
    sequence = read_sequence(folder)
    assert len(sequence) == 6 and sequence.actions[0]["action"] == "start"
    assert {entry["action"] for entry in sequence.actions[1:]} <= {"value", "box"}
    states = [entry["state"] for entry in json.loads((folder / "actions.json").read_text())["frames"]]
    for (state, _), frame, written in zip(screen_stream(6, ("value", "box"), seed=1), sequence, states, strict=True):
        assert np.array_equal(draw(state), frame)
        assert {field.label: field.value for field in state.shown_fields()}.items() <= written.items()
    assert all(sum(a[key] != b[key] for key in a) == 1 for a, b in itertools.pairwise(states))


@pytest.mark.parametrize(
    ("name", "seed", "changes"),
    [
        ("reader-form", 5, ("value", "glyph", "box", "caret", "pointer", "bar")),
        ("reader-windows", 2, ("dialog", "scroll", "select", "theme", "value")),
    ],
)
def test_the_shipped_streams_are_what_the_generator_draws(name, seed, changes, tmp_path):
    """But for single pixels of glyphs, which another version of the library that draws them may draw otherwise."""
    made, shipped = (
        read_sequence(write_stream(tmp_path / name, 14, changes, seed=seed)),
        read_sequence(SCREENS / name),
    )
    assert shipped.actions == made.actions and shipped.about == made.about
    for one, other in zip(made, shipped, strict=True):
        assert (np.abs(one.astype(int) - other) > 64).mean() < 0.01


def test_what_cannot_change_is_none_and_a_stream_of_it_is_refused():
    bare = replace(plain(), boxes=())
    assert changed(bare, "box", np.random.default_rng(0)) is None
    digits = replace(plain(), fields=(Field("K", "47", (1, 0)),), listed=(Field("A", "99", (5, 2)),) * 3)
    assert changed(digits, "glyph", np.random.default_rng(0)) is None
    seed = next(seed for seed in itertools.count() if not draw_state(np.random.default_rng([seed, 3])).shown_boxes())
    with pytest.raises(ValueError, match=f"the screen of seed {seed} has nothing that changes by box; name others"):
        list(screen_stream(3, ("box",), seed=seed))


def test_trees_hold_each_question_at_its_own_positions_apart_from_the_others():
    tree = QuestionTree([1, 2, 3])
    said = [tree.add([4, 5, 6], ["", "", "read"]), tree.add([4, 7, 8], ["", "", "state"]), tree.add([9], ["rest"])]
    assert tree.ids == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert tree.depth == [0, 1, 2, 3, 4, 5, 4, 5, 3]
    assert [[tree.targets[node] for node in nodes] for nodes in said] == [[("read", 6)], [("state", 8)], [("rest", 9)]]
    batch = batch_trees([tree, QuestionTree([1])], ("read", "state", "rest"))
    sees = batch["attention_mask"][0, 0]
    assert sees[5].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert sees[7].nonzero().flatten().tolist() == [0, 1, 2, 3, 6, 7]
    assert sees[8].nonzero().flatten().tolist() == [0, 1, 2, 8]
    assert batch["target"][0].tolist() == [-1, -1, 9, -1, 6, -1, 8, -1, -1]
    assert batch["sort"][0].tolist() == [-1, -1, 2, -1, 0, -1, 1, -1, -1]
    assert (batch["target"][1] == -1).all() and batch["input_ids"].shape == (2, 9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Question("colour"), "there is no question of kind 'colour'; there are read, state, compare, count"),
        (lambda: Question("read"), "a question of kind 'read' names 1 labels, not 0"),
        (lambda: changed(screen(), "flood", np.random.default_rng(0)), "there is no change of kind 'flood'; there are"),
        (lambda: screen_pair("caret", "read", 0, asked=True), "no change of kind 'caret' was found that changes"),
        (lambda: screen_pair("caret", "read", 0, gone=True), "'caret' was found that takes away what is asked about"),
        (lambda: font("Nowhere.ttf"), r"the font .*Nowhere\.ttf, which comes with matplotlib, cannot be read"),
    ],
)
def test_what_cannot_be_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
