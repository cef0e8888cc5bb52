"""What a stored notebook says before anything runs: its parameters, the library modules it uses, its hash.

Reads notebooks and sources as text and syntax trees; executing them is `runs.py`'s subject. Imports nothing
heavy, since the Snakefile reads it at every start.
"""

import ast
import contextlib
import difflib
import functools
import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Optional

from fvlm_lib.json_files import kind_of, read_object
from fvlm_lib.schema import adapter, check

LIBRARY = Path(__file__).resolve().parents[1]


def code_cells(notebook: Path) -> list[tuple[str, dict[str, Any]]]:
    """(source, metadata) of each code cell. ValueError if the file is missing or is no notebook."""
    if not notebook.exists():
        raise ValueError(f"there is no notebook {notebook}")
    try:
        cells = read_object(notebook).get("cells")
    except OSError as error:
        raise ValueError(f"{notebook} cannot be read ({error.strerror})") from error
    if not isinstance(cells, list):
        raise ValueError(f"{notebook} is not a notebook of format 4: its cells are {kind_of(cells)}, not a list")
    code = []
    for number, cell in enumerate(cells):
        found = cell if isinstance(cell, dict) else {}
        source, metadata = found.get("source"), found.get("metadata")
        lines = [source] if isinstance(source, str) else source  # the format has it as one text or as a list
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise ValueError(f"{notebook} is not a notebook of format 4: its cell {number} has no source")
        if not isinstance(metadata, dict) or not isinstance(metadata.get("tags", []), list):
            raise ValueError(f"{notebook} is not a notebook of format 4: its cell {number} has no metadata")
        if found.get("cell_type") == "code":
            code.append(("".join(lines), metadata))
    return code


def _parse(source: str) -> ast.Module | None:
    """The syntax tree, without IPython's lines of % and !; None if the rest is not Python either."""
    for text in (source, re.sub(r"(?m)^([ \t]*)[%!].*$", r"\1pass", source)):
        with contextlib.suppress(
            SyntaxError, ValueError, RecursionError, MemoryError
        ):  # the last two: nested too deeply
            return ast.parse(text)
    return None


def _parameters(notebook: Path) -> dict[str, tuple[Any, Any]]:
    """Of each name in the parameters cell: the default (an expression's source), and the type, which is its annotation
    or else that of the default."""
    # papermill.inspect_notebook gives text, not values and types
    cells = [(source, metadata.get("tags", [])) for source, metadata in code_cells(notebook)]
    if any("injected-parameters" in tags for _, tags in cells):
        raise ValueError(f"{notebook} is the output of a papermill run; give the notebook it was made from")
    if (tree := _parse(next((source for source, tags in cells if "parameters" in tags), ""))) is None:
        raise ValueError(f"the parameters cell of {notebook} is not valid Python")
    names, known = _imported(tree, notebook), {}
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        try:
            default = ast.literal_eval(node.value)
            kind: Any = {tuple: list, NoneType: Any}.get(type(default), type(default))
        except ValueError:
            default, kind = ast.unparse(node.value), Any
        if isinstance(node, ast.AnnAssign):
            kind = _annotated(node.annotation, names, kind)
            kind = Optional[kind] if default is None else kind  # noqa: UP045 - a type made at run time
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                known[target.id] = (default, kind)
    return known


def _imported(tree: ast.Module, notebook: Path) -> dict[str, Any]:
    """What a parameters cell imports of typing and of this library, which are the types of its annotations."""
    names: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("typing", LIBRARY.name):
            try:
                module = importlib.import_module(node.module or "")
                names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
            except (ImportError, AttributeError) as error:
                raise ValueError(f"the parameters cell of {notebook} cannot import what it names ({error})") from None
    return names


def _annotated(annotation: ast.expr, names: dict[str, Any], other: Any) -> Any:
    """The type that an annotation means; `other` for one that cannot be told or checked here, such as an array."""
    text = annotation.value if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
    with contextlib.suppress(Exception):  # whatever an expression raises
        kind = eval(str(text), {**names})
        adapter(kind)
        return kind
    return other


