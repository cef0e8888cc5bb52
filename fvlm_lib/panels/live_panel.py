"""The panel of notebooks/live_screen.ipynb: a screen or a recording as it is watched by a foveated model.

`LivePanel` joins widgets to `live_watch.py`, which watches in a thread, and `live_pictures.py`.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import ipywidgets
from transformers import PreTrainedTokenizerBase

from fvlm_lib.data.live_frames import open_source
from fvlm_lib.foveated.live import open_live, trained_frames, watch_live
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.panels.checkpoint_choice import CheckpointChoice
from fvlm_lib.panels.controls import ROW, TEXT, LogNumber, button, column, labelled, sentence
from fvlm_lib.panels.live_pictures import (
    describe_counts,
    describe_look,
    describe_said,
    describe_seen,
    describe_times,
    draw_look,
    draw_seen,
)
from fvlm_lib.panels.live_watch import Said, Watching
from fvlm_lib.panels.pictures import to_jpeg
from fvlm_lib.panels.widgets import ERROR, Panel, describe_error
from fvlm_lib.reuse.policies.gated import DEFAULT_TOLERANCE
from fvlm_lib.schema import FrameRate, SecondsOrNone, check
from fvlm_lib.vision.settings import EXACT, DifferentialSettings, read_settings

REMEMBERED = 50  # things that were said
CHECKED = {"fps": ("frames a second", FrameRate), "caption_every": ("caption every", SecondsOrNone)}
ABOUT = """<details style='color:#666;line-height:1.4'><summary>What is shown</summary>Frames are taken at the rate that
is asked for and watched as they come; one that comes while the one before it still waits takes its place, and that one
is dropped. Frames are shown as the model sees them, squashed to its size, the newest about five times a second.
Outlined: patches that were computed from this frame's pixels; the others are kept of frames before, and updated where
they feel the change. The paler a patch, the less the query attends to it, in the mean over heads and layers, without
what falls on the CLS token. The model is not asked again while nothing has changed.</details>"""


@dataclass(frozen=True)
class Chosen:
    """What is chosen: a checkpoint, what is watched (`live_frames.open_source`) at how many frames a second, whether a
    recording begins again at its end, seconds between captions, and the encoder's threshold and tolerance."""

    checkpoint: Path | None
    source: str
    fps: float
    loop: bool
    caption_every: float
    threshold: float
    tolerance: float


