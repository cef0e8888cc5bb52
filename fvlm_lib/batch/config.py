"""What a batch's config file says, checked before anything runs: checkpoints, data, parameters, outputs.

Knows the config's keys and where the batch keeps its files; the Snakefile turns this into rules. It imports
nothing heavy, since the Snakefile reads it at every start.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fvlm_lib.batch.folders import folders
from fvlm_lib.vision.settings import DifferentialSettings, read_settings

KEYS = {"checkpoints", "gap", "scaling", "shards", "knowledge", "differential", "paper", "output"}
DIFFERENTIAL_KEYS = {"sequences", "towers", "vlms", "settings"}
GAP_KEYS = {"data", "num_samples", "batch_size", "num_fine", "dtype", "device", "seed", "floor_samples"}
TRAINING_KEYS = {
    "name", "group", "seed", "step", "num_parameters", "num_text_parameters", "training_flops", "multi_fine",
}  # fmt: skip
# The paper's figures and tables, and the list of ids that each is made once for (None: once in all).
PAPER_FIGURES = {
    "gap_training": None, "gap_passes": None, "mode_losses": None, "position_losses": None, "scaling_laws": None,
    "changes": "sequences", "policies": "towers",
}  # fmt: skip
PAPER_TABLES = {"gap_table": None, "scaling_fits": None, "policies": "towers"}
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
PaperNames = dict[str, tuple[str, str | None]]


@dataclass(frozen=True)
class Batch:
    """One batch: `checkpoints` id -> folder; `training` id -> what the config adds to its training.json;
    `gap` and `scaling`: the notebooks' parameters; `shards`: parts an evaluation is scored in;
    `knowledge`: the Markdown file that gets the findings, None for none; `sequences` id -> folder of
    screenshots; `towers` id -> parameters of the differential benchmark on that tower; `vlms` id -> parameters of
    the notebook that asks that model about every frame; `settings`: what the notebooks on changed patches and on
    answers are run with; `paper`: parameters of the notebook of the paper's figures; `output`: the folder that gets
    results, plots and papermill_runs (`folders.folders`), None for the top level."""

    checkpoints: dict[str, str]
    training: dict[str, dict[str, Any]]
    gap: dict[str, Any]
    scaling: dict[str, Any] = field(default_factory=dict)
    shards: int = 1
    knowledge: str | None = None
    sequences: dict[str, str] = field(default_factory=dict)
    towers: dict[str, dict[str, Any]] = field(default_factory=dict)
    vlms: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: DifferentialSettings = field(default_factory=DifferentialSettings)
    paper: dict[str, Any] = field(default_factory=dict)
    output: str | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The settings as parameters of the notebook on changed patches, which knows no tower: a patch size that
        is the tower's own is left to the notebook's default."""
        size = self.settings.patch_size
        return {
            "threshold": self.settings.diff_threshold,
            "metric": self.settings.metric,
            "reference": self.settings.reference,
            "max_changed_patches": self.settings.max_changed_patches,
            **({} if size is None else {"patch_size": size}),
        }

    def gap_parameters(self, checkpoint_id: str) -> dict[str, Any]:
        """What checkpoint `checkpoint_id` is evaluated with; a result must hold exactly these."""
        return {"checkpoint": self.checkpoints[checkpoint_id], **self.gap}

    def gap_arguments(self, checkpoint_id: str) -> list[str]:
        """The same for the command line of `fvlm_lib.gap.gap`."""
        arguments = []
        for key, value in self.gap_parameters(checkpoint_id).items():
            if value is not None:
                values = value if isinstance(value, list) else [value]
                texts = [json.dumps(v) if isinstance(v, dict) else str(v) for v in values]
                arguments += [f"--{key.replace('_', '-')}", *texts]
        return arguments

    def missing_checkpoints(self) -> list[str]:
        """Ids whose folder or file is not there (an id of a model hub looks like a missing folder too)."""
        return [name for name, path in self.checkpoints.items() if not Path(path).exists()]

    def paper_parameters(self) -> dict[str, Any]:
        """What the notebook of the paper's figures is given: by default all figures and tables that this batch has
        results for. Raises ValueError for a sequence or tower that is not in the batch."""
        has = {None: self.checkpoints, "sequences": self.sequences, "towers": self.sequences and self.towers}
        for key, known in (("sequences", self.sequences), ("towers", self.towers), ("recordings", self.sequences)):
            if unknown := [name for name in self.paper.get(key) or [] if name not in known]:
                raise ValueError(
                    f"paper: {key} names {unknown[0]!r}, which is not in this config; "
                    f"it has {', '.join(known) or 'none'}"
                )
        own = folders(self.output)
        return {
            "figures": [name for name, ids in PAPER_FIGURES.items() if has[ids]],
            "tables": [name for name, ids in PAPER_TABLES.items() if has[ids]],
            "sequences": list(self.sequences),
            "towers": list(self.towers),
            "recordings": list(self.sequences),
            "formats": ["pdf", "png"],
            "results": own.results,
            "output": f"{own.plots}/paper",
            "table_output": f"{own.results}/paper",
            **{name: value for name, value in self.paper.items() if value is not None},
        }

    def weights(self, checkpoint_id: str) -> list[str]:
        """The checkpoint's files that exist; a missing one is for its own run to report, not for the batch."""
        path = Path(self.checkpoints[checkpoint_id])
        files = [path] if path.is_file() else path.glob("*")
        return sorted(str(file) for file in files if file.suffix in (".safetensors", ".json", ".pt", ".pth", ".bin"))


