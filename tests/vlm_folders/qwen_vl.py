"""Tiny Qwen2.5-VL, Qwen3-VL and Qwen3.5: patches of 8 pixels, merged 2 x 2, in frames of up to 96 x 96 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from vlm_folders.parts import SHAPE, byte_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SIZES = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
LIMITS = {"shortest_edge": 16 * 16, "longest_edge": 96 * 96}
VISION = {
    "depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "out_hidden_size": 32, "initializer_range": 0.3,
}  # fmt: skip


def save_qwen2_5_vl(folder: Path) -> Path:
    """Windows of 2 x 2 tokens, one block of full attention in two."""
    tokenizer = byte_tokenizer(*TOKENS)
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        vision_config=VISION | {"window_size": 32, "fullatt_block_indexes": [1, 3]},
        text_config=SHAPE | _rope("default") | {"vocab_size": len(tokenizer)},
        **_ids(tokenizer),
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    images = Qwen2VLImageProcessor(size=LIMITS, **SIZES)
    video = Qwen2VLVideoProcessor(size=LIMITS, **SIZES)
    Qwen2_5_VLProcessor(images, tokenizer, video, chat_template=TEMPLATE).save_pretrained(folder)
    return folder


def save_qwen3_vl(folder: Path) -> Path:
    """Features of two of four blocks of the tower are added to the outputs of the first two of three layers."""
    tokenizer = byte_tokenizer(*TOKENS)
    torch.manual_seed(0)
    text = SHAPE | _rope("default", mrope_interleaved=True) | {"num_hidden_layers": 3, "head_dim": 16}
    config = Qwen3VLConfig(
        vision_config=VISION | {"num_position_embeddings": 36, "deepstack_visual_indexes": [0, 2]},
        text_config=text | {"vocab_size": len(tokenizer)},
        **_ids(tokenizer),
    )
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    _save_qwen3_processor(folder, tokenizer)
    return folder


def save_qwen3_5(folder: Path) -> Path:
    """One layer of linear attention, and one of full attention."""
    tokenizer = byte_tokenizer(*TOKENS)
    torch.manual_seed(0)
    linear = {f"linear_{name}_head_dim": 16 for name in ("key", "value")}
    linear |= {f"linear_num_{name}_heads": 2 for name in ("key", "value")}
    text = SHAPE | _rope("default", mrope_interleaved=True, partial_rotary_factor=1.0) | linear
    text |= {"head_dim": 16, "layer_types": ["linear_attention", "full_attention"]}
    text |= {"vocab_size": len(tokenizer) + 1}  # loading adds one
    config = Qwen3_5Config(vision_config=VISION | {"num_position_embeddings": 36}, text_config=text, **_ids(tokenizer))
    Qwen3_5ForConditionalGeneration(config).save_pretrained(folder)
    _save_qwen3_processor(folder, tokenizer)
    return folder


def _save_qwen3_processor(folder: Path, tokenizer: Any) -> None:
    images = Qwen2VLImageProcessor(size=LIMITS, image_mean=[0.5] * 3, image_std=[0.5] * 3, **SIZES)
    video = Qwen3VLVideoProcessor(size=LIMITS, **SIZES)
    Qwen3VLProcessor(images, tokenizer, video, chat_template=TEMPLATE).save_pretrained(folder)


def _rope(kind: str, **options: Any) -> dict[str, Any]:
    return {
        "rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "mrope_section": [2, 3, 3], **options},
        "max_position_embeddings": 2048,
    }


def _ids(tokenizer: Any) -> dict[str, int]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, tokenizer.convert_tokens_to_ids(list(TOKENS)), strict=True))
