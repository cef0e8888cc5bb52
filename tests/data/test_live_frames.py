"""Frames come as a screen, a window or a recording gives them, and where one ends, one sentence says so."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import threading
import time

import numpy as np
import pytest
from conftest import ROOT
from displays import Desktop, virtual_screen
from PIL import Image

from fvlm_lib.data.live_frames import LiveSource, find_window, open_source
from fvlm_lib.data.record import NoScreenError
from fvlm_lib.data.screens import read_sequence

needs_xwininfo = pytest.mark.skipif(shutil.which("xwininfo") is None, reason="xwininfo is not installed")
RECORDING = ROOT / "data" / "screens" / "idle"
PATIENCE = 20  # seconds until something must have happened that takes a moment


@pytest.fixture(scope="module")
def desktop():
    """A desktop on a virtual screen of 640 x 400 pixels, which is this process's display."""
    with virtual_screen() as screen, pytest.MonkeyPatch.context() as patched:
        patched.setenv("DISPLAY", screen.display)
        yield Desktop(screen.display)


def awaited(frames, wanted) -> np.ndarray:
    """The first frame of which `wanted` holds, of those that come while one is patient."""
    deadline = time.monotonic() + PATIENCE
    for _, frame in frames:
        if wanted(frame):
            return frame
        assert time.monotonic() < deadline, f"the last frame was {frame.shape}, {frame.mean(axis=(0, 1))}"
    raise AssertionError("the frames ended")


def of_colour(colour: int, shape: tuple[int, int]):
    """Whether a frame of this shape has this colour (0xRRGGBB) all over; but for the mouse pointer, a tenth of it."""
    rgb = [colour >> 16, colour >> 8 & 255, colour & 255]
    return lambda frame: frame.shape == (*shape, 3) and (frame == rgb).all(axis=2).mean() > 0.9


# ---- recordings --------------------------------------------------------------------------------------


def test_a_recording_comes_frame_by_frame_none_before_it_is_due():
    head = read_sequence(RECORDING).head(5)
    source = LiveSource("five frames", 50, lambda: (frame for frame in head))
    seconds, frames = zip(*source, strict=True)
    assert all(np.array_equal(*pair) for pair in zip(frames, head, strict=True))
    assert all(time >= i / 50 for i, time in enumerate(seconds)) and list(seconds) == sorted(seconds)


def test_a_recording_begins_again_where_it_is_asked_to(tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"frame_{number}.png")
    assert [frame[0, 0, 0] for _, frame in open_source(tmp_path, 1000)] == [0, 1, 2]
    looped = itertools.islice(open_source(str(tmp_path), 1000, loop=True), 8)
    assert [frame[0, 0, 0] for _, frame in looped] == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_source_that_waits_for_its_next_frame_can_be_closed_by_another_thread():
    source, taken = open_source(RECORDING, 0.001), []
    thread = threading.Thread(target=lambda: taken.extend(source))  # the second frame is due in 1,000 seconds
    thread.start()
    source.close()
    thread.join(timeout=PATIENCE)
    assert not thread.is_alive() and len(taken) <= 1
    assert list(source) == [], "it stays closed"


@pytest.mark.parametrize(
    ("source", "fps", "message"),
    [
        (RECORDING, 0, "fps is 0; it must be above 0"),
        (RECORDING, -1.0, "fps is -1.0; it must be above 0"),
        (RECORDING, float("nan"), "fps is nan; it must be "),
        ("nowhere", 1.0, "there is no recording nowhere; name a folder of images, an image, screen, "),
        (ROOT / "notebooks", 1.0, "has no images"),
    ],
)
def test_what_cannot_be_a_source_is_one_sentence(source, fps, message):
    with pytest.raises(ValueError, match=message) as raised:
        open_source(source, fps)
    assert "\n" not in str(raised.value)


# ---- screens -----------------------------------------------------------------------------------------


def test_a_screen_shows_what_happens_on_it(desktop):
    frames = iter(open_source("screen", 20))
    before = next(frames)[1]
    assert before.shape == (400, 640, 3) and before.dtype == np.uint8
    window = desktop.open("mine", (20, 30, 50, 40), 0xFF8000)
    try:
        after = awaited(frames, lambda frame: of_colour(0xFF8000, (40, 50))(frame[30:70, 20:70]))
    finally:
        desktop.hide(window)
    changed = (after != before).any(axis=2)
    changed[30:70, 20:70] = False
    assert not changed.any()
    awaited(frames, lambda frame: np.array_equal(frame, before))


