"""Causal language models of transformers opened at their layers: any pre-norm decoder with rotary positions that fits.

There is no list of architectures. The parts are found by the names that transformers gives them (those of Llama, Qwen2,
Qwen3, Mistral and their like), and what the opened parts compute is held against the model itself on a few tokens; a
model that computes something else is refused by name. This module knows nothing of caches and updates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fvlm_lib.reuse.attention import attention
from fvlm_lib.reuse.blocks import Block, Rotation, joined
from fvlm_lib.reuse.fastest import PackWeights, few_rows_blocks

ADVICE = "use the exact prefix for it (prefill 'exact')"
_LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_OTHER_ROTATIONS = ("dynamic", "longrope")  # whose angles depend on the length of the prompt
_PROBE_TOKENS = 6


@dataclass(frozen=True)
class Decoder:
    """A decoder taken apart: embeddings (1, N, D) -> blocks -> final_norm -> lm_head.

    rotary: (x, position_ids) -> cos and sin (1, N, d), the model's own; position_ids (1, N), or (3, 1, N) for
    multimodal ones. max_positions: length of the context in tokens.
    """

    name: str
    blocks: tuple[Block, ...]
    final_norm: nn.Module
    lm_head: nn.Module
    rotary: Callable[[Tensor, Tensor], Rotation]
    width: int
    max_positions: int
    dtype: torch.dtype
    device: torch.device
    packed: bool = False

    def rotation(self, position_ids: Tensor) -> Rotation:
        """cos and sin (N, d) of positions (..., 1, N)."""
        cos, sin = self.rotary(torch.empty(0, dtype=self.dtype, device=self.device), position_ids)
        return cos[0], sin[0]

    def logits(self, x: Tensor) -> Tensor:
        """(n, vocabulary) from the last block's output (n, D)."""
        return self.lm_head(self.final_norm(x))


def open_decoder(model: nn.Module, pack_weights: PackWeights | None = None, pack_memory: int | None = None) -> Decoder:
    """The parts of a causal language model, or of the one in a vision-language model; shares its weights.

    pack_weights, pack_memory: None for the model's own layers, else as in `fastest.few_rows_blocks`.
    Raises TypeError, naming the model and what does not fit, for one that is no pre-norm decoder with rotary positions:
    other parts, sliding windows, other layer types, positions that depend on the prompt's length, or other arithmetic.
    """
    inner, lm_head = language_model(model), getattr(model, "lm_head", None)
    name = type(model).__name__
    if inner is None or not isinstance(lm_head, nn.Module):
        raise TypeError(f"{name} is no causal language model with layers and an lm_head; {ADVICE}")
    config: Any = inner.config
    if unfit := _misfit(inner, config):
        linear = "linear_attention" in _layer_types(config)  # of which no exact prefix can be kept either
        advice = "compute all of every prompt (prefill 'full')" if linear else ADVICE
        raise TypeError(f"the language model {type(inner).__name__} cannot be opened: {unfit}; {advice}")
    blocks = tuple(_block(layer, config) for layer in inner.layers[: config.num_hidden_layers])
    weight = inner.embed_tokens.weight
    decoder = Decoder(
        name=type(inner).__name__,
        blocks=blocks,
        final_norm=inner.norm,
        lm_head=lm_head,
        rotary=inner.rotary_emb,
        width=weight.shape[1],
        max_positions=int(config.max_position_embeddings),
        dtype=weight.dtype,
        device=weight.device,
    )
    _check_arithmetic(decoder, inner)
    if pack_weights is None:
        return decoder
    blocks, packed, _ = few_rows_blocks(blocks, pack_weights, pack_memory)
    return dataclasses.replace(decoder, blocks=blocks, packed=packed)


def language_model(model: Any) -> Any:
    """The stack of layers: of a causal language model its `model`, of a vision-language model the one below that; None
    where there is none."""
    inner = getattr(model, "model", None)
    inner = getattr(inner, "language_model", None) or getattr(inner, "text_model", inner)
    return inner if all(hasattr(inner, part) for part in ("layers", "norm", "rotary_emb", "embed_tokens")) else None


def _layer_types(config: Any) -> set[str]:
    return {*(getattr(config, "layer_types", None) or ["full_attention"])}


def _misfit(inner: Any, config: Any) -> str | None:
    """What of a decoder does not fit, in words."""
    if others := _layer_types(config) - {"full_attention"}:
        return f"it has layers of the type {', '.join(sorted(others))}"
    window = None if hasattr(config, "layer_types") else getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        return f"its attention has a sliding window of {window} tokens"
    if rotation := next((kind for kind in _OTHER_ROTATIONS if kind == inner.rotary_emb.rope_type), None):
        return f"its rotary positions are {rotation}, so they depend on the length of the prompt"
    for layer in inner.layers:
        parts = {name for name, _ in layer.named_children()}
        if parts != _LAYER_PARTS:
            return f"its layers have the parts {', '.join(sorted(parts))}, not {', '.join(sorted(_LAYER_PARTS))}"
        parts = {name for name, _ in layer.self_attn.named_children()} - {"q_norm", "k_norm", "rotary_emb"}
        if parts != _ATTENTION_PARTS:
            return f"its attention has the parts {', '.join(sorted(parts))}, not {', '.join(sorted(_ATTENTION_PARTS))}"
    return None


def _block(layer: Any, config: Any) -> Block:
    attention_part = layer.self_attn
    return Block(
        norm1=layer.input_layernorm,
        q_proj=attention_part.q_proj,
        k_proj=attention_part.k_proj,
        v_proj=attention_part.v_proj,
        o_proj=attention_part.o_proj,
        norm2=layer.post_attention_layernorm,
        mlp=layer.mlp,
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        q_norm=getattr(attention_part, "q_norm", None) or nn.Identity(),
        k_norm=getattr(attention_part, "k_norm", None) or nn.Identity(),
        scaling=attention_part.scaling,
    )


@torch.no_grad()
def _check_arithmetic(decoder: Decoder, inner: Any) -> None:
    """TypeError unless the opened parts give a few tokens the hidden states that the model gives them."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = inner.embed_tokens.weight.shape[0]
    ids = torch.randint(vocabulary, (1, _PROBE_TOKENS), generator=generator).to(decoder.device)
    x = inner.embed_tokens(ids)
    rows = torch.arange(_PROBE_TOKENS, device=decoder.device)
    wanted = inner(inputs_embeds=x, use_cache=False).last_hidden_state
    rotation = decoder.rotation(rows[None])
    try:
        for block in decoder.blocks:
            q, k, v = block.queries_keys_values(x, rotation)
            x = block.finish(x, joined(attention(q, k, v, block.scaling, rows)[0]))
        found = decoder.final_norm(x)
        error = float((found - wanted).norm() / wanted.norm())
    except (RuntimeError, TypeError, AttributeError, ValueError) as problem:  # whatever other arithmetic stumbles on
        raise TypeError(f"the language model {decoder.name} cannot be opened ({problem}); {ADVICE}") from None
    allowed = 0.1 if torch.finfo(decoder.dtype).bits == 16 else 1e-3
    if not error < allowed:
        raise TypeError(
            f"the language model {decoder.name} computes something else than a pre-norm decoder (its hidden states "
            f"differ by {error:.2g}, relative L2); {ADVICE}"
        )
