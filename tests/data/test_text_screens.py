"""Screens of text: what changes, and that the answers are those of the screens' text."""

from __future__ import annotations

import re

import pytest

from fvlm_lib.data import text_screens as module
from fvlm_lib.data.text_screens import (
    KINDS,
    MAX_LINES,
    MIN_LINES,
    NAMES,
    WORDS,
    Question,
    chat_of,
    text_screen,
    text_screens,
)

SIZES = [(MIN_LINES, 100), (12, 40), (40, 40), (MAX_LINES, 20)]  # lines of a screen, pairs of a kind


def pairs(*kinds: str):
    return [text_screen(kind, i, lines=n, seed=3) for kind in kinds for n, count in SIZES for i in range(count)]


def answer(lines: tuple[str, ...], question: Question) -> str:
    """The right answer, from the text alone."""
    values = dict(re.fullmatch(r"(\w+): (\w+)", line).groups() for line in lines)
    assert len(values) == len(lines)
    if found := re.fullmatch(r"Copy the line of (\w+)\.", question.text):
        assert question.lead == f"{found[1]}:"
        return values[found[1]]
    if found := re.fullmatch(r"How many lines say (\w+)\?", question.text):
        return str([*values.values()].count(found[1]))
    first, second = re.fullmatch(r"Which has the larger number, (\w+) or (\w+)\?", question.text).groups()
    return first if int(values[first]) > int(values[second]) else second


def changed(pair) -> list[int]:
    """The numbers of the lines that differ, on screens of equal length."""
    return [i for i, (old, new) in enumerate(zip(pair.before, pair.after, strict=True)) if old != new]


def asked_line(pair) -> int:
    name = pair.question.lead.removesuffix(":")
    return [line.split(":")[0] for line in pair.before].index(name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_are_those_of_the_text_and_names_are_distinct(kind):
    for pair in pairs(kind):
        assert pair.kind == kind
        assert (answer(pair.before, pair.question), answer(pair.after, pair.question)) == (pair.old, pair.new)
        assert pair.answer_changes == (pair.old != pair.new)


@pytest.mark.parametrize("kind", ["asked", "count", "compare"])
def test_one_line_changes_its_value_and_the_answer_differs_in_its_first_letter(kind):
    for pair in pairs(kind):
        (line,) = changed(pair)
        assert pair.before[line].split(":")[0] == pair.after[line].split(":")[0]
        assert pair.old[0] != pair.new[0]


def test_the_line_that_is_asked_about_is_the_one_that_changes():
    assert all(changed(pair) == [asked_line(pair)] for pair in pairs("asked"))


def test_another_line_changes_and_the_answer_does_not():
    for pair in pairs("other"):
        (line,) = changed(pair)
        assert line != asked_line(pair) and not pair.answer_changes


def test_a_count_goes_up_or_down_by_one_and_stays_one_digit():
    steps = [int(pair.new) - int(pair.old) for pair in pairs("count")]
    assert {*steps} == {-1, 1} and 60 < steps.count(1) < 140  # 100 of 200
    assert {pair.old for pair in pairs("count")} == {*"12345678"} and {pair.new for pair in pairs("count")} == {
        *"0123456789"
    }


def test_either_of_two_numbers_changes_so_that_the_other_name_is_right():
    found = pairs("compare")
    moved = {pair.before[changed(pair)[0]].split(":")[0] == pair.old for pair in found}
    assert moved == {True, False} and all({pair.old, pair.new} <= {*NAMES} for pair in found)


def test_a_new_line_comes_in_at_the_top_and_the_asked_value_changes_in_half_of_the_screens():
    found = pairs("insert")
    for pair in found:
        assert pair.after[0].split(":")[0] not in {line.split(":")[0] for line in pair.before}
        differing = [i for i, old in enumerate(pair.before) if old != pair.after[i + 1]]
        assert (
            differing == ([asked_line(pair)] if pair.answer_changes else []) and len(pair.after) == len(pair.before) + 1
        )
        assert not pair.answer_changes or pair.old[0] != pair.new[0]
    assert 60 < sum(pair.answer_changes for pair in found) < 140


def test_the_first_line_goes_and_a_new_one_is_appended():
    for pair in pairs("scroll"):
        assert pair.after[:-1] == pair.before[1:] and not pair.answer_changes
        assert pair.after[-1].split(":")[0] not in {line.split(":")[0] for line in pair.before}


def test_words_and_numbers_are_each_half_of_the_values():
    values = [line.split(": ")[1] for pair in text_screens(60) for line in pair.before]
    assert {*values} - {*WORDS} == {*module.NUMBERS} and {*WORDS} <= {*values}
    assert 0.45 < sum(value in WORDS for value in values) / len(values) < 0.55


def test_names_and_words_can_be_told_by_their_first_letters():
    assert len({*NAMES}) == len(NAMES) and not {*NAMES} & {*WORDS}
    assert max([name[0] for name in NAMES].count(letter) for letter in "abcdefghijklmnopqrstuvwxyz") < MIN_LINES
    assert len({word[0] for word in WORDS}) == len(WORDS)


def test_a_pair_is_that_of_its_seed_and_index_and_of_no_other():
    some = {kind: [text_screen(kind, i, lines=8, seed=s) for s in (0, 1) for i in range(20)] for kind in KINDS}
    for kind, found in some.items():
        assert found == [text_screen(kind, i, lines=8, seed=s) for s in (0, 1) for i in range(20)]
        assert len({pair.before for pair in found}) == 40
    assert len({found[0].before for found in some.values()}) == len(KINDS)


def test_kinds_come_in_turn():
    assert [pair.kind for pair in text_screens(8)] == [*KINDS, "asked", "other"]
    assert [*text_screens(4, kinds=("count", "scroll"), lines=9, seed=5)] == [
        text_screen(kind, i, lines=9, seed=5) for i in (0, 1) for kind in ("count", "scroll")
    ]


def test_a_chat_is_the_screen_an_empty_line_and_the_question_and_how_the_answer_begins():
    assert chat_of(("a: 1", "b: 2"), Question("Which?", "It is")) == [
        {"role": "user", "content": "a: 1\nb: 2\n\nWhich?"},
        {"role": "assistant", "content": "It is"},
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: text_screen("swap", 0), "kind 'swap': must be one of asked, other, count, compare, insert, scroll"),
        (lambda: text_screen("asked", -1), "index -1: must be a whole number of at least 0"),
        (lambda: text_screen("asked", 1.0), r"index 1\.0: must be a whole number of at least 0"),
        (lambda: text_screen("asked", True), "index True: must be a whole number of at least 0"),
        (lambda: text_screen("asked", 0, seed=-2), "seed -2: must be a whole number of at least 0"),
        (lambda: text_screen("asked", 0, lines=3), "lines 3: must be a whole number of at least 4"),
        (
            lambda: text_screen("asked", 0, lines=67),
            "lines 67: must be at most 66, since each line has a name of its own",
        ),
        (lambda: text_screens(0), "count 0: must be a whole number of at least 1"),
        (lambda: text_screens(6, kinds=()), "kinds are empty: must be some of asked, other"),
        (lambda: [*text_screens(6, kinds=("asked", "swap"))], "kind 'swap': must be one of"),
    ],
)
def test_what_is_out_of_range_is_said(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
