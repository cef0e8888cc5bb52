"""The scaling laws of a batch: fitted to the losses of its checkpoints, read back, told as a table and as a finding.

How one law is fitted is `scaling.py`'s subject, how gaps become a table and findings `report.py`'s.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fvlm_lib.gap.findings import Finding, summarize_answers
from fvlm_lib.gap.scaling import GOOD_R2, ScalingFit, fit_scaling_laws
from fvlm_lib.json_files import read_object
from fvlm_lib.stats import Estimate, ratio, resample_statistics


def fit_losses(
    table: pd.DataFrame,
    samples: Mapping[str, pd.DataFrame],
    num_bootstrap: int = 200,
    seed: int = 0,
    delta: float = 1e-3,
    block_length: int | None = 1,
) -> dict[str, list[ScalingFit]]:
    """Scaling laws of training and inference loss, against steps and against training FLOPs.

    Returns fits by "<loss> by <column>". Intervals come from refits on resampled evaluation samples, the same
    resamples for every checkpoint, and on residuals drawn for the scatter about the law that those do not explain.
    delta, block_length: as in `fit_law`, blocks along the table's `run`; with 1, the residuals of checkpoints are
    taken as independent, for runs too short to tell how they correlate. Checkpoints that do not tell the column or
    their size are left out.
    """
    numerators = {"loss_training_fine": None, "loss_inference_fine": "nll_autoregressive"}
    fits: dict[str, list[ScalingFit]] = {}
    for loss, column in numerators.items():
        replicates = {}
        for checkpoint_id in table["id"]:
            rows = samples[checkpoint_id]
            numerator = column or next(name for name in rows if name.startswith("nll_fine_"))
            columns = {name: rows[name].to_numpy() for name in (numerator, "num_tokens")}
            mean = resample_statistics(columns, {"loss": ratio(numerator, "num_tokens")}, num_bootstrap, seed)
            replicates[checkpoint_id] = mean["loss"]
        for x in ("step", "training_flops"):
            known = table.dropna(subset=[x, "num_parameters"]).reset_index(drop=True)
            fits[f"{loss} by {x}"] = []
            if len(known):
                resampled = np.stack([replicates[checkpoint_id] for checkpoint_id in known["id"]], axis=1)
                fits[f"{loss} by {x}"] = fit_scaling_laws(
                    known,
                    x,
                    loss,
                    params="num_parameters",
                    group="run",
                    replicates=resampled,
                    seed=seed,
                    delta=delta,
                    run="run",
                    block_length=block_length,
                )
    return fits


def read_fits(path: str | Path) -> dict[str, list[ScalingFit]]:
    """The fits of `fit_losses` from results/scaling_fits.json. Raises ValueError where it is missing or of another
    version. The end of an interval that overflowed is infinite."""
    try:
        content = read_object(path)
        return {name: [_read_fit(fit) for fit in group] for name, group in content.items()}
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; `bash run.sh` makes it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no scaling fits ({error}); remove it and run `bash run.sh`") from error


def _read_fit(content: Mapping[str, Any]) -> ScalingFit:
    if differing := {field.name for field in dataclasses.fields(ScalingFit)} ^ set(content):
        raise ValueError(f"it is of another version, which differs in {', '.join(sorted(differing))}")
    parameters = {
        name: Estimate(**{key: math.inf if number is None else number for key, number in estimate.items()})
        for name, estimate in content["parameters"].items()
    }
    return ScalingFit(**{**content, "parameters": parameters, "undetermined": tuple(content["undetermined"])})


def drawn_fits(fits: Sequence[ScalingFit]) -> list[ScalingFit]:
    """Of the fits those that a figure shows: power laws that are not rejected."""
    return [fit for fit in fits if fit.form == "power" and fit.fitted and fit.rejected is None]


def fits_table(fits: Mapping[str, Sequence[ScalingFit]]) -> pd.DataFrame:
    """The fits as people read them, one row a fit; where there is none or it is rejected, why, in place of numbers that
    mean nothing. r2_log: R² of the log loss, which was fitted; rmse_nats: of the loss itself."""
    rows = []
    for name, group in fits.items():
        for fit in group:
            parameters = ", ".join(
                f"{key} = {e.value:.3g} [{e.low:.3g}, {e.high:.3g}]" for key, e in fit.parameters.items()
            )
            row: dict[str, Any] = {"loss": name, "run": fit.group or "all", "formula": fit.formula}
            row["fit"] = f"rejected: {fit.rejected}" if fit.rejected else parameters or f"not fitted: {fit.reason}"
            rows.append(row | {"r2_log": fit.r2_log, "rmse_nats": fit.rmse_nats})
    return pd.DataFrame(rows)


def write_points(table: pd.DataFrame, folder: Path) -> None:
    """Per-point tables of both losses, `training_loss/points.csv` and `inference_loss/points.csv`, in the
    columns that `fvlm scaling` reads (loss, loss_low, loss_high in nats a token)."""
    for kind in ("training", "inference"):
        name = f"loss_{kind}_fine"
        renamed = {name: "loss", f"{name}_low": "loss_low", f"{name}_high": "loss_high"}
        columns = ["id", "run", "step", "num_parameters", "num_text_parameters", "training_flops"]
        (folder / f"{kind}_loss").mkdir(parents=True, exist_ok=True)
        points = table[[*columns, *renamed]].rename(columns=renamed)
        points.to_csv(folder / f"{kind}_loss" / "points.csv", index=False)


def find_power_laws(fits: Mapping[str, Sequence[ScalingFit]]) -> Finding:
    """Whether the losses follow power laws of training, from the fits of `fit_losses`."""
    answers, evidence = {}, []
    for name, group in fits.items():
        for fit in group:
            if fit.form == "power" and fit.fitted and name.endswith("by training_flops"):
                key = f"{name.removesuffix(' by training_flops')} of {fit.group}"
                answers[key] = "no" if fit.rejected else "yes"
                b = fit.parameters["b"]
                told = f"rejected: {fit.rejected}"
                if not fit.rejected:
                    told = f"b = {b.value:.2f} [{b.low:.2f}, {b.high:.2f}], over evaluation samples and the scatter "
                    told += f"about the law; R² of log loss {fit.r2_log:.2f}"
                evidence.append(
                    f"{key}: {told}; RMSE of the loss {fit.rmse_nats:.2f} nats a token, {fit.num_points} checkpoints"
                )
    question = (
        f"Does the loss follow a power law of training FLOPs (R² of log loss at least {GOOD_R2:g}, the exponent "
        "determined by the points)?"
    )
    return Finding(question, summarize_answers(answers, "no run has three checkpoints"), tuple(evidence))
