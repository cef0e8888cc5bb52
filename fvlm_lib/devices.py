"""Which device a model runs on, where a user leaves it to us."""

from __future__ import annotations

import torch

from fvlm_lib.schema import Device, check


def pick_device(device: str = "auto") -> str:
    """`device`, or for "auto" the best there is: cuda, mps, cpu. Raises ValueError for what is none or not there."""
    check(Device, device, "device")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind, _, number = device.partition(":")
    if not available.get(kind, True) or (number and int(number) >= torch.cuda.device_count()):
        raise ValueError(f"device is {device!r}, which is not available here; auto takes the best there is")
    if device != "auto":
        return device
    return next((name for name, there in available.items() if there), "cpu")
