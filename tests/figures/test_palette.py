"""Everyone can tell the colours of the figures apart: dichromacy is simulated, distances and contrasts are measured."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from colorspacious import cspace_convert

from fvlm_lib.figures import palette, plots

SIGHTS = (None, "protanomaly", "deuteranomaly", "tritanomaly")


def seen(colours, sight: str | None = None) -> np.ndarray:
    """Colours sRGB (N, 3) in [0, 1] as CAM02-UCS (J', a', b'); `sight`: the cone that is missing, None for no one."""
    colours = np.asarray(colours, dtype=float)
    if sight:
        space = {"name": "sRGB1+CVD", "cvd_type": sight, "severity": 100}
        colours = np.clip(cspace_convert(colours, space, "sRGB1"), 0, 1)
    return cspace_convert(colours, "sRGB1", "CAM02-UCS")


def distance(one, other) -> float:
    """The smallest distance of two colours over all kinds of sight."""
    return min(float(np.linalg.norm(np.subtract(*seen([one, other], sight)))) for sight in SIGHTS)


def contrast(colour) -> float:
    """To white, by the formula of WCAG 2.1."""
    parts = np.asarray(colour, dtype=float)
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return 1.05 / (float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)


def test_the_simulation_sees_what_is_known_to_be_confused():
    """Red and green of equal lightness part for those with all cones and hardly for those without one."""
    red, green = (0.78, 0.30, 0.20), (0.47, 0.50, 0.17)
    assert np.linalg.norm(np.subtract(*seen([red, green]))) > 2 * palette.DISTINCT
    assert distance(red, green) < palette.DISTINCT
    assert contrast((0, 0, 0)) == pytest.approx(21) and contrast((1, 1, 1)) == pytest.approx(1)
    assert contrast((0.93, 0.88, 0.2)) < palette.CONTRAST  # a yellow


@pytest.mark.parametrize(("one", "other"), itertools.combinations(palette.COLOURS, 2))
def test_any_two_colours_can_be_told_apart(one, other):
    assert distance(palette.COLOURS[one], palette.COLOURS[other]) >= palette.DISTINCT


@pytest.mark.parametrize("name", palette.COLOURS)
def test_every_colour_stands_out_from_white(name):
    assert contrast(palette.COLOURS[name]) >= palette.CONTRAST


def looks() -> dict[str, list[tuple]]:
    """By kind of figure, what stands in it together: colour, marker, line."""
    runs = plots.series_styles([f"run {i}" for i in range(5)])
    return {
        "modes": [*palette.MODES.values(), palette.OTHER_MODE],
        "runs": [(style["color"], style["marker"], "-") for style in runs.values()],
        "paths": [(colour, palette.PATH_MARKERS[path], "-") for path, colour in palette.PATHS.items()],
        "policies": [(*look, "-") for look in [*palette.POLICIES.values(), palette.GATED, palette.OTHER_POLICY]],
    }


@pytest.mark.parametrize("kind", looks())
def test_what_stands_in_one_figure_differs_in_colour_and_also_without(kind):
    """In marker, or of modes in line too; so grey print suffices."""
    known = set(palette.COLOURS.values())
    for one, other in itertools.combinations(looks()[kind], 2):
        assert {one[0], other[0]} <= known and one[0] != other[0]
        assert one[1] != other[1]
        assert kind != "modes" or one[2] != other[2] or palette.OTHER_MODE in (one, other)


def test_up_to_25_runs_differ_in_colour_or_marker():
    styles = plots.series_styles([f"run {i}" for i in range(25)]).values()
    assert {style["color"] for style in styles} <= set(palette.COLOURS.values())
    assert len({(style["color"], style["marker"]) for style in styles}) == 25


@pytest.mark.parametrize("sight", SIGHTS)
def test_shades_go_from_dark_to_light_for_everyone(sight):
    fills = seen(palette.gated_fills(6), sight)
    assert (np.diff(fills[:, 0]) > 0).all()
    assert (np.linalg.norm(np.diff(fills, axis=0), axis=1) >= palette.DISTINCT_SHADES).all()
    shares = seen(palette.FREQUENCY(np.linspace(0, 1, 32))[:, :3], sight)
    assert (np.diff(shares[:, 0]) < 0).all()  # the more, the darker
