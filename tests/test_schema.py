"""Settings described by types: what is refused, in which words, and that nothing is converted."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Annotated, Literal

import numpy as np
import pytest
from conftest import ROOT
from pydantic import Field

from fvlm_lib.options import option
from fvlm_lib.schema import (
    LARGEST_SEED,
    AsTuple,
    Count,
    Device,
    Distinct,
    Dtype,
    Seed,
    Tolerance,
    check,
    settings,
    shown,
    unknown_key,
)
from fvlm_lib.yaml_files import parse_yaml, read_yaml


@settings
class Folder:
    path: str | list[str]
    kind: Literal["folder"] = "folder"


@settings
class Drawn:
    grid: Count = 4
    noise: Tolerance = 0.0
    kind: Literal["drawn"] = "drawn"

    def __post_init__(self) -> None:
        if self.grid == 13:
            raise ValueError("grid is 13, which nobody draws")


@settings
class Painted(Drawn):
    """Inherits fields, adds one and a method."""

    colour: str = "red"

    def cells(self) -> int:
        return self.grid**2


@settings
class Whole:
    data: Annotated[Folder | Drawn, Field(discriminator="kind")]
    named: dict[str, Drawn] = Field(default_factory=dict)
    passes: Annotated[list[Count], Field(min_length=1), Distinct] = Field(default_factory=lambda: [1])
    mean: Annotated[tuple[float, float, float], AsTuple] = (0.0, 0.0, 0.0)
    dtype: Dtype | None = None
    width: Literal["column", "full"] | float = "full"
    optional: Drawn | None = None
    device: Device = "auto"
    flag: bool = False


DRAWN = {"kind": "drawn"}
KNOWN = "known are grid, noise, kind"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "f is null; it must be a mapping, `key: value` lines"),
        ("text", "f is 'text'; it must be a mapping, `key: value` lines"),
        ({}, "f lacks data"),
        ({"data": None}, "f: data is null; it must be a mapping, `key: value` lines"),
        ({"data": {}}, "f: data lacks kind, which must be one of 'drawn', 'folder'"),
        ({"data": {"kind": "foldr"}},
         "f: data.kind is 'foldr'; it must be one of 'folder', 'drawn'; did you mean 'folder'?"),
        ({"data": {"kind": 3}}, "f: data.kind is 3; it must be one of 'folder', 'drawn'"),
        ({"data": {"kind": "folder"}}, "f: data lacks path"),
        ({"data": {"kind": "folder", "path": 3}}, "f: data.path is 3; it must be text or a list"),
        ({"data": {"kind": "folder", "path": ["a", 3]}}, "f: data.path[1] is 3; it must be text"),
        ({"data": {**DRAWN, "gird": 3}}, "f: data has the unknown key 'gird'; did you mean 'grid'? " + KNOWN),
        ({"data": {**DRAWN, "zzz": 3}}, "f: data has the unknown key 'zzz'; " + KNOWN),
        ({"data": {**DRAWN, 3: 4}}, 'f: data has the key 3; a key must be text, so write it in quotes'),
        ({"data": {**DRAWN, "grid": "8"}}, "f: data.grid is '8'; it must be a whole number"),
        ({"data": {**DRAWN, "grid": True}}, "f: data.grid is True; it must be a whole number"),
        ({"data": {**DRAWN, "grid": 4.0}}, "f: data.grid is 4.0; it must be a whole number"),
        ({"data": {**DRAWN, "grid": 0}}, "f: data.grid is 0; it must be at least 1"),
        ({"data": {**DRAWN, "grid": 10**19}}, "f: data.grid is 10000000000000000000; it must be at most 1000000000"),
        ({"data": {**DRAWN, "grid": 13}}, "f: data: grid is 13, which nobody draws"),
        ({"data": {**DRAWN, "noise": float("nan")}}, "f: data.noise is nan; it must be a finite number"),
        ({"data": {**DRAWN, "noise": float("inf")}}, "f: data.noise is inf; it must be a finite number"),
        ({"data": {**DRAWN, "noise": -1}}, "f: data.noise is -1; it must be at least 0"),
        ({"data": {**DRAWN, "noise": "1e-5"}},
         "f: data.noise is '1e-5'; it must be a number; YAML reads 1e-5 as text, write 1.0e-5"),
        ({"data": DRAWN, "named": []}, "f: named is []; it must be a mapping, `key: value` lines"),
        ({"data": DRAWN, "named": {1: {}}}, 'f: named has the key 1; a key must be text, so write it in quotes'),
        ({"data": DRAWN, "named": {"a": {"grid": 0}}}, "f: named.a.grid is 0; it must be at least 1"),
        ({"data": DRAWN, "named": {"a": {"kind": "folder"}}}, "f: named.a.kind is 'folder'; it must be 'drawn'"),
        ({"data": DRAWN, "passes": 3}, "f: passes is 3; it must be a list"),
        ({"data": DRAWN, "passes": []}, "f: passes is []; it must be a list of at least 1"),
        ({"data": DRAWN, "passes": [1, 2, 1]}, "f: passes is [1, 2, 1]; it names 1 twice"),
        ({"data": DRAWN, "passes": [1, None]}, "f: passes[1] is null; it must be a whole number"),
        ({"data": DRAWN, "mean": [1, 2]}, "f: mean is (1, 2); it must be a list of at least 3"),
        ({"data": DRAWN, "mean": [1, 2, 3, 4]}, "f: mean is (1, 2, 3, 4); it must be a list of at most 3"),
        ({"data": DRAWN, "mean": [1, 2, "x"]}, "f: mean[2] is 'x'; it must be a number"),
        ({"data": DRAWN, "dtype": "float31"},
         "f: dtype is 'float31'; it must be 'float64', 'float32', 'bfloat16' or 'float16', or null; did you "
         "mean 'float32'?"),
        ({"data": DRAWN, "width": "colum"},
         "f: width is 'colum'; it must be 'column' or 'full' or a number; did you mean 'column'?"),
        ({"data": DRAWN, "optional": {"gird": 3}},
         "f: optional has the unknown key 'gird'; did you mean 'grid'? " + KNOWN),
        ({"data": DRAWN, "optional": 3}, "f: optional is 3; it must be a mapping, `key: value` lines, or null"),
        ({"data": DRAWN, "device": "bogus"}, "f: device is 'bogus'; it must be auto, cpu, cuda, cuda:N or mps"),
        ({"data": DRAWN, "flag": "yes"}, "f: flag is 'yes'; it must be true or false"),
        ({"dat": DRAWN},
         "f has the unknown key 'dat'; did you mean 'data'? known are data, named, passes, mean, dtype, "
         "width, optional, device, flag"),
    ],
)  # fmt: skip
def test_one_sentence_names_key_value_and_what_would_be_right(value, said):
    with pytest.raises(ValueError) as raised:
        check(Whole, value, "f")
    assert str(raised.value) == said


def test_what_is_right_is_taken_as_it_is():
    made = check(Whole, {"data": {"kind": "folder", "path": ["a"]}, "mean": [1, 2, 3], "device": "cuda:1"}, "f")
    assert made == Whole(Folder(["a"]), mean=(1.0, 2.0, 3.0), device="cuda:1")
    assert asdict(made)["passes"] == [1]
    assert check(int, 3, "it") == 3
    with pytest.raises(ValueError, match="it is '3'; it must be a whole number"):
        check(int, "3", "it")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Drawn(0), "Drawn: grid is 0; it must be at least 1"),
        (lambda: Drawn(13), "Drawn: grid is 13, which nobody draws"),
        (lambda: Drawn(noise=np.nan), "Drawn: noise is nan; it must be a finite number"),
        (lambda: Drawn(gird=3), "Drawn has the unknown key 'gird'; did you mean 'grid'? " + KNOWN),
        (lambda: Folder(), "Folder lacks path"),
        (lambda: replace(Drawn(), grid=-1), "Drawn: grid is -1; it must be at least 1"),
        (lambda: Painted(colour=3), "Painted: colour is 3; it must be text"),
    ],
)
def test_in_python_the_same_is_said(make, said):
    with pytest.raises(ValueError) as raised:
        make()
    assert str(raised.value) == said


def test_a_class_is_a_frozen_dataclass_of_plain_numbers():
    made = Painted(np.int64(3), np.float32(0.25))
    assert made == Painted(grid=3, noise=0.25) and type(made.grid) is int and made.cells() == 9
    with pytest.raises(FrozenInstanceError):
        made.grid = 4
    with pytest.raises(TypeError, match="takes grid, noise, kind, each once"):
        Drawn(3, grid=3)


def test_options_are_checked_by_the_same_types():
    assert option(Count)("8") == 8 and option(Seed)(str(LARGEST_SEED)) == LARGEST_SEED
    for kind, text in ((Count, "0"), (Count, "x"), (Seed, str(LARGEST_SEED + 1)), (Tolerance, "nan"), (Device, "gpu")):
        with pytest.raises(Exception, match=f"^is {text}; it must be"):
            option(kind)(text)


def test_long_values_are_cut_short():
    bomb = ["x" * 10]
    for _ in range(40):
        bomb = [bomb] * 9
    for value in ("x" * 10**6, 10**5000, bomb, {f"key {i}": i for i in range(10**4)}):
        assert len(shown(value)) < 300
    assert unknown_key("f", "x", []) == "f has the unknown key 'x'; none is known"


# ---- YAML --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml: line 3 gives the key 'a' again, after line 1; keep one of them"),
        ("c:\n  x: {a: 1, a: 2}", "f.yaml: line 2 gives the key 'a' again, after line 2; keep one of them"),
        ("a: 1\n'a': 2", "f.yaml: line 2 gives the key 'a' again, after line 1; keep one of them"),
        ("a: b: c", "f.yaml cannot be read as YAML in line 1 (mapping values are not allowed here)"),
        ("---\na: 1\n---\nb: 2", "f.yaml cannot be read as YAML in line 3 (expected a single document in the stream "
         "but found another document)"),
        ("a: *b", "f.yaml cannot be read as YAML in line 1 (found undefined alias 'b')"),
        ("a: !!python/name:os.system x", "f.yaml cannot be read as YAML in line 1 (could not determine a constructor "
         "for the tag 'tag:yaml.org,2002:python/name:os.system')"),
        ("a: 2024-13-45", "f.yaml cannot be read as YAML (month must be in 1..12)"),
        ("[" * 3000, "f.yaml cannot be read as YAML (it is nested too deeply)"),
    ],
)  # fmt: skip
def test_what_is_no_yaml_is_named_with_its_line(text, said):
    with pytest.raises(ValueError) as raised:
        parse_yaml(text, "f.yaml")
    assert str(raised.value) == said


def test_a_merged_key_may_be_given_again():
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\n"
    assert parse_yaml(text, "f.yaml")["c"] == {"x": 2, "y": 3}


def test_files_that_cannot_be_read_are_named(tmp_path):
    file = tmp_path / "f.yaml"
    for content, said in ((b"a: \xff", "is not UTF-8 text"), (b" " * 10_000_001, "has 10000001 bytes")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"{file} {said}"):
            read_yaml(file)
    file.write_bytes(b"\xef\xbb\xbfa: 1")  # a byte order mark, as editors on Windows write
    assert read_yaml(file) == {"a": 1}
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be read \\(Is a directory\\)"):
        read_yaml(tmp_path)
    with pytest.raises(ValueError, match=r"there is no file .*nowhere\.yaml"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_it_imports_nothing_heavy():
    code = "import sys, fvlm_lib.schema, fvlm_lib.yaml_files; print(*{'torch', 'numpy', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
