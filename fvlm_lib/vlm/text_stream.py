"""A language model on a stream of text screens (a terminal, an accessibility tree, a page's DOM): one answer a screen.

From screen to screen the prompt's prefill is kept (`prefills.py`): lines that moved are carried along, and what the
change does not reach is not computed. Loading and prompts are `text_models.py`'s subject.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch

from fvlm_lib.reuse.fastest import PackWeights
from fvlm_lib.reuse.policies import Policy
from fvlm_lib.timing import now, timed
from fvlm_lib.vlm.check import Check, CheckTotals, Said, check_options, compare
from fvlm_lib.vlm.generation import GREEDY, Decoding, generate, say_greedily
from fvlm_lib.vlm.prefills import Begun, PrefillTotals, nothing_run, open_policy, open_prefill
from fvlm_lib.vlm.prompts import Prompt
from fvlm_lib.vlm.text_models import TextModel


@dataclass(frozen=True)
class TextAnswer:
    """What was said about one screen, and what it took.

    prefill_path, prefill_rows, prefill_owed, reused_tokens, prompt_tokens, prefill_ms, decode_ms, check: as of
    `stream.Answer`.
    """

    text: str
    token_ids: list[int]
    prompt_tokens: int
    reused_tokens: int
    prefill_path: str
    prefill_rows: float
    prefill_owed: int
    prefill_ms: float
    decode_ms: float
    check: Check | None = None


class TextStream:
    """Answers one question about one screen after the other.

    prefill, prefill_tolerance, pack_weights, check_every, max_kl: as of `stream.VLMStream`. Of "gated", the tokens that
    are new or changed count as changed.

    Raises ValueError as `open_policy` and `open_prefill` do.
    """

    def __init__(
        self,
        text_model: TextModel,
        question: str,
        *,
        prefill: str | Policy = "exact",
        prefill_tolerance: float | None = None,
        pack_weights: PackWeights | None = None,
        decoding: Decoding = GREEDY,
        check_every: int | None = None,
        max_kl: float | None = None,
    ) -> None:
        check_options(check_every, max_kl)
        self.text_model, self.question, self.decoding = text_model, question, decoding
        self.check_every, self.max_kl = check_every, max_kl
        self._prefill = open_prefill(text_model, open_policy(prefill, prefill_tolerance), pack_weights)
        self.prefill_totals, self.check_totals = PrefillTotals(), CheckTotals()
        self.reset()

    def reset(self) -> None:
        """Forget the last screen; the totals stay."""
        self._seen = 0  # screens
        self._prefill.reset()

    @torch.no_grad()
    def answer(self, screen: str, number: int = 0) -> TextAnswer:
        """What the model says about a screen; `number`, added to the seed, is the screen's own.

        Raises ValueError for a screen that is longer, with the question and an answer, than the context.
        """
        model = self.text_model.model
        prompt = self.text_model.prompt(screen, self.question)
        count, most = len(prompt.input_ids), getattr(model.config, "max_position_embeddings", None)
        if most is not None and count + self.decoding.max_new_tokens > most:
            raise ValueError(
                f"the prompt of screen {number} has {count} tokens, with an answer of up to "
                f"{self.decoding.max_new_tokens} more than the context of {self.text_model.name}, {most}; cut the "
                "screen, or ask for less"
            )
        self._seen += 1
        embeds = self.text_model.embed(prompt)
        embedded = Prompt(embeds, prompt.observed.to(embeds.device), prompt.input_ids)
        if self.check_every is None or self._seen % self.check_every:
            return self._answer(embedded, number)[0]
        answer, begun, kept = self._answer(embedded, number, watched=True)
        full, ms = timed(lambda: self._greedily(embedded, nothing_run(model)))
        assert kept is not None
        found = replace(compare(model.lm_head, kept, full, self.max_kl), ms=ms)
        if found.failed:  # what is kept is not to be trusted
            self._prefill.reset()
            self.prefill_totals.add(begun, -1)
            answer, _, _ = self._answer(embedded, number)
        self.check_totals.add(found)
        return replace(answer, check=found)

    def _greedily(self, prompt: Prompt, begun: Begun) -> Said:
        return say_greedily(
            self.text_model.model, prompt, begun, self.decoding.max_new_tokens, self.decoding.min_new_tokens
        )

    def _answer(self, prompt: Prompt, number: int, watched: bool = False) -> tuple[TextAnswer, Begun, Said | None]:
        """The answer, what it was begun from, and if it is watched what is said greedily."""
        model, decoding = self.text_model.model, self.decoding
        start = now()
        begun = self._prefill.begin(prompt, None)
        begin_ms = 1e3 * (now() - start)
        self.prefill_totals.add(begun)
        said = self._greedily(prompt, replace(begun, past=copy.deepcopy(begun.past))) if watched else None
        start = now()
        done = generate(model, self._prefill, prompt, begun, decoding.options(), decoding.seed + number)
        answer = TextAnswer(
            text=self.text_model.tokenizer.decode(done.token_ids, skip_special_tokens=True),
            token_ids=done.token_ids,
            prompt_tokens=len(prompt),
            reused_tokens=begun.reused_tokens,
            prefill_path=begun.path,
            prefill_rows=begun.rows,
            prefill_owed=begun.owed,
            prefill_ms=begin_ms + 1e3 * (done.first - start),
            decode_ms=1e3 * (done.end - done.first),
        )
        return answer, begun, said
