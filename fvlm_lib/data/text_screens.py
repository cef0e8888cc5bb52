"""Screens of text that change, with a question whose right answer is known before and after.

A screen is a list of `name: value` lines: the names are distinct, a value is one of `WORDS` or a number from 10 to 99,
each for half of the lines. Kinds of change:

* `asked`: the value that is asked about changes, and with it the answer.
* `other`: the value of another line changes; the answer must not.
* `count`: the lines with some word are counted; one line takes or loses that word, so that there is one
  more or one less.
* `compare`: which of two names has the larger number; one of the two numbers changes so that it is the other name.
* `insert`: a line of a new name is inserted at the top; the value that is asked about changes as well in half of the
  screens (`answer_changes` says in which).
* `scroll`: the first line is gone and a new one is appended; what is asked about stays and does not change.

Whoever goes on from the screen before may answer a question about the screen after with the *stale* answer, `old`. The
first token tells: values that a change exchanges differ in their first letter or digit, as do the two names that are
compared, and counts are below 10.

A prompt is one message of the user, the screen's lines, an empty line and the question, and the lead of the assistant's
answer, so that what comes next is the answer itself; a small chat model would else begin with "The value of":

    tokenizer.apply_chat_template(chat_of(pair.after, pair.question), continue_final_message=True)

so that any chat model reads it with its own template. This module knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_NAMES = """
anchor apple arrow basket bell bridge camera candle clock desk door drum elevator engine envelope fan fence filter
garden gate glove hammer heater helmet ink iron island jacket jar jug kettle key knife ladder lamp lever magnet map
motor needle net notebook orange organ oven pencil pipe pump quilt radio ribbon rope shelf stove switch table tower
tunnel umbrella valve vase violin wagon wheel window yacht zipper
"""
_WORDS = "amber busy closed dirty empty full green hot idle locked missing open paused quiet ready warm"
NAMES = tuple(_NAMES.split())  # at most three of a letter
WORDS = tuple(_WORDS.split())  # one of a letter
NUMBERS = tuple(str(number) for number in range(10, 100))
KINDS = ("asked", "other", "count", "compare", "insert", "scroll")
MIN_LINES = 4
MAX_LINES = len(NAMES) - 1  # one more name is needed where a line comes in
MAX_COUNT = 8  # lines with the counted word, before the change


@dataclass(frozen=True)
class Question:
    """What the user asks, and what the answer begins with, before a space and the value, number or name itself."""

    text: str
    lead: str


@dataclass(frozen=True)
class TextScreenPair:
    """A screen before and after one change, and a question.

    kind: one of `KINDS`. before, after: lines, without their ends. old, new: the answers that are right before and
    after.
    """

    kind: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    question: Question
    old: str
    new: str

    @property
    def answer_changes(self) -> bool:
        """Whether the answer that was right before is wrong after."""
        return self.old != self.new


def prompt_of(lines: Sequence[str], question: str) -> str:
    """What the user says: the screen, an empty line, the question."""
    return "\n".join(lines) + "\n\n" + question


def chat_of(lines: Sequence[str], question: Question) -> list[dict[str, str]]:
    """Messages for a tokenizer's `apply_chat_template(..., continue_final_message=True)`."""
    return [
        {"role": "user", "content": prompt_of(lines, question.text)},
        {"role": "assistant", "content": question.lead},
    ]


def ask_value(name: str) -> Question:
    """Asks for the value of a name."""
    return Question(f"Copy the line of {name}.", f"{name}:")


def ask_count(word: str) -> Question:
    """Asks on how many lines a word is the value."""
    return Question(f"How many lines say {word}?", f"The number of lines that say {word} is")


def ask_larger(first: str, second: str) -> Question:
    """Asks which of two names has the larger number."""
    return Question(f"Which has the larger number, {first} or {second}?", "The larger number is that of the")


def draw_values(rng: np.random.Generator, lines: int) -> dict[str, str]:
    """A screen of distinct names in random order, each with a word or a number; `lines_of` makes text of it."""
    names = rng.permutation(len(NAMES))[:lines]
    words, numbers = rng.integers(len(WORDS), size=lines), rng.integers(len(NUMBERS), size=lines)
    is_word = rng.random(lines) < 0.5
    return {
        NAMES[names[i]]: WORDS[words[i]] if is_word[i] else NUMBERS[numbers[i]]  # one line, one value
        for i in range(lines)
    }


