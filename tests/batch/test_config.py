"""The batch: its config is checked, its pitfalls are closed, and a run's failure is that run's alone.

The Snakefile runs here for real, on a copy of the project's folder with two tiny evaluations.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import yaml
from captioned import write_folder
from conftest import DEMO, ROOT
from matplotlib.backend_bases import FigureCanvasBase
from planted_study import planted_samples, planted_table, write_results

from fvlm_lib.batch.config import PAPER_FIGURES, PAPER_TABLES, STUDY_FIGURES, read_batch, read_batch_file, study_files
from fvlm_lib.batch.folders import batch_runs
from fvlm_lib.batch.parameters import Figure, Format, Style, Table
from fvlm_lib.batch.runs import run_status
from fvlm_lib.data.files import data_stamp, matching_files
from fvlm_lib.figures.batch_report import find_figures, read_study_findings
from fvlm_lib.figures.paper import VENUES
from fvlm_lib.gap.gap import evaluate_inference_gap, open_evaluation
from fvlm_lib.gap.results import gap_file
from fvlm_lib.schema import RANDOM_TOWERS
from fvlm_lib.vision.settings import DifferentialSettings, write_settings

GAP = {
    "data": {"kind": "procedural", "split": "test"}, "num_samples": 8, "batch_size": 4, "num_fine": [1],
    "dtype": None, "device": "cpu", "seed": 0, "floor_samples": 2,
}  # fmt: skip
CHECKPOINTS = {"early": str(DEMO / "S-S" / "step_0100"), "late": str(DEMO / "S-S" / "step_3000")}
NO_PAPER = {"figures": [], "tables": []}


# ---- the config --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo", "clip"])
def test_the_shipped_configs_are_right_and_what_they_name_exists(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    batch = read_batch_file(f"config/{name}.yaml")
    assert len(batch.checkpoints) == (12 if name == "demo" else 0)
    for path in batch.checkpoints.values():
        assert Path(path, "model.safetensors").exists()


def test_the_ladder_s_config_is_right_and_names_what_has_to_be_put_there(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(read_batch_file("config/paper.yaml", files=False).checkpoints) == 8
    with pytest.raises(ValueError, match=r"^config/paper\.yaml: data: no file matches 'data/paper/test-000\.tar'"):
        read_batch_file("config/paper.yaml")


def test_two_checkpoints_and_data_are_enough(tmp_path):
    """The rest has its defaults, and every notebook's parameters are complete."""
    file = tmp_path / "mine.yaml"
    checkpoints = "".join(f"  {id}: {path}\n" for id, path in CHECKPOINTS.items())
    file.write_text(f"checkpoints:\n{checkpoints}gap: {{data: {{kind: procedural}}}}\n")
    batch = read_batch_file(file)
    assert batch.gap_parameters("late") == {
        "checkpoint": CHECKPOINTS["late"], "data": {"kind": "procedural"}, "num_samples": None, "batch_size": 32,
        "num_fine": [1, 2, 3], "dtype": None, "device": "auto", "seed": 0, "floor_samples": 64,
    }  # fmt: skip
    assert (batch.shards, batch.knowledge, batch.output, batch.towers) == (1, None, None, {})
    assert batch.settings == DifferentialSettings()
    assert batch.paper_parameters()["tables"] == ["gap_table", "scaling_fits"]
    assert list(batch.gap) == list(GAP)


def test_jacobi_is_handed_on_as_it_is_and_is_nothing_that_a_part_is_scored_by():
    gap = {**GAP, "jacobi": {"within": 0.02}}
    batch = read_batch({"checkpoints": {"a": "x"}, "gap": gap})
    assert batch.gap_parameters("a")["jacobi"] == {"within": 0.02}
    assert batch.gap_arguments("a") == read_batch({"checkpoints": {"a": "x"}, "gap": GAP}).gap_arguments("a")
    with pytest.raises(ValueError, match=r"jacobi\.within is 0; it must be above 0"):
        read_batch({"checkpoints": {"a": "x"}, "gap": {**GAP, "jacobi": {"within": 0}}})


