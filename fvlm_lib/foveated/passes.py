"""The parallel passes, as trained: all frames at once, coarse and then fine, each pass asking by the one before it.

It is a Jacobi iteration of what `watching.py` does in turn: after K fine passes the first K frames are exact.
Shapes: B samples, T frames, N positions, D the language model's width.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
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
    return scored_passes(model, batch, num_fine, range(num_fine if score_last_only else 0, num_fine + 1))


def scored_passes(
    model: FoveatedVLM, batch: CaptionBatch, num_fine: int, scored: Container[int]
) -> Iterator[FoveatedVLMOutput]:
    """The outputs of those of the passes that are in `scored`: 0 is the coarse pass, then come `num_fine` fine ones.

    Passes that are not run over the visual tokens alone.
    """
    queries = coarse_queries(model, batch)
    for number in range(num_fine + 1):
        output, asked = parallel_pass(
            model, batch, queries, fine=number > 0, score=number in scored, ask=number < num_fine
        )
        if output is not None:
            yield output
        queries = queries if asked is None else asked


def coarse_queries(model: FoveatedVLM, batch: CaptionBatch) -> Tensor:
    """The one query of the coarse pass, for every frame: (B, T, query_dim)."""
    return model.q_static.expand(*batch.frame_mask.shape, -1)


def parallel_pass(
    model: FoveatedVLM, batch: CaptionBatch, queries: Tensor, *, fine: bool, score: bool = True, ask: bool = True
) -> tuple[FoveatedVLMOutput | None, Tensor | None]:
    """All frames at once by `queries` (B, T, query_dim), whoever made them.

    fine: whether it is a fine pass, which mode tokens tell the language model. Returns the pass's output, or None where
    it is not to `score`, and the queries (B, T, query_dim) that it asks for next, or None where it is not to `ask`.
    """
    # z (B, T, D), attentions (B, T, heads, tokens of a frame) per ViT layer
    z, attentions = model.look(batch.patch_cache, queries, batch.frame_mask, batch.output_attentions)
    output: FoveatedVLMOutput | None = None
    hidden: Tensor | None = None
    asked: Tensor | None = None
    if score:
        output, hidden = score_visual_tokens(model, batch, queries, z, attentions, fine)
    if ask:
        # without mode tokens a run that scored has read the same frames after the same nothing
        if hidden is None or model.config.mode_tokens:
            read = _read_frames(model, z, batch.frame_mask, fine)
        else:
            read = hidden[:, : z.shape[1]]
        asked = _next_queries(model, read)
    return output, asked


def score_visual_tokens(
    model: FoveatedVLM, batch: CaptionBatch, queries: Tensor, z: Tensor, attentions: tuple[Tensor, ...], fine: bool
) -> tuple[FoveatedVLMOutput, Tensor]:
    """Captions scored behind visual tokens z (B, T, D) that are there, and the hidden states (B, N, D).

    queries, attentions: of the looks that took them, for the output. fine: as in `parallel_pass`.
    """
    text = model.get_input_embeddings()(batch.input_ids).to(z.dtype)
    embeds = torch.cat([model.before_caption(z, fine), text], dim=1)  # (B, N, D)
    hidden = model.run_llm(embeds, batch.padding)
    return score_captions(model.get_output_embeddings(), hidden, batch, queries, z, attentions), hidden


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
