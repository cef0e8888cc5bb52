"""A command's options: checked by the types of `schema.py`, refused in one line. Imports nothing heavy.

A command parses by `Parser`, reads each number by `option(TYPE)`, and does its work behind `run`:

    parser = Parser(prog="fvlm mine", description="What it does.", epilog="example: fvlm mine --repeats 3")
    parser.add_argument("--repeats", type=option(Count), default=20, help="rounds; default %(default)s")
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pydantic import ValidationError

from fvlm_lib.schema import Count, CountOrNone, Device, Pixels, Positive, Seed, Threads, adapter, sentence


class Parser(argparse.ArgumentParser):
    """argparse's parser, which says what is wrong in one line and where help is, without the usage."""

    def parse_args(  # type: ignore[override]  # its overloads are of namespaces that nobody gives here
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """As argparse's; of an option that is none, the one that may have been meant."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = re.findall(r"--[\w-]+", self.format_usage())
            close = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            what = "there is no option" if unknown[0].startswith("-") else "one argument too many:"
            self.error(f"{what} {_shown(unknown[0])}{hint}")
        return found

    def error(self, message: str) -> NoReturn:
        message = re.sub(
            r"^argument (\S+?):( is)?", lambda found: found[1] + (found[2] or ":"), " ".join(message.split())
        )
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def option(kind: Any) -> Callable[[str], Any]:
    """`type=` of an option that holds one value of an annotated type, such as `schema.Count`."""

    def read(text: str) -> Any:
        try:
            return adapter(kind).validate_strings(text)
        except ValidationError as error:
            said = sentence(error, "").strip().replace(repr(text), _shown(text), 1)
            said = said.partition("; YAML")[0]  # a hint for files
            raise argparse.ArgumentTypeError(said) from None

    return read


def _shown(text: str) -> str:
    """An argument as it was typed; in quotes where it would be misread in a sentence."""
    return text if re.fullmatch(r"[!-~]{1,80}", text) else repr(text)


# ---- options that several commands have --------------------------------------------------------------


def add_device(parser: argparse.ArgumentParser, default: str = "auto") -> None:
    """`--device`, which `devices.pick_device` takes."""
    parser.add_argument(
        "--device",
        type=option(Device),
        default=default,
        help="auto (the best there is), cpu, cuda, cuda:N or mps; default %(default)s",
    )


def add_seed(parser: argparse.ArgumentParser | argparse._ArgumentGroup, of: str) -> None:
    """`--seed`; of: what is drawn from it."""
    parser.add_argument("--seed", type=option(Seed), default=0, help=f"of {of}; default %(default)s")


def frame_size(text: str) -> tuple[int, int]:
    """(height, width) of WIDTHxHEIGHT."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be width and height in pixels, such as 1280x800")
    width, height = (option(Pixels)(side) for side in found.groups())
    return height, width


def add_size(parser: argparse.ArgumentParser) -> None:
    """`--size` of the frames that a vision tower gets, where its config does not say."""
    parser.add_argument(
        "--size",
        type=frame_size,
        metavar="WxH",
        help="width and height in pixels of the frames that the tower gets, for one that takes any, such as 1280x800; "
        "default the tower's own",
    )


def add_threads(parser: argparse.ArgumentParser, default: int, why: str = "") -> None:
    """`--threads`; why: what speaks for the default."""
    said = f" ({why})" if why else ""
    parser.add_argument(
        "--threads", type=option(Threads), default=default, help=f"CPU threads; default %(default)s{said}"
    )


def add_repeats(parser: argparse.ArgumentParser, repeats: int = 20, warmup: int = 3) -> None:
    """`--repeats` and `--warmup`, as `timing.time_in_turn` takes them."""
    add = parser.add_argument
    add("--repeats", type=option(Count), default=repeats, help="rounds that are timed; default %(default)s")
    add("--warmup", type=option(CountOrNone), default=warmup, help="rounds before them; default %(default)s")


def add_pack(parser: argparse.ArgumentParser) -> None:
    """`--pack` and `--pack-memory`, which `pack_options` reads."""
    parser.add_argument(
        "--pack",
        nargs="?",
        choices=["auto", "yes", "no"],
        const="yes",
        default="no",
        help="weights packed for products of few rows; auto: as measuring for seconds finds; default %(default)s, and "
        "yes where nothing follows",
    )
    parser.add_argument(
        "--pack-memory",
        type=option(Positive),
        metavar="GB",
        help="memory that packed weights may take, for --pack auto; default a quarter of what is free",
    )


def pack_options(args: argparse.Namespace) -> dict[str, Any]:
    """`pack_weights` and `pack_memory`, as `towers.open_tower` takes them. Raises ValueError where they contradict."""
    if args.pack_memory is not None and args.pack != "auto":
        raise ValueError(f"--pack-memory is of --pack auto, and --pack is {args.pack}; leave one out")
    memory = None if args.pack_memory is None else int(1e9 * args.pack_memory)
    return {"pack_weights": "auto" if args.pack == "auto" else args.pack == "yes", "pack_memory": memory}


# ---- behind the options ------------------------------------------------------------------------------


def run(prog: str, work: Callable[[], int | None], kept: str = "") -> int:
    """What a command does behind its options: 0 when done, 2 for what the user can put right, said in one line on
    stderr, 130 after Ctrl-C, 141 where the reader of its output has gone, as after `| head`.

    kept: what is said after Ctrl-C of the work that is done. Names of files that are not Unicode are printed escaped.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is from the start
    try:
        code = work() or 0
        sys.stdout.flush()  # here, where a full disk can still be said
        return code
    except BrokenPipeError:
        _close_stdout()
        return 141
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        print(f"{prog}: {said(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:  # torch's, for lack of memory
        if "memory" not in str(error):
            raise
        print(f"{prog}: there is not enough memory: {said(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted{kept and '; '}{kept}", file=sys.stderr)
        return 130


def said(error: BaseException) -> str:
    """An error in one line, without the number that an OSError begins with."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split())


def printable(text: str) -> str:
    """A text on one line, without the control characters that a model may say to a terminal."""
    return "".join(character if character.isprintable() else "·" for character in " ".join(text.split()))


def _close_stdout() -> None:
    """So that the interpreter, when it ends, does not try again to write what nobody reads."""
    with contextlib.suppress(OSError, ValueError):  # where it is no real file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