def test_what_is_given_is_handed_on_as_it_is():
    """A new default must not make finished results out of date."""
    towers = {"t": {"tower": "random:clip-tiny", "image_size": [32, 48], "tolerances": [0, 0.5]}}
    differential = {"sequences": {"s": "x"}, "towers": towers, "vlms": {"v": {"model": "a/b"}}}
    batch = read_batch({"checkpoints": {"a": "x"}, "gap": GAP, "differential": differential, "paper": {"runs": None}})
    assert batch.gap == GAP and json.dumps(batch.gap) == json.dumps(GAP)
    assert (batch.towers, batch.vlms, batch.paper) == (towers, {"v": {"model": "a/b"}}, {"runs": None})
    assert batch.asked == [("s", "v")]
    answers = {"r": {"model": "a/b", "tolerances": [0], "times_model": None}}
    assert read_batch({"answers": answers}).answers == answers  # which are enough for a batch
    assert read_batch({"study": "x"}).study == "x"  # which is, too


def test_a_study_s_figures_and_tables_go_below_the_output_in_the_style_of_the_paper():
    batch = read_batch({"study": "x", "output": "mine", "paper": {"style": "icml"}})
    parameters = batch.study_parameters()
    assert parameters == {
        "study": "x", "style": "icml", "results": "mine/results/close_the_gap", "figures": "mine/plots/close_the_gap",
    }  # fmt: skip
    found = study_files(parameters)
    assert {"mine/results/close_the_gap/means.csv", "mine/results/close_the_gap/findings.md"} <= {*found["tables"]}
    assert "mine/plots/close_the_gap/compute.pdf" in found["figures"]
    assert batch.paper_parameters()["figures"] == ["study_compute", "study_passes"]
    assert read_batch({"checkpoints": {"a": "x"}, "gap": GAP}).paper_parameters()["figures"][-1] == "scaling_laws"


