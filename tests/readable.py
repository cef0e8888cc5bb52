"""What a reader of a printed figure needs, checked."""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from fvlm_lib.figures import paper


def check_texts(figure: Figure, style: str, name: str) -> None:
    """No text is smaller than can be read, cut off or over another."""
    with plt.rc_context(paper.VENUES[style].rc_parameters()):
        texts = paper.visible_texts(figure)
    assert min(text.get_fontsize() for text in texts) >= paper.MIN_TEXT
    boxes = {text: text.get_window_extent() for text in texts}
    for text, box in boxes.items():
        inside = box.x0 >= -0.5 and box.y0 >= -0.5 and box.x1 <= figure.bbox.x1 + 0.5
        assert inside and box.y1 <= figure.bbox.y1 + 0.5, f"{name}: {text.get_text()!r} is cut off"
    for one, other in itertools.combinations(texts, 2):
        assert not boxes[one].overlaps(boxes[other]), f"{name}: {one.get_text()!r} lies over {other.get_text()!r}"
