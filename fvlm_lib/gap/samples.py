"""The per-sample table of an evaluation, on disk: one row a sample, written and read a piece at a time.

Columns: `sample` (its number in the set), `name`, `num_frames`, `num_tokens`; `nll_<mode>` (nats, summed over
the caption) and `token_nll_<mode>` (its list, a token) for coarse, fine_K and autoregressive; `query_distance`
(a frame: relative L2 of the training query to the inference query); `skipped`: why the sample could not be
used, null where it was scored. A skipped one has no frames, tokens or losses. For each setting of frames encoded by
what changed there are the losses of the mode `reuse_<setting>`, and `encoded_<setting>`, the share of the sample's
patches that were encoded, the first frame's among them.

Memory depends on the longest sample, not on how many there are, but for the few numbers a sample that
`read_samples` returns. This module knows nothing of models or gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fvlm_lib.data.video_files import SkippedVideo
from fvlm_lib.outputs import whole

_ROWS = 1024  # of a row group: what is held before it is written


def sample_schema(modes: Sequence[str], reuse: Iterable[str] = ()) -> pa.Schema:
    """The columns of a table of these modes, such as coarse, fine_1, autoregressive, and of settings of reuse."""
    reuse = list(reuse)
    columns = [("sample", pa.int64()), ("name", pa.string()), ("num_frames", pa.int64()), ("num_tokens", pa.int64())]
    columns += [("query_distance", pa.list_(pa.float64()))]
    for mode in [*modes, *(f"reuse_{name}" for name in reuse)]:
        columns += [(f"nll_{mode}", pa.float64()), (f"token_nll_{mode}", pa.list_(pa.float64()))]
    columns += [(f"encoded_{name}", pa.float64()) for name in reuse]
    return pa.schema([*columns, ("skipped", pa.string())])


def number_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold one number a sample."""
    return [field.name for field in schema if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)]


def write_samples(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write tables as they come into one Parquet file, which appears only when it is whole."""
    waiting: list[pa.Table] = []
    with whole(path) as part, pq.ParquetWriter(part, schema) as writer:
        for table in tables:
            waiting.append(table)
            if sum(len(table) for table in waiting) >= _ROWS:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())


def holds_samples(path: Path) -> bool:
    """Whether `path` is such a table, or nothing yet."""
    return holds_columns(path, ("sample", "num_tokens", "nll_coarse"))


def holds_columns(path: Path, names: Iterable[str]) -> bool:
    """Whether `path` is a table with these columns, or nothing yet."""
    if not path.exists():
        return True
    try:
        return {*names} <= {*pq.read_schema(path).names}
    except (OSError, pa.ArrowException):
        return False


def join_samples(paths: Sequence[str | Path], output: Path, num_samples: int) -> None:
    """Join the tables of all shards, given in any order, into one.

    Raises ValueError where samples 0..num_samples-1 are not there once each, FileNotFoundError for a
    missing shard.
    """
    files = {path: pq.ParquetFile(path) for path in paths}
    filled = [path for path, file in files.items() if file.metadata.num_rows]
    filled.sort(key=lambda path: files[path].read(["sample"])["sample"][0].as_py())

    def tables() -> Iterator[pa.Table]:
        expected = 0
        for path in filled:
            for batch in files[path].iter_batches(_ROWS):
                if batch["sample"].to_pylist() != list(range(expected, expected + len(batch))):
                    raise ValueError(
                        f"{path} does not go on with sample {expected}; remove the shards and run the batch again"
                    )
                expected += len(batch)
                yield pa.Table.from_batches([batch])
        if expected != num_samples:
            raise ValueError(
                f"the shards {', '.join(map(str, paths))} hold {expected} samples of {num_samples}; remove them and "
                "run the batch again"
            )

    write_samples(output, tables(), files[paths[0]].schema_arrow)


def read_samples(path: str | Path) -> pd.DataFrame:
    """The scored samples, their numbers alone: `sample`, `num_frames`, `num_tokens` and the `nll_<mode>`."""
    columns = number_columns(pq.read_schema(path))
    return pq.read_table(path, columns=columns, filters=[("num_tokens", ">", 0)]).to_pandas()


def read_skipped(path: str | Path) -> list[SkippedVideo]:
    """The samples that were left out, by number."""
    rows = pq.read_table(path, columns=["sample", "name", "skipped"], filters=[("num_tokens", "=", 0)])
    return [SkippedVideo(*row.values()) for row in rows.to_pylist()]


def position_losses(path: str | Path) -> pd.DataFrame:
    """Mean loss by caption position and mode, tidy: mode, position (0 first), mean, low, high (nats), count.

    Intervals are normal ones, mean ± 1.96 standard errors.
    """
    columns = [name for name in pq.read_schema(path).names if name.startswith("token_nll_")]
    tables = [_by_place(path, name, "position").assign(mode=name.removeprefix("token_nll_")) for name in columns]
    return pd.concat(tables, ignore_index=True)[["mode", "position", "mean", "low", "high", "count"]]


def query_distances(path: str | Path) -> pd.DataFrame:
    """Mean relative distance of training to inference query by frame: frame, mean, low, high, count."""
    return _by_place(path, "query_distance", "frame")


def _by_place(path: str | Path, column: str, place: str) -> pd.DataFrame:
    """Mean and normal 95% interval of the i-th entries of a column of lists, for each i.

    Every sum runs over the rows in order, so it does not depend on how they are grouped on disk.
    """
    count = _sum_by_place(path, column, lambda values, _: np.ones_like(values))
    mean = _sum_by_place(path, column, lambda values, _: values) / count
    squares = _sum_by_place(path, column, lambda values, places: (values - mean[places]) ** 2)
    margin = 1.96 * np.sqrt(squares / np.maximum(count - 1, 1)) / np.sqrt(count)
    table = {place: np.arange(len(mean)), "mean": mean, "low": mean - margin, "high": mean + margin}
    return pd.DataFrame({**table, "count": count.astype(int)})


def _sum_by_place(
    path: str | Path, column: str, function: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Sum over all rows of function(i-th entries, i), for each i; (longest list,)."""
    sums = np.zeros(0)
    for batch in pq.ParquetFile(path).iter_batches(_ROWS, columns=[column]):
        lists = batch[column]
        lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)  # null: a skipped sample
        values = lists.flatten().to_numpy()
        places = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        sums = np.pad(sums, (0, max(0, lengths.max(initial=0) - len(sums))))
        np.add.at(sums, places, function(values, places))
    return sums
