"""Foveated models of real size with random weights, for times.

What takes seconds to import is imported where it is used, so that a command can name them in its `--help`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM

# vision tower and frame; the language model has SmolLM2-135M's sizes
RANDOM: dict[str, dict[str, int]] = {
    "random:dinov2-small-224": {
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 14, "image_size": 224,
    },
    "random:vit-l-14-336": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14, "image_size": 336,
    },
}  # fmt: skip


def random_model(name: str) -> FoveatedVLM:
    """A model of `RANDOM`'s sizes, untrained."""
    import torch
    from transformers import Dinov2Config, LlamaConfig

    from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig
    from fvlm_lib.foveated.layouts import SMOLLM2
    from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM

    torch.manual_seed(0)
    vision = Dinov2Config(**RANDOM[name], mlp_ratio=4, use_mask_token=False)  # type: ignore[arg-type]
    return FoveatedVLM(FoveatedVLMConfig(vision_config=vision, text_config=LlamaConfig(**SMOLLM2["SmolLM2-135M"])))
