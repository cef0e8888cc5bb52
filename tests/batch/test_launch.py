"""The command of a batch, part by part: which config, one lock a folder, how far it is, where its files go, its report.

What it does as a whole, when it is killed or cannot write, is in `test_faults.py`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import yaml
from conftest import ROOT

from fvlm_lib.batch.config import read_batch
from fvlm_lib.batch.export import export_html
from fvlm_lib.batch.folders import Folders, batch_runs, folders, run_name
from fvlm_lib.batch.launch import find_config, main
from fvlm_lib.batch.lock import Locked, take_lock
from fvlm_lib.batch.processes import PARENT, end_with_parent, group_members, kill_group, stop_group
from fvlm_lib.batch.progress import Progress, plan_text
from fvlm_lib.figures.batch_report import find_figures, read_findings, sortable_html
from fvlm_lib.gap.findings import main as findings
from fvlm_lib.gap.report import main as report
from fvlm_lib.gap.results import gap_file

DEMO_CONFIG = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
GAPS_ALONE = {key: DEMO_CONFIG[key] for key in ("checkpoints", "gap")}


# ---- folders -----------------------------------------------------------------------------------------


def test_a_batch_has_its_folders_at_the_top_level_or_below_its_output():
    assert folders(None) == Folders("results", "plots", "papermill_runs")
    assert folders("./mine/") == folders("mine") == Folders("mine/results", "mine/plots", "mine/papermill_runs")
    assert folders("/data/x").results == "/data/x/results"
    assert gap_file("a") == "results/gap/a.json"
    assert gap_file("a", folders("mine").results) == "mine/results/gap/a.json"


@pytest.mark.parametrize("wrong", ["", " ", 3, ["x"], "{id}", "a*", "a\nb"])
def test_an_output_that_is_no_folder_is_named(wrong):
    with pytest.raises(ValueError, match=r"^config: output is .*; it must be (a folder such as mine|text)"):
        read_batch({**DEMO_CONFIG, "output": wrong}, "config")


def test_the_runs_of_the_demo_are_named_as_the_snakefile_names_them():
    runs = batch_runs(read_batch(DEMO_CONFIG))
    assert len(runs) == 1 + 1 + 1 + 12 + 7 + 7 + 2 + 1 + 1
    assert runs["gap_S-S_0100"] == "gap" and runs["predict_reader-form--reader"] == "predict"
    assert runs["prefill_text-screens"] == "prefill" and runs["answers_reader"] == "answers"
    assert runs["close_the_gap"] == "study" and "close_the_gap" not in batch_runs(read_batch(GAPS_ALONE))
    assert run_name("differential", {"sequence": "idle", "tower": "demo"}) == "differential_idle--demo"


def test_the_paper_follows_the_output():
    given = read_batch({**DEMO_CONFIG, "output": "mine"}).paper_parameters()
    assert (given["results"], given["output"], given["table_output"]) == (
        "mine/results", "mine/plots/paper", "mine/results/paper",
    )  # fmt: skip


def test_a_copy_of_the_demo_writes_no_tracked_file():
    """docs/KNOWLEDGE.md is written by `fvlm findings --into` alone."""
    assert read_batch(DEMO_CONFIG).knowledge is None


# ---- the command's arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], ("config/demo.yaml", "profiles/local", False)),
        (["-n"], ("config/demo.yaml", "profiles/local", True)),
        (["-np"], ("config/demo.yaml", "profiles/local", True)),
        (["--configfile", "x.yaml", "--cores", "8", "--dryrun"], ("x.yaml", "profiles/local", True)),
        (["--configfile=x.yaml", "--", "results/gap/a.json"], ("x.yaml", "profiles/local", False)),
        (["results/gap/a.json", "--forcerun", "gap"], ("config/demo.yaml", "profiles/local", False)),
        (["--profile", "profiles/slurm", "--configfile", "x.yaml"], ("x.yaml", "profiles/slurm", False)),
    ],
)
def test_config_and_profile_are_found_among_snakemake_s_arguments(arguments, found, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert find_config(arguments) == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "shards=2"], "--config is not for batches"),
        (["--configfile", "a.yaml", "b.yaml"], "a batch is of one config, .* not of 2"),
        (["--profile", "profiles/slurm"], "a batch is of one config, as --configfile config/mine.yaml, not of 0"),
        (["--configfile", "nowhere.yaml"], "^there is no file nowhere.yaml$"),
    ],
)
def test_a_batch_of_no_one_config_is_refused(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert re.search(message, said.err)


# ---- the lock ----------------------------------------------------------------------------------------


def test_the_lock_is_held_by_what_inherits_it_and_by_nothing_else(tmp_path):
    path = tmp_path / ".snakemake" / "batch.lock"
    path.parent.mkdir()
    path.write_text(f"{os.getppid()}\n")  # left over, the number of a process that lives
    held = take_lock(path)
    with pytest.raises(Locked, match=f"is running in {tmp_path} already"):
        take_lock(path, patience=0)
    child = subprocess.Popen(["sleep", "60"], stdin=held)
    os.close(held)
    with pytest.raises(Locked, match=rf"\(process {child.pid}: sleep 60\); wait for it or stop it$"):
        take_lock(path, patience=0)
    child.kill()
    child.wait()
    os.close(take_lock(path, patience=0))


# ---- processes ---------------------------------------------------------------------------------------


def test_a_process_ends_with_its_parent(tmp_path):
    job = "import time; from fvlm_lib.batch.processes import end_with_batch; end_with_batch(); time.sleep(60)"
    code = f"""
