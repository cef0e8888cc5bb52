"""Weights as transformers loads them, held to what it only warns about: every key there, of its shape, all finite.

Which files are read, and what is made of them, is for those who load: foveated checkpoints, towers, whole VLMs.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn
from transformers.utils import logging as transformers_logging

from fvlm_lib.errors import CheckpointError, some
from fvlm_lib.foveated.layouts import stored_name


def load_strictly(name: str, load: Callable[..., Any], *, unexpected: bool = False) -> Any:
    """The model that `load(**options)`, a `from_pretrained`, gives; quietly, and in eval mode.

    name: of the checkpoint, for messages. unexpected: let the file have more keys than the model, as a tower's does
    that was trained with a head. Raises CheckpointError for keys that are missing, unexpected or of another shape, and
    for weights that are not finite; whatever `load` raises is the caller's.
    """
    with quiet_transformers():
        # mismatched sizes are listed, and raised below
        model, info = load(output_loading_info=True, ignore_mismatched_sizes=True)
    if unexpected:
        info = {**info, "unexpected_keys": ()}
    if problems := loading_problems(info):
        raise CheckpointError(f"{name}: the weights do not fit the config ({problems})")
    check_finite(model, name)
    return model.eval()


def loading_problems(info: dict[str, Any]) -> str:
    """The keys that did not fit, the first of them by the names they have in files; "" where all did."""
    parts = []
    for kind, keys in info.items():
        if kind == "mismatched_keys":
            names = [_mismatch(stored_name(key), [*found], [*wanted]) for key, found, wanted in keys]
        else:
            names = [stored_name(str(key)) for key in keys]
        if names:
            parts.append(f"{kind.removesuffix('_keys')}: {some(names, 5 if kind != 'mismatched_keys' else 3)}")
    return "; ".join(parts)


def _mismatch(name: str, found: Sequence[int], wanted: Sequence[int]) -> str:
    said = f"{name} is {found}, not {wanted}"
    if "position_embedding" in name and len(found) >= 2 <= len(wanted):
        said += f", so of a grid of {_grid(found[-2])} patches, not {_grid(wanted[-2])}"
    return said


def _grid(positions: int) -> str:
    """The square grid of so many position embeddings, of which one may be the CLS token's."""
    side = math.isqrt(positions)
    return f"{side} x {side}" if side**2 in (positions, positions - 1) else str(positions)


def check_finite(model: nn.Module, name: str) -> None:
    """Raise CheckpointError where a weight is NaN or infinite, naming the first such tensor and how many it has.

    name: of the checkpoint, for the message.
    """
    damaged = []
    for key, value in model.state_dict().items():
        # the smallest and largest tell without a copy; one byte an element is quantised, and has none of either
        if value.is_floating_point() and value.element_size() > 1 and value.numel():
            low, high = value.aminmax()
            if not (low.isfinite() and high.isfinite()):
                damaged.append((stored_name(key), value))
    if damaged:
        key, value = damaged[0]
        nan, infinite = int(value.isnan().sum()), int(value.isinf().sum())
        others = f" (and so in {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise CheckpointError(
            f"{name}: {key} has {nan} NaN and {infinite} infinite of {value.numel()} weights in "
            f"{str(value.dtype).removeprefix('torch.')}{others}; all must be finite: take a checkpoint from before the "
            "training diverged, or a wider dtype"
        )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No warnings or bars from transformers: what it would warn about is raised here."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
