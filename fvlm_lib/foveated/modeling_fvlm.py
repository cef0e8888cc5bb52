"""The foveated vision-language model: one visual token a frame, by a query that the language model chooses.

`FoveatedVLM` is the forward modes over the weights of `parts.py`: the parallel passes are here, watching frame by
frame is in `watching.py`, without an end in `stream.py`. What the modes are given is checked in `inputs.py`, what
they return is in `output.py`; where videos come from and what a gap is, this module does not know.

With h_t the language model's last hidden state at visual position t and look(t, q) the walk of query q
through the ViT over frame t's keys and values:

* coarse: z_t = look(t, q_static).
* coarse->fine (training): q_0 = q_init, q_t = llm_to_query(h_{t-1}) of the pass before, z_t = look(t, q_t)
  for all t at once; `num_fine` times. It is a Jacobi iteration of the autoregressive recurrence: after K
  fine passes the first K frames are exact.
* autoregressive (inference): q_0 = q_init, z_t = look(t, q_t), q_{t+1} = llm_to_query(h_t), in turn.

The caption follows the visual tokens; the last visual token predicts the caption's first token. With
`mode_tokens`, as older checkpoints have them, the language model reads them around the visual tokens: see
`FoveatedVLMConfig`. Shapes: B samples, T frames, L text tokens, D the language model's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

import torch
from torch import Tensor

from fvlm_lib.foveated.inputs import (
    CaptionBatch,
    CaptionOptions,
    caption_batch,
    checked_frame_mask,
    mask_before_caption,
)
from fvlm_lib.foveated.output import FoveatedVLMOutput, score_captions
from fvlm_lib.foveated.parts import FoveatedParts
from fvlm_lib.foveated.watching import score_watching, watch
from fvlm_lib.vision.towers import PatchCache


class FoveatedVLM(FoveatedParts):
    """A foveated VLM over DINOv2 and any causal language model of transformers.

    Every forward mode takes the same batch:

    pixel_values: (B, T, 3, height, width), or None with a `patch_cache`.
    input_ids, attention_mask: (B, L), the captions and where they are not padding (default: everywhere).
    labels: (B, L), -100 is not scored; default is input_ids where attention_mask is 1.
    frame_mask: (B, T), 1 for frames, 0 behind the end of a shorter video; default is 1 everywhere.
    patch_cache: what `encode_frames` made of the frames, with the same frame_mask.
    output_attentions: keep the queries' attention in the output.

    Raises ValueError, naming the argument, for shapes and masks that do not fit each other, and for a caption
    without a token to score.
    """

    def forward(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        mode: str = "captioning",
        **options: Any,
    ) -> FoveatedVLMOutput:
        """`forward_captioning` (mode="captioning") or `forward_autoregressive` (mode="autoregressive").

        The batch as told at `FoveatedVLM`; `options` are the mode's own, too.
        """
        if mode == "captioning":
            return self.forward_captioning(pixel_values, input_ids, attention_mask, **options)
        if mode == "autoregressive":
            return self.forward_autoregressive(pixel_values, input_ids, attention_mask, **options)
        raise ValueError(f"mode is {mode!r}; it must be 'captioning' or 'autoregressive'")

    def forward_captioning(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        use_fine: bool = True,
        num_fine: int = 1,
        **options: Unpack[CaptionOptions],
    ) -> FoveatedVLMOutput:
        """Score captions in parallel over frames: coarse (`use_fine=False`), else coarse->fine.

        The batch as told at `FoveatedVLM`. num_fine: fine passes; only the last one is scored.
        """
        if use_fine and num_fine < 1:
            raise ValueError(f"num_fine is {num_fine}; it must be at least 1 (use_fine=False for coarse alone)")
        batch = self._batch(pixel_values, input_ids, attention_mask, **options)
        return list(self._passes(batch, num_fine if use_fine else 0, score_last_only=True))[-1]

    def forward_passes(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        num_fine: int = 1,
        score_last_only: bool = False,
        **options: Unpack[CaptionOptions],
    ) -> Iterator[FoveatedVLMOutput]:
        """The coarse pass and each of `num_fine` fine passes, as they are computed, sharing all work.

        The batch as told at `FoveatedVLM`. One run of the language model a pass both scores its caption and gives the
        next pass its queries (two runs with `mode_tokens`). With `score_last_only`, only the last pass is yielded, and
        the passes before it run over the visual tokens alone.
        """
        return self._passes(self._batch(pixel_values, input_ids, attention_mask, **options), num_fine, score_last_only)

    def forward_autoregressive(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **options: Unpack[CaptionOptions],
    ) -> FoveatedVLMOutput:
        """Score captions as at inference: frame by frame on the language model's KV cache, no coarse pass.

        The batch as told at `FoveatedVLM`.
        """
        return score_watching(self, self._batch(pixel_values, input_ids, attention_mask, **options))[0]

    def forward_modes(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        num_fine: int = 1,
        **options: Unpack[CaptionOptions],
    ) -> list[FoveatedVLMOutput]:
        """What `forward_passes` yields and `forward_autoregressive` returns, in this order, in less time.

        The batch as told at `FoveatedVLM`. All modes watch side by side, frame by frame: at frame t a fine pass needs
        the pass before it up to frame t - 1, no more. So all weights are read once for all modes. With mode tokens or
        the legacy norm, whose passes are not causal like that, the modes run in turn.
        """
        batch = self._batch(pixel_values, input_ids, attention_mask, **options)
        if self.config.mode_tokens or self.config.visual_norm == "legacy":
            return [*self._passes(batch, num_fine), *score_watching(self, batch)]
        return score_watching(self, batch, num_fine)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
        patch_cache: PatchCache | None = None,
        **generate_kwargs: Any,
    ) -> Tensor:
        """Caption videos: watch autoregressively, decode with the language model's own `generate`.

        pixel_values, frame_mask, patch_cache as in a forward mode; input_ids, attention_mask (B, L): an optional
        prompt behind the visual tokens. `generate_kwargs` go to transformers' `generate` (max_new_tokens, do_sample,
        num_beams, ...). Returns the generated token ids (B, new tokens).
        """
        patch_cache, frame_mask = self._frames(pixel_values, frame_mask, patch_cache)
        seen = watch(self, patch_cache, frame_mask)
        embeds = self.before_caption(seen.visual_tokens[:, 0], fine=True)
        mask = mask_before_caption(frame_mask, self.config.mode_tokens)
        if input_ids is not None:
            prompt_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            embeds = torch.cat([embeds, self.get_input_embeddings()(input_ids).to(embeds.dtype)], dim=1)
            mask = torch.cat([mask, prompt_mask.bool()], dim=1)
        order = mask.long().argsort(dim=1, stable=True)  # padding first, as decoding wants it
        embeds = embeds.gather(1, order[..., None].expand_as(embeds))
        return self.llm.generate(inputs_embeds=embeds, attention_mask=mask.gather(1, order).long(), **generate_kwargs)

    def _passes(self, batch: CaptionBatch, num_fine: int, score_last_only: bool = False) -> Iterator[FoveatedVLMOutput]:
        """`forward_passes` of a batch that is checked."""
        queries = self.q_static.expand(*batch.frame_mask.shape, -1)  # (B, T, query_dim)
        for number in range(num_fine + 1):
            # z (B, T, D), attentions (B, T, heads, tokens of a frame) per ViT layer
            z, attentions = self.look(batch.patch_cache, queries, batch.frame_mask, batch.output_attentions)
            last, fine = number == num_fine, number > 0
            if last or not score_last_only:
                text = self.get_input_embeddings()(batch.input_ids).to(z.dtype)
                embeds = torch.cat([self.before_caption(z, fine), text], dim=1)  # (B, N, D)
                hidden = self.run_llm(embeds, batch.padding)
                yield score_captions(self.get_output_embeddings(), hidden, batch, queries, z, attentions)
            if not last:
                # without mode tokens the run that scored has read the same frames after the same nothing
                shared = not (score_last_only or self.config.mode_tokens)
                read = hidden[:, : z.shape[1]] if shared else self.read_frames(z, batch.frame_mask, fine)
                queries = self.next_queries(read)

    def _batch(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        frame_mask: Tensor | None = None,
        patch_cache: PatchCache | None = None,
        output_attentions: bool = False,
    ) -> CaptionBatch:
        """What a forward mode is given, checked, its frames encoded."""
        patch_cache, frame_mask = self._frames(pixel_values, frame_mask, patch_cache)
        return caption_batch(
            patch_cache,
            frame_mask,
            input_ids,
            attention_mask,
            labels,
            mode_tokens=self.config.mode_tokens,
            output_attentions=output_attentions,
        )

    def _frames(
        self, pixel_values: Tensor | None, frame_mask: Tensor | None, patch_cache: PatchCache | None
    ) -> tuple[PatchCache, Tensor]:
        """The frames' cache and their mask (B, T), from pixels or from a cache made before."""
        if patch_cache is None:
            if pixel_values is None:
                raise ValueError("pixel_values and patch_cache are both None; one of them is needed")
            patch_cache = self.encode_frames(pixel_values, frame_mask)
        return patch_cache, checked_frame_mask(patch_cache.keys[0], frame_mask)
