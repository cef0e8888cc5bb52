"""Differential encoding of a stream of frames: keep the vision tokens of patches that did not change.

`DifferentialVisionEncoder` keeps the cache and the counts, and stands in for a vision-language model's own
image-feature call. Which patches changed, and what to do about it, is `changes.py`'s subject, how tokens are
recomputed `updates.py`'s; where a model keeps its tower is told by `models.py`, what a frame's numbers mean by
`statistics.py`.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fvlm_lib.reuse.fastest import PackWeights
from fvlm_lib.reuse.policies.budget import Budget
from fvlm_lib.reuse.policies.gated import DEFAULT_TOLERANCE, Gated
from fvlm_lib.reuse.walk import GatingPolicy
from fvlm_lib.schema import CountOrNone, Metric, Propagate, Reference, check
from fvlm_lib.vision.caches import encode_cache, update_cache
from fvlm_lib.vision.changes import DEFAULT_CHANGED_SHARE, DEFAULT_THRESHOLD, ChangeTracker, choose_path, default_limit
from fvlm_lib.vision.fast_vit import ConvolutionalTower, MapCache
from fvlm_lib.vision.models import Vision, open_vision, replace_image_call
from fvlm_lib.vision.opened_tower import check_frame
from fvlm_lib.vision.own_features import Features
from fvlm_lib.vision.patches import extract_patches, patch_grid
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vision.statistics import FrameStatistics, StreamStatistics, joined_tiles
from fvlm_lib.vision.towers import PatchCache

logger = logging.getLogger(__name__)


class DifferentialVisionEncoder:
    """Encodes frames one after the other, re-encoding only what changed.

    model_or_tower: a LLaVA-style model of transformers (its vision tower, feature layer and
        `multi_modal_projector` or `mm_projector` are used), or a vision tower. Towers that `towers.open_tower`
        knows get partial updates; of any other, whole frames are cached.
    patch_size, grid_size: pixels of a patch, or (rows, columns) of the grid; inferred from the tower's config
        if it says so.
    diff_threshold: fraction of the full range, in [0, 1]; patches that differ by more have changed.
    metric: "max" holds every pixel of an unchanged patch to the threshold, "mean" their mean.
    max_changed_patches: up to so many, of each tile if frames are tiled, a partial update is made, with more a full
        encode; None is three quarters of them, or as many as take three quarters of a full encode's time where that was
        measured (pack_weights="auto").
    context_radius: patches within so many of a changed one are recomputed with it; a smaller gain for its time
        than a lower tolerance.
    skip_small_updates: for towers without partial updates: up to max_changed_patches changed patches, return
        the tokens as they are.
    reference: "encoded" compares each patch with the pixels its token was computed from; "previous" with the
        last frame, as published pseudocode does, which lets slow drift through.
    propagate, tolerance: what a partial update does about tokens that did not change (`updates.update`). "budget"
        bounds a frame's time instead: at either half of a layer at most `max_rows` tokens (None: 64) are computed, of
        those that moved by more than the tolerance the ones that moved most, changed patches and global tokens among
        them; the rest is owed, and paid by the next frames, also those on which nothing changes. No frame but the first
        and one of another size is then encoded in full. `policies.budget.Budget`
    image_mean, image_std: what frames were normalised with, in units of [0, 1]; None for frames in [0, 1].
    pack_weights, pack_memory: see `towers.open_tower`.
    device: where frames are encoded; None is where the tower is.

    Raises ValueError for arguments that cannot be right, and where the grid cannot be inferred.
    """

    def __init__(
        self,
        model_or_tower: nn.Module,
        *,
        patch_size: int | None = None,
        grid_size: tuple[int, int] | None = None,
        diff_threshold: float = DEFAULT_THRESHOLD,
        metric: Metric = "max",
        max_changed_patches: int | None = None,
        context_radius: int = 0,
        skip_small_updates: bool = False,
        reference: Reference = "encoded",
        propagate: Propagate = "gated",
        tolerance: float | None = None,
        max_rows: int | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        pack_weights: PackWeights = False,
        pack_memory: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        settings = DifferentialSettings(  # which checks them, as it does in a file
            diff_threshold=diff_threshold,
            metric=metric,
            max_changed_patches=max_changed_patches,
            patch_size=patch_size,
            reference=reference,
            propagate=propagate,
            tolerance=tolerance,
            max_rows=max_rows,
        )
        check(CountOrNone, context_radius, "context_radius")
        check(bool, skip_small_updates, "skip_small_updates")
        check(PackWeights, pack_weights, "pack_weights")
        if patch_size is not None and grid_size is not None:
            raise ValueError("patch_size and grid_size are both given; one follows from the other")
        self.vision = open_vision(model_or_tower, pack_weights, pack_memory)
        if isinstance(self.vision.tower, ConvolutionalTower) and propagate == "budget":
            raise ValueError("propagate is 'budget'; a convolutional tower takes 'gated' or 'none'")
        self.tracker = ChangeTracker(settings.diff_threshold, metric, reference, image_mean, image_std)
        self.max_changed_patches = settings.max_changed_patches
        self.context_radius = context_radius
        self.skip_small_updates = skip_small_updates
        self.propagate: Propagate = propagate
        self.tolerance = settings.tolerance if propagate == "gated" else None
        self.policy = _policy(settings)
        self.device = torch.device(device) if device else None
        self._patch_size = _known_patch_size(self.vision, settings.patch_size, grid_size)
        self._grid_size = grid_size
        self.statistics = StreamStatistics()
        self.frame_statistics: FrameStatistics | None = None  # of the last frame, also where another asked for it
        self.deepstack: tuple[Tensor, ...] = ()  # `Features.deepstack` of the last frame
        self.reset_cache()

    # ---- state ---------------------------------------------------------------------------------------

    def reset_cache(self) -> None:
        """Forget the last frame, as between unrelated sequences; the statistics stay."""
        self._cache: PatchCache | MapCache | None = None
        self._features: tuple[Tensor, ...] = ()  # what the tower and its taps gave, before the projectors
        self._deepstack: tuple[Tensor, ...] = ()  # of the frame that is kept
        self._tokens: Tensor | None = None  # what the caller gets, never the tensor itself
        self._owed = 0  # tokens of all layers that updates left to be computed
        self._tiles: list[DifferentialVisionEncoder] = []  # of a tiled frame, each with a state of its own
        self.tracker.reset()

    def reset_statistics(self) -> None:
        """Start the totals anew."""
        self.statistics = StreamStatistics()

    @property
    def patch_cache(self) -> PatchCache | None:
        """What is kept of the last frame by a transformer tower: keys and values of every layer, to be looked into, and
        changed in place by the next frame.

        None before the first frame, after an error that sent a frame to the model's own encode, and for other towers.
        """
        return self._cache if isinstance(self._cache, PatchCache) else None

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept of the last frame, its pixels among them."""
        kept = (self.tracker.pixels, self._cache, self._tokens, *self._features, *self._deepstack)
        return sum(each.nbytes for each in kept if each is not None) + sum(tile.nbytes for tile in self._tiles)

    # ---- encoding ------------------------------------------------------------------------------------

    @overload
    def encode(self, images: Tensor, image_sizes: Any = None, return_stats: Literal[False] = False) -> Tensor: ...

    @overload
    def encode(
        self, images: Tensor, image_sizes: Any = None, *, return_stats: Literal[True]
    ) -> tuple[Tensor, FrameStatistics]: ...

    @torch.no_grad()
    def encode(
        self, images: Tensor, image_sizes: Any = None, return_stats: bool = False
    ) -> Tensor | tuple[Tensor, FrameStatistics]:
        """Tokens of one frame, of the shape and dtype that the model itself gives.

        images: (1, C, height, width), normalised as the model wants it; of a model that cuts frames into tiles
        (`Vision.tiled`) all tiles of a frame (tiles, C, height, width), in the model's order, another number of which
        is a full encode. Of other models, a batch of more is encoded in full, the cache left alone. image_sizes is
        accepted for models that pass it and not used. With `return_stats`, also a `FrameStatistics`, a dict with
        attributes; `frame_statistics` is that of the last call in any case.

        Raises ValueError for a frame that cannot be right (channels, size, NaN, range); the cache is then as
        it was. Any other error in the differential path is logged and counted, and the frame encoded in full.
        """
        if images.ndim != 4 or not images.shape[0]:
            raise ValueError(f"images has shape {tuple(images.shape)}; it must be (1, channels, height, width)")
        images = images.to(self.device) if self.device else images
        if images.shape[0] > 1 and not self.vision.tiled:
            everything = torch.ones(self._grid(images), dtype=torch.bool)
            num_patches = everything.numel()
            features = self.vision.features(images)
            tokens, self.deepstack = features.tokens, features.deepstack
            stats = FrameStatistics("full", num_patches, num_patches, tokens.shape[0] * tokens.shape[1], everything, 0)
            self.frame_statistics = stats
            self.statistics.frames["full"] += images.shape[0]
            return (tokens, stats) if return_stats else tokens
        tiles = [self]
        images = self._whole_patches(images)
        if self.vision.tiled:
            tiles = self._tiles if len(self._tiles) == len(images) else [self._another() for _ in images]
        # all are compared before any is encoded: what cannot be right leaves everything as it was
        masks = [tile._changed(image) for tile, image in zip(tiles, images.split(1), strict=True)]
        self._tiles = tiles if self.vision.tiled else []
        every = [tile._encode(image, mask) for tile, image, mask in zip(tiles, images.split(1), masks, strict=True)]
        tokens = torch.cat([tile._kept_tokens() for tile in tiles])  # a copy, never a live reference
        self.deepstack = tuple(map(torch.cat, zip(*(tile._deepstack for tile in tiles), strict=True)))
        stats = joined_tiles(every) if self.vision.tiled else every[0]
        self.statistics.add(stats, [tile for tile, mask in zip(every, masks, strict=True) if mask is not None])
        self.frame_statistics = stats
        return (tokens, stats) if return_stats else tokens

    def _kept_tokens(self) -> Tensor:
        assert self._tokens is not None
        return self._tokens

    def _whole_patches(self, images: Tensor) -> Tensor:
        """Without the pixels behind the last whole patches, where the tower does not look at them either."""
        of_one_size = self.vision.tower is not None and self.vision.tower.image_size is not None
        if not (of_one_size or self.vision.tiled):
            return images
        (rows, columns), (height, width) = self._frame_patch_size(images), images.shape[-2:]
        return images[..., : height - height % rows, : width - width % columns]

    def _another(self) -> DifferentialVisionEncoder:
        """An encoder with the same settings and weights, and nothing kept."""
        another = copy.copy(self)
        another.tracker = copy.copy(self.tracker)
        another.reset_cache()
        return another

    def _changed(self, images: Tensor) -> Tensor | None:
        """Mask (grid_h, grid_w) of the patches that changed; None where there is nothing to compare with."""
        self._grid(images)  # refuses an empty frame
        tower = self.vision.tower
        if tower:
            check_frame(tower, images)
            self.vision.token_rows(tower.grid(images))  # refuses grids of which no tokens can be made
        return self.tracker.changed(images, self._frame_patch_size(images))

    def _encode(self, images: Tensor, mask: Tensor | None) -> FrameStatistics:
        """Bring what is kept up to date with images (1, C, height, width), of which the patches in `mask` changed, if
        they could be compared."""
        try:
            return self._encode_or_fall_back(images, mask)
        except BaseException:  # an interrupt may leave tokens that are newer than the pixels they are compared by
            self.reset_cache()
            raise

    def _encode_or_fall_back(self, images: Tensor, mask: Tensor | None) -> FrameStatistics:
        grid = self._grid(images)
        num_patches = grid[0] * grid[1]
        changed = None if mask is None else int(mask.sum())
        path = choose_path(
            changed,
            self.limit(grid),
            can_update=self._cache is not None,
            skip_small_updates=self.skip_small_updates and self.vision.tower is None,
            owed=self._owed,
        )
        computed = owed = 0
        encoded: Tensor | None = None  # patches that are taken from this frame
        try:
            if path == "full":
                computed = self._encode_full(images)
            elif path == "partial":
                assert mask is not None
                encoded, computed, owed = self._update(images, mask)
        except Exception:
            logger.exception("differential encoding failed; the frame is encoded in full")
            self.reset_cache()
            path, computed = "fallback", self._keep_own(images)
        if encoded is None:
            encoded = torch.full(grid, path in ("full", "fallback"), device=images.device)
        self.tracker.encoded(images, self._frame_patch_size(images), encoded)
        self._owed = owed
        return FrameStatistics(path, num_patches if changed is None else changed, num_patches, computed, encoded, owed)

    def limit(self, grid: tuple[int, int]) -> int:
        """Changed patches up to which a frame of this grid (rows, columns) is updated, and with more encoded in
        full."""
        if self.propagate == "budget":
            return grid[0] * grid[1]
        if self.max_changed_patches is not None:
            return self.max_changed_patches
        tower = self.vision.tower
        if tower is None or isinstance(tower, ConvolutionalTower) or tower.products is None:
            return default_limit(grid)
        others = tower.num_global_tokens
        return max(0, tower.products.rows_within(DEFAULT_CHANGED_SHARE, grid[0] * grid[1] + others) - others)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        return self._grid_size or patch_grid(height, width, self._frame_patch_size(images))

    def _frame_patch_size(self, images: Tensor) -> tuple[int, int]:
        if self._patch_size:
            return self._patch_size
        assert self._grid_size is not None
        (height, width), (rows, columns) = images.shape[-2:], self._grid_size
        return -(-height // rows), -(-width // columns)

    def _keep_own(self, images: Tensor) -> int:
        """Keep the model's own full encode of the frame; returns the number of its tokens."""
        features = self.vision.features(images)
        self._tokens, self._deepstack = features.tokens, features.deepstack
        return features.tokens.shape[1]

    def _encode_full(self, images: Tensor) -> int:
        """Encode the frame in full and keep it; returns the number of its tokens."""
        tower = self.vision.tower
        if tower is None:
            return self._keep_own(images)
        cache, grid = encode_cache(tower, images.to(self.vision.dtype), self.propagate), tower.grid(images)
        features = self.vision.select(cache.read()), *cache.read_taps()
        tokens = self.vision.finish(features[0], grid)
        rows = self.vision.token_rows(grid)
        taps = zip(self.vision.deepstack, features[1:], strict=True)
        self._deepstack = tuple(project(tapped[:, rows]) for project, tapped in taps)
        self._cache, self._features, self._tokens = cache, features, tokens
        return tokens.shape[1]

    def _update(self, images: Tensor, mask: Tensor) -> tuple[Tensor, int, int]:
        """Recompute the changed patches' tokens, and project only those that are new.

        Returns the mask of patches that were taken from this frame, the number of new tokens, and how many are owed.
        """
        tower, cache = self.vision.tower, self._cache
        assert tower is not None and cache is not None and self._tokens is not None
        if self.context_radius:
            kernel = 2 * self.context_radius + 1
            mask = F.max_pool2d(mask[None, None].float(), kernel, 1, self.context_radius)[0, 0] > 0
        patches = extract_patches(images.to(self.vision.dtype), mask, tower.patch_size)
        owed = update_cache(self.policy, tower, cache, patches, mask)
        features = self.vision.select(cache.read()), *cache.read_taps()
        rows = self.vision.token_rows(tower.grid(images)).to(images.device)  # (tokens, r)
        made = zip((self.vision.project, *self.vision.deepstack), (self._tokens, *self._deepstack), strict=True)
        computed = []
        for (project, tokens), before, after in zip(made, self._features, features, strict=True):
            new = (after != before).any(dim=-1)[0][rows].any(dim=1)  # (tokens,)
            if new.any():
                tokens[:, : new.numel()][:, new] = project(after[:, rows[new]])
            computed.append(int(new.sum()))
        self._features = features
        return mask, computed[0], owed

    # ---- standing in for a model's own call ----------------------------------------------------------

    @contextlib.contextmanager
    def attach(self, model: nn.Module) -> Iterator[DifferentialVisionEncoder]:
        """While inside, the model's image features come from this encoder; restored whatever happens.

        model: one with `get_image_features` (transformers' LLaVA and its like) or `encode_images`.
        Raises TypeError for a model with neither.
        """
        with replace_image_call(model, lambda images: Features(self.encode(images), self.deepstack)):
            yield self


def _policy(settings: DifferentialSettings) -> GatingPolicy:
    """Which tokens an update computes besides the given ones; of a cache without gates it is not asked."""
    tolerance = DEFAULT_TOLERANCE if settings.tolerance is None else settings.tolerance
    if settings.propagate != "budget":
        return Gated(tolerance)
    return Budget(tolerance=tolerance) if settings.max_rows is None else Budget(settings.max_rows, tolerance)


def _known_patch_size(
    vision: Vision, patch_size: int | None, grid_size: tuple[int, int] | None
) -> tuple[int, int] | None:
    """(height, width) in pixels; None where only the grid is known, so that it follows from the frame."""
    if patch_size is not None:
        if vision.tower and (patch_size, patch_size) != vision.tower.patch_size:
            raise ValueError(f"patch_size is {patch_size}; the tower's patches are {vision.tower.patch_size} pixels")
        return patch_size, patch_size
    if grid_size is not None:
        return None
    if vision.patch_size is None:
        raise ValueError(
            f"the config of {type(vision.module).__name__} has no patch_size; give patch_size or grid_size"
        )
    return vision.patch_size
