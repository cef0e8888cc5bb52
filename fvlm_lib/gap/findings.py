"""Questions about the gap and their answers in words, each with its measured evidence and judged by its interval.

A question about a recipe is answered over its training seeds (`seeds.py`); where a recipe has one, the answer is about
that run alone and says so. Knows the table of `report.gap_table` and per-sample tables; how a gap is measured is in
`gap.py`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from fvlm_lib import outputs
from fvlm_lib.batch.config import read_batch_file
from fvlm_lib.batch.folders import folders
from fvlm_lib.gap.report import DOUBT_NOTE, INTERVAL_NOTE, format_interval, readable_table, whole
from fvlm_lib.gap.seeds import check_same_samples, gaps_by_seed, mean_over_seeds
from fvlm_lib.options import Parser
from fvlm_lib.options import run as run_command
from fvlm_lib.stats import Estimate, Statistic, bootstrap

IN_THIS_RUN = "in this run"
NOT_MEASURED = "; how another seed would do was not measured"
SEEDS_NOTE = (
    "Answers over seeds are about the mean over seeds of each seed's gap. Their intervals vary the seeds, and redraw "
    "the evaluation samples, the same for every seed (95%, Student's t of one degree of freedom less than there are "
    "seeds). A difference is paired by seed where both sides have the same seeds. Answers about one run vary the "
    "samples alone. Changes from step to step hold at 95% all together."
)


@dataclass(frozen=True)
class Finding:
    """A question, its answer in a few words, and the measured evidence, a line each."""

    question: str
    answer: str
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """Gap of `ours` minus gap of `theirs`, nats a token.

    resolved: off zero by its interval, and above rounding. scope: over which seeds, in words. by_seed: the differences
    of single seeds, where they are paired.
    """

    ours: str
    theirs: str
    estimate: Estimate
    resolved: bool
    scope: str
    by_seed: tuple[float, ...] = ()


# ---- gaps and their differences ----------------------------------------------------------------------


def gap_difference(
    samples: pd.DataFrame, reference: pd.DataFrame, num_fine: int = 1, seed: int = 0, level: float = 0.95
) -> Estimate:
    """Gap of `samples` minus gap of `reference`, nats a token, paired sample by sample.

    Both are tables of `samples.read_samples`. Raises ValueError where they hold different samples.
    """
    check_same_samples([samples, reference])
    columns: dict[str, Any] = {}
    for side, table in (("ours", samples), ("theirs", reference)):
        gap = table["nll_autoregressive"] - table[f"nll_fine_{num_fine}"]
        columns |= {f"gap {side}": gap.to_numpy(), f"tokens {side}": table["num_tokens"].to_numpy()}
    difference: Statistic = lambda sums: (
        sums["gap ours"] / sums["tokens ours"] - sums["gap theirs"] / sums["tokens theirs"]
    )
    return bootstrap(columns, {"difference": difference}, seed=seed, level=level)["difference"]


def compare_gaps(
    rows: pd.DataFrame,
    reference: pd.DataFrame,
    samples: Mapping[str, pd.DataFrame],
    num_fine: int = 1,
    level: float = 0.95,
) -> Change:
    """Gap of `rows` minus gap of `reference`: rows of `report.gap_table` of one recipe and step each, a row a seed.

    Equal sets of seeds are paired: with `fvlm train` a seed draws the same videos in the same order for every recipe,
    and the same first weights where sizes are equal. (The interval holds as well where seeds share nothing.) Other sets
    are independent. A side of one seed is compared with that seed of the other side, or where it is not there with the
    first, and the change is that of these two runs.
    """
    ours, theirs = _ids_by_seed(rows), _ids_by_seed(reference)
    if min(len(ours), len(theirs)) == 1:
        shared = [seed for seed in ours if seed in theirs]
        our_id, their_id = (side[shared[0]] if shared else next(iter(side.values())) for side in (ours, theirs))
        change = gap_difference(samples[our_id], samples[their_id], num_fine, level=level)
        resolved = _is_resolved(change, rows, reference)
        return Change(_run(rows, our_id), _run(reference, their_id), change, resolved, IN_THIS_RUN)
    paired = ours.keys() == theirs.keys()
    ids = [*ours.values(), *theirs.values()]
    gaps = gaps_by_seed([samples[id] for id in ids], num_fine)
    gaps, other = gaps[: len(ours)], gaps[len(ours) :]
    if paired:
        change, scope = mean_over_seeds(gaps - other, level=level), f"over {len(ours)} seeds"
    else:
        change, scope = mean_over_seeds(gaps, other, level), f"over {len(ours)} and {len(theirs)} seeds"
    by_seed = tuple(map(float, (gaps - other).values)) if paired else ()
    resolved = _is_resolved(change, rows, reference)
    return Change(rows["group"].iloc[0], reference["group"].iloc[0], change, resolved, scope, by_seed)


def _is_resolved(change: Estimate, *sides: pd.DataFrame) -> bool:
    noise = max(_number(floor) for side in sides for floor in side["numerical_floor"])
    return change.low > noise or change.high < -noise


def _ids_by_seed(rows: pd.DataFrame) -> dict[int | None, str]:
    """The checkpoint of each seed, in order; None is a seed that was not told."""
    ordered = rows.sort_values("seed")
    return {
        None if pd.isna(seed) else int(seed): str(id) for seed, id in zip(ordered["seed"], ordered["id"], strict=True)
    }


def _run(rows: pd.DataFrame, checkpoint_id: str) -> str:
    return str(rows.loc[rows["id"] == checkpoint_id, "run"].iloc[0])


# ---- the questions -----------------------------------------------------------------------------------


def find(table: pd.DataFrame, samples: Mapping[str, pd.DataFrame], num_fine: int = 1) -> list[Finding]:
    """Answers to the questions about the gap, from `report.gap_table` and the per-sample tables by id."""
    last = {}
    for group, rows in table.groupby("group"):
        step = rows["step"].max()
        last[str(group)] = rows if pd.isna(step) else rows[rows["step"] == step]
    return [
        _with_training(table, samples, num_fine),
        _with_size(last, samples, num_fine),
        _with_multi_fine(last, samples, num_fine),
        _validity(last, samples, num_fine),
    ]


def _with_training(table: pd.DataFrame, samples: Mapping[str, pd.DataFrame], num_fine: int) -> Finding:
    answers, evidence = {}, []
    for group, rows in table.dropna(subset=["step"]).groupby("group"):
        runs = [(str(run), _common_steps(alone)) for run, alone in rows.groupby("run")]
        common = _common_steps(rows)
        if len(runs) > 1 and len(common) > 1:
            answer, lines = _trajectory(f"{group}, mean over {len(runs)} seeds", common, samples, num_fine)
            answers[str(group)] = answer
            evidence += lines
        for run, stages in runs:
            if len(stages) > 1:
                answer, lines = _trajectory(run, stages, samples, num_fine)
                evidence += lines
                if str(group) not in answers:  # the runs share no two steps, or there is but one
                    answers[run] = answer
    return _conclude("Does the gap grow or shrink with training?", answers, "no run has two checkpoints", evidence)


def _common_steps(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each step that all runs have a checkpoint of, in order."""
    stages = [stage for _, stage in rows.groupby("step")]
    return [stage for stage in stages if len(stage) == rows["run"].nunique()]


