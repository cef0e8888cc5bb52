"""gap(K): how far K = 1..T fine passes over T frames are from sequential use, in nats, in queries and in visual tokens.

A fine pass is a Jacobi iteration of the sequential recurrence (`foveated/passes.py`), and after K of them the first K
frames are exact, so gap(T) is 0 up to rounding; in between nothing makes it fall with K. Where a whole video is known,
K passes may take the place of sequential use, and this module tells how many bring the loss within a given distance.
By how much an error of a query grows from a frame to the next is the subject of `query_jacobian.py`.

Models with mode tokens read other tokens in the two modes, and those with the legacy norm divide by other numbers: of
these something is left after any number of passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from fvlm_lib.batch.parameters import Jacobi
from fvlm_lib.data.video_files import VideoBatch
from fvlm_lib.data.videos import Videos
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.passes import scored_passes
from fvlm_lib.gap.evaluation import check_finite, query_distance
from fvlm_lib.gap.query_jacobian import COLUMNS, JacobianNorms, score_norms, summarize_norms
from fvlm_lib.gap.samples import holds_columns, write_samples
from fvlm_lib.outputs import check_output, whole
from fvlm_lib.schema import BatchSize, Positive, check
from fvlm_lib.stats import HEAVY_SHARE, Estimate, Statistic, bootstrap, difference, ratio, top_share

SCHEMA = pa.schema(
    [
        ("sample", pa.int64()),
        ("name", pa.string()),
        ("num_frames", pa.int64()),
        ("num_tokens", pa.int64()),
        ("passes", pa.int64()),
        ("nll", pa.float64()),
        ("nll_autoregressive", pa.float64()),
        ("query_distance", pa.float64()),
        ("token_distance", pa.float64()),
    ]
)


@dataclass(frozen=True)
class FinePassesOff:
    """How far so many fine passes are from sequential use, with 95% intervals.

    loss: after them, nats a token. gap: the loss of sequential use less this one, with its sign, paired.
    query_distance, token_distance: relative L2 distance of a frame's query and of its visual token to those of
    sequential use, the mean over all frames. doubtful: ten samples carry so much of the gap that its interval may be
    too narrow.
    """

    passes: int
    loss: Estimate
    gap: Estimate
    query_distance: Estimate
    token_distance: Estimate
    doubtful: bool


@dataclass(frozen=True)
class JacobiCurve:
    """gap(K) of one checkpoint for K = 1..num_frames, that of the longest video.

    passes_within: the smallest K whose gap's whole interval lies within ± `within` nats a token, None where there is
    none; passes_within_query: the smallest K whose query distance's whole interval is at most `within_query`. Of more
    passes neither must hold: outside_again, outside_query_again list those, larger than the smallest, of which it does
    not. jacobian: norms of the query recurrence's Jacobian; None where they were not asked for, or no two videos have
    two frames.
    """

    num_frames: int
    loss_inference_fine: Estimate
    passes: tuple[FinePassesOff, ...]
    within: float
    passes_within: int | None
    outside_again: tuple[int, ...]
    within_query: float
    passes_within_query: int | None
    outside_query_again: tuple[int, ...]
    num_samples: int
    num_tokens: int
    jacobian: JacobianNorms | None = None


# ---- rows ------------------------------------------------------------------------------------------------


def score_passes(
    model: FoveatedVLM, videos: Videos, start: int, stop: int, batch_size: int = 32, progress: bool = True
) -> Iterator[pa.Table]:
    """Score samples start..stop-1 in sequential use and after each number of fine passes, on one encode a batch.

    Yields a batch's rows at a time: of each sample that can be used a row for each K from 1 to its number of frames, as
    SCHEMA says: nll and nll_autoregressive in nats, summed over the caption; query_distance and token_distance, the
    relative L2 distance of a frame's query and visual token to those of sequential use, summed over its frames.
    Memory is that of two modes at a time.

    Raises FloatingPointError, naming the sample, for a loss that is not a finite number.
    """
    check(BatchSize, batch_size, "batch_size")
    parameter = next(model.parameters())
    with tqdm(total=max(stop - start, 0), desc="fine passes", unit="video", disable=not progress) as bar:
        for batch in videos.batches(start, stop, batch_size) if stop > start else ():
            if batch.inputs:
                inputs = {key: value.to(parameter.device) for key, value in batch.inputs.items()}
                inputs["pixel_values"] = inputs["pixel_values"].to(parameter.dtype)
                yield pa.Table.from_pylist(_score_batch(model, inputs, batch), SCHEMA)
            bar.update(len(batch.samples) + len(batch.skipped))


@torch.no_grad()
def _score_batch(model: FoveatedVLM, inputs: dict[str, Tensor], batch: VideoBatch) -> list[dict[str, Any]]:
    """Rows of the batch's samples, each with all its numbers of passes."""
    frame_mask = inputs["frame_mask"].bool()
    cache = model.encode_frames(inputs["pixel_values"], frame_mask)
    shared: dict[str, Any] = {**inputs, "pixel_values": None, "patch_cache": cache}
    sequential = model.forward_autoregressive(**shared)
    check_finite("autoregressive", sequential.nll, batch)
    lengths = frame_mask.sum(dim=1).tolist()
    rows: list[dict[str, Any]] = []
    fine = scored_passes(model, model.encode_batch(**shared), max(lengths), range(1, max(lengths) + 1))
    for passes, output in enumerate(fine, start=1):
        check_finite(f"fine_{passes}", output.nll, batch)
        off = [
            query_distance(one, other).double().masked_fill(~frame_mask, 0.0).sum(dim=1)
            for one, other in (
                (output.queries, sequential.queries),
                (output.visual_tokens, sequential.visual_tokens),
            )
        ]
        numbers = zip(
            output.nll.double().tolist(), sequential.nll.double().tolist(), *(x.tolist() for x in off), strict=True
        )
        tokens = output.num_tokens.tolist()
        for place, values in enumerate(numbers):
            if passes <= lengths[place]:
                known = (batch.samples[place], batch.names[place], lengths[place], tokens[place], passes)
                rows.append(dict(zip(SCHEMA.names, (*known, *values), strict=True)))
    return sorted(rows, key=lambda row: row["sample"])  # stable: passes stay in order


