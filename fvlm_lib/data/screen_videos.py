"""Captioned videos of drawn screens at which someone works: "clicked save, dialog closed, scrolled down".

A frame is a screen after one more event, and the caption says what happened before each frame but the first, a phrase
an event (`screen_events.py`). Pixels have no noise, so that what changed between two frames is exactly where they
differ. This module knows nothing of models.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fvlm_lib.data.drawn_events import Window, event_stream
from fvlm_lib.data.drawn_screens import CELL, Screen, draw
from fvlm_lib.data.drawn_videos import EOS, PAD, SPLITS, DrawnVideos, check_range, word_tokenizer
from fvlm_lib.data.options import ScreenData
from fvlm_lib.data.screen_events import PHRASES, SEPARATOR, Event
from fvlm_lib.data.screens import write_sequence
from fvlm_lib.schema import settings

VOCABULARY = (PAD, EOS, *PHRASES)
_STREAM = 1  # of random numbers, apart from that of other videos of the same split and seed


@settings
class ScreenVideos(ScreenData, DrawnVideos):
    """An endless set of screen videos; sample i of a split and seed is always the same, however batched.

    split, seed, num_frames, num_themes: see `ScreenData`. Raises ValueError for an option that cannot be.
    """

    patch_size: ClassVar[int] = CELL  # so that a patch holds one character
    pixel_rms: ClassVar[float] = 0.85  # mostly the window, which is white in the light themes

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The captions' phrases in the order of their token ids."""
        return VOCABULARY

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer of `vocabulary`: one token a phrase."""
        return word_tokenizer(VOCABULARY, SEPARATOR)

    def sample(self, index: int) -> list[tuple[Window, Event | None]]:
        """What stands on each frame of a video, and the event that it is behind; None for the first."""
        rng = np.random.default_rng([SPLITS.index(self.split), self.seed, index, _STREAM])
        return list(event_stream(rng, self.num_frames, self.num_themes))

    def batch(self, start: int, stop: int) -> dict[str, Tensor]:
        """Samples start..stop-1 as one batch: pixel_values (B, T, 3, H, W) in [-1, 1], input_ids (B, T): a phrase each
        later frame, and EOS; masks of ones. Raises ValueError for no samples."""
        check_range(start, stop)
        samples = [self.sample(index) for index in range(start, stop)]
        number = {phrase: i for i, phrase in enumerate(VOCABULARY)}
        ids = [[number[event.phrase] for _, event in sample if event] + [number[EOS]] for sample in samples]
        frames = np.stack([_draw_all([window.screen for window, _ in sample]) for sample in samples])
        pixels = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).contiguous().float() / 127.5 - 1
        input_ids = torch.tensor(ids)
        return {
            "pixel_values": pixels,
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "frame_mask": torch.ones(pixels.shape[:2], dtype=torch.long),
        }


def write_screen_video(folder: Path, videos: ScreenVideos, index: int) -> Path:
    """A video as a folder of PNG files with `actions.json`, whose actions are the phrases of the caption."""
    sample = videos.sample(index)
    actions = [{"action": event.phrase if event else "start", "detail": ""} for _, event in sample]
    about = f"drawn screens at which someone works: video {index} of split {videos.split}, seed {videos.seed}"
    return write_sequence(folder, _draw_all([window.screen for window, _ in sample]), actions, about)


def _draw_all(screens: list[Screen]) -> np.ndarray:
    """The frames, uint8 (T, height, width, 3); each screen is drawn once, however often it comes again."""
    drawn = {screen: draw(screen) for screen in dict.fromkeys(screens)}
    return np.stack([drawn[screen] for screen in screens])
