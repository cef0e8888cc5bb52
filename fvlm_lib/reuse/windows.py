"""Windows: a partition of rows such that a row attends only to those of its own window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Windows:
    """W windows of at most S rows, of N rows.

    rows: (W, S) int64, the rows of each window, padded with -1. window: (N,) int64, the window of each row.
    """

    rows: Tensor
    window: Tensor


def consecutive_windows(bounds: Tensor) -> Windows:
    """Windows of consecutive rows, from bounds (W + 1,), rising from 0: window i has the rows bounds[i] to
    bounds[i + 1] - 1."""
    lengths = bounds.long().diff()
    rows = torch.arange(int(lengths.sum()), device=bounds.device)
    padded = pad_sequence(list(rows.split(lengths.tolist())), batch_first=True, padding_value=-1)
    return Windows(padded, torch.arange(len(lengths), device=bounds.device).repeat_interleave(lengths))
