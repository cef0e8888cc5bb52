"""Vision-language models of transformers, taken frame by frame: loading, frames to pixels, prompts, embeddings.

What the known architectures have in common is all that a stream needs: a screenshot becomes `pixel_values`, the
vision tower's tokens take the place of the prompt's image token, and the language model goes on from embeddings.
How tokens are encoded is `differential.py`'s subject, how a stream is answered `stream.py`'s.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from fvlm_lib.errors import CheckpointError, first_line
from fvlm_lib.foveated.checkpoints import TOKENIZER_FILES, check_json_files, check_parts
from fvlm_lib.foveated.weights import load_strictly
from fvlm_lib.json_files import read_object
from fvlm_lib.schema import Fit, check
from fvlm_lib.vlm.chat_template import render_chat

ARCHITECTURES = ("llava", "llava_onevision", "fast_vlm")
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "chat_template.json", "generation_config.json")


@dataclass(frozen=True)
class VLM:
    """A vision-language model of transformers with its processor.

    LLaVA-OneVision's frames are taken as a single crop each, as its processor does where a prompt has several
    images; behind an image's tokens its language model sees one newline embedding.
    """

    name: str
    model: Any
    processor: Any

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the frames that the vision tower sees."""
        size = self._crop_size or self.processor.image_processor.size
        edge = size.get("shortest_edge")
        return (edge, edge) if edge else (size["height"], size["width"])

    @property
    def _crop_size(self) -> Any:
        images = self.processor.image_processor
        return images.crop_size if getattr(images, "do_center_crop", False) else None

    def share_cut_off(self, height: int, width: int) -> float:
        """Which share of a frame's pixels the model's own processor crops away."""
        images = self.processor.image_processor
        edge = images.size.get("shortest_edge")
        if not (self._crop_size and edge) or getattr(images, "do_pad", False):
            return 0.0
        scale = edge / min(height, width)
        kept = [min(1.0, crop / (side * scale)) for crop, side in zip(self.image_size, (height, width), strict=True)]
        return 1.0 - kept[0] * kept[1]

    def pixel_values(self, frame: np.ndarray, fit: Fit = "processor") -> Tensor:
        """A screenshot uint8 (H, W, 3) as the model's processor makes it: float32 (1, 3, height, width).

        fit: "processor" leaves resizing and cropping to the processor; "squash" and "pad" bring the whole frame to
        the tower's size first, distorted or with black borders, so that nothing is cropped away.
        """
        check(Fit, fit, "fit")
        image = Image.fromarray(frame)
        height, width = self.image_size
        if fit == "squash":
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        elif fit == "pad":
            image = ImageOps.pad(image, (width, height), Image.Resampling.BICUBIC)
        # two images in one prompt: then LLaVA-OneVision's processor makes a single crop of each
        images = [[image, image]] if self.model.config.model_type == "llava_onevision" else image
        pixels = self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        pixels = pixels[:1, 0] if pixels.ndim == 5 else pixels
        return pixels.to(self.model.device, torch.float32)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a question about one image, by the processor's chat template; one id stands for the image.

        A prompt that already has the image token in it is taken as it is. Raises ValueError for a prompt with two
        of them, where there is neither template nor image token, and for a template that cannot be rendered.
        """
        image_token = self.processor.image_token
        text = prompt if image_token in prompt else self.chat(prompt)
        tokenizer = self.processor.tokenizer
        begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        ids = tokenizer(text, add_special_tokens=not begins)["input_ids"]
        count = ids.count(self.model.config.image_token_id)
        if count != 1:
            given = "the prompt has" if text is prompt else f"the chat template of {self.name} puts into the prompt"
            raise ValueError(f"{given} {count} image tokens ({image_token}); it must have one")
        return ids

    def chat(self, prompt: str) -> str:
        """The whole prompt of a question about one image, by the processor's chat template. Raises ValueError where
        there is none, or it cannot be rendered."""
        processor = self.processor
        template = processor.chat_template
        template = template.get("default") if isinstance(template, dict) else template
        advice = f"write the whole prompt, with {processor.image_token} where the image belongs"
        if not template:
            raise ValueError(f"the processor of {self.name} has no chat template; {advice}")
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        try:
            return render_chat(template, [{"role": "user", "content": content}], processor.tokenizer.special_tokens_map)
        except ValueError as error:
            raise ValueError(
                f"the chat template of {self.name} cannot be used ({error}); mend it, or {advice}"
            ) from None

    def embed(self, prompt_ids: list[int], tokens: Tensor) -> Tensor:
        """The prompt's embeddings (1, L, D) with the image's tokens (1, P, D) where its id stands."""
        place = prompt_ids.index(self.model.config.image_token_id)
        ids = torch.tensor([prompt_ids], device=self.model.device)
        embeds = self.model.get_input_embeddings()(ids)
        return torch.cat([embeds[:, :place], tokens.to(embeds), embeds[:, place + 1 :]], dim=1)


def load_vlm(name: str, device: str = "cpu", dtype: torch.dtype | None = None) -> VLM:
    """A LLaVA 1.5, LLaVA-OneVision or FastVLM model by folder or hub id, in eval mode, strictly.

    dtype: None as stored. Only a hub id that is no folder touches the network; nothing executes code of a file.

    Raises CheckpointError for a folder that has no model or no processor, an architecture that is not known, a
    damaged file, any weight that is missing, unexpected, of another shape or not finite, and for a processor whose
    frames or tokens are not those of the model.
    """
    local = Path(name).is_dir()
    if not local and (Path(name).is_absolute() or name.startswith(".") or name.count("/") != 1):
        raise CheckpointError(f"there is no folder {name}; name a model's folder, or a hub id such as OWNER/MODEL")
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    if local:
        check_json_files(Path(name), ("config.json", *PROCESSOR_FILES, *TOKENIZER_FILES))
    config = _read(name, "config", lambda: AutoConfig.from_pretrained(name, **options))
    if config.model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"{name} is of the architecture {config.model_type!r}; known are {', '.join(ARCHITECTURES)}"
        )
    if local:
        check_parts(Path(name) / "config.json", read_object(Path(name) / "config.json", CheckpointError))
    processor: Any = _read(name, "processor", lambda: AutoProcessor.from_pretrained(name, **options))
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise CheckpointError(
            f"{name} has no processor for images and text; save it there with processor.save_pretrained"
        )
    load = functools.partial(
        AutoModelForImageTextToText.from_pretrained, name, config=config, dtype=dtype or "auto", **options
    )
    model = _read(name, "model", lambda: load_strictly(name, load))
    vlm = VLM(name, model.to(device), processor)
    _check_processor(vlm)
    return vlm


def _check_processor(vlm: VLM) -> None:
    """Raise CheckpointError where the processor's tokens or frames are not those that the model knows."""
    tokens, embeddings = len(vlm.processor.tokenizer), vlm.model.get_input_embeddings().num_embeddings
    if tokens > embeddings:
        raise CheckpointError(f"{vlm.name}: its tokenizer has {tokens} tokens, but its model embeds {embeddings}")
    try:
        size = vlm.image_size
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{vlm.name}: its processor does not say the height and width of its frames in pixels"
        ) from None
    vision = vlm.model.config.vision_config
    own, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if isinstance(own, int) and isinstance(patch, int) and size != (own, own):
        grids = [f"{height // patch} x {width // patch}" for height, width in (size, (own, own))]
        raise CheckpointError(
            f"{vlm.name}: its processor makes frames of {size[0]} x {size[1]} pixels, a grid of {grids[0]} patches, "
            f"but its vision tower has positions for {own} x {own} pixels, {grids[1]} patches"
        )


def _read(name: str, part: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises a dozen kinds for what a folder may lack
        raise CheckpointError(f"{name} has no {part} that can be loaded ({first_line(error)})") from error
