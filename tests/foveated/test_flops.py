"""FLOPs equal their closed forms."""

import pytest
import torch

from fvlm_lib.foveated.flops import count_flops


class TestCountFlops:
    """Closed forms; a multiply-add is two."""

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> None:
        torch.set_num_threads(1)

    def test_linear_forward_and_backward(self) -> None:
        layer, x = torch.nn.Linear(5, 7), torch.randn(3, 5, requires_grad=True)
        forward = 2 * 3 * 5 * 7
        assert count_flops(lambda: layer(x)) == forward
        assert count_flops(lambda: layer(x).sum().backward()) == 3 * forward  # grads of x and of the weight
        with torch.inference_mode():
            assert count_flops(lambda: layer(torch.randn(2, 3, 5))) == 2 * forward
        assert count_flops(lambda: None) == 0

    def test_vectors_are_not_free(self) -> None:
        matrix, vector = torch.randn(4, 5), torch.randn(5)
        assert count_flops(lambda: matrix @ vector) == 2 * 4 * 5
        assert count_flops(lambda: torch.addmv(torch.randn(4), matrix, vector)) == 2 * 4 * 5
        assert count_flops(lambda: vector @ vector) == 2 * 5
        assert count_flops(lambda: torch.nn.Linear(5, 7)(vector)) == 2 * 5 * 7

    def test_patch_embedding(self) -> None:
        embed = torch.nn.Conv2d(3, 8, kernel_size=4, stride=4)
        assert count_flops(lambda: embed(torch.randn(2, 3, 16, 16))) == 2 * 2 * 16 * (3 * 4 * 4) * 8

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("with_grad", [False, True])
    def test_attention(self, masked: bool, with_grad: bool) -> None:
        batch, heads, queries, keys, dim = 2, 3, 8, 10, 16
        q = torch.randn(batch, heads, queries, dim, requires_grad=with_grad)
        k, v = (torch.randn(batch, heads, keys, dim, requires_grad=with_grad) for _ in range(2))
        mask = torch.ones(queries, keys, dtype=torch.bool) if masked else None

        def call() -> None:
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            if with_grad:
                out.sum().backward()

        forward = 2 * (2 * batch * heads * queries * keys * dim)  # scores, then values
        assert count_flops(call) == forward * (3 if with_grad else 1)

    def test_fused_inference_path_is_counted_and_restored(self) -> None:
        tokens, dim, hidden = 2 * 6, 16, 32
        layer = torch.nn.TransformerEncoderLayer(dim, 4, hidden, batch_first=True).eval()
        expected = 2 * tokens * dim * (4 * dim) + 2 * (2 * tokens * 6 * dim) + 2 * (2 * tokens * dim * hidden)
        with torch.no_grad():
            assert count_flops(lambda: layer(torch.randn(2, 6, dim))) == expected
        assert torch.backends.mha.get_fastpath_enabled()

    def test_an_error_in_the_call_restores_the_settings(self) -> None:
        with pytest.raises(ZeroDivisionError):
            count_flops(lambda: 1 / 0)
        assert torch.backends.mha.get_fastpath_enabled()
