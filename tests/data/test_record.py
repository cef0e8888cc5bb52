"""A recording keeps what happened on a real (virtual) screen, however it ends."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, disk_of, exit_code
from displays import Desktop, virtual_screen
from PIL import Image

from fvlm_lib.data import record as record_module
from fvlm_lib.data.record import record
from fvlm_lib.data.screens import read_sequence


@pytest.fixture(scope="module")
def display():
    """A virtual screen of 640 x 400 pixels."""
    with virtual_screen() as screen:
        yield screen.display


def run(*arguments: str, display: str | None) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"DISPLAY": display} if display else {})
    command = [sys.executable, "-m", "fvlm_lib", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_recording_shows_what_happened_on_the_screen_and_when(display, tmp_path, monkeypatch):
    desktop = Desktop(display)
    monkeypatch.setenv("DISPLAY", display)
    box = [20, 30, 50, 40]
    threading.Timer(0.7, desktop.open, ("orange", box, 0xFF8000)).start()
    sequence = record(tmp_path / "mine", seconds=1.5, fps=6, progress=False)
    assert sequence.name == "mine" and 3 <= len(sequence) <= 9
    assert read_sequence(tmp_path / "mine") == sequence
    content = json.loads((tmp_path / "mine" / "actions.json").read_text())
    assert (content["width"], content["height"], content["n_frames"]) == (640, 400, len(sequence))
    changes = [entry for entry in sequence.actions if entry["action"] == "change"]
    assert len(changes) == 1 and changes[0]["changed_box"] == box and changes[0]["t_s"] >= 0.5
    for i, (frame, entry) in enumerate(zip(sequence, sequence.actions, strict=True)):
        assert entry["index"] == i and entry["file"] == f"frame_{i:04d}.png"
        assert entry["identical_to_previous"] == (entry["action"] == "idle")
        assert (frame[30:70, 20:70] == [255, 128, 0]).all() == (i >= changes[0]["index"])
    assert sequence.actions[0]["action"] == "start"
    ticks = [int(entry["t_s"] * 6 + 0.01) for entry in sequence.actions]
    assert ticks == sorted(set(ticks)) and ticks[-1] <= 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_keeps_what_was_recorded(display, tmp_path, number):
    out = tmp_path / "mine"
    recorder = run("record", "--seconds", "60", "--fps", "10", "--out", str(out), display=display)
    deadline = time.monotonic() + 20
    while not (out / "frame_0002.png").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    recorder.send_signal(number)
    output, errors = recorder.communicate(timeout=20)
    assert recorder.returncode == 0, errors
    sequence = read_sequence(out)
    assert 3 <= len(sequence) < 600 and sequence[len(sequence) - 1].shape == (400, 640, 3)
    assert output == f"{len(sequence)} of 600 frames recorded to {out}\n"
    assert "frame" in errors and "Traceback" not in errors  # the progress bar


def test_a_directory_with_images_is_not_overwritten(display, tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "photo.jpg")
    recorder = run("record", "--seconds", "1", "--out", str(tmp_path), display=display)
    output, errors = recorder.communicate(timeout=20)
    assert (recorder.returncode, output) == (2, "")
    assert (
        errors == f"fvlm record: {tmp_path}: exists, must be a new directory or one without images and actions.json\n"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_monitor_that_is_not_there_is_refused(display, tmp_path, monkeypatch):
    monkeypatch.setenv("DISPLAY", display)
    with pytest.raises(ValueError, match=r"monitor 7: must be 0 \(all\) to 1"):
        record(tmp_path / "mine", monitor=7, progress=False)
    assert not (tmp_path / "mine").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a display")
@pytest.mark.parametrize("address", [None, ":987654"])
def test_without_a_display_there_is_one_clear_sentence_and_nothing_is_written(tmp_path, address):
    pytest.importorskip("mss")
    recorder = run("record", "--seconds", "1", "--out", str(tmp_path / "mine"), display=address)
    output, errors = recorder.communicate(timeout=20)
    assert (recorder.returncode, output) == (2, "")
    assert errors.startswith("fvlm record: no screen can be recorded here: ") and errors.count("\n") == 1
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("keywords", [{"seconds": 0}, {"fps": -1}, {"fps": float("nan")}, {"seconds": float("inf")}])
def test_times_that_are_none_are_refused(tmp_path, keywords):
    with pytest.raises(ValueError, match=f"{next(iter(keywords))} .*must be above 0"):
        record(tmp_path / "mine", **keywords)


def test_frames_that_could_not_be_taken_in_time_are_left_out_not_made_up_for():
    ticks = []
    for elapsed in record_module.clock(20, lambda: False, 20):
        ticks.append(int(elapsed * 20))
        time.sleep(0.12)  # more than two frames long
    assert len(ticks) <= 9
    assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(ticks))


def test_a_missing_recorder_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mss", None)
    with pytest.raises(record_module.NoScreenError, match="pip install mss"):
        record(tmp_path / "mine", progress=False)


def test_a_frame_that_the_disk_does_not_take_leaves_no_half_of_it(tmp_path):
    blank, noise = Image.new("RGB", (64, 64)), Image.effect_noise((64, 64), 90).convert("RGB")
    record_module._save_frame(tmp_path, 0, 0.0, blank, blank)
    with disk_of(1000), pytest.raises(OSError, match=r"File too large: .*frame_0001.png"):
        record_module._save_frame(tmp_path, 1, 0.5, noise, blank)
    assert [file.name for file in tmp_path.iterdir()] == ["frame_0000.png"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--seconds", "nan"], "--seconds is nan; it must be "),
        (["--seconds", "1e9"], "--seconds is 1e9; it must be at most 604800"),
        (["--fps", "0"], "--fps is 0; it must be above 0"),
        (["--fps", "inf"], "--fps is inf; it must be "),
        (["--monitor", "-1"], "--monitor is -1; it must be at least 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_a_screen_is_looked_for(tmp_path, capsys, option, message):
    assert exit_code(record_module.main, "--out", tmp_path / "mine", *option) == 2
    assert capsys.readouterr().err.startswith(f"fvlm record: {message}")
