"""The parallel passes, as trained: all frames at once, coarse and then fine, each pass asking by the one before it.

It is a Jacobi iteration of what `watching.py` does in turn: after K fine passes the first K frames are exact.
Shapes: B samples, T frames, N positions, D the language model's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fvlm_lib.foveated.inputs import CaptionBatch, padding_mask
from fvlm_lib.foveated.output import FoveatedVLMOutput, score_captions

if TYPE_CHECKING:
    from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM


def parallel_passes(
    model: FoveatedVLM, batch: CaptionBatch, num_fine: int, score_last_only: bool = False
) -> Iterator[FoveatedVLMOutput]:
    """The coarse pass and each of `num_fine` fine passes; see `FoveatedVLM.forward_passes`."""
    queries = model.q_static.expand(*batch.frame_mask.shape, -1)  # (B, T, query_dim)
    for number in range(num_fine + 1):
        # z (B, T, D), attentions (B, T, heads, tokens of a frame) per ViT layer
        z, attentions = model.look(batch.patch_cache, queries, batch.frame_mask, batch.output_attentions)
        last, fine = number == num_fine, number > 0
        if last or not score_last_only:
            text = model.get_input_embeddings()(batch.input_ids).to(z.dtype)
            embeds = torch.cat([model.before_caption(z, fine), text], dim=1)  # (B, N, D)
            hidden = model.run_llm(embeds, batch.padding)
            yield score_captions(model.get_output_embeddings(), hidden, batch, queries, z, attentions)
        if not last:
            # without mode tokens the run that scored has read the same frames after the same nothing
            shared = not (score_last_only or model.config.mode_tokens)
            read = hidden[:, : z.shape[1]] if shared else _read_frames(model, z, batch.frame_mask, fine)
            queries = _next_queries(model, read)


def _read_frames(model: FoveatedVLM, z: Tensor, frame_mask: Tensor, fine: bool) -> Tensor:
    """Hidden states (B, T, D) of a parallel pass over visual tokens z (B, T, D), for the next queries."""
    embeds = z
    if model.config.mode_tokens:
        mode = model.fine_token if fine else model.coarse_token
        before = torch.cat([model.no_text_token, mode], dim=1)  # (1, 2, D)
        embeds = torch.cat([before.expand(z.shape[0], -1, -1), z], dim=1)
    padding = padding_mask(frame_mask, before=embeds.shape[1] - z.shape[1])
    return model.run_llm(embeds, padding)[:, -z.shape[1] :]


def _next_queries(model: FoveatedVLM, hidden: Tensor) -> Tensor:
    """Queries (B, T, query_dim) of the next parallel pass from the hidden states (B, T, D) of this one."""
    first = model.q_init.expand(hidden.shape[0], 1, -1)
    return torch.cat([first, model.llm_to_query(hidden[:, :-1])], dim=1)
