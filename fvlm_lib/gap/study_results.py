"""The results of a study, read from the folder that they are shipped in and checked, and a measure at every seed.

The folder has `study.parquet`, the table of `study_table.py`, and may have `samples.parquet`, the sums of each
sample of the evaluation on videos of the training's length. What is said of them is the subject of the modules beside
this one: means (`study_means.py`), differences (`study_contrasts.py`), and so on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fvlm_lib.gap.seeds import SeedValues, mean_over_seeds
from fvlm_lib.stats import Estimate, ratio, resample_statistics

PLAIN = "plain"
"""The recipe that others are compared with."""
MEASURES = ("loss_inference", "loss_trained", "loss_coarse", "gap")
LOG_LOSS = "log loss_inference"
"""The measure whose differences are ratios of inference losses."""
ALL_SIZES = "all"
"""The size of rows that are of all sizes together."""
NUM_RESAMPLES = 500  # of the videos, of which only the variance is taken
CELL = ["size", "recipe", "step"]
_RUN = ["size", "recipe", "seed"]
_KEY = [*_RUN, "step"]
_NUMBERS = ("seed", "step", "num_frames", "num_text_parameters", "num_parameters", "training_flops")

Array = NDArray[np.float64]
Weights = Mapping[str, float]
"""A measure: the sum of the losses of these modes, nats a token, each times its weight."""


@dataclass(frozen=True)
class StudyResults:
    """What a study found.

    table: as `study_table.study_table` makes it, with `trained_passes`, the number of fine passes that a recipe trains
    last, null where that is sequential use; sizes by the parameters of their language model, `plain` before other
    recipes. samples: a row a (size, recipe, seed, step, sample) with num_tokens and nll_MODE, on videos of `num_frames`
    frames, the length of the training's; None where they were not shipped.
    """

    table: pd.DataFrame
    samples: pd.DataFrame | None
    num_frames: int

    @property
    def trained(self) -> pd.DataFrame:
        """The rows of evaluations on videos of the training's length."""
        return self.table[self.table["num_frames"] == self.num_frames]

    @property
    def sizes(self) -> list[str]:
        return list(self.table["size"].unique())

    @property
    def recipes(self) -> list[str]:
        return list(self.table["recipe"].unique())

    @property
    def last_step(self) -> int:
        return int(self.trained["step"].max())

    @property
    def numerical_floor(self) -> float:
        """The largest of what rounding does to a gap, nats a token; 0 where none was measured."""
        floors = self.table["numerical_floor"].dropna() if "numerical_floor" in self.table else []
        return float(max(floors, default=0.0))

    @cached_property
    def video_noise(self) -> dict[tuple[str, str, int, int], dict[str, Array]]:
        """By size, recipe, seed and step, for each mode how far its loss is off on each resample of the videos, (R,).

        The resamples are the same for every row. The table may rest on more videos than the samples that were shipped:
        deviations are scaled to as many. Empty without samples.
        """
        if self.samples is None:
            return {}
        counts = self.trained.set_index(_KEY)["num_samples"]
        modes = [name.removeprefix("nll_") for name in self.samples if name.startswith("nll_")]
        statistics = {mode: ratio(f"nll_{mode}", "num_tokens") for mode in modes}
        columns = [*(f"nll_{mode}" for mode in modes), "num_tokens"]
        noise = {}
        for key, rows in self.samples.groupby(_KEY, sort=False):
            sums = {name: rows[name].to_numpy(np.float64) for name in columns}
            drawn = resample_statistics(sums, statistics, NUM_RESAMPLES)
            scale = (len(rows) / counts.loc[key]) ** 0.5
            centre = {mode: sums[f"nll_{mode}"].sum() / sums["num_tokens"].sum() for mode in modes}
            noise[key] = {mode: scale * (drawn[mode] - centre[mode]) for mode in modes}
        return noise


