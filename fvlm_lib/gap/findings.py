"""Questions about the gap and their answers in words, each with its measured evidence and judged by its interval.

Knows the table of `report.gap_table` and per-sample tables; how a gap is measured is in `gap.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from fvlm_lib.gap.report import DOUBT_NOTE, INTERVAL_NOTE, format_interval, readable_table, whole
from fvlm_lib.stats import Estimate, Statistic, bootstrap


@dataclass(frozen=True)
class Finding:
    """A question, its answer in a few words, and the measured evidence, a line each."""

    question: str
    answer: str
    evidence: tuple[str, ...]


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
            f"{run}, step {whole(first['step'])} to {whole(final['step'])}: {answers[run]}, by {_nats(change)}"
        )
    answer = summarize_answers(answers, "no run has two checkpoints")
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
            f"{large['run']} ({whole(large['num_text_parameters'])} parameters in the language model) minus "
            f"{small['run']} ({whole(small['num_text_parameters'])}), step {whole(large['step'])}: {_nats(change)}"
        )
    answer = summarize_answers(answers, "no two plain runs of different size end at the same step")
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
                f"{row['run']}: gap {format_interval(row, 'gap_nats', '+.4f')} nats a token ({row['verdict']}); "
                f"minus {plain['run']}, step {whole(row['step'])}: {_nats(change)}"
            )
    answer = summarize_answers(answers, "no multi-fine run has a plain one of its size and step beside it")
    return Finding("Does multi-fine training close it?", answer, tuple(evidence))


def _validity(last: Mapping[str, pd.Series]) -> Finding:
    answers = {run: f"gap {row['verdict']}" for run, row in last.items()}
    evidence = []
    for run, row in last.items():
        when = row["id"] if pd.isna(row["step"]) else f"step {whole(row['step'])}"
        percent = f", {format_interval(row, 'gap_percent', '+.1f')}%" if row["verdict_unit"] == "percent" else ""
        evidence.append(
            f"{run}, {when}: {format_interval(row, 'gap_nats', '+.4f')} nats a token{percent}, at a training loss of "
            f"{row['loss_training_fine']:.4f}: {row['verdict']}, judged in {row['verdict_unit']}"
        )
    return Finding(
        "Is the training approximation valid at the end of training?",
        summarize_answers(answers, "no runs"),
        tuple(evidence),
    )


def summarize_answers(answers: Mapping[str, str], nothing: str) -> str:
    if not answers:
        return f"not asked: {nothing}"
    if len(set(answers.values())) == 1:
        return next(iter(answers.values()))
    return "; ".join(f"{name}: {answer}" for name, answer in answers.items())


def _nats(estimate: Estimate) -> str:
    return f"{estimate.value:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}] nats a token"


def _number(value: Any) -> float:
    return 0.0 if pd.isna(value) else float(value)


def findings_markdown(findings: Sequence[Finding], table: pd.DataFrame) -> str:
    """Findings and table as Markdown."""
    parts = []
    for finding in findings:
        parts.append(f"**{finding.question}** {finding.answer[:1].upper()}{finding.answer[1:]}.")
        if finding.evidence:
            parts.append("\n".join(f"- {line}" for line in finding.evidence))
    parts.append(f"{INTERVAL_NOTE} {DOUBT_NOTE}")
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
