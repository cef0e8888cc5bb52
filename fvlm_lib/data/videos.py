"""Captioned videos: whatever a config's `data` describes, and the procedural kind, in which where to look next
depends on what was seen. Those on disk are the subject of `video_files.py`, those of screens of `screen_videos.py`.

`ProceduralVideos` draws objects that cross a grid of cells in straight lanes and turn back at the far side.
Each object wears a new random colour and shape in every frame, or one of many glyphs. One
object is the target; only frame 0 tells which, by a cue in its cell that also shows where it is heading. The caption
names direction and lane, then the target's colour or glyph in every later frame: whoever looks at the wrong cell
can only guess.

Batches are dicts of what the forward modes take: `pixel_values` (B, T, 3, H, W) in [-1, 1], `input_ids`,
`attention_mask` (B, L) and `frame_mask` (B, T). This module knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fvlm_lib.data.drawn_videos import EOS, PAD, SPLITS, DrawnVideos, check_range, word_tokenizer
from fvlm_lib.data.options import (
    BLOCK,
    CELL,
    Data,
    DrawnData,
    FileData,
    FolderData,
    ProceduralData,
    ScreenData,
    WebDatasetData,
)
from fvlm_lib.data.screen_videos import ScreenVideos
from fvlm_lib.data.video_files import FolderSource, TarSource, VideoFiles
from fvlm_lib.schema import check, settings

DIRECTIONS = ("right", "left", "down", "up")
COLOURS = ("black", "blue", "green", "cyan", "red", "magenta", "yellow", "white")
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


@cache
def _glyphs(count: int) -> np.ndarray:
    """What glyphs look like, (count, CELL, CELL, 3): each of 4 x 4 blocks has a random corner of the colour cube. They
    are the same for all seeds of videos, and the first of however many."""
    blocks = np.random.default_rng(0).integers(2, size=(count, 4, 4, 3)).astype(np.float32)
    return blocks.repeat(CELL // 4, axis=1).repeat(CELL // 4, axis=2)


def zipf(count: int, skew: float) -> np.ndarray:
    """Probabilities (count,) of ranks 1 to count, in proportion to rank ** -skew."""
    weights = np.arange(1.0, count + 1) ** -skew
    return weights / weights.sum()


@cache
def _track_ranks(count: int) -> np.ndarray:
    """The tracks (count,) by how often they are the target's where they are skewed, the same for all seeds of videos:
    not in order, lest directions differ in how hard they are."""
    return np.random.default_rng(0).permutation(count)


@settings
class ProceduralVideos(ProceduralData, DrawnVideos):
    """An endless set of procedural videos; sample i of a split and seed is always the same, however batched.

    split, seed, num_frames, num_objects, grid, noise_std, num_glyphs, skew: see `ProceduralData`.

    Raises ValueError for an unknown split, or sizes that cannot be drawn.
    """

    patch_size: ClassVar[int] = CELL
    pixel_rms: ClassVar[float] = 0.4  # mostly grey, which is 0

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The captions' words in the order of their token ids."""
        worn = [f"glyph{i}" for i in range(self.num_glyphs)] or COLOURS
        return (PAD, EOS, *DIRECTIONS, *(f"lane{i}" for i in range(self.grid)), *worn)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer of `vocabulary`: one token a word."""
        return word_tokenizer(self.vocabulary)

    def blind_loss(self) -> float:
        """The best loss without seeing anything, nats a token: the entropies of the track and of what is worn."""
        worn, track = (-float(p @ np.log(p)) for p in (self._worn_probabilities(), zipf(4 * self.grid, self.skew)))
        named = self.num_frames - 1
        return (track + named * worn) / (named + 3)

    def _worn_probabilities(self) -> np.ndarray:
        return zipf(self.num_glyphs, self.skew) if self.num_glyphs else np.full(8, 1 / 8)

    def batch(self, start: int, stop: int) -> dict[str, Tensor]:
        """Samples start..stop-1 as one batch."""
        check_range(start, stop)
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
        order = rng.random((BLOCK, 4 * g))
        if self.skew:
            target = _track_ranks(4 * g)[rng.choice(4 * g, size=BLOCK, p=zipf(4 * g, self.skew))]
            order[np.arange(BLOCK), target] = -1.0
        lanes = order.argsort(axis=1)[:, :n]  # distinct tracks; object 0 is the target
        count = 1 + rng.choice(n, size=BLOCK, p=zipf(n, self.skew)) if self.skew else np.full(BLOCK, n)
        direction, lane = lanes // g, lanes % g  # (N, n)
        size = (BLOCK, n, self.num_frames)
        if self.num_glyphs:
            worn = rng.choice(self.num_glyphs, size=size, p=self._worn_probabilities())
            pictures = _glyphs(self.num_glyphs)[worn]  # (N, n, T, CELL, CELL, 3)
        else:
            worn = rng.integers(8, size=size)  # colours
            shape = _shapes()[rng.integers(8, size=size)][..., None]
            pictures = np.where(shape, _RGB[worn][..., None, None, :], _BACKGROUND)

        along = np.where(t % (2 * g) < g, t % (2 * g), 2 * g - 1 - t % (2 * g))  # there and back, (T,)
        along = np.where((direction % 2 == 0)[..., None], along, g - 1 - along)  # (N, n, T)
        across = np.broadcast_to(lane[..., None], along.shape)
        horizontal = (direction < 2)[..., None]
        row, column = np.where(horizontal, across, along), np.where(horizontal, along, across)

        cells = np.full((BLOCK, self.num_frames, g, g, CELL, CELL, 3), _BACKGROUND)
        time = np.arange(self.num_frames)[None]
        for k in reversed(range(n)):  # the target last, on top
            there = np.flatnonzero(count > k)
            cells[there[:, None], time, row[there, k], column[there, k]] = pictures[there, k]
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

        caption = [2 + direction[:, :1], 6 + lane[:, :1], 6 + g + worn[:, 0, 1:], np.ones((BLOCK, 1), dtype=int)]
        return pixels, np.concatenate(caption, axis=1).astype(np.int64)


Videos = DrawnVideos | VideoFiles
"""Any captioned videos: `batch(start, stop)` for the forward modes, `batches(...)` to score many. Those on disk have
a length; drawn ones have no end."""


DRAWN: dict[type[DrawnData], Callable[..., DrawnVideos]] = {ProceduralData: ProceduralVideos, ScreenData: ScreenVideos}
"""What draws the videos of each kind of `data` that is drawn, given its options."""
SOURCES: dict[type, Callable[[Any], FolderSource | TarSource]] = {FolderData: FolderSource, WebDatasetData: TarSource}
"""What opens the files of each kind of `data` (`fvlm_lib.data.options.Data`) on disk, given its path."""


def draw_videos(data: DrawnData) -> DrawnVideos:
    """The videos of options whose kind is drawn."""
    return DRAWN[type(data)](**vars(data))


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
    described: DrawnData | FileData = check(Data, data, "data")
    if isinstance(described, DrawnData):
        return draw_videos(described)
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
