"""A prompt's prefill, kept from one prompt to the next: the first full, each later one an update of what changed.

Rows are kept in every layer, as `reuse/kept.py` has them. A prompt that changes in some tokens is updated in place; one
that gains, loses or moves tokens has their rows moved along, keys and queries turned to their new positions, as rotary
ones allow. Which rows are then computed anew is a policy's matter (`reuse/policies`). Where tokens come from, text or
images, this module does not know.

Letters: N tokens of the prompt, D width, V vocabulary, L layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fvlm_lib.language.alignment import align_ids, align_rows
from fvlm_lib.language.decoders import Decoder, open_decoder
from fvlm_lib.reuse.blocks import turn
from fvlm_lib.reuse.fastest import PackWeights
from fvlm_lib.reuse.kept import Journal, KeptRows, empty_rows, moved_rows
from fvlm_lib.reuse.policies import POLICIES, Policy, is_gating
from fvlm_lib.reuse.policies.full import Full
from fvlm_lib.reuse.policies.gated import Gated
from fvlm_lib.reuse.walk import walk_gated, walk_rows


@dataclass(frozen=True)
class PrefillStatistics:
    """What was done with one prompt.

    path: "full" (there was nothing to update), "partial", "cached" (nothing changed). tokens: of the prompt.
    changed_tokens: those whose embedding changed or is new. moved_tokens: those carried to another position.
    computed: bool (L, N), whose row was computed anew in that layer, in either half. owed: see `walk.Walked`.
    """

    path: str
    tokens: int
    changed_tokens: int
    moved_tokens: int
    computed: Tensor
    owed: int

    @property
    def computed_share(self) -> float:
        """Rows computed, of all rows and layers."""
        return float(self.computed.double().mean())

    @property
    def reused_tokens(self) -> int:
        """Tokens that no layer computed anew."""
        return self.tokens - int(self.computed.any(dim=0).sum())


@dataclass(frozen=True)
class Prefilled:
    """logits: (1, V) of the first token of the answer. hidden: (1, D) the last position's hidden state behind the final
    norm. past_key_values: keys and values of all N positions for `generate` to go on from; what decoding appends to it
    does not reach the kept rows, and a later prompt does not reach it."""

    logits: Tensor
    hidden: Tensor
    past_key_values: DynamicCache
    statistics: PrefillStatistics


@dataclass(frozen=True)
class _State:
    """rows: of the prompt at every layer. embeds (N, D): its embeddings. positions (..., 1, N). additions: (N, D) each.
    last (1, D): the last block's output at the last position."""

    rows: KeptRows
    embeds: Tensor
    positions: Tensor
    additions: tuple[Tensor, ...]
    last: Tensor
    input_ids: tuple[int, ...] | None
    owed: int


