"""One frame's `PatchCache`, updated where patches changed: encode_frame, update, update, ...

A partial update computes the changed patches' tokens at every layer, at their own positions, against the keys
and values of the whole frame. What is done about the other tokens, which feel the change too, is said at
`update`. Which patches changed, and when so many did that a full encode is better, this module does not know.

Letters as in `towers.py`; n is the number of tokens that are computed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fvlm_lib.reuse.kept import Journal, empty_rows
from fvlm_lib.reuse.policies.gated import Gated
from fvlm_lib.reuse.walk import GatingPolicy, walk_gated, walk_rows
from fvlm_lib.schema import Propagate, check
from fvlm_lib.vision.opened_tower import Tower, check_frame, check_patches
from fvlm_lib.vision.towers import PatchCache


@torch.no_grad()
def encode_frame(tower: Tower, pixel_values: Tensor, propagate: Propagate = "none") -> PatchCache:
    """Encode one frame (1, C, height, width) into a cache that `update` takes; `.read()` gives its tokens.

    propagate: "gated" and "budget" keep what updates by such a policy need, "none" does not.
    Raises ValueError for another shape than that of one frame of whole patches, or of the tower's size.
    """
    check(Propagate, propagate, "propagate")
    check_frame(tower, pixel_values)
    x = tower.embed(pixel_values)[0]  # (P, D)
    rows = empty_rows(tower.blocks, x, gated=propagate != "none")
    cache = PatchCache(
        rows.keys, rows.values, rows.gates, tower.num_global_tokens,
        blank=tower.embeddings(torch.zeros_like(pixel_values))[0], embedded=x, output=torch.empty_like(x),
        taps=tuple(torch.empty_like(x) for _ in tower.taps), layout=tower.layout(tower.grid(pixel_values)),
    )  # fmt: skip
    _walk(tower, cache, torch.ones(len(x), dtype=torch.bool, device=x.device), Gated(0.0), Journal(new=True))
    return cache


def update(tower: Tower, cache: PatchCache, patches: Tensor, changed: Tensor, tolerance: float | None = None) -> Tensor:
    """Put the changed patches of a new frame into the cache of `encode_frame`; returns its tokens (1, P, D).

    patches (n, C, patch_h, patch_w): the new pixels of the n patches that `changed` marks, in reading order;
    changed: bool (grid_h, grid_w). The global tokens and the changed patches' tokens are computed anew at
    every layer, at their own positions, against the whole frame's keys and values. The others:

    * cache made with propagate="none": they stay as they were.
    * "gated": those that moved by more than `tolerance` (relative L2, default `policies.gated.DEFAULT_TOLERANCE`) are
      computed anew, at each half of each block; see `reuse/walk.py`. 0 equals a full encode, infinity nearly "none".

    In both cases a frame in which nothing changed costs nothing. If anything is raised, an interrupt by the
    user included, the cache is as it was before; until then it takes the memory of the replaced rows again.
    Raises ValueError for shapes that do not fit the cache, pixels that are not finite, a negative tolerance,
    and a tolerance for a cache without gates.
    """
    if tolerance is not None and not cache.gates and tower.blocks:
        raise ValueError(f"tolerance is {tolerance}, but the cache was made with propagate='none'")
    if cache.output is None or len(patches):
        update_by(Gated() if tolerance is None else Gated(tolerance), tower, cache, patches, changed)
    return cache.read()


def update_by(policy: GatingPolicy, tower: Tower, cache: PatchCache, patches: Tensor, changed: Tensor) -> int:
    """`update`, by whatever policy picks the tokens of a cache with gates; patches may be none, for what is owed.

    Returns how many rows, over all layers, are still owed (`walk.Walked`).
    """
    if cache.output is None or cache.blank is None or cache.embedded is None:
        raise ValueError("the cache cannot be updated; only the caches of encode_frame can")
    _check_update(tower, cache, patches, changed)
    # also takes caches made under inference mode, wherever it is called
    with torch.inference_mode():
        journal = Journal()
        try:
            marked = changed.flatten().to(cache.blank.device)
            patches = patches.to(cache.blank)
            if (order := cache.layout.order) is not None:
                number = marked.cumsum(0) - 1  # of a marked patch, among those
                marked = marked[order]
                patches = patches[number[order[marked]]]
            given = F.pad(marked, (tower.num_global_tokens, 0), value=True)  # (P,)
            rows = given.nonzero().squeeze(1)
            embedded = cache.blank[rows]
            embedded[tower.num_global_tokens :] += tower.project_patches(patches)
            journal.write(cache.embedded, rows, tower.pre_norm(embedded))
            return _walk(tower, cache, given, policy, journal)
        except BaseException:
            journal.undo()
            raise


def _walk(tower: Tower, cache: PatchCache, given: Tensor, policy: GatingPolicy, journal: Journal) -> int:
    """Compute the tokens that are given (P,) anew, and those that the policy picks if the cache has gates, from what is
    embedded; returns how many rows are owed."""
    assert cache.embedded is not None and cache.output is not None
    rotation, windows = cache.layout.rotation, cache.layout.windows
    taps = dict(zip(tower.taps, cache.taps, strict=True))
    if cache.gates:
        walked = walk_gated(
            tower.blocks, cache, cache.embedded, given, policy, journal, rotation=rotation, windows=windows, taps=taps
        )
        journal.write(cache.output, None, tower.final_norm(walked.x))
        return walked.owed
    rows = given.nonzero().squeeze(1)
    if rotation is not None:
        rotation = rotation[0][rows], rotation[1][rows]
    x = walk_rows(
        tower.blocks, cache, cache.embedded[rows], rows, journal, rotation=rotation, windows=windows, taps=taps
    )
    journal.write(cache.output, rows, tower.final_norm(x))
    return 0


def _check_update(tower: Tower, cache: PatchCache, patches: Tensor, changed: Tensor) -> None:
    assert cache.blank is not None
    if len(cache.keys) != len(tower.blocks) or cache.num_global_tokens != tower.num_global_tokens:
        raise ValueError(f"the cache has {len(cache.keys)} layers and the tower {len(tower.blocks)}; they must match")
    check_patches(tower, len(cache.blank) - cache.num_global_tokens, patches, changed)
