"""The results of a study made up from a formula, for tests of what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

PARAMETERS = {"S": 100_000, "M": 200_000, "L": 400_000}
Formula = Callable[[str, str, int, int], float]  # of size, recipe, seed and step


def planted_table(
    loss: Formula = lambda size, recipe, seed, step: 20.0 * step**-0.3,
    gap: Formula = lambda size, recipe, seed, step: 0.1,
    sizes: Sequence[str] = ("S", "M", "L"),
    recipes: Sequence[str] = ("plain", "multi"),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    steps: Sequence[int] = (100, 300, 1000, 3000),
    lengths: Sequence[int] = (8, 16),
    cost: Formula = lambda size, recipe, seed, step: 1e6 * PARAMETERS[size] * step,
    passes: Callable[[str], int | None] = lambda recipe: 1,
) -> pd.DataFrame:
    """As `fvlm study-table` makes it: `loss` is the inference loss, `gap` that to the trained passes, halved by each
    pass more and doubled by each pass less; lengths other than 8 of the last step alone, with a gap in proportion."""
    rows = []
    for size in sizes:
        for recipe in recipes:
            for seed in seeds:
                for step in steps:
                    for frames in lengths if step == max(steps) else [8]:
                        at = (size, recipe, seed, step)
                        row = {
                            "size": size, "recipe": recipe, "seed": seed, "step": step, "num_frames": frames,
                            "num_parameters": PARAMETERS[size] + 50_000, "num_text_parameters": PARAMETERS[size],
                            "training_flops": cost(*at), "trained_passes": passes(recipe), "num_samples": 40,
                            "num_tokens": 200, "loss_autoregressive": loss(*at), "loss_coarse": loss(*at) + 0.5,
                            "numerical_floor": 1e-7,
                        }  # fmt: skip
                        for number in (1, 2, 3):
                            left = gap(*at) * frames / 8 * 2.0 ** ((passes(recipe) or 0) - number)
                            row[f"loss_fine_{number}"] = row["loss_autoregressive"] - left
                        rows.append(row)
    return pd.DataFrame(rows).astype({"trained_passes": "Int64"})


def planted_samples(table: pd.DataFrame, spread: float = 1.0) -> pd.DataFrame:
    """Samples of videos of 8 frames that sum to the table's losses: 40 of 5 tokens each, all with the same noise."""
    noise = np.random.default_rng(0).normal(0, spread, 40)
    noise -= noise.mean()
    parts = []
    for row in table[table["num_frames"] == 8].to_dict("records"):
        part = {key: row[key] for key in ("size", "recipe", "seed", "step")}
        part |= {"sample": np.arange(40), "num_tokens": np.full(40, 5)}
        modes = {"coarse": 0.0, "fine_1": 0.0, "fine_2": 0.0, "fine_3": 0.0, "autoregressive": 1.0}
        part |= {f"nll_{mode}": 5 * row[f"loss_{mode}"] + weight * noise for mode, weight in modes.items()}
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def write_results(folder: Path, table: pd.DataFrame, samples: pd.DataFrame | None = None) -> Path:
    """As they are shipped."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "study.parquet", index=False)
    if samples is not None:
        samples.to_parquet(folder / "samples.parquet", index=False)
    return folder
