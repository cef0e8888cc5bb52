"""Text screens answered: prompts, streams by every prefill, the command and what it refuses; policies measured."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from conftest import ROOT

from fvlm_lib.data.text_screens import KINDS, text_screen
from fvlm_lib.vlm import prefill_bench, text
from fvlm_lib.vlm.prefill_measure import PLACES, compared_policies, measure_prefill, summarize_prefill
from fvlm_lib.vlm.stream import Decoding
from fvlm_lib.vlm.text_models import TextModel, load_text_model
from fvlm_lib.vlm.text_stream import TextStream

MODEL = str(ROOT / "checkpoints" / "text-screens")
LINES = [f"line {letter}: {number}" for number, letter in enumerate("abcdefgh", start=10)]
SCREENS = [
    "\n".join(LINES),
    "\n".join(LINES),
    "\n".join([*LINES[:3], "line d: 99", *LINES[4:]]),
    "\n".join(LINES[1:] + ["line i: 18"]),
    "",
    "\n".join(LINES[:2]),
]


@pytest.fixture(scope="module")
def model() -> TextModel:
    return load_text_model(MODEL)


def test_a_prompt_knows_which_tokens_are_of_the_screen(model):
    prompt = model.prompt("anchor: open\nbell: 42", "Copy the line of bell.", "bell:")
    observed = [token for token, of_screen in zip(prompt.input_ids, prompt.observed, strict=True) if of_screen]
    assert model.tokenizer.decode(observed).split() == ["anchor:", "open", "bell:", "42"] or (
        "".join(model.tokenizer.decode(observed).split()) == "anchor:openbell:42"
    )
    assert prompt.text.endswith("bell:") and "Copy the line of bell." in prompt.text
    assert not model.prompt("", "What?").observed.any()


def test_answers_are_told_apart_by_one_token(model):
    prompt = model.prompt("bell: 42", "Copy the line of bell.", "bell:")
    begun, answer, other = model.telling_token(prompt, "42", "17")
    assert answer != other and begun.input_ids[: len(prompt.input_ids)] == prompt.input_ids
    assert model.telling_token(prompt, "42", "42")[1] == model.telling_token(prompt, "42", "17")[1]
    with pytest.raises(ValueError, match="not told apart"):
        model.telling_token(prompt, "42", "42 42")


def test_every_exact_prefill_says_the_same(model):
    """The decoding goes on from whatever was kept, with beams and sampling, too."""
    for decoding in (Decoding(8), Decoding(6, num_beams=3), Decoding(6, temperature=1.0, seed=3)):
        streams = [
            TextStream(model, "Copy the line of d.", prefill=prefill, prefill_tolerance=tolerance, decoding=decoding)
            for prefill, tolerance in (("full", None), ("exact", None), ("gated", 0.0))
        ]
        for number, screen in enumerate(SCREENS):
            full, *others = [stream.answer(screen, number) for stream in streams]
            assert all(answer.token_ids == full.token_ids for answer in others)
            assert (full.prefill_path, full.prefill_rows, full.reused_tokens) == ("full", 1.0, 0)
    exact, gated = streams[1:]
    assert gated.prefill_totals.frames["partial"] == 4 and gated.prefill_totals.frames["cached"] == 1
    assert gated.prefill_totals.mean_rows <= exact.prefill_totals.mean_rows


def test_checks_hold_what_is_kept_against_a_full_computation(model):
    for decoding in (Decoding(4), Decoding(4, temperature=1.0)):
        options = {"prefill": "gated", "prefill_tolerance": 1e3, "decoding": decoding, "check_every": 1}
        loose = TextStream(model, "Copy the line of d.", **options)
        strict = TextStream(model, "Copy the line of d.", **options, max_kl=1e-9)
        full = TextStream(model, "Copy the line of d.", prefill="full", decoding=decoding)
        for number, screen in enumerate(SCREENS[:4]):
            found, wanted = strict.answer(screen, number), full.answer(screen, number)
            assert found.token_ids == wanted.token_ids  # answered from the full computation where the check failed
            assert loose.answer(screen, number).check.failed is False
        assert loose.check_totals.count == strict.check_totals.count == 4
        assert loose.check_totals.largest_kl > 1e-9 and strict.check_totals.failed >= 1
        assert sum(strict.prefill_totals.frames.values()) == 4
    with pytest.raises(ValueError, match="max_kl is of checks"):
        TextStream(model, "Which?", max_kl=0.1)


def test_a_screen_beyond_the_context_is_one_sentence(model):
    stream = TextStream(model, "What?", prefill="gated")
    with pytest.raises(ValueError, match=r"the prompt of screen 3 has \d+ tokens, with an answer of up to 32"):
        stream.answer("\n".join(LINES * 200), 3)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        code = text.main(list(arguments))
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


def test_the_command(tmp_path, capsys):
    stream, output = tmp_path / "screens.jsonl", tmp_path / "answers.jsonl"
    stream.write_text("".join(json.dumps({"text": screen}) + "\n" for screen in SCREENS))
    options = ("--model", MODEL, "--stream", str(stream), "--prefill", "gated", "--max-new-tokens", "4")
    code, out, _ = run(capsys, *options, "--output", str(output))
    assert code == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["screen"] for row in rows] == list(range(len(SCREENS)))
    assert [row["prefill_path"] for row in rows[:3]] == ["full", "cached", "partial"]
    assert len(out.splitlines()) == len(SCREENS) + 2 and "6 screens: 1 full" in out
    code, _, err = run(capsys, *options, "--output", str(output))
    assert code and f"{output} exists; name another --output, or remove it" in err
    code, _, err = run(capsys, "--model", MODEL, "--stream", str(stream), "--prefill-tolerance", "0.1")
    assert code and "--prefill-tolerance is of --prefill gated, but --prefill is exact; leave one out" in err
    code, _, err = run(capsys, "--model", MODEL, "--stream", str(tmp_path / "none.jsonl"))
    assert code and f"there is no file {tmp_path / 'none.jsonl'}" in err


def test_policies_are_measured_beside_the_models_own_prefill(model):
    """Exact ones at no distance from it; counts and means as the rows say."""
    pairs = [text_screen(kind, index, lines=12, seed=1) for kind in KINDS for index in range(2)]
    policies = compared_policies([0.0, 0.5])
    rows = measure_prefill(model, pairs, policies, progress=False)
    assert len(rows) == len(pairs) * len(policies)
    exact = rows[rows["policy"].isin(["exact", "gated 0"])]
    assert exact["kl"].max() < 1e-6 and exact["agrees"].all() and (exact["right"] == exact["right_full"]).all()
    layers = model.model.config.num_hidden_layers
    assert all(reach.shape == (layers * PLACES,) and 0 <= reach.min() <= reach.max() <= 1 for reach in rows["reach"])
    assert not rows[~rows["asks"]]["stale"].any()
    table = summarize_prefill(rows).set_index("policy")
    for name, group in rows.groupby("policy"):
        assert table.loc[name, "kl"] == pytest.approx(group["kl"].mean())
        assert table.loc[name, "stale"] == group["stale"].sum() and table.loc[name, "n"] == len(pairs)
        assert table.loc[name, "rows_low"] <= table.loc[name, "rows"] <= table.loc[name, "rows_high"]
    assert table.loc["gated 0.5", "rows"] < table.loc["gated 0", "rows"]
    assert {*summarize_prefill(rows, ("policy", "kind"))["kind"]} == {*KINDS}


def test_the_benchmark_prints_tables_and_a_line_for_programs(tmp_path, capsys):
    output = tmp_path / "rows.parquet"
    options = ["--model", MODEL, "--screens", "1", "--lines", "8", "--tolerances", "0", "0.1", "--gated-only"]
    assert prefill_bench.main([*options, "--output", str(output)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [line["policy"] for line in last["results"]] == ["gated 0", "gated 0.1"]
    assert len(pd.read_parquet(output)) == 2 * len(KINDS)


def test_a_model_without_a_chat_template_reads_the_screen_as_it_is(model):
    plain = TextModel("plain", model.model, _without_template(model.tokenizer))
    assert plain.prompt("bell: 42", "Which?", "It is").text == "bell: 42\n\nWhich?\nIt is"
    stream = TextStream(plain, "Which?", prefill="gated", prefill_tolerance=0.0, decoding=Decoding(2))
    with torch.no_grad():
        ids = torch.tensor([plain.prompt(SCREENS[0], "Which?").input_ids])
        wanted = int(model.model(ids).logits[0, -1].argmax())
    assert stream.answer(SCREENS[0]).token_ids[0] == wanted


def _without_template(tokenizer):
    import copy

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None
    return tokenizer
