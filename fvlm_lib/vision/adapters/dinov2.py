"""DINOv2 with and without registers: layer scales, positions resized to the frame, class token and registers first.

Oquab et al., *DINOv2* (TMLR 2024); Darcet et al., *Vision Transformers Need Registers* (ICLR 2024).
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as F

from fvlm_lib.reuse.blocks import Block
from fvlm_lib.vision.opened_tower import Tower


def open_dinov2(model: Any, interpolate: bool) -> Tower:
    """The parts of a `Dinov2Model` or `Dinov2WithRegistersModel`, which take frames of any size."""
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
        for layer in model.encoder.layer
    )
    convolution = model.embeddings.patch_embeddings.projection
    return Tower(
        embeddings=model.embeddings,
        project_patches=lambda patches: F.linear(patches.flatten(1), convolution.weight.flatten(1)),
        pre_norm=nn.Identity(),
        blocks=blocks,
        final_norm=model.layernorm,
        num_global_tokens=1 + getattr(model.config, "num_register_tokens", 0),
        patch_size=convolution.kernel_size,
        num_channels=convolution.in_channels,
        image_size=None,
    )
