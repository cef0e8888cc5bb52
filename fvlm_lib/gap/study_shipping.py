"""A study's results as files small enough for a repository: the table, and what each sample adds to its sums.

`study.parquet` and `study.csv` hold the table of `study_table.py`; `samples.parquet` one row a sample of each
checkpoint but those of other lengths of videos. Rows of runs that are not in the study's output are kept as the folder
has them, so that a study may be run in parts, by seeds or on several machines.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fvlm_lib.batch.study_config import JOINT, Study
from fvlm_lib.outputs import whole

TABLE, SAMPLES = "study.parquet", "samples.parquet"
CHECKPOINT = ["size", "recipe", "seed", "step"]  # the columns that tell it


def row_ids(table: pd.DataFrame) -> pd.Series:
    """The ids of the evaluations (`study_config.Evaluated`) that a table's rows are of."""
    return table[[*CHECKPOINT, "num_frames"]].astype(str).agg(JOINT.join, axis=1)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as Parquet, and as CSV beside it."""
    with whole(path) as part:
        table.to_parquet(part, index=False)
    with whole(path.with_suffix(".csv")) as part:
        table.to_csv(part, index=False)


def ship(study: Study, table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Write a study's table and samples into a folder, with what the folder held of other evaluations of the same
    study; return the table that was written.

    Columns of the samples: size, recipe, seed, step, sample, num_tokens, and nll_MODE (nats, summed over the caption,
    float32) for each mode.

    Raises ValueError where the folder holds a row that this study would not make, or a table without its samples.
    """
    rows, samples = table, _samples(study, table)
    if (folder / TABLE).exists():
        kept = _kept(study, table, folder / TABLE)
        rows = pd.concat([rows, kept])
        if not (folder / SAMPLES).exists():
            raise ValueError(
                f"{folder / SAMPLES} is missing, which belongs to {folder / TABLE}; bring it back, or remove "
                f"{folder / TABLE} too"
            )
        sampled = kept.loc[kept["num_frames"] == study.num_frames, CHECKPOINT]
        samples = pd.concat([samples, pd.read_parquet(folder / SAMPLES).merge(sampled)])
    order = {id: place for place, id in enumerate(study.evaluations)}
    rows = rows.iloc[row_ids(rows).map(order).argsort()].reset_index(drop=True)
    samples = rows[CHECKPOINT].drop_duplicates().merge(samples)  # in the table's order
    written = pa.Table.from_pandas(samples, preserve_index=False)
    sums = [name for name in written.column_names if name.startswith("nll_")]
    with whole(folder / SAMPLES) as part:
        # bytes of like weight together, which is what compresses of sums
        others = [name for name in written.column_names if name not in sums]
        encoding = dict.fromkeys(sums, "BYTE_STREAM_SPLIT")
        pq.write_table(written, part, compression="zstd", use_dictionary=others, column_encoding=encoding)
    write_table(rows, folder / TABLE)
    return rows


def _kept(study: Study, table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows of a shipped table that are not in this one. Raises ValueError for one that the study would not make."""
    shipped = pd.read_parquet(path)
    ids = row_ids(shipped)
    for id, made_by in zip(ids, shipped["made_by"], strict=True):
        if id not in study.evaluations or made_by != study.made_by(id):
            raise ValueError(
                f"{path} has the row {id}, which is of another study or of other settings; ship to another folder, or "
                "remove this one's files"
            )
    return shipped[~ids.isin(row_ids(table))]


def _samples(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """The samples of the table's rows but those of other lengths of videos."""
    from fvlm_lib.gap.samples import read_samples  # which takes torch, and seconds; --help does not wait for it

    parts = []
    for id in row_ids(table):
        evaluated = study.evaluations[id]
        run = study.runs[evaluated.run]
        if run.num_frames == study.num_frames:
            samples = read_samples(Path(study.result(id)).with_suffix(".parquet"))
            sums = samples.filter(regex="^nll_").astype("float32")
            about = dict(zip(CHECKPOINT, (run.size, run.recipe, run.seed, evaluated.step), strict=True))
            parts.append(pd.concat([samples[["sample", "num_tokens"]], sums], axis=1).assign(**about))
    columns = [*CHECKPOINT, "sample", "num_tokens"]
    found = pd.concat(parts) if parts else pd.DataFrame(columns=columns)
    return found[[*columns, *found.columns.difference(columns, sort=False)]]
