"""Questions about drawn screens, each with the answer that is right.

* `read`: "value of K?", answered by the value, "42".
* `state`: "state of B?", answered by "on" or "off".
* `compare`: "which is larger, A or F?", of two fields whose values are numbers of two digits. The answer names both
  values before it says which, "A42, F17: A", so that a reader can look and then judge.
* `count`: "how many are on?", answered by a number.

`right_answer` says what is right about a screen, `verdict` what to make of a model's words. This module knows nothing
of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from fvlm_lib.data.drawn_screens import Screen

QuestionKind = Literal["read", "state", "compare", "count"]
KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)
Verdict = Literal["right", "stale", "wrong"]
_TEXTS: dict[QuestionKind, str] = {
    "read": "value of {}?",
    "state": "state of {}?",
    "compare": "which is larger, {} or {}?",
    "count": "how many are on?",
}


@dataclass(frozen=True)
class Question:
    """A kind of question and the labels that it names: one, two or none."""

    kind: QuestionKind
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no question of kind {self.kind!r}; there are {', '.join(KINDS)}")
        if len(self.labels) != (wanted := _TEXTS[self.kind].count("{}")):
            raise ValueError(f"a question of kind {self.kind!r} names {wanted} labels, not {len(self.labels)}")

    @property
    def text(self) -> str:
        """What is asked."""
        return _TEXTS[self.kind].format(*self.labels)


def right_answer(question: Question, screen: Screen) -> str | None:
    """What a reader who sees the screen says; None where the labels do not stand there for all to see."""
    values = {field.label: field for field in screen.shown_fields()}
    boxes = {box.label: box.on for box in screen.shown_boxes()}
    if question.kind == "count":
        return str(sum(boxes.values()))
    if question.kind == "state":
        label = question.labels[0]
        return None if label not in boxes else "on" if boxes[label] else "off"
    found = [values[label] for label in question.labels if label in values]
    if len(found) < len(question.labels):
        return None
    if question.kind == "read":
        return found[0].value
    one, other = found
    if not (one.number and other.number) or one.value == other.value:
        return None
    return f"{one.label}{one.value}, {other.label}{other.value}: {max(found, key=lambda field: field.value).label}"


def result_of(answer: str) -> str:
    """What an answer comes to: what is behind its last colon, or all of it."""
    return answer.rsplit(":", 1)[-1].strip()


def verdict(answer: str, old: str | None, new: str | None) -> Verdict:
    """What to make of an answer to a question whose right answer is `new`, and was `old` on the screen before (None: it
    had none; where there is none now, no answer is right).

    "stale": it was right before and no longer is. Where a comparison comes to the same as before, an answer is stale
    only if it names the values of before. "wrong": neither.
    """
    if answer == new:
        return "right"
    if old is None or old == new:
        return "wrong"
    came_to = result_of(answer)
    return "stale" if answer == old or (new and result_of(new) != came_to == result_of(old)) else "wrong"


def all_questions(screen: Screen) -> list[Question]:
    """Every question that has an answer on this screen, in a fixed order."""
    fields, boxes = screen.shown_fields(), screen.shown_boxes()
    numbers = [field for field in fields if field.number]
    found = [Question("read", (field.label,)) for field in fields]
    found += [Question("state", (box.label,)) for box in boxes]
    found += [
        Question("compare", (one.label, other.label))
        for one in numbers
        for other in numbers
        if one.value != other.value
    ]
    return [*found, Question("count")]


def draw_question(rng: np.random.Generator, screen: Screen, kind: QuestionKind) -> Question | None:
    """One question of the kind that has an answer on this screen, at random; None if there is none."""
    of_kind = [question for question in all_questions(screen) if question.kind == kind]
    return of_kind[int(rng.integers(len(of_kind)))] if of_kind else None