def complete_parameters(notebook: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the notebook's parameters cell, with the given values in their place.

    ValueError for a name that cell does not define, a value that is not of its annotation (without one, of another
    type than the default; an int will do for a float, a bool is no int, a default of None accepts all), or if there is
    no such cell.
    """
    known = _parameters(notebook)
    if given and not known:
        raise ValueError(f"{notebook} has no cell tagged 'parameters', so it cannot take {', '.join(given)}")
    for name, value in given.items():
        if name not in known:
            raise ValueError(_no_parameter(str(notebook), name, known))
        check(known[name][1], value, f"{notebook}: {name}")
    return {name: default for name, (default, _) in known.items()} | dict(given)


def check_parameters(notebook: str, names: Mapping[str, Any]) -> None:
    """To be called in a notebook, `check_parameters("gap_analysis", globals())`, behind its parameters cell and before
    what takes long: refuses values that are not of their annotations, and names that the cell does not define, which
    papermill passes on with a warning.

    notebook: what it is called in errors. names: all that is defined in the kernel. Raises ValueError.
    """
    known = names.get("__annotations__", {})
    for cell in names.get("In", []):  # IPython's: the source of every cell that was run
        nodes = tree.body if (tree := _parse(cell)) else []
        # papermill's own cell begins so; to the parameters cell, which annotates, its reader may have added a name
        if cell.startswith("# Parameters\n") or any(isinstance(node, ast.AnnAssign) for node in nodes):
            for target in (target for node in nodes if isinstance(node, ast.Assign) for target in node.targets):
                if isinstance(target, ast.Name) and target.id not in known:
                    raise ValueError(_no_parameter(notebook, target.id, known))
    for name, kind in known.items():
        check(kind, names.get(name), f"{notebook}: {name}")


def _no_parameter(notebook: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    return f"{notebook} has no parameter {name!r};{hint} it knows {', '.join(names)}"


@functools.cache
def _imports(source: str, package: str) -> tuple[str, ...]:
    """Dotted names that the source of a module in `package` may import; ("*",) if it cannot be parsed."""
    if (tree := _parse(source)) is None:
        return ("*",)
    dotted: list[str] = []
    for node in ast.walk(tree):  # imports within functions count too
        if isinstance(node, ast.Import):
            dotted += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            dotted += [f"{base}.{alias.name}" for alias in node.names]
    return tuple(dotted)


def _public_names(library: Path) -> dict[str, str]:
    """The module of each name that the library's `__init__` offers, as its imports for type checkers say."""
    tree = _parse((library / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree or ast.Module([], [])) if isinstance(node, ast.ImportFrom)]
    return {f"{library.name}.{alias.name}": node.module or "" for node in imports for alias in node.names}


def modules_used_by(notebook: Path, library: Path = LIBRARY) -> list[Path]:
    """The library's files that the notebook imports, directly or through each other, sorted.

    A static walk over import statements: it does not see importlib, nor modules run as commands. Of the names
    that the library itself offers, those imported count, and all of them after a bare `import`. A cell that
    cannot be parsed counts as importing everything. ValueError for a file that is no notebook.
    """
    files = {_dotted(path, library): path for path in library.rglob("*.py")}
    public = _public_names(library)
    used: set[str] = set()
    waiting = [(source, "") for source, _ in code_cells(notebook)]  # (source, the package it lies in)
    while waiting:
        names = set(_imports(*waiting.pop()))
        if "*" in names:
            names |= files.keys()
        if {library.name, f"{library.name}.*"} & names:
            names |= set(public.values())
        names |= {public[name] for name in names & public.keys()}
        parents = {".".join(name.split(".")[:count]) for name in names for count in range(1, name.count(".") + 2)}
        new = (parents & files.keys()) - used
        used |= new
        for name in new - {library.name}:  # the library's own `__init__` imports for type checkers alone
            package = name if files[name].stem == "__init__" else name.rpartition(".")[0]
            waiting.append((files[name].read_text(encoding="utf-8"), package))
    return sorted(files[name] for name in used)


def _dotted(path: Path, library: Path) -> str:
    """The name by which a file of the library is imported."""
    parts = path.relative_to(library.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def code_hash(notebook: Path, library: Path = LIBRARY) -> str:
    """16 hex digits that change with the notebook's code cells and the library modules it uses (`modules_used_by`).

    Outputs, metadata and text cells do not count.
    """
    cells = [source for source, _ in code_cells(notebook) if source.strip()]
    modules = modules_used_by(notebook, library)
    content = [cells, [[_dotted(file, library), file.read_text(encoding="utf-8")] for file in modules]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
