"""How the prompt of one frame after the other comes to its first token: in full, from the exact prefix on, or updated.

Three ways, told apart by their policy (`reuse/policies`). "full" keeps nothing. "exact" keeps keys and values up to the
first embedding that differs, and leaves the rest of the prompt to `generate`. Any other is a `GatedPrefill`, which
gives logits and a cache, and `continued` has `generate` go on from there. What a frame is, this module does not know.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from fvlm_lib.language.prefill import GatedPrefill
from fvlm_lib.reuse.fastest import PackWeights
from fvlm_lib.reuse.policies import POLICIES, Policy
from fvlm_lib.reuse.policies.exact import Exact
from fvlm_lib.reuse.policies.full import Full
from fvlm_lib.reuse.policies.gated import Gated
from fvlm_lib.schema import Tolerance, check
from fvlm_lib.vlm.prompts import Prompt

logger = logging.getLogger(__name__)


class NamedModel(Protocol):
    """A model of transformers that generates text, and the name that errors call it by."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> Any: ...


@dataclass(frozen=True)
class Begun:
    """A prompt of N tokens as far as it has been run.

    past: keys and values of its first positions, of all where `logits` (1, V) and `hidden` (1, D), of the last one
    behind the final norm, are known; else `generate` runs the rest. path, rows, reused_tokens, owed: see
    `stream.Answer`.
    """

    past: DynamicCache
    path: str
    rows: float
    reused_tokens: int
    logits: Tensor | None = None
    hidden: Tensor | None = None
    owed: int = 0


def nothing_run(model: Any) -> Begun:
    """A prompt of which nothing has been run."""
    return Begun(DynamicCache(config=model.config), "full", 1.0, 0)


@dataclass
class PrefillTotals:
    """Of all prompts since the stream was made: `frames` counts by path, `rows` sums the shares computed."""

    frames: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("full", "exact", "partial", "cached", "fallback"), 0)
    )
    rows: float = 0.0

    def add(self, begun: Begun, count: int = 1) -> None:
        """Count one; with `count` -1, it is none any more."""
        self.frames[begun.path] += count
        self.rows += count * begun.rows

    @property
    def mean_rows(self) -> float:
        """Rows computed, of all rows and layers of a prompt, on average; 0 where there was none."""
        return self.rows / max(1, sum(self.frames.values()))


def open_policy(prefill: str | Policy, tolerance: float | None = None) -> Policy:
    """The policy of that name, or the object itself; tolerance: of "gated", None is its default.

    Raises ValueError for a policy that there is none of, and for a tolerance that cannot be or belongs to none.
    """
    if isinstance(prefill, str):
        if prefill not in POLICIES:
            raise ValueError(f"prefill is {prefill!r}; it must be one of {', '.join(POLICIES)}")
        if tolerance is None:
            return POLICIES[prefill]()
        if prefill == "gated":
            return Gated(check(Tolerance, tolerance, "prefill_tolerance"))
        raise ValueError(f"prefill_tolerance is of prefill 'gated', but prefill is {prefill!r}; leave one out")
    if not (hasattr(prefill, "rows") or (hasattr(prefill, "first") and hasattr(prefill, "second"))):
        raise ValueError(f"prefill is {prefill!r}; it must be one of {', '.join(POLICIES)}, or a policy object")
    if tolerance is not None:
        raise ValueError("prefill_tolerance is given beside a policy object; give the object its own")
    return prefill


def open_prefill(
    model: NamedModel, policy: Policy, pack_weights: PackWeights | None = None, pack_memory: int | None = None
) -> Prefix | Kept:
    """What carries out a policy; pack_weights, pack_memory: of a `GatedPrefill`. Raises ValueError for a language model
    that it does not fit."""
    if isinstance(policy, Full | Exact):
        return Prefix(model, isinstance(policy, Exact))
    return Kept(model, policy, pack_weights, pack_memory)


