"""CLIP and SigLIP: a convolution over patches, learned positions, CLIP with a class token and a norm before the blocks.

Radford et al., *Learning Transferable Visual Models From Natural Language Supervision* (ICML 2021); Zhai et al.,
*Sigmoid Loss for Language Image Pre-Training* (ICCV 2023).
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from fvlm_lib.reuse.blocks import Block
from fvlm_lib.vision.opened_tower import Tower


def open_clip_or_siglip(model: Any, interpolate: bool) -> Tower:
    """The parts of a `CLIPVisionModel` or `SiglipVisionModel`."""
    clip = isinstance(model, CLIPVisionModel)
    convolution, size = model.embeddings.patch_embedding, model.config.image_size
    return Tower(
        embeddings=lambda pixels: model.embeddings(pixels, interpolate_pos_encoding=interpolate),
        project_patches=lambda patches: F.linear(patches.flatten(1), convolution.weight.flatten(1)),
        pre_norm=model.pre_layrnorm if clip else nn.Identity(),
        blocks=clip_blocks(model),
        final_norm=nn.Identity() if clip else model.post_layernorm,
        num_global_tokens=int(clip),
        patch_size=convolution.kernel_size,
        num_channels=convolution.in_channels,
        image_size=None if interpolate else (size - size % convolution.kernel_size[0],) * 2,
    )


def clip_blocks(model: Any) -> tuple[Block, ...]:
    """The blocks of a model whose encoder is made of CLIP's layers."""
    return tuple(
        Block(
            norm1=layer.layer_norm1,
            q_proj=layer.self_attn.q_proj,
            k_proj=layer.self_attn.k_proj,
            v_proj=layer.self_attn.v_proj,
            o_proj=layer.self_attn.out_proj,
            scale1=nn.Identity(),
            norm2=layer.layer_norm2,
            mlp=layer.mlp,
            scale2=nn.Identity(),
            num_heads=model.config.num_attention_heads,
        )
        for layer in model.encoder.layers
    )
