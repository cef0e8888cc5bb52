"""Qwen3-VL: as Qwen2.5-VL, with full attention, learned positions besides, and blocks that are tapped (DeepStack).

Qwen3.5 has the same tower without taps. Bai et al., *Qwen3-VL Technical Report* (arXiv 2511.21631); Meng et al.,
*DeepStack* (NeurIPS 2024).
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from fvlm_lib.vision.adapters.qwen2_5_vl import (
    embed_patches,
    grid_thw,
    merged_order,
    merged_rotation,
    project_patches,
    qwen_blocks,
)
from fvlm_lib.vision.opened_tower import Grid, Tower


def open_qwen3_vl(model: Any, interpolate: bool) -> Tower:
    """The parts of a `Qwen3VLVisionModel` or `Qwen3_5VisionModel`, which take frames of any size, without mergers."""
    config = model.config
    order = functools.partial(merged_order, model)

    def positions(grid: Grid) -> Tensor:
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid_thw(model, grid),
            model.num_grid_per_side,
            mode=model.interpolation_mode,
            align_corners=model.interpolation_align_corners,
            spatial_merge_size=config.spatial_merge_size,
        )
        return (model.pos_embed(indices) * weights[:, :, None]).sum(1)  # type: ignore[no-any-return]

    def embeddings(pixels: Tensor) -> Tensor:
        patches = embed_patches(model, pixels, order)
        grid = pixels.shape[-2] // config.patch_size, pixels.shape[-1] // config.patch_size
        return patches + positions(grid).to(patches)

    return Tower(
        embeddings=embeddings,
        project_patches=functools.partial(project_patches, model),
        pre_norm=nn.Identity(),
        blocks=qwen_blocks(model),
        final_norm=nn.Identity(),
        num_global_tokens=0,
        patch_size=(config.patch_size, config.patch_size),
        num_channels=config.in_channels,
        image_size=None,
        order=order,
        rotation=functools.partial(merged_rotation, model),
        taps=tuple(sorted(getattr(config, "deepstack_visual_indexes", ()))),
    )