class Prefix:
    """Keys and values up to the first embedding that differs from the last prompt's, or none (`keep` is False).

    Raises ValueError for a language model whose cache cannot be cropped: with sliding windows, or linear attention.
    """

    def __init__(self, model: NamedModel, keep: bool) -> None:
        cache = DynamicCache(config=model.model.config)
        if keep and (any(cache.is_sliding) or any(cache.is_linear)):
            way = "attends in sliding windows" if any(cache.is_sliding) else "has layers of linear attention"
            raise ValueError(
                f"the language model of {model.name} {way}, so its prefix cannot be reused; "
                "compute all of every prompt (prefill 'full', --prefill full)"
            )
        self._config, self._keep = model.model.config, keep
        self.reset()

    def reset(self) -> None:
        """Forget the last prompt."""
        self._prompt: Prompt | None = None  # what the cache was filled with
        self._past = DynamicCache(config=self._config)

    def begin(self, prompt: Prompt, changed: Tensor | None) -> Begun:
        """The cache cropped at the first token whose embedding, position or additions differ from the last prompt's.

        The last position always runs: its logits are the first token's.
        """
        count, last = len(prompt), self._prompt
        self._prompt = None  # until `end`, the cache is that of no prompt
        keep = 0 if last is None else min(prompt.prefix_of(last), count - 1)
        if keep == 0:
            self.reset()
        else:
            self._past.crop(keep - self._past.get_seq_length())
        return Begun(self._past, "exact" if keep else "full", 1 - keep / count, keep)

    def end(self, prompt: Prompt, past: DynamicCache) -> None:
        """Keep what `generate` leaves, one row a beam."""
        if not self._keep:
            self.reset()
            return
        self._past, self._prompt = past, prompt
        if past.layers[0].keys.shape[0] > 1:  # type: ignore[union-attr]
            past.batch_select_indices(torch.zeros(1, dtype=torch.long, device=prompt.embeds.device))
        past.crop(len(prompt) - past.get_seq_length())

    def abandon(self) -> None:
        """An answer that was interrupted leaves half a cache."""
        self.reset()


class Kept:
    """A `GatedPrefill` behind what a stream needs. Raises ValueError for a language model that it refuses."""

    def __init__(
        self, model: NamedModel, policy: Policy, pack_weights: PackWeights | None, pack_memory: int | None
    ) -> None:
        self._model = model.model
        try:
            self.gated = GatedPrefill(model.model, policy, pack_weights=pack_weights, pack_memory=pack_memory)
        except TypeError as error:
            raise ValueError(f"{model.name}: {error}") from None

    def reset(self) -> None:
        """Forget the last prompt."""
        self.gated.reset()

    def begin(self, prompt: Prompt, changed: Tensor | None) -> Begun:
        """Run the whole prompt by an update of the last; changed: as of `GatedPrefill`.

        Raises ValueError for embeddings that are not finite. Any other error is logged, what is kept is forgotten, and
        the prompt left to `generate`.
        """
        if not all(tensor.isfinite().all() for tensor in (prompt.embeds, *prompt.additions)):
            raise ValueError("the prompt's embeddings have values that are NaN or infinite; all must be finite")
        try:
            done = self.gated(
                prompt.embeds,
                input_ids=prompt.input_ids,
                position_ids=prompt.position_ids,
                changed=changed,
                observed=prompt.observed,
                additions=prompt.additions,
            )
        except Exception:
            logger.exception("the update of the prefill failed; the frame is answered in full")
            self.reset()
            return replace(nothing_run(self._model), path="fallback")
        found = done.statistics
        return Begun(
            done.past_key_values,
            found.path,
            found.computed_share,
            found.reused_tokens,
            done.logits,
            done.hidden,
            found.owed,
        )

    def end(self, prompt: Prompt, past: DynamicCache) -> None:
        """Nothing: what decoding appends does not reach the kept rows."""

    def abandon(self) -> None:
        """Nothing: the kept rows are of the whole prompt."""


@contextlib.contextmanager
def added(layers: Sequence[nn.Module], additions: Sequence[Tensor]) -> Iterator[None]:
    """While inside, each of the first layers adds its additions (N, D) to its output, at its next call and only then:
    to the n rows (B, n, D) that are run of a prompt of N tokens, its last."""
    hooks: list[RemovableHandle] = []

    def add(index: int, output: Tensor) -> Tensor:
        hooks[index].remove()
        return output + additions[index][-output.shape[1] :]

    for index, layer in enumerate(layers[: len(additions)]):
        hooks.append(layer.register_forward_hook(lambda _, __, output, index=index: add(index, output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def continued(model: Any, begun: Begun, beams: int) -> Iterator[DynamicCache | None]:
    """While inside, `generate` goes on from a prompt that is begun; gives the `past_key_values` to call it with.

    Where all of the prompt has been run, the first call of the model's `forward` returns the logits that are known,
    with the cache, for every beam; `generate` is given no cache, so it takes that call for the prefill, and nothing is
    run. (To run the last position again, which needs no such stand-in, measured 90 ms more on two cores, on top of 200
    for an update of 269 tokens in SmolLM2-135M.) The model's own `forward` is restored whatever happens.
    """
    if beams > 1 and begun.past.get_seq_length():
        begun.past.batch_repeat_interleave(beams)
    if begun.logits is None:
        yield begun.past
        return
    own, had = model.forward, vars(model).get("forward")
    logits = begun.logits[:, None].expand(beams, -1, -1)  # (beams, 1, V)
    first = iter([CausalLMOutputWithPast(logits=logits, past_key_values=begun.past)])  # type: ignore[arg-type]

    @functools.wraps(own)  # `generate` reads its signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        return next(first, None) or own(*args, **kwargs)

    model.forward = forward
    try:
        yield None
    finally:
        if had is None:
            del model.forward
        else:
            model.forward = had
