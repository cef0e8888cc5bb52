"""Makes the README's images: the panels as they stand in JupyterLab, and the main figures of the last batch.

    bash run.sh && .venv/bin/python tests/screenshots.py

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


PANELS = {  # notebook -> the picture that is waited for, and how often the frame is moved on
    "tune_threshold": ("screenshot", 3),
    "explore_fovea": ("inference", 3),
}


def photograph(page: lab.Lab, notebook: str) -> Image.Image:
    """Run a notebook, move its panel some frames on, and show the panel once its picture stands still."""
    picture, steps = PANELS[notebook]
    page.run_all(f"notebooks/{notebook}.ipynb")
    shown = page.pixels(picture)
    page.press("frame", "ArrowRight", steps)
    page.wait_for_change(picture, shown)
    page.page.mouse.move(0, 0)
    page.page.wait_for_timeout(3000)
    return page.panel()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/screenshots.py", description=__doc__.split("\n\n")[0])
    parser.parse_args()
    missing = [path for path in FIGURES.values() if not (lab.ROOT / path).exists()]
    if missing or lab.CHROMIUM is None:
        wanted = "Debian's chromium" if lab.CHROMIUM is None else f"{missing[0]}, which `bash run.sh` makes"
        print(f"screenshots: this needs {wanted}", file=sys.stderr)
        return 2
    for name, path in FIGURES.items():
        save(Image.open(lab.ROOT / path), name)
    with tempfile.TemporaryDirectory() as folder:
        project, private = Path(folder, "project"), Path(folder, "jupyter")
        project.mkdir()
        lab.copy_project(project)
        with lab.serve(project, private) as url:
            for name in tqdm(PANELS, unit="panel"):
                with lab.browser(url) as page:
                    save(photograph(page, name), name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
