"""What a frame of a foveated stream costs when it is encoded by what changed, beside ways that compute all of it.

A way is a call with a frame; all of them get a frame in turn. Random frames change in so many patches as are asked for:
what they show makes no difference to the time but for the rows that a gated update finds moved, which depend on pixels
and weights. Frames of a recording change as screens do, and their times are told by bins of the share of patches that
changed. How a time is taken is `timing.py`'s subject, where frames and models come from the caller's.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
    from fvlm_lib.__main__ import run_as

    run_as("bench-stream")

import functools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.stream import FoveatedStream
from fvlm_lib.timing import summarize_times, time_in_turn, timed
from fvlm_lib.vision.towers import open_tower

PLAIN, ALONE, PATCHES = "plain stream", "language model alone", "all patch tokens"
"""Names of ways."""

Ways = Mapping[str, Callable[[Tensor], object]]

BINS = {0.0: "0% changed", 0.01: "up to 1% changed", 0.05: "up to 5% changed", 0.2: "up to 20% changed",
        1.0: "above 20% changed"}  # fmt: skip
"""Names by the largest share of changed patches."""

WARMUP_SHARE = 0.05
"""Of the patches, which change in the frames that warm up the update of a recording's."""


@torch.no_grad()
def prefill_patches(model: FoveatedVLM, frame: Tensor) -> DynamicCache:
    """What a vision-language model with all patch tokens does with a frame (3, height, width): encode it in full by the
    tower's own forward, bring each patch token to the language model's width by one linear layer, and prefill the P of
    them, without a question.

    On an empty cache, which is the least that a frame can take: on a stream, its positions also attend to those of all
    frames before. The linear layer is the foveated model's `dino_to_llm`. Returns the cache with its P positions.
    """
    others = open_tower(model.encoder.dino).num_global_tokens
    patches = model.encoder.dino(frame[None]).last_hidden_state[:, others:]  # (1, P, width of the tower)
    past = DynamicCache(config=model.llm.config)
    model.run_llm(model.dino_to_llm(patches), None, past)
    return past


def language_model_alone(model: FoveatedVLM) -> Callable[[Tensor], object]:
    """A way that reads one position into a cache, and does not look at the frame."""
    past = DynamicCache(config=model.llm.config)
    token = torch.randn(1, 1, model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(0))
    token = token.to(model.device, model.dtype)
    return lambda _: model.run_llm(token, None, past)


def changing_frame(frame: Tensor, num_patches: int, patch_size: int, generator: torch.Generator) -> Tensor:
    """A copy of the frame (3, height, width) in [-1, 1] in which every pixel of `num_patches` random patches is new."""
    rows, columns = (side // patch_size for side in frame.shape[1:])
    chosen = torch.randperm(rows * columns, generator=generator)[:num_patches]
    mask = torch.zeros(rows * columns, dtype=torch.bool).index_fill(0, chosen, True).reshape(rows, columns)
    mask = mask.repeat_interleave(patch_size, 0).repeat_interleave(patch_size, 1).to(frame.device)
    drawn = 2 * torch.rand(frame.shape, generator=generator) - 1
    return torch.where(mask, drawn.to(frame), frame)


@torch.no_grad()
def time_shares(
    updated: FoveatedStream, ways: Ways, counts: Mapping[str, int], repeats: int, warmup: int
) -> pd.DataFrame:
    """Times of a stream's frames, of which so many patches are new, by name in `counts`, and of the ways on the first
    frame, in turn in every round.

    Returns the table of `timing.time_in_turn` with a column changed_patches, NaN for the ways.
    """
    size, patch_size = updated.model.config.image_size, updated.model.config.vision_config.patch_size
    generator = torch.Generator().manual_seed(0)
    drawn = [changing_frame(torch.zeros(3, size, size), (size // patch_size) ** 2, patch_size, generator)]
    for count in [*counts.values()] * (repeats + warmup):  # in the order in which they are timed
        drawn.append(changing_frame(drawn[-1], count, patch_size, generator))
    frames = [frame.to(updated.model.device, updated.model.dtype) for frame in drawn]
    updated.push(frames[0])
    left = iter(frames[1:])
    calls: dict[str, Callable[[], object]] = dict.fromkeys(counts, lambda: updated.push(next(left)))
    calls |= {name: functools.partial(way, frames[0]) for name, way in ways.items()}
    times = time_in_turn(calls, repeats, warmup)
    return times.assign(changed_patches=times["name"].map(counts))


@torch.no_grad()
def time_recording(
    updated: FoveatedStream, ways: Ways, frames: Iterable[Tensor], warmup: int, progress: bool = True
) -> pd.DataFrame:
    """Times of a stream's frames (3, height, width), each in its order and beside the ways on the same frame.

    Warmed up by `warmup` frames like the first, in which 5% of the patches are random; the streams among the ways have
    then seen these. The first frame itself, which nothing can be encoded from, is not timed.

    Returns a row a frame and way: name, of an update that of its bin in `BINS`; round, the frame's number; ms; and of
    an update changed_patches, NaN for the ways.
    """
    assert updated.encoder is not None
    left = iter(frames)
    first = seen = next(left)
    patch_size, generator = updated.model.config.vision_config.patch_size, torch.Generator().manual_seed(0)
    num_patches = math.prod(side // patch_size for side in first.shape[1:])
    updated.push(first)
    for _ in range(warmup):
        seen = changing_frame(seen, math.ceil(WARMUP_SHARE * num_patches), patch_size, generator)
        for way in (updated.push, *ways.values()):
            way(seen)
    updated.reset()
    updated.encoder.reset_statistics()
    updated.push(first)
    rows = []
    for number, frame in enumerate(tqdm(left, desc="timing", unit="frame", disable=not progress), start=1):
        _, ms = timed(functools.partial(updated.push, frame))
        assert updated.encoder.frame_statistics is not None
        changed = updated.encoder.frame_statistics.changed_patches
        rows.append({"name": bin_of(changed / num_patches), "round": number, "ms": ms, "changed_patches": changed})
        for name, way in ways.items():
            _, ms = timed(functools.partial(way, frame))
            rows.append({"name": name, "round": number, "ms": ms})
    return pd.DataFrame(rows)


def bin_of(share: float) -> str:
    """The name in `BINS` of a share of changed patches."""
    return [*BINS.values()][bisect_left([*BINS], share)]


def summarize_stream(times: pd.DataFrame, positions: Mapping[str, int], frame_rate: float) -> pd.DataFrame:
    """What `timing.summarize_times` tells of `time_shares` or `time_recording` beside the plain stream, a row a name;
    and faster, so many times; changed_patches, their median; positions that the language model reads of a frame, 1
    where `positions` says no other number, and positions_a_minute, at so many frames a second."""
    table = summarize_times(times, PLAIN)
    first = [name for name in (PLAIN, *BINS.values()) if name in table.index]
    table = table.loc[[*first, *table.index.drop(first)]]
    table["faster"] = 1 / table["ratio"]
    table["changed_patches"] = times.groupby("name")["changed_patches"].median()
    table["positions"] = [positions.get(name, 1) for name in table.index]
    table["positions_a_minute"] = 60 * frame_rate * table["positions"]
    return table
