"""What a run of the demo ladder is trained with, read from a file such as `config/ladder.yaml`.

How it is trained is `train.py`'s subject. Imports nothing heavy, so that a wrong config is refused at once.
"""

from __future__ import annotations

import json
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fvlm_lib.data.options import DrawnData, DrawnKind
from fvlm_lib.foveated.recipe_options import Plain, Recipe, RecipeOptions, Then
from fvlm_lib.schema import AsTuple, BatchSize, Count, CountOrNone, Positive, Share, Tolerance, check, settings
from fvlm_lib.yaml_files import read_yaml

Width = Annotated[int, Field(strict=True, ge=1, le=65_536)]
Layers = Annotated[int, Field(strict=True, ge=1, le=1024)]
MAX_POSITIONS = 256  # of the language models that are trained, for frames and caption


@settings
class TrainingConfig:
    """One run of the ladder. Widths in channels.

    Raises ValueError naming a field with a value that cannot be.
    """

    vision_width: Width = 64
    vision_layers: Layers = 2
    vision_heads: Layers = 4
    vision_mlp_ratio: Layers = 2
    text_width: Width = 64
    text_layers: Layers = 2
    text_heads: Layers = 4
    text_mlp_width: Width = 128
    position_std: Positive = 1.5
    videos: dict[str, Any] = field(default_factory=dict)
    """Kind and options of the drawn videos (`fvlm_lib.data.options`), procedural ones where no kind is named; split and
    seed are of the training."""
    batch_size: BatchSize = 16
    learning_rate: Positive = 2e-3
    weight_decay: Tolerance = 0.01
    warmup_steps: CountOrNone = 100
    last_rate: Share = 0.1
    """The learning rate of the last step, as a share of the peak; from the warm-up to there it falls by a cosine. With
    1 it stays, so that a checkpoint on the way is as one that ends a shorter training (arXiv 2405.18392)."""
    steps: Count = 3000
    gradient_clip: Positive = 1.0
    recipe: Recipe = field(default_factory=Plain)
    """Which loss is descended."""
    then: Then | None = None
    """Another recipe for the last of the steps."""
    checkpoint_steps: Annotated[tuple[Count, ...], AsTuple] = (100, 300, 1000, 3000)
    state_every: Count = 200
    """Steps between two saved states, from which an interrupted run goes on."""

    def __post_init__(self) -> None:
        if late := [step for step in self.checkpoint_steps if step > self.steps]:
            raise ValueError(f"checkpoint_steps has {late[0]}; it must lie between 1 and steps = {self.steps}")
        for width, heads in (("vision_width", "vision_heads"), ("text_width", "text_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{width} is {getattr(self, width)}, which {heads}, {getattr(self, heads)}, does not divide"
                )
        self.drawn_videos(0)

    @property
    def recipes(self) -> tuple[RecipeOptions, ...]:
        """The recipe, and the one that follows it."""
        return (self.recipe,) if self.then is None else (self.recipe, self.then.recipe)

    def recipe_at(self, index: int) -> RecipeOptions:
        """The recipe of a step, by its index from 0, what rises over the recipe's steps fixed."""
        turn = self.steps if self.then is None else round(self.then.after * self.steps)
        if index < turn:
            return self.recipe.at(index / turn)
        assert self.then is not None
        return self.then.recipe.at((index - turn) / (self.steps - turn))

    def drawn_videos(self, seed: int) -> DrawnData:
        """The videos of a training with that seed. Raises ValueError for a kind or option that there is not."""
        found: DrawnData = check(
            DrawnKind, {"kind": "procedural", "split": "train", "seed": seed, **self.videos}, "videos"
        )
        return found


def training_identity(config: TrainingConfig, seed: int, name: str) -> dict[str, Any]:
    """What run.json says of a training, and training.json of each of its checkpoints."""
    return {"name": name, "seed": seed, "config": json.loads(json.dumps(asdict(config)))}


@settings
class Ladder:
    """The runs of a file by name, each with what it sets on top of the defaults."""

    runs: dict[str, dict[str, Any] | None]
    defaults: dict[str, Any] | None = None


def read_training_config(path: Path, run: str) -> TrainingConfig:
    """The config of `run` from a YAML file with `defaults:` and `runs: {name: overrides}`.

    Raises ValueError for an unknown run or field, naming it and what there is, and for a value that cannot be.
    """
    ladder: Ladder = check(Ladder, read_yaml(path), str(path))
    if run not in ladder.runs:
        raise ValueError(f"{path} has no run {run!r}; it has {', '.join(ladder.runs)}")
    values = {**(ladder.defaults or {}), **(ladder.runs[run] or {})}
    return check(TrainingConfig, values, f"{path}: run {run!r}")
