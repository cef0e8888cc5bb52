"""Sequences of screenshots, read from files and written; `record.py` records them.

A sequence is one image, a list of images, or a directory of images in natural order (frame_2 before
frame_10); a directory of such directories is several sequences. What was done at each frame stands in the
directory's `actions.json`, if it has one: `frames[i]` tells what happened between frame i - 1 and frame i.

    fvlm changes data/screens

Frames are read when they are asked for, as uint8 (H, W, 3) RGB, upright (as EXIF says); transparent pixels are
shown over white. A file with several images, such as an animated GIF, is no frame.
The size may change within a sequence. The module does not know about patches or models.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fvlm_lib.data.files import unicode_name
from fvlm_lib.errors import first_line
from fvlm_lib.json_files import kind_of, read_object
from fvlm_lib.options import Parser, run
from fvlm_lib.outputs import whole

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
ACTIONS_FILE = "actions.json"


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
            count = getattr(image, "n_frames", 1)  # a GIF is read through to count them
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
    except Exception as error:  # of a dozen types, depending on the format and on where it is broken
        raise ValueError(f"{path}: is not a readable image ({first_line(error)})") from error
    if count > 1:
        raise ValueError(f"{path}: holds {count} images, must be one file a frame; save each as a file of its own")
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
        return ScreenSequence(name or unicode_name(files[0].resolve().parent.name), files)
    path = Path(source)
    if path.is_file():
        return ScreenSequence(name or unicode_name(path.stem), (path,))
    files = images_in(path)
    if not files:
        raise ValueError(f"{path}: has no images, must have at least one ({' '.join(sorted(IMAGE_SUFFIXES))})")
    actions, about = _read_actions(path / ACTIONS_FILE, files)
    return ScreenSequence(name or unicode_name(path.resolve().name), files, actions, about)


def read_sequences(source: str | Path) -> list[ScreenSequence]:
    """All sequences of a directory of directories, in natural order; or the one of an image or a directory.

    Hidden directories and those without images are passed over. Raises ValueError if there are no images, or
    images both in the directory and below it.
    """
    path = Path(source)
    if path.is_file():
        return [read_sequence(path)]
    own = images_in(path)
    directories = sorted((d for d in path.iterdir() if d.is_dir() and d.name[0] != "."), key=natural_order)
    below = [directory for directory in directories if images_in(directory)]
    if own and below:
        raise ValueError(f"{path}: has images and, in {below[0].name}, more images: must have one or the other")
    if not own and not below:
        raise ValueError(f"{path}: has no images, nor has a directory in it: must have at least one")
    return [read_sequence(directory) for directory in below or [path]]


def write_sequence(
    folder: Path, frames: Iterable[np.ndarray], actions: Iterable[Mapping[str, Any]], about: str = ""
) -> Path:
    """Write frames uint8 (H, W, 3) as a folder of PNG files with an `actions.json`, whole or not at all; returns it.

    actions: of each frame its `action`, `detail` and what else there is to say, but for its file.
    """
    with whole(folder) as part:
        part.mkdir(parents=True)
        entries = []
        for number, (frame, action) in enumerate(zip(frames, actions, strict=True)):
            file = f"frame_{number:03d}.png"
            Image.fromarray(frame).save(part / file, optimize=True)
            entries.append({"file": file, **action})
        text = json.dumps({"about": about, "frames": entries}, indent=1)
        (part / ACTIONS_FILE).write_text(text + "\n", encoding="utf-8")
    return folder


def images_in(directory: Path) -> tuple[Path, ...]:
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
    content = read_object(path)
    entries = content.get("frames")
    if not isinstance(entries, list):
        raise ValueError(f"{path}: its frames is {kind_of(entries)}, must be a list of objects, each with its file")
    for i, entry in enumerate(entries):
        texts = [entry.get(key) for key in ("file", "action", "detail")] if isinstance(entry, dict) else [None]
        if not isinstance(texts[0], str) or not all(isinstance(text, str | None) for text in texts):
            raise ValueError(f"{path}: frame {i} must be an object with a text file, and texts action and detail")
    named = [entry["file"] for entry in entries]
    for i, (name, file) in enumerate(itertools.zip_longest(named, (file.name for file in files))):
        if name != file:
            raise ValueError(f"{path}: frame {i} is {name or 'missing'}, but the directory has {file or 'no more'}")
    return tuple(entries), str(content.get("about", ""))


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm changes",
        description="Look through recordings, a line each: frames, their sizes (width x height, pixels), and how many "
        "frames differ from the one before.",
        epilog="example: fvlm changes data/screens",
    )
    parser.add_argument("path", type=Path, help="image, directory of images, or directory of such")
    options = parser.parse_args(argv)

    def work() -> None:
        for sequence in read_sequences(options.path):
            print(describe(sequence), flush=True)

    return run(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
