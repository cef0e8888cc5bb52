"""What a study says in words: planted answers are given, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import exit_code
from planted_study import planted_samples, planted_table, write_results

from fvlm_lib.gap.study_analysis import analyse_study
from fvlm_lib.gap.study_findings import study_findings
from fvlm_lib.gap.study_report import main, readable
from fvlm_lib.gap.study_results import read_study_results

QUESTIONS = ("training", "size", "recipe", "compute", "passes", "length", "norm", "law")


def answers(folder: Path) -> dict[str, str]:
    found = study_findings(read_study_results(folder))
    return dict(zip(QUESTIONS, (finding.answer for finding in found), strict=True))


def planted(folder: Path, **changes) -> Path:
    """Five seeds: a gap that grows with training and is smaller with size, that `multi` halves for twice the compute at
    the same inference loss, and `cheap` leaves as it is."""
    jitter = lambda seed, step: 1 + 0.002 * np.sin(7 * seed + step)
    by_size, by_recipe = {"S": 0.3, "M": 0.2, "L": 0.1}, {"multi": 0.5}

    def gap(size, recipe, seed, step):
        return by_recipe.get(recipe, 1) * by_size[size] * (step / 3000) ** 0.3 * jitter(seed, step)

    formulas = {
        "gap": gap,
        "loss": lambda size, recipe, seed, step: 20 * step**-0.3 * jitter(seed, step),
        "cost": lambda size, recipe, seed, step: 1e6 * step * (2.0 if recipe == "multi" else 1.0),
        "recipes": ("plain", "multi", "cheap"),
        **changes,
    }
    return write_results(folder, planted_table(**formulas))


def test_planted_answers_are_given(tmp_path):
    found = answers(planted(tmp_path))
    assert found["training"] == "grows over 5 seeds" and found["size"] == "smaller over 5 seeds"
    assert (
        found["recipe"].startswith("multi: reduced, not closed: +0.0999 [")
        and "; cheap: not resolved" in found["recipe"]
    )
    assert found["compute"] == "plain, not resolved from cheap"
    assert found["passes"] == "not by 3 over 5 seeds" and found["length"] == "grows over 5 seeds"
    assert found["norm"].startswith("not asked") and found["law"] == "yes"


def test_a_gap_that_is_zero_but_for_chance_is_not_resolved(tmp_path):
    found = answers(planted(tmp_path, gap=lambda *of: 0.01 * np.sin(3 * of[2] + of[3] + len(of[1]) + ord(of[0]))))
    assert "grows" not in found["training"] + found["length"] and found["recipe"] == "not resolved"
    assert "not resolved" in found["training"] and "not resolved" in found["size"]


def test_what_trains_sequential_use_has_no_gap_and_its_loss_is_compared(tmp_path):
    passes = lambda recipe: None if recipe == "rollout" else 1
    loss = lambda size, recipe, seed, step: 20 * step**-0.3 * (0.5 if recipe == "rollout" else 1) * (1 + 0.002 * seed)
    folder = planted(tmp_path, recipes=("plain", "rollout"), passes=passes, loss=loss)
    found = study_findings(read_study_results(folder))
    assert found[2].answer == "it has none: sequential use is what it trains" and found[3].answer.startswith("rollout")
    assert "lower in 5 of 5, 0.50 times plain's [0.50, 0.50]" in found[2].evidence[0]
    assert not any("rollout" in line for line in (*found[0].evidence, *found[1].evidence))


def test_a_gap_that_a_recipe_turns_round_is_not_called_reduced(tmp_path):
    jitter = lambda seed: 1 + 0.01 * np.sin(seed)
    gap = lambda size, recipe, seed, step: (0.1 if recipe == "plain" else -0.4) * jitter(seed)
    found = answers(planted(tmp_path, gap=gap, recipes=("plain", "multi")))
    assert found["recipe"].startswith("turned round: -0.40") and " in place of +0.10" in found["recipe"]


def test_sizes_at_which_a_recipe_changes_the_gap_are_named_where_one_lost_seed_hides_it_over_all(tmp_path):
    def gap(size, recipe, seed, step):
        lost = 3.0 if (size, seed) == ("L", 0) else 0.0
        return 0.001 * np.sin(3 * seed) if recipe == "multi" else 0.1 + 0.001 * seed + lost

    found = answers(planted(tmp_path, gap=gap, recipes=("plain", "multi")))
    assert found["recipe"].startswith("not resolved over all sizes, at S changed from +0.10")
    assert ", which is not off zero, at M changed from" in found["recipe"] and "at L" not in found["recipe"]


def test_seeds_are_counted_that_both_sides_have_and_a_recipe_beats_what_it_shares_seeds_with(tmp_path):
    table = planted_table(
        recipes=("plain", "a", "b"),
        loss=lambda size, recipe, seed, step: (
            {"plain": 3.0, "a": 2.0, "b": 1.0}[recipe] * (1 + 0.01 * np.sin(9 * seed))
        ),
    )
    there = {"plain": (0, 1, 2, 3, 4), "a": (0, 1), "b": (2, 3)}
    kept = [seed in there[recipe] for recipe, seed in zip(table["recipe"], table["seed"], strict=True)]
    table = table[np.array(kept) & ~((table["size"] == "M") & (table["seed"] < 4))]
    found = answers(write_results(tmp_path, table))
    assert "M against S: not resolved over 1 seed" in found["size"]
    assert found["compute"] == "b, not compared with a"


def test_of_one_seed_nothing_is_resolved_and_it_is_said(tmp_path):
    found = study_findings(read_study_results(planted(tmp_path, seeds=(2,))))
    assert found[0].answer == "not resolved over 1 seed, which has no interval"
    assert all("nan" not in line for finding in found for line in (finding.answer, *finding.evidence))
    assert "(one seed)" in found[0].evidence[0]
    assert found[4].answer == "not resolved over 1 seed, which has no interval" and "yes" not in found[7].answer


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipes": ("multi",)}, "the study has no recipe 'plain'"),
        ({"recipes": ("plain",)}, "the study has no other recipe"),
        ({"steps": (100,)}, "no size has two checkpoints"),
        ({"sizes": ("S",)}, "no two sizes"),
        ({"lengths": (8,)}, "not trained on videos of two lengths"),
    ],
)
def test_what_a_cut_study_does_not_reach_is_named_and_the_rest_is_told(tmp_path, capsys, changes, said):
    assert exit_code(main, planted(tmp_path, **changes)) == 0
    out = capsys.readouterr().out
    assert said in out and "**Means over seeds" in out


def test_the_command_writes_tables_to_one_file_and_findings_between_the_markers_of_another(tmp_path, capsys):
    folder = planted(tmp_path / "shipped", sizes=("S",))
    page, whole = tmp_path / "page.md", tmp_path / "report.md"
    page.write_text("before\n<!-- begin study -->\nold\n<!-- end study -->\nafter\n")
    assert exit_code(main, folder, "--output", whole, "--into", page) == 0
    assert capsys.readouterr().out == ""
    assert "**Does the gap of plain training grow with training?** Grows over 5 seeds." in page.read_text()
    assert "old" not in page.read_text() and page.read_text().endswith("<!-- end study -->\nafter\n")
    assert "| S      | multi" in whole.read_text() and "**Scaling laws**" in whole.read_text()
    assert exit_code(main, tmp_path) == 2
    assert capsys.readouterr().err.startswith("fvlm study-report: ")


def test_samples_are_taken_and_a_readable_table_has_its_intervals_in_one_cell(tmp_path):
    table = planted_table(sizes=("S",), seeds=(0, 1), steps=(100, 300, 1000))
    results = read_study_results(write_results(tmp_path, table, planted_samples(table)))
    shown = readable(analyse_study(results)["contrasts"])
    columns = "size, recipe, measure, step, training flops, num seeds, num lower, difference, resolved"
    assert [*shown] == columns.split(", ")
    assert shown["difference"].iloc[0] == "0.0000 [0.0000, 0.0000]" and shown["resolved"].iloc[0] == "no"
