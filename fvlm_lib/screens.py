"""Sequences of screenshots: reads them from files, records them from a screen.

A sequence is one image, a list of images, or a directory of images in natural order (frame_2 before
frame_10); a directory of such directories is several sequences. What was done at each frame stands in the
directory's `actions.json`, if it has one: `frames[i]` tells what happened between frame i - 1 and frame i.

    python -m fvlm_lib.screens record --seconds 30 --fps 2 --out data/screens/mine
    python -m fvlm_lib.screens info data/screens

Frames are read when they are asked for, as uint8 (H, W, 3) RGB; transparent pixels are shown over white.
The size may change within a sequence. The module does not know about patches or models.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import math
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops
from tqdm import tqdm

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
ACTIONS_FILE = "actions.json"
CONVENTION = "frames[i].action happened between frame i-1 and frame i"


class NoScreenError(RuntimeError):
    """There is no display to record, or it cannot be read."""


@dataclass(frozen=True)
class ScreenSequence:
    """Screenshots in order. Iterating and indexing read the files, one frame at a time.

    `actions` has one entry a frame as `actions.json` has them (keys `action`, `detail`, `t_s` in seconds and
    others), or is None; `about` is that file's description of the whole.
    """

    name: str
    files: tuple[Path, ...]
    actions: tuple[dict[str, Any], ...] | None = None
    about: str = ""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        return read_frame(self.files[index])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (read_frame(file) for file in self.files)

    def head(self, frames: int) -> ScreenSequence:
        """The first frames only; all if there are fewer. ValueError for less than one."""
        if frames < 1:
            raise ValueError(f"frames {frames}: must be at least 1")
        actions = self.actions[:frames] if self.actions is not None else None
        return replace(self, files=self.files[:frames], actions=actions)

    def load(self) -> list[np.ndarray]:
        """All frames at once: H x W x 3 bytes each, 3 MB for 1280 x 800."""
        return list(self)


def read_frame(path: str | Path, content: bytes | None = None) -> np.ndarray:
    """One image as uint8 (H, W, 3) RGB, whatever its mode. Raises ValueError, naming the file.

    content: the file's bytes, where it is not on disk under that name (in an archive, say).
    """
    if content is None and not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            image.load()
    except Exception as error:  # of a dozen types, depending on the format and on where it is broken
        raise ValueError(f"{path}: is not a readable image ({error})") from error
    count = getattr(image, "n_frames", 1)
    if count > 1:
        raise ValueError(f"{path}: holds {count} images, must be one file a frame")
    if image.mode[0] in "IF":  # Pillow would clip them to 255
        raise ValueError(f"{path}: has pixels of mode {image.mode}, must have 8 bits a channel")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return np.array(Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB"))
    return np.array(image.convert("RGB"))


def read_sequence(source: str | Path | Sequence[str | Path], *, name: str | None = None) -> ScreenSequence:
    """The sequence in one image, a list of images in the given order, or a directory in natural order.

    Only names are looked at here; an image is opened when its frame is asked for. The name is the image's
    or the directory's unless given. Raises ValueError for a missing file, no images, or an `actions.json`
    that is not about the images beside it.
    """
    if not isinstance(source, str | Path):
        files = tuple(Path(file) for file in source)
        if not files:
            raise ValueError("list of images is empty: must have at least one")
        for file in files:
            if not file.is_file():
                raise ValueError(f"{file}: no such file")
        return ScreenSequence(name or files[0].resolve().parent.name, files)
    path = Path(source)
    if path.is_file():
        return ScreenSequence(name or path.stem, (path,))
    files = _images_in(path)
    if not files:
        raise ValueError(f"{path}: has no images, must have at least one ({' '.join(sorted(IMAGE_SUFFIXES))})")
    actions, about = _read_actions(path / ACTIONS_FILE, files)
    return ScreenSequence(name or path.resolve().name, files, actions, about)


def read_sequences(source: str | Path) -> list[ScreenSequence]:
    """All sequences of a directory of directories, in natural order; or the one of an image or a directory.

    Hidden directories and those without images are passed over. Raises ValueError if there are no images, or
    images both in the directory and below it.
    """
    path = Path(source)
    if path.is_file():
        return [read_sequence(path)]
    own = _images_in(path)
    directories = sorted((d for d in path.iterdir() if d.is_dir() and d.name[0] != "."), key=natural_order)
    below = [directory for directory in directories if _images_in(directory)]
    if own and below:
        raise ValueError(f"{path}: has images and, in {below[0].name}, more images: must have one or the other")
    if not own and not below:
        raise ValueError(f"{path}: has no images, nor has a directory in it: must have at least one")
    return [read_sequence(directory) for directory in below or [path]]


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
    if out.exists() and (not out.is_dir() or (out / ACTIONS_FILE).exists() or _images_in(out)):
        raise ValueError(f"{out}: exists, must be a new directory or one without images and {ACTIONS_FILE}")
    entries: list[dict[str, Any]] = []
    previous = Image.new("RGB", (0, 0))
    try:
        with _open_screen() as screen, _stop_request() as stop:
            if not 0 <= monitor < len(screen.monitors):
                raise ValueError(f"monitor {monitor}: must be 0 (all) to {len(screen.monitors) - 1}")
            area = screen.monitors[monitor]
            clock = _clock(seconds, fps, stop)
            for elapsed in tqdm(clock, total=_due(seconds, fps), unit="frame", disable=not progress):
                shot = screen.grab(area)
                pixels = Image.frombytes("RGB", shot.size, shot.bgra, "raw", "BGRX")
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
            (out / ACTIONS_FILE).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")
    return read_sequence(out) if entries else None


# --- recording ---


@contextlib.contextmanager
def _open_screen() -> Iterator[Any]:
    try:
        import mss  # not above: reading recordings must not need it
    except ImportError as error:
        raise NoScreenError("recording needs python-mss: pip install mss") from error
    try:
        # Only X11 can be asked for the pointer; elsewhere mss warns about the option.
        with mss.MSS(with_cursor=True) if sys.platform == "linux" else mss.MSS() as screen:
            yield screen
    except mss.ScreenShotError as error:
        raise NoScreenError(f"no screen can be recorded here: {str(error).rstrip('.')}") from error


def _due(seconds: float, fps: float) -> int:
    return max(1, round(seconds * fps))


def _clock(seconds: float, fps: float, stop: list[int]) -> Iterator[float]:
    """The seconds since the start at each frame that is due, waiting for it; passes over those missed."""
    start = time.monotonic()
    for tick in range(_due(seconds, fps)):
        while not stop and (wait := start + tick / fps - time.monotonic()) > 0:
            time.sleep(min(wait, 0.1))  # a signal does not cut a sleep short
        if stop:
            return
        now = time.monotonic() - start
        if now < (tick + 1) / fps:
            yield now


@contextlib.contextmanager
def _stop_request() -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM adds to. Stopping between frames leaves no half of one behind."""
    stop: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only that one can set handlers
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: stop.append(number)) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _save_frame(out: Path, index: int, elapsed: float, pixels: Image.Image, previous: Image.Image) -> dict[str, Any]:
    """Write the image and return its entry for `actions.json`."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"frame_{index:04d}.png"
    pixels.save(file, compress_level=3)
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


# --- reading ---


def _images_in(directory: Path) -> tuple[Path, ...]:
    """The images in a directory, in natural order, without hidden ones."""
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such file or directory")
    shown = (file for file in directory.iterdir() if not file.name.startswith(".") and not file.is_dir())
    return tuple(sorted((file for file in shown if file.suffix.lower() in IMAGE_SUFFIXES), key=natural_order))


def natural_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort key in which numbers count as numbers; the plain name decides between 1 and 01."""
    parts = re.split(r"([0-9]+)", path.name.lower())  # text, number, text, ...
    numbered = [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)]
    return numbered, path.name


