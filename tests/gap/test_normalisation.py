"""What of a legacy checkpoint's gap is its normalisation."""

from __future__ import annotations

import pytest
import torch
from conftest import DEMO

from fvlm_lib.data.videos import ProceduralVideos
from fvlm_lib.foveated.checkpoints import load_checkpoint
from fvlm_lib.gap.evaluation import score_videos
from fvlm_lib.gap.gap import summarize_gap
from fvlm_lib.gap.normalisation import normalisation_report, with_token_norm

VIDEOS = ProceduralVideos(split="test")


@pytest.fixture
def legacy():
    """Trained with a per-token norm, used with the legacy one: its true gap is that of the per-token norm."""
    model = load_checkpoint(DEMO / "S-S" / "step_3000")
    model.config.visual_norm = "legacy"
    return model


def test_the_report_tells_the_gaps_apart(legacy):
    per_sample = score_videos(legacy, VIDEOS, 0, 32, 16, (1,), progress=False)
    report = normalisation_report(legacy, VIDEOS, per_sample, batch_size=16, progress=False)
    assert list(report.index) == ["as is, in batches of 16", "one sample at a time", "per-token norm"]
    gaps = {"as is, in batches of 16": summarize_gap(per_sample).gap_nats}
    alone = score_videos(legacy, VIDEOS, 0, 32, 1, (1,), progress=False)
    gaps["one sample at a time"] = summarize_gap(alone).gap_nats
    own = load_checkpoint(DEMO / "S-S" / "step_3000")
    gaps["per-token norm"] = summarize_gap(score_videos(own, VIDEOS, 0, 32, 16, (1,), progress=False)).gap_nats
    for name, gap in gaps.items():
        row = report.loc[name]
        assert (row["gap"], row["gap_low"], row["gap_high"]) == pytest.approx((gap.value, gap.low, gap.high)), name
        assert row["loss_inference_fine"] - row["loss_training_fine"] == pytest.approx(gap.value), name
        assert row["part"] == pytest.approx(report["gap"].iloc[0] - gap.value), name
    first = report.iloc[0]
    assert (first["part"], first["part_low"], first["part_high"]) == (0, 0, 0)
    assert len({round(gap.value, 6) for gap in gaps.values()}) == 3, "the norms should differ, else this shows nothing"


def test_the_changed_norm_leaves_the_model_as_it_was(legacy):
    changed = with_token_norm(legacy)
    assert legacy.config.visual_norm == "legacy"
    assert changed.config.visual_norm == "token"
    assert changed.q_init is legacy.q_init
    batch = {key: value for key, value in VIDEOS.batch(0, 2).items()}
    with torch.no_grad():
        own = load_checkpoint(DEMO / "S-S" / "step_3000")
        torch.testing.assert_close(changed(**batch).nll, own(**batch).nll)


def test_other_norms_have_nothing_to_report():
    model = load_checkpoint(DEMO / "S-S" / "step_0100")
    with pytest.raises(ValueError, match="visual_norm is 'token'"):
        normalisation_report(model, VIDEOS, score_videos(model, VIDEOS, 0, 2, 2, (1,), progress=False))
