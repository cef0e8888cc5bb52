"""Linear layers packed once for few-row products on a CPU.

A product of few rows runs far below what the machine can do, because the weights are brought into the
library's blocked layout in every call. Here that is done once, with oneDNN, through the operators that
torch's inductor uses when it freezes weights. Only for CPU and float32; the packed copy takes as much memory
as the weights, and does not follow later changes of them. Of towers this module knows nothing.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

ROWS_HINT = 64
"""Number of rows that oneDNN picks the layout for; up to 300 rows, all of 6 to 577 measured alike."""

PACKED_ROWS = range(3, 385)
"""Numbers of rows for which packed products measured faster; the others use the unpacked weights."""


class PackedLinears:
    """Several nn.Linear of one input as one packed product: (..., in) -> a list of (..., out), no gradients."""

    def __init__(self, *linears: nn.Module) -> None:
        self.linears = linears
        weights: list[Any] = [linear.weight for linear in linears]
        biases: list[Any] = [linear.bias for linear in linears]
        self.sizes = [len(weight) for weight in weights]
        self.weight = torch.ops.mkldnn._reorder_linear_weight(torch.cat(weights).detach(), ROWS_HINT)
        self.bias = None if biases[0] is None else torch.cat(biases).detach()

    def __call__(self, x: Tensor) -> list[Tensor]:
        if x.numel() // x.shape[-1] not in PACKED_ROWS:
            return [linear(x) for linear in self.linears]
        out = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return [out] if len(self.sizes) == 1 else list(out.split(self.sizes, dim=-1))


class PackedLinear(nn.Module):
    """What the nn.Linear computes, without gradients; `weight` is its own, unpacked."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.packed = PackedLinears(linear)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return self.packed(x)[0]


def packable(modules: Iterable[Any]) -> bool:
    """Whether weights can be packed here: all on the CPU, float32, and the operators there.

    modules: dataclasses or objects whose attributes are modules. If not, a warning says why.
    """
    parameters = [
        parameter
        for holder in modules
        for module in vars(holder).values()
        if isinstance(module, nn.Module)
        for parameter in module.parameters()
    ]
    kinds = {(parameter.device.type, parameter.dtype) for parameter in parameters}
    if kinds - {("cpu", torch.float32)}:
        wrong = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
        logger.warning("weights not packed: they are %s; only torch.float32 on cpu can be", wrong)
        return False
    try:
        probe = PackedLinear(nn.Linear(16, 16))
        probe(torch.zeros(PACKED_ROWS.start, 16))
    except (AttributeError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        logger.warning("weights not packed: this torch has no oneDNN operators for it (%s)", error)
        return False
    return True


def pack_module(module: nn.Module) -> nn.Module:
    """A copy of the module in which every nn.Linear is packed; all else is shared."""
    if isinstance(module, nn.Linear):
        return PackedLinear(module)
    clone = copy.copy(module)
    clone._modules = {name: child and pack_module(child) for name, child in module._modules.items()}
    return clone
