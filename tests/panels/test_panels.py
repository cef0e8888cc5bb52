"""The panels without a browser: what their widgets show follows from the pure functions, and errors stay in them."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DEMO, ROOT
from displays import virtual_screen
from PIL import Image
from transformers import ViTConfig, ViTModel

from fvlm_lib.data.drawn_screens import draw
from fvlm_lib.data.drawn_streams import screen_stream
from fvlm_lib.data.screen_questions import Question, right_answer, verdict
from fvlm_lib.data.screens import read_sequence
from fvlm_lib.figures.palette import CHANGED
from fvlm_lib.foveated.live import LiveFrame, open_live
from fvlm_lib.foveated.stream import FoveatedStream
from fvlm_lib.options import printable
from fvlm_lib.panels import bench as panel_bench
from fvlm_lib.panels import (
    fovea_pictures,
    live_pictures,
    live_watch,
    pictures,
    reader_panel,
    reader_pictures,
    workbench,
)
from fvlm_lib.panels.fovea_panel import FoveaPanel
from fvlm_lib.panels.history import History
from fvlm_lib.panels.live_panel import LivePanel
from fvlm_lib.panels.reader_panel import ReaderPanel
from fvlm_lib.panels.sizes import CLIP, PATCH_SIZES
from fvlm_lib.panels.tuning_panel import TuningPanel
from fvlm_lib.reuse.policies.gated import DEFAULT_TOLERANCE
from fvlm_lib.screens.loaded_towers import load_tower, squash
from fvlm_lib.screens.measure import measure_policies, policies
from fvlm_lib.screens.tuning import compare_patches, trace_settings
from fvlm_lib.vision.settings import DifferentialSettings, read_settings, write_settings
from fvlm_lib.vlm.reader_measure import open_reuse
from fvlm_lib.vlm.stream import VLMStream
from fvlm_lib.vlm.vlms import load_vlm

SCREENS = ROOT / "data" / "screens"


@pytest.fixture
def config(tmp_path) -> Path:
    write_settings(tmp_path / "differential.yaml", DifferentialSettings(tolerance=0.5))
    return tmp_path / "differential.yaml"


def panel_of(config: Path, sequence: str | None = "dialog", **options) -> TuningPanel:
    own = {"results": config.parent / "results", "save_as": config.parent / "mine.yaml"}
    return TuningPanel(SCREENS, sequence, config, **{**own, **options})


def pixels(picture) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(picture.value)).convert("RGB")).astype(int)


@pytest.mark.parametrize("name", ["tune_threshold", "explore_fovea", "reader_panel"])
def test_the_notebooks_run_without_a_front_end(tmp_path, name):
    command = [
        sys.executable,
        "-m",
        "fvlm_lib",
        "run",
        f"notebooks/{name}.ipynb",
        "--output",
        str(tmp_path / "run.ipynb"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


# ---- tuning ------------------------------------------------------------------------------------------


def test_the_panel_shows_what_the_setting_does(config):
    panel = panel_of(config)
    setting, view = panel.setting, panel.views[0]
    setting.threshold.value, setting.metric.value, setting.reference.value = 0.01, "mean", "previous"
    setting.patch_size.value = 32
    settings = DifferentialSettings(0.01, "mean", None, 32, "previous", tolerance=0.5)
    assert panel.settings == settings
    expected = list(trace_settings(compare_patches(read_sequence(SCREENS / "dialog"), 32), settings))
    paths = set()
    for index, (step, _) in enumerate(expected):
        panel.player.frame.value = index
        paths.add(step.path)
        assert f">{step.path}</b>" in view.status.value
        assert step.changed is None or f"{step.changed} of 1000 patches changed" in view.status.value
    assert {"full", "cached", "partial"} == paths
    assert panel.message.value == ""


def test_every_widget_redraws(config):
    """Pictures are compared as pixels. The first frame that is shown is a typical partial update."""
    panel = panel_of(config)
    setting, view = panel.setting, panel.views[0]
    assert ">partial</b>" in view.status.value
    moves = [
        (setting.threshold, 0.9), (setting.metric, "mean"), (setting.reference, "previous"), (setting.patch_size, 32),
        (panel.zoom.level, 4), (panel.zoom.across, 3), (setting.seen, CLIP), (panel.player.frame, 20),
    ]  # fmt: skip
    for widget, value in moves:
        before = [pixels(picture) for picture in (view.screenshot, view.difference)]
        text = view.status.value + view.summary.value
        widget.value = value
        after = [pixels(picture) for picture in (view.screenshot, view.difference)]
        assert any(a.shape != b.shape or (a != b).any() for a, b in zip(before, after, strict=True)) or (
            text != view.status.value + view.summary.value
        ), widget.description
    assert panel.message.value == ""


def test_pixels_are_compared_once_for_a_recording_and_size(config, monkeypatch):
    calls = []

    def counted(frames, patch_size, progress):
        calls.append(patch_size)
        return compare_patches(frames, patch_size, progress)

    monkeypatch.setattr(workbench, "compare_patches", counted)
    panel = panel_of(config)
    for threshold in (0.1, 0.2, 0.3):
        panel.setting.threshold.value = threshold
        panel.player.frame.value += 1
    panel.setting.metric.value, panel.setting.reference.value = "mean", "previous"
    panel.compare.value = True
    panel.setting.threshold.value = 0.4
    assert calls == [16]
    panel.setting.patch_size.value = 32
    panel.setting.patch_size.value = 0
    assert calls == [16, 32]


def test_frames_are_seen_as_the_tower_gets_them(config):
    panel = panel_of(config)
    panel.setting.seen.value = CLIP
    frames = (squash(frame, (336, 336)) for frame in read_sequence(SCREENS / "dialog"))
    expected = list(trace_settings(compare_patches(frames, 14), DifferentialSettings()))
    assert [step.changed for step, _ in panel.traced.steps] == [step.changed for step, _ in expected]
    assert panel.traced.steps[0][0].mask.shape == (24, 24)
    assert panel.setting.limit.max == 576 and panel.setting.limit.value == 432


def test_the_limit_decides_between_partial_and_full(config):
    panel = panel_of(config)
    changed = panel.traced.steps[panel.player.frame.value][0].changed
    panel.setting.limited.value = True
    panel.setting.limit.value = changed
    assert ">partial</b>" in panel.views[0].status.value
    panel.setting.limit.value = changed - 1
    assert ">full</b>" in panel.views[0].status.value
    assert panel.settings.max_changed_patches == changed - 1


def test_odd_values_in_the_file_are_kept(config):
    write_settings(config, DifferentialSettings(diff_threshold=3e-6, patch_size=50, max_changed_patches=10**5))
    panel = panel_of(config)
    assert panel.settings == read_settings(config)
    assert panel.traced.steps[0][0].mask.shape == (16, 26)


def test_what_was_measured_at_the_setting_is_shown_and_nothing_else(config):
    results = config.parent / "results"
    results.mkdir()
    tower = load_tower(str(DEMO / "S-S" / "step_3000"), (64, 96))
    sequence = read_sequence(SCREENS / "dialog").head(6)
    compared = policies([0.5, 0.1], settings=DifferentialSettings(0.25))
    measure_policies(tower, sequence, compared, progress=False).to_parquet(results / "tuned.parquet")
    panel = panel_of(config)
    assert "not measured at this setting" in panel.expected.value
    assert "frames of 64 × 96 in patches of 8: threshold 0.25, max, encoded" in panel.expected.value
    panel.setting.seen.value = (64, 96, 8)
    assert "not measured at this setting" in panel.expected.value
    assert "fvlm run notebooks/differential_benchmark.ipynb" in panel.expected.value
    assert "mine.yaml" in panel.expected.value
    panel.setting.threshold.value = 0.25
    assert panel.expected.value.count("tuned.parquet") == 3  # none, two tolerances; not the exact match
    (bold,) = [line for line in panel.expected.value.split("<tr") if "font-weight:bold" in line]
    assert "gated 0.5" in bold
    speedup = bold.split("</td>")[4].rpartition(">")[2]
    panel.compare.value = True
    assert numbers_of(panel)["speed-up"] == [speedup, speedup]
    panel.setting.patch_size.value = 16
    assert "not measured at this setting" in panel.expected.value
    assert numbers_of(panel)["speed-up"] == [speedup, "not measured"]


# ---- threshold, undo, zoom -----------------------------------------------------------------------------


def test_slider_and_number_are_the_threshold(config):
    panel = panel_of(config)
    threshold = panel.setting.threshold
    assert (threshold.slider.value, threshold.number.value, threshold.value) == (0.05, 0.05, 0.05)
    threshold.slider.value = 10**-2.5
    assert threshold.number.value == threshold.value == panel.settings.diff_threshold == 0.00316
    threshold.number.value = 0.123456
    assert threshold.slider.value == threshold.value == panel.settings.diff_threshold == 0.123456
    threshold.slider.value = 10**-0.9  # what a browser makes of it, on the slider's nearest step, is no move
    assert panel.settings.diff_threshold == 0.123456
    threshold.number.value = 0
    assert panel.settings.diff_threshold == 0 and threshold.slider.value == 1e-4


@pytest.mark.parametrize("typed", [2, -0.1, float("nan"), float("inf")])
def test_a_threshold_out_of_range_is_refused_in_a_sentence(config, typed):
    panel = panel_of(config)
    shown = panel.views[0].screenshot.value
    panel.setting.threshold.number.value = typed
    assert f"threshold is {typed:g}; it must be a number from 0 to 1. 0.05 is kept." in panel.message.value
    assert panel.setting.threshold.number.value == panel.settings.diff_threshold == 0.05
    assert panel.views[0].screenshot.value == shown
    panel.setting.threshold.number.value = 0.5
    assert panel.message.value == ""


def test_undo_goes_back_step_by_step(config):
    panel = panel_of(config)
    panel.history = History(pause=-1)  # every move is a step
    assert panel.undo.disabled
    states, frame, shown = [panel.state], panel.player.frame.value, panel.views[0].screenshot.value
    setting = panel.setting
    moves = [
        (setting.threshold, 0.3), (setting.seen, CLIP), (setting.metric, "mean"), (panel.compare, True),
        (setting.threshold, 0.6), (panel.edited, 0), (setting.limited, True), (setting.limit, 5),
        (panel.compare, False), (panel.sequence, "terminal"), (setting.patch_size, 32),
    ]  # fmt: skip
    for widget, value in moves:
        widget.value = value
        assert panel.state != states[-1], widget.description
        states.append(panel.state)
    assert panel.bench.name == "terminal" and not panel.undo.disabled
    for state in reversed(states[:-1]):
        panel.undo.click()
        assert panel.state == state
        assert setting.read(state.choice) == state.choice and panel.bench.name == state.recording
        assert panel.compare.value == (len(state.shown) == 2) and panel.edited.value == state.edited
    assert panel.undo.disabled and panel.message.value == ""
    panel.player.frame.value = frame  # a frame is no choice; a recording that is opened anew shows one of its own
    assert panel.views[0].screenshot.value == shown


def test_a_slider_on_its_way_is_one_step_to_undo():
    moves = [(0, "a"), (0.9, "a"), (1.8, "a"), (2, "b"), (4, "b"), (4.1, "c"), (9, "c"), (9.1, "c")]
    clock = iter([seconds for seconds, _ in moves])
    history: History[int] = History(length=3, pause=1, clock=lambda: next(clock))
    for state, (_, control) in enumerate(moves[:6]):
        history.record(state, control)
    assert [history.undo() for _ in range(len(history))] == [5, 4, 3]  # state 0, the oldest, is beyond the length
    with pytest.raises(ValueError, match="nothing to undo"):
        history.undo()
    history.record(0, "a")
    history.undo()
    history.record(1, "a")  # at once, but after an undo: a step of its own
    assert history.undo() == 1


def test_zoom_shows_a_frames_very_pixels(config):
    panel = panel_of(config)
    panel.player.frame.value = 0  # all of it is shown as recorded, and outlined nowhere
    frame = read_sequence(SCREENS / "dialog")[0].astype(int)
    panel.zoom.level.value = 4
    panel.zoom.across.value, panel.zoom.down.value = 50, 100
    shown = pixels(panel.views[0].screenshot)
    assert shown.shape == (800, 1280, 3)
    part = frame[600:800, 480:800].repeat(4, axis=0).repeat(4, axis=1)
    assert np.abs(shown - part).mean() < 1  # but for JPEG
    layout = panel.views[0].screenshot.layout
    assert (layout.object_fit, layout.object_position) == ("none", "50.0% 100.0%")
    panel.zoom.level.value = 0
    assert pixels(panel.views[0].screenshot).shape == (800, 1280, 3)
    assert panel.zoom.across.layout.display == "none"


def test_zoom_goes_from_change_to_change(config):
    panel = panel_of(config)
    mask = panel.traced.steps[panel.player.frame.value][0].mask
    areas = pictures.find_areas(mask)
    assert areas
    panel.zoom.level.value = 2
    seen = [(panel.zoom.across.value, panel.zoom.down.value)]
    for _ in areas:
        panel.zoom.go.click()
        seen.append((panel.zoom.across.value, panel.zoom.down.value))
    assert seen == [*areas, areas[0]]


# ---- two settings --------------------------------------------------------------------------------------


def numbers_of(panel: TuningPanel) -> dict[str, list[str]]:
    """The table of two settings, as texts."""
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in panel.numbers.value.split("<tr>")[1:]]
    return {name: values for name, *values in rows}


def test_two_settings_stand_side_by_side(config):
    panel = panel_of(config)
    single = panel.views[0].screenshot.value
    assert panel.views[1].layout.display == "none" and panel.numbers.value == ""
    panel.compare.value = True
    a, b = panel.views
    assert b.layout.display == "" and a.screenshot.value == b.screenshot.value == single  # B starts as A
    panel.setting.threshold.value = 0.9
    assert a.screenshot.value == single != b.screenshot.value
    assert "threshold 0.05" in a.title.value and "threshold 0.9" in b.title.value
    table = numbers_of(panel)
    compared = compare_patches(read_sequence(SCREENS / "dialog"), 16)
    for column, threshold in enumerate((0.05, 0.9)):
        steps = [step for step, _ in trace_settings(compared, DifferentialSettings(threshold))]
        step = steps[panel.player.frame.value]
        assert table["this frame"][column] == f"{step.path}, {step.changed} of 4000 changed"
        encoded = sum(int(step.mask.sum()) for step in steps[1:]) / (4000 * len(steps[1:]))
        assert table["encoded anew"][column] == f"{encoded:.2%}"
    frame = panel.player.frame.value
    panel.player.frame.value = frame + 1
    assert a.status.value != b.status.value or a.screenshot.value != single

    panel.edited.value = 0
    assert panel.setting.threshold.value == panel.settings.diff_threshold == 0.05
    panel.setting.threshold.value = 0.2
    assert "threshold 0.2," in a.title.value and "threshold 0.9," in b.title.value
    panel.edited.value = 1
    panel.compare.value = False  # what the controls show stays
    assert panel.settings.diff_threshold == panel.setting.threshold.value == 0.9
    assert b.layout.display == "none" and a.title.value == panel.numbers.value == ""


def test_two_settings_may_see_frames_at_two_sizes(config):
    panel = panel_of(config)
    panel.compare.value = True
    panel.setting.seen.value = CLIP
    assert panel.message.value == ""
    assert numbers_of(panel)["frames"] == ["800 × 1280, patches of 16", "336 × 336, patches of 14"]
    assert panel.setting.limit.max == 576
    panel.edited.value = 0
    assert panel.setting.limit.max == 4000


# ---- files ---------------------------------------------------------------------------------------------


def test_save_writes_what_the_controls_say_and_leaves_the_file_that_was_read(config):
    before = config.read_bytes()
    panel = panel_of(config)
    mine = config.parent / "mine.yaml"
    setting = panel.setting
    setting.threshold.value, setting.limited.value, setting.limit.value = 0.125, True, 77
    assert not mine.exists()
    panel.save_as.save.click()
    assert read_settings(mine) == panel.settings == DifferentialSettings(0.125, "max", 77, tolerance=0.5)
    assert "Chosen on dialog, seen in frames of 800 x 1280 pixels, patches of 16." in mine.read_text()
    assert "mine.yaml written at" in panel.save_as.said.value and config.read_bytes() == before
    setting.threshold.value = 0.25
    panel.save_as.save.click()  # its own file again
    assert read_settings(mine).diff_threshold == 0.25 and "overwritten at" in panel.save_as.said.value
    again = panel_of(mine)
    assert again.settings == panel.settings
    assert (again.setting.threshold.value, again.setting.limited.value, again.setting.limit.value) == (0.25, True, 77)


def test_saving_b_saves_b(config):
    panel = panel_of(config)
    panel.compare.value = True
    panel.setting.threshold.value = 0.5
    panel.save_as.save.click()
    assert read_settings(config.parent / "mine.yaml").diff_threshold == 0.5
    panel.edited.value = 0
    panel.save_as.save.click()
    assert read_settings(config.parent / "mine.yaml").diff_threshold == 0.05


def test_a_file_of_someone_else_is_overwritten_at_the_second_press_alone(config):
    before = config.read_bytes()
    panel = panel_of(config)
    panel.setting.threshold.value = 0.5
    panel.save_as.name.value = str(config)
    panel.save_as.save.click()
    assert config.read_bytes() == before
    assert "is there already; press again to overwrite it" in panel.save_as.said.value
    panel.save_as.name.value = str(config.parent / "other.yaml")  # another name: nothing is asked any more
    panel.save_as.name.value = str(config)
    panel.save_as.save.click()
    assert config.read_bytes() == before
    panel.save_as.save.click()
    assert read_settings(config) == panel.settings and "overwritten at" in panel.save_as.said.value


def test_a_file_that_holds_no_settings_is_never_overwritten(config):
    other = config.parent / "batch.yaml"
    other.write_text("checkpoints: {}\n")
    panel = panel_of(config, save_as=other)
    for _ in range(3):
        panel.save_as.save.click()
        assert "batch.yaml is not written over, as it holds no settings" in panel.message.value
        assert other.read_text() == "checkpoints: {}\n"


@pytest.mark.parametrize("name", ["", "  ", "."])
def test_a_name_that_no_file_can_have_is_refused(config, name):
    panel = panel_of(config, save_as=name)
    for press in (panel.save_as.save, panel.save_as.load):
        press.click()
        assert "no file&#x27;s name" in panel.message.value


def test_load_sets_the_controls_and_can_be_undone(config):
    panel = panel_of(config)
    other = config.parent / "mine.yaml"
    settings = DifferentialSettings(0.3, "mean", 9, 40, "previous", "none")
    write_settings(other, settings)
    panel.save_as.load.click()
    assert panel.settings == settings and panel.message.value == ""
    assert (panel.setting.threshold.number.value, panel.setting.patch_size.value) == (0.3, 40)
    panel.undo.click()
    assert panel.settings == DifferentialSettings(tolerance=0.5)
    other.write_text("diff_threshold: 2\n")
    panel.save_as.load.click()
    assert "diff_threshold is 2; it must be at most 1" in panel.message.value
    assert panel.settings == DifferentialSettings(tolerance=0.5)


def test_recordings_are_looked_for_again(tmp_path, config):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.new("RGB", (64, 64), (80 * index, 0, 0)).save(tmp_path / name / f"{index}.png")
    panel = TuningPanel(tmp_path, "one", config)
    (tmp_path / "two").rename(tmp_path / "three")
    panel.rescan.click()
    assert [name for _, name in panel.sequence.options] == ["one", "three"] and panel.sequence.value == "one"
    panel.folder.value = str(SCREENS)
    assert "dialog" in panel.bench.recordings and panel.message.value == "" and panel.views[0].screenshot.value
    panel.folder.value = str(tmp_path / "nowhere")
    assert "nowhere: no such file or directory" in panel.message.value and panel.views[0].screenshot.value == b""
    panel.folder.value = str(tmp_path)
    assert panel.message.value == "" and panel.views[0].screenshot.value


# ---- what is wrong with the input ----------------------------------------------------------------------


def test_no_results_yet(config):
    assert "`bash run.sh` makes those" in panel_of(config).expected.value


def test_results_of_an_older_schema(config):
    results = config.parent / "results"
    results.mkdir()
    tower = load_tower(str(DEMO / "S-S" / "step_3000"), (64, 96))
    rows = measure_policies(tower, read_sequence(SCREENS / "dialog").head(2), policies([]), progress=False)
    rows.drop(columns="diff_threshold").to_parquet(results / "old.parquet")
    panel = panel_of(config)
    assert "old.parquet is of an older schema, without diff_threshold; `bash run.sh`" in panel.expected.value
    assert panel.views[0].screenshot.value


def test_an_unknown_recording_is_named_in_the_panel(config):
    panel = panel_of(config, "nope")
    assert "no recording &#x27;nope&#x27;" in panel.message.value
    assert "fvlm record" in panel.message.value
    panel.sequence.value = panel.sequence.options[0][1]  # it goes on with another
    assert panel.message.value == "" and panel.views[0].screenshot.value


def test_no_recordings_at_all(tmp_path, config):
    panel = TuningPanel(tmp_path / "nowhere", None, config)
    assert "nowhere: no such file or directory" in panel.message.value


def test_a_wrong_settings_file_is_named_and_the_defaults_shown(config):
    config.write_text("diff_threshold: 2\n")
    panel = panel_of(config)
    assert "diff_threshold is 2; it must be at most 1" in panel.saved.value
    assert panel.settings == DifferentialSettings()
    assert panel.views[0].screenshot.value


def test_a_frame_that_cannot_be_read_is_named_in_the_panel(tmp_path, config):
    for index in range(2):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{index}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    panel = TuningPanel(tmp_path, None, config)
    assert "2.png: is not a readable image" in panel.message.value
    assert (panel.views[0].screenshot.value, panel.views[0].summary.value) == (b"", "")
    assert panel.bar.layout.display == "none"


def test_a_frame_that_goes_missing_is_named_in_the_panel(tmp_path, config):
    for index in range(3):
        Image.new("RGB", (64, 64), (80 * index, 0, 0)).save(tmp_path / f"{index}.png")
    panel = TuningPanel(tmp_path, None, config)
    panel.player.frame.value = 1
    (tmp_path / "2.png").unlink()
    panel.player.frame.value = 2
    assert "2.png: no such file" in panel.message.value
    panel.player.frame.value = 1
    assert panel.message.value == ""


def test_an_unexpected_error_shows_where(config):
    panel = panel_of(config)
    panel.show_errors(lambda: 1 / 0)()
    assert "ZeroDivisionError: division by zero<details>" in panel.message.value
    assert "test_panels.py" in panel.message.value


# ---- fovea -------------------------------------------------------------------------------------------


def test_the_fovea_panel_runs_the_model_once_a_choice(monkeypatch):
    from fvlm_lib.panels import fovea_panel

    calls = []
    watch = fovea_panel.watch_video
    monkeypatch.setattr(fovea_panel, "watch_video", lambda *given: calls.append(given[2:4]) or watch(*given))
    panel = FoveaPanel(DEMO / "S-S", DEMO / "S-S" / "step_3000", video=3)
    assert panel.message.value == ""
    picture = panel.pictures["inference"]
    for widget, value in ((panel.player.frame, 1), (panel.player.frame, 7), (panel.layer, 1), (panel.layer, 2)):
        before = pixels(picture)
        widget.value = value
        assert (pixels(picture) != before).any()
    assert calls == [(3, 1)]
    panel.video.value = 4
    panel.num_fine.value = 2
    panel.checkpoint.value = DEMO / "S-S" / "step_0100"
    assert calls == [(3, 1), (4, 1), (4, 2), (4, 2)]
    assert "2 fine passes" in panel.captions.value
    assert panel.player.frame.value == 7


def test_undo_goes_back_to_the_last_look():
    panel = FoveaPanel(DEMO / "S-S", DEMO / "S-S" / "step_3000", video=3)
    state, shown, said = panel.state, panel.pictures["inference"].value, panel.captions.value
    panel.layer.value, panel.video.value, panel.checkpoint.value = 1, 5, DEMO / "S-S" / "step_0100"
    assert panel.captions.value != said
    for _ in range(3):
        panel.undo.click()
    assert panel.state == state and panel.undo.disabled
    assert (panel.layer.value, panel.video.value, panel.checkpoint.value) == (0, 3, DEMO / "S-S" / "step_3000")
    assert (panel.pictures["inference"].value, panel.captions.value) == (shown, said)


def test_numbers_that_cannot_be_are_refused_in_a_sentence():
    panel = FoveaPanel(DEMO / "S-S", DEMO / "S-S" / "step_3000", video=3)
    shown = panel.pictures["inference"].value
    for widget, typed, sentence in (
        (panel.video, -1, "video is -1; it must be a whole number from 0. 3 is kept."),
        (panel.num_fine, 0, "fine passes is 0; it must be a whole number from 1 to 64. 1 is kept."),
        (panel.num_fine, 65, "fine passes is 65; it must be a whole number from 1 to 64. 1 is kept."),
    ):
        kept = widget.value
        widget.value = typed
        assert sentence in panel.message.value and widget.value == kept
        assert panel.pictures["inference"].value == shown


def test_zoom_into_the_look():
    panel = FoveaPanel(DEMO / "S-S", DEMO / "S-S" / "step_3000", video=3)
    whole = pixels(panel.pictures["frame"])
    side = len(panel.watched.frames[0])
    assert whole.shape[0] == side * (640 // side)
    panel.zoom.level.value = 2
    look = panel.watched.on_patches("autoregressive")[0][0].reshape(panel.watched.grid)
    row, column = np.unravel_index(look.argmax(), look.shape)
    rows, columns = look.shape
    assert (panel.zoom.across.value, panel.zoom.down.value) == (
        100 * (column + 0.5) / columns,
        100 * (row + 0.5) / rows,
    )
    top, left = (round(side / 2 * place / 100) for place in (panel.zoom.down.value, panel.zoom.across.value))
    half = side // 2
    factor = 640 // half
    part = panel.watched.frames[0][top : top + half, left : left + half].repeat(factor, axis=0).repeat(factor, axis=1)
    assert (pixels(panel.pictures["frame"]) == part).all()


def test_checkpoints_are_looked_for_again(tmp_path):
    shutil.copytree(DEMO / "S-S" / "step_3000", tmp_path / "one")
    panel = FoveaPanel(tmp_path)
    assert panel.message.value == "" and [name for name, _ in panel.checkpoint.options] == ["one"]
    shutil.copytree(DEMO / "S-S" / "step_0100", tmp_path / "two")
    panel.rescan.click()
    assert [name for name, _ in panel.checkpoint.options] == ["one", "two"]
    assert panel.checkpoint.value == tmp_path / "one"
    panel.folder.value = str(tmp_path / "two")
    assert panel.message.value == "" and panel.checkpoint.value == tmp_path / "two" and panel.captions.value


def test_an_unknown_checkpoint_is_named_in_the_panel(tmp_path):
    panel = FoveaPanel(DEMO, tmp_path / "nope")
    assert "nope, nor a file of that name; name a folder with config.json" in panel.message.value
    assert panel.pictures["frame"].value == b""
    panel.checkpoint.value = panel.checkpoint.options[0][1]
    assert panel.message.value == "" and panel.pictures["frame"].value
    assert "`bash run.sh retrain`" in FoveaPanel(tmp_path).message.value


def test_a_failed_choice_leaves_nothing_of_the_last_beside_it():
    panel = FoveaPanel(DEMO / "S-S", data={"kind": "procedural", "split": "test"})
    assert panel.pictures["frame"].value and panel.captions.value
    panel.data = {"kind": "procedural", "split": "test", "grid": 8}
    panel.video.value = 1
    assert "grid is 8, frames of 64 x 64 pixels" in panel.message.value
    assert {picture.value for picture in panel.pictures.values()} == {b""} and panel.captions.value == ""
    panel.player.frame.value = 2  # as while playing: there is nothing to show, and the message stays
    assert panel.pictures["frame"].value == b""
    assert "grid is 8, frames of 64 x 64 pixels" in panel.message.value


# ---- reader ------------------------------------------------------------------------------------------

READER = DEMO / "reader"


def words(widget) -> str:
    """What an HTML widget says, without its tags."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", widget.value)).split())


