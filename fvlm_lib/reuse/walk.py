"""A walk through a stack of blocks that computes rows anew, and leaves the others as they were kept.

Which rows: the same at every layer (`walk_rows`), or those that a policy picks at either half of a block, by how far
their input there has moved since they were last computed (`walk_gated`; after Eventful Transformers, Dutson, Li and
Gupta, ICCV 2023). A block's first half makes the query, key and value of a row from the residual stream x; the row has
moved by |x - inputs| / |inputs|. The second half, output projection and MLP, has the attention's result a besides; the
row has moved by gain |a - used| / |x|, an estimate of how far that takes x. Rows that are not computed pass x on with
the block's last change added, so that what moved in x is never lost, and since both are held against what was last
computed, slow drift adds up until it is seen.

Letters as in `blocks.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fvlm_lib.reuse.attention import attention
from fvlm_lib.reuse.blocks import Block, Rotation, joined
from fvlm_lib.reuse.kept import Journal, KeptRows
from fvlm_lib.reuse.kept_attention import FullAttention, KeptAttention, WindowAttention
from fvlm_lib.reuse.windows import Windows, window_attention


@dataclass(frozen=True)
class Half:
    """What a policy is told at one half of a block, of n rows.

    layer: of the block, from 0, of num_layers. given: bool (n,), the rows that changed before the first block, and
    those that must be right. moved: (n,) how far the half's input has moved, relative L2; infinite for a row that was
    never computed. computed: bool (n,), the rows that the half before computed; None at the very first.
    deviation: of a second half, the L2 distance (n,) of the keys and values that the first half made from those that
    they replaced, 0 where it made none.
    """

    layer: int
    num_layers: int
    given: Tensor
    moved: Tensor
    computed: Tensor | None
    deviation: Callable[[], Tensor]


class GatingPolicy(Protocol):
    """Picks rows at either half of every block: bool (n,). Rows that moved by more than its attribute `tolerance`, if
    it has one, and that it does not pick, are counted as owed."""

    def first(self, half: Half) -> Tensor:
        """The rows whose query, key and value are computed."""
        ...

    def second(self, half: Half) -> Tensor:
        """The rows whose output is computed."""
        ...


@dataclass(frozen=True)
class Walked:
    """x: (n, D) the last block's output. computed: bool (L, 2, n), which rows either half of every block computed.
    owed: how many rows, over all halves, had moved by more than the policy's tolerance and were not computed."""

    x: Tensor
    computed: Tensor
    owed: int


def walk_rows(
    blocks: Sequence[Block],
    kept: KeptRows,
    x: Tensor,
    rows: Tensor,
    journal: Journal,
    *,
    causal: bool = False,
    rotation: Rotation | None = None,
    windows: Sequence[Windows | None] = (),
    taps: Mapping[int, Tensor] | None = None,
    additions: Sequence[Tensor] = (),
) -> Tensor:
    """Compute `rows` (n,), rising, anew at every block from the first block's input x (n, D); all others stay.

    rotation, additions: of these rows. windows, taps, additions: see `walk_gated`. Returns the last block's output
    (n, D).
    """
    for layer, (block, keys, values) in enumerate(zip(blocks, kept.keys, kept.values, strict=True)):
        q, k, v = block.queries_keys_values(x[None], rotation)  # (1, H, n, d)
        journal.write(keys, rows, k)
        journal.write(values, rows, v)
        if (inside := windows[layer] if windows else None) is None:
            attended, _ = attention(q, keys, values, block.scaling, rows if causal else None)
        else:
            attended, _ = window_attention(q, keys, values, inside, rows, block.scaling)
        x = block.finish(x, joined(attended)[0])
        if taps and layer in taps:
            journal.write(taps[layer], rows, x)
        x = x + additions[layer] if layer < len(additions) else x
    return x


