from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from conftest import ROOT, disk_of, exit_code
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fvlm_lib.data.screens import ScreenSequence
from fvlm_lib.outputs import json_line
from fvlm_lib.schema import FITS
from fvlm_lib.vlm import predict, vlms
from fvlm_lib.vlm.answers import open_output
from fvlm_lib.vlm.assemble import random_llama

SCREENS = ROOT / "data" / "screens"
TIMES = {"preprocess_ms", "encode_ms", "prefill_ms", "decode_ms"}


@pytest.fixture
def sequence(tmp_path):
    """Six frames of the terminal, in a folder of their own."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(6):
        shutil.copy(SCREENS / "terminal" / f"frame_{index:04d}.png", folder)
    return folder


@pytest.fixture
def call(vlm_folders, tmp_path, monkeypatch):
    """Run the command line in-process on the tiny LLaVA, in a folder without settings."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, model: object = vlm_folders["llava"]) -> int:
        return exit_code(predict.main, "--model", model, "--max-new-tokens", 4, *arguments)

    return run


def rows(path: Path, timed: bool = False) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if timed or key not in TIMES} for line in lines]


def test_a_line_a_frame_on_the_terminal_and_in_the_file(call, sequence, tmp_path, capsys):
    out = tmp_path / "sub" / "answers.jsonl"
    assert call("--image-dir", sequence, "--output", out, "--diff-print-stats") == 0
    first, *answers = rows(out, timed=True)
    assert first["run"]["differential"]["diff_threshold"] == 0.05
    assert [row["file"] for row in answers] == [f"frame_{index:04d}.png" for index in range(6)]
    assert [row["path"] for row in answers] == ["full"] + ["partial"] * 5
    for row in answers:
        assert set(row) == TIMES | {
            "sequence", "frame", "file", "text", "path", "changed_patches", "num_patches", "prompt_tokens",
            "reused_tokens", "prefill_path", "prefill_rows", "prefill_owed", "new_tokens", "fallbacks",
        }  # fmt: skip
        assert all(row[time] > 0 for time in TIMES)
        assert row["num_patches"] == 256
    printed = capsys.readouterr()
    header, *lines = printed.out.splitlines()
    assert len(lines) == 6 + 2
    assert header.split()[:5] == ["sequence", "frame", "path", "changed/patches", "reused/tokens"]
    for line, row in zip(lines[:6], answers, strict=True):  # under their names
        assert line[header.index("path") :].startswith(row["path"])
        changed = f" {row['changed_patches']}/256"
        assert line[: header.index("changed/patches") + len("changed/patches")].endswith(changed)
    assert lines[6].startswith("6 frames: 1 full, 5 partial;")
    assert lines[7].startswith("6 prefills: 1 full, 5 exact;")
    assert "frame/s" in printed.err  # the progress bar


