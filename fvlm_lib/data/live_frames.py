"""Frames as they come, at a rate: of a screen, of a window, or of a recording that is played.

A source is iterated in one thread, which waits for each frame until it is due, and may be closed from another. What
is made of the frames, and what becomes of those that come too fast, this module does not know.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np

from fvlm_lib.data.record import NoScreenError, clock, grab, monitor_area, open_screen
from fvlm_lib.data.screens import ScreenSequence, read_sequence
from fvlm_lib.schema import FrameRate, check

Frames = Generator[np.ndarray, None, None]
"""Frames uint8 (H, W, 3), each taken when it is asked for."""
_REOPEN = 2.0  # seconds after which a screen is opened anew, since its size may have changed
_TRIES = 4  # after which a screen that cannot be opened is gone
_LOCATE = 0.2  # seconds after which a window is looked for again, since it may have moved


class LiveSource:
    """Iterating it gives (seconds since the start, frame uint8 (H, W, 3)) at `fps` frames a second.

    frames: called when iterating begins, in the thread that iterates; gives the next frame each time it is asked. A
    moment at which the frame before was still being taken is passed over. name: what the source is called.
    """

    def __init__(self, name: str, fps: float, frames: Callable[[], Frames]) -> None:
        self.name, self.fps = name, fps
        self._frames = frames
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        with contextlib.closing(self._frames()) as frames:
            # either may end first: the clock when this is closed, the frames of a recording
            yield from zip(clock(self.fps, self._closed.is_set), frames, strict=False)

    def close(self) -> None:
        """No more frames; an iteration that waits for one ends within a tenth of a second."""
        self._closed.set()


def open_source(source: str | Path, fps: float, *, loop: bool = False) -> LiveSource:
    """The source that a text names: "screen" (the first monitor), "screen:2" (0 is all together), "window:TITLE" (the
    uppermost window that is shown with TITLE in its title; of X11, by its program xwininfo), or the path of a
    recording, a folder of images or one image.

    Of a window what the screen shows in its place is taken, wherever it is moved and whatever lies over it. loop: a
    recording begins again at its end.

    Raises ValueError for a rate that is none and for a monitor or recording that is not there, NoScreenError for a
    display or window that is not there. While frames are taken, NoScreenError where it goes away.
    """
    check(FrameRate, fps, "fps")
    text = str(source)
    if screen := re.fullmatch(r"screen(?::(\d+))?", text):
        monitor = int(screen[1] or 1)
        with open_screen() as opened:  # what cannot be is said now
            monitor_area(opened, monitor)
        return LiveSource(text, fps, lambda: _monitor_frames(monitor))
    if text.startswith("window:"):
        with open_screen():
            title = text.removeprefix("window:")
            window = find_window(title)
        return LiveSource(text, fps, lambda: _window_frames(window, title))
    if not Path(source).exists():
        raise ValueError(
            f"there is no recording {source}; name a folder of images, an image, screen, screen:2 or window:TITLE"
        )
    sequence = read_sequence(source)
    return LiveSource(text, fps, lambda: _recorded_frames(sequence, loop))


def _recorded_frames(sequence: ScreenSequence, loop: bool) -> Frames:
    yield from sequence
    while loop:
        yield from sequence


def _monitor_frames(monitor: int) -> Frames:
    failed = 0
    while True:
        try:
            with open_screen() as screen:
                area, opened = monitor_area(screen, monitor), time.monotonic()
                while time.monotonic() < opened + _REOPEN:
                    frame = np.array(grab(screen, area))
                    failed = 0
                    yield frame
        except NoScreenError:  # also of a screen that became smaller, or of a server that starts anew
            failed += 1
            if failed == _TRIES:
                raise
            time.sleep(0.2)


# ---- windows -----------------------------------------------------------------------------------------


def find_window(title: str) -> str:
    """The id of the uppermost window that is shown and has `title` in its title. Raises NoScreenError for none."""
    if not title:
        raise ValueError("window: names no title; write window:TITLE, with a part of the window's title")
    tree = _xwininfo("-root", "-tree")
    for window, shown in re.findall(r'^\s+(0x[0-9a-f]+) "(.*)": \(', tree, flags=re.MULTILINE):
        if title in shown and _place(window) is not None:
            return str(window)
    raise NoScreenError(f"no window is shown that has {title!r} in its title; xwininfo -root -tree lists them")


def _window_frames(window: str, title: str) -> Frames:
    with open_screen() as screen:
        located, place = -np.inf, None
        while True:
            if time.monotonic() >= located + _LOCATE:
                located, place = time.monotonic(), _place(window)
            area = None if place is None else _inside(place, screen.monitors[0])
            if area is None:
                raise NoScreenError(f"the window with {title!r} in its title is no longer shown")
            yield np.array(grab(screen, area))


def _place(window: str) -> dict[str, int] | None:
    """Where a window is, as python-mss has areas; None where it is not shown, or not there."""
    told = _xwininfo("-id", window, "-stats")
    if "Map State: IsViewable" not in told:
        return None
    names = {"left": "Absolute upper-left X", "top": "Absolute upper-left Y", "width": "Width", "height": "Height"}
    found = {key: re.search(rf"{name}: +(-?\d+)", told) for key, name in names.items()}
    return {key: int(number[1]) for key, number in found.items() if number}


def _inside(area: dict[str, int], screen: dict[str, int]) -> dict[str, int] | None:
    """The part of an area that is on the screen; None for no part."""
    left, top = max(area["left"], screen["left"]), max(area["top"], screen["top"])
    right = min(area["left"] + area["width"], screen["left"] + screen["width"])
    bottom = min(area["top"] + area["height"], screen["top"] + screen["height"])
    if left >= right or top >= bottom:
        return None
    return {"left": left, "top": top, "width": right - left, "height": bottom - top}


def _xwininfo(*arguments: str) -> str:
    """What xwininfo prints; nothing where there is no such window, or no display."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}  # titles whole, and words that are read here untranslated
    try:
        done = subprocess.run(["xwininfo", *arguments], capture_output=True, env=environment)
    except FileNotFoundError as error:
        raise NoScreenError(
            "windows are found by the program xwininfo of X11, which is not installed; install it (x11-utils), or name "
            "a monitor, such as screen:1"
        ) from error
    return "" if done.returncode else done.stdout.decode("utf-8", "replace")
