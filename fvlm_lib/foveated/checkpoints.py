"""Checkpoints in: always strict, never executing code from a file, no network unless a hub id was named.

A checkpoint is a folder of the project's own layout (`FoveatedVLM.save_pretrained`: config.json and
model.safetensors), a state dict in the released or the legacy layout (`layouts.py`), a folder with one such
file, or a hub id of any of these. `fvlm assemble` makes an untrained one (`assemble.py`).
"""

from __future__ import annotations

import functools
import pickle
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from fvlm_lib.errors import CheckpointError, first_line
from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig
from fvlm_lib.foveated.layouts import clean_state_dict, read_config
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.weights import load_strictly, quiet_transformers
from fvlm_lib.json_files import kind_of, read_object

STATE_DICTS = (".safetensors", ".pt", ".pth", ".bin")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
# what `training.json` says that others read
_TRAINING: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(("name", "group"), (str, "a text")),
    **dict.fromkeys(("seed", "step", "num_parameters", "num_text_parameters"), (int, "a whole number")),
    "training_flops": ((int, float), "a number"),
    "multi_fine": (bool, "true or false"),
}
_HUB_FILES = ["*.json", "*.txt", "*.model", *(f"*{suffix}" for suffix in STATE_DICTS)]


def load_checkpoint(
    path_or_id: str | Path,
    *,
    vision_config: PreTrainedConfig | dict[str, Any] | None = None,
    text_config: PreTrainedConfig | dict[str, Any] | None = None,
    visual_scale: float = 0.14,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> FoveatedVLM:
    """Load a `FoveatedVLM` in eval mode, in `dtype` (None: as stored), on `device` (None: CPU).

    path_or_id: a folder of the project's own layout; a state dict file (.safetensors, .pt) in the released or
    legacy layout, or a folder with one; or a hub id. Only a hub id touches the network, and nothing does that
    exists locally.
    vision_config, text_config: for state dicts whose towers are not DINOv2-small and a SmolLM2.
    visual_scale: of state dicts, which do not say theirs.

    A state dict stored in several precisions is loaded in the one that holds all of them. Raises
    CheckpointError where nothing is there, a file is damaged or wants to execute code, it is no foveated VLM,
    any key is missing, unexpected or of another shape, or a weight is not finite.
    """
    path = _local(path_or_id)
    if path.name == "model.safetensors" and (path.parent / "config.json").exists():
        path = path.parent
    if (path / "config.json").exists():
        if vision_config is not None or text_config is not None:
            raise CheckpointError(f"{path} has a config.json; vision_config and text_config are for state dicts alone")
        config, weights = _read_own_config(path), None
        if not list(path.glob("*.safetensors")):
            raise CheckpointError(f"{path} has no .safetensors file; weights are read from model.safetensors")
    else:
        path = _state_dict_file(path)
        weights = clean_state_dict(_read_tensors(path), str(path))
        config = read_config(weights, str(path), vision_config, text_config, visual_scale)
        if dtype is None:
            dtype = functools.reduce(torch.promote_types, (v.dtype for v in weights.values() if v.is_floating_point()))
    model: Any = _from_pretrained(path, config, weights, dtype)
    return model.to(device or "cpu").eval()


def has_tokenizer(path_or_id: str | Path) -> bool:
    """Whether `load_tokenizer` has something to read."""
    return (_folder(_local(path_or_id)) / "tokenizer_config.json").exists()


def load_tokenizer(path_or_id: str | Path, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer, from its folder (for a state dict file, the folder it is in).

    Raises CheckpointError where there is none, it cannot be read, or has more tokens than the model's `vocab_size`.
    """
    folder = _folder(_local(path_or_id))
    if not has_tokenizer(folder):
        raise CheckpointError(
            f"{folder} has no tokenizer; put the tokenizer.json and tokenizer_config.json of the checkpoint's language "
            "model there"
        )
    check_json_files(folder, TOKENIZER_FILES)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise CheckpointError(f"the tokenizer in {folder} cannot be read ({first_line(error)})") from error
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise CheckpointError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, but the language model embeds {vocab_size}; they "
            "must be of one model"
        )
    return tokenizer


def read_training(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of its own training (`training.json`), {} where it says nothing.

    Raises CheckpointError where that file holds no object, or a value of another kind than is known of its key.
    """
    file = _folder(Path(path)) / "training.json"
    training = read_object(file, CheckpointError) if file.exists() else {}
    for key, (kind, words) in _TRAINING.items():
        value = training.get(key)
        if value is not None and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
            raise CheckpointError(f"{file}: its {key} is {value!r}; it must be {words}, or null")
    return training


def check_parts(file: Path, config: dict[str, Any]) -> None:
    """Raise CheckpointError where the config of a model of two parts does not describe them both.

    transformers would make what is missing at its default size, of billions of weights.
    """
    for part in ("vision_config", "text_config"):
        if not isinstance(config.get(part), dict):
            raise CheckpointError(f"{file}: its {part} is {kind_of(config.get(part))}; it must be an object")


def check_json_files(folder: Path, names: Sequence[str]) -> None:
    """Raise CheckpointError where a file of one of these names is in the folder and holds no JSON object."""
    for name in names:
        if (folder / name).is_file():
            read_object(folder / name, CheckpointError)


# ---- finding -----------------------------------------------------------------------------------------


def _local(path_or_id: str | Path) -> Path:
    """Where a checkpoint is on this machine; downloads what a hub id names, unless something local has that name."""
    path, name = Path(path_or_id), str(path_or_id)
    if path.exists():
        return path
    # a misspelt path is no hub id: its first folder is there
    if isinstance(path_or_id, Path) or not _HUB_ID.fullmatch(name) or Path(name.split("/")[0]).exists():
        raise CheckpointError(
            f"there is no checkpoint folder {path}, nor a file of that name; name a folder with config.json and "
            f"model.safetensors, a state dict ({', '.join(STATE_DICTS)}), or a hub id such as owner/name"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"there is no folder or file {name}, and as a hub id it cannot be fetched ({first_line(error)})"
        ) from error


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


def _state_dict_file(path: Path) -> Path:
    """The state dict that is `path`, or the only one in the folder `path`."""
    found = [path] if path.is_file() else [file for file in sorted(path.iterdir()) if file.suffix in STATE_DICTS]
    if not found:
        raise CheckpointError(
            f"{path} has no config.json and no state dict ({', '.join(STATE_DICTS)}), so it is no checkpoint"
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise CheckpointError(f"{path} has no config.json but {len(found)} state dicts ({names}); name one of them")
    return found[0]


# ---- reading -----------------------------------------------------------------------------------------


def _read_tensors(file: Path) -> Any:
    """What a state dict file holds, on the CPU; nothing in it is executed."""
    if file.suffix not in STATE_DICTS:
        raise CheckpointError(f"{file} is no state dict; those end in {', '.join(STATE_DICTS)}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of protocols; what fails is said below
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        if file.suffix == ".safetensors" or not isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(f"{file}: the weights cannot be read ({first_line(error)})") from error
        code = re.search(r"GLOBAL (\S+)", str(error))  # the rest of torch's words is how to load it unsafely
        reason = f"it wants to call {code[1]}" if code else "it is damaged, or holds more than tensors"
        raise CheckpointError(
            f"{file}: the weights cannot be read ({reason}), since no code of a file is run; where it was made, save "
            "the weights alone, by torch.save(model.state_dict(), ...) or as .safetensors"
        ) from None


def _read_own_config(folder: Path) -> FoveatedVLMConfig:
    content = read_object(folder / "config.json", CheckpointError)
    architecture = content.get("model_type")
    if architecture != FoveatedVLMConfig.model_type:
        raise CheckpointError(
            f"{folder / 'config.json'} has model_type {architecture!r}; it must be {FoveatedVLMConfig.model_type!r}"
        )
    check_parts(folder / "config.json", content)
    try:
        return FoveatedVLMConfig.from_dict(content)
    except Exception as error:  # transformers raises many kinds here, KeyError for an unknown architecture
        raise CheckpointError(f"{folder / 'config.json'} does not describe a model ({first_line(error)})") from error


def _from_pretrained(
    path: Path, config: FoveatedVLMConfig, weights: dict[str, Tensor] | None, dtype: torch.dtype | None
) -> FoveatedVLM:
    """The model of `config`, with `weights` or, for None, those in the folder `path`.

    transformers renames here what it calls otherwise than its version 4 did: see `stored_name`.
    """
    load = functools.partial(
        FoveatedVLM.from_pretrained,
        path if weights is None else None,
        config=config,
        state_dict=weights,
        dtype=dtype or "auto",
        local_files_only=True,
    )
    try:
        return load_strictly(str(path), load)
    except (SafetensorError, RuntimeError, OSError, KeyError) as error:
        raise CheckpointError(f"{path}: the weights cannot be read ({first_line(error)})") from error
