"""The controls of one setting of the differential encoder: set to a `Choice`, and read as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ipywidgets

from fvlm_lib.panels.compare import Choice
from fvlm_lib.panels.controls import LogNumber, ShowErrors, labelled
from fvlm_lib.panels.sizes import PATCH_AS_RECORDED, PATCH_SIZES, Seen
from fvlm_lib.vision.changes import default_limit


class SettingControls:
    """How frames are seen, patch size, threshold, metric, reference and limit, as widgets by name."""

    def __init__(self, show_errors: ShowErrors) -> None:
        metrics = [("largest of its pixels", "max"), ("mean of its pixels", "mean")]
        references = [("the pixels of its token", "encoded"), ("the previous frame", "previous")]
        limits = [("up to three quarters of all", False), ("up to a number", True)]
        self.seen = labelled(ipywidgets.Dropdown, "frames seen at")
        self.patch_size = labelled(ipywidgets.Dropdown, "patches of")
        self.threshold = LogNumber("threshold", show_errors)
        self.metric = labelled(ipywidgets.Dropdown, "difference", options=metrics)
        self.reference = labelled(ipywidgets.Dropdown, "compared with", options=references)
        self.limited = labelled(ipywidgets.Dropdown, "partial update", options=limits)
        self.limit = labelled(ipywidgets.IntSlider, "changed patches", max=1)
        self.widgets: dict[str, Any] = dict(vars(self))

    def read(self, before: Choice) -> Choice:
        """What the widgets say; what has no widget is as it was before."""
        settings = replace(
            before.settings,
            diff_threshold=self.threshold.value,
            metric=self.metric.value,
            reference=self.reference.value,
            patch_size=self.patch_size.value or None,
            max_changed_patches=self.limit.value if self.limited.value else None,
        )
        return Choice(settings, self.seen.value)

    def show(self, choice: Choice, sizes: Sequence[tuple[str, Seen]]) -> None:
        """Set the widgets; sizes: that frames may be seen at, each with what to call it. Odd values are offered too."""
        settings = choice.settings
        patches = sorted({*PATCH_SIZES, settings.patch_size or PATCH_AS_RECORDED})
        own = (f"the tower's, else {PATCH_AS_RECORDED}", 0)
        self.patch_size.options = [own, *((f"{size} pixels", size) for size in patches)]
        self.patch_size.value = settings.patch_size or 0
        self.seen.options, self.seen.value = sizes, choice.seen
        self.threshold.value, self.metric.value = settings.diff_threshold, settings.metric
        self.reference.value, self.limited.value = settings.reference, settings.max_changed_patches is not None

    def show_limit(self, limit: int | None, grid: tuple[int, int]) -> None:
        """The limit's slider goes as far as there are patches (rows, columns); without a limit it shows the default."""
        value = default_limit(grid) if limit is None else limit
        self.limit.max = max(grid[0] * grid[1], value)  # the file's limit may be meant for more patches
        self.limit.value, self.limit.disabled = value, limit is None
