"""How a prompt that is begun is answered: by sampling, by beams or greedily, timed to its first token and to its end.

How it is begun is `prefills.py`'s subject.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from fvlm_lib.language.decoders import language_model
from fvlm_lib.schema import Beams, CountOrNone, NewTokens, Seed, Temperature, TopP, settings
from fvlm_lib.timing import now
from fvlm_lib.vlm.check import Said, first_hidden
from fvlm_lib.vlm.prefills import Begun, Kept, Prefix, added, continued
from fvlm_lib.vlm.prompts import Prompt


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

    @property
    def is_greedy(self) -> bool:
        """Whether each token is the likeliest one."""
        return self.temperature == 0 and self.num_beams == 1

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
class Generated:
    """token_ids: of the answer. first, end: when its first logits and its last token were there, on `timing.now`."""

    token_ids: list[int]
    first: float
    end: float


def generate(
    model: Any, prefill: Prefix | Kept, prompt: Prompt, begun: Begun, options: dict[str, Any], seed: int
) -> Generated:
    """Go on from a prompt that `prefill` has begun, by transformers' `generate` with `options`.

    Whatever is raised passes on, an interrupt included; what was kept of half an answer is then forgotten.
    """
    torch.manual_seed(seed)
    clock = _FirstToken()
    try:
        output = _generate(model, prompt, begun, options, [clock])
        end = now()
    except BaseException:
        prefill.abandon()
        raise
    prefill.end(prompt, output.past_key_values)
    return Generated(output.sequences[0].tolist(), clock.time, end)


def say_greedily(model: Any, prompt: Prompt, begun: Begun, max_new_tokens: int, min_new_tokens: int = 0) -> Said:
    """What is said by the likeliest tokens, and the hidden state of the first; what is begun is used up."""
    decoding = Decoding(max_new_tokens, min(min_new_tokens, max_new_tokens))
    with first_hidden(model, begun.hidden) as hidden:
        output = _generate(model, prompt, begun, decoding.options(), [])
    return Said(hidden[0], output.sequences[0].tolist())


def _generate(
    model: Any, prompt: Prompt, begun: Begun, options: dict[str, Any], logits_processor: list[LogitsProcessor]
) -> Any:
    embeds, positions = prompt.embeds, prompt.generation_positions()
    with contextlib.ExitStack() as stack:
        past = stack.enter_context(continued(model, begun, options["num_beams"]))
        if begun.logits is None and prompt.additions:
            stack.enter_context(added(language_model(model).layers, prompt.additions))
        return model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
            **({} if positions is None else {"position_ids": positions}),
            past_key_values=past,
            logits_processor=logits_processor,
            return_dict_in_generate=True,
            pad_token_id=_pad_token_id(model),
            **options,
        )


class _FirstToken(LogitsProcessor):
    """Notes when the first logits were there."""

    time = 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.time:
            self.time = now()
        return scores


def _pad_token_id(model: Any) -> int | None:
    """What finished beams are filled up with; the end token where the model names none."""
    config = model.generation_config
    end = config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    return end if config.pad_token_id is None else config.pad_token_id
