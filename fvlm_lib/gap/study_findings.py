"""What a study answers, in words, each question over its training seeds and judged by its interval.

The three questions about the gap (does it grow with training, is it smaller with a larger language model, is it closed
by how the model is trained), and those that a choice of recipe needs. Knows the tables of the other `study_` modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from fvlm_lib.gap.findings import Finding, summarize_answers
from fvlm_lib.gap.report import whole
from fvlm_lib.gap.scaling import GOOD_R2
from fvlm_lib.gap.study_analysis import analyse_study
from fvlm_lib.gap.study_contrasts import equal_compute_contrasts, mean_over_sizes
from fvlm_lib.gap.study_norms import norm_prediction
from fvlm_lib.gap.study_results import (
    ALL_SIZES,
    LOG_LOSS,
    PLAIN,
    Cell,
    StudyResults,
    cells,
    cells_by_length,
    common_seeds,
    is_resolved,
    mean_or_alone,
)
from fvlm_lib.stats import Estimate

Tables = Mapping[str, pd.DataFrame]
NEAR = 0.1  # of the gap to one pass: what "near sequential use" means
NOT_RESOLVED = "not resolved"
NOTE = (
    "Losses and gaps in nats a token, means over training seeds, with 95% intervals: Student's t over the seeds, with "
    "the evaluation videos redrawn, the same for every seed, where their samples were shipped; of laws the jackknife "
    "over seeds, of norms a bootstrap of runs. Differences and ratios are paired by seed, a ratio of losses is their "
    "geometric mean. Each interval is for itself: nothing is corrected for how many recipes and sizes there are. Of "
    "one seed there is no interval, and nothing is resolved."
)


def study_findings(results: StudyResults, tables: Tables | None = None) -> list[Finding]:
    """Answers to the questions that a study is made for; one that its results do not reach says what is missing.

    tables: what `study_analysis.analyse_study` made of the results, where it is there already.
    """
    tables = tables or analyse_study(results)
    return [
        _with_training(results, tables),
        _with_size(results, tables),
        _with_recipe(results, tables),
        _for_compute(results, tables),
        _with_passes(results, tables),
        _with_length(results),
        _with_norm(results),
        _with_law(tables),
    ]


def _with_training(results: StudyResults, tables: Tables) -> Finding:
    question = "Does the gap of plain training grow with training?"
    answers, evidence = {}, []
    found = cells(results, "gap")
    for size, recipe in ((size, recipe) for size in results.sizes for recipe in results.recipes):
        steps = sorted(step for of, by, step in found if (of, by) == (size, recipe))
        path = [found[size, recipe, step] for step in steps]
        if len(path) > 1 and recipe == PLAIN:
            pairs = [*pairwise(path), *([(path[0], path[-1])] if len(path) > 2 else [])]
            level = 1 - 0.05 / len(pairs)  # so that all changes together hold at 95%
            changes = [change for before, after in pairs if (change := _difference(after, before, level))]
            answers[size] = _direction(results, changes)
            means = [_told(mean_or_alone(cell.values)) for cell in path]
            at = ", ".join(f"{mean} at step {whole(step)}" for mean, step in zip(means, steps, strict=True))
            told = ", ".join(_told(change) for change, _ in changes)
            whole_way = " and over all" if len(path) > 2 else ""
            evidence.append(f"{size}: {at}; from step to step{whole_way}, at 95% all together, {told}")
        elif len(path) > 1 and (change := _difference(path[-1], path[0])):
            first, last = map(whole, (steps[0], steps[-1]))
            evidence.append(f"{size}, {recipe}: {_told(change[0])} from step {first} to step {last}")
    for row in tables["effects"].query("outcome == 'gap' and term == 'step'").to_dict("records"):
        recipes = "all recipes" if row["recipes"] == "all" else row["recipes"]
        evidence.append(f"{recipes}, all sizes: {_of_row(row, 'coefficient')} for ten times as many steps")
    nothing = f"no size has two checkpoints of the recipe {PLAIN!r}"
    return Finding(question, summarize_answers(answers, nothing), tuple(evidence))


def _direction(results: StudyResults, changes: Sequence[tuple[Estimate, int]]) -> str:
    if not changes:
        return "not asked: no two checkpoints share a seed"
    signs = {change.value > 0 for change, _ in changes if is_resolved(change, results.numerical_floor)}
    direction = {frozenset(): NOT_RESOLVED, frozenset({True}): "grows", frozenset({False}): "shrinks"}
    return f"{direction.get(frozenset(signs), 'goes up and down')} {_over(min(count for _, count in changes))}"


def _with_size(results: StudyResults, tables: Tables) -> Finding:
    question = "Is the gap of plain training smaller with a larger language model?"
    answers, evidence = {}, []
    found, step = cells(results, "gap"), results.last_step
    there = [size for size in results.sizes if (size, PLAIN, step) in found]
    pairs = [*pairwise(there), *([(there[0], there[-1])] if len(there) > 2 else [])]
    for small, large in pairs:
        if change := _difference(found[large, PLAIN, step], found[small, PLAIN, step]):
            name = f"{large} against {small}"
            answers[name] = _judge(results, change, "smaller", "larger")
            evidence.append(f"{name}, step {whole(step)}: {_told(change[0])}")
    chosen = tables["effects"].query("outcome == 'gap' and term == 'size'")
    for row in chosen[chosen["recipes"].isin(["all", PLAIN])].to_dict("records"):
        recipes = "all recipes" if row["recipes"] == "all" else row["recipes"]
        evidence.append(f"{recipes}, all steps: {_of_row(row, 'coefficient')} for twice the parameters")
    nothing = f"no two sizes have the recipe {PLAIN!r} at the last step"
    return Finding(question, summarize_answers(answers, nothing), tuple(evidence))


def _with_recipe(results: StudyResults, tables: Tables) -> Finding:
    question = "Does another recipe of training, such as several fine passes, close the gap?"
    if missing := _lacking(results):
        return Finding(question, missing, ())
    answers: dict[str, str] = {}
    evidence = []
    contrasts, gaps = tables["contrasts"], _gaps_by_recipe(results)
    for key, rows in contrasts.groupby("recipe", sort=False):
        recipe, closed = str(key), {}
        for size in map(str, rows["size"].unique()):
            told = rows[rows["size"] == size].set_index("measure")
            left = gaps.get((size, recipe))
            change = _row_estimate(told.loc["gap"].to_dict()) if "gap" in told.index else None
            closed[size] = _closed(results, change, left, gaps.get((size, PLAIN)))
            gap = f"gap {_told(left)}, minus plain {_told(change)}; " if left and change else ""
            evidence.append(
                f"{recipe}, {_where(size)}, step {whole(results.last_step)}: {gap}inference loss minus plain "
                f"{_lower(told.loc['loss_inference'].to_dict())}, {_ratio(told.loc[LOG_LOSS].to_dict())}"
            )
        answers |= _closed_by(recipe, closed)
    return Finding(question, summarize_answers(answers, "no recipe shares a seed with plain"), tuple(evidence))


def _gaps_by_recipe(results: StudyResults) -> dict[tuple[str, str], Estimate]:
    """The gap at the last step by size and recipe, and of size "all" the mean over sizes of the seeds that have all."""
    found, step = cells(results, "gap"), results.last_step
    gaps: dict[tuple[str, str], Estimate] = {}
    for recipe in results.recipes:
        of_sizes = [found.get((size, recipe, step)) for size in results.sizes]
        there = {size: cell for size, cell in zip(results.sizes, of_sizes, strict=True) if cell}
        gaps |= {(size, recipe): mean_or_alone(cell.values) for size, cell in there.items()}
        if seeds := common_seeds(*of_sizes):
            gaps[ALL_SIZES, recipe] = mean_or_alone(mean_over_sizes([cell.at(seeds) for cell in there.values()]))
    return gaps


def _closed(results: StudyResults, change: Estimate | None, left: Estimate | None, plain: Estimate | None) -> str:
    if change is None:
        return "it has none: sequential use is what it trains"
    if not is_resolved(change, results.numerical_floor) or left is None or plain is None:
        return NOT_RESOLVED
    if (change.value > 0) == (plain.value > 0):
        return "no, it is larger"
    if is_resolved(left, results.numerical_floor) and (left.value > 0) != (plain.value > 0):
        return f"turned round: {_told(left)} in place of {_told(plain)}"
    if is_resolved(left, results.numerical_floor):
        return f"reduced, not closed: {_told(left)} is left"
    return f"changed from {_told(plain)} to {_told(left)}, which is not off zero"


def _closed_by(recipe: str, closed: Mapping[str, str]) -> dict[str, str]:
    """Answers of `_closed` by size, under the names that they are told by: the one over all sizes alone, and where it
    is not resolved with those of the sizes that are; every size for itself where there is none over all."""
    if ALL_SIZES not in closed:
        return {f"{recipe}, {size}": answer for size, answer in closed.items()}
    resolved = [f"at {size} {answer}" for size, answer in closed.items() if answer != NOT_RESOLVED]
    if closed[ALL_SIZES] == NOT_RESOLVED and resolved:
        return {recipe: ", ".join([f"{NOT_RESOLVED} over all sizes", *resolved])}
    return {recipe: closed[ALL_SIZES]}


def _for_compute(results: StudyResults, tables: Tables) -> Finding:
    question = "Which recipe has the lowest inference loss for the same training FLOPs?"
    if missing := _lacking(results):
        return Finding(question, missing, ())
    contrasts = tables["equal_compute"]
    logs = contrasts[contrasts["measure"] == LOG_LOSS].to_dict("records")  # of the same rows
    contrasts = contrasts[contrasts["measure"] == "loss_inference"]
    answers, evidence = {}, []
    for size in [ALL_SIZES] if ALL_SIZES in set(contrasts["size"]) else results.sizes:
        rows = contrasts[contrasts["size"] == size]
        if len(rows):
            lowest = rows.loc[rows["difference"].idxmin()]
            best = str(lowest["recipe"]) if lowest["difference"] < 0 else PLAIN
            against = equal_compute_contrasts(results, best).query("measure == 'loss_inference' and size == @size")
            ties = list(against.loc[~(against["resolved"] & (against["difference"] > 0)), "recipe"])
            apart = [recipe for recipe in results.recipes if recipe not in {best, *against["recipe"]}]
            parts = [best]
            if ties:
                parts.append(f"{NOT_RESOLVED} from {', '.join(ties)}")
            if apart:
                parts.append(f"not compared with {', '.join(apart)}")
            answers[_where(size)] = ", ".join(parts if ties or apart else [best, "of all others"])
    for row, log_row in zip(contrasts.to_dict("records"), logs, strict=True):
        told = f"{row['recipe']} minus plain, {_where(row['size'])}, at {row['training_flops']:.3g} training FLOPs"
        evidence.append(f"{told}: {_lower(row)}, {_ratio(log_row)}")
    frontier = tables["means"].query("on_frontier").sort_values("training_flops")
    on = ", ".join(f"{row['recipe']} {row['size']} {whole(row['step'])}" for row in frontier.to_dict("records"))
    evidence.append(f"checkpoints that none beats with fewer FLOPs and a lower mean loss (recipe, size, step): {on}")
    return Finding(question, summarize_answers(answers, "no recipe shares a seed with plain"), tuple(evidence))


def _with_passes(results: StudyResults, tables: Tables) -> Finding:
    question = (
        "Where the whole video is there in use: from how many fine passes on is the loss of plain training that of "
        f"sequential use, within {NEAR:.0%} of the gap to one pass?"
    )
    answers, evidence = {}, []
    curves = tables["passes"]
    curves = curves[(curves["recipe"] == PLAIN) & (curves["step"] == results.last_step)]
    for of, rows in curves.groupby("size", sort=False):
        rows = rows.sort_values("passes")
        bound = NEAR * abs(float(rows["gap"].iloc[0]))
        far = rows[["gap_low", "gap_high", "gap"]].abs().max(axis=1, skipna=False)
        near = [int(k) for k, off in zip(rows["passes"], far, strict=True) if off <= bound]
        said = f"from {near[0]}" if near else f"not by {int(rows['passes'].max())}"
        said = NOT_RESOLVED if rows["gap_low"].isna().all() else said
        answers[str(of)] = f"{said} {_over(int(rows['num_seeds'].min()))}"
        gaps = ", ".join(f"{_of_row(row, 'gap', '_')} to {row['passes']}" for row in rows.to_dict("records"))
        losses = ", ".join(f"{row['loss']:.4f} with {row['passes']}" for row in rows.to_dict("records"))
        evidence.append(f"{of}, step {whole(results.last_step)}: gap {gaps}; loss {losses}")
    nothing = f"the recipe {PLAIN!r} was not evaluated at the last step"
    return Finding(question, summarize_answers(answers, nothing), tuple(evidence))


def _with_length(results: StudyResults) -> Finding:
    question = "Does the gap grow with the number of frames?"
    answers, evidence = {}, []
    for (size, recipe), there in cells_by_length(results, "gap").items():
        if len(there) > 1:
            gaps = ", ".join(f"{_told(mean_or_alone(cell.values))} at {frames}" for frames, cell in there.items())
            short, long = min(there), max(there)
            change = _difference(there[long], there[short])
            if change:
                evidence.append(f"{recipe}, {size}: {gaps} frames; {_told(change[0])} between")
                if recipe == PLAIN:
                    answers[f"{size}, {short} to {long} frames"] = _judge(results, change, "shrinks", "grows")
    nothing = f"the recipe {PLAIN!r} was not trained on videos of two lengths by the same seed"
    return Finding(question, summarize_answers(answers, nothing), tuple(evidence))


def _with_norm(results: StudyResults) -> Finding:
    question = "Does the norm of the Jacobian of the query recurrence predict the size of the gap?"
    found = norm_prediction(results)
    if found is None:
        return Finding(question, "not asked: norms were measured of fewer than two seeds or three runs", ())
    judged, where = found.spearman_within, "within a size and step"
    if judged is None:
        judged, where = found.spearman, "over all sizes and steps"
    answer = NOT_RESOLVED
    if is_resolved(judged):
        answer = "yes, a larger norm goes with a larger gap" if judged.value > 0 else "a larger norm with a smaller gap"
    evidence = []
    for name, rank, slope in (
        ("over all", found.spearman, found.slope),
        ("within a size and step", found.spearman_within, found.slope_within),
    ):
        if rank and slope:
            evidence.append(
                f"{name}, {found.num_rows} checkpoints of {found.num_runs} runs, over runs: rank correlation "
                f"{_told(rank, '.2f')}, log |gap| for log norm {_told(slope, '.2f')}"
            )
    return Finding(question, f"{answer} {where}, rank correlation {_told(judged, '.2f')}", tuple(evidence))


def _with_law(tables: Tables) -> Finding:
    question = "Do the losses of plain training follow a power law of steps, and the gap?"
    answers, evidence = {}, []
    found = tables["laws"]
    for row in found[found["recipe"] == PLAIN].to_dict("records"):
        of = {"loss_inference": "inference loss", "loss_trained": "trained loss", "abs_gap": "gap"}[row["measure"]]
        size = "all sizes" if row["size"] == ALL_SIZES else row["size"]
        if row["form"] == "power":
            is_law = row["fitted"] and row["r2_log"] >= GOOD_R2
            determined = row["num_seeds"] > 1 and not isinstance(row["refused"], str)
            answers[f"{of}, {size}"] = "no" if not is_law else "yes" if determined else NOT_RESOLVED
        told = []
        for name in ("exponent_step", "exponent_size", "floor"):
            if not pd.isna(row[name]):
                told.append(f"{name.replace('_', ' of ')} {_of_row(row, name, '_')}")
        fit = f"{', '.join(told)}, R² of the log {row['r2_log']:.3f}" if row["fitted"] else ""
        refused = f"refused: {row['refused']}" if isinstance(row["refused"], str) else ""
        evidence.append(f"{of}, {size}, {row['formula']}: {'; '.join(part for part in (fit, refused) if part)}")
    nothing = f"there are no results of the recipe {PLAIN!r}"
    return Finding(question, summarize_answers(answers, nothing), tuple(evidence))


# ---- into words --------------------------------------------------------------------------------------


def _lacking(results: StudyResults) -> str | None:
    if PLAIN not in results.recipes:
        return f"not asked: the study has no recipe {PLAIN!r} to compare with"
    return "not asked: the study has no other recipe" if len(results.recipes) == 1 else None


def _difference(ours: Cell, theirs: Cell, level: float = 0.95) -> tuple[Estimate, int] | None:
    """Paired by the seeds that both have, and how many these are; None where there are none."""
    seeds = common_seeds(ours, theirs)
    return (mean_or_alone(ours.at(seeds) - theirs.at(seeds), level), len(seeds)) if seeds else None


def _judge(results: StudyResults, change: tuple[Estimate, int], less: str, more: str) -> str:
    estimate, num_seeds = change
    words = NOT_RESOLVED
    if is_resolved(estimate, results.numerical_floor):
        words = more if estimate.value > 0 else less
    return f"{words} {_over(num_seeds)}"


def _where(size: str) -> str:
    return "mean over sizes" if size == ALL_SIZES else size


def _over(num_seeds: int) -> str:
    return "over 1 seed, which has no interval" if num_seeds == 1 else f"over {num_seeds} seeds"


def _told(estimate: Estimate, form: str = ".4f") -> str:
    if np.isnan(estimate.low):
        return f"{estimate.value:+{form}} (one seed)"
    return f"{estimate.value:+{form}} [{estimate.low:+{form}}, {estimate.high:+{form}}]"


def _row_estimate(row: Mapping[str, float], name: str = "difference", joint: str = "") -> Estimate:
    low, high = (f"{name}_low", f"{name}_high") if joint else ("low", "high")
    return Estimate(row[name], row[low], row[high])


def _lower(row: Mapping[str, Any]) -> str:
    """A difference of `study_contrasts`, and in how many of its seeds it is negative."""
    return f"{_of_row(row, 'difference')}, lower in {row['num_lower']} of {row['num_seeds']}"


def _ratio(row: Mapping[str, Any]) -> str:
    """What a difference of logarithms is as a ratio."""
    value, low, high = np.exp([row["difference"], row["low"], row["high"]])
    return f"{value:.2f} times plain's" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")


def _of_row(row: Mapping[str, float], name: str, joint: str = "") -> str:
    return _told(_row_estimate(row, name, joint))
