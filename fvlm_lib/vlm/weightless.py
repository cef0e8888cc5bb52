"""A model without its weights: made from its config on torch's meta device, which knows shapes and holds no numbers.

What is counted on it is `plan.py`'s subject.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from fvlm_lib.errors import CheckpointError, first_line
from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig
from fvlm_lib.json_files import read_object
from fvlm_lib.screens.loaded_towers import RANDOM
from fvlm_lib.vision.models import Vision, open_vision
from fvlm_lib.vision.opened_tower import Tower, check_frame
from fvlm_lib.vlm.vlms import ARCHITECTURES, VLM


@dataclass(frozen=True)
class Weightless:
    """model: on the meta device; what tells of a tower's grid has memory, without numbers. vision: its way from pixels
    to tokens. frame: (frames, C, height, width) on the meta device, a frame as the vision tower gets it. text: the
    whole model again if it is one of vision and language that is known, else None."""

    name: str
    model: nn.Module
    vision: Vision
    frame: Tensor
    text: Any


def open_weightless(name: str, size: tuple[int, int]) -> Weightless:
    """A vision-language model, a vision tower or a foveated checkpoint by folder or hub id, or one of
    `loaded_towers.RANDOM`; no weights are read. size: (height, width) in pixels of the frames that come.

    Only a hub id that is no folder touches the network; nothing executes code of a file.
    Raises CheckpointError where there is no such model, ValueError where the frames are smaller than a patch.
    """
    config = _config(name)
    if config.model_type in ARCHITECTURES and name not in RANDOM:  # which are towers, of a frame or a tile of one
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(config).eval()
        vlm = VLM(name, model, _read(name, "processor", AutoProcessor))
        try:
            frame = vlm.pixel_values(np.zeros((*size, 3), np.uint8))
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # whatever a processor stumbles on
            raise CheckpointError(
                f"the processor of {name} makes no frame of {size[1]} x {size[0]} pixels ({first_line(error)})"
            ) from error
        return Weightless(name, model, _opened(model), frame, model)
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(getattr(config, "vision_config", config)).eval()
    except (ValueError, AttributeError) as error:  # of a config that has no model, or lacks what its model reads
        raise CheckpointError(f"{name} has no vision tower that can be planned ({first_line(error)})") from error
    vision = _opened(model)
    height, width = _frame_size(name, config, vision, size)
    frame = torch.empty(1, vision.tower.num_channels if vision.tower else 3, height, width, device="meta")
    if vision.tower:
        check_frame(vision.tower, frame)
    return Weightless(name, model, vision, frame, None)


def _opened(model: Any) -> Vision:
    """The model's way from pixels to tokens. Where its tower can be opened, all but the tower's blocks and the language
    model gets memory, without numbers: what a tower says of a grid, the windows of its blocks say, is computed where
    the rest of it is."""
    vision = open_vision(model, pack_weights=None)
    if isinstance(vision.tower, Tower):
        parts = [part for block in vision.tower.blocks for part in vars(block).values() if isinstance(part, nn.Module)]
        text = [
            part for part in (getattr(model.base_model, "language_model", None), model.get_output_embeddings()) if part
        ]
        weightless = {module for part in (*parts, *text) for module in part.modules()}
        for module in model.modules():
            if module not in weightless:
                module.to_empty(device="cpu", recurse=False)
    return vision


def _config(name: str) -> Any:
    if name in RANDOM:
        return RANDOM[name].config
    if name.startswith("random:"):
        raise CheckpointError(f"there is no {name}; known are {', '.join(RANDOM)}")
    folder = Path(name)
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
            raise CheckpointError(f"there is no folder {name}; name a model's folder, or a hub id such as OWNER/MODEL")
    elif not (folder / "config.json").exists():
        raise CheckpointError(f"{name} has no config.json; name a folder as save_pretrained writes it")
    elif read_object(folder / "config.json", CheckpointError).get("model_type") == FoveatedVLMConfig.model_type:
        return _read(name, "config", FoveatedVLMConfig)
    return _read(name, "config", AutoConfig)


def _read(name: str, part: str, kind: Any) -> Any:
    try:
        return kind.from_pretrained(name, local_files_only=Path(name).is_dir(), trust_remote_code=False)
    except Exception as error:  # transformers raises a dozen kinds for what a folder may lack
        raise CheckpointError(f"{name} has no {part} that can be loaded ({first_line(error)})") from error


def _frame_size(name: str, config: Any, vision: Vision, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the frames that a tower gets: its own, or whole patches of the frames that come."""
    tower = vision.tower
    own = tower.image_size if tower else getattr(vision.module.config, "image_size", None)
    if isinstance(config, FoveatedVLMConfig):
        own = config.image_size
    elif name in RANDOM:
        own = RANDOM[name].size
    if own is not None:
        return (own, own) if isinstance(own, int) else (int(own[0]), int(own[1]))
    if vision.patch_size is None:
        raise CheckpointError(
            f"{name} is no vision tower: its config says neither the size of frames nor that of patches"
        )
    height, width = (side // patch * patch for side, patch in zip(size, vision.patch_size, strict=True))
    if not height or not width:
        raise ValueError(
            f"a frame of {size[1]} x {size[0]} pixels is smaller than a patch of {name}, "
            f"{vision.patch_size[1]} x {vision.patch_size[0]}"
        )
    return height, width
