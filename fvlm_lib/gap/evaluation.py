"""Scores a model's captions of many videos in every mode: rows, one a sample, sums and counts apart.

The rows go to disk batch by batch (`samples.py`); what they say of the gap is in `gap.py`, how a mode works in
`modeling_fvlm.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn
from tqdm import tqdm

from fvlm_lib.data.video_files import VideoBatch
from fvlm_lib.data.videos import Videos
from fvlm_lib.foveated.frame_reuse import encode_videos
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM, FoveatedVLMOutput
from fvlm_lib.gap.samples import number_columns, sample_schema
from fvlm_lib.scoring import IGNORED_LABEL, token_nll
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vision.statistics import FrameStatistics


def score_batches(
    model: FoveatedVLM,
    videos: Videos,
    start: int,
    stop: int,
    batch_size: int = 32,
    num_fine: Sequence[int] = (1, 2, 3),
    progress: bool = True,
    reuse: Mapping[str, DifferentialSettings] | None = None,
) -> Iterator[pa.Table]:
    """Score samples start..stop-1 in every mode, with one vision encode a batch for all of them.

    Yields a batch's rows at a time; columns as in `samples.py`. The training query is that of the first
    `num_fine`. An empty range (a shard beyond the last batch) yields nothing. reuse: settings by name, with each of
    which the autoregressive mode is scored again, a video's frames encoded by what changed.

    Raises FloatingPointError, naming the sample, for a loss that is not a finite number.
    """
    if not num_fine or min(num_fine) < 1:
        raise ValueError(f"num_fine is {tuple(num_fine)}; it must list at least one number of passes >= 1")
    if stop <= start:
        return
    parameter = next(model.parameters())
    with tqdm(total=stop - start, desc="scoring", unit="video", disable=not progress) as bar:
        for batch in videos.batches(start, stop, batch_size):
            rows: list[dict[str, Any]] = []
            if batch.inputs:
                inputs = {key: value.to(parameter.device) for key, value in batch.inputs.items()}
                inputs["pixel_values"] = inputs["pixel_values"].to(parameter.dtype)
                rows = _score_batch(model, inputs, batch, num_fine, reuse or {})
            for skipped in batch.skipped:
                rows.append({"num_frames": 0, "num_tokens": 0, "name": skipped.name, "sample": skipped.sample})
                rows[-1]["skipped"] = skipped.reason
            rows.sort(key=lambda row: row["sample"])
            yield pa.Table.from_pylist(rows, sample_schema(scored_modes(num_fine), reuse or ()))
            bar.update(len(rows))


@torch.no_grad()
def _score_batch(
    model: FoveatedVLM,
    inputs: dict[str, torch.Tensor],
    batch: VideoBatch,
    num_fine: Sequence[int],
    reuse: Mapping[str, DifferentialSettings],
) -> list[dict[str, Any]]:
    """Rows of the batch's scored samples; `inputs` are the batch's on the model's device."""
    patch_cache = model.encode_frames(inputs["pixel_values"], inputs["frame_mask"])
    shared: dict[str, Any] = {**inputs, "pixel_values": None, "patch_cache": patch_cache}
    coarse, *fine, autoregressive = model.forward_modes(**shared, num_fine=max(num_fine))
    outputs: dict[str, FoveatedVLMOutput] = {"coarse": coarse}
    outputs |= {f"fine_{k}": fine[k - 1] for k in num_fine}
    outputs["autoregressive"] = autoregressive

    frame_counts = inputs["frame_mask"].sum(dim=1).tolist()
    distance = query_distance(outputs[f"fine_{num_fine[0]}"].queries, autoregressive.queries)
    columns: dict[str, Any] = {
        "sample": batch.samples,
        "name": batch.names,
        "num_frames": frame_counts,
        "num_tokens": coarse.num_tokens.tolist(),
        "query_distance": [row[:n].tolist() for row, n in zip(distance, frame_counts, strict=True)],
    }
    for name, settings in reuse.items():
        shared["patch_cache"], done = encode_videos(model, inputs["pixel_values"], inputs["frame_mask"], settings)
        outputs[f"reuse_{name}"] = model.forward_autoregressive(**shared)
        columns[f"encoded_{name}"] = [_encoded_share(video) for video in done]
    for mode, output in outputs.items():
        check_finite(mode, output.nll, batch)
        scored = output.labels != IGNORED_LABEL
        nll = token_nll(output.logits, output.labels)
        columns[f"nll_{mode}"] = output.nll.double().tolist()
        columns[f"token_nll_{mode}"] = [row[keep].tolist() for row, keep in zip(nll, scored, strict=True)]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def check_finite(mode: str, nll: torch.Tensor, batch: VideoBatch) -> None:
    """Raise FloatingPointError, naming the sample, for a loss of nll (B,) that is not a finite number."""
    if not nll.isfinite().all():
        bad = int((~nll.isfinite()).nonzero()[0])
        raise FloatingPointError(
            f"the {mode} loss of sample {batch.samples[bad]}, {batch.names[bad]}, is {nll[bad].item()}"
        )


