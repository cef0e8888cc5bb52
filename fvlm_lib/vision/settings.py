"""Settings of the differential encoder, as a file keeps them: read, checked, written.

`config/differential.yaml` holds the setting that the batch and `predict` use; `notebooks/tune_threshold.ipynb`
writes it. Fields and defaults are those of `differential.DifferentialVisionEncoder`, which has them checked here, but
for two that say how a language model behind the encoder takes its tokens (`vlm/stream.py`).
Imports nothing heavy, since the Snakefile reads settings at every start.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from fvlm_lib.outputs import whole
from fvlm_lib.schema import (
    Count,
    CountOrNone,
    Metric,
    Pixels,
    Prefill,
    Propagate,
    Reference,
    Share,
    Tolerance,
    adapter,
    check,
    settings,
)
from fvlm_lib.yaml_files import read_yaml

SCHEMA_FILE = "differential.schema.json"
HEADER = """\
# Settings of the differential encoder, read by the batch (`differential: settings:` in config/demo.yaml) and by
# `fvlm predict`. notebooks/tune_threshold.ipynb shows what they do, and saves such files.
"""


@settings
class DifferentialSettings:
    """How a `DifferentialVisionEncoder` decides what changed and what it does about it; None is its own default.

    Raises ValueError, naming the field, for a value that it cannot have, and for two that contradict each other.
    """

    diff_threshold: Share = 0.05
    """fraction of the full range, black to white; what differs by more changed"""
    metric: Metric = "max"
    """of a patch's pixels: max or mean"""
    max_changed_patches: CountOrNone | None = None
    """more than these are a full encode; null is three quarters of all"""
    patch_size: Pixels | None = None
    """pixels, of the frame as the tower sees it; null is the tower's own"""
    reference: Reference = "encoded"
    """compare with the pixels a token was computed from, or with the previous frame"""
    propagate: Propagate = "gated"
    """gated: recompute what feels the change by more than `tolerance`; budget: `max_rows` of it at most; none"""
    tolerance: Tolerance | None = None
    """relative L2; 0 is exact, null the encoder's default"""
    max_rows: Count | None = None
    """tokens that `propagate: budget` computes at a time; null is its default, 64"""
    prefill: Prefill = "exact"
    """of the language model: full, exact (from the first changed token on), or gated"""
    prefill_tolerance: Tolerance | None = None
    """of a gated prefill, relative L2; 0 is exact, null its default"""

    def __post_init__(self) -> None:
        if self.max_rows is not None and self.propagate != "budget":
            raise ValueError(f"max_rows is {self.max_rows} and propagate '{self.propagate}'; it goes with 'budget'")
        if self.max_changed_patches is not None and self.propagate == "budget":
            raise ValueError(
                f"max_changed_patches is {self.max_changed_patches} and propagate 'budget', which encodes no frame in "
                "full because of its changes; leave one out"
            )


EXACT = DifferentialSettings(diff_threshold=0.0, tolerance=0.0)
"""Everything that feels a change is computed anew, so that nothing is lost by it."""


def encoder_options(settings: DifferentialSettings) -> dict[str, Any]:
    """The settings without those of the language model: arguments of `DifferentialVisionEncoder`."""
    return {name: value for name, value in asdict(settings).items() if not name.startswith("prefill")}


def prefill_options(settings: DifferentialSettings) -> dict[str, Any]:
    """Those of the language model: arguments of `VLMStream`, the tolerance None where nothing is gated."""
    gated = settings.prefill == "gated"
    return {"prefill": settings.prefill, "prefill_tolerance": settings.prefill_tolerance if gated else None}


def read_settings(path: str | Path) -> DifferentialSettings:
    """The settings in a YAML file; keys that it lacks have their defaults.

    Raises ValueError, naming file and key, for a file that is missing or no YAML mapping, an unknown key, and
    a value of the wrong type or range.
    """
    if not Path(path).exists():
        raise ValueError(
            f"there is no settings file {path}; notebooks/tune_threshold.ipynb writes one, or copy "
            "config/differential.yaml"
        )
    return check(DifferentialSettings, read_yaml(path), str(path))


def write_settings(path: str | Path, settings: DifferentialSettings, note: str = "") -> None:
    """Write the settings as YAML that `read_settings` reads; `note`, one line, goes into the comment on top."""
    lines = [HEADER + (f"# {' '.join(note.split())}\n" if note else "")]
    if (Path(path).parent / SCHEMA_FILE).exists():
        lines.insert(0, f"# yaml-language-server: $schema={SCHEMA_FILE}\n")  # editors complete by it
    told = adapter(DifferentialSettings).json_schema()["properties"]
    for name, value in asdict(settings).items():
        lines.append(f"{yaml.safe_dump({name: value}).strip():<26}  # {told[name]['description']}\n")
    with whole(Path(path)) as part:
        part.write_text("".join(lines), encoding="utf-8")
