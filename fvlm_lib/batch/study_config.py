"""What a study's config file says: every size of language model trained by every recipe with every seed, and how each
checkpoint is evaluated.

`study.smk` turns this into jobs, `gap/study_table.py` their results into a table. Imports nothing heavy, since
the workflow reads it at every start.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fvlm_lib.batch.folders import folders
from fvlm_lib.batch.parameters import Half, Jacobi, Name, NumFine, Samples
from fvlm_lib.data.options import Data
from fvlm_lib.foveated.recipe_options import Plain, Recipe, Then
from fvlm_lib.foveated.training_config import MAX_POSITIONS, Layers, TrainingConfig, Width, training_identity
from fvlm_lib.schema import BatchSize, Count, CountOrNone, Distinct, Positive, Seed, check, settings
from fvlm_lib.yaml_files import read_yaml

JOINT = "--"  # between the parts of an id


@settings
class Size:
    """A language model, and what it is trained with."""

    text_width: Width
    text_layers: Layers
    text_mlp_width: Width
    learning_rate: Positive
    """Best found for this size by plain training; the same for every recipe."""
    text_heads: Layers = 4


@settings
class StudyRecipe:
    """How a run is trained."""

    recipe: Recipe = field(default_factory=Plain)
    """Which loss is descended."""
    then: Then | None = None
    """Another recipe for the last of the steps."""


@settings
class Evaluation:
    """How checkpoints are evaluated: `fvlm gap`, on drawn videos as those of their training but of the split `test`."""

    num_samples: Samples = 512
    batch_size: BatchSize = 32
    num_fine: NumFine = field(default_factory=lambda: [1, 2, 3])
    """Numbers of fine passes to score."""
    jacobi: Jacobi | None = None
    """How far every number of fine passes is from sequential use, and the norm of the query recurrence's Jacobian; null
    for none of it. Not of the runs of other lengths."""
    seed: Seed = 0
    """Of the videos and of the bootstrap."""
    floor_samples: CountOrNone = 64
    """Evaluated again in float64 for the numerical floor; 0 for none."""


@settings
class Lengths:
    """Runs that are trained, and evaluated, on videos of other lengths than `training` says. A model that was trained
    on videos of one length is lost on longer ones, so that one training tells nothing of them."""

    num_frames: Annotated[list[Count], Field(min_length=1), Distinct]
    sizes: Annotated[list[Half], Field(min_length=1), Distinct]
    recipes: Annotated[list[Half], Field(min_length=1), Distinct]
    seeds: Annotated[list[Seed], Field(min_length=1), Distinct]


@settings
class StudyFile:
    """A study: every size with every recipe and seed. What is left out of this file is not run."""

    sizes: Annotated[dict[Half, Size], Field(min_length=1)]
    recipes: Annotated[dict[Half, StudyRecipe], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1), Distinct]
    """Of weights and training videos; a seed means the same videos in every run."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """What all runs are trained with; not what sizes and recipes say."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    lengths: Lengths | None = None
    """What of it is also run on videos of other lengths."""
    output: Name = "results/study"
    """The folder that gets checkpoints, evaluations and the table."""


