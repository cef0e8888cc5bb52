"""The panel of notebooks/tune_threshold.ipynb: a recording, a setting, and at once what the encoder would do.

`TuningPanel` joins widgets to `tuning.py` (what a setting does), `pictures.py` (how it is shown), `measure.py`
(what was measured at it) and `settings.py` (where it is written).
"""

from __future__ import annotations

import html
import json
import shlex
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd

from fvlm_lib.data.screens import ScreenSequence, read_sequences
from fvlm_lib.panels.pictures import (
    describe_frame,
    describe_measured,
    describe_sequence,
    difference_legend,
    draw_changed_patches,
    draw_differences,
    draw_timeline,
    to_jpeg,
    to_png,
)
from fvlm_lib.panels.widgets import ERROR, Panel, Player, describe_error
from fvlm_lib.screens.loaded_towers import RANDOM_CLIP, squash
from fvlm_lib.screens.measure import read_measured
from fvlm_lib.screens.tuning import PatchDifferences, compare_patches, trace_settings
from fvlm_lib.vision.changes import TracedFrame, default_limit, trace_table, typical_frame
from fvlm_lib.vision.settings import DifferentialSettings, read_settings, write_settings

Seen = tuple[int, ...]  # the frames' height and width, and the tower's patch size, in pixels
AS_RECORDED: Seen = ()
CLIP: Seen = (336, 336, 14)
PATCH_SIZES = (8, 14, 16, 28, 32)
PATCH_AS_RECORDED = 16  # pixels, where no tower says; the default of notebooks/changed_patches.ipynb too
ABOUT = """<div style='color:#666;line-height:1.4;width:345px'>
A threshold holds for frames of the size that it was chosen on: squashing mixes neighbouring pixels, and a thin line
that differs by 1.0 as recorded may differ by 0.15 at 336 × 336. Choose the size at which your tower sees the frames.
A limit counts patches, so it belongs to that size too.</div>"""


