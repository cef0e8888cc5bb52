"""What was chosen before: the states that undo goes back to. Knows no widget."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

State = TypeVar("State")


class History(Generic[State]):
    """The last `length` states. A control that is moved again within `pause` seconds makes one step: a slider on its
    way passes many values. `clock` gives seconds."""

    def __init__(self, length: int = 100, pause: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._states: deque[State] = deque(maxlen=length)
        self._pause, self._clock = pause, clock
        self._last: tuple[str, float] | None = None  # the control that moved last, and when

    def __len__(self) -> int:
        return len(self._states)

    def record(self, before: State, control: str) -> None:
        """A control, by its name, has moved; `before` is the state until then."""
        now = self._clock()
        if self._last is None or self._last[0] != control or now - self._last[1] > self._pause:
            self._states.append(before)
        self._last = control, now

    def undo(self) -> State:
        """Take the last step back: the state before it. Raises ValueError if there is none."""
        if not self._states:
            raise ValueError("there is nothing to undo")
        self._last = None
        return self._states.pop()
