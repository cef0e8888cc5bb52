"""The panels as a person uses them: JupyterLab in a real browser, sliders moved by the keyboard, pixels that change."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("playwright")

import lab
from lab import Lab

from fvlm_lib.data.screens import read_sequence
from fvlm_lib.vision.settings import DifferentialSettings, read_settings

pytestmark = pytest.mark.skipif(lab.CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = lab.copy_project(tmp_path_factory.mktemp("project"))
    broken = folder / "checkpoints" / "broken"
    broken.mkdir()
    shutil.copy(folder / "checkpoints" / "demo" / "S-S" / "step_3000" / "config.json", broken)
    return folder


@pytest.fixture(scope="module")
def url(project, tmp_path_factory):
    with lab.serve(project, tmp_path_factory.mktemp("jupyter")) as url:
        yield url


@pytest.fixture
def page(url):
    with lab.browser(url) as opened:
        yield opened


def typed(page: Lab) -> str:
    """What stands in the threshold's field."""
    return page.page.locator(FIELD).input_value()


FIELD = ".widget-hbox:has(> .widget-hslider label:text-is('threshold')) input[type=number]"


def test_the_threshold_is_tuned_undone_and_saved_under_another_name(page: Lab, project):
    stored = (project / "config" / "differential.yaml").read_bytes()
    page.run_all("notebooks/tune_threshold.ipynb")
    before = {name: page.pixels(name) for name in ("screenshot", "difference", "timeline")}
    start = page.content("screenshot")
    assert typed(page) == "0.05"
    page.press("threshold", "End")  # 1: nothing differs by more
    for name, pixels in before.items():
        page.wait_for_change(name, pixels)
    assert typed(page) == "1"
    faded = page.pixels("screenshot")
    page.press("threshold", "ArrowLeft", 50)  # a power of ten, in steps of a fiftieth
    page.wait_for_change("screenshot", faded)
    lab.wait_for(lambda: typed(page) == "0.1", "the field to follow the slider")

    handle = page.slider("threshold")
    place = handle.bounding_box()
    page.page.fill(FIELD, "0.01")
    page.page.keyboard.press("Enter")
    lab.wait_for(lambda: handle.bounding_box()["x"] < place["x"] - 20, "the slider to follow the field")
    page.page.fill(FIELD, "2")
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector("text=threshold is 2; it must be a number from 0 to 1. 0.01 is kept.")
    assert typed(page) == "0.01"

    undo = page.page.locator("button:has-text('Undo')")
    for _ in range(60):  # how many steps a slider's way makes depends on how fast the machine is
        was = typed(page)
        undo.click()
        lab.wait_for(lambda was=was: typed(page) != was, "a step back")
        page.wait_until_idle()
        if undo.is_disabled():
            break
    assert typed(page) == "0.05"
    lab.wait_for(lambda: page.content("screenshot") == start, "the picture of the start")

    page.page.fill(FIELD, "0.15")
    page.page.keyboard.press("Enter")
    page.page.fill(".widget-text:has(label:text-is('file')) input", "config/mine.yaml")
    page.page.click("button:has-text('Save')")
    page.page.wait_for_selector("text=config/mine.yaml written at")
    assert read_settings(project / "config" / "mine.yaml") == DifferentialSettings(0.15)
    assert (project / "config" / "differential.yaml").read_bytes() == stored
    shown = page.pixels("screenshot")
    page.press("frame", "ArrowRight")
    page.wait_for_change("screenshot", shown)
    assert page.errors() == []


