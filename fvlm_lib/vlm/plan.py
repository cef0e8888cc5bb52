"""What encoding a frame and updating it take, counted from shapes: arithmetic by layer, and how far a changed patch
reaches.

Arithmetic is counted by torch (`count_flops`) on a model without weights. How long any of it takes on a machine is the
subject of `plan_times.py`.

Letters as in `blocks.py`; n patches changed, of a frame's P rows G are global tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fvlm_lib.errors import CheckpointError, first_line
from fvlm_lib.foveated.flops import count_flops, count_flops_by_module
from fvlm_lib.reuse.blocks import Block, joined
from fvlm_lib.reuse.windows import Windows
from fvlm_lib.vision.fast_vit import ConvolutionalTower
from fvlm_lib.vision.opened_tower import Grid, Tower
from fvlm_lib.vlm.weightless import Weightless

SCORES = ("aten.bmm", "aten.baddbmm")
"""What torch's attention is counted as: scores, and values weighted with them."""


@dataclass(frozen=True)
class Layer:
    """flops: of all that it computes. attention: of these, scores and weighted values."""

    name: str
    flops: int
    attention: int = 0


@dataclass(frozen=True)
class Part:
    """A part of a model. rows: that go through it, where it is a stack of blocks. nbytes: of its weights."""

    name: str
    layers: tuple[Layer, ...]
    nbytes: int
    rows: int | None = None

    @property
    def flops(self) -> int:
        """Of all its layers."""
        return sum(layer.flops for layer in self.layers)


def plan_tower(weightless: Weightless) -> Part:
    """The vision tower with what brings its tokens into the language model's width, for one frame.

    Raises CheckpointError for a tower that is no stack of blocks, or has no adapter, and whose arithmetic cannot be
    counted without weights.
    """
    vision, frame = weightless.vision, weightless.frame
    if not isinstance(vision.tower, Tower):
        found = count_by_module(weightless.name, vision.module, lambda: vision.own(frame))
        return Part("vision tower", found, nbytes(vision.module))
    tower, grid = vision.tower, vision.tower.grid(frame)
    rows, frames = num_rows(tower, grid), len(frame)
    patch = torch.zeros(1, tower.num_channels, *tower.patch_size, dtype=vision.dtype)
    row = frame.new_empty(1, 1, width(tower), dtype=vision.dtype)
    projected = frames * grid[0] * grid[1] * count_flops(lambda: tower.project_patches(patch))
    layers = [Layer("patches", projected)]
    for i, (block, inside) in enumerate(zip(tower.blocks, windows(tower, grid), strict=True)):
        costs = block_costs(block, row)
        pairs = rows * rows if inside is None else int(inside.window.bincount().square().sum())
        layers.append(Layer(f"block {i}", frames * costs.of(rows, pairs), frames * costs.pair * pairs))
    tokens = vision.token_rows(grid)
    token = torch.zeros(1, 1, tokens.shape[1], width(tower), dtype=vision.dtype)
    projecting = sum(count_flops(lambda: project(token)) for project in (vision.project, *vision.deepstack))  # noqa: B023
    layers.append(Layer("projector", frames * len(tokens) * projecting))
    return Part("vision tower", tuple(layers), nbytes(*modules(tower.blocks)), rows)


def plan_text(weightless: Weightless, text_tokens: int) -> Part | None:
    """The language model's prefill of a frame's tokens and so many of text, the head for the last of them; None where
    there is none."""
    if weightless.text is None:
        return None
    vision, frame, model = weightless.vision, weightless.frame, weightless.text
    if vision.tower:
        image_tokens = len(frame) * vision.num_tokens(vision.tower.grid(frame))
    else:
        image_tokens = vision.own(frame).shape[:-1].numel()
    tokens = image_tokens + text_tokens
    embeds = torch.empty(1, tokens, model.get_input_embeddings().embedding_dim, device="meta", dtype=model.dtype)
    mask = torch.empty(1, 1, tokens, tokens, dtype=torch.bool, device="meta")  # given, none is made from numbers
    inner = model.model.language_model
    found = count_by_module(
        weightless.name, inner, lambda: inner(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    )
    head = Layer("lm_head", count_flops(lambda: model.lm_head(embeds[:, -1:])))
    return Part("language model", (*found, head), nbytes(inner.layers, model.lm_head), tokens)


# ---- a tower's blocks --------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockCosts:
    """FLOPs of a block: row, of what every row takes by itself; pair, of a query that sees a key."""

    row: int
    pair: int

    def of(self, rows: int, pairs: int) -> int:
        """Of so many rows, which see so many keys all together."""
        return self.row * rows + self.pair * pairs


@torch.no_grad()
def block_costs(block: Block, row: Tensor) -> BlockCosts:
    """What a block costs; row: (1, 1, D), like its input."""
    q, k, v = block.queries_keys_values(row)
    return BlockCosts(
        row=count_flops(lambda: block.queries_keys_values(row)) + count_flops(lambda: block.finish(row, joined(q))),
        pair=count_flops(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])),
    )


