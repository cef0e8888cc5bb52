"""The fast trace of the tuning panel is the encoder's own, number for number, at every setting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import ROOT

from fvlm_lib.data.screens import read_sequence
from fvlm_lib.screens.tuning import compare_patches, trace_settings
from fvlm_lib.vision.changes import ChangeTracker, trace_changes
from fvlm_lib.vision.patches import patch_difference_map
from fvlm_lib.vision.settings import DifferentialSettings

SCREENS = ROOT / "data" / "screens"
THRESHOLDS = (0.0, 1 / 255, 0.02, 0.05, 0.1, 13 / 255, 0.3, 0.9, 1.0)


def check_equal(frames, compared, patch_size, settings):
    """The same path, count and mask for every frame as the pixel-by-pixel trace; also differences that say so."""
    tracker = ChangeTracker(settings.diff_threshold, settings.metric, settings.reference)
    slow = list(trace_changes(frames, patch_size, tracker, settings.max_changed_patches))
    fast = list(trace_settings(compared, settings))
    assert len(slow) == len(fast)
    for exact, (found, difference) in zip(slow, fast, strict=True):
        assert (found.index, found.path, found.changed) == (exact.index, exact.path, exact.changed)
        np.testing.assert_array_equal(found.mask, exact.mask)
        if exact.changed is not None:
            assert (difference > settings.diff_threshold).sum() == exact.changed
    return [step.path for step in slow]


@pytest.mark.parametrize("name", ["dialog", "fade", "idle", "jupyter", "terminal"])
def test_real_recordings_are_traced_as_the_encoder_does(name):
    """Also with patches that the border cuts (48), where a content is smaller; thresholds that differences hit."""
    frames = read_sequence(SCREENS / name).load()
    rng = np.random.default_rng(sum(map(ord, name)))
    paths = set()
    for patch_size in (16, 48):
        compared = compare_patches(frames, patch_size)
        settings = itertools.product(THRESHOLDS, ("max", "mean"), ("encoded", "previous"), (None, 0, 40, 10**6))
        for pick in rng.permutation(np.array(list(settings), dtype=object))[:5]:
            threshold, metric, reference, limit = pick
            chosen = DifferentialSettings(threshold, metric, limit, None, reference)
            paths |= set(check_equal(frames, compared, patch_size, chosen))
    assert {"full", "cached", "partial"} <= paths


def test_random_frames_of_changing_size_are_traced_as_the_encoder_does():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (23, 37, 3), dtype=np.uint8)
    frames = [base]
    for _ in range(30):
        frame = frames[-1].copy()
        y, x = rng.integers(0, 20), rng.integers(0, 30)
        frame[y : y + 6, x : x + 9] = np.clip(frame[y : y + 6, x : x + 9].astype(int) + rng.integers(-9, 10), 0, 255)
        frames.append(base.copy() if rng.random() < 0.1 else frame)
    frames[11:14] = [frame[:20, :30] for frame in frames[11:14]]
    compared = compare_patches(frames, (4, 7))
    assert [len(run.shown) for run in compared] == [11, 3, 17]
    for threshold, metric, reference, limit in itertools.product(
        (0.0, 0.01, 0.03, 0.5), ("max", "mean"), ("encoded", "previous"), (None, 2)
    ):
        check_equal(frames, compared, (4, 7), DifferentialSettings(threshold, metric, limit, None, reference))


@pytest.mark.parametrize("metric", ["max", "mean"])
def test_any_two_contents_differ_by_the_very_number_of_the_difference_map(metric):
    frames = read_sequence(SCREENS / "fade").load()[::7]
    (run,) = compare_patches(frames, 48)
    for s, t in itertools.combinations(range(len(frames)), 2):
        exact = patch_difference_map(frames[s], frames[t], 48, metric=metric)
        np.testing.assert_array_equal(run.between(metric, run.shown[s], run.shown[t]).reshape(run.grid), exact)
        np.testing.assert_array_equal(run.between(metric, run.shown[t], run.shown[s]).reshape(run.grid), exact)


def test_a_repeated_content_is_kept_once():
    frames = [np.full((4, 4, 3), level, dtype=np.uint8) for level in (0, 9, 0, 0, 9, 5)]
    (run,) = compare_patches(frames, 2)
    assert run.counts.tolist() == [3] * 4
    assert run.shown[:, 0].tolist() == [0, 1, 0, 0, 1, 2]
