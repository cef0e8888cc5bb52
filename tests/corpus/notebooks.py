"""Notebook files that are none, and recordings of how notebooks ran."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from corpus import Case, wrong_json
from fvlm_lib.batch.notebooks import complete_parameters

CELL = {"cell_type": "code", "source": "a: int = 1", "metadata": {"tags": ["parameters"]}}


def _read(folder: Path, content: Any, given: dict[str, Any] | None = None) -> dict[str, Any]:
    (folder / "a.ipynb").write_text(json.dumps(content))
    return complete_parameters(folder / "a.ipynb", given or {})


def _right(folder: Path) -> None:
    assert _read(folder, {"cells": [CELL]}, {"a": 2}) == {"a": 2}


def _case(name: str, cells: Any, says: str, given: dict[str, Any] | None = None) -> Case:
    return Case(name, functools.partial(_read, content={"cells": cells}, given=given), says, "a.ipynb")


CASES = [
    Case("right", _right, None),
    *wrong_json("a.ipynb", lambda _: None, lambda folder: complete_parameters(folder / "a.ipynb", {})),
    Case("missing", lambda folder: complete_parameters(folder / "a.ipynb", {}), "there is no notebook", "a.ipynb"),
    Case("a folder", lambda folder: complete_parameters(folder, {}), "cannot be read (Is a directory)"),
    *(
        _case(f"cells: {name}", cells, "its cells are")
        for name, cells in (("null", None), ("an object", {}), ("a text", "x"), ("a number", 1))
    ),
    *(
        _case(f"cell {name}", [CELL, cell], "its cell 1 has no source")
        for name, cell in (("null", None), ("a text", "x"), ("a list", []), ("without source", {"cell_type": "code"}))
    ),
    _case("source of numbers", [{**CELL, "source": [1, 2]}], "its cell 0 has no source"),
    _case("metadata null", [{**CELL, "metadata": None}], "its cell 0 has no metadata"),
    _case("tags a number", [{**CELL, "metadata": {"tags": 3}}], "its cell 0 has no metadata"),
    _case("parameters are no Python", [{**CELL, "source": "a = = 1"}], "parameters cell of"),
    _case("parameters nested deeply", [{**CELL, "source": "a = " + "-" * 100_000 + "1"}], "is not valid Python"),
    _case("unknown parameter", [CELL], "has no parameter 'aa'; did you mean 'a'?", {"aa": 1}),
]
