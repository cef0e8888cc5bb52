"""Negative log-likelihood (NLL) of captions, per sample: a sum and a count. The only loss of all modes.

Knows nothing of frames or models: logits and labels in, nats out. Sums and counts are divided once, by
whoever reports a mean, over the whole set.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

IGNORED_LABEL = -100


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """NLL of each label in nats, (B, L); 0 where the label is -100 (not scored).

    logits (B, L, vocabulary), where logits[:, i] predicts labels[:, i] (aligned, not to be shifted again);
    labels (B, L). Computed in float32 at least.
    """
    logits = logits if logits.dtype.itemsize >= 4 else logits.float()
    nll = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED_LABEL, reduction="none")
    return nll


def sample_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """NLL summed over the scored tokens of each sample (B,) in nats, and how many those are (B,).

    Raises ValueError, naming the sample's place in the batch, where a sample has no token to score.
    """
    num_tokens = (labels != IGNORED_LABEL).sum(dim=1)
    if (num_tokens == 0).any():
        empty = (num_tokens == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"sample {empty[0]} of the batch has no token to score: its caption is empty or all its labels are -100"
        )
    return token_nll(logits, labels).sum(dim=1), num_tokens
