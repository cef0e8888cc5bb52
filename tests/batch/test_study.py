"""A study: its config names its runs, an interrupted one goes on, a failed job leaves the others running."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, exit_code
from studies import TINY_STUDY, write_study

from fvlm_lib.batch.launch import find_config
from fvlm_lib.batch.study_config import read_run, read_study, read_study_file
from fvlm_lib.batch.study_launch import STUDY
from fvlm_lib.batch.study_train import FINISHED, library_commit, main, train_run
from fvlm_lib.foveated import train
from fvlm_lib.foveated.checkpoints import load_checkpoint
from fvlm_lib.foveated.recipe_options import MultiFine, Plain, RecipeOptions

# ---- the config ----------------------------------------------------------------------------------------


def test_the_grid_has_exactly_the_runs_that_the_file_names():
    study = read_study(TINY_STUDY)
    assert [*study.runs] == ["S--plain--3", "S--multi--3", "M--plain--3", "M--multi--3", "S--plain--3--6"]
    run = study.runs["M--multi--3"]
    assert (run.size, run.recipe, run.seed, run.name) == ("M", "multi", 3, "M--multi")
    assert (run.config.text_layers, run.config.learning_rate, run.config.recipe) == (2, 0.001, MultiFine())
    assert (run.config.batch_size, run.config.videos) == (4, {"num_frames": 4})
    assert study.runs["S--plain--3"].config.recipe == Plain()
    assert [name for name in study.evaluations if name.startswith("S--plain")] == [
        "S--plain--3--2--4", "S--plain--3--6--4", "S--plain--3--2--6", "S--plain--3--6--6",
    ]  # fmt: skip
    assert len(study.evaluations) == 5 * 2


def test_a_run_of_another_length_is_trained_and_evaluated_on_videos_of_it():
    study = read_study(TINY_STUDY)
    own, other = study.runs["S--plain--3"], study.runs["S--plain--3--6"]
    assert dataclasses.replace(other.config, videos=own.config.videos) == own.config
    assert other.config.videos == {"num_frames": 6}
    parameters = study.gap_parameters("S--plain--3--6--6")
    assert parameters["checkpoint"] == "results/study/runs/S--plain--3--6/step_0006"
    assert parameters["data"] == {"kind": "procedural", "split": "test", "seed": 0, "num_frames": 6}
    assert parameters["jacobi"] is None
    assert study.gap_parameters("S--plain--3--6--4")["jacobi"]["norm_samples"] == 2


def test_what_is_cut_is_left_out_and_leaves_the_rest_as_it_was():
    whole = read_study(TINY_STUDY)
    cut = read_study({**TINY_STUDY, "recipes": {"multi": TINY_STUDY["recipes"]["multi"]}, "lengths": None})
    assert cut.runs == {name: run for name, run in whole.runs.items() if run.recipe == "multi"}
    assert all(cut.gap_parameters(name) == whole.gap_parameters(name) for name in cut.evaluations)


def test_the_shipped_study_has_every_kind_of_recipe_at_three_sizes_and_five_seeds():
    study = read_study_file(ROOT / "config" / "study.yaml")
    assert len({run.size for run in study.runs.values()}) == 3 and len({run.seed for run in study.runs.values()}) == 5
    runs = [run.config for run in study.runs.values() if (run.size, run.seed, run.num_frames) == ("S", 0, 8)]
    assert {type(config.recipe) for config in runs} == {*RecipeOptions.__subclasses__()}
    assert [config.then.after for config in runs if config.then] == [0.8]
    assert sum(run.num_frames == 8 for run in study.runs.values()) == 3 * 5 * len(runs)
    assert {run.num_frames for run in study.runs.values()} == {8, 16, 32}
    assert all(config.checkpoint_steps == (100, 300, 1000, 3000) for config in runs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": {}}, r"^study.yaml: sizes is \{\}; it must"),
        ({"seeds": [1, 1]}, r"^study.yaml: seeds is \[1, 1\]; it names 1 twice$"),
        ({"seeds": None}, r"^study.yaml: seeds is null; it must be a list$"),
        ({"size": {}}, r"^study.yaml has the unknown key 'size'; did you mean 'sizes'\?"),
        ({"recipes": {"a--b": {}}}, r"^study.yaml: recipes has the key 'a--b'; .*'--'"),
        ({"recipes": {"a": {"recipe": {"kind": "plane"}}}}, r"recipe.kind is 'plane'; .*did you mean 'plain'\?$"),
        ({"training": {"learning_rate": 0.1}}, r"^study.yaml: training has learning_rate; .* entries of sizes$"),
        ({"training": {"recipe": {"kind": "plain"}}}, r"^study.yaml: training has recipe; .* entries of recipes$"),
        ({"training": {"checkpoint_steps": [2]}}, r"checkpoint_steps is \[2\]; it must rise and end with steps, 6$"),
        ({"training": {"checkpoint_steps": [6, 2, 6]}}, r"checkpoint_steps is \[6, 2, 6\]; it must rise"),
        ({"training": {"videos": {"kind": "folder"}}}, r"^study.yaml: training.*'folder'"),
        (
            {"recipes": {"many": {"recipe": {"kind": "multi_fine", "num_fine": 5, "scored": "last"}}}, "lengths": None},
            r"^study.yaml: recipes.many trains by 5 fine passes, and videos have 4 frames; after as many",
        ),
        (
            {
                "recipes": {"last-of-3": {"recipe": {"kind": "multi_fine", "num_fine": 3, "scored": "last"}}},
                "evaluation": {"jacobi": None},
                "lengths": None,
            },
            r"^study.yaml: recipes.last-of-3 trains by 3 fine passes; evaluation.num_fine is \[1, 2\] and must have t",
        ),
        ({"lengths": {"num_frames": []}}, r"^study.yaml: lengths.num_frames is \[\]; it must be a list of at"),
        ({"lengths": {"num_frames": [1]}}, r"^study.yaml: lengths.num_frames: num_frames is 1; it must be at"),
        ({"lengths": {"num_frames": [6, 4]}}, r"^study.yaml: lengths.num_frames has 4, which all runs have; name oth"),
        ({"lengths": {"num_frames": [128]}}, r"lengths.num_frames has 128, .* takes 258 positions; .* with 256$"),
        ({"lengths": {"sizes": ["XL"]}}, r"^study.yaml: lengths.sizes names 'XL'; sizes has S, M$"),
        ({"lengths": {"recipes": ["plane"]}}, r"^study.yaml: lengths.recipes names 'plane'; recipes has plain, multi$"),
        ({"output": "{run}"}, r"^study.yaml: output is '\{run\}'; it must be a folder"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(change, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, **change)
    with pytest.raises(ValueError, match=message) as raised:
        read_study_file("study.yaml")
    assert "\n" not in str(raised.value)
    assert exit_code(main, "study.yaml", "--run", "S--plain--3") == 2
    assert capsys.readouterr().err == f"fvlm study-train: {raised.value}\n"


def test_a_size_that_cannot_be_is_named():
    sizes = {"odd": {**TINY_STUDY["sizes"]["S"], "text_heads": 3}}
    with pytest.raises(ValueError, match=r"^study.yaml: sizes.odd: .*text_width is 16, which text_heads, 3, does not"):
        read_study({**TINY_STUDY, "sizes": sizes, "lengths": None}, "study.yaml")


def test_the_study_s_own_config_is_found_and_not_the_profile_s(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert find_config(["--cores", "4"], STUDY) == ("config/study.yaml", "profiles/local", False)
    assert find_config(["--configfile", "x.yaml", "-n"], STUDY) == ("x.yaml", "profiles/local", True)


# ---- one training --------------------------------------------------------------------------------------


def test_a_training_goes_on_and_leaves_a_record_at_its_end_alone(tmp_path, monkeypatch, capsys):
    path = write_study(tmp_path)
    study = read_study_file(path)
    folder, record = Path(study.run_folder("S--plain--3")), Path(study.record("S--plain--3"))
    original, taken = train.learning_rate_at, []

    def interrupting(index, config):
        taken.append(index)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return original(index, config)

    monkeypatch.setattr(train, "learning_rate_at", interrupting)
    assert main([str(path), "--run", "S--plain--3"]) == 130
    assert not record.exists() and (folder / train.STATE).exists()
    assert main([str(path), "--run", "S--plain--3"]) == 0
    assert taken == [0, 1, 2, 3, 2, 3, 4, 5]  # from the state of step 2
    told = json.loads(record.read_text())
    assert told == {"commit": library_commit(), "cpu_capability": torch.backends.cpu.get_cpu_capability()}

    record.unlink()  # as Snakemake does before it runs a job again
    assert main([str(path), "--run", "S--plain--3"]) == 0
    assert len(taken) == 8 and json.loads(record.read_text()) == told
    assert main([str(path), "--run", "S--plain--3", "--out", str(tmp_path / "again")]) == 0
    again, first = (load_checkpoint(where / "step_0006").state_dict() for where in (tmp_path / "again", folder))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert json.loads((tmp_path / "again" / FINISHED).read_text()) == told

    capsys.readouterr()
    write_study(tmp_path, training={"batch_size": 2})
    assert main([str(path), "--run", "S--plain--3"]) == 2
    assert f"{folder} holds a run of another config or seed" in capsys.readouterr().err
    assert main([str(path), "--run", "S-plain-3"]) == 2
    assert "has no run 'S-plain-3'; a run is called SIZE--RECIPE--SEED, as S--plain--3," in capsys.readouterr().err


def test_a_library_that_git_does_not_know_has_no_commit(tmp_path):
    library = shutil.copytree(ROOT / "fvlm_lib" / "batch", tmp_path / "fvlm_lib")
    assert library_commit(library) == "unknown"
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)  # in which it lies, but is not tracked
    assert library_commit(library) == "unknown"


# ---- all of it, by Snakemake -----------------------------------------------------------------------------


def start(folder: Path, *arguments: str, study: str = "study.yaml") -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", "run.sh", "study", "--configfile", study, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": "false"},  # .venv is linked: nothing may install into it
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=600)
    return process.returncode, out


@pytest.mark.slow
def test_a_study_that_is_stopped_goes_on_and_a_failed_run_leaves_the_others(tmp_path):
    for name in ("study.smk", "profiles", "run.sh", "requirements.txt", "requirements-dev.txt", "pyproject.toml"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    write_study(
        tmp_path,
        training={"steps": 600, "checkpoint_steps": [600], "state_every": 50},
        lengths=None,
        output="mine",
    )
    broken = tmp_path / "mine" / "runs" / "M--multi--3"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text("{}")

    process = start(tmp_path, "--cores", "1")
    deadline = time.monotonic() + 300
    while not (states := [*tmp_path.glob(f"mine/runs/*/{train.STATE}")]):
        assert process.poll() is None and time.monotonic() < deadline, finish(process)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    code, out = finish(process)
    assert code == 143 and "stopped by SIGTERM" in out, out
    assert states[0].exists() and not (states[0].parent / "step_0600").exists()

    code, out = finish(start(tmp_path, "--cores", "2"))
    assert code == 1, out
    assert re.search(r"failed: train M--multi--3: fvlm study-train: .* holds a run of another config or seed", out), out
    assert "1 of 4 runs and 0 evaluations of others are missing" in out
    assert "missing: M--multi--3: it is not trained to its end" in out
    log = (tmp_path / "mine" / "logs" / "train" / f"{states[0].parent.name}.log").read_text()
    assert int(re.findall(r"(\d+)/600", log)[0]) >= 50  # where it was stopped, not at 0
    assert len(pd.read_parquet(tmp_path / "mine" / "study.parquet")) == 3

    shutil.rmtree(broken)
    code, out = finish(start(tmp_path))
    assert code == 0 and out.endswith("table: mine/study.parquet\n"), out
    table = pd.read_parquet(tmp_path / "mine" / "study.parquet")
    assert table.groupby(["size", "recipe", "seed"])["step"].apply(list).tolist() == [[600]] * 4
    for run in ("S--plain--3", "M--multi--3"):
        rows = list(csv.DictReader((tmp_path / "mine" / "runs" / run / "losses.csv").open()))
        assert [int(row["step"]) for row in rows] == list(range(1, 601))
    _, run = read_run(tmp_path / "study.yaml", states[0].parent.name)
    train_run(run, tmp_path / "undisturbed")
    whole, stopped = (
        load_checkpoint(where / "step_0600").state_dict() for where in (tmp_path / "undisturbed", states[0].parent)
    )
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())
    assert finish(start(tmp_path, "-n")) == (0, "nothing to be done: all is up to date\n")
    (tmp_path / "study.yaml").rename(tmp_path / "mine.yaml")  # the same study by another name
    assert finish(start(tmp_path, "-n", study="mine.yaml")) == (0, "nothing to be done: all is up to date\n")