def walk_gated(
    blocks: Sequence[Block],
    kept: KeptRows,
    x: Tensor,
    given: Tensor,
    policy: GatingPolicy,
    journal: Journal,
    *,
    start: int = 0,
    causal: bool = False,
    rotation: Rotation | None = None,
    windows: Sequence[Windows | None] = (),
    taps: Mapping[int, Tensor] | None = None,
    correct: bool = True,
    additions: Sequence[Tensor] = (),
) -> Walked:
    """Compute the rows that the policy picks of those from `start` on; those before are not looked at.

    x: (n, D) the first block's input, of the n rows from `start` on; given: bool (n,); rotation: of these rows.
    windows: a block's, in which alone its rows see each other, None where they see all; () for no windows at all, and
    with a `start` or `causal` there may be none.
    taps: tensors (n, D) by block, into which its output is written.
    additions: (n, D) each, of these rows, added to the outputs of the first blocks.
    correct: whether the kept attention is that over the kept keys, so that it can be corrected for the few that are
    replaced; if not, it is computed anew for all n.
    """
    picked = []
    computed: Tensor | None = None
    tolerance, owed = getattr(policy, "tolerance", None), 0
    places = torch.arange(start, start + len(x), device=x.device)
    for layer, block in enumerate(blocks):
        gate = kept.gates[layer]
        keys, values = kept.keys[layer], kept.values[layer]
        inputs, used, change = gate.inputs[start:], gate.used[start:], gate.change[start:]
        looked: KeptAttention
        if (inside := windows[layer] if windows else None) is None:
            looked = FullAttention(block, gate, keys, values, places, causal, correct)
        else:
            looked = WindowAttention(block, gate, keys, values, inside)
        half = functools.partial(Half, layer, len(blocks), given)
        distance = _distance(x, inputs)
        first = policy.first(half(distance, computed, _no_deviation))
        if tolerance is not None:
            owed += int(((distance > tolerance) & ~first).sum())
        rows = first.nonzero().squeeze(1)
        moved = _rows(x, rows)
        turned = None if rotation is None else (_rows(rotation[0], rows), _rows(rotation[1], rows))
        q, k, v = block.queries_keys_values(moved[None], turned)
        journal.write(inputs, rows, moved)
        journal.write(gate.queries[:, :, start:], rows, q)
        old_k, old_v = journal.write(keys, places[rows], k), journal.write(values, places[rows], v)
        attended = looked.update(rows, (old_k, old_v), (k, v), journal)
        distance = gate.gain * torch.linalg.vector_norm(attended - used, dim=-1)
        distance = torch.nan_to_num(distance / torch.linalg.vector_norm(x, dim=-1), nan=0.0)
        deviation = functools.partial(_deviation, old_k, old_v, k, v, rows, len(x))
        second = policy.second(half(distance, first, deviation))
        if tolerance is not None:
            owed += int(((distance > tolerance) & ~second).sum())
        looked.settle((second & ~first).nonzero().squeeze(1), journal)
        rows = second.nonzero().squeeze(1)
        settled, moved = _rows(attended, rows), _rows(x, rows)
        journal.write(used, rows, settled)
        journal.write(change, rows, block.finish(moved, settled) - moved)
        x = x + change
        if taps and layer in taps:
            journal.write(taps[layer], None, x)
        x = x + additions[layer] if layer < len(additions) else x
        picked.append(torch.stack([first, second]))
        computed = second
    return Walked(x, torch.stack(picked) if picked else given.new_empty(0, 2, len(x)), owed)


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (m,) of x (n, ...), rising; x itself where they are all, with no copy."""
    return x if len(rows) == len(x) else x[rows]


def _distance(x: Tensor, reference: Tensor) -> Tensor:
    """How far rows of x (n, D) are from their reference, relative L2 (n,); two of length 0 are the same."""
    distance = torch.linalg.vector_norm(x - reference, dim=-1) / torch.linalg.vector_norm(reference, dim=-1)
    return torch.nan_to_num(distance, nan=0.0, posinf=torch.inf)


def _no_deviation() -> Tensor:
    raise ValueError("keys and values are compared at a block's second half only, once they are made")


def _deviation(old_k: Tensor, old_v: Tensor, k: Tensor, v: Tensor, rows: Tensor, count: int) -> Tensor:
    """(count,) from keys and values (1, G, n, d) of `rows` (n,)."""
    squares = sum((new - old).square().sum(dim=(0, 1, 3)) for new, old in ((k, old_k), (v, old_v)))
    found = k.new_zeros(count)
    found[rows] = squares.sqrt()  # type: ignore[union-attr]
    return found
