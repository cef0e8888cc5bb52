"""An answer generated from a prompt that has been begun, timed to its first token and to its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from fvlm_lib.timing import now
from fvlm_lib.vlm.prefills import Begun, Kept, Prefix, continued


@dataclass(frozen=True)
class Generated:
    """token_ids: of the answer. first, end: when its first logits and its last token were there, on `timing.now`."""

    token_ids: list[int]
    first: float
    end: float


def generate(
    model: Any, prefill: Prefix | Kept, embeds: Tensor, begun: Begun, options: dict[str, Any], seed: int
) -> Generated:
    """Go on from a prompt of embeddings (1, N, D) that `prefill` has begun, by transformers' `generate` with `options`.

    Whatever is raised passes on, an interrupt included; what was kept of half an answer is then forgotten.
    """
    torch.manual_seed(seed)
    clock = _FirstToken()
    try:
        with continued(model, begun, options["num_beams"]) as past:
            output = model.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
                past_key_values=past,
                logits_processor=[clock],
                return_dict_in_generate=True,
                pad_token_id=_pad_token_id(model),
                **options,
            )
        end = now()
    except BaseException:
        prefill.abandon()
        raise
    prefill.end(embeds, output.past_key_values)
    return Generated(output.sequences[0].tolist(), clock.time, end)


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