def test_a_model_is_asked_about_all_recordings_or_those_that_it_names():
    vlms = {"v": {"model": "a/b"}, "w": {"model": "a/b", "sequences": ["t"]}, "x": {"model": "a/b", "sequences": []}}
    batch = read_batch({"differential": {"sequences": {"s": "x", "t": "y"}, "vlms": vlms}})
    assert batch.asked == [("s", "v"), ("t", "v"), ("t", "w")]
    assert batch.vlms == {"v": {"model": "a/b"}, "w": {"model": "a/b"}, "x": {"model": "a/b"}}
    assert [name for name in batch_runs(batch) if name.startswith("predict")] == [
        "predict_s--v",
        "predict_t--v",
        "predict_t--w",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoints": {}}, "config lists no checkpoints; it needs `checkpoints:` with `id: folder` lines"),
        ({"gap": None},
         "config lacks gap, which says what the checkpoints are evaluated on; it must be like `gap: {data: {kind: "
         "folder, path: data/mine}}`"),
        ({"checkpoints": {"a": "x", "b": "./x"}}, "config: a and b are the same folder, ./x; keep one of them"),
        ({"shards": 9}, "config: shards is 9; 8 samples make at most 8"),
        ({"shards": 10_000, "checkpoints": {"a": "x", "b": "y", "c": "z"},
          "gap": {"data": {"kind": "folder", "path": "x"}}},
         "config: shards is 10000, which of 3 checkpoints is 30000 jobs; a batch has at most 20000"),
        ({"gap": {"data": {"kind": "procedural"}}, "shards": 513},
         "config: shards is 513; 512 samples make at most 512"),
        ({"differential": {"sequences": {"s": "y"}, "vlms": {"v": {"model": "a/b", "sequences": ["s", "x"]}}}},
         "config: differential.vlms.v.sequences names 'x', which is not in this config; it has s"),
        ({"paper": {"sequences": ["x"]}},
         "config: paper.sequences names 'x', which is not in this config; it has none"),
        ({"paper": {"figures": ["study_passes"]}},
         "config: paper.figures names 'study_passes', but there is no study; name one, `study: FOLDER`"),
        ({"paper": {"checkpoints": ["b"]}},
         "config: paper.checkpoints names 'b', which is not in this config; it has a"),
        ({"differential": {"settings": "nowhere.yaml"}},
         "config: differential: there is no settings file nowhere.yaml; notebooks/tune_threshold.ipynb writes one, "
         "or copy config/differential.yaml"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_named(change, message):
    with pytest.raises(ValueError) as raised:
        read_batch({"checkpoints": {"a": "x"}, "gap": GAP, **change}, "config")
    assert str(raised.value) == message


SCREENS = str(ROOT / "data" / "screens" / "idle")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"differential": {"sequences": {"s": "nowhere"}}},
         "differential.sequences.s: nowhere: no such file or directory"),
        ({"differential": {"sequences": {"s": "."}}},
         "differential.sequences.s: .: has no images, must have at least one (.bmp .jpeg .jpg .png .tif .tiff "
         ".webp)"),
        ({"differential": {"towers": {"t": {"tower": "random:clip"}}}},
         "differential.towers.t.tower is 'random:clip', and there is none such; known are "
         f"{', '.join(RANDOM_TOWERS)}"),
        ({"differential": {"towers": {"t": {"tower": "checkpoints/no/where"}}}},
         "differential.towers.t.tower is 'checkpoints/no/where', and there is no such folder; a hub id is like "
         "OWNER/MODEL"),
        ({"differential": {"towers": {"t": {"tower": SCREENS}}}},
         f"differential.towers.t.tower is '{SCREENS}', a folder without a config.json"),
        ({"differential": {"towers": {"t": {"tower": "random:clip-tiny", "settings": "no.yaml"}}}},
         "differential.towers.t.settings: there is no settings file no.yaml; notebooks/tune_threshold.ipynb "
         "writes one, or copy config/differential.yaml"),
        ({"differential": {"vlms": {"v": {"model": "random:clip-tiny"}}}},
         "differential.vlms.v.model is 'random:clip-tiny', and there is none such; it must be a folder or a hub id"),
        ({"study": "clips"},
         "study is 'clips', and there is no clips/study.parquet; `fvlm study-table STUDY.yaml` makes the table of a "
         "study"),
        ({"gap": {"data": {"kind": "webdataset", "path": "no.tar"}}}, "data: no file matches 'no.tar'"),
        ({"gap": {"data": {"kind": "folder", "path": "clips"}, "num_samples": 3}},
         "gap.num_samples is 3, but clips has 2 videos"),
        ({"gap": {"data": {"kind": "procedural", "grid": 5}}},
         "gap.data for checkpoint early: grid is 5, frames of 40 x 40 pixels, but the model sees 32 x 32"),
        ({"gap": {"data": {"kind": "procedural", "num_frames": 128}}},
         "gap.data for checkpoint early: num_frames is 128, which with the caption takes 258 positions, but the "
         "model has 256"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named_before_anything_runs(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "captions.jsonl").write_text('{"file": "0.mp4"}\n\n{"file": "1.mp4"}\n')
    config = {"checkpoints": CHECKPOINTS | {"lost": "no/where"}, "gap": GAP, **change}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    read_batch_file("mine.yaml", files=False)
    with pytest.raises(ValueError) as raised:
        read_batch_file("mine.yaml")
    assert str(raised.value) == f"mine.yaml: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.yaml lists no checkpoints; it needs `checkpoints:` with `id: folder` lines"),
        ("- a", "mine.yaml is ['a']; it must be a mapping, `key: value` lines"),
        ("a: b: c", "mine.yaml cannot be read as YAML in line 1 (mapping values are not allowed here)"),
        ("checkpoints:\n  a: x\n  b: y\n  a: z",
         "mine.yaml: line 4 gives the key 'a' again, after line 2; keep one of them"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_config_is_named(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError) as raised:
        read_batch_file("mine.yaml")
    assert str(raised.value) == message
    with pytest.raises(ValueError, match=r"there is no file other\.yaml"):
        read_batch_file("other.yaml")


def test_names_of_the_paper_are_those_that_are_known_elsewhere():
    assert [*get_args(Figure)] == [*PAPER_FIGURES] and [*get_args(Table)] == [*PAPER_TABLES]
    assert {*get_args(Style)} == {*VENUES}
    assert {*get_args(Format)} <= {*FigureCanvasBase.get_supported_filetypes()}


def test_what_the_config_says_of_a_training_overrides():
    said = {"name": "mine", "group": "ours", "seed": 3, "step": 7}
    batch = read_batch({"checkpoints": {"a": {"path": "x", **said}}, "gap": GAP})
    assert batch.training["a"] == said
    assert batch.gap_parameters("a") == {"checkpoint": "x", **GAP}


def test_files_match_in_the_pattern_s_order(tmp_path):
    for name in ("b.tar", "a0.tar", "a1.tar"):
        (tmp_path / name).touch()
    found = matching_files([f"{tmp_path}/b.tar", f"{tmp_path}/a{{1,0}}.tar", f"{tmp_path}/a*.tar"])
    assert [Path(file).name for file in found] == ["b.tar", "a1.tar", "a0.tar", "a0.tar", "a1.tar"]


def test_the_data_s_stamp_changes_with_the_data(tmp_path):
    assert data_stamp(GAP["data"]) == ""
    (tmp_path / "captions.jsonl").write_text('{"file": "a.mp4"}\n{"file": "b"}')
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.png").write_text("1")
    (tmp_path / "0.tar").write_text("1")
    for kind, path, file in (("folder", "", "captions.jsonl"), ("webdataset", "/*.tar", "0.tar")):
        data = {"kind": kind, "path": f"{tmp_path}{path}"}
        before = data_stamp(data)
        assert data_stamp(data) == before
        (tmp_path / file).write_text((tmp_path / file).read_text() + " ")
        assert data_stamp(data) != before


def test_the_data_s_stamp_changes_with_the_files_that_captions_list(tmp_path):
    write_folder(tmp_path, 2)
    (tmp_path / "images").mkdir()
    for name in ("0.png", "1.png"):
        (tmp_path / "images" / name).write_bytes(name.encode())
    with (tmp_path / "captions.jsonl").open("a") as captions:
        captions.write('\n{"file": "images", "caption": "red"}\n{"file": "later.mkv", "caption": "red"}')
    data = {"kind": "folder", "path": str(tmp_path)}
    stamps = [data_stamp(data)]
    changes = [
        lambda: os.replace(tmp_path / "1.mkv", tmp_path / "0.mkv"),  # under the same name
        lambda: (tmp_path / "images" / "0.png").write_bytes(b"other"),
        lambda: os.utime(tmp_path / "images" / "1.png", ns=(1, 1)),
        lambda: (tmp_path / "later.mkv").touch(),
    ]
    for change in changes:
        change()
        stamps.append(data_stamp(data))
        assert data_stamp(data) == stamps[-1]
    assert len({*stamps}) == 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "folder", "path": "nowhere"}, r"config: data: nowhere has no captions\.jsonl"),
        ({"kind": "folder", "path": ["a", "b"]}, "config: data: path is .*; it must be one folder"),
        ({"kind": "webdataset", "path": "no-{0..3}.tar"}, r"config: data: no file matches 'no-0.tar' \(of 'no-"),
        ({"kind": "webdataset"}, "has the path None"),
    ],
)
def test_data_that_is_not_there_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        data_stamp(data, "config")


