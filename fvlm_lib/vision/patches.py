"""The patch grid of a frame: which patches changed between two frames, and how to cut patches out.

A frame of (height, width) pixels is covered by a grid of ceil(height / patch) rows and ceil(width / patch)
columns, counted from the top left; patches of the last row and column may be smaller, and are judged by
the pixels that they have.

Differences are fractions of the full range (1.0 = black to white) of the unnormalised frame, so that one
threshold serves a uint8 frame, its float copy and its mean/std-normalised tensor, and gives the same mask:

* uint8 is 0..255, because of its dtype; the pixel values are never looked at to guess the range.
* floats are 0..1, or mean/std-normalised when `mean` and `std` (in units of that 0..1) are given.
* Differences of float pixels that are a whole number of grey levels (1/255) but for rounding, within
  `GREY_TOLERANCE`, are taken as that whole number. Sums of whole numbers are exact, so a patch whose
  difference *equals* the threshold is "not changed" in all three forms. Float frames of other origin are
  moved by at most `GREY_TOLERANCE` of a grey level, 4e-6 of the range; and no difference is rounded to
  nothing, so a threshold of 0 still means "any change at all". float16 and bfloat16 frames are taken too,
  but hold too few digits for that promise.

Layout: torch tensors are (C, H, W), numpy arrays (H, W, C) as Pillow gives them; `channels_last` says
otherwise. Both may be (H, W) alone or have a leading batch of one. All differences are computed by numpy
on the CPU: these are many short passes over the pixels, too short to gain from torch's threads. A tensor on
another device is copied over first.

The module does not know about models, caches or policies; see `differential.py` for what is done with a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from fvlm_lib.schema import Metric

Frame = TypeVar("Frame", np.ndarray, torch.Tensor)
PatchSize = int | tuple[int, int]
Statistic = float | Sequence[float] | None

GREY_LEVELS = 255
GREY_TOLERANCE = 1e-3
"""Of one grey level. Normalising in float32 and undoing it errs by up to 3e-5 of a level."""

BAND_BYTES = 2**18
"""Of one frame that are worked on at a time: the few copies made of a band fit a core's own cache."""

RANGE_MARGIN = 0.25
"""How far a float frame may leave [0, 1] before it is refused: bicubic resizing overshoots by up to 0.2."""


