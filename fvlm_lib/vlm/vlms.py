"""Vision-language models of transformers, taken frame by frame: loading, frames to pixels, prompts, embeddings.

What the known architectures have in common is all that a stream needs: a screenshot becomes `pixel_values`, the
vision tower's tokens take the place of the prompt's image tokens, and the language model goes on from embeddings.
In what they differ is said in `architectures/`. How tokens are encoded is `differential.py`'s subject, how a stream is
answered `stream.py`'s.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from fvlm_lib.vlm.architectures import ARCHITECTURES
from fvlm_lib.vlm.architectures.architecture import Architecture, Frame
from fvlm_lib.vlm.chat_template import render_chat
from fvlm_lib.vlm.prompts import Prompt

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "chat_template.json", "generation_config.json")


@dataclass(frozen=True)
class Encoded:
    """A frame, its vision tokens (1, P, D), and what is added to them at the language model's first layers, one of that
    shape a layer."""

    frame: Frame
    tokens: Tensor
    deepstack: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class VLM:
    """A vision-language model of transformers with its processor; what its architecture makes of frames and prompts is
    said in `architectures/`."""

    name: str
    model: Any
    processor: Any

    @property
    def architecture(self) -> Architecture:
        """How models of its type take a frame and a prompt."""
        return ARCHITECTURES[self.model.config.model_type]

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels of the frames that the vision tower sees; None where it depends on the frame."""
        return self.architecture.image_size(self.processor)

    def share_cut_off(self, height: int, width: int) -> float:
        """Which share of a frame's pixels the model's own processor crops away."""
        images, size = self.processor.image_processor, self.image_size
        if size is None or not getattr(images, "do_center_crop", False) or getattr(images, "do_pad", False):
            return 0.0
        edge = images.size.get("shortest_edge")
        if not edge:
            return 0.0
        scale = edge / min(height, width)
        kept = [min(1.0, crop / (side * scale)) for crop, side in zip(size, (height, width), strict=True)]
        return 1.0 - kept[0] * kept[1]

    def frame(self, screenshot: np.ndarray, fit: Fit = "processor") -> Frame:
        """A screenshot uint8 (H, W, 3) as the model's processor makes it, float32.

        fit: "processor" leaves resizing and cropping to the processor; "squash" and "pad" bring the whole frame to
        the tower's size first, distorted or with black borders, so that nothing is cropped away. Raises ValueError for
        these two of a model whose frames have no one size.
        """
        check(Fit, fit, "fit")
        image = Image.fromarray(screenshot)
        if fit != "processor":
            if self.image_size is None:
                raise ValueError(
                    f"fit is {fit!r}, but {self.name} takes whole frames of any size; leave it at 'processor'"
                )
            height, width = self.image_size
            resized = image.resize if fit == "squash" else functools.partial(ImageOps.pad, image)
            image = resized((width, height), Image.Resampling.BICUBIC)
        frame = self.architecture.frame(self.processor, image)
        return replace(frame, pixel_values=frame.pixel_values.to(self.model.device, torch.float32))

    def pixel_values(self, screenshot: np.ndarray, fit: Fit = "processor") -> Tensor:
        """The pixels of `frame`: (1, 3, height, width), or (tiles, 3, height, width)."""
        return self.frame(screenshot, fit).pixel_values

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

    def input_ids(self, prompt_ids: list[int], encoded: Encoded) -> list[int]:
        """The prompt's ids with all tokens of the image where one id stands for it."""
        place = prompt_ids.index(self.model.config.image_token_id)
        image = self.architecture.image_ids(self.processor, encoded.frame, encoded.tokens.shape[1])
        return [*prompt_ids[:place], *image, *prompt_ids[place + 1 :]]

    def prompt(self, prompt_ids: list[int], encoded: Encoded) -> Prompt:
        """The prompt as the language model takes it, the image's vision tokens in place of its image tokens.

        Raises ValueError where these are not as many.
        """
        ids = torch.tensor([self.input_ids(prompt_ids, encoded)], device=self.model.device)
        observed, count = ids[0] == self.model.config.image_token_id, encoded.tokens.shape[1]
        if int(observed.sum()) != count:
            raise ValueError(
                f"the processor of {self.name} gives a frame {int(observed.sum())} image tokens, but its vision tower "
                f"makes {count}"
            )
        embeds = self.model.get_input_embeddings()(ids)
        embeds[0, observed] = encoded.tokens[0].to(embeds)
        additions = []
        for features in encoded.deepstack:
            addition = torch.zeros_like(embeds[0])
            addition[observed] = features[0].to(addition)
            additions.append(addition)
        positions = self.architecture.positions
        return Prompt(
            embeds,
            observed,
            position_ids=positions(self.model, ids, encoded.frame) if positions else None,
            additions=tuple(additions),
        )


def load_vlm(name: str, device: str = "cpu", dtype: torch.dtype | None = None) -> VLM:
    """A vision-language model of a known architecture by folder or hub id, in eval mode, strictly.

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
    check_processor(vlm)
    return vlm


def check_processor(vlm: VLM) -> None:
    """Raise CheckpointError where the processor's tokens or frames are not those that the model knows."""
    tokens, embeddings = len(vlm.processor.tokenizer), vlm.model.get_input_embeddings().num_embeddings
    if tokens > embeddings:
        raise CheckpointError(f"{vlm.name}: its tokenizer has {tokens} tokens, but its model embeds {embeddings}")
    token, wanted = vlm.processor.image_token, vlm.model.config.image_token_id
    if vlm.processor.tokenizer.convert_tokens_to_ids(token) != wanted:
        raise CheckpointError(f"{vlm.name}: its processor's image token {token} is not its model's, of id {wanted}")
    try:
        misfit = vlm.architecture.misfit(vlm.processor, vlm.model.config)
    except (KeyError, TypeError, AttributeError):
        misfit = "its processor does not say the height and width of its frames in pixels"
    if misfit:
        raise CheckpointError(f"{vlm.name}: {misfit}")


def _read(name: str, part: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises a dozen kinds for what a folder may lack
        raise CheckpointError(f"{name} has no {part} that can be loaded ({first_line(error)})") from error