def test_every_way_of_naming_frames(call, sequence, tmp_path, capsys):
    files = sorted(sequence.iterdir())
    assert call("--image", files[0]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2  # a header and an answer
    out = tmp_path / "answers.jsonl"
    assert call("--images", files[3], files[1], "--output", out) == 0
    assert [row["file"] for row in rows(out)[1:]] == ["frame_0003.png", "frame_0001.png"]
    for name in ("a", "b", "c"):
        shutil.copytree(sequence, tmp_path / "root" / name)
    out = tmp_path / "all.jsonl"
    assert call("--sequence-root", tmp_path / "root", "--sequence-limit", 2, "--output", out) == 0
    answers = rows(out)[1:]
    assert [row["sequence"] for row in answers] == ["a"] * 6 + ["b"] * 6
    # the cache is reset: the second sequence is answered as the first was
    same = [{key: value for key, value in row.items() if key != "sequence"} for row in answers]
    assert same[:6] == same[6:]


@pytest.mark.parametrize("lines", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("torn", "prefill"),
    [
        (False, ["--disable-prefix-reuse"]),
        (True, ["--disable-prefix-reuse"]),
        (False, ["--prefill", "gated", "--prefill-tolerance", 0.3]),
        (True, ["--prefill", "gated", "--disable-differential"]),
    ],
)
def test_a_resumed_run_writes_what_an_uninterrupted_one_does(call, sequence, tmp_path, lines, torn, prefill):
    shutil.copytree(sequence, tmp_path / "root" / "a")
    shutil.copytree(sequence, tmp_path / "root" / "b")
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    asked = ["--sequence-root", tmp_path / "root", "--temperature", 1.5, *prefill]
    assert call(*asked, "--output", whole) == 0
    written = whole.read_text().splitlines(keepends=True)
    part.write_text("".join(written[:lines]) + (written[lines][:25] if torn else ""))
    assert call(*asked, "--output", part, "--resume") == 0
    assert rows(part) == rows(whole)


def test_resuming_what_is_done_or_not_begun(call, sequence, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    assert call("--image-dir", sequence, "--output", out, "--resume") == 0
    done = out.read_text()
    capsys.readouterr()
    assert call("--image-dir", sequence, "--output", out, "--resume") == 0
    assert out.read_text() == done
    assert capsys.readouterr().out == ""


ROWS = st.lists(st.fixed_dictionaries({"text": st.text(max_size=8)}), max_size=4)


def begun(folder, texts):
    """The sequence, the run and the whole output of as many frames as there are texts."""
    names = [f"{i}.png" for i in range(len(texts))]
    sequence = ScreenSequence("s", tuple(folder / name for name in names))
    rows = [{"sequence": "s", "frame": i, "file": name, **texts[i]} for i, name in enumerate(names)]
    run = {"model": "m", "prompt": "What's up, 你好?"}
    return sequence, run, [json_line({"run": run}), *map(json_line, rows)]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(texts=ROWS, share=st.floats(0, 1))
@example(texts=[{"text": "two\u2028lines\x85"}], share=1.0)
def test_a_file_that_is_cut_anywhere_goes_on_to_the_same_content(tmp_path_factory, texts, share):
    folder = tmp_path_factory.mktemp("cut")
    sequence, run, lines = begun(folder, texts)
    whole = b"".join(lines)
    (folder / "part.jsonl").write_bytes(whole[: round(share * len(whole))])
    with open_output(folder / "part.jsonl", run, [sequence], resume=True) as (write, done):
        for line in lines[1 + done :]:
            write(json.loads(line))
    assert (folder / "part.jsonl").read_bytes() == whole
    kept = whole[: round(share * len(whole))]
    assert done == max(0, kept.count(b"\n") - 1)  # nothing that was whole is answered again


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    texts=ROWS, line=st.integers(0, 4), content=st.sampled_from(["null", "[]", '"x"', "{", "[" * 100_000, "{}", "1"])
)
def test_a_line_that_is_something_else_is_refused_and_the_file_kept(tmp_path_factory, texts, line, content):
    folder = tmp_path_factory.mktemp("other")
    sequence, run, lines = begun(folder, texts)
    lines[line % len(lines)] = f"{content}\n".encode()
    (folder / "part.jsonl").write_bytes(b"".join(lines))
    message = r"part\.jsonl is .*so it cannot be resumed.*name another --output"
    with pytest.raises(ValueError, match=message), open_output(folder / "part.jsonl", run, [sequence], resume=True):
        pass
    assert (folder / "part.jsonl").read_bytes() == b"".join(lines)


def test_what_differs_from_a_run_is_named_by_its_key(tmp_path):
    run = {"decoding": {"seed": 0, "max_new_tokens": 4}, "prompt": "a"}
    with open_output(tmp_path / "a.jsonl", run, [], resume=False):
        pass
    for other, said in (
        ({"decoding": {"seed": 1, "max_new_tokens": 4}, "prompt": "a"}, r"its decoding\.seed is 0, now it is 1\)"),
        ({"decoding": None, "prompt": "a"}, r"its decoding is \{.*\}, now it is null\)"),
        ({**run, "prompt": "b" * 1000}, r'its prompt is "a", now it is "b{78}…\)'),
    ):
        with pytest.raises(ValueError, match=said), open_output(tmp_path / "a.jsonl", other, [], resume=True):
            pass


def test_ctrl_c_keeps_what_is_written(call, sequence, tmp_path, capsys, monkeypatch):
    out = tmp_path / "answers.jsonl"
    assert call("--image-dir", sequence, "--output", out) == 0
    expected = rows(out)
    out.unlink()
    load, loaded = vlms.load_vlm, []

    def interrupted_at_the_third_answer(*arguments):
        vlm = load(*arguments)
        calls = iter(range(1000))

        def interrupt(*_):
            if next(calls) == 2 * 4:  # four tokens an answer
                raise KeyboardInterrupt

        vlm.model.lm_head.register_forward_pre_hook(interrupt)
        loaded.append(vlm)
        return vlm

    monkeypatch.setattr(vlms, "load_vlm", interrupted_at_the_third_answer)
    assert call("--image-dir", sequence, "--output", out, "--min-new-tokens", 4) == 130
    assert "--resume" in capsys.readouterr().err
    assert len(rows(out)) == 1 + 2
    assert "get_image_features" not in vars(loaded[0].model.model)
    monkeypatch.setattr(vlms, "load_vlm", load)
    assert call("--image-dir", sequence, "--output", out, "--min-new-tokens", 4, "--resume") == 0
    assert [row.get("path") for row in rows(out)] == [row.get("path") for row in expected]


def test_the_ways_to_fit_a_frame_are_those_of_the_models():
    assert get_args(vlms.Fit) == FITS


def test_fast_vlm_says_that_its_tower_has_no_partial_updates(call, vlm_folders, sequence, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    assert call("--image-dir", sequence, "--output", out, model=vlm_folders["fast_vlm"]) == 0
    assert capsys.readouterr().err.count("fastvit_mci0) has no partial updates") == 1
    assert {row["path"] for row in rows(out)[1:]} == {"full"}
    small = tmp_path / "small.jsonl"
    asked = ["--image-dir", sequence, "--output", small, "--diff-skip-small", "--diff-max-changed-patches", 2]
    assert call(*asked, model=vlm_folders["fast_vlm"]) == 0
    assert {row["path"] for row in rows(small)[2:]} >= {"skipped"}


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "idefics3"])
def test_every_model_is_updated_and_says_what_it_says_in_full(call, vlm_folders, sequence, tmp_path, capsys, name):
    asked = ["--image-dir", sequence]
    exact = ["--diff-threshold", 0, "--diff-tolerance", 0, "--prefill", "gated", "--prefill-tolerance", 0]
    out, full = tmp_path / "answers.jsonl", tmp_path / "full.jsonl"
    assert call(*asked, *exact, "--output", out, model=vlm_folders[name]) == 0
    assert "no partial updates" not in capsys.readouterr().err
    assert {row["path"] for row in rows(out)[2:]} <= {"partial", "cached"}
    whole = ["--disable-differential", "--prefill", "full"]
    assert call(*asked, *whole, "--output", full, model=vlm_folders[name]) == 0
    assert [row["text"] for row in rows(out)[1:]] == [row["text"] for row in rows(full)[1:]]


