"""Settings of the differential encoder, as a file keeps them: read, checked, written.

`config/differential.yaml` holds the setting that the batch and `predict` use; `notebooks/tune_threshold.ipynb`
writes it. Fields and defaults are those of `differential.DifferentialVisionEncoder`, which has them checked here.
Imports nothing heavy, since the Snakefile reads settings at every start.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields
from numbers import Number
from pathlib import Path
from typing import Any, Literal

import yaml

HEADER = """\
# Settings of the differential encoder, read by the batch (`differential: settings:` in config/demo.yaml) and by
# `fvlm predict`. notebooks/tune_threshold.ipynb shows what they do, and writes this file.
"""


def _setting(default: Any, comment: str) -> Any:
    return field(default=default, metadata={"comment": comment})


@dataclass(frozen=True)
class DifferentialSettings:
    """How a `DifferentialVisionEncoder` decides what changed and what it does about it; None is its own default.

    Raises ValueError, naming the field, for a value that it cannot have.
    """

    diff_threshold: float = _setting(0.05, "fraction of the full range, black to white; what differs by more changed")
    metric: Literal["max", "mean"] = _setting("max", "of a patch's pixels: max or mean")
    max_changed_patches: int | None = _setting(None, "more than these are a full encode; null is a quarter of all")
    patch_size: int | None = _setting(None, "pixels, of the frame as the tower sees it; null is the tower's own")
    reference: Literal["encoded", "previous"] = _setting(
        "encoded", "compare with the pixels a token was computed from, or with the previous frame"
    )
    propagate: Literal["gated", "none"] = _setting(
        "gated", "recompute what feels the change by more than `tolerance`, or none of it"
    )
    tolerance: float | None = _setting(None, "relative L2; 0 is exact, null the encoder's default")

    def __post_init__(self) -> None:
        for item in fields(self):
            value: Any = getattr(self, item.name)
            if isinstance(value, Number) and hasattr(value, "item"):  # numpy's, which YAML cannot write
                object.__setattr__(self, item.name, value.item())
        _check_number("diff_threshold", self.diff_threshold, 0, 1)
        for name in ("max_changed_patches", "patch_size"):
            value, lowest = getattr(self, name), 1 if name == "patch_size" else 0
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < lowest):
                raise ValueError(f"{name} is {value!r}; it must be a whole number from {lowest}, or null")
        if self.tolerance is not None:
            _check_number("tolerance", self.tolerance, 0, None)
        choices = {"metric": ("max", "mean"), "reference": ("encoded", "previous"), "propagate": ("gated", "none")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {' or '.join(known)}")


def _check_number(name: str, value: Any, low: float, high: float | None) -> None:
    wanted = f"a number from {low}" + ("" if high is None else f" to {high}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = "; YAML reads 1e-5 as text, write 1.0e-5" if isinstance(value, str) and "e" in value else ""
        raise ValueError(f"{name} is {value!r}; it must be {wanted}{hint}")
    if not (value >= low and (high is None or value <= high)):  # NaN too
        raise ValueError(f"{name} is {value}; it must be {wanted}")


def read_settings(path: str | Path) -> DifferentialSettings:
    """The settings in a YAML file; keys that it lacks have their defaults.

    Raises ValueError, naming file and key, for a file that is missing or no YAML mapping, an unknown key, and
    a value of the wrong type or range.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"there is no settings file {path}; notebooks/tune_threshold.ipynb writes one, or copy "
            "config/differential.yaml"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}; it must hold `key: value` lines")
    known = [item.name for item in fields(DifferentialSettings)]
    if unknown := [key for key in content if key not in known]:
        raise ValueError(f"{path} has the unknown key {unknown[0]!r}; known are {', '.join(known)}")
    try:
        return DifferentialSettings(**content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_settings(path: str | Path, settings: DifferentialSettings, note: str = "") -> None:
    """Write the settings as YAML that `read_settings` reads; `note`, one line, goes into the comment on top."""
    lines = [HEADER + (f"# {' '.join(note.split())}\n" if note else "")]
    for item in fields(DifferentialSettings):
        line = yaml.safe_dump({item.name: asdict(settings)[item.name]}).strip()
        lines.append(f"{line:<26}  # {item.metadata['comment']}\n")
    part = Path(f"{path}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text("".join(lines), encoding="utf-8")
    os.replace(part, path)
