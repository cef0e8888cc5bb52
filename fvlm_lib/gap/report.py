"""From the gaps of many checkpoints to one table and to findings in words, each judged by its interval.

Knows gap results (`gap.write_gap`) and a batch's config; how a gap is measured is in `gap.py`, how a curve
is fitted in `scaling.py`. `fvlm report CONFIG` prints the table of a batch's results.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from fvlm_lib.batch.config import Batch, read_batch
from fvlm_lib.gap.results import gap_file, read_gap_result
from fvlm_lib.gap.scaling import ScalingFit, fit_scaling_laws
from fvlm_lib.stats import Estimate, Statistic, bootstrap, ratio, resample_statistics

ESTIMATES = ["loss_training_fine", "loss_inference_fine", "loss_coarse", "gap_nats", "gap_percent"]
GOOD_R2 = 0.5  # a fit that explains less than half of the variance is not drawn
INTERVAL_NOTE = (
    "Intervals are 95%, by paired bootstrap over the evaluation samples. They say nothing of how another "
    "training seed would do."
)


@dataclass(frozen=True)
class Finding:
    """A question, its answer in a few words, and the measured evidence, a line each."""

    question: str
    answer: str
    evidence: tuple[str, ...]


# ---- the table ---------------------------------------------------------------------------------------


def read_results(batch: Batch) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The results of a batch by checkpoint id, and why others cannot be used, also by id."""
    results, problems = {}, {}
    for checkpoint_id in batch.checkpoints:
        try:
            results[checkpoint_id] = read_gap_result(gap_file(checkpoint_id), batch.gap_parameters(checkpoint_id))
        except (OSError, ValueError) as error:
            problems[checkpoint_id] = str(error)
    return results, problems


