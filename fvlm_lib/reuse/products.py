"""Which way of computing a linear product is fastest for how many rows, found by measuring, as it differs by processor.

A product of few rows can be computed as `nn.Linear` does, transposed, from packed weights (`packing.py`), and each of
them as one of more rows: BLAS libraries have numbers of rows at which they are slow, and 2 rows may take longer than 5.
Of layers and models this module knows nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Way = Literal["plain", "transposed", "packed"]

ROWS = (*range(1, 17), 20, 24, 32, 48, 64, 96, 128, 192, 384)
"""Numbers of rows that are measured. Each of the small ones, where neighbours differ most."""

TRANSPOSED_MOST = 64
"""Rows up to which the transposed product is measured; it reads weights as they lie, which counts with few rows."""

SECONDS = 1.0
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
        """The fastest routes by these ways. Between two measured numbers of rows, times are interpolated."""
        most = self.rows[-1]
        between: dict[Way, list[float]] = {way: _interpolated(self.rows, self.seconds[way]) for way in ways}
        found: list[Route] = []
        for rows in range(most, 0, -1):
            seconds, way = min((seconds[rows], way) for way, seconds in between.items())
            route = Route(way, rows, seconds)
            found.append(min(route, found[-1], key=lambda route: route.seconds) if found else route)
        return Routes((Route("plain", 0, 0.0), *reversed(found)))

    def saved(self, way: Way) -> float:
        """The share of the time that this way saves, next to the others; the mean over the numbers of rows."""
        without, with_it = (self.routes(ways) for ways in ([key for key in self.seconds if key != way], self.seconds))
        return sum(1 - with_it(rows).seconds / without(rows).seconds for rows in self.rows) / len(self.rows)


def _interpolated(rows: Sequence[int], seconds: Sequence[float]) -> list[float]:
    """Seconds of 0, 1, ... rows[-1] rows."""
    found = [0.0] * (rows[0] + 1)
    found[rows[0]] = seconds[0]
    for low, high, at_low, at_high in zip(rows, rows[1:], seconds, seconds[1:], strict=False):
        for n in range(low + 1, high):
            share = (n - low) / (high - low)
            found.append(at_low + share * (at_high - at_low))
        found.append(at_high)
    return found


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
    """How long the products take, by `_busy_seconds`, the shortest of several calls."""
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
                        seconds[place] = min(seconds[place], _busy_seconds(call, way, x[:rows]))
    return [Times(ROWS, {way: tuple(seconds) for way, seconds in found.items()}) for found in best]


def _busy_seconds(call: Callable[[Way, Tensor], object], way: Way, x: Tensor) -> float:
    """Time that the call kept the processor busy: of this thread, or the mean over all, whichever is more.

    On a machine of one's own that is the time it took. Where other programs want the processor too, a clock on the wall
    would count their turns, of milliseconds each, and say little of products that take less.
    """
    thread, process = time.thread_time(), time.process_time()
    call(way, x)
    return max(time.thread_time() - thread, (time.process_time() - process) / torch.get_num_threads())