# ---- the Snakefile -----------------------------------------------------------------------------------


def project(folder: Path, checkpoints: dict[str, str] = CHECKPOINTS, **config) -> Path:
    """A folder with the batch's files, and `config.yaml`."""
    for name in ("Snakefile", "notebooks", "profiles"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    configure(folder, checkpoints, **config)
    return folder


def configure(folder: Path, checkpoints: dict[str, str], **config) -> None:
    """Write `config.yaml`; without the paper's figures, which are many, unless it says otherwise."""
    content = {"checkpoints": checkpoints, "gap": GAP | config.pop("gap", {}), "scaling": {"num_bootstrap": 5}}
    content["paper"] = NO_PAPER
    (folder / "config.yaml").write_text(yaml.safe_dump({**content, **config}))


def command(*arguments: str) -> list[str]:
    snakemake = str(Path(sys.executable).with_name("snakemake"))
    return [snakemake, "--profile", "profiles/local", "--configfile", "config.yaml", *arguments]


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True, timeout=600)


def planned(folder: Path) -> set[str]:
    """The jobs that a run would run: outputs of a dry run, by file name."""
    done = snakemake(folder, "-n", "--quiet", "--summary")
    rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    return {Path(row[0]).name for row in rows[1:] if "no update" not in row[-1]}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A finished batch of two checkpoints, each scored in two shards, with the paper's figures and tables."""
    folder = project(tmp_path_factory.mktemp("batch"), shards=2, paper={})
    completed = snakemake(folder)
    assert completed.returncode == 0, completed.stderr
    return folder


@pytest.fixture
def batch(done, tmp_path) -> Path:
    """A copy of the finished batch that a test may change; a copied project is as up to date as before."""
    return Path(shutil.copytree(done, tmp_path / "batch", copy_function=shutil.copy2))


