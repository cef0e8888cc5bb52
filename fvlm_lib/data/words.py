"""Words of a text that a tokenizer does not know: it has one token for all of them, or leaves them out.

A loss of such a caption is that of other words, so it must not be scored. Tokenizers of bytes know every word.
This module knows nothing of videos.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from fvlm_lib.errors import first_line

_SHOWN, _SHOWN_CHARACTERS = 5, 30


def unknown_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that stand for what a tokenizer does not know, by id; none where it has no such token.

    Beside the one that transformers was told of (`unk_token`), that of the model inside, which it may not know.
    """
    found = {tokenizer.unk_token_id: tokenizer.unk_token}
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        model = json.loads(backend.to_str())["model"]
        name, number = model.get("unk_token"), model.get("unk_id")  # the second of unigrams
        if name is not None:
            found[backend.token_to_id(name)] = name
        if number is not None:
            found[number] = backend.id_to_token(number)
    return {number: name for number, name in found.items() if number is not None}


def unknown_words(tokenizer: PreTrainedTokenizerBase, text: str, unknown: Mapping[int, str]) -> list[str]:
    """The words of a text, between spaces, that are read as one of the tokens `unknown`, even in part, or not at all.

    The token itself, written out in the text, is known.
    """
    if not tokenizer.is_fast:  # no offsets say which token is of which word, so each is read alone
        read = [(word, tokenizer(word, add_special_tokens=False)["input_ids"]) for word in text.split()]
        return [word for word, ids in read if not ids or any(i in unknown and word != unknown[i] for i in ids)]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pieces = [(*span, unknown.get(i)) for i, span in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)]
    found = []
    for word in re.finditer(r"\S+", text):
        here = [piece for piece in pieces if piece[0] < word.end() and word.start() < piece[1]]
        if not here or any(name is not None and text[start:stop].strip() != name for start, stop, name in here):
            found.append(word[0])
    return found


def check_words(tokenizer: PreTrainedTokenizerBase, text: str, what: str, unknown: Mapping[int, str]) -> None:
    """Raise ValueError, with their count and the first few, where a text has words that a tokenizer does not know.

    what: what the text is, for the message. unknown: `unknown_tokens(tokenizer)`.
    """
    try:
        words = unknown_words(tokenizer, text, unknown)
    except Exception as error:  # tokenizers raises bare Exception where its model has no token for the unknown
        raise ValueError(f"the tokenizer cannot read the {what} ({first_line(error)})") from error
    if words:
        names = [w if len(w) <= _SHOWN_CHARACTERS else w[:_SHOWN_CHARACTERS] + "…" for w in dict.fromkeys(words)]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise ValueError(
            f"the tokenizer does not know {len(words)} of the {len(text.split())} words of the {what}: "
            f"{', '.join(names[:_SHOWN])}{more}"
        )