def _trajectory(
    name: str, stages: Sequence[pd.DataFrame], samples: Mapping[str, pd.DataFrame], num_fine: int
) -> tuple[str, list[str]]:
    """The direction of the gap over the steps, judged by all changes from one to the next, and two lines of evidence.

    Intervals of the changes are wider the more there are (Bonferroni), so that all hold together at 95%.
    """
    level = 1 - 0.05 / (len(stages) - 1)
    changes = [compare_gaps(after, before, samples, num_fine, level) for before, after in pairwise(stages)]
    signs = {change.estimate.value > 0 for change in changes if change.resolved}
    direction = {frozenset(): "not resolved", frozenset({True}): "grows", frozenset({False}): "shrinks"}
    answer = f"{direction.get(frozenset(signs), 'goes up and down')} {changes[0].scope}"
    gaps = [f"{_interval(_gap(stage, samples, num_fine))} at step {whole(stage['step'].iloc[0])}" for stage in stages]
    steps = ", ".join(_interval(change.estimate) for change in changes)
    together = (
        "" if len(changes) == 1 else f" ({100 * level:.3g}% each, so that all {len(changes)} together hold at 95%)"
    )
    return answer, [
        f"{name}, nats a token: {', '.join(gaps)}",
        f"{name}, from step to step: {steps}{together}: {answer}",
    ]


