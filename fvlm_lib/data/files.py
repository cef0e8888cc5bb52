"""Which files a path, a pattern or a config's `data` names, and whether they changed.

Knows names, sizes and times; what is in the files is for others. Imports nothing heavy, since the Snakefile
reads it at every start.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from fvlm_lib.json_files import parse_object

CAPTIONS_FILE = "captions.jsonl"


def unicode_name(name: str) -> str:
    """A file name that tables and terminals take: bytes of it that are not UTF-8 become escapes such as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def matching_files(pattern: str | Sequence[str]) -> list[str]:
    """The files that a pattern with braces and wildcards names, or a list of such; in its order, wildcards sorted.

    Raises ValueError for a name in it, or a wildcard, that matches nothing.
    """
    files: list[str] = []
    for given in [pattern] if isinstance(pattern, str) else pattern:
        for name in braceexpand(given):
            found = sorted(glob(name))
            if not found:
                raise ValueError(f"no file matches {name!r}" + (f" (of {given!r})" if name != given else ""))
            files += found
    return files


def read_captions(folder: str | Path) -> list[dict[str, Any]]:
    """What each line of `captions.jsonl` in a folder says, as `video_files.py` tells; each names a `file`.

    Raises ValueError naming the folder, or the line, that is missing or cannot be read.
    """
    file = Path(folder) / CAPTIONS_FILE
    if not file.is_file():
        raise ValueError(f"{folder} has no {CAPTIONS_FILE}; it needs one, a JSON object with file and caption a line")
    try:
        content = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    entries = []
    for number, line in enumerate(content.split("\n"), start=1):  # splitlines would cut some captions
        if line.strip():
            entry = parse_object(line, f"{file}, line {number}")
            if not isinstance(entry.get("file"), str) or not entry["file"]:
                raise ValueError(
                    f'{file}, line {number} names no file; it must be like {{"file": "0.mp4", "caption": "a dog runs"}}'
                )
            entries.append(entry)
    if not entries:
        raise ValueError(f"{file} lists no videos")
    return entries


def data_stamp(data: Mapping[str, Any], name: str = "the config") -> str:
    """Changes when the evaluation data on disk does: names, sizes and times of tar shards, or of captions.jsonl and
    of every file that it lists, those in a listed folder among them. What is missing counts as that.

    Raises ValueError where there are no shards, or captions.jsonl is not there or cannot be read. Procedural videos
    have no files, and an empty stamp.
    """
    kind, path = data.get("kind"), data.get("path")
    if kind not in ("folder", "webdataset"):
        return ""
    if not path or not isinstance(path, str | list):
        raise ValueError(f"{name}: data of kind {kind} has the path {path!r}; it must say where the videos are")
    try:
        if kind == "webdataset":
            files = matching_files(path)
        elif isinstance(path, str):
            files = _listed_files(path)
        else:
            raise ValueError(f"path is {path!r}; it must be one folder")
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: data: {error}") from error
    content = [[file, *_size_and_time(file)] for file in files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _listed_files(folder: str) -> list[str]:
    """captions.jsonl in a folder, and every file and folder of files that it lists."""
    files = [os.path.join(folder, CAPTIONS_FILE)]
    for listed in dict.fromkeys(os.path.join(folder, entry["file"]) for entry in read_captions(folder)):
        files.append(listed)
        if os.path.isdir(listed):
            files += sorted(entry.path for entry in os.scandir(listed))
    return files


def _size_and_time(file: str) -> tuple[int, int] | tuple[()]:
    """Bytes and time of the last change (ns) of a file, nothing where it is missing."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return ()
    return found.st_size, found.st_mtime_ns
