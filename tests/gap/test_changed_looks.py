"""Attention on what changed: counted by hand, against chance, over videos, and the same as of one video watched."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fvlm_lib.data.drawn_events import event_cells
from fvlm_lib.data.screen_videos import ScreenVideos
from fvlm_lib.data.videos import ProceduralVideos
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.train import build_model
from fvlm_lib.foveated.training_config import TrainingConfig
from fvlm_lib.gap.changed_looks import count_looks, score_looks, summarize_looks
from fvlm_lib.gap.fovea import changed_patches, shown_frames, watch_video

VIDEOS = ScreenVideos("test", num_frames=4)
MODES = ["coarse", "fine_1", "autoregressive"]


@pytest.fixture(scope="module")
def model() -> FoveatedVLM:
    sizes = {"vision_width": 16, "vision_heads": 2, "text_width": 16, "text_heads": 2, "text_mlp_width": 16}
    return build_model(TrainingConfig(**sizes, videos={"kind": "screens"}), VIDEOS, seed=0).eval()


def test_changed_patches_are_those_of_the_event():
    for index in range(10):
        frames = shown_frames(VIDEOS.batch(index, index + 1)["pixel_values"][0], VIDEOS)
        changed, sample = changed_patches(frames, (8, 8)), VIDEOS.sample(index)
        assert not changed[0].any()
        for t in range(1, 4):
            (before, _), (after, event) = sample[t - 1], sample[t]
            cells = event_cells(before.screen, after.screen, event).ravel()
            assert changed[t].any() == cells.any() and not (changed[t] & ~cells).any()


def test_a_pixel_of_one_grey_level_is_a_change_in_its_patch_alone():
    frames = np.zeros((3, 32, 48, 3), dtype=np.uint8)
    frames[1:, 31, 16, 2] = 1
    changed = changed_patches(frames, (2, 3))
    assert [np.flatnonzero(row).tolist() for row in changed] == [[], [4], []]


def test_counts_by_hand():
    changed = np.zeros((4, 4), dtype=bool)
    changed[1, 0] = changed[3, 0] = changed[3, 1] = True  # nothing in frame 2
    looks = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.2, 0.6, 0.1, 0.1], [0.5, 0.3, 0.1, 0.1]])
    # patch 0 is unchanged in frames 0 and 2: 0.15; patch 1 in 0, 1 and 2: 0.3
    expected = {"frames": 2, "on_changed": 0.7 + 0.8, "chance": 0.25 + 0.5, "elsewhen": 0.15 + (0.15 + 0.3)}
    assert count_looks(looks, changed) == pytest.approx(expected)
    changed[2] = True  # a frame of which everything changed says nothing
    assert count_looks(looks, changed)["frames"] == 2
    assert count_looks(looks, changed)["on_changed"] == pytest.approx(1.5)


def test_who_looks_everywhere_alike_is_at_chance_and_who_looks_at_changes_is_not():
    rng = np.random.default_rng(0)
    rows = []
    for sample in range(30):
        changed = rng.random((6, 9)) < 0.2
        changed[0] = False
        for mode, looks in (("alike", np.full((6, 9), 1 / 9)), ("there", np.where(changed, 1.0, 1e-9))):
            looks = looks / looks.sum(axis=1, keepdims=True)
            rows.append({"sample": sample, "mode": mode, **count_looks(looks, changed)})
    alike, there = summarize_looks(pd.DataFrame(rows)).to_dict("records")
    assert (alike["mode"], alike["videos"], there["mode"]) == ("alike", 30, "there")
    for name in ("share", "elsewhen"):
        assert alike[name] == pytest.approx(alike["chance"])
    assert alike["times_chance"] == pytest.approx(1) and alike["beyond_elsewhen"] == pytest.approx(0)
    assert alike["times_chance_high"] - alike["times_chance_low"] < 1e-6
    assert there["share"] == pytest.approx(1) and there["times_chance_low"] > 2 and there["beyond_elsewhen_low"] > 0.5


def test_many_videos_are_scored_as_each_is_watched(model):
    table = score_looks(model, VIDEOS, 0, 5, batch_size=3, progress=False)
    assert table["mode"].tolist() == MODES * 5 and table["sample"].tolist() == [i for i in range(5) for _ in MODES]
    for layer in (None, 1):
        table = score_looks(model, VIDEOS, 0, 5, batch_size=3, layer=layer, progress=False)
        for index in range(5):
            watched = watch_video(model, VIDEOS, index, progress=lambda items, desc: items)
            frames = watched.by_frame(layer)
            for mode in MODES:
                row = table[(table["sample"] == index) & (table["mode"] == mode)].iloc[0]
                counted = frames[(frames["mode"] == mode) & frames["changed_share"].between(0, 1, "neither")]
                assert row["frames"] == len(counted)
                assert row["on_changed"] == pytest.approx(counted["on_changed"].sum(), abs=1e-5)
                assert row["chance"] == pytest.approx(counted["changed_share"].sum())


def test_lag_asks_for_what_changed_before(model):
    whole, late = (score_looks(model, VIDEOS, 0, 12, lag=lag, progress=False) for lag in (0, 2))
    events = [[event.kind != "nothing" for _, event in VIDEOS.sample(i)[1:]] for i in range(12)]
    assert whole[whole["mode"] == "coarse"]["frames"].tolist() == [sum(kinds) for kinds in events]
    assert late[late["mode"] == "coarse"]["frames"].tolist() == [kinds[0] for kinds in events]
    by_frame = watch_video(model, VIDEOS, 0, progress=lambda items, desc: items)
    assert (score_looks(model, VIDEOS, 0, 2, lag=9, progress=False)["frames"] == 0).all()  # longer than the videos
    first, looks = by_frame.changed()[1], by_frame.on_patches("coarse")[0]
    assert late["on_changed"].iloc[0] == pytest.approx(looks[3][first].sum(), abs=1e-5)


def test_the_summary_is_of_sums_and_says_so_of_videos_that_have_none(model):
    table = score_looks(model, VIDEOS, 0, 12, num_fine=2, progress=False)
    summary = summarize_looks(table)
    assert summary["mode"].tolist() == ["coarse", "fine_1", "fine_2", "autoregressive"]
    coarse = table[table["mode"] == "coarse"].sum(numeric_only=True)
    row = summary.iloc[0]
    assert row["share"] == pytest.approx(coarse["on_changed"] / coarse["frames"])
    assert row["times_chance"] == pytest.approx(coarse["on_changed"] / coarse["chance"])
    assert (row["videos"], row["frames"]) == (12, coarse["frames"])
    for name in ("share", "chance", "elsewhen", "times_chance", "beyond_elsewhen"):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]


def test_noise_changes_everything_and_that_is_said(trained):
    noisy = score_looks(trained, ProceduralVideos("test"), 0, 3, progress=False)
    with pytest.raises(ValueError, match="none of the 3 videos has a frame in which some patches changed and others"):
        summarize_looks(noisy)
    clean = score_looks(trained, ProceduralVideos("test", noise_std=0.0), 0, 3, progress=False)
    assert (clean["frames"] == 7).all()


def test_wrong_numbers_are_named(model, monkeypatch):
    with pytest.raises(ValueError, match="layer is 2; the query walks through 2, so it must lie between 0 and 1"):
        score_looks(model, VIDEOS, 0, 2, layer=2)
    with pytest.raises(ValueError, match="lag is -1; it must be at least 0"):
        score_looks(model, VIDEOS, 0, 2, lag=-1)
    monkeypatch.setattr(model.config.vision_config, "patch_size", 48)
    with pytest.raises(ValueError, match="frames of 32 x 32 pixels are not made of the model's patches of 48 pixels"):
        score_looks(model, ProceduralVideos("test"), 0, 2, progress=False)
