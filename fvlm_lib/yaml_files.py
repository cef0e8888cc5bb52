"""YAML files read as they are meant: a key that is given twice is refused. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

LARGEST = 10_000_000  # bytes


class _Loader(yaml.SafeLoader):
    """PyYAML's own takes the last of equal keys, silently."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                raise ComposerError(
                    problem=f"line {line} gives the key {key.value!r} again, after line {lines[name]}; keep one of them"
                )
            lines[name] = line
        return node


def parse_yaml(text: str, name: str) -> Any:
    """What a YAML text says; None for an empty one. name: what the text is, the beginning of an error.

    Raises ValueError in one sentence for what is no YAML, or a key that a mapping has twice, with its lines.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}" if mark else ""
        told = " ".join(filter(None, [error.context, error.problem]))
        raise ValueError(f"{name} cannot be read as YAML{where} ({told})" if where else f"{name}: {told}") from None
    except RecursionError:
        raise ValueError(f"{name} cannot be read as YAML (it is nested too deeply)") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number or a date that is none
        raise ValueError(f"{name} cannot be read as YAML ({' '.join(str(error).split())})") from None


def read_yaml(path: str | Path) -> Any:
    """What a YAML file says; None for an empty one. Raises ValueError, naming the file, as `parse_yaml` does and for
    a file that is missing, too large or not UTF-8."""
    try:
        content = Path(path).read_bytes()
        if len(content) > LARGEST:
            raise ValueError(f"{path} has {len(content)} bytes; settings have at most {LARGEST}")
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    return parse_yaml(text, str(path))
