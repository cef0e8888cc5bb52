"""Captioned videos on disk for the tests: procedural ones, coded without loss, as a folder or as tar shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

from fvlm_lib.data.videos import ProceduralVideos

VIDEOS = ProceduralVideos(split="test")


def write_video(
    path: Path, frames: Sequence[np.ndarray], codec: str = "ffv1", pixels: str = "bgr0", fps: int = 10, rotate: int = 0
) -> None:
    """A video file of uint8 (H, W, 3) RGB frames; without loss by default."""
    options = {"qp": "0"} if codec == "libx264rgb" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.pix_fmt = pixels
        stream.height, stream.width = frames[0].shape[:2]
        if rotate:
            stream.set_display_rotation(rotate)
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def encoded(frame: np.ndarray, form: str = "png") -> bytes:
    """An image file's content."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, form)
    return buffer.getvalue()


def procedural(count: int, cut: bool = True) -> list[tuple[list[np.ndarray], str]]:
    """Frames (8 of 32x32 pixels; of every third video only 5, if `cut`) and captions of the first procedural test
    videos."""
    batch = VIDEOS.batch(0, count)
    captions = VIDEOS.tokenizer().batch_decode(batch["input_ids"], skip_special_tokens=True)
    pixels = ((batch["pixel_values"] + 1) * 127.5).round().byte().permute(0, 1, 3, 4, 2).numpy()  # (B, T, H, W, 3)
    lengths = [5 if cut and i % 3 == 2 else 8 for i in range(count)]
    # a caption has two words more than a video has frames after the first
    words = [" ".join(caption.split()[: length + 1]) for caption, length in zip(captions, lengths, strict=True)]
    return [(list(video[:length]), text) for video, length, text in zip(pixels, lengths, words, strict=True)]


def write_folder(folder: Path, count: int, captions: dict[int, str] | None = None) -> None:
    """`count` videos, 0.mkv and on, with captions.jsonl; `captions` replaces some of theirs."""
    lines = []
    for i, (frames, caption) in enumerate(procedural(count)):
        write_video(folder / f"{i}.mkv", frames)
        lines.append(json.dumps({"file": f"{i}.mkv", "caption": (captions or {}).get(i, caption)}))
    (folder / "captions.jsonl").write_text("\n".join(lines))


def write_tar(folder: Path, count: int, shards: int = 2, broken: int | None = None) -> None:
    """The same videos as PNG frames in tar shards 0.tar and on; an image of sample `broken` is cut short."""
    videos = procedural(count)
    size = -(-count // shards)
    for k in range(shards):
        with tarfile.open(folder / f"{k}.tar", "w") as archive:
            for i in range(k * size, min((k + 1) * size, count)):
                frames, caption = videos[i]
                files = {f"{t:03d}.png": encoded(frame) for t, frame in enumerate(frames)}
                if i == broken:
                    files["002.png"] = files["002.png"][:200]
                add(archive, f"{i:05d}", {**files, "txt": caption.encode()})


def add(archive: tarfile.TarFile, key: str, files: dict[str, bytes]) -> None:
    """One sample of a shard: contents by ending."""
    for ending, content in files.items():
        member = tarfile.TarInfo(f"{key}.{ending}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
