"""The paper's figures, made from results/ alone, each with the facts that its caption needs.

One function a figure: what it reads, how its panels are laid out. How a plot is drawn is in `plots.py`,
what a venue asks in `paper.py`, what is read in `paper_results.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from fvlm_lib.batch.config import PAPER_FIGURES
from fvlm_lib.batch.folders import STUDY
from fvlm_lib.figures import plots, screen_plots, study_figures
from fvlm_lib.figures.names import describe_runs, explain_runs
from fvlm_lib.figures.paper import (
    MIN_PANEL,
    Facts,
    Venue,
    axis_note,
    label_outer,
    label_panels,
    lay_panels,
    legend_below,
)
from fvlm_lib.figures.paper_results import (
    Selection,
    check_columns,
    existing_file,
    gap_facts,
    policy_facts,
    read_gap_table,
    read_gaps,
    read_policies,
    selected_names,
    single_checkpoints,
)
from fvlm_lib.gap.fits import drawn_fits, read_fits
from fvlm_lib.gap.scaling import GOOD_R2
from fvlm_lib.screens.measure import bootstrap_policies
from fvlm_lib.stats import HEAVY_SHARE
from fvlm_lib.vision.changes import ChangeMaps

LOSSES = {"loss_training_fine": "training loss", "loss_inference_fine": "inference loss"}


def gap_training(selection: Selection, width: float) -> tuple[Figure, Facts]:
    """The gap against training steps and FLOPs, a line a recipe."""
    table = read_gap_table(selection)
    words, title = describe_runs(table, with_names=False)
    figure, axes = lay_panels(width, 2)
    for ax, x in zip(axes, plots.AXES, strict=True):
        plots.plot_gap(ax, table, x, words)
    scale = axis_note(axes)
    if axes[0].get_gridspec().ncols == 2:  # type: ignore[union-attr]
        axes[1].set_ylabel("")
    panels = label_panels(axes, ["", ""])
    legend_below(figure, axes, title)
    caption = "Train/inference gap (autoregressive minus training loss, nats a token) over training."
    caption = " ".join(filter(None, [caption, scale, explain_runs(table)]))
    if (table.groupby("group")["run"].nunique() > 1).any():
        caption += " Of several seeds: each (thin), their mean, and the band from the lowest to the highest."
    if table["doubtful"].str.contains("gap").any():
        caption += f" Hollow: ten samples carry over {HEAVY_SHARE:.0%} of it, so its interval may be too narrow."
    told = {letter: f"against {name}" for letter, name in zip(panels, plots.AXES.values(), strict=True)}
    return figure, gap_facts(selection, table, caption, panels=told)


def gap_passes(selection: Selection, width: float) -> tuple[Figure, Facts]:
    """The gap that is left after each number of fine passes, a line a checkpoint."""
    rows = single_checkpoints(selection)
    gaps = read_gaps(selection, list(rows["id"]))
    points = [
        {"run": row["run"], "label": row["label"], "passes": int(mode.removeprefix("fine_")), **left}
        for _, row in rows.iterrows()
        for mode, left in gaps[row["id"]]["gap_to_passes"].items()
    ]
    figure, axes = lay_panels(width, 1)
    table = read_gap_table(selection)
    plots.plot_gap_passes(axes[0], pd.DataFrame(points), plots.series_styles(table["run"], table["group"]))
    scale = axis_note(axes)
    legend_below(figure, axes, describe_runs(table)[1])
    caption = "Autoregressive loss minus the loss after so many fine passes, nats a token, of " + _steps(rows)
    caption = " ".join(filter(None, [caption, scale]))
    return figure, gap_facts(selection, rows, caption)


def mode_losses(selection: Selection, width: float) -> tuple[Figure, Facts]:
    """Loss of every forward mode, a panel a checkpoint."""
    rows = single_checkpoints(selection)
    gaps = read_gaps(selection, list(rows["id"]))
    figure, axes = lay_panels(width, len(rows), share=True)
    lines = max(len(gaps[name]["losses"]) for name in rows["id"])
    figure.set_figheight(axes[0].get_gridspec().nrows * (0.17 * lines + 0.55))  # type: ignore[union-attr]
    for ax, name in zip(axes, rows["id"], strict=True):
        plots.plot_mode_losses(ax, gaps[name]["losses"], log=True)
    label_outer(axes)
    panels = label_panels(axes, list(rows["label"]))
    return figure, gap_facts(selection, rows, "Loss by forward mode of " + _steps(rows), panels=panels)


def position_losses(selection: Selection, width: float) -> tuple[Figure, Facts]:
    """Loss by caption position in the coarse, training and inference mode, a panel a checkpoint."""
    rows = single_checkpoints(selection)
    gaps = read_gaps(selection, list(rows["id"]))
    figure, axes = lay_panels(width, len(rows), share=True)
    bottoms = []
    for ax, name in zip(axes, rows["id"], strict=True):
        training = f"fine_{gaps[name]['parameters']['num_fine'][0]}"
        table = pd.DataFrame(gaps[name]["by_position"])
        plots.plot_position_losses(ax, table, ["coarse", training, "autoregressive"], log=True)
        bottoms.append(ax.get_ylim()[0])
    axes[0].set_ylim(bottom=min(bottoms))
    label_outer(axes)
    panels = label_panels(axes, list(rows["label"]))
    legend_below(figure, axes)
    interval = "95% intervals a position, normal: mean ± 1.96 standard errors over evaluation samples."
    caption = "Loss by caption position of " + _steps(rows)
    return figure, gap_facts(selection, rows, caption, interval, panels)


def _steps(rows: pd.DataFrame) -> str:
    """Which checkpoints these are, as the end of a sentence, and what their words mean."""
    steps = sorted(set(rows["step"].astype(int)))
    runs = list(dict.fromkeys(rows["run"]))
    told = f"{', '.join(runs)} after {', '.join(f'{step:,}' for step in steps)} training steps."
    return " ".join(filter(None, [told, explain_runs(rows)]))


def scaling_laws(selection: Selection, width: float) -> tuple[Figure, Facts]:
    """Training and inference loss against steps and FLOPs on log axes, with the power laws that fit."""
    table = read_gap_table(selection)
    path = selection.results / "scaling_fits.json"
    fits = read_fits(path)
    words, title = describe_runs(table, with_names=False)
    figure, axes = lay_panels(width, 4, most=2)
    drawn = []
    places = [(x, loss) for x in plots.AXES for loss in LOSSES]
    low = table[[f"{loss}_low" for loss in LOSSES]].min().min()
    high = table[[f"{loss}_high" for loss in LOSSES]].max().max()
    for ax, (x, loss) in zip(axes, places, strict=True):
        shown = drawn_fits(fits.get(f"{loss} by {x}", []))
        plots.plot_loss_scaling(ax, table, x, loss, shown, words)
        ax.set_ylabel(f"{LOSSES[loss]},\nnats a token")
        ax.set_ylim(low / 1.5, high * 1.5)  # the same in all panels
        drawn += [f"{LOSSES[loss]} of {fit.group} by {plots.AXES[x]}, R² of log loss {fit.r2_log:.2f}" for fit in shown]
    letters = label_panels(axes, [""] * 4)
    legend_below(figure, axes, title)
    caption = "Loss against training on log axes"
    criterion = f"its R² of log loss is at least {GOOD_R2:g} and the points determine b"
    caption += (
        f"; dashed: a power law a·C^-b where {criterion} ({'; '.join(drawn)})."
        if drawn
        else (f". No power law a·C^-b is drawn: of none {criterion}.")
    )
    caption = " ".join(filter(None, [caption, explain_runs(table)]))
    told = [f"{LOSSES[loss]} against {plots.AXES[x]}" for x, loss in places]
    return figure, gap_facts(selection, table, caption, panels=dict(zip(letters, told, strict=True)), also=[path])


def changes(selection: Selection, width: float, sequence: str) -> tuple[Figure, Facts]:
    """One frame's changed patches, how often each patch changes, and the changed share over time."""
    path = existing_file(selection.results / "changes" / f"{sequence}.parquet")
    table = check_columns(pd.read_parquet(path), path, ["frame", "path", "changed", "total"])
    maps = ChangeMaps.load(path.with_suffix(".npz"))
    frame = maps.screenshot
    wide = width >= 2 * MIN_PANEL + 1  # two pictures and a colour bar side by side
    mosaic: Any = [["frame", "often"], ["time", "time"]] if wide else [["frame"], ["often"], ["time"]]
    picture = width / len(mosaic[0]) * frame.shape[0] / frame.shape[1]
    heights = [0.9 * picture] * (len(mosaic) - 1) + [1.2]
    figure, axes = plt.subplot_mosaic(
        mosaic, figsize=(width, sum(heights) + 0.4), layout="constrained", height_ratios=heights
    )
    screen_plots.plot_changed_patches(axes["frame"], frame, maps.changed[maps.frame], maps.patch_size)
    screen_plots.plot_change_frequency(axes["often"], frame, maps.frequency())
    screen_plots.plot_change_timeline(axes["time"], table)
    axes["time"].set_ylabel("changed")
    ordered = [axes["frame"], axes["often"], axes["time"]]
    panels = label_panels(ordered, [""] * 3)
    told = [
        f"patches that changed at frame {maps.frame}, {int(maps.changed[maps.frame].sum())} of {maps.changed[0].size}",
        "share of the frames after the first in which a patch changed",
        "share of patches that changed, by frame, coloured by what the encoder does; the first frame is compared with "
        "nothing",
    ]
    legend_below(figure, ordered[2:])
    facts = Facts(
        caption=f"Changed patches of the recording {sequence}: patches of {maps.patch_size} pixels, threshold "
        f"{maps.threshold:g} on the {maps.metric} difference of a patch's pixels, compared with the pixels "
        f"{'its token was computed from' if maps.reference == 'encoded' else 'of the last frame'}.",
        n={"frames": len(table), "patches a frame": int(maps.changed[0].size)},
        seeds={},
        interval="No intervals: counts of one recording.",
        sources=(str(path), str(path.with_suffix(".npz"))),
        panels=dict(zip(panels, told, strict=True)),
    )
    return figure, facts