def test_a_batch_writes_all_that_is_promised(done):
    for name in ("gap_table.csv", "gap_table.md", "scaling_fits.json", "findings.md"):
        assert (done / "results" / name).stat().st_size > 0
    for name in ("training_loss", "inference_loss"):
        assert len(pd.read_csv(done / "results" / name / "points.csv")) == 2
    for name in ("gap_analysis.png", "gap_analysis.pdf", "scaling_laws.png", "scaling_laws.pdf", "gap/late.png"):
        assert (done / "plots" / name).stat().st_size > 1000
    for name in ("gap_training", "gap_passes", "mode_losses", "position_losses", "scaling_laws"):
        facts = json.loads((done / "plots" / "paper" / f"{name}.json").read_text())
        assert all((done / "plots" / "paper" / file).stat().st_size > 1000 for file in facts["files"])
        assert facts["n"]["evaluation samples"] == 8
        assert facts["sources"][0] == "results/gap_table.csv"
    for name in ("gap_table", "scaling_fits"):
        assert "\\toprule" in (done / "results" / "paper" / f"{name}.tex").read_text()
    table = pd.read_csv(done / "results" / "gap_table.csv")
    assert table["id"].tolist() == ["early", "late"]
    result = json.loads((done / gap_file("late")).read_text())
    assert result["parameters"] == {"checkpoint": CHECKPOINTS["late"], **GAP}
    samples = pd.read_parquet(done / "results" / "gap" / "late.parquet")
    assert samples["sample"].tolist() == list(range(8))


def test_run_again_nothing_is_to_be_done(batch):
    again = snakemake(batch)
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr


def test_two_shards_give_the_numbers_of_one_to_the_last_digit(done, tmp_path):
    parts = json.loads((done / gap_file("late")).read_text())
    model, videos = open_evaluation(CHECKPOINTS["late"], GAP["data"])
    table = tmp_path / "whole.parquet"
    whole = evaluate_inference_gap(model, videos, table, 8, 4, [1], floor_samples=2, progress=False)
    assert {name: parts[name] for name in asdict(whole)} == json.loads(json.dumps(asdict(whole)))


def test_one_more_checkpoint_runs_that_one_and_the_aggregation(batch):
    configure(batch, {**CHECKPOINTS, "middle": str(DEMO / "S-S" / "step_1000")}, shards=2, paper={})
    jobs = planned(batch)
    assert {"middle.json", "gap_table.csv", "findings.md"} <= jobs
    assert not any(name.startswith(("early", "late")) for name in jobs)


def test_other_parameters_run_everything_anew(batch):
    configure(batch, CHECKPOINTS, gap={"num_samples": 12}, shards=2, paper={})
    assert {"early.json", "late.json", "early.1-of-2.parquet", "gap_table.csv"} <= planned(batch)


def test_changed_code_of_a_notebook_runs_what_depends_on_it(batch):
    assert planned(batch) == set()
    notebook = batch / "notebooks" / "scaling_analysis.ipynb"
    content = json.loads(notebook.read_text())
    content["cells"][0]["source"] = ["# another title"]
    notebook.write_text(json.dumps(content))
    assert planned(batch) == set()
    content["cells"][-1]["source"].append("\n1 + 1")
    notebook.write_text(json.dumps(content))
    jobs = planned(batch)
    assert "gap_table.csv" in jobs
    assert not any(name.startswith(("early", "late")) for name in jobs)


def test_a_changed_setting_runs_the_changed_patches_alone(tmp_path):
    """What the panel writes is what the batch runs with; the benchmark stays as it is."""
    settings = tmp_path / "differential.yaml"
    write_settings(settings, DifferentialSettings())
    idle = tmp_path / "idle"
    idle.mkdir()
    for file in sorted((ROOT / "data" / "screens" / "idle").glob("frame_000[01].png")):
        shutil.copy(file, idle)
    tower = {"tower": str(DEMO / "S-S" / "step_3000"), "image_size": [32, 32], "tolerances": [0.0]}
    differential = {"settings": str(settings), "sequences": {"idle": str(idle)}, "towers": {"demo": tower}}
    (tmp_path / "batch").mkdir()
    folder = project(tmp_path / "batch", {}, differential=differential)
    assert snakemake(folder).returncode == 0
    assert planned(folder) == set()
    write_settings(settings, DifferentialSettings(), "another comment")
    assert planned(folder) == set()

    write_settings(settings, DifferentialSettings(diff_threshold=0.3, patch_size=100, max_changed_patches=7))
    again = planned(folder)
    assert {"idle.parquet", "idle.npz", "idle.png"} <= again
    assert not any("--" in name for name in again)  # of the benchmark
    assert snakemake(folder).returncode == 0
    assert pd.read_parquet(folder / "results" / "changes" / "idle.parquet")["total"].tolist() == [8 * 13] * 2
    run = json.loads((folder / "papermill_runs" / "changes_idle.run.json").read_text())
    assert {"threshold": 0.3, "patch_size": 100, "max_changed_patches": 7}.items() <= run["parameters"].items()


