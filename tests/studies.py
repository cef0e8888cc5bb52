"""A study of tiny models, and what a study leaves, planted; for tests."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

TINY_STUDY: dict[str, Any] = {
    "sizes": {
        "S": {"text_width": 16, "text_layers": 1, "text_mlp_width": 16, "text_heads": 2, "learning_rate": 0.002},
        "M": {"text_width": 16, "text_layers": 2, "text_mlp_width": 16, "text_heads": 2, "learning_rate": 0.001},
    },
    "recipes": {"plain": {}, "multi": {"recipe": {"kind": "multi_fine"}}},
    "seeds": [3],
    "training": {
        "vision_width": 16, "vision_layers": 1, "vision_heads": 2, "videos": {"num_frames": 4}, "batch_size": 4,
        "steps": 6, "warmup_steps": 2, "checkpoint_steps": [2, 6], "state_every": 2,
    },
    "evaluation": {
        "num_samples": 6, "batch_size": 4, "num_fine": [1, 2], "num_frames": [4], "last_num_frames": [6],
        "floor_samples": 0,
    },
}  # fmt: skip


def write_study(folder: Path, **changes: Any) -> Path:
    """Write a tiny study's config into a folder, its output beside it; sections that are mappings are changed key by
    key."""
    config = {**TINY_STUDY, "output": str(folder / "study")}
    for key, value in changes.items():
        config[key] = {**config[key], **value} if key in ("training", "evaluation") else value
    (folder / "study.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder / "study.yaml"


# ---- what a study leaves, planted ----------------------------------------------------------------------

PLANTED_SIZES = {"S": 60_000, "M": 160_000, "L": 400_000}  # parameters of the language model
PLANTED_RECIPES = {  # recipe -> its gap after one fine pass as a share of plain's, its cost beside plain's
    "plain": (1.0, 1.0), "multi-fine-2": (0.3, 1.4), "multi-fine-3-last": (0.1, 1.8), "random-passes": (0.4, 1.5),
    "scheduled-sampling": (0.5, 1.7), "rollout": (0.05, 2.6), "consistency": (0.2, 2.1),
    "plain-then-multi-fine": (0.6, 1.1),
}  # fmt: skip
PLANTED_PASSES = range(1, 9)


def write_planted_study(
    folder: Path,
    sizes: Sequence[str] = tuple(PLANTED_SIZES),
    recipes: Sequence[str] = tuple(PLANTED_RECIPES),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    steps: Sequence[int] = (100, 300, 1000, 3000),
    frames: Sequence[int] = (8, 16, 32),
    num_samples: int = 32,
    norms: bool = True,
) -> Path:
    """Write tables such as docs/study has, of a study that never ran, and return their folder.

    Losses are power laws of steps and size, gaps grow with steps, shrink by passes and differ by recipe and seed. The
    first of `frames` is the training's; the last step alone is evaluated at the others. norms: with norms of the
    query's Jacobian, with which gaps grow.
    """
    random = np.random.default_rng(0)
    factors, tokens = np.exp(random.normal(0, 0.3, num_samples)), random.integers(6, 12, num_samples)
    rows: list[dict[str, Any]] = []
    samples = []
    for size, recipe, seed in itertools.product(sizes, recipes, seeds):
        share, cost = PLANTED_RECIPES[recipe]
        luck, text = np.exp(random.normal(0, 0.15)), PLANTED_SIZES[size]
        for step, length in [*((step, frames[0]) for step in steps), *((steps[-1], length) for length in frames[1:])]:
            loss = 2.4 * (step / 100) ** -0.25 * (text / 60_000) ** -0.1 * (1 + 0.02 * random.normal())
            gap = 0.05 * share * luck * (step / 100) ** 0.3 * (length / 8) ** 0.5
            left = {f"fine_{k}": gap * 0.35 ** (k - 1) if k < length else 0.0 for k in PLANTED_PASSES}
            planted = {"coarse": 1.25 * loss, **{mode: loss - part for mode, part in left.items()}}
            nll = {mode: tokens * factors * value for mode, value in {**planted, "autoregressive": loss}.items()}
            losses = {mode: float(values.sum() / tokens.sum()) for mode, values in nll.items()}
            which = {"size": size, "recipe": recipe, "seed": seed, "step": step}
            norm = 2 * gap**0.5 * np.exp(0.1 * random.normal()) if norms else np.nan
            row = {
                **which, "num_frames": length, "num_parameters": text + 50_000, "num_text_parameters": text,
                "training_flops": 6e6 * cost * step * (text + 50_000), "seconds_per_step": 0.1 * cost,
                "learning_rate": 0.002, "num_samples": num_samples, "num_tokens": int(tokens.sum()),
                "trained_passes": 3 if recipe.endswith("-last") else 1, "numerical_floor": 1e-7,
                "library_hash": "planted", "torch": "0", "commit": "unknown", "cpu_capability": "unknown",
                "evaluation_torch": "0",
            }  # fmt: skip
            row |= {f"nll_{mode}": float(values.sum()) for mode, values in nll.items()}
            row |= _with_ends({f"loss_{mode}": value for mode, value in losses.items()}, 0.05)
            row |= _with_ends({f"gap_{mode}": losses["autoregressive"] - losses[mode] for mode in left}, 0.1)
            rows.append({**row, **_with_ends({"query_norm": norm}, 0.1)})
            if length == frames[0]:
                kept = ["coarse", *(f"fine_{k}" for k in (1, 2, 3)), "autoregressive"]
                sums = {f"nll_{mode}": nll[mode].astype("float32") for mode in kept}
                samples.append(pd.DataFrame({**which, "sample": range(num_samples), "num_tokens": tokens, **sums}))
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_parquet(folder / "study.parquet", index=False)
    table.to_csv(folder / "study.csv", index=False)
    pd.concat(samples, ignore_index=True).to_parquet(folder / "samples.parquet", index=False)
    return folder


def _with_ends(values: Mapping[str, float], share: float) -> dict[str, float]:
    """Each value with the ends of an interval, so much of it to both sides."""
    ends = {"": 0.0, "_low": -share, "_high": share}
    return {f"{name}{end}": value + part * abs(value) for name, value in values.items() for end, part in ends.items()}
