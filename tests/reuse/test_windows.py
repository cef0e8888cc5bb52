"""Attention in windows, against torch's own with a mask, and the parts of a layer that makes several things at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fvlm_lib.reuse import attention as attention_module
from fvlm_lib.reuse.attention import attention, corrected
from fvlm_lib.reuse.blocks import linear_parts, rotate
from fvlm_lib.reuse.windows import consecutive_windows, window_attention

BOUNDS = torch.tensor([0, 4, 6, 11, 12], dtype=torch.int32)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_windows_of_consecutive_rows():
    windows = consecutive_windows(BOUNDS)
    assert windows.rows.tolist() == [
        [0, 1, 2, 3, -1], [4, 5, -1, -1, -1], [6, 7, 8, 9, 10], [11, -1, -1, -1, -1],
    ]  # fmt: skip
    assert windows.window.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3]
    assert windows.place.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4, 0]
    assert windows.neighbours(torch.tensor([5, 11])).tolist() == [4, 5, 11]
    assert windows.neighbours(torch.tensor([], dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_rows_see_their_own_window(groups, scaling):
    windows = consecutive_windows(BOUNDS)
    q, k, v = draw(1, 4, 12, 8), draw(1, groups, 12, 8), 2 + draw(1, groups, 12, 8)
    seen = windows.window[:, None] == windows.window
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling, enable_gqa=True)
    scores = (q @ k.repeat_interleave(4 // groups, 1).transpose(2, 3)) * (scaling or 8**-0.5)
    normaliser = scores.masked_fill(~seen, -torch.inf).logsumexp(-1, keepdim=True)
    for rows in ([*range(12)], [1, 5, 6, 10], [11], []):
        rows = torch.tensor(rows, dtype=torch.int64)
        attended, logsumexp = window_attention(q[:, :, rows], k, v, windows, rows, scaling)
        torch.testing.assert_close(attended, wanted[:, :, rows])
        torch.testing.assert_close(logsumexp, normaliser[:, :, rows])


def test_half_precision_is_computed_in_float32():
    windows, rows = consecutive_windows(BOUNDS), torch.arange(12)
    q, k, v = (draw(1, 2, 12, 8).bfloat16() for _ in range(3))
    found, _ = window_attention(q, k, v, windows, rows)
    wanted, _ = window_attention(q.float(), k.float(), v.float(), windows, rows)
    assert torch.equal(found, wanted.bfloat16())


def test_many_rows_are_computed_some_at_a_time(monkeypatch):
    q, k, v, new_k, new_v = (draw(1, *shape, 8) for shape in ((4, 12), (2, 12), (2, 12), (2, 3), (2, 3)))
    rows = torch.tensor([2, 3, 9])
    replaced = k.index_copy(2, rows, new_k), v.index_copy(2, rows, new_v)
    both = torch.cat([k[:, :, rows], new_k], 2), torch.cat([v[:, :, rows], new_v], 2)
    found = []
    for most in (10**6, 4 * 12 * 5):  # all, and 5 or 10 rows
        monkeypatch.setattr(attention_module, "MOST_SCORES", most)
        kept = attention(q, k, v)
        found.append((*kept, *corrected(q, *both, *kept), *attention(q, *replaced)))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts)
    torch.testing.assert_close(found[0][2], found[0][5])


def test_parts_of_a_layer_share_its_weights():
    whole = nn.Linear(6, 12)
    parts = linear_parts(whole, 3)
    x = torch.randn(5, 6)
    torch.testing.assert_close(torch.cat([part(x) for part in parts], -1), whole(x))
    whole.double()
    with torch.no_grad():
        whole.weight.mul_(2)
    torch.testing.assert_close(torch.cat([part(x.double()) for part in parts], -1), whole(x.double()))
    assert [part.weight.data_ptr() - whole.weight.data_ptr() for part in parts] == [0, 4 * 6 * 8, 8 * 6 * 8]
    parts[1](x.double()).sum().backward()
    assert whole.weight.grad[4:8].ne(0).all()
    assert not whole.weight.grad[:4].any()
    assert all(part.bias is None for part in linear_parts(nn.Linear(6, 12, bias=False), 3))


def test_rotation_is_in_the_precision_of_the_angles():
    angles = draw(7, 4).float().repeat(1, 2)
    states = draw(1, 2, 7, 8).bfloat16()
    found = rotate(states, (angles.cos(), angles.sin()))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rotate(states.float(), (angles.cos(), angles.sin())).bfloat16())
