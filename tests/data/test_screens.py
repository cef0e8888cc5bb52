"""Reading sequences of screenshots, and recording them for real on a virtual screen."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from fvlm_lib.data import screens
from fvlm_lib.data.screens import read_frame, read_sequence, read_sequences

SCREENS = ROOT / "data" / "screens"
NAMES = ["dialog", "fade", "idle", "jupyter", "terminal"]


def write(path: Path, value: int = 0, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


# --- the recordings ---


def test_the_recordings_are_read_with_what_was_done_at_each_frame():
    sequences = [s for s in read_sequences(SCREENS) if s.name in NAMES]
    assert [s.name for s in sequences] == NAMES
    for sequence in sequences:
        content = json.loads((SCREENS / sequence.name / "actions.json").read_text())
        assert len(sequence) == content["n_frames"] == len(sequence.actions)
        assert sequence.about == content["about"]
        assert [file.name for file in sequence.files] == [entry["file"] for entry in sequence.actions]
        assert [entry["index"] for entry in sequence.actions] == list(range(len(sequence)))


@pytest.mark.parametrize("name", ["idle", "jupyter"])
def test_frames_are_rgb_arrays_and_equal_their_predecessor_where_the_actions_say_so(name):
    sequence = read_sequence(SCREENS / name)
    previous = None
    for frame, entry in zip(sequence, sequence.actions, strict=True):
        assert frame.shape == (800, 1280, 3) and frame.dtype == np.uint8
        same = previous is not None and np.array_equal(frame, previous)
        assert same == entry["identical_to_previous"]
        previous = frame
    np.testing.assert_array_equal(sequence[-1], previous)


def test_a_line_of_information_for_each_sequence(capsys):
    assert screens.main([str(SCREENS / "idle")]) == 0
    assert capsys.readouterr().out == "idle: 30 frames, 1280x800, 20 changed\n"


# --- files, lists, directories ---


def test_a_directory_is_read_in_natural_order_without_hidden_and_other_files(tmp_path):
    for name in (
        "frame_10.png",
        "frame_2.png",
        "Frame_1.PNG",
        "frame_02.png",
        "frame_10b.jpg",
        ".hidden.png",
    ):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    sequence = read_sequence(tmp_path)
    names = [file.name for file in sequence.files]
    assert names == ["Frame_1.PNG", "frame_02.png", "frame_2.png", "frame_10.png", "frame_10b.jpg"]
    assert sequence.name == tmp_path.name and sequence.actions is None and sequence.about == ""


def test_superscripts_and_directories_named_like_images_do_no_harm(tmp_path):
    for name in ("²1.png", "x²3.png", "10.png"):
        write(tmp_path / name)
    (tmp_path / "thumbs.png").mkdir()
    assert [file.name for file in read_sequence(tmp_path).files] == ["10.png", "x²3.png", "²1.png"]


def test_a_list_keeps_its_order_and_a_single_image_is_a_sequence_of_one(tmp_path):
    a, b = write(tmp_path / "day" / "a.png", 1), write(tmp_path / "day" / "b.png", 2)
    sequence = read_sequence([b, str(a), b], name="mine")
    assert sequence.name == "mine" and [int(frame[0, 0, 0]) for frame in sequence] == [2, 1, 2]
    assert read_sequence([a]).name == "day"
    single = read_sequence(a)
    assert (single.name, len(single), int(single[0][0, 0, 0])) == ("a", 1, 1)
    assert [s.name for s in read_sequences(a)] == ["a"]


def test_a_directory_of_directories_is_several_sequences_in_natural_order(tmp_path):
    for name in ("run10", "run9", ".cache"):
        write(tmp_path / name / "0.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("about")
    assert [s.name for s in read_sequences(tmp_path)] == ["run9", "run10"]
    assert [s.name for s in read_sequences(tmp_path / "run9")] == ["run9"]


def test_files_are_opened_only_when_their_frame_is_asked_for(tmp_path):
    write(tmp_path / "0.png", 7)
    (tmp_path / "1.png").write_bytes(b"not an image")
    sequence = read_sequence(tmp_path)
    assert len(sequence) == 2 and (sequence[0] == 7).all()
    frames = iter(sequence)
    next(frames)
    with pytest.raises(ValueError, match=r"1\.png: is not a readable image"):
        next(frames)
    with pytest.raises(IndexError):
        sequence[2]


def test_a_sequence_is_frozen_loads_and_has_a_head(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}.png", i)
    entries = [{"file": f"{i}.png", "action": f"a{i}"} for i in range(3)]
    (tmp_path / "actions.json").write_text(json.dumps({"about": "three", "frames": entries}))
    sequence = read_sequence(tmp_path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sequence.name = "other"
    assert [int(frame[0, 0, 0]) for frame in sequence.load()] == [0, 1, 2]
    head = sequence.head(2)
    assert len(head) == 2 and [entry["action"] for entry in head.actions] == ["a0", "a1"]
    assert sequence.head(9) == sequence
    with pytest.raises(ValueError, match="frames 0"):
        sequence.head(0)


def test_the_size_may_change_within_a_sequence(tmp_path):
    write(tmp_path / "0.png", size=(8, 6))
    write(tmp_path / "1.png", size=(10, 6))
    sequence = read_sequence(tmp_path, name="mixed")
    assert [frame.shape for frame in sequence] == [(6, 8, 3), (6, 10, 3)]
    assert screens.describe(sequence) == "mixed: 2 frames, 8x6 10x6, 1 changed"


# --- modes ---


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_becomes_the_same_rgb(tmp_path, mode):
    image = Image.new("RGB", (8, 6), "white")
    image.paste((0, 0, 0), (0, 0, 4, 6))
    image.convert(mode).save(tmp_path / "frame.png")
    expected = np.full((6, 8, 3), 255, np.uint8)
    expected[:, :4] = 0
    frame = read_frame(tmp_path / "frame.png")
    np.testing.assert_array_equal(frame, expected)
    assert frame.flags.writeable


@pytest.mark.parametrize("palette", [False, True])
def test_transparent_pixels_are_shown_over_white_and_opaque_ones_as_they_are(tmp_path, palette):
    image = Image.new("RGBA", (4, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    if palette:
        image.convert("P").save(tmp_path / "frame.png", transparency=image.convert("P").getpixel((1, 0)))
        expected_transparent = [255, 255, 255]
        assert Image.open(tmp_path / "frame.png").mode == "P"
    else:
        image.putpixel((2, 0), (0, 0, 0, 51))  # a fifth black
        image.save(tmp_path / "frame.png")
        assert read_frame(tmp_path / "frame.png")[0, 0].tolist() == [10, 20, 30]
        assert read_frame(tmp_path / "frame.png")[0, 2].tolist() == [204, 204, 204]
        expected_transparent = [255, 255, 255]
    assert read_frame(tmp_path / "frame.png")[0, 1].tolist() == expected_transparent


# --- what is refused ---


def test_missing_files_and_directories_without_images_are_refused_by_name(tmp_path):
    for source in (tmp_path / "none", tmp_path / "none.png"):
        with pytest.raises(ValueError, match=f"{source.name}: no such file"):
            read_sequence(source)
        with pytest.raises(ValueError, match=f"{source.name}: no such file"):
            read_sequences(source)
    with pytest.raises(ValueError, match=r"none\.png: no such file"):
        read_sequence([tmp_path / "none.png"])
    with pytest.raises(ValueError, match=r"none\.png: no such file"):
        read_frame(tmp_path / "none.png")
    with pytest.raises(ValueError, match="list of images is empty"):
        read_sequence([])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"sub: has no images.*\.png"):
        read_sequence(tmp_path / "sub")
    with pytest.raises(ValueError, match="has no images"):
        read_sequences(tmp_path)


def test_images_beside_directories_of_images_are_refused_as_ambiguous(tmp_path):
    write(tmp_path / "0.png")
    write(tmp_path / "old" / "0.png")
    with pytest.raises(ValueError, match="in old, more images"):
        read_sequences(tmp_path)
    assert len(read_sequence(tmp_path)) == 1


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.95])
def test_a_truncated_image_is_refused_by_name(tmp_path, suffix, share):
    whole = tmp_path / f"whole{suffix}"
    Image.open(SCREENS / "jupyter" / "frame_0003.png").crop((0, 0, 300, 200)).save(whole)
    content = whole.read_bytes()
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"broken\\{suffix}: is not a readable image"):
        read_frame(broken)


def test_a_png_with_a_flipped_byte_is_refused_by_name(tmp_path):
    content = bytearray((SCREENS / "jupyter" / "frame_0003.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "flipped.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped\.png: is not a readable image"):
        read_frame(tmp_path / "flipped.png")


def test_animations_and_deep_grey_images_are_refused_not_silently_cut(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name in ("two.png", "two.gif", "two.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        for content in (None, (tmp_path / name).read_bytes()):
            with pytest.raises(ValueError, match=rf"{name}: holds 2 images, must be one file a frame"):
                read_frame(tmp_path / name, content)
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png: has pixels of mode I"):
        read_frame(tmp_path / "deep.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_images_that_a_camera_turned_are_read_upright(tmp_path, suffix):
    upright = np.zeros((6, 10, 3), np.uint8)
    upright[:3] = 255  # bright above
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned clockwise by a quarter
    Image.fromarray(np.rot90(upright)).save(tmp_path / f"turned{suffix}", exif=exif, quality=100)
    found = read_frame(tmp_path / f"turned{suffix}")
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < 20  # JPEG and WebP blur the border


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a list"),
        ("[" * 100_000, r"is not valid JSON \(it is nested too deeply"),
        ('{"frames": null}', "its frames is null"),
        ('{"frames": [{"index": 0}]}', "frame 0 must be an object with a text file"),
        ('{"frames": [{"file": "0.png", "action": 3}]}', "frame 0 must be .* texts action and detail"),
        ('{"frames": [{"file": "0.png"}]}', "frame 1 is missing, but the directory has 1.png"),
        (
            '{"frames": [{"file": "1.png"}, {"file": "0.png"}]}',
            "frame 0 is 1.png, but the directory has 0.png",
        ),
        (
            '{"frames": [{"file": "0.png"}, {"file": "1.png"}, {"file": "2.png"}]}',
            "frame 2 is 2.png, but the directory has no more",
        ),
    ],
)
def test_actions_that_are_not_about_the_images_beside_them_are_refused(tmp_path, content, message):
    write(tmp_path / "0.png")
    write(tmp_path / "1.png")
    (tmp_path / "actions.json").write_text(content)
    with pytest.raises(ValueError, match=f"actions.json:? {message}"):
        read_sequence(tmp_path)
