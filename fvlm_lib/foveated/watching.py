"""Watching frame by frame, as at inference: look, read, ask, in turn, on the language model's KV cache.

`watch` is the autoregressive recurrence, alone or with all parallel passes side by side; `score_watching` scores the
captions behind what was seen. A stream without an end is in `stream.py`, the parallel passes in `passes.py`.
Shapes: B samples, M modes, T frames, D the language model's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from fvlm_lib.foveated.inputs import CaptionBatch, padding_mask
from fvlm_lib.foveated.output import FoveatedVLMOutput, score_captions
from fvlm_lib.vision.towers import PatchCache

if TYPE_CHECKING:
    from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM


@dataclass(frozen=True)
class Watched:
    """What watching leaves: queries, visual tokens, and attentions per ViT layer, (B, M, T, ·) each.

    hidden: (B * M, 1, D) of each position that was read into `past`, rows samples, then modes. The last frame's
    token is not yet read: no query comes of it, so it is left to be read with what follows it.
    """

    queries: Tensor
    visual_tokens: Tensor
    attentions: tuple[Tensor, ...]
    hidden: list[Tensor]
    past: DynamicCache


def watch(
    model: FoveatedVLM,
    patch_cache: PatchCache,
    frame_mask: Tensor,
    num_fine: int | None = None,
    output_attentions: bool = False,
    cut_every: int | None = None,
) -> Watched:
    """Watch encoded frames one by one; frame_mask: bool (B, T), which of them are there.

    Autoregressively (M = 1), or with `num_fine` in M = num_fine + 2 modes side by side: coarse, each fine pass,
    autoregressive. cut_every: of gradients alone. Before every `cut_every`-th frame is read, what was read before it
    and its own token are detached, so that a query's gradient reaches back through so many frames at most (None: all).
    """
    (batch, num_frames), modes = frame_mask.shape, 1 if num_fine is None else num_fine + 2
    static = model.q_static.expand(batch, 1, -1)
    # a copy, since torch counts no FLOPs of what takes a view of a weight without gradients
    query = model.q_init.expand(batch, modes, -1).clone()  # (B, M, query_dim)
    if modes > 1:
        query = torch.cat([static, query[:, 1:]], dim=1)
    past = DynamicCache(config=model.llm.config)
    hidden = model.begin(batch * modes, past)
    padding = padding_mask(frame_mask, before=len(hidden))
    if padding is not None:
        padding = padding.repeat_interleave(modes, dim=0)
    queries, tokens, attentions = [], [], []
    for t in range(num_frames):
        z, attention = model.look(patch_cache.frame(t), query, frame_mask[:, t, None], output_attentions)
        queries.append(query)
        tokens.append(z)  # (B, M, D)
        attentions.append(attention)
        if t + 1 < num_frames:
            mask = None if padding is None else padding[:, : len(hidden) + 1]
            if cut_every is not None and t > 0 and t % cut_every == 0:
                _detach(past)
                z = z.detach()
            hidden.append(model.run_llm(z.flatten(0, 1)[:, None], mask, past))  # (B * M, 1, D)
            query = model.llm_to_query(hidden[-1]).reshape(batch, modes, -1)
            if modes > 1:  # coarse keeps its query, a fine pass takes the one of the pass before it
                query = torch.cat([static, query[:, :-2], query[:, -1:]], dim=1)
    return Watched(
        queries=torch.stack(queries, dim=2),
        visual_tokens=torch.stack(tokens, dim=2),
        attentions=tuple(torch.stack(layer, dim=2) for layer in zip(*attentions, strict=True)),
        hidden=hidden,
        past=past,
    )


def _detach(past: DynamicCache) -> None:
    """Keep no gradients of what is in `past`, whatever its layers hold."""
    for layer in past.layers:
        for name, value in vars(layer).items():
            if isinstance(value, Tensor):
                setattr(layer, name, value.detach())


def score_watching(model: FoveatedVLM, batch: CaptionBatch, num_fine: int | None = None) -> list[FoveatedVLMOutput]:
    """Score captions behind what `watch` sees, an output for each of its M modes."""
    seen = watch(model, batch.patch_cache, batch.frame_mask, num_fine, batch.output_attentions)
    modes = seen.queries.shape[1]
    before = model.before_caption(seen.visual_tokens.flatten(0, 1), fine=True)
    embeds = model.get_input_embeddings()(batch.input_ids).to(before.dtype).repeat_interleave(modes, dim=0)
    embeds = torch.cat([before[:, len(seen.hidden) :], embeds], dim=1)  # the last frame's is not yet read
    padding = None if batch.padding is None else batch.padding.repeat_interleave(modes, dim=0)
    hidden = torch.cat([*seen.hidden, model.run_llm(embeds, padding, seen.past)], dim=1)  # (B * M, N, D)
    return [
        score_captions(
            model.get_output_embeddings(),
            hidden[mode::modes],
            batch,
            queries=seen.queries[:, mode],
            visual_tokens=seen.visual_tokens[:, mode],
            attentions=tuple(layer[:, mode] for layer in seen.attentions),
        )
        for mode in range(modes)
    ]
