"""Answers about drawn screens that change: cases are as they say, counts are exact, and the notebook runs."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy.stats import binomtest

from fvlm_lib.data.drawn_screens import draw
from fvlm_lib.data.screen_questions import right_answer
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vlm.reader_measure import (
    CASES,
    compared_reuse,
    draw_cases,
    draw_timed,
    frames_of,
    measure_reader,
    summarize_reader,
)
from fvlm_lib.vlm.vlms import load_vlm

READER = ROOT / "checkpoints" / "demo" / "reader"


@pytest.fixture(scope="module")
def drawn():
    return draw_cases(2, seed=3)


# ---- cases -------------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_cases(drawn):
    assert draw_cases(2, seed=3) == drawn
    assert [case for case, _ in drawn] == [*CASES, *CASES]
    assert draw_cases(1, seed=3) == drawn[: len(CASES)]
    pairs = [pair for _, pair in drawn]
    assert all(one != other for one, other in zip(pairs[: len(CASES)], pairs[len(CASES) :], strict=True))
    assert all(one != other for one, (_, other) in zip(pairs[: len(CASES)], draw_cases(1, seed=4), strict=True))


def test_every_pair_is_of_its_case_and_its_answers_are_right(drawn):
    for case, pair in drawn:
        assert (pair.change, pair.question.kind, pair.asked) == (case.change, case.question, case.asked)
        assert pair.old == right_answer(pair.question, pair.before)
        assert pair.new == right_answer(pair.question, pair.after)
        assert pair.before != pair.after and (pair.old != pair.new) == case.asked
        assert (pair.new is None) == case.gone


def test_one_screen_of_each_kind_of_change_is_timed_and_none_that_dissolves():
    timed = draw_timed(seed=3)
    assert {case.change for case, _ in timed} == {case.change for case in CASES}
    assert len(timed) == len({case.change for case in CASES}) and all(case.frames == 1 for case, _ in timed)


def test_a_dissolve_has_frames_between_that_a_threshold_does_not_tell_from_their_neighbours(drawn):
    least = round(DifferentialSettings().diff_threshold * 255)
    for case, pair in drawn:
        frames = [frame.astype(int) for frame in frames_of(case, pair)]
        assert len(frames) == (25 if case.name == "dissolve" else 2)
        np.testing.assert_array_equal(frames[0], draw(pair.before))
        np.testing.assert_array_equal(frames[-1], draw(pair.after))
        steps = [int(abs(after - before).max()) for before, after in itertools.pairwise(frames)]
        if case.name == "dissolve":
            assert 0 < max(steps) <= least < abs(frames[-1] - frames[0]).max()
        else:
            assert steps[0] > least


# ---- counts ------------------------------------------------------------------------------------------

SCREENS = {  # policy -> of each of four screens, the last two of which are asked: is right, is stale; first token, ms
    "full": [(True, False, 40), (False, False, 40), (True, False, 40), (True, False, 80)],
    "gated 0.1": [(True, False, 10), (True, False, 20), (False, True, 40), (False, False, 10)],
    "none": [(False, False, 40), (False, False, 40), (False, True, 40), (False, True, 40)],
}
ROWS = pd.DataFrame(
    [
        {
            "case": "value" if index % 2 else "box", "asked": index >= 2, "gone": False, "index": index,
            "policy": policy, "answer": str(right), "is_right": right, "is_stale": stale,
            "rows": 0.25 * (index + 1), "first_token_ms": ms,
        }
        for index in range(4)
        for policy, (right, stale, ms) in ((policy, SCREENS[policy][index]) for policy in SCREENS)
    ]
)  # fmt: skip


def test_right_broken_and_stale_answers_are_counted_exactly():
    table = summarize_reader(ROWS)
    assert [*table["policy"]] == ["full", "gated 0.1", "none"]
    assert table["n"].tolist() == [4, 4, 4] and table["asked"].tolist() == [2, 2, 2]
    assert table["right"].tolist() == [0.75, 0.5, 0.0]
    assert table["broken"].tolist() == [0, 2, 3], "right in full, and not so; the second screen is wrong in full too"
    assert table["stale"].tolist() == [0.0, 0.5, 1.0], "of the two that are asked"
    assert table["rows"].tolist() == [0.625] * 3
    assert table["first_token_ms"].tolist() == [40, 15, 40]
    assert table["speedup"].tolist() == [1, 3, 1], "medians of 4, 2, 1, 8 and of 1, 1, 1, 2"
    for name, tries in (("right", 4), ("stale", 2)):
        for _, row in table.iterrows():
            low, high = binomtest(round(row[name] * tries), tries).proportion_ci(method="wilson")
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low, high))


def test_by_case_a_group_of_which_nothing_is_asked_has_no_share_of_stale_answers():
    table = summarize_reader(ROWS[ROWS["index"] < 3], ("case", "policy")).set_index(["case", "policy"])
    assert table.loc[("value", "none"), ["n", "asked", "broken"]].tolist() == [1, 0, 0]
    assert np.isnan(table.loc[("value", "none"), "stale"])
    assert table.loc[("value", "none"), ["stale_low", "stale_high"]].tolist() == [0, 1]
    assert table.loc[("box", "none"), ["n", "asked", "broken", "stale"]].tolist() == [2, 1, 2, 1]


def test_answers_about_what_is_gone_are_counted_apart():
    said = {"full": ("17", False), "gated 0.1": ("17", False), "none": ("42", True)}
    gone = pd.DataFrame(
        {
            "case": "box", "asked": True, "gone": True, "index": index, "policy": policy, "answer": answer,
            "is_right": False, "is_stale": stale, "rows": 1.0, "first_token_ms": 1000,
        }
        for index in (4, 5)
        for policy, (answer, stale) in said.items()
    )  # fmt: skip
    without, table = summarize_reader(ROWS), summarize_reader(pd.concat([ROWS, gone], ignore_index=True))
    counted = ["gone", "gone_stale", "gone_as_full"]
    pd.testing.assert_frame_equal(table.drop(columns=counted), without.drop(columns=counted))
    assert without[counted].to_numpy().tolist() == [[0, 0, 0]] * 3
    assert table[counted].to_numpy().tolist() == [[2, 0, 2], [2, 0, 2], [2, 2, 0]]
    by_case = summarize_reader(pd.concat([ROWS, gone], ignore_index=True), ("case", "policy"))
    assert by_case.set_index(["case", "policy"]).loc[("box", "none"), counted].tolist() == [2, 2, 0]
    assert by_case.set_index(["case", "policy"]).loc[("value", "none"), counted].tolist() == [0, 0, 0]


# ---- measuring ---------------------------------------------------------------------------------------


def test_with_tolerance_0_every_answer_is_the_one_with_nothing_kept(drawn):
    compared = {name: reuse for name, reuse in compared_reuse([0.0]).items() if name in ("full", "none", "gated 0")}
    cases = [(case, pair) for case, pair in drawn[: len(CASES)] if case.name in ("value", "theme", "scroll")]
    rows = measure_reader(load_vlm(str(READER)), cases, compared, progress=False)
    assert len(rows) == 3 * len(cases) and rows["policy"].unique().tolist() == [*compared]
    answers = rows.pivot(index="index", columns="policy", values="answer")
    assert (answers["gated 0"] == answers["full"]).all()
    full = rows[rows["policy"] == "full"]
    assert full["right"].tolist() == [pair.new for _, pair in cases] and (full["rows"] == 1).all()
    assert (rows["is_right"] == (rows["answer"] == rows["right"])).all()
    kept = rows[rows["policy"] == "none"]
    assert ((kept["changed"] > 0) & (kept["changed"] <= 1)).all() and (kept["first_token_ms"] > kept["encode_ms"]).all()


@pytest.mark.slow
def test_the_notebook_writes_table_and_figure_with_times_of_another_model_beside(tmp_path):
    result, figure = tmp_path / "results" / "r.parquet", tmp_path / "plots" / "r.png"
    parameters = {
        "model": str(READER), "num_screens": 1, "tolerances": [],
        "times_model": str(ROOT / "checkpoints/demo/llava-tiny"), "device": "cpu",
        "result": str(result), "figure": str(figure),
    }  # fmt: skip
    written = [result, *(result.with_suffix(f".{end}") for end in ("csv", "md", "tex")), figure]
    written += [figure.with_suffix(f".{end}") for end in ("pdf", "json")]
    command = [sys.executable, "-m", "fvlm_lib", "run", "notebooks/stale_answers.ipynb"]
    command += ["--output", str(tmp_path / "run.ipynb"), "--parameters", json.dumps(parameters)]
    command += ["--results", *map(str, written)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows, policies = pd.read_parquet(result), compared_reuse([])
    assert rows.groupby("model", sort=False).size().to_dict() == {
        parameters["model"]: len(CASES) * len(policies), parameters["times_model"]: len(draw_timed()) * len(policies),
    }  # fmt: skip
    table = pd.read_csv(written[1])
    read = summarize_reader(rows[rows["model"] == parameters["model"]])
    assert table["policy"].tolist() == [*policies] and table["right"].tolist() == pytest.approx(read["right"].tolist())
    timed = summarize_reader(rows[rows["model"] == parameters["times_model"]])
    assert table["speedup_times"].tolist() == pytest.approx(timed["speedup"].tolist())
