"""The benchmark of policies says what the notebook does, and its last line is for programs."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from conftest import ROOT, exit_code

from fvlm_lib.screens import policy_bench
from fvlm_lib.screens.measure import read_measured

IDLE = ROOT / "data" / "screens" / "terminal"


def test_a_row_for_each_policy_and_a_last_line_of_json(tmp_path, capsys):
    output = tmp_path / "new" / "terminal.parquet"
    arguments = [IDLE, "--tower", "random:clip-tiny", "--frames", 3, "--tolerances", 0.5, "--output", output]
    assert exit_code(policy_bench.main, *arguments) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["exact match"]["error_max"] == 0 and last["gated 0.5"]["n"] == 2
    assert len(pd.read_parquet(output)) == 3 * 5
    assert set(read_measured(output.parent, "terminal")["policy"]) == {
        "exact match",
        "pseudocode",
        "none",
        "gated 0.5",
        "budget 64",
    }


def test_frames_that_changed_by_chosen_policies(capsys):
    arguments = [IDLE, "--tower", "random:clip-tiny", "--changed", 2, "--policies", "exact", "gated", "--tolerances", 0]
    assert exit_code(policy_bench.main, *arguments) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name for name, facts in last.items() if isinstance(facts, dict)} == {"exact match", "gated 0"}
    assert last["gated 0"]["n"] == 2 and last["gated 0"]["kept_bytes"] > 0 and last["gated 0"]["first"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or directory"),
        ([IDLE, "--frames", "1"], "gives 1 frame; what is kept shows from the second on"),
        ([IDLE, "--policies", "mine"], "--policies: invalid choice: 'mine'"),
        ([IDLE, "--size", "800"], "--size is '800'; it must be width and height in pixels, such as 1280x800"),
        ([IDLE, "--tolerances", "nan"], "--tolerances is nan; it must be "),
        ([IDLE, "--settings", "nowhere.yaml"], "there is no settings file nowhere.yaml"),
        ([IDLE, "--output", "a.csv"], "--output is a.csv; it is a table, so its name must end in .parquet"),
        ([IDLE, "--output", IDLE / "actions.json" / "a.parquet"], "is a file, not a folder"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, arguments, message):
    assert exit_code(policy_bench.main, "--tower", "random:clip-tiny", *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("fvlm bench-policies: ") and message in printed and printed.count("\n") == 1
