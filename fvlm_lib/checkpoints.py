"""Checkpoints in: always strict, never executing code from a file, no network unless a hub id was named.

So far the project's own layout (`FoveatedVLM.save_pretrained`: config.json and model.safetensors).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from fvlm_lib.configuration_fvlm import FoveatedVLMConfig
from fvlm_lib.modeling_fvlm import FoveatedVLM


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message names it, what is wrong and what would be right."""


def load_checkpoint(
    path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> FoveatedVLM:
    """Load a `FoveatedVLM` folder in eval mode, in `dtype` (None: as stored), on `device`.

    Raises CheckpointError where the folder is missing or not a foveated VLM, a file is damaged, or any key
    is missing, unexpected or of another shape.
    """
    folder = Path(path)
    config = _read_config(folder)
    if not list(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} has no .safetensors file; weights are read from model.safetensors")
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what it would warn about is raised below
    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = FoveatedVLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype or "auto",
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # listed, and raised below
        )
        model, info = loaded
    except (SafetensorError, RuntimeError, OSError, KeyError) as error:
        raise CheckpointError(f"{folder}: the weights cannot be read ({_first_line(error)})") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
    problems = {kind.removesuffix("_keys"): sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if problems:
        listed = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in problems.items())
        raise CheckpointError(f"{folder}: the weights do not fit the config ({listed})")
    return model.to(device).eval()


def read_training(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of its own training (`training.json`), {} where it says nothing."""
    file = Path(path) / "training.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _read_config(folder: Path) -> FoveatedVLMConfig:
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no checkpoint folder {folder}; name one with config.json and model.safetensors"
        )
    try:
        content = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no config.json, so it is not a checkpoint") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} is not valid JSON ({error})") from error
    architecture = content.get("model_type")
    if architecture != FoveatedVLMConfig.model_type:
        raise CheckpointError(
            f"{folder / 'config.json'} has model_type {architecture!r}; it must be {FoveatedVLMConfig.model_type!r}"
        )
    try:
        return FoveatedVLMConfig.from_dict(content)
    except Exception as error:  # transformers raises many kinds here, KeyError for an unknown architecture
        raise CheckpointError(f"{folder / 'config.json'} does not describe a model ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