def test_two_settings_stand_side_by_side(page: Lab):
    page.run_all("notebooks/tune_threshold.ipynb")
    page.page.click("button:has-text('Compare two settings')")
    page.page.wait_for_selector("img.fvlm-screenshot-b")
    page.press("threshold", "End")
    table = page.page.locator("table:has(th:text-is('B'))")
    lab.wait_for(lambda: "0.05, max of a patch\t1, max of a patch" in table.inner_text(), "both settings")
    page.wait_until_idle()
    assert page.content("screenshot") != page.content("screenshot-b")
    left, right = page.page.locator("img[class*='fvlm-screenshot']").evaluate_all(
        "images => images.map(image => image.getBoundingClientRect().toJSON())"
    )
    assert left["right"] <= right["left"] and left["top"] == right["top"] and left["width"] > 300
    assert abs(left["width"] - right["width"]) < 1
    for line in ("this frame", "encoded anew", "frames cached, partial, full"):
        _, a, b = next(row.split("\t") for row in table.inner_text().splitlines() if row.startswith(line))
        assert a.strip() != b.strip()
    assert page.errors() == []


@pytest.mark.parametrize("size", [(1024, 768), (1280, 800)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_nothing_is_cut_off_in_a_small_window(url, size):
    with lab.browser(url, *size) as page:
        page.run_all("notebooks/tune_threshold.ipynb")
        assert page.cut_off() == []
        stacked = page.page.locator("img.fvlm-screenshot").bounding_box()
        assert stacked["width"] > 500
        page.choose("zoom", "2 : 1")
        page.page.wait_for_selector("button:has-text('the next change')")
        page.page.click("button:has-text('Compare two settings')")
        page.page.wait_for_selector("img.fvlm-screenshot-b")
        page.page.fill(".widget-text:has(label:text-is('file')) input", "config/differential.yaml")
        page.page.click("button:has-text('Save')")
        page.page.wait_for_selector("text=press again to overwrite it")
        assert page.cut_off() == []
        page.page.fill(FIELD, "7")
        page.page.keyboard.press("Enter")
        page.page.wait_for_selector("text=it must be a number from 0 to 1")
        assert page.cut_off() == []
        page.run_all("notebooks/explore_fovea.ipynb")
        assert page.cut_off() == []
        page.choose("zoom", "4 ×")
        page.page.wait_for_selector("button:has-text('the look')")
        assert page.cut_off() == []
        assert page.errors() == []


def test_zoomed_pictures_show_a_frames_very_pixels(page: Lab):
    page.run_all("notebooks/tune_threshold.ipynb")
    page.press("frame", "Home")  # all patches as recorded
    page.page.wait_for_selector("text=compared with nothing")
    frame = read_sequence(lab.ROOT / "data" / "screens" / "jupyter")[0]
    shown = page.content("screenshot")
    page.choose("zoom", "4 : 1")
    lab.wait_for(lambda: page.content("screenshot") != shown, "the zoomed picture")  # before its place is moved
    page.press("across", "Home")
    page.press("down", "Home")
    height, width = 320, 480
    wanted = frame[: height // 4, : width // 4].repeat(4, axis=0).repeat(4, axis=1).astype(int)

    def near() -> bool:
        shown = page.pixels("screenshot").astype(int)
        parts = (shown[y : y + height, x : x + width] for y in range(4) for x in range(4))  # it has a border
        return any(part.shape == wanted.shape and np.abs(part - wanted).mean() < 2 for part in parts)  # but for JPEG

    lab.wait_for(near, "the frame's corner")
    assert page.errors() == []


def test_a_changed_screen_is_asked_about_and_a_folder_without_a_reader_is_named(page: Lab):
    page.run_all("notebooks/reader_panel.ipynb")
    page.choose("kind of change", "value")
    page.page.wait_for_selector("text=one change: value")
    page.choose("policy", "gated 0.05")
    page.page.wait_for_selector("td:text-is('policy gated 0.05')")
    page.choose("question", "how many are on?")
    page.page.wait_for_selector("text=as on the frame before")
    page.wait_until_idle()
    before, shown = page.content("frame"), page.pixels("frame")
    page.press("frame", "ArrowRight")
    page.wait_for_change("frame", shown)
    page.page.wait_for_selector("text=frame 2 of 15")
    lab.wait_for(lambda: page.content("frame") != before, "the next frame")
    assert page.page.locator("td:text-is('full computation')").count() == 1
    page.page.set_viewport_size({"width": 1024, "height": 768})
    page.wait_until_idle()
    assert page.cut_off() == []

    folder = page.page.locator(".widget-text:has(label:text-is('model in')) input")
    folder.fill("checkpoints/broken")
    folder.press("Enter")
    message = page.page.locator(".widget-html:has-text('checkpoints/broken has no')")
    lab.wait_for(lambda: message.count() == 1, "the message")
    page.page.click("button:has-text('Undo')")
    lab.wait_for(lambda: message.count() == 0, "the message to go")
    lab.wait_for(lambda: page.pixels("frame").std() > 10, "the frame")
    assert page.errors() == []


def test_a_recording_is_watched_stopped_and_a_source_that_is_not_there_is_named(page: Lab):
    page.run_all("notebooks/live_screen.ipynb")
    panel = page.output
    panel.locator("button:has-text('Start')").click()
    lab.wait_for(lambda: page.pixels("look").std() > 10, "the look")
    seen = page.content("seen")
    lab.wait_for(lambda: page.content("seen") != seen, "another frame")
    counts = re.compile(r"(\d+) watched\s+·\s+(\d+) dropped\s+·\s+[\d.]+ frames a second")
    lab.wait_for(lambda: counts.search(panel.inner_text()), "the counts")
    first = int(counts.search(panel.inner_text())[1])
    lab.wait_for(lambda: int(counts.search(panel.inner_text())[1]) > first, "more frames")
    times = panel.locator("table:has(th:text-is('language model'))").inner_text().splitlines()
    assert [line.split("\t")[0] for line in times][1] == "this frame" and times[2].startswith("median of")
    assert re.search(r"what it says\s+[\d.– ]+ s\s+\w+", panel.inner_text())
    assert page.cut_off() == []

    page.page.fill(".widget-text:has(label:text-is('frames a second')) input", "0")
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector("text=frames a second is 0.0; it must be above 0. 4 is kept.")
    shown = page.content("seen")
    lab.wait_for(lambda: page.content("seen") != shown, "the stream to go on")

    panel.locator("button:has-text('Stop')").click()
    page.page.wait_for_selector("text=/The stream was stopped after [0-9]+ frames; what was said stays/")
    page.wait_until_idle()
    said, shown = panel.inner_text().split("what it says")[1], page.content("look")
    source = page.page.locator(".widget-text:has(label:text-is('watched')) input")
    source.fill("data/nowhere")
    source.press("Enter")
    page.wait_until_idle()
    panel.locator("button:has-text('Start')").click()
    page.page.wait_for_selector("text=there is no recording data/nowhere")
    assert panel.inner_text().split("what it says")[1] == said and page.content("look") == shown
    for size in ((1280, 800), (1024, 768)):
        page.page.set_viewport_size({"width": size[0], "height": size[1]})
        page.wait_until_idle()
        assert page.cut_off() == []
    assert page.errors() == []


def test_jupyter_does_not_ask_about_news(page: Lab):
    page.run_all("notebooks/explore_fovea.ipynb")
    page.page.wait_for_timeout(2000)
    assert page.page.locator("text=Jupyter news").count() == 0


def test_the_fovea_is_stepped_through_and_a_broken_checkpoint_is_named(page: Lab):
    page.run_all("notebooks/explore_fovea.ipynb")
    first = page.pixels("inference")
    page.press("frame", "ArrowRight")
    second = page.wait_for_change("inference", first)
    page.page.click("button[title='+1 frame']")
    third = page.wait_for_change("inference", second)
    page.choose("attention of", "layer 2")
    page.wait_for_change("inference", third)
    playing = page.pixels("inference")
    page.page.click(".widget-play button >> nth=0")
    page.wait_for_change("inference", playing)

    page.choose("checkpoint", "broken")
    message = page.page.locator(".widget-html:has-text('checkpoints/broken has no .safetensors file')")
    lab.wait_for(lambda: message.count() == 1, "the message")
    page.choose("checkpoint", "demo/S-S/step_0100")
    lab.wait_for(lambda: message.count() == 0, "the message to go")
    lab.wait_for(lambda: page.pixels("inference").std() > 10, "the figure")
    assert page.errors() == []
