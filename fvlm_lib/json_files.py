"""JSON files that hold one object, read so that whatever is wrong with them is said in one sentence that names them.

Which keys an object must have is for those who read it. Imports nothing heavy, since the Snakefile reads results at
every start.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_KINDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}


def kind_of(value: Any) -> str:
    """What JSON calls a value that is no object, for a message: null, a text, a list, ..."""
    return _KINDS.get(type(value), "an object")


def parse_object(content: str | bytes, name: str, error: type[ValueError] = ValueError) -> dict[str, Any]:
    """The JSON object in a text; name: what the text is, for the message. Raises `error` for anything else."""
    try:
        value = json.loads(content if isinstance(content, str) else content.decode("utf-8"))
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
