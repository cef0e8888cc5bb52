"""Language models opened at their layers: those that fit, and those that are refused by name."""

from __future__ import annotations

import pytest
import torch
from language_models import NAMES, make
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    Qwen2Config,
)

from fvlm_lib.language.decoders import open_decoder
from fvlm_lib.reuse.blocks import rotate, turn

TINY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_fits_is_opened(name):
    model = make(name)
    decoder = open_decoder(model)
    assert len(decoder.blocks) == model.config.num_hidden_layers
    assert decoder.blocks[0].q_proj is model.model.layers[0].self_attn.q_proj
    assert decoder.max_positions == 512


@pytest.mark.parametrize("name", NAMES)
def test_turning_on_is_rotating_at_the_new_position(name):
    decoder = open_decoder(make(name))
    generator = torch.Generator().manual_seed(0)
    old, new = (decoder.rotation(torch.randint(500, (1, 5), generator=generator)) for _ in range(2))
    states = torch.randn(1, 2, 5, old[0].shape[-1], generator=generator, dtype=torch.float64)
    torch.testing.assert_close(turn(rotate(states, old), old, new), rotate(states, new), rtol=0, atol=1e-12)


def refused(config) -> str:
    with pytest.raises(TypeError) as raised:
        open_decoder(AutoModelForCausalLM.from_config(config).eval())
    assert str(raised.value).endswith("; use the exact prefix for it (prefill 'exact')")
    return str(raised.value)


def test_what_does_not_fit_is_refused_by_name():
    wanted = "the language model MistralModel cannot be opened: its attention has a sliding window of 8 tokens; "
    assert refused(MistralConfig(**TINY, sliding_window=8)).startswith(wanted)
    assert open_decoder(AutoModelForCausalLM.from_config(MistralConfig(**TINY, sliding_window=64)).eval())
    sliding = Qwen2Config(**TINY, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert "it has layers of the type sliding_attention" in refused(sliding)
    assert "pre_feedforward_layernorm" in refused(Gemma2Config(**TINY, head_dim=8, layer_types=["full_attention"] * 2))
    assert "Olmo2Model cannot be opened: its layers have the parts" in refused(Olmo2Config(**TINY))
    assert "MambaForCausalLM is no causal language model with layers" in refused(
        MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=50, state_size=4)
    )
    assert "GPT2LMHeadModel is no causal" in refused(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50))
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert "its rotary positions are dynamic" in refused(Qwen2Config(**TINY, rope_parameters=rope))
    assert "GraniteModel computes something else than a pre-norm decoder" in refused(
        GraniteConfig(**TINY, residual_multiplier=0.5)
    )


def test_a_vision_tower_is_no_language_model():
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(TypeError, match="CLIPVisionModel is no causal language model"):
        open_decoder(CLIPVisionModel(config))
