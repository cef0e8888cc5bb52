"""A vision-language model on a stream: one answer a frame, keeping from frame to frame what did not change.

Two things are kept. The vision tokens, by a `DifferentialVisionEncoder`; and the language model's keys and values.
A causal language model gives every position before the first changed embedding the same keys and values as for the
frame before, so the cache is cropped there and only the rest is run. That reuse is exact.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from fvlm_lib.schema import Beams, CountOrNone, Fit, NewTokens, Seed, Temperature, TopP, check, settings
from fvlm_lib.timing import now, timed
from fvlm_lib.vision.differential import DifferentialVisionEncoder
from fvlm_lib.vision.models import open_vision
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vlm.vlms import VLM


@settings
class Decoding:
    """How answers are decoded. Raises ValueError naming an option with a value that cannot be."""

    max_new_tokens: NewTokens = 32
    min_new_tokens: CountOrNone = 0
    temperature: Temperature = 0.0
    """0 is greedy."""
    top_p: TopP = 1.0
    """Of sampling: the smallest set of tokens with so much of the probability."""
    num_beams: Beams = 1
    seed: Seed = 0
    """Of sampling, frame by frame, so that a frame's answer does not depend on those before it."""

    def __post_init__(self) -> None:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens, which is {self.max_new_tokens}"
            )

    def options(self) -> dict[str, Any]:
        """Arguments of transformers' `generate`."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "num_beams": self.num_beams,
        }
        if self.temperature == 0:
            return options | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return options | {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}


GREEDY = Decoding()


@dataclass(frozen=True)
class Answer:
    """What was said about one frame, and what it took.

    path: of the vision encode, as in `FrameStatistics`; "full" without an encoder. changed_patches, num_patches:
    0 without an encoder. reused_tokens: positions of the prompt that were not run, of prompt_tokens in all.
    Times in ms: preprocess (the processor), encode (vision tower and projector), prefill (to the first token's
    logits), decode (the rest).
    """

    text: str
    token_ids: list[int]
    path: str
    changed_patches: int
    num_patches: int
    prompt_tokens: int
    reused_tokens: int
    preprocess_ms: float
    encode_ms: float
    prefill_ms: float
    decode_ms: float

    @property
    def first_token_ms(self) -> float:
        """Time to first token: from the frame in memory to the logits of the first token."""
        return self.preprocess_ms + self.encode_ms + self.prefill_ms


class VLMStream:
    """Answers one prompt about one frame after the other.

    encoder: None for the model's own full encode of every frame. reuse_prefix: keep the language model's keys and
    values from frame to frame.

    Raises ValueError for a prompt that cannot be right (`VLM.prompt_ids`), one that is longer with an image and an
    answer than the language model has positions, and for prefix reuse on a language model with sliding windows, whose
    cache cannot be cropped.
    """

    def __init__(
        self,
        vlm: VLM,
        prompt: str,
        encoder: DifferentialVisionEncoder | None = None,
        *,
        reuse_prefix: bool = True,
        fit: Fit = "processor",
        decoding: Decoding = GREEDY,
    ) -> None:
        check(Fit, fit, "fit")
        if reuse_prefix and any(DynamicCache(config=vlm.model.config).is_sliding):
            raise ValueError(
                f"the language model of {vlm.name} attends in sliding windows, so its prefix cannot be reused; "
                "switch that off (--disable-prefix-reuse)"
            )
        self.vlm, self.encoder, self.fit, self.decoding = vlm, encoder, fit, decoding
        self.reuse_prefix = reuse_prefix
        self.prompt_ids = vlm.prompt_ids(prompt)
        self._vision = encoder.vision if encoder else open_vision(vlm.model)
        self._check_positions()
        self.reset()

    @torch.no_grad()
    def _check_positions(self) -> None:
        """Raise ValueError where prompt, image and answer are more than the language model's positions."""
        positions = getattr(self.vlm.model.config.get_text_config(), "max_position_embeddings", None)
        if positions is None:
            return
        height, width = self.vlm.image_size
        blank = torch.zeros(1, 3, height, width, device=self.vlm.model.device, dtype=self._vision.dtype)
        tower = self._vision.tower  # its embeddings alone tell how many tokens there are
        tokens = self._vision.finish(self._vision.select(tower.embed(blank))) if tower else self._vision.own(blank)
        text, image, answer = len(self.prompt_ids) - 1, tokens.shape[1], self.decoding.max_new_tokens
        if text + image + answer > positions:
            raise ValueError(
                f"the prompt's {text} tokens, {image} of the image and up to {answer} of the answer (max_new_tokens) "
                f"are more than the {positions} positions of the language model of {self.vlm.name}; ask for less"
            )

    def reset(self) -> None:
        """Forget the frames seen, as between unrelated sequences."""
        if self.encoder:
            self.encoder.reset_cache()
        self._forget_prefix()

    def _forget_prefix(self) -> None:
        self._embeds: Tensor | None = None  # (1, L, D), what the cache was filled with
        self._past = DynamicCache(config=self.vlm.model.config)

    @torch.no_grad()
    def encode(self, frame: np.ndarray) -> tuple[Tensor, dict[str, Any]]:
        """The frame's vision tokens (1, P, D), and the fields of `Answer` that tell how they were made."""
        (pixel_values, preprocess_ms) = timed(lambda: self.vlm.pixel_values(frame, self.fit))
        if self.encoder is None:
            tokens, encode_ms = timed(lambda: self._vision.own(pixel_values))
            fields: dict[str, Any] = {"path": "full", "changed_patches": 0, "num_patches": 0}
        else:
            encoder = self.encoder
            (tokens, stats), encode_ms = timed(lambda: encoder.encode(pixel_values, return_stats=True))
            fields = {name: getattr(stats, name) for name in ("path", "changed_patches", "num_patches")}
        return tokens, fields | {"preprocess_ms": preprocess_ms, "encode_ms": encode_ms}

    @torch.no_grad()
    def answer(self, frame: np.ndarray, number: int = 0) -> Answer:
        """What the model says about a frame uint8 (H, W, 3); `number`, added to the seed, is the frame's own."""
        tokens, fields = self.encode(frame)
        embeds = self.vlm.embed(self.prompt_ids, tokens)
        length = embeds.shape[1]
        reused = self._crop_to(embeds)
        torch.manual_seed(self.decoding.seed + number)
        clock = _FirstToken()
        beams = self.decoding.num_beams
        if beams > 1 and reused:
            self._past.batch_repeat_interleave(beams)
        try:
            start = now()
            output = self.vlm.model.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
                past_key_values=self._past,
                logits_processor=[clock],
                return_dict_in_generate=True,
                pad_token_id=self._pad_token_id(),
                **self.decoding.options(),
            )
            end = now()
        except BaseException:  # an interrupted answer leaves half a cache
            self._forget_prefix()
            raise
        if self.reuse_prefix:
            self._past, self._embeds = output.past_key_values, embeds
            if beams > 1:
                self._past.batch_select_indices(torch.zeros(1, dtype=torch.long, device=embeds.device))
            self._past.crop(length - self._past.get_seq_length())
        else:
            self._forget_prefix()
        token_ids = output.sequences[0].tolist()
        return Answer(
            text=self.vlm.processor.tokenizer.decode(token_ids, skip_special_tokens=True),
            token_ids=token_ids,
            prompt_tokens=length,
            reused_tokens=reused,
            prefill_ms=1e3 * (clock.time - start),
            decode_ms=1e3 * (end - clock.time),
            **fields,
        )

    def _crop_to(self, embeds: Tensor) -> int:
        """Crop the cache at the first embedding that differs from the last frame's; how many positions it keeps.

        The last position always runs: its logits are the first token's.
        """
        if self._embeds is None:
            return 0
        if self._embeds.shape == embeds.shape:
            same = (self._embeds == embeds).all(dim=-1)[0]  # (L,)
            keep = int(same.long().cumprod(dim=0).sum())
        else:
            keep = 0
        keep = min(keep, embeds.shape[1] - 1)
        if keep == 0:
            self._forget_prefix()
        else:
            self._past.crop(keep - self._past.get_seq_length())
        return keep

    def _pad_token_id(self) -> int | None:
        """What finished beams are filled up with; the end token where the model names none."""
        config = self.vlm.model.generation_config
        end = config.eos_token_id
        end = end[0] if isinstance(end, list) else end
        return end if config.pad_token_id is None else config.pad_token_id


def open_encoder(
    vlm: VLM, settings: DifferentialSettings, skip_small_updates: bool = False
) -> DifferentialVisionEncoder:
    """The differential encoder of a model's vision tower, for frames as its processor normalises them.

    Where neither tower nor settings say the patch size, it is the processor's. Raises ValueError where settings and
    tower do not fit.
    """
    images = vlm.processor.image_processor
    options = asdict(settings)
    if settings.patch_size is None and getattr(vlm.model.config.vision_config, "patch_size", None) is None:
        options["patch_size"] = getattr(vlm.processor, "patch_size", None)
    encoder = DifferentialVisionEncoder(
        vlm.model,
        **options,
        skip_small_updates=skip_small_updates,
        image_mean=images.image_mean if images.do_normalize else None,
        image_std=images.image_std if images.do_normalize else None,
    )
    if skip_small_updates and encoder.vision.tower:
        raise ValueError(f"--diff-skip-small is for towers without partial updates; that of {vlm.name} has them")
    return encoder


class _FirstToken(LogitsProcessor):
    """Notes when the first logits were there."""

    time = 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.time:
            self.time = now()
        return scores
