"""LLaVA 1.5 and FastVLM: frames of one size, that of the vision tower."""

from __future__ import annotations

from typing import Any

from PIL import Image

from fvlm_lib.vlm.architectures.architecture import Architecture, Frame, image_token_ids


def frame(processor: Any, screenshot: Image.Image) -> Frame:
    """Resized and cropped by the processor."""
    return Frame(processor.image_processor(images=screenshot, return_tensors="pt")["pixel_values"])


def image_size(processor: Any) -> tuple[int, int]:
    """Of the crop, or what is resized to."""
    images = processor.image_processor
    size = images.crop_size if getattr(images, "do_center_crop", False) else images.size
    edge = size.get("shortest_edge")
    return (edge, edge) if edge else (size["height"], size["width"])


def misfit(processor: Any, config: Any) -> str | None:
    """Frames of another size than the tower's."""
    size = image_size(processor)
    own, patch = (getattr(config.vision_config, name, None) for name in ("image_size", "patch_size"))
    if not (isinstance(own, int) and isinstance(patch, int)) or size == (own, own):
        return None
    grids = [f"{height // patch} x {width // patch}" for height, width in (size, (own, own))]
    return (
        f"its processor makes frames of {size[0]} x {size[1]} pixels, a grid of {grids[0]} patches, "
        f"but its vision tower has positions for {own} x {own} pixels, {grids[1]} patches"
    )


LLAVA = Architecture(frame, image_size, image_token_ids, misfit)
