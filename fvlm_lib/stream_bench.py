"""Time and error of encoding policies on a sequence of screenshots, beside the model's own full encode.

`measure_policies` encodes every frame by each policy in turn and by the tower itself, in one run, and returns
one row a frame and policy. What a policy does is `differential.py`'s subject, how a time is taken `bench.py`'s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, CLIPVisionConfig, CLIPVisionModel

from fvlm_lib.bench import synchronize
from fvlm_lib.changes import DEFAULT_THRESHOLD, Reference, default_limit
from fvlm_lib.checkpoints import CheckpointError, load_checkpoint
from fvlm_lib.differential import DifferentialVisionEncoder
from fvlm_lib.patches import Metric, expand_mask, patch_grid
from fvlm_lib.screens import ScreenSequence
from fvlm_lib.settings import DifferentialSettings
from fvlm_lib.stats import bootstrap, ratio
from fvlm_lib.updates import Propagate

OPENAI_CLIP_MEAN, OPENAI_CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RANDOM_CLIP = "random:clip-vit-large-patch14-336"
RANDOM_TINY = "random:clip-tiny"
_RANDOM = {
    RANDOM_CLIP: CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14,
    ),
    RANDOM_TINY: CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=224,
        patch_size=14,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class LoadedTower:
    """A vision tower, the size of its frames in pixels (height, width), and what they are normalised with."""

    name: str
    model: nn.Module
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixel_values(self, frame: np.ndarray) -> Tensor:
        """A screenshot uint8 (H, W, 3), squashed to the tower's size and normalised: (1, 3, height, width)."""
        pixels = torch.from_numpy(squash(frame, self.image_size)).permute(2, 0, 1)[None] / 255
        return (pixels - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)


