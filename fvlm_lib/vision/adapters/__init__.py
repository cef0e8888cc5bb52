"""Where transformers keeps the parts of its vision towers: a file an architecture, a line a class in `ADAPTERS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import (
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    Siglip2VisionModel,
    SiglipVisionModel,
)

from fvlm_lib.vision.adapters.clip import open_clip_or_siglip
from fvlm_lib.vision.adapters.dinov2 import open_dinov2
from fvlm_lib.vision.adapters.siglip2 import open_siglip2
from fvlm_lib.vision.opened_tower import Tower

ADAPTERS: dict[type[nn.Module], Callable[[Any, bool], Tower]] = {
    CLIPVisionModel: open_clip_or_siglip,
    SiglipVisionModel: open_clip_or_siglip,
    Siglip2VisionModel: open_siglip2,
    Dinov2Model: open_dinov2,
    Dinov2WithRegistersModel: open_dinov2,
}
"""How a model's parts are found: the adapter takes the model and `interpolate_pos_encoding`."""