def test_what_qwen3_5_can_do_is_said(call, capsys, sequence, vlm_folders):
    said = refusal(call, capsys, "--image-dir", sequence, model=vlm_folders["qwen3_5"])
    assert "has layers of linear attention" in said and "--prefill full" in said


def test_the_settings_file_and_options_over_it(call, sequence, tmp_path, capsys):
    settings = tmp_path / "config" / "differential.yaml"
    settings.parent.mkdir()
    settings.write_text("diff_threshold: 0.2\npropagate: gated\ntolerance: 0.5\n")
    call("--image-dir", sequence, "--output", "a.jsonl", "--diff-propagate", "none")
    assert "note: the differential settings are those of config/differential.yaml" in capsys.readouterr().err
    used = rows(Path("a.jsonl"))[0]["run"]["differential"]
    assert (used["diff_threshold"], used["propagate"], used["tolerance"]) == (0.2, "none", None)
    other = tmp_path / "other.yaml"
    other.write_text("diff_threshold: 0.1\n")
    call("--image-dir", sequence, "--output", "b.jsonl", "--diff-config", other)
    assert rows(Path("b.jsonl"))[0]["run"]["differential"]["diff_threshold"] == 0.1


def test_a_gated_prefill_by_option_and_by_file(call, sequence, tmp_path, capsys):
    def used(*asked: object, file: str = "") -> tuple[dict, list[dict]]:
        settings, out = tmp_path / "settings.yaml", tmp_path / "answers.jsonl"
        settings.write_text(file or "metric: max\n")
        out.unlink(missing_ok=True)
        assert call("--image-dir", sequence, "--output", out, "--diff-config", settings, *asked) == 0
        first, *answers = rows(out)
        return {key: first["run"][key] for key in ("prefill", "prefill_tolerance")}, answers

    run, exact = used()
    assert run == {"prefill": "exact", "prefill_tolerance": None}
    run, gated = used("--prefill", "gated", "--prefill-tolerance", 0, "--diff-print-stats")
    assert run == {"prefill": "gated", "prefill_tolerance": 0.0}
    assert [row["prefill_path"] for row in gated] == ["full"] + ["partial"] * 5
    assert [row["text"] for row in gated] == [row["text"] for row in exact]
    *_, encodes, prefills = capsys.readouterr().out.splitlines()
    assert encodes.startswith("6 frames: 1 full, 5 partial; ")
    assert prefills.startswith("6 prefills: 1 full, 5 partial; ")
    shares = [row["prefill_rows"] for row in gated]
    assert float(prefills.split("; ")[1].split("%")[0]) == pytest.approx(100 * sum(shares) / 6, abs=0.006)
    assert used(file="prefill: gated\n")[0] == {"prefill": "gated", "prefill_tolerance": 0.02}
    file = "prefill: gated\nprefill_tolerance: 0.5\n"
    assert used(file=file)[0] == {"prefill": "gated", "prefill_tolerance": 0.5}
    assert used("--prefill-tolerance", 0.25, file=file)[0] == {"prefill": "gated", "prefill_tolerance": 0.25}
    assert used("--prefill", "exact", file=file)[0] == {"prefill": "exact", "prefill_tolerance": None}
    assert used("--disable-prefix-reuse", file=file)[0] == {"prefill": "full", "prefill_tolerance": None}


