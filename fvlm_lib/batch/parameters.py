"""What a batch's config may say, described once: its sections, and the parameters that it hands to notebooks.

`config.read_batch` checks a config by these classes, and `config/schema.json` is made of them; the notebooks' own
parameters cells are held to the same types by a test. Imports nothing heavy, since the Snakefile reads it at every
start.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from fvlm_lib.data.options import Data
from fvlm_lib.schema import (
    AsTuple,
    BatchSize,
    Count,
    CountOrNone,
    Device,
    Distinct,
    Dtype,
    FinePasses,
    Fit,
    NewTokens,
    Pixels,
    Positive,
    Resamples,
    Seed,
    Threads,
    Tolerance,
    settings,
)
from fvlm_lib.vision.settings import DifferentialSettings

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def _id(name: str) -> str:
    if not ID.fullmatch(name):
        raise ValueError("letters, digits, '_', '.' and '-', at most 100, make an id")
    return name


def _half(name: str) -> str:
    if "--" in _id(name):
        raise ValueError("results are named SEQUENCE--TOWER, so an id has no '--' in it")
    return name


Id = Annotated[str, AfterValidator(_id)]
Half = Annotated[str, AfterValidator(_half)]  # of a name made of two ids
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[list[Name], Distinct]
Samples = Annotated[int, Field(strict=True, ge=2, le=1_000_000_000)]  # an interval needs two
NumFine = Annotated[list[FinePasses], Field(min_length=1), Distinct]
ImageSize = Annotated[tuple[Pixels, Pixels], AsTuple]
Reuse = Annotated[dict[Id, DifferentialSettings], Field(min_length=1)]  # settings by a name of one's own
Tolerances = Annotated[list[Tolerance], Distinct]
NumLines = Annotated[int, Field(strict=True, ge=4, le=60)]  # of a text screen, as `data/text_screens.py` draws it
Shown = Annotated[int, Field(strict=True, ge=1, le=50)]

# ---- checkpoints and how they are evaluated ------------------------------------------------------------


@settings
class Jacobi:
    """How many fine passes come near sequential use, and what counts as near."""

    within: Positive = 0.01
    """Nats a token, of the loss."""
    within_query: Positive = 0.01
    """Relative L2 distance, of the queries."""
    norm_samples: CountOrNone = 64
    """Videos on which the norm of the query recurrence's Jacobian is taken; 0 for none."""


@settings
class Training:
    """What the config says of a checkpoint's training, where its folder's training.json does not, or against it."""

    name: Name | None = None
    """Of the run, as tables and figures call it; by default the id."""
    group: Name | None = None
    """The recipe, whose seeds findings are answered over; by default the name."""
    seed: Seed | None = None
    step: CountOrNone | None = None
    num_parameters: Annotated[int, Field(strict=True, ge=1)] | None = None
    num_text_parameters: Annotated[int, Field(strict=True, ge=1)] | None = None
    training_flops: Positive | None = None
    """Scaling fits leave out a checkpoint that does not tell it."""
    multi_fine: bool | None = None
    """Whether it was trained on queries of the fine pass too."""


@settings
class Checkpoint(Training):
    """A checkpoint, and what is to be said of its training."""

    path: Name = field(kw_only=True)
    """A folder, a state dict file or a hub id."""


def _entry(value: Any) -> Any:
    if isinstance(value, str) and value:
        return {"path": value}
    if not isinstance(value, Mapping | Checkpoint):
        raise ValueError("it must be a folder, or a mapping with `path`")
    return value


