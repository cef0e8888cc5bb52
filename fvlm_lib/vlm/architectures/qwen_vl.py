"""Qwen2.5-VL, Qwen3-VL and Qwen3.5: frames of nearly their own size, and positions in time, height and width.

The processor resizes a screenshot to whole merge windows within its limits of pixels, and flattens it into rows of
patches, which are folded back into a frame here. What Qwen3-VL adds at the language model's first layers comes with the
vision tokens (`vision/own_features.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fvlm_lib.vision.flat_patches import fold_patches
from fvlm_lib.vlm.architectures.architecture import Architecture, Frame, image_token_ids, own_size

_SIZES = {"patch_size": "patch_size", "merge_size": "spatial_merge_size", "temporal_patch_size": "temporal_patch_size"}


def frame(processor: Any, screenshot: Image.Image) -> Frame:
    """One tensor (1, C, height, width). Raises ValueError, as transformers does, for a screenshot whose one side is
    more than 200 times the other."""
    images = processor.image_processor
    done = images(images=screenshot, return_tensors="pt")
    _, rows, columns = done["image_grid_thw"][0].tolist()
    sizes = images.merge_size, images.temporal_patch_size, images.patch_size
    return Frame(fold_patches(done["pixel_values"], (rows, columns), *sizes))


def positions(model: Any, input_ids: Tensor, frame: Frame) -> Tensor:
    """By the model itself."""
    patch = model.config.vision_config.patch_size
    grid = [1, *(side // patch for side in frame.pixel_values.shape[-2:])]
    found, _ = model.model.get_rope_index(
        input_ids,
        mm_token_type_ids=(input_ids == model.config.image_token_id).int(),
        image_grid_thw=torch.tensor([grid], device=input_ids.device),
    )
    return found


def misfit(processor: Any, config: Any) -> str | None:
    """Patches, merge windows or an image token of other sizes than the model's."""
    for ours, theirs in _SIZES.items():
        made, wanted = getattr(processor.image_processor, ours), getattr(config.vision_config, theirs)
        if made != wanted:
            return f"its processor has {ours} {made}, but its vision tower has {theirs} {wanted}"
    return None


QWEN_VL = Architecture(frame, own_size, image_token_ids, misfit, positions=positions)
