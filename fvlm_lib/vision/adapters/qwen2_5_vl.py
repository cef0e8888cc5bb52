"""Qwen2.5-VL: patches merged 2 x 2 into tokens, rotary positions alone, windows in all blocks but a few.

Rows are in the model's own order: window by window, of each its tokens, of each its patches. A frame is a video of as
many equal pictures as a patch is deep in time. Bai et al., *Qwen2.5-VL Technical Report* (arXiv 2502.13923).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from fvlm_lib.reuse.blocks import Block, Rotation, linear_parts
from fvlm_lib.reuse.windows import Windows, consecutive_windows
from fvlm_lib.vision.opened_tower import Grid, Tower


def open_qwen2_5_vl(model: Any, interpolate: bool) -> Tower:
    """The parts of a `Qwen2_5_VisionTransformerPretrainedModel`, which takes frames of any size, without its merger."""
    config = model.config
    unit = config.spatial_merge_size**2

    def window_index(grid: Grid) -> tuple[Tensor, Tensor]:
        """Which token, in reading order, each is, (tokens,), and the bounds of the windows, in rows."""
        found: tuple[Tensor, Tensor] = get_vision_window_index(
            grid_thw(model, grid), config.spatial_merge_size, config.window_size, config.patch_size
        )
        return found[0].to(model.device), found[1]

    def by_window(rows: Tensor, grid: Grid) -> Tensor:
        return rows.unflatten(0, (-1, unit))[window_index(grid)[0]].flatten(0, 1)

    def order(grid: Grid) -> Tensor:
        return by_window(merged_order(model, grid), grid)

    def rotation(grid: Grid) -> Rotation:
        cos, sin = merged_rotation(model, grid)
        return by_window(cos, grid), by_window(sin, grid)

    def windows(grid: Grid) -> tuple[Windows | None, ...]:
        found = consecutive_windows(window_index(grid)[1])
        return tuple(None if i in config.fullatt_block_indexes else found for i in range(config.depth))

    def embeddings(pixels: Tensor) -> Tensor:
        return embed_patches(model, pixels, order)

    return Tower(
        embeddings=embeddings,
        project_patches=lambda patches: project_patches(model, patches),
        pre_norm=nn.Identity(),
        blocks=qwen_blocks(model),
        final_norm=nn.Identity(),
        num_global_tokens=0,
        patch_size=(config.patch_size, config.patch_size),
        num_channels=config.in_channels,
        image_size=None,
        order=order,
        rotation=rotation,
        windows=windows,
    )


def qwen_blocks(model: Any) -> tuple[Block, ...]:
    """The blocks of a model whose layers make queries, keys and values at once."""
    return tuple(
        Block(
            norm1=layer.norm1,
            q_proj=q_proj,
            k_proj=k_proj,
            v_proj=v_proj,
            o_proj=layer.attn.proj,
            norm2=layer.norm2,
            mlp=layer.mlp,
            num_heads=model.config.num_heads,
        )
        for layer in model.blocks
        for q_proj, k_proj, v_proj in [linear_parts(layer.attn.qkv, 3)]
    )


def grid_thw(model: Any, grid: Grid) -> Tensor:
    """(1, 3): the grid of one picture, as the model's own functions want it."""
    rows, columns = grid
    if rows % model.config.spatial_merge_size or columns % model.config.spatial_merge_size:
        size = model.config.spatial_merge_size * model.config.patch_size
        raise ValueError(f"a frame of {rows} x {columns} patches; its sides must be multiples of {size} pixels")
    return torch.tensor([[1, rows, columns]], device=model.device)


def merged_order(model: Any, grid: Grid) -> Tensor:
    """(patches,): the patches in reading order of the tokens that they are merged into."""
    places = get_vision_position_ids(grid_thw(model, grid), model.config.spatial_merge_size)
    return places[:, 0] * grid[1] + places[:, 1]


def merged_rotation(model: Any, grid: Grid) -> Rotation:
    """cos and sin (patches, d) in that order."""
    thw = grid_thw(model, grid)
    cos, sin = model.rotary_pos_emb(thw, get_vision_position_ids(thw, model.config.spatial_merge_size))
    return cos, sin


def embed_patches(model: Any, pixels: Tensor, order: Callable[[Grid], Tensor]) -> Tensor:
    """Patches of frames (N, C, height, width) in the order of their grid, embedded: (N, P, D)."""
    patch = model.config.patch_size
    grid = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    patches = pixels.unflatten(3, (grid[1], patch)).unflatten(2, (grid[0], patch))  # (N, C, gh, ph, gw, pw)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)[:, order(grid)]  # (N, P, C, ph, pw)
    bias = model.patch_embed.proj.bias
    embedded = project_patches(model, patches.flatten(0, 1)).unflatten(0, (len(pixels), -1))
    return embedded if bias is None else embedded + bias


def project_patches(model: Any, patches: Tensor) -> Tensor:
    """(n, C, ph, pw) -> (n, D); what the convolution makes of as many equal pictures as it is deep in time."""
    return F.linear(patches.flatten(1), model.patch_embed.proj.weight.sum(dim=2).flatten(1))
