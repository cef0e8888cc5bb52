"""Wrong inputs, each with what the library says of it: one module a subject, a table `CASES` in each.

    CASES = [Case("a list for data", lambda folder: open_videos([]), says="must be a mapping", names="data")]

`tests/test_corpus.py` runs them all. A command is run by `command`, whose exit code and stderr are then looked at.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One wrong input and what is said of it.

    name: unique among the module's. run: does the wrong thing in an empty folder; it raises, or returns what a
    command said. says: what the error contains; None where the right outcome is a good result, which `run` asserts
    itself. names: the file, key or option that the error names, where `says` does not.
    """

    name: str
    run: Callable[[Path], Any]
    says: str | None
    names: str = ""


@dataclass(frozen=True)
class Said:
    """What a command left: its exit code, and its stderr."""

    code: int
    stderr: str


def command(main: Callable[[Sequence[str]], int | None], *arguments: object) -> Said:
    """Run a command's `main` in this process."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main([str(argument) for argument in arguments]) or 0
        except SystemExit as end:  # of argparse
            code = end.code if isinstance(end.code, int) else 1
    return Said(code, stderr.getvalue())


# what a JSON file that must hold an object may hold instead, and what is said of it
WRONG_JSON: dict[str, tuple[bytes, str]] = {
    "null": (b"null", "holds null"),
    "a list": (b"[]", "holds a list"),
    "a text": (b'"text"', "holds a text"),
    "a number": (b"3", "holds a number"),
    "cut off": (b'{"a": ', "is not valid JSON"),
    "empty": (b"", "is not valid JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "is not UTF-8 text"),
    "nested deeply": (b'{"a": ' * 50_000, "nested too deeply"),
}


def wrong_json(file: str, prepare: Callable[[Path], Any], read: Callable[[Path], Any]) -> list[Case]:
    """Cases of `file` in a folder holding each of `WRONG_JSON`: `prepare` fills the folder, `read` then reads it."""

    def run(folder: Path, content: bytes) -> Any:
        prepare(folder)
        (folder / file).write_bytes(content)
        return read(folder)

    return [
        Case(f"{file}: {name}", functools.partial(run, content=content), says, Path(file).name)
        for name, (content, says) in WRONG_JSON.items()
    ]


def edited(file: Path, *keys: str | int, value: Any) -> None:
    """Replace the value under `keys` in a JSON file."""
    content = json.loads(file.read_text())
    *path, last = keys
    inner = content
    for key in path:
        inner = inner[key]
    inner[last] = value
    file.write_text(json.dumps(content))


def all_cases() -> list[tuple[str, Case]]:
    """(module, case) of every case there is."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [(module.__name__.rpartition(".")[2], case) for module in modules for case in module.CASES]
