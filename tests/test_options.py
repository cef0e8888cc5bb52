"""Options are refused in one line that names option, value and what would be right."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import Literal

import pytest
from conftest import ROOT

from fvlm_lib import options, schema
from fvlm_lib.options import Parser, option, run


def parser() -> Parser:
    made = Parser(prog="fvlm try")
    made.add_argument("numbers", nargs="*", type=option(schema.Count), metavar="N")
    options.add_repeats(made)
    options.add_seed(made, "nothing")
    options.add_threads(made, 1)
    options.add_device(made)
    made.add_argument("--tolerance", type=option(schema.Tolerance))
    made.add_argument("--fit", choices=["pad", "squash"])
    return made


def refusal(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("fvlm try: ") and printed.endswith("; see fvlm try --help\n") and printed.count("\n") == 1
    return printed.removeprefix("fvlm try: ").removesuffix("; see fvlm try --help\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--repeats", "0"], "--repeats is 0; it must be at least 1"),
        (["--repeats", "1e9"], "--repeats is 1e9; it must be a whole number"),
        (["--repeats", ""], "--repeats is ''; it must be a whole number"),
        (["--repeats", "two\nlines"], r"--repeats is 'two\nlines'; it must be a whole number"),
        (["--repeats", "9" * 20], f"--repeats is {'9' * 20}; it must be at most 1000000000"),
        (["--warmup", "-1"], "--warmup is -1; it must be at least 0"),
        (["--seed", "4294967296"], "--seed is 4294967296; it must be at most 4294967295"),
        (["--threads", "100000"], "--threads is 100000; it must be at most 1024"),
        (["--device", "bogus"], "--device is bogus; it must be auto, cpu, cuda, cuda:N or mps"),
        (["--tolerance", "nan"], "--tolerance is nan; it must be a finite number"),
        (["--tolerance", "-0.5"], "--tolerance is -0.5; it must be at least 0"),
        (["--tolerance", "exact"], "--tolerance is exact; it must be a number"),
        (["--tolerance"], "--tolerance: expected one argument"),
        (["3", "0"], "N is 0; it must be at least 1"),
        (["--repetas", "3"], "there is no option --repetas; did you mean --repeats?"),
        (["--repetas=3"], "there is no option --repetas=3; did you mean --repeats?"),
        (["--zzz"], "there is no option --zzz"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(capsys, arguments, sentence):
    assert refusal(capsys, *arguments) == sentence


def test_a_choice_tells_what_there_is(capsys):
    said = refusal(capsys, "--fit", "crop")
    assert said.startswith("--fit: ") and "crop" in said and "pad" in said and "squash" in said


def test_one_argument_too_many(capsys):
    with pytest.raises(SystemExit):
        Parser(prog="fvlm none").parse_args(["left over"])
    assert capsys.readouterr().err == "fvlm none: one argument too many: 'left over'; see fvlm none --help\n"


def test_values_have_the_type_that_was_asked_for():
    found = parser().parse_args(["7", "--tolerance", "1e-5", "--device", "cuda:1", "--threads", "2"])
    assert (found.numbers, found.tolerance, found.device, found.threads) == ([7], 1e-5, "cuda:1", 2)
    assert option(Literal["a", "b"])("a") == "a"


# ---- behind the options ------------------------------------------------------------------------------


def ending(work, capsys) -> tuple[int, str]:
    return run("fvlm try", work), capsys.readouterr().err


def raising(error: BaseException):
    def work():
        raise error

    return work


def test_exit_codes(capsys):
    assert ending(lambda: None, capsys) == (0, "")
    assert ending(lambda: 1, capsys) == (1, "")
    assert ending(raising(ValueError("two\nlines")), capsys) == (2, "fvlm try: two lines\n")
    full = OSError(errno.ENOSPC, "No space left on device", "out.json")
    assert ending(raising(full), capsys) == (2, "fvlm try: out.json: No space left on device\n")
    assert ending(raising(MemoryError()), capsys) == (2, "fvlm try: MemoryError\n")
    assert ending(raising(KeyboardInterrupt()), capsys) == (130, "fvlm try: interrupted\n")
    assert run("fvlm try", raising(KeyboardInterrupt()), "a.json is kept") == 130
    assert capsys.readouterr().err == "fvlm try: interrupted; a.json is kept\n"


def test_an_error_of_ours_keeps_its_traceback():
    for error in (KeyError("a fault of ours"), RuntimeError("of shapes")):
        with pytest.raises(type(error)):
            run("fvlm try", raising(error))


def test_memory_that_a_tensor_cannot_have(capsys):
    import torch

    code, said = ending(lambda: torch.empty(2**50) and None, capsys)
    assert code == 2 and said.startswith("fvlm try: there is not enough memory: ") and said.count("\n") == 1


def started(work: str, **options) -> subprocess.CompletedProcess:
    code = f"import sys; from fvlm_lib.options import run; sys.exit(run('fvlm try', lambda: {work}))"
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, cwd=ROOT, **options)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_said_once():
    with open("/dev/full", "w") as full:
        done = started("print('a line')", stdout=full)
    assert (done.returncode, done.stderr) == (2, b"fvlm try: No space left on device\n")


def test_a_reader_that_has_gone_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = started("print('a line')", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_file_name_that_is_not_unicode_is_printed_escaped():
    done = started(r"print('\udcff.png')", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, b"\\udcff.png\n")
