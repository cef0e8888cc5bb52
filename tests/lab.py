"""JupyterLab on a copy of the project, and a browser on it: for the tests of the panels and their screenshots."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")
PATIENCE = 120_000  # milliseconds; for a busy machine, nothing waits this long otherwise
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
CUT_OFF = """output => {
    const edges = output.getBoundingClientRect(), found = [];
    for (const element of output.querySelectorAll('*')) {
        if (element.closest('.noUi-target') || ['SELECT', 'OPTION', 'INPUT'].includes(element.tagName)) continue;
        const box = element.getBoundingClientRect(), style = getComputedStyle(element);
        if (box.width === 0 || box.height === 0) continue;
        const hidden = style.overflowX !== 'visible' && element.scrollWidth > element.clientWidth + 1;
        if (box.right > edges.right + 1 || box.left < edges.left - 1 || hidden)
            found.push(`${element.tagName} ${element.className}: ${(element.innerText || '').slice(0, 60)}`);
    }
    return found;
}"""


def copy_project(folder: Path) -> Path:
    """A copy of the project's folder that may be written to."""
    for name in ("notebooks", "config", "checkpoints"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "data").symlink_to(ROOT / "data")  # read alone, as is most of the results
    (folder / "results").mkdir()
    for entry in (ROOT / "results").iterdir():
        if entry.name != "live":  # which a notebook writes
            (folder / "results" / entry.name).symlink_to(entry)
    made_from = ["requirements.txt", "requirements-dev.txt", "pyproject.toml"]
    for name in ("run.sh", *made_from):
        shutil.copy(ROOT / name, folder)
    binaries = folder / ".venv" / "bin"  # of this Python, so that run.sh takes it for installed
    binaries.mkdir(parents=True)
    (binaries / "jupyter").write_text(f'#!/bin/sh\nshift\nexec "{sys.executable}" -m jupyterlab "$@"\n')
    (binaries / "jupyter").chmod(0o755)
    content = b"".join((folder / name).read_bytes() for name in made_from)
    made = subprocess.run(["cksum"], input=content, capture_output=True, check=True).stdout
    (folder / ".venv" / "installed").write_bytes(made)
    return folder


@contextlib.contextmanager
def serve(project: Path, private: Path) -> Iterator[str]:
    """JupyterLab as `bash run.sh lab` has it, on loopback with the project as root and its own settings in `private`;
    gives the URL with its token."""
    private.mkdir(exist_ok=True)
    own = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(private / "ipython")}
    environment |= {f"JUPYTER_{name}_DIR": str(private / folder) for name, folder in own.items()}
    environment["PYTHON"] = "false"  # run.sh must not begin to install
    command = ["bash", "run.sh", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
    with (private / "log.txt").open("w") as log:
        server = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log)
    try:
        yield wait_for(lambda: _url(private / "runtime", server), "JupyterLab's address")
    finally:
        server.send_signal(signal.SIGTERM)  # one: a second would leave its kernels running
        server.wait(60)


def _url(runtime: Path, server: subprocess.Popen) -> str | None:
    assert server.poll() is None, "JupyterLab ended at once"
    for file in runtime.glob("jpserver-*.json"):
        with contextlib.suppress(ValueError):  # not yet written to its end
            about = json.loads(file.read_text())
            return f"{about['url']}lab/tree/NOTEBOOK?reset&token={about['token']}"
    return None


def wait_for(found: Callable[[], Any], what: str, seconds: float = PATIENCE / 1000) -> Any:
    """What `found` returns, as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)
    return result


class Lab:
    """One notebook open in one browser page. `complaints`: what page and console reported as errors."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def run_all(self, notebook: str) -> None:
        """Open a notebook of the project and run all of its cells to the end."""
        self.page.goto(self.url.replace("NOTEBOOK", notebook))
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        self.wait_until_idle()
        self.page.click(".lm-MenuBar-itemLabel:text-is('Run')")
        self.page.click("[data-command='runmenu:run-all']")
        prompts = self.page.locator(".jp-CodeCell .jp-InputPrompt")
        wait_for(
            lambda: all("]" in text and text.strip("[]: \n*") for text in prompts.all_text_contents()), "all cells run"
        )
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Until the kernel is idle, as the status bar has it: the notebook's own sign says so too early."""
        self.page.wait_for_selector("#jp-main-statusbar :text('Idle')")

    def errors(self) -> list[str]:
        """Errors in the cells, what they wrote to stderr, and errors in the console."""
        kinds = ("application/vnd.jupyter.error", "application/vnd.jupyter.stderr")
        shown = self.page.locator(", ".join(f"[data-mime-type='{kind}']" for kind in kinds))
        return [*shown.all_inner_texts(), *self.complaints]

    def text(self, selector: str) -> str:
        """What the first element of a selector says."""
        return self.page.locator(selector).first.inner_text()

    def cut_off(self) -> list[str]:
        """What of the panel reaches beyond its left or right edge, or does not show all that it holds in its width."""
        return self.output.evaluate(CUT_OFF)

    @property
    def output(self) -> Locator:
        """The output with the panel."""
        return self.page.locator(".jp-OutputArea-output:has(img[class*='fvlm-'])").first

    def choose(self, label: str, option: str) -> None:
        """Choose from the dropdown with this label."""
        self.page.select_option(f".widget-dropdown:has(label:text-is('{label}')) select", option)

    def slider(self, label: str) -> Locator:
        """The handle of the slider with this label; it takes the arrow keys."""
        return self.page.locator(f".widget-hslider:has(label:text-is('{label}')) .noUi-handle")

    def pixels(self, name: str) -> np.ndarray:
        """A panel's picture as it stands on the page."""
        return np.array(Image.open(BytesIO(self.page.locator(f"img.fvlm-{name}").screenshot())).convert("RGB"))

    def content(self, name: str) -> bytes:
        """The file that a panel's picture was sent as."""
        numbers = self.page.locator(f"img.fvlm-{name}").evaluate(
            "async image => [...new Uint8Array(await (await fetch(image.src)).arrayBuffer())]"
        )
        return bytes(numbers)

    def panel(self) -> Image.Image:
        """The whole panel as it stands on the page."""
        return Image.open(BytesIO(self.output.screenshot()))

    def press(self, label: str, key: str, times: int = 1) -> None:
        self.slider(label).focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def wait_for_change(self, name: str, before: np.ndarray) -> np.ndarray:
        """The picture once it differs: label and picture come in separate messages."""

        def changed() -> list[np.ndarray]:
            now = self.pixels(name)
            return [] if now.shape == before.shape and (now == before).all() else [now]

        return wait_for(changed, f"the {name} to change")[0]


@contextlib.contextmanager
def browser(url: str, width: int = 1500, height: int = 1100) -> Iterator[Lab]:
    """A headless Chromium with a new, empty profile."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        try:
            yield Lab(chromium.new_page(viewport={"width": width, "height": height}), url)
        finally:
            chromium.close()