class LivePanel(Panel):
    """Checkpoints below `folder`, watching `source` from the press of a button on.

    checkpoint: the one chosen first, or None for the first found. source, fps, loop, caption_every: see `Chosen`.
    settings: a file of `vision/settings.py`, read at the start; None is exact. device: see
    `devices.pick_device`. What is wrong with any of them is shown in the panel, and what was said so far stays.

    A control that is moved while a stream is watched begins another stream. In one process one panel watches at a
    time: one that is made or started ends what another watches, as one does whose cell was run again.
    """

    state: Chosen
    current: ClassVar[Watching | None] = None

    def __init__(
        self,
        folder: str | Path = "checkpoints",
        checkpoint: str | Path | None = None,
        source: str = "data/screen-events",
        fps: float = 2.0,
        loop: bool = True,
        caption_every: float = 1.0,
        settings: str | Path | None = None,
        device: str = "auto",
    ) -> None:
        super().__init__()
        self.device, self.file_settings = device, EXACT
        self.said: deque[Said] = deque(maxlen=REMEMBERED)
        self.watching: Watching | None = None
        self._streams = 0
        self.opened: tuple[Path, FoveatedVLM, PreTrainedTokenizerBase] | None = None
        self.state = Chosen(None, str(source), fps, loop, caption_every, *_levels(self.file_settings))
        self._make_widgets(folder)
        self._join_widgets()
        self.show_errors(partial(self._open, checkpoint, settings))()

    # ---- widgets -----------------------------------------------------------------------------------------

    def _make_widgets(self, folder: str | Path) -> None:
        self.choice = choice = CheckpointChoice(folder)
        self.folder, self.checkpoint, self.rescan = choice.folder, choice.checkpoint, choice.rescan
        self.source = labelled(ipywidgets.Text, "watched", "3 1 320px", continuous_update=False)
        self.source.placeholder = "screen, screen:2, window:TITLE, or a folder of screenshots"
        self.fps = labelled(ipywidgets.FloatText, "frames a second", "1 1 180px")
        self.loop = labelled(ipywidgets.Checkbox, "again at its end", "0 1 150px", "0", indent=False)
        self.caption_every = labelled(ipywidgets.FloatText, "caption every, s", "1 1 180px")
        self.threshold, self.tolerance = (LogNumber(name, self.show_errors) for name in ("threshold", "tolerance"))
        for number in (self.threshold, self.tolerance):
            number.slider.continuous_update = False  # each place on the way would begin a stream
        self.toggle = button("Start", "play", button_style="primary")
        self.status, self.counts, self.times, self.sayings = (ipywidgets.HTML(layout=TEXT) for _ in range(4))
        self.status.layout.flex, self.status.layout.width = "1 1 240px", "auto"
        self.heads = {name: ipywidgets.HTML(layout=TEXT) for name in ("seen", "look")}
        self.pictures = {
            name: ipywidgets.Image(
                format="jpeg", layout={"width": "100%", "margin": "0", "border": "1px solid #ccc", "display": "none"}
            )
            for name in self.heads
        }
        for name, picture in self.pictures.items():
            picture.add_class(f"fvlm-{name}")
        views = [column([self.heads[name], self.pictures[name]], 240, 480) for name in self.heads]
        self.children = [
            ipywidgets.HBox([self.folder, choice.found], layout=ROW),
            ipywidgets.HBox([self.source, self.loop, self.fps, self.caption_every], layout=ROW),
            ipywidgets.HBox([self.threshold, self.tolerance], layout=ROW),
            ipywidgets.HBox([self.toggle, self.undo, self.status, self.bar], layout={**ROW, "align_items": "center"}),
            self.message,
            self.counts,
            self.times,
            ipywidgets.HBox([*views, column([self.sayings], 200, 400)], layout=ROW),
            ipywidgets.HTML(ABOUT, layout=TEXT),
        ]

    def _join_widgets(self) -> None:
        self.folder.observe(self.show_errors(self._look_again), "value")
        self.rescan.on_click(self.show_errors(self._look_again))
        for name in ("checkpoint", "source", "fps", "loop", "caption_every", "threshold", "tolerance"):
            getattr(self, name).observe(self.show_errors(partial(self._moved, name)), "value")
        self.toggle.on_click(self.show_errors(self._start_or_stop))

    # ---- what is chosen ----------------------------------------------------------------------------------

    @property
    def settings(self) -> DifferentialSettings:
        """What the controls say; what has no control is as in the file that was read."""
        return replace(self.file_settings, diff_threshold=self.state.threshold, tolerance=self.state.tolerance)

    def _open(self, checkpoint: str | Path | None, settings: str | Path | None) -> None:
        if LivePanel.current is not None:
            LivePanel.current.stop()
        self._show_end(None)
        self.sayings.value = describe_said(())
        self._set_widgets()
        if settings is not None:
            self.file_settings = read_settings(settings)
            threshold, tolerance = _levels(self.file_settings)
            self.state = replace(self.state, threshold=threshold, tolerance=tolerance)
        for name in CHECKED:
            self._check(name, getattr(self.state, name))
        if checkpoint is not None:
            self.state = replace(self.state, checkpoint=Path(checkpoint))
        try:
            with self.without_events():
                found = self.choice.offer()
            if checkpoint is None:
                self.state = replace(self.state, checkpoint=found[0])
        finally:
            self._set_widgets()

    def _look_again(self) -> None:
        """The folder of checkpoints is another, or is to be looked through again; the checkpoint stays if it is
        there."""
        with self.without_events():
            found = self.choice.offer()
        if self.state.checkpoint not in found:
            self._choose("checkpoint", found[0])
        self._set_widgets()

    def _check(self, control: str, value: Any) -> None:
        name, kind = CHECKED[control]
        check(kind, value, name)

    def _moved(self, control: str) -> bool | None:
        """A control was moved."""
        if self.quiet:
            return False
        value, kept = getattr(self, control).value, getattr(self.state, control)
        value = value.strip() if control == "source" else value
        if control in CHECKED:
            try:
                self._check(control, value)
            except ValueError as error:
                self._set_widgets()
                raise ValueError(f"{error}. {kept:g} is kept.") from None
        return self._choose(control, value)

    def _choose(self, control: str, value: Any) -> bool | None:
        state = replace(self.state, **{control: value})
        if state == self.state:
            return False
        self.choose(state, control)
        self._watch_anew()
        return None

    def show_state(self, state: Chosen) -> None:
        self.state = state
        self._watch_anew()

    def _set_widgets(self) -> None:
        with self.without_events():
            self.choice.show(self.state.checkpoint)
            for name in ("source", "fps", "loop", "caption_every", "threshold", "tolerance"):
                getattr(self, name).value = getattr(self.state, name)

    # ---- watching ----------------------------------------------------------------------------------------

    def _start_or_stop(self) -> None:
        if not self.stop():
            self._start()

    def stop(self) -> bool:
        """End the stream that is watched; False if none is."""
        if (watching := self.watching) is None:
            return False
        watching.stop()
        return True

    def close(self) -> None:
        self.stop()
        super().close()

    def _watch_anew(self) -> None:
        """Something else is chosen: where a stream is watched, begin another."""
        self._set_widgets()
        if self.stop():
            self._start()

    def _start(self) -> None:
        if LivePanel.current is not None:
            LivePanel.current.stop()
        state, stopping = self.state, threading.Event()
        checkpoint, model, tokenizer = self._load()
        source = open_source(state.source, state.fps, loop=state.loop)
        try:
            frames = watch_live(
                model,
                tokenizer,
                source,
                differential=self.settings,
                caption_every=state.caption_every,
                max_frames=trained_frames(checkpoint),
                stop=stopping,
            )
        except TypeError as error:  # of a tower without an adapter
            raise ValueError(f"{checkpoint}: {error}") from error
        self._streams += 1
        self.watching = LivePanel.current = Watching(frames, stopping, self._show, self.said, self._streams)
        self.toggle.description, self.toggle.icon, self.toggle.button_style = "Stop", "stop", ""
        self.status.value = sentence(f"Stream {self._streams}: {state.source}, {state.fps:g} frames a second.")
        self.watching.start()

    def _load(self) -> tuple[Path, FoveatedVLM, PreTrainedTokenizerBase]:
        """The checkpoint that is chosen, unless it is loaded already. Raises ValueError for one that cannot be."""
        checkpoint = self.state.checkpoint
        if checkpoint is None:
            raise ValueError("no checkpoint is chosen; choose one")
        if self.opened is None or self.opened[0] != checkpoint:
            for path in self.progress([checkpoint], desc="loading"):
                self.opened = path, *open_live(path, self.device)
        assert self.opened is not None
        return self.opened

    # ---- what is shown -----------------------------------------------------------------------------------

    def _show(self, watching: Watching) -> None:
        """Show what is newest of a stream; called in a thread of its own."""
        try:
            self._draw(watching)
        finally:
            if watching.ended:
                self._show_end(watching)

    def _draw(self, watching: Watching) -> None:
        if (live := watching.newest) is None:
            return
        self.sayings.value = describe_said(watching.said())
        lately = watching.lately()
        self.counts.value, self.times.value = describe_counts(lately), describe_times(lately)
        self.heads["seen"].value, self.heads["look"].value = describe_seen(live), describe_look(live)
        for name, pixels in (("seen", draw_seen(live)), ("look", draw_look(live))):
            self.pictures[name].value = to_jpeg(pixels)
            self.pictures[name].layout.display = ""  # hidden until there is something to show

    def _show_end(self, watching: Watching | None) -> None:
        """Nothing is watched any more, as one stream has ended, or yet."""
        self.toggle.description, self.toggle.icon, self.toggle.button_style = "Start", "play", "primary"
        if watching is None:
            self.status.value = sentence("Nothing is watched yet.")
            return
        frames = 0 if watching.newest is None else watching.newest.index + 1
        if watching.error is not None:
            self.message.value = ERROR.format(describe_error(watching.error))
        how = "failed" if watching.error is not None else "was stopped" if watching.stopped else "has ended"
        self.status.value = sentence(f"The stream {how} after {frames} frames; what was said stays.")
        self.watching = None


def _levels(settings: DifferentialSettings) -> tuple[float, float]:
    """Threshold and tolerance, the latter also where it is the default."""
    return settings.diff_threshold, DEFAULT_TOLERANCE if settings.tolerance is None else settings.tolerance