CHECK = {"check_kl", "check_hidden_error", "check_same_text", "check_failed", "check_ms"}


def test_checks_in_the_rows_and_at_the_end(call, sequence, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    asked = ["--image-dir", sequence, "--diff-propagate", "none", "--check-every", 3]
    assert call(*asked, "--output", out) == 0
    first, *answers = rows(out)
    assert (first["run"]["check_every"], first["run"]["max_kl"]) == (3, None)
    assert [CHECK & {*row} for row in answers] == [set(), set(), CHECK] * 2
    largest = max(row["check_kl"] for row in answers[2::3])
    assert largest > 0 and not any(row["check_failed"] for row in answers[2::3])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("2 checks: KL ") and f"{largest:.2g} at most (nats)" in lines[-1]
    assert [" text)" in line for line in lines[1:-1]] == [False, False, True] * 2
    allowed = tmp_path / "allowed.jsonl"
    assert call(*asked, "--output", allowed, "--max-kl", largest / 2) == 0
    failed = [row for row in rows(allowed)[1:] if row.get("check_failed")]
    assert failed and {row["path"] for row in failed} == {"full"}
    lines = capsys.readouterr().out.splitlines()
    assert sum(", so answered in full)" in line for line in lines) == len(failed)
    assert lines[-1].endswith(f"; {len(failed)} failed")


@pytest.mark.parametrize("prefill", ["exact", "gated"])
def test_a_resumed_run_is_checked_as_an_uninterrupted_one(call, sequence, tmp_path, prefill):
    """A frame that failed before the interrupt left another state behind."""
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    asked = ["--image-dir", sequence, "--diff-propagate", "none", "--check-every", 2, "--max-kl", 0]
    asked += ["--prefill", prefill]
    assert call(*asked, "--output", whole) == 0
    part.write_text("".join(whole.read_text().splitlines(keepends=True)[:4]))
    assert call(*asked, "--output", part, "--resume") == 0
    varies = {"check_ms"} | ({"reused_tokens", "prefill_rows", "prefill_path"} if prefill == "exact" else set())
    found, expected = ([{k: v for k, v in row.items() if k not in varies} for row in rows(f)] for f in (part, whole))
    assert found[1:] == [
        {key: pytest.approx(value, abs=1e-6) if key.startswith("check_") else value for key, value in row.items()}
        for row in expected[1:]
    ]
    assert any(row.get("check_failed") for row in expected[1:4])


def test_a_benchmark_says_which_rows_were_computed(call, sequence, capsys):
    assert call("--image-dir", sequence, "--benchmark", "--prefill", "gated", "--prefill-tolerance", 0.1) == 0
    lines = capsys.readouterr().out.splitlines()
    last = json.loads(lines[-1])
    assert (last["prefill"], last["prefill_tolerance"]) == ("gated", 0.1)
    shares = {row["frames"]: row["prefill_rows"] for row in last["results"] if row["sequence"] == "all"}
    assert shares["first"] == 1.0 and 0 < shares["later"] < 1
    header, first = lines[1:3]
    assert first[: header.index("computed") + len("computed")].endswith(" 100.0%")


def test_the_exact_settings_agree_with_the_full_path(call, sequence, capsys, tmp_path):
    exact = ["--diff-threshold", 0, "--diff-propagate", "gated", "--diff-tolerance", 0]
    assert call("--image-dir", sequence, "--benchmark", "--output", tmp_path / "frames.jsonl", *exact) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("frames ") and line.endswith("same text") for line in lines) == 6
    last = json.loads(lines[-1])
    later = next(row for row in last["results"] if (row["sequence"], row["frames"]) == ("all", "later"))
    assert later["n"] == later["same_text"] == 5
    assert len(rows(tmp_path / "frames.jsonl")) == 6


