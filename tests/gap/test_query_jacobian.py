"""The norm of the query recurrence's Jacobian: held against whole Jacobians by autograd, and what is made of it."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from captioned import write_folder
from conftest import DEMO, tiny_batch, tiny_model

from fvlm_lib.data.videos import ProceduralVideos
from fvlm_lib.foveated.passes import parallel_pass
from fvlm_lib.foveated.watching import watch
from fvlm_lib.gap.evaluation import float64_copy
from fvlm_lib.gap.gap import open_evaluation
from fvlm_lib.gap.query_jacobian import COLUMNS, jacobian_norms, score_norms, summarize_norms

EXACT = {"tolerance": 1e-4, "iterations": 300}  # off by half of it at most, as the norms are held to


class TinyVideos(ProceduralVideos):
    """Random frames and captions for `tiny_model`, in place of drawn ones."""

    def batch(self, start, stop):
        drawn = [tiny_batch(seed=i, size=1, frames=4) for i in range(start, stop)]
        frame_mask = torch.ones(len(drawn), 4, dtype=torch.long)
        frame_mask[[i % 3 == 2 for i in range(start, stop)], 2:] = 0  # every third has two frames
        inputs = {name: torch.cat([one[name] for one in drawn]) for name in drawn[0]}
        return {**inputs, "frame_mask": frame_mask}


@pytest.fixture(scope="module")
def exact():
    return float64_copy(tiny_model())


def test_the_norm_is_the_largest_singular_value():
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(5, 7, 6, generator=generator, dtype=torch.float64)
    turn, values, other = torch.linalg.svd(draw, full_matrices=False)
    values[0, :2] = 3.0  # equal ones
    values[1, 1:] = 0.0  # rank one
    values[2] = 0.0
    values[3, :2] = torch.tensor([2.0, 1.99])
    matrices = turn @ torch.diag_embed(values) @ other
    norms, residual = jacobian_norms(
        lambda x: (matrices @ x[..., None])[..., 0], torch.zeros(5, 6, dtype=torch.float64), 0, 1e-9, 3000
    )
    torch.testing.assert_close(norms, values.max(dim=1).values, rtol=1e-8, atol=0)
    assert (residual <= 1e-9).all() and residual[2] == 0


def test_a_row_does_not_depend_on_the_others_and_rough_norms_are_as_near_as_is_told():
    matrices = torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    point = torch.zeros(4, 5, dtype=torch.float64)
    norms, residual = jacobian_norms(lambda x: (matrices @ x[..., None])[..., 0], point, tolerance=0.05)
    alone, _ = jacobian_norms(lambda x: (matrices[2:3] @ x[..., None])[..., 0], point[:1], tolerance=0.05)
    torch.testing.assert_close(norms[2:3], alone, rtol=1e-12, atol=0)
    largest = torch.linalg.matrix_norm(matrices, 2)
    assert (norms <= largest).all() and (norms >= largest * (1 - 0.05)).all()
    assert (residual <= 0.05).all()


def test_the_point_at_which_a_function_is_not_linear_counts():
    norms, _ = jacobian_norms(lambda x: x**2, torch.tensor([[1.0, -3.0], [0.5, 0.0]], dtype=torch.float64), 0, 1e-9)
    torch.testing.assert_close(norms, torch.tensor([6.0, 1.0], dtype=torch.float64))


def test_norms_are_those_of_the_whole_jacobian_of_a_pass_at_the_sequential_queries(exact):
    """Of a parallel pass, which is other code, the block of query t + 1 by query t; in batches, padded too."""
    table = score_norms(exact, TinyVideos(), 0, 4, batch_size=4, **EXACT, progress=False)
    assert table["sample"].tolist() == [0, 0, 0, 1, 1, 1, 2, 3, 3, 3]
    assert table["frame"].tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 1, 2]
    batch = exact.encode_batch(**TinyVideos().batch(0, 4))
    with torch.no_grad():
        queries = watch(exact, batch.patch_cache, batch.frame_mask).queries[:, 0]
    whole = torch.autograd.functional.jacobian(
        lambda asking: parallel_pass(exact, batch, asking, fine=True, score=False)[1], queries
    )  # (B, T, query_dim, B, T, query_dim)
    for row in table.itertuples():
        i, t = row.sample, row.frame
        norm = torch.linalg.matrix_norm(whole[i, t + 1, :, i, t], 2).item()
        assert row.norm == pytest.approx(norm, rel=1e-4)
        sizes = queries[i].norm(dim=-1)
        assert row.relative_norm == pytest.approx(norm * (sizes[t] / sizes[t + 1]).item(), rel=1e-4)
    assert table["norm"].max() > 2 * table["norm"].min() > 0, "else they are hard to tell apart"


@pytest.mark.parametrize("config", [{"mode_tokens": True}, {"visual_norm": "legacy"}, {"deep_query": False}])
def test_every_kind_of_model_has_the_norm_that_autograd_gives_the_first_query(config):
    model = float64_copy(tiny_model(**config))
    table = score_norms(model, TinyVideos(), 0, 3, batch_size=3, **EXACT, progress=False)
    for i in range(3):
        inputs = TinyVideos().batch(i, i + 1)
        frame_mask = inputs["frame_mask"].bool()
        cache = model.encode_frames(inputs["pixel_values"], frame_mask)
        query = watch(model, cache, frame_mask).queries[0, 0, 1]
        whole = torch.cat([torch.autograd.grad(entry, model.q_init, retain_graph=True)[0] for entry in query])
        found = table[(table["sample"] == i) & (table["frame"] == 0)]["norm"].item()
        assert found == pytest.approx(torch.linalg.matrix_norm(whole, 2).item(), rel=1e-4)


def test_batches_and_seeds_do_not_change_a_norm(exact):
    def score(size: int, seed: int) -> pd.DataFrame:
        return score_norms(exact, TinyVideos(), 1, 3, batch_size=size, seed=seed, **EXACT, progress=False)

    first = score(2, 0)
    pd.testing.assert_frame_equal(score(1, 9).drop(columns="residual"), first.drop(columns="residual"), rtol=1e-4)


def test_half_precision_is_computed_in_float32():
    model = tiny_model()
    half = score_norms(copy.deepcopy(model).bfloat16(), TinyVideos(), 0, 2, progress=False)
    rounded = copy.deepcopy(model).bfloat16().float()
    expected = score_norms(rounded, TinyVideos(), 0, 2, progress=False)
    pd.testing.assert_frame_equal(half, expected, rtol=1e-6)


def test_videos_of_several_lengths_on_disk(tmp_path):
    write_folder(tmp_path, 3)  # the last of them of 5 frames in place of 8
    data = {"kind": "folder", "path": str(tmp_path), "max_frames": 8}
    model, videos = open_evaluation(DEMO / "S-S" / "step_3000", data)
    table = score_norms(model, videos, 0, 3, progress=False)
    assert table.groupby("sample").size().tolist() == [7, 7, 4]
    assert list(table) == list(COLUMNS) and (table["norm"] > 0).all() and (table["residual"] <= 0.01).all()


def test_nothing_asked_gives_no_rows(exact):
    assert score_norms(exact, TinyVideos(), 0, 0, progress=False).empty


def test_the_summary_is_of_sums_over_videos():
    rows = [(0, 0, 1.0, 2.0), (0, 1, 3.0, 2.0), (1, 0, 2.0, 4.0), (1, 1, 6.0, 0.0), (2, 0, 5.0, 1.0)]
    table = pd.DataFrame([dict(zip(COLUMNS, (*row, 0.001 * i), strict=True)) for i, row in enumerate(rows)])
    found = summarize_norms(table)
    assert found.norm.value == pytest.approx(17 / 5) and found.relative_norm.value == pytest.approx(9 / 5)
    assert found.norm.low < 17 / 5 < found.norm.high
    assert [(row["frame"], row["videos"], row["norm"], row["relative_norm"]) for row in found.by_frame] == [
        (0, 3, pytest.approx(8 / 3), pytest.approx(7 / 3)), (1, 2, 4.5, 1.0)
    ]  # fmt: skip
    assert found.by_frame[1]["norm_low"] < 4.5 < found.by_frame[1]["norm_high"]
    assert (found.num_videos, found.largest_residual) == (3, 0.004)
    alone = summarize_norms(table[table["frame"] == 0])
    assert alone.norm.value == pytest.approx(8 / 3) and len(alone.by_frame) == 1
    assert len(summarize_norms(table.drop(index=3)).by_frame) == 1, "of the second frame there is one video"


def test_what_cannot_be_is_named(exact):
    one = pd.DataFrame([dict(zip(COLUMNS, (0, 0, 1.0, 1.0, 0.0), strict=True))])
    with pytest.raises(ValueError, match="1 of the videos have two frames or more"):
        summarize_norms(one)
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        score_norms(exact, TinyVideos(), 0, 2, batch_size=0)
    for wrong in ({"tolerance": 0.0}, {"iterations": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            jacobian_norms(lambda x: x, torch.zeros(1, 2), **wrong)


def test_a_norm_that_is_no_number_names_the_sample():
    class OneBroken(TinyVideos):
        def batch(self, start, stop):
            batch = super().batch(start, stop)
            for i in range(start, stop):
                if i == 1:
                    batch["pixel_values"][i - start] = float("nan")
            return batch

    with pytest.raises(FloatingPointError, match="norm at frame 0 of sample 1, train-0-1, is nan"):
        score_norms(tiny_model(), OneBroken(), 0, 3, progress=False)
    assert np.isfinite(score_norms(tiny_model(), OneBroken(), 0, 1, progress=False)["norm"]).all()
