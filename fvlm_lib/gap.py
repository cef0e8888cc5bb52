"""The train/inference gap of one checkpoint: how much worse a caption's loss is when frames are watched in
turn, as at inference, than with the parallel approximation that was trained.

Two halves. `score_videos` runs a model and returns a table with one row a sample, sums and counts apart.
`summarize_gap` turns such a table, from one process or joined from many, into losses, gap, intervals and a
verdict. How a mode works is in `modeling_fvlm.py`; which checkpoints to compare is the batch's business.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from torch import nn
from tqdm import tqdm

from fvlm_lib.batch import GAP_SCHEMA
from fvlm_lib.checkpoints import load_checkpoint, read_training
from fvlm_lib.modeling_fvlm import FoveatedVLM, FoveatedVLMOutput
from fvlm_lib.scoring import token_nll
from fvlm_lib.stats import Estimate, bootstrap, difference, percent_difference, ratio
from fvlm_lib.videos import ProceduralVideos, open_videos

SMALL, LARGE = 5.0, 15.0  # percent of the training loss; the classes of the verdict
NEAR_ZERO_LOSS = 0.1  # nats a token; below it a percentage says nothing, and 5% and 15% of one nat judge


@dataclass(frozen=True)
class Gap:
    """The evaluation of one checkpoint. Losses and gaps in nats a token, with 95% bootstrap intervals.

    losses: by name: `coarse`, `fine_K` for each number of fine passes, `autoregressive`.
    loss_training_fine is `fine_K` with the first K that was asked for, loss_inference_fine the
    autoregressive one; gap_nats = inference - training, gap_percent of the training loss, both signed.
    gap_to_passes: for each K, autoregressive - fine_K.
    verdict, verdict_unit, verdict_reason: see `judge`.
    numerical_floor: mean over tokens of the absolute difference that rounding makes to a sample's gap
    (against the same evaluation in float64); a smaller gap is noise. None where it was not measured.
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


# ---- one row a sample --------------------------------------------------------------------------------


@torch.no_grad()
def score_videos(
    model: FoveatedVLM,
    videos: ProceduralVideos,
    start: int,
    stop: int,
    batch_size: int = 32,
    num_fine: Sequence[int] = (1, 2, 3),
    progress: bool = True,
) -> pd.DataFrame:
    """Score samples start..stop-1 in every mode, with one vision encode a batch for all of them.

    Returns one row a sample: `sample`, `num_frames`, `num_tokens`; `nll_<mode>` (nats, summed over the
    caption) and `token_nll_<mode>` (its list, a token) for coarse, fine_K and autoregressive;
    `query_distance` (a frame: relative L2 of the training query, from the first `num_fine`, to the
    inference query).

    Raises FloatingPointError, naming the sample, for a loss that is not a finite number.
    """
    if not num_fine or min(num_fine) < 1:
        raise ValueError(f"num_fine is {tuple(num_fine)}; it must list at least one number of passes >= 1")
    if stop <= start:
        raise ValueError(f"samples {start} to {stop} hold nothing to score; num_samples must be at least 1")
    parameter = next(model.parameters())
    tables = []
    with tqdm(total=stop - start, desc="scoring", unit="video", disable=not progress) as bar:
        for first in range(start, stop, batch_size):
            batch = videos.batch(first, min(first + batch_size, stop))
            batch = {key: value.to(parameter.device) for key, value in batch.items()}
            batch["pixel_values"] = batch["pixel_values"].to(parameter.dtype)
            tables.append(_score_batch(model, batch, first, num_fine))
            bar.update(len(tables[-1]))
    return pd.concat(tables, ignore_index=True)


