"""Wrong inputs, each with what the library says of it: one module a subject, a table `CASES` in each.

    CASES = [Case("a list for data", lambda folder: open_videos([]), says="must be a mapping", names="data")]

`tests/test_corpus.py` runs them all. A command is run by `command`, whose exit code and stderr are then looked at.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One wrong input and what is said of it.

    name: unique among the module's. run: does the wrong thing in an empty folder; it raises, or returns what a
    command said. says: what the error contains; None where the right outcome is a good result, which `run` asserts
    itself. names: the file, key or option that the error names, where `says` does not.
    """

    name: str
    run: Callable[[Path], Any]
    says: str | None
    names: str = ""


@dataclass(frozen=True)
class Said:
    """What a command left: its exit code, and its stderr."""

    code: int
    stderr: str


def command(main: Callable[[Sequence[str]], int | None], *arguments: object) -> Said:
    """Run a command's `main` in this process."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main([str(argument) for argument in arguments]) or 0
        except SystemExit as end:  # of argparse
            code = end.code if isinstance(end.code, int) else 1
    return Said(code, stderr.getvalue())


def all_cases() -> list[tuple[str, Case]]:
    """(module, case) of every case there is."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [(module.__name__.rpartition(".")[2], case) for module in modules for case in module.CASES]