def gap_table(results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row a checkpoint: id, run, step, sizes, training FLOPs, losses and gap each with _low and _high
    (nats a token, gap_percent in percent), numerical_floor, verdict, number of samples scored
    and skipped.

    What a checkpoint does not tell of its training is empty; its run is then its id.
    """
    rows = []
    for checkpoint_id, result in results.items():
        training = result["training"]
        row: dict[str, Any] = {"id": checkpoint_id, "run": training.get("name", checkpoint_id)}
        for key in ("step", "num_parameters", "num_text_parameters", "training_flops", "multi_fine"):
            row[key] = training.get(key)
        for name in ESTIMATES:
            row[name] = result[name]["value"]
            row[f"{name}_low"], row[f"{name}_high"] = result[name]["low"], result[name]["high"]
        for key in ("numerical_floor", "verdict", "verdict_unit", "num_samples", "num_tokens"):
            row[key] = result[key]
        rows.append(row | {"skipped": len(result["skipped"])})
    return pd.DataFrame(rows).sort_values(["run", "step"], kind="stable", ignore_index=True)


def readable_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table as people read it: `value [low, high]`, losses and gaps in nats a token.

    The percentage is left out where the training loss is too near zero for it to mean anything; `skipped`
    counts samples that could not be used, and is there only if there are any.
    """

    def cells(name: str, form: str) -> list[str]:
        return [_interval(row, name, form) for _, row in table.iterrows()]

    readable = pd.DataFrame(
        {
            "run": table["run"],
            "step": ["" if pd.isna(step) else _whole(step) for step in table["step"]],
            "training": cells("loss_training_fine", ".4f"),
            "inference": cells("loss_inference_fine", ".4f"),
            "coarse": [f"{value:.4f}" for value in table["loss_coarse"]],
            "gap": cells("gap_nats", "+.4f"),
            "gap %": [
                cell if unit == "percent" else "-"
                for cell, unit in zip(cells("gap_percent", "+.1f"), table["verdict_unit"], strict=True)
            ],
            "verdict": table["verdict"],
        }
    )
    return readable.assign(skipped=table["skipped"]) if table["skipped"].any() else readable


# ---- the findings ------------------------------------------------------------------------------------


def gap_difference(samples: pd.DataFrame, reference: pd.DataFrame, num_fine: int = 1, seed: int = 0) -> Estimate:
    """Gap of `samples` minus gap of `reference`, nats a token, paired sample by sample.

    Both are tables of `samples.read_samples`. Raises ValueError where they hold different samples.
    """
    if list(samples["sample"]) != list(reference["sample"]):
        raise ValueError("the two tables hold different samples; evaluate both on the same ones")
    columns: dict[str, Any] = {}
    for side, table in (("ours", samples), ("theirs", reference)):
        gap = table["nll_autoregressive"] - table[f"nll_fine_{num_fine}"]
        columns |= {f"gap {side}": gap.to_numpy(), f"tokens {side}": table["num_tokens"].to_numpy()}
    difference: Statistic = lambda sums: (
        sums["gap ours"] / sums["tokens ours"] - sums["gap theirs"] / sums["tokens theirs"]
    )
    return bootstrap(columns, {"difference": difference}, seed=seed)["difference"]


def find(table: pd.DataFrame, samples: Mapping[str, pd.DataFrame], num_fine: int = 1) -> list[Finding]:
    """Answers to the questions about the gap, from the table and the per-sample tables by id."""
    runs = {str(run): rows.sort_values("step") for run, rows in table.groupby("run")}
    last = {run: rows.iloc[-1] for run, rows in runs.items()}

    def compare(row: pd.Series, reference: pd.Series) -> tuple[Estimate, bool]:
        """Difference of gaps, and whether it is resolved: off zero by its interval, and above rounding."""
        change = gap_difference(samples[row["id"]], samples[reference["id"]], num_fine)
        noise = max(_number(row["numerical_floor"]), _number(reference["numerical_floor"]))
        return change, (change.low > noise or change.high < -noise)

    return [
        _with_training(runs, compare),
        _with_size(last, compare),
        _with_multi_fine(last, compare),
        _validity(last),
    ]


def _with_training(runs: Mapping[str, pd.DataFrame], compare: Any) -> Finding:
    answers, evidence = {}, []
    for run, rows in runs.items():
        if len(rows) < 2:
            continue
        first, final = rows.iloc[0], rows.iloc[-1]
        change, resolved = compare(final, first)
        answers[run] = ("grows" if change.value > 0 else "shrinks") if resolved else "not resolved"
        evidence.append(
            f"{run}, step {_whole(first['step'])} to {_whole(final['step'])}: {answers[run]}, by {_nats(change)}"
        )
    answer = _summary(answers, "no run has two checkpoints")
    return Finding("Does the gap grow or shrink with training?", answer, tuple(evidence))


def _with_size(last: Mapping[str, pd.Series], compare: Any) -> Finding:
    plain = [row for row in last.values() if not row["multi_fine"] and pd.notna(row["num_text_parameters"])]
    plain.sort(key=lambda row: row["num_text_parameters"])
    answers, evidence = {}, []
    for small, large in pairwise(plain):
        if small["num_text_parameters"] == large["num_text_parameters"] or small["step"] != large["step"]:
            continue
        change, resolved = compare(large, small)
        name = f"{large['run']} against {small['run']}"
        answers[name] = ("no, it is larger" if change.value > 0 else "yes") if resolved else "not resolved"
        evidence.append(
            f"{large['run']} ({_whole(large['num_text_parameters'])} parameters in the language model) minus "
            f"{small['run']} ({_whole(small['num_text_parameters'])}), step {_whole(large['step'])}: {_nats(change)}"
        )
    answer = _summary(answers, "no two plain runs of different size end at the same step")
    return Finding("Does a larger language model reduce it?", answer, tuple(evidence))


def _with_multi_fine(last: Mapping[str, pd.Series], compare: Any) -> Finding:
    answers, evidence = {}, []
    for row in last.values():
        if not row["multi_fine"]:
            continue
        for plain in last.values():
            same = row["num_text_parameters"] == plain["num_text_parameters"] and row["step"] == plain["step"]
            if plain["multi_fine"] or not same:
                continue
            change, resolved = compare(row, plain)
            if not resolved:
                answers[row["run"]] = "not resolved"
            elif change.value > 0:
                answers[row["run"]] = "no, it is larger"
            else:
                answers[row["run"]] = "yes" if row["verdict"] == "small" else "it reduces it"
            evidence.append(
                f"{row['run']}: gap {_interval(row, 'gap_nats', '+.4f')} nats a token ({row['verdict']}); "
                f"minus {plain['run']}, step {_whole(row['step'])}: {_nats(change)}"
            )
    answer = _summary(answers, "no multi-fine run has a plain one of its size and step beside it")
    return Finding("Does multi-fine training close it?", answer, tuple(evidence))


def _validity(last: Mapping[str, pd.Series]) -> Finding:
    answers = {run: f"gap {row['verdict']}" for run, row in last.items()}
    evidence = []
    for run, row in last.items():
        when = row["id"] if pd.isna(row["step"]) else f"step {_whole(row['step'])}"
        percent = f", {_interval(row, 'gap_percent', '+.1f')}%" if row["verdict_unit"] == "percent" else ""
        evidence.append(
            f"{run}, {when}: {_interval(row, 'gap_nats', '+.4f')} nats a token{percent}, at a training loss of "
            f"{row['loss_training_fine']:.4f}: {row['verdict']}, judged in {row['verdict_unit']}"
        )
    return Finding(
        "Is the training approximation valid at the end of training?", _summary(answers, "no runs"), tuple(evidence)
    )


def _summary(answers: Mapping[str, str], nothing: str) -> str:
    if not answers:
        return f"not asked: {nothing}"
    if len(set(answers.values())) == 1:
        return next(iter(answers.values()))
    return "; ".join(f"{name}: {answer}" for name, answer in answers.items())


def _interval(row: pd.Series, name: str, form: str) -> str:
    return f"{row[name]:{form}} [{row[name + '_low']:{form}}, {row[name + '_high']:{form}}]"


def _nats(estimate: Estimate) -> str:
    return f"{estimate.value:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}] nats a token"


def _number(value: Any) -> float:
    return 0.0 if pd.isna(value) else float(value)


def _whole(value: Any) -> str:
    return f"{int(value):,}"


# ---- scaling -----------------------------------------------------------------------------------------


def fit_losses(
    table: pd.DataFrame, samples: Mapping[str, pd.DataFrame], num_bootstrap: int = 200, seed: int = 0
) -> dict[str, list[ScalingFit]]:
    """Scaling laws of training and inference loss, against steps and against training FLOPs.

    Returns fits by "<loss> by <column>". Intervals come from refits on resampled evaluation samples, the
    same resamples for every checkpoint. Checkpoints that do not tell the column or their size are left out.
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
                    known, x, loss, params="num_parameters", group="run", replicates=resampled
                )
    return fits


def read_fits(path: str | Path) -> dict[str, list[ScalingFit]]:
    """The fits of `fit_losses` from results/scaling_fits.json. Raises ValueError where it is missing or of another
    version. The end of an interval that overflowed is infinite."""
    try:
        content = json.loads(Path(path).read_text())
        return {name: [_read_fit(fit) for fit in group] for name, group in content.items()}
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; `bash run.sh` makes it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no scaling fits ({error}); remove it and run `bash run.sh`") from error


def _read_fit(content: Mapping[str, Any]) -> ScalingFit:
    parameters = {
        name: Estimate(**{key: math.inf if number is None else number for key, number in estimate.items()})
        for name, estimate in content["parameters"].items()
    }
    return ScalingFit(**{**content, "parameters": parameters, "at_bound": tuple(content["at_bound"])})


def drawn_fits(fits: Sequence[ScalingFit]) -> list[ScalingFit]:
    """Of the fits those that a figure shows: power laws that explain at least `GOOD_R2` of the variance."""
    return [fit for fit in fits if fit.form == "power" and (fit.r2 or 0) >= GOOD_R2]


def fits_table(fits: Mapping[str, Sequence[ScalingFit]]) -> pd.DataFrame:
    """The fits as people read them, one row a fit; where there is none, why."""
    rows = []
    for name, group in fits.items():
        for fit in group:
            parameters = ", ".join(
                f"{key} = {e.value:.3g} [{e.low:.3g}, {e.high:.3g}]" for key, e in fit.parameters.items()
            )
            row: dict[str, Any] = {"loss": name, "run": fit.group or "all", "formula": fit.formula}
            row["fit"] = parameters or f"not fitted: {fit.reason}"
            rows.append(row | {"r2": fit.r2, "rmse": fit.rmse})
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
            if fit.form == "power" and fit.fitted and fit.r2 is not None and name.endswith("by training_flops"):
                key = f"{name.removesuffix(' by training_flops')} of {fit.group}"
                answers[key] = "yes" if fit.r2 >= GOOD_R2 else "no"
                exponent = fit.parameters["b"]
                evidence.append(
                    f"{key}: b = {exponent.value:.2f} [{exponent.low:.2f}, {exponent.high:.2f}], R² {fit.r2:.2f}, "
                    f"RMSE {fit.rmse:.2f} nats a token, {fit.num_points} checkpoints"
                )
    question = f"Does the loss follow a power law of training FLOPs (R² of at least {GOOD_R2:g})?"
    return Finding(question, _summary(answers, "no run has three checkpoints"), tuple(evidence))


# ---- into files --------------------------------------------------------------------------------------


def findings_markdown(findings: Sequence[Finding], table: pd.DataFrame) -> str:
    """Findings and table as Markdown."""
    parts = []
    for finding in findings:
        parts.append(f"**{finding.question}** {finding.answer[:1].upper()}{finding.answer[1:]}.")
        if finding.evidence:
            parts.append("\n".join(f"- {line}" for line in finding.evidence))
    parts.append(INTERVAL_NOTE)
    parts.append(readable_table(table).to_markdown(index=False, disable_numparse=True))
    return "\n\n".join(parts) + "\n"


def replace_section(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` in a Markdown file.

    Raises ValueError where the file lacks the markers, rather than guessing a place.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    content = path.read_text()
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise ValueError(f"{path} needs the lines `{begin}` and `{end}`, once each and in this order")
    head, rest = content.split(begin)
    path.write_text(f"{head}{begin}\n{text.strip()}\n{end}{rest.split(end)[1]}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fvlm report",
        description="Print the gap table of a batch, and what of it is missing.",
        epilog="example: fvlm report config/demo.yaml",
    )
    parser.add_argument("config", type=Path)
    args = parser.parse_args(argv)
    try:
        batch = read_batch(yaml.safe_load(args.config.read_text()) or {}, str(args.config))
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    results, problems = read_results(batch)
    if results:
        print(readable_table(gap_table(results)).to_markdown(index=False, disable_numparse=True))
        print(f"\nLosses and gaps in nats a token. {INTERVAL_NOTE}")
    for checkpoint_id, problem in problems.items():
        print(f"no result for {checkpoint_id}: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
