"""Scheduled sampling in parallel: the fine pass meets queries as use will have them, more of them as training goes on.

After Bengio et al. 2015 (arXiv 1506.03099), who feed back some of a model's own outputs, and Mihaylova and Martins
2019 (arXiv 1906.04331), who take them from a parallel pass before. Here a frame's query is the one that the coarse pass
asked for, the one that a fine pass asked for, or, detached, the one of sequential use.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fvlm_lib.foveated.inputs import CaptionBatch
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.passes import coarse_queries, parallel_pass
from fvlm_lib.foveated.recipe_options import ScheduledSampling
from fvlm_lib.foveated.watching import watch


def scheduled_sampling_loss(
    model: FoveatedVLM, batch: CaptionBatch, options: ScheduledSampling, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """fine + coarse_weight * coarse, the fine pass by mixed queries; `options` are those of a step (`at`)."""
    coarse, asked = parallel_pass(model, batch, coarse_queries(model, batch), fine=False)
    assert coarse is not None and asked is not None
    queries = mixed_queries(model, batch, asked, options, generator)
    fine, _ = parallel_pass(model, batch, queries, fine=True, ask=False)
    assert fine is not None
    loss = fine.loss + options.coarse_weight * coarse.loss
    return loss, {"coarse": coarse.loss.item(), "fine": fine.loss.item()}


def mixed_queries(
    model: FoveatedVLM, batch: CaptionBatch, asked: Tensor, options: ScheduledSampling, generator: torch.Generator
) -> Tensor:
    """Queries (B, T, query_dim), each from one of the three; `asked` are the coarse pass's."""
    drawn = torch.rand(batch.frame_mask.shape, generator=generator)[..., None]  # uniform in [0, 1), (B, T, 1)
    queries = asked
    if options.fine:
        _, asked_by_fine = parallel_pass(model, batch, asked, fine=True, score=False)
        assert asked_by_fine is not None
        queries = torch.where((drawn < options.fine).to(asked.device), asked_by_fine, queries)
    if options.sequential:
        with torch.no_grad():
            sequential = watch(model, batch.patch_cache, batch.frame_mask).queries[:, 0]
        queries = torch.where((drawn >= 1 - options.sequential).to(asked.device), sequential, queries)
    # frame 0 asks by q_init in all of them, and q_init is to be learnt
    return torch.cat([asked[:, :1], queries[:, 1:]], dim=1)
