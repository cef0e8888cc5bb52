"""A model that watches live sees and says what a stream that is pushed by hand does, drops what it has no time for, and
ends in good order, whatever ends it."""

from __future__ import annotations

import copy
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import psutil
import pytest
import torch
from conftest import DEMO, ROOT, exit_code, tiny_model
from displays import Desktop, virtual_screen
from PIL import Image
from transformers import ViTConfig, ViTModel

from fvlm_lib.data.drawn_videos import EOS, PAD, word_tokenizer
from fvlm_lib.data.frames import normalise, square
from fvlm_lib.data.live_frames import open_source
from fvlm_lib.data.options import FrameOptions
from fvlm_lib.data.record import NoScreenError
from fvlm_lib.data.screens import read_sequence
from fvlm_lib.data.videos import ProceduralVideos
from fvlm_lib.errors import CheckpointError
from fvlm_lib.foveated import watch_command
from fvlm_lib.foveated.live import LiveFrame, live_row, most_frames, open_live, trained_frames, watch_live
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.stream import FoveatedStream
from fvlm_lib.gap.evaluation import float64_copy
from fvlm_lib.vision.settings import EXACT, DifferentialSettings

CHECKPOINT = DEMO / "S-S" / "step_3000"
TERMINAL = ROOT / "data" / "screens" / "terminal"
WORDS = word_tokenizer((PAD, EOS, *(f"word{number}" for number in range(18))))  # of the tiny model
OPTIONS = FrameOptions(crop="squash", image_size=48, image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
PATIENCE = 120  # seconds until something must have happened that takes a moment


@pytest.fixture(scope="module")
def model() -> FoveatedVLM:
    """A random model of frames of 48 x 48 pixels, 36 patches."""
    return float64_copy(tiny_model(image_size=48))


@pytest.fixture(scope="module")
def terminal() -> list[np.ndarray]:
    return read_sequence(TERMINAL).head(12).load()


class Paced:
    """Frames a second apart, of which each comes when the one before it has been watched, and then an error if there is
    one."""

    def __init__(self, frames: list, error: Exception | None = None) -> None:
        self.frames, self.error = frames, error
        self.room = threading.Semaphore(1)

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        for number, frame in enumerate(self.frames):
            assert self.room.acquire(timeout=PATIENCE)
            yield float(number), frame
        if self.error is not None:
            raise self.error


def watch_all(model: FoveatedVLM, frames: Paced, watched: list[LiveFrame] | None = None, **options) -> list[LiveFrame]:
    """All frames watched, none dropped."""
    watched = [] if watched is None else watched
    for frame in watch_live(model, WORDS, frames, max_new_tokens=4, **options):
        watched.append(frame)
        frames.room.release()
    return watched


def grabbers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "live frames"]


# ---- what is seen and said ---------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"deep_query": False}, {"mode_tokens": True}], ids=["deep", "last", "tokens"])
@pytest.mark.parametrize("settings", [DifferentialSettings(tolerance=0.1), None], ids=["differential", "plain"])
def test_watched_live_a_recording_is_what_it_is_to_a_stream_pushed_by_hand(terminal, config, settings):
    model = float64_copy(tiny_model(image_size=48, **config))
    watched = watch_all(model, Paced(terminal), differential=settings, caption_every=0, max_frames=6)
    stream = FoveatedStream(model, settings, max_frames=6)
    for number, (seen, frame) in enumerate(zip(watched, terminal, strict=True)):
        small = square(frame, OPTIONS)
        stream.push(normalise(small[None], OPTIONS).double(), output_attentions=True)
        assert (seen.index, seen.seconds, seen.dropped) == (number, number, 0)
        assert np.array_equal(seen.frame, small)
        attention = torch.stack(stream.attentions).mean(dim=(0, 2))[0, 1:]  # without CLS
        look = (attention / attention.sum()).reshape(6, 6).numpy()
        np.testing.assert_allclose(seen.look, look, rtol=0, atol=1e-9)
        assert abs(seen.look.sum() - 1) < 1e-9
        if settings is None:
            assert (seen.path, seen.encoded.all(), seen.encoded.shape) == ("full", True, (6, 6))
        else:
            statistics = stream.encoder.frame_statistics
            assert seen.path == statistics.path and np.array_equal(seen.encoded, statistics.encoded.numpy())
        if seen.caption is not None:
            said = stream.caption(max_new_tokens=4, do_sample=False)[0]
            assert seen.caption == WORDS.decode(said, skip_special_tokens=True)
        assert (seen.caption is not None) == bool(number == 0 or seen.encoded.any())
        assert (seen.caption_ms > 0) == (seen.caption is not None)
        assert min(seen.encode_ms, seen.look_ms, seen.language_ms) > 0
    assert len({frame.look.tobytes() for frame in watched}) == len(watched), "else it looks without the query"
    if settings is not None:
        assert {frame.path for frame in watched} == {"full", "partial", "cached"}