def test_the_reader_panel_shows_what_a_stream_says():
    """Of each way the answer, its verdict, rows and time, as a stream gives them that answers every frame in turn."""
    panel = ReaderPanel(READER, policy="gated 0.05", seed=2, frames=5)
    assert panel.message.value == ""
    panel.player.frame.value = 3
    stream = [*screen_stream(5, seed=2)]
    screens = [screen for screen, _ in stream]
    vlm = load_vlm(str(READER))
    kept, full = (open_reuse(vlm, "count", panel.compared[name]) for name in ("gated 0.05", "full"))
    for question in (Question("count"), panel.reader.questions(3)[0]):
        panel.question.value = question
        kept.reset()
        for way in (kept, full):
            way.ask(question.text)
        said = [kept.answer(draw(screen)) for screen in screens[:4]][-1]
        old, new = (right_answer(question, screen) for screen in screens[2:4])
        rows = panel.answers.value.split("<tr>")[2:]
        assert len(rows) == 2
        ways = {"policy gated 0.05": said, "full computation": full.answer(draw(screens[3]))}
        for row, (name, answer) in zip(rows, ways.items(), strict=True):
            cells = [html.unescape(re.sub("<[^>]*>", "", cell)) for cell in row.split("</td>")]
            named, text, judged, share, ms = cells[:5]
            assert (named, text) == (name, printable(answer.text) or "nothing")
            assert judged == reader_pictures.VERDICTS[verdict(answer.text, old, new)][0]
            assert share == f"{answer.prefill_rows:.1%}" and re.fullmatch(r"\d+\.\d ms", ms)
        assert f"right: {new}" in words(panel.right)
        assert f"{said.changed_patches} of 100 patches changed; encoded from this frame: " in words(panel.encode)
        assert f"frame 3 of 4, one change: {stream[3][1]}" in words(panel.heads["frame"])
        mask = kept.encoder.frame_statistics.encoded.numpy()
        assert 0 < mask.sum() < 100
        drawn = pictures.draw_changed_patches(draw(screens[3]), mask, 16)
        assert (pixels(panel.pictures["frame"]) == drawn).all()
        assert (pixels(panel.pictures["before"]) == draw(screens[2]).repeat(4, axis=0).repeat(4, axis=1)).all()
    panel.player.frame.value = 0
    assert panel.pictures["before"].value == b"" and "encoded from this frame: 100;" in words(panel.encode)


