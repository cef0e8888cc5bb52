"""Notebooks are stored clean: no outputs, a question as title, a parameters cell, thin code; and they are described."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import nbformat
import papermill
import pytest
from conftest import ROOT

from fvlm_lib.batch.notebooks import _parameters, check_parameters, complete_parameters
from fvlm_lib.batch.parameters import Answers, Gap, Paper, Prefill, Scaling, Tower, Vlm
from fvlm_lib.schema import adapter

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NBSTRIPOUT = [str(Path(sys.executable).with_name("nbstripout")), "--keep-id"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_clean_and_thin(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.splitlines()[0].endswith("?")
    assert [cell.metadata.get("tags", []) for cell in code].count(["parameters"]) == 1
    for cell in code:
        assert cell.outputs == []
        assert cell.execution_count is None
        assert "class " not in cell.source
        assert len(cell.source.splitlines()) <= 30, "what is longer belongs in the library"
    assert len(notebook.cells) <= 20


# ---- parameters --------------------------------------------------------------------------------------

# of each notebook that a batch hands parameters to: the section of its config
SECTIONS = {
    "gap_analysis": Gap,
    "scaling_analysis": Scaling,
    "differential_benchmark": Tower,
    "predict_sequence": Vlm,
    "gated_prefill": Prefill,
    "stale_answers": Answers,
    "paper_figures": Paper,
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_reads_every_parameter_and_the_first_cell_checks_them(path):
    """papermill warns of a parameter that it does not read, and takes it for an unknown one."""
    assert [*papermill.inspect_notebook(str(path))] == [*complete_parameters(path, {})]
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert code[1].splitlines()[-1] == f'check_parameters("{path.stem}", globals())'


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_defaults_of_a_notebook_are_right(path):
    assert complete_parameters(path, {}) == complete_parameters(path, complete_parameters(path, {}))


@pytest.mark.parametrize("name", SECTIONS)
def test_a_config_s_section_and_its_notebook_have_the_same_types(name):
    """Those that the section has; but for null, which in a config may be the notebook's default."""

    def schema(kind: Any) -> Any:
        found = adapter(kind).json_schema()
        kinds = [member for member in found.pop("anyOf", [found]) if member != {"type": "null"}]
        return [found.get("$defs"), *({key: part[key] for key in part if key != "title"} for part in kinds)]

    cell = {key: kind for key, (_, kind) in _parameters(ROOT / "notebooks" / f"{name}.ipynb").items()}
    section = get_type_hints(SECTIONS[name], include_extras=True)
    if name == "predict_sequence":
        del section["sequences"]  # of which each is a run of the notebook
    assert {*section} <= {*cell}
    assert {key: schema(cell[key]) for key in section} == {key: schema(kind) for key, kind in section.items()}


def test_papermill_itself_passes_what_is_right_and_stops_at_what_is_not(tmp_path):
    command = [Path(sys.executable).with_name("papermill"), "notebooks/gap_analysis.ipynb", tmp_path / "out.ipynb"]
    for given, said in (
        (["num_sample", 3], "gap_analysis has no parameter 'num_sample'; did you mean 'num_samples'?"),
        (["num_samples", 1], "gap_analysis: num_samples is 1; it must be at least 2, or null"),
    ):
        done = subprocess.run(
            [*map(str, [*command, "-k", "python3", "-p", "batch_size", 8, "-p", *given])],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1
        assert said in done.stderr
        assert "unknown parameter: batch_size" not in done.stderr
        assert "unknown parameter: num_samples" not in done.stderr
        run = [
            cell for cell in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells if cell.get("execution_count")
        ]
        assert len(run) == 3, "parameters, injected parameters, the check"


def test_names_that_were_added_by_hand_or_papermill_are_refused_others_are_not():
    cells = ["", "limit: int = 3\nlimits = 4", "other = 3", "# Parameters\nlimit = 4\n"]
    names = {"In": cells, "__annotations__": {"limit": int}, "limit": 4}
    with pytest.raises(ValueError, match=r"^n has no parameter 'limits'; did you mean 'limit'\? it knows limit$"):
        check_parameters("n", names)
    check_parameters("n", names | {"In": ["limit: int = 3", "limits = 4", "!ls"]})
    with pytest.raises(ValueError, match=r"^n: limit is True; it must be a whole number$"):
        check_parameters("n", names | {"In": [], "limit": True})


def test_the_check_takes_no_time():
    """It comes before everything that does."""
    code = "import sys, fvlm_lib.batch.notebooks, fvlm_lib.batch.parameters; print({'torch', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---- stored clean ------------------------------------------------------------------------------------


def test_there_are_notebooks():
    assert {"gap_analysis", "scaling_analysis"} <= {path.stem for path in NOTEBOOKS}


def test_the_hook_would_change_no_stored_notebook():
    done = subprocess.run([*NBSTRIPOUT, "--verify", *map(str, NOTEBOOKS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_hook_strips_what_is_committed_and_keeps_the_rest(tmp_path):
    """The pre-commit configuration as it is, in a repository of its own."""

    def git(*arguments: str) -> subprocess.CompletedProcess:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        # another repository's hooks and folders must not be taken for this one's
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        environment["PRE_COMMIT_HOME"] = str(tmp_path / "cache")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=project, capture_output=True, text=True, env=environment
        )

    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT / ".pre-commit-config.yaml", project)
    (project / ".venv").symlink_to(sys.prefix)
    (project / ".gitignore").write_text(".venv\n")
    (project / "notebooks").mkdir()
    path = project / "notebooks" / "x.ipynb"
    clean = NOTEBOOKS[0].read_text()
    notebook = nbformat.reads(clean, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = 1
            cell.outputs = [nbformat.v4.new_output("stream", text="secret")]
    nbformat.write(notebook, path)
    git("init", "--quiet")
    git("add", ".")
    installed = subprocess.run([str(Path(sys.prefix) / "bin" / "pre-commit"), "install"], cwd=project)
    assert installed.returncode == 0
    refused = git("commit", "-m", "with outputs")
    assert refused.returncode == 1
    assert "notebooks without outputs" in refused.stdout + refused.stderr
    assert nbformat.read(path, as_version=4) == nbformat.reads(clean, as_version=4)
    git("add", ".")
    assert git("commit", "-m", "without").returncode == 0


def _sections() -> dict[str, str]:
    parts = re.split(r"(?m)^## (\S+)\.ipynb$", (ROOT / "notebooks" / "README.md").read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_notebook_has_its_section():
    assert set(_sections()) == {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_readme_tells_question_parameters_and_files(path):
    """Names and defaults are those of the parameters cell, in its order, each with what it is."""
    section = _sections().get(path.stem, "")
    question = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].removeprefix("# ")
    assert section.strip().startswith(question)
    rows = re.findall(r"(?m)^\| `(\w+)` \| `(.+)` \| (.+) \|$", section)
    assert [(name, ast.literal_eval(default)) for name, default, _ in rows] == list(
        complete_parameters(path, {}).items()
    )
    assert re.search(r"(?m)^Reads: \S", section)
    assert re.search(r"(?m)^Writes: \S", section)