def test_it_is_asked_again_where_time_has_passed_and_something_changed(model, terminal):
    frames = [terminal[number] for number in (0, 0, 1, 1, 1, 1, 8, 8)]
    settings = DifferentialSettings(diff_threshold=0.0)
    watched = watch_all(model, Paced(frames), differential=settings, caption_every=3)
    changed = [frame.index for frame in watched if frame.encoded.any()]
    assert changed == [0, 2, 6], "else this test shows nothing"
    # at 3 for what changed at 2, at 6 for what changed then, and then for nothing
    assert [frame.index for frame in watched if frame.caption is not None] == [0, 3, 6]


def test_frames_of_changing_size_are_squashed_to_the_models(model, terminal):
    sizes = [(800, 1280), (50, 20), (48, 48), (1, 1), (800, 1280)]
    frames = [np.array(Image.fromarray(terminal[0]).resize(size[::-1])) for size in sizes]
    watched = watch_all(model, Paced(frames))
    assert [frame.frame.shape for frame in watched] == [(48, 48, 3)] * 5
    stream = FoveatedStream(model, DifferentialSettings())
    for seen, frame in zip(watched, frames, strict=True):
        stream.push(normalise(square(frame, OPTIONS)[None], OPTIONS).double())
        assert seen.path == stream.encoder.frame_statistics.path


