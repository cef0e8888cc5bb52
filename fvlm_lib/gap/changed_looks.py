"""Does a foveated model look where the screen changed? Attention on changed patches, over many videos, by mode.

`score_looks` runs the model and gives one row a video and mode, sums and counts apart; `summarize_looks` makes shares
with their intervals of it. One video is stepped through with `fovea.py`, which also says which patches changed.

A query of a frame is chosen before the frame is seen, so what it can know is where the screen changed before; `lag`
asks for the patches that changed so many frames ago. Beside chance, the changed patches' share of all patches, stands
what these patches get in the same video's other frames: patches with something on them, which change, may be looked at
more than empty ones whether they change or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from fvlm_lib.data.videos import Videos
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM, FoveatedVLMOutput
from fvlm_lib.gap.evaluation import scored_modes
from fvlm_lib.gap.fovea import changed_patches, frame_grid, shown_frames, split_attention
from fvlm_lib.schema import BatchSize, CountOrNone, check
from fvlm_lib.stats import Estimate, Statistic, bootstrap, difference, ratio


@torch.no_grad()
def score_looks(
    model: FoveatedVLM,
    videos: Videos,
    start: int,
    stop: int,
    batch_size: int = 16,
    num_fine: int = 1,
    lag: int = 0,
    layer: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Attention on changed patches in samples start..stop-1, in every mode.

    num_fine: most fine passes; all up to it are scored. lag: patches count that changed so many frames before the one
    that is looked at; 0 for those in which it differs from the frame before. layer: whose attention, from 0; None for
    the mean over all.

    One row a video and mode: sample, mode; frames: that count, those with changed patches and unchanged ones; and,
    summed over these frames, on_changed: the share of the query's attention on changed patches (of that on patches,
    heads averaged), chance: changed patches' share of all, elsewhen: the attention that the same patches get in the
    frames of the video in which they count as unchanged.

    Raises ValueError for numbers that cannot be, and frames that are not made of the model's patches.
    """
    check(BatchSize, batch_size, "batch_size")
    check(CountOrNone, lag, "lag")
    layers = model.config.vision_config.num_hidden_layers if model.config.deep_query else 1
    if layer is not None and not 0 <= layer < layers:
        raise ValueError(
            f"layer is {layer}; the query walks through {layers}, so it must lie between 0 and {layers - 1}"
        )
    modes = scored_modes(range(1, num_fine + 1))
    parameter = next(model.parameters())
    rows: list[dict[str, Any]] = []
    with tqdm(total=stop - start, desc="looking", unit="video", disable=not progress) as bar:
        for batch in videos.batches(start, stop, batch_size):
            bar.update(len(batch.samples) + len(batch.skipped))
            if not batch.inputs:
                continue
            grid = frame_grid(model, batch.inputs["pixel_values"])
            shown = shown_frames(batch.inputs["pixel_values"], videos)
            inputs: dict[str, Any] = {key: value.to(parameter.device) for key, value in batch.inputs.items()}
            inputs["pixel_values"] = inputs["pixel_values"].to(parameter.dtype)
            outputs = model.forward_modes(**inputs, num_fine=num_fine, output_attentions=True)
            attentions = [_attention(output, layer) for output in outputs]  # of each mode (B, T, tokens)
            lengths = batch.inputs["frame_mask"].sum(dim=1).tolist()
            for place, (sample, length) in enumerate(zip(batch.samples, lengths, strict=True)):
                changed = _later(changed_patches(shown[place, :length], grid), lag)
                for mode, attention in zip(modes, attentions, strict=True):
                    looks, _ = split_attention(attention[place, :length], grid)
                    rows.append({"sample": sample, "mode": mode, **count_looks(looks, changed)})
    return pd.DataFrame(rows, columns=["sample", "mode", "frames", "on_changed", "chance", "elsewhen"])


def _attention(output: FoveatedVLMOutput, layer: int | None) -> np.ndarray:
    """(B, T, tokens of a frame) of a layer or the mean over all, averaged over heads."""
    found = output.attentions or ()
    chosen = found if layer is None else found[layer : layer + 1]
    return torch.stack([one.mean(dim=2) for one in chosen]).mean(dim=0).double().cpu().numpy()


def _later(changed: np.ndarray, lag: int) -> np.ndarray:
    """The mask (T, P) of what changed `lag` frames before each."""
    late = np.zeros_like(changed)
    late[lag:] = changed[: max(len(changed) - lag, 0)]
    return late


def count_looks(looks: np.ndarray, changed: np.ndarray) -> dict[str, float]:
    """frames, on_changed, chance and elsewhen of one video, as `score_looks` tells them.

    looks: (T, P), of each frame the attention over its patches, summing to 1. changed: bool (T, P). A patch that
    changed in every frame has no other frames; none does, as in the first one nothing has changed.
    """
    counts = changed.any(axis=1) & ~changed.all(axis=1)  # (T,)
    still = np.where(changed, 0.0, looks).sum(axis=0) / np.maximum((~changed).sum(axis=0), 1)  # (P,)
    return {
        "frames": int(counts.sum()),
        "on_changed": float(np.where(changed, looks, 0.0).sum(axis=1)[counts].sum()),
        "chance": float(changed.mean(axis=1)[counts].sum()),
        "elsewhen": float((changed * still).sum(axis=1)[counts].sum()),
    }


_STATISTICS: dict[str, Statistic] = {
    "share": ratio("on_changed", "frames"),
    "chance": ratio("chance", "frames"),
    "elsewhen": ratio("elsewhen", "frames"),
    "times_chance": ratio("on_changed", "chance"),
    "beyond_elsewhen": difference(ratio("on_changed", "frames"), ratio("elsewhen", "frames")),
}


def summarize_looks(table: pd.DataFrame, num_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """One row a mode of `score_looks`' table, in its order: mode, videos, frames, and each with its 95% interval over
    videos (_low, _high): share, of the attention, on changed patches, a frame; chance; elsewhen; times_chance = share /
    chance; beyond_elsewhen = share - elsewhen.

    Raises ValueError where no frame counts, since nothing changed or everything, and for fewer than two videos.
    """
    rows = []
    for mode, of_mode in table.groupby("mode", sort=False):
        if not of_mode["frames"].sum():
            raise ValueError(
                f"none of the {len(of_mode)} videos has a frame in which some patches changed and others did not; "
                "noise changes all of them, and a still video none"
            )
        columns = {name: of_mode[name].to_numpy() for name in ("frames", "on_changed", "chance", "elsewhen")}
        found = bootstrap(columns, _STATISTICS, num_resamples, seed)
        row: dict[str, Any] = {"mode": mode, "videos": len(of_mode), "frames": int(of_mode["frames"].sum())}
        rows.append(row | dict(_columns(found)))
    return pd.DataFrame(rows)


def _columns(found: dict[str, Estimate]) -> Iterator[tuple[str, float]]:
    for name, estimate in found.items():
        yield from ((name, estimate.value), (f"{name}_low", estimate.low), (f"{name}_high", estimate.high))