class TuningPanel(Panel):
    """The recordings in `folder`, under any setting of the differential encoder.

    sequence: name of the one shown first, or None for the first. settings: the YAML file that is read at the start
    and that the button writes. results: folder of the benchmark's tables. What is wrong with them is shown.
    """

    def __init__(
        self,
        folder: str | Path = "data/screens",
        sequence: str | None = None,
        settings: str | Path = "config/differential.yaml",
        results: str | Path = "results/differential",
    ) -> None:
        super().__init__()
        self.folder, self.file, self.results = Path(folder), Path(settings), Path(results)
        self.kept = DifferentialSettings()  # of it, what has no widget is written as it was read
        self.steps: list[tuple[TracedFrame, np.ndarray]] = []
        self._compared: dict[tuple[str, Seen, int], list[PatchDifferences]] = {}
        self._read: tuple[Any, np.ndarray] | None = None  # the frame shown, and which it is
        self._measured: pd.DataFrame | str = ""
        self._opening = False
        self._make_widgets()
        self.show_errors(partial(self._start, sequence))()

    def _make_widgets(self) -> None:
        def labelled(kind: Any, description: str, **options: Any) -> Any:
            return kind(
                description=description, style={"description_width": "112px"}, layout={"width": "350px"}, **options
            )

        self.sequence = labelled(ipywidgets.Dropdown, "recording")
        self.seen = labelled(ipywidgets.Dropdown, "frames seen at")
        self.patch_size = labelled(ipywidgets.Dropdown, "patches of")
        self.threshold = labelled(ipywidgets.FloatSlider, "threshold", max=1.0, step=0.005, readout_format=".3f")
        metrics = [("largest of a patch's pixels", "max"), ("mean of a patch's pixels", "mean")]
        self.metric = labelled(ipywidgets.Dropdown, "difference", options=metrics)
        references = [("the pixels of its token", "encoded"), ("the previous frame", "previous")]
        self.reference = labelled(ipywidgets.Dropdown, "compared with", options=references)
        limits = [("up to a quarter of all patches", False), ("up to the number below", True)]
        self.limited = labelled(ipywidgets.Dropdown, "partial update", options=limits)
        self.limit = labelled(ipywidgets.IntSlider, "changed patches", max=1)
        self.save = ipywidgets.Button(
            description=f"Write {self.file}", icon="save", button_style="primary", layout={"width": "350px"}
        )
        self.saved, self.status, self.summary, self.expected = (ipywidgets.HTML() for _ in range(4))
        self.player = Player()
        self.screenshot, self.difference, self.timeline = (
            ipywidgets.Image(format=kind, layout={"width": "99%", "border": border})
            for kind, border in (("jpeg", "1px solid #ccc"), ("jpeg", "1px solid #ccc"), ("png", "none"))
        )
        for name in ("screenshot", "difference", "timeline"):
            getattr(self, name).add_class(f"fvlm-{name}")
        chosen = [self.sequence, self.seen, self.patch_size, self.threshold, self.metric, self.reference]
        controls = ipywidgets.VBox(
            [*chosen, self.limited, self.limit, self.save, self.saved, ipywidgets.HTML(ABOUT)],
            layout={"width": "366px", "flex": "0 0 auto"},
        )
        legend = ipywidgets.HTML(f"<b>Difference</b> {difference_legend()}")
        half = {"width": "50%", "padding": "0 8px 0 0"}
        below = ipywidgets.HBox(
            [
                ipywidgets.VBox([legend, self.difference], layout=half),
                ipywidgets.VBox([ipywidgets.HTML("<b>Whole recording</b>"), self.timeline], layout=half),
            ]
        )
        shown = ipywidgets.VBox(
            [ipywidgets.HBox([self.player, self.bar]), self.status, self.summary, self.screenshot, below],
            layout={"flex": "1 1 0", "min_width": "420px"},
        )
        self.children = [self.message, ipywidgets.HBox([controls, shown]), self.expected]

        self.sequence.observe(self.show_errors(self._open), "value")
        redraw = self.show_errors(self.refresh)
        for widget in (*chosen[1:], self.limited, self.limit, self.player.frame):
            widget.observe(redraw, "value")
        self.save.on_click(self.show_errors(self._save))

    # ---- what is chosen ----------------------------------------------------------------------------------

    @property
    def settings(self) -> DifferentialSettings:
        """What the widgets say; the rest as the file had it."""
        return replace(
            self.kept,
            diff_threshold=round(self.threshold.value, 9),  # a slider's steps add up inexactly
            metric=self.metric.value,
            reference=self.reference.value,
            patch_size=self.patch_size.value or None,
            max_changed_patches=self.limit.value if self.limited.value else None,
        )

    @property
    def patch(self) -> int:
        """Pixels of a patch, of the frames as they are seen."""
        own = self.seen.value[2] if self.seen.value else PATCH_AS_RECORDED
        return self.patch_size.value or own

    def _start(self, sequence: str | None) -> None:
        self._opening = True
        try:
            self.kept = read_settings(self.file)
        except ValueError as error:
            self.saved.value = ERROR.format(describe_error(error) + ". The widgets show the defaults.")
        kept = self.kept
        sizes = sorted({*PATCH_SIZES, kept.patch_size or PATCH_AS_RECORDED})
        self.patch_size.options = [
            (f"the tower's own size, else {PATCH_AS_RECORDED}", 0),
            *((f"{size} pixels", size) for size in sizes),
        ]
        self.patch_size.value = kept.patch_size or 0
        self.threshold.value, self.metric.value, self.reference.value = kept.diff_threshold, kept.metric, kept.reference
        self.limited.value = kept.max_changed_patches is not None
        self.limit.max = max(1, kept.max_changed_patches or 1)
        self.limit.value = kept.max_changed_patches or 0

        recordings = {recording.name: recording for recording in read_sequences(self.folder)}
        self.sequence.options = [(f"{name}, {len(found)} frames", found) for name, found in recordings.items()]
        self.sequence.value = None
        self._opening = False
        if sequence is not None and sequence not in recordings:
            raise ValueError(
                f"there is no recording {sequence!r} in {self.folder}; it has {', '.join(recordings)}. To record one: "
                f"fvlm record --out {self.folder / sequence}"
            )
        self.sequence.value = recordings[sequence or next(iter(recordings))]

    def _open(self) -> None:
        """A recording was chosen."""
        recording = self.sequence.value
        if recording is None or self._opening:
            return
        for picture in (self.screenshot, self.difference, self.timeline):
            picture.value = b""  # nothing of the last recording stands beside a new one that fails
        self.status.value = self.summary.value = self.expected.value = ""
        self._opening = True
        try:
            try:
                self._measured = read_measured(self.results, recording.name)
            except ValueError as error:
                self._measured = str(error)
            height, width = recording[0].shape[:2]
            seen, sizes = self.seen.value, [(f"as recorded, {height} × {width}", AS_RECORDED), *self._tower_sizes()]
            self.seen.options = sizes
            self.seen.value = seen if seen in dict(sizes).values() else AS_RECORDED
            self.player.frame.value, self.player.frame.max = 0, len(recording) - 1
        finally:
            self._opening = False
        self.refresh()
        self.player.frame.value = typical_frame(trace_table([step for step, _ in self.steps]))

    def _tower_sizes(self) -> list[tuple[str, Seen]]:
        sizes: dict[Seen, str] = {CLIP: "CLIP"}
        if not isinstance(self._measured, str):
            measured = self._measured[["height", "width", "patch_size"]].drop_duplicates().itertuples(index=False)
            sizes |= {(int(row.height), int(row.width), int(row.patch_size)): "measured" for row in measured}
        return [(f"{h} × {w}, {p} px ({name})", (h, w, p)) for (h, w, p), name in sizes.items()]

    def _frame(self, recording: ScreenSequence, index: int) -> np.ndarray:
        which = (recording.name, self.seen.value, index)
        if self._read is None or self._read[0] != which:
            self._read = which, self._as_seen(recording[index])
        return self._read[1]

    def _as_seen(self, frame: np.ndarray) -> np.ndarray:
        return squash(frame, self.seen.value[:2]) if self.seen.value else frame

    # ---- what is shown -----------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Show what the widgets say; False if there is no recording. Pixels are compared when recording, size or patch
        size are new, and only then."""
        recording = self.sequence.value
        if recording is None or self._opening:
            return False
        which = (recording.name, self.seen.value, self.patch)
        if which not in self._compared:
            frames = map(self._as_seen, self.progress(recording, desc="reading frames"))
            self._compared[which] = compare_patches(frames, self.patch, self.progress)
        self.steps = list(trace_settings(self._compared[which], self.settings))
        index = self.player.frame.value
        step, difference = self.steps[index]
        frame = self._frame(recording, index)
        self._opening = True  # no redraw because of the limits of a slider
        limit = self.limit.value if self.limited.value else default_limit(difference.shape)
        self.limit.max = max(difference.size, limit)  # the file's limit may be meant for more patches
        self.limit.value = limit
        self.limit.disabled = not self.limited.value
        self._opening = False

        changed = difference > self.settings.diff_threshold
        pixels = draw_changed_patches(frame, np.ones_like(changed) if step.changed is None else changed, self.patch)
        self.screenshot.value = to_jpeg(pixels)
        self.difference.value = to_jpeg(
            draw_differences(difference, self.settings.diff_threshold, frame.shape[:2], self.patch)
        )
        table = trace_table([step for step, _ in self.steps], recording.actions)
        self.status.value = describe_frame(step, table)
        self.summary.value = describe_sequence(table)
        self.timeline.value = to_png(draw_timeline(table, index))
        self.expected.value = describe_measured(
            self._measured, self.settings, frame.shape[:2], self.patch, self._benchmark_command()
        )
        return True

    def _benchmark_command(self) -> str | None:
        """What measures the written setting on this recording; None where no tower sees its frames like this."""
        if self.seen.value == AS_RECORDED or self.patch != self.seen.value[2]:
            return None
        tower = RANDOM_CLIP
        if isinstance(self._measured, pd.DataFrame):
            same = (self._measured[["height", "width", "patch_size"]] == self.seen.value).all(axis=1)
            tower = next(iter(self._measured["tower"][same]), tower)
        name = f"{self.sequence.value.name}--tuned"
        parameters = {
            "sequence": str(self.sequence.value.files[0].parent),
            "tower": tower,
            "image_size": list(self.seen.value[:2]),
            "settings": str(self.file),
            "result": str(self.results / f"{name}.parquet"),
            "figure": f"plots/differential/{name}.png",
        }
        return (
            "fvlm run notebooks/differential_benchmark.ipynb --output "
            f"papermill_runs/differential_{shlex.quote(name)}.ipynb --parameters {shlex.quote(json.dumps(parameters))}"
        )

    def _save(self) -> None:
        recording = self.sequence.value
        note = ""
        if recording is not None:
            height, width = self._frame(recording, self.player.frame.value).shape[:2]
            note = f"Chosen on {recording.name}, seen in frames of {height} x {width} pixels, patches of {self.patch}."
        write_settings(self.file, self.settings, note)
        self.saved.value = f"{html.escape(str(self.file))} written at {time.strftime('%H:%M:%S')}"
