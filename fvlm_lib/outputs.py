"""Files that a command leaves: known to be writable before work begins, whole or not at all, or a line at a time.

Knows nothing of what is written. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_PROBE = 1 << 16  # bytes; less than any result, more than what a full disk still takes


def check_output(path: Path, option: str = "--output") -> None:
    """See that a file can be written at `path`, or replaced there; its folder may be missing. Nothing is left behind.

    option: what it was given by, for the error. Raises ValueError for a folder or a device, and where the disk is full
    or takes no files.
    """
    with _naming(path, option):
        if path.is_dir():
            raise ValueError(f"{option} {path} is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise ValueError(f"{option} {path} is no regular file; name one, or a new one")
        if path.exists() and not os.access(path, os.W_OK):
            raise ValueError(f"{option} {path} cannot be written: it is read-only")
        _try(path.parent)


def check_table(path: Path, option: str = "--output") -> None:
    """As `check_output`, of a table. Raises ValueError for a name that does not end in .parquet, too."""
    if path.suffix != ".parquet":
        raise ValueError(f"{option} is {path}; it is a table, so its name must end in .parquet")
    check_output(path, option)


def check_new_folder(path: Path, option: str = "--out") -> None:
    """See that a new folder can be made at `path` and filled. Nothing is left behind; raises ValueError."""
    with _naming(path, option):
        if path.exists() or path.is_symlink():
            raise ValueError(f"{option} {path} exists; name a folder that does not, or remove it")
        _try(path.parent)


def _try(folder: Path) -> None:
    """Write and remove a nameless file in the folder, or in the one that it would be made in."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(0, f"{folder} is a file, not a folder")
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        left = _PROBE
        while left:
            left -= file.write(bytes(left))  # a full disk may take a part


@contextlib.contextmanager
def _naming(path: Path, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be written: {error.strerror or error}") from error


def note_replaced(*files: Path) -> None:
    """Say on stderr which of the files exist, before they are replaced."""
    for file in files:
        if file.exists():
            print(f"note: {file} exists and will be replaced", file=sys.stderr)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The name, PATH.part, to write a file or folder to that takes the place of `path` where the block ends well.

    Otherwise what is half written is removed, and what `path` held stays. An OSError that does not say of which file it
    is says `path`. Makes the folder of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    _remove(part)
    try:
        with _of(path):
            yield part
            if part.is_dir():  # which replaces no folder that holds something
                _remove(path)
            os.replace(part, path)
    finally:
        _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def json_line(row: Mapping[str, Any]) -> bytes:
    """An object as its line of a file of JSON lines.

    A file name that is not Unicode, which Python reads as lone surrogates, is written as their escapes, so that
    `os.fsencode` of what `json.loads` gives is the name again.
    """
    line = json.dumps(row, ensure_ascii=False) + "\n"
    return line.encode("utf-8", "backslashreplace")  # of a surrogate, JSON's own escape


@contextlib.contextmanager
def json_lines(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that appends an object to a file of JSON lines (`json_line`), and has it on disk when it returns.

    Makes the folder; an OSError names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")

    def write(row: Mapping[str, Any]) -> None:
        with _of(path):
            file.write(json_line(row))
            file.flush()

    try:
        yield write
    finally:
        with contextlib.suppress(OSError):  # of a write that failed, and was said
            file.close()
