"""Which device a model runs on, where a user leaves it to us."""

from __future__ import annotations

import torch


def pick_device(device: str = "auto") -> str:
    """`device`, or for "auto" the best there is: cuda, mps, cpu. Raises ValueError for one that is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.split(":")[0], True):
        raise ValueError(f"device is {device!r}, which is not available here; auto takes the best there is")
    if device != "auto":
        return device
    return next((name for name, there in available.items() if there), "cpu")
