"""The figures of a study, made from the tables that `notebooks/close_the_gap.ipynb` writes, each with the facts of its
caption.

One function a figure: how its panels are laid out and what a reader must be told. How a plot is drawn is in
`study_plots.py`, what a venue asks in `paper.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fvlm_lib.figures import study_plots
from fvlm_lib.figures.paper import Facts, axis_note, label_outer, label_panels, lay_panels, legend_below
from fvlm_lib.figures.paper_results import check_columns, existing_file

_CELL = ("size", "recipe", "step")
_CONTRAST = ("size", "recipe", "measure", "difference", "low", "high", "resolved")
_LOSS = ("loss_inference", "loss_inference_low", "loss_inference_high")
_GAP = ("gap", "gap_low", "gap_high")
COLUMNS = {  # table -> the columns that figures need of it
    "means": (*_CELL, "num_seeds", "num_text_parameters", "training_flops", "on_frontier", *_LOSS, *_GAP),
    "contrasts": _CONTRAST,
    "equal_compute": _CONTRAST,
    "passes": (*_CELL, "passes", *_GAP),
    "lengths": ("size", "recipe", "num_frames", "num_seeds", *_GAP),
    "norms": (*_CELL, "seed", "query_norm", "gap"),
    "checkpoints": (*_CELL, "seed", "num_samples"),
}

_PASSES = "numbers of passes whose samples were not shipped"
_HOLLOW = "By language model, with its parameters. Hollow: the interval is not off 0."


@dataclass(frozen=True)
class StudyTables:
    """The tables of a study's analysis by name, and the folder that they are from.

    means: a row a (size, recipe, step), over seeds. contrasts and equal_compute: with plain training, after equal steps
    and for equal FLOPs. passes and lengths: by fine passes and by frames. norms: of checkpoints whose Jacobian was
    measured. checkpoints: a row a (size, recipe, step, seed).
    """

    folder: Path
    means: pd.DataFrame
    contrasts: pd.DataFrame
    equal_compute: pd.DataFrame
    passes: pd.DataFrame
    lengths: pd.DataFrame
    norms: pd.DataFrame
    checkpoints: pd.DataFrame

    @cached_property
    def sizes(self) -> dict[str, str]:
        """With their labels, the smallest first."""
        return study_plots.size_labels(self.means)

    @property
    def last_step(self) -> int:
        return int(self.means["step"].max())

    @property
    def without_gap(self) -> str:
        """Which recipes have no gap, in a sentence."""
        gaps = self.means.groupby("recipe", sort=False)["gap"].count()
        names = ", ".join(gaps.index[gaps == 0])
        return f"Of {names} there is no gap: sequential use is what it trains." if names else ""

    def over_seeds(self, what: str) -> str:
        """That intervals of some rows do not redraw the videos; nothing where there are no intervals."""
        return "" if self.checkpoints["seed"].nunique() == 1 else f"Of {what} they are over seeds alone."

    def facts(self, caption: str, table: str, panels: dict[str, str] | None = None, interval: str = "") -> Facts:
        """Facts of a figure of one of the tables. interval: what is to be said of it besides."""
        seeds = sorted(self.checkpoints["seed"].unique())
        intervals = "95% intervals over training seeds and evaluation samples (Student's t over seeds)."
        if len(seeds) == 1:
            intervals = "No intervals: one training seed."
        elif (self.means["num_seeds"] == 1).any():
            intervals += " Without a bar: one seed."
        return Facts(
            caption=caption,
            n={
                "training runs": len(self.checkpoints[["size", "recipe", "seed"]].drop_duplicates()),
                "checkpoints": len(self.checkpoints),
                "evaluation samples": int(self.checkpoints["num_samples"].max()),
            },
            seeds={"of training": ", ".join(map(str, seeds))},
            interval=" ".join(filter(None, [intervals, interval])),
            sources=tuple(str(self.folder / f"{name}.csv") for name in dict.fromkeys([table, "means", "checkpoints"])),
            panels=panels or {},
        )


def read_study_tables(folder: str | Path) -> StudyTables:
    """The tables in a folder. Raises ValueError where one is missing or of another version."""
    folder = Path(folder)
    tables, names = {}, {"size": str, "recipe": str}  # a size may be called NA
    for name, columns in COLUMNS.items():
        path = existing_file(folder / f"{name}.csv")
        tables[name] = check_columns(
            pd.read_csv(path, dtype=names, keep_default_na=False, na_values=[""]), path, columns
        )
    return StudyTables(folder, **tables)


# ---- the figures ---------------------------------------------------------------------------------------


def compute(study: StudyTables, width: float) -> tuple[Figure, Facts]:
    """Inference loss against training FLOPs by recipe, a panel a size."""
    figure, axes = lay_panels(width, len(study.sizes), share=True)
    for ax, size in zip(axes, study.sizes, strict=True):
        study_plots.plot_compute(ax, study.means, size)
    panels = _finish(figure, axes, list(study.sizes.values()))
    caption = (
        "Inference loss (autoregressive, nats a token) against training FLOPs, a line a recipe of training, a point a "
        f"checkpoint. {_sizes(study.sizes)} Filled: no checkpoint of any size has a lower mean for at most that "
        "compute; the grey line is theirs. Dots: the other sizes."
    )
    return figure, study.facts(caption, "means", panels)


def passes(study: StudyTables, width: float) -> tuple[Figure, Facts]:
    """gap(K) of the last checkpoints by recipe, a panel a size."""
    table = study.passes[study.passes["step"] == study.last_step]
    figure, panels, scale = _gap_panels(width, study.sizes, lambda ax, size: study_plots.plot_passes(ax, table, size))
    caption = (
        f"gap(K), inference loss minus the loss after K fine passes, nats a token, after {study.last_step:,} training "
        f"steps. {_sizes(study.sizes)}"
    )
    return figure, study.facts(" ".join(filter(None, [caption, scale])), "passes", panels, study.over_seeds(_PASSES))


def passes_by_step(study: StudyTables, width: float) -> tuple[Figure, Facts]:
    """gap(K) of the largest size over training, a panel a recipe."""
    size, label = list(study.sizes.items())[-1]
    table = study.passes[study.passes["size"] == size]
    recipes = {name: name for name in study_plots.recipe_styles(table["recipe"])}
    figure, panels, scale = _gap_panels(
        width, recipes, lambda ax, recipe: study_plots.plot_passes_by_step(ax, table, recipe)
    )
    caption = f"gap(K), inference loss minus the loss after K fine passes, nats a token, over training, of {label}."
    return figure, study.facts(" ".join(filter(None, [caption, scale])), "passes", panels, study.over_seeds(_PASSES))


def gap_by_step(study: StudyTables, width: float) -> tuple[Figure, Facts]:
    """The gap over training by recipe, a panel a size."""
    figure, panels, scale = _gap_panels(
        width, study.sizes, lambda ax, size: study_plots.plot_gap_by_step(ax, study.means, size)
    )
    caption = (
        "Gap, inference loss minus that of the number of fine passes that the recipe trains last, nats a token, over "
        f"training. {_sizes(study.sizes)} Points of one step stand beside each other."
    )
    return figure, study.facts(" ".join(filter(None, [caption, study.without_gap, scale])), "means", panels)


def contrasts(study: StudyTables, width: float) -> tuple[Figure, Facts]:
    """By how much inference loss and gap of a recipe exceed those of plain training, after equal steps."""
    caption = f"minus those of plain training after {study.last_step:,} training steps, nats a token, paired by seed."
    return _contrasts(study, "contrasts", study.contrasts, caption, width)


def equal_compute(study: StudyTables, width: float) -> tuple[Figure, Facts]:
    """The same for equal training FLOPs."""
    caption = (
        "minus those of plain training for equal training FLOPs, at which the first of the two ends, nats a token, "
        "paired by seed; the other is read between its checkpoints."
    )
    return _contrasts(study, "equal_compute", study.equal_compute, caption, width)


def _contrasts(study: StudyTables, name: str, table: pd.DataFrame, caption: str, width: float) -> tuple[Figure, Facts]:
    """A panel of inference loss and one of the gap. name: of the table; caption: how a recipe is compared."""
    side_by_side = width >= 4.5  # the recipes' names take an inch of it
    figure, axes = lay_panels(width, 2, most=2 if side_by_side else 1)
    rows = max(1, table["recipe"].nunique())
    figure.set_figheight((1 if side_by_side else 2) * (0.26 * rows + 0.9))
    for ax, measure in zip(axes, study_plots.MEASURES, strict=True):
        study_plots.plot_contrasts(ax, table, measure, study.sizes)
    if side_by_side:
        axes[1].tick_params(axis="y", labelleft=False)
    panels = label_panels(axes, list(study_plots.MEASURES.values()))
    legend_below(figure, axes)
    caption = f"Inference loss and gap of each recipe {caption} {_HOLLOW} {study.without_gap}".strip()
    return figure, study.facts(caption, name, panels)


def lengths(study: StudyTables, width: float) -> tuple[Figure, Facts]:
    """The gap by number of frames and recipe, a panel a size; of those alone that have several lengths, if any has."""
    table = study.lengths.copy()
    several = table.groupby(["size", "recipe"])["num_frames"].transform("nunique") > 1
    if several.any():
        table.loc[~several, [*_GAP]] = float("nan")  # and not dropped: recipes look as in the other figures
    shown = {*table.loc[several, "size"]} or {*study.sizes}
    sizes = {size: label for size, label in study.sizes.items() if size in shown}
    figure, panels, scale = _gap_panels(width, sizes, lambda ax, size: study_plots.plot_lengths(ax, table, size))
    caption = (
        "Gap, inference loss minus that of the number of fine passes that the recipe trains last, nats a token, by the "
        f"number of frames of a video, in training and evaluation, after {study.last_step:,} training steps, over the "
        f"seeds that all lengths have. {_sizes(sizes)} Points of one length stand beside each other."
    )
    caption = " ".join(filter(None, [caption, study.without_gap, scale]))
    facts = study.facts(caption, "lengths", panels, study.over_seeds("other lengths than the study's own"))
    num_seeds = table.loc[table["gap"].notna(), "num_seeds"]  # of other trainings than the other figures have
    counts = {
        "training runs": int(num_seeds.sum()),
        "seeds of each size, recipe and length": " or ".join(map(str, sorted({*num_seeds}))),
        "evaluation samples": facts.n["evaluation samples"],
    }
    return figure, replace(facts, n=counts, seeds={})


def norms(study: StudyTables, width: float) -> tuple[Figure, Facts]:
    """The gap of every checkpoint against the norm of its query recurrence's Jacobian."""
    figure, axes = lay_panels(width, 1)
    study_plots.plot_norms(axes[0], study.norms, study.sizes)
    legend_below(figure, axes)
    caption = (
        "|Gap|, nats a token, against the mean norm of the Jacobian of a query by the query one frame before, a point "
        f"a checkpoint of every recipe and seed. {_sizes(study.sizes)}"
    )
    return figure, replace(study.facts(caption, "norms"), interval="No intervals: single checkpoints.")


