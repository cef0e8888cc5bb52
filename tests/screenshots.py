"""Makes the README's images: the panels as they stand in JupyterLab, and the main figures of the last batch.

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
from tqdm import tqdm

OUTPUT = lab.ROOT / "docs" / "images"
LARGEST = 300_000  # bytes
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
    else:
        shown = page.content(picture)
        page.press("frame", "ArrowRight", 3)
    lab.wait_for(lambda: page.content(picture) != shown, "the picture to change")
    page.page.mouse.move(0, 0)
    page.page.wait_for_timeout(3000)
    return page.panel()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/screenshots.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join([*FIGURES, *PANELS])}; default all")
    names = parser.parse_args().names or [*FIGURES, *PANELS]
    if unknown := [name for name in names if name not in FIGURES and name not in PANELS]:
        parser.error(f"there is no image {unknown[0]!r}; there are {', '.join([*FIGURES, *PANELS])}")
    figures, panels = {name: FIGURES[name] for name in names if name in FIGURES}, [n for n in names if n in PANELS]
    missing = [path for path in figures.values() if not (lab.ROOT / path).exists()]
    if missing or (panels and lab.CHROMIUM is None):
        wanted = f"{missing[0]}, which `bash run.sh` makes" if missing else "Debian's chromium"
        print(f"screenshots: this needs {wanted}", file=sys.stderr)
        return 2
    for name, path in figures.items():
        save(Image.open(lab.ROOT / path), name)
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