def _score_batch(
    model: FoveatedVLM, batch: dict[str, torch.Tensor], first: int, num_fine: Sequence[int]
) -> pd.DataFrame:
    patch_cache = model.encode_frames(batch["pixel_values"], batch["frame_mask"])
    inputs: dict[str, Any] = {**batch, "pixel_values": None, "patch_cache": patch_cache}
    coarse, *fine, autoregressive = model.forward_modes(**inputs, num_fine=max(num_fine))
    outputs: dict[str, FoveatedVLMOutput] = {"coarse": coarse}
    outputs |= {f"fine_{k}": fine[k - 1] for k in num_fine}
    outputs["autoregressive"] = autoregressive

    frame_counts = batch["frame_mask"].sum(dim=1).tolist()
    inference = autoregressive.queries
    distance = (outputs[f"fine_{num_fine[0]}"].queries - inference).norm(dim=-1) / inference.norm(dim=-1)  # (B, T)
    table: dict[str, Any] = {
        "sample": range(first, first + len(frame_counts)),
        "num_frames": frame_counts,
        "num_tokens": coarse.num_tokens.tolist(),
        "query_distance": [row[:n].tolist() for row, n in zip(distance, frame_counts, strict=True)],
    }
    for mode, output in outputs.items():
        if not output.nll.isfinite().all():
            bad = int((~output.nll.isfinite()).nonzero()[0])
            raise FloatingPointError(f"the {mode} loss of sample {first + bad} is {output.nll[bad].item()}")
        scored = output.labels != -100
        nll = token_nll(output.logits, output.labels)
        table[f"nll_{mode}"] = output.nll.double().tolist()
        table[f"token_nll_{mode}"] = [row[keep].tolist() for row, keep in zip(nll, scored, strict=True)]
    return pd.DataFrame(table)


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
    model: FoveatedVLM, videos: ProceduralVideos, per_sample: pd.DataFrame, batch_size: int, num_fine: int, count: int
) -> float:
    """What rounding does to the gap, nats a token: sum over the first `count` samples of |gap in the
    model's dtype - gap in float64|, over their tokens. Absolute values, so that errors do not cancel."""
    rows = per_sample.head(count)
    start = int(rows["sample"].iloc[0])
    exact = score_videos(float64_copy(model), videos, start, start + len(rows), batch_size, (num_fine,), progress=False)
    column = f"nll_fine_{num_fine}"
    gap = rows["nll_autoregressive"].to_numpy() - rows[column].to_numpy()
    exact_gap = exact["nll_autoregressive"].to_numpy() - exact[column].to_numpy()
    return float(np.abs(gap - exact_gap).sum() / rows["num_tokens"].sum())


# ---- from rows to the gap ----------------------------------------------------------------------------


def summarize_gap(
    per_sample: pd.DataFrame, floor: float | None = None, num_resamples: int = 2000, seed: int = 0
) -> Gap:
    """Losses, gap, intervals (paired bootstrap over samples) and verdict from a `score_videos` table.

    The training mode is the first `fine_K` column. Raises ValueError where the table has none, or fewer
    than two samples.
    """
    modes = [name.removeprefix("nll_") for name in per_sample if name.startswith("nll_")]
    passes = [mode for mode in modes if mode.startswith("fine_")]
    if not passes or "autoregressive" not in modes or "coarse" not in modes:
        raise ValueError(f"the table has losses of {modes}; coarse, a fine_K and autoregressive are needed")
    loss = {mode: ratio(f"nll_{mode}", "num_tokens") for mode in modes}
    training, inference = loss[passes[0]], loss["autoregressive"]
    statistics = {f"loss {mode}": loss[mode] for mode in modes}
    statistics |= {f"gap {mode}": difference(inference, loss[mode]) for mode in passes}
    statistics["percent"] = percent_difference(inference, training)
    columns = {name: per_sample[name].to_numpy() for name in ["num_tokens", *(f"nll_{mode}" for mode in modes)]}
    found = bootstrap(columns, statistics, num_resamples, seed)

    losses = {mode: found[f"loss {mode}"] for mode in modes}
    gap_nats = found[f"gap {passes[0]}"]
    verdict, unit, reason = judge(gap_nats, found["percent"], losses[passes[0]].value, floor)
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
    )


def judge(gap_nats: Estimate, gap_percent: Estimate, training_loss: float, floor: float | None) -> tuple[str, str, str]:
    """The verdict (small, moderate or large, if the whole interval says so), its unit and its reason.

    The size of the gap is judged, whatever its sign: under 5% small, over 15% large. Where the interval
    crosses a border the verdict names the classes it spans. Where the training loss is under
    NEAR_ZERO_LOSS, percentages of it mislead; the gap is then judged in nats a token, at 0.05 and 0.15
    (unit "nats" and not "percent").
    """
    in_nats = training_loss < NEAR_ZERO_LOSS
    gap, unit, scale = (gap_nats, "nats a token", 0.01) if in_nats else (gap_percent, "%", 1.0)
    nearest = 0.0 if gap.low <= 0 <= gap.high else min(abs(gap.low), abs(gap.high))
    farthest = max(abs(gap.low), abs(gap.high))
    classes = [_size(nearest, scale), _size(farthest, scale)]
    names = ("small", "moderate", "large")
    spanned = names[names.index(classes[0]) : names.index(classes[1]) + 1]
    verdict = spanned[0] if len(spanned) == 1 else "not resolved: " + " or ".join(spanned)
    reason = f"interval {gap.low:+.3g} to {gap.high:+.3g} {unit}, borders {SMALL * scale:g} and {LARGE * scale:g}"
    if in_nats:
        reason += f"; judged in nats, since the training loss of {training_loss:.3g} is nearly zero"
    if floor is not None and max(abs(gap_nats.low), abs(gap_nats.high)) <= floor:
        reason += f"; below the numerical floor of {floor:.1e} nats a token, so it is noise"
    return verdict, "nats" if in_nats else "percent", reason


