"""The parts of a foveated VLM: its weights, and one step with each of them: encode, look, read, ask.

In which order they are taken, the forward modes, is told in `modeling_fvlm.py` and `watching.py`. How a ViT is walked
is in `vision/towers.py`, what may be asked of a model in `configuration_fvlm.py`. Shapes: B samples, T frames, D the
language model's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.models.dinov2.modeling_dinov2 import Dinov2Model

from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig
from fvlm_lib.foveated.inputs import checked_frame_mask, padding_mask
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


class FoveatedParts(PreTrainedModel):
    """The weights of a `FoveatedVLM`, and what one step with them computes."""

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

    # ---- encode, look --------------------------------------------------------------------------------

    def encode_frames(self, pixel_values: Tensor, frame_mask: Tensor | None = None) -> PatchCache:
        """Encode a video's frames once, for any number of modes and passes.

        pixel_values (B, T, 3, height, width); frame_mask (B, T), 1 where there is a frame. Returns a
        `PatchCache` with leading dimensions (B, T).
        """
        frame_mask = checked_frame_mask(pixel_values, frame_mask)
        # absent frames may hold anything, NaN included; it must not reach a product, not even times zero
        pixel_values = pixel_values.masked_fill(~frame_mask[..., None, None, None], 0.0)
        return encode(open_tower(self.encoder.dino), pixel_values, None if self.config.deep_query else 1)

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
        if self.config.visual_norm == "token":
            z = z * torch.rsqrt(z.pow(2).mean(dim=-1, keepdim=True) + torch.finfo(z.dtype).tiny)
        elif self.config.visual_norm == "legacy":
            # one number for whatever this call holds, the unbiased std and the 1e-6 as published; absent
            # frames, which the published code did not have, do not count
            held = z if frame_mask is None else z[frame_mask]
            z = z / (held.std() + 1e-6) if held.numel() else z
        z = z * self.config.visual_scale
        if frame_mask is not None:
            z = z.masked_fill(~frame_mask[..., None], 0.0)
        return z, attentions

    # ---- read, ask -----------------------------------------------------------------------------------

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

    def read_frames(self, z: Tensor, frame_mask: Tensor, fine: bool) -> Tensor:
        """Hidden states (B, T, D) of a parallel pass over visual tokens z (B, T, D), for the next queries."""
        embeds = z
        if self.config.mode_tokens:
            mode = self.fine_token if fine else self.coarse_token
            before = torch.cat([self.no_text_token, mode], dim=1)  # (1, 2, D)
            embeds = torch.cat([before.expand(z.shape[0], -1, -1), z], dim=1)
        padding = padding_mask(frame_mask, before=embeds.shape[1] - z.shape[1])
        return self.run_llm(embeds, padding)[:, -z.shape[1] :]

    def before_caption(self, z: Tensor, fine: bool) -> Tensor:
        """What precedes a caption: visual tokens z (B, T, D), or [coarse or fine, z, video_end]."""
        if not self.config.mode_tokens:
            return z
        mode = self.fine_token if fine else self.coarse_token
        batch = z.shape[0]
        return torch.cat([mode.expand(batch, -1, -1), z, self.video_end_token.expand(batch, -1, -1)], dim=1)

    def next_queries(self, hidden: Tensor) -> Tensor:
        """Queries (B, T, query_dim) of the next parallel pass from the hidden states (B, T, D) of this one."""
        first = self.q_init.expand(hidden.shape[0], 1, -1)
        return torch.cat([first, self.llm_to_query(hidden[:, :-1])], dim=1)