@dataclass(frozen=True)
class Run:
    """One training: its config, its seed, and the names of its size and recipe."""

    size: str
    recipe: str
    seed: int
    config: TrainingConfig

    @property
    def num_frames(self) -> int:
        """Of its videos, in training and evaluation."""
        return self.config.drawn_videos(self.seed).num_frames

    @property
    def trained_passes(self) -> int | None:
        """After how many fine passes the loss is taken that it is trained by at the end; None: of sequential use."""
        return self.config.recipes[-1].trained_passes

    @property
    def name(self) -> str:
        """What training.json and progress bars call it, without the seed."""
        return JOINT.join([self.size, self.recipe])


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: of the checkpoint at `step` of the run of id `run`."""

    id: str
    run: str
    step: int


@dataclass(frozen=True)
class Study:
    """What there is to do: `runs` and `evaluations` by id, in the file's order, and where they are kept.

    num_frames: of the videos of all runs but those of `lengths`.
    """

    runs: dict[str, Run]
    evaluations: dict[str, Evaluated]
    evaluation: Evaluation
    num_frames: int
    output: str

    @property
    def table(self) -> str:
        """The table, Parquet."""
        return f"{self.output}/study.parquet"

    @property
    def table_csv(self) -> str:
        """The same as CSV."""
        return f"{self.output}/study.csv"

    def run_folder(self, run: str) -> str:
        """Where a training keeps its checkpoints and its state."""
        return f"{self.output}/runs/{run}"

    def checkpoint(self, evaluation: str) -> str:
        """The folder of the checkpoint that an evaluation is of."""
        about = self.evaluations[evaluation]
        return f"{self.run_folder(about.run)}/step_{about.step:04d}"

    def record(self, run: str) -> str:
        """The file that says that a training is finished, and by which code."""
        return f"{self.output}/trained/{run}.json"

    def result(self, evaluation: str) -> str:
        """What `fvlm gap` found; its per-sample table is beside it."""
        return f"{self.output}/gap/{evaluation}.json"

    def made_by(self, evaluation: str) -> str:
        """Hash of all that the numbers of an evaluation rest on, but code: how it was trained and how evaluated."""
        about = self.evaluations[evaluation]
        trained, parameters = self.runs[about.run], self.gap_parameters(evaluation)
        del parameters["checkpoint"]  # where it is kept
        content = [training_identity(trained.config, trained.seed, trained.name), about.step, parameters]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def gap_parameters(self, evaluation: str) -> dict[str, Any]:
        """What an evaluation is made with; its result must hold exactly these."""
        settings, trained = self.evaluation, self.runs[self.evaluations[evaluation].run]
        return {
            "checkpoint": self.checkpoint(evaluation),
            "data": _test_videos(trained.config.videos, trained.num_frames, settings.seed),
            "num_samples": settings.num_samples,
            "batch_size": settings.batch_size,
            "num_fine": settings.num_fine,
            "dtype": None,
            "device": "cpu",
            "seed": settings.seed,
            "floor_samples": settings.floor_samples,
            "reuse": None,
            "jacobi": asdict(settings.jacobi) if settings.jacobi and trained.num_frames == self.num_frames else None,
        }


def _test_videos(videos: Mapping[str, Any], num_frames: int, seed: int) -> dict[str, Any]:
    return {"kind": "procedural", **videos, "split": "test", "seed": seed, "num_frames": num_frames}


def read_study_file(path: str | Path) -> Study:
    """The study of a config file. Raises ValueError in one sentence that names file, key, value and what would be
    right."""
    content = read_yaml(path)
    return read_study({} if content is None else content, str(path))


def read_study(config: Mapping[str, Any], name: str = "the config") -> Study:
    """Check a study's config. Raises ValueError as `read_study_file` does."""
    found = check(StudyFile, config, name)
    _check_training(found, config.get("training") or {}, name)
    _check_lengths(found, name)
    try:
        folders(found.output)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    trained = {}
    for (size, width), (recipe, entry) in product(found.sizes.items(), found.recipes.items()):
        try:
            trained[size, recipe] = dataclasses.replace(found.training, **vars(width), **vars(entry))
        except ValueError as error:
            raise ValueError(f"{name}: sizes.{size}: {error}") from None
    runs = {
        JOINT.join([size, recipe, str(seed)]): Run(size, recipe, seed, own)
        for (size, recipe), own in trained.items()
        for seed in found.seeds
    }
    if (other := found.lengths) is not None:
        for frames, size, recipe, seed in product(other.num_frames, other.sizes, other.recipes, other.seeds):
            own = trained[size, recipe]
            changed = dataclasses.replace(own, videos={**own.videos, "num_frames": frames})
            runs[JOINT.join([size, recipe, str(seed), str(frames)])] = Run(size, recipe, seed, changed)
    evaluations = {}
    for id, run in runs.items():
        for step in found.training.checkpoint_steps:
            evaluated = JOINT.join(map(str, [run.size, run.recipe, run.seed, step, run.num_frames]))
            evaluations[evaluated] = Evaluated(evaluated, id, step)
    num_frames = found.training.drawn_videos(0).num_frames
    study = Study(runs, evaluations, found.evaluation, num_frames, str(Path(found.output)))
    _check_passes(study, name)
    return study