def patch_grid(height: int, width: int, patch_size: PatchSize) -> tuple[int, int]:
    """Rows and columns of the grid of patches that covers (height, width) pixels, the last ones cut short.

    `patch_size` is an int for square patches or (height, width). Raises ValueError for a size below 1.
    """
    patch_h, patch_w = _patch_shape(patch_size)
    if height < 1 or width < 1:
        raise ValueError(f"image of {height} x {width} pixels: both sides must be at least 1")
    return -(-height // patch_h), -(-width // patch_w)


def patch_difference_map(
    prev: Frame,
    new: Frame,
    patch_size: PatchSize,
    *,
    metric: Metric = "mean",
    mean: Statistic = None,
    std: Statistic = None,
    channels_last: bool | None = None,
) -> Frame:
    """How much each patch differs between two frames, as a fraction of the full range.

    `metric="mean"` is the mean absolute difference over the patch's own pixels and channels, `"max"` the
    largest one. `mean` and `std` (a number, or one per channel, in units of the [0, 1] range) are those that
    the frames were normalised with; without them float frames are taken as [0, 1].

    Returns float64 (grid_h, grid_w), of the kind (numpy or torch, device) of the frames. Raises ValueError
    for frames of different kinds, dtypes or shapes, empty frames, NaN, and floats far outside [0, 1].
    """
    if metric not in ("mean", "max"):
        raise ValueError(f"metric {metric!r}: must be 'mean' or 'max'")
    patch_h, patch_w = _patch_shape(patch_size)
    a, b = _comparable(prev, new, channels_last)  # (C, H, W)
    channels, height, width = a.shape
    scale = _grey_levels_per_unit(a, b, mean, std)
    levels = np.zeros(patch_grid(height, width, patch_size))

    # Screens mostly change in a few lines: the exact comparison is the smaller part of the work, the rest is
    # done only from the first to the last row of patches in which anything differs, and in bands of rows
    # that fit the processor's cache, which takes a third off the time.
    changed = np.unique(np.flatnonzero((a != b).any(axis=(0, 2))) // patch_h)  # rows of the grid
    step = max(1, BAND_BYTES // a[:, :patch_h].nbytes)
    for first in range(changed[0], changed[-1] + 1, step) if changed.size else ():
        band = slice(first, min(first + step, changed[-1] + 1))
        pixel_rows = slice(band.start * patch_h, band.stop * patch_h)
        difference = _difference_in_grey_levels(a[:, pixel_rows], b[:, pixel_rows], scale)
        if metric == "max":
            rows = _reduce_blocks(np.maximum, difference, patch_h, axis=1)  # (C, band, W)
            levels[band] = _reduce_blocks(np.maximum, rows, patch_w, axis=2).max(axis=0)  # (band, grid_w)
        else:
            # Whole numbers below 2**24 are exact in float32, and a column of one patch stays far below that.
            row_type = np.uint32 if difference.dtype == np.uint8 else difference.dtype
            rows = _reduce_blocks(np.add, difference, patch_h, axis=1, dtype=row_type)
            levels[band] = _reduce_blocks(np.add, rows, patch_w, axis=2, dtype=np.float64).sum(axis=0)
    # One division of whole numbers: a patch that differs by k levels everywhere gets the very number k / 255.
    if metric == "mean":
        pixels = np.outer(_block_lengths(height, patch_h), _block_lengths(width, patch_w))
        levels /= GREY_LEVELS * channels * pixels
    else:
        levels /= GREY_LEVELS
    return _like(new, levels)


def compute_patch_diff(
    prev: Frame,
    new: Frame,
    patch_size: PatchSize,
    threshold: float,
    *,
    metric: Metric = "mean",
    mean: Statistic = None,
    std: Statistic = None,
    channels_last: bool | None = None,
) -> Frame:
    """Which patches changed: those whose `patch_difference_map` is *above* the threshold.

    `threshold` is a fraction of the full range in [0, 1]; 0 means that any change at all is a change.
    The mean thins out small changes: a black caret one pixel wide is at most 1/16 = 0.06 of a 16 x 16 patch,
    half of that where a patch border cuts it, and a tenth of it in a screenshot of 1280 pixels shrunk to 336.
    `metric="max"` sees 1.0, and about 0.15 when shrunk.

    Returns bool (grid_h, grid_w), of the kind (numpy or torch, device) of the frames. Raises ValueError for a
    threshold outside [0, 1] and for everything that `patch_difference_map` refuses.
    """
    if not 0 <= threshold <= 1:  # NaN too
        raise ValueError(f"threshold {threshold}: must be a fraction of the full range, in [0, 1]")
    difference = patch_difference_map(
        prev, new, patch_size, metric=metric, mean=mean, std=std, channels_last=channels_last
    )
    return difference > threshold


def expand_mask(mask: Frame, height: int, width: int, patch_size: PatchSize) -> Frame:
    """A mask of patches (grid_h, grid_w) as a mask of pixels (height, width), for drawing or for copying
    the changed pixels. Raises ValueError if the mask's shape is not that of the grid."""
    patch_h, patch_w = _patch_shape(patch_size)
    _check_mask(mask, patch_grid(height, width, patch_size))
    rows, columns = np.arange(height) // patch_h, np.arange(width) // patch_w
    if isinstance(mask, torch.Tensor):
        return mask[torch.from_numpy(rows).to(mask.device)][:, torch.from_numpy(columns).to(mask.device)]
    return mask[rows][:, columns]


def extract_patch(
    image: Frame, row: int, col: int, patch_size: PatchSize, *, channels_last: bool | None = None
) -> Frame:
    """A copy of the patch at (row, col) of the grid, in the layout of the image, smaller at the far borders.

    Raises ValueError for a position outside the grid.
    """
    patch, _ = extract_patch_window(image, row, col, patch_size, 0, channels_last=channels_last)
    return patch


def extract_patch_window(
    image: Frame, row: int, col: int, patch_size: PatchSize, radius: int, *, channels_last: bool | None = None
) -> tuple[Frame, tuple[slice, slice]]:
    """A copy of a patch with `radius` patches of context on every side, clipped at the image's border.

    Returns the window, in the layout of the image, and where the patch lies in it: slices `(rows, columns)`
    of pixels, such that `window[rows, columns]` (channels last) or `window[..., rows, columns]` is the patch.
    Raises ValueError for a position outside the grid or a negative radius.
    """
    if radius < 0:
        raise ValueError(f"radius {radius}: must be 0 or more patches")
    patch_h, patch_w = _patch_shape(patch_size)
    last = _channels_last(image, channels_last)
    height, width = _image_size(image, last)
    grid_h, grid_w = patch_grid(height, width, patch_size)
    if not (0 <= row < grid_h and 0 <= col < grid_w):
        raise ValueError(f"patch ({row}, {col}): outside the grid of {grid_h} rows and {grid_w} columns")
    rows, inner_rows = _clipped(row, patch_h, radius, height)
    columns, inner_columns = _clipped(col, patch_w, radius, width)
    window = image[..., rows, columns, :] if last and image.ndim > 2 else image[..., rows, columns]
    copy = window.clone() if isinstance(window, torch.Tensor) else window.copy()
    return copy, (inner_rows, inner_columns)


def extract_patches(image: torch.Tensor, mask: torch.Tensor, patch_size: PatchSize) -> torch.Tensor:
    """All patches that the mask marks, in reading order, as a ViT's patch embedding wants them.

    `image` is (C, H, W) or (1, C, H, W), `mask` bool (grid_h, grid_w); returns (n, C, patch_h, patch_w).
    Raises ValueError for an image not made of whole patches, and for a mask of another shape than its grid.
    """
    patch_h, patch_w = _patch_shape(patch_size)
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3:
        raise ValueError(f"image of shape {tuple(image.shape)}: must be (C, H, W) or (1, C, H, W)")
    height, width = image.shape[1:]
    if height % patch_h or width % patch_w:
        raise ValueError(
            f"image of {height} x {width} pixels: must be a multiple of the patch size {patch_h} x {patch_w}"
        )
    grid = patch_grid(height, width, patch_size)
    _check_mask(mask, grid)
    patches = image.unflatten(2, (grid[1], patch_w)).unflatten(1, (grid[0], patch_h))  # (C, gh, ph, gw, pw)
    return patches.permute(1, 3, 0, 2, 4)[mask.to(image.device)]  # (n, C, ph, pw)


# --- frames as arrays ---


def _comparable(prev: Frame, new: Frame, channels_last: bool | None) -> tuple[np.ndarray, np.ndarray]:
    """Both frames as views (C, H, W); ValueError if they cannot be compared."""
    a = _as_array(prev, channels_last, "previous frame")
    b = _as_array(new, channels_last, "new frame")
    if isinstance(prev, torch.Tensor) != isinstance(new, torch.Tensor) or prev.dtype != new.dtype:
        kinds = [f"{type(frame).__name__} of {frame.dtype}" for frame in (prev, new)]
        raise ValueError(f"previous frame is a {kinds[0]} and new frame a {kinds[1]}: must be of one kind")
    if len(a) != len(b):
        raise ValueError(f"previous frame has {len(a)} channels and new frame {len(b)}: must be the same")
    if a.shape != b.shape:
        sizes = [f"{height} x {width}" for _, height, width in (a.shape, b.shape)]
        raise ValueError(f"previous frame is {sizes[0]} pixels and new frame {sizes[1]}: must be the same")
    return a, b


def _as_array(frame: Any, channels_last: bool | None, name: str) -> np.ndarray:
    """The frame as a numpy view (C, H, W); half precision becomes float32."""
    last = _channels_last(frame, channels_last)
    _image_size(frame, last, name)
    if isinstance(frame, torch.Tensor):
        frame = frame.detach().cpu()
        array = (frame.float() if frame.dtype in (torch.float16, torch.bfloat16) else frame).numpy()
    else:
        array = frame.astype(np.float32) if frame.dtype == np.float16 else frame
    if array.dtype not in (np.uint8, np.float32, np.float64):
        raise ValueError(f"{name} has dtype {frame.dtype}: must be uint8 (0 to 255) or floating point")
    if array.ndim == 2:
        return array[None]
    array = array[0] if array.ndim == 4 else array
    return array.transpose(2, 0, 1) if last else array


def _channels_last(frame: Any, channels_last: bool | None) -> bool:
    if not isinstance(frame, np.ndarray | torch.Tensor):
        raise ValueError(f"frame is a {type(frame).__name__}: must be a numpy array or a torch tensor")
    return isinstance(frame, np.ndarray) if channels_last is None else channels_last


def _image_size(frame: Any, channels_last: bool, name: str = "image") -> tuple[int, int]:
    """(height, width) in pixels; ValueError if the shape is not that of one image."""
    shape = tuple(frame.shape)
    order = "(height, width, channels)" if channels_last else "(channels, height, width)"
    if len(shape) not in (2, 3, 4) or (len(shape) == 4 and shape[0] != 1):
        raise ValueError(f"{name} has shape {shape}: must be one image, {order} or (height, width)")
    if 0 in shape:
        raise ValueError(f"{name} has shape {shape}: every side must be at least 1")
    if len(shape) == 2:
        return shape[0], shape[1]
    height, width, channels = shape[-3:] if channels_last else (*shape[-2:], shape[-3])
    if channels > 4:
        raise ValueError(
            f"{name} of shape {shape}, read as {order}, has {channels} channels: at most 4 are possible; "
            f"channels_last={not channels_last} reads the other layout"
        )
    return height, width


def _grey_levels_per_unit(a: np.ndarray, b: np.ndarray, mean: Statistic, std: Statistic) -> Any:
    """What a difference of float pixels is multiplied with to be in grey levels; None for uint8 frames.

    Refuses NaN, and frames (C, H, W) that are not in the range which `mean` and `std` say.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"mean {mean} and std {std}: give both, or neither if frames are not normalised")
    if a.dtype == np.uint8:
        if mean is not None:
            raise ValueError("mean and std given for uint8 frames: only float frames can be normalised")
        return None
    means = _per_channel(0.0 if mean is None else mean, len(a), "mean")
    stds = _per_channel(1.0 if std is None else std, len(a), "std")
    if not (stds > 0).all():
        raise ValueError(f"std {std}: must be above 0")
    for name, frame in (("previous frame", a), ("new frame", b)):
        if mean is None:
            low, high = frame.min(), frame.max()
        else:
            low = np.min([plane.min() * s + m for plane, s, m in zip(frame, stds, means, strict=True)])
            high = np.max([plane.max() * s + m for plane, s, m in zip(frame, stds, means, strict=True)])
        if np.isnan(low):
            raise ValueError(f"{name} has NaN pixels: all must be finite")
        if low < -RANGE_MARGIN or high > 1 + RANGE_MARGIN:
            hint = "give mean and std if it is normalised" if mean is None else "mean and std may be wrong"
            raise ValueError(f"{name} ranges from {low:.4g} to {high:.4g}: must be about 0 to 1; {hint}")
    scale = (GREY_LEVELS * stds).astype(a.dtype)
    return scale[0] if (scale == scale[0]).all() else scale[:, None, None]  # numpy is faster with a scalar


def _per_channel(values: Any, channels: int, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    if array.size not in (1, channels) or not np.isfinite(array).all():
        raise ValueError(f"{name} {values}: must be a finite number, or one for each of {channels} channels")
    return np.broadcast_to(array, (channels,))


def _difference_in_grey_levels(a: np.ndarray, b: np.ndarray, scale: Any) -> np.ndarray:
    """Absolute difference of each pixel: uint8, or float with whole numbers of grey levels made exact."""
    if scale is None:
        return np.maximum(a, b) - np.minimum(a, b)
    difference = a - b
    np.abs(difference, out=difference)
    difference *= scale
    whole = np.rint(difference)
    error = np.abs(difference - whole)
    np.copyto(difference, whole, where=(error <= GREY_TOLERANCE) & (whole > 0))
    return difference


# --- reductions over blocks ---


def _reduce_blocks(ufunc: np.ufunc, values: np.ndarray, size: int, *, axis: int, dtype: Any = None) -> np.ndarray:
    """Reduce each block of `size` along an axis; the last may be shorter. `ufunc.reduceat` is slow."""
    whole, rest = divmod(values.shape[axis], size)
    body, tail = np.split(values, [whole * size], axis=axis)
    blocks = body.reshape(*values.shape[:axis], whole, size, *values.shape[axis + 1 :])  # a view
    reduced = ufunc.reduce(blocks, axis=axis + 1, dtype=dtype)
    if not rest:
        return reduced
    last = ufunc.reduce(tail, axis=axis, dtype=dtype, keepdims=True)
    return np.concatenate([reduced, last], axis=axis)


def _block_lengths(length: int, size: int) -> np.ndarray:
    return np.minimum(size, length - np.arange(0, length, size))


def _clipped(index: int, size: int, radius: int, length: int) -> tuple[slice, slice]:
    """Along one axis: the window's pixels in the image, and the patch's pixels in the window."""
    start, stop = max(0, (index - radius) * size), min(length, (index + radius + 1) * size)
    return slice(start, stop), slice(index * size - start, min(length, (index + 1) * size) - start)


def _patch_shape(patch_size: PatchSize) -> tuple[int, int]:
    shape = patch_size if isinstance(patch_size, tuple | list) else (patch_size, patch_size)
    if len(shape) != 2 or not all(isinstance(side, int | np.integer) and side >= 1 for side in shape):
        raise ValueError(f"patch_size {patch_size}: must be whole pixels above 0, one or (height, width)")
    return int(shape[0]), int(shape[1])


def _check_mask(mask: np.ndarray | torch.Tensor, grid: tuple[int, int]) -> None:
    if tuple(mask.shape) != grid or str(mask.dtype).removeprefix("torch.") != "bool":
        raise ValueError(f"mask is {mask.dtype} of shape {tuple(mask.shape)}: must be bool of shape {grid}")


def _like(frame: Frame, values: np.ndarray) -> Frame:
    if isinstance(frame, torch.Tensor):
        return torch.from_numpy(values).to(frame.device)
    return values