def test_what_is_said_does_not_depend_on_what_was_looked_at_before():
    panel = ReaderPanel(READER, policy="none", frames=6)
    reader, count = panel.reader, Question("count")
    other = reader.questions(5)[0]
    walked = [reader.read("none", count, index).answer for index in range(6)]
    assert min(said.prefill_rows for said in walked[1:]) < 1  # the exact prefix of the frame before
    for order in ([5], [2, 5], [5, 1, 3, 0, 4], [3, 4]):
        reader = ReaderPanel(READER, policy="none", frames=6).reader
        for index in order:
            if index % 2:
                reader.read("none", other, 5)
            said = reader.read("none", count, index).answer
            assert (said.text, said.prefill_rows) == (walked[index].text, walked[index].prefill_rows)


def test_the_reader_panel_computes_only_what_it_must(monkeypatch):
    loads, calls = [], []
    load, answer = reader_panel.load_vlm, VLMStream.answer
    monkeypatch.setattr(reader_panel, "load_vlm", lambda name: loads.append(name) or load(name))
    monkeypatch.setattr(VLMStream, "answer", lambda self, frame: calls.append(self.encoder) or answer(self, frame))
    panel = ReaderPanel(READER, policy="none", frames=6)
    panel.question.value = Question("count")
    shown = panel.answers.value
    panel.player.frame.value = 4
    calls.clear()
    panel.player.frame.value = 5
    assert [encoder is None for encoder in calls] == [False, True]  # goes on from frame 4; and in full
    panel.policy.value = "gated 0.05"
    assert [encoder is None for encoder in calls[2:]] == [False, False]  # the frame before, and this one
    calls.clear()
    panel.policy.value = "none"
    panel.player.frame.value = 4
    panel.policy.value = "full"
    panel.policy.value = "none"
    panel.player.frame.value = 1
    assert calls == [] and panel.answers.value == shown
    panel.seed.value, panel.change.value = 3, "value"
    assert calls and loads == [str(READER)] and panel.bar.layout.display == "none"


