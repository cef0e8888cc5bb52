"""What JupyterLab's panels share: errors and progress shown in the panel itself, and a player for frames.

Knows no model and no recording; the panels are `tuning_panel.py` and `fovea_panel.py`. They are built, and redrawn
by setting the widgets' values, without a front end too.
"""

from __future__ import annotations

import html
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets

ERROR = "<div style='border-left:4px solid #d55e00;padding:4px 10px;background:#fdf0e6;color:#000'>{}</div>"


class Panel(ipywidgets.VBox):
    """A column of widgets below a line for errors and a progress bar."""

    def __init__(self) -> None:
        self.message = ipywidgets.HTML()
        self.bar = ipywidgets.IntProgress(
            style={"description_width": "initial"}, layout=ipywidgets.Layout(visibility="hidden", width="340px")
        )
        super().__init__()

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
                self.bar.layout.visibility = "hidden"

        return handler

    def progress(self, items: Any, desc: str = "") -> Iterator[Any]:
        """Passes the items, a collection, on while the panel's bar shows how far it is; called as `tqdm` is."""
        self.bar.max = len(items)
        self.bar.value, self.bar.description, self.bar.layout.visibility = 0, desc, "visible"
        for item in items:
            yield item
            self.bar.value += 1


def describe_error(error: Exception) -> str:
    """An error as HTML: wrong input by its sentence, anything unexpected with its traceback folded below."""
    sentence = html.escape(str(error) or type(error).__name__)
    if isinstance(error, ValueError | OSError):
        return sentence
    trace = html.escape("".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {sentence}<details><summary>where</summary><pre>{trace}</pre></details>"


class Player(ipywidgets.HBox):
    """A frame's number: a slider, its step buttons, and play. `frame` is the slider."""

    def __init__(self, interval: int = 500) -> None:
        """interval: milliseconds a frame, while playing."""
        self.frame = ipywidgets.IntSlider(
            description="frame", max=1, style={"description_width": "initial"}, layout={"width": "360px"}
        )
        play = ipywidgets.Play(interval=interval, max=1, show_repeat=False, layout={"width": "auto"})
        ipywidgets.jslink((play, "value"), (self.frame, "value"))
        ipywidgets.link((self.frame, "max"), (play, "max"))
        super().__init__([play, self._stepper("step-backward", -1), self._stepper("step-forward", 1), self.frame])

    def _stepper(self, icon: str, step: int) -> ipywidgets.Button:
        def move(_: Any) -> None:
            self.frame.value = min(max(self.frame.value + step, 0), self.frame.max)

        button = ipywidgets.Button(icon=icon, layout={"width": "38px"}, tooltip=f"{step:+d} frame")
        button.on_click(move)
        return button
