"""The rows that are kept of a stack of blocks, and a journal by which writes to them are undone.

Letters as in `blocks.py`; L blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fvlm_lib.reuse.blocks import Block


@dataclass(frozen=True)
class Gate:
    """What a gated update keeps of one block, for every row.

    inputs: (N, D) the block's input for which its query, key and value were computed.
    queries: (1, H, N, d).
    attended, logsumexp: (N, H d), (1, H, N, 1) attention over the present keys and values, and its normaliser.
    used: (N, H d) the attention result for which the rest of the block was computed.
    change: (N, D) the block's output minus its input, as last computed.
    gain: see `Block.gain`.
    """

    inputs: Tensor
    queries: Tensor
    attended: Tensor
    logsumexp: Tensor
    used: Tensor
    change: Tensor
    gain: float

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class KeptRows:
    """Keys and values (1, G, N, d) of every block, heads contiguous, which attention of few queries reads fastest;
    `gates`, one a block, for updates by a policy that gates, else empty.

    Memory: L · N · 2 G d elements, and L · N · (2 D + 3 H d + H) more with gates.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    gates: tuple[Gate, ...] = ()

    def tensors(self) -> list[Tensor]:
        """All tensors that are kept."""
        return [*self.keys, *self.values, *(tensor for gate in self.gates for tensor in gate.tensors().values())]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that are kept."""
        return sum(tensor.nbytes for tensor in self.tensors())


def empty_rows(blocks: Sequence[Block], x: Tensor, gated: bool) -> KeptRows:
    """Room for rows like the first block's input x (N, D), for a walk that computes all of them."""
    keys, values, gates = [], [], []
    for block in blocks:
        rows, width = x.shape
        attended: int = block.o_proj.weight.shape[1]  # type: ignore[union-attr, assignment, index]  # H d
        channels, groups = attended // block.num_heads, block.num_key_value_heads or block.num_heads
        keys.append(x.new_empty(1, groups, rows, channels))
        values.append(x.new_empty(1, groups, rows, channels))
        if gated:
            gates.append(
                Gate(
                    inputs=x.new_empty(rows, width),
                    queries=x.new_empty(1, block.num_heads, rows, channels),
                    attended=x.new_empty(rows, attended),
                    logsumexp=x.new_empty(1, block.num_heads, rows, 1),
                    used=x.new_empty(rows, attended),
                    change=x.new_empty(rows, width),
                    gain=block.gain(),
                )
            )
    return KeptRows(tuple(keys), tuple(values), tuple(gates))


class Journal:
    """Writes rows, (..., rows, columns), into tensors so that they can be undone; not those of new tensors, whose old
    rows are nobody's."""

    def __init__(self, new: bool = False) -> None:
        self.new = new
        self.written: list[tuple[Tensor, Tensor | None, Tensor]] = []

    def write(self, tensor: Tensor, rows: Tensor | None, new: Tensor) -> Tensor:
        """tensor[..., rows, :] = new, all rows for None; returns the old rows, and of a new tensor those written."""
        if rows is not None and len(rows) == tensor.shape[-2]:  # all, and copies of wholes are faster
            rows = None
        if self.new:
            _set(tensor, rows, new)
            return new
        old = tensor.clone() if rows is None else tensor.index_select(-2, rows)
        self.written.append((tensor, rows, old))
        _set(tensor, rows, new)
        return old

    def undo(self) -> None:
        """Bring back what was there before the first write."""
        for tensor, rows, old in reversed(self.written):
            _set(tensor, rows, old)


def _set(tensor: Tensor, rows: Tensor | None, new: Tensor) -> None:
    if rows is None:
        tensor.copy_(new)
    else:
        tensor.index_copy_(-2, rows, new)


def moved_rows(kept: KeptRows, source: Tensor) -> KeptRows:
    """The rows in another order: row i of the result is row source[i] (int64, (N new,)), nought where that is -1."""
    found = source >= 0
    places = source.clamp(min=0)

    def take(tensor: Tensor) -> Tensor:
        taken = tensor.index_select(-2, places)
        return taken.masked_fill_(~found[:, None], 0.0)

    def of(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
        return tuple(take(tensor) for tensor in tensors)

    gates = tuple(Gate(**{name: take(t) for name, t in gate.tensors().items()}, gain=gate.gain) for gate in kept.gates)
    return KeptRows(of(kept.keys), of(kept.values), gates)
