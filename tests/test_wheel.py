"""What `pip install .` leaves works outside the checkout, and what it asks for is what the library imports."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from conftest import DEMO, ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
THEIRS = (
    "pydantic_core",
    "tokenizers",
    "jupyter_client",
    "nbformat",
    "traitlets",
    "snakemake-interface-logger-plugins",
)
OPTIONAL = [Requirement(text) for extra in PROJECT["optional-dependencies"].values() for text in extra]


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if "==" in line]
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}


def test_every_package_that_the_library_imports_is_a_dependency():
    imported = set()
    for file in ROOT.glob("fvlm_lib/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").split(".")[0])
    outside = imported - set(sys.stdlib_module_names) - {"fvlm_lib"}
    of = packages_distributions()
    known = DEPENDENCIES.keys() | {canonicalize_name(r.name) for r in OPTIONAL}
    known |= {canonicalize_name(name) for name in THEIRS}  # theirs
    missing = {name for name in outside if not {canonicalize_name(d) for d in of.get(name, [name])} & known}
    assert not missing


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt", "requirements-gguf.txt"])
def test_pinned_versions_are_within_the_ranges(file):
    ranges = {canonicalize_name(r.name): r for r in [*DEPENDENCIES.values(), *OPTIONAL]}
    pinned = pins(file)
    wrong = [name for name, version in pinned.items() if name in ranges and version not in ranges[name].specifier]
    assert pinned and not wrong
    if file == "requirements.txt":
        assert not DEPENDENCIES.keys() - pinned.keys(), "a dependency is not pinned"


@pytest.mark.slow
def test_an_installed_copy_works_outside_the_checkout(tmp_path):
    source = tmp_path / "source"  # building leaves a folder behind
    shutil.copytree(ROOT / "fvlm_lib", source / "fvlm_lib")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(tmp_path / "installed"), str(source)], check=True)
    (tmp_path / "elsewhere").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(tmp_path / "installed") in run("-c", "import fvlm_lib; print(fvlm_lib.__file__)")
    assert "usage: fvlm COMMAND" in run("-m", "fvlm_lib", "--help")
    checkpoint = ["--checkpoint", str(DEMO / "S-S" / "step_3000"), "--num-samples", "4", "--floor-samples", "0"]
    assert "verdict" in run("-m", "fvlm_lib", "gap", *checkpoint, "--output", "gap.json")
    assert (tmp_path / "elsewhere" / "gap.parquet").exists()
