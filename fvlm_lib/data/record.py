"""Records a screen as a sequence of screenshots, which `screens.py` reads.

fvlm record --seconds 30 --fps 2 --out data/screens/mine
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops
from tqdm import tqdm

from fvlm_lib.data.screens import ACTIONS_FILE, ScreenSequence, images_in, read_sequence
from fvlm_lib.errors import first_line
from fvlm_lib.options import Parser, option, run
from fvlm_lib.outputs import check_output, whole
from fvlm_lib.schema import CountOrNone, FrameRate, Seconds

CONVENTION = "frames[i].action happened between frame i-1 and frame i"


class NoScreenError(OSError):
    """There is no display to record, or it cannot be read."""


def record(
    out: str | Path, *, seconds: float = 30.0, fps: float = 2.0, monitor: int = 1, progress: bool = True
) -> ScreenSequence | None:
    """Record a monitor (1 is the first, 0 all together) to `out`/frame_0000.png and on, and `actions.json`.

    A frame is due every 1 / fps seconds; one that the machine cannot manage in time is left out. Ctrl-C or
    SIGTERM end the recording early and keep it. The mouse pointer is in the picture on X11. Takes python-mss.

    Returns the sequence, or None if it was stopped before the first frame. Raises ValueError for wrong
    numbers and for an `out` that has images already, NoScreenError if no screen can be read.
    """
    for name, value in (("seconds", seconds), ("fps", fps)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} {value}: must be above 0")
    out = Path(out)
    if out.exists() and (not out.is_dir() or (out / ACTIONS_FILE).exists() or images_in(out)):
        raise ValueError(f"{out}: exists, must be a new directory or one without images and {ACTIONS_FILE}")
    entries: list[dict[str, Any]] = []
    previous = Image.new("RGB", (0, 0))
    try:
        with open_screen() as screen, stop_request() as stop:
            area, due = monitor_area(screen, monitor), _due(seconds, fps)
            ticks = clock(fps, stop.is_set, due)
            for elapsed in tqdm(ticks, total=due, unit="frame", disable=not progress):
                pixels = grab(screen, area)
                entries.append(_save_frame(out, len(entries), elapsed, pixels, previous))
                previous = pixels
    finally:
        if entries:
            header = {
                "name": out.resolve().name,
                "about": "",
                "width": previous.width,
                "height": previous.height,
                "capture": f"python-mss on {sys.platform}, monitor {monitor}, {fps} frames a second",
                "applications": [],
                "convention": CONVENTION,
                "n_frames": len(entries),
                "frames": entries,
            }
            with whole(out / ACTIONS_FILE) as part:
                part.write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")
    return read_sequence(out) if entries else None


@contextlib.contextmanager
def open_screen() -> Iterator[Any]:
    """python-mss on this machine's display; errors of it in the block are raised as NoScreenError."""
    try:
        import mss  # not above: reading recordings must not need it
    except ImportError as error:
        raise NoScreenError("recording needs python-mss: pip install mss") from error
    try:
        # Only X11 can be asked for the pointer; elsewhere mss warns about the option.
        with mss.MSS(with_cursor=True) if sys.platform == "linux" else mss.MSS() as screen:
            yield screen
    except mss.ScreenShotError as error:
        raise NoScreenError(f"no screen can be recorded here: {first_line(error).rstrip('.')}") from error


def monitor_area(screen: Any, monitor: int) -> dict[str, int]:
    """Where a monitor is: left, top, width, height, as python-mss has them. Raises ValueError for one that is not
    there."""
    if not 0 <= monitor < len(screen.monitors):
        raise ValueError(f"monitor {monitor}: must be 0 (all) to {len(screen.monitors) - 1}")
    area: dict[str, int] = screen.monitors[monitor]
    return area


def grab(screen: Any, area: dict[str, int]) -> Image.Image:
    """What that area of an opened screen shows now."""
    shot = screen.grab(area)
    return Image.frombytes("RGB", shot.size, shot.bgra, "raw", "BGRX")


def _due(seconds: float, fps: float) -> int:
    return max(1, round(seconds * fps))


def clock(fps: float, stopped: Callable[[], bool], count: int | None = None) -> Iterator[float]:
    """The seconds since the start at each frame that is due, waiting for it; passes over those missed.

    stopped: asked ten times a second while waiting; once true, no frame is due any more. count: how many frames are
    due, None for no end.
    """
    start = time.monotonic()
    for tick in itertools.count() if count is None else range(count):
        while not stopped() and (wait := start + tick / fps - time.monotonic()) > 0:
            time.sleep(min(wait, 0.1))  # a signal does not cut a sleep short
        if stopped():
            return
        now = time.monotonic() - start
        if now < (tick + 1) / fps:
            yield now


@contextlib.contextmanager
def stop_request() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM set. Stopping between frames leaves no half of one behind."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one can set handlers
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _save_frame(out: Path, index: int, elapsed: float, pixels: Image.Image, previous: Image.Image) -> dict[str, Any]:
    """Write the image and return its entry for `actions.json`."""
    file = out / f"frame_{index:04d}.png"
    with whole(file) as part:
        pixels.save(part, format="png", compress_level=3)
    box: tuple[int, ...] | None = (0, 0, *pixels.size)
    if pixels.size == previous.size:
        box = ImageChops.difference(pixels, previous).getbbox()
    entry: dict[str, Any] = {
        "index": index,
        "file": file.name,
        "t_s": round(elapsed, 3),
        "action": "start" if index == 0 else "change" if box else "idle",  # who did what is not known
        "detail": "",
        "identical_to_previous": index > 0 and box is None,
    }
    if index > 0 and box is not None:
        entry["changed_box"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]  # x, y, width, height
    return entry


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm record",
        description="Record a screen to PNG files, and to actions.json when each was taken; Ctrl-C ends it and keeps "
        "the frames.",
        epilog="example: fvlm record --seconds 30 --fps 2 --out data/screens/mine",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="new directory, or one without images")
    add("--seconds", type=option(Seconds), default=30.0, help="how long; default %(default)s")
    add("--fps", type=option(FrameRate), default=2.0, help="frames a second; default %(default)s")
    add("--monitor", type=option(CountOrNone), default=1, help="1 is the first, 0 all together; default %(default)s")
    options = parser.parse_args(argv)

    def work() -> None:
        check_output(options.out / ACTIONS_FILE, "--out")
        try:
            recorded = record(options.out, seconds=options.seconds, fps=options.fps, monitor=options.monitor)
        except OSError:
            if options.out.is_dir():  # a disk that has filled; what was recorded before is kept
                say(len(images_in(options.out)))
            raise
        say(len(recorded) if recorded else 0)

    def say(frames: int) -> None:
        print(f"{frames} of {_due(options.seconds, options.fps)} frames recorded to {options.out}")

    return run(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
