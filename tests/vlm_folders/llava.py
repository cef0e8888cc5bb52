"""Tiny LLaVA 1.5, LLaVA-OneVision and FastVLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    SiglipVisionConfig,
)
from transformers.models.timm_wrapper import TimmWrapperConfig

from fvlm_lib.screens.random_fast_vit import initialise_fast_vit
from fvlm_lib.vlm.assemble import CHAT_TEMPLATE, RANDOM_LLAMA, assemble_llava
from vlm_folders.parts import byte_tokenizer, small_text


def save_llava(folder: Path) -> Path:
    """CLIP with 16 x 16 patches in front of a Llama over bytes."""
    return assemble_llava(RANDOM_LLAMA, "random:clip-tiny", folder)


def save_fast_vlm(folder: Path) -> Path:
    """The smallest FastViT, 4 x 4 tokens, one for 32 x 32 pixels."""
    tokenizer = byte_tokenizer("<image>")
    torch.manual_seed(0)
    vision = TimmWrapperConfig(
        architecture="fastvit_mci0", model_args={"inference_mode": True}, hidden_size=1024, do_pooling=True
    )
    config = FastVlmConfig(
        vision_config=vision, text_config=small_text(tokenizer), image_token_index=len(tokenizer) - 1
    )
    model: Any = FastVlmForConditionalGeneration(config).eval()
    initialise_fast_vit(model.model.vision_tower.timm_model)
    model.save_pretrained(folder)
    images = CLIPImageProcessor(
        size={"height": 128, "width": 128}, do_center_crop=False, image_mean=(0.0,) * 3, image_std=(1.0,) * 3
    )
    LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=32, vision_feature_select_strategy="full",
        num_additional_image_tokens=0, chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_onevision(folder: Path) -> Path:
    """LLaVA-OneVision: SigLIP with 6 x 6 patches of 8 pixels."""
    tokenizer = byte_tokenizer("<image>", "<video>")
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=48, patch_size=8,
        vision_use_head=False,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=small_text(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[48, 96], [96, 48], [96, 96]],
    )
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            size={"height": 48, "width": 48}, image_grid_pinpoints=config.image_grid_pinpoints
        ),
        tokenizer=tokenizer,
        video_processor=_video_processor(),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def _video_processor():
    from transformers import LlavaOnevisionVideoProcessor

    return LlavaOnevisionVideoProcessor(size={"height": 48, "width": 48})
