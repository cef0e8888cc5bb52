"""Notebooks are stored clean: no outputs, a question as title, a parameters cell, thin code; and they are described."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from fvlm_lib.batch.notebooks import complete_parameters

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
