"""A foveated model that watches frames as they come: a thread takes them, the caller's thread computes.

A frame that is taken while the one before it still waits to be watched takes its place, and the one before it is
counted as dropped: what is watched is never older than what computing one frame takes. Where frames come from is the
subject of `data/live_frames.py`, how a frame is encoded and what is kept that of `stream.py`. Nothing is drawn or
printed here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fvlm_lib.data.frames import normalise, square
from fvlm_lib.data.live_frames import LiveSource
from fvlm_lib.data.options import DrawnData, DrawnKind, FrameOptions
from fvlm_lib.data.videos import draw_videos
from fvlm_lib.devices import pick_device
from fvlm_lib.errors import CheckpointError
from fvlm_lib.foveated.checkpoints import has_tokenizer, load_checkpoint, load_tokenizer, read_training
from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.stream import FoveatedStream
from fvlm_lib.reuse.fastest import PackWeights
from fvlm_lib.schema import check
from fvlm_lib.timing import timed
from fvlm_lib.vision.settings import EXACT, DifferentialSettings

Grabbed = tuple[float, np.ndarray]
"""Seconds since the start, and a frame uint8 (H, W, 3)."""


@dataclass(frozen=True)
class LiveFrame:
    """One frame that was watched, and what the model made of it.

    index: of the frames that were watched, from 0. seconds: since the start, when it was taken. frame: uint8 (H, W, 3),
    as the model sees it, squashed to its size. encoded: bool (rows, columns), the patches that were taken from this
    frame; path: how it was encoded; both as in `FrameStatistics`. look: float (rows, columns), the query's attention
    over the patches, averaged over heads and layers, summing to 1. caption: what the model says behind this frame, None
    where it was not asked. encode_ms, look_ms, language_ms: see `stream.PushTimes`; caption_ms: 0 where it was not
    asked. dropped: frames that came too late to be watched, so far.
    """

    index: int
    seconds: float
    frame: np.ndarray
    encoded: np.ndarray
    path: str
    look: np.ndarray
    caption: str | None
    encode_ms: float
    look_ms: float
    language_ms: float
    caption_ms: float
    dropped: int


def live_row(live: LiveFrame) -> dict[str, Any]:
    """What was measured of a frame, and what was said, without its pixels: of its patches how many, and of the look the
    row and column, from 0, of the patch that gets most of it, and its share."""
    row, column = np.unravel_index(live.look.argmax(), live.look.shape)
    return {
        "frame": live.index,
        "seconds": live.seconds,
        "path": live.path,
        "encoded": int(live.encoded.sum()),
        "patches": live.encoded.size,
        "look_row": int(row),
        "look_column": int(column),
        "look_share": float(live.look.max()),
        "encode_ms": live.encode_ms,
        "look_ms": live.look_ms,
        "language_ms": live.language_ms,
        "caption_ms": live.caption_ms,
        "dropped": live.dropped,
        "caption": live.caption,
    }


# ---- opening -----------------------------------------------------------------------------------------


def open_live(checkpoint: str | Path, device: str = "auto") -> tuple[FoveatedVLM, PreTrainedTokenizerBase]:
    """A checkpoint and the tokenizer of what it says: its own, or that of the videos that it says it was trained on.

    Raises CheckpointError where the checkpoint cannot be loaded, or there is no tokenizer for it.
    """
    model = load_checkpoint(checkpoint, device=pick_device(device))
    if has_tokenizer(checkpoint):
        return model, load_tokenizer(checkpoint, model.config.text_config.vocab_size)
    videos = _trained_videos(checkpoint)
    if videos is None:
        raise CheckpointError(
            f"{checkpoint} has no tokenizer, nor a training.json that says on which drawn videos it was trained; put "
            "the tokenizer.json and tokenizer_config.json of its language model there"
        )
    return model, draw_videos(videos).tokenizer()


def trained_frames(checkpoint: str | Path) -> int | None:
    """How many frames the videos had that a checkpoint was trained on, None where it does not say."""
    videos = _trained_videos(checkpoint)
    return None if videos is None else videos.num_frames


def most_frames(model: FoveatedVLM, max_new_tokens: int) -> int:
    """How many frames the positions of the model's language model are enough for, before a caption."""
    around = 2 if model.config.mode_tokens else 0
    return model.config.text_config.max_position_embeddings - around - max_new_tokens