def update_flops(tower: Tower, grid: Grid, count: int, row: Tensor) -> int:
    """Of the blocks, in an update where `count` patches spread over the frame changed: their rows and the global tokens
    at every block, against all keys that they see. row: (1, 1, D), like a block's input."""
    rows = updated_rows(tower, grid, count)
    total = 0
    for block, inside in zip(tower.blocks, windows(tower, grid), strict=True):
        seen = len(rows) * num_rows(tower, grid)
        if inside is not None:
            seen = int(inside.window.bincount()[inside.window[rows]].sum())
        total += block_costs(block, row).of(len(rows), seen)
    return total


def updated_rows(tower: Tower, grid: Grid, count: int) -> Tensor:
    """The rows (G + count,), rising, of the global tokens and of `count` patches spread over the frame."""
    patches = grid[0] * grid[1]
    spread = torch.arange(count) * patches // count
    return torch.cat([torch.arange(tower.num_global_tokens), tower.num_global_tokens + spread])


def reach(tower: Tower, grid: Grid, patch: int) -> list[float]:
    """The share of all rows that a change of one patch (place in reading order) has reached behind each block: the rows
    that an update at tolerance 0 computes there."""
    order = tower.order(grid)
    row = patch if order is None else int((order == patch).nonzero())
    reached = torch.zeros(num_rows(tower, grid), dtype=torch.bool)
    reached[: tower.num_global_tokens] = reached[tower.num_global_tokens + row] = True
    shares = []
    for inside in windows(tower, grid):
        if inside is None:
            reached[:] = True
        else:
            reached = torch.isin(inside.window, inside.window[reached])
        shares.append(float(reached.double().mean()))
    return shares


def reach_of_maps(tower: ConvolutionalTower, size: tuple[int, int]) -> list[tuple[tuple[int, int], float]]:
    """The same of a convolutional tower, for a patch in the middle of a frame (height, width): of the last map of each
    size, in order, its size and the share of its positions."""
    reached = torch.zeros(size, dtype=torch.bool)
    down, right = (side // patch // 2 * patch for side, patch in zip(size, tower.patch_size, strict=True))
    reached[down : down + tower.patch_size[0], right : right + tower.patch_size[1]] = True
    shares = {}
    for unit in tower.units:
        reached = unit.reached(reached)
        shares[tuple(reached.shape)] = float(reached.double().mean())
    return [((height, width), share) for (height, width), share in shares.items()]


def windows(tower: Tower, grid: Grid) -> list[Windows | None]:
    """Of every block the windows in which alone its rows see each other, or None."""
    return list(tower.windows(grid) or [None] * len(tower.blocks))[: len(tower.blocks)]


def num_rows(tower: Tower, grid: Grid) -> int:
    """P"""
    return tower.num_global_tokens + grid[0] * grid[1]


def width(tower: Tower) -> int:
    """D"""
    return int(tower.blocks[0].q_proj.weight.shape[1])  # type: ignore[union-attr, index, arg-type]


def modules(blocks: Iterable[Block]) -> list[nn.Module]:
    """All modules that the blocks are made of."""
    return [part for block in blocks for part in vars(block).values() if isinstance(part, nn.Module)]


def nbytes(*parts: nn.Module) -> int:
    """Bytes of their weights, each counted once."""
    return sum(weight.nbytes for weight in {weight for part in parts for weight in part.parameters()})


# ---- any module --------------------------------------------------------------------------------------


def count_by_module(name: str, model: nn.Module, call: Callable[[], object]) -> tuple[Layer, ...]:
    """The arithmetic of `call()`, which runs the model, by the members of its outermost lists of layers; what is in no
    list comes last. Raises CheckpointError, naming the model, where it cannot be counted without weights."""
    try:
        with torch.no_grad():
            counts = count_flops_by_module(call)
    except (RuntimeError, NotImplementedError) as error:
        raise CheckpointError(
            f"the arithmetic of {type(model).__name__} in {name} cannot be counted without its weights "
            f"({first_line(error)})"
        ) from error
    layers: list[Layer] = []
    lists: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(path.startswith(f"{one}.") for one in lists):
            continue
        members = [(f"{path}.{child}", found) for child, found in _members(counts, path, module)]
        if len(members) > 1:
            lists.append(path)
            layers += [Layer(member, sum(ops.values()), _scores(ops)) for member, ops in members]
    every = counts.get("Global", {})
    rest = Layer("the rest", sum(every.values()) - sum(layer.flops for layer in layers), 0)
    return (*layers, rest)


def _members(counts: dict[str, dict[str, int]], path: str, module: nn.Module) -> list[tuple[str, dict[str, int]]]:
    found = []
    for child, _ in module.named_children():
        ops = [counted for name, counted in counts.items() if name.partition(".")[2] == f"{path}.{child}"]
        found += [(child, one) for one in ops[:1]]
    return found


def _scores(ops: dict[str, int]) -> int:
    return sum(ops.get(name, 0) for name in SCORES)
