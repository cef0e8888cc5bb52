"""The panel of notebooks/explore_fovea.ipynb: a checkpoint and a video, and frame by frame where the model looks.

`FoveaPanel` joins widgets to `fovea.py`, which computes everything once for a checkpoint and a video, and `plots.py`.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from fvlm_lib.data.videos import Videos
from fvlm_lib.figures.plots import mode_style, plot_attention, plot_modes_by_frame
from fvlm_lib.foveated.checkpoints import load_checkpoint
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.gap.fovea import WatchedVideo, find_checkpoints, watch_video
from fvlm_lib.gap.gap import open_evaluation
from fvlm_lib.panels.pictures import css_colour, to_png
from fvlm_lib.panels.widgets import Panel, Player

ABOUT = """<div style='color:#666;line-height:1.4;max-width:1000px'>The paler a patch, the less the query attends to it;
one scale for the three pictures of a frame. Shares are averaged over heads and are of the attention that falls on
patches; what falls on the CLS token is given apart. The entropy is that of the shares: of its maximum, 100 % is a look
at everything alike. Distance: relative L2 of the training query from the inference query.</div>"""


class FoveaPanel(Panel):
    """Checkpoints below `folder`, on the videos that `data` describes (`videos.open_videos`).

    checkpoint: the one shown first, or None for the first found. video: index of a sample. num_fine: fine passes of
    the training mode. What is wrong with any of them is shown in the panel.
    """

    def __init__(
        self,
        folder: str | Path = "checkpoints",
        checkpoint: str | Path | None = None,
        data: Mapping[str, Any] | None = None,
        video: int = 0,
        num_fine: int = 1,
    ) -> None:
        super().__init__()
        self.folder, self.data = Path(folder), dict(data or {"kind": "procedural", "split": "test"})
        self.watched: WatchedVideo | None = None
        self._opened: tuple[tuple[Path, Mapping[str, Any]], FoveatedVLM, Videos] | None = None
        self._make_widgets(video, num_fine)
        self.show_errors(partial(self._start, checkpoint))()

    def _make_widgets(self, video: int, num_fine: int) -> None:
        short = {"description_width": "initial"}
        self.checkpoint = ipywidgets.Dropdown(description="checkpoint", style=short, layout={"width": "330px"})
        self.video = ipywidgets.BoundedIntText(
            video, description="video", max=10**6, style=short, layout={"width": "140px"}
        )
        self.num_fine = ipywidgets.BoundedIntText(
            num_fine, min=1, max=64, description="fine passes", style=short, layout={"width": "150px"}
        )
        self.layer = ipywidgets.Dropdown(description="attention of", style=short, layout={"width": "230px"})
        self.player = Player(interval=1000)
        self.figure = ipywidgets.Image(format="png", layout={"width": "100%", "max_width": "1150px"})
        self.figure.add_class("fvlm-fovea")
        self.captions = ipywidgets.HTML()
        chosen = [self.checkpoint, self.video, self.num_fine]
        self.children = [
            ipywidgets.HBox([*chosen, self.bar]),
            ipywidgets.HBox([self.player, self.layer]),
            self.message, self.figure, self.captions, ipywidgets.HTML(ABOUT),
        ]  # fmt: skip
        watch, refresh = self.show_errors(self._watch), self.show_errors(self.refresh)
        for widget in chosen:
            widget.observe(watch, "value")
        for widget in (self.layer, self.player.frame):
            widget.observe(refresh, "value")

    def _start(self, checkpoint: str | Path | None) -> None:
        found = find_checkpoints(self.folder)
        self.checkpoint.options = [(str(path), path) for path in found]
        wanted = found[0] if checkpoint is None else Path(checkpoint)
        if wanted not in found:
            load_checkpoint(wanted)  # says what is wrong with it
            self.checkpoint.options = [*self.checkpoint.options, (str(wanted), wanted)]
        self.checkpoint.value = wanted

    def _watch(self) -> None:
        """A checkpoint, a video or a number of passes was chosen."""
        if self.checkpoint.value is None:
            return
        self.watched = None  # nothing of the last choice stands beside a new one that fails
        self.figure.value, self.captions.value = b"", ""
        wanted = (self.checkpoint.value, self.data)
        if self._opened is None or self._opened[0] != wanted:
            for path in self.progress([self.checkpoint.value], desc="loading"):
                self._opened = wanted, *open_evaluation(path, self.data, device="cpu")
        assert self._opened is not None
        _, model, videos = self._opened
        watched = watch_video(model, videos, self.video.value, self.num_fine.value, self.progress)
        layers = len(watched.attentions["coarse"])
        # not None for the mean: a Dropdown takes that for nothing chosen
        self.layer.options = [(f"all {layers} layers, mean", 0), *((f"layer {n}", n) for n in range(1, layers + 1))]
        self.layer.value = self.layer.value or 0
        self.player.frame.max = len(watched.frames) - 1
        self.watched = watched
        self.refresh()

    def refresh(self) -> bool:
        """Show the frame and layer that are chosen; no model is run. False if there is no video to show."""
        if self.watched is None:
            return False
        layer = self.layer.value - 1 if self.layer.value else None
        self.figure.value = to_png(draw_look(self.watched, self.player.frame.value, layer))
        self.captions.value = describe_captions(self.watched)
        return True


def draw_look(watched: WatchedVideo, frame: int, layer: int | None = None) -> Figure:
    """One frame: the picture, the patch attention of each mode, entropy and query distance by frame with this frame
    marked. layer: from 0, None for the mean over layers."""
    table = watched.by_frame(layer)
    attentions = {mode: watched.on_patches(mode, layer)[0][frame].reshape(watched.grid) for mode in watched.attentions}
    highest = max(attention.max() for attention in attentions.values())
    figure = Figure(figsize=(12, 6.1), dpi=95)
    top = figure.subplots(1, 4, gridspec_kw={"left": 0.01, "right": 0.99, "top": 0.88, "bottom": 0.44, "wspace": 0.05})
    top[0].imshow(watched.frames[frame], interpolation="nearest")
    top[0].set(xticks=[], yticks=[])
    top[0].set_title(f"frame {frame} of {len(watched.frames) - 1}\n", fontsize="medium")
    for ax, (mode, attention) in zip(top[1:], attentions.items(), strict=True):
        name, colour = mode_style(mode)
        row = table[(table["mode"] == mode) & (table["frame"] == frame)].iloc[0]
        plot_attention(ax, watched.frames[frame], attention, highest)
        ax.set_title(
            f"{name}\n{row['entropy']:.2f} nats, {row['entropy_share']:.0%} of max · CLS {row['other_share']:.0%}",
            fontsize="medium", color=tuple(0.75 * part for part in colour),
        )  # fmt: skip
        for side in ax.spines.values():
            side.set(color=colour, linewidth=2.5)
    below = figure.subplots(
        1, 2, gridspec_kw={"left": 0.06, "right": 0.99, "top": 0.35, "bottom": 0.09, "wspace": 0.19}
    )
    plot_modes_by_frame(below[0], table, "entropy")
    most = np.log(watched.grid[0] * watched.grid[1])
    below[0].axhline(most, color="0.5", lw=0.8, ls="--", label="maximum")
    below[0].set_ylim(0, 1.08 * most)
    below[0].set_ylabel("entropy, nats")
    below[0].legend(frameon=False, fontsize="small", ncols=2, loc="lower right")
    plot_modes_by_frame(below[1], table[table["query_distance"].notna()], "query_distance")
    below[1].set_ylabel("training to inference\nquery, relative L2")
    for ax in below:
        ax.axvline(frame, color="0.2", lw=1, ls=":")
        ax.set_xticks(range(len(watched.frames)))
    return figure


def describe_captions(watched: WatchedVideo) -> str:
    """The caption's words with their loss in each mode, the more coloured the larger, and what the model says itself,
    as an HTML table."""
    cell = "<td style='padding:2px 8px;text-align:right;background:{}'>{}</td>"
    lines = [("caption", "", [cell.format("none", f"<b>{html.escape(token)}</b>") for token in watched.tokens])]
    for mode, losses in watched.losses.items():
        name, colour = mode_style(mode)
        cells = []
        for loss in losses:
            tint = 1 - min(loss / 2, 1) * 0.7
            cells.append(cell.format(css_colour(tuple(1 - (1 - part) * (1 - tint) for part in colour)), f"{loss:.3f}"))
        lines.append((name, f"{losses.mean():.3f}", cells))
    said = []
    for place, token in enumerate(watched.generated):
        right = place < len(watched.tokens) and token == watched.tokens[place]
        said.append(
            cell.format("none", html.escape(token) if right else f"<b style='color:#d55e00'>≠ {html.escape(token)}</b>")
        )
    lines.append(("generated, greedily", "", said))
    rows = "".join(
        f"<tr><td style='padding:2px 12px 2px 0'>{html.escape(name)}</td><td style='padding:2px 12px 2px 0'>{mean}</td>"
        f"{''.join(cells)}</tr>"
        for name, mean, cells in lines
    )
    heads = "".join(f"<th style='text-align:left'>{head}</th>" for head in ("loss, nats", "mean"))
    return f"<table><tr>{heads}</tr>{rows}</table>"
