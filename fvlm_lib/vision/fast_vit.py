"""A convolutional tower's maps of one frame, updated where the frame changed: encode_frame, update, update, ...

The tower is a chain of units (`Windowed`, `Residual`, `Whole`) and the cache holds the map between every two. A
position of a map that changed reaches the next unit's positions within its kernels; those are computed anew, in tiles
with their halo, and of them the ones that moved by more than a tolerance are written into the next map and go on. The
rest stops there, and is held against what the map has the next time, so that slow drift adds up until it is seen. A
unit whose reach is the whole map (attention, squeeze-excitation) is computed for all positions and gated behind.

Nearest prior work: DeltaCNN (Parger et al., CVPR 2022, arXiv 2203.03996), which also truncates small changes at every
layer. It sends differences through the linear layers and keeps accumulated values where activations need them; here
every kept value is a unit's output for the kept inputs, so that no rounding adds up over frames, and products are made
for the positions alone in place of whole tiles.

Maps are kept as rows (P, C), positions in reading order: a position's channels lie together. How an architecture is
taken apart into units is the subject of `adapters/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fvlm_lib.reuse.kept import Journal
from fvlm_lib.vision.opened_tower import Grid, check_frame, check_patches

TILE = 8
"""Positions a side of the tiles in which windows are gathered and convolved. Smaller ones read more halo, larger ones
convolve more positions that nobody needs. With 384 channels both together take about a tenth of the time of the
products of a position, which are made for the needed ones alone."""

Size = tuple[int, int]
"""Height and width of a map, in positions."""

# ---- units -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A convolution with zero padding and what follows it at every value or position (norm, activation)."""

    convolution: nn.Conv2d
    then: Callable[[Tensor], Tensor]

    def whole(self, x: Tensor) -> Tensor:
        """The step on a whole map (1, C, H, W)."""
        return self.then(self.convolution(x))

    def valid(self, x: Tensor) -> Tensor:
        """The step without padding, (n, C, h, w) to (n, D, h', w')."""
        conv = self.convolution
        return self.then(F.conv2d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups))

    @property
    def geometry(self) -> tuple[int, int, int]:
        """Kernel, stride and padding of either side; kernels are square."""
        conv = self.convolution
        return conv.kernel_size[0], conv.stride[0], int(conv.padding[0])


@dataclass(frozen=True)
class Windowed:
    """A unit of finite reach: convolutions, then `pointwise` of every position's channels, rows (n, C) to (n, D).

    whole: the same of a whole map (1, C, H, W), as the model itself computes it.
    """

    steps: tuple[Step, ...]
    pointwise: Callable[[Tensor], Tensor]
    whole: Callable[[Tensor], Tensor]

    def reached(self, changed: Tensor) -> Tensor:
        """Which output positions, bool (H', W'), depend on the input positions `changed`, bool (H, W)."""
        return _reached(self.steps, changed)

    def compute(self, rows: Tensor, size: Size, needed: Tensor) -> tuple[Tensor, Tensor]:
        """The output at the positions `needed`, bool (H', W'), of the map `rows` (H W, C), size (H, W): their indices
        (n,), rising, among the H' W', and their values (n, D)."""
        places, _, convolved = _convolve(self.steps, rows, size, needed)
        return places, self.pointwise(convolved)


