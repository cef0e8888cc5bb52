"""JSON files that hold one object, read so that whatever is wrong with them is said in one sentence that names them.

Which keys an object must have is for those who read it. Imports nothing heavy, since the Snakefile reads results at
every start.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_KINDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}


class _KeyTwiceError(Exception):
    """A key that a JSON object has twice."""


def kind_of(value: Any) -> str:
    """What JSON calls a value that is no object, for a message: null, a text, a list, ..."""
    return _KINDS.get(type(value), "an object")


def parse_object(
    content: str | bytes, name: str, error: type[ValueError] = ValueError, unique_keys: bool = False
) -> dict[str, Any]:
    """The JSON object in a text; name: what the text is, for the message. Raises `error` for anything else, and for a
    key that an object has twice if `unique_keys` (JSON keeps the last)."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise _KeyTwiceError(next(key for i, key in enumerate(keys) if key in keys[:i]))
        return found

    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value = json.loads(text, object_pairs_hook=once if unique_keys else None)
    except _KeyTwiceError as twice:
        raise error(f"{name} has the key {twice.args[0]!r} twice; an object must have each key once") from None
    except UnicodeDecodeError as problem:
        raise error(f"{name} is not UTF-8 text ({problem.reason} at byte {problem.start}); it must be JSON") from None
    except RecursionError:
        raise error(f"{name} is not valid JSON (it is nested too deeply)") from None
    except ValueError as problem:
        raise error(f"{name} is not valid JSON ({problem})") from None
    if not isinstance(value, dict):
        raise error(f'{name} holds {kind_of(value)}; it must hold a JSON object, {{"key": value, ...}}')
    return value


def read_object(path: str | Path, error: type[ValueError] = ValueError) -> dict[str, Any]:
    """The JSON object in a file. Raises `error` naming the file for anything else, OSError where it cannot be read."""
    return parse_object(Path(path).read_bytes(), str(path), error)
