"""What a batch's config file says, checked before anything runs: checkpoints, data, parameters, outputs.

Knows the config's keys and where the batch keeps its files; the Snakefile turns this into rules. It imports
nothing heavy, since the Snakefile reads it at every start.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fvlm_lib.batch.folders import STUDY, folders
from fvlm_lib.batch.parameters import Config, Gap
from fvlm_lib.data.files import data_stamp, read_captions
from fvlm_lib.data.options import PROCEDURAL_SAMPLES, Data, DrawnData, FolderData
from fvlm_lib.json_files import read_object
from fvlm_lib.schema import RANDOM_TOWERS, check
from fvlm_lib.vision.settings import DifferentialSettings, read_settings
from fvlm_lib.yaml_files import read_yaml

T = TypeVar("T")

# The paper's figures and tables, and the list of ids that each is made once for (None: once in all).
PAPER_FIGURES = {
    "gap_training": None, "gap_passes": None, "mode_losses": None, "position_losses": None, "scaling_laws": None,
    "changes": "sequences", "policies": "towers", "study_compute": None, "study_passes": None,
}  # fmt: skip
PAPER_TABLES = {"gap_table": None, "scaling_fits": None, "policies": "towers"}
OF_STUDY = ("study_compute", "study_passes")  # figures of the paper that need a study, others of one in all checkpoints
# What the notebook on a study writes: tables, and figures of those.
STUDY_TABLES = (
    "means", "contrasts", "equal_compute", "effects", "passes", "lengths", "laws", "norms", "checkpoints"
)  # fmt: skip
STUDY_FIGURES = (
    "compute", "gap_by_step", "passes", "passes_by_step", "contrasts", "equal_compute", "lengths", "norms"
)  # fmt: skip
MOST_SHARDS = 20_000  # of all checkpoints; Snakemake plans some 300 jobs a second
PaperNames = dict[str, tuple[str, str | None]]


@dataclass(frozen=True)
class Batch:
    """One batch: `checkpoints` id -> folder; `training` id -> what the config adds to its training.json;
    `gap` and `scaling`: the notebooks' parameters; `shards`: parts an evaluation is scored in;
    `knowledge`: the Markdown file that gets the findings, None for none; `sequences` id -> folder of screenshots;
    `towers` id -> parameters of the differential benchmark on that tower; `vlms` id -> parameters of the notebook that
    asks that model about every frame, `asked` the pairs of a recording's and a model's id; `settings`: what the
    notebooks on changed patches and on answers are run with;
    `prefill` id -> parameters of the notebook on a language model's prefill; `answers` id -> parameters of the notebook
    on right and stale answers; `study`: the folder with the tables of a study, None for none; `paper`: parameters of
    the notebook of the paper's figures; `output`: the folder that gets results, plots and papermill_runs
    (`folders.folders`), None for the top level."""

    checkpoints: dict[str, str]
    training: dict[str, dict[str, Any]]
    gap: dict[str, Any]
    scaling: dict[str, Any] = field(default_factory=dict)
    shards: int = 1
    knowledge: str | None = None
    sequences: dict[str, str] = field(default_factory=dict)
    towers: dict[str, dict[str, Any]] = field(default_factory=dict)
    vlms: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    prefill: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    study: str | None = None
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
        """The same for the command line of `fvlm gap --shard`, which scores no more fine passes than `num_fine`."""
        parameters = self.gap_parameters(checkpoint_id)
        return gap_arguments({key: value for key, value in parameters.items() if key != "jacobi"})

    def missing_checkpoints(self) -> list[str]:
        """Ids whose folder or file is not there (an id of a model hub looks like a missing folder too)."""
        return [name for name, path in self.checkpoints.items() if not Path(path).exists()]

    def paper_parameters(self) -> dict[str, Any]:
        """What the notebook of the paper's figures is given: by default all figures and tables that this batch has
        results for."""
        has = {None: self.checkpoints, "sequences": self.sequences, "towers": self.sequences and self.towers}
        own = folders(self.output)
        return {
            "figures": [name for name, ids in PAPER_FIGURES.items() if (self.study if name in OF_STUDY else has[ids])],
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

    def study_parameters(self) -> dict[str, Any]:
        """What the notebook on a study is given."""
        own = folders(self.output)
        style = {"style": self.paper["style"]} if self.paper.get("style") else {}
        outputs = {"results": f"{own.results}/{STUDY}", "figures": f"{own.plots}/{STUDY}"}
        return {"study": self.study, **style, **outputs}

    def weights(self, checkpoint_id: str) -> list[str]:
        """The checkpoint's files that exist; a missing one is for its own run to report, not for the batch."""
        path = Path(self.checkpoints[checkpoint_id])
        files = [path] if path.is_file() else path.glob("*")
        return sorted(str(file) for file in files if file.suffix in (".safetensors", ".json", ".pt", ".pth", ".bin"))


