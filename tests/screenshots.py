"""Makes the images of README and docs: the panels in JupyterLab, the last batch's main figures, its report.

    bash run.sh && .venv/bin/python tests/screenshots.py
    .venv/bin/python tests/screenshots.py tune_threshold    # one of them

Writes docs/images/*.png, each of at most 300 kB. Needs Debian's chromium.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import lab
from PIL import Image
from playwright.sync_api import sync_playwright
from tqdm import tqdm

OUTPUT = lab.ROOT / "docs" / "images"
LARGEST = 300_000  # bytes
REPORT = lab.ROOT / "results" / "report.html"
FIGURES = {"gap_analysis": "plots/gap_analysis.png", "changed_patches": "plots/changes/jupyter.png"}


def save(image: Image.Image, name: str) -> None:
    """Write docs/images/NAME.png, in so many colours that it stays within LARGEST."""
    image = image.convert("RGB")
    for colours in (None, 256, 64):
        stream = BytesIO()
        shown = image.quantize(colours, dither=Image.Dither.NONE) if colours else image
        shown.save(stream, "PNG", optimize=True)
        if stream.tell() <= LARGEST:
            break
    else:
        raise ValueError(f"{name}: {stream.tell()} bytes even in {colours} colours; at most {LARGEST} are allowed")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"{name}.png").write_bytes(stream.getvalue())
    print(f"docs/images/{name}.png: {image.width} x {image.height}, {stream.tell() / 1000:.0f} kB")


PANELS = {  # image -> the notebook, the picture that is waited for, and what is done before
    "tune_threshold": ("tune_threshold", "screenshot", "step"),
    "compare_settings": ("tune_threshold", "screenshot-b", "compare"),
    "explore_fovea": ("explore_fovea", "inference", "step"),
    "reader_panel": ("reader_panel", "frame", "step"),
    "live_screen": ("live_screen", "look", "watch"),
}


def photograph(page: lab.Lab, name: str) -> Image.Image:
    """Run a notebook, use its panel, and show it once its picture stands still."""
    notebook, picture, use = PANELS[name]
    page.run_all(f"notebooks/{notebook}.ipynb")
    if use == "compare":
        page.page.click("button:has-text('Compare two settings')")
        page.page.wait_for_selector(f"img.fvlm-{picture}")
        shown = page.content(picture)
        page.press("threshold", "ArrowRight", 40)
        page.choose("zoom", "2 : 1")
    elif use == "watch":
        shown = page.content(picture)
        page.page.click("button:has-text('Start')")
        page.page.wait_for_timeout(20_000)  # of the recording
        page.page.click("button:has-text('Stop')")
        page.page.wait_for_selector("button:has-text('Start')")
    else:
        shown = page.content(picture)
        page.press("frame", "ArrowRight", 3)
    lab.wait_for(lambda: page.content(picture) != shown, "the picture to change")
    page.page.mouse.move(0, 0)
    page.page.wait_for_timeout(3000)
    return page.panel()


def photograph_report() -> Image.Image:
    """The first screen of the last batch's report."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=lab.CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 1000})
        page.goto(REPORT.as_uri())
        return Image.open(BytesIO(page.screenshot()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/screenshots.py", description=__doc__.split("\n\n")[0])
    known = [*FIGURES, "report", *PANELS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default all")
    names = parser.parse_args().names or known
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no image {unknown[0]!r}; there are {', '.join(known)}")
    figures = {name: lab.ROOT / FIGURES[name] for name in names if name in FIGURES}
    panels = [name for name in names if name in PANELS]
    needed = [*figures.values(), *([REPORT] if "report" in names else [])]
    missing = [path for path in needed if not path.exists()]
    if missing or lab.CHROMIUM is None:
        wanted = f"{missing[0]}, which `bash run.sh` makes" if missing else "Debian's chromium"
        print(f"screenshots: this needs {wanted}", file=sys.stderr)
        return 2
    for name, path in figures.items():
        save(Image.open(path), name)
    if "report" in names:
        save(photograph_report(), "report")
    if not panels:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        project, private = Path(folder, "project"), Path(folder, "jupyter")
        project.mkdir()
        lab.copy_project(project)
        with lab.serve(project, private) as url:
            for name in tqdm(panels, unit="panel"):
                with lab.browser(url, height=1700) as page:  # the whole panel is in view
                    save(photograph(page, name), name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
