"""The benchmark of a shared encode ends in a line for programs."""

from __future__ import annotations

import json

import pytest
from conftest import DEMO, exit_code

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--num-tokens", "100000"], "take 100008 positions; the language model of "),
        (["--num-tokens", "249"], "take 257 positions; the language model of "),
        (["--repeats", "0"], "--repeats is 0; it must be at least 1"),
        (["--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (["--threads", "100000"], "--threads is 100000; it must be at most 1024"),
        (["--device", "bogus"], "--device is bogus; it must be auto, cpu"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, arguments, message):
    assert exit_code(bench.main, "--checkpoint", DEMO / "S-S" / "step_0100", *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("fvlm bench: ") and message in printed and printed.count("\n") == 1
