"""What policies of prefill make of text screens that change: rows, time, error, and answers that are stale.

Every policy reads a screen in full, then the screen after one change, and is held against the model's own prefill of
the latter. `measure_prefill` gives one row a screen and policy, `summarize_prefill` the table with intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor
from tqdm import tqdm

from fvlm_lib.data.text_screens import TextScreenPair
from fvlm_lib.language.prefill import GatedPrefill
from fvlm_lib.reuse.policies import Policy, is_gating
from fvlm_lib.reuse.policies.budget import Budget
from fvlm_lib.reuse.policies.changed import Changed
from fvlm_lib.reuse.policies.deviation import Deviation
from fvlm_lib.reuse.policies.exact import Exact
from fvlm_lib.reuse.policies.first_k import FirstK
from fvlm_lib.reuse.policies.gated import Gated
from fvlm_lib.stats import Estimate, bootstrap, ratio
from fvlm_lib.timing import timed
from fvlm_lib.vlm.check import first_token_kl
from fvlm_lib.vlm.text_models import TextModel, TextPrompt

PLACES = 20
"""Into how many parts a prompt's positions are cut for the share of rows by layer and place."""


def compared_policies(tolerances: Sequence[float]) -> dict[str, Policy]:
    """Policies to compare, by name: gated at the tolerances, and what others publish at settings that compute from a
    few rows to a fifth of them."""
    found: dict[str, Policy] = {"exact": Exact(), "changed": Changed()}
    found |= {f"gated {tolerance:g}": Gated(tolerance) for tolerance in tolerances}
    found |= {f"first_k {k}": FirstK(k) for k in (1, 16)}
    found |= {f"deviation {share:g}": Deviation(share) for share in (0.05, 0.1, 0.2)}
    return found | {f"budget {count}": Budget(count) for count in (8, 16, 32)}


@torch.no_grad()
def measure_prefill(
    text_model: TextModel, pairs: Sequence[TextScreenPair], policies: Mapping[str, Policy], progress: bool = True
) -> pd.DataFrame:
    """One row a pair and policy. Columns: kind, index, policy, tokens (of the prompt), changed (tokens), rows (share of
    all rows and layers computed anew), ms and ms_full (to the first token's logits; the model's own prefill beside), kl
    (of the token that tells the right answer from the one before, nats, full || kept), agrees (both would say the
    same), right, right_full (it is that of the right answer), asks (the right answer changed, and the full prefill
    gives it), stale (of those, it is that of the answer that was right before), reach (share of rows computed by layer
    and place in the prompt, float32 (L · PLACES,)).
    """
    kept = {gates: GatedPrefill(text_model.model, Gated() if gates else Exact()) for gates in (True, False)}
    rows = []
    for index, pair in enumerate(tqdm(pairs, unit="screen", disable=not progress)):
        before, after = (_prompt(text_model, pair, lines) for lines in (pair.before, pair.after))
        before, _, _ = text_model.telling_token(before, pair.old, pair.new)
        after, new, old = text_model.telling_token(after, pair.new, pair.old)
        embeds, embeds_before = text_model.embed(after), text_model.embed(before)
        logits, ms_full = timed(
            lambda: text_model.model(inputs_embeds=embeds, logits_to_keep=1).logits[:, -1]  # noqa: B023
        )
        full = logits[0]  # (V,)
        said_full = int(full.argmax())
        tells = pair.answer_changes and said_full == new  # a model that is wrong by itself tells nothing
        for prefill in kept.values():  # the screen before is read once
            prefill.reset()
            prefill(embeds_before, input_ids=before.input_ids, observed=before.observed)
        for name, policy in policies.items():
            prefill = kept[is_gating(policy)].fork(policy)
            done, ms = timed(
                lambda: prefill(embeds, input_ids=after.input_ids, observed=after.observed)  # noqa: B023
            )
            said = int(done.logits.argmax())
            rows.append(
                {
                    "kind": pair.kind,
                    "index": index,
                    "policy": name,
                    "tokens": done.statistics.tokens,
                    "changed": done.statistics.changed_tokens,
                    "rows": done.statistics.computed_share,
                    "ms": ms,
                    "ms_full": ms_full,
                    "kl": first_token_kl(full, done.logits[0]),
                    "agrees": said == said_full,
                    "right": said == new,
                    "right_full": said_full == new,
                    "stale": tells and said == old,
                    "asks": tells,
                    "reach": _reach(done.statistics.computed),
                }
            )
    return pd.DataFrame(rows)


def _prompt(text_model: TextModel, pair: TextScreenPair, lines: Sequence[str]) -> TextPrompt:
    return text_model.prompt("\n".join(lines), pair.question.text, pair.question.lead)


def _reach(computed: Tensor) -> np.ndarray:
    """Share of rows computed (L · PLACES,), from bool (L, N): positions cut into PLACES parts of about equal length."""
    part = torch.arange(computed.shape[1]) * PLACES // computed.shape[1]
    sums = torch.zeros(computed.shape[0], PLACES).index_add_(1, part, computed.float())
    return (sums / part.bincount(minlength=PLACES).clamp(min=1)).flatten().numpy()


def summarize_prefill(rows: pd.DataFrame, by: Sequence[str] = ("policy",), seed: int = 0) -> pd.DataFrame:
    """One row a policy (or group of `by`), in the order of the table: n; rows, kl, agrees, right: means over screens
    with 95% intervals _low, _high (bootstrap over screens, of this one model; NaN where there is but one); kl_max;
    stale of asks, counts, with the 95% interval of their share (Wilson); ms, median with quartiles; speedup, the median
    of the screens' own ratios."""
    found = []
    for which, group in rows.groupby(list(by), sort=False):
        line: dict[str, object] = dict(zip(by, which, strict=True)) | {"n": len(group)}
        means = ("rows", "kl", "agrees", "right", "right_full")
        columns = {name: group[name].to_numpy(float) for name in means} | {"one": np.ones(len(group))}
        if len(group) > 1:
            estimates = bootstrap(columns, {name: ratio(name, "one") for name in means}, seed=seed)
        else:
            estimates = {name: Estimate(columns[name].mean(), np.nan, np.nan) for name in means}
        for name, estimate in estimates.items():
            line |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        stale, asks = int(group["stale"].sum()), int(group["asks"].sum())
        interval = binomtest(stale, asks).proportion_ci(method="wilson") if asks else (0.0, 1.0)
        line |= {"stale_low": interval[0], "stale_high": interval[1], "stale": stale, "asks": asks}
        line |= {"kl_max": group["kl"].max()}
        for suffix, quantile in (("", 0.5), ("_q1", 0.25), ("_q3", 0.75)):
            line["ms" + suffix] = group["ms"].quantile(quantile)
        line["speedup"] = (group["ms_full"] / group["ms"]).median()
        found.append(line)
    return pd.DataFrame(found)