def test_a_file_name_that_is_not_unicode_is_written_and_resumed(call, sequence, tmp_path, capsys):
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/\xfe"))
    shutil.copytree(sequence, folder)
    name = os.fsdecode(b"\xff.png")
    (folder / "frame_0005.png").rename(folder / name)
    out = tmp_path / "answers.jsonl"
    asked = ("--image-dir", folder, "--output", out, "--disable-prefix-reuse")
    assert call(*asked) == 0
    written = rows(out)
    assert os.fsencode(written[-1]["file"]) == b"\xff.png" and written[-1]["sequence"] == r"\xfe"
    out.write_bytes(out.read_bytes()[:-10])
    capsys.readouterr()
    assert call(*asked, "--resume") == 0
    assert rows(out) == written
    assert len(capsys.readouterr().out.splitlines()) == 2
    frames = tmp_path / "frames.jsonl"
    assert call("--image-dir", folder, "--output", frames, "--benchmark") == 0
    assert [row["sequence"] for row in rows(frames)] == [r"\xfe"] * 6


def test_a_disk_that_fills_keeps_what_is_done(call, sequence, tmp_path, capsys):
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    asked = ("--image-dir", sequence, "--disable-prefix-reuse")
    assert call(*asked, "--output", whole) == 0
    third = sum(map(len, whole.read_bytes().splitlines(keepends=True)[:4]))
    capsys.readouterr()
    with disk_of(third + 20, from_the_first_forward=True):
        assert call(*asked, "--output", part) == 2
    assert capsys.readouterr().err.endswith(f"fvlm-predict: {part}: File too large\n")
    assert call(*asked, "--output", part, "--resume") == 0
    assert rows(part) == rows(whole)