def _size(gap: float, scale: float) -> str:
    return "small" if gap < SMALL * scale else "moderate" if gap <= LARGE * scale else "large"


def position_losses(per_sample: pd.DataFrame) -> pd.DataFrame:
    """Mean loss by caption position and mode, tidy: mode, position (0 first), nats, low, high, count.

    Intervals are normal ones, mean ± 1.96 standard errors.
    """
    columns = {name.removeprefix("token_nll_"): name for name in per_sample if name.startswith("token_nll_")}
    tables = [_by_place(per_sample[column], "position").assign(mode=mode) for mode, column in columns.items()]
    return pd.concat(tables, ignore_index=True)[["mode", "position", "mean", "low", "high", "count"]]


def query_distances(per_sample: pd.DataFrame) -> pd.DataFrame:
    """Mean relative distance of training to inference query by frame: frame, mean, low, high, count."""
    return _by_place(per_sample["query_distance"], "frame")


def _by_place(lists: pd.Series, place: str) -> pd.DataFrame:
    """Mean and normal 95% interval of the i-th entries of a column of lists, for each i."""
    values = lists.explode().astype(float)
    index = values.groupby(level=0).cumcount().rename(place)
    table = values.groupby(index.to_numpy()).agg(["mean", "std", "count"])
    margin = 1.96 * table["std"].fillna(0.0) / np.sqrt(table["count"])
    table["low"], table["high"] = table["mean"] - margin, table["mean"] + margin
    return table.rename_axis(place).reset_index()[[place, "mean", "low", "high", "count"]]


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


def read_shards(paths: Sequence[str | Path], num_samples: int) -> pd.DataFrame:
    """Join the tables of all shards; ValueError where samples 0..num_samples-1 are not there once each."""
    table = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True).sort_values("sample")
    if list(table["sample"]) != list(range(num_samples)):
        raise ValueError(
            f"the shards {', '.join(map(str, paths))} hold {len(table)} samples; they must hold samples 0 to "
            f"{num_samples - 1} once each: remove them and run the batch again"
        )
    return table.reset_index(drop=True)


def evaluate_inference_gap(
    checkpoint: str | Path | FoveatedVLM,
    dataset: ProceduralVideos,
    num_samples: int = 512,
    batch_size: int = 32,
    num_fine: Sequence[int] = (1, 2, 3),
    dtype: torch.dtype | None = None,
    device: str = "auto",
    seed: int = 0,
    floor_samples: int = 64,
    shards: Sequence[str | Path] = (),
    progress: bool = True,
) -> tuple[Gap, pd.DataFrame]:
    """Evaluate one checkpoint on the first `num_samples` of `dataset`: the gap and the per-sample table.

    num_fine: numbers of fine passes to score; the first is the training mode. dtype: None as stored.
    device: "auto" takes CUDA, then MPS, then CPU. seed: of the bootstrap. floor_samples: how many samples
    are evaluated again in float64 for the numerical floor (0: none; MPS has no float64, so it needs 0).
    shards: tables of all samples, scored before in parts (`--shard`); then nothing else is scored here.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples is {num_samples}; an interval needs at least 2")
    if isinstance(checkpoint, FoveatedVLM):
        model = checkpoint.eval()
    else:
        model = load_checkpoint(checkpoint, device=pick_device(device), dtype=dtype)
    if shards:
        per_sample = read_shards(shards, num_samples)
    else:
        per_sample = score_videos(model, dataset, 0, num_samples, batch_size, num_fine, progress)
    floor = None
    if floor_samples:
        floor = numerical_floor(model, dataset, per_sample, batch_size, num_fine[0], floor_samples)
    return summarize_gap(per_sample, floor, seed=seed), per_sample


def pick_device(device: str = "auto") -> str:
    """`device`, or for "auto" the best there is: cuda, mps, cpu. Raises ValueError for one that is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.split(":")[0], True):
        raise ValueError(f"device is {device!r}, which is not available here; auto takes the best there is")
    if device != "auto":
        return device
    return next((name for name, there in available.items() if there), "cpu")