def _gap(rows: pd.DataFrame, samples: Mapping[str, pd.DataFrame], num_fine: int) -> Estimate:
    """Gap of the rows of one recipe and step: the mean over seeds, or where there is one, that run's."""
    if len(rows) == 1:
        return Estimate(*(float(rows[f"gap_nats{end}"].iloc[0]) for end in ("", "_low", "_high")))
    return mean_over_seeds(gaps_by_seed([samples[id] for id in _ids_by_seed(rows).values()], num_fine))


def _with_size(last: Mapping[str, pd.DataFrame], samples: Mapping[str, pd.DataFrame], num_fine: int) -> Finding:
    plain = [rows for rows in last.values() if not _fact(rows, "multi_fine") and _fact(rows, "num_text_parameters")]
    plain.sort(key=lambda rows: _fact(rows, "num_text_parameters"))
    answers, evidence = {}, []
    for small, large in pairwise(plain):
        sizes = [_fact(rows, "num_text_parameters") for rows in (large, small)]
        if sizes[0] == sizes[1] or not _same_step(small, large):
            continue
        change = compare_gaps(large, small, samples, num_fine)
        better = "it is larger" if change.estimate.value > 0 else "it is smaller"
        name = f"{change.ours} against {change.theirs}"
        answers[name] = f"{better if change.resolved else 'not resolved'} {change.scope}"
        evidence.append(
            f"{change.ours} ({whole(sizes[0])} parameters in the language model) minus {change.theirs} "
            f"({whole(sizes[1])}), step {whole(_fact(large, 'step'))}: {_told(change)}"
        )
    nothing = "no two plain recipes of different size end at the same step"
    return _conclude("Does a larger language model reduce it?", answers, nothing, evidence)


def _with_multi_fine(last: Mapping[str, pd.DataFrame], samples: Mapping[str, pd.DataFrame], num_fine: int) -> Finding:
    answers, evidence = {}, []
    for rows in last.values():
        for plain in last.values():
            same = _fact(rows, "num_text_parameters") == _fact(plain, "num_text_parameters")
            if not _fact(rows, "multi_fine") or _fact(plain, "multi_fine") or not same or not _same_step(rows, plain):
                continue
            change = compare_gaps(rows, plain, samples, num_fine)
            if not change.resolved:
                answer = "not resolved"
            elif change.estimate.value > 0:
                answer = "no, it is larger"
            else:
                answer = "it is small" if set(rows["verdict"]) == {"small"} else "it is reduced, not closed,"
            answers[f"{change.ours} against {change.theirs}"] = f"{answer} {change.scope}"
            evidence.append(
                f"{change.ours}: gap {_interval(_gap(rows, samples, num_fine))} nats a token ({_verdicts(rows)}); "
                f"minus {change.theirs}, step {whole(_fact(rows, 'step'))}: {_told(change)}"
            )
    nothing = "no multi-fine recipe has a plain one of its size and step beside it"
    return _conclude("Does multi-fine training close it?", answers, nothing, evidence)


def _validity(last: Mapping[str, pd.DataFrame], samples: Mapping[str, pd.DataFrame], num_fine: int) -> Finding:
    answers, evidence = {}, []
    for group, rows in last.items():
        answers[group] = f"gap {_verdicts(rows)}" + (f" {IN_THIS_RUN}" if len(rows) == 1 else "")
        if len(rows) > 1:
            mean = _interval(_gap(rows, samples, num_fine))
            evidence.append(f"{group}, mean over {len(rows)} seeds: {mean} nats a token")
        for _, row in rows.iterrows():
            when = row["id"] if pd.isna(row["step"]) else f"step {whole(row['step'])}"
            percent = f", {format_interval(row, 'gap_percent', '+.1f')}%" if "percent" in row["verdict_unit"] else ""
            evidence.append(
                f"{row['run']}, {when}: {format_interval(row, 'gap_nats', '+.4f')} nats a token{percent}, at a "
                f"training loss of {row['loss_training_fine']:.4f}: {row['verdict']}, judged in {row['verdict_unit']}"
            )
    return _conclude("Is the training approximation valid at the end of training?", answers, "no runs", evidence)


