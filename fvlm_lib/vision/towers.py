"""Vision transformers opened at their layers: encode frames into a `PatchCache`, look into it with a query.

Where an architecture of transformers keeps the parts of its blocks is said by its adapter (`adapters/`); what a block
computes is `reuse/blocks.py`'s subject. A cache of one frame that is updated where patches changed is in `updates.py`.
This module knows nothing of language models and videos.

Throughout: L blocks, D width of the ViT, P tokens of a frame (G global tokens such as CLS and registers, then
the patches in the model's order, which is reading order unless its adapter says otherwise), H heads, d = D / H. Leading
dimensions `...` are any (batch, or batch and time).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fvlm_lib.reuse.blocks import joined
from fvlm_lib.reuse.fastest import PackWeights, few_rows_blocks
from fvlm_lib.reuse.kept import KeptRows
from fvlm_lib.vision.adapters import ADAPTERS
from fvlm_lib.vision.opened_tower import Grid, Layout, Tower

# ---- towers ------------------------------------------------------------------------------------------


def open_tower(
    model: nn.Module,
    read_layer: int | None = None,
    *,
    interpolate_pos_encoding: bool = False,
    pack_weights: PackWeights | None = None,
    pack_memory: int | None = None,
) -> Tower:
    """The parts of a transformers vision model; shares its weights, so training it trains the model.

    read_layer: which of transformers' `hidden_states` the tower's tokens are, as in LLaVA's
    `vision_feature_layer` (-2: one block before the end); the blocks above are left out. None is its
    `last_hidden_state`, behind the final norm except for CLIP, which has none there.
    interpolate_pos_encoding: let CLIP and SigLIP take frames of any size, as their argument of that name
    does; SigLIP 2 and DINOv2 always do.
    pack_weights: None for the model's own layers. The others are for updates on a CPU, in which products
    have few rows (see `packing.py`): False takes no memory, True packs copies of the blocks' weights, as much
    memory again, that do not follow later training; CPU and float32 only, elsewhere a warning is logged and
    `Tower.packed` is False. "auto" measures for about two seconds what is fastest for how many rows, and packs
    what gains by it, within `pack_memory` bytes (see `fastest.few_rows_blocks`).

    Raises TypeError for an architecture without an adapter, ValueError for a layer that it does not have.
    """
    open_model = next((adapter for kind, adapter in ADAPTERS.items() if isinstance(model, kind)), None)
    if open_model is None:
        known = ", ".join(kind.__name__ for kind in ADAPTERS)
        raise TypeError(f"no adapter for the vision model {type(model).__name__}; there is one for {known}")
    tower = open_model(model, interpolate_pos_encoding)
    if read_layer is not None:
        layers = len(tower.blocks)
        if not -layers - 1 <= read_layer <= layers:
            raise ValueError(f"read_layer is {read_layer}; the model has hidden states {-layers - 1} to {layers}")
        blocks = tower.blocks[: read_layer % (layers + 1)]
        taps = tuple(tap for tap in tower.taps if tap < len(blocks))
        tower = dataclasses.replace(tower, blocks=blocks, final_norm=nn.Identity(), taps=taps)
    if pack_weights is not None:
        blocks, packed, products = few_rows_blocks(tower.blocks, pack_weights, pack_memory)
        tower = dataclasses.replace(tower, blocks=blocks, packed=packed, products=products)
    elif pack_memory is not None:
        raise ValueError(f"pack_memory is {pack_memory}, but pack_weights is None; it goes with 'auto'")
    return tower


# ---- the cache ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PatchCache(KeptRows):
    """Keys and values of every frame's tokens at the layers that a query walks.

    keys, values: one tensor (..., H, P, d) a layer, in walking order. `num_global_tokens` of the P tokens
    come first and are not patches. Memory: 2 · layers · P · D · bytes an element, a frame.

    The cache of `encode_frame` holds one frame, leading dimension 1, and what `update` needs besides:
    blank: (P, D) embeddings of an all-zero frame, before any norm.
    embedded: (P, D) the first block's input.
    output: (P, D) the tokens; `read` gives a copy.
    taps: (P, D) the output of each block that the tower taps.
    layout: what depends on the frame's grid.
    gates: one `Gate` a layer for updates by a policy that gates, else empty.
    Memory: (2 L + 3) · P · D elements, and L · P · (5 D + H) more with gates.
    """

    num_global_tokens: int = 0
    blank: Tensor | None = None
    embedded: Tensor | None = None
    output: Tensor | None = None
    taps: tuple[Tensor, ...] = ()
    layout: Layout = field(default_factory=Layout)

    def frame(self, t: int) -> PatchCache:
        """The cache of frame t of a cache with leading dimensions (B, T); views, no copies."""
        keys, values = (tuple(states[:, t] for states in all_states) for all_states in (self.keys, self.values))
        return PatchCache(keys, values, num_global_tokens=self.num_global_tokens)

    def last_layers(self, count: int | None) -> PatchCache:
        """Keys and values of the last `count` layers (None: all), for looks alone; views, no copies."""
        first = 0 if count is None else len(self.keys) - count
        return PatchCache(self.keys[first:], self.values[first:], num_global_tokens=self.num_global_tokens)

    def read(self) -> Tensor:
        """A copy (1, P, D) of the tokens of the one frame that `encode_frame` or `update` put here last."""
        if self.output is None:
            raise ValueError("the cache holds no tokens; only the caches of encode_frame do")
        return self.output[None].clone()

    def read_taps(self) -> tuple[Tensor, ...]:
        """Copies (1, P, D) of the outputs of the blocks that the tower taps."""
        return tuple(tap[None].clone() for tap in self.taps)

    def tensors(self) -> list[Tensor]:
        """All tensors of the cache."""
        rows = (self.blank, self.embedded, self.output, *self.taps)
        return super().tensors() + [tensor for tensor in rows if tensor is not None]


def encode(tower: Tower, pixel_values: Tensor, num_query_layers: int | None = None) -> PatchCache:
    """Encode frames (..., 3, height, width) into the cache of the last `num_query_layers` layers (None: all).

    For looks alone, with gradients: of the last layer only keys and values are computed, since no query sees
    that layer's own output. `encode_frame` is for updates.
    Raises ValueError for towers with rotary positions or windows: a query has no place among the patches.
    """
    check_look(tower, tower.grid(pixel_values))
    leading = pixel_values.shape[:-3]
    x = tower.embed(pixel_values.flatten(0, -4))  # (N, P, D)
    first = len(tower.blocks) - (num_query_layers or len(tower.blocks))
    keys, values = [], []
    for i, block in enumerate(tower.blocks):
        k, v = block.keys_values(x)
        if i >= first:
            k, v = k.contiguous(), v.contiguous()  # once here, not in every look
            keys.append(k.unflatten(0, leading))
            values.append(v.unflatten(0, leading))
        if i + 1 < len(tower.blocks):
            attended = F.scaled_dot_product_attention(block.queries(x), k, v)  # (N, H, P, d)
            x = block.finish(x, joined(attended))
    return PatchCache(tuple(keys), tuple(values), num_global_tokens=tower.num_global_tokens)


def check_look(tower: Tower, grid: Grid) -> None:
    """ValueError for towers with rotary positions or windows: a query has no place among the patches."""
    layout = tower.layout(grid)
    if layout.rotation is not None or layout.windows:
        raise ValueError("a query cannot look at the patches of a tower with rotary positions or window attention")


def look(
    tower: Tower, cache: PatchCache, query: Tensor, output_attentions: bool = False
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A query's walk through the layers of the cache: it attends to the patches, they never see it.

    query (..., D) with the cache's leading dimensions, or (..., N, D) for N queries that look at the same frame
    and do not see each other. Returns the foveated token (..., D), or (..., N, D), after the final norm, and
    with `output_attentions` per layer the attention over the frame's tokens (..., H, P), or (..., N, H, P),
    rows summing to 1, else ().
    """
    single = query.ndim == cache.keys[0].ndim - 2
    x = query.unsqueeze(-2) if single else query  # (..., N, D)
    attentions = []
    for block, k, v in zip(tower.blocks[-len(cache.keys) :], cache.keys, cache.values, strict=True):
        q = block.queries(x)  # (..., H, N, d)
        # the fast kernels take four dimensions, and read the keys where they lie
        folded = [part.reshape(-1, *part.shape[-3:]) for part in (q, k, v)]
        attended = F.scaled_dot_product_attention(folded[0], folded[1], folded[2]).reshape(q.shape)
        x = block.finish(x, joined(attended))
        if output_attentions:
            scores = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5  # (..., H, N, P)
            attentions.append(torch.softmax(scores, dim=-1).transpose(-3, -2))
    token = tower.final_norm(x)
    if single:
        return token.squeeze(-2), tuple(attention.squeeze(-3) for attention in attentions)
    return token, tuple(attentions)