def read_batch(config: Mapping[str, Any], name: str = "the config") -> Batch:
    """Check a batch's config. Raises ValueError naming the key or id that is wrong and what would be right."""
    _check_keys(name, config, KEYS)
    differential = dict(config.get("differential") or {})
    _check_keys(f"{name}: differential", differential, DIFFERENTIAL_KEYS)
    entries = config.get("checkpoints") or {}
    if not isinstance(entries, Mapping) or not (entries or differential.get("sequences")):
        raise ValueError(f"{name} lists no checkpoints; it needs `checkpoints:` with `id: folder` lines")
    checkpoints: dict[str, str] = {}
    training: dict[str, dict[str, Any]] = {}
    owners: dict[Path, str] = {}
    for checkpoint_id, entry in entries.items():
        _check_id(name, checkpoint_id)
        values = dict(entry) if isinstance(entry, Mapping) else {"path": entry}
        path = values.pop("path", None)
        if not isinstance(path, str):
            raise ValueError(f"{name}: checkpoint {checkpoint_id} has the path {path!r}; it must be a folder")
        _check_keys(f"{name}: checkpoint {checkpoint_id}", values, TRAINING_KEYS)
        seed, group = values.get("seed", 0), values.get("group", "")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"{name}: checkpoint {checkpoint_id} has the seed {seed!r}; it must be a whole number")
        if not isinstance(group, str):
            raise ValueError(f"{name}: checkpoint {checkpoint_id} has the group {group!r}; it must be a name")
        owner = owners.setdefault(Path(path).resolve(), checkpoint_id)
        if owner != checkpoint_id:
            raise ValueError(f"{name}: {owner} and {checkpoint_id} are the same folder, {path}; keep one of them")
        checkpoints[checkpoint_id], training[checkpoint_id] = path, values
    gap = dict(config.get("gap") or {})
    _check_keys(f"{name}: gap", gap, GAP_KEYS)
    if "data" in gap and not isinstance(gap["data"], Mapping):
        raise ValueError(f"{name}: gap has data {gap['data']!r}; it must be like {{kind: folder, path: data/mine}}")
    if entries and (missing := sorted(GAP_KEYS - set(gap))):
        raise ValueError(f"{name}: gap lacks {', '.join(missing)}")
    shards = config.get("shards", 1)
    if not isinstance(shards, int) or isinstance(shards, bool) or shards < 1:
        raise ValueError(f"{name}: shards is {shards!r}; it must be a whole number from 1")
    sequences, towers = dict(differential.get("sequences") or {}), dict(differential.get("towers") or {})
    vlms = dict(differential.get("vlms") or {})
    for other_id in (*sequences, *towers, *vlms):
        _check_id(name, other_id)
    return Batch(
        checkpoints=checkpoints,
        training=training,
        gap=gap,
        scaling=dict(config.get("scaling") or {}),
        shards=shards,
        knowledge=config.get("knowledge"),
        sequences=sequences,
        towers=towers,
        vlms=vlms,
        settings=_settings(name, differential.get("settings")),
        paper=dict(config.get("paper") or {}),
        output=_output(name, config.get("output")),
    )


def paper_names(known: Mapping[str, str | None], wanted: Iterable[str], ids: Mapping[str, Sequence[str]]) -> PaperNames:
    """The file names (without suffix) of figures or tables: name -> (which of `known`, the id it is of or None).

    known: PAPER_FIGURES or PAPER_TABLES. ids: the lists of `sequences` and `towers`. Raises ValueError for a name
    that is not known.
    """
    names: PaperNames = {}
    for kind in wanted:
        if kind not in known:
            raise ValueError(f"there is no figure or table {kind!r} for the paper; known are {', '.join(known)}")
        which = known[kind]
        names |= {f"{kind}_{id}": (kind, id) for id in ids[which]} if which else {kind: (kind, None)}
    return names


def paper_files(parameters: Mapping[str, Any]) -> list[str]:
    """All files that the notebook of the paper's figures writes, given its parameters."""
    figures = paper_names(PAPER_FIGURES, parameters["figures"], parameters)
    tables = paper_names(PAPER_TABLES, parameters["tables"], parameters)
    return [
        *(f"{parameters['output']}/{name}.{suffix}" for name in figures for suffix in (*parameters["formats"], "json")),
        *(f"{parameters['table_output']}/{name}.{suffix}" for name in tables for suffix in ("csv", "md", "tex")),
    ]


def _output(name: str, given: Any) -> str | None:
    try:
        folders(given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return given


def _settings(name: str, path: Any) -> DifferentialSettings:
    if path is None:
        return DifferentialSettings()
    if not isinstance(path, str):
        raise ValueError(
            f"{name}: differential: settings is {path!r}; it must be a file such as config/differential.yaml"
        )
    return read_settings(path)


def _check_id(name: str, given: Any) -> None:
    if not isinstance(given, str) or not ID.fullmatch(given):
        raise ValueError(f"{name}: {given!r} is no id; letters, digits, '_', '.' and '-' make one")


def _check_keys(where: str, given: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(given) - known, key=str):
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
