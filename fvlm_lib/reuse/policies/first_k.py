"""Compute anew the rows that changed, the first ones of each observation, and all other text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fvlm_lib.schema import CountOrNone, check


@dataclass(frozen=True)
class FirstK:
    """The first `k` rows of each observation and all text that is none, besides the rows that changed.

    The policy of EPIC (Hu et al., ICML 2025) and MPIC (Zhao et al., 2025), which put stored keys and values of a chunk
    or an image at another place of a prompt and compute its first rows anew, since those took up the attention of a
    beginning; there an observation that changed is another chunk, here its changed rows are computed.
    """

    k: int = 32

    def __post_init__(self) -> None:
        check(CountOrNone, self.k, "k")

    def rows(self, given: Tensor, observed: Tensor) -> Tensor:
        """Those given, those not observed, and the first k of each run of observed ones."""
        place = torch.arange(len(observed), device=observed.device)
        begins = observed & ~F.pad(observed[:-1], (1, 0))
        begin = torch.where(begins, place, 0).cummax(dim=0).values
        return given | ~observed | (place - begin < self.k)