def policies(selection: Selection, width: float, tower: str) -> tuple[Figure, Facts]:
    """Speed-up against token error of every policy on one tower."""
    rows, sources = read_policies(selection, tower)
    figure, axes = lay_panels(width, 1)
    screen_plots.plot_speed_error(axes[0], bootstrap_policies(rows))
    legend_below(figure, axes)
    caption = (
        "Speed-up over full encodes of all frames after the first, against the mean relative L2 error of a token. "
        "Whole frames, exact match: tokens are kept while no pixel changes. Small changes skipped: published "
        "pseudocode, which keeps them while few patches differ from the last frame. Changed patches alone: only their "
        "tokens are computed anew. Gated at a tolerance: those too that are moved by more than it."
    )
    return figure, policy_facts(rows, sources, caption)


def study_compute(selection: Selection, width: float) -> tuple[Figure, Facts]:
    """Inference loss against training FLOPs by recipe, of a study."""
    return study_figures.compute(study_figures.read_study_tables(selection.results / STUDY), width)


def study_passes(selection: Selection, width: float) -> tuple[Figure, Facts]:
    """gap(K) by recipe, of a study."""
    return study_figures.passes(study_figures.read_study_tables(selection.results / STUDY), width)


FIGURES: dict[str, tuple[Callable[..., tuple[Figure, Facts]], str]] = {  # kind -> function, width it is made for
    "gap_training": (gap_training, "full"),
    "gap_passes": (gap_passes, "column"),
    "mode_losses": (mode_losses, "full"),
    "position_losses": (position_losses, "full"),
    "scaling_laws": (scaling_laws, "full"),
    "changes": (changes, "full"),
    "policies": (policies, "column"),
    "study_compute": (study_compute, "full"),
    "study_passes": (study_passes, "full"),
}


def draw_figures(
    selection: Selection, wanted: Sequence[str], venue: Venue, widths: Mapping[str, str | float] | None = None
) -> Iterator[tuple[str, Figure, Facts]]:
    """Name, figure and facts of each wanted figure, kinds of `FIGURES`; changes are one a sequence, policies a tower.

    widths: kind -> "column", "full" or inches, where not as in `FIGURES`. To be called, and the figures saved, with
    the venue's `rc_parameters`. Raises ValueError, naming what is wrong or missing and what makes it.
    """
    widths = widths or {}
    if unknown := sorted(set(widths) - set(FIGURES)):
        raise ValueError(f"widths names {unknown[0]!r}; the figures are {', '.join(FIGURES)}")
    for name, (kind, of) in selected_names(selection, PAPER_FIGURES, wanted).items():
        function, usual = FIGURES[kind]
        width = venue.width(widths.get(kind, usual))
        yield name, *function(selection, width, *([of] if of else []))
