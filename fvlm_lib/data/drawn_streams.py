"""Drawn screens that change, one thing at a time, with a question whose right answer is known before and after.

Kinds of change (`CHANGES`): the `value` of a field is another one; a `glyph` of a value is one that looks like it (3
and 8, O and 0); a check `box` is ticked or no longer; a `dialog` opens over others, or closes; the list will `scroll`
by a row; another row is `select`-ed; the `bar` makes progress; the `pointer` moves; the `caret` blinks; the `theme`
flips; all colours `fade` by 2%. A dialog may cover the list, the bar and the caret, and what changes there is not seen.

`screen_pair` is a screen before and after one change, and a question; `screen_stream` a sequence of such changes, and
`write_stream` makes frames and `actions.json` of it, which `screens.read_sequence` reads. This module knows nothing of
models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from fvlm_lib.data.drawn_screens import (
    BAR_WIDTH,
    FLIPS,
    LABELS,
    THEMES,
    Field,
    Screen,
    draw,
    draw_state,
    free_pointer,
    random_dialog,
    random_value,
)
from fvlm_lib.data.screen_questions import Question, QuestionKind, draw_question, right_answer
from fvlm_lib.data.screens import write_sequence

Change = Literal["value", "glyph", "box", "dialog", "scroll", "select", "bar", "pointer", "caret", "theme", "fade"]
CHANGES: tuple[Change, ...] = get_args(Change)
FADE = 0.02
DARKEST = 0.6

_LIKE = FLIPS | {other: one for one, other in FLIPS.items()}


@dataclass(frozen=True)
class ScreenPair:
    """A screen before and after one change, and a question.

    old, new: the right answers before and after. new is None where what is asked about is gone: a dialog covers it, or
    the list scrolled it away.
    """

    change: Change
    before: Screen
    after: Screen
    question: Question
    old: str
    new: str | None

    @property
    def asked(self) -> bool:
        """Whether the answer that was right before is wrong after."""
        return self.old != self.new


def changed(screen: Screen, change: Change, rng: np.random.Generator) -> Screen | None:
    """The screen after one change of that kind; None where it has nothing that could change so, such as no box.

    Raises ValueError for a kind that there is none of."""
    if change not in _CHANGES:
        raise ValueError(f"there is no change of kind {change!r}; there are {', '.join(CHANGES)}")
    return _CHANGES[change](screen, rng)


def _with_field(screen: Screen, old: Field, new: Field) -> Screen:
    def put(fields: tuple[Field, ...]) -> tuple[Field, ...]:
        return tuple(new if field is old else field for field in fields)

    dialog = screen.dialog
    if dialog and dialog.field is old:
        dialog = replace(dialog, field=new)
    return replace(screen, fields=put(screen.fields), listed=put(screen.listed), dialog=dialog)


def _value(screen: Screen, rng: np.random.Generator) -> Screen:
    fields = screen.shown_fields()
    field = fields[int(rng.integers(len(fields)))]
    while (value := random_value(rng)) == field.value or len(value) != len(field.value):
        pass
    return _with_field(screen, field, replace(field, value=value))


def _glyph(screen: Screen, rng: np.random.Generator) -> Screen | None:
    places = [(f, i) for f in screen.shown_fields() for i, character in enumerate(f.value) if character in _LIKE]
    if not places:
        return None
    field, i = places[int(rng.integers(len(places)))]
    return _with_field(
        screen, field, replace(field, value=field.value[:i] + _LIKE[field.value[i]] + field.value[i + 1 :])
    )


def _box(screen: Screen, rng: np.random.Generator) -> Screen | None:
    shown = screen.shown_boxes()
    if not shown:
        return None
    box = shown[int(rng.integers(len(shown)))]
    return replace(screen, boxes=tuple(replace(b, on=not b.on) if b is box else b for b in screen.boxes))


def _dialog(screen: Screen, rng: np.random.Generator) -> Screen:
    dialog = None if screen.dialog else random_dialog(rng, _new_label(screen, rng))
    after = replace(screen, dialog=dialog)
    return replace(after, pointer=free_pointer(rng, after))


def _new_label(screen: Screen, rng: np.random.Generator) -> str:
    used = {field.label for field in (*screen.fields, *screen.listed)} | {box.label for box in screen.boxes}
    used |= {screen.dialog.field.label} if screen.dialog else set()
    return str(rng.choice([label for label in LABELS if label not in used]))


def _scroll(screen: Screen, rng: np.random.Generator) -> Screen:
    cells = [field.cell for field in screen.listed]
    new = Field(_new_label(screen, rng), random_value(rng), cells[-1])
    moved = [replace(field, cell=cell) for field, cell in zip(screen.listed[1:], cells[:-1], strict=True)]
    caret = screen.caret if screen.caret != screen.listed[0].label else new.label
    return replace(screen, listed=(*moved, new), caret=caret)


def _select(screen: Screen, rng: np.random.Generator) -> Screen:
    return replace(screen, selected=(screen.selected + int(rng.integers(1, 3))) % 3)


def _bar(screen: Screen, rng: np.random.Generator) -> Screen | None:
    if screen.bar is None:
        return None
    row, full = screen.bar
    return replace(screen, bar=(row, (full + 1) % (BAR_WIDTH + 1)))


def _pointer(screen: Screen, rng: np.random.Generator) -> Screen:
    while (pointer := free_pointer(rng, screen)) == screen.pointer:
        pass
    return replace(screen, pointer=pointer)


def _caret(screen: Screen, rng: np.random.Generator) -> Screen:
    return replace(screen, caret_shown=not screen.caret_shown)


def _theme(screen: Screen, rng: np.random.Generator) -> Screen:
    return replace(screen, theme=(screen.theme + int(rng.integers(1, len(THEMES)))) % len(THEMES))


def _fade(screen: Screen, rng: np.random.Generator) -> Screen:
    return replace(screen, brightness=1.0 if screen.brightness <= DARKEST else round(screen.brightness - FADE, 2))


_CHANGES: dict[Change, Callable[[Screen, np.random.Generator], Screen | None]] = {
    "value": _value, "glyph": _glyph, "box": _box, "dialog": _dialog, "scroll": _scroll, "select": _select, "bar": _bar,
    "pointer": _pointer, "caret": _caret, "theme": _theme, "fade": _fade,
}  # fmt: skip


def screen_pair(
    change: Change,
    kind: QuestionKind,
    index: int,
    *,
    asked: bool | None = None,
    gone: bool = False,
    seed: int = 0,
) -> ScreenPair:
    """The pair of that number; the same whenever it is asked for.

    asked: whether the answer must change, must not, or either. gone: what is asked about is no longer there
    afterwards, so that the answer changes to none; without it, there is an answer before and after. Raises ValueError
    where no such pair is found in many tries: a caret that blinks changes no answer.
    """
    rng = np.random.default_rng([seed, CHANGES.index(change), index, *kind.encode(), 2 if gone else int(asked or 0)])
    for _ in range(500):
        before = draw_state(rng)
        after = changed(before, change, rng)
        question = draw_question(rng, before, kind)
        if after is None or question is None or ((new := right_answer(question, after)) is None) != gone:
            continue
        old = right_answer(question, before)
        assert old is not None
        if asked is None or asked == (old != new):
            return ScreenPair(change, before, after, question, old, new)
    does = "takes away what is asked about by" if gone else f"{'changes' if asked else 'leaves'} an answer to"
    raise ValueError(f"no change of kind {change!r} was found that {does} {kind!r}")


def screen_stream(
    frames: int, changes: Sequence[Change] = CHANGES, *, seed: int = 0
) -> Iterator[tuple[Screen, Change | None]]:
    """So many screens, each with the change that it is behind the one before; None for the first.

    Raises ValueError where none of these changes is possible, which many tries tell."""
    rng = np.random.default_rng([seed, frames])
    screen = draw_state(rng)
    yield screen, None
    for _ in range(frames - 1):
        for _ in range(500):
            change: Change = changes[int(rng.integers(len(changes)))]
            if (after := changed(screen, change, rng)) is not None:
                break
        else:
            raise ValueError(f"the screen of seed {seed} has nothing that changes by {', '.join(changes)}; name others")
        screen = after
        yield screen, change


def write_stream(folder: Path, frames: int, changes: Sequence[Change] = CHANGES, *, seed: int = 0) -> Path:
    """A `screen_stream` as a folder of PNG files with `actions.json`, in which each frame also has the `state` that a
    question can be checked by: labels of fields with their values, of boxes with whether they are on."""
    stream = list(screen_stream(frames, changes, seed=seed))
    actions = []
    for screen, change in stream:
        state = {field.label: field.value for field in screen.shown_fields()}
        state |= {box.label: "on" if box.on else "off" for box in screen.shown_boxes()}
        actions.append({"action": change or "start", "detail": "", "state": state})
    about = f"drawn screens, seed {seed}: each differs from the one before in one of {', '.join(changes)}"
    return write_sequence(folder, (draw(screen) for screen, _ in stream), actions, about)
