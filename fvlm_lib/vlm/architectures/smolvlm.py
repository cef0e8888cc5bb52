"""SmolVLM2 and Idefics3: a frame is cut into square tiles, and the small whole comes last.

In the prompt, each tile's tokens follow a token that tells its row and column, so the image's tokens stand in blocks
between text.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from fvlm_lib.vlm.architectures.architecture import Architecture, Frame, own_size


def frame(processor: Any, screenshot: Image.Image) -> Frame:
    """Tiles (tiles, C, side, side) in reading order, then the small whole; that alone of a frame of one tile.

    Raises ValueError for more rows or columns than the tokenizer has tokens for.
    """
    done = processor.image_processor(images=screenshot, return_row_col_info=True, return_tensors="pt")
    rows, columns = int(done["rows"][0][0]), int(done["cols"][0][0])
    known = processor.tokenizer.get_added_vocab()
    last = f"<row_{rows}_col_{columns}>"
    if rows and "<row_1_col_1>" in known and last not in known:
        raise ValueError(
            f"a screenshot of {screenshot.width} x {screenshot.height} pixels becomes {rows} x {columns} tiles, but "
            f"the tokenizer has no token {last}; lower the processor's size"
        )
    return Frame(done["pixel_values"][0], (rows, columns))


def image_ids(processor: Any, frame: Frame, count: int) -> list[int]:
    """As the processor has it."""
    rows, columns = frame.tiles
    text = processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def misfit(processor: Any, config: Any) -> str | None:
    """Tiles of another size than the tower's, or with another number of tokens."""
    vision, side = config.vision_config, processor.image_processor.max_image_size["longest_edge"]
    if side != vision.image_size:
        return (
            f"its processor makes tiles of {side} x {side} pixels, but its vision tower has positions for "
            f"{vision.image_size} x {vision.image_size}"
        )
    made, wanted = processor.image_seq_len, (side // vision.patch_size) ** 2 // config.scale_factor**2
    if made != wanted:
        return f"its processor gives a tile {made} image tokens (image_seq_len), but its vision tower makes {wanted}"
    return None


SMOLVLM = Architecture(frame, own_size, image_ids, misfit)