def _trained_videos(checkpoint: str | Path) -> DrawnData | None:
    """The drawn videos of a checkpoint's training, as its training.json says; None where it says nothing of them."""
    config = read_training(checkpoint).get("config")
    videos = config.get("videos") if isinstance(config, dict) else None
    if not isinstance(videos, dict):
        return None
    found: DrawnData = check(DrawnKind, {"kind": "procedural", **videos}, f"{checkpoint}: its videos")
    return found


# ---- watching ----------------------------------------------------------------------------------------


def watch_live(
    model: FoveatedVLM,
    tokenizer: PreTrainedTokenizerBase,
    frames: Iterable[Grabbed],
    *,
    differential: DifferentialSettings | None = EXACT,
    caption_every: float = 1.0,
    max_new_tokens: int = 16,
    max_frames: int | None = None,
    pack_weights: PackWeights = False,
    pack_memory: int | None = None,
    stop: threading.Event | None = None,
) -> Generator[LiveFrame, None, None]:
    """Watch frames as they come, until they end, `stop` is set, or the iterator is closed.

    frames: a `LiveSource`, or any iterable of (seconds since the start, frame uint8 (H, W, 3)), of whatever size; a
        thread iterates it, and is joined in any case before this ends. Of another iterable than a LiveSource it first
        waits for the next frame.
    differential, pack_weights, pack_memory: see `FoveatedStream`.
    caption_every: seconds between two captions, 0 for one at every frame; the model is not asked again while nothing
        changed. max_new_tokens: of a caption.
    max_frames: see `FoveatedStream`; None is what the language model's positions are enough for.

    Raises TypeError for a tower without an adapter and ValueError for settings that do not fit the model, at once; and
    while watching, ValueError for a frame that is none, and what the iterable raises, after the frames before it.
    """
    if not caption_every >= 0:
        raise ValueError(f"caption_every is {caption_every}; it must be at least 0 seconds")
    most = most_frames(model, max_new_tokens)
    if most < (max_frames or 2):
        raise ValueError(
            f"{max_frames or 2} frames and a caption of {max_new_tokens} tokens are more than the language model has "
            f"positions for, {model.config.text_config.max_position_embeddings}; take fewer"
        )
    stream = FoveatedStream(
        model,
        differential,
        pack_weights=pack_weights,
        pack_memory=pack_memory,
        max_frames=most if max_frames is None else max_frames,
        timed=True,
    )
    options = _frame_options(model.config)

    def say() -> str:
        ids = stream.caption(max_new_tokens=max_new_tokens, do_sample=False)
        return str(tokenizer.decode(ids[0], skip_special_tokens=True)).strip()

    return _watch(stream, frames, options, say, caption_every, stop or threading.Event())


