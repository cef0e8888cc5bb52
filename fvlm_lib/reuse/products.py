"""Which way of computing a linear product is fastest for how many rows, found by measuring, as it differs by processor.

A product of few rows can be computed as `nn.Linear` does, transposed, from packed weights (`packing.py`), and each of
them as one of more rows: BLAS libraries have numbers of rows at which they are slow, and 2 rows may take longer than 5.
Of layers and models this module knows nothing.
"""

from __future__ import annotations

import functools
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Way = Literal["plain", "transposed", "packed"]

ROWS = (*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128, 192, 384)
"""Numbers of rows that are measured, close where neighbours differ most."""

GRAIN = 16
"""Between two measured numbers of rows, times are interpolated at multiples of it. Others are not known: on one
processor a transposed product of 30 rows takes 4.0 ms, of 28 3.3 and of 32 2.9."""

TRANSPOSED_MOST = 128
"""Rows up to which the transposed product is measured; it reads weights as they lie, which counts with few rows."""

SECONDS = 2.0
"""How long measuring all products of a model goes on, of processor time a thread; the first turn is always finished."""

TURNS = 16
"""How often a product is measured at most."""

SHORT = 64
"""Rows beyond which a product takes so long that every fourth turn measures it."""

HOPELESS = 2.0
"""A way that took so many times the best one's time in three turns is not measured again."""


@dataclass(frozen=True)
class Route:
    """How a product of some rows is computed: by which way, as how many rows (no fewer), in how many seconds."""

    way: Way
    rows: int
    seconds: float


@dataclass(frozen=True)
class Routes:
    """The fastest route for any number of rows, so that fewer rows never take longer.

    found: for 0, 1, ... rows; beyond these, the last one's way, at its time a row.
    """

    found: tuple[Route, ...]

    def __call__(self, rows: int) -> Route:
        if rows < len(self.found):
            return self.found[rows]
        last = self.found[-1]
        return Route(last.way, rows, last.seconds * rows / last.rows)


@dataclass(frozen=True)
class Times:
    """Seconds of a product of `rows` rows, rising, by way; infinite where a way was not measured."""

    rows: tuple[int, ...]
    seconds: Mapping[Way, tuple[float, ...]]

    def routes(self, ways: Iterable[Way]) -> Routes:
        """The fastest routes by these ways, as a number of rows whose time is known: measured, or interpolated."""
        most = self.rows[-1]
        known = sorted({*self.rows, *range(self.rows[0] // GRAIN * GRAIN + GRAIN, most, GRAIN)})
        times = {way: np.interp(known, self.rows, self.seconds[way]).tolist() for way in ways}
        routes = [
            min((Route(way, rows, seconds[place]) for way, seconds in times.items()), key=_seconds)
            for place, rows in enumerate(known)
        ]
        fastest = [min(routes[place:], key=_seconds) for place in range(len(routes))]  # as so many rows or more
        return Routes((Route("plain", 0, 0.0), *(fastest[bisect_left(known, rows)] for rows in range(1, most + 1))))

    def saved(self, way: Way) -> float:
        """The share of the time that this way saves, next to the others; the mean over the numbers of rows."""
        without, with_it = (self.routes(ways) for ways in ([key for key in self.seconds if key != way], self.seconds))
        return sum(1 - with_it(rows).seconds / without(rows).seconds for rows in self.rows) / len(self.rows)


def _seconds(route: Route) -> float:
    return route.seconds


@dataclass(frozen=True)
class Sample:
    """Products of one shape.

    calls: one a layer, of a way and rows (n, in); several, so that weights come from memory, as in a walk through the
    layers, and not from a cache. like: (..., in) what their rows are like.
    """

    calls: Sequence[Callable[[Way, Tensor], object]]
    ways: tuple[Way, ...]
    like: Tensor


@torch.inference_mode()
def measure(samples: Sequence[Sample]) -> list[Times]:
    """How long the products take, by `busy_seconds`, the shortest of several calls."""
    best = [{way: [torch.inf] * len(ROWS) for way in sample.ways} for sample in samples]
    inputs = [sample.like.new_empty(ROWS[-1], sample.like.shape[-1]).normal_() for sample in samples]
    turns = [0] * len(samples)
    end = time.process_time() / torch.get_num_threads() + SECONDS
    for turn in range(TURNS):
        for number, (sample, x, found) in enumerate(zip(samples, inputs, best, strict=True)):
            for place, rows in enumerate(ROWS):
                if turn and time.process_time() / torch.get_num_threads() > end:
                    break
                if rows > SHORT and turn % 4:
                    continue
                hopeless = HOPELESS * min(seconds[place] for seconds in found.values())
                for way, seconds in found.items():
                    if (way == "transposed" and rows > TRANSPOSED_MOST) or (turn > 2 and seconds[place] > hopeless):
                        continue
                    for _ in range(2 if turn == 0 and rows <= SHORT else 1):  # a first call makes the kernel
                        turns[number] += 1
                        call = sample.calls[turns[number] % len(sample.calls)]
                        seconds[place] = min(seconds[place], busy_seconds(functools.partial(call, way, x[:rows])))
    return [Times(ROWS, {way: tuple(seconds) for way, seconds in found.items()}) for found in best]


def busy_seconds(call: Callable[[], object]) -> float:
    """Time that the call kept the processor busy: of this thread, or the mean over all, whichever is more.

    On a machine of one's own that is the time it took. Where other programs want the processor too, a clock on the wall
    would count their turns, of milliseconds each, and say little of products that take less.
    """
    thread, process = time.thread_time(), time.process_time()
    call()
    return max(time.thread_time() - thread, (time.process_time() - process) / torch.get_num_threads())
