"""The benchmark of a shared encode ends in a line for programs."""

from __future__ import annotations

import json

from conftest import DEMO

from fvlm_lib.gap import bench


def test_the_last_line_is_json(capsys):
    arguments = [
        "--checkpoint",
        str(DEMO / "S-S" / "step_0100"),
        "--repeats",
        "2",
        "--warmup",
        "1",
        "--batch-size",
        "2",
    ]
    assert bench.main(arguments) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["benchmark"] == "shared_encode"
    assert last["all modes, shared encode"]["n"] == 2
    assert bench.main(["--checkpoint", "nowhere"]) == 2