def write_gap(
    path: Path,
    gap: Gap,
    per_sample: pd.DataFrame,
    parameters: dict[str, Any],
    training: dict[str, Any] | None = None,
) -> None:
    """Write `path` (.json: the gap, its parameters, the checkpoint's training) and beside it the .parquet.

    `parameters` are what the caller evaluated with; they are what a later reader checks. `training`: what
    to say of the checkpoint's training beyond its own training.json, or against it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "schema": GAP_SCHEMA,
        "parameters": parameters,
        **asdict(gap),
        "by_position": position_losses(per_sample).to_dict("records"),
        "query_distance_by_frame": query_distances(per_sample).to_dict("records"),
        "training": read_training(parameters["checkpoint"]) | (training or {}),
        "torch": torch.__version__,
    }
    per_sample.to_parquet(path.with_suffix(".parquet"), index=False)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


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
    if gap.numerical_floor is not None:
        lines.append(f"{'numerical floor':<22}{gap.numerical_floor:9.1e}   nats a token")
    lines.append(f"{'verdict':<22}{gap.verdict} ({gap.verdict_reason})")
    lines.append(f"{gap.num_samples} samples, {gap.num_tokens} tokens, 95% intervals by paired bootstrap over samples")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fvlm_lib.gap",
        description="Measure the train/inference gap of one foveated checkpoint.",
        epilog="example: python -m fvlm_lib.gap --checkpoint checkpoints/demo/S-S/step_3000 --output gap.json",
    )
    parser.add_argument("--checkpoint", required=True, help="folder, state dict file or hub id")
    parser.add_argument(
        "--output", required=True, type=Path, help="JSON to write; the per-sample .parquet goes beside it"
    )
    parser.add_argument(
        "--data",
        default="{kind: procedural, split: test}",
        help="the videos, as YAML (default '%(default)s'; also seed, num_objects, grid, num_frames, noise_std)",
    )
    parser.add_argument("--num-samples", type=int, default=512, help="default %(default)s")
    parser.add_argument("--batch-size", type=int, default=32, help="default %(default)s")
    parser.add_argument(
        "--num-fine", type=int, nargs="+", default=[1, 2, 3], help="fine passes; the first is the training mode"
    )
    parser.add_argument("--dtype", choices=["float64", "float32", "bfloat16", "float16"], help="default: as stored")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--floor-samples", type=int, default=64, help="samples for the numerical floor; 0: none")
    parser.add_argument(
        "--shard", help="K/N: only score part K of N, and write its table (.parquet) to --output, no gap"
    )
    args = vars(parser.parse_args(argv))
    output, shard = args.pop("output"), args.pop("shard")
    try:
        parameters = {**args, "data": yaml.safe_load(args["data"])}
        if shard:
            _write_shard(output, shard, parameters)
            return 0
        gap, per_sample = evaluate_inference_gap(**evaluation_arguments(parameters))
        write_gap(output, gap, per_sample, parameters)
    except (ValueError, TypeError, OSError, FloatingPointError, yaml.YAMLError) as error:
        print(f"gap: {error}", file=sys.stderr)
        return 2
    print(format_gap(gap))
    return 0


def evaluation_arguments(parameters: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `evaluate_inference_gap` from parameters that JSON or YAML can hold."""
    values = dict(parameters)
    values["dataset"] = open_videos(values.pop("data"))
    values["dtype"] = getattr(torch, values["dtype"]) if values["dtype"] else None
    return values


def _write_shard(output: Path, shard: str, parameters: dict[str, Any]) -> None:
    try:
        number, num_shards = (int(part) for part in shard.split("/"))
    except ValueError:
        raise ValueError(f"--shard is {shard!r}; it must be K/N, such as 1/4") from None
    values = evaluation_arguments(parameters)
    start, stop = shard_bounds(values["num_samples"], values["batch_size"], number, num_shards)
    model = load_checkpoint(values["checkpoint"], device=pick_device(values["device"]), dtype=values["dtype"])
    table = score_videos(model, values["dataset"], start, stop, values["batch_size"], values["num_fine"])
    output.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(output, index=False)


if __name__ == "__main__":
    sys.exit(main())