def gap_arguments(parameters: Mapping[str, Any]) -> list[str]:
    """Parameters of an evaluation as options of `fvlm gap`."""
    options = dict(parameters)
    jacobi = options.pop("jacobi", None)
    arguments = [] if jacobi is None else ["--jacobi"]
    for key, value in {**options, **(jacobi or {})}.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            texts = [json.dumps(v) if isinstance(v, dict) else str(v) for v in values]
            arguments += [f"--{key.replace('_', '-')}", *texts]
    return arguments


def read_batch_file(path: str | Path, files: bool = True) -> Batch:
    """The batch of a config file. files: that what it names must be there, too (`check_files`).

    Raises ValueError in one sentence that names file, key, value and what would be right.
    """
    content = read_yaml(path)
    batch = read_batch({} if content is None else content, str(path))
    if files:
        check_files(batch, str(path))
    return batch


def read_batch(config: Mapping[str, Any], name: str = "the config") -> Batch:
    """Check a batch's config. Raises ValueError naming the key or id that is wrong and what would be right."""
    found = check(Config, config, name)
    if not (found.checkpoints or found.differential.sequences or found.prefill or found.answers or found.study):
        raise ValueError(f"{name} lists no checkpoints; it needs `checkpoints:` with `id: folder` lines")
    if found.checkpoints and found.gap is None:
        raise ValueError(
            f"{name} lacks gap, which says what the checkpoints are evaluated on; it must be like "
            "`gap: {data: {kind: folder, path: data/mine}}`"
        )
    owners: dict[Path, str] = {}
    for checkpoint_id, entry in found.checkpoints.items():
        owner = owners.setdefault(Path(entry.path).resolve(), checkpoint_id)
        if owner != checkpoint_id:
            raise ValueError(f"{name}: {owner} and {checkpoint_id} are the same folder, {entry.path}; keep one of them")
    _in(name, lambda: folders(found.output))
    _check_shards(found, name)
    _check_paper(found, name)
    for id, vlm in found.differential.vlms.items():
        _check_named(f"{name}: differential.vlms.{id}.sequences", vlm.sequences, found.differential.sequences)
    # of what is handed on as it was given, lest a new default makes results out of date
    given, differential = config.get("gap") or {}, config.get("differential") or {}
    said = {id: entry for id, entry in (config.get("checkpoints") or {}).items() if isinstance(entry, Mapping)}
    settings = found.differential.settings
    return Batch(
        checkpoints={id: entry.path for id, entry in found.checkpoints.items()},
        training={
            id: {key: value for key, value in said.get(id, {}).items() if key != "path"} for id in found.checkpoints
        },
        gap={**given, **_defaults(found.gap, given)} if found.gap else {},
        scaling=dict(config.get("scaling") or {}),
        shards=found.shards,
        knowledge=found.knowledge,
        sequences=dict(found.differential.sequences),
        towers={id: dict(tower) for id, tower in (differential.get("towers") or {}).items()},
        vlms={
            id: {key: value for key, value in vlm.items() if key != "sequences"}
            for id, vlm in (differential.get("vlms") or {}).items()
        },
        asked=[
            (sequence, id)
            for id, vlm in found.differential.vlms.items()
            for sequence in (found.differential.sequences if vlm.sequences is None else vlm.sequences)
        ],
        prefill={id: dict(model) for id, model in (config.get("prefill") or {}).items()},
        answers={id: dict(model) for id, model in (config.get("answers") or {}).items()},
        study=found.study,
        settings=_in(f"{name}: differential", lambda: read_settings(settings)) if settings else DifferentialSettings(),
        paper=dict(config.get("paper") or {}),
        output=found.output,
    )


