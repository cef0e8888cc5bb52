"""Which rows of a new prompt were rows of the old one: token ids aligned, as of a text that scrolls.

Of what is kept of those rows this module knows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor


def align_ids(old: Sequence[int], new: Sequence[int]) -> Tensor:
    """For each new token the old one that it is, int64 (N new,), -1 for a token that is new; rising but for those.

    By difflib's longest matching blocks. What is alike at the beginning and the end is taken first, which is most of a
    prompt and quick.
    """
    source = torch.full((len(new),), -1, dtype=torch.long)
    begin, end = _alike(old, new)
    source[:begin] = torch.arange(begin)
    source[len(new) - end :] = torch.arange(len(old) - end, len(old))
    matcher = SequenceMatcher(None, old[begin : len(old) - end], new[begin : len(new) - end], autojunk=False)
    for a, b, size in matcher.get_matching_blocks():
        source[begin + b : begin + b + size] = torch.arange(begin + a, begin + a + size)
    return source


def align_rows(old: Tensor, new: Tensor) -> Tensor:
    """As `align_ids`, of embeddings (N old, D) and (N new, D). As many rows as before are the rows in their order; of
    more or fewer, those are found that are alike at the beginning and at the end."""
    if len(old) == len(new):
        return torch.arange(len(new))
    least = min(len(old), len(new))
    begin = int((old[:least] == new[:least]).all(dim=1).long().cumprod(dim=0).sum())
    same = (old.flip(0)[:least] == new.flip(0)[:least]).all(dim=1)
    end = min(int(same.long().cumprod(dim=0).sum()), least - begin)
    source = torch.full((len(new),), -1, dtype=torch.long)
    source[:begin] = torch.arange(begin)
    source[len(new) - end :] = torch.arange(len(old) - end, len(old))
    return source


def _alike(old: Sequence[int], new: Sequence[int]) -> tuple[int, int]:
    """How many items are alike at the beginning, and of the rest at the end."""
    least = min(len(old), len(new))
    begin = next((i for i in range(least) if old[i] != new[i]), least)
    least -= begin
    end = next((i for i in range(least) if old[-1 - i] != new[-1 - i]), least)
    return begin, end
