"""Pictures that panels show at once: screenshots with their changed patches, difference maps, figures as PNG.

Drawn as arrays where matplotlib would take too long to follow a slider, in the colours of `plots.py`.
"""

from __future__ import annotations

import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from fvlm_lib.patches import expand_mask
from fvlm_lib.plots import CHANGED, faded

SHOWN_WIDTH = 640
"""Pixels; smaller frames are enlarged to about that width, by a whole factor, so that their pixels stay sharp."""

_UNCHANGED = ((1.0, 1.0, 1.0), (0.62, 0.67, 0.75))  # colours of no difference, and of one at the threshold
_DIFFERS = ((0.99, 0.75, 0.30), (0.45, 0.02, 0.10))  # just above the threshold, and the full range


def draw_changed_patches(frame: np.ndarray, mask: np.ndarray, patch_size: int) -> np.ndarray:
    """A screenshot uint8 (H, W, 3), patches outside `mask` (grid_h, grid_w) faded, those in it outlined; enlarged if
    it is small. As `plots.plot_changed_patches`, but areas of changed patches have one outline."""
    factor = max(1, SHOWN_WIDTH // frame.shape[1])
    frame = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = frame.shape[:2]
    pixels = expand_mask(mask, height, width, patch_size * factor)
    drawn = np.where(pixels[..., None], frame, faded(np.arange(256))[frame])
    drawn[pixels & ~_eroded(pixels, 2)] = np.array(CHANGED) * 255
    return drawn


def _eroded(mask: np.ndarray, width: int) -> np.ndarray:
    """The mask without what lies within `width` pixels of its edge; the picture's border is none."""
    for _ in range(width):
        padded = np.pad(mask, 1, mode="edge")
        mask = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def draw_differences(difference: np.ndarray, threshold: float, shape: tuple[int, int], patch_size: int) -> np.ndarray:
    """How much each patch (grid_h, grid_w) differs, in greys up to the threshold and orange to dark red above it;
    uint8 (height, width, 3) of a frame of `shape`, enlarged as `draw_changed_patches` does."""
    factor = max(1, SHOWN_WIDTH // shape[1])
    below = np.clip(difference / max(threshold, 1e-9), 0, 1)[..., None]
    above = np.clip((difference - threshold) / max(1 - threshold, 1e-9), 0, 1)[..., None]
    colours = np.where(
        (difference > threshold)[..., None], _mixed(_DIFFERS, above), _mixed(_UNCHANGED, below)
    )  # (grid_h, grid_w, 3)
    enlarged = (colours * 255).astype(np.uint8).repeat(patch_size * factor, axis=0).repeat(patch_size * factor, axis=1)
    return enlarged[: shape[0] * factor, : shape[1] * factor]


def _mixed(colours: tuple[tuple[float, ...], tuple[float, ...]], share: np.ndarray) -> np.ndarray:
    start, end = map(np.array, colours)
    return start + share * (end - start)


def difference_legend() -> str:
    """The colours of `draw_differences` as HTML."""
    bars = [
        f"<span style='display:inline-block;width:60px;height:10px;background:linear-gradient(to right,"
        f"{css_colour(start)},{css_colour(end)});border:1px solid #999'></span>"
        for start, end in (_UNCHANGED, _DIFFERS)
    ]
    return f"0 {bars[0]} threshold {bars[1]} 1"


def css_colour(colour: tuple[float, ...]) -> str:
    """A colour (red, green, blue) in [0, 1] as CSS."""
    return f"rgb({','.join(str(round(255 * part)) for part in colour)})"


def to_jpeg(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as JPEG with full colour resolution, which thin outlines need; a fifth of PNG's time."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=88, subsampling=0)
    return stream.getvalue()


def to_png(figure: Figure) -> bytes:
    """A matplotlib figure as PNG, at its own resolution."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