@dataclass(frozen=True)
class Cell:
    """A measure at the seeds of one size, recipe and step, in the order of the seeds: values (k,) of k seeds, and
    resampled (k, NUM_RESAMPLES), the same on each resample of the videos."""

    seeds: tuple[int, ...]
    values: SeedValues

    def at(self, seeds: Sequence[int]) -> SeedValues:
        """At some of its seeds, in their order."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return SeedValues(self.values.values[rows], self.values.resampled[rows])

    def logs(self) -> Cell:
        """The same of the logarithms."""
        return Cell(self.seeds, SeedValues(np.log(self.values.values), np.log(self.values.resampled)))


def read_study_results(folder: str | Path, num_frames: int | None = None) -> StudyResults:
    """The results of a study from its folder.

    num_frames: length of the training's videos; None: the length that most checkpoints were evaluated on, the shortest
    such. Raises ValueError for what is missing or not such a table.
    """
    folder = Path(folder)
    path = folder / "study.parquet"
    if not path.is_file():
        raise ValueError(f"{path} is missing; `fvlm study-table STUDY.yaml` makes the table of a study")
    table = _order(_read(path), path)
    if num_frames is None:
        counts = table["num_frames"].value_counts()
        num_frames = int(counts.index[counts == counts.max()].min())
    elif num_frames not in set(table["num_frames"]):
        known = ", ".join(map(str, sorted(set(table["num_frames"]))))
        raise ValueError(f"{path} has no evaluation on videos of {num_frames} frames; it has those of {known}")
    results = StudyResults(table, None, num_frames)
    samples = folder / "samples.parquet"
    return StudyResults(table, _samples(samples, results), num_frames) if samples.is_file() else results


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise ValueError(f"{path} is no Parquet table: {' '.join(str(error).split())}") from error


def _order(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table checked, in order, its counts whole numbers."""
    wanted = ("size", "recipe", *_NUMBERS, "trained_passes", "num_samples", "loss_coarse", "loss_autoregressive")
    if lacking := [name for name in wanted if name not in table]:
        raise ValueError(f"{path} has no column {lacking[0]}; it is not the table of `fvlm study-table`")
    if table.empty:
        raise ValueError(f"{path} has no rows")
    for name in (*_NUMBERS, "loss_coarse", "loss_autoregressive"):
        numbers = pd.to_numeric(table[name], errors="coerce")
        if not np.isfinite(numbers).all():
            row = table.index[~np.isfinite(numbers)][0]
            raise ValueError(f"{path}: {name} is {table[name][row]} at row {row}; it must be a finite number")
    counts = {name: "int64" for name in _NUMBERS if name != "training_flops"}
    table = table.astype(counts).assign(trained_passes=_trained_passes(table, path))
    if (twice := table.duplicated([*_KEY, "num_frames"])).any():
        told = " ".join(map(str, table.loc[twice.idxmax(), [*_KEY, "num_frames"]]))
        raise ValueError(f"{path} has {told} twice (size, recipe, seed, step, num_frames)")
    for of, name in (("recipe", "trained_passes"), ("size", "num_text_parameters")):
        if (several := table.groupby(of)[name].nunique(dropna=False) > 1).any():
            raise ValueError(f"{path}: the {of} {several.idxmax()} has several {name}; it must have one")
    for recipe, passes in table.groupby("recipe")["trained_passes"].first().dropna().items():
        if f"loss_fine_{passes}" not in table:
            raise ValueError(f"{path}: {recipe} trains {passes} passes, and there is no column loss_fine_{passes}")
    recipes = sorted(table["recipe"].unique(), key=lambda recipe: recipe != PLAIN)
    order = table.assign(_recipe=table["recipe"].map(recipes.index))
    order = order.sort_values(["num_text_parameters", "size", "_recipe", "seed", "step", "num_frames"], kind="stable")
    return order.drop(columns="_recipe").reset_index(drop=True)


def _trained_passes(table: pd.DataFrame, path: Path) -> pd.Series:
    """The column checked, as whole numbers with nulls."""
    given = table["trained_passes"]
    passes = pd.to_numeric(given, errors="coerce")
    if (wrong := given.notna() & (passes % 1 != 0)).any():  # what is no number is NaN, which is not 0 either
        raise ValueError(f"{path}: trained_passes is {given[wrong.idxmax()]}; it must be a whole number")
    if passes[table["recipe"] == PLAIN].isna().any():
        raise ValueError(
            f"{path}: trained_passes of {PLAIN} is null; plain training is by fine passes, and not by sequential use"
        )
    return passes.astype("Int64")


def _samples(path: Path, results: StudyResults) -> pd.DataFrame:
    samples = _read(path)
    if lacking := [name for name in (*_KEY, "sample", "num_tokens", "nll_autoregressive") if name not in samples]:
        raise ValueError(f"{path} has no column {lacking[0]}; its rows are of a size, recipe, seed, step and sample")
    wanted = set(results.trained[_KEY].itertuples(index=False, name=None))
    there, drawn = set(), None
    for key, rows in samples.groupby(_KEY, sort=False):
        there.add(key)
        drawn = list(rows["sample"]) if drawn is None else drawn
        if list(rows["sample"]) != drawn:
            raise ValueError(f"{path}: the samples of {' '.join(map(str, key))} are not those of the rows before")
    if missing := sorted(wanted - there):
        raise ValueError(f"{path} has no samples of {' '.join(map(str, missing[0]))}, which the table has; remove it")
    keep = pd.MultiIndex.from_frame(samples[_KEY]).isin(list(wanted))
    return samples[keep].reset_index(drop=True)