import os, subprocess, sys, time
os.environ[{PARENT!r}] = str(os.getpid())
print(subprocess.Popen([sys.executable, "-c", {job!r}]).pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    child = psutil.Process(int(parent.stdout.readline()))
    while child.num_threads() < 2:  # until it watches
        time.sleep(0.05)
    parent.kill()
    parent.communicate()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()


def test_an_end_that_came_before_the_watch_is_noticed_too():
    ended = []
    end_with_parent(os.getppid() + 1, lambda: ended.append(True), interval=0.01)
    deadline = time.monotonic() + 10
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended == [True]


def test_a_group_is_told_once_and_its_leader_by_sigint(tmp_path):
    # os.write, since both write to one pipe and a line must come whole
    code = r"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"leader SIGINT\n"))
child = "import os, signal, time; signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'job SIGTERM\\n')); "
child += "os.write(1, b'ready\\n'); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child])
time.sleep(60)
"""
    leader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert leader.stdout.readline() == "ready\n"
    told = set()
    members = stop_group(leader.pid, 15, told)
    assert len(members) == 2 and told == {*members}
    assert {leader.stdout.readline(), leader.stdout.readline()} == {"leader SIGINT\n", "job SIGTERM\n"}
    stop_group(leader.pid, 15, told)
    kill_group(leader.pid)
    assert leader.communicate()[0] == ""
    deadline = time.monotonic() + 10
    while group_members(leader.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not group_members(leader.pid)
    kill_group(leader.pid)  # which is gone


# ---- progress ----------------------------------------------------------------------------------------


def event(kind: str, **values: object) -> str:
    return json.dumps({"event": kind, "message": "", **values})


def test_progress_counts_jobs_and_tells_of_a_failure_at_once(tmp_path):
    record = {"status": "failed", "output": "gap_b.ipynb", "error": {"name": "E", "message": "why", "cell": 3}}
    (tmp_path / "gap_b.run.json").write_text(json.dumps(record))
    (tmp_path / "shard.log").write_text("50%\nCheckpointError: no weights\n")
    stream = StringIO()
    progress = Progress(tmp_path, stream)
    progress.take(event("run_info", stats={"all": 1, "gap": 2, "gap_shard": 1, "total": 4}))
    progress.take(event("job_info", jobid=1, rule_name="gap", wildcards={"id": "a"}))
    progress.take(event("job_info", jobid=2, rule_name="gap", wildcards={"id": "b"}))
    assert progress.running == {1: "gap a", 2: "gap b"}
    progress.take(event("job_finished", job_id=1))
    assert (progress.total, progress.done, progress.counts["gap"], stream.getvalue()) == (3, 1, 1, "")
    progress.take(event("job_error", jobid=2))
    assert stream.getvalue() == "failed: gap_b.ipynb: failed in cell [3]: E: why\n"
    wildcards = {"id": "c", "scatteritem": "1-of-2"}
    progress.take(event("job_info", jobid=3, rule_name="gap_shard", wildcards=wildcards))
    progress.take(event("job_error", jobid=3, log=[str(tmp_path / "shard.log")]))
    assert stream.getvalue().splitlines()[-1] == "failed: gap_shard c--1-of-2: CheckpointError: no weights"
    assert progress.failed == ["gap b", "gap_shard c--1-of-2"] and not progress.running
    progress.take(event("job_info", jobid=0, rule_name="all", wildcards={}))
    progress.take(event("job_finished", job_id=0))  # the rule that only lists files is no job
    assert progress.done == 1


def test_where_there_is_no_terminal_a_line_comes_now_and_then(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = StringIO()
    progress = Progress(tmp_path, stream)
    progress.take(event("run_info", stats={"gap": 4, "total": 4}))
    progress.take(event("job_info", jobid=1, rule_name="gap", wildcards={"id": "a"}))
    now[0] += 10
    progress.show()
    assert stream.getvalue() == ""
    now[0] += 10
    progress.show()
    assert stream.getvalue() == "0 of 4 jobs done, 1 running, time left not known yet\n"
    now[0] += 20
    progress.take(event("job_finished", job_id=1))
    assert stream.getvalue().count("\n") == 1  # lines grow rarer: 15 s, then 22.5
    now[0] += 60
    progress.show()
    assert stream.getvalue().splitlines()[-1] == "1 of 4 jobs done, 0 running, about 5 min left"


def test_on_a_terminal_it_is_one_line(tmp_path):
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = Progress(tmp_path, stream)
    progress.take(event("run_info", stats={"gap": 2, "total": 2}))
    progress.take(event("job_info", jobid=1, rule_name="gap", wildcards={"id": "a"}))
    assert "\n" not in stream.getvalue()
    assert "0 of 2 jobs done, 1 running, 00:00 gone, about ? left" in stream.getvalue()
    progress.close()
    assert stream.getvalue().endswith("\r")  # and it is taken away


def test_a_plan_names_jobs_by_rule_and_why_they_run():
    planned = [("gap", f"c{i}", "Missing output files: a, b") for i in range(8)]
    planned += [("scaling", "", "Missing output files: c; Input files updated by another job: d")]
    assert plan_text(planned).splitlines() == [
        "9 jobs would run:",
        "  gap             8  c0, c1, c2, c3, c4, c5 and 2 more",
        "  scaling         1",
        "because: missing output files (9), input files updated by another job (1)",
    ]
    assert plan_text([]) == "nothing to be done: all is up to date"


# ---- the report --------------------------------------------------------------------------------------


def test_a_page_has_what_the_notebook_shows_and_needs_nothing_else(tmp_path):
    cells = [
        nbformat.v4.new_markdown_cell("# A question?"),
        nbformat.v4.new_code_cell(
            "secret_code = 1",
            execution_count=1,
            outputs=[
                nbformat.v4.new_output("display_data", {"text/html": "<table class='sortable'><td>shown</table>"}),
                nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="}),
            ],
        ),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    export_html(tmp_path / "n.ipynb", tmp_path / "results" / "report.html", "A title")
    page = (tmp_path / "results" / "report.html").read_text()
    assert "A question?" in page and "shown" in page and "data:image/png;base64,iVBORw0KGgo=" in page
    assert "secret_code" not in page and "In&nbsp;[" not in page
    assert "http" not in page.replace('"http://www.w3.org', "") and 'src="data:' in page
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["report.html"]


def test_an_interval_is_not_broken_and_text_is_escaped():
    page = sortable_html(pd.DataFrame({"gap": ["+0.1 [+0.0, +0.2] †"], "why": ["<b> is a [x] b"]}))
    assert "+0.1\u00a0[+0.0,\u00a0+0.2]\u00a0†" in page
    assert "&lt;b&gt; is a\u00a0[x] b" in page


def test_findings_and_figures_older_than_their_results_are_not_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("notebooks", "checkpoints"):
        Path(name).symlink_to(ROOT / name)
    batch = read_batch({**GAPS_ALONE, "checkpoints": {"a": "x"}})
    for file in ("results/gap/a.json", "results/findings.md", "plots/gap_analysis.png"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text("**Is it?** Yes.\n\n- because\n- of that\n")
        os.utime(file, (1000, 1000))
    shown = read_findings(batch)
    assert shown.startswith("**Is it?** Yes.")
    assert "<details><summary>Evidence</summary>\n\n- because\n- of that\n\n</details>" in shown
    assert [str(figure.path) for figure in find_figures(batch)] == ["plots/gap_analysis.png"]
    os.utime("results/gap/a.json", (2000, 2000))
    assert read_findings(batch).startswith("No findings")
    assert find_figures(batch) == []


def test_reports_speak_of_the_batch_s_own_runs_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump({**GAPS_ALONE, "output": "mine"}, sort_keys=False))
    Path("mine/papermill_runs").mkdir(parents=True)
    for name in ("gap_S-S_0100", "gap_of_another_batch"):
        record = {"status": "failed", "output": name, "error": {"name": "E", "message": "why", "cell": None}}
        Path(f"mine/papermill_runs/{name}.run.json").write_text(json.dumps(record))
    assert report(["config.yaml"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "gap_S-S_0100: failed: E: why"
    assert not any("another_batch" in line for line in said)
    assert said[0] == "no result for S-S_0100: mine/results/gap/S-S_0100.json is missing; `bash run.sh` makes it"


def test_findings_go_into_a_tracked_file_by_a_command_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump({**GAPS_ALONE, "output": "mine"}, sort_keys=False))
    Path("K.md").write_text("top\n<!-- begin findings -->\nold\n<!-- end findings -->\nend\n")
    assert findings(["config.yaml", "--into", "K.md"]) == 2
    assert capsys.readouterr().err == "fvlm findings: mine/results/findings.md is missing; `bash run.sh` makes it\n"
    Path("mine/results").mkdir(parents=True)
    Path("mine/results/findings.md").write_text("new\n")
    assert findings(["config.yaml", "--into", "K.md"]) == 0
    assert Path("K.md").read_text() == "top\n<!-- begin findings -->\nnew\n<!-- end findings -->\nend\n"
