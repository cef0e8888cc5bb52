"""Means over the seeds of a study with their intervals: of losses and gap by checkpoint, by number of passes, by length
of videos; and which checkpoints no other beats for its compute.

All intervals are those of `seeds.mean_over_seeds`, over seeds and videos; bounds are NaN where there is one seed. Knows
`study_results.StudyResults`; differences between recipes are in `study_contrasts.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fvlm_lib.gap.study_results import (
    CELL,
    MEASURES,
    Cell,
    StudyResults,
    cells,
    cells_by_length,
    common_seeds,
    mean_or_alone,
)
from fvlm_lib.stats import Estimate


def seed_means(results: StudyResults) -> pd.DataFrame:
    """A row a (size, recipe, step), on videos of the training's length.

    Columns: size, recipe, step, trained_passes, num_seeds, num_parameters, num_text_parameters, training_flops (mean
    over seeds), and loss_inference, loss_trained, loss_coarse and gap, each with _low and _high, nats a token. The
    trained loss and the gap are those of the number of passes that the recipe trains last; where that is sequential
    use, trained_passes is null, the trained loss the inference loss, and the gap NaN.
    """
    about = results.trained.groupby(CELL, sort=False).agg(
        trained_passes=("trained_passes", "first"),
        num_seeds=("seed", "size"),
        num_parameters=("num_parameters", "first"),
        num_text_parameters=("num_text_parameters", "first"),
        training_flops=("training_flops", "mean"),
    )
    measured = {measure: cells(results, measure) for measure in MEASURES}
    rows = [
        {**dict(zip(CELL, key, strict=True)), **facts}
        | {
            name: value
            for measure, found in measured.items()
            for name, value in _estimate(measure, found.get(key)).items()
        }
        for key, facts in about.to_dict("index").items()
    ]
    return pd.DataFrame(rows)


def _estimate(name: str, cell: Cell | None) -> dict[str, float]:
    found = mean_or_alone(cell.values) if cell else Estimate(np.nan, np.nan, np.nan)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def passes_curves(results: StudyResults) -> pd.DataFrame:
    """A row a (size, recipe, step, passes): gap to that many fine passes and their loss, nats a token, over seeds.

    Columns: size, recipe, step, passes, num_seeds, gap and loss, each with _low and _high. After as many passes as
    frames the gap is rounding.
    """
    prefix = "loss_fine_"
    names = [name.removeprefix(prefix) for name in results.table if name.startswith(prefix)]
    rows: list[dict[str, Any]] = []
    for passes in sorted(int(name) for name in names if name.isdecimal()):
        gaps, losses = (cells(results, measure, passes=passes) for measure in ("gap", "loss_trained"))
        for key, cell in gaps.items():
            row = {**dict(zip(CELL, key, strict=True)), "passes": passes, "num_seeds": len(cell.seeds)}
            rows.append(row | _estimate("gap", cell) | _estimate("loss", losses[key]))
    return _in_order(results, pd.DataFrame(rows), "passes")


def length_curves(results: StudyResults) -> pd.DataFrame:
    """A row a (size, recipe, num_frames) at the last step: gap and inference loss by length of the videos, over the
    seeds that all lengths of a size and recipe have.

    Columns: size, recipe, step, num_frames, num_seeds, gap and loss_inference, each with _low and _high. A length is
    that of training and evaluation. Of other lengths than the study's own no samples are shipped: their intervals are
    over seeds alone.
    """
    rows = []
    gaps, losses = (cells_by_length(results, measure) for measure in ("gap", "loss_inference"))
    for (size, recipe), by_length in losses.items():
        for frames, cell in by_length.items():
            about = {"size": size, "recipe": recipe, "step": results.last_step, "num_frames": frames}
            gap = _estimate("gap", gaps.get((size, recipe), {}).get(frames))
            rows.append(about | {"num_seeds": len(cell.seeds)} | gap | _estimate("loss_inference", cell))
    measured = (f"{of}{end}" for of in ("gap", "loss_inference") for end in ("", "_low", "_high"))
    table = pd.DataFrame(rows, columns=[*CELL, "num_frames", "num_seeds", *measured])
    return _in_order(results, table, "num_frames")


def _in_order(results: StudyResults, table: pd.DataFrame, last: str) -> pd.DataFrame:
    """Sizes and recipes as the results have them, then step and `last`."""
    places = {"size": results.sizes, "recipe": results.recipes}
    keys = [table[name].map(order.index) for name, order in places.items()] + [table["step"], table[last]]
    order = pd.concat(keys, axis=1)
    return table.loc[order.sort_values([*order], kind="stable").index].reset_index(drop=True)


def compute_frontier(results: StudyResults) -> pd.DataFrame:
    """`seed_means` with `on_frontier`: no other checkpoint has at most its training FLOPs and at most its mean
    inference loss, and less of one of them. Those means are of the seeds that all sizes and recipes have, so that
    none is ahead by its seeds; where there are none, nothing is on it. The intervals of the losses are not looked
    at."""
    means, found = seed_means(results), cells(results, "loss_inference")
    seeds = common_seeds(*found.values())
    of_rows = [found[key].at(seeds).values for key in means[CELL].itertuples(index=False, name=None)]
    losses = np.array([values.mean() if len(values) else np.nan for values in of_rows])
    flops = means["training_flops"].to_numpy()
    flops_off, losses_off = (x[None, :] - x[:, None] for x in (flops, losses))  # another's less one's own
    beaten = (flops_off <= 0) & (losses_off <= 0) & ((flops_off < 0) | (losses_off < 0))
    return means.assign(on_frontier=~beaten.any(axis=1) & np.isfinite(losses))
