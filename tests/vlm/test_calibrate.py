"""Tolerances that hold on a user's own frames."""

from __future__ import annotations

import copy
import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, exit_code
from hypothesis import given, settings
from hypothesis import strategies as st

from fvlm_lib.data.screens import ScreenSequence, read_sequence
from fvlm_lib.vision.settings import DifferentialSettings, prefill_options, read_settings
from fvlm_lib.vlm import predict
from fvlm_lib.vlm.calibrate import calibrate, summarize, walk
from fvlm_lib.vlm.stream import Decoding, VLMStream, open_encoder
from fvlm_lib.vlm.vlms import VLM, load_vlm

SCREENS = ROOT / "data" / "screens"
PROMPT = "What is on the screen?"
FEW = (0.0, 0.05, 0.5)


def recordings(*names: str, count: int = 6) -> list[ScreenSequence]:
    return [read_sequence(SCREENS / name).head(count) for name in names]


def calibrated(vlm: VLM, max_kl: float, sequences: list[ScreenSequence], settings=None, **options):
    return calibrate(
        vlm, PROMPT, sequences, settings or DifferentialSettings(), max_kl, decoding=Decoding(4), tolerances=FEW,
        progress=False, **options,
    )  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(heights=st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_a_walk_finds_every_largest_pair_that_holds(heights):
    """Of prefill tolerance number j, the vision tolerances below heights[j] hold, which fall with j."""
    heights = sorted(heights, reverse=True)
    asked = []

    def holds(vision: int, prefill: int) -> bool:
        asked.append((vision, prefill))
        return vision < heights[prefill]

    walk(list(range(5)), list(range(len(heights))), holds)
    good = {(i, j) for j, height in enumerate(heights) for i in range(height)}
    largest = {pair for pair in good if not any(a >= pair[0] and b >= pair[1] for a, b in good - {pair})}
    assert largest <= {*asked} and len(asked) == len({*asked}) <= 5 + len(heights)


@pytest.mark.parametrize("max_kl", [1e-6, 1e-4, 0.01])
def test_what_is_chosen_holds_on_every_frame_when_it_is_run(vlms, max_kl):
    vlm, sequences = vlms["llava"], recordings("jupyter", "terminal")
    done = calibrated(vlm, max_kl, sequences)
    assert (done.table["n"] == 10).all() and (max_kl > 1e-4 or not done.table["holds"].all())
    assert ((done.table["kl_max"] <= max_kl) == done.table["holds"]).all()
    held = done.table[done.table["holds"]][1:]
    assert done.row["ms"] in held["ms"].nsmallest(3).to_list() and done.speedup > 0
    encoder = open_encoder(vlm, done.chosen)
    stream = VLMStream(vlm, PROMPT, encoder, **prefill_options(done.chosen), check_every=1, decoding=Decoding(4))
    checks = []
    for sequence in sequences:
        stream.reset()
        checks += [stream.answer(frame).check for frame in sequence][1:]
    assert max(check.kl for check in checks) == pytest.approx(done.row["kl_max"], rel=1e-6, abs=1e-9)
    assert sum(check.same_text for check in checks) == done.row["same"]
    assert max(check.hidden_error for check in checks) == pytest.approx(done.row["hidden_error"], rel=1e-6)


def test_the_full_way_is_the_first_row_and_rows_are_reported_as_they_come(vlms):
    reported = []
    done = calibrated(vlms["llava"], 0.01, recordings("terminal", count=3), report=reported.append)
    full = done.table.iloc[0]
    assert (full["vision"], full["prefill"], full["kl_max"], full["rows"]) == ("full", "full", 0.0, 1.0)
    assert pd.DataFrame(reported)[["vision", "prefill"]].equals(done.table[["vision", "prefill"]])
    assert reported[1]["vision"] == "none" and reported[1]["prefill"] == "exact"  # the walk begins there


def test_what_is_not_varied_is_as_it_was_set(vlms, branched_fast_vlm):
    sequences = recordings("terminal", count=3)
    done = calibrated(vlms["llava"], 10.0, sequences, DifferentialSettings(propagate="none"))
    assert {*done.table["vision"][1:]} == {"as set"} and len(done.table) == 1 + len(FEW)
    assert done.chosen.propagate == "none"
    done = calibrated(vlms["llava"], 10.0, sequences, DifferentialSettings(prefill="full"), keep_prefill=True)
    assert {*done.table["prefill"][1:]} == {"as set"} and done.chosen.prefill == "full"
    done = calibrated(load_vlm(str(branched_fast_vlm)), 10.0, sequences)  # its tower has no partial updates
    assert {*done.table["vision"][1:]} == {"as set"}


def test_where_nothing_holds_nothing_is_chosen(vlms):
    """Below the threshold changes are not seen, and no tolerance makes up for that."""
    done = calibrated(vlms["llava"], 0.0, recordings("fade", count=4), DifferentialSettings(diff_threshold=0.9))
    assert done.chosen is None and done.row is None and not done.table["holds"][1:].any()


def test_a_model_that_cannot_be_gated_is_refused_before_any_frame(vlms):
    vlm = vlms["llava_onevision"]
    config = copy.deepcopy(vlm.model.config)
    config.text_config.layer_types = ["sliding_attention"] * 2
    config.text_config.sliding_window = 4
    sliding = VLM("sliding", type(vlm.model)(config), vlm.processor)
    reported = []
    with pytest.raises(ValueError, match=r"sliding: .*sliding_attention"):
        calibrated(sliding, 0.01, recordings("idle", count=2), report=reported.append)
    assert not reported


def test_a_row_is_the_sum_of_its_frames():
    frames = pd.DataFrame(
        {
            "path": ["partial", "cached", "full", "partial"],
            "kl": [0.1, 0.0, 0.4, 0.3],
            "hidden_error": [0.01, 0.0, 0.2, 0.1],
            "same": [True, True, False, True],
            "rows": [0.1, 0.0, 1.0, 0.4],
            "ms": [20.0, 1.0, 90.0, 30.0],
            "encode_ms": [5.0, 0.5, 40.0, 6.0],
            "prefill_ms": [15.0, 0.5, 50.0, 24.0],
            "speedup": [5.0, 100.0, 1.0, 3.0],
            "name": [("a", 0, 1), ("a", 0, 2), ("b", 1, 1), ("b", 1, 2)],
        }
    )
    row = summarize(frames)
    assert (row["n"], row["changed"], row["same"], row["worst"]) == (4, 3, 3, "b/1")
    assert (row["ms"], row["encode_ms"], row["prefill_ms"], row["speedup"]) == (30.0, 6.0, 24.0, 3.0)
    assert row["rows"] == pytest.approx(0.5) and row["kl"] == pytest.approx(0.2) and row["kl_max"] == 0.4
    assert 0 <= row["kl_low"] < 0.2 < row["kl_high"] and row["hidden_error"] == 0.2
    assert row["same_low"] < 0.75 < row["same_high"] < 1
    one = summarize(frames[:1])
    assert math.isnan(one["kl_low"]) and one["kl"] == one["kl_max"] == 0.1
    frames.loc[1, "kl"] = np.nan
    row = summarize(frames)
    assert math.isnan(row["kl_max"]) and row["worst"] == "a/2" and not row["kl_max"] <= 1e9


# ---- from the command line -----------------------------------------------------------------------------


@pytest.fixture
def call(vlm_folders, tmp_path, monkeypatch):
    """Run the command on three frames of the terminal, in a folder without settings."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frames").mkdir()
    for index in range(3):
        shutil.copy(SCREENS / "terminal" / f"frame_{index:04d}.png", tmp_path / "frames")

    def run(*arguments: object, frames: object = ("--image-dir", "frames")) -> int:
        model = ("--model", vlm_folders["llava"], "--max-new-tokens", 4)
        return exit_code(predict.main, *model, *frames, "--calibrate", *arguments)

    return run


def test_the_command_prints_and_writes_what_holds(call, capsys, monkeypatch):
    assert call("--max-kl", 0.01, "--diff-threshold", 0.1, "--calibrate-output", "found/mine.yaml") == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    last = json.loads(lines[-1])
    assert last["benchmark"] == "calibrate" and last["max_kl"] == 0.01
    chosen = read_settings("found/mine.yaml")
    assert asdict(chosen) == last["chosen"] and chosen.diff_threshold == 0.1
    assert "# Calibrated with " in Path("found/mine.yaml").read_text()
    shown = yaml.safe_load("\n".join(lines[-6:-2]))
    assert DifferentialSettings(**shown) == replace(chosen, diff_threshold=0.05)
    assert len(last["results"]) == len([line for line in lines if line.endswith((" yes", " no"))])
    assert "vision none, prefill exact: 100%" in printed.err  # the progress bar
    assert exit_code(
        predict.main, *("--model", last["model"], "--image-dir", "frames", "--diff-config", "found/mine.yaml"),
        *("--check-every", "1", "--max-kl", "0.01", "--max-new-tokens", "4"),
    ) == 0  # fmt: skip
    assert capsys.readouterr().out.splitlines()[-1].endswith("; 0 failed")


def test_without_an_output_nothing_is_written(call, capsys, tmp_path):
    assert call("--max-kl", 0.01) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["frames"]


def test_the_command_says_where_nothing_holds(call, capsys, tmp_path):
    assert call("--max-kl", 0, "--diff-threshold", 0.9, "--calibrate-output", "mine.yaml") == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["chosen"] is None
    assert "fvlm-predict: no tolerance holds: the KL is " in printed.err.splitlines()[-1]
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--calibrate needs --max-kl"),
        (["--max-kl", "-1"], "--max-kl is -1; it must be at least 0"),
        (["--max-kl", "1", "--benchmark"], "--calibrate and --benchmark contradict each other"),
        (["--max-kl", "1", "--output", "a.jsonl"], "--calibrate and --output contradict"),
        (["--max-kl", "1", "--check-every", "2"], "--calibrate and --check-every contradict"),
        (["--max-kl", "1", "--disable-differential"], "--calibrate and --disable-differential contradict"),
        (["--max-kl", "1", "--diff-tolerance", "0"], "--calibrate and --diff-tolerance contradict"),
        (["--max-kl", "1", "--prefill", "gated", "--prefill-tolerance", "0"], "--calibrate and --prefill-tolerance"),
        (["--max-kl", "1", "--temperature", "1"], "--calibrate and --temperature contradict"),
        (["--max-kl", "1", "--num-beams", "2"], "--calibrate and --num-beams contradict"),
        (["--max-kl", "1", "--calibrate-output", "there.yaml"], "there.yaml exists; name another --calibrate-output"),
        (["--max-kl", "1", "--calibrate-output", "frames"], "--calibrate-output frames is a folder"),
    ],
)
def test_calibrations_that_cannot_be(call, capsys, tmp_path, arguments, said):
    (tmp_path / "there.yaml").write_text("kept")
    assert call(*arguments) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "there.yaml").read_text() == "kept"


def test_one_frame_is_not_enough(call, capsys):
    assert call("--max-kl", 1, frames=("--image", "frames/frame_0000.png")) == 2
    printed = capsys.readouterr().err
    assert printed.endswith(
        "fvlm-predict: a calibration needs a sequence of at least two frames, since the first is computed in full; "
        "give more\n"
    )