def test_a_trained_model_says_of_a_played_video_what_it_generates():
    """Of frames of its own size, which squashing leaves alone; eight frames, as it was trained on."""
    model, tokenizer = open_live(CHECKPOINT, "cpu")
    pixels = ProceduralVideos(split="test", noise_std=0.0).batch(3, 4)["pixel_values"]
    frames = [((frame.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy() for frame in pixels[0]]
    paced = Paced(frames)
    watched = []
    for frame in watch_live(model, tokenizer, paced, differential=EXACT, caption_every=0):
        watched.append(frame)
        paced.room.release()
    rounded = torch.stack([torch.from_numpy(frame).permute(2, 0, 1) / 127.5 - 1 for frame in frames])[None]
    said = model.generate(rounded, max_new_tokens=16, do_sample=False)[0]
    assert watched[-1].caption == tokenizer.decode(said, skip_special_tokens=True) != ""


# ---- what comes too late -----------------------------------------------------------------------------


def test_a_model_that_is_slow_drops_frames_and_every_frame_is_counted(model, terminal):
    """All frames come while the first is looked at: the last of them is watched next, those between are dropped."""
    given = threading.Event()

    def burst() -> Iterator[tuple[float, np.ndarray]]:
        yield 0.0, terminal[0]
        assert first.wait(PATIENCE)
        yield from ((float(number), terminal[number]) for number in range(1, 12))
        given.set()

    first = threading.Event()
    frames = watch_live(model, WORDS, burst(), caption_every=0, max_new_tokens=4)
    watched = [next(frames)]
    first.set()
    assert given.wait(PATIENCE)
    watched += frames
    assert [frame.seconds for frame in watched] == [0, 11] and [frame.dropped for frame in watched] == [0, 10]
    assert [frame.index for frame in watched] == [0, 1] and np.array_equal(
        watched[1].frame, square(terminal[11], OPTIONS)
    )


@pytest.mark.parametrize("fps", [4, 1000])
def test_of_a_played_recording_what_is_watched_and_dropped_is_all_there_was(model, tmp_path, fps):
    for file in sorted(TERMINAL.glob("*.png"))[:8]:
        shutil.copy(file, tmp_path)
    watched = list(watch_live(model, WORDS, open_source(tmp_path, fps), caption_every=0, max_new_tokens=4))
    assert len(watched) + watched[-1].dropped == 8
    assert [frame.index for frame in watched] == [*range(len(watched))]
    dropped, seconds = ([getattr(frame, name) for frame in watched] for name in ("dropped", "seconds"))
    assert dropped == sorted(dropped) and seconds == sorted({*seconds})
    assert not grabbers()


# ---- the end -----------------------------------------------------------------------------------------


def test_closing_ends_the_thread_also_while_it_waits_for_a_frame(model):
    frames = watch_live(model, WORDS, open_source(TERMINAL, 0.001), max_new_tokens=4)
    next(frames)
    assert len(grabbers()) == 1, "the second frame is due in 1,000 seconds"
    frames.close()
    assert not grabbers()


def test_a_request_to_stop_ends_it_while_it_waits_for_a_frame(model):
    stop = threading.Event()
    frames = watch_live(model, WORDS, open_source(TERMINAL, 0.001), max_new_tokens=4, stop=stop)
    next(frames)
    threading.Timer(0.2, stop.set).start()
    assert list(frames) == [] and not grabbers()
    assert list(watch_live(model, WORDS, open_source(TERMINAL, 10), stop=stop)) == [], "it was asked before"


def test_what_the_source_raises_comes_behind_the_frames_before_it(model, terminal):
    watched: list[LiveFrame] = []
    with pytest.raises(NoScreenError, match="the display is gone"):
        watch_all(model, Paced(terminal[:3], NoScreenError("the display is gone")), watched)
    assert [frame.index for frame in watched] == [0, 1, 2] and watched[0].caption is not None
    assert not grabbers()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            np.zeros((8, 6, 3)),
            r"a frame is float64 \(8, 6, 3\); it must be a uint8 array of shape \(height, width, 3\)",
        ),
        (np.zeros((8, 6), np.uint8), r"a frame is uint8 \(8, 6\); it must be"),
        (np.zeros((8, 6, 4), np.uint8), r"a frame is uint8 \(8, 6, 4\); it must be"),
        (np.zeros((0, 6, 3), np.uint8), r"a frame is uint8 \(0, 6, 3\); it must be"),
        (None, "a frame is NoneType; it must be"),
    ],
)
def test_a_frame_that_is_none_is_one_sentence_behind_the_frames_before_it(model, terminal, wrong, message):
    watched: list[LiveFrame] = []
    with pytest.raises(ValueError, match=message) as raised:
        watch_all(model, Paced([*terminal[:2], wrong]), watched)
    assert len(watched) == 2 and "\n" not in str(raised.value) and not grabbers()


def test_what_cannot_be_watched_is_said_before_a_thread_is_started(model):
    other = copy.deepcopy(model)
    other.encoder.dino = ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=48)
    )
    with pytest.raises(TypeError, match=r"^no adapter for the vision model ViTModel; there is one for .*$"):
        watch_live(other, WORDS, [])
    with pytest.raises(ValueError, match="caption_every is -1; it must be at least 0 seconds"):
        watch_live(model, WORDS, [], caption_every=-1)
    with pytest.raises(ValueError, match="max_frames is 1; it must be at least 2"):
        watch_live(model, WORDS, [], max_frames=1)
    for options in ({"max_frames": 2045}, {"max_new_tokens": 2047}):
        with pytest.raises(ValueError, match=r"^\d+ frames and a caption of \d+ tokens are more than .*, 2048; take "):
            watch_live(model, WORDS, [], **({"max_new_tokens": 4} | options))
    with pytest.raises(ValueError, match="patch_size is 14; the tower's patches are"):
        watch_live(model, WORDS, [], differential=DifferentialSettings(patch_size=14))
    assert not grabbers()
    assert list(watch_live(model, WORDS, [], max_frames=2044, max_new_tokens=4)) == []


