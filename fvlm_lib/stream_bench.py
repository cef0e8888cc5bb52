"""Time and error of encoding policies on a sequence of screenshots, beside the model's own full encode.

`measure_policies` encodes every frame by each policy in turn and by the tower itself, in one run, and returns
one row a frame and policy. What a policy does is `differential.py`'s subject, how a time is taken `bench.py`'s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, CLIPVisionConfig, CLIPVisionModel

from fvlm_lib.bench import synchronize
from fvlm_lib.changes import Reference
from fvlm_lib.checkpoints import CheckpointError, load_checkpoint
from fvlm_lib.differential import DifferentialVisionEncoder
from fvlm_lib.patches import Metric, expand_mask
from fvlm_lib.screens import ScreenSequence
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
        """A screenshot uint8 (H, W, 3), squashed to the tower's size and normalised: (1, 3, height, width).

        Squashed, not cropped: a centre crop would drop the sides of a wide screen.
        """
        pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
        pixels = nn.functional.interpolate(pixels, self.image_size, mode="bicubic", antialias=True)
        # back to whole grey levels, as a resized image file has them
        pixels = pixels.round().clamp(0, 255) / 255
        return (pixels - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)


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
        model = load_checkpoint(folder).encoder.dino
        mean, std = (0.5,) * 3, (0.5,) * 3  # of the procedural videos
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
    diff_threshold: float = 0.05
    metric: Metric = "max"
    reference: Reference = "encoded"
    propagate: Propagate = "none"
    tolerance: float | None = None
    max_changed_patches: int | None = None
    skip_small_updates: bool = False
    partial_updates: bool = True
    pack_weights: bool = False


def policies(tolerances: Sequence[float], pack_weights: bool = False) -> list[Policy]:
    """The policies to compare: whole-frame caching by exact match, as inference servers do; published
    pseudocode (mean difference to the last frame, small changes skipped); partial updates, `none` and `gated`."""
    found = [
        Policy("exact match", diff_threshold=0.0, max_changed_patches=0, partial_updates=False),
        Policy(
            "pseudocode", diff_threshold=0.02, metric="mean", reference="previous", skip_small_updates=True,
            partial_updates=False,
        ),
        Policy("none", pack_weights=pack_weights),
    ]  # fmt: skip
    return found + [
        Policy(f"gated {tolerance:g}", propagate="gated", tolerance=tolerance, pack_weights=pack_weights)
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

    Columns: sequence, tower, policy, tolerance (NaN if none), frame, path, changed, total (patches), ms,
    ms_full (the tower's own encode of the same frame, measured beside), error_mean, error_p95, error_max
    (over patch tokens, relative L2 to the full encode), cosine_min, drift (largest difference of a pixel from
    the one its token was computed from, as a fraction of the range).
    """
    patch = int(tower.model.config.patch_size)  # type: ignore[union-attr, arg-type]
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
                    "policy": policy.name,
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
        patch_size=None if policy.partial_updates else patch,
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


def summarize_policies(rows: pd.DataFrame) -> pd.DataFrame:
    """Median speed-up and error of each policy over a table's frames after the first of each sequence.

    Columns: n, speedup (median of ms_full / ms, with quartiles _q1, _q3), ms, error_mean (mean over frames),
    error_max (largest), drift (largest), partial / cached / full shares of frames.
    """
    later = rows[rows["frame"] > 0].copy()
    later["ratio"] = later["ms_full"] / later["ms"]
    grouped = later.groupby(["tower", "policy"], sort=False)
    table = pd.DataFrame(
        {
            "n": grouped.size(),
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