FIGURES: dict[str, tuple[Callable[[StudyTables, float], tuple[Figure, Facts]], str]] = {  # name -> function, width
    "compute": (compute, "full"),
    "gap_by_step": (gap_by_step, "full"),
    "passes": (passes, "full"),
    "passes_by_step": (passes_by_step, "full"),
    "contrasts": (contrasts, "full"),
    "equal_compute": (equal_compute, "full"),
    "lengths": (lengths, "full"),
    "norms": (norms, "column"),
}


def _gap_panels(
    width: float, names: Mapping[str, str], draw: Callable[[Axes, str], object]
) -> tuple[Figure, dict[str, str], str]:
    """A panel of gaps for each of the names, which have labels; the figure, letter -> label, and what the caption says
    of the axis of the gap."""
    figure, axes = lay_panels(width, len(names), share=True)
    for ax, name in zip(axes, names, strict=True):
        draw(ax, name)
    scale = axis_note(axes)
    return figure, _finish(figure, axes, list(names.values())), scale


def _finish(figure: Figure, axes: Sequence[Axes], names: Sequence[str]) -> dict[str, str]:
    """Labels at the outside alone, letters and names over the panels, one legend of all."""
    label_outer(axes)
    panels = label_panels(axes, names)
    legend_below(figure, axes)
    return panels


def _sizes(labels: Mapping[str, str]) -> str:
    """What the sizes of a figure are, as a caption's sentence."""
    return f"Language models: {', '.join(labels.values())}, with their parameters."
