"""The paper's figures and tables, made from results/ alone, each with the facts that its caption needs.

One function a figure or table: what it reads, how its panels are laid out. How a plot is drawn is in `plots.py`,
what a venue asks in `paper.py`; nothing is measured here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fvlm_lib import plots
from fvlm_lib.batch import PAPER_FIGURES, PAPER_TABLES, paper_names, read_gap_result
from fvlm_lib.changes import ChangeMaps
from fvlm_lib.paper import Facts, Venue, label_panels, legend_below
from fvlm_lib.report import ESTIMATES, GOOD_R2, drawn_fits, read_fits, readable_table
from fvlm_lib.stream_bench import bootstrap_policies

SAMPLES_INTERVAL = "95% intervals, paired bootstrap over evaluation samples; another training seed may do otherwise."
MIN_PANEL = 1.6  # inches
MAKE = "`bash run.sh` makes it"
LOSSES = {"loss_training_fine": "training loss", "loss_inference_fine": "inference loss"}


@dataclass(frozen=True)
class Selection:
    """Which results are shown. results: the folder. None is all: runs of the gap table; checkpoints, for figures of
    single ones, the last of each run; sequences of results/changes, a figure each; towers of results/differential, a
    figure and a table each; recordings that their policies are compared on."""

    results: Path = Path("results")
    runs: Sequence[str] | None = None
    checkpoints: Sequence[str] | None = None
    sequences: Sequence[str] | None = None
    towers: Sequence[str] | None = None
    recordings: Sequence[str] | None = None


# ---- reading -----------------------------------------------------------------------------------------


def _check_columns(table: pd.DataFrame, path: Path, needed: Sequence[str]) -> pd.DataFrame:
    if missing := [name for name in needed if name not in table]:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}, so it is of another version; remove it and run `bash run.sh`"
        )
    return table


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"{path} is missing; {MAKE}")
    return path


def _chosen(wanted: Sequence[str] | None, known: Sequence[str], what: str, where: Path | str) -> list[str]:
    """The wanted names, or all; ValueError for one that is not known, or if there is none."""
    if unknown := [name for name in wanted or [] if name not in known]:
        raise ValueError(f"there is no {what} {unknown[0]!r} in {where}; known are {', '.join(known) or 'none'}")
    if not known:
        raise ValueError(f"{where} holds no {what}; {MAKE}")
    return list(known if wanted is None else wanted)


def read_gap_table(selection: Selection) -> pd.DataFrame:
    """The gap table of the selected runs, with steps and FLOPs known. Raises ValueError where it cannot be read."""
    path = _existing(selection.results / "gap_table.csv")
    estimates = [f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")]
    needed = ["id", "run", "step", "training_flops", *estimates, "verdict", "verdict_unit", "num_samples", "num_tokens"]
    table = _check_columns(pd.read_csv(path, dtype={"id": str, "run": str}), path, needed)
    runs = _chosen(selection.runs, sorted(table["run"].unique()), "run", path)
    table = table[table["run"].isin(runs)].reset_index(drop=True)
    if (unknown := table[["step", "training_flops"]].isna().any(axis=1)).any():
        raise ValueError(
            f"{path} does not tell step and training_flops of {table.loc[unknown, 'id'].iloc[0]}; give them in the "
            "config, as config/demo.yaml says, or choose other `runs`"
        )
    return table


def read_gaps(selection: Selection, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The gap results of checkpoints by id. Raises ValueError for one that is missing or of another version."""
    return {name: read_gap_result(_existing(path)) for name, path in zip(ids, _gap_files(selection, ids), strict=True)}


def _gap_files(selection: Selection, ids: Sequence[str]) -> list[Path]:
    return [selection.results / "gap" / f"{name}.json" for name in ids]


def _single_checkpoints(selection: Selection) -> pd.DataFrame:
    """Rows of the checkpoints that are shown by themselves, each with a `label`: its run, and its step where several
    of one run are shown."""
    table = read_gap_table(selection)
    if selection.checkpoints is None:
        rows = table.sort_values("step").groupby("run", as_index=False).tail(1).sort_values("run")
    else:
        ids = _chosen(selection.checkpoints, list(table["id"]), "checkpoint", selection.results / "gap_table.csv")
        rows = table.set_index("id", drop=False).loc[ids]
    several = rows["run"].duplicated(keep=False)
    steps = rows["run"] + ", step " + rows["step"].astype(int).map("{:,}".format)
    return rows.assign(label=rows["run"].where(~several, steps)).reset_index(drop=True)