def _defaults(gap: Gap, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `gap` that the config does not give; not those which results made before they were there lack."""
    return {key: value for key, value in vars(gap).items() if key not in {*given, "reuse", "jacobi"}}


def _check_shards(found: Config, name: str) -> None:
    """Shards without a sample each are refused where the number of samples is known, and more than can be planned."""
    gap = found.gap
    drawn = gap is not None and isinstance(gap.data, DrawnData)
    samples = gap and (gap.num_samples or (PROCEDURAL_SAMPLES if drawn else None))
    if samples and found.shards > samples:
        raise ValueError(f"{name}: shards is {found.shards}; {samples} samples make at most {samples}")
    if (jobs := found.shards * len(found.checkpoints)) > MOST_SHARDS:
        raise ValueError(
            f"{name}: shards is {found.shards}, which of {len(found.checkpoints)} checkpoints is {jobs} jobs; a batch "
            f"has at most {MOST_SHARDS}"
        )


def _check_paper(found: Config, name: str) -> None:
    """Figures of what the batch has not are refused."""
    differential = found.differential
    known: dict[str, Collection[str]] = {
        "sequences": differential.sequences,
        "towers": differential.towers,
        "recordings": differential.sequences,
        "checkpoints": found.checkpoints,
    }
    for key, ids in known.items():
        _check_named(f"{name}: paper.{key}", getattr(found.paper, key), ids)
    if not found.study and (figure := next((figure for figure in found.paper.figures or [] if figure in OF_STUDY), "")):
        raise ValueError(f"{name}: paper.figures names {figure!r}, but there is no study; name one, `study: FOLDER`")


def _check_named(where: str, named: Sequence[str] | None, ids: Collection[str]) -> None:
    if unknown := [id for id in named or [] if id not in ids]:
        raise ValueError(
            f"{where} names {unknown[0]!r}, which is not in this config; it has {', '.join(ids) or 'none'}"
        )


# ---- what a config names -------------------------------------------------------------------------------


def check_files(batch: Batch, name: str = "the config") -> None:
    """That what a batch reads is there: recordings, towers, models, settings, a study, the evaluation's data, which
    every checkpoint that is there must know. A checkpoint that is not there is for its own run to report.

    Raises ValueError in one sentence naming the key and the file or folder.
    """
    if batch.sequences:
        from fvlm_lib.data.screens import read_sequence  # which takes numpy

        for id, path in batch.sequences.items():
            _in(f"{name}: differential.sequences.{id}", partial(read_sequence, path))
    for id, tower in batch.towers.items():
        where = f"{name}: differential.towers.{id}"
        _check_model(f"{where}.tower", tower["tower"], RANDOM_TOWERS)
        if tower.get("settings"):
            _in(f"{where}.settings", partial(read_settings, tower["settings"]))
    for id, vlm in batch.vlms.items():
        _check_model(f"{name}: differential.vlms.{id}.model", vlm["model"], ())
    for id, prefill in batch.prefill.items():
        if not prefill["model"].endswith(".gguf") or not Path(prefill["model"]).is_file():
            _check_model(f"{name}: prefill.{id}.model", prefill["model"], ())
    for id, answers in batch.answers.items():
        for key in ("model", "times_model"):
            if answers.get(key):
                _check_model(f"{name}: answers.{id}.{key}", answers[key], ())
    if batch.study and not Path(batch.study, "study.parquet").is_file():
        raise ValueError(
            f"{name}: study is {batch.study!r}, and there is no {batch.study}/study.parquet; `fvlm study-table "
            "STUDY.yaml` makes the table of a study"
        )
    if not batch.gap:
        return
    data_stamp(batch.gap["data"], name)
    data = check(Data, batch.gap["data"], f"{name}: gap.data")
    samples = batch.gap["num_samples"]
    if isinstance(data, FolderData) and (samples or 0) > (count := len(read_captions(data.path))):
        raise ValueError(f"{name}: gap.num_samples is {samples}, but {data.path} has {count} videos")
    if isinstance(data, DrawnData):
        for id, path in batch.checkpoints.items():
            _in(f"{name}: gap.data for checkpoint {id}", partial(_check_drawn, data, Path(path)))


def _in(where: str, work: Callable[[], T]) -> T:
    """What `work` returns; its errors begin with `where`."""
    try:
        return work()
    except (ValueError, OSError) as error:
        raise ValueError(f"{where}: {error}") from None


def _check_model(where: str, model: str, random: Collection[str]) -> None:
    """A folder of transformers' format, one of `random`, or what may be an id of a model hub."""
    if model.startswith("random:"):
        if model not in random:
            known = f"known are {', '.join(random)}" if random else "it must be a folder or a hub id"
            raise ValueError(f"{where} is {model!r}, and there is none such; {known}")
    elif Path(model).is_dir():
        if not Path(model, "config.json").is_file():
            raise ValueError(f"{where} is {model!r}, a folder without a config.json")
    elif Path(model).exists() or not re.fullmatch(r"(?!\.)[\w.-]+/[\w.-]+", model):
        raise ValueError(f"{where} is {model!r}, and there is no such folder; a hub id is like OWNER/MODEL")


def _check_drawn(data: DrawnData, checkpoint: Path) -> None:
    """What the checkpoint's config says against the videos; one that cannot be read is for its own run to report."""
    try:
        config = read_object(checkpoint / "config.json")
        vision, text = config["vision_config"], config["text_config"]
        positions = text["max_position_embeddings"] - (2 if config.get("mode_tokens") else 0)
        limits = (config.get("image_size") or vision["image_size"], text["vocab_size"], positions)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if config.get("model_type") == "fvlm" and all(type(limit) is int for limit in limits):
        data.check_model(*limits)


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


def study_files(parameters: Mapping[str, Any]) -> dict[str, list[str]]:
    """All files that the notebook on a study writes, given its parameters: tables and figures."""
    results, figures = parameters["results"], parameters["figures"]
    return {
        "tables": [*(f"{results}/{name}.csv" for name in STUDY_TABLES), f"{results}/findings.md"],
        "figures": [f"{figures}/{name}.{suffix}" for name in STUDY_FIGURES for suffix in ("png", "pdf", "json")],
    }
