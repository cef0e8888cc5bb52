"""The figures of a study, from planted tables: readable at a paper's width, whatever the study has and lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from planted_study import planted_table, write_results
from readable import check_texts

from fvlm_lib.batch.config import STUDY_FIGURES, STUDY_TABLES
from fvlm_lib.batch.study_config import read_study_file
from fvlm_lib.figures import paper, study_figures
from fvlm_lib.figures.study_figures import FIGURES, StudyTables, read_study_tables
from fvlm_lib.gap.study_analysis import TABLES, analyse_study
from fvlm_lib.gap.study_results import read_study_results

RECIPES = list(dict.fromkeys(run.recipe for run in read_study_file(ROOT / "config" / "study.yaml").runs.values()))


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def planted_tables(folder: Path, norms: bool = True, **planted: Any) -> StudyTables:
    """The tables of a study in which each recipe has a gap of its own, the larger the later."""
    shares = {recipe: 0.5**place for place, recipe in enumerate(planted.get("recipes", RECIPES))}
    luck = np.random.default_rng(0).normal(1, 0.1, 10)

    def gap(size: str, recipe: str, seed: int, step: int) -> float:
        return 0.1 * shares[recipe] * luck[seed] * (step / 100) ** 0.3

    def loss(size: str, recipe: str, seed: int, step: int) -> float:
        return 5 * luck[seed] * step**-0.2 + gap(size, recipe, seed, step)

    table = planted_table(**{"recipes": RECIPES, "seeds": (0, 1, 2), "gap": gap, "loss": loss, **planted})
    if norms:
        table["query_norm"] = 3 * (table["loss_autoregressive"] - table["loss_fine_1"]) ** 0.5
    results = read_study_results(write_results(folder / "study", table))
    for name, made in analyse_study(results).items():
        made.to_csv(folder / f"{name}.csv", index=False)
    return read_study_tables(folder)


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> StudyTables:
    """As many sizes, recipes and steps as config/study.yaml has."""
    return planted_tables(tmp_path_factory.mktemp("tables"))


def test_the_batch_promises_the_tables_and_figures_that_are_made():
    assert tuple(TABLES) == STUDY_TABLES and tuple(FIGURES) == STUDY_FIGURES
    assert {*study_figures.COLUMNS} <= {*TABLES}


@pytest.mark.parametrize(
    ("name", "style"), [*((name, "neurips") for name in FIGURES), ("compute", "icml"), ("passes", "icml")]
)
def test_every_text_can_be_read_at_the_width_of_a_paper(tables, name, style):
    venue = paper.VENUES[style]
    draw, width = FIGURES[name]
    with plt.rc_context(venue.rc_parameters()):
        figure, facts = draw(tables, venue.column if style == "icml" else venue.width(width))
        figure.canvas.draw()
        check_texts(figure, style, name)
    if name == "lengths":
        assert facts.n["training runs"] == 144 and facts.n["seeds of each size, recipe and length"] == "3"
    else:
        assert facts.n == {"training runs": 72, "checkpoints": 288, "evaluation samples": 40}
        assert facts.seeds == {"of training": "0, 1, 2"}
    assert all(Path(source).is_file() for source in facts.sources)


def test_panels_are_sizes_or_recipes_and_share_their_axes(tables):
    figure, facts = study_figures.compute(tables, 5.5)
    assert [*facts.panels.values()] == ["S (100k)", "M (200k)", "L (400k)"]
    assert len({ax.get_ylim() for ax in figure.axes}) == len({ax.get_xlim() for ax in figure.axes}) == 1
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == sorted([*RECIPES, "lowest for the compute"])
    _, facts = study_figures.passes_by_step(tables, 5.5)
    assert {*facts.panels.values()} == {*RECIPES} and "of L (400k)." in facts.caption


def test_of_one_seed_size_step_length_and_recipe_what_is_there_is_drawn(tmp_path):
    alone = {"seeds": (0,), "sizes": ("S",), "steps": (100,), "lengths": (8,), "recipes": ("rollout",)}
    few = planted_tables(tmp_path, norms=False, **alone)
    for name, (draw, _) in FIGURES.items():
        figure, facts = draw(few, 5.5)
        interval = "No intervals: single checkpoints." if name == "norms" else "No intervals: one training seed."
        assert facts.interval == interval
        said = [text.get_text() for ax in figure.axes for text in ax.texts]
        lacking = {"norms": ["no checkpoint has its norm measured"]}
        lacking |= dict.fromkeys(("contrasts", "equal_compute"), ["nothing is compared with plain"] * 2)
        assert said == lacking.get(name, []) and "nan" not in paper.caption_of(facts)


def test_a_recipe_without_a_gap_is_not_among_those_whose_gap_is_drawn_and_it_is_said(tmp_path):
    study = planted_tables(tmp_path, passes=lambda recipe: None if recipe == "rollout" else 1)
    looks = {}
    for name, drawn in (("gap_by_step", False), ("lengths", False), ("compute", True), ("passes", True)):
        figure, facts = FIGURES[name][0](study, 5.5)
        for container in figure.axes[0].containers:
            looks.setdefault(container.get_label(), set()).add(str(container.lines[0].get_color()))
        assert ("rollout" in [text.get_text() for text in figure.legends[0].get_texts()]) == drawn
        assert ("Of rollout there is no gap: sequential use" in facts.caption) == (not drawn)
    assert all(len(colours) == 1 for colours in looks.values())  # a recipe looks the same in all of them
    figure, facts = study_figures.contrasts(study, 5.5)
    assert "Of rollout there is no gap" in facts.caption


def test_of_sizes_and_recipes_with_one_length_none_is_drawn_beside_those_with_several(tmp_path):
    study = planted_tables(tmp_path, recipes=("plain", "multi", "b"))
    table = study.lengths
    few = table[(table["num_frames"] == 8) | ((table["size"] == "S") & (table["recipe"] != "b"))]
    few.to_csv(tmp_path / "lengths.csv", index=False)
    figure, facts = study_figures.lengths(read_study_tables(tmp_path), 5.5)
    drawn = [container.get_label() for container in figure.axes[0].containers]
    assert len(figure.axes) == 1 and drawn == ["plain", "multi"]
    assert "Language models: S (100k), with" in facts.caption
    assert facts.n["training runs"] == 2 * 2 * 3


def test_tables_that_are_missing_or_of_another_version_are_named(tables, tmp_path):
    with pytest.raises(ValueError, match=r"means\.csv is missing; `bash run\.sh` makes it"):
        read_study_tables(tmp_path)
    for name in study_figures.COLUMNS:
        pd.read_csv(tables.folder / f"{name}.csv").to_csv(tmp_path / f"{name}.csv", index=False)
    pd.read_csv(tmp_path / "passes.csv").drop(columns="gap").to_csv(tmp_path / "passes.csv", index=False)
    with pytest.raises(ValueError, match=r"passes\.csv lacks gap, so it is of another version"):
        read_study_tables(tmp_path)
