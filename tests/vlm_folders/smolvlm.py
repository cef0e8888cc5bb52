"""Tiny SmolVLM2 and Idefics3: tiles of 32 x 32 pixels, 4 x 4 patches and 4 tokens each, up to 3 x 3 and the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from vlm_folders.parts import SHAPE, byte_tokenizer

TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
TILES = [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
TOKENS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<video>", *TILES]
SIZES = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}}


def save_smolvlm(folder: Path) -> Path:
    """Its processor wants the package num2words."""
    tokenizer = byte_tokenizer(*TOKENS)
    SmolVLMForConditionalGeneration(SmolVLMConfig(**_config(tokenizer))).save_pretrained(folder)
    video = SmolVLMVideoProcessor(**SIZES)
    SmolVLMProcessor(
        SmolVLMImageProcessor(**SIZES), tokenizer, video, image_seq_len=4, chat_template=TEMPLATE
    ).save_pretrained(folder)
    return folder


def save_idefics3(folder: Path) -> Path:
    """Of the same sizes."""
    tokenizer = byte_tokenizer(*TOKENS)
    Idefics3ForConditionalGeneration(Idefics3Config(**_config(tokenizer))).save_pretrained(folder)
    Idefics3Processor(
        Idefics3ImageProcessor(**SIZES), tokenizer, image_seq_len=4, chat_template=TEMPLATE
    ).save_pretrained(folder)
    return folder


def _config(tokenizer: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8, "initializer_range": 0.3,
        },
        "text_config": {"model_type": "llama", **SHAPE, "vocab_size": len(tokenizer), "pad_token_id": 1},
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
        "pad_token_id": 1,
    }  # fmt: skip
