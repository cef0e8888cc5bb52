"""A command's options: checked by the types of `schema.py`, refused in one line. Imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from pydantic import ValidationError

from fvlm_lib.schema import adapter, sentence


class Parser(argparse.ArgumentParser):
    """argparse's parser, which says what is wrong in one line and where help is, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def option(kind: Any) -> Callable[[str], Any]:
    """`type=` of an option that holds one value of an annotated type, such as `schema.Count`."""

    def read(text: str) -> Any:
        try:
            return adapter(kind).validate_strings(text)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(sentence(error, "it")) from None

    return read


def run(prog: str, work: Callable[[], int | None]) -> int:
    """What a command does behind its options: 0 when done, 2 for what the user can put right, said in one line on
    stderr, 130 after Ctrl-C."""
    try:
        return work() or 0
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