# ---- from rows to the curve ------------------------------------------------------------------------------


def summarize_passes(
    table: pd.DataFrame,
    within: float = 0.01,
    within_query: float = 0.01,
    num_resamples: int = 2000,
    seed: int = 0,
    jacobian: JacobianNorms | None = None,
) -> JacobiCurve:
    """gap(K) with its intervals from the rows of `score_passes`: bootstrap over samples, the same resamples for all K.

    A video that is shorter than K counts as after as many passes as it has frames, behind which nothing changes.
    Raises ValueError for a table that lacks rows, or has fewer than two samples.
    """
    check(Positive, within, "within")
    check(Positive, within_query, "within_query")
    _check_rows(table)
    num_frames = int(table["num_frames"].max())
    of_sample = table[table["passes"] == 1].sort_values("sample")
    fixed = {name: of_sample[name].to_numpy() for name in ("num_tokens", "num_frames", "nll_autoregressive")}
    inference = ratio("nll_autoregressive", "num_tokens")
    loss = ratio("nll", "num_tokens")
    statistics: dict[str, Statistic] = {
        "loss": loss,
        "gap": difference(inference, loss),
        "query_distance": ratio("query_distance", "num_frames"),
        "token_distance": ratio("token_distance", "num_frames"),
    }
    found = []
    for passes in range(1, num_frames + 1):
        rows = table[table["passes"] == table["num_frames"].clip(upper=passes)].sort_values("sample")
        columns = fixed | {name: rows[name].to_numpy() for name in ("nll", "query_distance", "token_distance")}
        doubtful = top_share(columns["nll_autoregressive"] - columns["nll"]) > HEAVY_SHARE
        # the same seed and number of samples, so the same resamples for each number of passes
        found.append(FinePassesOff(passes, **bootstrap(columns, statistics, num_resamples, seed), doubtful=doubtful))
    near = [max(abs(one.gap.low), abs(one.gap.high)) <= within for one in found]
    near_query = [one.query_distance.high <= within_query for one in found]
    first, again = _first_within(near)
    first_query, again_query = _first_within(near_query)
    return JacobiCurve(
        num_frames=num_frames,
        loss_inference_fine=bootstrap(fixed, {"loss": inference}, num_resamples, seed)["loss"],
        passes=tuple(found),
        within=within,
        passes_within=first,
        outside_again=again,
        within_query=within_query,
        passes_within_query=first_query,
        outside_query_again=again_query,
        num_samples=len(of_sample),
        num_tokens=int(of_sample["num_tokens"].sum()),
        jacobian=jacobian,
    )


def _check_rows(table: pd.DataFrame) -> None:
    """Raise ValueError where a sample has not one row for each K from 1 to its number of frames."""
    for sample, rows in table.groupby("sample"):
        frames = rows["num_frames"].iloc[0]
        if sorted(rows["passes"]) != list(range(1, frames + 1)):
            raise ValueError(f"sample {sample} has {frames} frames and rows of {sorted(rows['passes'])} passes")
    if table["sample"].nunique() < 2:
        raise ValueError(f"there are rows of {table['sample'].nunique()} samples; an interval needs at least 2")


def _first_within(near: list[bool]) -> tuple[int | None, tuple[int, ...]]:
    """Of which numbers of passes, from 1, are near: the smallest, and those beyond it that are not."""
    if True not in near:
        return None, ()
    first = near.index(True) + 1
    return first, tuple(passes for passes, here in enumerate(near, start=1) if passes > first and not here)


def curve_table(curve: JacobiCurve) -> pd.DataFrame:
    """A row a number of passes: passes; loss, gap, query_distance and token_distance, each with _low and _high;
    doubtful."""
    rows = []
    for one in curve.passes:
        row: dict[str, Any] = {"passes": one.passes}
        for name in ("loss", "gap", "query_distance", "token_distance"):
            value = getattr(one, name)
            row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        rows.append(row | {"doubtful": one.doubtful})
    return pd.DataFrame(rows)


