"""Configuration of a foveated VLM: a DINOv2 vision tower, a causal language model, and what joins them."""

from __future__ import annotations

import math
from typing import Any, Literal

from transformers import AutoConfig, Dinov2Config, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

# Language models whose logits are more than lm_head(hidden state); the caption is scored at gathered
# positions through the head alone, which would be silently wrong for them.
_LOGIT_TRANSFORMS = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0}


class FoveatedVLMConfig(PreTrainedConfig):
    """What a `FoveatedVLM` is built from.

    vision_config: a `Dinov2Config` (or its dict).
    text_config: the config of any causal language model of transformers (or its dict with `model_type`).
    query_dim: width of the queries; None takes the vision tower's width.
    visual_norm: "token" divides each visual token by its own root mean square, then multiplies by
        `visual_scale`; "scale" only multiplies by `visual_scale`. Neither mixes frames or samples. "legacy"
        divides by one standard deviation of everything that is normalised together: all samples, frames and
        channels in the parallel passes, all samples and channels of the one frame when watching
        autoregressively. It is there to reproduce the numbers of checkpoints trained that way: a sample's
        loss then depends on its batch-mates, and a gap contains the difference of the two normalisations.
    visual_scale: see visual_norm.
    deep_query: True walks the query through every ViT layer; False through the last one alone.
    mode_tokens: the language model is told by learnt tokens what it reads. Queries of the parallel passes
        come from [no_text, coarse or fine, z...], those of the autoregressive mode from [fine, z...];
        captions follow [coarse or fine, z..., video_end].
    image_size, image_mean, image_std: the frames that the model wants, height and width in pixels (None: the
        vision tower's) and what pixels in [0, 1] are normalised with (default: to [-1, 1]).

    Raises ValueError for an unknown visual_norm, a scale that is not positive, sizes, a mean or a std that no frames
    have, dropout in the vision tower (the opened walk has none), or a language model that transforms its logits after
    the head.
    """

    model_type = "fvlm"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=Dinov2Config),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: Any = None  # a dict until __post_init__, then a config
    text_config: Any = None
    query_dim: Any = None  # int | None until __post_init__, then an int
    visual_norm: Literal["token", "scale", "legacy"] = "token"
    visual_scale: float = 1.0
    deep_query: bool = True
    mode_tokens: bool = False
    image_size: Any = None  # int | None until __post_init__, then an int
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.query_dim is None:
            self.query_dim = self.vision_config.hidden_size
        if self.image_size is None:
            self.image_size = self.vision_config.image_size
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        if self.visual_norm not in ("token", "scale", "legacy"):
            raise ValueError(f"visual_norm is {self.visual_norm!r}; it must be 'token', 'scale' or 'legacy'")
        if not isinstance(self.visual_scale, int | float) or not 0 < self.visual_scale < math.inf:
            raise ValueError(f"visual_scale is {self.visual_scale!r}; it must be a positive number")
        self._check_frames()
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if getattr(self.vision_config, name):
                raise ValueError(f"vision_config.{name} is {getattr(self.vision_config, name)}; it must be 0")
        for name, neutral in _LOGIT_TRANSFORMS.items():
            if getattr(self.text_config, name, neutral) != neutral:
                raise ValueError(
                    f"text_config.{name} is {getattr(self.text_config, name)}: language models that transform "
                    "their logits after lm_head are not supported"
                )

    def _check_frames(self) -> None:
        """Raise ValueError for sizes, a mean or a std that no frames have."""
        patch, own = self.vision_config.patch_size, self.vision_config.image_size
        sizes = {"vision_config.patch_size": patch, "vision_config.image_size": own, "query_dim": self.query_dim}
        for name, value in {**sizes, "image_size": self.image_size}.items():
            # of a list such as [8, 32] DINOv2 would take the positions for those of the square grid of as many patches
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be one positive whole number")
        if self.image_size % patch:
            raise ValueError(f"image_size is {self.image_size}; it must be a multiple of the patch size {patch}")
        for name, least in (("image_mean", -math.inf), ("image_std", 0.0)):
            values = getattr(self, name)
            numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
            if not numbers or len(values) != 3 or not all(least < value < math.inf for value in values):
                kind = "positive numbers" if least == 0 else "numbers"
                raise ValueError(f"{name} is {values!r}; it must be three {kind}, for red, green and blue")