def test_a_study_becomes_tables_figures_and_findings_and_figures_of_the_paper(tmp_path, monkeypatch):
    table = planted_table(seeds=(0, 1), steps=(100, 300, 1000), lengths=(8, 16))
    study = write_results(tmp_path / "study", table, planted_samples(table))
    (tmp_path / "batch").mkdir()
    folder = project(tmp_path / "batch", {}, study=str(study), paper={"formats": ["png"]})
    completed = snakemake(folder)
    assert completed.returncode == 0, completed.stderr
    means = pd.read_csv(folder / "results" / "close_the_gap" / "means.csv")
    assert means.groupby(["size", "recipe"]).size().to_dict() == {(s, r): 3 for s in "SML" for r in ("plain", "multi")}
    monkeypatch.chdir(folder)
    described = read_batch_file("config.yaml")
    captions = {shown.path.as_posix(): shown.caption for shown in find_figures(described)}
    assert {f"plots/close_the_gap/{name}.png" for name in STUDY_FIGURES} <= {*captions}
    assert captions["plots/close_the_gap/compute.png"] == captions["plots/paper/study_compute.png"]
    assert "n: 12 training runs, 36 checkpoints, 40 evaluation samples." in captions["plots/close_the_gap/compute.png"]
    shown = read_study_findings(described)
    assert "Does the gap of plain training grow with training?" in shown and "<summary>Evidence</summary>" in shown
    assert planned(folder) == set()

    table.assign(num_tokens=100).to_parquet(study / "study.parquet", index=False)
    assert {"means.csv", "compute.pdf", "study_compute.png"} <= planned(folder)
    assert read_study_findings(described).startswith("No findings of the study: `bash run.sh` makes them of ")


def test_a_lost_intermediate_is_made_again(batch):
    """Else the old table would pass for up to date after a failed re-run has deleted a result."""
    (batch / gap_file("late")).unlink()
    assert {"late.json", "gap_table.csv"} <= planned(batch)


def test_a_failed_run_leaves_its_notebook_and_the_others_their_results(tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(CHECKPOINTS["late"], broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:1000])
    (tmp_path / "batch").mkdir()
    checkpoints = {"broken": str(broken), "nowhere": "nowhere", "early": CHECKPOINTS["early"]}
    folder = project(tmp_path / "batch", checkpoints)
    failed = snakemake(folder)
    assert failed.returncode != 0
    assert (folder / gap_file("early")).exists()
    for name, reason in (("broken", "weights cannot be read"), ("nowhere", "no checkpoint folder nowhere")):
        assert not (folder / gap_file(name)).exists()
        assert (folder / "papermill_runs" / f"gap_{name}.ipynb").exists()
        assert run_status(folder / "papermill_runs" / f"gap_{name}.run.json") == "failed"
        assert reason in failed.stdout + failed.stderr
    assert not (folder / "results" / "gap_table.csv").exists()
    report = subprocess.run(
        [sys.executable, "-m", "fvlm_lib", "report", "config.yaml"], cwd=folder, capture_output=True, text=True
    )
    assert report.returncode == 1
    assert "| S-S" in report.stdout
    assert "no result for nowhere" in report.stdout

    (broken / "model.safetensors").write_bytes(weights)
    configure(folder, {key: checkpoints[key] for key in ("broken", "early")})
    again = planned(folder)
    assert {"broken.json", "gap_table.csv"} <= again
    assert "early.json" not in again
    assert snakemake(folder, "--", gap_file("broken")).returncode == 0


