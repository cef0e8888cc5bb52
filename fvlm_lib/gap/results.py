"""Where a batch keeps the gap of a checkpoint, and that file checked when it is read.

Imports nothing heavy, since the Snakefile reads it at every start; `gap.py` writes the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvlm_lib.json_files import kind_of, parse_object

GAP_SCHEMA = 3  # of results/gap/*.json
_ESTIMATES = ("loss_training_fine", "loss_inference_fine", "loss_coarse", "gap_nats", "gap_percent")
# what a result must have, by the kind of value; `numerical_floor` may be null
_KINDS: dict[type, tuple[str, ...]] = {
    dict: (*_ESTIMATES, "parameters", "training", "losses", "gap_to_passes", "warnings"),
    list: ("skipped", "by_position", "query_distance_by_frame"),
    str: ("verdict", "verdict_unit", "verdict_reason"),
    int: ("num_samples", "num_tokens"),
}
_NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


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
    advice = "remove it and run `bash run.sh`"
    try:
        result = parse_object(path.read_bytes(), str(path))
        _check(path, result)
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from error
    if parameters is None:
        return result
    for key in sorted(set(parameters) | set(result["parameters"])):
        made, wanted = result["parameters"].get(key), parameters.get(key)
        if made != wanted:
            raise ValueError(f"{path} was made with {key} = {made!r}, the config says {wanted!r}; {advice}")
    return result


def _check(path: Path, result: Mapping[str, Any]) -> None:
    """Raise ValueError where a result lacks what readers take for granted."""
    if result.get("schema") != GAP_SCHEMA:
        raise ValueError(f"{path} has schema {result.get('schema')}, this version reads {GAP_SCHEMA}")
    for kind, keys in _KINDS.items():
        for key in keys:
            if type(found := result.get(key)) is not kind:
                raise ValueError(f"{path}: its {key} is {kind_of(found)}, it must be {_NAMES[kind]}")
    for key in _ESTIMATES:
        if not all(isinstance(result[key].get(end), int | float) for end in ("value", "low", "high")):
            raise ValueError(f"{path}: its {key} must have the numbers value, low and high")
