"""The state of a training on disk: all that an interrupted run needs to go on to the same weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fvlm_lib.outputs import whole


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    """Write weights and optimizer after `step` steps that took `seconds`, whole or not at all (a kill leaves the state
    before)."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in entry.items()}
    about = {"step": str(step), "seconds": str(seconds)}
    with whole(path) as part:
        save_file({name: value.contiguous() for name, value in tensors.items()}, part, metadata=about)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Restore model and optimizer from `path`; returns the number of steps done, and the seconds that they took."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(about["step"]), float(about["seconds"])
