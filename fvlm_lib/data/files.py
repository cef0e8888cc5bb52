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
from typing import Any

from braceexpand import braceexpand


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


def data_stamp(data: Mapping[str, Any], name: str = "the config") -> str:
    """Changes when the evaluation data on disk does: names, sizes and times of tar shards, or of captions.jsonl.

    Raises ValueError where there is no such file. Procedural videos have none, and an empty stamp.
    """
    kind, path = data.get("kind"), data.get("path")
    if kind not in ("folder", "webdataset"):
        return ""
    if not path or not isinstance(path, str | list):
        raise ValueError(f"{name}: data of kind {kind} has the path {path!r}; it must say where the videos are")
    try:
        files = [f"{path}/captions.jsonl"] if kind == "folder" else matching_files(path)
        stats = [os.stat(file) for file in files]
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: data: {error}") from error
    content = [[file, stat.st_size, stat.st_mtime_ns] for file, stat in zip(files, stats, strict=True)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
