"""InternVL3: a frame is cut into tiles of one size, their grid the nearest to its aspect ratio, and a small whole last.

Each tile gives as many tokens; they stand one behind the other, between the tokens that open and close an image.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from fvlm_lib.vlm.architectures.architecture import Architecture, Frame, own_size


def frame(processor: Any, screenshot: Image.Image) -> Frame:
    """Tiles (tiles, C, height, width) in reading order; a frame of one tile has no small whole."""
    images = processor.image_processor
    options = {**processor.images_kwargs, "return_tensors": "pt"}
    return Frame(images(images=screenshot, **options)["pixel_values"])


def image_ids(processor: Any, frame: Frame, count: int) -> list[int]:
    """As the processor has it."""
    text = processor.replace_image_token({"num_patches": [len(frame.pixel_values)]}, 0)
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def misfit(processor: Any, config: Any) -> str | None:
    """Tiles of another size than the tower's, or with another number of tokens."""
    vision, size = config.vision_config, processor.image_processor.size
    if (size.get("height"), size.get("width")) != tuple(vision.image_size):
        own = " x ".join(str(side) for side in vision.image_size)
        return (
            f"its processor makes tiles of {size.get('height')} x {size.get('width')} pixels, but its vision tower has "
            f"positions for {own} pixels"
        )
    rows, columns = (side // patch for side, patch in zip(vision.image_size, vision.patch_size, strict=True))
    made, wanted = processor.image_seq_length, int(rows * columns * config.downsample_ratio**2)
    if made != wanted:
        return f"its processor gives a tile {made} image tokens (image_seq_length), but its vision tower makes {wanted}"
    return None


INTERNVL = Architecture(frame, own_size, image_ids, misfit)
