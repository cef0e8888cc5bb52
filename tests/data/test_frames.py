"""One video's frames: the right moments, the same pixels from every store, and damage that is named."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from captioned import encoded, write_video
from PIL import Image

from fvlm_lib.data.frames import FrameOptions, StoredFile, choose_times, read_video

RNG = np.random.default_rng(0)
FRAMES = [RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(25)]  # 10 a second
LOSSLESS = {"a.mkv": ("ffv1", "bgr0"), "b.mp4": ("libx264rgb", "rgb24"), "c.avi": ("png", "rgb24")}
LOSSY = {"d.mp4": ("libx264", "yuv420p"), "e.webm": ("libvpx-vp9", "yuv420p"), "f.avi": ("mpeg4", "yuv420p")}
PLAIN = {"image_mean": (0, 0, 0), "image_std": (1, 1, 1)}  # pixels in [0, 1]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The same 25 frames as videos, and as a folder of PNG files."""
    folder = tmp_path_factory.mktemp("frames")
    for name, (codec, pixels) in {**LOSSLESS, **LOSSY}.items():
        write_video(folder / name, FRAMES, codec, pixels)
    (folder / "images").mkdir()
    for i, frame in enumerate(FRAMES):
        (folder / "images" / f"frame_{i}.png").write_bytes(encoded(frame))
    return folder


@pytest.mark.parametrize(
    "options",
    [
        FrameOptions(frame_rate=10, image_size=32),
        FrameOptions(frame_rate=10, sampling="1fps", crop="squash"),
        FrameOptions(frame_rate=10, max_frames=99, image_size=40, image_mean=[0, 0, 0], image_std=[1, 1, 1]),
    ],
)
def test_every_lossless_store_gives_the_same_pixels(stored, options):
    images = read_video(stored / "images", options)
    for name in LOSSLESS:
        assert torch.equal(read_video(stored / name, options), images), name
        in_archive = [StoredFile(f"x.tar:1.{name}", (stored / name).read_bytes())]
        assert torch.equal(read_video(in_archive, options), images), name
    archived = [StoredFile(f"x.tar:1.{i}.png", encoded(frame)) for i, frame in enumerate(FRAMES)]
    assert torch.equal(read_video(archived[::-1], options), images)


def test_lossy_videos_have_the_same_frames_at_the_same_times(tmp_path):
    frames = [np.full((32, 32, 3), 10 * i, np.uint8) for i in range(25)]
    for name, (codec, pixels) in LOSSY.items():
        write_video(tmp_path / name, frames, codec, pixels)
        for sampling, expected in {"1fps": [0, 10, 20], "uniform": [0, 12, 24]}.items():
            seen = read_video(tmp_path / name, FrameOptions(sampling=sampling, max_frames=3, **PLAIN))
            means = seen.mean(dim=(1, 2, 3)) * 25.5
            np.testing.assert_allclose(means, expected, atol=0.4, err_msg=f"{name} {sampling}")


def test_pixels_are_the_stored_ones_cropped_and_normalised(tmp_path):
    (tmp_path / "0.png").write_bytes(encoded(FRAMES[0]))
    cropped = read_video(tmp_path, FrameOptions(image_size=40))[0]
    stored = torch.from_numpy(FRAMES[0][:, 10:50]).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(cropped, (stored - mean[:, None, None]) / std[:, None, None])
    squashed = read_video(tmp_path, FrameOptions(image_size=40, crop="squash", **PLAIN))[0]
    pillow = np.asarray(Image.fromarray(FRAMES[0]).resize((40, 40), Image.Resampling.BICUBIC))
    torch.testing.assert_close(squashed, torch.from_numpy(pillow.copy()).permute(2, 0, 1) / 255)


@pytest.mark.parametrize(
    ("sampling", "times", "expected"),
    [
        ("uniform", [0, 1, 2], [0, 1, 2]),
        ("uniform", list(range(9)), [0, 3, 5, 8]),
        ("1fps", [0, 0.5, 1, 1.5, 2, 2.5], [0, 1, 2]),
        ("1fps", [7, 7.9], [7]),
        ("1fps", list(range(100)), [0, 1, 2, 3]),
    ],
)
def test_moments(sampling, times, expected):
    assert choose_times(times, FrameOptions(sampling=sampling, max_frames=4)) == expected