def test_a_disk_that_fills_does_not_lose_a_benchmark(call, sequence, tmp_path, capsys):
    out = tmp_path / "frames.jsonl"
    with disk_of(900, from_the_first_forward=True):
        assert call("--image-dir", sequence, "--output", out, "--benchmark") == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["benchmark"] == "fvlm-predict"
    assert printed.out.count("same text") + printed.out.count("texts differ") >= 6
    assert printed.err.count(f"note: {out}: File too large; the frames from here on are only measured") == 1
    assert printed.err.endswith(f"fvlm-predict: {out}: File too large\n")
    assert json.loads(out.read_text().splitlines()[0])["frame"] == 0


def test_a_model_that_says_nothing_is_noted(call, vlm_folders, sequence, tmp_path, capsys):
    mute = shutil.copytree(vlm_folders["llava"], tmp_path / "mute")
    config = json.loads((mute / "generation_config.json").read_text())
    config["eos_token_id"] = list(range(300))  # whatever it would say, it ends there
    (mute / "generation_config.json").write_text(json.dumps(config))
    assert call("--image-dir", sequence, model=mute) == 0
    assert "note: " not in capsys.readouterr().err.replace("note: all 6 answers are empty: the model ends at once;", "")
    assert call("--image-dir", sequence) == 0
    assert "empty" not in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtypes(call, sequence, tmp_path, dtype):
    out = tmp_path / "answers.jsonl"
    assert call("--image-dir", sequence, "--dtype", dtype, "--device", "cpu", "--output", out) == 0
    assert rows(out)[0]["run"]["dtype"] == dtype
    assert rows(out)[-1]["fallbacks"] == 0


# ---- wrong input: exit code 2, one sentence -----------------------------------------------------------


