"""The vision tower of InternVL, InternViT: a class token, layer scale, and norms on queries and keys across heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fvlm_lib.reuse.blocks import Block
from fvlm_lib.vision.opened_tower import Tower


def open_internvl(model: Any, interpolate: bool) -> Tower:
    """The parts of an `InternVLVisionModel`, which resizes its positions to frames of any size."""
    convolution = model.embeddings.patch_embeddings.projection
    return Tower(
        embeddings=model.embeddings,
        project_patches=lambda patches: F.linear(patches.flatten(1), convolution.weight.flatten(1)),
        pre_norm=nn.Identity(),
        blocks=tuple(_block(layer) for layer in model.encoder.layer),
        final_norm=model.layernorm,
        num_global_tokens=1,
        patch_size=convolution.kernel_size,
        num_channels=convolution.in_channels,
        image_size=None,
    )


def _block(layer: Any) -> Block:
    attention = layer.attention
    return Block(
        norm1=layer.layernorm_before,
        q_proj=attention.q_proj,
        k_proj=attention.k_proj,
        v_proj=attention.v_proj,
        o_proj=attention.projection_layer,
        scale1=_LayerScale(layer.lambda_1),
        norm2=layer.layernorm_after,
        mlp=layer.mlp,
        scale2=_LayerScale(layer.lambda_2),
        num_heads=attention.num_heads,
        q_norm=_AcrossHeads(attention.q_norm),
        k_norm=_AcrossHeads(attention.k_norm),
    )


class _LayerScale(nn.Module):
    """Multiplies by a vector (D,) that InternVL's layers hold themselves (Touvron et al., CaiT, 2021)."""

    def __init__(self, scale: nn.Parameter) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, states: Tensor) -> Tensor:
        return self.scale * states


class _AcrossHeads(nn.Module):
    """A norm of all heads' channels together, of heads (..., H, d)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, heads: Tensor) -> Tensor:
        normed: Tensor = self.norm(heads.flatten(-2))
        return normed.unflatten(-1, heads.shape[-2:])