def test_killed_and_started_again_only_what_was_running_is_lost(tmp_path):
    folder = project(tmp_path)
    asked = ["--", *map(gap_file, CHECKPOINTS)]
    process = subprocess.Popen(
        command("--cores", "1", *asked), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    results = [folder / gap_file(name) for name in CHECKPOINTS]
    runs = [folder / "papermill_runs" / f"gap_{name}.run.json" for name in CHECKPOINTS]
    deadline = time.monotonic() + 120
    while not (any(path.exists() for path in results) and all(path.exists() for path in runs)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = next(path for path in results if path.exists())
    before = first.stat().st_mtime_ns
    assert sum(path.exists() for path in results) == 1
    assert snakemake(folder, "--unlock").returncode == 0
    again = snakemake(folder, *asked)
    assert again.returncode == 0, again.stderr
    assert first.stat().st_mtime_ns == before
    assert all(path.exists() for path in results)


def test_killed_among_shards_only_the_running_ones_are_lost(tmp_path):
    """kill -9 when a shard is finished; run again, the table is that of one shard and no finished one is repeated."""
    write_folder(tmp_path, 8)
    gap = {"data": {"kind": "folder", "path": str(tmp_path)}, "num_samples": None, "batch_size": 2}
    late = {"late": CHECKPOINTS["late"]}
    (tmp_path / "sharded").mkdir()
    folder = project(tmp_path / "sharded", late, gap=gap, shards=3)
    process = subprocess.Popen(
        command("--cores", "1", "--", gap_file("late")), cwd=folder, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    shards = folder / "results" / "gap" / "shards"
    deadline = time.monotonic() + 120
    while len(list(shards.glob("*.parquet"))) < 2:  # one is surely finished, the second may be
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    finished = sorted(shards.glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)[:1]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = [path.stat().st_mtime_ns for path in finished]
    assert not (folder / gap_file("late")).exists()
    assert snakemake(folder, "--unlock").returncode == 0
    again = snakemake(folder, "--", gap_file("late"))
    assert again.returncode == 0, again.stderr
    assert [path.stat().st_mtime_ns for path in finished] == before

    result = json.loads((folder / gap_file("late")).read_text())
    whole = tmp_path / "whole.parquet"
    model, videos = open_evaluation(late["late"], gap["data"])
    measured = evaluate_inference_gap(model, videos, whole, None, 2, [1], floor_samples=2, progress=False)
    assert {name: result[name] for name in asdict(measured)} == json.loads(json.dumps(asdict(measured)))
    tables = [pd.read_parquet(path) for path in (whole, folder / "results" / "gap" / "late.parquet")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert tables[0]["sample"].tolist() == list(range(8))


def test_a_result_of_other_parameters_stops_the_aggregation(batch):
    result = batch / gap_file("late")
    content = json.loads(result.read_text())
    content["parameters"]["num_samples"] = 99
    result.write_text(json.dumps(content))
    failed = snakemake(batch)
    assert failed.returncode != 0
    assert "was made with num_samples = 99, the config says 8" in failed.stdout + failed.stderr


def test_data_that_is_not_there_stops_the_batch_with_one_sentence(tmp_path):
    folder = project(tmp_path, gap={"data": {"kind": "webdataset", "path": "data/test-{000..007}.tar"}})
    failed = snakemake(folder, "-n")
    assert failed.returncode != 0
    assert "config.yaml: data: no file matches 'data/test-000.tar'" in failed.stdout + failed.stderr


def test_a_missing_checkpoint_is_named_before_anything_runs(tmp_path):
    planned_only = snakemake(project(tmp_path, {"a": "nowhere"}), "-n")
    assert planned_only.returncode == 0
    assert planned_only.stderr.count("checkpoint a: there is no nowhere") == 1


def test_a_wrong_config_stops_with_one_sentence(tmp_path):
    folder = project(tmp_path, {"a": "x", "b": "x"})
    for arguments in ((), ("-n",)):
        failed = snakemake(folder, *arguments)
        assert failed.returncode == 2
        assert failed.stderr.splitlines()[1:] == ["config.yaml: a and b are the same folder, x; keep one of them"]
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("  b: x", "  a: x"))
    again = snakemake(folder, "-n")
    assert again.returncode == 2
    assert "gives the key 'a' again" in again.stderr.splitlines()[1]
