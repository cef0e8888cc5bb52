"""Result files of a batch that are not what they should be."""

from __future__ import annotations

from pathlib import Path

from corpus import Case
from fvlm_lib.gap.results import read_gap_result


def _written(folder: Path, content: str) -> Path:
    file = folder / "gap.json"
    file.write_text(content)
    return file


CASES = [
    Case("cut off", lambda folder: read_gap_result(_written(folder, '{"schema": ')), "is not valid JSON", "gap.json"),
    Case("of another version", lambda folder: read_gap_result(_written(folder, '{"schema": 1}')), "has schema 1"),
]
