"""Screenshots, recordings and what was done in them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from corpus import Case, wrong_json
from fvlm_lib.data.screens import read_frame, read_sequence, read_sequences

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))
FORMATS = ("png", "jpg", "webp", "bmp", "tif", "gif")


def _two_images(folder: Path) -> None:
    for name in ("0.png", "1.png"):
        PICTURE.save(folder / name)


def _actions(folder: Path, content: Any) -> Any:
    _two_images(folder)
    (folder / "actions.json").write_text(json.dumps(content))
    return read_sequence(folder)


def _frames(*frames: Any) -> dict[str, Any]:
    return {"frames": [*frames]}


def _cut(folder: Path, suffix: str, share: float) -> Any:
    PICTURE.save(folder / f"whole.{suffix}")
    content = (folder / f"whole.{suffix}").read_bytes()
    (folder / f"broken.{suffix}").write_bytes(content[: int(share * len(content))])
    return read_frame(folder / f"broken.{suffix}")


def _animated(folder: Path, suffix: str) -> Any:
    other = Image.new("RGB", PICTURE.size, "red")
    PICTURE.save(folder / f"two.{suffix}", save_all=True, append_images=[other])
    return read_frame(folder / f"two.{suffix}")


def _bytes(folder: Path, content: bytes) -> Any:
    (folder / "broken.png").write_bytes(content)
    return read_frame(folder / "broken.png")


def _mode(folder: Path, mode: str) -> Any:
    Image.new(mode, (8, 8)).save(folder / "deep.tif")
    return read_frame(folder / "deep.tif")


def _turned(folder: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    PICTURE.save(folder / "turned.png", exif=exif)
    height, width = read_frame(folder / "turned.png").shape[:2]
    assert (width, height) == (PICTURE.size if orientation < 5 else PICTURE.size[::-1])


def _still_gif(folder: Path) -> None:
    PICTURE.save(folder / "still.gif")
    assert read_frame(folder / "still.gif").shape == (32, 48, 3)


def _both(folder: Path) -> Any:
    (folder / "old").mkdir()
    _two_images(folder)
    _two_images(folder / "old")
    return read_sequences(folder)


CASES = [
    *wrong_json("actions.json", _two_images, read_sequence),
    *(
        Case(
            f"frames {name}",
            functools.partial(_actions, content={"frames": frames}),
            f"frames is {says}",
            "actions.json",
        )
        for name, frames, says in (("null", None, "null"), ("an object", {}, "an object"), ("a text", "0", "a text"))
    ),
    Case("no frames", functools.partial(_actions, content={}), "its frames is null", "actions.json"),
    *(
        Case(
            f"a frame {name}", functools.partial(_actions, content=_frames({"file": "0.png"}, frame)), "frame 1 must be"
        )
        for name, frame in (
            ("null", None),
            ("a text", "1.png"),
            ("a list", ["1.png"]),
            ("without file", {"action": "click"}),
            ("with a number for a file", {"file": 1}),
            ("with a list for an action", {"file": "1.png", "action": ["click"]}),
            ("with an object for a detail", {"file": "1.png", "detail": {"x": 1}}),
        )
    ),
    Case(
        "fewer frames than images",
        functools.partial(_actions, content=_frames({"file": "0.png"})),
        "frame 1 is missing, but the directory has 1.png",
        "actions.json",
    ),
    *(
        Case(
            f"{suffix} cut at {share}",
            functools.partial(_cut, suffix=suffix, share=share),
            "is not a readable image",
            "broken",
        )
        for suffix in FORMATS
        for share in (0.0, 0.1, 0.5)
    ),
    *(
        Case(
            f"animated {suffix}",
            functools.partial(_animated, suffix=suffix),
            "holds 2 images, must be one file a frame",
            "two",
        )
        for suffix in ("gif", "webp", "png", "tif")
    ),
    *(
        Case(name, functools.partial(_bytes, content=content), "is not a readable image", "broken.png")
        for name, content in (
            ("text in a png", b"hello"),
            ("html in a png", b"<!doctype html><html></html>"),
            ("a png of no pixels", b"\x89PNG\r\n\x1a\n" + b"\0" * 100),
        )
    ),
    *(
        Case(f"pixels of mode {mode}", functools.partial(_mode, mode=mode), f"has pixels of mode {mode}", "deep.tif")
        for mode in ("I", "F", "I;16")
    ),
    *(Case(f"orientation {number}", functools.partial(_turned, orientation=number), None) for number in (1, 3, 6, 8)),
    Case("a gif of one image", _still_gif, None),
    Case("no such image", lambda folder: read_frame(folder / "0.png"), "no such file", "0.png"),
    Case("a folder without images", read_sequence, "has no images"),
    Case("no such folder", lambda folder: read_sequence(folder / "none"), "no such file or directory", "none"),
    Case("an empty list", lambda folder: read_sequence([]), "list of images is empty"),
    Case("images in and below", _both, "has images and, in old, more images"),
]
