"""The panels as a person uses them: JupyterLab in a real browser, sliders moved by the keyboard, pixels that change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("playwright")

import lab
from lab import Lab

from fvlm_lib.vision.settings import read_settings

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


def test_the_threshold_is_tuned_and_written(page: Lab, project):
    stored = (lab.ROOT / "config" / "differential.yaml").read_text()
    page.run_all("notebooks/tune_threshold.ipynb")
    before = {name: page.pixels(name) for name in ("screenshot", "difference", "timeline")}
    page.press("threshold", "End")  # 1: nothing differs by more
    for name, pixels in before.items():
        page.wait_for_change(name, pixels)
    faded = page.pixels("screenshot")
    page.press("threshold", "Home")
    page.press("threshold", "ArrowRight", 30)
    page.wait_for_change("screenshot", faded)
    assert page.text(".widget-hslider:has(label:text-is('threshold')) .widget-readout") == "0.150"

    shown = page.pixels("screenshot")
    page.press("frame", "ArrowRight")
    page.wait_for_change("screenshot", shown)

    assert read_settings(project / "config" / "differential.yaml").diff_threshold == 0.05
    page.page.click("button:has-text('Write config/differential.yaml')")
    page.page.wait_for_selector("text=config/differential.yaml written at")
    assert read_settings(project / "config" / "differential.yaml").diff_threshold == 0.15
    assert (lab.ROOT / "config" / "differential.yaml").read_text() == stored
    assert page.errors() == []


def test_the_fovea_is_stepped_through_and_a_broken_checkpoint_is_named(page: Lab):
    page.run_all("notebooks/explore_fovea.ipynb")
    first = page.pixels("fovea")
    page.press("frame", "ArrowRight")
    second = page.wait_for_change("fovea", first)
    page.page.click("button[title='+1 frame']")
    third = page.wait_for_change("fovea", second)
    page.page.select_option(".widget-dropdown:has(label:text-is('attention of')) select", "layer 2")
    page.wait_for_change("fovea", third)
    playing = page.pixels("fovea")
    page.page.click(".widget-play button >> nth=0")
    page.wait_for_change("fovea", playing)

    checkpoint = ".widget-dropdown:has(label:text-is('checkpoint')) select"
    page.page.select_option(checkpoint, "checkpoints/broken")
    message = page.page.locator(".widget-html:has-text('checkpoints/broken has no .safetensors file')")
    lab.wait_for(lambda: message.count() == 1, "the message")
    page.page.select_option(checkpoint, "checkpoints/demo/S-S/step_0100")
    lab.wait_for(lambda: message.count() == 0, "the message to go")
    lab.wait_for(lambda: page.pixels("fovea").std() > 10, "the figure")
    assert page.errors() == []
