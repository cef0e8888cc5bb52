"""A pre-norm transformer block taken apart: x + scale1(attention(norm1(x))), then x + scale2(mlp(norm2(x))).

The same for a vision transformer and for a decoder with grouped keys, norms on queries and keys, and rotary positions.
Where an architecture keeps the parts is its adapter's subject (`vision/towers.py`, `language/decoders.py`).

Throughout: N rows (tokens) of width D, n of them that are computed, H query heads and G key and value heads (G divides
H; a vision transformer has G = H), d channels a head. Leading dimensions `...` are any.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fvlm_lib.reuse.packing import FewRowsLinears, few_rows_copy

Rotation = tuple[Tensor, Tensor]
"""cos and sin (n, d) of the rotary angles of n rows, as a `transformers` rotary embedding gives them."""


@dataclass(frozen=True)
class Block:
    """The parts of one block.

    num_key_value_heads: None is as many as there are query heads. scaling: of the scores; None is 1 / sqrt(d).
    q_norm, k_norm: on the heads (..., n, heads, d), before rotation.
    """

    norm1: nn.Module
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    num_heads: int
    num_key_value_heads: int | None = None
    scale1: nn.Module = field(default_factory=nn.Identity)
    scale2: nn.Module = field(default_factory=nn.Identity)
    q_norm: nn.Module = field(default_factory=nn.Identity)
    k_norm: nn.Module = field(default_factory=nn.Identity)
    scaling: float | None = None
    qkv_proj: Callable[[Tensor], list[Tensor]] | None = None  # the first three as one

    def queries_keys_values(self, x: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (..., H, n, d), keys and values (..., G, n, d) of the block's input x (..., n, D)."""
        normed = self.norm1(x)
        if self.qkv_proj is not None:
            q, k, v = self.qkv_proj(normed)
        else:
            q, k, v = self.q_proj(normed), self.k_proj(normed), self.v_proj(normed)
        groups = self.num_key_value_heads or self.num_heads
        q, k, v = self.q_norm(cut(q, self.num_heads)), self.k_norm(cut(k, groups)), cut(v, groups)
        q, k, v = (heads.transpose(-3, -2) for heads in (q, k, v))
        return (q, k, v) if rotation is None else (rotate(q, rotation), rotate(k, rotation), v)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (..., G, n, d) of the block's input x (..., n, D), of a block without rotation."""
        normed = self.norm1(x)
        groups = self.num_key_value_heads or self.num_heads
        k, v = self.k_norm(cut(self.k_proj(normed), groups)), cut(self.v_proj(normed), groups)
        return k.transpose(-3, -2), v.transpose(-3, -2)

    def queries(self, x: Tensor) -> Tensor:
        """Queries (..., H, n, d) of the block's input x (..., n, D), of a block without rotation."""
        return self.q_norm(cut(self.q_proj(self.norm1(x)), self.num_heads)).transpose(-3, -2)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output from its input x (..., n, D) and the attention's result (..., n, H d)."""
        x = x + self.scale1(self.o_proj(attended))
        return x + self.scale2(self.mlp(self.norm2(x)))

    def gain(self) -> float:
        """Root mean square gain of the output projection with its scale: how far attention moves x."""
        weight = self.scale1(self.o_proj.weight.T)  # (H d, D)
        return float(torch.linalg.matrix_norm(weight)) / weight.shape[0] ** 0.5


class LinearPart(nn.Module):
    """Some of the outputs of an nn.Linear, as a layer of its own; its weights are views of the whole layer's."""

    def __init__(self, linear: nn.Linear, outputs: slice) -> None:
        super().__init__()
        self.linear, self.outputs = linear, outputs

    @property
    def weight(self) -> Tensor:
        """(out, in)"""
        return self.linear.weight[self.outputs]

    @property
    def bias(self) -> Tensor | None:
        """(out,)"""
        return None if self.linear.bias is None else self.linear.bias[self.outputs]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return F.linear(x, self.weight, self.bias)


def linear_parts(linear: nn.Linear, count: int) -> list[LinearPart]:
    """A layer that makes queries, keys and values at once, taken apart into `count` of the same size."""
    size = linear.out_features // count
    return [LinearPart(linear, slice(i * size, (i + 1) * size)) for i in range(count)]


def cut(states: Tensor, heads: int) -> Tensor:
    """(..., n, heads d) -> (..., n, heads, d)"""
    return states.unflatten(-1, (heads, -1))


def joined(heads: Tensor) -> Tensor:
    """(..., H, n, d) -> (..., n, H d)"""
    return heads.transpose(-3, -2).flatten(-2)


def rotate(states: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys (..., heads, n, d) turned by their rows' rotary angles (Su et al., RoFormer, 2021), in the
    precision of the angles."""
    cos, sin = rotation
    turned = states.to(cos.dtype)
    first, second = turned.chunk(2, dim=-1)
    return (turned * cos + torch.cat([-second, first], dim=-1) * sin).to(states.dtype)


def turn(states: Tensor, old: Rotation, new: Rotation) -> Tensor:
    """Queries or keys (..., heads, n, d) that were turned by the angles `old`, as if they had been turned by `new`."""
    cos, sin = old
    length = cos * cos + sin * sin  # not quite 1 in rounding, and the square of what a model scales both with
    return rotate(states, ((new[0] * cos + new[1] * sin) / length, (new[1] * cos - new[0] * sin) / length))


def few_rows_block(block: Block, pack: bool) -> Block:
    """The block with linear layers for products of few rows; see `packing.py`."""
    return dataclasses.replace(
        block,
        qkv_proj=FewRowsLinears(block.q_proj, block.k_proj, block.v_proj, pack=pack),
        o_proj=few_rows_copy(block.o_proj, pack),
        mlp=few_rows_copy(block.mlp, pack),
    )
