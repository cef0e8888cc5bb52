"""LLaVA-OneVision: frames are taken as a single crop each, as its processor does where a prompt has several images.

Behind an image's tokens its language model sees one newline embedding, which counts as one of them.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from fvlm_lib.vlm.architectures.architecture import Architecture, Frame, image_token_ids
from fvlm_lib.vlm.architectures.llava import image_size, misfit


def frame(processor: Any, screenshot: Image.Image) -> Frame:
    """The first of two: of several images in one prompt, the processor makes a single crop each."""
    pixels = processor.image_processor(images=[[screenshot, screenshot]], return_tensors="pt")["pixel_values"]
    return Frame(pixels[:1, 0])


LLAVA_ONEVISION = Architecture(frame, image_size, image_token_ids, misfit)
