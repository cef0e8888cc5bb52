"""What a person moves in a panel: a number on a logarithmic slider, a place to zoom to, a file to save as.

The widgets wrap into as many columns as there is room for; `labelled` makes each of them. None knows what it is for.
"""

from __future__ import annotations

import html
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import traitlets

ShowErrors = Callable[[Callable[[], Any]], Callable[..., None]]
"""`widgets.Panel.show_errors`: makes an action a handler of widgets' events."""

COLUMN = "1 1 270px"  # a control's flex: columns of about that width, as many as fit
ROW = {"flex_flow": "row wrap", "width": "100%"}
TEXT = {"width": "100%", "margin": "0"}  # of lines of HTML; a widget's own margin would make it wider than its column


def labelled(kind: Any, description: str, flex: str = COLUMN, label: str = "112px", **options: Any) -> Any:
    """A widget of `kind` with its description before it, as wide as the room it has."""
    layout = {"flex": flex, "width": "auto", "min_width": "0"}
    return kind(description=description, style={"description_width": label}, layout=layout, **options)


def button(description: str = "", icon: str = "", tooltip: str = "", **options: Any) -> ipywidgets.Button:
    """A button as wide as what it says."""
    return ipywidgets.Button(
        description=description, icon=icon, tooltip=tooltip, layout={"width": "auto", "flex": "0 0 auto"}, **options
    )


def column(widgets: Sequence[ipywidgets.Widget], width: int, most: int) -> ipywidgets.VBox:
    """Widgets below each other, about `width` pixels wide and never wider than `most`."""
    layout = {"flex": f"1 1 {width}px", "min_width": "0", "max_width": f"{most}px", "padding": "0 6px 4px 0"}
    return ipywidgets.VBox(list(widgets), layout=layout)


class LogNumber(ipywidgets.HBox):
    """A number from 0 to 1: a slider over its powers of ten, and a field to type it into; each follows the other.

    `value` is the number. The slider ends at `LOWEST`, which is where it stands for anything smaller; the field takes
    those too. A number out of range is refused with a sentence, and the field goes back.
    """

    LOWEST, STEP = -4, 0.02  # powers of ten
    value = traitlets.Float(1.0)

    def __init__(self, description: str, show_errors: ShowErrors) -> None:
        self.slider = labelled(
            ipywidgets.FloatLogSlider, description, "1 1 0", min=self.LOWEST, max=0, step=self.STEP, readout=False
        )
        self.number = ipywidgets.FloatText(step=None, layout={"width": "76px", "flex": "0 0 auto"})
        super().__init__([self.slider, self.number], layout={"flex": "2 1 400px", "width": "auto", "min_width": "0"})
        self._name, self._following, self._sliding = description, False, False
        self.slider.observe(self._moved, "value")
        self.number.observe(show_errors(self._typed), "value")
        self.observe(self._follow, "value")
        self._follow()

    def _moved(self, _: Any) -> None:
        # a browser sends back what it is told, on the nearest step: that is no move
        if self._following or self._place(self.slider.value) == self._place(self.value):
            return
        self._sliding = True  # told a value while it is dragged on, it would jump back
        try:
            self.value = float(f"{self.slider.value:.3g}")
        finally:
            self._sliding = False

    def _place(self, value: float) -> int:
        return round(max(math.log10(value), self.LOWEST) / self.STEP) if value > 0 else round(self.LOWEST / self.STEP)

    def _typed(self) -> bool | None:
        if self._following:
            return False
        typed = self.number.value
        if not 0 <= typed <= 1:
            self._follow()
            raise ValueError(f"{self._name} is {typed:g}; it must be a number from 0 to 1. {self.value:g} is kept.")
        self.value = typed
        return None

    def _follow(self, _: Any = None) -> None:
        self._following = True
        self.number.value = self.value
        if not self._sliding:
            self.slider.value = self.value  # it stops at its ends
        self._following = False


