"""Attention of some rows over kept keys and values, and its correction where a few of those were replaced.

Letters as in `blocks.py`. A causal stack's rows see themselves and the rows before them: `rows`, the places of the
queries in the sequence, in rising order, say so; None lets every row see all.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 128
"""Of a causal stack, rows whose attention is computed at once, so that what none of them sees is not computed."""

MOST_SCORES = 2**22
"""Scores that are written out at once, of all heads: what many rows see of many would take gigabytes, and four times as
many were a third slower, as they leave the processor's cache between one step and the next."""


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float | None = None,
    rows: Tensor | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention (B, H, n, d) of queries (B, H, n, d) over keys and values (B, G, N, d), and its log-normaliser
    (B, H, n, 1). hidden: bool (B, N), keys that no query sees, where `rows` is None.

    By torch's fused kernel on a CPU, written out elsewhere, of a causal stack and of heads that share their keys: the
    public `scaled_dot_product_attention` does not return the normaliser. Of half precision it is computed in float32,
    as fused kernels do.
    """
    if queries.dtype in (torch.float16, torch.bfloat16):
        single = attention(queries.float(), keys.float(), values.float(), scaling, rows, hidden)
        return single[0].to(queries), single[1].to(queries)
    if not queries.shape[2]:
        return torch.empty_like(queries), queries.new_empty(*queries.shape[:3], 1)
    if rows is None and queries.is_cpu and queries.shape[1] == keys.shape[1]:
        mask = None  # what is added to the scores, (B, 1, 1, N)
        if hidden is not None:
            mask = queries.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[:, None, None]
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        # which takes a head's channels to lie together, and reads what is not there if they do not
        q, k, v = (part if part.stride(-1) == 1 else part.contiguous() for part in (queries, keys, values))
        attended, logsumexp = fused(q, k, v, attn_mask=mask, scale=scaling)
        return attended, logsumexp[..., None]
    parts = []
    if rows is None:
        unseen = None if hidden is None else hidden[:, None, None]
        size = rows_at_once(queries, keys.shape[2])
        parts = [_attention(some, keys, values, scaling, unseen) for some in queries.split(size, dim=2)]
    else:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            seen = int(chunk[-1]) + 1
            later = torch.arange(seen, device=rows.device) > chunk[:, None]  # (n, seen)
            some = queries[:, :, start : start + CHUNK]
            parts.append(_attention(some, keys[:, :, :seen], values[:, :, :seen], scaling, later))
    if len(parts) == 1:
        return parts[0]
    attended, logsumexp = zip(*parts, strict=True)
    return torch.cat(attended, dim=2), torch.cat(logsumexp, dim=2)


def _attention(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float | None, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    scores = _scores(queries, keys, scaling)  # (B, H, n, N)
    if hidden is not None:
        scores.masked_fill_(hidden, -torch.inf)
    highest = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    return _weighted(weights, values).div_(total), total.log_().add_(highest)


def corrected(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attended: Tensor,
    logsumexp: Tensor,
    scaling: float | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of queries (1, H, N, d) after n keys and values were replaced, from that before.

    keys, values: (1, G, 2 n, d), the n old ones, then the new. hidden: bool (N, n), which of the n a row does not see.
    What the old ones gave is subtracted, what the new ones give is added, both in units of the old normaliser: 4 n / N
    of the arithmetic of computing it anew. Also returns the new log-normaliser, and for which rows (N,) the normaliser
    of any head shrank to less than a quarter or grew more than fourfold: there rounding may have eaten the result.
    """
    size = rows_at_once(queries, keys.shape[2])
    if size < queries.shape[2]:
        parts = []
        for start in range(0, queries.shape[2], size):
            end = start + size
            q, before, normaliser = (part[:, :, start:end] for part in (queries, attended, logsumexp))
            unseen = None if hidden is None else hidden[start:end]
            parts.append(corrected(q, keys, values, before, normaliser, scaling, unseen))
        return (
            torch.cat([part[0] for part in parts], dim=2),
            torch.cat([part[1] for part in parts], dim=2),
            torch.cat([part[2] for part in parts]),
        )
    weights = _scores(queries, keys, scaling).sub_(logsumexp).exp_()  # (1, H, N, 2 n)
    n = keys.shape[2] // 2
    weights[..., :n].neg_()
    if hidden is not None:
        weights.unflatten(-1, (2, n)).masked_fill_(hidden[:, None], 0.0)
    total = weights.sum(dim=-1, keepdim=True).add_(1)  # (1, H, N, 1)
    lost = ~((total > 0.25) & (total < 4)).all(dim=1).view(-1)  # NaN counts as lost
    return _weighted(weights, values).add_(attended).div_(total), total.log().add_(logsumexp), lost


def rows_at_once(queries: Tensor, seen: int) -> int:
    """How many of the queries (B, H, n, d) are computed at once, where each sees so many keys."""
    return max(1, MOST_SCORES // max(1, queries.shape[0] * queries.shape[1] * seen))


def _scores(queries: Tensor, keys: Tensor, scaling: float | None) -> Tensor:
    """(B, H, n, N); heads that share their keys are multiplied as one, with no copy of the keys."""
    batch, heads, n, channels = queries.shape
    groups = keys.shape[1]
    queries = queries * (queries.shape[-1] ** -0.5 if scaling is None else scaling)
    if groups == heads:
        return queries @ keys.transpose(-2, -1)
    folded = queries.reshape(batch, groups, heads // groups * n, channels)
    return (folded @ keys.transpose(-2, -1)).view(batch, heads, n, keys.shape[2])


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """(B, H, n, d)"""
    batch, heads, n, seen = weights.shape
    groups = values.shape[1]
    if groups == heads:
        return weights @ values
    folded = weights.reshape(batch, groups, heads // groups * n, seen)
    return (folded @ values).view(batch, heads, n, values.shape[-1])
