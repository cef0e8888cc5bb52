"""Captioned videos on disk, procedural ones, and what does not fit a checkpoint's tokenizer."""

from __future__ import annotations

import functools
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from captioned import VIDEOS, add, encoded, procedural, write_folder, write_tar
from PIL import Image

from corpus import WRONG_JSON, Case
from fvlm_lib.data.files import data_stamp
from fvlm_lib.data.videos import open_videos

TOKENIZER = VIDEOS.tokenizer()
DATA = {"image_size": 32, "max_frames": 8}
FRAME, CAPTION = procedural(1)[0][0][0], procedural(1)[0][1]


def _open(folder: Path, pattern: str = "", **options: Any) -> Any:
    kind = {"kind": "webdataset", "path": f"{folder}/{pattern}"} if pattern else {"kind": "folder", "path": str(folder)}
    positions = options.pop("max_positions", 256)
    return open_videos({**kind, **DATA, **options}, TOKENIZER, positions)


def _all(folder: Path, pattern: str = "", **options: Any) -> Any:
    videos = _open(folder, pattern, **options)
    return list(videos.batches(0, len(videos), 2))


def _right(folder: Path) -> None:
    write_folder(folder, 2)
    write_tar(folder, 2, shards=1)
    assert len(_all(folder)) == len(_all(folder, "*.tar")) == 1


def _captions(folder: Path, content: bytes, read: Callable[..., Any] = _all) -> Any:
    (folder / "0.png").write_bytes(encoded(FRAME))
    (folder / "captions.jsonl").write_bytes(content)
    return read(folder)


def _stamp(folder: Path) -> Any:
    return data_stamp({"kind": "folder", "path": str(folder)}, "mine.yaml")


def _line(folder: Path, **entry: Any) -> Any:
    return _captions(folder, json.dumps({"file": "0.png", "caption": CAPTION, **entry}).encode())


def _file(folder: Path, file: str, content: bytes, skip_bad: bool = False) -> Any:
    (folder / file).write_bytes(content)
    (folder / "captions.jsonl").write_text(json.dumps({"file": file, "caption": CAPTION}))
    return _all(folder, skip_bad=skip_bad)


def _animated(form: str) -> bytes:
    frames = [Image.fromarray(FRAME), Image.new("RGB", FRAME.shape[:2], "red")]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _gif(folder: Path) -> None:
    (batch,) = _file(folder, "0.gif", _animated("gif"))
    assert batch.inputs["pixel_values"].shape[:2] == (1, 2)  # the video that it is


def _shard(folder: Path, change: Callable[[bytes], bytes]) -> Any:
    write_tar(folder, 2, shards=1)
    (folder / "0.tar").write_bytes(change((folder / "0.tar").read_bytes()))
    return _all(folder, "*.tar", skip_bad=True)


def _sample(folder: Path, **files: bytes) -> Any:
    with tarfile.open(folder / "0.tar", "w") as archive:
        add(archive, "x", {name.replace("_", "."): content for name, content in files.items()})
    return _all(folder, "*.tar")


def _options(folder: Path, **options: Any) -> Any:
    write_folder(folder, 2)
    return _all(folder, **options)


def _replaced(folder: Path) -> None:
    write_folder(folder, 2)
    before = _stamp(folder)
    (folder / "1.mkv").replace(folder / "0.mkv")
    assert _stamp(folder) != before


def _videos(folder: Path, **options: Any) -> Any:
    return open_videos({"kind": "procedural", **options})


def _case(name: str, run: Callable[..., Any], says: str, names: str = "", **options: Any) -> Case:
    return Case(name, functools.partial(run, **options), says, names)


