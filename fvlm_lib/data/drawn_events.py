"""A drawn screen at which someone works: buttons, fields, check boxes, a list that scrolls, and a dialog.

    for window, event in event_stream(np.random.default_rng(0), frames=8):
        frame = draw(window.screen)                # uint8 (128, 128, 3)

Each frame is behind one `Event` (`screen_events.py`), and differs from the one before within the widget of that event
alone (`event_cells`): nothing else moves, fades or blinks, and where nothing happened frames are equal. A dialog, while
it is open, is the only thing that anything happens in. In half of the cases something happens to the same widget as the
last time, so that where to look next depends on what was seen.

What is drawn, and how, is the subject of `drawn_screens.py`. This module knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from fvlm_lib.data.drawn_screens import (
    BOX_WIDTH,
    CELL,
    FIELD_WIDTH,
    LABELS,
    Box,
    Button,
    Cell,
    Dialog,
    Field,
    Screen,
    random_dialog,
)
from fvlm_lib.data.screen_events import DIGITS, FIELD_LABELS, SWITCH_LABELS, WORDS, Event

ROWS = COLUMNS = 8  # cells
SHOWN = 3  # rows of the list
LISTED = 6  # rows of the list that it scrolls through
NOTHING = 0.2
"""How often nothing happens."""
STAYS = 0.5
"""How often something happens to the same widget as the last time, where it can."""


@dataclass(frozen=True)
class Window:
    """A screen, with the rows of its list that are scrolled away. items: all of them, each a label and a value; their
    cells mean nothing. first: which of them is the uppermost on the screen, counted from 0."""

    screen: Screen
    items: tuple[Field, ...]
    first: int


def draw_window(rng: np.random.Generator, num_themes: int = 1) -> Window:
    """A window at random, no dialog open: four buttons, two fields, two check boxes and the list, in rows of any order.

    num_themes: it has one of the first so many of `THEMES`.
    """
    words = iter(rng.permutation(WORDS).tolist())
    fields, switches = (iter(rng.permutation(list(labels)).tolist()) for labels in (FIELD_LABELS, SWITCH_LABELS))
    letters = [label for label in LABELS if label not in FIELD_LABELS + SWITCH_LABELS]
    items = tuple(
        Field(label, str(int(rng.integers(10, 100))), (0, 0)) for label in rng.permutation(letters)[:LISTED].tolist()
    )
    row, indent = 1, int(rng.integers(0, COLUMNS - FIELD_WIDTH))  # below the title; one column for the scroll bar
    buttons: list[Button] = []
    form: list[Field] = []
    boxes: list[Box] = []
    top = 0
    for kind in rng.permutation(["buttons"] * 2 + ["form"] * 2 + ["list"]).tolist():
        if kind == "list":
            top = row
        elif kind == "buttons":
            width = COLUMNS // 2
            buttons += [Button(next(words), bool(rng.random() < 0.5), (row, at)) for at in (0, width)]
        else:
            places = [(0, FIELD_WIDTH), (BOX_WIDTH, 0)][int(rng.integers(2))]  # the field left or right of the box
            form.append(Field(next(fields), str(rng.choice(list(DIGITS))), (row, places[0])))
            boxes.append(Box(next(switches), bool(rng.random() < 0.5), (row, places[1])))
        row += SHOWN if kind == "list" else 1
    first = int(rng.integers(LISTED - SHOWN + 1))
    screen = Screen(
        fields=tuple(form),
        boxes=tuple(boxes),
        listed=tuple(Field(item.label, item.value, (top + i, indent)) for i, item in enumerate(items[:SHOWN])),
        selected=int(rng.integers(SHOWN)),
        bar=None,
        dialog=None,
        caret="",
        caret_shown=False,
        pointer=((COLUMNS - 1) * CELL + 3, 2),  # in the title, where nothing happens
        theme=int(rng.integers(num_themes)),
        brightness=1.0,
        shift=(0, 0),
        buttons=tuple(buttons),
        grid=(ROWS, COLUMNS),
    )
    return _scrolled(Window(screen, items, first), first)


def _scrolled(window: Window, first: int) -> Window:
    cells = [field.cell for field in window.screen.listed]
    items = window.items[first : first + len(cells)]
    listed = tuple(replace(item, cell=cell) for item, cell in zip(items, cells, strict=True))
    return replace(
        window, screen=replace(window.screen, listed=listed, scrollbar=(first, len(window.items))), first=first
    )


def possible_events(window: Window) -> list[Event]:
    """What can happen next, besides nothing: with a dialog open, what happens in it."""
    screen = window.screen
    typed = [screen.dialog.field] if screen.dialog else list(screen.fields)
    found = [Event("typed", field.label, digit) for field in typed for digit in DIGITS if digit != field.value]
    if screen.dialog:
        return [*found, Event("closed")]
    found += [Event("clicked", button.word) for button in screen.buttons]
    found += [Event("switched", box.label, "off" if box.on else "on") for box in screen.boxes]
    found += [Event("scrolled", "", "up")] if window.first > 0 else []
    found += [Event("scrolled", "", "down")] if window.first < len(window.items) - SHOWN else []
    return [*found, Event("opened")]


def draw_event(rng: np.random.Generator, window: Window, last: Event | None = None) -> Event:
    """What happens next, at random. last: what happened last, besides nothing."""
    if rng.random() < NOTHING:
        return Event("nothing")
    events = possible_events(window)
    if last is not None and rng.random() < STAYS:
        events = [event for event in events if (event.kind, event.name) == (last.kind, last.name)] or events
    kinds = sorted({event.kind for event in events})
    kind = kinds[int(rng.integers(len(kinds)))]  # each as often, however many events it has
    events = [event for event in events if event.kind == kind]
    return events[int(rng.integers(len(events)))]


def after_event(window: Window, event: Event, rng: np.random.Generator) -> Window:
    """The window after an event. rng: says where a dialog opens and what stands in it.

    Raises ValueError for an event that cannot happen on it.
    """
    if event.kind == "nothing":
        return window
    if event not in possible_events(window):
        raise ValueError(f"{event.phrase!r} cannot happen on this screen")
    screen = window.screen
    if event.kind == "scrolled":
        return _scrolled(window, window.first + (1 if event.state == "down" else -1))
    if event.kind == "clicked":
        buttons = (replace(b, pressed=not b.pressed) if b.word == event.name else b for b in screen.buttons)
        screen = replace(screen, buttons=tuple(buttons))
    elif event.kind == "switched":
        boxes = (replace(b, on=not b.on) if b.label == event.name else b for b in screen.boxes)
        screen = replace(screen, boxes=tuple(boxes))
    elif event.kind == "opened":
        screen = replace(screen, dialog=_random_dialog(screen, rng))
    elif event.kind == "closed":
        screen = replace(screen, dialog=None)
    elif screen.dialog:
        field = replace(screen.dialog.field, value=event.state)
        screen = replace(screen, dialog=replace(screen.dialog, field=field))
    else:
        fields = (replace(f, value=event.state) if f.label == event.name else f for f in screen.fields)
        screen = replace(screen, fields=tuple(fields))
    return replace(window, screen=screen)


def _random_dialog(screen: Screen, rng: np.random.Generator) -> Dialog:
    """A dialog with a field of a digit. Of a field that is cut `draw` colours the label otherwise, which would be a
    change outside of the dialog; so it covers a field as a whole or not at all."""
    label = str(rng.choice([label for label in FIELD_LABELS if label not in {field.label for field in screen.fields}]))
    while True:
        dialog = random_dialog(rng, label, screen.grid)
        covered = [
            {dialog.covers((row, column + i)) for i in range(FIELD_WIDTH)}
            for row, column in (field.cell for field in (*screen.fields, *screen.listed))
        ]
        if all(len(cells) == 1 for cells in covered):  # all are, or none is
            return replace(dialog, field=replace(dialog.field, value=str(rng.choice(list(DIGITS)))))


def event_cells(before: Screen, after: Screen, event: Event) -> np.ndarray:
    """The widget of an event: bool (rows, columns) of the screen's cells, outside of which the two frames are equal.

    before, after: the screens of both frames. Raises ValueError where they have no such widget.
    """
    cells = np.zeros(before.grid, dtype=bool)
    if event.kind == "nothing":
        return cells
    places: list[tuple[Cell, tuple[int, int]]] = []
    if event.kind in ("opened", "closed"):
        dialog = after.dialog if event.kind == "opened" else before.dialog
        places = [(dialog.cell, dialog.size)] if dialog else []
    elif event.kind == "scrolled":
        places = [(before.listed[0].cell, (len(before.listed), FIELD_WIDTH + 1))]
    elif event.kind == "clicked":
        places = [(button.cell, (1, len(button.word))) for button in before.buttons if button.word == event.name]
    elif event.kind == "switched":
        places = [(box.cell, (1, BOX_WIDTH)) for box in before.boxes if box.label == event.name]
    else:
        places = [(field.cell, (1, FIELD_WIDTH)) for field in before.shown_fields() if field.label == event.name]
    if not places:
        raise ValueError(f"the screen has no widget of which {event.phrase!r} can be said")
    (row, column), (rows, columns) = places[0]
    cells[row : row + rows, column : column + columns] = True
    return cells


def event_stream(rng: np.random.Generator, frames: int, num_themes: int = 1) -> Iterator[tuple[Window, Event | None]]:
    """So many windows, each with the event that it is behind the one before; None for the first."""
    window = draw_window(rng, num_themes)
    last: Event | None = None
    yield window, None
    for _ in range(frames - 1):
        event = draw_event(rng, window, last)
        window = after_event(window, event, rng)
        last = last if event.kind == "nothing" else event
        yield window, event
