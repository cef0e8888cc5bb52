"""What the tiny models have in common: a tokenizer over bytes, and a small Qwen2 behind them."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Config

from fvlm_lib.vlm.assemble import random_llama

SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def byte_tokenizer(*special: str, **named: str) -> Any:
    """Over bytes, with special tokens, and others that it knows by a name as well."""
    tokenizer = random_llama()[1]
    tokenizer.add_special_tokens({"extra_special_tokens": [*special, *named.values()]})
    if named:
        tokenizer._set_model_specific_special_tokens(named)
    return tokenizer


def small_text(tokenizer: Any) -> Qwen2Config:
    """A Qwen2 of two layers, its weights so large that what it says depends on what it sees."""
    return Qwen2Config(**SHAPE, vocab_size=len(tokenizer))
