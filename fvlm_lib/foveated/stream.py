"""A foveated VLM on a stream: one frame at a time, captioned at any moment.

A stream is the autoregressive mode of `watching.py` without an end. How a frame's cache is updated where the frame
changed is `frame_reuse.py`'s subject.
"""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from fvlm_lib.foveated.frame_reuse import encode_changes, open_frame_encoder
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.reuse.fastest import PackWeights
from fvlm_lib.timing import now
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vision.towers import PatchCache


@dataclass(frozen=True)
class PushTimes:
    """Milliseconds of one `FoveatedStream.push`: encoding the frame, the query's look at it, and the language model,
    which reads the visual token and gives the next query."""

    encode: float
    look: float
    language: float


class FoveatedStream:
    """Watch a stream one frame at a time and caption it at any moment.

    Holds one frame's `PatchCache` (`patch_cache`) and the language model's KV cache, one position a frame (and
    the fine token's, with mode tokens); memory does not grow by frames' pixels or patches.

    differential: encode each frame from the one before, where it changed; None encodes every frame in full. With
        threshold 0 and tolerance 0 both see the same. A frame on which nothing changed costs a look and a position of
        the language model. `encoder` is then the `DifferentialVisionEncoder`, which has the statistics; it keeps a
        frame's rows at every layer, and changes `patch_cache` in place.
    pack_weights, pack_memory: of the differential encoder; see `towers.open_tower`.
    max_frames: so many frames at most are in the KV cache, since a language model has only so many positions and was
        trained on so many frames. The next one begins it anew from the visual tokens of the newest max_frames // 2, as
        if these alone had been seen. Memory is then the same however long the stream is. None keeps all.
    timed: keep what each part of a push took, in `times`; on an accelerator, each part is then waited for.

    Raises TypeError for a differential encoding of a tower without an adapter, and ValueError for settings that do not
    fit the tower, and for max_frames below 2.
    """

    def __init__(
        self,
        model: FoveatedVLM,
        differential: DifferentialSettings | None = None,
        *,
        pack_weights: PackWeights = False,
        pack_memory: int | None = None,
        max_frames: int | None = None,
        timed: bool = False,
    ) -> None:
        if max_frames is not None and max_frames < 2:
            raise ValueError(f"max_frames is {max_frames}; it must be at least 2, or None for all")
        self.max_frames, self.timed = max_frames, timed
        self.model = model.eval()
        self.encoder = (
            None if differential is None else open_frame_encoder(model, differential, pack_weights, pack_memory)
        )
        self.reset()

    def reset(self) -> None:
        """Forget everything seen; the encoder's statistics stay."""
        self.past_key_values, self.query = self._read([])
        if self.encoder is not None:
            self.encoder.reset_cache()
        self.patch_cache: PatchCache | None = None
        self.num_frames = 0
        self.attentions: tuple[Tensor, ...] = ()
        self.times: PushTimes | None = None
        # visual tokens (1, D) of the frames in the KV cache that are needed again: the last, or the newest half
        self._tokens: deque[Tensor] = deque(maxlen=1 if self.max_frames is None else self.max_frames // 2)

    @torch.no_grad()
    def push(self, frame: Tensor, output_attentions: bool = False) -> Tensor:
        """Watch one frame (3, height, width) or (1, 3, height, width); returns its visual token (1, D).

        Frames may differ in size. output_attentions: keep where the query looked in `attentions`, (1, heads, tokens of
        a frame) per ViT layer, else (). Raises ValueError for a frame that cannot be right. Whatever is raised, an
        interrupt by the user included, the stream has seen what it had seen before, and may go on.
        """
        if frame.ndim not in (3, 4) or (frame.ndim == 4 and len(frame) != 1):
            raise ValueError(f"frame has shape {tuple(frame.shape)}; it must be (3, height, width)")
        frame = frame.reshape(1, *frame.shape[-3:])
        start = self._clock()
        if self.encoder is None:
            self.patch_cache = self.model.encode_frames(frame[None]).frame(0)
        else:
            self.patch_cache = encode_changes(self.model, self.encoder, frame)
        encoded = self._clock()
        past, query = self.past_key_values, self.query
        if self._positions(past) == self.max_frames:
            past, query = self._read(list(self._tokens))
        begun = self._clock()
        token, attentions = self.model.look(self.patch_cache, query, output_attentions=output_attentions)  # (1, D)
        looked = self._clock()
        kept = _layers(past)
        try:
            hidden = self.model.run_llm(token[:, None], None, past)
            query = self.model.llm_to_query(hidden[:, 0])
            read = self._clock()
        except BaseException:  # some layers may have read the frame, others not
            past.layers = kept
            raise
        self.past_key_values, self.query, self.attentions = past, query, attentions
        self._tokens.append(token)
        self.num_frames += 1
        if self.timed:
            language = begun - encoded + read - looked
            self.times = PushTimes(1e3 * (encoded - start), 1e3 * (looked - begun), 1e3 * language)
        return token

    def _clock(self) -> float:
        return now() if self.timed else 0.0

    def _positions(self, past: DynamicCache) -> int:
        """Frames in a KV cache."""
        return past.get_seq_length() - int(self.model.config.mode_tokens)

    @torch.no_grad()
    def _read(self, tokens: list[Tensor]) -> tuple[DynamicCache, Tensor]:
        """A KV cache that holds these visual tokens (1, D) alone, and the query (1, query_dim) of the frame behind."""
        past = DynamicCache(config=self.model.llm.config)
        self.model.begin(1, past)
        if not tokens:
            return past, self.model.q_init
        hidden = self.model.run_llm(torch.stack(tokens, dim=1), None, past)
        return past, self.model.llm_to_query(hidden[:, -1])

    @torch.no_grad()
    def caption(self, input_ids: Tensor | None = None, **generate_kwargs: Any) -> Tensor:
        """Caption what was seen so far, without disturbing the stream; token ids (1, new tokens).

        input_ids (1, L): an optional prompt. `generate_kwargs` go to transformers' `generate`.
        """
        if not self._tokens:
            raise ValueError("the stream has seen no frame yet; push one first")
        past = copy.deepcopy(self.past_key_values)
        if self.model.config.mode_tokens:
            embeds = self.model.video_end_token  # (1, 1, D), predicts the caption's first token
        else:
            past.crop(-1)  # the last visual token runs again: it predicts the caption's first token
            embeds = self._tokens[-1][:, None]
        if input_ids is not None:
            embeds = torch.cat([embeds, self.model.get_input_embeddings()(input_ids).to(embeds.dtype)], dim=1)
        # `generate` cuts off as many leading embeddings as the cache holds positions, whatever they are
        embeds = F.pad(embeds, (0, 0, past.get_seq_length(), 0))  # (1, positions in the cache + 1 + L, D)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        return self.model.llm.generate(
            inputs_embeds=embeds, attention_mask=mask, past_key_values=past, **generate_kwargs
        )


def _layers(cache: DynamicCache) -> list[Any]:
    """The layers of a KV cache as they are now. No copies of what they hold: a position more is a new tensor."""
    return [copy.copy(layer) for layer in cache.layers]
