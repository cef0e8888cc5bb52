"""Where transformers and timm keep the parts of their vision towers: a file an architecture, a line a class in
`ADAPTERS`, or of what is no stack of blocks in `CONVOLUTIONAL_ADAPTERS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import (
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    Idefics3VisionTransformer,
    InternVLVisionModel,
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen3_5VisionModel,
    Qwen3VLVisionModel,
    Siglip2VisionModel,
    SiglipVisionModel,
    SmolVLMVisionTransformer,
)

from fvlm_lib.vision.adapters.clip import open_clip_or_siglip
from fvlm_lib.vision.adapters.dinov2 import open_dinov2
from fvlm_lib.vision.adapters.fast_vit import open_fast_vit
from fvlm_lib.vision.adapters.idefics3 import open_idefics3
from fvlm_lib.vision.adapters.internvl import open_internvl
from fvlm_lib.vision.adapters.qwen2_5_vl import open_qwen2_5_vl
from fvlm_lib.vision.adapters.qwen3_vl import open_qwen3_vl
from fvlm_lib.vision.adapters.siglip2 import open_siglip2
from fvlm_lib.vision.fast_vit import ConvolutionalTower
from fvlm_lib.vision.opened_tower import Tower

ADAPTERS: dict[type[nn.Module], Callable[[Any, bool], Tower]] = {
    CLIPVisionModel: open_clip_or_siglip,
    SiglipVisionModel: open_clip_or_siglip,
    Siglip2VisionModel: open_siglip2,
    Dinov2Model: open_dinov2,
    Dinov2WithRegistersModel: open_dinov2,
    Qwen2_5_VisionTransformerPretrainedModel: open_qwen2_5_vl,
    Qwen3VLVisionModel: open_qwen3_vl,
    Qwen3_5VisionModel: open_qwen3_vl,
    Idefics3VisionTransformer: open_idefics3,
    SmolVLMVisionTransformer: open_idefics3,
    InternVLVisionModel: open_internvl,
}
"""How a model's parts are found: the adapter takes the model and `interpolate_pos_encoding`."""

CONVOLUTIONAL_ADAPTERS: dict[str, Callable[[Any], ConvolutionalTower]] = {"FastVit": open_fast_vit}
"""The same of timm's models, by the names of their classes: timm is imported by those alone who have such a model."""
