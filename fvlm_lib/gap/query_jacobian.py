"""How the query of the next frame moves with the query of this one: the norm of the Jacobian of the query recurrence.

In sequential use q_{t+1} = llm_to_query(h_t), where h_t is the language model's last hidden state at the visual token
z_t = look(t, q_t), behind the tokens of the frames before. Its Jacobian J_t = dq_{t+1}/dq_t, through look and language
model, with the tokens of the frames before held as they are, says by how much a small error of a query grows or shrinks
from a frame to the next: its spectral norm is the largest factor. What a query changes in later frames by way of the
language model's memory is not in it.

The norm is the largest singular value, found by power iteration on J^T J (Golub and Van Loan 2013, section 8.2) with
products of forward and reverse mode; no matrix is built. Norms of many videos are summed by frame or over all frames,
with intervals over videos. What the fine passes make of such errors is in `jacobi.py`.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from fvlm_lib.data.videos import Videos
from fvlm_lib.foveated.inputs import padding_mask
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.watching import watch
from fvlm_lib.schema import BatchSize, Count, Positive, Seed, check
from fvlm_lib.stats import Estimate, bootstrap, ratio
from fvlm_lib.vision.towers import PatchCache

COLUMNS = ("sample", "frame", "norm", "relative_norm", "residual")


@dataclass(frozen=True)
class JacobianNorms:
    """Norms of the Jacobian of the query recurrence, with 95% intervals over videos.

    norm: the mean over all frames of all videos but each video's last, whose query has no next one. relative_norm: the
    same of norm |q_t| / |q_{t+1}|, the largest factor between relative errors. by_frame: frame (t, from 0), videos, and
    both with _low and _high, of frames that at least two videos have. num_videos: with at least two frames.
    largest_residual: of the power iteration (`jacobian_norms`); norms are off by about its half at most, as a share.
    """

    norm: Estimate
    relative_norm: Estimate
    by_frame: tuple[dict[str, float], ...]
    num_videos: int
    largest_residual: float


def next_query(model: FoveatedVLM, frame: PatchCache, before: Tensor, query: Tensor, padding: Tensor | None) -> Tensor:
    """The next frame's query (B, query_dim) where `query` (B, query_dim) looks at an encoded frame.

    frame: its cache, leading dimension (B,). before: (B, t, D), what the language model has read, such as the visual
    tokens of the frames before. padding: bool (B, t + 1), where there is something to read; None: everywhere.
    """
    present = None if padding is None else padding[:, -1]
    z, _ = model.look(frame, query, present)
    hidden = model.run_llm(torch.cat([before, z[:, None]], dim=1), padding)  # (B, t + 1, D)
    return model.llm_to_query(hidden[:, -1])


def jacobian_norms(
    function: Callable[[Tensor], Tensor],
    point: Tensor,
    seed: int = 0,
    tolerance: float = 0.01,
    iterations: int = 100,
) -> tuple[Tensor, Tensor]:
    """Spectral norm of the Jacobian of each row of a function, (B,), and the residual that is left, (B,).

    function: from (B, n) to (B, m), rows independent of each other. point: (B, n), where. seed: of the first vector,
    the same for all rows. With s the norm that is found and v its vector, the residual is |J^T J v - s^2 v| / s^2: some
    singular value lies within about half of it from s, as a share of s, and s is never above the largest. A row ends
    where its residual is at most `tolerance`, or after `iterations`, whatever the other rows do. A Jacobian of zeros
    has norm 0 and residual 0.
    """
    check(Seed, seed, "seed")
    check(Positive, tolerance, "tolerance")
    check(Count, iterations, "iterations")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(point.shape[1], generator=generator, dtype=torch.float64).to(point)
    vector = _unit(first.expand_as(point))
    norm, residual = point.new_zeros(len(point)), point.new_full((len(point),), torch.inf)
    pull: Any = torch.func.vjp(function, point)[1]
    for _ in range(iterations):
        with warnings.catch_warnings():  # of torch's own formulas of forward mode, which it scripts at the first use
            warnings.filterwarnings("ignore", "`torch.jit.script` is", category=FutureWarning)
            warnings.filterwarnings("ignore", "`torch.jit.script` is", category=DeprecationWarning)
            pushed = torch.func.jvp(function, (point,), (vector,))[1]  # J v
        (pulled,) = pull(pushed)  # J^T J v
        square = pushed.square().sum(dim=-1)  # s^2
        left = (pulled - square[:, None] * vector).norm(dim=-1)
        going = residual > tolerance
        norm = torch.where(going, square.sqrt(), norm)
        residual = torch.where(going, torch.where(square > 0, left / square, left), residual)
        if (residual <= tolerance).all() or not square.isfinite().all():
            break
        vector = torch.where(square[:, None] > 0, _unit(pulled), vector)
    return norm, residual


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


def score_norms(
    model: FoveatedVLM,
    videos: Videos,
    start: int,
    stop: int,
    batch_size: int = 16,
    seed: int = 0,
    tolerance: float = 0.01,
    iterations: int = 100,
    progress: bool = True,
) -> pd.DataFrame:
    """Norms of samples start..stop-1 in sequential use, one row a sample and frame that has a next one.

    Columns: sample; frame, t from 0; norm, of dq_{t+1}/dq_t; relative_norm, times |q_t| / |q_{t+1}|; residual, of the
    power iteration (`jacobian_norms`, which takes seed, tolerance and iterations). Samples that cannot be used are left
    out.

    Computed in float32 at least. With the legacy norm, by which the visual tokens of a batch depend on each other, each
    sample is alone. Raises FloatingPointError, naming the sample, for a norm that is not a finite number.
    """
    check(BatchSize, batch_size, "batch_size")
    check(Seed, seed, "seed")
    if model.config.visual_norm == "legacy":
        batch_size = 1
    parameter = next(model.parameters())
    if parameter.dtype.itemsize < 4:
        model = copy.deepcopy(model).float()
        parameter = next(model.parameters())
    rows: list[dict[str, Any]] = []
    with tqdm(total=max(stop - start, 0), desc="query Jacobian", unit="video", disable=not progress) as bar:
        for batch in videos.batches(start, stop, batch_size) if stop > start else ():
            if batch.inputs:
                pixels = batch.inputs["pixel_values"].to(parameter)
                frame_mask = batch.inputs["frame_mask"].to(parameter.device).bool()
                for t, found in _norms_by_frame(model, pixels, frame_mask, seed, tolerance, iterations):
                    for place in frame_mask[:, t + 1].nonzero().flatten().tolist():
                        norm, relative, residual = (of_batch[place].item() for of_batch in found)
                        if not math.isfinite(norm):
                            called = f"sample {batch.samples[place]}, {batch.names[place]},"
                            raise FloatingPointError(f"the query Jacobian's norm at frame {t} of {called} is {norm}")
                        values = (batch.samples[place], t, norm, relative, residual)
                        rows.append(dict(zip(COLUMNS, values, strict=True)))
            bar.update(len(batch.samples) + len(batch.skipped))
    return pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(["sample", "frame"], ignore_index=True)


def _norms_by_frame(
    model: FoveatedVLM, pixels: Tensor, frame_mask: Tensor, seed: int, tolerance: float, iterations: int
) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor]]]:
    """t, and norm, relative norm and residual, (B,) each, for each frame but the last, of samples without a next one
    too, of which they say nothing."""
    # the fused kernels of attention have no forward mode
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        cache = model.encode_frames(pixels, frame_mask)
        seen = watch(model, cache, frame_mask)
        queries, tokens = seen.queries[:, 0], seen.visual_tokens[:, 0]  # (B, T, query_dim), (B, T, D)
        if model.config.mode_tokens:
            tokens = torch.cat([model.fine_token.expand(len(tokens), -1, -1), tokens], dim=1)
        leading = tokens.shape[1] - queries.shape[1]
        padding = padding_mask(frame_mask, leading)
        sizes = queries.norm(dim=-1)
        for t in range(queries.shape[1] - 1):
            until = leading + t
            mask = None if padding is None else padding[:, : until + 1]

            def function(query: Tensor, t: int = t, until: int = until, mask: Tensor | None = mask) -> Tensor:
                return next_query(model, cache.frame(t), tokens[:, :until], query, mask)

            norm, residual = jacobian_norms(function, queries[:, t], seed, tolerance, iterations)
            yield t, (norm, norm * sizes[:, t] / sizes[:, t + 1], residual)


def summarize_norms(table: pd.DataFrame, num_resamples: int = 2000, seed: int = 0) -> JacobianNorms:
    """The means of `score_norms`' table with their intervals: bootstrap over videos, whose frames stay together.

    Raises ValueError where fewer than two videos have two frames.
    """
    if table["sample"].nunique() < 2:
        raise ValueError(
            f"{table['sample'].nunique()} of the videos have two frames or more, so that a query has a next one; an "
            "interval needs at least 2"
        )
    sums = table.groupby("sample")[["norm", "relative_norm"]].sum()
    sums["count"] = table.groupby("sample").size()
    overall = _means(sums, num_resamples, seed)
    by_frame = []
    for frame, rows in table.groupby("frame"):
        if len(rows) > 1:
            means = _means(rows.assign(count=1), num_resamples, seed)
            row: dict[str, float] = {"frame": int(frame), "videos": len(rows)}  # type: ignore[call-overload]
            for name, found in means.items():
                row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
            by_frame.append(row)
    return JacobianNorms(
        **overall, by_frame=tuple(by_frame), num_videos=len(sums), largest_residual=float(table["residual"].max())
    )


def _means(rows: pd.DataFrame, num_resamples: int, seed: int) -> dict[str, Estimate]:
    """Mean norm and relative norm of rows with their sums and `count`."""
    columns = {name: rows[name].to_numpy() for name in ("norm", "relative_norm", "count")}
    statistics = {name: ratio(name, "count") for name in ("norm", "relative_norm")}
    return bootstrap(columns, statistics, num_resamples, seed)
