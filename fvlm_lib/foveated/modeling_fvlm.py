"""The foveated vision-language model: one visual token a frame, by a query that the language model chooses.

`FoveatedVLM` holds the weights and the forward modes; `stream.py` watches one frame at a time. How a
ViT is walked is in `towers.py`, how a caption is scored in `scoring.py`, masks are in `inputs.py`; where videos
come from and what a gap is, this module does not know.

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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.models.dinov2.modeling_dinov2 import Dinov2Model
from transformers.utils.generic import ModelOutput

from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig
from fvlm_lib.foveated.inputs import CaptionInputs, checked_frame_mask, mask_before_caption, padding_mask
from fvlm_lib.scoring import sample_nll
from fvlm_lib.vision.towers import PatchCache, encode, look, open_tower


@dataclass
class FoveatedVLMOutput(ModelOutput):
    """What every forward mode returns.

    loss: mean NLL over all scored tokens of the batch, nats a token.
    nll: (B,) NLL summed over a sample's scored tokens, nats.
    num_tokens: (B,) how many tokens those are.
    logits: (B, L, vocabulary); logits[:, i] predicts text token i.
    labels: (B, L) what was scored, -100 where nothing was.
    queries: (B, T, query_dim), the queries that took `visual_tokens`.
    visual_tokens: (B, T, D); zero where there is no frame.
    attentions: with `output_attentions`, per ViT layer (B, T, heads, tokens of a frame).
    """

    # ModelOutput wants defaults; every mode sets all of these
    loss: Tensor = None  # type: ignore[assignment]
    nll: Tensor = None  # type: ignore[assignment]
    num_tokens: Tensor = None  # type: ignore[assignment]
    logits: Tensor = None  # type: ignore[assignment]
    labels: Tensor = None  # type: ignore[assignment]
    queries: Tensor = None  # type: ignore[assignment]
    visual_tokens: Tensor = None  # type: ignore[assignment]
    attentions: tuple[Tensor, ...] | None = None


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
    """A foveated VLM over DINOv2 and any causal language model of transformers."""

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

    # ---- the parts that the modes share --------------------------------------------------------------

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

    def _read_frames(self, z: Tensor, frame_mask: Tensor, fine: bool) -> Tensor:
        """Hidden states (B, T, D) of a parallel pass over visual tokens z (B, T, D), for the next queries."""
        embeds = z
        if self.config.mode_tokens:
            mode = self.fine_token if fine else self.coarse_token
            before = torch.cat([self.no_text_token, mode], dim=1)  # (1, 2, D)
            embeds = torch.cat([before.expand(z.shape[0], -1, -1), z], dim=1)
        padding = padding_mask(frame_mask, before=embeds.shape[1] - z.shape[1])
        return self.run_llm(embeds, padding)[:, -z.shape[1] :]

    def _before_caption(self, z: Tensor, fine: bool) -> Tensor:
        """What precedes a caption: visual tokens z (B, T, D), or [coarse or fine, z, video_end]."""
        if not self.config.mode_tokens:
            return z
        mode = self.fine_token if fine else self.coarse_token
        batch = z.shape[0]
        return torch.cat([mode.expand(batch, -1, -1), z, self.video_end_token.expand(batch, -1, -1)], dim=1)

    def _next_queries(self, hidden: Tensor) -> Tensor:
        """Queries (B, T, query_dim) of the next pass from the hidden states (B, T, D) of this one."""
        first = self.q_init.expand(hidden.shape[0], 1, -1)
        return torch.cat([first, self.llm_to_query(hidden[:, :-1])], dim=1)

    def _output(self, hidden: Tensor, text: CaptionInputs, **fields: Any) -> FoveatedVLMOutput:
        """Score the caption from the hidden states (B, N, D) of all positions, the L text ones last."""
        index = text.predictors[..., None].expand(-1, -1, hidden.shape[-1])
        logits = self.llm.get_output_embeddings()(hidden.gather(1, index))  # (B, L, vocabulary)
        nll, num_tokens = sample_nll(logits, text.labels)
        return FoveatedVLMOutput(
            loss=nll.sum() / num_tokens.sum(),
            nll=nll,
            num_tokens=num_tokens,
            logits=logits,
            labels=text.labels,
            **fields,
        )

    # ---- the modes -----------------------------------------------------------------------------------

    def forward(self, *args: Any, mode: str = "captioning", **kwargs: Any) -> FoveatedVLMOutput:
        """`forward_captioning` (mode="captioning") or `forward_autoregressive` (mode="autoregressive")."""
        if mode == "captioning":
            return self.forward_captioning(*args, **kwargs)
        if mode == "autoregressive":
            return self.forward_autoregressive(*args, **kwargs)
        raise ValueError(f"mode is {mode!r}; it must be 'captioning' or 'autoregressive'")

    def forward_captioning(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        frame_mask: Tensor | None = None,
        use_fine: bool = True,
        num_fine: int = 1,
        patch_cache: PatchCache | None = None,
        output_attentions: bool = False,
    ) -> FoveatedVLMOutput:
        """Score captions in parallel over frames: coarse (`use_fine=False`), else coarse->fine.

        pixel_values (B, T, 3, height, width), or None with the `patch_cache` of `encode_frames`.
        input_ids, attention_mask, labels (B, L): labels default to input_ids where attention_mask is 1;
        -100 is not scored. frame_mask (B, T): 1 for frames, 0 behind the end of a shorter video.
        num_fine: fine passes; only the last one is scored.
        """
        if use_fine and num_fine < 1:
            raise ValueError(f"num_fine is {num_fine}; it must be at least 1 (use_fine=False for coarse alone)")
        passes = self.forward_passes(
            pixel_values,
            input_ids,
            attention_mask,
            labels,
            frame_mask,
            num_fine if use_fine else 0,
            patch_cache,
            output_attentions,
            score_last_only=True,
        )
        return list(passes)[-1]

    def forward_passes(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        frame_mask: Tensor | None = None,
        num_fine: int = 1,
        patch_cache: PatchCache | None = None,
        output_attentions: bool = False,
        score_last_only: bool = False,
    ) -> Iterator[FoveatedVLMOutput]:
        """The coarse pass and each of `num_fine` fine passes, as they are computed, sharing all work.

        Arguments as in `forward_captioning`. One run of the language model a pass both scores its caption
        and gives the next pass its queries (two runs with `mode_tokens`). With `score_last_only`, only the
        last pass is yielded, and the passes before it run over the visual tokens alone.
        """
        patch_cache, frame_mask = self._watched(pixel_values, frame_mask, patch_cache)
        text = CaptionInputs(input_ids, attention_mask, labels, frame_mask, self.config.mode_tokens)
        queries = self.q_static.expand(*frame_mask.shape, -1)  # (B, T, query_dim)
        for number in range(num_fine + 1):
            z, attentions = self.look(patch_cache, queries, frame_mask, output_attentions)  # (B, T, D)
            last, fine = number == num_fine, number > 0
            if last or not score_last_only:
                before = self._before_caption(z, fine)
                embeds = torch.cat([before, self.get_input_embeddings()(text.input_ids).to(z.dtype)], dim=1)
                hidden = self.run_llm(embeds, text.padding)  # (B, N, D)
                yield self._output(
                    hidden,
                    text,
                    queries=queries,
                    visual_tokens=z,
                    attentions=attentions if output_attentions else None,
                )
            if not last:
                # without mode tokens the run that scored has read the same frames after the same nothing
                shared = not (score_last_only or self.config.mode_tokens)
                read = hidden[:, : z.shape[1]] if shared else self._read_frames(z, frame_mask, fine)
                queries = self._next_queries(read)

    def forward_autoregressive(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        frame_mask: Tensor | None = None,
        patch_cache: PatchCache | None = None,
        output_attentions: bool = False,
    ) -> FoveatedVLMOutput:
        """Score captions as at inference: frame by frame on the language model's KV cache, no coarse pass.

        Arguments as in `forward_captioning`.
        """
        patch_cache, frame_mask = self._watched(pixel_values, frame_mask, patch_cache)
        text = CaptionInputs(input_ids, attention_mask, labels, frame_mask, self.config.mode_tokens)
        return self._score_watching(patch_cache, frame_mask, text, None, output_attentions)[0]

    def forward_modes(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        frame_mask: Tensor | None = None,
        num_fine: int = 1,
        patch_cache: PatchCache | None = None,
    ) -> list[FoveatedVLMOutput]:
        """What `forward_passes` yields and `forward_autoregressive` returns, in this order, in less time.

        Arguments as in `forward_captioning`. All modes watch side by side, frame by frame: at frame t a fine
        pass needs the pass before it up to frame t - 1, no more. So all weights are read once for all modes.
        With mode tokens or the legacy norm, whose passes are not causal like that, the modes run in turn.
        """
        patch_cache, frame_mask = self._watched(pixel_values, frame_mask, patch_cache)
        if self.config.mode_tokens or self.config.visual_norm == "legacy":
            given = (None, input_ids, attention_mask, labels, frame_mask)
            passes = self.forward_passes(*given, num_fine=num_fine, patch_cache=patch_cache)
            return [*passes, self.forward_autoregressive(*given, patch_cache=patch_cache)]
        text = CaptionInputs(input_ids, attention_mask, labels, frame_mask, mode_tokens=False)
        return self._score_watching(patch_cache, frame_mask, text, num_fine)

    def _score_watching(
        self,
        patch_cache: PatchCache,
        frame_mask: Tensor,
        text: CaptionInputs,
        num_fine: int | None,
        output_attentions: bool = False,
    ) -> list[FoveatedVLMOutput]:
        """Score captions behind what `_watch` saw, for each of its M modes."""
        past = DynamicCache(config=self.llm.config)
        seen = self._watch(patch_cache, frame_mask, past, num_fine, output_attentions)
        modes = seen.queries.shape[1]
        before = self._before_caption(seen.visual_tokens.flatten(0, 1), fine=True)
        embeds = self.get_input_embeddings()(text.input_ids).to(before.dtype).repeat_interleave(modes, dim=0)
        embeds = torch.cat([before[:, len(seen.hidden) :], embeds], dim=1)  # the last frame's is not yet read
        padding = None if text.padding is None else text.padding.repeat_interleave(modes, dim=0)
        hidden = torch.cat([*seen.hidden, self.run_llm(embeds, padding, past)], dim=1)  # (B * M, N, D)
        return [
            self._output(
                hidden[mode::modes],
                text,
                queries=seen.queries[:, mode],
                visual_tokens=seen.visual_tokens[:, mode],
                attentions=tuple(layer[:, mode] for layer in seen.attentions) if output_attentions else None,
            )
            for mode in range(modes)
        ]

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

        pixel_values, frame_mask, patch_cache as in `forward_captioning`; input_ids, attention_mask (B, L):
        an optional prompt behind the visual tokens. `generate_kwargs` go to transformers' `generate`
        (max_new_tokens, do_sample, num_beams, ...). Returns the generated token ids (B, new tokens).
        """
        patch_cache, frame_mask = self._watched(pixel_values, frame_mask, patch_cache)
        seen = self._watch(patch_cache, frame_mask, DynamicCache(config=self.llm.config))
        embeds = self._before_caption(seen.visual_tokens[:, 0], fine=True)
        mask = mask_before_caption(frame_mask, self.config.mode_tokens)
        if input_ids is not None:
            prompt_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            embeds = torch.cat([embeds, self.get_input_embeddings()(input_ids).to(embeds.dtype)], dim=1)
            mask = torch.cat([mask, prompt_mask.bool()], dim=1)
        order = mask.long().argsort(dim=1, stable=True)  # padding first, as decoding wants it
        embeds = embeds.gather(1, order[..., None].expand_as(embeds))
        return self.llm.generate(inputs_embeds=embeds, attention_mask=mask.gather(1, order).long(), **generate_kwargs)

    def _watched(
        self, pixel_values: Tensor | None, frame_mask: Tensor | None, patch_cache: PatchCache | None
    ) -> tuple[PatchCache, Tensor]:
        """The frames' cache and their mask (B, T), from pixels or from a cache made before."""
        if patch_cache is None:
            if pixel_values is None:
                raise ValueError("pixel_values and patch_cache are both None; one of them is needed")
            patch_cache = self.encode_frames(pixel_values, frame_mask)
        return patch_cache, checked_frame_mask(patch_cache.keys[0], frame_mask)

    def begin(self, batch_size: int, past: DynamicCache) -> list[Tensor]:
        """Read into `past` what precedes the first frame: the fine token, if any. Its hidden state (B, 1, D)."""
        if not self.config.mode_tokens:
            return []
        return [self.run_llm(self.fine_token.expand(batch_size, -1, -1), None, past)]

    def _watch(
        self,
        patch_cache: PatchCache,
        frame_mask: Tensor,
        past: DynamicCache,
        num_fine: int | None = None,
        output_attentions: bool = False,
    ) -> _Watched:
        """Watch frame by frame, filling `past` with one position a frame, behind `_begin`.

        Autoregressively (M = 1), or with `num_fine` in M = num_fine + 2 modes side by side: coarse, each fine
        pass, autoregressive. Rows of `past` are samples, then modes. The last frame's token is left to be read
        with what follows it, since no query comes of it.
        """
        (batch, num_frames), modes = frame_mask.shape, 1 if num_fine is None else num_fine + 2
        static = self.q_static.expand(batch, 1, -1)
        query = self.q_init.expand(batch, modes, -1)  # (B, M, query_dim)
        if modes > 1:
            query = torch.cat([static, query[:, 1:]], dim=1)
        hidden = self.begin(batch * modes, past)
        padding = padding_mask(frame_mask, before=len(hidden))
        if padding is not None:
            padding = padding.repeat_interleave(modes, dim=0)
        queries, tokens, attentions = [], [], []
        for t in range(num_frames):
            z, attention = self.look(patch_cache.frame(t), query, frame_mask[:, t, None], output_attentions)
            queries.append(query)
            tokens.append(z)  # (B, M, D)
            attentions.append(attention)
            if t + 1 < num_frames:
                mask = None if padding is None else padding[:, : len(hidden) + 1]
                hidden.append(self.run_llm(z.flatten(0, 1)[:, None], mask, past))  # (B * M, 1, D)
                query = self.llm_to_query(hidden[-1]).reshape(batch, modes, -1)
                if modes > 1:  # coarse keeps its query, a fine pass takes the one of the pass before it
                    query = torch.cat([static, query[:, :-2], query[:, -1:]], dim=1)
        return _Watched(
            queries=torch.stack(queries, dim=2),
            visual_tokens=torch.stack(tokens, dim=2),
            hidden=hidden,
            attentions=tuple(torch.stack(layer, dim=2) for layer in zip(*attentions, strict=True)),
        )


@dataclass(frozen=True)
class _Watched:
    """What watching leaves: (B, M, T, ·) each, attentions per ViT layer; `hidden` (B * M, 1, D) of each position
    that was read."""

    queries: Tensor
    visual_tokens: Tensor
    hidden: list[Tensor]
    attentions: tuple[Tensor, ...]