def _encoded_share(frames: Sequence[FrameStatistics]) -> float:
    """The share of a video's patches that were encoded."""
    return sum(int(frame.encoded.sum()) for frame in frames) / sum(frame.num_patches for frame in frames)


def query_distance(training: torch.Tensor, inference: torch.Tensor) -> torch.Tensor:
    """Relative L2 distance (B, T) of the training queries from the inference queries, both (B, T, query_dim); of visual
    tokens alike."""
    return (training - inference).norm(dim=-1) / inference.norm(dim=-1)


def scored_modes(num_fine: Sequence[int]) -> list[str]:
    """The modes that `score_batches` scores, as the table's columns name them."""
    return ["coarse", *(f"fine_{k}" for k in num_fine), "autoregressive"]


def score_videos(
    model: FoveatedVLM,
    videos: Videos,
    start: int,
    stop: int,
    batch_size: int = 32,
    num_fine: Sequence[int] = (1, 2, 3),
    progress: bool = True,
) -> pd.DataFrame:
    """The numbers of those of samples start..stop-1 that can be scored, as `samples.read_samples` reads them."""
    tables = score_batches(model, videos, start, stop, batch_size, num_fine, progress)
    columns = number_columns(sample_schema(scored_modes(num_fine)))
    numbers = pa.concat_tables(table.select(columns).filter(pc.field("num_tokens") > 0) for table in tables)
    return numbers.to_pandas()


def float64_copy(model: FoveatedVLM) -> FoveatedVLM:
    """A copy that computes in float64 throughout.

    Llama-style RMSNorms cast to float32 inside whatever the model's dtype; they are replaced by torch's,
    which compute the same in float64.
    """
    model = copy.deepcopy(model).double()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm") and hasattr(child, "variance_epsilon"):
                weight: Any = child.weight
                norm = nn.RMSNorm(weight.shape, eps=float(child.variance_epsilon), dtype=torch.float64)  # type: ignore[arg-type]
                norm.weight = weight
                setattr(module, name, norm)
    return model


def numerical_floor(
    model: FoveatedVLM, videos: Videos, per_sample: pd.DataFrame, batch_size: int, num_fine: int, count: int
) -> float:
    """What rounding does to the gap, nats a token: sum over those scored of samples 0..count-1 of |gap in the
    model's dtype - gap in float64|, over their tokens. Absolute values, so that errors do not cancel."""
    rows = per_sample[per_sample["sample"] < count]
    exact = score_videos(float64_copy(model), videos, 0, count, batch_size, (num_fine,), progress=False)
    column = f"nll_fine_{num_fine}"
    gap = rows["nll_autoregressive"].to_numpy() - rows[column].to_numpy()
    exact_gap = exact["nll_autoregressive"].to_numpy() - exact[column].to_numpy()
    return float(np.abs(gap - exact_gap).sum() / rows["num_tokens"].sum())


def remaining_gap(model: FoveatedVLM, videos: Videos, stop: int, num_fine: int) -> float:
    """The largest |autoregressive loss - loss after `num_fine` fine passes| of samples 0..stop-1, nats a token of that
    sample, computed in float64.

    With as many passes as frames it is 0 up to rounding, as the first K frames are exact after K passes; not so of
    models with mode tokens or the legacy norm, which read other tokens in the two modes.
    """
    rows = score_videos(float64_copy(model), videos, 0, stop, max(stop, 1), (num_fine,), progress=False)
    rest = (rows["nll_autoregressive"] - rows[f"nll_fine_{num_fine}"]).abs() / rows["num_tokens"]
    return float(rest.max())
