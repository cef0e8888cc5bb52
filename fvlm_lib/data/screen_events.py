"""What can happen on a drawn screen from one frame to the next, and how a caption says it: a phrase an event.

    Event("typed", "K", "7").phrase      # "typed 7 in K"

A caption is the phrases of a video's frames, from the second on, with `SEPARATOR` between them: "clicked save, dialog
closed, scrolled down". The events on pixels are the subject of `drawn_events.py`. Imports nothing heavy, since the
options of data are checked by the number of phrases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

EventKind = Literal["clicked", "typed", "switched", "scrolled", "opened", "closed", "nothing"]
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)

WORDS = ("save", "open", "undo", "copy", "find", "exit")
"""On buttons; no two begin alike."""
FIELD_LABELS = "KMRV"
SWITCH_LABELS = "ADHT"
DIGITS = "0123456789"
"""Values of the fields that are typed in."""
SEPARATOR = ", "


@dataclass(frozen=True)
class Event:
    """What happened. name: the word of the button that was clicked, the label of the field that was typed in or of the
    check box that was switched. state: what is typed; "on" or "off"; "up" or "down". Both are empty where there is
    nothing to say. Raises ValueError for an event that there is not."""

    kind: EventKind
    name: str = ""
    state: str = ""

    def __post_init__(self) -> None:
        names, states = _POSSIBLE.get(self.kind, ((), ()))
        if self.name not in names or self.state not in states:
            raise ValueError(
                f"there is no event {self.kind!r} with name {self.name!r} and state {self.state!r}; "
                + (f"names are {', '.join(map(repr, names))} and states {', '.join(map(repr, states))}" if names else
                   f"there are {', '.join(EVENT_KINDS)}")
            )  # fmt: skip

    @property
    def phrase(self) -> str:
        """The event in a few words; no two events have the same."""
        return _PHRASES[self.kind].format(name=self.name, state=self.state)


_POSSIBLE: dict[EventKind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "clicked": (WORDS, ("",)),
    "typed": (tuple(FIELD_LABELS), tuple(DIGITS)),
    "switched": (tuple(SWITCH_LABELS), ("on", "off")),
    "scrolled": (("",), ("up", "down")),
    "opened": (("",), ("",)),
    "closed": (("",), ("",)),
    "nothing": (("",), ("",)),
}
_PHRASES: dict[EventKind, str] = {
    "clicked": "clicked {name}",
    "typed": "typed {state} in {name}",
    "switched": "switched {name} {state}",
    "scrolled": "scrolled {state}",
    "opened": "dialog opened",
    "closed": "dialog closed",
    "nothing": "nothing",
}

EVENTS = tuple(
    Event(kind, name, state) for kind, (names, states) in _POSSIBLE.items() for name in names for state in states
)
"""All events that there are."""
PHRASES = tuple(event.phrase for event in EVENTS)
