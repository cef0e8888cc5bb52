"""Settings of the differential encoder: the file says what the encoder takes, and wrong files are named."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from conftest import ROOT

from fvlm_lib.vision.changes import ChangeTracker
from fvlm_lib.vision.differential import DifferentialVisionEncoder
from fvlm_lib.vision.settings import DifferentialSettings, encoder_options, read_settings, write_settings


def test_defaults_are_those_of_the_encoder_and_of_the_stored_file():
    taken = inspect.signature(DifferentialVisionEncoder).parameters
    options = encoder_options(DifferentialSettings())
    assert {name: taken[name].default for name in options} == options
    assert asdict(DifferentialSettings()).keys() - options.keys() == {"prefill", "prefill_tolerance"}
    assert read_settings(ROOT / "config" / "differential.yaml") == DifferentialSettings()


@pytest.mark.parametrize(
    "settings",
    [
        DifferentialSettings(),
        DifferentialSettings(1e-5, "mean", 0, 14, "previous", "none", 1e-7),
        DifferentialSettings(1, "max", 10**6, 1, "encoded", "gated", 0.0),
        DifferentialSettings(propagate="budget", max_rows=30),
        DifferentialSettings(np.float32(0.25), max_changed_patches=np.int64(7), tolerance=np.float64(0.1)),
        DifferentialSettings(prefill="gated", prefill_tolerance=0.05),
    ],
)
def test_what_is_written_is_read(tmp_path, settings):
    write_settings(tmp_path / "new" / "s.yaml", settings, "chosen on a\nscreen: #1")
    assert read_settings(tmp_path / "new" / "s.yaml") == settings
    assert "# chosen on a screen: #1\n" in (tmp_path / "new" / "s.yaml").read_text()
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["s.yaml"]


def test_missing_keys_have_their_defaults(tmp_path):
    (tmp_path / "s.yaml").write_text("metric: mean\n")
    assert read_settings(tmp_path / "s.yaml") == DifferentialSettings(metric="mean")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("toleranc: 1", " has the unknown key 'toleranc'; did you mean 'tolerance'? known are diff_threshold, metric, "
         "max_changed_patches, patch_size, reference, propagate, tolerance, max_rows, prefill, prefill_tolerance"),
        ("diff_threshold: 1.5", ": diff_threshold is 1.5; it must be at most 1"),
        ("diff_threshold: 1e-5",
         ": diff_threshold is '1e-5'; it must be a number; YAML reads 1e-5 as text, write 1.0e-5"),
        ("diff_threshold: .nan", ": diff_threshold is nan; it must be a finite number"),
        ("diff_threshold: yes", ": diff_threshold is True; it must be a number"),
        ("diff_threshold: null", ": diff_threshold is null; it must be a number"),
        ("metric: largest", ": metric is 'largest'; it must be 'max' or 'mean'"),
        ("metric: [max]", ": metric is ['max']; it must be 'max' or 'mean'"),
        ("max_changed_patches: 1.5", ": max_changed_patches is 1.5; it must be a whole number, or null"),
        ("patch_size: 0", ": patch_size is 0; it must be at least 1, or null"),
        ("tolerance: -1", ": tolerance is -1; it must be at least 0, or null"),
        ("tolerance: .inf", ": tolerance is inf; it must be a finite number, or null"),
        ("propagate: all", ": propagate is 'all'; it must be 'gated', 'budget' or 'none'"),
        ("prefill: changed", ": prefill is 'changed'; it must be 'full', 'exact' or 'gated'"),
        ("prefill_tolerance: -1", ": prefill_tolerance is -1; it must be at least 0, or null"),
        ("max_rows: 5", ": max_rows is 5 and propagate 'gated'; it goes with 'budget'"),
        ("propagate: budget\nmax_changed_patches: 5",
         ": max_changed_patches is 5 and propagate 'budget', which encodes no frame in full because of its changes; "
         "leave one out"),
        ("reference: last", ": reference is 'last'; it must be 'encoded' or 'previous'"),
        ("metric: max\nmetric: mean", ": line 2 gives the key 'metric' again, after line 1; keep one of them"),
        ("- 1", " is [1]; it must be a mapping, `key: value` lines"),
        ("", " is null; it must be a mapping, `key: value` lines"),
        ("a: b: c", " cannot be read as YAML in line 1 (mapping values are not allowed here)"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_its_key(tmp_path, text, message):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as raised:
        read_settings(file)
    assert str(raised.value) == f"{file}{message}"


def test_a_missing_file_names_what_writes_it(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.yaml; notebooks/tune_threshold\.ipynb writes one"):
        read_settings(tmp_path / "nowhere.yaml")


def test_it_imports_nothing_heavy():
    code = "import sys, fvlm_lib.vision.settings; sys.exit(bool({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_tracker_takes_every_choice():
    for metric in ("max", "mean"):
        for reference in ("encoded", "previous"):
            settings = DifferentialSettings(metric=metric, reference=reference)
            ChangeTracker(settings.diff_threshold, settings.metric, settings.reference)
