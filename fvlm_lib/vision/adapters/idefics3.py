"""The vision tower of Idefics3 and SmolVLM: SigLIP's blocks, positions by the fraction of the side, pixel shuffle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fvlm_lib.vision.adapters.clip import clip_blocks
from fvlm_lib.vision.opened_tower import Tower


def open_idefics3(model: Any, interpolate: bool) -> Tower:
    """The parts of an `Idefics3VisionTransformer` or `SmolVLMVisionTransformer`; frames of any size, nothing padded."""
    convolution = model.embeddings.patch_embedding
    patch_height, patch_width = convolution.kernel_size

    def embeddings(pixels: Tensor) -> Tensor:
        count, _, height, width = pixels.shape
        whole = pixels.new_ones(count, height // patch_height, width // patch_width, dtype=torch.bool)
        return model.embeddings(pixels, patch_attention_mask=whole)

    return Tower(
        embeddings=embeddings,
        project_patches=lambda patches: F.linear(patches.flatten(1), convolution.weight.flatten(1)),
        pre_norm=nn.Identity(),
        blocks=clip_blocks(model),
        final_norm=model.post_layernorm,
        num_global_tokens=0,
        patch_size=convolution.kernel_size,
        num_channels=convolution.in_channels,
        image_size=None,
    )
