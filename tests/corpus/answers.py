"""Files of answers that are given to --resume."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from corpus import WRONG_JSON, Case
from fvlm_lib.data.screens import ScreenSequence
from fvlm_lib.vlm.answers import open_output

RUN = {"model": "m", "decoding": {"seed": 0}}
ROWS = [{"sequence": "s", "frame": i, "file": f"{i}.png", "text": "two\u2028lines"} for i in range(2)]
LINES = [json.dumps(value, ensure_ascii=False).encode() for value in ({"run": RUN}, *ROWS)]


def _resume(folder: Path, content: bytes, run: dict[str, Any] = RUN) -> tuple[bytes, int]:
    """What an output that held this is after resuming, and how many frames it had."""
    (folder / "a.jsonl").write_bytes(content)
    files = tuple(folder / row["file"] for row in ROWS)
    with open_output(folder / "a.jsonl", run, [ScreenSequence("s", files)], resume=True) as (_, done):
        pass
    return (folder / "a.jsonl").read_bytes(), done


def _cut(folder: Path, length: int) -> None:
    whole = b"\n".join([*LINES, b""])
    content, done = _resume(folder, whole[:length])
    assert whole.startswith(content) and content.count(b"\n") == done + 1


def _line(folder: Path, number: int, content: bytes) -> Any:
    return _resume(folder, b"\n".join([*LINES[:number], content, *LINES[number + 1 :], b""]))


_CANNOT = "so it cannot be resumed"
CASES = [
    *(Case(f"cut after {n} bytes", functools.partial(_cut, length=n), None) for n in (0, 1, 20, 47, 48, 60, 130, 999)),
    *(
        Case(f"line {number + 1} {name}", functools.partial(_line, number=number, content=content), says, "a.jsonl")
        for number in (0, 1)
        for name, (content, says) in WRONG_JSON.items()
    ),
    *(
        Case(f"line {number + 1}: {content!r}", functools.partial(_line, number=number, content=content), says, _CANNOT)
        for number, content, says in (
            (0, b"{}", "the run in its line 1 is null"),
            (0, b'{"run": null}', "the run in its line 1 is null"),
            (0, b'{"run": []}', "the run in its line 1 is a list"),
            (0, b'{"run": "m"}', "the run in its line 1 is a text"),
            (0, b'{"run": {"model": "n"}}', 'its model is "n", now it is "m"'),
            (0, b'{"run": {"model": "m", "decoding": {"seed": 1}}}', "its decoding.seed is 1, now it is 0"),
            (0, b'{"run": {"model": "m"}}', "its decoding is null"),
            (1, b"{}", "its line 2 is about None/None"),
            (1, LINES[2], "its line 2 is about s/1.png"),
            (2, LINES[1], "its line 3 is about s/0.png"),
        )
    ),
    Case("too many frames", lambda folder: _line(folder, 2, LINES[2] + b"\n" + LINES[2]), "its line 4 is", _CANNOT),
    Case("another file", lambda folder: _resume(folder, b"hello"), "is no output of fvlm-predict", "a.jsonl"),
    Case("an image", lambda folder: _resume(folder, b"\x89PNG\r\n\0"), "is no output of fvlm-predict", "a.jsonl"),
    Case("a folder", lambda folder: open_output(folder, RUN, [], resume=True).__enter__(), "Is a directory"),
]  # fmt: skip
