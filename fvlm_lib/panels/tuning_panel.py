"""The panel of notebooks/tune_threshold.ipynb: a recording, a setting or two, and at once what the encoder would do.

`TuningPanel` joins the controls to `workbench.py` (what a setting does), `compare.py` and `tables.py` (how it is
shown) and `settings.py` (where it is written).
"""

from __future__ import annotations

import html
from dataclasses import replace
from functools import partial
from pathlib import Path

import ipywidgets

from fvlm_lib.panels.compare import Choice, SettingView, TracedChoice, changed_patches
from fvlm_lib.panels.controls import ROW, TEXT, SaveAs, Zoom, button, labelled
from fvlm_lib.panels.pictures import find_areas, highest_share
from fvlm_lib.panels.setting_controls import SettingControls
from fvlm_lib.panels.tables import describe_choices, describe_measured
from fvlm_lib.panels.widgets import ERROR, Panel, Player, describe_error
from fvlm_lib.panels.workbench import Tuned, Workbench
from fvlm_lib.vision.changes import typical_frame
from fvlm_lib.vision.settings import DifferentialSettings, read_settings, write_settings

ZOOMS = [("whole frame", 0), ("1 : 1", 1), ("2 : 1", 2), ("4 : 1", 4)]
ABOUT = """<details style='color:#666;line-height:1.4'><summary>What a threshold holds for</summary>
A threshold holds for frames of the size that it was chosen on: squashing mixes neighbouring pixels, and a thin line
that differs by 1.0 as recorded may differ by 0.15 at 336 × 336. Choose the size at which your tower sees the frames.
A limit counts patches, so it belongs to that size too.</details>"""
SAVED = """<div style='line-height:1.4;overflow-wrap:anywhere'>The batch takes it by <code>differential: {{settings:
{0}}}</code> in its config, <code>fvlm predict</code> by <code>--diff-config {0}</code>.</div>"""


