"""What JupyterLab's panels share: errors, progress and undo in the panel itself, and a player for frames.

Knows no model and no recording; the panels are the modules `*_panel.py`. They are built, and redrawn by setting the
widgets' values, without a front end too.
"""

from __future__ import annotations

import contextlib
import html
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets

from fvlm_lib.panels.controls import TEXT, button, labelled
from fvlm_lib.panels.history import History

ERROR = (
    "<div style='border-left:4px solid #d55e00;padding:4px 10px;background:#fdf0e6;color:#000;line-height:1.4;"
    "overflow-wrap:anywhere'>{}</div>"
)


class Panel(ipywidgets.VBox):
    """A column of widgets, among them a line for errors, a progress bar and a button that takes back what was chosen.

    `state` is what is chosen, an immutable value; `show_state` sets the widgets to one.
    """

    state: Any = None

    def __init__(self) -> None:
        self.message = ipywidgets.HTML(layout=TEXT)
        self.bar = ipywidgets.IntProgress(
            style={"description_width": "initial"},
            layout=ipywidgets.Layout(display="none", flex="1 1 200px", width="auto", min_width="0"),
        )
        self.history: History[Any] = History()
        self.quiet = False
        self.undo = button("Undo", "undo", "take back the last change", disabled=True)
        self.undo.on_click(self.show_errors(self._undo))
        super().__init__()

    def show_state(self, state: Any) -> None:
        """Set the widgets to a state of before, and redraw."""
        raise NotImplementedError

    @contextlib.contextmanager
    def without_events(self) -> Iterator[None]:
        """Within it the panel itself sets widgets: their handlers see `quiet`, and leave it."""
        before, self.quiet = self.quiet, True
        try:
            yield
        finally:
            self.quiet = before

    def choose(self, state: Any, control: str) -> None:
        """A control, by its name, has led to a new state; undo leads back."""
        self.history.record(self.state, control)
        self.state = state
        self.undo.disabled = False

    def _undo(self) -> None:
        state = self.history.undo()
        self.undo.disabled = not len(self.history)
        self.show_state(state)

    def show_errors(self, action: Callable[[], bool | None]) -> Callable[..., None]:
        """`action` as a handler of any widget's events; what it raises is shown in the panel and goes no further.

        The last error is shown until an action ends well; one that returns False did nothing, and leaves it.
        """

        def handler(*_: Any) -> None:
            last, self.message.value = self.message.value, ""
            try:
                if action() is False:
                    self.message.value = last
            except Exception as error:
                self.message.value = ERROR.format(describe_error(error))
            finally:
                self.bar.layout.display = "none"

        return handler

    def progress(self, items: Any, desc: str = "") -> Iterator[Any]:
        """Passes the items, a collection, on while the panel's bar shows how far it is; called as `tqdm` is."""
        self.bar.max = len(items)
        self.bar.value, self.bar.description, self.bar.layout.display = 0, desc, ""
        for item in items:
            yield item
            self.bar.value += 1
        self.bar.layout.display = "none"


def describe_error(error: Exception) -> str:
    """An error as HTML: wrong input by its sentence, anything unexpected with its traceback folded below."""
    sentence = html.escape(str(error) or type(error).__name__)
    if isinstance(error, ValueError | OSError):
        return sentence
    trace = html.escape("".join(traceback.format_exception(error)))
    trace = f"<pre style='white-space:pre-wrap'>{trace}</pre>"
    return f"{type(error).__name__}: {sentence}<details><summary>where</summary>{trace}</details>"


class Player(ipywidgets.HBox):
    """A frame's number: a slider, its step buttons, and play. `frame` is the slider."""

    def __init__(self, interval: int = 500) -> None:
        """interval: milliseconds a frame, while playing."""
        self.frame = labelled(ipywidgets.IntSlider, "frame", "1 1 200px", "initial", max=1)
        play = ipywidgets.Play(interval=interval, max=1, show_repeat=False, layout={"width": "auto"})
        ipywidgets.jslink((play, "value"), (self.frame, "value"))
        ipywidgets.link((self.frame, "max"), (play, "max"))
        steps = [self._stepper("step-backward", -1), self._stepper("step-forward", 1)]
        super().__init__([play, *steps, self.frame], layout={"flex": "1 1 340px", "min_width": "0"})

    def _stepper(self, icon: str, step: int) -> ipywidgets.Button:
        def move(_: Any) -> None:
            self.frame.value = min(max(self.frame.value + step, 0), self.frame.max)

        stepper = button(icon=icon, tooltip=f"{step:+d} frame")
        stepper.on_click(move)
        return stepper
