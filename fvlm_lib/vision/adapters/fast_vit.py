"""How timm's FastViT (Vasu et al., ICCV 2023, arXiv 2303.14189) is taken apart; FastViTHD, the tower of FastVLM
(Vasu et al., CVPR 2025, arXiv 2412.13303), is its `fastvit_mci3`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fvlm_lib.vision.fast_vit import ConvolutionalTower, Residual, Step, Unit, Whole, Windowed, as_map, as_rows


def open_fast_vit(model: Any) -> ConvolutionalTower:
    """The units of timm's `FastVit` whose branches are merged into single convolutions (`inference_mode=True`).

    Downsampling with squeeze-excitation, as the smaller variants have it in the last stages, and the last convolution,
    as all have it, are computed in full. Raises TypeError for a model with branches, which
    `timm.utils.reparameterize_model` merges.
    """
    stem: Any = model.stem
    stages: Any = model.stages
    if stem[0].reparam_conv is None:
        raise TypeError("the FastViT has the branches of training; timm.utils.reparameterize_model merges them")
    units: list[Unit] = [_stem(stem)]
    for stage in stages:
        if not isinstance(stage.downsample, nn.Identity):
            units.append(_downsample(stage.downsample))
        if not isinstance(stage.pos_emb, nn.Identity):
            encoding = stage.pos_emb
            units.append(Windowed((Step(encoding.reparam_conv, _same),), _same, encoding))
        for block in stage.blocks:
            # by name, for timm is imported by those alone who have such a model
            units += [_mixer_block(block)] if type(block).__name__ == "RepMixerBlock" else _attention_block(block)
    if not isinstance(model.final_conv, nn.Identity):
        units.append(Whole(model.final_conv))
    strides = [step.geometry[1] for unit in units if not isinstance(unit, Whole) for step in unit.steps]
    patch = math.prod(strides) * math.prod(unit.stride for unit in units if isinstance(unit, Whole))
    return ConvolutionalTower(tuple(units), (patch, patch), model.in_chans)


def _stem(stem: Any) -> Unit:
    first, second, third = stem
    steps = (Step(first.reparam_conv, first.act), Step(second.reparam_conv, second.act))
    return Windowed(steps, _dense(third), stem)


def _downsample(module: Any) -> Unit:
    depthwise, dense = module.proj
    if not isinstance(depthwise.se, nn.Identity):
        return Whole(module, depthwise.stride)
    return Windowed((Step(depthwise.reparam_conv, depthwise.act),), _dense(dense), module)


def _mixer_block(block: Any) -> Unit:
    return Residual(
        (Step(block.token_mixer.reparam_conv, _same), _spatial(block.mlp)), _products(block.mlp, block.layer_scale)
    )


def _attention_block(block: Any) -> list[Unit]:
    """The input and its queries, keys and values, which are computed where the input moved; attention, of all
    positions, since its products are few; the MLP, where the sum moved."""
    attention: Any = block.token_mixer

    def projected(rows: Tensor) -> Tensor:  # (n, C) to (n, 4 C)
        normed = block.norm(rows[:, :, None, None]).flatten(1)
        return torch.cat([rows, attention.qkv(normed)], dim=1)

    def attended(x: Tensor) -> Tensor:  # (1, 4 C, H, W) to (1, C, H, W)
        rows, qkv = as_rows(x).tensor_split([attention.num_heads * attention.head_dim], dim=1)
        q, k, v = qkv.unflatten(1, (3, attention.num_heads, -1)).permute(1, 2, 0, 3)[:, None]  # (1, heads, P, d)
        joined = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)
        return as_map(rows + _scaled(attention.proj(joined), block.layer_scale_1), (x.shape[2], x.shape[3]))

    return [
        Windowed((), projected, lambda x: as_map(projected(as_rows(x)), (x.shape[2], x.shape[3]))),
        Whole(attended),
        Residual((_spatial(block.mlp),), _products(block.mlp, block.layer_scale_2)),
    ]


def _spatial(mlp: Any) -> Step:
    return Step(mlp.conv.conv, mlp.conv.bn)


def _products(mlp: Any, scale: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda rows: _scaled(_linear(mlp.fc2, mlp.act(_linear(mlp.fc1, rows))), scale)


def _dense(block: Any) -> Callable[[Tensor], Tensor]:
    """A block of a 1 x 1 convolution, of rows."""
    return lambda rows: block.act(_linear(block.reparam_conv, rows))


def _linear(convolution: nn.Conv2d, rows: Tensor) -> Tensor:
    return F.linear(rows, convolution.weight.flatten(1), convolution.bias)


def _scaled(rows: Tensor, scale: Any) -> Tensor:
    return rows if isinstance(scale, nn.Identity) else rows * scale.gamma.flatten()


def _same(x: Tensor) -> Tensor:
    return x
