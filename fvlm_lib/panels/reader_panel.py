"""The panel of notebooks/reader_panel.ipynb: a screen that changes, a question, and whether what is kept of the frames
before makes the answer stale.

`ReaderPanel` joins widgets to `reader_stream.py`, which runs the model where an answer is not known yet, and
`reader_pictures.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import ipywidgets

from fvlm_lib.data.drawn_streams import CHANGES, Change, screen_stream
from fvlm_lib.data.screen_questions import Question
from fvlm_lib.panels.controls import ROW, TEXT, labelled
from fvlm_lib.panels.pictures import to_png
from fvlm_lib.panels.pictures import whole as all_of
from fvlm_lib.panels.reader_pictures import describe_answers, describe_encode, describe_right, draw_read
from fvlm_lib.panels.widgets import Panel, Player
from fvlm_lib.schema import Count, Seed, check
from fvlm_lib.vlm.reader_measure import compared_reuse
from fvlm_lib.vlm.reader_stream import FULL, StreamReader
from fvlm_lib.vlm.vlms import VLM, load_vlm

TOLERANCES = (0.0, 0.02, 0.05, 0.1, 0.2)  # as `fvlm bench-answers` compares
ALL = "all"
ABOUT = """<details style='color:#666;line-height:1.4'><summary>What is shown</summary>Outlined: the patches whose
vision tokens were computed from this frame's pixels; tokens of the others are of frames before, and updated where a
gated policy found that the change reaches them. The question is taken for one that was asked from the first frame on.
<i>Stale</i> is an answer that was right on the frame before and is wrong on this one. Rows are of all rows and layers
of the language model's prefill. Times are of this one frame, measured once; <code>fvlm bench-answers</code> measures
many.</details>"""


@dataclass(frozen=True)
class Chosen:
    """What is chosen: a model's folder, a kind of change or `ALL`, the stream's seed, a policy's name, and a question
    (None: on each frame one whose answer has just changed, `StreamReader.telling_question`)."""

    model: str
    change: str
    seed: int
    policy: str
    question: Question | None = None


class ReaderPanel(Panel):
    """A model that `fvlm train-reader` trained, on drawn streams (`drawn_streams.screen_stream`), by policies of what
    is kept (`reader_measure.compared_reuse`).

    model: its folder. change: kind of change, or "all". seed, frames: of the stream. policy: by name. What is wrong
    with any of them is shown in the panel. asked: the question that is shown.
    """

    state: Chosen

    def __init__(
        self,
        model: str | Path = "checkpoints/demo/reader",
        change: str = ALL,
        seed: int = 0,
        policy: str = "threshold 0.5",
        frames: int = 16,
    ) -> None:
        super().__init__()
        self.compared = compared_reuse(TOLERANCES)
        self.length = frames
        self.state = Chosen(str(model), ALL, 0, FULL)
        self.reader: StreamReader | None = None
        self.asked: Question | None = None
        self._loaded: tuple[str, VLM] | None = None
        self._make_widgets()
        self._join_widgets()
        self.show_errors(partial(self._start, Chosen(str(model), change, seed, policy)))()

    # ---- widgets -----------------------------------------------------------------------------------------

    def _make_widgets(self) -> None:
        self.model = labelled(ipywidgets.Text, "model in", "2 1 300px", value=self.state.model, continuous_update=False)
        self.change = labelled(ipywidgets.Dropdown, "kind of change", options=[ALL, *CHANGES])
        self.seed = labelled(ipywidgets.IntText, "seed", "1 1 170px", value=self.state.seed)
        self.policy = labelled(ipywidgets.Dropdown, "policy", options=list(self.compared), value=self.state.policy)
        self.question = labelled(ipywidgets.Dropdown, "question")
        self.player = Player(interval=1000)
        self.right, self.answers, self.encode = (ipywidgets.HTML(layout=TEXT) for _ in range(3))
        self.heads = {name: ipywidgets.HTML(layout=TEXT) for name in ("before", "frame")}
        self.pictures = {
            name: ipywidgets.Image(format="png", layout={"width": "100%", "margin": "0"}) for name in self.heads
        }
        for name, picture in self.pictures.items():
            picture.add_class(f"fvlm-{name}")
        views = [
            ipywidgets.VBox(
                [self.heads[name], self.pictures[name]],
                layout={"flex": "1 1 300px", "min_width": "0", "max_width": "640px", "padding": "0 6px 4px 0"},
            )
            for name in self.heads
        ]
        self.children = [
            ipywidgets.HBox([self.model, self.change, self.seed, self.undo], layout=ROW),
            ipywidgets.HBox([self.policy, self.question], layout=ROW),
            self.message,
            ipywidgets.HBox([self.player, self.bar], layout=ROW),
            self.right,
            self.answers,
            self.encode,
            ipywidgets.HBox(views, layout=ROW),
            ipywidgets.HTML(ABOUT, layout=TEXT),
        ]

    def _join_widgets(self) -> None:
        for name in ("model", "change", "seed", "policy", "question"):
            getattr(self, name).observe(self.show_errors(partial(self._moved, name)), "value")
        self.player.frame.observe(self.show_errors(lambda: False if self.quiet else self.refresh()), "value")

    # ---- what is chosen ----------------------------------------------------------------------------------

    def _start(self, wanted: Chosen) -> None:
        check(Count, self.length, "frames")
        check(Seed, wanted.seed, "seed")
        for what, value, known in (
            ("kind of change", wanted.change, (ALL, *CHANGES)),
            ("policy", wanted.policy, tuple(self.compared)),
        ):
            if value not in known:
                raise ValueError(f"there is no {what} {value!r}; there are {', '.join(known)}")
        self.state = wanted
        self._open(frame=1)  # the first that something has changed on

    def _moved(self, control: str) -> bool | None:
        """A control was moved."""
        if self.quiet:
            return False
        before, value = self.state, getattr(self, control).value
        if control == "seed":
            try:
                check(Seed, value, "seed")
            except ValueError as error:
                self._set_widgets()
                raise ValueError(f"{error}. {before.seed} is kept.") from None
        if control == "model":
            value = value.strip()
        elif control == "question":
            value = value or None
        state = replace(before, **{control: value})
        if control in ("change", "seed"):
            state = replace(state, question=None)  # labels are of a stream
        if state == before:
            return False
        self.choose(state, control)
        return self._show_chosen(before)

    def show_state(self, state: Chosen) -> None:
        before, self.state = self.state, state
        self._show_chosen(before)

    def _show_chosen(self, before: Chosen) -> bool | None:
        same = replace(before, policy=self.state.policy, question=self.state.question)
        if self.reader is None or same != self.state:
            return self._open(self.player.frame.value)
        self._set_widgets()
        return self.refresh()

    def _set_widgets(self) -> None:
        with self.without_events():
            for name in ("model", "change", "seed", "policy"):
                getattr(self, name).value = getattr(self.state, name)

    def _clear(self) -> None:
        """Nothing of the last choice stands beside a new one that fails."""
        self.reader = self.asked = None
        self.right.value = self.answers.value = self.encode.value = ""
        with self.without_events():
            self.question.options = []
        for name, picture in self.pictures.items():
            picture.value, self.heads[name].value = b"", ""

    def _open(self, frame: int) -> bool:
        """A model or a stream was chosen: go to a frame of it."""
        self._clear()
        self._set_widgets()
        state = self.state
        changes = CHANGES if state.change == ALL else (cast(Change, state.change),)
        stream = list(screen_stream(self.length, changes, seed=state.seed))
        self.reader = StreamReader(self._load(), stream, self.compared, self.progress)
        with self.without_events():
            self.player.frame.max = len(stream) - 1
            self.player.frame.value = frame
        return self.refresh()

    def _load(self) -> VLM:
        """The model that is chosen, unless it is loaded already. Raises ValueError for a folder without one."""
        folder = self.state.model
        if self._loaded is None or self._loaded[0] != folder:
            if not folder:
                raise ValueError("no folder is named; name one that `fvlm train-reader` wrote")
            if not Path(folder).is_dir():  # what is typed is never taken for the name of a model in the network
                raise ValueError(f"there is no folder {folder}; `fvlm train-reader --out {folder}` makes one")
            for name in self.progress([folder], desc="loading"):
                self._loaded = folder, load_vlm(name)
        assert self._loaded is not None
        return self._loaded[1]

    # ---- what is shown -----------------------------------------------------------------------------------

    def _offer_questions(self, reader: StreamReader, index: int) -> Question:
        """Offer the questions that have an answer on this frame; gives the one that is chosen if it is among them, else
        the one that tells most."""
        known, telling, chosen = reader.questions(index), reader.telling_question(index), self.state.question
        old, new = reader.right_answers(telling, index)
        why = "the first" if old in (None, new) else "what has changed"
        # "", not None, for a question that is not chosen: a Dropdown takes that for nothing
        options = [(f"{why}: {telling.text}", ""), *((question.text, question) for question in known)]
        shown = chosen if chosen in known else None
        with self.without_events():
            if self.question.options != tuple(options):
                self.question.options = options
            self.question.value = shown or ""
        return shown or telling

    def refresh(self) -> bool:
        """Show the frame, the question and the policy that are chosen; False if no stream is open."""
        reader = self.reader
        if reader is None:
            return False
        index, policy = self.player.frame.value, self.state.policy
        self.asked = asked = self._offer_questions(reader, index)
        reads = {name: reader.read(name, asked, index) for name in dict.fromkeys((policy, FULL))}
        old, new = reader.right_answers(asked, index)
        assert new is not None  # as it is among this frame's questions
        frame, change = reader.frames[index], reader.changes[index]
        self.right.value = describe_right(asked.text, old, new, first=index == 0)
        names = {name: f"policy {name}" for name in reads} | {FULL: "full computation"}
        self.answers.value = describe_answers({names[name]: read for name, read in reads.items()}, old, new)
        self.pictures["frame"].value = to_png(draw_read(frame, reads[policy]))
        what = f", one change: <b>{change}</b>" if change else ""
        self.encode.value = describe_encode(reads[policy])
        self.heads[
            "frame"
        ].value = f"<div style='line-height:1.4'><b>frame {index}</b> of {len(reader.frames) - 1}{what}</div>"
        if index:
            before = reader.frames[index - 1]
            self.pictures["before"].value = to_png(all_of(before.shape).cut(before))
            self.heads["before"].value = f"<div style='line-height:1.4'><b>frame {index - 1}</b>, the one before</div>"
        else:
            self.pictures["before"].value, self.heads["before"].value = b"", "nothing before"
        return True
