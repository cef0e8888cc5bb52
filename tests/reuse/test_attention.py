"""Attention and its correction, against torch's own and against computing anew."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fvlm_lib.reuse.attention import CHUNK, attention, corrected


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_attention_is_that_of_torch(causal, groups, scaling):
    """Over more rows than are computed at once, and of some of the rows alone."""
    q, k, v = draw(1, 4, 2 * CHUNK + 3, 8), draw(1, groups, 2 * CHUNK + 3, 8), 2 + draw(1, groups, 2 * CHUNK + 3, 8)
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scaling, enable_gqa=True)
    for rows in (torch.arange(q.shape[2]), torch.tensor([0, 5, CHUNK, q.shape[2] - 1]), torch.tensor([], dtype=int)):
        attended, logsumexp = attention(q[:, :, rows], k, v, scaling, rows if causal else None)
        torch.testing.assert_close(attended, wanted[:, :, rows])
        scores = (q @ k.repeat_interleave(4 // groups, 1).transpose(2, 3)) * (scaling or 8**-0.5)
        if causal:
            scores += torch.full_like(scores, -torch.inf).triu(1)
        torch.testing.assert_close(logsumexp, scores.logsumexp(-1, keepdim=True)[:, :, rows])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_attention_of_heads_whose_channels_lie_apart_and_of_hidden_keys(dtype):
    """As products of few rows leave them, transposed; in float32 too, whose kernel is another one."""
    q, k, v = (draw(2, 4, 8, 12).to(dtype).transpose(2, 3) for _ in range(3))
    hidden = torch.zeros(2, 12, dtype=torch.bool)
    hidden[0, 3:5] = hidden[1, -4:] = True
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=~hidden[:, None, None])
    attended, logsumexp = attention(q, k, v, hidden=hidden)
    torch.testing.assert_close(attended, wanted)
    scores = (q @ k.transpose(2, 3) * 8**-0.5).masked_fill(hidden[:, None, None], -torch.inf)
    torch.testing.assert_close(logsumexp, scores.logsumexp(-1, keepdim=True))


def test_correcting_a_causal_attention_leaves_what_cannot_see_the_change():
    rows = torch.tensor([4, 9])
    q, k, v, new_k, new_v = (draw(1, *shape, 8) for shape in ((4, 12), (2, 12), (2, 12), (2, 2), (2, 2)))
    v, new_v = v.flip(2), new_v.flip(2)
    places = torch.arange(12)
    attended, logsumexp = attention(q, k, v, rows=places)
    both = torch.cat([k[:, :, rows], new_k], 2), torch.cat([v[:, :, rows], new_v], 2)
    k[:, :, rows], v[:, :, rows] = new_k, new_v
    found = corrected(q, *both, attended, logsumexp, hidden=rows > places[:, None])
    wanted = attention(q, k, v, rows=places)
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1])
    assert torch.equal(found[0][:, :, :4], attended[:, :, :4])


def test_correcting_attention_equals_computing_it_anew():
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 12, 8, generator=generator, dtype=torch.float64)
    attended, logsumexp = attention(q, k, v)
    rows = torch.tensor([1, 5])
    new_k, new_v = k.clone(), v.clone()
    new_k[:, :, rows], new_v[:, :, rows] = torch.randn(2, 1, 2, 2, 8, generator=generator, dtype=torch.float64)
    both = torch.cat([k[:, :, rows], new_k[:, :, rows]], 2), torch.cat([v[:, :, rows], new_v[:, :, rows]], 2)
    found = corrected(q, *both, attended, logsumexp)
    wanted = attention(q, new_k, new_v)
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1])


@pytest.mark.parametrize("scale", [300.0, 1e-3])
def test_a_key_that_held_all_attention_or_takes_it_is_computed_anew(scale):
    """In float32 the correction would leave rounding noise, infinity or NaN: these tokens must be reported."""
    q = torch.ones(1, 2, 12, 8)
    k, v = torch.randn(2, 1, 2, 12, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    big, small = torch.full((1, 2, 1, 8), 300.0), torch.zeros(1, 2, 1, 8)
    first, then = (big, small) if scale < 1 else (small, big)
    k[:, :, :1] = first
    attended, logsumexp = attention(q, k, v)
    both = torch.cat([first, then], 2), torch.cat([v[:, :, :1]] * 2, 2)
    assert corrected(q, *both, attended, logsumexp)[2].all()