@settings
class Gap:
    """How each checkpoint is evaluated (notebooks/gap_analysis.ipynb)."""

    data: Data
    """The videos."""
    num_samples: Samples | None = None
    """null for all of them; of drawn ones 512."""
    batch_size: BatchSize = 32
    num_fine: NumFine = field(default_factory=lambda: [1, 2, 3])
    """Numbers of fine passes to score; the first is the training mode."""
    dtype: Dtype | None = None
    """null as stored."""
    device: Device = "auto"
    seed: Seed = 0
    """Of the bootstrap."""
    floor_samples: CountOrNone = 64
    """Evaluated again in float64 for the numerical floor; 0 for none, as where there is no float64 (mps)."""
    reuse: Reuse | None = None
    """Settings of the differential encoder by a name each: the inference loss is also taken with frames encoded by what
    changed, as these say; null for none."""
    jacobi: Jacobi | None = None
    """How far 1 to as many fine passes as frames are from sequential use, and the norm of the query recurrence's
    Jacobian; null for none of it, {} for the defaults."""


@settings
class Scaling:
    """The fits of training and inference loss (notebooks/scaling_analysis.ipynb)."""

    num_bootstrap: Resamples = 200
    """Refits for the intervals of the scaling laws."""
    seed: Seed = 0
    delta: Positive = 1e-3
    """Log loss beyond which a residual counts linearly: nearly least absolute deviations."""
    block_length: Count | None = 1
    """Neighbouring checkpoints of a run whose residuals are drawn together; null: sqrt(n)."""


# ---- recordings, and what they are measured on ---------------------------------------------------------


@settings
class Tower:
    """A vision tower on which all sequences are measured (notebooks/differential_benchmark.ipynb)."""

    tower: Name
    """A foveated checkpoint's folder, another folder or a hub id, or random:clip-vit-large-patch14-336."""
    image_size: ImageSize | None = None
    """Height and width that screenshots are squashed to; null is the tower's own."""
    tolerances: Tolerances = field(default_factory=lambda: [0.2, 0.1, 0.05, 0.02, 0.01, 0.0])
    """Of gated updates."""
    settings: Name | None = None
    """A file such as config/differential.yaml for the partial updates; null is the defaults."""
    pack_weights: bool = False
    """Weights packed once for products of few rows (CPU, float32)."""
    num_frames: Samples | None = None
    """The first so many; null is all."""
    threads: Threads = 1
    """CPU threads."""


@settings
class Vlm:
    """A vision-language model that is asked about every frame of sequences (notebooks/predict_sequence.ipynb)."""

    model: Name
    """Folder or hub id: a LLaVA, FastVLM, Qwen-VL, InternVL or SmolVLM."""
    sequences: Names | None = None
    """ids of the recordings that it is asked about; null is all."""
    prompt: str = "Describe what is on the screen."
    max_new_tokens: NewTokens = 16
    fit: Fit = "processor"
    """How frames come to the model's size: as its processor does, or squash, or pad."""
    settings: DifferentialSettings = DifferentialSettings()
    """Of the differential encoder, as in config/differential.yaml; by default those of `differential: settings`."""
    num_frames: Count | None = None
    """The first so many; null is all."""
    num_shown: Shown = 4
    """Frames in the figure."""
    device: Device = "auto"
    dtype: Dtype | None = None
    """null as stored."""
    threads: Threads = 1
    """CPU threads."""


@settings
class Differential:
    """Recordings, and the towers and models that they are measured on."""

    sequences: dict[Half, Name] = field(default_factory=dict)
    """id: folder of screenshots."""
    settings: Name | None = None
    """A file such as config/differential.yaml, for changed patches and answers; null is the defaults."""
    towers: dict[Half, Tower] = field(default_factory=dict)
    vlms: dict[Half, Vlm] = field(default_factory=dict)


# ---- language models, and the text screens that they are measured on -----------------------------------


@settings
class Prefill:
    """A language model whose prefill is measured on text screens that change (notebooks/gated_prefill.ipynb)."""

    model: Name
    """Folder, hub id or .gguf file of a causal language model."""
    num_screens: Samples = 20
    """Of each kind of change."""
    num_lines: NumLines = 40
    """`name: value` lines of a screen."""
    tolerances: Tolerances = field(default_factory=lambda: [0.2, 0.1, 0.05, 0.02, 0.01, 0.0])
    """Of gated updates."""
    seed: Seed = 0
    """Of the screens and of the bootstrap."""
    threads: Threads = 1
    """CPU threads."""


# ---- vision-language models that read drawn screens -----------------------------------------------------


