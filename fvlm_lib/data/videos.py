"""Captioned videos: whatever a config's `data` describes, and the procedural kind, in which where to look next
depends on what was seen. Those on disk are the subject of `video_files.py`.

`ProceduralVideos` draws objects that cross a grid of cells in straight lanes and turn back at the far side.
Each object wears a new random colour and shape in every frame. One object is the target; only frame 0 tells
which, by a cue in its cell that also shows where it is heading. The caption names direction and lane, then
the target's colour in every later frame: whoever looks at the wrong cell can only guess.

Batches are dicts of what the forward modes take: `pixel_values` (B, T, 3, H, W) in [-1, 1], `input_ids`,
`attention_mask` (B, L) and `frame_mask` (B, T). This module knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fvlm_lib.data.options import BLOCK, CELL, Data, FileData, FolderData, ProceduralData, WebDatasetData
from fvlm_lib.data.video_files import FolderSource, TarSource, VideoBatch, VideoFiles
from fvlm_lib.errors import some
from fvlm_lib.schema import check, settings

DIRECTIONS = ("right", "left", "down", "up")
COLOURS = ("black", "blue", "green", "cyan", "red", "magenta", "yellow", "white")
SPLITS = ("train", "validation", "test")  # in the order of their random streams
_RGB = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], dtype=np.float32)  # corners of the cube
_BACKGROUND = np.float32(0.5)


@cache
def _shapes() -> np.ndarray:
    """The eight shapes an object can have, as masks (8, CELL, CELL)."""
    y, x = np.mgrid[:CELL, :CELL] - (CELL - 1) / 2
    radius = np.hypot(x, y)
    masks = [
        np.maximum(abs(x), abs(y)) < 3,  # square
        radius < 3.6,  # disc
        (radius < 4.0) & (radius > 2.0),  # ring
        np.minimum(abs(x), abs(y)) < 1.5,  # plus
        abs(abs(x) - abs(y)) < 1.5,  # cross
        abs(x) + abs(y) < 4.5,  # diamond
        y % 4 < 2,  # rows
        x % 4 < 2,  # columns
    ]
    return np.stack(masks)


@cache
def _cues() -> np.ndarray:
    """Where the cue is white: the half of the cell towards the heading, (4 directions, CELL, CELL)."""
    y, x = np.mgrid[:CELL, :CELL] - (CELL - 1) / 2
    return np.stack([x > 0, x < 0, y > 0, y < 0])


@settings
class ProceduralVideos(ProceduralData):
    """An endless set of procedural videos; sample i of a split and seed is always the same, however batched.

    split, seed, num_objects, grid, num_frames, noise_std: see `ProceduralData`.

    Raises ValueError for an unknown split, or sizes that cannot be drawn.
    """

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The captions' words in the order of their token ids."""
        return ("<pad>", "<eos>", *DIRECTIONS, *(f"lane{i}" for i in range(self.grid)), *COLOURS)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer of `vocabulary`: one token a word."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(self.vocabulary)}, "<pad>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=words,
            pad_token="<pad>",
            eos_token="<eos>",
            model_input_names=["input_ids", "attention_mask"],
        )

    def check_words(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError where a checkpoint's own tokenizer gives the captions' words other ids, which would mean
        something else to its model."""
        known = tokenizer.get_vocab()
        if wrong := [word for number, word in enumerate(self.vocabulary) if known.get(word) != number]:
            raise ValueError(
                f"procedural videos of grid {self.grid} have captions of {len(self.vocabulary)} words, of which the "
                f"checkpoint's tokenizer numbers {len(wrong)} otherwise or not at all: {some(wrong)}"
            )

    def blind_loss(self) -> float:
        """The best loss without seeing anything, nats a token: direction, lane and colours are uniform."""
        colours = self.num_frames - 1
        return (math.log(4) + math.log(self.grid) + colours * math.log(8)) / (colours + 3)

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[VideoBatch]:
        """Samples start..stop-1 in order, `batch_size` at a time (the last batch may be smaller)."""
        for first in range(start, stop, batch_size):
            samples = range(first, min(first + batch_size, stop))
            names = [f"{self.split}-{self.seed}-{i}" for i in samples]
            yield VideoBatch(self.batch(first, samples.stop), list(samples), names)

    def batch(self, start: int, stop: int) -> dict[str, Tensor]:
        """Samples start..stop-1 as one batch."""
        if not 0 <= start < stop:
            raise ValueError(f"samples {start} to {stop} are asked for; 0 <= start < stop must hold")
        first, last = start // BLOCK, (stop - 1) // BLOCK
        blocks = [self._block(i) for i in range(first, last + 1)]
        cut = slice(start - first * BLOCK, stop - first * BLOCK)
        frames = torch.from_numpy(np.concatenate([pixels for pixels, _ in blocks])[cut])
        input_ids = torch.from_numpy(np.concatenate([ids for _, ids in blocks])[cut])
        return {
            "pixel_values": frames,
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "frame_mask": torch.ones(frames.shape[:2], dtype=torch.long),
        }

    def _block(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames (BLOCK, T, 3, H, W) in [-1, 1] and caption ids (BLOCK, L) of one block."""
        rng = np.random.default_rng([SPLITS.index(self.split), self.seed, index])
        n, g, t = self.num_objects, self.grid, np.arange(self.num_frames)
        lanes = rng.random((BLOCK, 4 * g)).argsort(axis=1)[:, :n]  # distinct tracks; object 0 is the target
        direction, lane = lanes // g, lanes % g  # (N, n)
        colour = rng.integers(8, size=(BLOCK, n, self.num_frames))
        shape = rng.integers(8, size=(BLOCK, n, self.num_frames))

        along = np.where(t % (2 * g) < g, t % (2 * g), 2 * g - 1 - t % (2 * g))  # there and back, (T,)
        along = np.where((direction % 2 == 0)[..., None], along, g - 1 - along)  # (N, n, T)
        across = np.broadcast_to(lane[..., None], along.shape)
        horizontal = (direction < 2)[..., None]
        row, column = np.where(horizontal, across, along), np.where(horizontal, along, across)

        cells = np.full((BLOCK, self.num_frames, g, g, CELL, CELL, 3), _BACKGROUND)
        sample, time = np.ogrid[:BLOCK, : self.num_frames]
        for k in reversed(range(n)):  # the target last, on top
            drawn = np.where(_shapes()[shape[:, k]][..., None], _RGB[colour[:, k]][:, :, None, None], _BACKGROUND)
            cells[sample, time, row[:, k], column[:, k]] = drawn
        every = np.arange(BLOCK)
        cue = _cues()[direction[:, 0]][..., None]  # (N, CELL, CELL, 1)
        at = (every, 0, row[:, 0, 0], column[:, 0, 0])
        cells[at] = np.where(cue, np.float32(1.0), cells[at])

        frames = cells.transpose(0, 1, 6, 2, 4, 3, 5).reshape(BLOCK, self.num_frames, 3, g * CELL, g * CELL)
        pixels = rng.standard_normal(frames.shape, dtype=np.float32)
        pixels *= np.float32(self.noise_std)
        pixels += frames
        np.clip(pixels, 0.0, 1.0, out=pixels)
        pixels *= np.float32(2.0)
        pixels -= np.float32(1.0)

        caption = [2 + direction[:, :1], 6 + lane[:, :1], 6 + g + colour[:, 0, 1:], np.ones((BLOCK, 1), dtype=int)]
        return pixels, np.concatenate(caption, axis=1).astype(np.int64)


Videos = ProceduralVideos | VideoFiles
"""Any captioned videos: `batch(start, stop)` for the forward modes, `batches(...)` to score many. Those on disk have
a length; procedural ones have no end."""


SOURCES: dict[type, Callable[[Any], FolderSource | TarSource]] = {FolderData: FolderSource, WebDatasetData: TarSource}
"""What opens the files of each kind of `data` (`fvlm_lib.data.options.Data`) on disk, given its path."""


def open_videos(
    data: Mapping[str, Any] | Data,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_positions: int | None = None,
) -> Videos:
    """The videos that a config's `data` describes: `kind`, and the options of that kind (`fvlm_lib.data.options`).

    Those of a folder or of tar shards take the checkpoint's tokenizer, and the number of positions its language model
    has.

    Raises ValueError naming an unknown kind or option and what is known, or a path that holds nothing.
    """
    described: ProceduralData | FileData = check(Data, data, "data")
    if isinstance(described, ProceduralData):
        return ProceduralVideos(**vars(described))
    if tokenizer is None:
        raise ValueError(f"data of kind {described.kind} has captions as text; they take the checkpoint's tokenizer")
    return VideoFiles(
        SOURCES[type(described)](described.path),
        described,
        tokenizer,
        described.prompt,
        max_positions,
        described.max_text_tokens,
        described.skip_bad,
        described.workers,
    )