# ---- the whole -------------------------------------------------------------------------------------------


def jacobi_files(result: str | Path) -> tuple[Path, Path]:
    """Where the tables lie that belong to a result, FILE.json: FILE.passes.parquet, FILE.jacobian.parquet."""
    stem = Path(result).with_suffix("")
    return stem.with_name(f"{stem.name}.passes.parquet"), stem.with_name(f"{stem.name}.jacobian.parquet")


def check_jacobi_files(result: str | Path) -> None:
    """Raise ValueError where a file that `evaluate_jacobi` would replace is none of its tables."""
    for table, columns in zip(jacobi_files(result), (SCHEMA.names, COLUMNS), strict=True):
        check_output(table)
        if not holds_columns(table, columns):
            raise ValueError(f"{table}, which would be replaced, is no table of fine passes; name another --output")


def evaluate_jacobi(
    model: FoveatedVLM,
    videos: Videos,
    result: str | Path,
    samples: Iterable[int],
    options: Jacobi | Mapping[str, Any] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> JacobiCurve:
    """gap(K) on those of a gap's samples that were scored, and the norms of the Jacobian on the first of them.

    result: FILE.json, beside which the tables are written (`jacobi_files`): one row a sample and number of passes
    (`score_passes`), one row a sample and frame (`query_jacobian.score_norms`). samples: numbers of the samples, as
    `samples.read_samples` has them. options: what is near enough, and how many videos the norms are of, as `Jacobi` or
    a mapping; None: the defaults. seed: of the bootstrap and of the power iteration.
    """
    options = check(Jacobi, {} if options is None else options, "jacobi")
    passes_table, norms_table = jacobi_files(result)
    numbers = sorted(samples)
    rows = score_passes(model, videos, 0, numbers[-1] + 1, batch_size, progress)
    write_samples(passes_table, rows, SCHEMA)
    jacobian = None
    if chosen := numbers[: options.norm_samples]:
        norms = score_norms(model, videos, 0, chosen[-1] + 1, batch_size, seed, progress=progress)
        with whole(norms_table) as part:
            norms.to_parquet(part, index=False)
        if norms["sample"].nunique() > 1:
            jacobian = summarize_norms(norms, seed=seed)
    table = pd.read_parquet(passes_table)
    return summarize_passes(table, options.within, options.within_query, seed=seed, jacobian=jacobian)


def format_jacobi(curve: JacobiCurve) -> str:
    """The curve for a terminal: a line a number of passes, how many are near enough, and the Jacobian's norms."""
    lines = [
        f"{'fine passes':>11}  {'loss':>7}  {'gap(K), nats a token':<33}{'query distance':<28}visual-token distance",
    ]
    for one in curve.passes:
        gap = f"{_interval(one.gap, '+.5f')}{' †' if one.doubtful else ''}"
        query, token = _interval(one.query_distance, ".2g"), _interval(one.token_distance, ".2g")
        lines.append(f"{one.passes:>11}  {one.loss.value:7.4f}  {gap:<33}{query:<28}{token}")
    lines.append(f"{'sequential':>11}  {curve.loss_inference_fine.value:7.4f}")
    nats, share = f"{curve.within:g} nats a token", f"{curve.within_query:g} of the query's length"
    lines.append(_near_enough(curve.passes_within, curve.outside_again, f"loss within {nats} of sequential use"))
    lines.append(
        _near_enough(
            curve.passes_within_query, curve.outside_query_again, f"queries within {share} of those of sequential use"
        )
    )
    if found := curve.jacobian:
        lines.append(f"{'':>11}  {'norm of dq(t+1)/dq(t)':<26}the same of relative errors")
        lines.append(f"{'all frames':>11}  {_interval(found.norm, '.4f'):<26}{_interval(found.relative_norm, '.4f')}")
        for row in found.by_frame:
            norm, relative = (
                Estimate(*(row[name + end] for end in ("", "_low", "_high"))) for name in ("norm", "relative_norm")
            )
            lines.append(f"{'t = ' + str(row['frame']):>11}  {_interval(norm, '.4f'):<26}{_interval(relative, '.4f')}")
        lines.append(f"norms of {found.num_videos} videos, off by at most about {found.largest_residual / 2:.1%}")
    lines.append(
        f"{curve.num_samples} samples, {curve.num_tokens} tokens, 95% intervals by paired bootstrap over samples"
    )
    if any(one.doubtful for one in curve.passes):
        lines.append(f"† ten samples carry over {HEAVY_SHARE:.0%} of this gap: its interval may be too narrow")
    return "\n".join(lines)


def _interval(estimate: Estimate, form: str) -> str:
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


def _near_enough(passes: int | None, outside: tuple[int, ...], what: str) -> str:
    """How many passes do, in a sentence."""
    if passes is None:
        return f"{what}: after no number of passes (the whole interval must be)"
    but = f", but not after {', '.join(map(str, outside))}" if outside else ""
    return f"{what}: after {passes} {'pass' if passes == 1 else 'passes'} (the whole interval is){but}"