def test_one_frame_a_second_is_what_is_shown_then(tmp_path):
    """At 3 frames a second no frame begins at 1.5 s; with 0.4 a second one is shown for 2.5 s."""
    for i in range(9):
        (tmp_path / f"{i}.png").write_bytes(encoded(np.full((8, 8, 3), i, np.uint8)))
    shown = {}
    for rate in (3, 0.4):
        pixels = read_video(tmp_path, FrameOptions(sampling="1fps", frame_rate=rate, image_size=8, **PLAIN))
        shown[rate] = (pixels[:, 0, 0, 0] * 255).round().int().tolist()
    assert shown == {3: [0, 3, 6], 0.4: [0, 0, 0, 1, 1, 2, 2, 2]}


def test_a_still_image_is_shown_as_often_as_is_asked(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(FRAMES[0], "jpeg"))
    assert len(read_video(tmp_path / "a.jpg", FrameOptions())) == 1
    repeated = read_video(tmp_path / "a.jpg", FrameOptions(still_frames=8))
    assert len(repeated) == 8
    assert (repeated == repeated[0]).all()


def test_a_video_of_a_turned_camera_stands_upright(tmp_path):
    write_video(tmp_path / "a.mp4", FRAMES[:1], "libx264rgb", "rgb24", rotate=90)
    (tmp_path / "a.png").write_bytes(encoded(np.rot90(FRAMES[0])))
    options = FrameOptions(crop="squash")
    assert torch.equal(read_video(tmp_path / "a.mp4", options), read_video(tmp_path / "a.png", options))


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_a_video_that_is_cut_short_is_named(stored, tmp_path, name):
    content = (stored / name).read_bytes()
    for kept in (2 / 3, 1 / 3, 0):
        path = tmp_path / name
        path.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(ValueError, match=f"{name}: is not a readable video"):
            read_video(path, FrameOptions())


def test_damage_in_the_middle_of_a_video_is_noticed(stored, tmp_path):
    content = bytearray((stored / "c.avi").read_bytes())  # PNG frames have checksums
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(50)
    (tmp_path / "c.avi").write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.avi: is not a readable video"):
        read_video(tmp_path / "c.avi", FrameOptions(max_frames=99))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"0.jpg": encoded(FRAMES[0], "jpeg")[:500]}, r"0\.jpg: is not a readable image"),
        ({"0.png": encoded(FRAMES[0])[:500]}, r"0\.png: is not a readable image"),
        ({"0.png": b"junk"}, r"0\.png: is not a readable image"),
        ({"0.mp4": b"junk" * 1000}, r"0\.mp4: is not a readable video"),
        ({"0.mp4": b"", "1.png": encoded(FRAMES[0])}, "one video or images"),
        ({}, "has no frames"),
    ],
)
def test_what_is_no_video_is_named(files, message):
    with pytest.raises(ValueError, match=message):
        read_video([StoredFile(name, content) for name, content in files.items()], FrameOptions())


def test_missing_and_unknown_files_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("no video")
    (tmp_path / "empty").mkdir()
    for name, message in {"b.mp4": "no such file", "a.txt": "neither a folder nor", "empty": "no images"}.items():
        with pytest.raises(ValueError, match=message):
            read_video(tmp_path / name, FrameOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "2fps"}, "sampling is '2fps'; it must be 'uniform' or '1fps'; did you mean '1fps'?"),
        ({"crop": "center"}, "crop is 'center'; it must be 'centre' or 'squash'; did you mean 'centre'?"),
        ({"max_frames": 0}, "max_frames is 0; it must be at least 1"),
        ({"max_frames": 2.5}, "max_frames is 2.5; it must be a whole number"),
        ({"image_size": "224"}, "image_size is '224'; it must be a whole number"),
        ({"image_size": 10**9}, "image_size is 1000000000; it must be at most 4096"),
        ({"frame_rate": -1.0}, "frame_rate is -1.0; it must be at least 0.001"),
        ({"frame_rate": 1e-300}, "frame_rate is 1e-300; it must be at least 0.001"),
        ({"frame_rate": math.inf}, "frame_rate is inf; it must be a finite number"),
        ({"frame_rate": math.nan}, "frame_rate is nan; it must be a finite number"),
        ({"image_mean": 0.5}, "image_mean is 0.5; it must be a list"),
        ({"image_mean": [0, 0]}, "image_mean is (0, 0); it must be a list of at least 3"),
        ({"image_std": [1, 1, 0]}, "image_std[2] is 0; it must be above 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=f"^FrameOptions: {re.escape(message)}$"):
        FrameOptions(**options)