def test_a_question_whose_answer_just_changed_is_asked_until_one_is_chosen():
    panel = ReaderPanel(READER, change="value", policy="none", frames=4)
    for index in (1, 2, 3):
        panel.player.frame.value = index
        old, new = panel.reader.right_answers(panel.asked, index)
        assert None is not old != new and f"on the frame before: {old}" in words(panel.right)
        assert [question for _, question in panel.question.options[1:]] == panel.reader.questions(index)
        assert panel.question.value == "" and panel.question.label == f"what has changed: {panel.asked.text}"
    panel.question.value = Question("count")
    panel.player.frame.value = 1
    assert panel.asked == panel.question.value == Question("count") and "as on the frame before" in words(panel.right)
    assert words(panel.right).startswith("how many are on? right: ")
    panel.question.value = ""
    assert panel.asked != Question("count")


def test_undo_goes_back_to_the_last_question_and_stream():
    panel = ReaderPanel(READER, policy="none", frames=4)
    panel.history = History(pause=-1)
    state, shown = panel.state, panel.answers.value
    for widget, value in (
        (panel.question, Question("count")),
        (panel.policy, "full"),
        (panel.change, "box"),
        (panel.seed, 7),
    ):
        widget.value = value
    assert panel.message.value == "" and panel.state.seed == 7
    for _ in range(4):
        panel.undo.click()
    assert panel.state == state and panel.undo.disabled and (panel.policy.value, panel.change.value) == ("none", "all")
    times = r"\d+\.\d ms"  # of a stream that is opened anew
    assert re.sub(times, "", panel.answers.value) == re.sub(times, "", shown)