def refusal(call, capsys, *arguments, **options) -> str:
    capsys.readouterr()
    assert call(*arguments, **options) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if "fvlm-predict: " in line]
    assert printed.endswith(line + "\n")
    return line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--disable-differential", "--diff-threshold", "0.1"], "--disable-differential and --diff-threshold"),
        (["--disable-differential", "--diff-threshold", "0"], "--disable-differential and --diff-threshold"),
        (["--disable-differential", "--diff-print-stats"], "--disable-differential and --diff-print-stats"),
        (["--diff-propagate", "none", "--diff-tolerance", "0"], "--diff-propagate none and --diff-tolerance"),
        (["--diff-propagate", "gated", "--diff-max-rows", "5"], "--diff-propagate gated and --diff-max-rows"),
        (["--diff-max-rows", "5"], "--diff-max-rows is of budget propagation, and that of the settings is gated"),
        (
            ["--diff-propagate", "budget", "--diff-max-changed-patches", "5"],
            "--diff-propagate budget and --diff-max-changed-patches",
        ),
        (["--top-p", "0.5"], "--temperature 0 and --top-p"),
        (["--sequence-limit", "2"], "--sequence-limit and any but --sequence-root"),
        (
            ["--benchmark", "--disable-differential", "--disable-prefix-reuse"],
            "--benchmark and --disable-differential with --prefill full",
        ),
        (
            ["--disable-prefix-reuse", "--prefill", "gated"],
            "--prefill: not allowed with argument --disable-prefix-reuse",
        ),
        (["--prefill", "changed"], "--prefill: invalid choice: 'changed'"),
        (["--prefill", "exact", "--prefill-tolerance", "0"], "--prefill exact and --prefill-tolerance contradict"),
        (["--disable-prefix-reuse", "--prefill-tolerance", "0"], "--prefill full and --prefill-tolerance contradict"),
        (["--prefill-tolerance", "0"], "of a gated prefill, but it is exact; add --prefill gated"),
        (["--prefill", "gated", "--prefill-tolerance", "-1"], "--prefill-tolerance is -1; it must be at least 0"),
        (["--benchmark", "--resume", "--output", "x"], "--resume and --benchmark"),
        (["--benchmark", "--check-every", "2"], "--check-every and --benchmark"),
        (
            ["--check-every", "2", "--disable-differential", "--prefill", "full"],
            "--check-every and --disable-differential with --prefill full",
        ),
        (["--check-every", "0"], "--check-every is 0; it must be at least 1"),
        (["--max-kl", "0.1"], "--max-kl is of checked frames; add --check-every N"),
        (["--check-every", "2", "--max-kl", "-1"], "--max-kl is -1; it must be at least 0"),
        (["--resume"], "--resume needs --output"),
        (["--num-beams", "0"], "--num-beams is 0; it must be at least 1"),
        (["--temperature", "-1"], "--temperature is -1; it must be at least 0"),
        (["--temperature", "nan"], "--temperature is nan; it must be "),
        (["--temperature", "1", "--top-p", "2"], "--top-p is 2; it must be at most 1"),
        (["--diff-threshold", "7"], "--diff-threshold is 7; it must be at most 1"),
        (["--diff-tolerance", "inf"], "--diff-tolerance is inf; it must be "),
        (["--diff-max-changed-patches", "-1"], "--diff-max-changed-patches is -1; it must be at least 0"),
        (["--sequence-limit", "0"], "--sequence-limit is 0; it must be at least 1"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0; it must be at least 1"),
        (["--min-new-tokens", "9"], "--min-new-tokens is 9, above --max-new-tokens 4"),
        (
            ["--max-new-tokens", "99999"],
            "up to 99999 of the answer (max_new_tokens) are more than the 2048",
        ),
        (["--seed", "-1"], "--seed is -1; it must be at least 0"),
        (["--device", "bogus"], "--device is bogus; it must be auto, cpu"),
        (["--output", "."], "--output . is a folder"),
        (["--output", "/dev/full"], "--output /dev/full is no regular file"),
        (["--diff-config", "nowhere.yaml"], "nowhere.yaml"),
        (["--diff-patch-size", "15"], "patch_size is 15"),
        (["--diff-skip-small"], "--diff-skip-small is for towers without partial updates"),
        (["--prompt", "<image> <image>"], "2 image tokens"),
    ],
)
def test_options_that_cannot_be(call, capsys, sequence, arguments, named):
    assert named in refusal(call, capsys, "--image-dir", sequence, *arguments)


