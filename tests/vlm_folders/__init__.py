"""Tiny random vision-language models with their processors, saved as folders by a script without network."""

from __future__ import annotations

from vlm_folders.internvl import save_internvl
from vlm_folders.llava import save_fast_vlm, save_llava, save_onevision
from vlm_folders.qwen_vl import save_qwen2_5_vl, save_qwen3_5, save_qwen3_vl
from vlm_folders.smolvlm import save_idefics3, save_smolvlm

SAVERS = {
    "llava": save_llava,
    "llava_onevision": save_onevision,
    "fast_vlm": save_fast_vlm,
    "qwen2_5_vl": save_qwen2_5_vl,
    "qwen3_vl": save_qwen3_vl,
    "qwen3_5": save_qwen3_5,
    "internvl": save_internvl,
    "smolvlm": save_smolvlm,
    "idefics3": save_idefics3,
}
