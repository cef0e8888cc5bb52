"""Consistency: a fine pass is scored, and what it does is drawn to what sequential use does in the same video.

After consistency large language models (Kou et al. 2024, arXiv 2403.00835), which draw every Jacobi iterate to the
fixed point. The fixed point here is sequential use, detached, so that it is not drawn to the fine pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fvlm_lib.foveated.inputs import CaptionBatch
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.passes import scored_passes
from fvlm_lib.foveated.recipe_options import Consistency, pass_name
from fvlm_lib.foveated.watching import watch


def consistency_loss(
    model: FoveatedVLM, batch: CaptionBatch, options: Consistency, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """fine_K + coarse_weight * coarse + weight * distance."""
    with torch.no_grad():
        seen = watch(model, batch.patch_cache, batch.frame_mask)
    coarse, fine = scored_passes(model, batch, options.num_fine, scored=(0, options.num_fine))
    if options.of == "queries":
        distance = relative_distance(fine.queries, seen.queries[:, 0], batch.frame_mask)
    else:
        distance = relative_distance(fine.visual_tokens, seen.visual_tokens[:, 0], batch.frame_mask)
    loss = fine.loss + options.coarse_weight * coarse.loss + options.weight * distance
    parts = {
        "coarse": coarse.loss.item(),
        pass_name(options.num_fine): fine.loss.item(),
        "distance": distance.item(),
    }
    return loss, parts


def relative_distance(found: Tensor, target: Tensor, frame_mask: Tensor) -> Tensor:
    """The squared difference of vectors (B, T, D) over the square of the targets, both summed over the frames that are
    there by frame_mask, bool (B, T); 0 where they are equal."""
    there = frame_mask[..., None]
    return ((found - target) * there).square().sum() / (target * there).square().sum()
