"""Compute anew the rows whose keys and values deviate most from the kept ones, chosen layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fvlm_lib.reuse.walk import Half
from fvlm_lib.schema import Share, check

SPREAD = 0.25
"""By how much the first layer's share is above the mean one, and the last layer's below it."""


@dataclass(frozen=True)
class Deviation:
    """The policy of CacheBlend (Yao et al., EuroSys 2025, section 4.3), for keys and values of the frame before.

    At the first layer keys and values are made of all rows; those that deviate most from the kept ones (L2 distance)
    are computed on. At each layer after it they are made of the rows that the layer before computed, and of these, too,
    the ones that deviate most are computed on: a share of all rows that falls from a little above `share` to a little
    below. The paper says so without numbers; here it falls linearly by a quarter to either side. Rows that are given,
    and in a language model the last one, are always computed, and count.
    """

    share: float = 0.15

    def __post_init__(self) -> None:
        check(Share, self.share, "share")

    def first(self, half: Half) -> Tensor:
        """The rows whose query, key and value are computed."""
        return torch.ones_like(half.given) if half.computed is None else half.computed

    def second(self, half: Half) -> Tensor:
        """The rows whose output is computed."""
        place = half.layer / max(half.num_layers - 1, 1)  # 0 to 1
        count = math.ceil(self.share * (1 + SPREAD * (1 - 2 * place)) * len(half.given))
        deviation = half.deviation().masked_fill(half.given, torch.inf)
        chosen = half.given.clone()
        chosen[deviation.topk(min(count, len(deviation))).indices] = True
        return chosen if half.computed is None else chosen & half.computed
