"""Multi-fine training with a number of fine passes that is drawn anew at each step, so that none is special."""

from __future__ import annotations

import torch
from torch import Tensor

from fvlm_lib.foveated.inputs import CaptionBatch
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.recipe_options import RandomPasses
from fvlm_lib.foveated.recipes.multi_fine import multi_fine_loss


def random_passes_loss(
    model: FoveatedVLM, batch: CaptionBatch, options: RandomPasses, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """The loss of multi-fine training with 1 to `most` fine passes, each number as likely."""
    num_fine = int(torch.randint(1, options.most + 1, (), generator=generator))
    return multi_fine_loss(model, batch, options.passes(num_fine), generator)