def squash(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A screenshot uint8 (H, W, 3) at the size (height, width) that a tower takes, in whole grey levels as a resized
    image file has them. Squashed, not cropped: a centre crop would drop the sides of a wide screen."""
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
    pixels = nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True)
    return pixels.round().clamp(0, 255)[0].permute(1, 2, 0).byte().numpy()


def load_tower(spec: str, image_size: Sequence[int] | None = None) -> LoadedTower:
    """A vision tower: the folder of a foveated checkpoint (its DINOv2), a random one (RANDOM_CLIP, RANDOM_TINY: for
    times; the errors of random weights mean nothing), or a folder or hub id that transformers' AutoModel reads.

    image_size (height, width): for towers that take any; None is the tower's own. Only a hub id that is no
    folder touches the network. Raises CheckpointError where there is no tower to be had.
    """
    mean: tuple[float, ...]
    std: tuple[float, ...]
    if spec in _RANDOM:
        torch.manual_seed(0)
        model: Any = CLIPVisionModel(_RANDOM[spec]).eval()
        size = model.config.image_size
        return LoadedTower(spec, model, (size, size), OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    if spec.startswith("random:"):
        raise CheckpointError(f"there is no {spec}; known are {', '.join(_RANDOM)}")
    folder = Path(spec)
    config_file = folder / "config.json"
    if config_file.exists() and json.loads(config_file.read_text()).get("model_type") == "fvlm":
        foveated = load_checkpoint(folder)
        model, mean, std = foveated.encoder.dino, tuple(foveated.config.image_mean), tuple(foveated.config.image_std)
    else:
        try:
            config = AutoConfig.from_pretrained(spec, local_files_only=folder.is_dir())
            whole = AutoModel.from_pretrained(spec, local_files_only=folder.is_dir()).eval()
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{spec} is no vision tower that can be loaded ({str(error).splitlines()[0]})"
            ) from error
        model = getattr(whole, "vision_model", whole) if hasattr(config, "vision_config") else whole
        mean, std = _normalisation(folder)
    own = model.config.image_size
    height, width = image_size or ((own, own) if isinstance(own, int) else own)
    return LoadedTower(spec, model, (int(height), int(width)), mean, std)


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What the tower's own processor normalises with; CLIP's where the folder does not say."""
    file = folder / "preprocessor_config.json"
    if not file.exists():
        return OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    content = json.loads(file.read_text())
    return tuple(content["image_mean"]), tuple(content["image_std"])


@dataclass(frozen=True)
class Policy:
    """One way of encoding a stream, by name. Fields as in `DifferentialVisionEncoder`; `partial_updates` False
    treats the tower as one without any."""

    name: str
    diff_threshold: float = DEFAULT_THRESHOLD
    metric: Metric = "max"
    reference: Reference = "encoded"
    propagate: Propagate = "none"
    tolerance: float | None = None
    max_changed_patches: int | None = None
    patch_size: int | None = None
    skip_small_updates: bool = False
    partial_updates: bool = True
    pack_weights: bool = False


def policies(
    tolerances: Sequence[float], pack_weights: bool = False, settings: DifferentialSettings | None = None
) -> list[Policy]:
    """The policies to compare: whole-frame caching by exact match, as inference servers do; published
    pseudocode (mean difference to the last frame, small changes skipped); partial updates, `none` and `gated`.
    Of the settings, the partial updates take what says which patches changed, and their limit."""
    settings = settings or DifferentialSettings()
    updated = Policy(
        "none", settings.diff_threshold, settings.metric, settings.reference, pack_weights=pack_weights,
        max_changed_patches=settings.max_changed_patches, patch_size=settings.patch_size,
    )  # fmt: skip
    found = [
        Policy("exact match", diff_threshold=0.0, max_changed_patches=0, partial_updates=False),
        Policy(
            "pseudocode", diff_threshold=0.02, metric="mean", reference="previous", skip_small_updates=True,
            partial_updates=False,
        ),
        updated,
    ]  # fmt: skip
    return found + [
        replace(updated, name=f"gated {tolerance:g}", propagate="gated", tolerance=tolerance)
        for tolerance in tolerances
    ]


class _Opaque(nn.Module):
    """A tower with its architecture hidden, so that no adapter finds it."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.tower(pixel_values).last_hidden_state


@torch.no_grad()
def measure_policies(
    tower: LoadedTower, sequence: ScreenSequence, compared: Sequence[Policy], progress: bool = True
) -> pd.DataFrame:
    """Encode a sequence by every policy and in full, frame by frame in turn; one row a frame and policy.

    Columns: sequence, tower; height, width, patch_size (pixels, of the frames as the tower sees them); policy,
    diff_threshold, metric, reference, max_changed_patches (as in force), tolerance (NaN if none); frame, path,
    changed, total (patches), ms, ms_full (the tower's own encode of the same frame, measured beside), error_mean,
    error_p95, error_max (over patch tokens, relative L2 to the full encode), cosine_min, drift (largest difference
    of a pixel from the one its token was computed from, as a fraction of the range).
    """
    patch = int(tower.model.config.patch_size)  # type: ignore[union-attr, arg-type]
    limit = default_limit(patch_grid(*tower.image_size, patch))
    encoders = {policy: _encoder(tower, policy, patch) for policy in compared}
    sources: dict[Policy, Tensor] = {}  # the pixels that each token was computed from
    std = torch.tensor(tower.std).view(3, 1, 1)
    tower.model(tower.pixel_values(sequence[0]))  # warm-up
    rows = []
    for index in tqdm(range(len(sequence)), desc=f"{sequence.name}", unit="frame", disable=not progress):
        pixels = tower.pixel_values(sequence[index])
        full, ms_full = _timed(lambda: tower.model(pixels).last_hidden_state)  # noqa: B023 called at once
        for policy, encoder in encoders.items():
            (tokens, stats), ms = _timed(lambda: encoder.encode(pixels, return_stats=True))  # noqa: B023
            seen = expand_mask(stats.encoded, *tower.image_size, patch)
            sources[policy] = torch.where(seen, pixels, sources.get(policy, pixels))
            rows.append(
                {
                    "sequence": sequence.name,
                    "tower": tower.name,
                    "height": tower.image_size[0],
                    "width": tower.image_size[1],
                    "patch_size": patch,
                    "policy": policy.name,
                    "diff_threshold": policy.diff_threshold,
                    "metric": policy.metric,
                    "reference": policy.reference,
                    "max_changed_patches": limit if policy.max_changed_patches is None else policy.max_changed_patches,
                    "tolerance": policy.tolerance,
                    "frame": index,
                    "path": stats.path,
                    "changed": stats.changed_patches,
                    "total": stats.num_patches,
                    "ms": ms,
                    "ms_full": ms_full,
                    **token_errors(tokens[0, -stats.num_patches :], full[0, -stats.num_patches :]),
                    "drift": ((pixels - sources[policy]) * std).abs().max().item(),
                }
            )
    return pd.DataFrame(rows)


def token_errors(tokens: Tensor, exact: Tensor) -> dict[str, float]:
    """How far tokens (P, D) are from exact ones: relative L2 a token (mean, 95th percentile, largest), and the
    smallest cosine. Computed in float64."""
    tokens, exact = tokens.double(), exact.double()
    error = (tokens - exact).norm(dim=-1) / exact.norm(dim=-1)
    cosine = nn.functional.cosine_similarity(tokens, exact, dim=-1)
    return {
        "error_mean": error.mean().item(),
        "error_p95": error.quantile(0.95).item(),
        "error_max": error.max().item(),
        "cosine_min": cosine.min().item(),
    }


def _encoder(tower: LoadedTower, policy: Policy, patch: int) -> DifferentialVisionEncoder:
    return DifferentialVisionEncoder(
        tower.model if policy.partial_updates else _Opaque(tower.model),
        patch_size=policy.patch_size if policy.partial_updates else patch,
        diff_threshold=policy.diff_threshold,
        metric=policy.metric,
        max_changed_patches=policy.max_changed_patches,
        skip_small_updates=policy.skip_small_updates,
        reference=policy.reference,
        propagate=policy.propagate,
        tolerance=policy.tolerance,
        image_mean=tower.mean,
        image_std=tower.std,
        pack_weights=policy.pack_weights,
    )


def _timed(call: Any) -> tuple[Any, float]:
    """What the call returns, and how many ms it took."""
    synchronize()
    start = time.perf_counter()
    result = call()
    synchronize()
    return result, 1e3 * (time.perf_counter() - start)


SETTING_COLUMNS = ["height", "width", "patch_size", "diff_threshold", "metric", "reference", "max_changed_patches"]


def read_measured(folder: str | Path, sequence: str) -> pd.DataFrame:
    """What the benchmark has measured on a recording, one row a policy and result file of the folder.

    Columns of `summarize_policies` and besides: file, tolerance and the SETTING_COLUMNS that it was measured at.
    Raises ValueError, saying what makes it, where the recording was not measured, or a file is of an older schema.
    """
    tables = []
    for file in sorted(Path(folder).glob("*.parquet")):
        try:
            rows = pd.read_parquet(file)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read ({error}); remove it and run `bash run.sh`") from error
        if missing := [name for name in ("sequence", "policy", *SETTING_COLUMNS) if name not in rows]:
            raise ValueError(
                f"{file} is of an older schema, without {', '.join(missing)}; `bash run.sh` makes the batch's results "
                "anew, one of a notebook run by hand is to be removed"
            )
        if len(rows := rows[rows["sequence"] == sequence]):
            measured_at = rows.groupby(["tower", "policy"], sort=False)[["tolerance", *SETTING_COLUMNS]].first()
            tables.append(summarize_policies(rows).join(measured_at, on=["tower", "policy"]).assign(file=file.name))
    if not tables:
        raise ValueError(f"{folder} has no measurement of {sequence}; `bash run.sh` makes those of config/demo.yaml")
    return pd.concat(tables, ignore_index=True)


def measured_at(
    measured: pd.DataFrame, settings: DifferentialSettings, size: tuple[int, int], patch_size: int
) -> pd.DataFrame:
    """Of `read_measured`, the partial updates that were measured at these settings, whatever their tolerance, on
    frames of this size (height, width) seen in patches of this size."""
    limit = settings.max_changed_patches
    values = {
        "height": size[0],
        "width": size[1],
        "patch_size": patch_size,
        "diff_threshold": settings.diff_threshold,
        "metric": settings.metric,
        "reference": settings.reference,
        "max_changed_patches": default_limit(patch_grid(*size, patch_size)) if limit is None else limit,
    }
    same = measured["policy"].str.match("none|gated")
    for name, value in values.items():
        same &= measured[name] == value
    return measured[same]


def summarize_policies(rows: pd.DataFrame) -> pd.DataFrame:
    """Median speed-up and error of each policy over a table's frames after the first of each sequence.

    Columns: n, ms and ms_full (mean a frame), speedup (median of ms_full / ms, with quartiles _q1, _q3),
    total_speedup (of all frames together), error_mean (mean over frames), error_max (largest), drift (largest),
    cached / partial / full / skipped shares of frames.
    """
    later = rows[rows["frame"] > 0].copy()
    later["ratio"] = later["ms_full"] / later["ms"]
    grouped = later.groupby(["tower", "policy"], sort=False)
    table = pd.DataFrame(
        {
            "n": grouped.size(),
            "ms": grouped["ms"].mean(),
            "ms_full": grouped["ms_full"].mean(),
            "speedup": grouped["ratio"].median(),
            "speedup_q1": grouped["ratio"].quantile(0.25),
            "speedup_q3": grouped["ratio"].quantile(0.75),
            "total_speedup": grouped["ms_full"].sum() / grouped["ms"].sum(),
            "error_mean": grouped["error_mean"].mean(),
            "error_max": grouped["error_max"].max(),
            "drift": grouped["drift"].max(),
        }
    )
    for path in ("cached", "partial", "full", "skipped"):
        table[path] = grouped["path"].agg(lambda paths, path=path: (paths == path).mean())
    return table.reset_index()


def bootstrap_policies(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """`summarize_policies`, with 95% intervals of total_speedup and error_mean as columns _low and _high.

    Whole recordings are resampled, for frames of one recording are alike; of few recordings the intervals are
    rather too narrow. NaN where there is but one.
    """
    table = summarize_policies(rows).set_index(["tower", "policy"])
    later = rows[rows["frame"] > 0].assign(frames=1)
    statistics = {"total_speedup": ratio("ms_full", "ms"), "error_mean": ratio("error_mean", "frames")}
    for name in statistics:
        table[[f"{name}_low", f"{name}_high"]] = np.nan
    for which, of_policy in later.groupby(["tower", "policy"]):
        sums = of_policy.groupby("sequence")[["ms_full", "ms", "error_mean", "frames"]].sum()
        if len(sums) > 1:
            columns = {str(name): column.to_numpy() for name, column in sums.items()}
            for name, estimate in bootstrap(columns, statistics, seed=seed).items():
                table.loc[which, [f"{name}_low", f"{name}_high"]] = [estimate.low, estimate.high]
    return table.reset_index()
