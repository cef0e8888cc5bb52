"""Words that a tokenizer does not know, whatever the kind of tokenizer."""

from __future__ import annotations

import pytest
from captioned import VIDEOS
from conftest import DEMO
from tokenizers import Tokenizer, models, normalizers
from tokenizers.pre_tokenizers import Metaspace, WhitespaceSplit
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from fvlm_lib.data.words import check_words, unknown_tokens, unknown_words
from fvlm_lib.foveated.checkpoints import load_tokenizer

SPLIT = WhitespaceSplit()


def fast(model, pre_tokenizer=SPLIT, normalizer=None, **special) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    if normalizer:
        backend.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def unknown(tokenizer, text) -> list[str]:
    return unknown_words(tokenizer, text, unknown_tokens(tokenizer))


class Slow(PreTrainedTokenizer):
    """A tokenizer in Python, which knows no offsets."""

    words = ("<unk>", "a", "dog")
    vocab_size = len(words)

    def __init__(self):
        super().__init__(unk_token="<unk>")

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}

    def _tokenize(self, text):
        return text.split()

    def _convert_token_to_id(self, token):
        return self.get_vocab().get(token, 0)

    def _convert_id_to_token(self, index):
        return self.words[index]


WORDS = {"<unk>": 0, "a": 1, "dog": 2}
PIECES = {"[UNK]": 0, "do": 1, "##g": 2}
UNIGRAMS = [("<unk>", 0.0), ("▁a", -1.0), ("▁dog", -1.0), ("▁", -2.0)]
TOKENIZERS = {
    "the demo's": (VIDEOS.tokenizer(), "red cat lane1 jumps", ["cat", "jumps"]),
    "a checkpoint's": (load_tokenizer(DEMO / "S-S" / "step_3000"), "a dog runs red", ["a", "dog", "runs"]),
    "words": (fast(models.WordLevel(WORDS, "<unk>"), unk_token="<unk>"), "a cat, a dog", ["cat,"]),
    "a caption a word": (fast(models.WordLevel({"<unk>": 0, "a dog": 1}, "<unk>"), None), "a dog", []),
    "lower case": (fast(models.WordLevel(WORDS, "<unk>"), normalizer=normalizers.Lowercase()), "A DOG", []),
    "word pieces": (fast(models.WordPiece(PIECES, unk_token="[UNK]")), "dog cat do", ["cat"]),
    "unigrams": (fast(models.Unigram(UNIGRAMS, 0, False), Metaspace()), "a zebra 日本 dog", ["zebra", "日本"]),
    "pairs, without what is unknown": (fast(models.BPE({"a": 0, "b": 1}, [])), "ab cd ba", ["cd"]),
    "pairs of bytes": (load_tokenizer(DEMO / "llava-tiny"), "a zebra ü 日本 \N{ELEPHANT}", []),
    "in Python": (Slow(), "a zebra dog <unk>", ["zebra"]),
}


@pytest.mark.parametrize(("tokenizer", "text", "words"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_the_words_are_those_read_as_unknown_or_not_at_all(tokenizer, text, words):
    assert unknown(tokenizer, text) == words


def test_the_unknown_token_by_its_own_name_is_known():
    tokenizer = fast(models.WordLevel(WORDS, "<unk>"), unk_token="<unk>")
    assert tokenizer("<unk> cat")["input_ids"] == [0, 0]
    assert unknown(tokenizer, "<unk> cat") == ["cat"]


def test_unknown_words_are_counted_and_named():
    tokenizer = VIDEOS.tokenizer()
    tokens = unknown_tokens(tokenizer)
    check_words(tokenizer, "red right", "caption", tokens)
    with pytest.raises(ValueError, match=r"does not know 3 of the 3 words of the caption: a, dog, runs$"):
        check_words(tokenizer, "a dog runs", "caption", tokens)
    text = "one red one two three four five six seven"
    with pytest.raises(ValueError, match=r"8 of the 9 words of the prompt: one, two, three, four, five and 2 more$"):
        check_words(tokenizer, text, "prompt", tokens)
    with pytest.raises(ValueError, match=r"the caption: x{30}…$"):
        check_words(tokenizer, "x" * 50, "caption", tokens)


def test_a_tokenizer_that_fails_at_an_unknown_word_is_named():
    tokenizer = fast(models.WordLevel({"a": 0}, "<unk>"))
    check_words(tokenizer, "a", "caption", unknown_tokens(tokenizer))
    with pytest.raises(ValueError, match=r"the tokenizer cannot read the caption \(.*Missing \[UNK\] token"):
        check_words(tokenizer, "a dog", "caption", unknown_tokens(tokenizer))
