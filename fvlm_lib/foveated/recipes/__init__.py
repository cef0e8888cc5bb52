"""How a foveated model is trained: a file a recipe, a line each in `RECIPES`; their options are `recipe_options.py`'s.

A recipe is a function of the model, a batch whose frames are encoded, its options and random numbers. It returns the
loss to descend and the parts that it is made of, in nats a token, by the names that `RecipeOptions.parts` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fvlm_lib.foveated.inputs import CaptionBatch
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.recipe_options import (
    Consistency,
    MultiFine,
    Plain,
    RandomPasses,
    RecipeOptions,
    Rollout,
    ScheduledSampling,
)
from fvlm_lib.foveated.recipes.consistency import consistency_loss
from fvlm_lib.foveated.recipes.multi_fine import multi_fine_loss
from fvlm_lib.foveated.recipes.plain import plain_loss
from fvlm_lib.foveated.recipes.random_passes import random_passes_loss
from fvlm_lib.foveated.recipes.rollout import rollout_loss
from fvlm_lib.foveated.recipes.scheduled_sampling import scheduled_sampling_loss

Loss = Callable[[FoveatedVLM, CaptionBatch, Any, torch.Generator], tuple[Tensor, dict[str, float]]]

RECIPES: dict[type[RecipeOptions], Loss] = {
    Plain: plain_loss,
    MultiFine: multi_fine_loss,
    RandomPasses: random_passes_loss,
    ScheduledSampling: scheduled_sampling_loss,
    Rollout: rollout_loss,
    Consistency: consistency_loss,
}
"""The loss of each recipe, by the class of its options."""


def training_loss(
    model: FoveatedVLM, batch: Mapping[str, Any], options: RecipeOptions, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """The loss to descend by a recipe and its parts, in nats a token.

    batch: as told at `FoveatedVLM`. options: of a step, `RecipeOptions.at`. generator: random numbers of the step, on
    the CPU, so that they are the same on every device.
    """
    return RECIPES[type(options)](model, model.encode_batch(**batch), options, generator)
