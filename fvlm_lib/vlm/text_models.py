"""Language models that read text screens: loading, and the prompt of a screen and a question.

How a stream of such prompts is answered is `text_stream.py`'s subject.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fvlm_lib.foveated.assemble import read_language_model
from fvlm_lib.vlm.chat_template import render_chat


@dataclass(frozen=True)
class TextPrompt:
    """A screen of text and a question as a model takes them: N token ids, and which of them are of the screen, bool (N,).

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
        if template is None:
            text = f"{message}\n{lead}"
        else:
            try:
                rendered = render_chat(
                    template, [{"role": "user", "content": message}], self.tokenizer.special_tokens_map
                )
            except ValueError as error:
                raise ValueError(f"the chat template of {self.name} cannot be used ({error}); mend it") from None
            text = rendered + lead
        begin = text.find(message)
        if begin < 0:
            raise ValueError(f"the chat template of {self.name} changes what the user says; it must keep it as it is")
        begins = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
        options = {"add_special_tokens": template is None and not begins, "return_offsets_mapping": True}
        found = self.tokenizer(text, **options)
        spans = torch.tensor(found["offset_mapping"]).view(-1, 2)
        observed = (spans[:, 0] < begin + len(screen)) & (spans[:, 1] > begin)
        return TextPrompt(text, tuple(found["input_ids"]), observed)

    def embed(self, prompt: TextPrompt) -> Tensor:
        """The prompt's embeddings (1, N, D)."""
        ids = torch.tensor([prompt.input_ids], device=self.model.device)
        return self.model.get_input_embeddings()(ids)

    def first_token(self, prompt: TextPrompt, answer: str) -> int:
        """The id of the token that an answer begins with behind the prompt, a space between them."""
        ids = self.tokenizer(f"{prompt.text} {answer}", add_special_tokens=False)["input_ids"]
        plain = self.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
        if ids[: len(plain)] != plain:
            raise ValueError(f"the answer {answer!r} changes the tokens of the prompt before it; give another lead")
        return ids[len(plain)]


def load_text_model(name: str, device: str = "cpu") -> TextModel:
    """A causal language model by folder, hub id or .gguf file, with its tokenizer, in eval mode.

    Only a hub id that is no folder touches the network. Raises CheckpointError where it cannot be read.
    """
    model, tokenizer = read_language_model(name)
    return TextModel(name, model.eval().to(device), tokenizer)