def test_a_monitor_that_is_not_there_is_refused(desktop):
    with pytest.raises(ValueError, match=r"monitor 7: must be 0 \(all\) to 1"):
        open_source("screen:7", 1.0)
    assert next(iter(open_source("screen:0", 1.0)))[1].shape == (400, 640, 3)


@pytest.mark.skipif(shutil.which("xrandr") is None, reason="xrandr is not installed")
def test_a_screen_that_changes_its_size_is_followed(desktop):
    mode = "10 320 330 340 350 200 210 220 230"  # its clock and timings; nobody looks at a virtual screen

    def xrandr(*arguments: str) -> None:
        if subprocess.run(["xrandr", *arguments], capture_output=True).returncode:
            pytest.skip("this X server cannot change its size")

    xrandr("--newmode", "small", *mode.split())
    xrandr("--addmode", "screen", "small")
    frames = iter(open_source("screen", 20))
    assert next(frames)[1].shape == (400, 640, 3)
    xrandr("--output", "screen", "--mode", "small")
    awaited(frames, lambda frame: frame.shape == (200, 320, 3))
    xrandr("--output", "screen", "--mode", "640x400")
    awaited(frames, lambda frame: frame.shape == (400, 640, 3))


def test_a_server_that_starts_anew_when_nobody_is_connected_is_waited_for(monkeypatch):
    """As Xvfb does where a source, its only client, opens the screen again."""
    with virtual_screen() as screen:
        monkeypatch.setenv("DISPLAY", screen.display)
        times = [seconds for seconds, _ in itertools.takewhile(lambda taken: taken[0] < 2.5, open_source("screen", 10))]
    assert len(times) > 3


@needs_xwininfo
def test_a_window_is_followed_as_it_moves_and_grows_and_its_end_is_one_sentence(desktop):
    window = desktop.open("notes - mine", (20, 30, 50, 40), 0xFF8000)
    frames = iter(open_source("window:mine", 20))
    assert of_colour(0xFF8000, (40, 50))(next(frames)[1])
    desktop.move(window, (300, 200, 80, 60))
    awaited(frames, of_colour(0xFF8000, (60, 80)))
    desktop.paint(window, 0x0080FF)
    awaited(frames, of_colour(0x0080FF, (60, 80)))
    desktop.move(window, (600, 380, 80, 60))  # 40 x 20 of it are on the screen
    awaited(frames, of_colour(0x0080FF, (20, 40)))
    desktop.hide(window)
    with pytest.raises(NoScreenError, match=r"^the window with 'mine' in its title is no longer shown$"):
        awaited(frames, lambda _: False)


@needs_xwininfo
def test_of_windows_with_a_title_the_uppermost_that_is_shown_is_taken(desktop):
    lower = desktop.open("the same title", (20, 30, 50, 40), 0xFF0000)
    upper = desktop.open("the same title", (30, 40, 50, 40), 0x00FF00)
    assert int(find_window("same title"), 16) == upper.value
    desktop.hide(upper)
    assert int(find_window("same title"), 16) == lower.value
    desktop.hide(lower)
    with pytest.raises(NoScreenError, match=r"^no window is shown that has 'same title' in its title; xwininfo "):
        open_source("window:same title", 1.0)
    with pytest.raises(ValueError, match="names no title"):
        open_source("window:", 1.0)


def test_without_the_program_that_knows_windows_it_is_named(desktop, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoScreenError, match=r"xwininfo of X11, which is not installed; install it \(x11-utils\)"):
        open_source("window:mine", 1.0)


@pytest.mark.parametrize("source", ["screen", pytest.param("window:mine", marks=needs_xwininfo)])
def test_a_display_that_goes_away_is_one_sentence_behind_the_frames_before(monkeypatch, source):
    with virtual_screen() as screen:
        monkeypatch.setenv("DISPLAY", screen.display)
        Desktop(screen.display).open("mine", (20, 30, 50, 40), 0xFF8000)
        frames = iter(open_source(source, 20))
        assert next(frames)[1].shape[2] == 3
        screen.server.kill()
        with pytest.raises(NoScreenError) as raised:
            awaited(frames, lambda _: False)
    assert "\n" not in str(raised.value) and str(raised.value)


def test_without_a_display_there_is_one_sentence(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":987654")
    for source in ("screen", "window:mine"):
        with pytest.raises(NoScreenError, match="no screen can be recorded here: ") as raised:
            open_source(source, 1.0)
        assert "\n" not in str(raised.value)
