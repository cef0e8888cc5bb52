"""How much of a legacy checkpoint's gap is its normalisation of visual tokens, and not where it looks.

With `visual_norm="legacy"` the parallel passes divide by one standard deviation over samples, frames and
channels, the autoregressive mode by one a frame, over samples and channels. So the two modes give the language
model different tokens even where they look at the same place. The same weights are therefore scored again:
one sample at a time, which takes the batch-mates out, and with a norm a token, which takes the difference out.
"""

from __future__ import annotations

import copy
from typing import Any

import pandas as pd

from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.gap.evaluation import score_videos
from fvlm_lib.stats import bootstrap, difference, ratio


def with_token_norm(model: FoveatedVLM) -> FoveatedVLM:
    """The same model, sharing its weights, with `visual_norm="token"` at the same scale."""
    changed = copy.copy(model)
    changed.config = copy.deepcopy(model.config)
    changed.config.visual_norm = "token"
    return changed


def normalisation_report(
    model: FoveatedVLM,
    dataset: Any,
    per_sample: pd.DataFrame,
    batch_size: int = 32,
    num_fine: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Score the samples of `per_sample` (of `read_samples`, in batches of `batch_size`) again: one by one, and with
    a per-token norm.

    num_fine: fine passes of the training mode. seed: of the bootstrap. Returns one row an evaluation, in nats a
    token: `loss_training_fine`, `loss_inference_fine`, `gap` and `part` (by how much the gap as is exceeds this
    one), the latter two with `_low` and `_high`, 95% intervals by paired bootstrap over samples.

    Raises ValueError for a model with another norm, of which there is nothing to report.
    """
    if model.config.visual_norm != "legacy":
        raise ValueError(f"visual_norm is {model.config.visual_norm!r}; only of 'legacy' is there something to report")
    span = (int(per_sample["sample"].min()), int(per_sample["sample"].max()) + 1)
    tables = {
        f"as is, in batches of {batch_size}": per_sample,
        "one sample at a time": score_videos(model, dataset, *span, 1, (num_fine,), progress),
        "per-token norm": score_videos(with_token_norm(model), dataset, *span, batch_size, (num_fine,), progress),
    }
    columns, gaps, rows = {}, {}, []
    for number, table in enumerate(tables.values()):
        for column in (f"nll_fine_{num_fine}", "nll_autoregressive"):
            columns[f"{number} {column}"] = table[column].to_numpy()
        columns[f"{number} num_tokens"] = table["num_tokens"].to_numpy()
        inference = ratio(f"{number} nll_autoregressive", f"{number} num_tokens")
        gaps[number] = difference(inference, ratio(f"{number} nll_fine_{num_fine}", f"{number} num_tokens"))
    statistics = {f"gap {number}": gap for number, gap in gaps.items()}
    statistics |= {f"part {number}": difference(gaps[0], gap) for number, gap in gaps.items()}
    found = bootstrap(columns, statistics, seed=seed)
    for number, (name, table) in enumerate(tables.items()):
        row: dict[str, Any] = {"evaluation": name}
        for loss, mode in (("loss_training_fine", f"fine_{num_fine}"), ("loss_inference_fine", "autoregressive")):
            row[loss] = table[f"nll_{mode}"].sum() / table["num_tokens"].sum()
        for key in ("gap", "part"):
            estimate = found[f"{key} {number}"]
            row |= {key: estimate.value, f"{key}_low": estimate.low, f"{key}_high": estimate.high}
        rows.append(row)
    return pd.DataFrame(rows).set_index("evaluation")
