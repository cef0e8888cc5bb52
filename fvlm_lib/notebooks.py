"""What a stored notebook says before anything runs: its parameters, the library modules it uses, its hash.

Reads notebooks and sources as text and syntax trees; executing them is `runs.py`'s subject. Imports nothing
heavy, since the Snakefile reads it at every start.
"""

import ast
import contextlib
import difflib
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

LIBRARY = Path(__file__).resolve().parent


def code_cells(notebook: Path) -> list[tuple[str, dict[str, Any]]]:
    """(source, metadata) of each code cell. ValueError if the file is missing or is no notebook."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return [("".join(cell["source"]), cell["metadata"]) for cell in cells if cell["cell_type"] == "code"]
    except FileNotFoundError:
        raise ValueError(f"there is no notebook {notebook}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{notebook} is not a notebook of format 4: {error!r}") from None


def _parse(source: str) -> ast.Module | None:
    """The syntax tree, without IPython's lines of % and !; None if the rest is not Python either."""
    for text in (source, re.sub(r"(?m)^([ \t]*)[%!].*$", r"\1pass", source)):
        with contextlib.suppress(SyntaxError, ValueError):
            return ast.parse(text)
    return None


def _defaults(notebook: Path) -> dict[str, tuple[Any, tuple[type, ...]]]:
    """Of each name in the parameters cell: the default (an expression's source) and the types accepted."""
    # papermill.inspect_notebook gives text, not values and types, and overlooks `x: int | None = 1`.
    cells = [(source, metadata.get("tags", [])) for source, metadata in code_cells(notebook)]
    if any("injected-parameters" in tags for _, tags in cells):
        raise ValueError(f"{notebook} is the output of a papermill run; give the notebook it was made from")
    if (tree := _parse(next((source for source, tags in cells if "parameters" in tags), ""))) is None:
        raise ValueError(f"the parameters cell of {notebook} is not valid Python")
    known = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        types: tuple[type, ...] = (object,)
        try:
            default = ast.literal_eval(node.value)
            if default is not None:
                types = {float: (float, int), tuple: (list,)}.get(type(default), (type(default),))
        except ValueError:
            default = ast.unparse(node.value)
        if isinstance(node, ast.AnnAssign) and re.search("None|Optional", ast.unparse(node.annotation)):
            types += (NoneType,)
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                known[target.id] = (default, types)
    return known


def complete_parameters(notebook: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the notebook's parameters cell, with the given values in their place.

    ValueError for a name that cell does not define, for a value of another type than the default (an int
    will do for a float, a bool is no int, a default of None accepts all), or if there is no such cell.
    """
    known = _defaults(notebook)
    if given and not known:
        raise ValueError(f"{notebook} has no cell tagged 'parameters', so it cannot take {', '.join(given)}")
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{notebook} has no parameter {name!r};{hint} it knows {', '.join(known)}")
        default, types = known[name]
        bool_for_number = isinstance(value, bool) and not {bool, object} & set(types)
        if bool_for_number or not isinstance(value, types):
            raise ValueError(
                f"parameter {name!r} of {notebook} takes {' or '.join(kind.__name__ for kind in types)} (its "
                f"default is {default!r}), but got {value!r}, which is {type(value).__name__}"
            )
    return {name: default for name, (default, _) in known.items()} | dict(given)


@functools.cache
def _imports(source: str, package: str) -> set[str]:
    """Names of the package's modules that the source may import; {"*"} if it cannot be parsed."""
    if (tree := _parse(source)) is None:
        return {"*"}
    dotted: list[str] = []
    for node in ast.walk(tree):  # imports within functions count too
        if isinstance(node, ast.Import):
            dotted += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):  # a level: relative, so within the flat package
            base = ".".join(filter(None, [package if node.level else "", node.module]))
            dotted += [f"{base}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in dotted if name.split(".")[0] == package]
    return {"__init__" for _ in parts} | {part[1] for part in parts if len(part) > 1} - {"*"}


def modules_used_by(notebook: Path, library: Path = LIBRARY) -> list[Path]:
    """The library's files that the notebook imports, directly or through each other, sorted.

    A static walk over import statements: it does not see importlib, nor modules run as commands. A cell
    that cannot be parsed counts as importing everything. ValueError for a file that is no notebook.
    """
    modules = {path.stem: path for path in sorted(library.glob("*.py"))}
    used: set[str] = set()
    waiting = [source for source, _ in code_cells(notebook)]
    while waiting:
        names = _imports(waiting.pop(), library.name)
        new = ({*modules} if "*" in names else names & {*modules}) - used
        used |= new
        waiting += [modules[name].read_text(encoding="utf-8") for name in new]
    return sorted(modules[name] for name in used)


def code_hash(notebook: Path, modules: Iterable[Path] | None = None) -> str:
    """16 hex digits that change with the notebook's code cells and with the modules' names and contents.

    Outputs, metadata and text cells do not count. `modules`: those of `modules_used_by` by default.
    """
    cells = [source for source, _ in code_cells(notebook) if source.strip()]
    files = sorted(modules_used_by(notebook) if modules is None else modules, key=lambda file: file.name)
    content = [cells, [[file.name, file.read_text(encoding="utf-8")] for file in files]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
