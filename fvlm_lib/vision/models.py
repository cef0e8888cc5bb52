"""Where a model keeps its vision tower: its way from pixels to tokens found, and its own image features replaced.

Of language models it knows only where they keep tower and projector, and by which call they ask for an image's tokens.
How a tower is walked is `towers.py`'s subject.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from fvlm_lib.reuse.fastest import PackWeights
from fvlm_lib.vision.adapters import CONVOLUTIONAL_ADAPTERS
from fvlm_lib.vision.fast_vit import ConvolutionalTower
from fvlm_lib.vision.flat_patches import flat_sizes, fold_patches
from fvlm_lib.vision.merged_tokens import Mergers, open_mergers
from fvlm_lib.vision.opened_tower import Grid, Tower
from fvlm_lib.vision.own_features import Features, own_features
from fvlm_lib.vision.pixel_shuffle import open_pixel_shuffle
from fvlm_lib.vision.towers import open_tower


@dataclass(frozen=True)
class Vision:
    """A model's way from pixels to tokens.

    module: the vision tower. tower: the same, opened for partial updates; None where there is no adapter.
    patch_size: (height, width) of its patches in pixels; None where its config does not say. select: drops the
    global tokens from the tower's (N, P, D) if the model does, so that F rows of features are left. token_rows: for a
    grid of patches, the rows of the features that each token is made of, int64 (n, r); for a module with a tower.
    project: those rows (N, n, r, D) into the language model's width, (N, n, width). newline: the embedding (width) that
    LLaVA-OneVision puts behind an image's tokens. own: the whole way from pixels (N, C, height, width) to tokens
    (N, tokens, width), as the model itself goes it. features: the same, with what Qwen3-VL's language model adds at its
    first layers. deepstack: how that is made, as by `project`, of the features of each block that the tower taps.
    tiled: whether the N are all tiles of one frame, which the model's processor cuts.
    """

    module: nn.Module
    tower: Tower | ConvolutionalTower | None
    patch_size: tuple[int, int] | None
    select: Callable[[Tensor], Tensor]
    token_rows: Callable[[Grid], Tensor]
    project: Callable[[Tensor], Tensor]
    own: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Features]
    dtype: torch.dtype
    newline: Tensor | None
    tiled: bool = False
    deepstack: tuple[Callable[[Tensor], Tensor], ...] = ()

    def finish(self, features: Tensor, grid: Grid) -> Tensor:
        """All tokens (N, tokens, width) of an image from its selected features (N, F, D)."""
        tokens = self.project(features[:, self.token_rows(grid)])
        if self.newline is None:
            return tokens
        return torch.cat([tokens, self.newline.to(tokens).expand(tokens.shape[0], 1, -1)], dim=1)

    def num_tokens(self, grid: Grid) -> int:
        """Tokens of an image."""
        return len(self.token_rows(grid)) + (self.newline is not None)

    def tokens_of(self, patches: Tensor) -> Tensor:
        """bool (tokens,): those with a row that is a global token or one of the patches, bool (rows, columns); of a
        tiled frame, (tiles, rows, columns), the tokens of all tiles."""
        assert self.tower is not None
        if patches.ndim == 3:
            return torch.cat([self.tokens_of(tile) for tile in patches])
        rows, columns = patches.shape
        order = self.tower.order((rows, columns))
        rows_of = patches.flatten() if order is None else patches.flatten()[order]
        every = F.pad(rows_of, (self.tower.num_global_tokens, 0), value=True)[None, :, None]  # (1, P, 1)
        found = self.select(every)[0, :, 0][self.token_rows((rows, columns))].any(dim=1)
        return F.pad(found, (0, int(self.newline is not None)))


def open_vision(model: nn.Module, pack_weights: PackWeights | None = False, pack_memory: int | None = None) -> Vision:
    """Find a model's vision tower, projector and feature layer; a tower alone gives its own tokens.

    LLaVA-OneVision's images are taken as one crop each. pack_weights, pack_memory: see `towers.open_tower`.
    Raises ValueError for models that join several layers."""
    inner: Any = getattr(model, "model", model)
    config: Any = getattr(model, "config", None)
    call = _image_call(inner)
    own_call: Any = getattr(inner, call or "__call__")  # bound now: `replace_image_call` replaces it later
    module: Any = _tower_of(inner) if call else model
    module = getattr(module, "vision_tower", module)  # the original LLaVA code wraps it once more
    projector = getattr(inner, "multi_modal_projector", None) or getattr(inner, "mm_projector", None)
    layer = getattr(config, "vision_feature_layer", None) if call else None
    shuffle = open_pixel_shuffle(inner) if call else None
    if shuffle and layer == -1:
        layer = None  # which is behind the final norm
    if isinstance(layer, list | tuple):
        raise ValueError(f"vision_feature_layer is {layer}; models that join several layers are not supported")
    drops_cls = call is not None and getattr(config, "vision_feature_select_strategy", "full") == "default"
    tower: Tower | ConvolutionalTower | None = None
    with contextlib.suppress(TypeError):  # no adapter
        inside = getattr(module, "timm_model", None)  # of transformers' TimmWrapperModel
        if open_convolutional := CONVOLUTIONAL_ADAPTERS.get(type(inside).__name__):
            tower = open_convolutional(inside)
        else:
            tower = open_tower(module, layer, pack_weights=pack_weights, pack_memory=pack_memory)
    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)

    merging = (open_mergers(module, tower) if isinstance(tower, Tower) else None) or shuffle
    single_crop = getattr(config, "model_type", None) == "llava_onevision"

    def token_rows(grid: Grid) -> Tensor:
        others = tower.num_global_tokens if tower and not drops_cls else 0
        return torch.arange(others + grid[0] * grid[1])[:, None]

    def project(rows: Tensor) -> Tensor:
        projected: Tensor = projector(rows.squeeze(2)) if projector else rows.squeeze(2)
        return projected

    def features(images: Tensor) -> Features:
        return own_features(own_call, call == "get_image_features", config, images.to(dtype))

    return Vision(
        module=module,
        tower=tower,
        patch_size=tower.patch_size if tower else _configured_patch_size(module),
        select=lambda features: features[:, 1:] if drops_cls else features,
        token_rows=merging.token_rows if merging else token_rows,
        project=merging.project if merging else project,
        own=lambda images: features(images).tokens,
        features=features,
        dtype=dtype,
        newline=getattr(inner, "image_newline", None) if single_crop else None,
        tiled=shuffle is not None,
        deepstack=merging.deepstack if isinstance(merging, Mergers) else (),
    )


@contextlib.contextmanager
def replace_image_call(model: nn.Module, encode: Callable[[Tensor], Features]) -> Iterator[None]:
    """While inside, the model's image features are those of `encode`, of a frame (1, C, height, width); of tiled models
    of all tiles of a frame at once.

    Idefics3's and SmolVLM's images of several prompts, and their tiles with padding, still go to the model's own call.
    That is restored whatever happens. Raises TypeError for a model with neither `get_image_features` nor
    `encode_images`.
    """
    owner: Any = getattr(model, "model", model)
    name = _image_call(owner)
    if name is None:
        raise TypeError(f"{type(model).__name__} has neither get_image_features nor encode_images to replace")
    own: Callable[..., Any] = getattr(owner, name)
    had = vars(owner).get(name)

    def get_image_features(pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        config: Any = getattr(model, "config", None)
        if _takes_prompts(config):
            mask = kwargs.get("pixel_attention_mask", args[0] if args else None)
            if len(pixel_values) > 1 or (mask is not None and not mask.all()):
                return own(pixel_values, *args, **kwargs)
            tokens = encode(pixel_values[0]).tokens.flatten(0, 1)
            return BaseModelOutputWithPooling(pooler_output=[tokens])  # type: ignore[arg-type]
        if pixel_values.ndim == 2:  # Qwen's rows of patches
            grids = args[0] if args else kwargs["image_grid_thw"]
            return _of_flat_patches(encode, flat_sizes(config.vision_config), pixel_values, grids)
        if pixel_values.ndim == 5:  # LLaVA-OneVision's crops of an image
            if pixel_values.shape[1] > 1:
                raise ValueError(f"an image has {pixel_values.shape[1]} crops; only a single one can be encoded")
            pixel_values = pixel_values[:, 0]
        tokens = encode(pixel_values).tokens
        if name == "encode_images":
            return tokens
        joined = config.model_type in ("fast_vlm", "internvl")  # others give a list, one entry an image
        return BaseModelOutputWithPooling(pooler_output=tokens if joined else list(tokens))  # type: ignore[arg-type]

    setattr(owner, name, get_image_features)
    try:
        yield
    finally:
        if had is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _of_flat_patches(
    encode: Callable[[Tensor], Features], sizes: tuple[int, int, int], rows: Tensor, grids: Tensor
) -> BaseModelOutputWithDeepstackFeatures:
    """Features of images one after the other, whose patches are `rows`, of grids (N, 3) in time, height and width."""
    found = [
        encode(fold_patches(patches, (height, width), *sizes))
        for patches, (_, height, width) in zip(rows.split(grids.prod(dim=1).tolist()), grids.tolist(), strict=True)
    ]
    deepstack = zip(*(features.deepstack for features in found), strict=True)
    return BaseModelOutputWithDeepstackFeatures(
        pooler_output=tuple(features.tokens[0] for features in found),  # type: ignore[arg-type]
        deepstack_features=[tuple(tokens[0] for tokens in tap) for tap in deepstack],  # type: ignore[misc]
    )


def _image_call(model: Any) -> str | None:
    """Name of the method by which a vision-language model turns pixels into tokens; None for a mere tower."""
    return next((name for name in ("get_image_features", "encode_images") if hasattr(model, name)), None)


def _takes_prompts(config: Any) -> bool:
    """Whether a model's image call takes the tiles of several prompts (prompts, tiles, C, height, width), and gives a
    list with the tokens (tiles · P, D) of each."""
    return getattr(config, "model_type", None) in ("idefics3", "smolvlm")


def _tower_of(model: Any) -> Any:
    """The vision tower of a vision-language model, by the names that transformers gives it."""
    return next(getattr(model, name) for name in ("vision_tower", "visual", "vision_model") if hasattr(model, name))


def _configured_patch_size(module: nn.Module) -> tuple[int, int] | None:
    config: Any = getattr(module, "config", None)
    size = getattr(config, "patch_size", None)
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else tuple(size)
