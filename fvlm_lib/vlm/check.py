"""A frame's first token by what was kept, held against the same by a full computation: how far off, and is it alike?

How either is computed is `stream.py`'s subject; from differences on frames to tolerances `calibrate.py`'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fvlm_lib.schema import Count, Tolerance, check


@dataclass(frozen=True)
class Said:
    """hidden (1, D): of the prompt's last position, behind the final norm. token_ids: of the greedy answer."""

    hidden: Tensor
    token_ids: list[int]


@dataclass(frozen=True)
class Check:
    """kl: divergence KL(full || kept) of the first token's distributions, nats. hidden_error: of the last position's
    hidden state, relative L2. same_text: whether the greedy answers are alike, token for token. failed: kl is above
    what is allowed, so the answer is that of a full computation. ms: what the full computation took."""

    kl: float
    hidden_error: float
    same_text: bool
    failed: bool
    ms: float = 0.0


@dataclass
class CheckTotals:
    """Of all checks since the stream was made."""

    count: int = 0
    failed: int = 0
    same_text: int = 0
    sum_kl: float = 0.0
    largest_kl: float = 0.0
    largest_hidden_error: float = 0.0

    def add(self, check: Check) -> None:
        """Count one."""
        self.count += 1
        self.failed += check.failed
        self.same_text += check.same_text
        self.sum_kl += check.kl
        self.largest_kl = max(self.largest_kl, check.kl)
        self.largest_hidden_error = max(self.largest_hidden_error, check.hidden_error)

    def __str__(self) -> str:
        """One line for the terminal."""
        if not self.count:
            return "0 checks: no sequence had so many frames"
        return (
            f"{self.count} checks: KL {self.sum_kl / self.count:.2g} on average, {self.largest_kl:.2g} at most (nats); "
            f"same text {self.same_text}/{self.count}; hidden state off by {self.largest_hidden_error:.2%} at most; "
            f"{self.failed} failed"
        )


@torch.no_grad()
def compare(lm_head: Any, kept: Said, full: Said, max_kl: float | None = None) -> Check:
    """What was kept, held against the full computation. max_kl: nats, above which the check fails; None is never."""
    kl = first_token_kl(lm_head(full.hidden), lm_head(kept.hidden))
    reference = full.hidden.double()
    error = float((kept.hidden.double() - reference).norm() / reference.norm())
    failed = max_kl is not None and not kl <= max_kl  # NaN fails, too
    return Check(kl, error, kept.token_ids == full.token_ids, failed)


def check_options(check_every: int | None, max_kl: float | None) -> None:
    """Raise ValueError where a stream's settings of checks cannot be, or one is without the other."""
    check(Count | None, check_every, "check_every")
    check(Tolerance | None, max_kl, "max_kl")
    if max_kl is not None and check_every is None:
        raise ValueError("max_kl is of checks, but check_every is None; give how many frames are from one to the next")


def first_token_kl(full: Tensor, kept: Tensor) -> float:
    """KL(full || kept) in nats of the distributions that logits (1, V) give, in float64."""
    full, kept = full.double().log_softmax(dim=-1), kept.double().log_softmax(dim=-1)
    return float((full.exp() * (full - kept)).sum().clamp(min=0))  # rounding may take it below; NaN stays


@contextlib.contextmanager
def first_hidden(model: Any, known: Tensor | None) -> Iterator[list[Tensor]]:
    """While inside, a list that gets the hidden state (1, D) that the model's first logits are made of, of the first
    beam; `known`, where nothing is left to run."""
    seen = [] if known is None else [known]

    def see(_: Any, arguments: tuple[Tensor, ...]) -> None:
        if not seen:
            seen.append(arguments[0][:1, -1].clone())

    hook = model.lm_head.register_forward_pre_hook(see)
    try:
        yield seen
    finally:
        hook.remove()
