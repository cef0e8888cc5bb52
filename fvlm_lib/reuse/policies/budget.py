"""Compute anew at most so many rows a layer, those that moved most; the rest when their turn comes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fvlm_lib.reuse.walk import Half
from fvlm_lib.schema import Count, Tolerance, check


@dataclass(frozen=True)
class Budget:
    """At either half of a block, at most `max_rows` rows are computed: of those whose input has moved by more than
    `tolerance` (relative L2), the ones that moved most. What waits keeps its movement, and is what is still owed. The
    second half begins with the rows that the first computed, for their input moved, whatever attention gave them.

    So a frame's time is bounded, however much changes. The top r policy of Eventful Transformers (Dutson, Li and Gupta,
    ICCV 2023), with a tolerance below which nothing is owed. Rows that are given have no precedence; those that were
    never computed, of new tokens, do not wait.
    """

    max_rows: int = 64
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        check(Count, self.max_rows, "max_rows")
        check(Tolerance, self.tolerance, "tolerance")

    def first(self, half: Half) -> Tensor:
        """The rows whose query, key and value are computed."""
        return self._most(half.moved)

    def second(self, half: Half) -> Tensor:
        """The rows whose output is computed."""
        assert half.computed is not None
        return self._most(half.moved.masked_fill(half.computed, torch.inf))

    def _most(self, moved: Tensor) -> Tensor:
        above = moved > self.tolerance
        if int(above.sum()) <= self.max_rows:
            return above
        chosen = moved.isinf()
        count = max(self.max_rows - int(chosen.sum()), 0)
        chosen[moved.masked_fill(chosen, 0.0).topk(count).indices] = True
        return chosen
