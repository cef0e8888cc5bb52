"""Vision transformers opened at their layers: encode a frame into a `PatchCache`, look into it with a query.

The walk through a pre-norm ViT block stands here once. An adapter says where an architecture keeps its
block's parts; only DINOv2 has one so far. This module knows nothing of language models, of videos or of
which patches changed.

Throughout: D width of the ViT, P tokens of a frame (global tokens such as CLS, then patches), H heads,
d = D / H. Leading dimensions `...` are any (batch, or batch and time).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2Model


@dataclass(frozen=True)
class Block:
    """The parts of one pre-norm ViT block: x + scale1(attention(norm1(x))), then x + scale2(mlp(norm2(x)))."""

    norm1: nn.Module
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    scale1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    scale2: nn.Module
    num_heads: int

    def heads(self, states: Tensor) -> Tensor:
        """(..., P, D) -> (..., H, P, d)"""
        return states.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (..., H, P, d) of the block's input x (..., P, D)."""
        normed = self.norm1(x)
        return self.heads(self.k_proj(normed)), self.heads(self.v_proj(normed))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output from its input x (..., P, D) and the attention's result (..., P, D)."""
        x = x + self.scale1(self.o_proj(attended))
        return x + self.scale2(self.mlp(self.norm2(x)))


@dataclass(frozen=True)
class Tower:
    """A ViT taken apart: pixels (N, 3, H, W) -> embed -> (N, P, D) -> blocks -> final_norm."""

    embed: Callable[[Tensor], Tensor]
    blocks: tuple[Block, ...]
    final_norm: nn.Module
    num_global_tokens: int


def open_tower(model: nn.Module) -> Tower:
    """The parts of a transformers vision model; shares its weights, so training it trains the model.

    Raises TypeError for an architecture without an adapter.
    """
    if isinstance(model, Dinov2Model):
        layers: Any = model.encoder.layer
        blocks = tuple(
            Block(
                norm1=layer.norm1,
                q_proj=layer.attention.q_proj,
                k_proj=layer.attention.k_proj,
                v_proj=layer.attention.v_proj,
                o_proj=layer.attention.o_proj,
                scale1=layer.layer_scale1,
                norm2=layer.norm2,
                mlp=layer.mlp,
                scale2=layer.layer_scale2,
                num_heads=model.config.num_attention_heads,
            )
            for layer in layers
        )
        return Tower(model.embeddings, blocks, model.layernorm, num_global_tokens=1)
    raise TypeError(f"no adapter for the vision model {type(model).__name__}; there is one for Dinov2Model")


@dataclass(frozen=True)
class PatchCache:
    """Keys and values of every frame's tokens at the layers that a query walks.

    keys, values: one tensor (..., H, P, d) a layer, in walking order. `num_global_tokens` of the P tokens
    come first and are not patches. Memory: 2 · layers · P · D · bytes an element, a frame.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    num_global_tokens: int

    def frame(self, t: int) -> PatchCache:
        """The cache of frame t of a cache with leading dimensions (B, T); views, no copies."""
        return PatchCache(
            tuple(k[:, t] for k in self.keys), tuple(v[:, t] for v in self.values), self.num_global_tokens
        )


def encode(tower: Tower, pixel_values: Tensor, num_query_layers: int | None = None) -> PatchCache:
    """Encode frames (..., 3, height, width) into the cache of the last `num_query_layers` layers (None: all).

    Of the last layer only keys and values are computed: no query sees that layer's own output.
    """
    leading = pixel_values.shape[:-3]
    x = tower.embed(pixel_values.flatten(0, -4))  # (N, P, D)
    first = len(tower.blocks) - (num_query_layers or len(tower.blocks))
    keys, values = [], []
    for i, block in enumerate(tower.blocks):
        k, v = block.keys_values(x)
        if i >= first:
            keys.append(k.unflatten(0, leading))
            values.append(v.unflatten(0, leading))
        if i + 1 < len(tower.blocks):
            q = block.heads(block.q_proj(block.norm1(x)))
            attended = F.scaled_dot_product_attention(q, k, v)  # (N, H, P, d)
            x = block.finish(x, attended.transpose(-3, -2).flatten(-2))
    return PatchCache(tuple(keys), tuple(values), tower.num_global_tokens)


def look(tower: Tower, cache: PatchCache, query: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A query's walk through the layers of the cache: it attends to the patches, they never see it.

    query (..., D) with the cache's leading dimensions. Returns the foveated token (..., D) after the final
    norm, and per layer the attention over the frame's tokens (..., H, P), rows summing to 1.
    """
    x = query.unsqueeze(-2)  # (..., 1, D)
    attentions = []
    for block, k, v in zip(tower.blocks[-len(cache.keys) :], cache.keys, cache.values, strict=True):
        q = block.heads(block.q_proj(block.norm1(x)))  # (..., H, 1, d)
        attention = torch.softmax(q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5, dim=-1)  # (..., H, 1, P)
        x = block.finish(x, (attention @ v).transpose(-3, -2).flatten(-2))
        attentions.append(attention.squeeze(-2))
    return tower.final_norm(x).squeeze(-2), tuple(attentions)