_PNG = encoded(FRAME)
CASES = [
    Case("right", _right, None),
    Case("a file replaced under its caption", _replaced, None),
    Case("a gif is a video", _gif, None),
    *(
        _case(f"a line: {name}", _captions, says, "captions.jsonl, line 1", content=content)
        for name, (content, says) in WRONG_JSON.items()
        if name not in ("empty", "not UTF-8")
    ),
    *(
        _case(f"the stamp of a line: {name}", _captions, says, "mine.yaml: data: ", content=content, read=_stamp)
        for name, (content, says) in WRONG_JSON.items()
        if name not in ("empty", "not UTF-8")
    ),
    _case("captions not UTF-8", _captions, "is not UTF-8 text", "captions.jsonl", content=b'{"file": "\xff"}'),
    _case("no captions", _captions, "lists no videos", "captions.jsonl", content=b"\n \n"),
    Case("no captions.jsonl", _all, "has no captions.jsonl; it needs one"),
    _case("a second line", _captions, "is not valid JSON", "line 2", content=b'{"file": "0.png", "caption": "red"}\n{'),
    *(
        _case(f"a line with {name}", _line, says, "captions.jsonl" if "names no file" in says else "sample 0", **entry)
        for name, entry, says in (
            ("a number for file", {"file": 3}, "line 1 names no file"),
            ("null for file", {"file": None}, "line 1 names no file"),
            ("a missing file", {"file": "none.png"}, "no such file"),
            ("another ending", {"file": "captions.jsonl"}, "is neither a folder nor a file with one of the endings"),
            ("a number for caption", {"caption": 3}, "it has no caption"),
            ("null for caption", {"caption": None}, "it has no caption"),
            ("an empty caption", {"caption": "  "}, "its caption is empty"),
            ("a list for prompt", {"prompt": ["a"]}, "its prompt is ['a'], which is no text"),
            ("unknown words", {"caption": "a dog runs"}, "does not know 3 of the 3 words of the caption: a, "),
            (
                "a caption beyond the context",
                {"caption": "red " * 300},
                "more than the language model's 256",
            ),
            ("an empty name", {"file": ""}, "line 1 names no file"),
            ("a name with a null", {"file": "a\0b.png"}, "no such file"),
        )
    ),
    *(
        _case(f"{name} for a video", _file, "is not a readable", file, file=file, content=content)
        for name, file, content in (
            ("an empty file", "0.mp4", b""),
            ("a text", "0.mp4", b"no video at all"),
            ("an image", "0.mkv", _PNG[:100]),
            ("an empty image", "0.png", b""),
            ("half an image", "0.png", _PNG[: len(_PNG) // 2]),
            ("an empty gif", "0.gif", b""),
        )
    ),
    *(
        _case(
            f"an animated {form}",
            _file,
            "holds 2 images, must be one file a frame",
            file=f"0.{form}",
            content=_animated(form),
        )
        for form in ("png", "webp")
    ),
    *(
        _case(name, _shard, says, "0.tar", change=change)
        for name, says, change in (
            ("an empty shard", "(it is empty)", lambda content: b""),
            ("a shard of zeros", "holds no samples", lambda content: b"\0" * 10240),
            ("a shard that is a text", "(it is no archive)", lambda content: b"hello" * 1000),
            ("a shard that is a page", "(it is no archive)", lambda content: b"<!doctype html>" * 100),
            ("a shard cut in a header", "is not a readable tar file", lambda content: content[: 10 * 512 + 100]),
            ("half of a shard", "is not a readable tar file", lambda content: content[: len(content) // 2 + 100]),
            ("half of a gzipped shard", "is not a readable tar file", lambda content: gzip.compress(content)[:500]),
            ("a shard that ends in zeros", "is not a readable tar file", lambda content: content[:5000] + b"\0" * 300),
        )
    ),
    *(
        _case(f"a tar sample {name}", _sample, says, "0.tar:x", **files)
        for name, files, says in (
            ("without caption", {"000_png": _PNG}, "it has no caption, neither .txt nor .json"),
            ("without frames", {"txt": CAPTION.encode()}, "it has no frames"),
            ("with a damaged frame", {"000_png": _PNG[:100], "txt": CAPTION.encode()}, "is not a readable image"),
            ("not UTF-8", {"000_png": _PNG, "txt": b"\xff"}, "its caption cannot be read"),
            ("with an empty caption", {"000_png": _PNG, "txt": b""}, "its caption is empty"),
            (
                "of two videos",
                {"a_mp4": b"", "b_mp4": b"", "txt": CAPTION.encode()},
                "has other videos or images",
            ),
        )
    ),
    *(
        _case(
            f"a tar sample's json: {name}",
            _sample,
            says,
            "its caption cannot be read",
            **{"000_png": _PNG, "json": content},
        )
        for name, (content, says) in WRONG_JSON.items()
    ),
    Case("no such shard", lambda folder: _all(folder, "x-{0..3}.tar"), "no file matches", "x-0.tar"),
    *(
        _case(f"option {options}", _options, says, **options)
        for options, says in (
            ({"max_positions": 9}, "are more than the language model's 9 positions"),
            ({"prompt": "red " * 300}, "the prompt has 300 tokens"),
            ({"prompt": "red red", "max_text_tokens": 2}, "more than max_text_tokens, 2"),
            ({"prompt": "What is it?"}, "does not know 3 of the 3 words of the prompt"),
        )
    ),
]
