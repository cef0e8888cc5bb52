"""FLOPs of whatever a call runs, counted by torch from the shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_flops(call: Callable[[], object]) -> int:
    """FLOPs of running `call()` once, backward included if `call` runs it.

    FLOPs, not MACs: a multiply-add is two. Counted are matrix products, convolutions and attention, by their
    shapes; element-wise work, normalisation and softmax count as nothing, masked and causal attention in
    full. The count does not depend on the device. Recurrent layers of torch.nn are not counted.
    """
    return int(_counted(call).get_total_flops())


def count_flops_by_module(call: Callable[[], object]) -> dict[str, dict[str, int]]:
    """`count_flops` of every module that `call` runs, by its dotted name behind the outermost module's class, of that
    those of each operator, `aten.bmm` say."""
    counts = _counted(call).get_flop_counts()
    return {module: {str(name): flops for name, flops in found.items()} for module, found in counts.items()}


def _counted(call: Callable[[], object]) -> FlopCounterMode:
    aten = torch.ops.aten
    matrix_vector = {  # torch has no formula for these: a product with a vector would be free
        aten.dot: lambda a, b, **_: 2 * math.prod(a),
        aten.mv: lambda matrix, vector, **_: 2 * math.prod(matrix),
        aten.addmv: lambda bias, matrix, vector, **_: 2 * math.prod(matrix),
    }
    # Nor for the CPU's fused attention and the fused inference path of nn.MultiheadAttention. The plain
    # ones are matrix products, and their backward has no recomputation, which fused kernels add.
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counter = FlopCounterMode(display=False, custom_mapping=matrix_vector)
        with sdpa_kernel(SDPBackend.MATH), counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    return counter
