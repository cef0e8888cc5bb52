"""Plain coarse→fine training: one fine pass, by the queries that the coarse pass asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from fvlm_lib.foveated.inputs import CaptionBatch
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.passes import parallel_passes
from fvlm_lib.foveated.recipe_options import Plain


def plain_loss(
    model: FoveatedVLM, batch: CaptionBatch, options: Plain, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """fine + coarse_weight * coarse."""
    coarse, fine = (output.loss for output in parallel_passes(model, batch, num_fine=1))
    return fine + options.coarse_weight * coarse, {"coarse": coarse.item(), "fine": fine.item()}
