"""One setting on one recording, what it does and its pictures: two of these stand side by side in the tuning panel.

`Choice` is a setting together with the size that it is for, `trace_choice` what it does to a recording, and
`SettingView` shows that at one frame. Where the settings come from is the panel's subject, numbers are that of
`tables.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd

from fvlm_lib.panels.controls import ROW, TEXT
from fvlm_lib.panels.pictures import (
    MarkedChart,
    describe_frame,
    describe_sequence,
    difference_legend,
    draw_changed_patches,
    draw_differences,
    draw_timeline,
    to_jpeg,
    to_png,
    whole,
    zoomed,
)
from fvlm_lib.panels.sizes import AS_RECORDED, PATCH_AS_RECORDED, Seen
from fvlm_lib.screens.tuning import PatchDifferences, trace_settings
from fvlm_lib.vision.changes import TracedFrame, trace_table
from fvlm_lib.vision.settings import DifferentialSettings


@dataclass(frozen=True)
class Choice:
    """A setting of the encoder, and how the frames are seen that it is for."""

    settings: DifferentialSettings
    seen: Seen = AS_RECORDED

    @property
    def patch(self) -> int:
        """Pixels of a patch, of the frames as they are seen."""
        return self.settings.patch_size or (self.seen[2] if self.seen else PATCH_AS_RECORDED)


@dataclass(frozen=True, eq=False)  # equal if it is the same: tables have no truth value
class TracedChoice:
    """What a setting does to a recording: each frame's step and how much its patches differ, and the table of
    `changes.trace_table`."""

    steps: list[tuple[TracedFrame, np.ndarray]]
    table: pd.DataFrame


def trace_choice(
    compared: Sequence[PatchDifferences], choice: Choice, actions: Sequence[dict[str, Any]] | None
) -> TracedChoice:
    """Trace a setting over a recording whose patches are compared; actions: what was done at each frame."""
    steps = list(trace_settings(compared, choice.settings))
    table = trace_table([step for step, _ in steps], actions)
    return TracedChoice(steps, table)


class SettingView(ipywidgets.VBox):
    """The pictures and lines of one setting, in a column; `name` (A or B) heads it where there are two."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._chart: MarkedChart | None = None
        self._shown: tuple[Any, ...] | None = None
        self.title, self.status, self.summary = (ipywidgets.HTML(layout=TEXT) for _ in range(3))
        self.screenshot, self.difference, self.timeline = (
            ipywidgets.Image(
                format=kind, layout={"width": "100%", "margin": "0", "border": border, "overflow": "hidden"}
            )
            for kind, border in (("jpeg", "1px solid #ccc"), ("jpeg", "1px solid #ccc"), ("png", "none"))
        )
        for part in ("screenshot", "difference", "timeline"):
            getattr(self, part).add_class(f"fvlm-{part}" + ("" if name == "A" else f"-{name.lower()}"))
        halves = [
            ipywidgets.VBox(
                [ipywidgets.HTML(f"<div style='line-height:1.6'>{head}</div>", layout=TEXT), picture],
                layout={"flex": "1 1 230px", "min_width": "0", "padding": "0 4px 0 0"},
            )
            for head, picture in (
                (f"<b>Difference</b> {difference_legend()}", self.difference),
                ("<b>Whole recording</b>", self.timeline),
            )
        ]
        super().__init__(
            [self.title, self.status, self.summary, self.screenshot, ipywidgets.HBox(halves, layout=ROW)],
            layout={"flex": "1 1 230px", "min_width": "0", "padding": "0 4px 0 0"},
        )

    def clear(self) -> None:
        """Show nothing: of what is chosen there is nothing to show."""
        self._shown = None
        for picture in (self.screenshot, self.difference, self.timeline):
            picture.value = b""
        self.title.value = self.status.value = self.summary.value = ""

    def head(self, choice: Choice, edited: bool | None) -> None:
        """Put the setting's name and threshold above it; edited: whether the controls are this setting's, None where
        there is no other."""
        said = f"<b>{self.name}</b>: threshold {choice.settings.diff_threshold:g}, {choice.settings.metric}"
        if edited:
            said += " <span style='color:#666'>· set by the controls</span>"
        line = f"line-height:1.4;border-bottom:3px solid {'#0072b2' if edited else '#ccc'}"
        self.title.value = "" if edited is None else f"<div style='{line}'>{said}</div>"

    def show(
        self,
        choice: Choice,
        traced: TracedChoice,
        frame: np.ndarray,
        index: int,
        zoom: tuple[int, float, float],
        highest: float,
    ) -> None:
        """Show frame `index`, uint8 (H, W, 3) as it is seen; what is shown already is not drawn again.

        zoom: level (0 for the whole frame) and place, as `controls.Zoom` has them. highest: where the timeline ends.
        """
        asked = (traced, highest, index, zoom)
        if asked == self._shown:
            return
        if self._chart is None or self._shown is None or asked[:2] != self._shown[:2]:
            self._chart = draw_timeline(traced.table, highest)
        self._shown = None  # should drawing fail
        step, difference = traced.steps[index]
        level, across, down = zoom
        region = zoomed(frame.shape, level, across, down) if level else whole(frame.shape)
        for picture in (self.screenshot, self.difference):
            fit_picture(picture, zoom)
        self.screenshot.value = to_jpeg(
            draw_changed_patches(frame, changed_patches(step, difference, choice), choice.patch, region)
        )
        self.difference.value = to_jpeg(
            draw_differences(difference, choice.settings.diff_threshold, frame.shape[:2], choice.patch, region)
        )
        self.timeline.value = to_png(self._chart.at(index))
        self.status.value, self.summary.value = describe_frame(step, traced.table), describe_sequence(traced.table)
        self._shown = asked


def changed_patches(step: TracedFrame, difference: np.ndarray, choice: Choice) -> np.ndarray:
    """Mask (grid_h, grid_w) of the patches that differ by more than the threshold; all in a frame that is compared
    with nothing."""
    return np.ones(difference.shape, bool) if step.changed is None else difference > choice.settings.diff_threshold


def fit_picture(picture: ipywidgets.Image, zoom: tuple[int, float, float]) -> None:
    """Fit a picture into its column, or where it is zoomed into, show as much of its pixels as there is room for."""
    level, across, down = zoom
    layout = picture.layout
    layout.object_fit, layout.height = ("none", "340px") if level else ("fill", "auto")
    layout.object_position = f"{across}% {down}%" if level else None
