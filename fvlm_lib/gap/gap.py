"""The train/inference gap of one checkpoint: how much worse a caption's loss is when frames are watched in
turn, as at inference, than with the parallel approximation that was trained.

`summarize_gap` turns the rows of `evaluation.py`, from one process or joined from many, into losses, gap,
intervals and a verdict. Which checkpoints to compare is the batch's business.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
    from fvlm_lib.__main__ import run_as

    run_as("gap")

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fvlm_lib.batch.parameters import NumFine, Reuse, Samples
from fvlm_lib.data.drawn_videos import DrawnVideos
from fvlm_lib.data.options import PROCEDURAL_SAMPLES, Data, DrawnData
from fvlm_lib.data.video_files import SkippedVideo
from fvlm_lib.data.videos import Videos, draw_videos, open_videos
from fvlm_lib.devices import pick_device
from fvlm_lib.foveated.checkpoints import has_tokenizer, load_checkpoint, load_tokenizer, read_training
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.gap.evaluation import numerical_floor, score_batches, scored_modes
from fvlm_lib.gap.jacobi import JacobiCurve
from fvlm_lib.gap.results import GAP_SCHEMA
from fvlm_lib.gap.samples import (
    join_samples,
    position_losses,
    query_distances,
    read_samples,
    read_skipped,
    sample_schema,
    write_samples,
)
from fvlm_lib.outputs import whole
from fvlm_lib.schema import BatchSize, CountOrNone, Dtype, Seed, check
from fvlm_lib.stats import HEAVY_SHARE, Estimate, bootstrap, difference, percent_difference, ratio, top_share

SMALL, LARGE = 5.0, 15.0  # percent of the training loss; the classes of the verdict
SHOWN_SKIPPED = 5
NEAR_ZERO_LOSS = 0.1  # nats a token; below it a percentage says nothing, and 5% and 15% of one nat judge
SIZES = ("small", "moderate", "large")


@dataclass(frozen=True)
class ReuseCost:
    """The inference loss with frames that are encoded by what changed, by one setting; nats a token.

    cost: by how much the loss exceeds that with full encodes, with its sign; paired, as the gap is. encoded: the share
    of the patches that were encoded, first frames among them, the mean over samples.
    """

    loss: Estimate
    cost: Estimate
    encoded: float


@dataclass(frozen=True)
class Gap:
    """The evaluation of one checkpoint. Losses and gaps in nats a token, with 95% bootstrap intervals.

    losses: by name: `coarse`, `fine_K` for each number of fine passes, `autoregressive`.
    loss_training_fine is `fine_K` with the first K that was asked for, loss_inference_fine the
    autoregressive one; gap_nats = inference - training, gap_percent of the training loss, both signed.
    gap_to_passes: for each K, autoregressive - fine_K.
    verdict, verdict_unit, verdict_reason: see `judge`.
    num_samples, num_tokens: that were scored; skipped: the samples that could not be.
    warnings: a sentence each for which of "training loss", "inference loss" and "gap" has an interval that may be too
    narrow (`interval_warnings`).
    numerical_floor: mean over tokens of the absolute difference that rounding makes to a sample's gap
    (against the same evaluation in float64); a smaller gap is noise. None where it was not measured.
    reuse: what encoding frames by what changed costs, by the settings' names; empty where that was not asked.
    """

    loss_training_fine: Estimate
    loss_inference_fine: Estimate
    loss_coarse: Estimate
    gap_nats: Estimate
    gap_percent: Estimate
    losses: dict[str, Estimate]
    gap_to_passes: dict[str, Estimate]
    numerical_floor: float | None
    verdict: str
    verdict_unit: str
    verdict_reason: str
    num_samples: int
    num_tokens: int
    warnings: dict[str, str]
    skipped: tuple[SkippedVideo, ...] = ()
    reuse: dict[str, ReuseCost] = field(default_factory=dict)


# ---- from rows to the gap ----------------------------------------------------------------------------


def summarize_gap(
    per_sample: pd.DataFrame,
    floor: float | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
    skipped: Sequence[SkippedVideo] = (),
) -> Gap:
    """Losses, gap, intervals (paired bootstrap over samples) and verdict from the scored rows of a table.

    The training mode is the first `fine_K` column. Raises ValueError where the table has none, or fewer
    than two samples.
    """
    scored = [name.removeprefix("nll_") for name in per_sample if name.startswith("nll_")]
    settings = [mode.removeprefix("reuse_") for mode in scored if mode.startswith("reuse_")]
    modes = [mode for mode in scored if not mode.startswith("reuse_")]
    passes = [mode for mode in modes if mode.startswith("fine_")]
    if not passes or "autoregressive" not in modes or "coarse" not in modes:
        raise ValueError(f"the table has losses of {modes}; coarse, a fine_K and autoregressive are needed")
    loss = {mode: ratio(f"nll_{mode}", "num_tokens") for mode in scored}
    training, inference = loss[passes[0]], loss["autoregressive"]
    statistics = {f"loss {mode}": loss[mode] for mode in scored}
    statistics |= {f"gap {mode}": difference(inference, loss[mode]) for mode in passes}
    statistics |= {f"cost {name}": difference(loss[f"reuse_{name}"], inference) for name in settings}
    statistics["percent"] = percent_difference(inference, training)
    columns = {name: per_sample[name].to_numpy() for name in ["num_tokens", *(f"nll_{mode}" for mode in scored)]}
    found = bootstrap(columns, statistics, num_resamples, seed)

    losses = {mode: found[f"loss {mode}"] for mode in modes}
    gap_nats = found[f"gap {passes[0]}"]
    verdict, unit, reason = judge(gap_nats, found["percent"], losses[passes[0]], floor)
    nll = {mode: columns[f"nll_{mode}"] for mode in modes}
    warnings = interval_warnings(columns["num_tokens"], nll[passes[0]], nll["autoregressive"])
    return Gap(
        loss_training_fine=losses[passes[0]],
        loss_inference_fine=losses["autoregressive"],
        loss_coarse=losses["coarse"],
        gap_nats=gap_nats,
        gap_percent=found["percent"],
        losses=losses,
        gap_to_passes={mode: found[f"gap {mode}"] for mode in passes},
        numerical_floor=floor,
        verdict=verdict,
        verdict_unit=unit,
        verdict_reason=reason,
        num_samples=len(per_sample),
        num_tokens=int(per_sample["num_tokens"].sum()),
        warnings=warnings,
        skipped=tuple(skipped),
        reuse={
            name: ReuseCost(
                found[f"loss reuse_{name}"], found[f"cost {name}"], float(per_sample[f"encoded_{name}"].mean())
            )
            for name in settings
        },
    )


def reuse_table(gap: Gap) -> pd.DataFrame:
    """What encoding frames by what changed costs, a row a setting, the first of full encodes.

    loss: at inference, nats a token, and cost: what it exceeds that of full encodes by, both with _low and _high, 95%
    intervals as of the gap. encoded: the share of patches that were encoded, first frames among them.
    """
    full = {"full encodes": ReuseCost(gap.loss_inference_fine, Estimate(0.0, 0.0, 0.0), 1.0)}
    rows = []
    for name, found in {**full, **gap.reuse}.items():
        row: dict[str, Any] = {"setting": name}
        for key, value in (("loss", found.loss), ("cost", found.cost)):
            row |= {key: value.value, f"{key}_low": value.low, f"{key}_high": value.high}
        rows.append({**row, "encoded": found.encoded})
    return pd.DataFrame(rows).set_index("setting")


def interval_warnings(num_tokens: np.ndarray, training: np.ndarray, inference: np.ndarray) -> dict[str, str]:
    """What makes the intervals of training loss, inference loss and gap too narrow, a sentence each; {} for nothing.

    num_tokens, training, inference: tokens and NLL in nats of each sample, (N,). Two things do: few samples that
    carry a sum, seen by the share of the ten largest; and few that are not among the samples at all. What happens to
    fewer than 3 in N is missing from N samples in one case of twenty (the rule of three), and by the largest loss of
    any sample it could add that much to a loss that is nearly zero.
    """
    count, tokens = len(num_tokens), num_tokens.sum()
    unseen = 3 * max(training.max(), inference.max()) / tokens  # nats a token
    warnings = {}
    for name, nll in {"training loss": training, "inference loss": inference, "gap": inference - training}.items():
        share = top_share(nll)
        if share > HEAVY_SHARE:
            few = f"ten of {count} samples carry {share:.0%} of the {name}"
            if count <= 10:
                few = f"there are only {count} samples for the {name}"
            warnings[name] = f"{few}: its interval may be too narrow"
        elif name != "gap" and unseen > HEAVY_SHARE * nll.sum() / tokens:
            warnings[name] = (
                f"failures in fewer than 3 of {count} samples could add {unseen:.2g} nats a token to the {name} of "
                f"{nll.sum() / tokens:.2g}, and may not be among them: its interval may be too narrow"
            )
    return warnings


def judge(
    gap_nats: Estimate, gap_percent: Estimate, training_loss: Estimate, floor: float | None
) -> tuple[str, str, str]:
    """The verdict (small, moderate or large, if the whole interval says so), its unit and its reason.

    The size of the gap is judged, whatever its sign: under 5% of the training loss small, over 15% large. Where
    the interval crosses a border the verdict names the classes it spans. Where the training loss is under
    NEAR_ZERO_LOSS, percentages of it mislead; the gap is then judged in nats a token, at 0.05 and 0.15. Where the
    training loss's interval does not tell on which side of NEAR_ZERO_LOSS it lies, both judge, and the verdict
    is resolved only if they agree. unit: "percent", "nats" or "percent and nats".
    """
    units = {}  # name -> the gap in it, what to call it, and what a border of 1% is in it
    if training_loss.high >= NEAR_ZERO_LOSS:
        units["percent"] = (gap_percent, "%", 1.0)
    if training_loss.low < NEAR_ZERO_LOSS:
        units["nats"] = (gap_nats, "nats a token", 0.01)
    spanned, reasons = set(), []
    for gap, called, scale in units.values():
        nearest = 0.0 if gap.low <= 0 <= gap.high else min(abs(gap.low), abs(gap.high))
        farthest = max(abs(gap.low), abs(gap.high))
        spanned |= {_size(nearest, scale), _size(farthest, scale)}
        reasons.append(
            f"interval {gap.low:+.3g} to {gap.high:+.3g} {called}, borders {SMALL * scale:g} and {LARGE * scale:g}"
        )
    classes = SIZES[min(map(SIZES.index, spanned)) : max(map(SIZES.index, spanned)) + 1]
    verdict = classes[0] if len(classes) == 1 else "not resolved: " + " or ".join(classes)
    if "nats" in units:
        where = f"the training loss of {training_loss.value:.3g} [{training_loss.low:.3g}, {training_loss.high:.3g}]"
        alone = f"judged in nats, since {where} is nearly zero"
        both = f"judged in percent and in nats, since {where} may be under {NEAR_ZERO_LOSS:g} or not"
        reasons.append(both if "percent" in units else alone)
    if floor is not None and max(abs(gap_nats.low), abs(gap_nats.high)) <= floor:
        reasons.append(f"below the numerical floor of {floor:.1e} nats a token, so it is noise")
    return verdict, " and ".join(units), "; ".join(reasons)


def _size(gap: float, scale: float) -> str:
    return "small" if gap < SMALL * scale else "moderate" if gap <= LARGE * scale else "large"


# ---- the whole evaluation ----------------------------------------------------------------------------


def shard_bounds(num_samples: int, batch_size: int, shard: int, num_shards: int) -> tuple[int, int]:
    """Start and stop of part `shard` (1 to num_shards) of the samples, made of whole batches.

    Whole batches, so that a sample meets the same batch-mates and rounds to the same digits however many
    parts there are. A part may be empty (start = stop) where there are more parts than batches.
    """
    if not 1 <= shard <= num_shards:
        raise ValueError(f"shard {shard} of {num_shards} is asked for; it must lie between 1 and {num_shards}")
    batches = -(-num_samples // batch_size)
    first, last = (batches * (shard - 1)) // num_shards, (batches * shard) // num_shards
    return min(first * batch_size, num_samples), min(last * batch_size, num_samples)


def open_evaluation(
    checkpoint: str | Path, data: Mapping[str, Any], dtype: str | None = None, device: str = "auto"
) -> tuple[FoveatedVLM, Videos]:
    """A checkpoint's model and the videos it is evaluated on.

    data: what `open_videos` takes; of videos on disk, the checkpoint says what its captions are read with (its
    tokenizer), how many frames and tokens fit, and which frames it wants, where `data` says nothing else.
    dtype: float64, float32, bfloat16 or float16; None as stored. device: "auto" takes CUDA, then MPS, then CPU.

    Raises ValueError for data that cannot be, and for drawn videos that are not of the checkpoint's frames, words
    and positions.
    """
    described = check(Data, data, "data")
    check(Dtype | None, dtype, "dtype")
    stored_in = getattr(torch, dtype) if dtype else None
    model = load_checkpoint(checkpoint, device=pick_device(device), dtype=stored_in)
    vocab_size, positions = model.config.text_config.vocab_size, model.config.text_config.max_position_embeddings
    positions -= 2 if model.config.mode_tokens else 0  # one before the frames, one behind them
    if isinstance(described, DrawnData):
        described.check_model(model.config.image_size, vocab_size, positions)
        drawn = draw_videos(described)
        if has_tokenizer(checkpoint):
            drawn.check_words(load_tokenizer(checkpoint, vocab_size))
        return model, drawn
    wanted = {name: getattr(model.config, name) for name in ("image_size", "image_mean", "image_std")}
    return model, open_videos({**wanted, **data}, load_tokenizer(checkpoint, vocab_size), positions)


def evaluate_inference_gap(
    model: FoveatedVLM,
    videos: Videos,
    table: str | Path,
    num_samples: int | None = None,
    batch_size: int = 32,
    num_fine: Sequence[int] = (1, 2, 3),
    seed: int = 0,
    floor_samples: int = 64,
    shards: Sequence[str | Path] = (),
    progress: bool = True,
    reuse: Mapping[str, Any] | None = None,
) -> Gap:
    """Evaluate a model on the first `num_samples` of some videos, and write the per-sample table (Parquet).

    table: the file to write, see `samples.py`. num_samples: None takes them all, and 512 of drawn ones.
    num_fine: numbers of fine passes to score; the first is the training mode. seed: of the bootstrap.
    floor_samples: how many of the scored samples are evaluated again in float64 for the numerical floor (0: none; MPS
    has no float64, so it needs 0). shards: tables of all samples, scored before in parts (`score_shard`); then nothing
    else is scored here, and they are joined. reuse: `DifferentialSettings`, or mappings, by a name each: with each of
    them the inference loss is taken again, frames encoded by what changed.

    Raises ValueError for numbers that cannot be, and where fewer than two samples are asked for, or can be used.
    """
    _check_numbers(num_samples, batch_size, num_fine)
    check(Seed, seed, "seed")
    check(CountOrNone, floor_samples, "floor_samples")
    settings = check(Reuse | None, reuse, "reuse")
    table = Path(table)
    count = _count_samples(videos, num_samples)
    if count < 2:
        raise ValueError(f"num_samples is {count}; an interval needs at least 2")
    if shards:
        join_samples(shards, table, count)
    else:
        rows = score_batches(model, videos, 0, count, batch_size, num_fine, progress, settings)
        write_samples(table, rows, sample_schema(scored_modes(num_fine), settings or ()))
    scored, skipped, floor = read_samples(table), read_skipped(table), None
    if len(scored) < 2:
        raise ValueError(
            f"{len(skipped)} of the {count} samples cannot be used, and an interval needs at least 2; the first of "
            f"them, {skipped[0].name}: {skipped[0].reason}"
        )
    if floor_samples:
        last = int(scored["sample"].iloc[:floor_samples].iloc[-1])
        floor = numerical_floor(model, videos, scored, batch_size, num_fine[0], last + 1)
    return summarize_gap(scored, floor, seed=seed, skipped=skipped)


def score_shard(
    model: FoveatedVLM,
    videos: Videos,
    table: str | Path,
    shard: int,
    num_shards: int,
    num_samples: int | None = None,
    batch_size: int = 32,
    num_fine: Sequence[int] = (1, 2, 3),
    reuse: Mapping[str, Any] | None = None,
) -> None:
    """Score part `shard` (1 to num_shards) of an evaluation and write its table; arguments as there."""
    _check_numbers(num_samples, batch_size, num_fine)
    start, stop = shard_bounds(_count_samples(videos, num_samples), batch_size, shard, num_shards)
    settings = check(Reuse | None, reuse, "reuse")
    rows = score_batches(model, videos, start, stop, batch_size, num_fine, reuse=settings)
    write_samples(Path(table), rows, sample_schema(scored_modes(num_fine), settings or ()))


def _check_numbers(num_samples: int | None, batch_size: int, num_fine: Sequence[int]) -> None:
    check(Samples | None, num_samples, "num_samples")
    check(BatchSize, batch_size, "batch_size")
    check(NumFine, list(num_fine), "num_fine")


def _count_samples(videos: Videos, num_samples: int | None) -> int:
    """How many samples are evaluated; ValueError where there are not so many."""
    if isinstance(videos, DrawnVideos):
        return PROCEDURAL_SAMPLES if num_samples is None else num_samples
    if num_samples is not None and num_samples > len(videos):
        raise ValueError(f"num_samples is {num_samples}, but there are {len(videos)} videos; null takes them all")
    return len(videos) if num_samples is None else num_samples


def write_gap(
    path: Path,
    gap: Gap,
    table: str | Path,
    parameters: dict[str, Any],
    training: dict[str, Any] | None = None,
    jacobi: JacobiCurve | None = None,
) -> None:
    """Write `path` (JSON): the gap, means by position from its per-sample table, parameters, training.

    `parameters` are what the caller evaluated with; they are what a later reader checks. `training`: what
    to say of the checkpoint's training beyond its own training.json, or against it. jacobi: what
    `jacobi.evaluate_jacobi` found, where it was asked for.
    """
    content = {
        "schema": GAP_SCHEMA,
        "parameters": parameters,
        **asdict(gap),
        "by_position": position_losses(table).to_dict("records"),
        "query_distance_by_frame": query_distances(table).to_dict("records"),
        **({} if jacobi is None else {"jacobi": asdict(jacobi)}),
        "training": read_training(parameters["checkpoint"]) | (training or {}),
        "torch": torch.__version__,
    }
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def format_gap(gap: Gap) -> str:
    """The gap for a terminal, a few lines."""
    lines = [
        f"{name:<22}{value.value:9.4f}   [{value.low:.4f}, {value.high:.4f}] nats a token"
        for name, value in {
            "loss_training_fine": gap.loss_training_fine,
            "loss_inference_fine": gap.loss_inference_fine,
            "loss_coarse": gap.loss_coarse,
        }.items()
    ]
    nats, percent = gap.gap_nats, gap.gap_percent
    lines.append(f"{'gap':<22}{nats.value:+9.4f}   [{nats.low:+.4f}, {nats.high:+.4f}] nats a token")
    lines.append(f"{'':<22}{percent.value:+9.2f}   [{percent.low:+.2f}, {percent.high:+.2f}] % of loss_training_fine")
    for name, reused in gap.reuse.items():
        loss, cost = reused.loss, reused.cost
        lines.append(f"{'loss, reuse ' + name:<22}{loss.value:9.4f}   [{loss.low:.4f}, {loss.high:.4f}] nats a token")
        lines.append(
            f"{'':<22}{cost.value:+9.4f}   [{cost.low:+.4f}, {cost.high:+.4f}] against full encodes; "
            f"{reused.encoded:.0%} of patches encoded"
        )
    if gap.numerical_floor is not None:
        lines.append(f"{'numerical floor':<22}{gap.numerical_floor:9.1e}   nats a token")
    lines.append(f"{'verdict':<22}{gap.verdict} ({gap.verdict_reason})")
    lines.append(f"{gap.num_samples} samples, {gap.num_tokens} tokens, 95% intervals by paired bootstrap over samples")
    lines += [f"warning: {warning}" for warning in gap.warnings.values()]
    if gap.skipped:
        lines.append(f"{len(gap.skipped)} samples skipped:")
        lines += [f"  {skipped.sample}, {skipped.name}: {skipped.reason}" for skipped in gap.skipped[:SHOWN_SKIPPED]]
        lines += ["  ... (all of them are in the result)"] if len(gap.skipped) > SHOWN_SKIPPED else []
    return "\n".join(lines)
