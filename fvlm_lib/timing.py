"""How a time is measured: warmed up, synchronised, in turn within one run, medians with quartiles.

Knows nothing of what is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import pandas as pd
import torch
from tqdm import tqdm

Result = TypeVar("Result")


def synchronize() -> None:
    """Wait for the accelerator, if there is one, so that a clock read after it counts its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def now() -> float:
    """Seconds on a steady clock, once the accelerator has done what was asked of it."""
    synchronize()
    return time.perf_counter()


def time_in_turn(
    calls: Mapping[str, Callable[[], object]], repeats: int = 20, warmup: int = 3, progress: bool = True
) -> pd.DataFrame:
    """Time each call `repeats` times, one after the other in every round, after `warmup` rounds.

    In turn, so that a machine whose speed drifts slows all of them. Returns one row a call and round:
    name, round, ms.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats is {repeats} and warmup {warmup}; at least 1 and 0 are needed")
    rows = []
    for number in tqdm(range(-warmup, repeats), desc="timing", disable=not progress):
        for name, call in calls.items():
            _, ms = timed(call)
            if number >= 0:
                rows.append({"name": name, "round": number, "ms": ms})
    return pd.DataFrame(rows)


def summarize_times(times: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Median and quartiles of each name's times, and of its ratio to `reference` round by round.

    Returns one row a name: n, ms, ms_q1, ms_q3, ratio, ratio_q1, ratio_q3.
    """
    wide = times.pivot(index="round", columns="name", values="ms")
    ratios = wide.div(wide[reference], axis=0)
    table = {"n": wide.count()}
    for key, values in (("ms", wide), ("ratio", ratios)):
        for suffix, quantile in (("", 0.5), ("_q1", 0.25), ("_q3", 0.75)):
            table[key + suffix] = values.quantile(quantile)
    return pd.DataFrame(table).loc[list(dict.fromkeys(times["name"]))]


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    """What the call returns, and how many ms it took."""
    start = now()
    result = call()
    return result, 1e3 * (now() - start)