@dataclass(frozen=True)
class Residual:
    """Convolutions that keep a map's size and channels, and an MLP: x + pointwise(y), y the last convolution of x, x
    what the convolutions before it give.

    Most of the arithmetic is in the MLP, most of the reach in the convolution. So y is kept as well, and gated: the MLP
    is computed where y moved, not wherever a large kernel reaches.
    """

    steps: tuple[Step, ...]
    pointwise: Callable[[Tensor], Tensor]

    def reached(self, changed: Tensor) -> Tensor:
        """As `Windowed.reached`."""
        return _reached(self.steps, changed)

    def whole(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and the output (1, C, H, W) of a whole map."""
        for step in self.steps[:-1]:
            x = step.whole(x)
        y = self.steps[-1].whole(x)
        return y, x + as_map(self.pointwise(as_rows(y)), (x.shape[2], x.shape[3]))

    def convolve(self, rows: Tensor, size: Size, needed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Indices (n,) of the positions `needed`, and x and y (n, C) there."""
        return _convolve(self.steps, rows, size, needed)


@dataclass(frozen=True)
class Whole:
    """A unit in which every position depends on all others: map (1, C, H, W) to (1, D, H', W'). stride: H / H'."""

    whole: Callable[[Tensor], Tensor]
    stride: int = 1

    def reached(self, changed: Tensor) -> Tensor:
        """All positions, bool (H', W')."""
        return changed.new_ones(changed.shape[0] // self.stride, changed.shape[1] // self.stride)

    def compute(self, rows: Tensor, size: Size, needed: Tensor) -> tuple[Tensor, Tensor]:
        """As `Windowed.compute`; costs the same however few are needed."""
        places = needed.flatten().nonzero().squeeze(1)
        return places, as_rows(self.whole(as_map(rows, size)))[places]


Unit = Windowed | Residual | Whole


def _reached(steps: tuple[Step, ...], changed: Tensor) -> Tensor:
    reached = changed[None, None].float()
    for step in steps:
        reached = F.max_pool2d(reached, *step.geometry)
    return reached[0, 0] > 0


def _convolve(steps: tuple[Step, ...], rows: Tensor, size: Size, needed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the map `rows` (H W, C) of `size` (H, W), at the output positions `needed`, bool (H', W'): their indices (n,),
    rising, the input of the last step there if it has stride 1, and its output, (n, D) each."""
    places = needed.flatten().nonzero().squeeze(1)
    if not steps:
        found = rows[places]
        return places, found, found
    tiles = F.max_pool2d(needed[None, None].float(), TILE, ceil_mode=True)[0, 0] > 0
    corners = tiles.nonzero() * TILE  # (t, 2)
    starts, sizes = [corners], [size]  # of every step's windows, and of the maps that they are cut from
    length = TILE
    for step in reversed(steps):
        kernel, stride, padding = step.geometry
        starts.insert(0, starts[0] * stride - padding)
        length = (length - 1) * stride + kernel
    for step in steps:
        kernel, stride, padding = step.geometry
        height, width = sizes[-1]
        sizes.append(((height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1))
    x = before = _windows(rows, size, starts[0], length)
    for i, step in enumerate(steps):
        if i:  # outside the frame, the next convolution meets zeros, not what this one made of them
            _blank_outside(x, sizes[i], starts[i])
        before, x = x, step.valid(x)
    margin = (before.shape[-1] - TILE) // 2
    before = before[:, :, margin : margin + TILE, margin : margin + TILE]
    down, right = places // needed.shape[1], places % needed.shape[1]
    number = tiles.flatten().cumsum(0)[(down // TILE) * tiles.shape[1] + right // TILE] - 1  # which tile
    taken = number * TILE**2 + down % TILE * TILE + right % TILE
    return places, _positions(before)[taken], _positions(x)[taken]


def as_rows(maps: Tensor) -> Tensor:
    """A map (1, C, H, W) as rows (H W, C); a view of one in the memory format channels_last."""
    return maps[0].permute(1, 2, 0).flatten(0, 1)


def as_map(rows: Tensor, size: Size) -> Tensor:
    """Rows (H W, C) as a map (1, C, H, W) of `size` (H, W), a view in the memory format channels_last."""
    return rows.unflatten(0, size).permute(2, 0, 1)[None]


def _windows(rows: Tensor, size: Size, starts: Tensor, length: int) -> Tensor:
    """Square windows (n, C, length, length) of a map's rows (H W, C) from `starts` (n, 2), zero outside the map."""
    along = torch.arange(length, device=rows.device)
    down, right = starts[:, :1] + along, starts[:, 1:] + along  # (n, length)
    places = down.clamp(0, size[0] - 1)[:, :, None] * size[1] + right.clamp(0, size[1] - 1)[:, None]
    windows = rows.index_select(0, places.flatten()).unflatten(0, places.shape).permute(0, 3, 1, 2)
    _blank_outside(windows, size, starts)
    return windows


def _blank_outside(windows: Tensor, size: Size, starts: Tensor) -> None:
    """Zero what of windows (n, C, length, length) from `starts` (n, 2) lies outside a map of `size`, in place."""
    along = torch.arange(windows.shape[-1], device=windows.device)
    down, right = starts[:, :1] + along, starts[:, 1:] + along
    outside = ((down < 0) | (down >= size[0]))[:, :, None] | ((right < 0) | (right >= size[1]))[:, None]
    if outside.any():  # most windows lie inside, and writing all of them takes as long as gathering them
        windows.permute(0, 2, 3, 1)[outside] = 0


def _positions(windows: Tensor) -> Tensor:
    """Windows (n, C, h, w) as rows (n h w, C)."""
    return windows.permute(0, 2, 3, 1).flatten(0, 2)


# ---- the tower and what it keeps ---------------------------------------------------------------------


@dataclass(frozen=True)
class ConvolutionalTower:
    """Units from pixels (1, C, H, W) to tokens (1, D, rows, columns), one token for every patch.

    patch_size: pixels (height, width) of a token, the product of all strides. Frames of any whole patches will do.
    """

    image_size: ClassVar[None] = None
    num_global_tokens: ClassVar[int] = 0

    units: tuple[Unit, ...]
    patch_size: Size
    num_channels: int

    def grid(self, pixel_values: Tensor) -> Grid:
        """Rows and columns of patches of frames (..., height, width)."""
        height, width = pixel_values.shape[-2:]
        return height // self.patch_size[0], width // self.patch_size[1]

    def order(self, grid: Grid) -> None:
        """Tokens are in reading order."""


@dataclass(frozen=True)
class MapCache:
    """What is kept of one frame: every unit's input, then the last one's output.

    maps: rows (H W, C) each. sizes: (H, W) of each. convolved: of each `Residual` unit its y, as rows, else None.
    gated: whether a change goes on beyond the patches it is in.
    """

    maps: tuple[Tensor, ...]
    sizes: tuple[Size, ...]
    convolved: tuple[Tensor | None, ...]
    gated: bool

    def read(self) -> Tensor:
        """A copy (1, P, D) of the tokens."""
        return self.maps[-1][None].clone()

    def read_taps(self) -> tuple[()]:
        """None: no other unit's outputs are read."""
        return ()

    def tensors(self) -> list[Tensor]:
        """All tensors of the cache."""
        return [*self.maps, *(rows for rows in self.convolved if rows is not None)]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the cache."""
        return sum(rows.nbytes for rows in self.tensors())


@torch.no_grad()
def encode_frame(tower: ConvolutionalTower, pixel_values: Tensor, gated: bool = True) -> MapCache:
    """Encode one frame (1, C, height, width) into a cache that `update` takes; `.read()` gives its tokens.

    gated: see `update`. Raises ValueError for another shape than that of one frame of whole patches.
    """
    check_frame(tower, pixel_values)
    x = pixel_values.clone(memory_format=torch.channels_last)
    maps = [x]
    convolved: list[Tensor | None] = []
    for unit in tower.units:
        y: Tensor | None = None
        if isinstance(unit, Residual):
            y, x = unit.whole(x)
        else:
            x = unit.whole(x)
        maps.append(x)
        convolved.append(None if y is None else as_rows(y))
    sizes = tuple((each.shape[2], each.shape[3]) for each in maps)
    return MapCache(tuple(map(as_rows, maps)), sizes, tuple(convolved), gated)


def update(
    tower: ConvolutionalTower, cache: MapCache, patches: Tensor, changed: Tensor, tolerance: float = 0.0
) -> Tensor:
    """Put the changed patches of a new frame into the cache of `encode_frame`; returns its tokens (1, P, D).

    patches (n, C, patch_h, patch_w): the new pixels of the n patches that `changed` marks, in reading order;
    changed: bool (rows, columns). Of a patch, only the pixels that differ count. What is then computed anew:

    * cache made with gated=True: all that the change reaches. Of every map, or of what the MLP behind it is computed
      from, positions that moved by more than `tolerance` (relative L2, against what is kept) go on. 0 equals a full
      encode.
    * with gated=False: only positions of the changed patches, from the whole maps.

    If anything is raised, an interrupt by the user included, the cache is as it was before.
    Raises ValueError for shapes that do not fit the cache, pixels that are not finite, and a negative tolerance.
    """
    check_patches(tower, len(cache.maps[-1]), patches, changed)
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it must be 0 or more")
    with torch.inference_mode():  # also takes caches made under inference mode, wherever it is called
        journal = Journal()
        try:
            _walk(tower, cache, patches, changed, tolerance, journal)
        except BaseException:
            journal.undo()
            raise
    return cache.read()


def _walk(
    tower: ConvolutionalTower, cache: MapCache, patches: Tensor, changed: Tensor, tolerance: float, journal: Journal
) -> None:
    pixels = cache.maps[0]
    changed = changed.to(pixels.device).reshape(cache.sizes[-1])
    frame = as_map(pixels.clone(), cache.sizes[0])[0]  # (C, H, W)
    height, width = tower.patch_size
    grid = frame.unflatten(2, (-1, width)).unflatten(1, (-1, height))  # (C, rows, h, columns, w)
    grid.permute(1, 3, 0, 2, 4)[changed] = patches.to(frame)
    places = (as_rows(frame[None]) != pixels).any(dim=1).nonzero().squeeze(1)  # of a patch, often a few pixels
    journal.write(pixels, places, as_rows(frame[None])[places])
    tolerance = tolerance if cache.gated else 0.0
    for i, unit in enumerate(tower.units):
        rows, size, after = cache.maps[i], cache.sizes[i], cache.maps[i + 1]
        if not len(places):
            return
        needed = unit.reached(_mask(places, size))
        if not cache.gated:
            needed &= _spread(changed, cache.sizes[i + 1])
        if isinstance(unit, Residual):
            kept = cache.convolved[i]
            assert kept is not None
            places, x, y = unit.convolve(rows, size, needed)
            far = _far(kept, places, y, tolerance)
            places, x, y = places[far], x[far], y[far]
            journal.write(kept, places, y)
            found = x + unit.pointwise(y)
            far = _far(after, places, found, 0.0)
        else:
            places, found = unit.compute(rows, size, needed)
            # tokens go nowhere, so that gating them saves nothing
            far = _far(after, places, found, tolerance if i + 1 < len(tower.units) else 0.0)
        places = places[far]
        journal.write(after, places, found[far])


def _far(rows: Tensor, places: Tensor, found: Tensor, tolerance: float) -> Tensor:
    """Which of the values `found` (n, C) are further from those at `places` (n,) than the tolerance: bool (n,)."""
    old = rows.index_select(0, places)
    return torch.linalg.vector_norm(found - old, dim=1) > tolerance * torch.linalg.vector_norm(old, dim=1)


def _mask(places: Tensor, size: Size) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool, device=places.device)
    mask.view(-1)[places] = True
    return mask


def _spread(patches: Tensor, size: Size) -> Tensor:
    """A mask of patches (rows, columns) as one of a map's positions, bool (H, W)."""
    down, right = (side // count for side, count in zip(size, patches.shape, strict=True))
    return patches.repeat_interleave(down, 0).repeat_interleave(right, 1)