class Zoom(ipywidgets.HBox):
    """How far to go in (`level`, 0 for the whole), and where: per cent of the way `across` and `down`.

    A place p % across is where p % of what is left out lies left of the view, as CSS has it for `object-position`:
    the point p % across the whole is in view whatever the view's width. `find` gives the place that the button goes
    to, and that a new level starts from.
    """

    def __init__(self, levels: Sequence[tuple[str, int]], find: Callable[[], tuple[float, float]], to: str) -> None:
        self.level = labelled(ipywidgets.Dropdown, "zoom", "0 1 150px", "initial", options=levels)
        self.across, self.down = (
            labelled(ipywidgets.FloatSlider, name, "1 1 140px", "initial", max=100, step=0.5, readout=False)
            for name in ("across", "down")
        )
        self.go = button(to, "crosshairs", f"put {to} in view")
        super().__init__([self.level, self.across, self.down, self.go], layout=ROW)
        self._find, self._redraw = find, lambda: None
        self.quiet = False
        self._show_sliders()

    def on_move(self, redraw: Callable[[], Any], show_errors: ShowErrors) -> None:
        """`redraw` is called once when level or place have changed."""

        def moved() -> bool | None:
            return False if self.quiet else redraw()

        def jump() -> None:
            self._jump()
            redraw()

        for slider in (self.across, self.down):
            slider.observe(show_errors(moved), "value")
        self.level.observe(show_errors(lambda: self._new_level(redraw)), "value")
        self.go.on_click(show_errors(jump))

    def _new_level(self, redraw: Callable[[], Any]) -> None:
        was_whole = self.across.layout.display == "none"
        self._show_sliders()
        if was_whole:
            self._jump()
        redraw()

    def _jump(self) -> None:
        self.quiet = True
        try:
            self.across.value, self.down.value = self._find()
        finally:
            self.quiet = False

    def _show_sliders(self) -> None:
        for widget in (self.across, self.down, self.go):
            widget.layout.display = "" if self.level.value else "none"


class SaveAs(ipywidgets.VBox):
    """A file's name, a button that writes it and one that reads it; `said` is what came of it.

    write, read: are given the path. check: raises ValueError for a file that is there and must not be written over.
    A file that this widget has not written itself is written over at the second press alone.
    """

    def __init__(
        self,
        name: str | Path,
        write: Callable[[Path], None],
        read: Callable[[Path], None],
        check: Callable[[Path], Any],
        show_errors: ShowErrors,
    ) -> None:
        self.name = labelled(ipywidgets.Text, "file", "1 1 240px", value=str(name))
        self.save = button("Save", "save", "write what the controls say", button_style="primary")
        self.load = button("Load", "folder-open", "set the controls to what the file says")
        self.said = ipywidgets.HTML(layout=TEXT)
        super().__init__(
            [ipywidgets.HBox([self.name, self.save, self.load], layout=ROW), self.said], layout={"width": "100%"}
        )
        self._write, self._read, self._check = write, read, check
        self._own: set[Path] = set()  # written here
        self.name.observe(lambda _: self._ask(None), "value")
        self.save.on_click(show_errors(self._save))
        self.load.on_click(show_errors(self._load))
        self._ask(None)

    @property
    def path(self) -> Path:
        """The file that is named. Raises ValueError for a name that no file can have."""
        name = self.name.value.strip()
        if not name or Path(name).is_dir():
            raise ValueError(f"{name!r} is no file's name; name one such as config/my_settings.yaml")
        return Path(name)

    def _ask(self, path: Path | None) -> None:
        """Ask whether the file is to be written over; None: nothing is asked."""
        self._asked = path
        self.save.description, self.save.button_style = ("Overwrite", "warning") if path else ("Save", "primary")
        self.said.value = sentence(f"{path} is there already; press again to overwrite it.") if path else ""

    def _save(self) -> None:
        path = self.path
        there = path.exists()
        if there:
            self._check(path)
        if there and path not in self._own and self._asked != path:
            self._ask(path)
            return
        self._write(path)
        self._own.add(path)
        self._ask(None)
        self.said.value = sentence(f"{path} {'overwritten' if there else 'written'} at {time.strftime('%H:%M:%S')}.")

    def _load(self) -> None:
        path = self.path
        self._read(path)
        self._ask(None)
        self.said.value = sentence(f"{path} read; undo brings back what was here.")


def sentence(text: str) -> str:
    """A text as a line of HTML."""
    return f"<div style='line-height:1.4'>{html.escape(text)}</div>"
