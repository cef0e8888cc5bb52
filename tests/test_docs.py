"""README, CONTRIBUTING and the pages of docs/: their snippets run as they stand, their links lead somewhere, the tree
names every module."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from fvlm_lib.batch.config import read_batch
from fvlm_lib.batch.study_config import read_study
from fvlm_lib.foveated.training_config import read_training_config

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "notebooks" / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
]
TEXTS = [page for page in PAGES if page.stem not in ("KNOWLEDGE", "LOG")]  # those give commands by name, with figures
# What cannot run in a test as it stands, and what stands for it there.
ELSEWHERE = {
    "bash run.sh lab": "tests/panels/test_browser.py opens the notebooks in JupyterLab",
    "bash run.sh study": "tests/batch/test_study.py runs a study of tiny models",
    "fvlm study-": "tests/batch/test_study.py and tests/gap/test_study_table.py do, of that",
    "bash run.sh retrain": "tests/foveated/test_train.py trains a ladder, smaller",
    "bash test.sh": "it is what runs this",
    "fvlm record": "tests/data/test_record.py records a virtual screen",
    "gguf": "it would change .venv; tests/foveated/test_checkpoints.py reads a GGUF file where that is installed",
    "llava-smollm2": "made of that",
    "--profile profiles/slurm": "tests/slurm/run.sh makes a cluster of one node",
    "bash tests/slurm/run.sh": "it needs root",
    "config/clip.yaml": "half an hour; tests/batch reads it",
    ".venv/bin/pre-commit install": "it would change the checkout's hooks",
}


def snippets(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The tracked files, as a user's clone has them, with the .venv that is here."""
    folder = tmp_path_factory.mktemp("clone") / "fvlm"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(Path(sys.prefix).resolve(), target_is_directory=True)
    configs = snippets(ROOT / "docs" / "gap.md", "yaml")  # as the page says
    (folder / "config" / "mine.yaml").write_text(configs[0])
    (folder / "config" / "mine-ladder.yaml").write_text(configs[-1])
    return folder


@pytest.mark.parametrize("code", [code for page in TEXTS for code in snippets(page, "yaml")])
def test_every_config_of_the_pages_is_one(code, tmp_path):
    config = yaml.safe_load(code)
    if "runs" in config:  # what `fvlm train` takes
        (tmp_path / "ladder.yaml").write_text(code)
        assert all(read_training_config(tmp_path / "ladder.yaml", run) for run in config["runs"])
        return
    if "sizes" in config:  # what `bash run.sh study` takes
        assert read_study(config).runs
        return
    if set(config) == {"data"}:  # what `gap:` may hold
        config = {"checkpoints": {"mine": "checkpoints/demo/S-S/step_3000"}, "gap": config}
    read_batch(config)


def runnable(code: str) -> str:
    """A snippet without the lines that ELSEWHERE stands for."""
    return "".join(line for line in code.splitlines(keepends=True) if not any(command in line for command in ELSEWHERE))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in TEXTS if snippets(page, "python") or snippets(page, "bash")], ids=lambda page: page.name
)
def test_the_snippets_of_a_page_run_from_top_to_bottom(page, project):
    python = "\n".join(snippets(page, "python"))
    commands = [runnable(code) for code in snippets(page, "bash")]
    for call in [[sys.executable, "-c", python], *(["bash", "-ec", code] for code in commands)]:
        done = subprocess.run(
            call,
            cwd=project,
            # .venv is linked: nothing may install into it
            env={**os.environ, "PATH": f"{project}/.venv/bin:{os.environ['PATH']}", "PYTHON": "false"},
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, f"{call[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_titles_that_are_there(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: {target.name} has no such title"


def test_the_tree_names_every_module_and_notebook():
    tree = (ROOT / "docs" / "tree.md").read_text(encoding="utf-8")
    files = [*ROOT.glob("fvlm_lib/*/*.py"), *ROOT.glob("fvlm_lib/*.py"), *ROOT.glob("notebooks/*.ipynb")]
    missing = [file.name for file in files if not file.name.startswith("__") and file.name not in tree]
    assert not missing


def test_every_module_of_the_library_is_in_the_reference():
    wings = {file.stem for file in ROOT.glob("docs/reference/*.md")}
    assert wings == {folder.parent.name for folder in ROOT.glob("fvlm_lib/*/__init__.py")} | {"ground"}
    ground = (ROOT / "docs" / "reference" / "ground.md").read_text(encoding="utf-8")
    files = {file.stem for file in ROOT.glob("fvlm_lib/*.py") if not file.stem.startswith("__")}
    assert {line.removeprefix("::: fvlm_lib.") for line in ground.splitlines() if line.startswith(":::")} == files
