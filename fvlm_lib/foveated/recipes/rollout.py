"""Rollout: sequential use itself is trained, as Self Forcing does in video diffusion (Huang et al., arXiv 2506.08009).

What is trained is what is used, so there is no gap to close: an upper bound for the parallel recipes, at the price of a
run of the language model a frame. Truncated, captions are scored by one more run over all visual tokens, so that each
frame's token is trained, however far its query's gradient reaches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fvlm_lib.foveated.inputs import CaptionBatch
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.output import FoveatedVLMOutput
from fvlm_lib.foveated.passes import parallel_passes, score_visual_tokens
from fvlm_lib.foveated.recipe_options import Rollout
from fvlm_lib.foveated.watching import score_watching, watch


def rollout_loss(
    model: FoveatedVLM, batch: CaptionBatch, options: Rollout, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """autoregressive, + coarse_weight * coarse where that has a weight."""
    if options.frames is None or options.frames >= batch.frame_mask.shape[1]:
        loss = score_watching(model, batch)[0].loss
    else:
        loss = score_truncated(model, batch, options.frames).loss
    parts = {"autoregressive": loss.item()}
    if options.coarse_weight:
        (coarse,) = parallel_passes(model, batch, num_fine=0)
        loss, parts["coarse"] = loss + options.coarse_weight * coarse.loss, coarse.loss.item()
    return loss, parts


def score_truncated(model: FoveatedVLM, batch: CaptionBatch, frames: int) -> FoveatedVLMOutput:
    """The autoregressive mode, a query's gradient truncated after so many frames; see `watch`."""
    seen = watch(model, batch.patch_cache, batch.frame_mask, None, batch.output_attentions, cut_every=frames)
    queries, z, attentions = seen.queries[:, 0], seen.visual_tokens[:, 0], tuple(a[:, 0] for a in seen.attentions)
    return score_visual_tokens(model, batch, queries, z, attentions, fine=True)[0]
