"""Linear layers packed once for few-row products on a CPU.

A product of few rows runs far below what the machine can do, because the weights are brought into the
library's blocked layout in every call. Here that is done once, with oneDNN, through the operators that
torch's inductor uses when it freezes weights. Only for CPU and float32; the packed copy takes as much memory
as the weights, and does not follow later changes of them. Of towers this module knows nothing.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

ROWS_HINT = 16
"""Number of rows that oneDNN picks the layout for; all of 1 to 577 took the same one where it was tried."""


class PackedLinear(nn.Module):
    """What nn.Linear computes, without gradients. `weight` is the first layer's own, unpacked."""

    def __init__(self, *linears: nn.Linear) -> None:
        """Several layers are packed as one, their outputs one behind the other."""
        super().__init__()
        self.weight = linears[0].weight
        weight = torch.cat([linear.weight.detach() for linear in linears]).contiguous()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_HINT)
        biases = [linear.bias for linear in linears]
        self.packed_bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.packed_bias, "none", [], "")


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
        probe(torch.zeros(1, 16))
    except (AttributeError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        logger.warning("weights not packed: this torch has no oneDNN operators for it (%s)", error)
        return False
    return True


def pack_qkv(*projections: nn.Module) -> Callable[[Tensor], Tensor]:
    """Query, key and value projection as one: (..., in) -> (..., 3 out)."""
    return PackedLinear(*projections)  # type: ignore[arg-type]


def pack_module(module: nn.Module) -> nn.Module:
    """A copy of the module in which every nn.Linear is packed; all else is shared."""
    if isinstance(module, nn.Linear):
        return PackedLinear(module)
    clone = copy.copy(module)
    clone._modules = {name: child and pack_module(child) for name, child in module._modules.items()}
    return clone