def test_a_folder_without_a_reader_is_named_in_the_panel_and_nothing_of_the_last_stands_beside_it(tmp_path):
    panel = ReaderPanel(READER, policy="none", frames=3)
    assert panel.answers.value
    for folder, sentence in (
        (
            tmp_path / "nope",
            f"there is no folder {tmp_path}/nope; `fvlm train-reader --out {tmp_path}/nope` makes one",
        ),
        (" ", "no folder is named; name one that `fvlm train-reader` wrote"),
        (tmp_path, f"{tmp_path} has no config that can be loaded"),
        (DEMO / "llava-tiny", "sees frames of 224 x 224 pixels, but drawn screens have 160 x 160; name a folder that"),
    ):
        panel.model.value = str(folder)
        assert sentence in panel.message.value and "Traceback" not in panel.message.value
        assert {picture.value for picture in panel.pictures.values()} == {b""}
        assert panel.answers.value == panel.right.value == panel.encode.value == "" and panel.question.options == ()
        panel.player.frame.value += 1 if panel.player.frame.value < 2 else -1
        assert sentence in panel.message.value
    panel.model.value = str(READER)
    assert panel.message.value == "" and panel.answers.value and panel.bar.layout.display == "none"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"change": "flood"}, "there is no kind of change 'flood'; there are all, value, glyph, box"),
        ({"policy": "hope"}, "there is no policy 'hope'; there are full, none, threshold 0.5"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"frames": 0}, "frames is 0; it must be at least 1"),
    ],
)
def test_what_the_reader_panel_cannot_show_is_one_sentence(given, sentence):
    panel = ReaderPanel(READER, **given)
    assert sentence in words(panel.message) and panel.answers.value == ""


def test_a_seed_that_cannot_be_is_refused_and_the_last_kept():
    panel = ReaderPanel(READER, policy="none", seed=5, frames=3)
    shown = panel.answers.value
    panel.seed.value = -2
    assert "seed is -2; it must be at least 0. 5 is kept." in panel.message.value
    assert panel.seed.value == 5 and panel.answers.value == shown


def test_every_control_of_the_reader_panel_says_what_it_is():
    panel = ReaderPanel(READER, policy="none", frames=3)
    controls = (panel.model, panel.change, panel.seed, panel.policy, panel.question, panel.player.frame)
    assert [control.description for control in controls] == [
        "model in", "kind of change", "seed", "policy", "question", "frame"
    ]  # fmt: skip


