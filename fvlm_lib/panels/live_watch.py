"""A stream that is watched in a thread while something else is shown: what was seen last, and what it took lately.

How a stream is watched is `foveated/live.py`'s subject, how it is shown `live_panel.py`'s; this knows no widget.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from fvlm_lib.foveated.live import LiveFrame, live_row

LATELY = 100  # frames whose times are kept
PAUSE = 0.2  # seconds between two calls of `show`


@dataclass(frozen=True)
class Said:
    """What the model said, and from when to when, in seconds since the start; asked twice, it may say the same.

    stream: the number of the stream of which it was said.
    """

    text: str
    first: float
    last: float
    stream: int = 1


class Watching:
    """Frames that are watched in a thread, until they end or `stop` is called.

    frames: as `foveated.live.watch_live` gives them, which ends soon after the event `stopping` is set. show: called
    with this, in another thread, at most every `PAUSE` seconds when there is something new, and once more at the end,
    `ended` then. said: what is said is added to it, as of the stream `number`.
    newest: the last frame that was watched. error: what ended it, if that was an error. Memory does not grow.
    """

    def __init__(
        self,
        frames: Iterator[LiveFrame],
        stopping: threading.Event,
        show: Callable[[Watching], None],
        said: deque[Said],
        number: int = 1,
    ) -> None:
        self.newest: LiveFrame | None = None
        self.error: Exception | None = None
        self.ended = False
        self._frames, self._stopping, self._show, self._said, self._number = frames, stopping, show, said, number
        self._rows: deque[dict[str, Any]] = deque(maxlen=LATELY)
        self._lock = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._shower = threading.Thread(target=self._show_all, name="show", daemon=True)

    def start(self) -> None:
        """Begin; once only."""
        self._watcher.start()
        self._shower.start()

    def stop(self) -> None:
        """End it, and wait until the last frame is shown."""
        self._stopping.set()
        self.join()

    @property
    def stopped(self) -> bool:
        """Whether it was told to end."""
        return self._stopping.is_set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end; whether it has come within `timeout` seconds."""
        self._shower.join(timeout)
        return not self._shower.is_alive()

    def lately(self) -> pd.DataFrame:
        """A row of `live_row` for each of the last `LATELY` frames."""
        with self._lock:
            return pd.DataFrame(list(self._rows))

    def said(self) -> list[Said]:
        """What is said so far, the newest last."""
        with self._lock:
            return list(self._said)

    def _watch(self) -> None:
        try:
            for live in self._frames:
                with self._lock:
                    self._rows.append(live_row(live))
                    if live.caption is not None:
                        self._hear(live.caption, live.seconds)
                    self.newest = live
        except Exception as error:
            self.error = error

    def _hear(self, text: str, seconds: float) -> None:
        last = self._said[-1] if self._said else None
        if last is not None and (last.stream, last.text) == (self._number, text):
            self._said[-1] = replace(last, last=seconds)
        else:
            self._said.append(Said(text, seconds, seconds, self._number))

    def _show_all(self) -> None:
        shown = None
        try:
            while self._watcher.is_alive():
                self._watcher.join(PAUSE)
                if self.newest is not shown:
                    shown = self.newest
                    self._show(self)
        except Exception as error:  # what cannot be shown need not be watched
            self._stopping.set()
            self._watcher.join()
            self.error = error
        self.ended = True
        self._show(self)