# ---- opening -----------------------------------------------------------------------------------------


def test_the_words_are_the_checkpoints_own_or_those_of_the_videos_it_was_trained_on(tmp_path):
    folder = shutil.copytree(CHECKPOINT, tmp_path / "mine")
    model, own = open_live(folder, "cpu")
    assert not model.training and trained_frames(folder) == 8
    assert most_frames(model, 16) == 240
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert open_live(folder, "cpu")[1].get_vocab() == own.get_vocab()
    (folder / "training.json").write_text('{"name": "mine"}')
    assert trained_frames(folder) is None
    with pytest.raises(CheckpointError, match=r"mine has no tokenizer, nor a training.json that says on which drawn "):
        open_live(folder, "cpu")
    (folder / "training.json").write_text('{"config": {"videos": {"num_frames": "many"}}}')
    with pytest.raises(ValueError, match="num_frames is 'many'; it must be a whole number"):
        open_live(folder, "cpu")


# ---- the command -------------------------------------------------------------------------------------


def test_the_command_prints_a_line_a_frame_writes_them_and_ends_in_json(capsys, tmp_path):
    out = tmp_path / "watched.jsonl"
    arguments = ["--source", TERMINAL, "--fps", "100", "--loop", "--frames", "60", "--caption-every", "0", "--out", out]
    assert exit_code(watch_command.main, "--checkpoint", CHECKPOINT, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    last = json.loads(lines[-1])
    assert len(rows) == 60 == last["watched"] and rows[-1]["dropped"] == last["dropped"]
    assert [row["frame"] for row in rows] == [*range(60)] and lines[61].startswith("60 frames watched, ")
    assert rows[0]["path"] == "full" and rows[0]["encoded"] == rows[0]["patches"] == 16
    for row, line in zip(rows, lines[1:61], strict=True):
        assert row["look_row"] in range(4) and row["look_column"] in range(4) and 1 / 16 <= row["look_share"] <= 1
        assert f" {row['look_row']}, {row['look_column']}: {row['look_share']:.0%} " in line
    asked = [row for row in rows if row["caption"] is not None]
    assert last["encode_ms"]["n"] == 60 and last["caption_ms"]["n"] == len(asked) >= 2
    assert sorted(row["look_ms"] for row in rows)[0] <= last["look_ms"]["ms_q1"] <= last["look_ms"]["ms"]
    said = [row["caption"] for row in asked]
    assert [caption for _, caption in last["captions"]] == [
        caption for before, caption in zip([None, *said[:-1]], said, strict=True) if caption != before
    ]
    assert sum(last["paths"].values()) == 60 and not grabbers()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_what_was_said_is_kept(tmp_path, number):
    out = tmp_path / "watched.jsonl"
    command = [sys.executable, "-m", "fvlm_lib", "watch", "--checkpoint", str(CHECKPOINT), "--source", str(TERMINAL)]
    watcher = subprocess.Popen(
        [*command, "--loop", "--fps", "20", "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE
    while not (out.exists() and out.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    watcher.send_signal(number)
    output, errors = watcher.communicate(timeout=PATIENCE)
    assert watcher.returncode == 0, errors
    last, rows = json.loads(output.splitlines()[-1]), [json.loads(line) for line in out.read_text().splitlines()]
    assert last["watched"] == len(rows) > 2 and rows[0]["caption"] == last["captions"][0][1]
    assert "Traceback" not in errors


def test_the_command_watches_a_desktop_until_its_display_goes_away(capsys, monkeypatch, tmp_path):
    """A window is opened at the fifth frame; the display goes away once that was written."""
    out = tmp_path / "watched.jsonl"
    with virtual_screen() as screen:
        monkeypatch.setenv("DISPLAY", screen.display)
        desktop = Desktop(screen.display)

        def written() -> list[dict]:
            return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

        def script() -> None:
            deadline = time.monotonic() + PATIENCE
            while len(written()) < 5 and time.monotonic() < deadline:
                time.sleep(0.02)
            desktop.open("mine", (0, 0, 320, 200), 0xFF8000)
            while not any(row["encoded"] for row in written()[1:]) and time.monotonic() < deadline:
                time.sleep(0.02)
            screen.server.kill()

        scripted = threading.Thread(target=script)
        scripted.start()
        arguments = ["--source", "screen", "--fps", "20", "--caption-every", "0", "--seconds", PATIENCE, "--out", out]
        code = exit_code(watch_command.main, "--checkpoint", CHECKPOINT, *arguments)
        scripted.join()
    printed, rows = capsys.readouterr(), written()
    assert code == 2 and printed.err.startswith("fvlm watch: no screen can be recorded here: ")
    assert printed.err.count("\n") == 1
    assert json.loads(printed.out.splitlines()[-1])["watched"] == len(rows), "what was seen is summed up all the same"
    first, *later = [row for row in rows if row["encoded"]]
    assert (first["path"], first["encoded"]) == ("full", 16)
    # of 4 x 4 patches a quarter of the screen is 2 x 2; squashing bleeds a pixel into their neighbours
    assert later[0]["path"] == "partial" and 4 <= later[0]["encoded"] <= 9 and later[0]["caption"] is not None
    assert {row["path"] for row in rows[1:5]} == {"cached"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fps", "0"], "--fps is 0; it must be above 0"),
        (["--checkpoint", "nowhere"], "there is no checkpoint folder nowhere"),
        (["--source", "nowhere"], "there is no recording nowhere"),
        (["--max-frames", "1"], "--max-frames is 1; it must be at least 2"),
        (["--settings", "nowhere.yaml"], "there is no settings file nowhere.yaml"),
        (["--pack-memory", "1"], "--pack-memory is of --pack auto, and --pack is no; leave one out"),
        (["--out", __file__], "test_live.py exists; name another, or remove it"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, arguments, message):
    assert exit_code(watch_command.main, "--checkpoint", CHECKPOINT, "--source", TERMINAL, *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("fvlm watch: ") and message in printed and printed.count("\n") == 1


# ---- for hours ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_frames_of_a_recording_take_the_memory_of_a_thousand(tmp_path, model):
    """As `fvlm watch --loop` does, at a rate at which frames are dropped."""
    for file in sorted(TERMINAL.glob("*.png")):  # small, so that reading them does not take most of the time
        Image.open(file).convert("RGB").resize((96, 60)).save(tmp_path / file.name)
    process, early, paths, dropped, said = psutil.Process(), 0, set(), 0, 0
    source = open_source(tmp_path, 200, loop=True)
    began = time.monotonic()
    with closing(watch_live(model, WORDS, source, caption_every=1.0, max_new_tokens=4, max_frames=8)) as frames:
        for frame in frames:
            paths.add(frame.path)
            dropped, said = frame.dropped, said + (frame.caption is not None)
            if frame.index == 1_000:
                gc.collect()
                early = process.memory_info().rss, sum(map(torch.is_tensor, gc.get_objects()))
            if frame.index == 10_000:
                break
    gc.collect()
    growth = process.memory_info().rss - early[0]
    seconds = time.monotonic() - began
    print(f"10,001 frames in {seconds:.0f} s, {dropped} dropped, {said} captions, memory {growth / 2**20:+.1f} MiB")
    assert paths >= {"full", "partial"} and said > 5
    assert growth < 8 * 2**20
    assert sum(map(torch.is_tensor, gc.get_objects())) <= early[1] + 2
    assert not grabbers()


def test_the_patch_of_a_row_is_the_one_that_the_look_is_at_most():
    look = np.full((2, 3), 0.1)
    look[1, 2] = 0.5
    frame = LiveFrame(0, 0.0, np.zeros((2, 3, 3), np.uint8), look > 0.2, "partial", look, None, 1.0, 1.0, 1.0, 0.0, 0)
    row = live_row(frame)
    assert (row["look_row"], row["look_column"], row["look_share"]) == (1, 2, 0.5)
    assert (row["encoded"], row["patches"]) == (1, 6)
