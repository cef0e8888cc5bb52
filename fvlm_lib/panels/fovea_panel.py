"""The panel of notebooks/explore_fovea.ipynb: a checkpoint and a video, and frame by frame where the model looks.

`FoveaPanel` joins widgets to `fovea.py`, which computes everything once for a checkpoint and a video, and
`fovea_pictures.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets

from fvlm_lib.data.videos import Videos
from fvlm_lib.figures.plots import mode_style
from fvlm_lib.foveated.checkpoints import load_checkpoint
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.gap.fovea import WatchedVideo, watch_video
from fvlm_lib.gap.gap import open_evaluation
from fvlm_lib.panels.checkpoint_choice import CheckpointChoice
from fvlm_lib.panels.controls import ROW, TEXT, Zoom, column, labelled
from fvlm_lib.panels.fovea_pictures import describe_captions, describe_look, draw_attention, draw_by_frame
from fvlm_lib.panels.pictures import MarkedChart, css_colour, find_areas, magnified, to_png
from fvlm_lib.panels.widgets import Panel, Player

ZOOMS = [("whole frame", 0), ("2 ×", 2), ("4 ×", 4)]
MOST_PASSES = 64
ABOUT = """<details style='color:#666;line-height:1.4'><summary>What is shown</summary>The paler a patch, the less the
query attends to it; one scale for the three pictures of a frame. Shares are averaged over heads and are of the
attention that falls on patches; what falls on the CLS token is given apart. The entropy is that of the shares: of its
maximum, 100 % is a look at everything alike. Changed are patches that differ from the frame before. Distance: relative
L2 of the training query from the inference query.</details>"""


@dataclass(frozen=True)
class Look:
    """What is chosen: a checkpoint, the index of a video, fine passes of the training mode, and the layer whose
    attention is shown, from 1, or 0 for the mean over all."""

    checkpoint: Path | None
    video: int
    num_fine: int
    layer: int = 0


class FoveaPanel(Panel):
    """Checkpoints below `folder`, on the videos that `data` describes (`videos.open_videos`).

    checkpoint: the one shown first, or None for the first found. video: index of a sample. num_fine: fine passes of
    the training mode. What is wrong with any of them is shown in the panel.
    """

    state: Look

    def __init__(
        self,
        folder: str | Path = "checkpoints",
        checkpoint: str | Path | None = None,
        data: Mapping[str, Any] | None = None,
        video: int = 0,
        num_fine: int = 1,
    ) -> None:
        super().__init__()
        self.data = dict(data or {"kind": "procedural", "split": "test"})
        self.state = Look(None, video, num_fine)
        self.watched: WatchedVideo | None = None
        self._opened: tuple[tuple[Path, Mapping[str, Any]], FoveatedVLM, Videos] | None = None
        self._charts: tuple[MarkedChart, MarkedChart] | None = None
        self._make_widgets(folder)
        self._join_widgets()
        self.show_errors(partial(self._start, checkpoint))()

    # ---- widgets -----------------------------------------------------------------------------------------

    def _make_widgets(self, folder: str | Path) -> None:
        self.choice = choice = CheckpointChoice(folder)
        self.folder, self.checkpoint, self.rescan = choice.folder, choice.checkpoint, choice.rescan
        self.video = labelled(ipywidgets.IntText, "video", "1 1 170px", value=self.state.video)
        self.num_fine = labelled(ipywidgets.IntText, "fine passes", "1 1 170px", value=self.state.num_fine)
        self.layer = labelled(ipywidgets.Dropdown, "attention of", options=[("all layers, mean", 0)])
        self.player = Player(interval=1000)
        self.zoom = Zoom(ZOOMS, self._find_look, "the look")
        self.heads = [ipywidgets.HTML(layout=TEXT) for _ in range(4)]
        self.pictures = {
            name: ipywidgets.Image(format="png", layout={"width": "100%", "margin": "0"})
            for name in ("frame", "coarse", "training", "inference", "entropy", "distance")
        }
        for name, picture in self.pictures.items():
            picture.add_class(f"fvlm-{name}")
        self.captions = ipywidgets.HTML(layout=TEXT)
        views = [
            column([head, self.pictures[name]], 180, 320)
            for head, name in zip(self.heads, ("frame", "coarse", "training", "inference"), strict=True)
        ]
        pairs = [
            ipywidgets.HBox(pair, layout={"flex": "1 1 400px", "min_width": "0", "max_width": "640px"})
            for pair in (views[:2], views[2:])  # two by two where four do not fit
        ]
        titles = {"entropy": "Entropy of the look", "distance": "Training to inference query"}
        charts = [
            column([ipywidgets.HTML(f"<b>{title}</b>", layout=TEXT), self.pictures[name]], 270, 640)
            for name, title in titles.items()
        ]
        self.children = [
            ipywidgets.HBox([self.folder, choice.found, self.video, self.num_fine, self.layer, self.undo], layout=ROW),
            self.message,
            ipywidgets.HBox([self.player, self.bar], layout=ROW),
            self.zoom,
            ipywidgets.HBox(pairs, layout=ROW),
            ipywidgets.HBox(charts, layout=ROW),
            self.captions,
            ipywidgets.HTML(ABOUT, layout=TEXT),
        ]

    def _join_widgets(self) -> None:
        self.folder.observe(self.show_errors(self._look_again), "value")
        self.rescan.on_click(self.show_errors(self._look_again))
        for name in ("checkpoint", "video", "num_fine", "layer"):
            getattr(self, name).observe(self.show_errors(partial(self._moved, name)), "value")
        self.player.frame.observe(self.show_errors(lambda: False if self.quiet else self.refresh()), "value")
        self.zoom.on_move(self.refresh, self.show_errors)

    # ---- what is chosen ----------------------------------------------------------------------------------

    def _start(self, checkpoint: str | Path | None) -> None:
        found = self._offer_checkpoints()
        wanted = found[0] if checkpoint is None else Path(checkpoint)
        if wanted not in found:
            load_checkpoint(wanted)  # says what is wrong with it
        self.state = replace(self.state, checkpoint=wanted)
        self._watch()

    def _offer_checkpoints(self) -> list[Path]:
        with self.without_events():
            return self.choice.offer()

    def _look_again(self) -> None:
        """The folder of checkpoints is another, or is to be looked through again; the checkpoint stays if it is
        there."""
        self._clear()
        found = self._offer_checkpoints()
        if self.state.checkpoint not in found:
            self.state = replace(self.state, checkpoint=found[0])
        self._watch()

    def _moved(self, control: str) -> bool | None:
        """A control was moved."""
        if self.quiet:
            return False
        before, value = self.state, getattr(self, control).value
        lowest, most = {"video": (0, None), "num_fine": (1, MOST_PASSES)}.get(control, (None, None))
        if lowest is not None and (value < lowest or (most is not None and value > most)):
            kept = getattr(before, control)
            self._set_widgets()
            name, wanted = getattr(self, control).description, f"from {lowest}" + (f" to {most}" if most else "")
            raise ValueError(f"{name} is {value}; it must be a whole number {wanted}. {kept} is kept.")
        state = replace(before, **{control: value})
        if state == before:
            return False
        self.choose(state, control)
        return self._show_chosen(before)

    def show_state(self, state: Look) -> None:
        before, self.state = self.state, state
        self._show_chosen(before)

    def _show_chosen(self, before: Look) -> bool | None:
        if self.watched is None or replace(before, layer=self.state.layer) != self.state:
            return self._watch()
        self._draw_charts()
        self._set_widgets()
        return self.refresh()

    def _set_widgets(self) -> None:
        state = self.state
        with self.without_events():
            self.choice.show(state.checkpoint)
            self.video.value, self.num_fine.value = state.video, state.num_fine
            if self.watched is not None:
                layers = len(self.watched.attentions["coarse"])
                # 0, not None, for the mean: a Dropdown takes that for nothing chosen
                named = [(f"layer {number}", number) for number in range(1, layers + 1)]
                self.layer.options = [(f"all {layers} layers, mean", 0), *named]
                self.layer.value = state.layer
                self.player.frame.max = len(self.watched.frames) - 1

    def _clear(self) -> None:
        """Nothing of the last choice stands beside a new one that fails."""
        self.watched, self.captions.value = None, ""
        for picture in self.pictures.values():
            picture.value = b""
        for head in self.heads:
            head.value = ""

    def _watch(self) -> bool:
        """A checkpoint, a video or a number of passes was chosen: run the model."""
        self._clear()
        self._set_widgets()
        if (checkpoint := self.state.checkpoint) is None:
            return False
        wanted = (checkpoint, self.data)
        if self._opened is None or self._opened[0] != wanted:
            for path in self.progress([checkpoint], desc="loading"):
                self._opened = wanted, *open_evaluation(path, self.data, device="cpu")
        assert self._opened is not None
        _, model, videos = self._opened
        self.watched = watch_video(model, videos, self.state.video, self.state.num_fine, self.progress)
        if self.state.layer > len(self.watched.attentions["coarse"]):  # of a model with more of them
            self.state = replace(self.state, layer=0)
        self._draw_charts()
        self._set_widgets()
        self.captions.value = describe_captions(self.watched)
        return self.refresh()

    # ---- what is shown -----------------------------------------------------------------------------------

    @property
    def _layer(self) -> int | None:
        return self.state.layer - 1 if self.state.layer else None

    def _draw_charts(self) -> None:
        assert self.watched is not None
        entropy, distance = (draw_by_frame(self.watched, name, self._layer) for name in ("entropy", "query_distance"))
        self._charts = entropy, distance
        self._table = self.watched.by_frame(self._layer)

    def refresh(self) -> bool:
        """Show the frame and layer that are chosen; no model is run. False if there is no video to show."""
        watched = self.watched
        if watched is None or self._charts is None:
            return False
        index, layer = self.player.frame.value, self._layer
        frame = watched.frames[index]
        region = magnified(frame.shape, self.zoom.level.value or 1, self.zoom.across.value, self.zoom.down.value)
        self.heads[0].value = f"<div style='line-height:1.3'><b>frame {index}</b><br>of {len(watched.frames) - 1}</div>"
        self.pictures["frame"].value = to_png(region.cut(frame))
        looks = {mode: watched.on_patches(mode, layer)[0][index].reshape(watched.grid) for mode in watched.attentions}
        highest = max(look.max() for look in looks.values())
        names = ("coarse", "training", "inference")
        for (mode, look), head, name in zip(looks.items(), self.heads[1:], names, strict=True):
            head.value = describe_look(self._table, mode, index)
            self.pictures[name].value = to_png(draw_attention(frame, look, highest, region))
            self.pictures[name].layout.border = f"3px solid {css_colour(mode_style(mode)[1])}"
        for chart, name in zip(self._charts, ("entropy", "distance"), strict=True):
            self.pictures[name].value = to_png(chart.at(index))
        return True

    def _find_look(self) -> tuple[float, float]:
        """Where the model looks most in use, per cent across and down."""
        if self.watched is None:
            return 50.0, 50.0
        look = self.watched.on_patches("autoregressive", self._layer)[0][self.player.frame.value]
        return find_areas(look.reshape(self.watched.grid) == look.max())[0]
