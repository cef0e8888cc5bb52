"""How long a full encode and partial updates of a vision tower should take on this machine, from a few of its blocks.

Of each kind of block a few get random weights, so many that these come from memory and not from a cache, and run as
the encoder runs the whole tower: a frame encoded in full, and updated where n patches changed. What one block takes
counts as often as the tower has that kind. So measured are the products of these numbers of rows, by whatever way the
encoder takes (`reuse/packing.py`), attention over all keys that they see, norms, and what is read and written of the
cache. Assumed is that blocks of one kind are alike; left out is what is none of a block's: patches projected, tokens
brought into a language model's width. Times are of the processor (`products.busy_seconds`), the shortest of several.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fvlm_lib.reuse.blocks import Block
from fvlm_lib.reuse.fastest import SPREAD, PackWeights, few_rows_blocks
from fvlm_lib.reuse.policies.gated import Gated
from fvlm_lib.reuse.products import busy_seconds
from fvlm_lib.screens.update_bench import alternating_update, read_seconds
from fvlm_lib.timing import time_in_turn
from fvlm_lib.vision.caches import encode_cache
from fvlm_lib.vision.fast_vit import ConvolutionalTower
from fvlm_lib.vision.models import open_vision
from fvlm_lib.vision.opened_tower import Grid, Tower
from fvlm_lib.vision.updates import encode_frame, update_by
from fvlm_lib.vlm.plan import modules, nbytes, num_rows, updated_rows, width, windows

NOTHING_ELSE = math.inf
"""The tolerance of gated updates that are timed: they look at every row and compute those that changed alone."""


@dataclass(frozen=True)
class UpdateTime:
    """ms of an update of the whole tower in `changed` patches, with propagate="none" and gated; factor, gated_factor:
    the time of a full encode by that. Gated is of a stack of blocks at least that long, of convolutions at most: at
    tolerance 0."""

    changed: int
    ms: float
    factor: float
    gated_ms: float
    gated_factor: float


@dataclass(frozen=True)
class Times:
    """full_ms: a frame encoded in full. reading_ms: all weights read once, of a stack of blocks what no update
    undercuts."""

    full_ms: float
    reading_ms: float
    updates: tuple[UpdateTime, ...]

    @property
    def floor_factor(self) -> float:
        """What no factor exceeds."""
        return self.full_ms / self.reading_ms


def plan_times(
    tower: Tower,
    grid: Grid,
    counts: Sequence[int],
    pack_weights: PackWeights = False,
    pack_memory: int | None = None,
    repeats: int = 5,
) -> Times:
    """Measure for some seconds. tower: on the meta device; counts: numbers of changed patches."""
    full, reading = 0.0, 0.0
    sums = {count: [0.0, 0.0] for count in counts}  # ms of an update, and gated
    with torch.inference_mode():
        fixed = _measured(_with_blocks(tower, grid, []), grid, counts, repeats)
        for kind in _kinds(tower, grid):
            blocks = [_brought(block) for block in _some(kind.blocks)]
            plain = _with_blocks(tower, grid, blocks, kind.inside)
            fast, _, _ = few_rows_blocks(blocks, pack_weights, pack_memory)
            found = _measured(plain, grid, counts, repeats, dataclasses.replace(plain, blocks=fast))
            times = len(kind.blocks) / len(blocks)
            reading += 1e3 * read_seconds(nn.ModuleList(modules(blocks))) * times
            full += times * (found["full"] - fixed["full"])
            for count, both in sums.items():
                for i, name in enumerate(("none", "gated")):
                    both[i] += times * (found[f"{name} {count}"] - fixed[f"{name} {count}"])
    full += fixed["full"]
    updates = []
    for count, both in sums.items():
        none, gated = (
            max(reading, ms + fixed[f"{name} {count}"])  # differences of times of few rows come out too small, at times
            for name, ms in zip(("none", "gated"), both, strict=True)
        )
        updates.append(UpdateTime(count, none, full / none, gated, full / gated))
    return Times(full, reading, tuple(updates))


def plan_map_times(model: nn.Module, size: tuple[int, int], counts: Sequence[int], repeats: int = 3) -> Times:
    """The same of a convolutional tower, timed as a whole, as nearly all its blocks differ; medians of so many rounds.

    model: with weights, on the CPU; size: (height, width) of its frames. Raises TypeError for another tower.
    """
    tower = open_vision(model).tower
    if not isinstance(tower, ConvolutionalTower):
        raise TypeError(f"{type(model).__name__} is no convolutional tower")
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(1, tower.num_channels, *size, generator=generator) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {"full": lambda: encode_cache(tower, one)}
    with torch.inference_mode():
        for name in ("none", "gated"):
            cache = encode_cache(tower, one, name)  # type: ignore[arg-type]
            for count in counts:
                calls[f"{name} {count}"] = alternating_update(tower, cache, (one, other), count, tolerance=0.0)
        times = time_in_turn(calls, repeats, warmup=1, progress=False)
        reading = 1e3 * read_seconds(model)
    # wall clock, for of an update of maps a good part is done by one thread while the others wait
    ms = times.groupby("name")["ms"].median()
    full = ms["full"]
    both = [(count, ms[f"none {count}"], ms[f"gated {count}"]) for count in counts]
    updates = tuple(UpdateTime(count, none, full / none, gated, full / gated) for count, none, gated in both)
    return Times(full, reading, updates)


# ---- some blocks of each kind ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """Blocks that are alike, and the windows in which they attend."""

    blocks: list[Block]
    inside: Any


def _kinds(tower: Tower, grid: Grid) -> list[_Kind]:
    kinds: dict[object, _Kind] = {}
    for block, inside in zip(tower.blocks, windows(tower, grid), strict=True):
        shapes = tuple(weight.shape for part in modules([block]) for weight in part.parameters())
        kinds.setdefault((shapes, inside is None), _Kind([], inside)).blocks.append(block)
    return list(kinds.values())


def _some(blocks: list[Block]) -> list[Block]:
    """So many of them that their weights, and those of either half alone, come from memory."""
    return blocks[: max(2, math.ceil(2 * SPREAD / nbytes(*modules(blocks[:1]))))]


def _brought(block: Block) -> Block:
    """A copy with small random weights on the CPU."""
    found = {name: part for name, part in vars(block).items() if isinstance(part, nn.Module)}
    parts: dict[str, Any] = copy.deepcopy(found)  # at once, since some share their weights
    every = nn.ModuleList(parts.values()).to_empty(device="cpu")
    for weight in every.parameters():
        weight.normal_(std=0.02)
    return dataclasses.replace(block, **parts)


def _with_blocks(tower: Tower, grid: Grid, blocks: Sequence[Block], inside: Any = None) -> Tower:
    """The tower with these blocks alone: embeddings are random, patches add nothing to them."""
    shape = num_rows(tower, grid), width(tower)
    dtype: Any = tower.blocks[0].q_proj.weight.dtype
    embedded = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    rotation = tower.rotation(grid)
    turned = None if rotation is None else (torch.ones(rotation[0].shape), torch.zeros(rotation[1].shape))
    return dataclasses.replace(
        tower,
        embeddings=lambda pixels: embedded.clone(),
        project_patches=lambda patches: torch.zeros(len(patches), shape[1], dtype=dtype),
        pre_norm=nn.Identity(),
        blocks=tuple(blocks),
        final_norm=nn.Identity(),
        rotation=lambda _: turned,
        windows=lambda _: (inside,) * len(blocks),
        taps=(),
    )


# ---- timed -------------------------------------------------------------------------------------------


def _measured(
    plain: Tower, grid: Grid, counts: Sequence[int], repeats: int, fast: Tower | None = None
) -> dict[str, float]:
    """ms: `full`, of a frame encoded by the blocks as they are; `none n` and `gated n`, of updates by the fast ones."""
    frame = torch.zeros(1, plain.num_channels, grid[0] * plain.patch_size[0], grid[1] * plain.patch_size[1])
    fast = fast or plain
    caches = {name: encode_frame(fast, frame, name) for name in ("none", "gated")}  # type: ignore[arg-type]
    calls: dict[str, Callable[[], object]] = {"full": lambda: encode_frame(plain, frame)}
    for count in counts:
        for name, cache in caches.items():
            changed = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
            rows = updated_rows(plain, grid, count)[plain.num_global_tokens :] - plain.num_global_tokens
            order = plain.order(grid)
            changed[rows if order is None else order[rows]] = True
            marked = changed.view(grid)
            patches = frame.new_zeros(count, plain.num_channels, *plain.patch_size)

            def call(cache: Any = cache, patches: Tensor = patches, changed: Tensor = marked) -> Tensor:
                update_by(Gated(NOTHING_ELSE), fast, cache, patches, changed)
                return cache.read()

            calls[f"{name} {count}"] = call
    best = dict.fromkeys(calls, math.inf)
    for turn in range(repeats + 1):
        for name, one in calls.items():  # in turn, so that a machine whose speed drifts slows all of them
            seconds = busy_seconds(one)
            best[name] = min(best[name], 1e3 * seconds) if turn else best[name]
    return best
