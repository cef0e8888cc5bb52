"""A model's own full encode of its frames: what each architecture wants to be called with, and where its answer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fvlm_lib.vision.flat_patches import flat_sizes, flatten_frame


@dataclass(frozen=True)
class Features:
    """tokens (N, tokens, width): of N frames or tiles, as the language model gets them. deepstack: of that shape, one
    for each of the language model's first layers whose outputs they are added to (Qwen3-VL); else none."""

    tokens: Tensor
    deepstack: tuple[Tensor, ...] = ()


def own_features(call: Callable[..., Any], pooled: bool, config: Any, images: Tensor) -> Features:
    """What a model makes of frames or tiles (N, C, height, width).

    call: its `get_image_features` (whose output is `pooled`) or `encode_images`, or a mere tower itself.
    config: the model's.
    """
    special = (_CALLS if pooled else _TOWERS).get(getattr(config, "model_type", None))
    if special:
        return special(call, config, images)
    output = call(images)
    if isinstance(output, Tensor):
        return Features(output)
    return Features(_joined(output.pooler_output) if pooled else output.last_hidden_state)


def _llava_onevision(call: Callable[..., Any], config: Any, images: Tensor) -> Features:
    """One crop of each image, which it makes where a prompt has several."""
    sizes = torch.tensor([images.shape[-2:]] * len(images))
    return Features(_joined(call(images, image_sizes=sizes, batch_num_images=[2] * len(images)).pooler_output))


def _qwen_vl(call: Callable[..., Any], config: Any, images: Tensor) -> Features:
    rows, grids = _flat(config.vision_config, images)
    output = call(rows, image_grid_thw=grids)
    deepstack = getattr(output, "deepstack_features", None) or ()
    return Features(_joined(output.pooler_output), tuple(_joined(features) for features in deepstack))


def _qwen_tower(call: Callable[..., Any], config: Any, images: Tensor) -> Features:
    """The tower alone, whose tokens are those of its merger, of all images in one."""
    rows, grids = _flat(config, images)
    output = call(rows, grid_thw=grids)
    every = output.pooler_output, *(getattr(output, "deepstack_features", None) or ())
    tokens, *deepstack = (features.unflatten(0, (len(images), -1)) for features in every)
    return Features(tokens, tuple(deepstack))


def _flat(config: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of patches of all images, and (N, 3) their grids in time, height and width."""
    grid = [1, *(side // config.patch_size for side in images.shape[-2:])]
    rows = torch.cat([flatten_frame(image[None], *flat_sizes(config)) for image in images])
    return rows, torch.tensor([grid] * len(images), device=images.device)


def _idefics3(call: Callable[..., Any], config: Any, images: Tensor) -> Features:
    """The tiles of one image, which has no padding."""
    (tokens,) = call(images[None]).pooler_output
    return Features(tokens.view(len(images), -1, tokens.shape[-1]))


def _joined(output: Any) -> Tensor:
    """(N, tokens, width); some models give a list, one entry an image."""
    return output if isinstance(output, Tensor) else torch.stack(list(output))


_CALLS: dict[str | None, Callable[[Callable[..., Any], Any, Tensor], Features]] = {
    "llava_onevision": _llava_onevision,
    "qwen2_5_vl": _qwen_vl,
    "qwen3_vl": _qwen_vl,
    "qwen3_5": _qwen_vl,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
}

_TOWERS: dict[str | None, Callable[[Callable[..., Any], Any, Tensor], Features]] = {
    "qwen2_5_vl_vision": _qwen_tower,
    "qwen3_vl_vision": _qwen_tower,
    "qwen3_5_vision": _qwen_tower,
}