def read_policies(selection: Selection, tower: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The benchmark's rows of the selected recordings on one tower, and the files that they are from."""
    folder = selection.results / "differential"
    known = sorted(path.stem.rpartition("--")[0] for path in folder.glob(f"*--{tower}.parquet"))
    recordings = _chosen(selection.recordings, known, "recording", f"{folder} of tower {tower}")
    paths = [folder / f"{name}--{tower}.parquet" for name in recordings]
    needed = ["sequence", "tower", "policy", "frame", "path", "ms", "ms_full", "error_mean", "error_max", "drift"]
    tables = [_check_columns(pd.read_parquet(path), path, needed) for path in paths]
    return pd.concat(tables, ignore_index=True), tuple(map(str, paths))


def _gap_facts(
    selection: Selection,
    rows: pd.DataFrame,
    caption: str,
    interval: str = SAMPLES_INTERVAL,
    panels: dict[str, str] | None = None,
    also: Sequence[Path] = (),
) -> Facts:
    """Facts of a figure or table of the gaps of these checkpoints; also: what it was made from besides them."""
    gaps = read_gaps(selection, list(rows["id"]))

    def one(values: Mapping[str, Any]) -> Any:
        """The value that all agree on, or all of them by id."""
        return values[next(iter(values))] if len({str(value) for value in values.values()}) == 1 else dict(values)

    seeds = {"training": {gap["training"].get("name", name): gap["training"].get("seed") for name, gap in gaps.items()}}
    return Facts(
        caption=caption,
        n={
            "checkpoints": len(rows),
            "evaluation samples": one({name: gap["num_samples"] for name, gap in gaps.items()}),
            "scored tokens": one({name: gap["num_tokens"] for name, gap in gaps.items()}),
        },
        seeds={
            "of training": one(seeds["training"]),
            "of the evaluation data": one({name: gap["parameters"]["data"].get("seed") for name, gap in gaps.items()}),
            "of the bootstrap": one({name: gap["parameters"]["seed"] for name, gap in gaps.items()}),
        },
        interval=interval,
        sources=tuple(map(str, [selection.results / "gap_table.csv", *also, *_gap_files(selection, list(gaps))])),
        panels=panels or {},
    )


# ---- figures -----------------------------------------------------------------------------------------


def _panels(width: float, count: int, share: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of `width` inches with `count` panels, as many a row as are wide enough to read. share: both axes."""
    rows = math.ceil(count / max(1, int(width / MIN_PANEL)))
    columns = math.ceil(count / rows)
    panel = min(2.1, 0.85 * width / columns) if columns > 1 else min(2.3, 0.62 * width)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, rows * panel), layout="constrained", squeeze=False, sharex=share,
        sharey=share,
    )  # fmt: skip
    for unused in axes.flat[count:]:
        unused.remove()
    return figure, list(axes.flat[:count])


def _label_outer(axes: Sequence[Axes]) -> None:
    """Of panels that share their axes, name those at the left and those with no panel below. Unlike matplotlib's
    own `label_outer` this knows of a last row that is not full."""
    for place, ax in enumerate(axes):
        columns = ax.get_gridspec().ncols  # type: ignore[union-attr]
        below, left = place + columns >= len(axes), place % columns == 0
        ax.tick_params(which="both", labelbottom=below, labelleft=left)
        ax.set_xlabel(ax.get_xlabel() if below else "")
        ax.set_ylabel(ax.get_ylabel() if left else "")


def gap_training(selection: Selection, width: float) -> tuple[Figure, Facts]:
    """The gap against training steps and FLOPs, a line a run."""
    table = read_gap_table(selection)
    figure, axes = _panels(width, 2)
    for ax, x in zip(axes, plots.AXES, strict=True):
        plots.plot_gap(ax, table, x)
    panels = label_panels(axes, ["", ""])
    legend_below(figure, axes)
    caption = "Train/inference gap (autoregressive minus training loss, nats a token) over training."
    told = {letter: f"against {name}" for letter, name in zip(panels, plots.AXES.values(), strict=True)}
    return figure, _gap_facts(selection, table, caption, panels=told)


def gap_passes(selection: Selection, width: float) -> tuple[Figure, Facts]:
    """The gap that is left after each number of fine passes, a line a checkpoint."""
    rows = _single_checkpoints(selection)
    gaps = read_gaps(selection, list(rows["id"]))
    points = [
        {"run": row["run"], "label": row["label"], "passes": int(mode.removeprefix("fine_")), **left}
        for _, row in rows.iterrows()
        for mode, left in gaps[row["id"]]["gap_to_passes"].items()
    ]
    figure, axes = _panels(width, 1)
    plots.plot_gap_passes(axes[0], pd.DataFrame(points), plots.series_styles(read_gap_table(selection)["run"]))
    legend_below(figure, axes)
    caption = "Autoregressive loss minus the loss after so many fine passes, nats a token, of " + _steps(rows)
    return figure, _gap_facts(selection, rows, caption)


def mode_losses(selection: Selection, width: float) -> tuple[Figure, Facts]:
    """Loss of every forward mode, a panel a checkpoint."""
    rows = _single_checkpoints(selection)
    gaps = read_gaps(selection, list(rows["id"]))
    figure, axes = _panels(width, len(rows), share=True)
    lines = max(len(gaps[name]["losses"]) for name in rows["id"])
    figure.set_figheight(axes[0].get_gridspec().nrows * (0.17 * lines + 0.55))  # type: ignore[union-attr]
    for ax, name in zip(axes, rows["id"], strict=True):
        plots.plot_mode_losses(ax, gaps[name]["losses"], log=True)
    _label_outer(axes)
    panels = label_panels(axes, list(rows["label"]))
    return figure, _gap_facts(selection, rows, "Loss by forward mode of " + _steps(rows), panels=panels)


def position_losses(selection: Selection, width: float) -> tuple[Figure, Facts]:
    """Loss by caption position in the coarse, training and inference mode, a panel a checkpoint."""
    rows = _single_checkpoints(selection)
    gaps = read_gaps(selection, list(rows["id"]))
    figure, axes = _panels(width, len(rows), share=True)
    bottoms = []
    for ax, name in zip(axes, rows["id"], strict=True):
        training = f"fine_{gaps[name]['parameters']['num_fine'][0]}"
        table = pd.DataFrame(gaps[name]["by_position"])
        plots.plot_position_losses(ax, table, ["coarse", training, "autoregressive"], log=True)
        bottoms.append(ax.get_ylim()[0])
    axes[0].set_ylim(bottom=min(bottoms))
    _label_outer(axes)
    panels = label_panels(axes, list(rows["label"]))
    legend_below(figure, axes)
    interval = "95% intervals a position, normal: mean ± 1.96 standard errors over evaluation samples."
    caption = "Loss by caption position of " + _steps(rows)
    return figure, _gap_facts(selection, rows, caption, interval, panels)


def _steps(rows: pd.DataFrame) -> str:
    """Which checkpoints these are, in words, as the end of a sentence."""
    steps = sorted(set(rows["step"].astype(int)))
    runs = list(dict.fromkeys(rows["run"]))
    return f"{', '.join(runs)} after {', '.join(f'{step:,}' for step in steps)} training steps."


def scaling_laws(selection: Selection, width: float) -> tuple[Figure, Facts]:
    """Training and inference loss against steps and FLOPs on log axes, with the power laws that fit."""
    table = read_gap_table(selection)
    path = selection.results / "scaling_fits.json"
    fits = read_fits(path)
    figure, axes = _panels(width, 4)
    drawn = []
    places = [(x, loss) for x in plots.AXES for loss in LOSSES]
    low = table[[f"{loss}_low" for loss in LOSSES]].min().min()
    high = table[[f"{loss}_high" for loss in LOSSES]].max().max()
    for ax, (x, loss) in zip(axes, places, strict=True):
        shown = drawn_fits(fits.get(f"{loss} by {x}", []))
        plots.plot_loss_scaling(ax, table, x, loss, shown)
        ax.set_ylabel(f"{LOSSES[loss]},\nnats a token")
        ax.set_ylim(low / 1.5, high * 1.5)  # the same in all panels
        drawn += [f"{LOSSES[loss]} of {fit.group} by {plots.AXES[x]}, R² {fit.r2:.2f}" for fit in shown]
    letters = label_panels(axes, [""] * 4)
    legend_below(figure, axes)
    caption = f"Loss against training on log axes; dashed: a power law a·C^-b where its R² is at least {GOOD_R2:g} "
    caption += f"({'; '.join(drawn)})." if drawn else "(none)."
    told = [f"{LOSSES[loss]} against {plots.AXES[x]}" for x, loss in places]
    return figure, _gap_facts(selection, table, caption, panels=dict(zip(letters, told, strict=True)), also=[path])


def changes(selection: Selection, width: float, sequence: str) -> tuple[Figure, Facts]:
    """One frame's changed patches, how often each patch changes, and the changed share over time."""
    path = _existing(selection.results / "changes" / f"{sequence}.parquet")
    table = _check_columns(pd.read_parquet(path), path, ["frame", "path", "changed", "total"])
    maps = ChangeMaps.load(path.with_suffix(".npz"))
    frame = maps.screenshot
    wide = width >= 2 * MIN_PANEL + 1  # two pictures and a colour bar side by side
    mosaic: Any = [["frame", "often"], ["time", "time"]] if wide else [["frame"], ["often"], ["time"]]
    picture = width / len(mosaic[0]) * frame.shape[0] / frame.shape[1]
    heights = [0.9 * picture] * (len(mosaic) - 1) + [1.2]
    figure, axes = plt.subplot_mosaic(
        mosaic, figsize=(width, sum(heights) + 0.4), layout="constrained", height_ratios=heights
    )
    plots.plot_changed_patches(axes["frame"], frame, maps.masks[maps.frame], maps.patch_size)
    plots.plot_change_frequency(axes["often"], frame, maps.frequency())
    plots.plot_change_timeline(axes["time"], table)
    axes["time"].set_ylabel("changed share")
    ordered = [axes["frame"], axes["often"], axes["time"]]
    panels = label_panels(ordered, [""] * 3)
    told = [
        f"patches encoded anew at frame {maps.frame}, {int(maps.masks[maps.frame].sum())} of {maps.masks[0].size}",
        "share of the later frames in which a patch is encoded anew",
        "share of patches that changed, by frame, coloured by the path the encoder takes",
    ]
    legend_below(figure, ordered[2:])
    facts = Facts(
        caption=f"Changed patches of the recording {sequence}: patches of {maps.patch_size} pixels, threshold "
        f"{maps.threshold:g} on the {maps.metric} difference of a patch's pixels, compared with the pixels "
        f"{'its token was computed from' if maps.reference == 'encoded' else 'of the last frame'}.",
        n={"frames": len(table), "patches a frame": int(maps.masks[0].size)},
        seeds={},
        interval="No intervals: counts of one recording.",
        sources=(str(path), str(path.with_suffix(".npz"))),
        panels=dict(zip(panels, told, strict=True)),
    )
    return figure, facts


def policies(selection: Selection, width: float, tower: str) -> tuple[Figure, Facts]:
    """Speed-up against token error of every policy on one tower."""
    rows, sources = read_policies(selection, tower)
    figure, axes = _panels(width, 1)
    plots.plot_speed_error(axes[0], bootstrap_policies(rows))
    legend_below(figure, axes)
    caption = "Speed-up over full encodes of all frames after the first, against the mean relative L2 error of a token."
    return figure, _policy_facts(rows, sources, caption)


def _policy_facts(rows: pd.DataFrame, sources: tuple[str, ...], caption: str) -> Facts:
    later = rows[rows["frame"] > 0]
    recordings = later["sequence"].nunique()
    towers = ", ".join(later["tower"].unique())
    random = " Random weights: times are real, errors mean nothing." if "random:" in towers else ""
    return Facts(
        caption=f"{caption} Tower: {towers}.{random}",
        n={"recordings": recordings, "frames": len(later[["sequence", "frame"]].drop_duplicates())},
        seeds={"of the bootstrap": 0} if recordings > 1 else {},
        interval=(
            "95% intervals, bootstrap over whole recordings, which are few." if recordings > 1
            else "No intervals: one recording."
        ),
        sources=sources,
    )  # fmt: skip


FIGURES: dict[str, tuple[Callable[..., tuple[Figure, Facts]], str]] = {  # kind -> function, width it is made for
    "gap_training": (gap_training, "full"),
    "gap_passes": (gap_passes, "column"),
    "mode_losses": (mode_losses, "full"),
    "position_losses": (position_losses, "full"),
    "scaling_laws": (scaling_laws, "full"),
    "changes": (changes, "full"),
    "policies": (policies, "column"),
}


def _names(selection: Selection, known: Mapping[str, str | None], wanted: Sequence[str]) -> dict[str, Any]:
    """`paper_names`, with the sequences and towers that there are results of where the selection says None."""
    folders = {"sequences": selection.results / "changes", "towers": selection.results / "differential"}
    found = {
        "sequences": sorted(path.stem for path in folders["sequences"].glob("*.npz")),
        "towers": sorted({path.stem.rpartition("--")[2] for path in folders["towers"].glob("*--*.parquet")}),
    }
    used = {known.get(kind) for kind in wanted}
    ids = {
        which: _chosen(getattr(selection, which), found[which], which.removesuffix("s"), folders[which])
        for which in found
        if which in used
    }
    return paper_names(known, wanted, ids)


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
    for name, (kind, of) in _names(selection, PAPER_FIGURES, wanted).items():
        function, usual = FIGURES[kind]
        width = venue.width(widths.get(kind, usual))
        yield name, *function(selection, width, *([of] if of else []))


# ---- tables ------------------------------------------------------------------------------------------

Table = tuple[pd.DataFrame, pd.DataFrame, Facts]
"""Numbers, the same as people read them, and facts."""


def gap_table(selection: Selection) -> Table:
    """Losses and gap of every checkpoint."""
    table = read_gap_table(selection)
    caption = (
        "Training and inference loss and their difference, the gap, in nats a token and in % of the training loss."
    )
    return table, readable_table(table).drop(columns="coarse"), _gap_facts(selection, table, caption)


def scaling_fits(selection: Selection) -> Table:
    """The scaling fits: all laws as numbers, one row a parameter; to read, the power laws, one row a fit."""
    path = selection.results / "scaling_fits.json"
    table = read_gap_table(selection)
    runs = set(table["run"])
    numbers, readable = [], []
    for name, group in read_fits(path).items():
        loss, x = name.split(" by ")
        for fit in group:
            if fit.group not in {*runs, None}:
                continue
            about = {"loss": loss, "against": x, "run": fit.group or "all", "law": fit.form, "formula": fit.formula}
            quality = {"r2": fit.r2, "rmse": fit.rmse, "num_points": fit.num_points, "fitted": fit.fitted}
            for parameter, estimate in fit.parameters.items() or [(None, None)]:
                values = asdict(estimate) if estimate else {"value": np.nan, "low": np.nan, "high": np.nan}
                numbers.append({**about, "parameter": parameter, **values, **quality, "reason": fit.reason})
            if fit.form == "power":
                cells = {
                    key: f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]" for key, e in fit.parameters.items()
                } or {"a": "not fitted", "b": "-"}  # fmt: skip
                shown = {"loss": LOSSES[loss].split()[0], "against": plots.AXES[x], "run": fit.group, **cells}
                r2, rmse = ("-" if number is None else f"{number:.2f}" for number in (fit.r2, fit.rmse))
                readable.append({**shown, "R2": r2, "RMSE": rmse, "points": str(fit.num_points)})
    caption = (
        "Power laws L = a C^(-b) of the loss L (nats a token) against training C. R2 below 0: worse than a constant."
    )
    interval = "95% intervals from refits on resampled evaluation samples; checkpoints of one run share their training."
    facts = _gap_facts(selection, table, caption, interval, also=[path])
    return pd.DataFrame(numbers), pd.DataFrame(readable), facts


def policy_table(selection: Selection, tower: str) -> Table:
    """Speed and error of every policy on one tower."""
    rows, sources = read_policies(selection, tower)
    table = bootstrap_policies(rows)

    def cells(name: str, low: str, high: str, form: str) -> list[str]:
        intervals = [
            "" if pd.isna(row[low]) else f" [{row[low]:{form}}, {row[high]:{form}}]" for _, row in table.iterrows()
        ]
        return [f"{value:{form}}{interval}" for value, interval in zip(table[name], intervals, strict=True)]

    readable = pd.DataFrame(
        {
            "policy": table["policy"],
            "speed-up": cells("total_speedup", "total_speedup_low", "total_speedup_high", ".2f"),
            "median frame": cells("speedup", "speedup_q1", "speedup_q3", ".2f"),
            "mean error": cells("error_mean", "error_mean_low", "error_mean_high", ".4f"),
            "largest error": [f"{value:.2g}" for value in table["error_max"]],
            "drift": [f"{value:.3f}" for value in table["drift"]],
            "cached / partial / full": [
                f"{cached:.0%} / {partial:.0%} / {full:.0%}"
                for cached, partial, full in zip(
                    table["cached"], table["partial"] + table["skipped"], table["full"], strict=True
                )
            ],
        }
    )  # fmt: skip
    caption = (
        "Speed-up over full encodes of all frames after the first (brackets: interval), of the median frame (brackets: "
        "quartiles), relative L2 error of a token, drift (largest difference of a pixel from the one its token was "
        "computed from, as a fraction of the range), and the shares of frames by path; skipped counts as partial."
    )
    return table, readable, _policy_facts(rows, sources, caption)


TABLES: dict[str, Callable[..., Table]] = {
    "gap_table": gap_table,
    "scaling_fits": scaling_fits,
    "policies": policy_table,
}


def make_tables(selection: Selection, wanted: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame, Facts]]:
    """Name, numbers, readable table and facts of each wanted table, kinds of `TABLES`; policies are one a tower.

    Raises ValueError, naming what is wrong or missing and what makes it.
    """
    for name, (kind, of) in _names(selection, PAPER_TABLES, wanted).items():
        yield name, *TABLES[kind](selection, *([of] if of else []))
