"""What a batch does when it is killed, stopped, started twice, or cannot write: nothing that was done is lost or
repeated, and in the end the tables are the same.

`bash run.sh` runs here for real, on a copy of the project's folder with two tiny evaluations.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from captioned import write_folder
from conftest import DEMO, ROOT

from fvlm_lib.batch.runs import run_status

pytestmark = pytest.mark.slow

CHECKPOINTS = {"early": str(DEMO / "S-S" / "step_0100"), "late": str(DEMO / "S-S" / "step_3000")}
CONFIG = {
    "checkpoints": CHECKPOINTS,
    "gap": {
        "data": {"kind": "procedural", "split": "test"}, "num_samples": 8, "batch_size": 4, "num_fine": [1],
        "dtype": None, "device": "cpu", "seed": 0, "floor_samples": 2,
    },
    "scaling": {"num_bootstrap": 5},
    "paper": {"figures": [], "tables": []},
    "output": "mine",
}  # fmt: skip
RESULTS = [Path("mine/results/gap", f"{name}.json") for name in CHECKPOINTS]
TABLES = ["gap_table.csv", "training_loss/points.csv", "inference_loss/points.csv", "findings.md", "scaling_fits.json"]


def project(folder: Path, **config: object) -> Path:
    """A folder in which `bash run.sh --configfile config.yaml` runs two tiny evaluations."""
    for name in ("Snakefile", "notebooks", "profiles", "run.sh", "requirements.txt", "requirements-dev.txt"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **config}))
    return folder


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`bash run.sh`, as the leader of a process group."""
    return subprocess.Popen(
        ["bash", "run.sh", "--configfile", "config.yaml", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": "false"},  # .venv is linked: nothing may install into it
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    return finish(start(folder, *arguments))


def processes(folder: Path) -> list[psutil.Process]:
    """All that runs in the folder: the command, Snakemake, jobs and kernels."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(folder.resolve()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_until(condition, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def half_done(folder: Path) -> bool:
    """One evaluation is finished, the other one's notebook runs."""
    records = [folder / "mine/papermill_runs" / f"gap_{name}.run.json" for name in CHECKPOINTS]
    return any((folder / path).exists() for path in RESULTS) and all(
        record.exists() and record.with_suffix("").with_suffix(".ipynb").exists() for record in records
    )


def done(folder: Path) -> dict[Path, int]:
    """The finished evaluations, with the time of each."""
    finished = {}
    for path in RESULTS:
        record = folder / "mine/papermill_runs" / f"gap_{path.stem}.run.json"
        if record.exists() and run_status(record) == "done":
            finished[path] = (folder / path).stat().st_mtime_ns
    return finished


def tables(folder: Path) -> dict[str, str]:
    results = folder / "mine" / "results"
    samples = {str(p): pd.read_parquet(folder / p.with_suffix(".parquet")).to_csv() for p in RESULTS}
    return {name: (results / name).read_text() for name in TABLES} | samples


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    """The tables of a batch that nothing disturbed."""
    folder = project(tmp_path_factory.mktemp("undisturbed"))
    status, out, error = run(folder)
    assert status == 0, error
    assert out.splitlines()[-1] == "report: mine/results/report.html"
    assert not {*folder.glob("results"), *folder.glob("plots"), *folder.glob("papermill_runs")}
    return tables(folder)


def goes_on(folder: Path, undisturbed: dict[str, str], before: dict[Path, int]) -> None:
    """A second run repeats nothing that was done, and ends in the tables of an undisturbed one."""
    status, out, error = run(folder)
    assert status == 0, error
    assert {path: (folder / path).stat().st_mtime_ns for path in before} == before
    assert tables(folder) == undisturbed
    assert out.splitlines()[-1] == "report: mine/results/report.html"


def snakemake_of(process: subprocess.Popen[str]) -> int:
    children = psutil.Process(process.pid).children()
    return next(child.pid for child in children if "fvlm_lib.batch.workflow" in child.cmdline())


FAULTS = {
    "SIGKILL of the shell": (lambda p: os.kill(p.pid, signal.SIGKILL), -9),
    "SIGKILL of Snakemake": (lambda p: os.kill(snakemake_of(p), signal.SIGKILL), 137),
    "SIGKILL of the group": (lambda p: os.killpg(p.pid, signal.SIGKILL), -9),
    "SIGKILL of Snakemake's group": (lambda p: os.killpg(snakemake_of(p), signal.SIGKILL), 137),
    "SIGTERM of the shell": (lambda p: os.kill(p.pid, signal.SIGTERM), 143),
    "SIGTERM of the group": (lambda p: os.killpg(p.pid, signal.SIGTERM), 143),
    "SIGINT of the shell": (lambda p: os.kill(p.pid, signal.SIGINT), 130),
    "SIGINT of the group": (lambda p: os.killpg(p.pid, signal.SIGINT), 130),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_signal_nothing_is_left_running_lost_or_repeated(fault, tmp_path, undisturbed):
    folder = project(tmp_path)
    process = start(folder, "--cores", "1")
    wait_until(lambda: half_done(folder), process)
    strike, expected = FAULTS[fault]
    strike(process)
    status, _, error = finish(process)
    assert status == expected
    if "SIGKILL" not in fault:
        name = fault.split()[0]
        assert error == f"stopped by {name}; what was finished is kept, and the same command goes on\n"
    if expected == 137:
        assert error == "Snakemake was killed by SIGKILL; what was finished is kept, and the same command goes on\n"
    deadline = time.monotonic() + 10  # of the jobs and kernels, each of which watches for the end of its parent
    while processes(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes(folder)
    before = done(folder)
    assert len(before) == 1
    goes_on(folder, undisturbed, before)


def test_a_killed_shell_and_a_second_one_at_once(tmp_path, undisturbed):
    """The second waits for the first one's last processes, if any, and goes on."""
    folder = project(tmp_path)
    process = start(folder, "--cores", "1")
    wait_until(lambda: half_done(folder), process)
    os.kill(process.pid, signal.SIGKILL)
    before = done(folder)
    goes_on(folder, undisturbed, before)
    process.communicate()


def test_two_batches_in_one_folder(tmp_path, undisturbed):
    """The second is refused in one line that names the process; a number that is left over blocks nothing."""
    (tmp_path / ".snakemake").mkdir()
    (tmp_path / ".snakemake" / "batch.lock").write_text(f"{os.getpid()}\n")  # a process that lives
    folder = project(tmp_path)
    process = start(folder)
    wait_until(lambda: (folder / "mine/papermill_runs/gap_early.run.json").exists(), process)
    status, out, error = run(folder)
    assert status == 2 and out == ""
    assert error.startswith(f"a batch is running in {folder} already (process {process.pid}: ")
    assert error.count("\n") == 1
    assert finish(process)[0] == 0
    assert tables(folder) == undisturbed


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A folder `mine` on a disk of its own, of 256 KB."""
    mine = tmp_path / "mine"
    mine.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(mine)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a disk of its own takes root")
    yield mine
    subprocess.run(["umount", str(mine)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def test_on_a_full_disk_the_batch_says_so_and_goes_on_when_there_is_room(small_disk, undisturbed):
    folder = project(small_disk.parent)
    status, out, error = run(folder)
    assert status != 0
    assert "No space left on device" in out + error
    assert "Traceback" not in out + error
    assert not list(small_disk.rglob(".*"))  # nothing half-written
    remount(small_disk, "size=64m")
    goes_on(folder, undisturbed, done(folder))


def test_output_that_cannot_be_written_is_refused_before_anything_runs(small_disk, undisturbed):
    folder = project(small_disk.parent)
    remount(small_disk, "ro")
    status, out, error = run(folder)
    assert status == 2 and out == ""
    assert error == "[Errno 30] Read-only file system: 'mine/results'\n"
    remount(small_disk, "rw,size=64m")
    goes_on(folder, undisturbed, {})


def test_a_video_replaced_under_unchanged_captions_is_measured_again(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_folder(data, 8)
    (tmp_path / "project").mkdir()
    gap = {**CONFIG["gap"], "data": {"kind": "folder", "path": str(data)}, "num_samples": None}
    folder = project(tmp_path / "project", gap=gap)
    status, _, error = run(folder)
    assert status == 0, error
    assert "nothing to be done" in run(folder, "-n")[1]
    video = sorted(path for path in data.rglob("*") if path.is_file() and path.name != "captions.jsonl")[0]
    other = sorted(path for path in data.rglob("*") if path.is_file() and path.name != "captions.jsonl")[-1]
    shutil.copyfile(other, video)
    planned = run(folder, "-n")[1]
    assert "early, late" in planned or "late, early" in planned
