"""A vision-language model on a stream: one answer a frame, keeping from frame to frame what did not change.

Two things are kept. The vision tokens, by a `DifferentialVisionEncoder`; and what the language model made of the
prompt, in one of the ways of `prefills.py`. A causal language model gives every position before the first changed
embedding the same keys and values as for the frame before, so the cache may be cropped there and only the rest be run,
which is exact; or the whole prompt is updated, where the change reaches.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fvlm_lib.reuse.fastest import PackWeights
from fvlm_lib.reuse.policies import Policy
from fvlm_lib.schema import Fit, check
from fvlm_lib.timing import now, timed
from fvlm_lib.vision.differential import DifferentialVisionEncoder
from fvlm_lib.vision.models import open_vision
from fvlm_lib.vision.settings import DifferentialSettings, encoder_options
from fvlm_lib.vision.statistics import FrameStatistics
from fvlm_lib.vlm.architectures.architecture import Frame
from fvlm_lib.vlm.check import Check, CheckTotals, Said, check_options, compare, first_hidden
from fvlm_lib.vlm.generation import GREEDY, Decoding, generate, say_greedily
from fvlm_lib.vlm.prefills import Begun, Kept, PrefillTotals, nothing_run, open_policy, open_prefill
from fvlm_lib.vlm.prompts import Prompt
from fvlm_lib.vlm.vlms import VLM, Encoded

_NONE = torch.zeros((), dtype=torch.bool)  # no token changed


@dataclass(frozen=True)
class Answer:
    """What was said about one frame, and what it took.

    path: of the vision encode, as in `FrameStatistics`; "full" without an encoder. changed_patches, num_patches:
    0 without an encoder. reused_tokens: positions of the prompt that no layer computed anew, of prompt_tokens in all.
    prefill_path: "full" (there was nothing to go on from), "exact" (the prefix was kept), "partial", "cached" (nothing
    changed) or "fallback" (an error in the update, run in full). prefill_rows: rows computed, of all rows and layers.
    prefill_owed: rows that a policy of bounded time left to be computed for later prompts.
    Times in ms: preprocess (the processor), encode (vision tower and projector), prefill (to the first token's
    logits), decode (the rest); of the answer alone, without what a check took. check: None where there was none.
    """

    text: str
    token_ids: list[int]
    path: str
    changed_patches: int
    num_patches: int
    prompt_tokens: int
    reused_tokens: int
    prefill_path: str
    prefill_rows: float
    prefill_owed: int
    preprocess_ms: float
    encode_ms: float
    prefill_ms: float
    decode_ms: float
    check: Check | None = None

    @property
    def first_token_ms(self) -> float:
        """Time to first token: from the frame in memory to the logits of the first token."""
        return self.preprocess_ms + self.encode_ms + self.prefill_ms


class VLMStream:
    """Answers one prompt about one frame after the other.

    encoder: None for the model's own full encode of every frame.
    prefill: how the language model comes to a frame's first token: "full" runs the whole prompt, "exact" what is behind
        the first embedding that changed, "gated" the rows that the change reaches by more than `prefill_tolerance`
        (relative L2, 0 is exact, None the policy's default); or another policy of `reuse/policies`, by name or as an
        object. To all but the first two, the image tokens whose patches were encoded from this frame are given as
        changed; how much the others moved is for the policy to see.
    check_every: each so many frames after a `reset`, one is also computed in full, by the model's own encode and
        prefill (`check.Check`). max_kl: where the first token's distribution is then off by more (nats), the frame is
        answered from nothing kept, and the stream goes on from there; None is never.
    pack_weights, pack_memory: of the language model, for all policies but the first two; see `GatedPrefill`.

    Raises ValueError for a prompt that cannot be right (`VLM.prompt_ids`), one that is longer with an image and an
    answer than the language model has positions, a prefill that there is none of, and a language model that it does not
    fit: "exact" wants a cache that can be cropped, so no sliding windows, the others a decoder that
    `language.decoders.open_decoder` knows.
    """

    def __init__(
        self,
        vlm: VLM,
        prompt: str,
        encoder: DifferentialVisionEncoder | None = None,
        *,
        prefill: str | Policy = "exact",
        prefill_tolerance: float | None = None,
        fit: Fit = "processor",
        decoding: Decoding = GREEDY,
        check_every: int | None = None,
        max_kl: float | None = None,
        pack_weights: PackWeights | None = None,
        pack_memory: int | None = None,
    ) -> None:
        check(Fit, fit, "fit")
        check_options(check_every, max_kl)
        self.vlm, self.encoder, self.fit, self.decoding = vlm, encoder, fit, decoding
        self.check_every, self.max_kl = check_every, max_kl
        self.policy = open_policy(prefill, prefill_tolerance)
        self._prefill = open_prefill(vlm, self.policy, pack_weights, pack_memory)
        self.prefill_totals, self.check_totals = PrefillTotals(), CheckTotals()
        self._vision = encoder.vision if encoder else open_vision(vlm.model)
        self.ask(prompt)
        self.reset()

    def ask(self, prompt: str) -> None:
        """Have this asked of the frames from now on; what is kept of those before stays. ValueError as above."""
        prompt_ids = self.vlm.prompt_ids(prompt)
        if self.vlm.image_size:  # else each frame tells
            self._check_positions(len(prompt_ids) - 1, self._count_tokens(*self.vlm.image_size))
        self.prompt_ids = prompt_ids

    @torch.no_grad()
    def _count_tokens(self, height: int, width: int) -> int:
        """How many vision tokens a frame has."""
        blank = torch.zeros(1, 3, height, width, device=self.vlm.model.device, dtype=self._vision.dtype)
        tower = self._vision.tower
        return self._vision.num_tokens(tower.grid(blank)) if tower else self._vision.own(blank).shape[1]

    def _check_positions(self, text: int, image: int) -> None:
        """Raise ValueError where tokens of prompt, image and answer are more than the language model's positions."""
        positions = getattr(self.vlm.model.config.get_text_config(), "max_position_embeddings", None)
        answer = self.decoding.max_new_tokens
        if positions is not None and text + image + answer > positions:
            raise ValueError(
                f"the prompt's {text} tokens, {image} of the image and up to {answer} of the answer (max_new_tokens) "
                f"are more than the {positions} positions of the language model of {self.vlm.name}; ask for less"
            )

    def reset(self) -> None:
        """Forget the frames seen, as between unrelated sequences; the totals stay."""
        self._seen = 0  # frames
        self._forget()

    def _forget(self) -> None:
        if self.encoder:
            self.encoder.reset_cache()
        self._prefill.reset()
        self._changed: Tensor | None = _NONE

    @property
    def fallbacks(self) -> int:
        """How many frames an error has sent to a full encode, and how many to a full prefill, in all."""
        encodes = self.encoder.statistics.fallbacks if self.encoder else 0
        return encodes + self.prefill_totals.frames["fallback"]

    @torch.no_grad()
    def encode(self, frame: np.ndarray) -> tuple[Encoded, dict[str, Any]]:
        """The frame's vision tokens, and the fields of `Answer` that tell how they were made."""
        seen, preprocess_ms = timed(lambda: self.vlm.frame(frame, self.fit))
        if self.encoder is None:
            features, encode_ms = timed(lambda: self._vision.features(seen.pixel_values))
            tokens, deepstack = features.tokens, features.deepstack
            fields: dict[str, Any] = {"path": "full", "changed_patches": 0, "num_patches": 0}
            changed = None
        else:
            encoder = self.encoder
            (tokens, stats), encode_ms = timed(lambda: encoder.encode(seen.pixel_values, return_stats=True))
            deepstack = encoder.deepstack
            fields = {name: getattr(stats, name) for name in ("path", "changed_patches", "num_patches")}
            changed = self._changed_tokens(stats, tokens.shape[:2].numel())  # of all tiles
        if changed is None or self._changed is None:
            self._changed = None
        else:  # with those of frames that were encoded and not answered
            self._changed = self._changed | changed
        return _encoded(seen, tokens, deepstack), fields | {"preprocess_ms": preprocess_ms, "encode_ms": encode_ms}

    def _changed_tokens(self, stats: FrameStatistics, count: int) -> Tensor | None:
        """bool (count,), the image tokens whose patches were encoded from this frame; None for all that differ: where
        all were, and where tokens and patches do not correspond."""
        if stats.path in ("full", "fallback") or self._vision.tower is None:
            return None
        changed = self._vision.tokens_of(stats.encoded)
        return changed if len(changed) == count else None

    def _prompt(self, encoded: Encoded) -> Prompt:
        prompt = self.vlm.prompt(self.prompt_ids, encoded)
        image = encoded.tokens.shape[1]
        self._check_positions(len(prompt) - image, image)
        return prompt

    def _begin(self, encoded: Encoded) -> tuple[Prompt, Begun]:
        """The prompt, and what was run of it."""
        prompt = self._prompt(encoded)
        changed = None
        if self._changed is not None:
            changed = torch.zeros_like(prompt.observed)
            changed[prompt.observed] = self._changed.to(changed.device)
        begun = self._prefill.begin(prompt, changed)
        self._changed = _NONE
        self.prefill_totals.add(begun)
        return prompt, begun

    @torch.no_grad()
    def follow(self, frame: np.ndarray) -> None:
        """Take note of a frame without answering, so that later ones are answered as if it had been."""
        self._seen += 1
        keeps = isinstance(self._prefill, Kept)  # on an exact prefix, what later answers say does not depend
        encoded, fields = self.encode(frame)
        prompt, begun = self._begin(encoded) if keeps else (self._prompt(encoded), nothing_run(self.vlm.model))
        if self.max_kl is None or not self._is_checked():
            return
        kept, full = self._greedily(prompt, begun, num_tokens=1), self.in_full(frame, num_tokens=1)
        if compare(self.vlm.model.lm_head, kept, full, self.max_kl).failed:
            self._discount(fields["path"], begun if keeps else None)
            encoded, _ = self.encode(frame)
            if keeps:
                self._begin(encoded)

    def _is_checked(self) -> bool:
        return self.check_every is not None and self._seen % self.check_every == 0

    def _discount(self, path: str, begun: Begun | None) -> None:
        """Forget all that is kept, and a frame in the totals, since it is computed again."""
        self._forget()
        if self.encoder:
            self.encoder.statistics.frames[path] -= 1
        if begun:
            self.prefill_totals.add(begun, -1)

    @torch.no_grad()
    def answer(self, frame: np.ndarray, number: int = 0) -> Answer:
        """What the model says about a frame uint8 (H, W, 3); `number`, added to the seed, is the frame's own."""
        self._seen += 1
        if not self._is_checked():
            return self._answer(frame, number)[0]
        answer, begun, kept = self._answer(frame, number, watched=True)
        assert kept is not None
        full, ms = timed(lambda: self.in_full(frame))
        found = replace(compare(self.vlm.model.lm_head, kept, full, self.max_kl), ms=ms)
        if found.failed:
            self._discount(answer.path, begun)
            answer, _, _ = self._answer(frame, number)
        self.check_totals.add(found)
        return replace(answer, check=found)

    def watch(self, frame: np.ndarray, number: int = 0) -> tuple[Answer, Said]:
        """An answer without a check, and what a check would hold against `in_full`."""
        self._seen += 1
        answer, _, said = self._answer(frame, number, watched=True)
        assert said is not None
        return answer, said

    @torch.no_grad()
    def in_full(self, frame: np.ndarray, num_tokens: int | None = None) -> Said:
        """What the model says greedily by its own encode and prefill, whatever is kept, which stays as it is.

        num_tokens: of the answer at most; None is as `decoding` has it.
        """
        seen = self.vlm.frame(frame, self.fit)
        features = self._vision.features(seen.pixel_values)
        prompt = self._prompt(_encoded(seen, features.tokens, features.deepstack))
        return self._greedily(prompt, nothing_run(self.vlm.model), num_tokens)

    def _greedily(self, prompt: Prompt, begun: Begun, num_tokens: int | None = None) -> Said:
        most = num_tokens or self.decoding.max_new_tokens
        return say_greedily(self.vlm.model, prompt, begun, most, self.decoding.min_new_tokens)

    @torch.no_grad()
    def _answer(self, frame: np.ndarray, number: int, watched: bool = False) -> tuple[Answer, Begun, Said | None]:
        """The answer, what it was begun from, and if it is watched what is said greedily."""
        encoded, fields = self.encode(frame)
        (prompt, begun), begin_ms = timed(lambda: self._begin(encoded))
        said = None
        if watched and not self.decoding.is_greedy:  # whose tokens tell nothing of the kept state
            said = self._greedily(prompt, replace(begun, past=copy.deepcopy(begun.past)))
        start = now()
        options, seed = self.decoding.options(), self.decoding.seed + number
        with contextlib.ExitStack() as stack:
            hidden = stack.enter_context(first_hidden(self.vlm.model, begun.hidden)) if watched else []
            done = generate(self.vlm.model, self._prefill, prompt, begun, options, seed)
        if watched and said is None:
            said = Said(hidden[0], done.token_ids)
        answer = Answer(
            text=self.vlm.processor.tokenizer.decode(done.token_ids, skip_special_tokens=True),
            token_ids=done.token_ids,
            prompt_tokens=len(prompt),
            reused_tokens=begun.reused_tokens,
            prefill_path=begun.path,
            prefill_rows=begun.rows,
            prefill_owed=begun.owed,
            prefill_ms=begin_ms + 1e3 * (done.first - start),
            decode_ms=1e3 * (done.end - done.first),
            **fields,
        )
        return answer, begun, said


def _encoded(frame: Frame, tokens: Tensor, deepstack: Sequence[Tensor]) -> Encoded:
    """With the tokens (tiles, P, D) of all tiles as those of one image."""
    return Encoded(frame, tokens.flatten(0, 1)[None], tuple(features.flatten(0, 1)[None] for features in deepstack))


def open_encoder(
    vlm: VLM,
    settings: DifferentialSettings,
    skip_small_updates: bool = False,
    *,
    pack_weights: PackWeights = False,
    pack_memory: int | None = None,
) -> DifferentialVisionEncoder:
    """The differential encoder of a model's vision tower, for frames as its processor normalises them.

    Where neither tower nor settings say the patch size, it is the processor's. Raises ValueError where settings and
    tower do not fit.
    """
    images = vlm.processor.image_processor
    options = encoder_options(settings)
    if settings.patch_size is None and getattr(vlm.model.config.vision_config, "patch_size", None) is None:
        options["patch_size"] = getattr(vlm.processor, "patch_size", None)
    encoder = DifferentialVisionEncoder(
        vlm.model,
        **options,
        skip_small_updates=skip_small_updates,
        pack_weights=pack_weights,
        pack_memory=pack_memory,
        image_mean=images.image_mean if images.do_normalize else None,
        image_std=images.image_std if images.do_normalize else None,
    )
    if skip_small_updates and encoder.vision.tower:
        raise ValueError(f"--diff-skip-small is for towers without partial updates; that of {vlm.name} has them")
    return encoder
