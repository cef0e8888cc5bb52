"""What the paper's figures and tables read: results of the batch, checked, and the facts that their captions need.

Figures are in `paper_figures.py`, tables in `paper_tables.py`, what a venue asks is in `paper.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fvlm_lib.batch.config import paper_names
from fvlm_lib.figures.names import describe_runs
from fvlm_lib.figures.paper import Facts
from fvlm_lib.gap.report import ESTIMATES
from fvlm_lib.gap.results import read_gap_result

SAMPLES_INTERVAL = "95% intervals, paired bootstrap over evaluation samples; another training seed may do otherwise."
MAKE = "`bash run.sh` makes it"


@dataclass(frozen=True)
class Selection:
    """Which results are shown. results: the folder. None is all: runs of the gap table, by name or group;
    checkpoints, for figures of single ones, the last of each run; sequences of results/changes, a figure each; towers
    of results/differential, a figure and a table each; recordings that their policies are compared on."""

    results: Path = Path("results")
    runs: Sequence[str] | None = None
    checkpoints: Sequence[str] | None = None
    sequences: Sequence[str] | None = None
    towers: Sequence[str] | None = None
    recordings: Sequence[str] | None = None


# ---- reading -----------------------------------------------------------------------------------------


def check_columns(table: pd.DataFrame, path: Path, needed: Sequence[str]) -> pd.DataFrame:
    if missing := [name for name in needed if name not in table]:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}, so it is of another version; remove it and run `bash run.sh`"
        )
    return table


def existing_file(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"{path} is missing; {MAKE}")
    return path


def chosen(wanted: Sequence[str] | None, known: Sequence[str], what: str, where: Path | str) -> list[str]:
    """The wanted names, or all; ValueError for one that is not known, or if there is none."""
    if unknown := [name for name in wanted or [] if name not in known]:
        raise ValueError(f"there is no {what} {unknown[0]!r} in {where}; known are {', '.join(known) or 'none'}")
    if not known:
        raise ValueError(f"{where} holds no {what}; {MAKE}")
    return list(known if wanted is None else wanted)


def read_gap_table(selection: Selection) -> pd.DataFrame:
    """The gap table of the selected runs, with steps and FLOPs known. Raises ValueError where it cannot be read."""
    path = existing_file(selection.results / "gap_table.csv")
    estimates = [f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")]
    needed = ["id", "run", "group", "seed", "step", "training_flops", *estimates, "verdict", "verdict_unit"]
    needed += ["num_samples", "num_tokens", "doubtful"]
    table = check_columns(pd.read_csv(path, dtype={"id": str, "run": str, "group": str}), path, needed)
    table = table.fillna({"doubtful": ""})
    runs = chosen(selection.runs, sorted({*table["run"], *table["group"]}), "run", path)
    table = table[table["run"].isin(runs) | table["group"].isin(runs)].reset_index(drop=True)
    if (unknown := table[["step", "training_flops"]].isna().any(axis=1)).any():
        raise ValueError(
            f"{path} does not tell step and training_flops of {table.loc[unknown, 'id'].iloc[0]}; give them in the "
            "config, as config/demo.yaml says, or choose other `runs`"
        )
    return table


def read_gaps(selection: Selection, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The gap results of checkpoints by id. Raises ValueError for one that is missing or of another version."""
    return {
        name: read_gap_result(existing_file(path)) for name, path in zip(ids, gap_files(selection, ids), strict=True)
    }


def gap_files(selection: Selection, ids: Sequence[str]) -> list[Path]:
    return [selection.results / "gap" / f"{name}.json" for name in ids]


def single_checkpoints(selection: Selection) -> pd.DataFrame:
    """Rows of the checkpoints that are shown by themselves, each with a `label`: its run in words, and its step where
    several of one run are shown."""
    table = read_gap_table(selection)
    if selection.checkpoints is None:
        rows = table.sort_values("step").groupby("run", as_index=False).tail(1).sort_values("run")
    else:
        ids = chosen(selection.checkpoints, list(table["id"]), "checkpoint", selection.results / "gap_table.csv")
        rows = table.set_index("id", drop=False).loc[ids]
    several = rows["run"].duplicated(keep=False)
    words = rows["run"].map(describe_runs(table, with_names=False)[0])
    steps = words + ", step " + rows["step"].astype(int).map("{:,}".format)
    return rows.assign(label=words.where(~several, steps)).reset_index(drop=True)


def read_policies(selection: Selection, tower: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The benchmark's rows of the selected recordings on one tower, and the files that they are from."""
    folder = selection.results / "differential"
    known = sorted(path.stem.rpartition("--")[0] for path in folder.glob(f"*--{tower}.parquet"))
    recordings = chosen(selection.recordings, known, "recording", f"{folder} of tower {tower}")
    paths = [folder / f"{name}--{tower}.parquet" for name in recordings]
    needed = ["sequence", "tower", "policy", "frame", "path", "ms", "ms_full", "error_mean", "error_max", "drift"]
    tables = [check_columns(pd.read_parquet(path), path, needed) for path in paths]
    return pd.concat(tables, ignore_index=True), tuple(map(str, paths))


def gap_facts(
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

    seeds = {run: gaps[name]["training"].get("seed") for name, run in zip(rows["id"], rows["run"], strict=True)}
    return Facts(
        caption=caption,
        n={
            "checkpoints": len(rows),
            "evaluation samples": one({name: gap["num_samples"] for name, gap in gaps.items()}),
            "scored tokens": one({name: gap["num_tokens"] for name, gap in gaps.items()}),
        },
        seeds={
            "of training": one(seeds),
            "of the evaluation data": one({name: gap["parameters"]["data"].get("seed") for name, gap in gaps.items()}),
            "of the bootstrap": one({name: gap["parameters"]["seed"] for name, gap in gaps.items()}),
        },
        interval=interval,
        sources=tuple(map(str, [selection.results / "gap_table.csv", *also, *gap_files(selection, list(gaps))])),
        panels=panels or {},
    )


def policy_facts(rows: pd.DataFrame, sources: tuple[str, ...], caption: str) -> Facts:
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


def selected_names(selection: Selection, known: Mapping[str, str | None], wanted: Sequence[str]) -> dict[str, Any]:
    """`paper_names`, with the sequences and towers that there are results of where the selection says None."""
    folders = {"sequences": selection.results / "changes", "towers": selection.results / "differential"}
    found = {
        "sequences": sorted(path.stem for path in folders["sequences"].glob("*.npz")),
        "towers": sorted({path.stem.rpartition("--")[2] for path in folders["towers"].glob("*--*.parquet")}),
    }
    used = {known.get(kind) for kind in wanted}
    ids = {
        which: chosen(getattr(selection, which), found[which], which.removesuffix("s"), folders[which])
        for which in found
        if which in used
    }
    return paper_names(known, wanted, ids)
