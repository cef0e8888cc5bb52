"""The frames of one video: which are taken, decoded, cropped, resized and normalised into `pixel_values`.

The same pixels whoever decodes: PyAV in one thread, with exact rounding where colours are converted, and
Pillow for every resize. So a losslessly coded video, its frames as PNG files and the same in an archive give
equal tensors. This module knows nothing of captions, sets or models.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation
from PIL import Image
from torch import Tensor

from fvlm_lib.data.options import FrameOptions
from fvlm_lib.data.screens import IMAGE_SUFFIXES, natural_order, read_frame, read_sequence

VIDEO_SUFFIXES = {".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".gif"}
_SWSCALE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT


@dataclass(frozen=True)
class StoredFile:
    """A file by name, with its content where that is not on disk under this name (in an archive, say)."""

    name: str
    content: bytes | None = None

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix.lower()


def read_video(video: Path | Sequence[StoredFile], options: FrameOptions) -> Tensor:
    """The chosen frames of a video as pixel_values (T, 3, image_size, image_size), float32.

    video: a video file, an image file, a folder of images, or the files of one sample of an archive (one
    video, or images). Images are frames in natural order (2 before 10).

    Raises ValueError, naming the file, for what is missing, damaged, cut short or neither video nor image.
    """
    files = _files(video) if isinstance(video, Path) else sorted(video, key=lambda file: natural_order(Path(file.name)))
    if not files:
        raise ValueError("it has no frames")
    videos = [file for file in files if file.suffix in VIDEO_SUFFIXES]
    if videos and len(files) > 1:
        raise ValueError(f"{videos[0].name} has other videos or images beside it; a sample is one video or images")
    if videos:
        frames = _decode(videos[0], options)
    else:
        times = [index / options.frame_rate for index in range(len(files))]
        chosen = [files[bisect_right(times, time) - 1] for time in choose_times(times, options)]
        frames = [read_frame(file.name, file.content) for file in chosen]
    if len(frames) == 1:
        frames *= options.still_frames
    return normalise(np.stack([square(frame, options) for frame in frames]), options)


def normalise(frames: np.ndarray, options: FrameOptions) -> Tensor:
    """Frames uint8 (T, H, W, 3) as pixel_values (T, 3, H, W), float32."""
    scaled = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255  # (T, 3, H, W)
    mean, std = (torch.tensor(values)[:, None, None] for values in (options.image_mean, options.image_std))
    return ((scaled - mean) / std).contiguous()


def square(frame: np.ndarray, options: FrameOptions) -> np.ndarray:
    """A frame uint8 (H, W, 3) cropped or squashed to (image_size, image_size, 3)."""
    height, width = frame.shape[:2]
    box: tuple[float, float, float, float] = (0, 0, width, height)
    if options.crop == "centre":
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    size = (options.image_size, options.image_size)
    return np.array(Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BICUBIC, box=box))


def choose_times(times: Sequence[float], options: FrameOptions) -> list[float]:
    """Which moments of a video are looked at; `times` are those of its frames in seconds, ascending."""
    if options.sampling == "1fps":
        seconds = int(times[-1] - times[0])
        return [times[0] + second for second in range(seconds + 1)[: options.max_frames]]
    if len(times) <= options.max_frames:
        return list(times)
    return [times[index] for index in np.linspace(0, len(times) - 1, options.max_frames).round().astype(int)]


def _files(path: Path) -> list[StoredFile]:
    """The file at `path`, or the images in the folder there."""
    if path.is_dir():
        return [StoredFile(str(file)) for file in read_sequence(path).files]
    if path.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        known = " ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))
        raise ValueError(f"{path}: is neither a folder nor a file with one of the endings {known}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return [StoredFile(str(path))]


def _decode(file: StoredFile, options: FrameOptions) -> list[np.ndarray]:
    """The chosen frames of a video file, uint8 (H, W, 3) RGB each."""
    try:
        wanted = choose_times(_frame_times(file), options)
        taken: list[np.ndarray] = []
        shown = None
        with _open(file) as container:
            stream = container.streams.video[0]
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise ValueError("a frame is damaged")
                while len(taken) < len(wanted) and wanted[len(taken)] < _time(frame, stream):
                    taken.append(_rgb(shown or frame))
                if len(taken) == len(wanted):
                    break
                shown = frame
        while shown is not None and len(taken) < len(wanted):
            taken.append(_rgb(shown))
    except (av.FFmpegError, ValueError, IndexError) as error:  # IndexError: it has no video stream
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{file.name}: is not a readable video ({reason})") from error
    return taken


def _frame_times(file: StoredFile) -> list[float]:
    """When each frame is shown, ascending, in seconds; without decoding."""
    times, end = [], 0.0
    with _open(file) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise ValueError("a packet is damaged")
            if packet.size and not packet.is_discard:
                times.append(_time(packet, stream))
                end = max(end, times[-1] + (packet.duration or 0) * float(stream.time_base))
        if not times:
            raise ValueError("it has no frames")
        if end < _declared_end(stream) - 0.5:
            raise ValueError(f"it is cut short after {end:.1f} seconds")
    return sorted(times)


def _open(file: StoredFile) -> Any:
    """The container, which decodes in one thread and raises where it would else conceal an error."""
    container = av.open(file.name if file.content is None else io.BytesIO(file.content))
    for stream in container.streams.video[:1]:
        stream.codec_context.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"err_detect": "explode"}
    return container


def _time(item: Any, stream: Any) -> float:
    """When a packet or frame is shown, in seconds."""
    stamp = item.dts if item.pts is None else item.pts
    if stamp is None:
        raise ValueError("its frames have no time stamps")
    return stamp * float(stream.time_base)


def _declared_end(stream: Any) -> float:
    """The end of the stream in seconds as Matroska and WebM note it (other formats report a cut themselves)."""
    hours, minutes, seconds = ("0:0:" + stream.metadata.get("DURATION", "0")).split(":")[-3:]
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    """A decoded frame as uint8 (H, W, 3) RGB, upright."""
    array = frame.to_ndarray(format="rgb24", interpolation=_SWSCALE, threads=1)
    return np.rot90(array, round(frame.rotation / 90))
