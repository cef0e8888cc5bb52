"""The benchmark of a foveated stream ends in a line for programs."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import DEMO, exit_code

from fvlm_lib.foveated import bench
from fvlm_lib.vision.patches import compute_patch_diff


def test_a_row_for_each_share_and_a_last_line_of_json(capsys, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text("{tolerance: 0.1, max_changed_patches: 8}")
    arguments = ["--checkpoint", str(DEMO / "S-S" / "step_0100"), "--repeats", "2", "--warmup", "1"]
    assert bench.main([*arguments, "--shares", "0", "0.01", "0.5", "1", "--settings", str(settings)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["benchmark"] == "stream"
    assert last["changed_patches"] == {"0% changed": 0, "1% changed": 1, "50% changed": 8, "100% changed": 16}
    assert last["frames"] == {"full": 1 + 3, "partial": 6, "cached": 3}
    assert last["plain stream"]["ratio"] == 1 and last["0% changed"]["n"] == 2
    assert last["language model alone"]["ms"] > 0 and last["100% changed"]["faster"] > 0


@pytest.mark.parametrize("count", [0, 1, 7, 12])
def test_a_frame_changes_in_as_many_patches_as_are_asked_for(count):
    generator = torch.Generator().manual_seed(0)
    frame = bench.changing_frame(torch.zeros(3, 24, 32), 12, 8, generator)
    changed = compute_patch_diff(
        frame / 2, bench.changing_frame(frame, count, 8, generator) / 2, 8, 0.0, mean=0.5, std=1
    )
    assert int(changed.sum()) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--checkpoint", "random:nothing"], "there is no random:nothing; there are random:dinov2-small-224, "),
        (["--shares", "1.5"], "--shares is 1.5; it must be at most 1"),
        (["--repeats", "300"], "so many rounds and shares are 1819 frames; the language model has 256 positions"),
        (["--pack-memory", "1"], "--pack-memory is of --pack auto, and --pack is no; leave one out"),
        (["--settings", "nowhere.yaml"], "there is no settings file nowhere.yaml"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, arguments, message):
    assert exit_code(bench.main, "--checkpoint", DEMO / "S-S" / "step_0100", *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("fvlm bench-stream: ") and message in printed and printed.count("\n") == 1
