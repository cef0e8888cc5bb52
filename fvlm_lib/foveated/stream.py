"""A foveated VLM on a stream: one frame at a time, captioned at any moment.

A stream is the autoregressive mode of `watching.py` without an end.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.vision.towers import PatchCache


class FoveatedStream:
    """Watch a stream one frame at a time and caption it at any moment.

    Holds one frame's `PatchCache` (`patch_cache`) and the language model's KV cache, one position a frame (and
    the fine token's, with mode tokens); memory does not grow by frames' pixels or patches.
    """

    def __init__(self, model: FoveatedVLM) -> None:
        self.model = model.eval()
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        self.past_key_values = DynamicCache(config=self.model.llm.config)
        with torch.no_grad():
            self.model.begin(1, self.past_key_values)
        self.patch_cache: PatchCache | None = None
        self.query = self.model.q_init
        self.num_frames = 0
        self._last_token: Tensor | None = None

    @torch.no_grad()
    def push(self, frame: Tensor) -> Tensor:
        """Watch one frame (3, height, width) or (1, 3, height, width); returns its visual token (1, D)."""
        frame = frame.reshape(1, 1, *frame.shape[-3:])
        self.patch_cache = self.model.encode_frames(frame).frame(0)
        token, _ = self.model.look(self.patch_cache, self.query)  # (1, D)
        hidden = self.model.run_llm(token[:, None], None, self.past_key_values)
        self.query = self.model.llm_to_query(hidden[:, 0])
        self.num_frames += 1
        self._last_token = token
        return token

    @torch.no_grad()
    def caption(self, input_ids: Tensor | None = None, **generate_kwargs: Any) -> Tensor:
        """Caption what was seen so far, without disturbing the stream; token ids (1, new tokens).

        input_ids (1, L): an optional prompt. `generate_kwargs` go to transformers' `generate`.
        """
        if self._last_token is None:
            raise ValueError("the stream has seen no frame yet; push one first")
        past = copy.deepcopy(self.past_key_values)
        if self.model.config.mode_tokens:
            embeds = self.model.video_end_token  # (1, 1, D), predicts the caption's first token
        else:
            past.crop(-1)  # the last visual token runs again: it predicts the caption's first token
            embeds = self._last_token[:, None]
        if input_ids is not None:
            embeds = torch.cat([embeds, self.model.get_input_embeddings()(input_ids).to(embeds.dtype)], dim=1)
        # `generate` cuts off as many leading embeddings as the cache holds positions, whatever they are
        embeds = F.pad(embeds, (0, 0, past.get_seq_length(), 0))  # (1, positions in the cache + 1 + L, D)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        return self.model.llm.generate(
            inputs_embeds=embeds, attention_mask=mask, past_key_values=past, **generate_kwargs
        )
