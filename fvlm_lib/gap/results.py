"""Where a batch keeps the gap of a checkpoint, and that file checked when it is read.

Imports nothing heavy, since the Snakefile reads it at every start; `gap.py` writes the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GAP_SCHEMA = 3  # of results/gap/*.json


def gap_file(checkpoint_id: str, results: str = "results") -> str:
    """Where a batch whose tables are in `results` keeps the gap of a checkpoint."""
    return f"{results}/gap/{checkpoint_id}.json"


def read_gap_result(path: str | Path, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A gap result, checked: of GAP_SCHEMA, and made with exactly these parameters (None: with any).

    Raises ValueError, or FileNotFoundError, naming the file and what makes it anew.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; `bash run.sh` makes it")
    try:
        result = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); remove it and run `bash run.sh`") from error
    if result.get("schema") != GAP_SCHEMA:
        raise ValueError(
            f"{path} has schema {result.get('schema')}, this version reads {GAP_SCHEMA}; remove it and run "
            "`bash run.sh`"
        )
    if parameters is None:
        return result
    for key in sorted(set(parameters) | set(result["parameters"])):
        made, wanted = result["parameters"].get(key), parameters.get(key)
        if made != wanted:
            raise ValueError(
                f"{path} was made with {key} = {made!r}, the config says {wanted!r}; remove it and run `bash run.sh`"
            )
    return result