def test_the_table_of_a_stream_has_what_the_panel_shows():
    panel = ReaderPanel(READER, change="value", policy="gated 0.05", frames=4)
    table = panel.reader.by_frame("gated 0.05")
    assert list(table["frame"]) == [0, 1, 2, 3] and list(table["change"]) == ["", "value", "value", "value"]
    for index, row in table.iterrows():
        panel.player.frame.value = index
        assert panel.asked.text == row["question"] and f"right: {row['right']}" in words(panel.right)
        assert f"{row['rows']:.1%} {row['first_token_ms']:.1f} ms" in words(panel.answers)
        assert f"100.0% {row['first_token_ms_full']:.1f} ms" in words(panel.answers)
    asked = panel.reader.by_frame("full", Question("count"))
    assert {*asked["question"]} == {"how many are on?"} and (asked["answer"] == asked["answer_full"]).all()


@pytest.mark.parametrize(
    ("old", "new", "answer", "said"),
    [("42", "17", "17", "right"), ("42", "17", "42", "stale: right for the frame before"), ("42", "17", "71", "wrong"),
     (None, "17", "<b>", "wrong"), ("17", "17", "", "wrong")],
)  # fmt: skip
def test_a_verdict_is_told_in_words(old, new, answer, said):
    panel = ReaderPanel(READER, policy="none", frames=2)
    read = panel.reader.read("full", Question("count"), 0)
    given = replace(read, answer=replace(read.answer, text=answer))
    row = reader_pictures.describe_answers({"policy none": given}, old, new).split("<tr>")[2]
    cells = [html.unescape(re.sub("</?(b|td)( [^>]*)?>", "", cell)) for cell in row.split("</td>")]
    assert cells[:4] == ["policy none", answer or "nothing", said, "100.0%"]
    assert "<b>&lt;b&gt;</b>" in row or answer != "<b>"


# ---- live --------------------------------------------------------------------------------------------

CHECKPOINT = DEMO / "S-S" / "step_3000"
FORM = SCREENS / "reader-form"
PATIENCE = 120  # seconds, for a busy machine; nothing waits this long otherwise


@pytest.fixture
def live_panel():
    """Makes panels, and ends what they watch."""
    made = []

    def make(source: str | Path = FORM, fps: float = 25.0, **options) -> LivePanel:
        made.append(LivePanel(DEMO / "S-S", options.pop("checkpoint", CHECKPOINT), str(source), fps, **options))
        return made[-1]

    yield make
    for panel in made:
        panel.stop()
    ours = ("watch", "show", "live frames")
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name in ours], "the threads' end")


def wait_until(found, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE} s"
        time.sleep(0.02)


def values(panel: LivePanel) -> list[bytes]:
    return [picture.value for picture in panel.pictures.values()]


def watch_some(panel: LivePanel, frames: int = 3) -> None:
    """Press Start, and wait until so many frames are watched and something is shown."""
    panel.toggle.click()
    assert panel.message.value == "" and panel.toggle.description == "Stop"
    watching = panel.watching
    wait_until(lambda: watching.newest is not None and watching.newest.index + 1 >= frames, f"{frames} frames")
    wait_until(lambda: panel.pictures["look"].value, "a picture")


def recorded(folder: Path, count: int, side: int = 64) -> list[np.ndarray]:
    """Frames of noise, one square of which changes from each to the next, as a recording in the folder."""
    frame = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    frames = []
    folder.mkdir(exist_ok=True)
    for index in range(count):
        frame = frame.copy()
        frame[:8, 8 * index : 8 * index + 8] = 255 * (index % 2)
        Image.fromarray(frame).save(folder / f"{index}.png")
        frames.append(frame)
    return frames


def test_one_frame_is_shown_as_a_stream_sees_it(tmp_path, live_panel):
    (frame,) = recorded(tmp_path / "one", 1, side=32)  # the model's own size
    panel = live_panel(tmp_path / "one", loop=False)
    assert values(panel) == [b"", b""] and "Nothing is watched yet." in words(panel.status)
    panel.toggle.click()
    wait_until(lambda: panel.watching is None, "the end")
    assert panel.message.value == "" and panel.toggle.description == "Start"

    model, tokenizer = open_live(CHECKPOINT, "cpu")
    stream = FoveatedStream(model, DifferentialSettings())
    stream.push(torch.from_numpy(frame).permute(2, 0, 1) / 127.5 - 1, output_attentions=True)
    mean = torch.stack([layer[0].mean(dim=0) for layer in stream.attentions]).mean(dim=0)[-16:].numpy()
    look = (mean / mean.sum()).reshape(4, 4)
    said = tokenizer.decode(stream.caption(max_new_tokens=16, do_sample=False)[0], skip_special_tokens=True).strip()
    assert said and words(panel.sayings) == f"what it says 0.0 s {said}"
    assert words(panel.heads["seen"]) == "frame 0 , 0.0 s full 16 of 16 patches computed anew"
    assert words(panel.counts) == "1 watched · 0 dropped"
    shown = pixels(panel.pictures["seen"])
    assert np.abs(shown - frame.repeat(20, axis=0).repeat(20, axis=1)).mean() < 6  # but for JPEG
    assert words(panel.heads["look"]) == f"where it looks {look.max():.0%} on the patch looked at most"
    weight = (look / look.max()).repeat(160, axis=0).repeat(160, axis=1)[..., None]
    paled = frame.repeat(20, axis=0).repeat(20, axis=1) * weight + 255 * (1 - weight)
    unlabelled = np.abs(pixels(panel.pictures["look"]) - paled).reshape(4, 160, 4, 160, 3)[:, 80:]
    assert unlabelled.mean() < 6 and look.max() > 1.5 * look.mean()
    assert "The stream has ended after 1 frames; what was said stays." in words(panel.status)


def test_frames_watched_and_dropped_are_those_of_the_recording(tmp_path, live_panel):
    frames = recorded(tmp_path / "six", 6)
    panel = live_panel(tmp_path / "six", loop=False, caption_every=0.0)
    panel.toggle.click()
    watching = panel.watching
    assert watching.join(PATIENCE)
    watched, dropped = map(int, re.match(r"(\d+) watched · (\d+) dropped", words(panel.counts)).groups())
    assert watched + dropped == len(frames) and watched == watching.newest.index + 1
    table = watching.lately()
    assert list(table["frame"]) == list(range(watched)) and table["seconds"].is_monotonic_increasing
    assert table["path"][0] == "full" and (table["encoded"][1:] < 16).all() and (table["encoded"][1:] > 0).all()
    asked = table["caption_ms"] > 0
    assert asked.all() and table["caption"].notna().all()  # something has changed on every frame
    cells = re.findall(r"<td[^>]*>(.*?)</td>", panel.times.value)
    columns = ["encode_ms", "look_ms", "language_ms", "caption_ms"]
    assert cells == [
        "this frame", *(f"{table[name].iloc[-1]:.1f}" for name in columns),
        f"median of {watched}", *(f"{table[name].median():.1f}" for name in columns),
    ]  # fmt: skip
    seen = watching.newest
    patch = seen.frame.shape[0] // 4
    drawn = pictures.draw_changed_patches(seen.frame, seen.encoded, patch)
    assert (drawn == (np.array(CHANGED) * 255).astype(int)).all(axis=2).any()  # an outline
    assert panel.pictures["seen"].value == pictures.to_jpeg(drawn)
    share = seen.look[seen.encoded].sum()
    assert words(panel.heads["look"]) == f"where it looks {share:.0%} on the {seen.encoded.mean():.0%} computed anew"


