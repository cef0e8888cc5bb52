"""Differential encoding of a stream of frames: keep the vision tokens of patches that did not change.

`DifferentialVisionEncoder` keeps the cache and the counts, and stands in for a vision-language model's own
image-feature call. Which patches changed, and what to do about it, is `changes.py`'s subject, how tokens are
recomputed `updates.py`'s. Of language models it knows only where LLaVA-style ones keep tower and projector.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fvlm_lib.vision.changes import DEFAULT_THRESHOLD, ChangeTracker, Path, Reference, choose_path, default_limit
from fvlm_lib.vision.patches import Metric, extract_patches, patch_grid
from fvlm_lib.vision.towers import PatchCache, Tower, open_tower
from fvlm_lib.vision.updates import Propagate, check_frame, encode_frame, update

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameStatistics:
    """What was done with one frame: the path taken, and how many of its patches had changed.

    path: "full", "partial", "cached" (nothing changed), "skipped" (changes too small for a tower without
    partial updates), "fallback" (an error in the differential path, encoded in full).
    computed_tokens: tokens, global ones included, whose value is new.
    encoded: bool (grid_h, grid_w), the patches whose token was computed from this frame's pixels.
    """

    path: Path
    changed_patches: int
    num_patches: int
    computed_tokens: int
    encoded: Tensor


@dataclass
class StreamStatistics:
    """Totals over all frames since the encoder was made, or since `reset_statistics`.

    `frames` counts by path. changed_patches, num_patches: summed over frames that were compared with one
    before; their quotient is the mean change ratio.
    """

    frames: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("full", "partial", "cached", "skipped", "fallback"), 0)
    )
    changed_patches: int = 0
    num_patches: int = 0

    @property
    def total_frames(self) -> int:
        """All frames, by whatever path."""
        return sum(self.frames.values())

    @property
    def fallbacks(self) -> int:
        """Frames that an error sent to a full encode."""
        return self.frames["fallback"]

    @property
    def mean_change_ratio(self) -> float:
        """Changed patches by patches, over frames that were compared with one before; 0 if there is none."""
        return self.changed_patches / self.num_patches if self.num_patches else 0.0


class DifferentialVisionEncoder:
    """Encodes frames one after the other, re-encoding only what changed.

    model_or_tower: a LLaVA-style model of transformers (its vision tower, feature layer and
        `multi_modal_projector` or `mm_projector` are used), or a vision tower. Towers that `towers.open_tower`
        knows get partial updates; of any other, whole frames are cached.
    patch_size, grid_size: pixels of a patch, or (rows, columns) of the grid; inferred from the tower's config
        if it says so.
    diff_threshold: fraction of the full range, in [0, 1]; patches that differ by more have changed.
    metric: "max" holds every pixel of an unchanged patch to the threshold, "mean" their mean.
    max_changed_patches: up to so many a partial update is made, with more a full encode; None is a quarter of them.
    context_radius: patches within so many of a changed one are recomputed with it; a smaller gain for its time
        than a lower tolerance.
    skip_small_updates: for towers without partial updates: up to max_changed_patches changed patches, return
        the tokens as they are.
    reference: "encoded" compares each patch with the pixels its token was computed from; "previous" with the
        last frame, as published pseudocode does, which lets slow drift through.
    propagate, tolerance: what a partial update does about tokens that did not change (`updates.update`).
    image_mean, image_std: what frames were normalised with, in units of [0, 1]; None for frames in [0, 1].
    pack_weights: see `towers.open_tower`.
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
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        pack_weights: bool = False,
        device: str | torch.device | None = None,
    ) -> None:
        if propagate not in ("none", "gated"):
            raise ValueError(f"propagate is {propagate!r}; it must be 'none' or 'gated'")
        if max_changed_patches is not None and max_changed_patches < 0:
            raise ValueError(f"max_changed_patches is {max_changed_patches}; it must be 0 or more")
        if context_radius < 0:
            raise ValueError(f"context_radius is {context_radius}; it must be 0 or more patches")
        if patch_size is not None and grid_size is not None:
            raise ValueError("patch_size and grid_size are both given; one follows from the other")
        self.vision = open_vision(model_or_tower, pack_weights)
        self.tracker = ChangeTracker(diff_threshold, metric, reference, image_mean, image_std)
        self.max_changed_patches = max_changed_patches
        self.context_radius = context_radius
        self.skip_small_updates = skip_small_updates
        self.propagate: Propagate = propagate
        self.tolerance = tolerance if propagate == "gated" else None
        self.device = torch.device(device) if device else None
        self._patch_size = self._known_patch_size(patch_size, grid_size)
        self._grid_size = grid_size
        self.statistics = StreamStatistics()
        self.reset_cache()

    def _known_patch_size(self, patch_size: int | None, grid_size: tuple[int, int] | None) -> tuple[int, int] | None:
        """(height, width) in pixels; None where only the grid is known, so that it follows from the frame."""
        tower = self.vision.tower
        own = tower.patch_size if tower else _configured_patch_size(self.vision.module)
        if patch_size is not None:
            if tower and (patch_size, patch_size) != tower.patch_size:
                raise ValueError(f"patch_size is {patch_size}; the tower's patches are {tower.patch_size} pixels")
            return patch_size, patch_size
        if own is None and grid_size is None:
            raise ValueError(
                f"the config of {type(self.vision.module).__name__} has no patch_size; give patch_size or grid_size"
            )
        return own if grid_size is None else None

    # ---- state ---------------------------------------------------------------------------------------

    def reset_cache(self) -> None:
        """Forget the last frame, as between unrelated sequences; the statistics stay."""
        self._cache: PatchCache | None = None
        self._features: Tensor | None = None  # what the tower gave, before the projector
        self._tokens: Tensor | None = None  # what the caller gets, never the tensor itself
        self.tracker.reset()

    def reset_statistics(self) -> None:
        """Start the totals anew."""
        self.statistics = StreamStatistics()

    # ---- encoding ------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self, images: Tensor, image_sizes: Any = None, return_stats: bool = False
    ) -> Tensor | tuple[Tensor, FrameStatistics]:
        """Tokens of one frame, of the shape and dtype that the model itself gives.

        images: (1, C, height, width), normalised as the model wants it. A batch of more is encoded in full, the
        cache left alone. image_sizes is accepted for models that pass it and not used. With `return_stats`,
        also a `FrameStatistics`.

        Raises ValueError for a frame that cannot be right (channels, size, NaN, range); the cache is then as
        it was. Any other error in the differential path is logged and counted, and the frame encoded in full.
        """
        if images.ndim != 4 or not images.shape[0]:
            raise ValueError(f"images has shape {tuple(images.shape)}; it must be (1, channels, height, width)")
        images = images.to(self.device) if self.device else images
        grid = self._grid(images)
        num_patches = grid[0] * grid[1]
        if images.shape[0] > 1:
            tokens = self.vision.own(images)
            everything = torch.ones(grid, dtype=torch.bool)
            stats = FrameStatistics("full", num_patches, num_patches, tokens.shape[0] * tokens.shape[1], everything)
            self.statistics.frames["full"] += images.shape[0]
            return (tokens, stats) if return_stats else tokens
        if self.vision.tower:
            check_frame(self.vision.tower, images)
        patch_size = self._frame_patch_size(images)
        mask = self.tracker.changed(images, patch_size)  # None: nothing to compare with
        changed = None if mask is None else int(mask.sum())
        limit = default_limit(grid) if self.max_changed_patches is None else self.max_changed_patches
        path = choose_path(
            changed,
            limit,
            can_update=self._cache is not None,
            skip_small_updates=self.skip_small_updates and self.vision.tower is None,
        )
        computed = 0
        try:
            if path == "full":
                computed = self._encode_full(images)
            elif path == "partial":
                mask, computed = self._update(images, mask)
        except Exception:
            logger.exception("differential encoding failed; the frame is encoded in full")
            self.reset_cache()
            self._tokens = self.vision.own(images)
            path, computed = "fallback", self._tokens.shape[1]
        if path != "partial":
            mask = torch.full(grid, path in ("full", "fallback"), device=images.device)
        self.tracker.encoded(images, patch_size, mask)
        self.statistics.frames[path] += 1
        if changed is not None:
            self.statistics.changed_patches += changed
            self.statistics.num_patches += num_patches
        assert self._tokens is not None
        tokens = self._tokens.clone()  # never a live reference
        stats = FrameStatistics(path, num_patches if changed is None else changed, num_patches, computed, mask)
        return (tokens, stats) if return_stats else tokens

    def _grid(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        return self._grid_size or patch_grid(height, width, self._frame_patch_size(images))

    def _frame_patch_size(self, images: Tensor) -> tuple[int, int]:
        if self._patch_size:
            return self._patch_size
        assert self._grid_size is not None
        (height, width), (rows, columns) = images.shape[-2:], self._grid_size
        return -(-height // rows), -(-width // columns)

    def _encode_full(self, images: Tensor) -> int:
        """Encode the frame in full and keep it; returns the number of its tokens."""
        tower = self.vision.tower
        if tower is None:
            self._tokens = self.vision.own(images)
        else:
            cache = encode_frame(tower, images.to(self.vision.dtype), self.propagate)
            features = self.vision.select(cache.read())
            # as a copy: without a projector they would be one tensor, written to in updates
            self._cache, self._features, self._tokens = cache, features, self.vision.finish(features).clone()
        return self._tokens.shape[1]

    def _update(self, images: Tensor, mask: Tensor) -> tuple[Tensor, int]:
        """Recompute the changed patches' tokens, and project only those that are new.

        Returns the mask of patches that were taken from this frame, and the number of new tokens.
        """
        tower, cache = self.vision.tower, self._cache
        assert tower is not None and cache is not None and self._features is not None and self._tokens is not None
        if self.context_radius:
            kernel = 2 * self.context_radius + 1
            mask = F.max_pool2d(mask[None, None].float(), kernel, 1, self.context_radius)[0, 0] > 0
        patches = extract_patches(images.to(self.vision.dtype), mask, tower.patch_size)
        features = self.vision.select(update(tower, cache, patches, mask, self.tolerance))
        new = (features != self._features).any(dim=-1)[0]  # (tokens,)
        if new.any():
            self._tokens[:, : new.numel()][:, new] = self.vision.project(features[:, new])
        self._features = features
        return mask, int(new.sum())

    # ---- standing in for a model's own call ----------------------------------------------------------

    @contextlib.contextmanager
    def attach(self, model: nn.Module) -> Iterator[DifferentialVisionEncoder]:
        """While inside, the model's image features come from this encoder; restored whatever happens.

        model: one with `get_image_features` (transformers' LLaVA and its like) or `encode_images`.
        Raises TypeError for a model with neither.
        """
        owner: Any = getattr(model, "model", model)
        name = _image_call(owner)
        if name is None:
            raise TypeError(f"{type(model).__name__} has neither get_image_features nor encode_images to replace")
        own: Callable[..., Any] = getattr(owner, name)
        had = vars(owner).get(name)

        def get_image_features(pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
            if pixel_values.ndim == 5:  # LLaVA-OneVision's crops of an image
                if pixel_values.shape[1] > 1:
                    raise ValueError(f"an image has {pixel_values.shape[1]} crops; only a single one can be encoded")
                pixel_values = pixel_values[:, 0]
            tokens = self.encode(pixel_values)
            if name == "encode_images":
                return tokens
            assert isinstance(tokens, Tensor)
            config: Any = model.config
            joined = config.model_type == "fast_vlm"  # others give a list, one entry an image
            return BaseModelOutputWithPooling(pooler_output=tokens if joined else list(tokens))  # type: ignore[arg-type]

        setattr(owner, name, get_image_features)
        try:
            yield self
        finally:
            if had is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


# ---- where a model keeps its vision tower ------------------------------------------------------------


@dataclass(frozen=True)
class Vision:
    """A model's way from pixels to tokens.

    tower: opened for partial updates; None where there is no adapter. select: drops the global tokens from the
    tower's (N, P, D) if the model does. project: into the language model's width. newline: the embedding (width)
    that LLaVA-OneVision puts behind an image's tokens. own: the whole way from pixels (N, C, height, width) to
    tokens (N, tokens, width), as the model itself goes it.
    """

    module: nn.Module
    tower: Tower | None
    select: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    own: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    newline: Tensor | None

    def finish(self, features: Tensor) -> Tensor:
        """All tokens (N, tokens, width) of an image from its selected features (N, P, D)."""
        tokens = self.project(features)
        if self.newline is None:
            return tokens
        return torch.cat([tokens, self.newline.to(tokens).expand(tokens.shape[0], 1, -1)], dim=1)


def _image_call(model: Any) -> str | None:
    """Name of the method by which a vision-language model turns pixels into tokens; None for a mere tower."""
    return next((name for name in ("get_image_features", "encode_images") if hasattr(model, name)), None)


def open_vision(model: nn.Module, pack_weights: bool = False) -> Vision:
    """Find a model's vision tower, projector and feature layer; a tower alone gives its own tokens.

    LLaVA-OneVision's images are taken as one crop each. Raises ValueError for models that join several layers."""
    inner: Any = getattr(model, "model", model)
    config: Any = getattr(model, "config", None)
    call = _image_call(inner)
    own_call: Any = getattr(inner, call or "__call__")  # bound now: `attach` replaces it later
    module: Any = inner.vision_tower if call else model
    module = getattr(module, "vision_tower", module)  # the original LLaVA code wraps it once more
    projector = getattr(inner, "multi_modal_projector", None) or getattr(inner, "mm_projector", None)
    layer = getattr(config, "vision_feature_layer", None) if call else None
    if isinstance(layer, list | tuple):
        raise ValueError(f"vision_feature_layer is {layer}; models that join several layers are not supported")
    drops_cls = call is not None and getattr(config, "vision_feature_select_strategy", "full") == "default"
    try:
        tower = open_tower(module, layer, pack_weights=pack_weights)
    except TypeError:
        tower = None
    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)

    single_crop = getattr(config, "model_type", None) == "llava_onevision"

    def own(images: Tensor) -> Tensor:
        options: dict[str, Any] = {}
        if single_crop:  # it makes one crop of an image where a prompt has several
            sizes = torch.tensor([images.shape[-2:]] * len(images))
            options = {"image_sizes": sizes, "batch_num_images": [2] * len(images)}
        output = own_call(images.to(dtype), **options)
        if call == "get_image_features":
            output = output.pooler_output
        elif not isinstance(output, Tensor):
            output = output.last_hidden_state
        return output if isinstance(output, Tensor) else torch.stack(list(output))

    return Vision(
        module=module,
        tower=tower,
        select=lambda features: features[:, 1:] if drops_cls else features,
        project=projector or (lambda features: features),
        own=own,
        dtype=dtype,
        newline=getattr(inner, "image_newline", None) if single_crop else None,
    )


def _configured_patch_size(module: nn.Module) -> tuple[int, int] | None:
    config: Any = getattr(module, "config", None)
    size = getattr(config, "patch_size", None)
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else tuple(size)
