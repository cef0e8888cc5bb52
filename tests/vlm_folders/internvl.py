"""A tiny InternVL3: up to 4 tiles of 32 x 32 pixels, 4 x 4 patches and 4 tokens each."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)

from vlm_folders.parts import byte_tokenizer, small_text

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENS = {
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}  # fmt: skip
SIZE = {"height": 32, "width": 32}


def save_internvl(folder: Path) -> Path:
    """Tiles of 4 x 4 patches, of which 2 x 2 become one token."""
    tokenizer = byte_tokenizer(**TOKENS)
    torch.manual_seed(0)
    config = InternVLConfig(
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
            "image_size": 32, "patch_size": 8, "initializer_range": 0.3, "layer_scale_init_value": 0.5,
        },
        text_config=small_text(tokenizer).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )  # fmt: skip
    InternVLForConditionalGeneration(config).save_pretrained(folder)
    InternVLProcessor(
        GotOcr2ImageProcessor(size=SIZE, max_patches=4), tokenizer, InternVLVideoProcessor(size=SIZE),
        image_seq_length=4, chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    return folder
