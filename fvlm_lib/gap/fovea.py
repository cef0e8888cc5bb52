"""Where a foveated model looks in one video, in each mode, and what it says: all of it computed once, to be stepped
through.

`watch_video` runs the model; everything else reads what it returns. How a mode works is `modeling_fvlm.py`'s
subject; averages over many videos are those of `gap.py`, and of looks at what changed `changed_looks.py`'s.
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

from fvlm_lib.data.drawn_videos import DrawnVideos
from fvlm_lib.data.videos import Videos
from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM, FoveatedVLMOutput
from fvlm_lib.gap.evaluation import query_distance
from fvlm_lib.json_files import read_object
from fvlm_lib.scoring import IGNORED_LABEL, token_nll
from fvlm_lib.vision.patches import compute_patch_diff, patch_grid


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
        return split_attention(attention, self.grid)

    def changed(self) -> np.ndarray:
        """bool (T, P): which patches differ from those of the frame before; none of the first."""
        return changed_patches(self.frames, self.grid)

    def entropy(self, mode: str, layer: int | None = None) -> np.ndarray:
        """(T,) entropy in nats of `on_patches`; ln P if the query looks everywhere alike, 0 if at one patch."""
        attention, _ = self.on_patches(mode, layer)
        return -np.where(attention > 0, attention * np.log(np.maximum(attention, 1e-300)), 0.0).sum(axis=1)

    def by_frame(self, layer: int | None = None) -> pd.DataFrame:
        """One row a mode and frame: mode, frame, entropy (nats), entropy_share (of ln P), other_share (on tokens that
        are no patches), on_changed (share of the attention on patches that changed since the frame before) and
        changed_share (these patches' share of all, which is what on_changed is by chance), query_distance (of the
        training mode, else NaN)."""
        tables, changed = [], self.changed()
        for mode in self.attentions:
            entropy = self.entropy(mode, layer)
            looks, other = self.on_patches(mode, layer)
            columns = {
                "mode": mode,
                "frame": np.arange(len(entropy)),
                "entropy": entropy,
                "entropy_share": entropy / np.log(self.grid[0] * self.grid[1]),
                "other_share": other,
                "on_changed": np.where(changed, looks, 0.0).sum(axis=1),
                "changed_share": changed.mean(axis=1),
                "query_distance": self.query_distance if mode.startswith("fine") else np.nan,
            }
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)


def split_attention(attention: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Attention over the patches of frames, (T, P), normalised to sum to 1 without the tokens that are no patches, and
    (T,) the share that those took. attention: (T, tokens of a frame), of which the last are the patches of the grid."""
    patches = attention[:, -grid[0] * grid[1] :]
    share = patches.sum(axis=1)
    return patches / share[:, None], 1 - share


def changed_patches(frames: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """bool (T, P): which patches of frames uint8 (T, height, width, 3) differ anywhere from those of the frame before;
    none of the first. grid: rows and columns of patches."""
    rows, columns = grid
    patch = frames.shape[1] // rows, frames.shape[2] // columns
    changed = np.zeros((len(frames), rows * columns), dtype=bool)
    for t in range(1, len(frames)):
        changed[t] = compute_patch_diff(frames[t - 1], frames[t], patch, 0.0, metric="max").ravel()
    return changed


def frame_grid(model: FoveatedVLM, pixel_values: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the model's patches in frames (..., height, width). Raises ValueError where they are not made
    of whole ones."""
    patch = model.config.vision_config.patch_size
    height, width = pixel_values.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(f"frames of {height} x {width} pixels are not made of the model's patches of {patch} pixels")
    return patch_grid(height, width, patch)


def shown_frames(pixel_values: torch.Tensor, videos: Videos) -> np.ndarray:
    """The frames (..., 3, height, width) of a batch of `videos` as uint8 (..., height, width, 3)."""
    mean: Sequence[float]
    std: Sequence[float]
    if isinstance(videos, DrawnVideos):
        mean, std = (0.5,) * 3, (0.5,) * 3
    else:
        mean, std = videos.frames.image_mean, videos.frames.image_std
    shown = pixel_values.movedim(-3, -1) * torch.tensor(std) + torch.tensor(mean)
    return (shown * 255).round().clamp(0, 255).byte().numpy()


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
    grid = frame_grid(model, pixels)
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
    tokenizer = videos.tokenizer() if isinstance(videos, DrawnVideos) else videos.tokenizer
    return WatchedVideo(
        frames=shown_frames(pixels[0], videos),
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
