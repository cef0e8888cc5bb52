"""Multi-fine training: K fine passes, each by the queries that the pass before it asked for.

All of them are scored, or the last alone, which is then to be used with as many passes as it was trained with (PCCoT,
Wu et al. 2025, arXiv 2506.18582). A pass that is not scored runs over the visual tokens alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fvlm_lib.foveated.inputs import CaptionBatch
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.passes import scored_passes
from fvlm_lib.foveated.recipe_options import MultiFine


def multi_fine_loss(
    model: FoveatedVLM, batch: CaptionBatch, options: MultiFine, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """fine + coarse_weight * coarse + weight * (fine_2 + ... + fine_K), or fine_K + coarse_weight * coarse."""
    passes = scored_passes(model, batch, options.num_fine, options.scored_passes)
    coarse, first, *more = losses = [output.loss for output in passes]
    loss = first + options.coarse_weight * coarse
    for further in more:
        loss = loss + options.weight * further
    return loss, {name: part.item() for name, part in zip(options.parts, losses, strict=True)}
