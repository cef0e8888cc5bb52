"""Notebooks are stored clean: no outputs, a question as title, a parameters cell, thin code."""

from __future__ import annotations

import nbformat
import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


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
