"""What a stream must know of a vision-language model's architecture: plain functions, one set for each `model_type`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """A screenshot as the vision tower takes it, normalised.

    pixel_values: (1, C, height, width), or (tiles, C, height, width) of a model that cuts frames up, in its own order.
    tiles: (rows, columns) of the tiles, the small whole not counted; (0, 0) where there are none.
    """

    pixel_values: Tensor
    tiles: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Architecture:
    """frame: (processor, screenshot) -> `Frame`, as the processor makes it of the one image of a prompt. image_size:
    processor -> (height, width) in pixels of all frames; None where they have sizes of their own, by the screenshot's.
    image_ids: (processor, frame, number of vision tokens) -> the token ids that stand for an image in a prompt, one
    image token a vision token. misfit: (processor, config) -> in words, what of the two does not go together; raises
    KeyError, TypeError or AttributeError for a processor that does not say it.
    positions: (model, input_ids (1, N), frame) -> multimodal rotary positions (3, 1, N); None for positions that count
    up.
    """

    frame: Callable[[Any, Image.Image], Frame]
    image_size: Callable[[Any], tuple[int, int] | None]
    image_ids: Callable[[Any, Frame, int], list[int]]
    misfit: Callable[[Any, Any], str | None]
    positions: Callable[[Any, Tensor, Frame], Tensor] | None = None


def image_token_ids(processor: Any, frame: Frame, count: int) -> list[int]:
    """An image is its image tokens."""
    return [processor.tokenizer.convert_tokens_to_ids(processor.image_token)] * count


def own_size(processor: Any) -> None:
    """Frames have a size of their own."""
    return None
