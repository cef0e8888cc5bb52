"""State dicts of foveated VLMs without a config: their key names, and the config that their weights imply.

Two layouts. *Released*: `encoder.dino.*`, `encoder.query_input_proj.weight`, `encoder.output_proj.*`,
`dino_to_llm.*`, `llm_to_query.*`, `q_static`, `q_init`, `llm.model.*`, `llm.lm_head.weight` unless tied. Visual
tokens are only scaled, and the caption follows them. *Legacy*: `coarse_token`, `fine_token`, `no_text_token`
and `video_end_token` besides, and visual tokens are divided by one standard deviation of the whole batch; its
code has `encoder.query_output_proj.*` for `encoder.output_proj.*`, and either name is taken in both layouts.
In both, queries walk through every layer of the vision tower, and frames are 224 pixels on a side with
ImageNet's mean and standard deviation; an image counts as a video of 8 equal frames. Both are those of
github.com/spsanps/nanoSmol, fVLM: released, and in its earlier research scripts.

Sizes are read from the weights. How many heads share a width cannot be: that, and the rest of a config, comes
from a table of the towers that such checkpoints are made of. This module knows nothing of files.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Dinov2Config, LlamaConfig, PreTrainedConfig

from fvlm_lib.errors import CheckpointError, some
from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig

logger = logging.getLogger(__name__)

IMAGE_SIZE = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODE_TOKENS = ("coarse_token", "fine_token", "no_text_token", "video_end_token")
# of the legacy code: its reconstruction of frames, and a tensor that it never reads
UNUSED = ("z_vae_init", "pred_head.", "encoder._dummy")

# From the config.json of facebook/dinov2-small and HuggingFaceTB/SmolLM2-*-Instruct on the Hugging Face hub.
DINOV2: dict[str, dict[str, Any]] = {
    "dinov2-small": {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "mlp_ratio": 4,
        "patch_size": 14,
        "image_size": 518,
    },
}
_SMOLLM2: dict[str, Any] = {
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": True,
}
SMOLLM2: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": _SMOLLM2
    | {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    },
    "SmolLM2-360M": _SMOLLM2
    | {
        "hidden_size": 960,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "intermediate_size": 2560,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    },
    "SmolLM2-1.7B": _SMOLLM2
    | {
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 130000.0},
    },
}

_DINO, _LLM = "encoder.dino.", "llm."
_POSITIONS = _DINO + "embeddings.position_embeddings"
_PATCHES = _DINO + "embeddings.patch_embeddings.projection.weight"
_ATTENTION = {"q": "attention.query", "k": "attention.key", "v": "attention.value", "o": "output.dense"}
_WAY_OUT, _LEGACY_WAY_OUT = "encoder.output_proj.", "encoder.query_output_proj."
_EMBEDDING, _HEAD = _LLM + "model.embed_tokens.weight", _LLM + "lm_head.weight"
# what tells a foveated VLM from any other state dict, and what the config is read from
_REQUIRED = (
    "q_static",
    "q_init",
    "encoder.query_input_proj.weight",
    _WAY_OUT + "weight",
    _WAY_OUT + "bias",
    "dino_to_llm.weight",
    "llm_to_query.weight",
    _POSITIONS,
    _PATCHES,
)


def clean_state_dict(loaded: Any, name: str) -> dict[str, Tensor]:
    """The model's weights from what a file held: out of `model_state_dict`, and the layouts' keys alone.

    What `torch.compile` and the legacy code call otherwise gets the released layout's names. name: the file, for
    messages. Raises CheckpointError for anything but tensors by name, and for keys that become one when renamed.
    """
    if isinstance(loaded, Mapping) and isinstance(loaded.get("model_state_dict"), Mapping):
        loaded = loaded["model_state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"{name} holds no state dict; it must be one, or have one under 'model_state_dict'")
    if other := [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(
            f"{name} is no state dict: {some(other)} are no tensors; save `model.state_dict()` alone, or under "
            "'model_state_dict'"
        )
    return _drop_unused(_rename_way_out(_drop_compile_prefix(loaded, name), name), name)


def _drop_compile_prefix(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Rename the keys of modules that went through torch.compile, which puts `_orig_mod.` before their own."""
    renamed = {key.replace("_orig_mod.", ""): value for key, value in weights.items()}
    if len(renamed) < len(weights):
        twice = [key for key in weights if "_orig_mod." in key and key.replace("_orig_mod.", "") in weights]
        raise CheckpointError(f"{name} has {some(twice)} with and without the prefix '_orig_mod.'; keep one of each")
    if count := sum("_orig_mod." in key for key in weights):
        logger.info("%s: removed the prefix '_orig_mod.' of compiled modules from %d keys", name, count)
    return renamed


