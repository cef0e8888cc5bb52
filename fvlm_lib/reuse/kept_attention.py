"""One block's attention of all rows, kept from walk to walk, and brought up to date for keys and values that are new.

Of full attention it is corrected where few are new, and computed anew where many are; of attention in windows it is
computed anew in those windows that have any, and stays in the others. Letters as in `blocks.py`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fvlm_lib.reuse.attention import attention, corrected
from fvlm_lib.reuse.blocks import Block, cut, joined
from fvlm_lib.reuse.kept import Gate, Journal
from fvlm_lib.reuse.windows import Windows, window_attention

KeysValues = tuple[Tensor, Tensor]


class KeptAttention(Protocol):
    """Of one block in one walk."""

    def update(self, rows: Tensor, old: KeysValues, new: KeysValues, journal: Journal) -> Tensor:
        """The kept attention (n, H d), up to date with the present keys and values and the queries of `rows`.

        rows: (m,) those whose query, key and value were computed; old, new: (1, G, m, d) their keys and values.
        """
        ...

    def settle(self, rows: Tensor, journal: Journal) -> None:
        """Make sure that what is kept of `rows` is no correction."""
        ...


class FullAttention:
    """Of rows that see all, or in a causal stack themselves and the rows before them.

    places: (n,), consecutive, of the walk's rows among those that are kept. correct: whether the kept attention is that
    over the kept keys.
    """

    def __init__(
        self, block: Block, gate: Gate, keys: Tensor, values: Tensor, places: Tensor, causal: bool, correct: bool
    ) -> None:
        start = len(gate.attended) - len(places)
        self.block, self.keys, self.values = block, keys, values
        self.places, self.causal, self.correct = places, causal, correct
        self.queries, self.logsumexp = gate.queries[:, :, start:], gate.logsumexp[:, :, start:]
        self.attended = gate.attended[start:]
        self.corrected = False

    def update(self, rows: Tensor, old: KeysValues, new: KeysValues, journal: Journal) -> Tensor:
        """As in `KeptAttention`."""
        count, dtype = len(self.places), self.queries.dtype
        # beyond a third of the rows, computing attention anew measured faster; half precision would add rounding up
        self.corrected = self.correct and 3 * len(rows) < count and dtype in (torch.float32, torch.float64)
        if self.corrected:
            k, v = (torch.cat(states, dim=-2) for states in zip(old, new, strict=True))
            attended, logsumexp, lost = corrected(
                self.queries, k, v,
                cut(self.attended, self.block.num_heads).transpose(0, 1)[None], self.logsumexp, self.block.scaling,
                self.places[rows] > self.places[:, None] if self.causal else None,
            )  # fmt: skip
            attended = joined(attended)[0]
            lost[rows] = True  # whose queries are new, besides what rounding has eaten
            anew = lost.nonzero().squeeze(1)
            attended[anew], logsumexp[:, :, anew] = self._anew(anew)
        else:
            attended, logsumexp = self._anew(torch.arange(count, device=self.places.device))
        journal.write(self.attended, None, attended)
        journal.write(self.logsumexp, None, logsumexp)
        return self.attended

    def settle(self, rows: Tensor, journal: Journal) -> None:
        """As in `KeptAttention`."""
        if self.corrected:
            attended, logsumexp = self._anew(rows)
            journal.write(self.attended, rows, attended)
            journal.write(self.logsumexp, rows, logsumexp)

    def _anew(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(m, H d), (1, H, m, 1)"""
        queries = self.queries if len(rows) == len(self.places) else self.queries.index_select(2, rows)
        seen = self.places[rows] if self.causal else None
        attended, logsumexp = attention(queries, self.keys, self.values, self.block.scaling, seen)
        return joined(attended)[0], logsumexp


class WindowAttention:
    """Of rows that see those of their own window."""

    def __init__(self, block: Block, gate: Gate, keys: Tensor, values: Tensor, windows: Windows) -> None:
        self.block, self.gate, self.keys, self.values, self.windows = block, gate, keys, values, windows

    def update(self, rows: Tensor, old: KeysValues, new: KeysValues, journal: Journal) -> Tensor:
        """As in `KeptAttention`."""
        reached = self.windows.neighbours(rows)
        queries = self.gate.queries.index_select(2, reached)
        attended, logsumexp = window_attention(
            queries, self.keys, self.values, self.windows, reached, self.block.scaling
        )
        journal.write(self.gate.attended, reached, joined(attended)[0])
        journal.write(self.gate.logsumexp, reached, logsumexp)
        return self.gate.attended

    def settle(self, rows: Tensor, journal: Journal) -> None:
        """Nothing to do: it is never corrected."""
