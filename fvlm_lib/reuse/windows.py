"""Windows: a partition of rows such that a row attends only to those of its own window.

As in Liu et al., *Swin Transformer* (ICCV 2021), without its shift. Letters as in `blocks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fvlm_lib.reuse.attention import attention


@dataclass(frozen=True)
class Windows:
    """W windows of at most S consecutive rows, of N rows.

    rows: (W, S) int64, the rows of each window, padded with -1. window, place: (N,) int64, of each row its window and
    its place there.
    """

    rows: Tensor
    window: Tensor
    place: Tensor

    def neighbours(self, rows: Tensor) -> Tensor:
        """All rows (m,), rising, of the windows in which any of these rows (n,) is."""
        found = self.rows[self.window[rows].unique()]
        return found[found >= 0]


def consecutive_windows(bounds: Tensor) -> Windows:
    """Windows of consecutive rows, from bounds (W + 1,), rising from 0: window i has the rows bounds[i] to
    bounds[i + 1] - 1."""
    bounds = bounds.long()
    lengths = bounds.diff()
    rows = torch.arange(int(bounds[-1]), device=bounds.device)
    padded = pad_sequence(list(rows.split(lengths.tolist())), batch_first=True, padding_value=-1)
    window = torch.arange(len(lengths), device=bounds.device).repeat_interleave(lengths)
    return Windows(padded, window, rows - bounds[window])


def window_attention(
    queries: Tensor, keys: Tensor, values: Tensor, windows: Windows, rows: Tensor, scaling: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention (1, H, n, d) of queries (1, H, n, d), those of `rows` (n,), over what they see of the keys and values
    (1, G, N, d) of all rows, and its log-normaliser (1, H, n, 1).

    The windows that have any of the rows are a batch, padded to the largest.
    """
    chosen, window = windows.window[rows].unique(return_inverse=True)  # (W,), (n,)
    place, seen = windows.place[rows], windows.rows[chosen]  # (n,), (W, S)
    padded = queries.new_zeros(*seen.shape, queries.shape[1], queries.shape[3])  # (W, S, H, d)
    padded[window, place] = queries[0].transpose(0, 1)
    k, v = (states[0][:, seen.clamp(min=0)].transpose(0, 1) for states in (keys, values))  # (W, G, S, d)
    found = attention(padded.transpose(1, 2), k, v, scaling, hidden=seen < 0)  # (W, H, S, d), (W, H, S, 1)
    attended, logsumexp = (part.transpose(1, 2)[window, place].transpose(0, 1)[None] for part in found)
    return attended, logsumexp