def _fact(rows: pd.DataFrame, name: str) -> Any:
    """What the rows of one recipe and step have in common, None where it was not told."""
    value = rows[name].iloc[0]
    return None if pd.isna(value) else value


def _same_step(rows: pd.DataFrame, other: pd.DataFrame) -> bool:
    return _fact(rows, "step") is not None and _fact(rows, "step") == _fact(other, "step")


def _verdicts(rows: pd.DataFrame) -> str:
    """The verdict of one run, or how many seeds have which."""
    if len(rows) == 1:
        return str(rows["verdict"].iloc[0])
    counts = Counter(rows["verdict"])
    if len(counts) == 1:
        return f"{next(iter(counts))} in each of {len(rows)} seeds"
    return ", ".join(f"{verdict} in {count}" for verdict, count in sorted(counts.items())) + f" of {len(rows)} seeds"


# ---- into words --------------------------------------------------------------------------------------


def _conclude(question: str, answers: Mapping[str, str], nothing: str, evidence: Sequence[str]) -> Finding:
    """The finding; one that rests on single runs ends by saying what was not measured."""
    single = {name: answer for name, answer in answers.items() if answer.endswith(IN_THIS_RUN)}
    ordered = {name: answer for name, answer in answers.items() if name not in single} | single
    return Finding(question, summarize_answers(ordered, nothing) + (NOT_MEASURED if single else ""), tuple(evidence))


def summarize_answers(answers: Mapping[str, str], nothing: str) -> str:
    if not answers:
        return f"not asked: {nothing}"
    if len(set(answers.values())) == 1:
        return next(iter(answers.values()))
    return "; ".join(f"{name}: {answer}" for name, answer in answers.items())


def _told(change: Change) -> str:
    by_seed = f", by seed {', '.join(f'{value:+.4f}' for value in change.by_seed)}" if change.by_seed else ""
    return f"{_interval(change.estimate)} nats a token {change.scope}{by_seed}"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]"


def _number(value: Any) -> float:
    return 0.0 if pd.isna(value) else float(value)


def findings_markdown(findings: Sequence[Finding], table: pd.DataFrame) -> str:
    """Findings and table as Markdown."""
    parts = []
    for finding in findings:
        parts.append(f"**{finding.question}** {finding.answer[:1].upper()}{finding.answer[1:]}.")
        if finding.evidence:
            parts.append("\n".join(f"- {line}" for line in finding.evidence))
    parts += [SEEDS_NOTE, f"{INTERVAL_NOTE} {DOUBT_NOTE}"]
    parts.append(readable_table(table).to_markdown(index=False, disable_numparse=True))
    return "\n\n".join(parts) + "\n"


def replace_section(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` in a Markdown file.

    Raises ValueError where the file lacks the markers, rather than guessing a place.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    content = path.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise ValueError(f"{path} needs the lines `{begin}` and `{end}`, once each and in this order")
    head, rest = content.split(begin)
    with outputs.whole(path) as part:
        part.write_text(f"{head}{begin}\n{text.strip()}\n{end}{rest.split(end)[1]}", encoding="utf-8")


# ---- the command -------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm findings",
        description="Print the findings of a batch, or put them between the markers of a Markdown file.",
        epilog="example: fvlm findings config/demo.yaml --into docs/KNOWLEDGE.md",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the batch's config")
    markers = "between its lines <!-- begin findings --> and <!-- end findings -->"
    parser.add_argument("--into", type=Path, metavar="FILE.md", help=f"a Markdown file; they go {markers}")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: print_findings(args.config, args.into))


def print_findings(config: Path, into: Path | None = None) -> None:
    """Print the findings that a batch has left, or put them into a Markdown file. Raises ValueError."""
    found = Path(folders(read_batch_file(config, files=False).output).results, "findings.md")
    if not found.is_file():
        raise ValueError(f"{found} is missing; `bash run.sh` makes it")
    text = found.read_text(encoding="utf-8")
    if into:
        replace_section(into, "findings", text)
    else:
        print(text, end="")


if __name__ == "__main__":
    sys.exit(main())