def _rename_way_out(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Give the encoder's way out the released layout's name where it has the legacy code's."""
    if not any(key.startswith(_LEGACY_WAY_OUT) for key in weights):
        return weights
    if any(key.startswith(_WAY_OUT) for key in weights):
        raise CheckpointError(
            f"{name} has both {_WAY_OUT}* and {_LEGACY_WAY_OUT}*, two names of one layer; keep one of them"
        )
    logger.info("%s: %s* is read as %s*", name, _LEGACY_WAY_OUT, _WAY_OUT)
    return {
        key.replace(_LEGACY_WAY_OUT, _WAY_OUT) if key.startswith(_LEGACY_WAY_OUT) else key: value
        for key, value in weights.items()
    }


def _drop_unused(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Leave out what only the legacy code used, and nothing here does."""
    unused = sorted(key for key in weights if key.startswith(UNUSED))
    if unused:
        logger.warning("%s: not used here, so not loaded: %s", name, ", ".join(unused))
    return {key: value for key, value in weights.items() if key not in set(unused)}


def read_config(
    weights: dict[str, Tensor],
    name: str,
    vision_config: PreTrainedConfig | dict[str, Any] | None = None,
    text_config: PreTrainedConfig | dict[str, Any] | None = None,
    visual_scale: float = 0.14,
) -> FoveatedVLMConfig:
    """The config of a cleaned state dict in the released or the legacy layout; removes a tied `lm_head`.

    vision_config, text_config: instead of those of the known families. Whether the vision tower has a mask
    token, which nothing here uses, is read from the weights even then.

    Raises CheckpointError for a state dict of something else, for towers of unknown family, and for an
    `lm_head` that is not the embedding to which the config ties it.
    """
    if missing := [key for key in _REQUIRED if key not in weights]:
        lacks = ", ".join(
            f"{key} (or {key.replace(_WAY_OUT, _LEGACY_WAY_OUT)})" if key.startswith(_WAY_OUT) else key
            for key in missing[:5]
        )
        lacks += f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        has = some({re.sub(r"^([^.]+\.[^.]+)\..+", r"\1.*", key) for key in weights}, 8)  # a name a module
        raise CheckpointError(
            f"{name} is no foveated VLM in the released or legacy layout: it lacks {lacks}; what it has is {has}"
        )
    legacy = any(token in weights for token in MODE_TOKENS)
    vision = copy.deepcopy(vision_config) or _vision_config(weights, name)
    text = copy.deepcopy(text_config) or _text_config(weights, name)
    config = FoveatedVLMConfig(
        vision_config=vision,
        text_config=text,
        query_dim=weights["q_static"].shape[-1],
        visual_norm="legacy" if legacy else "scale",
        visual_scale=visual_scale,
        mode_tokens=legacy,
        image_size=IMAGE_SIZE,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    config.vision_config.use_mask_token = _DINO + "embeddings.mask_token" in weights
    if config.tie_word_embeddings:
        _drop_tied_head(weights, name)
    logger.info("%s: the %s layout", name, "legacy" if legacy else "released")
    return config


def _drop_tied_head(weights: dict[str, Tensor], name: str) -> None:
    """Leave out an `lm_head` that repeats the embedding to which it is tied."""
    if _HEAD in weights and _EMBEDDING in weights:
        if not torch.equal(weights[_EMBEDDING], weights[_HEAD]):
            raise CheckpointError(
                f"{name}: {_HEAD} differs from the embedding although the language model's config ties them; give "
                "a text_config with tie_word_embeddings False"
            )
        del weights[_HEAD]
        logger.info("%s: left out %s, which equals the embedding it is tied to", name, _HEAD)


def stored_name(key: str) -> str:
    """The name in a file of the model's key `key`: transformers 4's for the vision tower's attention.

    transformers 5 renames these itself, both ways, when it reads and writes; only messages need this.
    """
    if not key.startswith(_DINO):
        return key
    return re.sub(r"attention\.([qkvo])_proj\.", lambda found: f"attention.{_ATTENTION[found[1]]}.", key)


def _vision_config(weights: Mapping[str, Tensor], name: str) -> Dinov2Config:
    positions, patches = weights[_POSITIONS], weights[_PATCHES]
    found = {
        "hidden_size": patches.shape[0],
        "num_hidden_layers": _count_layers(weights, _DINO + "encoder.layer."),
        "patch_size": patches.shape[-1],
        "image_size": round((positions.shape[1] - 1) ** 0.5) * patches.shape[-1],
    }
    return Dinov2Config(**_family(found, DINOV2, name, "vision tower", "vision_config"))


def _text_config(weights: Mapping[str, Tensor], name: str) -> LlamaConfig:
    gate = f"{_LLM}model.layers.0.mlp.gate_proj.weight"
    if _EMBEDDING not in weights or gate not in weights:
        raise CheckpointError(
            f"{name}: the language model's keys ({some(key for key in weights if key.startswith(_LLM))}) are not "
            "those of SmolLM2; give text_config, the config of a causal language model of transformers"
        )
    found = {
        "hidden_size": weights[_EMBEDDING].shape[1],
        "num_hidden_layers": _count_layers(weights, _LLM + "model.layers."),
        "intermediate_size": weights[gate].shape[0],
    }
    family = _family(found, SMOLLM2, name, "language model", "text_config")
    return LlamaConfig(**family | {"vocab_size": weights[_EMBEDDING].shape[0]})  # tokens may have been added


def _family(
    found: dict[str, int], families: Mapping[str, dict[str, Any]], name: str, tower: str, argument: str
) -> dict[str, Any]:
    for family in families.values():
        if all(family[key] == value for key, value in found.items()):
            return family
    known = "; ".join(f"{known}: {_sizes(family, found)}" for known, family in families.items())
    raise CheckpointError(
        f"{name}: the {tower}'s sizes ({_sizes(found, found)}) are those of no known family ({known}), and the "
        f"number of heads cannot be read from weights; give {argument}"
    )


def _sizes(values: Mapping[str, Any], keys: Iterable[str]) -> str:
    return ", ".join(f"{key} {values[key]}" for key in keys)


def _count_layers(weights: Iterable[str], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)})
