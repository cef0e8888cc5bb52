"""Linear layers whose products of few rows run fast on a CPU.

BLAS is made for many rows: of 4 to 50 rows, a product runs at an eighth to a half of what the machine can do.
Two ways out:

* transposed: x W^T as (W x^T)^T, which reads the weights as they lie. Any dtype, no memory.
* packed: the weights are brought once into the blocked layout that oneDNN otherwise makes in every call, through
  the operators that torch's inductor uses when it freezes weights. Float32; the copy takes as much memory as
  the weights, and does not follow later changes of them.

Which way is taken for how many rows is either measured on the machine (`products.Routes`), or the caller picks one of
the two, and outside the numbers of rows where it is faster, by measurements of products of 1024 x 4096 and back on one
machine, the layers are used as they are. Of towers this module knows nothing.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fvlm_lib.reuse.products import Routes, Way

logger = logging.getLogger(__name__)

ROWS_HINT = 64
"""Number of rows that oneDNN picks the layout for; all of 6 to 577 measured alike."""

PACKED_ROWS = range(3, 385)
TRANSPOSED_ROWS = range(8, 50)
"""Numbers of rows for which these products are taken where nothing was measured."""


class FewRowsLinears:
    """One or several nn.Linear of the same input: (..., in) -> a list of (..., out).

    pack: pack their weights as one; then there are no gradients. `routes` says the way for each number of rows, once it
    is set.
    """

    def __init__(self, *linears: Any, pack: bool) -> None:
        self.linears = linears
        self.sizes = [linear.weight.shape[0] for linear in self.linears]
        self.routes: Routes | None = None
        self.packed: Tensor | None = None
        self.bias: Tensor | None = None
        if pack:
            self.pack()

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, and of their packed copy if there is one."""
        return sum(linear.weight.nbytes for linear in self.linears)

    def pack(self) -> None:
        """Make the packed copy."""
        weight = torch.cat([linear.weight.detach() for linear in self.linears])
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_HINT)
        biased = self.linears[0].bias is not None
        self.bias = torch.cat([linear.bias.detach() for linear in self.linears]) if biased else None

    def unpack(self) -> None:
        """Let go of the packed copy."""
        self.packed = self.bias = None

    def __call__(self, x: Tensor) -> list[Tensor]:
        rows = x.numel() // x.shape[-1]
        way, padded = self._route(rows, x)
        if way == "plain" and padded == rows:
            return [linear(x) for linear in self.linears]
        flat = x.reshape(rows, x.shape[-1])
        if padded > rows:
            flat = F.pad(flat, (0, 0, 0, padded - rows))
        return [out[:rows].unflatten(0, x.shape[:-1]) if x.ndim != 2 else out[:rows] for out in self.by(way, flat)]

    def _route(self, rows: int, x: Tensor) -> tuple[Way, int]:
        if self.routes is not None:
            route = self.routes(rows)
            return route.way, route.rows
        if self.packed is not None:
            return "packed" if rows in PACKED_ROWS else "plain", rows
        return "transposed" if rows in TRANSPOSED_ROWS and x.device.type == "cpu" else "plain", rows

    def by(self, way: Way, x: Tensor) -> list[Tensor]:
        """The products of x (n, in) by one way; "packed" needs the packed copy."""
        if way == "packed":
            out = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
            return list(out.split(self.sizes, dim=-1))
        if way == "transposed":
            columns = x.T
            return [
                linear.weight.mm(columns).T
                if linear.bias is None
                else torch.addmm(linear.bias[:, None], linear.weight, columns).T
                for linear in self.linears
            ]
        return [linear(x) for linear in self.linears]


class FewRowsLinear(nn.Module):
    """What the nn.Linear computes; `weight` is its own."""

    def __init__(self, linear: nn.Linear, pack: bool) -> None:
        super().__init__()
        self.weight = linear.weight
        self.linears = FewRowsLinears(linear, pack=pack)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return self.linears(x)[0]


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
        probe = FewRowsLinear(nn.Linear(16, 16), pack=True)
        probe(torch.zeros(PACKED_ROWS.start, 16))
    except (AttributeError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        logger.warning("weights not packed: this torch has no oneDNN operators for it (%s)", error)
        return False
    return True


def few_rows_copy(module: nn.Module, pack: bool) -> nn.Module:
    """A copy of the module with a `FewRowsLinear` in place of every nn.Linear; all else is shared."""
    if isinstance(module, nn.Linear):
        return FewRowsLinear(module, pack)
    clone = copy.copy(module)
    clone._modules = {name: child and few_rows_copy(child, pack) for name, child in module._modules.items()}
    return clone