def read_run(path: Path, run: str) -> tuple[Study, Run]:
    """A study and one of its runs. Raises ValueError for a run that is not in it."""
    study = read_study_file(path)
    if run not in study.runs:
        named = ", ".join(list(study.runs)[:3])
        raise ValueError(f"{path} has no run {run!r}; a run is called SIZE--RECIPE--SEED, as {named} are")
    return study, study.runs[run]


def _check_training(found: StudyFile, given: Mapping[str, Any], name: str) -> None:
    """What sizes and recipes say is not said of all runs as well, and the last step leaves a checkpoint."""
    for kind, owner in ((Size, "sizes"), (StudyRecipe, "recipes")):
        for key in dataclasses.fields(kind):
            if key.name in given:
                raise ValueError(f"{name}: training has {key.name}; of a study it stands in the entries of {owner}")
    steps = found.training.checkpoint_steps
    if found.training.steps not in steps or list(steps) != sorted({*steps}):
        raise ValueError(
            f"{name}: training.checkpoint_steps is {list(steps)}; it must rise and end with steps, "
            f"{found.training.steps}"
        )


def _check_passes(study: Study, name: str) -> None:
    """What a run is trained by is evaluated; `jacobi` has every number of passes, of the study's own length."""
    for run in study.runs.values():
        if run.trained_passes is not None and run.trained_passes > run.num_frames:
            raise ValueError(
                f"{name}: recipes.{run.recipe} trains by {run.trained_passes} fine passes, and videos have "
                f"{run.num_frames} frames; after as many passes as frames they change nothing"
            )
        every = study.evaluation.jacobi is not None and run.num_frames == study.num_frames
        if run.trained_passes is not None and run.trained_passes not in study.evaluation.num_fine and not every:
            raise ValueError(
                f"{name}: recipes.{run.recipe} trains by {run.trained_passes} fine passes; evaluation.num_fine is "
                f"{study.evaluation.num_fine} and must have that number too"
            )


def _check_lengths(found: StudyFile, name: str) -> None:
    """Videos of all lengths can be drawn, and fit a model's positions; what is run on others is there."""
    own = found.training.drawn_videos(0).num_frames
    lengths: dict[str, list[int]] = {"training.videos.num_frames": [own]}
    if (other := found.lengths) is not None:
        lengths["lengths.num_frames"] = other.num_frames
        for key in ("sizes", "recipes"):
            if unknown := [known for known in getattr(other, key) if known not in getattr(found, key)]:
                there = ", ".join(getattr(found, key))
                raise ValueError(f"{name}: lengths.{key} names {unknown[0]!r}; {key} has {there}")
        if own in other.num_frames:
            raise ValueError(f"{name}: lengths.num_frames has {own}, which all runs have; name others")
    for key, of_key in lengths.items():
        for frames in of_key:
            where = f"{name}: {key}"
            videos = check(Data, _test_videos(found.training.videos, frames, found.evaluation.seed), where)
            if videos.num_positions > MAX_POSITIONS:
                raise ValueError(
                    f"{where} has {frames}, which with the caption takes {videos.num_positions} positions; models "
                    f"are trained with {MAX_POSITIONS}"
                )


def wildcards(names: Mapping[str, Any]) -> str:
    """A regular expression that matches these ids alone."""
    return "|".join(map(re.escape, names))