def _read_actions(path: Path, files: Sequence[Path]) -> tuple[tuple[dict[str, Any], ...] | None, str]:
    """(one entry a frame, description) of an `actions.json`; (None, "") if there is none."""
    if not path.exists():
        return None, ""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = tuple(content["frames"])
        named = [entry["file"] for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: must be JSON with a list `frames`, each with its `file` ({error!r})") from error
    for i, (name, file) in enumerate(itertools.zip_longest(named, (file.name for file in files))):
        if name != file:
            raise ValueError(f"{path}: frame {i} is {name or 'missing'}, but the directory has {file or 'no more'}")
    return entries, str(content.get("about", ""))


# --- command line ---


def describe(sequence: ScreenSequence) -> str:
    """One line: name, frames, sizes (width x height), frames that differ from the one before. Reads all."""
    sizes: dict[str, None] = {}
    changed, previous = 0, None
    for frame in sequence:
        sizes[f"{frame.shape[1]}x{frame.shape[0]}"] = None
        changed += previous is not None and not np.array_equal(frame, previous)
        previous = frame
    return f"{sequence.name}: {len(sequence)} frames, {' '.join(sizes)}, {changed} changed"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when done, 2 for what the user can put right (said in one sentence on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m fvlm_lib.screens", description="Screenshot sequences.")
    commands = parser.add_subparsers(dest="command", required=True)
    recorder = commands.add_parser("record", help="record the screen; Ctrl-C ends it and keeps the frames")
    recorder.add_argument("--seconds", type=float, default=30.0)
    recorder.add_argument("--fps", type=float, default=2.0, help="frames a second")
    recorder.add_argument("--out", type=Path, required=True, help="new directory")
    recorder.add_argument("--monitor", type=int, default=1, help="1 is the first, 0 all together")
    info = commands.add_parser("info", help="frames, size and changed frames of each sequence")
    info.add_argument("path", type=Path, help="image, directory of images, or directory of such")
    options = parser.parse_args(arguments)
    try:
        if options.command == "info":
            for sequence in read_sequences(options.path):
                print(describe(sequence), flush=True)
        else:
            recorded = record(options.out, seconds=options.seconds, fps=options.fps, monitor=options.monitor)
            frames = len(recorded) if recorded else 0
            print(f"{frames} of {_due(options.seconds, options.fps)} frames recorded to {options.out}")
    except (ValueError, NoScreenError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
