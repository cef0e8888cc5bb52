"""The colours of all figures, and the markers and lines that go with them.

Six colours: any two differ by at least `DISTINCT` in CAM02-UCS (Luo, Cui and Li 2006) as people see them who have all
cones or lack one kind (Machado, Oliveira and Fernandes 2009, severity 100%), and each has at least the contrast
`CONTRAST` to white (WCAG 2.1, 1.4.11, of graphics). `tests/figures/test_palette.py` measures both. What stands in one
figure differs by its marker or line too, so that it can be told apart in grey print.
"""

from __future__ import annotations

from matplotlib.colors import LinearSegmentedColormap, to_rgb

Colour = tuple[float, float, float]

DISTINCT = 15.0  # CAM02-UCS, of any two colours; 1 is about what can just be seen between large areas
DISTINCT_SHADES = 10.0  # of neighbours among the shades of six tolerances, which have an order
CONTRAST = 3.0  # to white

BLUE: Colour = to_rgb("#1254b3")
VERMILION: Colour = to_rgb("#e8540f")
GREEN: Colour = to_rgb("#0aa578")
PLUM: Colour = to_rgb("#7a0a58")
GREY: Colour = to_rgb("#9191a8")
BLACK: Colour = to_rgb("#141414")
COLOURS = {"blue": BLUE, "vermilion": VERMILION, "green": GREEN, "plum": PLUM, "grey": GREY, "black": BLACK}

REFERENCE = "0.35"  # lines that values are compared with, such as a gap of 0
CHANGED = VERMILION  # outline of what changed in a screenshot
FREQUENCY = LinearSegmentedColormap.from_list("frequency", [to_rgb("#f9d5b8"), VERMILION, PLUM, BLACK])
"""Of shares: from light to dark, so that it reads in grey too."""

MODES: dict[str, tuple[Colour, str, str]] = {  # forward mode, as columns call it -> colour, marker, line
    "coarse": (GREY, "s", ":"),
    "fine_1": (BLUE, "o", "-"),
    "fine_2": (GREEN, "D", "-."),
    "fine_3": (PLUM, "v", (0, (5, 1, 1, 1, 1, 1))),  # type: ignore[dict-item]
    "autoregressive": (VERMILION, "^", "--"),
}
OTHER_MODE: tuple[Colour, str, str] = (BLACK, "P", "-")

SERIES: list[tuple[Colour, str]] = [(GREEN, "o"), (PLUM, "s"), (BLACK, "^"), (VERMILION, "D"), (BLUE, "v")]

PLAIN: tuple[Colour, str, str] = (BLACK, "o", "-")  # the recipe that the others of a study are compared with
RECIPE_COLOURS = (
    BLUE,
    VERMILION,
    GREEN,
    PLUM,
    GREY,
)  # of the others, which go through colours, markers and lines at once
RECIPE_MARKERS = ("s", "^", "D", "v", "P", "X", ">", "*", "<")
RECIPE_LINES = ("-", "--", "-.", ":")
SIZES: list[tuple[Colour, str]] = [(GREEN, "o"), (PLUM, "s"), (VERMILION, "^"), (BLUE, "v"), (GREY, "P")]
ALL_SIZES: tuple[Colour, str] = (BLACK, "D")

PATHS: dict[str, Colour] = {  # what an encoder does with a frame -> colour
    "cached": GREY,
    "partial": BLUE,
    "full": VERMILION,
    "skipped": GREEN,
    "fallback": BLACK,
}
PATH_MARKERS = {"cached": "o", "partial": "D", "full": "^", "skipped": "v", "fallback": "X"}

POLICIES: dict[str, tuple[Colour, str]] = {
    "exact match": (GREY, "o"),
    "pseudocode": (PLUM, "s"),
    "none": (GREEN, "^"),
}
GATED: tuple[Colour, str] = (BLUE, "D")  # outline and line of all gated policies; their fills are `gated_fills`
OTHER_POLICY: tuple[Colour, str] = (BLACK, "v")


def gated_fills(count: int) -> list[Colour]:
    """Fills of the gated policies from the lowest tolerance to the highest: blue to white, evenly, outlined in blue."""
    shades = LinearSegmentedColormap.from_list("gated", [BLUE, (1.0, 1.0, 1.0)])
    return [to_rgb(shades(i / max(count - 1, 1))) for i in range(count)]
