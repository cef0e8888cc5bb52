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

from fvlm_lib.schema import Propagate, check
from fvlm_lib.vision.towers import Block, Gate, PatchCache, Tower

DEFAULT_TOLERANCE = 0.02
"""Of gated updates; see `update`. On trained weights the largest error falls from 0.19 to 0.04 between 0.05 and
0.02, at about the same time."""


@torch.no_grad()
def encode_frame(tower: Tower, pixel_values: Tensor, propagate: Propagate = "none") -> PatchCache:
    """Encode one frame (1, C, height, width) into a cache that `update` takes; `.read()` gives its tokens.

    propagate: "gated" keeps what updates with a tolerance need, "none" does not.
    Raises ValueError for another shape than that of one frame of whole patches, or of the tower's size.
    """
    check(Propagate, propagate, "propagate")
    check_frame(tower, pixel_values)
    x = tower.embed(pixel_values)[0]  # (P, D)
    num_tokens, width = x.shape

    def empty(*shape: int) -> Tensor:
        return x.new_empty(shape)

    # heads contiguous, which attention of few queries reads fastest
    shapes = [(1, block.num_heads, num_tokens, width // block.num_heads) for block in tower.blocks]
    keys, values = tuple(empty(*shape) for shape in shapes), tuple(empty(*shape) for shape in shapes)
    gates: tuple[Gate, ...] = ()
    if propagate == "gated":
        gates = tuple(
            Gate(
                **{name: empty(num_tokens, width) for name in ("inputs", "queries", "attended", "used", "change")},
                logsumexp=empty(1, block.num_heads, num_tokens, 1),
                gain=_gain(block),
            )
            for block in tower.blocks
        )
    blank = tower.embeddings(torch.zeros_like(pixel_values))[0]
    cache = PatchCache(keys, values, tower.num_global_tokens, blank, torch.empty_like(x), gates)
    everything = torch.ones(num_tokens, dtype=torch.bool, device=x.device)
    if gates:
        _walk_gated(tower, cache, x, everything, 0.0, _Journal())
    else:
        _walk_rows(tower, cache, x, everything.nonzero().squeeze(1), _Journal())
    return cache


def update(tower: Tower, cache: PatchCache, patches: Tensor, changed: Tensor, tolerance: float | None = None) -> Tensor:
    """Put the changed patches of a new frame into the cache of `encode_frame`; returns its tokens (1, P, D).

    patches (n, C, patch_h, patch_w): the new pixels of the n patches that `changed` marks, in reading order;
    changed: bool (grid_h, grid_w). The global tokens and the changed patches' tokens are computed anew at
    every layer, at their own positions, against the whole frame's keys and values. The others:

    * cache made with propagate="none": they stay as they were.
    * "gated": each half of a block is computed anew for the tokens whose input there has moved by more than
      `tolerance` (relative L2, default `DEFAULT_TOLERANCE`) since that half was last computed for them. The
      first half (query, key, value) has the residual stream x as its input; it moves by |x - inputs| / |inputs|.
      The second half (output projection, MLP) has the attention's result a besides; it moves by
      gain |a - used| / |x|, an estimate of how far it takes x; a token whose attention's normaliser changed
      fourfold in any head counts as moved at any tolerance. Tokens not computed pass x on with the block's
      last change added, so that what moved in x is never lost, and since both are held against what was last
      computed, slow drift adds up until it is seen. 0 equals a full encode, infinity nearly "none". After
      Eventful Transformers (Dutson, Li and Gupta, ICCV 2023), with a threshold in place of top-r.

    In both cases a frame in which nothing changed costs nothing. If anything is raised, an interrupt by the
    user included, the cache is as it was before; until then it takes the memory of the replaced rows again.
    Raises ValueError for shapes that do not fit the cache, pixels that are not finite, a negative tolerance,
    and a tolerance for a cache without gates.
    """
    if cache.output is None or cache.blank is None:
        raise ValueError("the cache cannot be updated; only the caches of encode_frame can")
    if tolerance is not None and not cache.gates and tower.blocks:
        raise ValueError(f"tolerance is {tolerance}, but the cache was made with propagate='none'")
    if tolerance is not None and not tolerance >= 0:  # infinite ones compute nothing but the changed tokens
        raise ValueError(f"tolerance is {tolerance}; it must be 0 or more")
    _check_update(tower, cache, patches, changed)
    if len(patches):
        # also takes caches made under inference mode, wherever it is called
        with torch.inference_mode():
            journal = _Journal()
            try:
                _update(tower, cache, patches, changed, DEFAULT_TOLERANCE if tolerance is None else tolerance, journal)
            except BaseException:
                journal.undo()
                raise
    return cache.read()


def _update(
    tower: Tower, cache: PatchCache, patches: Tensor, changed: Tensor, tolerance: float, journal: _Journal
) -> None:
    assert cache.blank is not None
    given = F.pad(changed.flatten().to(cache.blank.device), (tower.num_global_tokens, 0), value=True)  # (P,)
    rows = given.nonzero().squeeze(1)
    embedded = cache.blank[rows]
    embedded[tower.num_global_tokens :] += tower.project_patches(patches.to(embedded))
    x = tower.pre_norm(embedded)  # (n, D)
    if cache.gates:
        x = cache.gates[0].inputs.index_copy(0, rows, x)  # (P, D)
        _walk_gated(tower, cache, x, given, tolerance, journal)
    else:
        _walk_rows(tower, cache, x, rows, journal)


def _walk_rows(tower: Tower, cache: PatchCache, x: Tensor, rows: Tensor, journal: _Journal) -> None:
    """Compute the tokens `rows` (n,) anew from the first block's input x (n, D); all others stay."""
    for block, keys, values in zip(tower.blocks, cache.keys, cache.values, strict=True):
        q, k, v = block.queries_keys_values(x)
        q, k, v = (block.heads(states[None]) for states in (q, k, v))  # (1, H, n, d)
        journal.write(keys, rows, k)
        journal.write(values, rows, v)
        attended, _ = _attention(q, keys, values)
        x = block.finish(x, _rows(attended))
    assert cache.output is not None
    journal.write(cache.output, rows, tower.final_norm(x))


def _walk_gated(tower: Tower, cache: PatchCache, x: Tensor, given: Tensor, tolerance: float, journal: _Journal) -> None:
    """Compute the tokens that are `given` (P,) anew, and all that move; x (P, D) is the first block's input."""
    for block, keys, values, gate in zip(tower.blocks, cache.keys, cache.values, cache.gates, strict=True):
        first = given | _moved(x, gate.inputs, tolerance)
        rows = first.nonzero().squeeze(1)  # (n,)
        moved = x[rows]
        q, k, v = block.queries_keys_values(moved)
        journal.write(gate.inputs, rows, moved)
        journal.write(gate.queries, rows, q)
        k, v = block.heads(k[None]), block.heads(v[None])  # (1, H, n, d)
        old_k, old_v = journal.write(keys, rows, k), journal.write(values, rows, v)
        queries = block.heads(gate.queries[None])  # (1, H, P, d)
        few = 3 * len(rows) < len(x)  # beyond that, computing attention anew measured faster
        if few:
            replaced = torch.cat([old_k, k], dim=-2), torch.cat([old_v, v], dim=-2)
            before = block.heads(gate.attended[None]), gate.logsumexp
            attended, logsumexp, lost = _corrected(queries, *replaced, *before)
        else:
            (attended, logsumexp), lost = _attention(queries, keys, values), torch.zeros_like(first)
        distance = gate.gain * torch.linalg.vector_norm(_rows(attended) - gate.used, dim=-1)
        second = first | lost | (distance > tolerance * torch.linalg.vector_norm(x, dim=-1))
        rows = second.nonzero().squeeze(1)
        if few:  # what the rest of the block is computed from is never a correction
            attended[:, :, rows], logsumexp[:, :, rows] = _attention(queries[:, :, rows], keys, values)
        journal.write(gate.attended, None, _rows(attended))
        journal.write(gate.logsumexp, None, logsumexp)
        journal.write(gate.used, rows, gate.attended[rows])
        journal.write(gate.change, rows, block.finish(x[rows], gate.attended[rows]) - x[rows])
        x = x + gate.change
    assert cache.output is not None
    journal.write(cache.output, None, tower.final_norm(x))


class _Journal:
    """Writes rows, (..., rows, columns), into the tensors of a cache so that they can be undone."""

    def __init__(self) -> None:
        self.written: list[tuple[Tensor, Tensor | None, Tensor]] = []

    def write(self, tensor: Tensor, rows: Tensor | None, new: Tensor) -> Tensor:
        """tensor[..., rows, :] = new, all rows for None; returns the old rows."""
        old = tensor.clone() if rows is None else tensor.index_select(-2, rows)
        self.written.append((tensor, rows, old))
        self._set(tensor, rows, new)
        return old

    def undo(self) -> None:
        for written in reversed(self.written):
            self._set(*written)

    @staticmethod
    def _set(tensor: Tensor, rows: Tensor | None, new: Tensor) -> None:
        if rows is None:
            tensor.copy_(new)
        else:
            tensor.index_copy_(-2, rows, new)


def _rows(heads: Tensor) -> Tensor:
    """(1, H, P, d) -> (P, D)"""
    return heads[0].transpose(0, 1).flatten(1)


def _moved(x: Tensor, reference: Tensor, tolerance: float) -> Tensor:
    """Which rows of x (P, D) are further from their reference than the tolerance, relative L2; bool (P,)."""
    return torch.linalg.vector_norm(x - reference, dim=-1) > tolerance * torch.linalg.vector_norm(reference, dim=-1)


def _attention(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (1, H, n, d) of queries (1, H, n, d), and its log-normaliser (1, H, n, 1).

    Written out, because that gives the normaliser, and on a CPU is no slower than the fused kernel.
    """
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)  # (1, H, n, P)
    highest = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    return (weights @ values).div_(total), total.log_().add_(highest)


def _corrected(
    queries: Tensor, keys: Tensor, values: Tensor, attended: Tensor, logsumexp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of queries (1, H, P, d) after n keys and values were replaced, from that before.

    keys, values: (1, H, 2 n, d), the n old ones, then the new. What the old ones gave is subtracted, what the
    new ones give is added, both in units of the old normaliser: 4 n / P of the arithmetic of computing it anew.
    Also returns the new log-normaliser, and for which tokens (P,) the normaliser of any head shrank to less
    than a quarter or grew more than fourfold: there rounding may have eaten the result.
    """
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)  # (1, H, P, 2 n)
    weights = scores.sub_(logsumexp).exp_()
    weights[..., : keys.shape[2] // 2].neg_()
    total = weights.sum(dim=-1, keepdim=True).add_(1)  # (1, H, P, 1)
    lost = ~((total > 0.25) & (total < 4)).all(dim=1).view(-1)  # NaN counts as lost
    return (weights @ values).add_(attended).div_(total), total.log().add_(logsumexp), lost


def _gain(block: Block) -> float:
    """Root mean square gain of the block's output projection with its scale."""
    weight = block.scale1(block.o_proj.weight.T)  # (D in, D out)
    return float(torch.linalg.matrix_norm(weight)) / weight.shape[0] ** 0.5


def check_frame(tower: Tower, pixel_values: Tensor) -> None:
    """ValueError unless pixel_values is one frame (1, C, height, width) that the tower takes."""
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[0] != 1 or shape[1] != tower.num_channels:
        raise ValueError(f"pixel_values has shape {shape}; it must be (1, {tower.num_channels}, height, width)")
    if 0 in shape or any(side % patch for side, patch in zip(shape[2:], tower.patch_size, strict=True)):
        raise ValueError(f"a frame of {shape[2]} x {shape[3]} pixels is not made of patches of {tower.patch_size}")
    if tower.image_size not in (None, shape[2:]):
        raise ValueError(f"a frame of {shape[2]} x {shape[3]} pixels; the tower takes {tower.image_size} only")


def _check_update(tower: Tower, cache: PatchCache, patches: Tensor, changed: Tensor) -> None:
    assert cache.blank is not None
    if len(cache.keys) != len(tower.blocks) or cache.num_global_tokens != tower.num_global_tokens:
        raise ValueError(f"the cache has {len(cache.keys)} layers and the tower {len(tower.blocks)}; they must match")
    num_patches = len(cache.blank) - cache.num_global_tokens
    if changed.dtype != torch.bool or changed.numel() != num_patches:
        raise ValueError(
            f"changed is {changed.dtype} of shape {tuple(changed.shape)}; it must be bool, one for each of "
            f"{num_patches} patches"
        )
    wanted = (int(changed.sum()), tower.num_channels, *tower.patch_size)
    if tuple(patches.shape) != wanted:
        raise ValueError(f"patches has shape {tuple(patches.shape)}; the patches that changed marks need {wanted}")
    if not patches.isfinite().all():
        raise ValueError("patches has pixels that are NaN or infinite; all must be finite")
