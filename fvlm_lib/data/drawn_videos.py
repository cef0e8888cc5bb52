"""What the kinds of videos that the library draws have in common: no end, splits, and a vocabulary of their own.

A kind is its options, a class of `options.py`, and a class on both that draws: `videos.ProceduralVideos`,
`screen_videos.ScreenVideos`. Pixels are in [-1, 1]. This module knows nothing of models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fvlm_lib.data.options import DrawnData
from fvlm_lib.data.video_files import VideoBatch
from fvlm_lib.errors import some

SPLITS = ("train", "validation", "test")  # in the order of their random streams
PAD, EOS = "<pad>", "<eos>"


class DrawnVideos(DrawnData, ABC):
    """An endless set of drawn videos; sample i of a split and seed is always the same, however batched.

    patch_size: pixels on a side of the patches that they are made for. pixel_rms: root mean square of their pixels,
    by which a model's first weights are scaled.
    """

    patch_size: ClassVar[int]
    pixel_rms: ClassVar[float]

    @property
    @abstractmethod
    def vocabulary(self) -> tuple[str, ...]:
        """The captions' words in the order of their token ids; the first two are PAD and EOS."""

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer of `vocabulary`."""

    @abstractmethod
    def batch(self, start: int, stop: int) -> dict[str, Tensor]:
        """Samples start..stop-1 as one batch; ValueError for none."""

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[VideoBatch]:
        """Samples start..stop-1 in order, `batch_size` at a time (the last batch may be smaller)."""
        for first in range(start, stop, batch_size):
            samples = range(first, min(first + batch_size, stop))
            names = [f"{self.split}-{self.seed}-{i}" for i in samples]
            yield VideoBatch(self.batch(first, samples.stop), list(samples), names)

    def check_words(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError where a checkpoint's own tokenizer gives the captions' words other ids, which would mean
        something else to its model."""
        known = tokenizer.get_vocab()
        if wrong := [word for number, word in enumerate(self.vocabulary) if known.get(word) != number]:
            raise ValueError(
                f"drawn videos ({self.called}) have captions of {len(self.vocabulary)} words, of which the "
                f"checkpoint's tokenizer numbers {len(wrong)} otherwise or not at all: {some(wrong)}"
            )


def check_range(start: int, stop: int) -> None:
    """Raise ValueError where samples start..stop-1 are none."""
    if not 0 <= start < stop:
        raise ValueError(f"samples {start} to {stop} are asked for; 0 <= start < stop must hold")


def word_tokenizer(vocabulary: tuple[str, ...], separator: str = " ") -> PreTrainedTokenizerFast:
    """A tokenizer of one token a word, where words are what `separator` stands between; the text that it makes of
    tokens has the separator again. What it does not know is PAD."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, PAD))
    if separator == " ":
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # between tokens it puts a space by itself
    else:
        words.pre_tokenizer = pre_tokenizers.Split(separator, "removed")
        behind = [decoders.Strip(character, 0, 1) for character in reversed(separator)]  # the last one
        words.decoder = decoders.Sequence([decoders.Replace(Regex("$"), separator), decoders.Fuse(), *behind])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=EOS,
        model_input_names=["input_ids", "attention_mask"],
    )
