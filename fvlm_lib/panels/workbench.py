"""The recordings of a folder under the settings that are looked at: frames, comparisons and traces, kept while shown.

What the tuning panel shows is computed here; nothing knows a widget.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from fvlm_lib.data.screens import ScreenSequence, read_sequences
from fvlm_lib.panels.compare import Choice, TracedChoice, trace_choice
from fvlm_lib.panels.sizes import AS_RECORDED, CLIP, Seen
from fvlm_lib.screens.loaded_towers import RANDOM_CLIP, squash
from fvlm_lib.screens.measure import read_measured
from fvlm_lib.screens.tuning import PatchDifferences, Progress, compare_patches


@dataclass(frozen=True)
class Tuned:
    """What is chosen: a recording, by its name, and settings A and B (None where they are not compared); `edited` is
    the index of the one that the controls show."""

    recording: str | None
    choices: tuple[Choice, Choice | None]
    edited: int = 0

    @property
    def choice(self) -> Choice:
        """The setting that the controls show."""
        return self.choices[self.edited] or self.choices[0]

    @property
    def shown(self) -> list[Choice]:
        """One setting, or both."""
        return [choice for choice in self.choices if choice is not None]

    def with_choice(self, choice: Choice) -> Tuned:
        """The same with another setting in place of the one that the controls show."""
        a, b = self.choices
        return replace(self, choices=(a, choice) if self.edited else (choice, b))

    def compared(self, both: bool) -> Tuned:
        """The same with two settings, where B starts as A; or with one, where that of the controls stays."""
        return replace(self, choices=(self.choice, self.choice if both else None), edited=int(both))


class Workbench:
    """A folder's recordings, and of one of them what settings do to it.

    recordings: by name. name: the one that is open. measured: what the benchmark has measured on it, of
    `read_measured`, or why there is nothing; results: the folder of its tables. progress: as in `compare_patches`.
    """

    def __init__(self, results: str | Path, progress: Progress) -> None:
        self.results, self.progress = Path(results), progress
        self.recordings: dict[str, ScreenSequence] = {}
        self.name: str | None = None
        self.measured: pd.DataFrame | str = ""
        self._compared: dict[tuple[str, Seen, int], list[PatchDifferences]] = {}
        self._traced: dict[tuple[str, Choice], TracedChoice] = {}  # of the settings that are shown
        self._frames: dict[tuple[str, Seen, int], np.ndarray] = {}  # the first, and those that are shown

    def find(self, folder: str | Path) -> None:
        """Take the recordings of a folder, and forget all others. Raises ValueError for a folder without."""
        self.recordings, self.name = {}, None
        self._compared, self._traced, self._frames = {}, {}, {}
        self.recordings = {recording.name: recording for recording in read_sequences(folder)}

    def open(self, name: str | None) -> None:
        """Open one of the recordings. Raises ValueError for an unknown name."""
        self.name = None
        if name not in self.recordings:
            raise ValueError(f"there is no recording {name!r}; there are {', '.join(self.recordings) or 'none'}")
        try:
            self.measured = read_measured(self.results, name)
        except ValueError as error:
            self.measured = str(error)
        self.name = name

    @property
    def recording(self) -> ScreenSequence:
        """The open one."""
        if self.name is None:
            raise ValueError("no recording is open; choose one")
        return self.recordings[self.name]

    def frame(self, seen: Seen, index: int) -> np.ndarray:
        """A frame uint8 (H, W, 3) of the open recording, as it is seen."""
        which = (self.recording.name, seen, index)
        if which not in self._frames:
            self._frames = {key: frame for key, frame in self._frames.items() if key[2] in (index, 0)}
            self._frames[which] = _as_seen(seen, self.recording[index])
        return self._frames[which]

    def trace(self, choice: Choice, shown: Sequence[Choice] = ()) -> TracedChoice:
        """What a setting does to the open recording; kept as long as it is among those shown.

        Pixels are compared when recording, size or patch size are new, and only then.
        """
        recording = self.recording
        which = (recording.name, choice.seen, choice.patch)
        if which not in self._compared:
            frames = (_as_seen(choice.seen, frame) for frame in self.progress(recording, desc="reading frames"))
            self._compared[which] = compare_patches(frames, choice.patch, self.progress)
        key = (recording.name, choice)
        if key not in self._traced:
            kept = {(recording.name, other) for other in shown}
            self._traced = {key: traced for key, traced in self._traced.items() if key in kept}
            self._traced[key] = trace_choice(self._compared[which], choice, recording.actions)
        return self._traced[key]

    def sizes(self, choices: Sequence[Choice]) -> list[tuple[str, Seen]]:
        """The sizes that frames may be seen at, each with what to call it; those of the choices among them."""
        recorded = "as recorded"
        if self.name is not None:
            height, width = self.frame(AS_RECORDED, 0).shape[:2]
            recorded = f"{height} × {width}, recorded"
        names: dict[Seen, str] = {CLIP: "CLIP"}
        if isinstance(self.measured, pd.DataFrame):
            measured = self.measured[["height", "width", "patch_size"]].drop_duplicates().itertuples(index=False)
            names |= {(int(row.height), int(row.width), int(row.patch_size)): "measured" for row in measured}
        names |= {choice.seen: "chosen" for choice in choices if choice.seen and choice.seen not in names}
        return [(recorded, AS_RECORDED), *((f"{s[0]} × {s[1]}, {s[2]} px ({name})", s) for s, name in names.items())]

    def benchmark_command(self, choice: Choice, settings: str) -> str | None:
        """What measures a setting, written to the file `settings`, on the open recording; None where no tower sees its
        frames like this."""
        if choice.seen == AS_RECORDED or choice.patch != choice.seen[2]:
            return None
        tower = RANDOM_CLIP
        if isinstance(self.measured, pd.DataFrame):
            same = (self.measured[["height", "width", "patch_size"]] == choice.seen).all(axis=1)
            tower = next(iter(self.measured["tower"][same]), tower)
        name = f"{self.recording.name}--tuned"
        parameters = {
            "sequence": str(self.recording.files[0].parent),
            "tower": tower,
            "image_size": list(choice.seen[:2]),
            "settings": settings,
            "result": str(self.results / f"{name}.parquet"),
            "figure": f"plots/differential/{name}.png",
        }
        return (
            "fvlm run notebooks/differential_benchmark.ipynb --output "
            f"papermill_runs/differential_{shlex.quote(name)}.ipynb --parameters {shlex.quote(json.dumps(parameters))}"
        )


def _as_seen(seen: Seen, frame: np.ndarray) -> np.ndarray:
    return squash(frame, (seen[0], seen[1])) if seen else frame