@settings
class Answers:
    """A model that reads drawn screens, asked about screens that change (notebooks/stale_answers.ipynb)."""

    model: Name
    """Folder of a model that `fvlm train-reader` trained."""
    num_screens: Count = 3
    """Of each of 20 cases: what changes, what is asked, and whether the one changes the other's answer."""
    tolerances: Tolerances = field(default_factory=lambda: [0.2, 0.1, 0.05, 0.02, 0.0])
    """Of gated updates in both stacks."""
    seed: Seed = 0
    """Of the screens."""
    times_model: Name | None = None
    """Folder or hub id of a model of real size, whose times stand beside; null for none."""
    device: Device = "auto"
    dtype: Dtype | None = None
    """null as stored."""
    threads: Threads = 1
    """CPU threads."""


# ---- the paper -----------------------------------------------------------------------------------------

Style = Literal["neurips", "iclr", "icml", "cvpr", "acl"]
Figure = Literal[
    "gap_training", "gap_passes", "mode_losses", "position_losses", "scaling_laws", "changes", "policies",
    "study_compute", "study_passes",
]  # fmt: skip
Table = Literal["gap_table", "scaling_fits", "policies"]
Format = Literal["pdf", "png", "svg", "eps", "ps", "pgf", "jpg", "tif", "webp"]
Figures = Annotated[list[Figure], Distinct]
Tables = Annotated[list[Table], Distinct]
Formats = Annotated[list[Format], Field(min_length=1), Distinct]
Width = Literal["column", "full"] | Annotated[float, Field(strict=True, ge=1, le=7, allow_inf_nan=False)]


@settings
class Paper:
    """The paper's figures and tables (notebooks/paper_figures.ipynb); null is the default of each."""

    style: Style = "neurips"
    """Widths and text sizes."""
    figures: Figures | None = None
    """By default all that the batch has results for."""
    tables: Tables | None = None
    """By default all that the batch has results for."""
    widths: dict[Figure, Width] = field(default_factory=dict)
    """Of a figure: column, full or inches, where not the usual one."""
    runs: Names | None = None
    """Names of training runs; null is all."""
    checkpoints: Names | None = None
    """ids, for passes, modes and positions; null is the last of each run."""
    sequences: Names | None = None
    """ids of recordings, a figure of changes each; null is all."""
    towers: Names | None = None
    """ids of vision towers, a figure and a table of policies each; null is all."""
    recordings: Names | None = None
    """ids of recordings that policies are compared on; null is all."""
    formats: Formats | None = None
    """By default pdf and png."""
    output: Name | None = None
    """Folder of the figures; by default plots/paper."""
    table_output: Name | None = None
    """Folder of the tables; by default results/paper."""


# ---- the whole -----------------------------------------------------------------------------------------


@settings
class Config:
    """A batch: which checkpoints and recordings, and how they are measured."""

    checkpoints: dict[
        Id, Annotated[Checkpoint, BeforeValidator(_entry, json_schema_input_type=Name | Checkpoint)]
    ] = field(default_factory=dict)  # fmt: skip
    """id: folder, or id: {path: folder, name: ..., step: ...}."""
    gap: Gap | None = None
    """How each checkpoint is evaluated."""
    shards: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 1
    """Parts that the samples of one checkpoint are scored in, each a job of its own."""
    scaling: Scaling = Scaling()
    differential: Differential = Differential()
    prefill: dict[Id, Prefill] = field(default_factory=dict)
    """id: a language model, and the text screens that its prefill is measured on."""
    answers: dict[Id, Answers] = field(default_factory=dict)
    """id: a model that reads drawn screens, and how many it is asked about."""
    study: Name | None = None
    """A folder with the tables of a study, such as docs/study (notebooks/close_the_gap.ipynb); null for none."""
    paper: Paper = Paper()
    output: Name | None = None
    """A folder for results, plots and papermill_runs of this batch; null is the project's own."""
    knowledge: Name | None = None
    """A Markdown file that gets the findings, between markers; null for none."""
