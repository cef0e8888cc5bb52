"""The choice of a foveated checkpoint: a folder, what is found below it, and a button that looks again."""

from __future__ import annotations

from pathlib import Path

import ipywidgets

from fvlm_lib.gap.fovea import find_checkpoints
from fvlm_lib.panels.controls import button, labelled


class CheckpointChoice:
    """The widgets `folder` (a text), `checkpoint` (of what is found) and `rescan`; the last two stand in `found`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = labelled(
            ipywidgets.Text, "checkpoints in", "1 1 220px", value=str(folder), continuous_update=False
        )
        self.checkpoint = labelled(ipywidgets.Dropdown, "checkpoint", "1 1 0")
        self.rescan = button(icon="refresh", tooltip="look for checkpoints again")
        self.found = ipywidgets.HBox([self.checkpoint, self.rescan], layout={"flex": "2 1 300px", "min_width": "0"})

    def offer(self) -> list[Path]:
        """Offer the checkpoints of the folder, none of them chosen; gives them. Raises ValueError for a folder without
        one, and offers none then."""
        self.checkpoint.options = []
        found = find_checkpoints(self.folder.value)
        self.checkpoint.options = [(str(path.relative_to(self.folder.value)), path) for path in found]
        self.checkpoint.value = None
        return found

    def show(self, checkpoint: Path | None) -> None:
        """Choose one, which is offered from then on if it is not of the folder."""
        known = [path for _, path in self.checkpoint.options]
        if checkpoint is not None and checkpoint not in known:
            self.checkpoint.options = [*self.checkpoint.options, (str(checkpoint), checkpoint)]
        self.checkpoint.value = checkpoint
