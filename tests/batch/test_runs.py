"""Runs end as they say they do: parameters, results, provenance, signals and the hash of the code."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from conftest import ROOT

from fvlm_lib.batch import runs
from fvlm_lib.batch.notebooks import LIBRARY, code_hash, complete_parameters, modules_used_by
from fvlm_lib.batch.runs import report, run, run_status

SLEEP = ["sleep", f"61.{os.getpid()}"]  # a command that no other test run has
DEFAULTS = """
# the example of the tests
out: str = "result.json"
learning_rate: float = 1e-3
num_samples = 3
label = "x"
sizes = [1]
options = {}
note = None
limit: int | None = 5
flag = False
computed = 2 * 3
"""
ANNOTATED = """
from typing import Optional
from fvlm_lib.data.options import Data
from fvlm_lib.schema import Count
batch: Optional[Count] = None
data: Data = {"kind": "procedural"}
array: np.ndarray = None
"""
GIVEN = {
    "learning_rate": 1e-5,
    "label": '0012 "é\\n',
    "sizes": [1, [2.5, None, True], {"a": "1"}],
    "note": [None],
    "limit": None,
    "flag": True,
}
WRITE = """
import ipykernel, json, os, sys
names = "learning_rate num_samples label sizes options note limit flag computed".split()
values = {name: globals()[name] for name in names}
values |= {"executable": sys.executable, "directory": os.getcwd()}
values["connection"] = ipykernel.get_connection_info(unpack=True) | {"key": None}
_ = open(out, "w").write(json.dumps(values))
"""


def _notebook(path: Path, *cells: str, parameters: str | None = DEFAULTS, text: str = "# A title") -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    notebook.metadata["kernelspec"] = {"name": "no-such-kernel", "display_name": "x", "language": "python"}
    if parameters is not None:
        notebook.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def _start(folder: Path, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fvlm_lib", "run", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


def _record(output: Path) -> dict[str, Any]:
    return json.loads(output.with_suffix(".run.json").read_text())


def _kernels(temporary: Path) -> list[int]:
    """Processes with the folder in their command line: the kernels of runs whose $TMPDIR it is."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if f"{temporary}/fvlm-" in command and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def _sleepers() -> list[int]:
    """What is left of the child processes that the notebooks of these tests start."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == SLEEP]


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


# ---- runs with kernels ----------------------------------------------------------------------------------


def test_two_runs_at_once_keep_types_and_write_provenance(tmp_path: Path) -> None:
    notebook = _notebook(tmp_path / "{odd} name.ipynb", WRITE)
    (tmp_path / "given.json").write_text(json.dumps(GIVEN))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.ipynb").write_text("left by a former run")
    # A spec of another environment under the name python3, which jupyter would prefer.
    shadow = tmp_path / "home" / "kernels" / "python3"
    shadow.mkdir(parents=True)
    (shadow / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "x", "language": "python"}')
    long = tmp_path / ("t" * 60)  # too long for a socket
    long.mkdir()
    environment = {"JUPYTER_PATH": str(tmp_path / "home"), "TMPDIR": str(long)}
    first = ["--output", "runs/a.ipynb", "--results", "result.json", "--parameters", "@given.json"]
    second = ["--output", "runs/new/b{}.ipynb", "--results", "b/c.json", "--code-hash", "abc", "--parameters"]
    second += ['{"out": "b/c.json", "learning_rate": 1}']
    for process in [_start(tmp_path, notebook.name, *each, **environment) for each in (first, second)]:
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0
    assert not list(long.iterdir())

    values = json.loads((tmp_path / "result.json").read_text())
    assert {name: values[name] for name in GIVEN} == GIVEN
    assert values["num_samples"] == 3 and values["computed"] == 6
    assert isinstance(values["learning_rate"], float) and values["label"].startswith("0012")
    assert values["executable"] == sys.executable
    assert values["directory"] == str(tmp_path)
    other = json.loads((tmp_path / "b" / "c.json").read_text())
    assert other["learning_rate"] == 1 and type(other["learning_rate"]) is int
    assert values["connection"]["transport"] == "ipc"
    assert values["connection"]["ip"] != other["connection"]["ip"]

    record = _record(tmp_path / "runs" / "a.ipynb")
    expected = {"out": "result.json", "num_samples": 3, "options": {}, "computed": "2 * 3", **GIVEN}
    assert record["parameters"] == expected
    digest = hashlib.sha256((tmp_path / "result.json").read_bytes()).hexdigest()
    assert record["results"] == {"result.json": digest}
    assert record["status"] == "done" and record["error"] is None
    assert record["code_hash"] == code_hash(notebook)
    assert record["versions"]["python"].startswith("3.") and record["versions"]["papermill"]
    assert record["git"] is None  # tmp_path is no checkout
    assert record["started"].endswith("+00:00") and record["started"] < record["ended"]
    assert 0 < record["seconds"] < 30 and 20 < record["peak_memory_mb"] < 2000
    assert _record(tmp_path / "runs" / "new" / "b{}.ipynb")["code_hash"] == "abc"
    assert "former run" not in (tmp_path / "runs" / "a.ipynb").read_text()
    assert run_status(tmp_path / "runs" / "a.run.json") == "done"


def test_failure_leaves_the_notebook_and_removes_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result, other = Path("result.json"), Path("other.json")
    result.write_text("of a former run")
    other.write_text("of a former run")
    notebook = _notebook(Path("n.ipynb"), WRITE, "1 / num_samples", "print('not reached')")
    before = signal.getsignal(signal.SIGTERM)
    assert run(notebook, Path("o/n.ipynb"), {"num_samples": 0}, [result, other]) == 1
    assert signal.getsignal(signal.SIGTERM) == before
    line = "o/n.ipynb: failed in cell [4]: ZeroDivisionError: division by zero\n"  # one cell is injected
    assert capfd.readouterr() == ("", line)
    assert not result.exists() and not other.exists()
    record = _record(Path("o/n.ipynb"))
    assert record["status"] == "failed" == run_status(Path("o/n.run.json"))
    assert record["error"] == {"name": "ZeroDivisionError", "message": "division by zero", "cell": 4}
    assert record["results"] == {}
    executed = nbformat.read("o/n.ipynb", as_version=4)
    assert any("ZeroDivisionError" in str(cell.get("outputs")) for cell in executed.cells)
    assert report(Path("o")) == 1
    assert capfd.readouterr().out == line


def test_a_missing_result_and_a_dead_kernel_are_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = _notebook(Path("n.ipynb"), "open('a.json', 'w').close()", parameters=None)
    assert run(notebook, Path("n.run.ipynb"), {}, [Path("a.json"), Path("b.json")]) == 1
    assert "failed: MissingResult: the notebook ended without writing b.json\n" in capfd.readouterr().err
    assert not Path("a.json").exists()
    leave = f"import os, signal, subprocess\nsubprocess.Popen({SLEEP})\n"
    _notebook(notebook, "1", leave + "os.kill(os.getpid(), signal.SIGKILL)", parameters=None)
    assert run(notebook, Path("dead.ipynb"), {}) == 1
    assert "dead.ipynb: failed in cell [2]: DeadKernelError: Kernel died" in capfd.readouterr().err
    assert not _sleepers()


def test_signals_end_the_kernel_and_say_interrupted(tmp_path: Path) -> None:
    wait = "import pathlib, subprocess, time\nopen(out, 'w').close()\n"
    polite = _notebook(tmp_path / "polite.ipynb", wait + "time.sleep(60)")
    child = f"subprocess.Popen({SLEEP})\n"
    stubborn = "open(out + '.on', 'w').close()\nwhile True:\n    try:\n        time.sleep(60)\n"
    stubborn += "    except KeyboardInterrupt:\n        pass"
    deaf = _notebook(tmp_path / "deaf.ipynb", wait + child + stubborn)
    short = Path("/tmp") / f"fvlm-test-{os.getpid()}"
    short.mkdir()
    try:
        started = {}
        for name, notebook in {"term": polite, "int": deaf, "kill": polite}.items():
            arguments = ["--output", f"{name}.ipynb", "--results", f"{name}.json"]
            given = json.dumps({"out": f"{name}.json"})
            started[name] = _start(tmp_path, notebook, *arguments, "--parameters", given, TMPDIR=str(short))
        for name, process in started.items():
            _wait_for(tmp_path / f"{name}.json", process)
        _wait_for(tmp_path / "int.json.on", started["int"])
        assert run_status(tmp_path / "term.run.json") == "running"
        assert len(_kernels(short)) == 3
        started["term"].terminate()
        started["int"].send_signal(signal.SIGINT)
        started["kill"].kill()
        errors = {name: process.communicate(timeout=20)[1] for name, process in started.items()}
        assert {name: process.returncode for name, process in started.items()} == {
            "term": 143,
            "int": 130,
            "kill": -9,
        }
        for name, number in {"term": "SIGTERM", "int": "SIGINT"}.items():
            record = _record(tmp_path / f"{name}.ipynb")
            assert (record["status"], record["error"]["name"]) == ("interrupted", number)
            assert not (tmp_path / f"{name}.json").exists()
            assert errors[name] == f"{name}.ipynb: interrupted in cell [3]: {number}: stopped by a signal\n"
        assert _record(tmp_path / "kill.ipynb")["status"] == "running"
        assert run_status(tmp_path / "kill.run.json") == "interrupted"
        deadline = time.monotonic() + 10  # a kernel looks once a second whether its parent lives
        while _kernels(short) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not _kernels(short)
        assert not _sleepers()
    finally:
        for process in started.values():
            process.kill()
        subprocess.run(["rm", "-r", str(short)], check=True)


def test_provenance_knows_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.chdir(tmp_path)
    git("init")
    assert runs._provenance()["git"] is None  # no commit yet
    Path("a").write_text("1")
    git("add", "a")
    git("commit", "--message", "x")
    git("tag", "--annotate", "v1", "--message", "x")
    Path("untracked").write_text("1")
    assert runs._provenance()["git"] == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    Path("a").write_text("2")
    assert runs._provenance()["git"] == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_a_signal_while_the_kernel_starts_ends_it(tmp_path: Path) -> None:
    notebook = _notebook(tmp_path / "n.ipynb", "import time; time.sleep(60)")
    folder = Path("/tmp") / f"fvlm-test-early-{os.getpid()}"
    folder.mkdir()
    process = _start(tmp_path, notebook, "--output", "o.ipynb", TMPDIR=str(folder))
    while not _kernels(folder):
        assert process.poll() is None
    process.terminate()
    assert process.communicate(timeout=120) == ("", "o.ipynb: interrupted: SIGTERM: stopped by a signal\n")
    assert process.returncode == 143 and not _kernels(folder)
    folder.rmdir()  # so it is empty


# ---- wrong input, before a kernel starts ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_sample": 5}, ["'num_sample'", "did you mean 'num_samples'?", "out, learning_rate"]),
        ({"zzz": 5}, ["no parameter 'zzz'; it knows out"]),
        ({"num_samples": "abc"}, ["n.ipynb: num_samples is 'abc'; it must be a whole number"]),
        ({"num_samples": 3.0}, ["num_samples is 3.0; it must be a whole number"]),
        ({"num_samples": True}, ["num_samples is True; it must be a whole number"]),
        ({"num_samples": None}, ["num_samples is null; it must be a whole number"]),
        ({"learning_rate": "1e-5"}, ["learning_rate is '1e-5'; it must be a number"]),
        ({"learning_rate": True}, ["learning_rate is True; it must be a number"]),
        ({"flag": 1}, ["flag is 1; it must be true or false"]),
        ({"label": 12}, ["label is 12; it must be text"]),
        ({"sizes": {}}, ["sizes is {}; it must be a list"]),
        ({"limit": "5"}, ["limit is '5'; it must be a whole number, or null"]),
        ({"batch": 0}, ["batch is 0; it must be at least 1, or null"]),
        (
            {"data": {"kind": "foldr"}},
            ["data: kind is 'foldr'; it must be one of 'procedural', 'screens', 'folder', 'webdataset'"],
        ),
    ],
)
def test_wrong_parameters_are_named(tmp_path: Path, given: dict[str, Any], words: list[str]) -> None:
    notebook = _notebook(tmp_path / "n.ipynb", "1", parameters=DEFAULTS + ANNOTATED)
    assert complete_parameters(notebook, {"array": [1]})["array"] == [1]  # of a type that cannot be told here
    with pytest.raises(ValueError) as caught:
        complete_parameters(notebook, given)
    assert str(notebook) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_right_parameters_are_completed(tmp_path: Path) -> None:
    notebook = tmp_path / "n.ipynb"
    _notebook(notebook, parameters="%matplotlib inline\na = b = -1.5\nc: 'float' = 1_000\n")
    assert complete_parameters(notebook, {"a": 2}) == {"a": 2, "b": -1.5, "c": 1000}
    for value in (None, 1, "x", [1], True):
        assert complete_parameters(_notebook(notebook), {"note": value, "computed": value})["note"] == value
    assert complete_parameters(_notebook(notebook, "x = 1", parameters=None), {}) == {}


def test_wrong_input_is_refused_before_a_kernel_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "_execute", lambda *_: pytest.fail("a kernel was started"))
    _notebook(Path("n.ipynb"), "1")
    _notebook(Path("plain.ipynb"), "1", parameters=None)
    _notebook(Path("python.ipynb"), parameters="a = = 1")
    executed = nbformat.read("n.ipynb", as_version=4)
    executed.cells.append(nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["injected-parameters"]}))
    nbformat.write(executed, "executed.ipynb")
    Path("text.ipynb").write_text("text")
    for arguments, words in {
        'plain.ipynb --parameters {"seed":1}': "plain.ipynb has no cell tagged 'parameters'",
        'n.ipynb --parameters {"seed":1}': "no parameter 'seed'",
        "n.ipynb --parameters [1]": "--parameters is '[1]'; it must be a JSON object, such as",
        "n.ipynb --parameters {": "--parameters is '{'; it must be a JSON object or @FILE",
        "n.ipynb --parameters @none.json": "none.json",
        "python.ipynb": "the parameters cell of python.ipynb is not valid Python",
        "executed.ipynb": "executed.ipynb is the output of a papermill run",
        "text.ipynb": "text.ipynb is not valid JSON",
        "none.ipynb": "there is no notebook none.ipynb",
        "n.ipynb --results n.ipynb": "must be another .ipynb file than the notebook n.ipynb",
        "n.ipynb --output n.html": "not n.html",
        "n.ipynb --results .": "--results . is a folder",
        "--report none": "there is no folder none",
        "": "give a notebook and its --output",
    }.items():
        command = ["--output", "o.ipynb", *arguments.split()] if ".ipynb" in arguments else arguments.split()
        try:
            exit_code = runs.main(command)
        except SystemExit as stopped:  # argparse
            exit_code = stopped.code  # type: ignore[assignment]
        error = capsys.readouterr().err
        assert exit_code == 2 and words in error and "Traceback" not in error, arguments
    with pytest.raises(SystemExit, match="0"):
        runs.main(["--help"])
    assert "example" in capsys.readouterr().out


def test_a_refused_run_keeps_former_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook, output, result = _notebook(tmp_path / "n.ipynb"), tmp_path / "o.ipynb", tmp_path / "r.json"
    result.write_text("of a former run")
    output.with_suffix(".run.json").write_text('{"status": "done"}')
    for _ in range(2):
        with pytest.raises(ValueError, match="seed"):
            run(notebook, output, {"seed": 1}, [result])
        assert (run_status(output.with_suffix(".run.json")) == "done") == result.exists()
        result.unlink(missing_ok=True)
    assert report(tmp_path) == 1
    assert f"{output}: failed: ValueError: {notebook} has no parameter 'seed'" in capsys.readouterr().out


def test_report_tells_only_of_what_went_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = "2020-01-01T00:00:00+00:00"
    now = "2999-01-01T00:00:00+00:00"  # whatever runs now began before
    base = {"started": now, "error": None, "pid": os.getpid()}
    error = {"name": "ValueError", "message": "\n  first line\nsecond line", "cell": 7}
    records: dict[str, dict[str, Any]] = {
        "a": base | {"status": "done"},
        "b": base | {"status": "running"},
        "c": base | {"status": "running", "started": started},  # the number went to another process
        "d": base | {"status": "failed", "error": error},
        "e": {},
    }
    for name, record in records.items():
        (tmp_path / "deeper").mkdir(exist_ok=True)
        path = tmp_path / "deeper" / f"{name}.run.json"
        path.write_text(json.dumps(record | {"output": f"{name}.ipynb"}))
    assert runs.main(["--report", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"c.ipynb: interrupted: Killed: process {os.getpid()} is gone",
        "d.ipynb: failed in cell [7]: ValueError: first line",
    ]
    assert len(lines) == 3 and "e.run.json: not the status of a run" in lines[2]
    assert report(tmp_path / "deeper") == 3
    for path in (tmp_path / "deeper").glob("[cde]*"):
        path.unlink()
    capsys.readouterr()
    assert report(tmp_path) == 0 and capsys.readouterr().out == ""


# ---- the hash of the code -------------------------------------------------------------------------------


def _library(folder: Path) -> Path:
    library = folder / "fvlm_lib"
    library.mkdir()
    for name, source in {
        "__init__": "if TYPE_CHECKING:\n    from fvlm_lib.gap.gap import Gap as Gap\n",
        "gap/__init__": "",
        "gap/gap": "from ..scoring import nll\nfrom fvlm_lib import stats\n",
        "gap/bench": "from . import gap\n",
        "scoring": "def nll():\n    import fvlm_lib.vision.towers as towers\n",
        "stats": "import numpy",
        "vision/__init__": "",
        "vision/towers": "import json\nfrom . import __version__, patches\n",
        "vision/patches": "from fvlm_lib.gap.gap import *",  # a circle
        "vision/screens": "import fvlm_lib.stats",
    }.items():
        (library / name).parent.mkdir(exist_ok=True)
        (library / f"{name}.py").write_text(source)
    return library


GAP = "__init__ gap/__init__ gap/gap scoring stats vision/__init__ vision/patches vision/towers"


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("from fvlm_lib.gap.gap import x", GAP),
        ("from fvlm_lib.gap import gap", GAP),
        ("from fvlm_lib.gap import bench", GAP + " gap/bench"),
        (
            "%load_ext x\nif True:\n    !ls\n    import fvlm_lib.vision.screens as s",
            "__init__ stats vision/__init__ vision/screens",
        ),
        ("%%time\nfrom fvlm_lib import stats, nothing", "__init__ stats"),
        ("from fvlm_lib import Gap", GAP),  # offered by the library itself
        ("import fvlm_lib", GAP),  # whatever it offers
        ("from fvlm_lib import *", GAP),
        ("from fvlm_library import gap\nimport os.path, stats", ""),
        ("print('fvlm_lib.gap.gap')", ""),
        ("files = !ls -l", GAP + " gap/bench vision/screens"),  # no Python: all of it
    ],
)
def test_modules_used_by_follows_imports(tmp_path: Path, cell: str, expected: str) -> None:
    notebook = _notebook(tmp_path / "n.ipynb", "x = 1", cell)
    found = modules_used_by(notebook, _library(tmp_path))
    assert found == sorted(tmp_path / "fvlm_lib" / f"{name}.py" for name in expected.split())


def test_code_hash_changes_with_code_and_only_with_code(tmp_path: Path) -> None:
    library = _library(tmp_path)
    notebook = _notebook(tmp_path / "n.ipynb", "from fvlm_lib.vision.screens import x")

    def hashed() -> str:
        return code_hash(notebook, library)

    first = hashed()
    assert len(first) == 16 and int(first, 16) >= 0
    with_outputs = nbformat.read(notebook, as_version=4)
    with_outputs.cells[0].source = "another text"
    with_outputs.cells[1].execution_count = 3
    with_outputs.cells[1].outputs = [nbformat.v4.new_output("stream", text="x")]
    with_outputs.cells[1].metadata["collapsed"] = True
    with_outputs.cells.append(nbformat.v4.new_code_cell(" \n"))
    with_outputs.metadata["x"] = 1
    nbformat.write(with_outputs, notebook)
    (library / "gap" / "gap.py").write_text("# a module that is not used")
    (library / "new.py").write_text("")
    assert hashed() == first
    (library / "stats.py").write_text("import numpy  # used through screens")
    second = hashed()
    (library / "stats.py").write_text("import numpy")
    assert hashed() == first
    _notebook(notebook, "from fvlm_lib.vision.screens import x", "x = 2")
    third = hashed()
    assert len({first, second, third}) == 3


def test_code_hash_covers_this_library_by_default(tmp_path: Path) -> None:
    notebook = _notebook(tmp_path / "n.ipynb", "from fvlm_lib.batch.runs import run")
    names = (
        "__init__",
        "batch/__init__",
        "batch/notebooks",
        "batch/runs",
        "json_files",
        "options",
        "outputs",
        "schema",
    )
    assert modules_used_by(notebook) == [LIBRARY / f"{name}.py" for name in names]
    assert code_hash(notebook) == code_hash(notebook, LIBRARY) != code_hash(notebook, _library(tmp_path))


def test_importing_the_module_is_light() -> None:
    check = "import sys, fvlm_lib.batch.runs; print(*(name for name in sys.modules if '.' not in name))"
    command = [sys.executable, "-c", check]
    imported = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert "fvlm_lib" in imported.split()
    heavy = {"papermill", "nbformat", "torch", "jupyter_client", "numpy", "psutil", "IPython"}
    assert not heavy & set(imported.split())
