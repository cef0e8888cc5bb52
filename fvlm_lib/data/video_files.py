"""Captioned videos from disk: a folder with `captions.jsonl`, or WebDataset tar shards, as padded batches.

A set is a numbered list of `CaptionedVideo`s, not yet decoded (`FolderSource`, `TarSource`), and `VideoFiles`
makes batches of it: frames by `frames.py`, captions by the checkpoint's tokenizer. Nothing is unpacked to
disk, and no more than one batch is held. This module knows nothing of models.

`captions.jsonl` has one JSON object a line: `{"file": "clips/0.mp4", "caption": "a dog runs"}`, where file is
a video, an image or a folder of images, relative to the folder, and `"prompt"` may precede the caption. A
sample of a tar shard is `KEY.txt` (the caption) or `KEY.json` (`{"caption": ..., "prompt": ...}`) and its
frames `KEY.000.jpg`, `KEY.001.jpg` ... (or .png), or one video `KEY.mp4`.
"""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import webdataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from webdataset.tariterators import base_plus_ext

from fvlm_lib.data.files import matching_files, read_captions, unicode_name
from fvlm_lib.data.frames import VIDEO_SUFFIXES, StoredFile, read_video
from fvlm_lib.data.options import FrameOptions
from fvlm_lib.data.screens import IMAGE_SUFFIXES
from fvlm_lib.data.words import check_words, unknown_tokens
from fvlm_lib.errors import first_line
from fvlm_lib.json_files import parse_object
from fvlm_lib.scoring import IGNORED_LABEL


@dataclass(frozen=True)
class CaptionedVideo:
    """One sample as it is stored. video: what `frames.read_video` takes. problem: why it cannot be used."""

    name: str
    video: Path | Sequence[StoredFile]
    caption: str = ""
    prompt: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class SkippedVideo:
    """A sample that was left out: its number in the set, its name, and why."""

    sample: int
    name: str
    reason: str


@dataclass(frozen=True)
class VideoBatch:
    """Samples of a set. inputs: what the forward modes take, a row a sample (empty where all were skipped);
    samples, names: of each row, the number in the set and what it is called; skipped: those left out."""

    inputs: dict[str, Tensor]
    samples: list[int]
    names: list[str]
    skipped: list[SkippedVideo] = field(default_factory=list)


# ---- where samples are stored ------------------------------------------------------------------------


