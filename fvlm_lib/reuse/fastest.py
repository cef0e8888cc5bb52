"""Blocks whose products of few rows are fast: packed or not as the caller says, or as measuring finds.

How a product is computed is `packing.py`'s subject, how ways are compared `products.py`'s.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fvlm_lib.reuse.blocks import Block, few_rows_block
from fvlm_lib.reuse.packing import FewRowsLinear, FewRowsLinears, packable
from fvlm_lib.reuse.products import Routes, Sample, Times, Way, measure
from fvlm_lib.schema import CountOrNone, check

logger = logging.getLogger(__name__)

PackWeights = bool | Literal["auto"]
Shape = tuple[object, ...]

MEASURED_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
SPREAD = 64 * 2**20
"""Bytes of weights that one shape is measured on, if there are so many: more than a cache holds."""

LEAST_SAVED = 0.05
"""Share of a product's time that packing must save to be worth its memory."""

_measured: dict[Shape, Times] = {}  # of this process, so that a second model of the kind need not wait


@dataclass(frozen=True)
class Products:
    """The linear products of a stack of blocks, measured: what they take, and which were packed.

    routes: one for each product of every block. packed_bytes: memory of the packed copies.
    """

    routes: tuple[Routes, ...]
    packed_bytes: int

    def seconds(self, rows: int) -> float:
        """Of all products for so many rows of every block."""
        return sum(routes(rows).seconds for routes in self.routes)

    def rows_within(self, share: float, of_rows: int) -> int:
        """The most rows whose products take at most this share of the time that those of `of_rows` rows take."""
        return bisect_right(range(of_rows + 1), share * self.seconds(of_rows), key=self.seconds) - 1


def few_rows_blocks(
    blocks: Sequence[Block], pack_weights: PackWeights, pack_memory: int | None = None
) -> tuple[tuple[Block, ...], bool, Products | None]:
    """The blocks with linear layers for products of few rows; whether any is packed, and what was measured, if so.

    pack_weights: False and True as in `packing.py`, where packing is not possible with a warning. "auto" measures for
    about two seconds (`products.SECONDS`, once in a process for a shape, dtype and number of threads) which way is
    fastest for how many rows, at the number of threads that torch has now, and packs where that saves time; on a CPU,
    and not in float16: elsewhere nothing is measured and the layers are used as they are.
    pack_memory: bytes that "auto" may take for packed copies, None is a quarter of the free memory. If not all fit,
    those that save the most are packed and a warning says so.

    Which way is taken is no more reproducible than times are, so results of two runs are equal to rounding only.
    Raises ValueError for a `pack_memory` that cannot be, or without "auto".
    """
    check(PackWeights, pack_weights, "pack_weights")
    if pack_memory is not None:
        check(CountOrNone, pack_memory, "pack_memory")
        if pack_weights != "auto":
            raise ValueError(f"pack_memory is {pack_memory}, but pack_weights is {pack_weights}; it goes with 'auto'")
    if pack_weights != "auto":
        packed = pack_weights and packable(blocks)
        return tuple(few_rows_block(block, packed) for block in blocks), packed, None
    lean = tuple(few_rows_block(block, False) for block in blocks)
    products = [product for block in lean for product in _products(block)]
    weights = [linear.weight for product in products for linear in product.linears]
    kinds = {(weight.device.type, weight.dtype) for weight in weights}
    if not kinds or not kinds <= {("cpu", dtype) for dtype in MEASURED_DTYPES}:
        return lean, False, None
    if kinds != {("cpu", torch.float32)}:
        memory = 0
    elif pack_memory != 0 and packable(blocks):
        memory = free_memory() // 4 if pack_memory is None else pack_memory
    else:
        memory = 0
    found = _fastest(products, memory)
    return lean, found.packed_bytes > 0, found


def _products(block: Block) -> list[FewRowsLinears]:
    parts = [module for part in (block.o_proj, block.mlp) for module in part.modules()]
    found = [module.linears for module in parts if isinstance(module, FewRowsLinear)]
    return [block.qkv_proj, *found] if isinstance(block.qkv_proj, FewRowsLinears) else found


def _fastest(products: list[FewRowsLinears], memory: int) -> Products:
    """Measure the products, pack what gains by it, and set their routes."""
    shapes: dict[Shape, list[FewRowsLinears]] = defaultdict(list)
    for product in products:
        shapes[_shape(product)].append(product)
    samples = {shape: _sample(same, memory, memory // len(shapes)) for shape, same in shapes.items()}
    keys = {
        shape: (shape, torch.get_num_threads(), sample.ways, len(sample.calls)) for shape, sample in samples.items()
    }
    new = [shape for shape in shapes if keys[shape] not in _measured]
    for shape in new:
        for product in shapes[shape][: len(samples[shape].calls)] if "packed" in samples[shape].ways else ():
            product.pack()
    for shape, times in zip(new, measure([samples[shape] for shape in new]), strict=True):
        _measured[keys[shape]] = times

    needed = {shape: sum(product.nbytes for product in same) for shape, same in shapes.items()}
    saved = {shape: _measured[key].saved("packed") for shape, key in keys.items() if "packed" in samples[shape].ways}
    chosen = worth_packing(saved, needed, memory)
    for shape, same in shapes.items():
        times = _measured[keys[shape]]
        routes = times.routes([way for way in times.seconds if way != "packed" or shape in chosen])
        for product in same:
            product.routes = routes
            if shape not in chosen:
                product.unpack()
            elif product.packed is None:
                product.pack()
    packed = sum(needed[shape] for shape in chosen)
    return Products(tuple(product.routes for product in products if product.routes), packed)


def worth_packing(saved: Mapping[Shape, float], needed: Mapping[Shape, int], memory: int) -> set[Shape]:
    """Which shapes of products are packed: those that save at least `LEAST_SAVED` of their time, and if not all of them
    fit into the memory, the ones that save the most; then a warning says so.

    saved: shares of the time, of the shapes that were measured packed. needed: bytes of all products of each shape.
    """
    worth = [shape for shape in sorted(saved, key=lambda shape: -saved[shape]) if saved[shape] >= LEAST_SAVED]
    chosen: set[Shape] = set()
    for shape in worth:
        if sum(needed[one] for one in chosen) + needed[shape] <= memory:
            chosen.add(shape)
    if len(chosen) < len(worth):
        wanted, taken = (sum(needed[shape] for shape in shapes) for shapes in (worth, chosen))
        logger.warning(
            "packed copies of weights would take %.3g GB, and pack_memory is %.3g GB; those that save the most are "
            "packed, %.3g GB", wanted / 1e9, memory / 1e9, taken / 1e9,
        )  # fmt: skip
    return chosen


def _shape(product: FewRowsLinears) -> Shape:
    linear = product.linears[0]
    return linear.weight.shape[1], tuple(product.sizes), linear.bias is None, linear.weight.dtype


def _sample(same: list[FewRowsLinears], memory: int, share: int) -> Sample:
    """Some of the products of one shape, packed if a copy fits into the memory; all in about this share of it."""
    nbytes = same[0].nbytes
    packing = nbytes <= memory
    some = same[: max(1, min(SPREAD, share if packing else SPREAD) // nbytes)]
    ways: tuple[Way, ...] = ("plain", "transposed", "packed") if packing else ("plain", "transposed")
    return Sample([product.by for product in some], ways, some[0].linears[0].weight)


def free_memory() -> int:
    """Bytes of memory that programs can still take; of the whole memory a half, where the system does not tell."""
    told = Path("/proc/meminfo")
    if told.exists():
        lines = dict(line.split(":", 1) for line in told.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
