"""The vision towers that recordings are measured on: loaded, with the size and normalisation of their frames.

How a tower is walked is the subject of the wing `vision/`, how long and how wrong it is that of `measure.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionConfig,
    FastVlmConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    PreTrainedConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMImageProcessor,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

from fvlm_lib.errors import CheckpointError, first_line
from fvlm_lib.foveated.checkpoints import load_checkpoint
from fvlm_lib.foveated.weights import load_strictly
from fvlm_lib.json_files import read_object
from fvlm_lib.schema import RANDOM_TOWERS
from fvlm_lib.screens.random_fast_vit import initialise_fast_vit

OPENAI_CLIP_MEAN, OPENAI_CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
(
    RANDOM_CLIP, RANDOM_TINY, RANDOM_QWEN2_5, RANDOM_QWEN3, RANDOM_SIGLIP, RANDOM_SMOLVLM, RANDOM_INTERNVL,
    RANDOM_FASTVIT,
) = RANDOM_TOWERS  # fmt: skip
_HALF = (0.5, 0.5, 0.5)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class RandomTower:
    """config: of the tower, or of a model of which only tower and projector are of real size. size: (height, width),
    of Qwen's what its processor makes of 1280 x 800, of others a tile's. processor: makes what cuts frames into tiles.
    initialise: gives the model its weights, where those that transformers draws would not do.
    """

    config: PreTrainedConfig
    size: tuple[int, int]
    mean: tuple[float, ...] = OPENAI_CLIP_MEAN
    std: tuple[float, ...] = OPENAI_CLIP_STD
    processor: Callable[[], Any] | None = None
    initialise: Callable[[Any], None] | None = None


def _small_text(model_type: str, width: int) -> dict[str, Any]:
    """A language model of one layer, as wide as the projector's tokens."""
    return {
        "model_type": model_type, "hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 8, "pad_token_id": 0,
    }  # fmt: skip