class FolderSource:
    """The samples that `captions.jsonl` in a folder lists, in its order.

    Raises ValueError naming the folder, or the line, that is missing or cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.videos = [
            CaptionedVideo(entry["file"], Path(path) / entry["file"], *_caption(entry)) for entry in read_captions(path)
        ]

    def __len__(self) -> int:
        return len(self.videos)

    def read(self, start: int) -> Iterator[CaptionedVideo]:
        """The samples from number `start` on."""
        return iter(self.videos[start:])


class TarSource:
    """The samples of WebDataset tar shards, in the order of the shards and in each as they are stored.

    pattern: files with braces or wildcards (`train-{000..127}.tar`, `test-*.tar`), or a list of such.
    Raises ValueError naming a pattern that matches nothing, or a shard that is damaged.
    """

    def __init__(self, pattern: str | Sequence[str]) -> None:
        self.shards = matching_files(pattern)

    @cached_property
    def counts(self) -> list[int]:
        """Samples in each shard, by a pass over the headers. ValueError for a shard without any."""
        return [_count_samples(shard) for shard in tqdm(self.shards, desc="counting", unit="shard", delay=2)]

    def __len__(self) -> int:
        return sum(self.counts)

    def read(self, start: int) -> Iterator[CaptionedVideo]:
        """The samples from number `start` on; shards that end before it are not opened again."""
        for shard, count in zip(self.shards, self.counts, strict=True):
            if start >= count:
                start -= count
                continue
            samples = webdataset.WebDataset(
                [shard], shardshuffle=False, nodesplitter=None, workersplitter=None, empty_check=False
            )
            try:
                for number, sample in enumerate(samples):
                    if number >= start:
                        yield _read_sample(sample)
            except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
                raise ValueError(f"{shard}: the shard cannot be read ({first_line(error)})") from error
            start = 0


def _count_samples(shard: str) -> int:
    """How many samples WebDataset makes of a shard: runs of files with the same key, but for `__name__`."""
    count, last = 0, None
    try:
        with tarfile.open(shard) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep every header
                key = base_plus_ext(member.name)[0] if member.isreg() else None
                if key is not None and not re.match(r"__[^/]*__($|/)", member.name):
                    count += key != last
                    last = key
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = "it is empty" if os.path.getsize(shard) == 0 else first_line(error)
        if reason.startswith("file could not be opened"):  # a line for each kind of archive that it is not
            reason = "it is no archive"
        raise ValueError(f"{shard} is not a readable tar file ({reason})") from error
    if not count:
        raise ValueError(f"{shard} holds no samples; it must hold files such as 0001.mp4 and 0001.txt")
    return count


def _read_sample(sample: dict[str, Any]) -> CaptionedVideo:
    """What WebDataset makes of one sample: bytes by ending, beside `__key__` and `__url__`."""
    name = unicode_name(f"{sample['__url__']}:{sample['__key__']}")
    contents = {ending: data for ending, data in sample.items() if not ending.startswith("__")}
    files = [StoredFile(f"{name}.{ending}", data) for ending, data in contents.items()]
    files = [file for file in files if file.suffix in VIDEO_SUFFIXES | IMAGE_SUFFIXES]
    try:
        if "json" in contents:
            caption, prompt, problem = _caption(parse_object(contents["json"], "its .json"))
        else:
            caption, prompt, problem = _caption({"caption": contents["txt"].decode("utf-8")})
    except KeyError:
        caption, prompt, problem = "", None, "it has no caption, neither .txt nor .json"
    except ValueError as error:
        caption, prompt, problem = "", None, f"its caption cannot be read ({error})"
    return CaptionedVideo(name, files, caption, prompt, problem)


def _caption(entry: Any) -> tuple[str, str | None, str | None]:
    """Caption, prompt and problem of a JSON object."""
    caption, prompt = (entry.get("caption"), entry.get("prompt")) if isinstance(entry, dict) else (None, None)
    if not isinstance(caption, str):
        return "", None, "it has no caption"
    if not isinstance(prompt, str | None):
        return "", None, f"its prompt is {prompt!r}, which is no text"
    return caption.strip(), prompt, None if caption.strip() else "its caption is empty"


# ---- batches -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoFiles:
    """A set of captioned videos, in batches.

    source: where they are stored. frames: how a video becomes pixels. tokenizer: the checkpoint's.
    prompt: text before every caption that brings none of its own; it is not scored, and a space between
    them is part of it. EOS is appended to the caption, and scored. A caption or prompt with a word that the
    tokenizer does not know cannot be used. max_positions: of the language model, for frames and text together
    (None: no limit); max_text_tokens: a limit of one's own for prompt, caption and EOS.
    skip_bad: leave out, and name, samples that cannot be used; False makes the first of them an error.
    workers: threads that read videos at once; the pixels do not depend on it.
    """

    source: FolderSource | TarSource
    frames: FrameOptions
    tokenizer: PreTrainedTokenizerBase
    prompt: str = ""
    max_positions: int | None = None
    max_text_tokens: int | None = None
    skip_bad: bool = False
    workers: int = 1

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token, which every caption ends with")
        if type(self.workers) is not int or self.workers < 1:
            raise ValueError(f"workers is {self.workers!r}; it must be a positive whole number")
        if not isinstance(self.prompt, str) or not isinstance(self.skip_bad, bool):
            raise ValueError(
                f"prompt is {self.prompt!r} and skip_bad {self.skip_bad!r}; they must be a text and a bool"
            )
        length = len(self._read_words(self.prompt, "prompt"))
        if self.max_positions is not None and length + 2 > self.max_positions:
            raise ValueError(
                f"the prompt has {length} tokens, which with a frame and the end of the caption are more than the "
                f"language model's {self.max_positions} positions"
            )
        if self.max_text_tokens is not None and length + 1 > self.max_text_tokens:
            raise ValueError(
                f"the prompt has {length} tokens, which with the end of the caption are more than max_text_tokens, "
                f"{self.max_text_tokens}"
            )

    @cached_property
    def _unknown_tokens(self) -> dict[int, str]:
        return unknown_tokens(self.tokenizer)

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, start: int, stop: int) -> dict[str, Tensor]:
        """Samples start..stop-1 as one batch: what the forward modes take."""
        return next(self.batches(start, stop, stop - start)).inputs

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[VideoBatch]:
        """Samples start..stop-1 in order, `batch_size` numbers at a time; a skipped one leaves its batch smaller.

        inputs: pixel_values (B, T, 3, size, size), frame_mask (B, T), input_ids, attention_mask, labels (B, L);
        shorter videos and texts are padded behind. Raises ValueError naming a sample that cannot be used.
        """
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"samples {start} to {stop} are asked for; the set has {len(self)}")
        samples = self.source.read(start)
        with ThreadPoolExecutor(self.workers) as pool:
            for first in range(start, stop, batch_size):
                numbers = range(first, min(first + batch_size, stop))
                videos = list(islice(samples, len(numbers)))
                yield self._collate(numbers, videos, pool)

    def _collate(self, numbers: range, videos: list[CaptionedVideo], pool: ThreadPoolExecutor) -> VideoBatch:
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        names, samples, skipped = [], [], []
        decoded = [pool.submit(read_video, video.video, self.frames) for video in videos]
        for number, video, pixel_values in zip(numbers, videos, decoded, strict=True):
            try:
                input_ids, labels = self._read_text(video)
                self._check_positions(len(pixel_values.result()), len(input_ids))
            except ValueError as error:
                if not self.skip_bad:
                    advice = "mend it, or leave such samples out with skip_bad: true"
                    raise ValueError(f"sample {number}, {video.name}: {error}; {advice}") from error
                skipped.append(SkippedVideo(number, video.name, str(error)))
            else:
                rows.append((pixel_values.result(), input_ids, labels))
                names.append(video.name)
                samples.append(number)
        return VideoBatch(_pad(rows, self.tokenizer.eos_token_id) if rows else {}, samples, names, skipped)

    def _read_text(self, video: CaptionedVideo) -> tuple[Tensor, Tensor]:
        """input_ids and labels (L,) of prompt, caption and EOS."""
        if video.problem:
            raise ValueError(video.problem)
        prompt = self._read_words(self.prompt if video.prompt is None else video.prompt, "prompt")
        caption = self._read_words(video.caption, "caption")
        ids = [*prompt, *caption, self.tokenizer.eos_token_id]
        if self.max_text_tokens is not None and len(ids) > self.max_text_tokens:
            raise ValueError(f"its text has {len(ids)} tokens, more than max_text_tokens, {self.max_text_tokens}")
        return torch.tensor(ids), torch.tensor([IGNORED_LABEL] * len(prompt) + ids[len(prompt) :])

    def _read_words(self, text: str, what: str) -> list[int]:
        check_words(self.tokenizer, text, what, self._unknown_tokens)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _check_positions(self, num_frames: int, num_tokens: int) -> None:
        if self.max_positions is not None and num_frames + num_tokens > self.max_positions:
            raise ValueError(
                f"its {num_frames} frames and {num_tokens} text tokens are more than the language model's "
                f"{self.max_positions} positions"
            )


def _pad(rows: list[tuple[Tensor, Tensor, Tensor]], pad_token_id: int) -> dict[str, Tensor]:
    """One batch of pixel_values (T, 3, size, size), input_ids and labels (L,) a row, padded behind."""
    frames, ids, labels = (list(column) for column in zip(*rows, strict=True))
    return {
        "pixel_values": pad_sequence(frames, batch_first=True),  # (B, T, 3, size, size)
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),  # (B, L)
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL),
        "frame_mask": pad_sequence([torch.ones(len(row), dtype=torch.long) for row in frames], batch_first=True),
    }