def _watch(
    stream: FoveatedStream,
    frames: Iterable[Grabbed],
    options: FrameOptions,
    say: Callable[[], str],
    caption_every: float,
    stop: threading.Event,
) -> Generator[LiveFrame, None, None]:
    model, mailbox, closed = stream.model, _Mailbox(), threading.Event()
    thread = threading.Thread(target=_take, args=(frames, options, mailbox, closed), name="live frames", daemon=True)
    thread.start()
    try:
        index, asked = 0, -np.inf  # seconds of the frame at which the model was asked last
        changed = True  # since then
        while (taken := mailbox.get(stop)) is not None:
            (seconds, frame), dropped = taken
            pixels = normalise(frame[None], options)
            stream.push(pixels.to(model.device, model.dtype), output_attentions=True)
            encoded, path = _done(stream, options.image_size // model.config.vision_config.patch_size)
            changed = changed or bool(encoded.any())
            caption, caption_ms = None, 0.0
            if changed and seconds - asked >= caption_every:
                caption, caption_ms = timed(say)
                asked, changed = seconds, False
            times = stream.times
            assert times is not None
            look = mean_look(stream.attentions, encoded.shape)
            yield LiveFrame(
                index, seconds, frame, encoded, path, look, caption, times.encode, times.look, times.language,
                caption_ms, dropped,
            )  # fmt: skip
            index += 1
    finally:
        closed.set()
        if isinstance(frames, LiveSource):
            frames.close()
        thread.join()


def mean_look(attentions: tuple[Tensor, ...], grid: tuple[int, ...]) -> np.ndarray:
    """Attention (1, heads, tokens of a frame) per layer, averaged over heads and layers, over the patches of the grid
    (rows, columns), which are the last tokens: float64 (rows, columns), summing to 1 without the others."""
    mean = torch.stack([layer[0].mean(dim=0) for layer in attentions]).mean(dim=0).double().cpu().numpy()
    patches = mean[-grid[0] * grid[1] :].reshape(grid)
    return np.asarray(patches / patches.sum())


def _done(stream: FoveatedStream, side: int) -> tuple[np.ndarray, str]:
    """Which patches of the last frame were taken from it, bool (rows, columns), and how it was encoded."""
    if stream.encoder is None:
        return np.ones((side, side), dtype=bool), "full"
    statistics = stream.encoder.frame_statistics
    assert statistics is not None
    return statistics.encoded.cpu().numpy().copy(), statistics.path


def _frame_options(config: FoveatedVLMConfig) -> FrameOptions:
    """How a frame becomes what the model wants: all of it, squashed to its size."""
    return FrameOptions(
        crop="squash",
        image_size=config.image_size,
        image_mean=tuple(config.image_mean),  # type: ignore[arg-type]
        image_std=tuple(config.image_std),  # type: ignore[arg-type]
    )


# ---- taking ------------------------------------------------------------------------------------------


class _Mailbox:
    """Room for one frame between two threads: a newer one takes the place of one that still waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: Grabbed | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._dropped = 0

    def put(self, grabbed: Grabbed) -> None:
        with self._changed:
            self._dropped += self._waiting is not None
            self._waiting = grabbed
            self._changed.notify()

    def end(self, error: BaseException | None = None) -> None:
        """No more frames; what waits is still given, then the error raised."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def get(self, stop: threading.Event) -> tuple[Grabbed, int] | None:
        """The frame that waits, or the next one, and how many were dropped; None at the end, and once `stop` is set."""
        with self._changed:
            while self._waiting is None and not self._ended and not stop.is_set():
                self._changed.wait(timeout=0.05)
            if stop.is_set():
                return None
            if self._waiting is None:
                if self._error is not None:
                    raise self._error
                return None
            grabbed, self._waiting = self._waiting, None
            return grabbed, self._dropped


def _take(frames: Iterable[Grabbed], options: FrameOptions, mailbox: _Mailbox, closed: threading.Event) -> None:
    """Put frames, squashed, into the mailbox as they come, until they end or `closed` is set."""
    try:
        for seconds, frame in frames:
            if closed.is_set():
                return
            mailbox.put((seconds, square(_checked(frame), options)))
        mailbox.end()
    except BaseException as error:  # it is raised where the frames are watched
        mailbox.end(error)


def _checked(frame: Any) -> np.ndarray:
    is_array = isinstance(frame, np.ndarray) and frame.dtype == np.uint8
    if not (is_array and frame.ndim == 3 and frame.shape[2] == 3 and frame.size):
        what = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"a frame is {what}; it must be a uint8 array of shape (height, width, 3)")
    return frame