# ---- a measure at every seed ------------------------------------------------------------------------


def measure_weights(measure: str, passes: int | None) -> Weights | None:
    """What a measure is made of, for a recipe whose training ends with so many passes; passes None: with sequential
    use, and there is no gap between that and itself. Raises ValueError."""
    known: dict[str, Weights | None] = {
        "loss_inference": {"autoregressive": 1.0},
        "loss_trained": {"autoregressive" if passes is None else f"fine_{passes}": 1.0},
        "loss_coarse": {"coarse": 1.0},
        "gap": None if passes is None else {"autoregressive": 1.0, f"fine_{passes}": -1.0},
    }
    if measure not in known:
        raise ValueError(f"measure is {measure!r}; known are {', '.join(known)}")
    return known[measure]


def cells(
    results: StudyResults, measure: str, num_frames: int | None = None, passes: int | None = None
) -> dict[tuple[str, str, int], Cell]:
    """A measure at all seeds, nats a token, by (size, recipe, step); of the gap none of recipes that train sequential
    use.

    num_frames: of the evaluation's videos; None: as in training. passes: whose loss is the trained one and whose gap is
    taken; None: those that the recipe trains last. Videos are resampled where the samples of every mode that it needs
    were shipped; else their noise is taken as none.
    """
    rows = results.table[results.table["num_frames"] == (num_frames or results.num_frames)]
    noise = results.video_noise if num_frames in (None, results.num_frames) else {}
    columns = {str(name): rows[name].to_numpy() for name in rows}
    places: dict[tuple[str, str, int], list[int]] = {}  # of the rows, by cell
    for place, key in enumerate(rows[CELL].itertuples(index=False, name=None)):
        places.setdefault(key, []).append(place)
    found = {}
    for key, of in places.items():
        trained = columns["trained_passes"][of[0]]
        weights = measure_weights(measure, passes or (None if pd.isna(trained) else int(trained)))
        if weights is None:
            continue
        losses = np.column_stack([columns[f"loss_{mode}"][of] for mode in weights]).astype(np.float64)  # (k, modes)
        there = ~np.isnan(losses).any(axis=1)
        if not there.any():
            continue
        seeds = tuple(columns["seed"][of][there].tolist())
        values = losses[there] @ np.array([*weights.values()])
        drawn = [_noise(noise.get((key[0], key[1], seed, key[2]), {}), weights) for seed in seeds]
        found[key] = Cell(seeds, SeedValues(values, values[:, None] + np.stack(drawn)))
    return found


def _noise(modes: Mapping[str, Array], weights: Weights) -> Array:
    if not all(mode in modes for mode in weights):
        return np.zeros(NUM_RESAMPLES)
    return sum((weight * modes[mode] for mode, weight in weights.items()), np.zeros(NUM_RESAMPLES))


def common_seeds(*cells: Cell | None) -> tuple[int, ...]:
    """The seeds that all have, none where one is None."""
    if not cells:
        return ()
    return tuple(sorted(set.intersection(*({*(cell.seeds if cell else ())} for cell in cells))))


def cells_by_length(results: StudyResults, measure: str) -> dict[tuple[str, str], dict[int, Cell]]:
    """A measure at the last step by (size, recipe) and number of frames, at the seeds that all these lengths have, so
    that lengths do not differ by their seeds; without such seeds there is none."""
    found: dict[tuple[str, str], dict[int, Cell]] = {}
    for frames in sorted(map(int, results.table["num_frames"].unique())):
        for (size, recipe, step), cell in cells(results, measure, frames).items():
            if step == results.last_step:
                found.setdefault((size, recipe), {})[frames] = cell
    seeds = {key: common_seeds(*by_length.values()) for key, by_length in found.items()}
    return {
        key: {frames: Cell(seeds[key], cell.at(seeds[key])) for frames, cell in by_length.items()}
        for key, by_length in found.items()
        if seeds[key]
    }


def mean_or_alone(values: SeedValues, level: float = 0.95) -> Estimate:
    """`seeds.mean_over_seeds`; of one seed its value, with bounds that are NaN."""
    if len(values.values) == 1:
        return Estimate(float(values.values[0]), np.nan, np.nan)
    return mean_over_seeds(values, level=level)


def is_resolved(estimate: Estimate, floor: float = 0.0) -> bool:
    """Whether the interval is off zero by more than `floor`; never of one seed."""
    return bool(estimate.low > floor or estimate.high < -floor)
