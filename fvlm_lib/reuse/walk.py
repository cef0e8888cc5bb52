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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fvlm_lib.reuse.attention import attention, corrected
from fvlm_lib.reuse.blocks import Block, Rotation, cut, joined
from fvlm_lib.reuse.kept import Journal, KeptRows


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
    additions: Sequence[Tensor] = (),
) -> Tensor:
    """Compute `rows` (n,), rising, anew at every block from the first block's input x (n, D); all others stay.

    rotation, additions: of these rows; see `walk_gated`. Returns the last block's output (n, D).
    """
    for layer, (block, keys, values) in enumerate(zip(blocks, kept.keys, kept.values, strict=True)):
        q, k, v = block.queries_keys_values(x[None], rotation)  # (1, H, n, d)
        journal.write(keys, rows, k)
        journal.write(values, rows, v)
        attended, _ = attention(q, keys, values, block.scaling, rows if causal else None)
        x = block.finish(x, joined(attended)[0])
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
    correct: bool = True,
    additions: Sequence[Tensor] = (),
) -> Walked:
    """Compute the rows that the policy picks of those from `start` on; those before are not looked at.

    x: (n, D) the first block's input, of the n rows from `start` on; given: bool (n,); rotation: of these rows.
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
        inputs, attended_kept, used = gate.inputs[start:], gate.attended[start:], gate.used[start:]
        queries, logsumexp_kept, change = gate.queries[:, :, start:], gate.logsumexp[:, :, start:], gate.change[start:]

        def attend(
            rows: Tensor,
            block: Block = block, queries: Tensor = queries, keys: Tensor = keys, values: Tensor = values,
        ) -> tuple[Tensor, Tensor]:  # fmt: skip
            """(n, H d), (1, H, n, 1)"""
            chosen = queries if len(rows) == len(places) else queries.index_select(2, rows)
            attended, logsumexp = attention(chosen, keys, values, block.scaling, places[rows] if causal else None)
            return joined(attended)[0], logsumexp

        half = functools.partial(Half, layer, len(blocks), given)
        distance = _distance(x, inputs)
        first = policy.first(half(distance, computed, _no_deviation))
        if tolerance is not None:
            owed += int(((distance > tolerance) & ~first).sum())
        rows = first.nonzero().squeeze(1)
        moved = x[rows]
        turned = None if rotation is None else (rotation[0][rows], rotation[1][rows])
        q, k, v = block.queries_keys_values(moved[None], turned)
        journal.write(inputs, rows, moved)
        journal.write(queries, rows, q)
        old_k, old_v = journal.write(keys, places[rows], k), journal.write(values, places[rows], v)
        # beyond a third of the rows, computing attention anew measured faster; half precision would add rounding up
        few = correct and 3 * len(rows) < len(x) and x.dtype in (torch.float32, torch.float64)
        if few:
            attended, logsumexp, lost = corrected(
                queries, torch.cat([old_k, k], dim=-2), torch.cat([old_v, v], dim=-2),
                cut(attended_kept, block.num_heads).transpose(0, 1)[None], logsumexp_kept, block.scaling,
                places[rows] > places[:, None] if causal else None,
            )  # fmt: skip
            attended = joined(attended)[0]
            anew = (first | lost).nonzero().squeeze(1)  # those whose queries are new, and what rounding has eaten
            attended[anew], logsumexp[:, :, anew] = attend(anew)
        else:
            attended, logsumexp = attend(torch.arange(len(x), device=x.device))
        distance = gate.gain * torch.linalg.vector_norm(attended - used, dim=-1)
        distance = torch.nan_to_num(distance / torch.linalg.vector_norm(x, dim=-1), nan=0.0)
        deviation = functools.partial(_deviation, old_k, old_v, k, v, rows, len(x))
        second = policy.second(half(distance, first, deviation))
        if tolerance is not None:
            owed += int(((distance > tolerance) & ~second).sum())
        if few:  # what the rest of the block is computed from is never a correction
            rest = (second & ~first).nonzero().squeeze(1)
            attended[rest], logsumexp[:, :, rest] = attend(rest)
        rows = second.nonzero().squeeze(1)
        journal.write(attended_kept, None, attended)
        journal.write(logsumexp_kept, None, logsumexp)
        attended, moved = attended[rows], x[rows]
        journal.write(used, rows, attended)
        journal.write(change, rows, block.finish(moved, attended) - moved)
        x = x + change
        x = x + additions[layer] if layer < len(additions) else x
        picked.append(torch.stack([first, second]))
        computed = second
    return Walked(x, torch.stack(picked) if picked else given.new_empty(0, 2, len(x)), owed)


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