def test_a_tolerance_that_the_settings_file_makes_void(call, capsys, sequence, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("propagate: none\n")
    asked = ("--image-dir", sequence, "--diff-config", other, "--diff-tolerance", 0)
    assert "add --diff-propagate gated" in refusal(call, capsys, *asked)
    assert call(*asked, "--diff-propagate", "gated") == 0


def test_an_option_for_how_changes_propagate_goes_before_what_the_settings_file_says(call, capsys, sequence, tmp_path):
    other = tmp_path / "other.yaml"
    asked = ("--image-dir", sequence, "--diff-config", other, "--diff-print-stats")
    other.write_text("max_changed_patches: 1\n")
    assert call(*asked, "--diff-propagate", "budget", "--diff-max-rows", 1, "--diff-tolerance", 0) == 0
    assert " 1 full, " in (told := capsys.readouterr().out) and " tokens are owed" in told
    other.write_text("propagate: budget\nmax_rows: 2\n")
    assert call(*asked, "--diff-propagate", "none") == call(*asked, "--diff-max-rows", 9) == 0
    assert "max_changed_patches is 3 and propagate 'budget'" in refusal(
        call, capsys, *asked, "--diff-max-changed-patches", 3
    )


def test_unknown_options_are_refused(call, capsys, sequence):
    said = refusal(call, capsys, "--image-dir", sequence, "--images", sequence)
    assert "--images: not allowed with argument --image-dir" in said
    assert "did you mean --benchmark?" in refusal(call, capsys, "--image-dir", sequence, "--bench-mark")


def test_models_that_cannot_be(call, capsys, sequence, tmp_path, vlm_folders):
    asked = ("--image-dir", sequence)
    assert "there is no folder nowhere" in refusal(call, capsys, *asked, model="nowhere")
    text_only = tmp_path / "text"
    for part in random_llama():
        part.save_pretrained(text_only)
    capsys.readouterr()
    assert "architecture 'llama'" in refusal(call, capsys, *asked, model=text_only)
    bare = shutil.copytree(vlm_folders["llava"], tmp_path / "bare")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    assert "has no processor" in refusal(call, capsys, *asked, model=bare)


def test_frames_that_cannot_be(call, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty: has no images" in refusal(call, capsys, "--sequence-root", tmp_path / "empty")
    assert "empty: has no images" in refusal(call, capsys, "--image-dir", tmp_path / "empty")
    assert "nowhere" in refusal(call, capsys, "--image", tmp_path / "nowhere.png")


def test_an_image_that_cannot_be_read(call, capsys, sequence, tmp_path):
    """With the exact settings, which say the same whether or not the frame before was read."""
    asked = ["--image-dir", sequence, "--diff-threshold", 0, "--diff-propagate", "gated", "--diff-tolerance", 0]
    good = tmp_path / "good.jsonl"
    assert call(*asked, "--output", good) == 0
    (sequence / "frame_0003.png").write_bytes(b"no image")
    out = tmp_path / "answers.jsonl"
    assert "frame_0003.png" in refusal(call, capsys, *asked, "--output", out)
    assert rows(out) == rows(good)[:4]
    assert call(*asked, "--output", out, "--skip-bad", "--resume") == 0
    assert "skipped: " in capsys.readouterr().out
    answers = rows(out)[1:]
    assert "frame_0003.png" in answers[3]["error"]
    assert [row["text"] for row in answers if "text" in row] == [
        row["text"] for row in rows(good)[1:] if row["frame"] != 3
    ]


def test_an_output_of_another_run(call, capsys, sequence, tmp_path):
    out = tmp_path / "answers.jsonl"
    assert call("--image-dir", sequence, "--output", out) == 0
    before = out.read_text()
    assert "exists" in refusal(call, capsys, "--image-dir", sequence, "--output", out)
    asked = ("--output", out, "--resume")
    assert "its prompt is" in refusal(call, capsys, "--image-dir", sequence, "--prompt", "Why?", *asked)
    assert "its differential.diff_threshold is 0.05, now" in refusal(
        call, capsys, "--image-dir", sequence, "--diff-threshold", 0, *asked
    )
    assert "its line 2 is about frames/frame_0000.png" in refusal(
        call, capsys, "--images", *sorted(sequence.iterdir())[1:], *asked
    )
    assert out.read_text() == before
    out.write_text("something else\n")
    assert "no output of fvlm-predict" in refusal(call, capsys, "--image-dir", sequence, *asked)
    assert out.read_text() == "something else\n"


def test_the_entry_point():
    command = Path(sys.executable).with_name("fvlm-predict")
    printed = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--disable-prefix-reuse" in printed and "examples:" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(call, capsys, sequence):
    assert "cuda" in refusal(call, capsys, "--image-dir", sequence, "--device", "cuda")
