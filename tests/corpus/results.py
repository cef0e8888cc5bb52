"""Result files of a batch that are not what they should be."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from corpus import Case, wrong_json
from fvlm_lib.gap.fits import read_fits
from fvlm_lib.gap.results import GAP_SCHEMA, read_gap_result

_ESTIMATE = {"value": 0.0, "low": 0.0, "high": 0.0}
_ESTIMATES = ("loss_training_fine", "loss_inference_fine", "loss_coarse", "gap_nats", "gap_percent")
RIGHT: dict[str, Any] = {
    "schema": GAP_SCHEMA,
    **dict.fromkeys(_ESTIMATES, _ESTIMATE),
    **{key: {} for key in ("losses", "gap_to_passes", "warnings", "training")},
    **{key: [] for key in ("skipped", "by_position", "query_distance_by_frame")},
    **dict.fromkeys(("verdict", "verdict_unit", "verdict_reason"), "small"),
    "parameters": {"num_samples": 8},
    "num_samples": 8,
    "num_tokens": 80,
    "numerical_floor": None,
}


def _read(folder: Path, content: dict[str, Any], parameters: dict[str, Any] | None = None) -> Any:
    (folder / "gap.json").write_text(json.dumps(content))
    return read_gap_result(folder / "gap.json", parameters)


def _right(folder: Path) -> None:
    assert _read(folder, RIGHT, {"num_samples": 8}) == RIGHT


def _case(name: str, change: dict[str, Any], says: str) -> Case:
    return Case(name, functools.partial(_read, content={**RIGHT, **change}), says, "gap.json")


CASES = [
    Case("right", _right, None),
    *wrong_json("gap.json", lambda _: None, lambda folder: read_gap_result(folder / "gap.json")),
    *wrong_json("scaling_fits.json", lambda _: None, lambda folder: read_fits(folder / "scaling_fits.json")),
    *(_case(f"its {key} is null", {key: None}, f"its {key} is null") for key in RIGHT if key[:3] not in ("sch", "num")),
    *(
        _case(f"its {key} is a text", {key: "5"}, f"its {key} is a text")
        for key in ("num_samples", "training", *_ESTIMATES)
    ),
    *(_case(f"its {key} is a list", {key: []}, f"its {key} is a list") for key in ("parameters", "losses", "verdict")),
    *(
        _case(
            f"an estimate without {end}", {"gap_nats": {**_ESTIMATE, end: None}}, "its gap_nats must have the numbers"
        )
        for end in _ESTIMATE
    ),
    *(_case(f"schema {value!r}", {"schema": value}, f"has schema {value}") for value in (None, 0, "3", [3], 99)),
    Case(
        "missing", lambda folder: read_gap_result(folder / "gap.json"), "is missing; `bash run.sh` makes it", "gap.json"
    ),
    Case(
        "of other parameters",
        lambda folder: _read(folder, RIGHT, {"num_samples": 9}),
        "was made with num_samples = 8, the config says 9",
        "gap.json",
    ),
]
