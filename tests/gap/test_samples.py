"""The per-sample table on disk: whole or not there, joined exactly, read without holding it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from fvlm_lib.data.video_files import SkippedVideo
from fvlm_lib.gap import samples

SCHEMA = samples.sample_schema(["coarse", "fine_1", "autoregressive"])


def tables(start: int, stop: int, size: int = 32, longest: int = 40) -> Iterator[pa.Table]:
    """Rows of random captions of 1 to `longest` tokens; the same row for the same sample; every tenth skipped."""
    for first in range(start, stop, size):
        rows = []
        for sample in range(first, min(first + size, stop)):
            row = {"sample": sample, "name": f"{sample}.mp4", "num_frames": 0, "num_tokens": 0}
            if sample % 10 == 7:
                rows.append(row | {"skipped": "it is damaged"})
                continue
            rng = np.random.default_rng(sample)
            nll = rng.random(rng.integers(1, longest + 1))
            row |= {"num_frames": 2, "num_tokens": len(nll), "query_distance": [0.0, rng.random()]}
            for k, mode in enumerate(("coarse", "fine_1", "autoregressive")):
                row |= {f"nll_{mode}": nll.sum() + k, f"token_nll_{mode}": list(nll + k)}
            rows.append(row)
        yield pa.Table.from_pylist(rows, SCHEMA)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "whole.parquet"
    samples.write_samples(path, tables(0, 3000), SCHEMA)
    return path


def test_what_is_written_is_read(table):
    everything = pa.concat_tables(tables(0, 3000)).to_pandas()
    pd.testing.assert_frame_equal(pd.read_parquet(table), everything)
    scored = samples.read_samples(table)
    assert list(scored) == [
        "sample", "num_frames", "num_tokens", "nll_coarse", "nll_fine_1", "nll_autoregressive"
    ]  # fmt: skip
    assert scored["sample"].tolist() == [i for i in range(3000) if i % 10 != 7]
    skipped = samples.read_skipped(table)
    assert skipped[0] == SkippedVideo(7, "7.mp4", "it is damaged")
    assert len(skipped) == 300


def test_means_by_position_are_those_of_all_rows_at_once(table):
    lists = pd.read_parquet(table)["token_nll_fine_1"].dropna().explode().astype(float)
    groups = lists.groupby(lists.groupby(level=0).cumcount())
    found = samples.position_losses(table).query("mode == 'fine_1'").set_index("position")
    assert found["count"].tolist() == groups.count().tolist()
    np.testing.assert_allclose(found["mean"], groups.mean(), rtol=1e-12)
    np.testing.assert_allclose(found["high"] - found["mean"], 1.96 * groups.sem(), rtol=1e-10)
    distances = samples.query_distances(table)
    assert distances["frame"].tolist() == [0, 1]
    assert distances["mean"][0] == 0


@pytest.mark.parametrize("cuts", [[], [32], [32, 64, 2016], [0, 1000, 1000]])
def test_shards_join_to_the_whole_whatever_their_sizes_and_order(table, tmp_path, cuts):
    bounds = [0, *cuts, 3000]
    paths = []
    for start, stop in pairwise(bounds):  # some are empty
        paths.append(tmp_path / f"{len(paths)}.parquet")
        samples.write_samples(paths[-1], tables(start, stop), SCHEMA)
    joined = tmp_path / "joined.parquet"
    samples.join_samples(paths[::-1], joined, 3000)
    for read in (pd.read_parquet, samples.read_samples, samples.position_losses, samples.query_distances):
        pd.testing.assert_frame_equal(read(joined), read(table), check_exact=True)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([(0, 20)], "hold 20 samples of 64"),
        ([(0, 32), (33, 64)], r"1\.parquet does not go on with sample 32"),
        ([(0, 32), (16, 64)], r"1\.parquet does not go on with sample 32"),
        ([(32, 64)], r"0\.parquet does not go on with sample 0"),
        ([(0, 64), (64, 80)], "hold 80 samples of 64"),
        ([(0, 0)], "hold 0 samples of 64"),
    ],
)
def test_shards_that_do_not_hold_every_sample_once_are_refused(tmp_path, parts, message):
    paths = [tmp_path / f"{i}.parquet" for i in range(len(parts))]
    for path, (start, stop) in zip(paths, parts, strict=True):
        samples.write_samples(path, tables(start, stop), SCHEMA)
    with pytest.raises(ValueError, match=message):
        samples.join_samples(paths, tmp_path / "joined.parquet", 64)
    assert not list(tmp_path.glob("joined*"))


def test_an_evaluation_that_fails_leaves_nothing(tmp_path):
    def failing() -> Iterator[pa.Table]:
        yield from tables(0, 64)
        raise FloatingPointError("sample 64 is nan")

    with pytest.raises(FloatingPointError):
        samples.write_samples(tmp_path / "a.parquet", failing(), SCHEMA)
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path):
    """Arrow's memory, looked at before each batch while a table is written, long and short."""

    def watched(stop: int, held: list[int]) -> Iterator[pa.Table]:
        for table in tables(0, stop, longest=200):
            held.append(pa.total_allocated_bytes())
            yield table

    peaks = {}
    for stop in (2048, 16384):
        held: list[int] = []
        before = pa.total_allocated_bytes()
        samples.write_samples(tmp_path / f"{stop}.parquet", watched(stop, held), SCHEMA)
        peaks[stop] = max(held) - before
    assert peaks[16384] < 1.2 * peaks[2048]
    assert (tmp_path / "16384.parquet").stat().st_size > 5 * peaks[16384]
