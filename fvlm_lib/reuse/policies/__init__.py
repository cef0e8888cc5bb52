"""Which rows of a stack are computed anew after a change: one policy a file, one line each in `POLICIES`.

Two kinds. Those with `rows` say it beforehand, from what changed, for all layers alike. Those with `first` and `second`
pick rows at either half of every block by how far they moved there (`walk.GatingPolicy`), which needs the gates.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from fvlm_lib.reuse.policies.budget import Budget
from fvlm_lib.reuse.policies.changed import Changed
from fvlm_lib.reuse.policies.deviation import Deviation
from fvlm_lib.reuse.policies.exact import Exact
from fvlm_lib.reuse.policies.first_k import FirstK
from fvlm_lib.reuse.policies.full import Full
from fvlm_lib.reuse.policies.gated import Gated
from fvlm_lib.reuse.walk import GatingPolicy


class RowsPolicy(Protocol):
    """Says beforehand which rows are computed, at every layer."""

    def rows(self, given: Tensor, observed: Tensor) -> Tensor:
        """bool (N,), from the rows that changed (`given`, bool (N,)) and those that are of an image, or of the screen's
        text (`observed`, bool (N,)), in place of the prompt's own text."""
        ...


Policy = RowsPolicy | GatingPolicy

POLICIES: dict[str, type[Policy]] = {
    "full": Full,
    "exact": Exact,
    "gated": Gated,
    "changed": Changed,
    "first_k": FirstK,
    "deviation": Deviation,
    "budget": Budget,
}
"""By name, each with its settings as fields that have defaults."""


def is_gating(policy: Policy) -> bool:
    """Whether the policy picks rows by how far they moved."""
    return hasattr(policy, "second")
