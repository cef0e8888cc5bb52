"""Frames as they come, at a rate: of a screen, of a window, or of a recording that is played.

A source is iterated in one thread, which waits for each frame until it is due, and may be closed from another. What
is made of the frames, and what becomes of those that come too fast, this module does not know.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fvlm_lib.data.record import clock, grab, monitor_area, open_screen
from fvlm_lib.data.screens import ScreenSequence, read_sequence
from fvlm_lib.schema import FrameRate, check


class LiveSource:
    """Iterating it gives (seconds since the start, frame uint8 (H, W, 3)) at `fps` frames a second.

    frames: called when iterating begins, in the thread that iterates; gives the next frame each time it is asked. A
    time at which the frame before was still being taken is passed over. name: how the source is spoken of.
    """

    def __init__(self, name: str, fps: float, frames: Callable[[], Iterator[np.ndarray]]) -> None:
        self.name, self.fps = name, fps
        self._frames = frames
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        with contextlib.closing(self._frames()) as frames:  # type: ignore[type-var]  # generators all
            yield from zip(clock(self.fps, self._closed.is_set), frames, strict=False)

    def close(self) -> None:
        """No more frames, also of an iteration that waits for one, within a tenth of a second."""
        self._closed.set()


def open_source(source: str | Path, fps: float, *, loop: bool = False) -> LiveSource:
    """The source that a text names: "screen" (the first monitor), "screen:2" (0 is all of them together),
    or the path of a recording, a folder of images or one image.

    loop: a recording begins again at its end. Raises ValueError for a rate that is none, a monitor or recording that is
    not there, NoScreenError where there is no display, here or where it goes away while frames are taken.
    """
    check(FrameRate, fps, "fps")
    text = str(source)
    if screen := re.fullmatch(r"screen(?::(\d+))?", text):
        monitor = int(screen[1] or 1)
        with open_screen() as opened:  # what cannot be is said now
            monitor_area(opened, monitor)
        return LiveSource(text, fps, lambda: _monitor_frames(monitor))
    sequence = read_sequence(source)
    return LiveSource(text, fps, lambda: _recorded_frames(sequence, loop))


def _monitor_frames(monitor: int) -> Iterator[np.ndarray]:
    with open_screen() as screen:
        while True:
            yield np.array(grab(screen, monitor_area(screen, monitor)))


def _recorded_frames(sequence: ScreenSequence, loop: bool) -> Iterator[np.ndarray]:
    yield from sequence
    while loop:
        yield from sequence
