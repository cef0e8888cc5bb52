"""A language model on a stream of text screens (a terminal, an accessibility tree, a page's DOM): one answer a screen.

From screen to screen the prompt's prefill is kept (`prefills.py`): lines that moved are carried along, and what the
change does not reach is not computed. Loading and prompts are `text_models.py`'s subject.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fvlm_lib.reuse.policies import Policy
from fvlm_lib.timing import now
from fvlm_lib.vlm.generation import generate
from fvlm_lib.vlm.prefills import PrefillTotals, open_policy, open_prefill
from fvlm_lib.vlm.stream import GREEDY, Decoding
from fvlm_lib.vlm.text_models import TextModel


@dataclass(frozen=True)
class TextAnswer:
    """What was said about one screen, and what it took.

    prefill_path, prefill_rows, reused_tokens, prompt_tokens, prefill_ms, decode_ms: as of `stream.Answer`.
    """

    text: str
    token_ids: list[int]
    prompt_tokens: int
    reused_tokens: int
    prefill_path: str
    prefill_rows: float
    prefill_ms: float
    decode_ms: float


class TextStream:
    """Answers one question about one screen after the other.

    prefill, prefill_tolerance: as of `stream.VLMStream`. Of "gated", the tokens that are new or changed count as
    changed.

    Raises ValueError as `open_policy` and `open_prefill` do.
    """

    def __init__(
        self,
        text_model: TextModel,
        question: str,
        *,
        prefill: str | Policy = "exact",
        prefill_tolerance: float | None = None,
        decoding: Decoding = GREEDY,
    ) -> None:
        self.text_model, self.question, self.decoding = text_model, question, decoding
        self._prefill = open_prefill(text_model, open_policy(prefill, prefill_tolerance))
        self.prefill_totals = PrefillTotals()

    def reset(self) -> None:
        """Forget the last screen; the totals stay."""
        self._prefill.reset()

    @torch.no_grad()
    def answer(self, screen: str, number: int = 0) -> TextAnswer:
        """What the model says about a screen; `number`, added to the seed, is the screen's own.

        Raises ValueError for a screen that is longer, with the question and an answer, than the context.
        """
        model, decoding = self.text_model.model, self.decoding
        prompt = self.text_model.prompt(screen, self.question)
        count, most = len(prompt.input_ids), getattr(model.config, "max_position_embeddings", None)
        if most is not None and count + decoding.max_new_tokens > most:
            raise ValueError(
                f"the prompt of screen {number} has {count} tokens, with an answer of up to {decoding.max_new_tokens} "
                f"more than the context of {self.text_model.name}, {most}; cut the screen, or ask for less"
            )
        start = now()
        embeds = self.text_model.embed(prompt)
        begun = self._prefill.begin(embeds, None, prompt.observed.to(embeds.device), prompt.input_ids)
        self.prefill_totals.add(begun)
        done = generate(model, self._prefill, embeds, begun, decoding.options(), decoding.seed + number)
        return TextAnswer(
            text=self.text_model.tokenizer.decode(done.token_ids, skip_special_tokens=True),
            token_ids=done.token_ids,
            prompt_tokens=count,
            reused_tokens=begun.reused_tokens,
            prefill_path=begun.path,
            prefill_rows=begun.rows,
            prefill_ms=1e3 * (done.first - start),
            decode_ms=1e3 * (done.end - done.first),
        )
