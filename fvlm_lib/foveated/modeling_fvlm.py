"""The foveated vision-language model: one visual token a frame, by a query that the language model chooses.

`FoveatedVLM` holds the weights, one step with each of them, and the forward modes; the parallel passes are in
`passes.py`, watching frame by frame is in `watching.py`, without an end in `stream.py`. What the modes are given is
checked in `inputs.py`, what they return is in `output.py`; where videos come from and what a gap is, this module does
not know.

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
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.models.dinov2.modeling_dinov2 import Dinov2Model

from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig
from fvlm_lib.foveated.frame_reuse import encode_videos
from fvlm_lib.foveated.inputs import (
    CaptionBatch,
    CaptionOptions,
    caption_batch,
    checked_frame_mask,
    mask_before_caption,
)
from fvlm_lib.foveated.output import FoveatedVLMOutput
from fvlm_lib.foveated.passes import parallel_passes
from fvlm_lib.foveated.watching import score_watching, watch
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vision.towers import PatchCache, encode, look, open_tower


class FoveatedEncoder(nn.Module):
    """DINOv2 with a way in and a way out for the query."""

    def __init__(self, config: FoveatedVLMConfig) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.dino = Dinov2Model(config.vision_config)
        # without a bias: it would outweigh the query, and all queries would look at the same place
        self.query_input_proj = nn.Linear(config.query_dim, width, bias=False)
        self.output_proj = nn.Linear(width, width)


class FoveatedVLM(PreTrainedModel):
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

    config: FoveatedVLMConfig
    config_class = FoveatedVLMConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ["video", "text"]
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: FoveatedVLMConfig) -> None:
        super().__init__(config)
        text_width = config.text_config.hidden_size
        self.encoder = FoveatedEncoder(config)
        self.dino_to_llm = nn.Linear(config.vision_config.hidden_size, text_width)
        self.llm = AutoModelForCausalLM.from_config(config.text_config)
        self.llm_to_query = nn.Linear(text_width, config.query_dim)
        self.q_static = nn.Parameter(torch.empty(1, config.query_dim))
        self.q_init = nn.Parameter(torch.empty(1, config.query_dim))
        if config.mode_tokens:
            self.coarse_token = nn.Parameter(torch.empty(1, 1, text_width))
            self.fine_token = nn.Parameter(torch.empty(1, 1, text_width))
            self.no_text_token = nn.Parameter(torch.empty(1, 1, text_width))
            self.video_end_token = nn.Parameter(torch.empty(1, 1, text_width))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            # std 1: a smaller query drowns in the first layer's norm and gets no gradient
            init.normal_(self.q_static, mean=0.0, std=1.0)
            init.normal_(self.q_init, mean=0.0, std=1.0)
            if self.config.mode_tokens:
                for token in (self.coarse_token, self.fine_token, self.no_text_token, self.video_end_token):
                    init.normal_(token, mean=0.0, std=self.config.visual_scale)

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    # ---- steps that the modes share ------------------------------------------------------------------

    @property
    def num_query_layers(self) -> int | None:
        """How many of the vision tower's last layers a query walks through; None for all."""
        return None if self.config.deep_query else 1

    def encode_frames(
        self,
        pixel_values: Tensor,
        frame_mask: Tensor | None = None,
        differential: DifferentialSettings | None = None,
    ) -> PatchCache:
        """Encode a video's frames once, for any number of modes and passes.

        pixel_values (B, T, 3, height, width); frame_mask (B, T), 1 where there is a frame. differential: encode each
        frame from the one before it, where it changed, without gradients (`frame_reuse.encode_videos` also tells what
        was done). Returns a `PatchCache` with leading dimensions (B, T).
        """
        if differential is not None:
            return encode_videos(self, pixel_values, frame_mask, differential)[0]
        frame_mask = checked_frame_mask(pixel_values, frame_mask)
        # absent frames may hold anything, NaN included; it must not reach a product, not even times zero
        pixel_values = pixel_values.masked_fill(~frame_mask[..., None, None, None], 0.0)
        return encode(open_tower(self.encoder.dino), pixel_values, self.num_query_layers)

    def look(
        self,
        patch_cache: PatchCache,
        queries: Tensor,
        frame_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Visual tokens (..., D) that `queries` (..., query_dim) take from the frames of `patch_cache`.

        With one dimension more than the cache's leading ones, several queries look at each frame. Tokens are
        zero where frame_mask, which broadcasts to (...), is False. Also returns the queries' attention (...,
        heads, tokens of a frame) per ViT layer, () without `output_attentions`.
        """
        embedded = self.encoder.query_input_proj(queries)
        seen, attentions = look(open_tower(self.encoder.dino), patch_cache, embedded, output_attentions)
        z = self.dino_to_llm(self.encoder.output_proj(seen))
        z = _normalised(z, self.config, frame_mask)
        if frame_mask is not None:
            z = z.masked_fill(~frame_mask[..., None], 0.0)
        return z, attentions

    def run_llm(self, embeds: Tensor, mask: Tensor | None, past: DynamicCache | None = None) -> Tensor:
        """Last hidden states (B, N, D) of N new positions behind those in `past`; mask over all of them."""
        position_ids = None
        if mask is not None:
            position_ids = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
            mask = mask.long()
        return self.llm.base_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past,
            use_cache=past is not None,
        ).last_hidden_state

    def begin(self, batch_size: int, past: DynamicCache) -> list[Tensor]:
        """Read into `past` what precedes the first frame: the fine token, if any. Its hidden state (B, 1, D)."""
        if not self.config.mode_tokens:
            return []
        return [self.run_llm(self.fine_token.expand(batch_size, -1, -1), None, past)]

    def before_caption(self, z: Tensor, fine: bool) -> Tensor:
        """What precedes a caption: visual tokens z (B, T, D), or [coarse or fine, z, video_end]."""
        if not self.config.mode_tokens:
            return z
        mode = self.fine_token if fine else self.coarse_token
        batch = z.shape[0]
        return torch.cat([mode.expand(batch, -1, -1), z, self.video_end_token.expand(batch, -1, -1)], dim=1)

    # ---- the modes -----------------------------------------------------------------------------------

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
        batch = self.encode_batch(pixel_values, input_ids, attention_mask, **options)
        return list(parallel_passes(self, batch, num_fine if use_fine else 0, score_last_only=True))[-1]

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
        return parallel_passes(
            self, self.encode_batch(pixel_values, input_ids, attention_mask, **options), num_fine, score_last_only
        )

    def forward_autoregressive(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        differential: DifferentialSettings | None = None,
        **options: Unpack[CaptionOptions],
    ) -> FoveatedVLMOutput:
        """Score captions as at inference: frame by frame on the language model's KV cache, no coarse pass.

        The batch as told at `FoveatedVLM`. differential: as in `encode_frames`, of frames that are not yet encoded.
        """
        if differential is not None:
            if pixel_values is None or options.get("patch_cache") is not None:
                raise ValueError("differential says how pixel_values are encoded; it does not go with a patch_cache")
            options["patch_cache"] = self.encode_frames(pixel_values, options.get("frame_mask"), differential)
        return score_watching(self, self.encode_batch(pixel_values, input_ids, attention_mask, **options))[0]

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
        batch = self.encode_batch(pixel_values, input_ids, attention_mask, **options)
        if self.config.mode_tokens or self.config.visual_norm == "legacy":
            return [*parallel_passes(self, batch, num_fine), *score_watching(self, batch)]
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

    def encode_batch(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        frame_mask: Tensor | None = None,
        patch_cache: PatchCache | None = None,
        output_attentions: bool = False,
    ) -> CaptionBatch:
        """What a forward mode is given, checked, its frames encoded: for what runs several modes of one batch."""
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


def _normalised(z: Tensor, config: FoveatedVLMConfig, frame_mask: Tensor | None) -> Tensor:
    """Visual tokens (..., D) at the size that the config says, by its `visual_norm`."""
    if config.visual_norm == "token":
        z = z * torch.rsqrt(z.pow(2).mean(dim=-1, keepdim=True) + torch.finfo(z.dtype).tiny)
    elif config.visual_norm == "legacy":
        # one number for whatever this call holds, the unbiased std and the 1e-6 as published; absent
        # frames, which the published code did not have, do not count
        held = z if frame_mask is None else z[frame_mask]
        z = z / (held.std() + 1e-6) if held.numel() else z
    return z * config.visual_scale