class TuningPanel(Panel):
    """The recordings in `folder`, under any setting of the differential encoder, or under two side by side.

    sequence: name of the one shown first, or None for the first. settings: the YAML file that is read at the start.
    results: folder of the benchmark's tables. save_as: the file that is offered to write to; nothing is written but by
    a press of the button. What is wrong with any of them is shown.
    """

    state: Tuned

    def __init__(
        self,
        folder: str | Path = "data/screens",
        sequence: str | None = None,
        settings: str | Path = "config/differential.yaml",
        results: str | Path = "results/differential",
        save_as: str | Path = "config/my_settings.yaml",
    ) -> None:
        super().__init__()
        self.state = Tuned(None, (Choice(DifferentialSettings()), None))
        self.bench = Workbench(results, self.progress)
        self._visited = (-1, 0)  # of which frame which changed area was zoomed to last
        self._make_widgets(folder, save_as)
        self._join_widgets()
        self.show_errors(partial(self._start, sequence, Path(settings)))()

    # ---- widgets -----------------------------------------------------------------------------------------

    def _make_widgets(self, folder: str | Path, save_as: str | Path) -> None:
        self.folder = labelled(
            ipywidgets.Text, "recordings in", "1 1 220px", value=str(folder), continuous_update=False
        )
        self.sequence = labelled(ipywidgets.Dropdown, "recording", "1 1 0")
        self.rescan = button(icon="refresh", tooltip="look for recordings again")
        self.setting = SettingControls(self.show_errors)
        self.compare = ipywidgets.ToggleButton(
            description="Compare two settings", icon="columns", layout={"width": "auto", "flex": "0 0 auto"}
        )
        self.edited = ipywidgets.ToggleButtons(
            options=[("set A", 0), ("set B", 1)],
            tooltips=["the controls are those of A", "the controls are those of B"],
            style={"button_width": "58px"},
            layout={"width": "auto", "flex": "0 0 auto"},
        )
        self.save_as = SaveAs(save_as, self._save, self._load, _check_overwritten, self.show_errors)
        self.zoom = Zoom(ZOOMS, self._next_change, "the next change")
        self.player = Player()
        self.views = SettingView("A"), SettingView("B")
        self.saved, self.numbers, self.expected = (ipywidgets.HTML(layout=TEXT) for _ in range(3))
        recordings = ipywidgets.HBox([self.sequence, self.rescan], layout={"flex": "2 1 300px", "min_width": "0"})
        changes = ipywidgets.HBox([self.undo, self.compare, self.edited], layout=ROW)
        self.controls = ipywidgets.HBox(
            [self.folder, recordings, *self.setting.widgets.values(), changes, self.save_as, self.saved,
             ipywidgets.HTML(ABOUT, layout=TEXT)],
            layout={"flex": "1 1 310px", "min_width": "0", "padding": "0 6px 0 0", "flex_flow": "row wrap",
                    "align_content": "flex-start"},
        )  # fmt: skip
        play = ipywidgets.HBox([self.player, self.bar], layout=ROW)
        self.shown = ipywidgets.VBox(
            [self.message, play, self.zoom, ipywidgets.HBox(self.views, layout=ROW), self.numbers],
            layout={"min_width": "0"},
        )
        self.children = [ipywidgets.HBox([self.controls, self.shown], layout=ROW), self.expected]

    def _join_widgets(self) -> None:
        self.folder.observe(self.show_errors(self._look), "value")
        self.rescan.on_click(self.show_errors(self._look))
        named = {**self.setting.widgets, "recording": self.sequence, "compare": self.compare, "edited": self.edited}
        for name, widget in named.items():
            widget.observe(self.show_errors(partial(self._moved, name)), "value")
        self.player.frame.observe(self.show_errors(lambda: False if self.quiet else self.refresh()), "value")
        self.zoom.on_move(self.refresh, self.show_errors)

    # ---- what is chosen ----------------------------------------------------------------------------------

    @property
    def settings(self) -> DifferentialSettings:
        """What the controls say; what has no control is as the file had it."""
        return self.state.choice.settings

    @property
    def traced(self) -> TracedChoice:
        """What the setting that the controls show does to the recording. Raises ValueError if none is open."""
        return self.bench.trace(self.state.choice, self.state.shown)

    def _start(self, sequence: str | None, settings: Path) -> None:
        try:
            self.state = Tuned(None, (Choice(read_settings(settings)), None))
        except ValueError as error:
            self.saved.value = ERROR.format(describe_error(error) + ". The controls show the defaults.")
        self._set_widgets()
        self._offer_recordings()
        if sequence is not None and sequence not in self.bench.recordings:
            raise ValueError(
                f"there is no recording {sequence!r} in {self.folder.value}; it has {', '.join(self.bench.recordings)}."
                f" To record one: fvlm record --out {Path(self.folder.value) / sequence}"
            )
        self.state = replace(self.state, recording=sequence or next(iter(self.bench.recordings)))
        self._open()

    def _offer_recordings(self) -> None:
        with self.without_events():
            self.sequence.options = []
            self.bench.find(self.folder.value)
            self.sequence.options = [
                (f"{name}, {len(found)} frames", name) for name, found in self.bench.recordings.items()
            ]
            self.sequence.value = None

    def _look(self) -> None:
        """The folder of recordings is another, or is to be looked through again; the recording stays if it is there."""
        self._clear()
        self._offer_recordings()
        if self.state.recording not in self.bench.recordings:
            self.state = replace(self.state, recording=next(iter(self.bench.recordings)))
        self._open()

    def _moved(self, control: str) -> bool | None:
        """A control was moved."""
        if self.quiet:
            return False
        before = self.state
        if control == "recording":
            state = replace(before, recording=self.sequence.value)
        elif control == "compare":
            state = before.compared(self.compare.value)
        elif control == "edited":
            state = replace(before, edited=self.edited.value)
        else:
            state = before.with_choice(self.setting.read(before.choice))
        if state == before:
            return False
        self.choose(state, control)
        return self._show_chosen(before)

    def show_state(self, state: Tuned) -> None:
        before, self.state = self.state, state
        self._show_chosen(before)

    def _show_chosen(self, before: Tuned) -> bool | None:
        if self.state.recording != before.recording:
            return self._open()
        self._set_widgets()
        return self.refresh()

    def _set_widgets(self) -> None:
        both = self.state.choices[1] is not None
        with self.without_events():
            self.setting.show(self.state.choice, self.bench.sizes(self.state.shown))
            if self.bench.name is not None:
                self.sequence.value = self.bench.name
            self.compare.value, self.edited.value = both, self.state.edited
        self.edited.layout.display = self.views[1].layout.display = "" if both else "none"
        self.shown.layout.flex = "1000 1 620px" if both else "1000 1 420px"  # two columns need the width

    # ---- what is shown -----------------------------------------------------------------------------------

    def _clear(self) -> None:
        """Nothing of the last recording stands beside a new one that fails."""
        for view in self.views:
            view.clear()
        self.numbers.value = self.expected.value = ""

    def _open(self) -> bool:
        """A recording was chosen: go to a frame that shows what the setting does."""
        self._clear()
        self.bench.open(self.state.recording)
        self._set_widgets()
        with self.without_events():
            self.player.frame.value, self.player.frame.max = 0, len(self.bench.recording) - 1
            self.player.frame.value = typical_frame(self.traced.table)
        return self.refresh()

    def refresh(self) -> bool:
        """Show what is chosen; False if no recording is open."""
        if self.bench.name is None:
            return False
        index = self.player.frame.value
        zoom = (self.zoom.level.value, self.zoom.across.value, self.zoom.down.value)
        choices = self.state.shown
        frames = [self.bench.frame(choice.seen, index) for choice in choices]
        traced = [self.bench.trace(choice, choices) for choice in choices]
        sizes = [(frame.shape[0], frame.shape[1]) for frame in frames]
        highest = max(highest_share(done.table) for done in traced)  # both timelines have one scale
        for place, view in enumerate(self.views[: len(choices)]):
            view.head(choices[place], place == self.state.edited if len(choices) > 1 else None)
            view.show(choices[place], traced[place], frames[place], index, zoom, highest)
        both = len(choices) > 1
        self.numbers.value = describe_choices("AB", choices, traced, index, sizes, self.bench.measured) if both else ""
        choice = self.state.choice
        with self.without_events():
            grid = traced[self.state.edited].steps[index][0].mask.shape
            self.setting.show_limit(choice.settings.max_changed_patches, grid)
        command = self.bench.benchmark_command(choice, self.save_as.name.value)
        expected = describe_measured(
            self.bench.measured, choice.settings, sizes[self.state.edited], choice.patch, command
        )
        self.expected.value = f"<div style='line-height:1.4;overflow-wrap:anywhere'>{expected}</div>"
        return True

    def _next_change(self) -> tuple[float, float]:
        """Where the frame shown has changed, per cent across and down: one area after the other, then the first
        again; the middle if nothing has."""
        if self.bench.name is None:
            return 50.0, 50.0
        index = self.player.frame.value
        step, difference = self.traced.steps[index]
        areas = find_areas(changed_patches(step, difference, self.state.choice)) or [(50.0, 50.0)]
        before, last = self._visited
        self._visited = index, (last + 1 if before == index else 0)
        return areas[self._visited[1] % len(areas)]

    # ---- files -------------------------------------------------------------------------------------------

    def _save(self, path: Path) -> None:
        note = ""
        if self.bench.name is not None:
            choice = self.state.choice
            height, width = self.bench.frame(choice.seen, self.player.frame.value).shape[:2]
            note = (
                f"Chosen on {self.bench.name}, seen in frames of {height} x {width} pixels, patches of {choice.patch}."
            )
        write_settings(path, self.settings, note)
        self.saved.value = SAVED.format(html.escape(str(path)))

    def _load(self, path: Path) -> None:
        before = self.state
        state = before.with_choice(replace(before.choice, settings=read_settings(path)))
        self.saved.value = ""
        if state != before:
            self.choose(state, "load")
            self._show_chosen(before)


def _check_overwritten(path: Path) -> None:
    """Raises ValueError for a file that holds anything but settings: those alone are written over."""
    try:
        read_settings(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is not written over, as it holds no settings ({error}); choose another name"
        ) from None