def test_stopping_keeps_what_was_said_and_shown(live_panel):
    panel = live_panel()
    watch_some(panel)
    panel.toggle.click()
    assert panel.watching is None and panel.toggle.description == "Start" and panel.message.value == ""
    said, shown, counts = panel.sayings.value, values(panel), words(panel.counts)
    watched = int(counts.split()[0])
    assert words(panel.status) == f"The stream was stopped after {watched} frames; what was said stays."
    assert watched >= 3 and "what it says 0.0" in words(panel.sayings) and all(shown)
    panel.fps.value = 30.0  # nothing is watched, and nothing begins
    assert panel.watching is None and panel.state.fps == 30
    assert (panel.sayings.value, values(panel), words(panel.counts)) == (said, shown, counts)


@pytest.mark.parametrize(
    ("control", "typed", "sentence"),
    [("fps", 0.0, "frames a second is 0.0; it must be above 0. 25 is kept."),
     ("fps", float("nan"), "frames a second is nan; it must be a finite number. 25 is kept."),
     ("caption_every", -1.0, "caption every is -1.0; it must be at least 0. 1 is kept.")],
)  # fmt: skip
def test_a_number_that_cannot_be_is_refused_and_the_stream_goes_on(live_panel, control, typed, sentence):
    panel = live_panel()
    watch_some(panel)
    watching, kept = panel.watching, getattr(panel, control).value
    getattr(panel, control).value = typed
    assert words(panel.message) == sentence
    assert getattr(panel, control).value == getattr(panel.state, control) == kept
    newest = watching.newest.index
    wait_until(lambda: watching.newest.index > newest, "another frame")
    assert panel.watching is watching and "0.0" in words(panel.sayings)


def test_a_source_that_is_not_there_is_one_sentence_and_what_was_said_stays(tmp_path, live_panel):
    panel = live_panel()
    watch_some(panel)
    panel.source.value = str(tmp_path / "nowhere")
    assert f"there is no recording {tmp_path / 'nowhere'}; name a folder" in words(panel.message)
    assert panel.watching is None and panel.toggle.description == "Start"
    said, shown = words(panel.sayings), values(panel)
    assert "0.0" in said and all(shown)
    panel.toggle.click()  # still not there
    assert "no recording" in words(panel.message) and (words(panel.sayings), values(panel)) == (said, shown)
    panel.source.value = str(FORM)
    watch_some(panel)
    wait_until(lambda: "stream 2, 0.0" in words(panel.sayings), "what is said now")
    assert "stream 1, 0.0" in words(panel.sayings)


def test_a_source_without_a_display_is_one_sentence(live_panel, monkeypatch):
    monkeypatch.setenv("DISPLAY", ":98765")
    panel = live_panel("screen")
    panel.toggle.click()
    assert panel.watching is None and "no screen can be recorded here" in words(panel.message)
    assert "<details>" not in panel.message.value


def test_a_display_that_goes_away_is_one_sentence_and_what_was_said_stays(live_panel, monkeypatch):
    with virtual_screen() as screen:
        monkeypatch.setenv("DISPLAY", screen.display)
        panel = live_panel("screen")
        watch_some(panel)
        screen.server.kill()
        wait_until(lambda: panel.watching is None, "the end")
    assert "no screen can be recorded here" in words(panel.message) and "<details>" not in panel.message.value
    assert words(panel.status).startswith("The stream failed after") and "0.0" in words(panel.sayings)
    assert all(values(panel)) and panel.toggle.description == "Start"


def test_a_frame_that_cannot_be_read_ends_the_stream_in_a_sentence(tmp_path, live_panel):
    recorded(tmp_path / "broken", 3)
    (tmp_path / "broken" / "3.png").write_bytes(b"no image")
    panel = live_panel(tmp_path / "broken")
    panel.toggle.click()
    wait_until(lambda: panel.watching is None, "the end")
    assert "3.png: is not a readable image" in words(panel.message) and "<details>" not in panel.message.value
    assert re.match(r"The stream failed after \d frames; what was said stays.", words(panel.status))
    assert "0.0" in words(panel.sayings) and panel.toggle.description == "Start"


def test_a_tower_without_an_adapter_is_one_sentence(live_panel):
    panel = live_panel()
    model, tokenizer = open_live(CHECKPOINT, "cpu")
    model.encoder.dino = ViTModel(ViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4))
    panel.opened = CHECKPOINT, model, tokenizer
    panel.toggle.click()
    assert f"{CHECKPOINT}: no adapter for the vision model ViTModel; there is one for" in words(panel.message)
    assert panel.watching is None and "<details>" not in panel.message.value


def test_a_checkpoint_that_is_not_there_or_whose_words_are_not_known_is_one_sentence(tmp_path, live_panel):
    panel = live_panel(checkpoint=tmp_path / "nope")
    panel.toggle.click()
    assert "there is no checkpoint folder" in words(panel.message) and panel.watching is None
    shutil.copytree(CHECKPOINT, tmp_path / "wordless", ignore=shutil.ignore_patterns("tok*", "training.json"))
    panel = live_panel(checkpoint=tmp_path / "wordless")
    panel.toggle.click()
    assert "wordless has no tokenizer" in words(panel.message) and panel.watching is None


def test_a_control_that_is_moved_begins_another_stream_and_undo_goes_back(live_panel):
    panel = live_panel(settings=ROOT / "config" / "differential.yaml")
    panel.history = History(pause=-1)  # every move is a step
    start = panel.state
    watch_some(panel)
    first = panel.watching
    panel.threshold.value = 0.5
    assert panel.watching not in (None, first) and panel.settings.diff_threshold == 0.5
    assert first.ended and "Stream 2" in words(panel.status)
    panel.tolerance.value = 0.25
    panel.loop.value = False
    panel.checkpoint.value = DEMO / "S-S" / "step_1000"
    assert panel.settings.tolerance == 0.25 and "Stream 5" in words(panel.status)
    panel.stop()
    for _ in range(4):
        panel.undo.click()
    assert panel.state == start and panel.undo.disabled and panel.watching is None
    assert (panel.threshold.value, panel.tolerance.value, panel.loop.value) == (0.05, DEFAULT_TOLERANCE, True)
    assert panel.checkpoint.value == CHECKPOINT and panel.message.value == ""


def test_one_panel_watches_at_a_time(live_panel):
    first = live_panel()
    watch_some(first)
    second = live_panel()  # as when the cell runs again
    assert first.watching is None and "was stopped" in words(first.status)
    watch_some(second)
    watch_some(first)
    assert second.watching is None and second.toggle.description == "Start" and first.watching is not None
    first.close()
    assert first.watching is None


