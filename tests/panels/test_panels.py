"""The panels without a browser: what their widgets show follows from the pure functions, and errors stay in them."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import DEMO, ROOT
from PIL import Image

from fvlm_lib.data.screens import read_sequence
from fvlm_lib.figures.plots import CHANGED
from fvlm_lib.panels import bench as panel_bench
from fvlm_lib.panels import pictures, tuning_panel
from fvlm_lib.panels.fovea_panel import FoveaPanel
from fvlm_lib.panels.tuning_panel import CLIP, TuningPanel
from fvlm_lib.screens.loaded_towers import load_tower, squash
from fvlm_lib.screens.measure import measure_policies, policies
from fvlm_lib.screens.tuning import compare_patches, trace_settings
from fvlm_lib.vision.settings import DifferentialSettings, read_settings, write_settings

SCREENS = ROOT / "data" / "screens"


@pytest.fixture
def config(tmp_path) -> Path:
    write_settings(tmp_path / "differential.yaml", DifferentialSettings(tolerance=0.5))
    return tmp_path / "differential.yaml"


def panel_of(config: Path, sequence: str | None = "dialog", **options) -> TuningPanel:
    return TuningPanel(SCREENS, sequence, config, **{"results": config.parent / "results", **options})


def pixels(picture) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(picture.value)).convert("RGB")).astype(int)


@pytest.mark.parametrize("name", ["tune_threshold", "explore_fovea"])
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
    panel.threshold.value, panel.metric.value, panel.reference.value = 0.01, "mean", "previous"
    panel.patch_size.value = 32
    settings = DifferentialSettings(0.01, "mean", None, 32, "previous", tolerance=0.5)
    assert panel.settings == settings
    expected = list(trace_settings(compare_patches(read_sequence(SCREENS / "dialog"), 32), settings))
    paths = set()
    for index, (step, _) in enumerate(expected):
        panel.player.frame.value = index
        paths.add(step.path)
        assert f">{step.path}</b>" in panel.status.value
        assert step.changed is None or f"{step.changed} of 1000 patches changed" in panel.status.value
    assert {"full", "cached", "partial"} == paths
    assert panel.message.value == ""


def test_every_widget_redraws(config):
    """Pictures are compared as pixels. The first frame that is shown is a typical partial update."""
    panel = panel_of(config)
    assert ">partial</b>" in panel.status.value
    moves = [
        (panel.threshold, 0.9), (panel.metric, "mean"), (panel.reference, "previous"), (panel.patch_size, 32),
        (panel.seen, CLIP), (panel.player.frame, 20),
    ]  # fmt: skip
    for widget, value in moves:
        before = [pixels(picture) for picture in (panel.screenshot, panel.difference)]
        text = panel.status.value + panel.summary.value
        widget.value = value
        after = [pixels(picture) for picture in (panel.screenshot, panel.difference)]
        assert any(a.shape != b.shape or (a != b).any() for a, b in zip(before, after, strict=True)) or (
            text != panel.status.value + panel.summary.value
        ), widget.description
    assert panel.message.value == ""


def test_pixels_are_compared_once_for_a_recording_and_size(config, monkeypatch):
    calls = []

    def counted(frames, patch_size, progress):
        calls.append(patch_size)
        return compare_patches(frames, patch_size, progress)

    monkeypatch.setattr(tuning_panel, "compare_patches", counted)
    panel = panel_of(config)
    for threshold in (0.1, 0.2, 0.3):
        panel.threshold.value = threshold
        panel.player.frame.value += 1
    panel.metric.value, panel.reference.value = "mean", "previous"
    assert calls == [16]
    panel.patch_size.value = 32
    panel.patch_size.value = 0
    assert calls == [16, 32]


def test_frames_are_seen_as_the_tower_gets_them(config):
    panel = panel_of(config)
    panel.seen.value = CLIP
    frames = (squash(frame, (336, 336)) for frame in read_sequence(SCREENS / "dialog"))
    expected = list(trace_settings(compare_patches(frames, 14), DifferentialSettings()))
    assert [step.changed for step, _ in panel.steps] == [step.changed for step, _ in expected]
    assert panel.steps[0][0].mask.shape == (24, 24)
    assert panel.limit.max == 576 and panel.limit.value == 144


def test_the_limit_decides_between_partial_and_full(config):
    panel = panel_of(config)
    changed = panel.steps[panel.player.frame.value][0].changed
    panel.limited.value = True
    panel.limit.value = changed
    assert ">partial</b>" in panel.status.value
    panel.limit.value = changed - 1
    assert ">full</b>" in panel.status.value
    assert panel.settings.max_changed_patches == changed - 1


def test_the_button_writes_what_the_widgets_say_and_keeps_the_rest(config):
    panel = panel_of(config)
    panel.threshold.value, panel.limited.value, panel.limit.value = 0.125, True, 77
    panel.save.click()
    assert read_settings(config) == DifferentialSettings(0.125, "max", 77, tolerance=0.5)
    assert "Chosen on dialog, seen in frames of 800 x 1280 pixels, patches of 16." in config.read_text()
    again = panel_of(config)
    assert again.settings == panel.settings
    assert (again.threshold.value, again.limited.value, again.limit.value) == (0.125, True, 77)


def test_odd_values_in_the_file_are_kept(config):
    write_settings(config, DifferentialSettings(patch_size=50, max_changed_patches=10**5))
    panel = panel_of(config)
    assert (panel.settings.patch_size, panel.settings.max_changed_patches) == (50, 10**5)
    assert panel.steps[0][0].mask.shape == (16, 26)


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
    panel.seen.value = (64, 96, 8)
    assert "not measured at this setting" in panel.expected.value
    assert "fvlm run notebooks/differential_benchmark.ipynb" in panel.expected.value
    panel.threshold.value = 0.25
    assert panel.expected.value.count("tuned.parquet") == 3  # none, two tolerances; not the exact match
    (bold,) = [line for line in panel.expected.value.split("<tr") if "font-weight:bold" in line]
    assert "gated 0.5" in bold
    panel.patch_size.value = 16
    assert "not measured at this setting" in panel.expected.value


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
    assert panel.screenshot.value


def test_an_unknown_recording_is_named_in_the_panel(config):
    panel = panel_of(config, "nope")
    assert "no recording &#x27;nope&#x27;" in panel.message.value
    assert "fvlm record" in panel.message.value
    panel.sequence.value = panel.sequence.options[0][1]  # it goes on with another
    assert panel.message.value == "" and panel.screenshot.value


def test_no_recordings_at_all(tmp_path, config):
    panel = TuningPanel(tmp_path / "nowhere", None, config)
    assert "nowhere: no such file or directory" in panel.message.value


def test_a_wrong_settings_file_is_named_and_the_defaults_shown(config):
    config.write_text("diff_threshold: 2\n")
    panel = panel_of(config)
    assert "diff_threshold is 2; it must be a number from 0 to 1" in panel.saved.value
    assert panel.settings == DifferentialSettings()
    assert panel.screenshot.value
    panel.save.click()
    assert yaml.safe_load(config.read_text())["diff_threshold"] == 0.05


def test_a_frame_that_cannot_be_read_is_named_in_the_panel(tmp_path, config):
    for index in range(2):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{index}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    panel = TuningPanel(tmp_path, None, config)
    assert "2.png: is not a readable image" in panel.message.value
    assert (panel.screenshot.value, panel.summary.value) == (b"", "")
    assert panel.bar.layout.visibility == "hidden"


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
    seen = []
    for widget, value in ((panel.player.frame, 1), (panel.player.frame, 7), (panel.layer, 1), (panel.layer, 2)):
        seen.append(panel.figure.value)
        widget.value = value
        assert (pixels(panel.figure) != pixels(type(panel.figure)(value=seen[-1]))).any()
    assert calls == [(3, 1)]
    panel.video.value = 4
    panel.num_fine.value = 2
    panel.checkpoint.value = DEMO / "S-S" / "step_0100"
    assert calls == [(3, 1), (4, 1), (4, 2), (4, 2)]
    assert "2 fine passes" in panel.captions.value
    assert panel.player.frame.value == 7


def test_an_unknown_checkpoint_is_named_in_the_panel(tmp_path):
    panel = FoveaPanel(DEMO, tmp_path / "nope")
    assert "nope, nor a file of that name; name a folder with config.json" in panel.message.value
    assert panel.figure.value == b""
    panel.checkpoint.value = panel.checkpoint.options[0][1]
    assert panel.message.value == "" and panel.figure.value
    assert "`bash run.sh retrain`" in FoveaPanel(tmp_path).message.value


def test_a_failed_choice_leaves_nothing_of_the_last_beside_it():
    panel = FoveaPanel(DEMO / "S-S", data={"kind": "procedural", "split": "test"})
    assert panel.figure.value and panel.captions.value
    panel.data = {"kind": "procedural", "split": "test", "grid": 8}
    panel.video.value = 1
    assert "grid 8 and 8 frames are 64 pixels wide" in panel.message.value
    assert (panel.figure.value, panel.captions.value) == (b"", "")
    panel.player.frame.value = 2  # as while playing: there is nothing to show, and the message stays
    assert panel.figure.value == b""
    assert "grid 8 and 8 frames are 64 pixels wide" in panel.message.value


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


def test_the_benchs_patch_sizes_are_those_of_the_panel():
    assert panel_bench.PATCH_SIZES == tuning_panel.PATCH_SIZES


def test_the_bench_prints_number_median_and_quartiles(capsys):
    assert panel_bench.main(["--folder", str(SCREENS), "--sequence", "dialog", "--repeats", "3"]) == 0
    said = capsys.readouterr().out
    assert "28 frames of 800 x 1280 pixels, 4000 patches" in said
    assert "ms_q1" in said
    assert panel_bench.main(["--folder", str(SCREENS), "--sequence", "nope"]) == 2
    assert "fvlm bench-panel: there is no recording 'nope'" in capsys.readouterr().err