def plant_count(rng: np.random.Generator, values: dict[str, str]) -> str:
    """Give some word to 1 to `MAX_COUNT` lines of a screen, at most half of them, and to no other; returns the word.

    So that counts are spread evenly, which they would not be by chance.
    """
    word = _one_of(rng, WORDS)
    others = [other for other in WORDS if other != word]
    names, count = list(values), int(rng.integers(1, min(MAX_COUNT, len(values) // 2) + 1))
    for name in names:
        if values[name] == word:
            values[name] = _one_of(rng, others)
    for i in rng.permutation(len(names))[:count]:
        values[names[i]] = word
    return word


def plant_pair(rng: np.random.Generator, values: dict[str, str]) -> tuple[str, str]:
    """Give different numbers to two names that begin with different letters; returns the two, in random order."""
    first = _one_of(rng, list(values))
    second = _one_of(rng, [name for name in values if name[0] != first[0]])
    numbers = rng.permutation(NUMBERS[1:-1])  # so that there is a larger and a smaller one for either to move to
    values[first], values[second] = str(numbers[0]), str(numbers[1])
    return first, second


def lines_of(values: dict[str, str]) -> tuple[str, ...]:
    """The lines of a screen."""
    return tuple(f"{name}: {value}" for name, value in values.items())


def text_screen(kind: str, index: int, *, lines: int = 40, seed: int = 0) -> TextScreenPair:
    """Pair `index` of a kind, always the same for a seed and a number of lines.

    Raises ValueError for an unknown kind, a negative index or seed, or a number of lines out of range.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: must be one of {', '.join(KINDS)}")
    for name, number, least in (("index", index, 0), ("seed", seed, 0), ("lines", lines, MIN_LINES)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
            raise ValueError(f"{name} {number!r}: must be a whole number of at least {least}")
    if lines > MAX_LINES:
        raise ValueError(f"lines {lines}: must be at most {MAX_LINES}, since each line has a name of its own")
    rng = np.random.default_rng([seed, KINDS.index(kind), index])
    before = draw_values(rng, lines)
    question, old, new, after = _CHANGES[kind](rng, before)
    return TextScreenPair(kind, lines_of(before), lines_of(after), question, old, new)


def text_screens(
    count: int, *, lines: int = 40, seed: int = 0, kinds: Sequence[str] = KINDS
) -> Iterator[TextScreenPair]:
    """`count` pairs, the kinds in turn. Raises ValueError as `text_screen` does, and for no kinds or no pairs."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count {count!r}: must be a whole number of at least 1")
    if not kinds:
        raise ValueError(f"kinds are empty: must be some of {', '.join(KINDS)}")
    return (text_screen(kinds[i % len(kinds)], i // len(kinds), lines=lines, seed=seed) for i in range(count))


# --- the changes: of a screen before, (question, old answer, new answer, screen after) ---

Change = tuple[Question, str, str, dict[str, str]]


def _asked(rng: np.random.Generator, before: dict[str, str]) -> Change:
    name = _one_of(rng, list(before))
    new = _other_value(rng, before[name])
    return ask_value(name), before[name], new, {**before, name: new}


def _other(rng: np.random.Generator, before: dict[str, str]) -> Change:
    names = list(before)
    asked, changed = rng.permutation(len(names))[:2]
    value = before[names[asked]]
    after = {**before, names[changed]: _other_value(rng, before[names[changed]])}
    return ask_value(names[asked]), value, value, after


def _count(rng: np.random.Generator, before: dict[str, str]) -> Change:
    word = plant_count(rng, before)
    having = [name for name in before if before[name] == word]
    if rng.random() < 0.5:
        changed, value, step = _one_of(rng, having), _one_of(rng, [other for other in WORDS if other != word]), -1
    else:
        changed, value, step = _one_of(rng, [name for name in before if name not in having]), word, 1
    return ask_count(word), str(len(having)), str(len(having) + step), {**before, changed: value}


def _compare(rng: np.random.Generator, before: dict[str, str]) -> Change:
    pair = plant_pair(rng, before)
    smaller, larger = sorted(pair, key=lambda name: int(before[name]))
    low, high = int(before[smaller]), int(before[larger])
    if rng.random() < 0.5:  # the smaller number rises above the larger one, or that falls below it
        changed, numbers = smaller, [number for number in NUMBERS if int(number) > high]
    else:
        changed, numbers = larger, [number for number in NUMBERS if int(number) < low]
    return ask_larger(*pair), larger, smaller, {**before, changed: _one_of(rng, numbers)}


def _insert(rng: np.random.Generator, before: dict[str, str]) -> Change:
    name = _one_of(rng, list(before))
    old = before[name]
    new = _other_value(rng, old) if rng.random() < 0.5 else old
    return ask_value(name), old, new, {**_new_line(rng, before), **before, name: new}


def _scroll(rng: np.random.Generator, before: dict[str, str]) -> Change:
    names = list(before)[1:]
    name = _one_of(rng, names)
    after = {**{name: before[name] for name in names}, **_new_line(rng, before)}
    return ask_value(name), before[name], before[name], after


_CHANGES: dict[str, Callable[[np.random.Generator, dict[str, str]], Change]] = {
    "asked": _asked,
    "other": _other,
    "count": _count,
    "compare": _compare,
    "insert": _insert,
    "scroll": _scroll,
}


def _one_of(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _other_value(rng: np.random.Generator, value: str) -> str:
    """Another value of the same sort, word or number, whose first letter or digit differs."""
    return _one_of(rng, [other for other in (WORDS if value in WORDS else NUMBERS) if other[0] != value[0]])


def _new_line(rng: np.random.Generator, values: dict[str, str]) -> dict[str, str]:
    """A line whose name is not on the screen."""
    name = _one_of(rng, [name for name in NAMES if name not in values])
    return {name: _one_of(rng, WORDS if rng.random() < 0.5 else NUMBERS)}