def test_what_is_kept_of_a_stream_does_not_grow():
    """Twenty times as many frames as are kept; what is said at each is another thing."""
    frame, said = np.zeros((8, 8, 3), np.uint8), deque(maxlen=7)
    watched = (
        LiveFrame(index, index / 4, frame, np.eye(4, dtype=bool), "partial", np.full((4, 4), 1 / 16), f"{index // 2}",
                  1.0, 2.0, 3.0, 4.0, index // 10)
        for index in range(20 * live_watch.LATELY)
    )  # fmt: skip
    shown = []
    watching = live_watch.Watching(watched, threading.Event(), lambda it: shown.append(it.ended), said, number=3)
    watching.start()
    assert watching.join(PATIENCE) and watching.error is None and shown.count(True) == 1 and shown[-1]
    assert list(watching.lately()["frame"]) == list(range(19 * live_watch.LATELY, 20 * live_watch.LATELY))
    last = 20 * live_watch.LATELY - 1
    assert watching.newest.index == last and len(watching.said()) == 7
    assert watching.said()[-1] == live_watch.Said(f"{last // 2}", (last - 1) / 4, last / 4, 3)  # said twice, once told
    counts = html.unescape(re.sub("<[^>]*>", "", live_pictures.describe_counts(watching.lately())))
    assert counts.split() == f"{last + 1} watched · {last // 10} dropped · 4.0 frames a second".split()


def test_what_cannot_be_shown_ends_the_stream_and_is_its_error():
    """A picture of a frame whose path nobody knows."""
    frame = np.zeros((8, 8, 3), np.uint8)
    seen = LiveFrame(0, 0.0, frame, np.eye(4, dtype=bool), "sideways", np.eye(4) / 4, None, 1.0, 1.0, 1.0, 0.0, 0)
    stopping = threading.Event()

    def endless():
        while not stopping.wait(0.01):
            yield seen

    def show(watching):
        if not watching.ended:
            live_pictures.describe_seen(watching.newest)

    watching = live_watch.Watching(endless(), stopping, show, deque())
    watching.start()
    assert watching.join(PATIENCE) and watching.ended and isinstance(watching.error, KeyError)


def test_what_was_said_is_text_not_markup():
    said = [live_watch.Said("old", 0.0, 0.0), live_watch.Said("<b>&\x07", 1.0, 2.5), live_watch.Said(" ", 3.0, 3.0)]
    told = live_pictures.describe_said(said)
    assert words(ipywidgets.HTML(told)) == "what it says 3.0 s nothing 1.0 – 2.5 s <b>&· 0.0 s old"
    assert words(ipywidgets.HTML(live_pictures.describe_said(said, count=1))) == "what it says 3.0 s nothing"
    assert words(ipywidgets.HTML(live_pictures.describe_said([]))) == "what it says nothing yet"


def test_the_live_notebook_writes_its_table_and_figure(tmp_path):
    parameters = {
        "source": str(FORM), "fps": 20.0, "frames": 6, "caption_every": 0.0, "result": str(tmp_path / "live.parquet"),
        "figure": str(tmp_path / "live.png"),
    }  # fmt: skip
    command = [sys.executable, "-m", "fvlm_lib", "run", "notebooks/live_screen.ipynb"]
    command += ["--output", str(tmp_path / "run.ipynb"), "--parameters", json.dumps(parameters)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "live.parquet")
    assert list(table["frame"]) == list(range(6)) and table["path"][0] == "full" and table["caption"][0]
    assert (table[["encode_ms", "look_ms", "language_ms"]] > 0).all(axis=None) and set(table["patches"]) == {64}
    assert Image.open(tmp_path / "live.png").width > 2000


# ---- pictures ----------------------------------------------------------------------------------------


def test_changed_patches_are_as_recorded_and_outlined_the_rest_is_faded():
    frame = np.full((700, 900, 3), 100, dtype=np.uint8)
    mask = np.zeros((7, 9), dtype=bool)
    mask[2, 3:5] = True
    drawn = pictures.draw_changed_patches(frame, mask, 100)
    assert (drawn[:200] == int(100 * 0.35 + 255 * 0.65)).all()
    assert (drawn[202:298, 302:498] == 100).all()  # no line between the two
    assert (drawn[200, 300:500] == (np.array(CHANGED) * 255).astype(int)).all()
    small = pictures.draw_changed_patches(frame[:70, :90], mask, 10)
    assert small.shape == (490, 630, 3)


def test_difference_colours_part_at_the_threshold():
    difference = np.array([[0.0, 0.1, 0.100001, 1.0]])
    drawn = pictures.draw_differences(difference, 0.1, (10, 700), 200)
    white, grey, orange, red = drawn[5, [0, 200, 400, 600]].astype(int)
    assert drawn.shape == (10, 700, 3)
    assert white.tolist() == [255] * 3
    assert max(grey) - min(grey) < 40 < orange[0] - orange[2]
    assert orange.sum() > red.sum()


def test_changed_areas_are_found_in_reading_order():
    mask = np.zeros((10, 20), dtype=bool)
    mask[8, 2:5] = True
    mask[1, 10] = mask[2, 11] = True  # corners touch
    assert pictures.find_areas(mask) == [(100 * 10.5 / 20, 15.0), (100 * 3.5 / 20, 85.0)]
    assert pictures.find_areas(mask & False) == []


def test_a_chart_is_marked_at_its_frame():
    table = pd.DataFrame({"frame": range(8), "path": "cached", "changed": 0, "total": 10})
    chart = pictures.draw_timeline(table, 0.5)
    for frame in (0, 3, 7):
        marked = chart.at(frame)
        columns = np.unique(np.argwhere((marked != chart.pixels).any(axis=-1))[:, 1])
        assert len(columns) in (1, 2) and abs(columns.mean() - (chart.first + frame * chart.step)) <= 1.5
        assert (chart.at(frame) == marked).all()  # marks do not add up


def test_attention_is_drawn_as_the_notebooks_draw_it():
    frame = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    attention = np.zeros((8, 8))
    attention[2, 3], attention[5, 5] = 0.5, 0.25
    drawn = fovea_pictures.draw_attention(frame, attention, 0.5, pictures.magnified(frame.shape, 2, 0, 0))
    factor = 160
    assert drawn.shape == (4 * factor, 4 * factor, 3)
    assert (drawn[2 * factor + 5, 3 * factor + 5] == frame[2, 3]).all()  # the highest: as it is
    assert (drawn[5, 5] == 255).all()  # none: white
    whole = fovea_pictures.draw_attention(frame, attention, 0.5, pictures.whole(frame.shape))
    assert (whole[5 * 80 + 5, 5 * 80 + 5] == (frame[5, 5] * 0.5 + 127.5).astype(np.uint8)).all()


def test_the_bench_offers_the_panels_patch_sizes(config):
    assert panel_bench.PATCH_SIZES is PATCH_SIZES
    assert {*PATCH_SIZES} < {size for _, size in panel_of(config).setting.patch_size.options}


def test_the_bench_prints_number_median_and_quartiles(capsys):
    assert panel_bench.main(["--folder", str(SCREENS), "--sequence", "dialog", "--repeats", "3"]) == 0
    said = capsys.readouterr().out
    assert "28 frames of 800 x 1280 pixels, 4000 patches" in said
    assert "ms_q1" in said and "frame, two settings" in said
    assert panel_bench.main(["--folder", str(SCREENS), "--sequence", "nope"]) == 2
    assert "fvlm bench-panel: there is no recording 'nope'" in capsys.readouterr().err


def test_the_bench_refuses_a_recording_of_one_frame(tmp_path, capsys):
    (tmp_path / "still").mkdir()
    shutil.copy(SCREENS / "idle" / "frame_0000.png", tmp_path / "still")
    assert panel_bench.main(["--folder", str(tmp_path), "--sequence", "still"]) == 2
    assert capsys.readouterr().err == (
        "fvlm bench-panel: the recording still has one frame; at least two are moved between\n"
    )


def test_the_legend_of_the_timeline_is_not_cut_off(config):
    panel = panel_of(config)
    chart = pictures.draw_timeline(panel.traced.table, highest=0.3)
    above = chart.pixels[: chart.top - 2]  # where the legend stands
    assert (above[:, 10:-10] < 200).any()
    assert (above[:, -3:] == 255).all() and (above[:2] == 255).all()
