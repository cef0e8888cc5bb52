"""The library is a house: a wing imports from the wings below it, and the public names are where they say."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import fvlm_lib

LIBRARY = ROOT / "fvlm_lib"
# each wing, with the wings that it may import; `ground` are the files that lie beside the wings
GROUND = {"devices", "errors", "json_files", "options", "outputs", "schema", "scoring", "stats", "timing", "yaml_files"}
WINGS: dict[str, set[str]] = {
    "ground": set(),
    "reuse": {"ground"},
    "vision": {"ground", "reuse"},
    "language": {"ground", "reuse"},
    "data": {"ground"},
    "foveated": {"ground", "reuse", "vision", "data"},
    "batch": {"ground", "vision", "data", "foveated"},  # of the last, the config of a training, for its JSON Schema
    "screens": {"ground", "reuse", "vision", "data", "foveated"},
    "gap": {"ground", "vision", "data", "foveated", "batch"},
    "vlm": {"ground", "reuse", "vision", "language", "data", "foveated", "screens"},
    "figures": {"ground", "reuse", "vision", "data", "batch", "screens", "gap"},
    "panels": {"ground", "reuse", "vision", "data", "foveated", "screens", "gap", "vlm", "figures"},
}
FLOORS = [
    ["ground"],
    ["reuse"],
    ["vision", "language", "data"],
    ["foveated"],
    ["batch"],
    ["screens", "gap"],
    ["vlm", "figures"],
    ["panels"],
]


def wing_of(module: str) -> str:
    """The wing of a dotted name below fvlm_lib."""
    first = module.split(".")[0]
    return first if first in WINGS else "ground"


def imports(path: Path, for_types: bool = True) -> list[str]:
    """What a module imports of the library, as dotted names below it, whether at its top or in a function; what type
    checkers alone see, if `for_types`."""
    found, tree = [], ast.parse(path.read_text())
    if not for_types:
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fvlm_lib":
            base = node.module.split(".")[1:]
            found += [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{path}: relative imports hide which wing they are from")
        elif isinstance(node, ast.Import):
            found += [alias.name.removeprefix("fvlm_lib.") for alias in node.names if alias.name.startswith("fvlm_lib")]
    return found


MODULES = {path: ".".join(path.relative_to(LIBRARY).with_suffix("").parts) for path in LIBRARY.rglob("*.py")}


def test_every_wing_imports_only_what_lies_below_it():
    top = {"__init__", "__main__"}  # names and commands: they point everywhere
    wrong = [
        f"{module} imports {name}"
        for path, module in MODULES.items()
        if module not in top
        for name in imports(path)
        if wing_of(name) not in WINGS[wing_of(module)] | {wing_of(module)}
    ]
    assert not wrong


def test_the_table_of_wings_is_the_house():
    assert {path.name for path in LIBRARY.iterdir() if path.is_dir() and path.name != "__pycache__"} == {*WINGS} - {
        "ground"
    }
    assert {path.stem for path in LIBRARY.glob("*.py")} == GROUND | {"__init__", "__main__"}
    floor = {wing: number for number, wings in enumerate(FLOORS) for wing in wings}
    assert all(floor[below] < floor[wing] for wing, allowed in WINGS.items() for below in allowed)


def test_no_import_runs_in_a_circle():
    known = {*MODULES.values()} - {"__init__"}
    graph = {
        module: {name if name in known else name.rpartition(".")[0] for name in imports(path, for_types=False)} & known
        for path, module in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


def test_public_names_are_the_ones_that_type_checkers_see():
    tree = ast.parse((LIBRARY / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"fvlm_lib.{module}" for name, module in fvlm_lib._MODULES.items()}
    assert sorted(seen) == fvlm_lib.__all__ and {*seen} <= {*dir(fvlm_lib)}
    for name, module in seen.items():
        assert getattr(fvlm_lib, name) is getattr(sys.modules[module], name)
    with pytest.raises(AttributeError, match="no attribute 'VLMStreams'"):
        fvlm_lib.VLMStreams  # noqa: B018


def test_importing_the_library_imports_nothing_else():
    code = "import sys; before = {*sys.modules}; import fvlm_lib; print(*sorted({*sys.modules} - before))"
    added = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"torch", "numpy", "transformers", "pandas"} & {*added.split()}
