"""What a config's `recipe` may say of how a foveated model is trained: the recipes, and the options of each.

`recipes/` has the loss of each. Imports nothing heavy, so that a wrong config is refused at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from fvlm_lib.schema import Count, Share, Tolerance, settings

Passes = Annotated[int, Field(strict=True, ge=1, le=64)]
Scored = Literal["all", "last"]


def pass_name(number: int) -> str:
    """What the loss of a pass is called: coarse (0), fine (1), fine_2, fine_3, ..."""
    return ("coarse", "fine")[number] if number < 2 else f"fine_{number}"


@settings
class RecipeOptions(ABC):
    """What the recipes have in common. Losses are in nats a token."""

    coarse_weight: Tolerance = 0.5
    """Of the coarse pass's loss."""

    @property
    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that the loss is made of, columns of losses.csv; a step may lack some."""

    @property
    def trained_passes(self) -> int | None:
        """After how many fine passes the first loss is taken that is descended: those of use in parallel. None where
        that is the loss of sequential use itself."""
        return 1

    @property
    def multi_fine(self) -> bool:
        """Whether it trains on queries of fine passes or of use, or draws its own to them: False where it comes down to
        plain training."""
        return False

    def at(self, done: float) -> RecipeOptions:
        """The recipe where the share `done` of its steps, in [0, 1), is taken: what rises over them is fixed."""
        return self

    def equivalents(self) -> tuple[RecipeOptions, ...]:
        """Recipes that cost, in the mean, what a step of this one costs."""
        return (self,)


@settings
class Plain(RecipeOptions):
    """One fine pass, by the queries that the coarse pass asked for."""

    kind: Literal["plain"] = "plain"

    @property
    def parts(self) -> tuple[str, ...]:
        return ("coarse", "fine")


@settings
class MultiFine(RecipeOptions):
    """Several fine passes, each by the queries that the pass before it asked for."""

    num_fine: Passes = 2
    scored: Scored = "all"
    """The last pass alone, or all of them."""
    weight: Tolerance = 0.5
    """Of the loss of each fine pass behind the first, where all are scored."""
    kind: Literal["multi_fine"] = "multi_fine"

    @property
    def scored_passes(self) -> tuple[int, ...]:
        """The numbers of the scored passes: 0, the coarse one, and fine ones."""
        return (0, *range(1 if self.scored == "all" else self.num_fine, self.num_fine + 1))

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(pass_name(number) for number in self.scored_passes)

    @property
    def trained_passes(self) -> int:
        return self.scored_passes[1]

    @property
    def multi_fine(self) -> bool:
        return self.num_fine > 1


@settings
class RandomPasses(RecipeOptions):
    """A number of fine passes that is drawn anew at each step, every one up to `most` as likely."""

    most: Passes = 3
    scored: Scored = "last"
    """The last pass alone, or all of them."""
    weight: Tolerance = 0.5
    """Of the loss of each fine pass behind the first, where all are scored."""
    kind: Literal["random_passes"] = "random_passes"

    def passes(self, num_fine: int) -> MultiFine:
        """The recipe of a step that has drawn this number."""
        return MultiFine(self.coarse_weight, num_fine, self.scored, self.weight)

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(pass_name(number) for number in range(self.most + 1))

    @property
    def multi_fine(self) -> bool:
        return self.most > 1

    def equivalents(self) -> tuple[RecipeOptions, ...]:
        return tuple(self.passes(number) for number in range(1, self.most + 1))


@settings
class ScheduledSampling(RecipeOptions):
    """One fine pass whose queries are mixed, frame by frame at random, of those that the coarse pass asked for, those
    that a fine pass asked for, and those of sequential use, detached.

    Raises ValueError where the shares are more than all, or the rise ends before it begins.
    """

    fine: Share = 0.25
    """Of the frames, how many get queries that a fine pass asked for, once the rise is over."""
    sequential: Share = 0.5
    """Likewise queries of sequential use; the other frames get those that the coarse pass asked for."""
    rise_from: Share = 0.0
    """Of the recipe's steps, the share after which both begin to rise from 0, linearly."""
    rise_to: Share = 0.5
    """The share after which they rise no more; 0 has them constant."""
    kind: Literal["scheduled_sampling"] = "scheduled_sampling"

    def __post_init__(self) -> None:
        if self.fine + self.sequential > 1 + 1e-9:
            raise ValueError(
                f"fine is {self.fine:g} and sequential {self.sequential:g}, together more than 1, all frames"
            )
        if self.rise_to < self.rise_from:
            raise ValueError(f"rise_to is {self.rise_to:g}; it must be at least rise_from, {self.rise_from:g}")

    @property
    def parts(self) -> tuple[str, ...]:
        return ("coarse", "fine")

    @property
    def multi_fine(self) -> bool:
        return self.fine > 0 or self.sequential > 0

    def at(self, done: float) -> ScheduledSampling:
        risen = 1.0 if done >= self.rise_to else max(0.0, (done - self.rise_from) / (self.rise_to - self.rise_from))
        return replace(self, fine=self.fine * risen, sequential=self.sequential * risen, rise_from=0.0, rise_to=0.0)

    def equivalents(self) -> tuple[RecipeOptions, ...]:
        # what costs is whether there are such queries at all, not how many
        return (replace(self, fine=(self.fine > 0) / 2, sequential=(self.sequential > 0) / 2),)


@settings
class Rollout(RecipeOptions):
    """Sequential use itself, frame by frame."""

    coarse_weight: Tolerance = 0.0
    """Of the coarse pass's loss; 0 leaves that pass out, and q_static untrained."""
    frames: Count | None = None
    """How many frames a query's gradient reaches back through, at most; null: all."""
    kind: Literal["rollout"] = "rollout"

    @property
    def parts(self) -> tuple[str, ...]:
        return ("coarse", "autoregressive") if self.coarse_weight else ("autoregressive",)

    @property
    def trained_passes(self) -> None:
        return None

    @property
    def multi_fine(self) -> bool:
        return True


@settings
class Consistency(RecipeOptions):
    """A fine pass that is scored, and drawn to what sequential use, detached, does in the same video."""

    num_fine: Passes = 1
    """The last of so many fine passes is scored and drawn."""
    weight: Tolerance = 1.0
    """Of the distance, the mean squared difference over the mean square of what it is drawn to."""
    of: Literal["queries", "visual_tokens"] = "queries"
    """What is drawn to its sequential counterpart."""
    kind: Literal["consistency"] = "consistency"

    @property
    def parts(self) -> tuple[str, ...]:
        return ("coarse", pass_name(self.num_fine), "distance")

    @property
    def trained_passes(self) -> int:
        return self.num_fine

    @property
    def multi_fine(self) -> bool:
        return self.num_fine > 1 or self.weight > 0


Recipe = Annotated[
    Plain | MultiFine | RandomPasses | ScheduledSampling | Rollout | Consistency, Field(discriminator="kind")
]


@settings
class Then:
    """Another recipe for the last steps of a run."""

    after: Annotated[float, Field(strict=True, gt=0, lt=1)]
    """The share of the steps before it."""
    recipe: Recipe
