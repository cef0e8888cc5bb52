"""The cache of one frame of either kind of tower: a stack of blocks (`updates.py`), or convolutions (`fast_vit.py`)."""

from __future__ import annotations

from torch import Tensor

from fvlm_lib.reuse.policies.gated import Gated
from fvlm_lib.reuse.walk import GatingPolicy
from fvlm_lib.schema import Propagate
from fvlm_lib.vision import fast_vit, updates
from fvlm_lib.vision.fast_vit import ConvolutionalTower, MapCache
from fvlm_lib.vision.opened_tower import Tower
from fvlm_lib.vision.towers import PatchCache


def encode_cache(
    tower: Tower | ConvolutionalTower, pixel_values: Tensor, propagate: Propagate = "none"
) -> PatchCache | MapCache:
    """Encode one frame (1, C, height, width) into a cache that `update_cache` takes; `.read()` gives its tokens.

    propagate: whether what changed goes on to other tokens; see `updates.encode_frame`.
    """
    if isinstance(tower, ConvolutionalTower):
        return fast_vit.encode_frame(tower, pixel_values, gated=propagate == "gated")
    return updates.encode_frame(tower, pixel_values, propagate)


def update_cache(
    policy: GatingPolicy,
    tower: Tower | ConvolutionalTower,
    cache: PatchCache | MapCache,
    patches: Tensor,
    changed: Tensor,
) -> int:
    """Put the changed patches of a new frame into the cache, by a policy if it propagates; see `updates.update`.

    A convolutional tower takes `Gated` alone. Returns how many rows are still owed (`walk.Walked`).
    """
    if isinstance(tower, ConvolutionalTower):
        assert isinstance(cache, MapCache) and isinstance(policy, Gated)
        fast_vit.update(tower, cache, patches, changed, policy.tolerance)
        return 0
    assert isinstance(cache, PatchCache)
    return updates.update_by(policy, tower, cache, patches, changed)