class GatedPrefill:
    """The prefill of one prompt after the other by a causal language model.

    model: a causal language model of transformers, or a vision-language model with one (`decoders.open_decoder`).
    policy: which rows are computed anew after a change, by name with its defaults or as an object. "gated" with
        tolerance 0 equals a full prefill to rounding, whatever changed; "exact" and "full" do by what they compute.
    pack_weights, pack_memory: None for the model's own layers, else as in `fastest.few_rows_blocks`.

    Memory of N tokens, in elements: 2 L N G d keys and values, N D embeddings, and for policies that gate
    L N (2 D + 3 H d + H) more; H query heads and G key heads of d channels. For 1,000 tokens of Qwen2.5-3B (L 36,
    D 2048, H 16, G 2, d 128) that is 390 million elements, 0.78 GB in bfloat16, of which keys and values are 0.04 GB.
    An update takes the memory of the replaced rows again until it is done, one in which tokens move that of all.

    Raises TypeError for a model that does not fit, ValueError for a policy that there is none of.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: str | Policy = "gated",
        *,
        pack_weights: PackWeights | None = None,
        pack_memory: int | None = None,
    ) -> None:
        if isinstance(policy, str) and policy not in POLICIES:
            raise ValueError(f"policy is {policy!r}; it must be one of {', '.join(POLICIES)}")
        self.policy: Policy = POLICIES[policy]() if isinstance(policy, str) else policy
        self.decoder: Decoder = open_decoder(model, pack_weights, pack_memory)
        self._state: _State | None = None

    def reset(self) -> None:
        """Forget the last prompt."""
        self._state = None

    def fork(self, policy: Policy) -> GatedPrefill:
        """Another one of the same model that goes on from a copy of what is kept of the last prompt by another policy.

        Raises ValueError where one of the two policies gates and the other does not, so keeps other rows.
        """
        if is_gating(policy) != is_gating(self.policy):
            raise ValueError(f"{policy} cannot go on from rows that are kept for {self.policy}")
        other = copy.copy(self)
        other.policy = policy
        if self._state is not None:
            everything = torch.arange(len(self._state.embeds), device=self.decoder.device)
            other._state = replace(self._state, rows=moved_rows(self._state.rows, everything))
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept of the last prompt, but for its positions and the last hidden state."""
        if not self._state:
            return 0
        state = self._state
        return state.rows.nbytes + sum(tensor.nbytes for tensor in (state.embeds, *state.additions))

    @torch.no_grad()
    def __call__(
        self,
        inputs_embeds: Tensor,
        *,
        input_ids: Sequence[int] | None = None,
        position_ids: Tensor | None = None,
        changed: Tensor | None = None,
        observed: Tensor | None = None,
        additions: Sequence[Tensor] = (),
    ) -> Prefilled:
        """Prefill a prompt.

        inputs_embeds: (1, N, D). input_ids: N token ids, by which moved tokens are found; without them a prompt of
            another length keeps what is alike at its two ends (`alignment.align_rows`).
        position_ids: (1, N), or (3, 1, N) multimodal ones; None is 0 to N - 1.
        changed: bool (N,), the tokens that count as changed, for policies that gate: of the others whose embedding
            differs they see by how much. None is all whose embedding differs, as it always is for other policies. New
            tokens are always computed, and the last one if anything is.
        observed: bool (N,), tokens of an image or of the screen's text, for the policies that treat them apart; None is
            none.
        additions: (N, D) each, added to the outputs of the first layers; as many as for the last prompt.

        If anything is raised, an interrupt included, the state is as it was. Raises ValueError for shapes, types and
        positions that do not fit, embeddings that are not finite, and a prompt longer than the context.
        """
        embeds, positions = self._checked(inputs_embeds, position_ids, input_ids, changed, observed)
        kept_additions = self._checked_additions(additions, embeds)
        ids = None if input_ids is None else tuple(input_ids)
        count = len(embeds)
        observed = torch.zeros(count, dtype=torch.bool) if observed is None else observed
        with torch.inference_mode():
            old = self._state
            if old is None:
                return self._full(embeds, positions, kept_additions, ids)
            source = align_ids(old.input_ids, ids) if ids and old.input_ids else align_rows(old.embeds, embeds)
            if not bool((source >= 0).any()):
                return self._full(embeds, positions, kept_additions, ids)
            return self._update(
                old, embeds, positions, kept_additions, ids, source.to(embeds.device), changed, observed
            )

    # ---- the first prompt, and one that has nothing of the last ------------------------------------------

    def _full(
        self, embeds: Tensor, positions: Tensor, additions: tuple[Tensor, ...], ids: tuple[int, ...] | None
    ) -> Prefilled:
        rows = empty_rows(self.decoder.blocks, embeds, is_gating(self.policy))
        everything = torch.ones(len(embeds), dtype=torch.bool, device=embeds.device)
        x, computed, _ = self._walk(rows, embeds, positions, additions, everything, Full(), Journal(), 0)
        state = _State(rows, embeds, positions, additions, x, ids, 0)
        done = self._prefilled(state, "full", computed, len(embeds), 0)
        self._state = state
        return done

    # ---- updates -----------------------------------------------------------------------------------------

    def _update(
        self,
        old: _State,
        embeds: Tensor,
        positions: Tensor,
        additions: tuple[Tensor, ...],
        ids: tuple[int, ...] | None,
        source: Tensor,
        changed: Tensor | None,
        observed: Tensor,
    ) -> Prefilled:
        count = len(embeds)
        found = source >= 0
        places = source.clamp(min=0)
        moved = found & (old.positions[..., 0, places] != positions[..., 0, :]).reshape(-1, count).any(dim=0)
        stays = count == len(old.embeds) and torch.equal(source, torch.arange(count, device=source.device))
        differs = ~found | (embeds != old.embeds[places]).any(dim=1)
        for new, kept in zip(additions, old.additions, strict=True):
            differs |= (new != kept[places]).any(dim=1)
        given = differs.clone()
        if changed is not None and is_gating(self.policy):  # which sees by itself how much the others differ
            given = changed.to(embeds.device) | ~found
        changed_tokens = int(given.sum())
        touched = differs | given | moved
        if stays and not touched.any() and not old.owed:
            empty = torch.zeros(len(self.decoder.blocks), count, dtype=torch.bool)
            done = self._prefilled(old, "cached", empty, 0, 0)
            self._state = replace(old, input_ids=ids)
            return done
        given[-1] = True  # its logits are the first token's
        in_place = stays and not moved.any()
        # a row that stands behind another one than before sees other rows
        touched |= source != torch.arange(count, device=source.device)
        touched[-1] = True
        start = 0 if old.owed else int(touched.nonzero()[0])
        given[start] |= not (in_place or is_gating(self.policy))
        journal = Journal()
        rows = old.rows if in_place else self._moved(old, source, positions, moved)
        try:
            x, computed, owed = self._walk(
                rows, embeds, positions, additions, given, self.policy, journal, start, observed, correct=in_place
            )
            state = _State(rows, embeds, positions, additions, x, ids, owed)
            done = self._prefilled(state, "partial", computed, changed_tokens, int(moved.sum()))
        except BaseException:
            journal.undo()
            raise
        self._state = state
        return done

    def _moved(self, old: _State, source: Tensor, positions: Tensor, moved: Tensor) -> KeptRows:
        """The old rows at their new places, turned to their new positions."""
        rows = moved_rows(old.rows, source)
        places = moved.nonzero().squeeze(1)
        if not len(places):
            return rows
        before = self.decoder.rotation(old.positions[..., source[places]])
        after = self.decoder.rotation(positions[..., places])
        for states in (*rows.keys, *(gate.queries for gate in rows.gates)):
            turned = turn(states[:, :, places].double(), *(_double(angles) for angles in (before, after)))
            states[:, :, places] = turned.to(states)
        return rows

    def _walk(
        self,
        rows: KeptRows,
        embeds: Tensor,
        positions: Tensor,
        additions: tuple[Tensor, ...],
        given: Tensor,
        policy: Policy,
        journal: Journal,
        start: int,
        observed: Tensor | None = None,
        correct: bool = True,
    ) -> tuple[Tensor, Tensor, int]:
        """The last block's output (1, D) at the last position, which rows were computed (L, N), how many are owed."""
        blocks = self.decoder.blocks
        cos, sin = self.decoder.rotation(positions)
        if rows.gates:
            gating: Any = Gated(0.0) if isinstance(policy, Full) else policy
            rotation = cos[start:], sin[start:]
            walked = walk_gated(
                blocks, rows, embeds[start:], given[start:], gating, journal,
                start=start, causal=True, rotation=rotation, correct=correct,
                additions=[addition[start:] for addition in additions],
            )  # fmt: skip
            either = walked.computed.any(dim=1)  # (L, n)
            computed = torch.cat([either.new_zeros(len(blocks), start), either], dim=1)
            return walked.x[-1:], computed, walked.owed
        observed = given if observed is None else observed.to(given.device)
        chosen: Tensor = policy.rows(given, observed)  # type: ignore[union-attr]
        picked = chosen.nonzero().squeeze(1)
        x = walk_rows(
            blocks, rows, embeds[picked], picked, journal,
            causal=True, rotation=(cos[picked], sin[picked]), additions=[addition[picked] for addition in additions],
        )  # fmt: skip
        return x[-1:], chosen.expand(len(blocks), -1), 0

    def _prefilled(
        self, state: _State, path: str, computed: Tensor, changed_tokens: int, moved_tokens: int
    ) -> Prefilled:
        """What a caller gets of a state that was just made, or found unchanged."""
        hidden = self.decoder.final_norm(state.last)
        statistics = PrefillStatistics(
            path, len(state.embeds), changed_tokens, moved_tokens, computed.cpu().clone(), state.owed
        )
        return Prefilled(self.decoder.lm_head(hidden), hidden, _cache(state.rows), statistics)

    # ---- wrong input -------------------------------------------------------------------------------------

    def _checked(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor | None,
        input_ids: Sequence[int] | None,
        changed: Tensor | None,
        observed: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (N, D), a copy, and positions (..., 1, N). Raises ValueError for what cannot be."""
        decoder, shape = self.decoder, tuple(inputs_embeds.shape)
        if len(shape) != 3 or shape[0] != 1 or not shape[1] or shape[2] != decoder.width:
            raise ValueError(f"inputs_embeds has shape {shape}; it must be (1, tokens, {decoder.width})")
        if inputs_embeds.dtype != decoder.dtype:
            raise ValueError(f"inputs_embeds is {inputs_embeds.dtype}; the model {decoder.name} is {decoder.dtype}")
        if not inputs_embeds.isfinite().all():
            raise ValueError("inputs_embeds has values that are NaN or infinite; all must be finite")
        count = shape[1]
        if count > decoder.max_positions:
            raise ValueError(
                f"the prompt has {count} tokens, but the context of {decoder.name} is {decoder.max_positions}"
            )
        if input_ids is not None and len(input_ids) != count:
            raise ValueError(f"input_ids has {len(input_ids)} tokens, but inputs_embeds {count}")
        for name, mask in (("changed", changed), ("observed", observed)):
            if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != (count,)):
                raise ValueError(f"{name} is {mask.dtype} of shape {tuple(mask.shape)}; it must be bool ({count},)")
        if position_ids is None:
            position_ids = torch.arange(count)[None]
        if position_ids.is_floating_point() or tuple(position_ids.shape) not in ((1, count), (3, 1, count)):
            raise ValueError(
                f"position_ids is {position_ids.dtype} of shape {tuple(position_ids.shape)}; it must be of whole "
                f"numbers, (1, {count}) or (3, 1, {count})"
            )
        if self._state and self._state.positions.ndim != position_ids.ndim:
            raise ValueError(
                "position_ids has another number of dimensions than those of the last prompt; reset() first"
            )
        return inputs_embeds[0].to(decoder.device).clone(), position_ids.to(decoder.device)

    def _checked_additions(self, additions: Sequence[Tensor], embeds: Tensor) -> tuple[Tensor, ...]:
        """Copies. Raises ValueError for what cannot be added, or for another number than the last prompt's."""
        for addition in additions:
            if addition.shape != embeds.shape or addition.dtype != embeds.dtype:
                raise ValueError(
                    f"additions has one of {addition.dtype} and shape {tuple(addition.shape)}; each must be "
                    f"{embeds.dtype} and {tuple(embeds.shape)}"
                )
            if not addition.isfinite().all():
                raise ValueError("additions has values that are NaN or infinite; all must be finite")
        most = len(self._state.additions) if self._state else len(self.decoder.blocks)
        if len(additions) > most or (self._state and len(additions) < most):
            known = f"the last prompt had {most}; reset() first" if self._state else f"there are {most} layers"
            raise ValueError(f"additions has {len(additions)} tensors, but {known}")
        return tuple(addition.to(embeds.device).clone() for addition in additions)


def _double(rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return rotation[0].double(), rotation[1].double()


def _cache(rows: KeptRows) -> DynamicCache:
    """Keys and values as transformers takes them: copies, since an update writes into the kept ones."""
    return DynamicCache(list(zip(rows.keys, rows.values, strict=True)))
