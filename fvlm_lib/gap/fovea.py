"""Where a foveated model looks in one video, in each mode, and what it says: all of it computed once, to be stepped
through.

`watch_video` runs the model; everything else reads what it returns. How a mode works is `modeling_fvlm.py`'s
subject; averages over many videos are `gap.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from fvlm_lib.data.videos import ProceduralVideos, Videos
from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM, FoveatedVLMOutput
from fvlm_lib.gap.evaluation import query_distance
from fvlm_lib.json_files import read_object
from fvlm_lib.scoring import IGNORED_LABEL, token_nll
from fvlm_lib.vision.patches import patch_grid


@dataclass(frozen=True)
class WatchedVideo:
    """One video through one model. T frames, P patches of the grid (rows, columns).

    frames: uint8 (T, height, width, 3). attentions: by mode (coarse, fine_K, autoregressive), the query's attention
    averaged over heads, (layers, T, tokens of a frame), rows summing to 1; of the tokens the last P are patches, the
    others (CLS) are not. query_distance: (T,) relative L2 of the training query, fine_K's, from the inference query.
    tokens: the caption's words. losses: by mode, nats of each of them. generated: the words the model says itself.
    """

    frames: np.ndarray
    grid: tuple[int, int]
    attentions: dict[str, np.ndarray]
    query_distance: np.ndarray
    tokens: list[str]
    losses: dict[str, np.ndarray]
    generated: list[str]

    def on_patches(self, mode: str, layer: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Attention over the patches of a layer, or averaged over all (None): (T, P), normalised to sum to 1 without
        the tokens that are no patches; and (T,) the share that those took."""
        attention = self.attentions[mode].mean(axis=0) if layer is None else self.attentions[mode][layer]
        patches = attention[:, -self.grid[0] * self.grid[1] :]
        share = patches.sum(axis=1)
        return patches / share[:, None], 1 - share

    def entropy(self, mode: str, layer: int | None = None) -> np.ndarray:
        """(T,) entropy in nats of `on_patches`; ln P if the query looks everywhere alike, 0 if at one patch."""
        attention, _ = self.on_patches(mode, layer)
        return -np.where(attention > 0, attention * np.log(np.maximum(attention, 1e-300)), 0.0).sum(axis=1)

    def by_frame(self, layer: int | None = None) -> pd.DataFrame:
        """One row a mode and frame: mode, frame, entropy (nats), entropy_share (of ln P), other_share (on tokens that
        are no patches), query_distance (of the training mode, else NaN)."""
        tables = []
        for mode in self.attentions:
            entropy = self.entropy(mode, layer)
            columns = {
                "mode": mode,
                "frame": np.arange(len(entropy)),
                "entropy": entropy,
                "entropy_share": entropy / np.log(self.grid[0] * self.grid[1]),
                "other_share": self.on_patches(mode, layer)[1],
                "query_distance": self.query_distance if mode.startswith("fine") else np.nan,
            }
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)


@torch.no_grad()
def watch_video(
    model: FoveatedVLM,
    videos: Videos,
    index: int,
    num_fine: int = 1,
    progress: Callable[..., Iterable[Any]] = tqdm,
) -> WatchedVideo:
    """Watch video `index` in all modes on one vision encode, and caption it greedily.

    num_fine: fine passes of the training mode. Raises ValueError for a video that is not there, or that does not fit
    the model (the size of its frames, words it does not know).
    """
    batch: dict[str, Any] = videos.batch(index, index + 1)
    if not batch:
        raise ValueError(f"video {index} is one of those that skip_bad leaves out; choose another")
    pixels, input_ids = batch["pixel_values"], batch["input_ids"]
    vocabulary = model.config.text_config.vocab_size
    if int(input_ids.max()) >= vocabulary:
        raise ValueError(
            f"the caption of video {index} has token {int(input_ids.max())}, the model knows {vocabulary}; it was "
            "trained on videos of another kind or grid"
        )
    patch = model.config.vision_config.patch_size
    height, width = pixels.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(f"frames of {height} x {width} pixels are not made of the model's patches of {patch} pixels")
    grid = patch_grid(height, width, patch)
    parameter = next(model.parameters())
    inputs: dict[str, Any] = {key: value.to(parameter.device) for key, value in batch.items()}
    inputs["patch_cache"] = model.encode_frames(inputs["pixel_values"].to(parameter.dtype), inputs["frame_mask"])
    inputs["pixel_values"] = None

    outputs: dict[str, FoveatedVLMOutput] = {}
    generated: list[int] = []
    for step in progress(("coarse and fine", "autoregressive", "caption"), desc="watching"):
        if step == "coarse and fine":
            coarse, *fine = model.forward_passes(**inputs, num_fine=num_fine, output_attentions=True)
            outputs |= {"coarse": coarse, f"fine_{num_fine}": fine[-1]}
            scored = coarse.labels[0] != IGNORED_LABEL  # not the prompt, if there is one
        elif step == "autoregressive":
            outputs["autoregressive"] = model.forward_autoregressive(**inputs, output_attentions=True)
        else:
            watched = {key: inputs[key] for key in ("pixel_values", "patch_cache", "frame_mask")}
            prompt_length = int(scored.nonzero()[0])
            if prompt_length:
                watched["input_ids"] = inputs["input_ids"][:, :prompt_length]
            generated = model.generate(**watched, max_new_tokens=input_ids.shape[1], do_sample=False)[0].tolist()
    tokenizer: PreTrainedTokenizerBase
    mean: Sequence[float]
    std: Sequence[float]
    if isinstance(videos, ProceduralVideos):
        tokenizer, mean, std = videos.tokenizer(), (0.5,) * 3, (0.5,) * 3
    else:
        tokenizer, mean, std = videos.tokenizer, videos.frames.image_mean, videos.frames.image_std
    shown = pixels[0].permute(0, 2, 3, 1) * torch.tensor(std) + torch.tensor(mean)  # (T, height, width, 3)
    return WatchedVideo(
        frames=(shown * 255).round().clamp(0, 255).byte().numpy(),
        grid=grid,
        attentions={
            mode: torch.stack([layer[0].mean(dim=1) for layer in output.attentions or ()]).double().cpu().numpy()
            for mode, output in outputs.items()
        },
        query_distance=query_distance(fine[-1].queries, outputs["autoregressive"].queries)[0].double().cpu().numpy(),
        tokens=list(tokenizer.convert_ids_to_tokens(input_ids[0][scored.cpu()].tolist())),
        losses={
            mode: token_nll(output.logits, output.labels)[0][scored].double().cpu().numpy()
            for mode, output in outputs.items()
        },
        generated=list(tokenizer.convert_ids_to_tokens(generated)),
    )


def find_checkpoints(folder: str | Path) -> list[Path]:
    """All foveated checkpoints below a folder, sorted. Raises ValueError, saying what makes some, for none."""
    found = [file.parent for file in sorted(Path(folder).rglob("config.json")) if _is_foveated(file)]
    if not found:
        raise ValueError(
            f"{folder} holds no foveated checkpoint; `bash run.sh retrain` makes some in checkpoints/retrained"
        )
    return found


def _is_foveated(config: Path) -> bool:
    try:
        return read_object(config).get("model_type") == FoveatedVLMConfig.model_type
    except (ValueError, OSError):
        return False
