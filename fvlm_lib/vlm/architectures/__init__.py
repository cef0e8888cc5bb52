"""The vision-language models that are known, by the `model_type` of their config; one line an architecture."""

from __future__ import annotations

from fvlm_lib.vlm.architectures.architecture import Architecture
from fvlm_lib.vlm.architectures.internvl import INTERNVL
from fvlm_lib.vlm.architectures.llava import LLAVA
from fvlm_lib.vlm.architectures.llava_onevision import LLAVA_ONEVISION
from fvlm_lib.vlm.architectures.qwen_vl import QWEN_VL
from fvlm_lib.vlm.architectures.smolvlm import SMOLVLM

ARCHITECTURES: dict[str, Architecture] = {
    "llava": LLAVA,
    "llava_onevision": LLAVA_ONEVISION,
    "fast_vlm": LLAVA,
    "qwen2_5_vl": QWEN_VL,
    "qwen3_vl": QWEN_VL,
    "qwen3_5": QWEN_VL,
    "internvl": INTERNVL,
    "smolvlm": SMOLVLM,
    "idefics3": SMOLVLM,
}
