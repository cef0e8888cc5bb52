"""SigLIP 2 in its NaFlex form: CLIP's layers behind a linear patch embedding and positions resized to the frame.

Frames are patchified here; the model's (pixel_values, pixel_attention_mask, spatial_shapes) inputs pad several
resolutions to one length, and a single frame needs no padding. Tschannen et al., *SigLIP 2* (arXiv 2502.14786).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fvlm_lib.vision.adapters.clip import clip_blocks
from fvlm_lib.vision.opened_tower import Tower


def open_siglip2(model: Any, interpolate: bool) -> Tower:
    """The parts of a `Siglip2VisionModel`, which takes frames of any size."""
    patch, channels = model.config.patch_size, model.config.num_channels

    def embeddings(pixels: Tensor) -> Tensor:
        grid = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        patches = pixels.unflatten(3, (grid[1], patch)).unflatten(2, (grid[0], patch))  # (N, C, gh, ph, gw, pw)
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (N, gh gw, ph pw C)
        return model.embeddings(patches, torch.tensor([grid] * len(pixels)))

    return Tower(
        embeddings=embeddings,
        project_patches=lambda patches: F.linear(
            patches.permute(0, 2, 3, 1).flatten(1), model.embeddings.patch_embedding.weight
        ),
        pre_norm=nn.Identity(),
        blocks=clip_blocks(model),
        final_norm=model.post_layernorm,
        num_global_tokens=0,
        patch_size=(patch, patch),
        num_channels=channels,
        image_size=None,
    )