RANDOM = {
    RANDOM_CLIP: RandomTower(
        CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
            patch_size=14,
        ),
        (336, 336),
    ),
    RANDOM_TINY: RandomTower(
        CLIPVisionConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=224,
            patch_size=14,
        ),
        (224, 224),
    ),
    RANDOM_QWEN2_5: RandomTower(
        Qwen2_5_VLVisionConfig(
            depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, patch_size=14, window_size=112,
            fullatt_block_indexes=[7, 15, 23, 31], out_hidden_size=2048,
        ),
        (812, 1288),
    ),
    RANDOM_QWEN3: RandomTower(
        Qwen3VLVisionConfig(
            depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16, patch_size=16, out_hidden_size=2048,
            deepstack_visual_indexes=[5, 11, 17], num_position_embeddings=2304,
        ),
        (800, 1280), _HALF, _HALF,
    ),
    RANDOM_SIGLIP: RandomTower(
        SiglipVisionConfig(
            hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=384,
            patch_size=16, vision_use_head=False,
        ),
        (384, 384), _HALF, _HALF,
    ),
    RANDOM_SMOLVLM: RandomTower(
        SmolVLMConfig(
            vision_config={
                "model_type": "smolvlm_vision", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                "num_attention_heads": 12, "image_size": 512, "patch_size": 16,
            },
            text_config=_small_text("llama", 960), scale_factor=4,
        ),
        (512, 512), _HALF, _HALF,
        lambda: SmolVLMImageProcessor(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}),
    ),
    RANDOM_INTERNVL: RandomTower(
        InternVLConfig(
            vision_config={
                "model_type": "internvl_vision", "hidden_size": 1024, "intermediate_size": 4096,
                "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": [448, 448], "patch_size": [14, 14],
            },
            text_config=_small_text("qwen2", 896),
        ),
        (448, 448), _IMAGENET_MEAN, _IMAGENET_STD,
        lambda: GotOcr2ImageProcessor(
            size={"height": 448, "width": 448}, crop_to_patches=True, min_patches=1, max_patches=12,
            image_mean=_IMAGENET_MEAN, image_std=_IMAGENET_STD,
        ),
    ),
    RANDOM_FASTVIT: RandomTower(
        FastVlmConfig(
            vision_config={
                "model_type": "timm_wrapper", "architecture": "fastvit_mci3", "do_pooling": True, "global_pool": "avg",
                "hidden_size": 3072, "model_args": {"inference_mode": True},
            },
            text_config=_small_text("qwen2", 896),
        ),
        (1024, 1024), (0.0,) * 3, (1.0,) * 3,
        initialise=lambda model: initialise_fast_vit(model.vision_tower.timm_model),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class LoadedTower:
    """A vision tower, or a model with one; the size of its frames in pixels (height, width), and what they are
    normalised with. processor: of a model that cuts frames into tiles of that size, its image processor."""

    name: str
    model: nn.Module
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    processor: Any = None

    def pixel_values(self, frame: np.ndarray) -> Tensor:
        """A screenshot uint8 (H, W, 3), squashed to the tower's size and normalised: (1, 3, height, width); or its
        tiles (tiles, 3, height, width), as the model's processor cuts and normalises them."""
        if self.processor is not None:
            tiles: Tensor = self.processor(images=frame, return_tensors="pt")["pixel_values"]
            return tiles.reshape(-1, 3, *self.image_size)
        pixels = torch.from_numpy(squash(frame, self.image_size)).permute(2, 0, 1)[None] / 255
        return (pixels - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)


def squash(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A screenshot uint8 (H, W, 3) at the size (height, width) that a tower takes, in whole grey levels as a resized
    image file has them. Squashed, not cropped: a centre crop would drop the sides of a wide screen."""
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
    pixels = nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True)
    return pixels.round().clamp(0, 255)[0].permute(1, 2, 0).byte().numpy()


def load_tower(spec: str, image_size: Sequence[int] | None = None) -> LoadedTower:
    """A vision tower: the folder of a foveated checkpoint (its DINOv2), one of `schema.RANDOM_TOWERS` (for times; the
    errors of random weights mean nothing), or a folder or hub id that transformers' AutoModel reads, of a tower, of
    CLIP or SigLIP, or of a vision-language model that calls it `vision_tower`, as LLaVA does, or `visual`, as Qwen.

    image_size (height, width): for towers that take any, of Qwen's rounded to whole merged patches; None is the tower's
    own. Only a hub id that is no folder touches the network. Raises CheckpointError where there is no tower to be had.
    """
    mean: tuple[float, ...]
    std: tuple[float, ...]
    if spec in RANDOM:
        torch.manual_seed(0)
        random = RANDOM[spec]
        if image_size and random.processor:
            height, width = random.size
            raise CheckpointError(f"{spec} cuts frames into tiles of {width} x {height} pixels; leave the size out")
        model: Any = AutoModel.from_config(random.config).eval()
        if random.initialise:
            random.initialise(model)
        processor = random.processor() if random.processor else None
        random_size = _whole_merged_patches(model.config, image_size or random.size)
        return LoadedTower(spec, model, random_size, random.mean, random.std, processor)
    if spec.startswith("random:"):
        raise CheckpointError(f"there is no {spec}; known are {', '.join(RANDOM)}")
    folder = Path(spec)
    config_file = folder / "config.json"
    if config_file.exists() and read_object(config_file, CheckpointError).get("model_type") == "fvlm":
        foveated = load_checkpoint(folder)
        model, mean, std = foveated.encoder.dino, tuple(foveated.config.image_mean), tuple(foveated.config.image_std)
    else:
        local = folder.is_dir()
        load = functools.partial(AutoModel.from_pretrained, spec, local_files_only=local)
        try:
            config = AutoConfig.from_pretrained(spec, local_files_only=local)
            whole = load_strictly(spec, load, unexpected=True)
        except CheckpointError:
            raise
        except Exception as error:  # transformers raises many kinds
            raise CheckpointError(f"{spec} is no vision tower that can be loaded ({first_line(error)})") from error
        inside = (getattr(whole, name, None) for name in ("vision_model", "vision_tower", "visual"))
        model = next(filter(None, inside), whole) if hasattr(config, "vision_config") else whole
        mean, std = _normalisation(folder)
    own, patch = getattr(model.config, "image_size", None), getattr(model.config, "patch_size", None)
    if isinstance(own, int) and isinstance(patch, int):
        own -= own % patch  # what is behind the last whole patch, no tower looks at
    size = image_size or ((own, own) if isinstance(own, int) else own)
    if size is None:
        raise CheckpointError(f"{spec} does not say the size of its frames; give it (image_size, --size)")
    return LoadedTower(spec, model, _whole_merged_patches(model.config, size), mean, std)


def _whole_merged_patches(config: Any, size: Sequence[int]) -> tuple[int, int]:
    """(height, width), of Qwen's towers rounded to whole merged patches, as their processor does."""
    merged = getattr(config, "spatial_merge_size", None)
    unit = 1 if merged is None else int(merged) * int(config.patch_size)
    height, width = (max(1, round(side / unit)) * unit for side in size)
    return height, width


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What the tower's own processor normalises with; CLIP's where the folder does not say."""
    file = folder / "preprocessor_config.json"
    content = read_object(file, CheckpointError) if file.exists() else {}
    if not file.exists():
        file = folder / "processor_config.json"  # which holds the image processor's, too
        content = read_object(file, CheckpointError).get("image_processor", {}) if file.exists() else {}
        if not content:
            return OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    for name in ("image_mean", "image_std"):
        values = content.get(name)
        if not isinstance(values, list) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
            raise CheckpointError(
                f"{file}: its {name} is {values!r}; it must be three numbers, for red, green and blue"
            )
    return tuple(content["image_mean"]), tuple(content["image_std"])
