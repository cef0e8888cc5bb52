"""Compute anew the rows that changed and the question behind them, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Changed:
    """The rows that changed, and all behind the observation (image or screen text).

    What is left as it was has read the old observation: later rows have noted it (*Models take notes at prefill*,
    arXiv 2606.17107).
    """

    def rows(self, given: Tensor, observed: Tensor) -> Tensor:
        """Those given, and those behind the last row that is observed."""
        return given | ~observed.flip(0).cummax(dim=0).values.flip(0)
