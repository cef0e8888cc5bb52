"""What is timed of a foveated stream: how much of a frame is new, which bin it is in, and what a full prefill reads."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_model
from transformers import DynamicCache

from fvlm_lib.foveated import bench
from fvlm_lib.foveated.stream import FoveatedStream
from fvlm_lib.vision.patches import compute_patch_diff
from fvlm_lib.vision.settings import DifferentialSettings


@pytest.mark.parametrize("count", [0, 1, 7, 12])
def test_a_frame_changes_in_as_many_patches_as_are_asked_for(count):
    generator = torch.Generator().manual_seed(0)
    frame = bench.changing_frame(torch.zeros(3, 24, 32), 12, 8, generator)
    changed = compute_patch_diff(
        frame / 2, bench.changing_frame(frame, count, 8, generator) / 2, 8, 0.0, mean=0.5, std=1
    )
    assert int(changed.sum()) == count


def test_the_language_model_reads_all_patch_tokens_each_through_one_layer():
    model = tiny_model()
    frame = torch.rand(3, 16, 16)
    past = bench.prefill_patches(model, frame)
    assert past.get_seq_length() == 4
    with torch.no_grad():
        patches = model.encoder.dino(frame[None]).last_hidden_state[:, 1:]  # behind the CLS token
        again = DynamicCache(config=model.llm.config)
        for patch in patches.split(1, dim=1):  # one position after the other
            model.run_llm(model.dino_to_llm(patch), None, again)
    for layer, expected in zip(past.layers, again.layers, strict=True):
        torch.testing.assert_close(layer.keys, expected.keys)
        torch.testing.assert_close(layer.values, expected.values)


@pytest.mark.parametrize(
    ("share", "name"),
    [
        (0.0, "0% changed"),
        (1 / 576, "up to 1% changed"),
        (0.01, "up to 1% changed"),
        (0.0101, "up to 5% changed"),
        (0.05, "up to 5% changed"),
        (0.2, "up to 20% changed"),
        (0.75, "above 20% changed"),
        (1.0, "above 20% changed"),
    ],
)
def test_the_bin_of_a_share_ends_with_its_limit(share, name):
    assert bench.bin_of(share) == name


def test_every_way_sees_every_frame_after_the_first_in_order():
    model = tiny_model()
    updated = FoveatedStream(model, DifferentialSettings(diff_threshold=0.0))
    first = torch.zeros(3, 16, 16)
    corner, other = first.clone(), torch.full((3, 16, 16), 0.5)
    corner[:, :8, :8] = 1.0
    frames, seen = [first, first, corner, corner, other], []
    times = bench.time_recording(updated, {bench.PLAIN: seen.append}, frames, warmup=2, progress=False)
    assert len(seen) == 2 + 4
    for before, warming in [(first, seen[0]), (seen[0], seen[1])]:  # a twentieth of 4 patches is one
        assert int(compute_patch_diff(before, warming, 8, 0.0, mean=0.5, std=0.5).sum()) == 1
    assert all(torch.equal(frame, expected) for frame, expected in zip(seen[2:], frames[1:], strict=True))
    updates = times[times["changed_patches"].notna()]
    assert updates["name"].tolist() == ["0% changed", "above 20% changed", "0% changed", "above 20% changed"]
    assert updates["changed_patches"].tolist() == [0, 1, 0, 4]
    assert updates["round"].tolist() == times.loc[times["name"] == bench.PLAIN, "round"].tolist() == [1, 2, 3, 4]
    assert updated.num_frames == 5  # those that warm up are forgotten, and not counted
    assert updated.encoder.statistics.frames == {"full": 2, "partial": 1, "cached": 2, "skipped": 0, "fallback": 0}

    table = bench.summarize_stream(times, {bench.PLAIN: 4}, frame_rate=0.5)
    assert table.index.tolist() == [bench.PLAIN, "0% changed", "above 20% changed"]
    assert table["n"].tolist() == [4, 2, 2]
    assert table["changed_patches"].tolist()[1:] == [0, 2.5]
    assert table["positions"].tolist() == [4, 1, 1] and table["positions_a_minute"].tolist() == [120, 30, 30]
    assert (table["ms"] > 0).all() and table.loc[bench.PLAIN, "ratio"] == 1
    paired = times.pivot(index="round", columns="name", values="ms")
    ratios = (paired["0% changed"] / paired[bench.PLAIN]).dropna()
    assert len(ratios) == 2 and table.loc["0% changed", "ratio"] == pytest.approx(ratios.mean())
