"""Language models that read text screens: loading, and the prompt of a screen and a question.

How a stream of such prompts is answered is `text_stream.py`'s subject.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fvlm_lib.foveated.assemble import read_language_model
from fvlm_lib.vlm.chat_template import render_chat

_MARK = "<message of the user>"


@dataclass(frozen=True)
class TextPrompt:
    """A screen of text and a question as a model takes them: N token ids, and which of them are of the screen, bool
    (N,).

    text: of which they are the tokens.
    """

    text: str
    input_ids: tuple[int, ...]
    observed: Tensor


@dataclass(frozen=True)
class TextModel:
    """A causal language model of transformers with its tokenizer."""

    name: str
    model: Any
    tokenizer: Any

    def prompt(self, screen: str, question: str, lead: str = "") -> TextPrompt:
        """The screen, an empty line and the question, as one message of the user by the model's chat template, and the
        lead of the answer. A model without a template reads them as they are, on lines of their own.

        Raises ValueError for a template that cannot be rendered, and for one that drops the message.
        """
        message = f"{screen}\n\n{question}" if screen else question
        template = self.tokenizer.chat_template
        before, after = ("", "\n") if template is None else self._around_message()
        text, begin = before + message + after + lead, len(before)
        begins = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
        options = {"add_special_tokens": template is None and not begins, "return_offsets_mapping": True}
        found = self.tokenizer(text, **options)
        spans = torch.tensor(found["offset_mapping"]).view(-1, 2)
        observed = (spans[:, 0] < begin + len(screen)) & (spans[:, 1] > begin)
        return TextPrompt(text, tuple(found["input_ids"]), observed)

    def _around_message(self) -> tuple[str, str]:
        """What the chat template puts before and behind a message of the user. It is rendered once, about a mark in its
        place, since rendering takes half a second (`chat_template.py`)."""
        try:
            rendered = render_chat(
                self.tokenizer.chat_template, [{"role": "user", "content": _MARK}], self.tokenizer.special_tokens_map
            )
        except ValueError as error:
            raise ValueError(f"the chat template of {self.name} cannot be used ({error}); mend it") from None
        if rendered.count(_MARK) != 1:
            raise ValueError(f"the chat template of {self.name} changes what the user says; it must keep it as it is")
        before, after = rendered.split(_MARK)
        return before, after

    def embed(self, prompt: TextPrompt) -> Tensor:
        """The prompt's embeddings (1, N, D)."""
        ids = torch.tensor([prompt.input_ids], device=self.model.device)
        return self.model.get_input_embeddings()(ids)

    def telling_token(self, prompt: TextPrompt, answer: str, other: str) -> tuple[TextPrompt, int, int]:
        """The token by which two answers are told apart: the prompt with what both begin with, a space at least where
        that is a token of its own, and the ids that go on to `answer` and to `other`, which may be the same.

        Raises ValueError for answers that change the tokens of the prompt before them, or that are one another's
        beginning.
        """
        count = len(self._ids(prompt.text))
        found = [self._ids(f"{prompt.text} {text}") for text in (answer, other)]
        if any(ids[:count] != self._ids(prompt.text) for ids in found):
            raise ValueError(f"the answer {answer!r} changes the tokens of the prompt before it; give another lead")
        ends = [ids[count:] for ids in found]
        shared = 0
        while shared < min(map(len, ends)) and ends[0][shared] == ends[1][shared]:
            if answer == other and self.tokenizer.decode([ends[0][shared]]).strip():
                break
            shared += 1
        if shared >= min(map(len, ends)):
            raise ValueError(f"the answers {answer!r} and {other!r} are not told apart by a token")
        begun = TextPrompt(
            prompt.text + self.tokenizer.decode(ends[0][:shared]),
            (*prompt.input_ids, *ends[0][:shared]),
            F.pad(prompt.observed, (0, shared)),
        )
        return begun, ends[0][shared], ends[1][shared]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def load_text_model(name: str, device: str = "cpu") -> TextModel:
    """A causal language model by folder, hub id or .gguf file, with its tokenizer, in eval mode.

    Only a hub id that is no folder touches the network. Raises CheckpointError where it cannot be read.
    """
    model, tokenizer = read_language_model(name)
    return TextModel(name, model.eval().to(device), tokenizer)
