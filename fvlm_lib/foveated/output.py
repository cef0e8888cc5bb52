"""What a forward mode returns, and how it is made: a caption scored from the language model's hidden states."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from fvlm_lib.foveated.inputs import CaptionBatch
from fvlm_lib.scoring import sample_nll


@dataclass
class FoveatedVLMOutput(ModelOutput):
    """What every forward mode returns.

    loss: mean NLL over all scored tokens of the batch, nats a token.
    nll: (B,) NLL summed over a sample's scored tokens, nats.
    num_tokens: (B,) how many tokens those are.
    logits: (B, L, vocabulary); logits[:, i] predicts text token i.
    labels: (B, L) what was scored, -100 where nothing was.
    queries: (B, T, query_dim), the queries that took `visual_tokens`.
    visual_tokens: (B, T, D); zero where there is no frame.
    attentions: with `output_attentions`, per ViT layer (B, T, heads, tokens of a frame).
    """

    # ModelOutput wants defaults; every mode sets all of these
    loss: Tensor = None  # type: ignore[assignment]
    nll: Tensor = None  # type: ignore[assignment]
    num_tokens: Tensor = None  # type: ignore[assignment]
    logits: Tensor = None  # type: ignore[assignment]
    labels: Tensor = None  # type: ignore[assignment]
    queries: Tensor = None  # type: ignore[assignment]
    visual_tokens: Tensor = None  # type: ignore[assignment]
    attentions: tuple[Tensor, ...] | None = None


def score_captions(
    head: nn.Module,
    hidden: Tensor,
    batch: CaptionBatch,
    queries: Tensor,
    visual_tokens: Tensor,
    attentions: tuple[Tensor, ...],
) -> FoveatedVLMOutput:
    """The output of a mode from the hidden states (B, N, D) of all positions, the L text ones last.

    head: from hidden states to logits. queries, visual_tokens, attentions: as the output holds them.
    Raises ValueError for a sample without a token to score.
    """
    index = batch.predictors[..., None].expand(-1, -1, hidden.shape[-1])
    logits = head(hidden.gather(1, index))  # (B, L, vocabulary)
    nll, num_tokens = sample_nll(logits, batch.labels)
    return FoveatedVLMOutput(
        loss=nll.sum() / num_tokens.sum(),
        nll=nll,
        num_tokens=num_tokens,
        logits=logits,
        labels=batch.labels,
        queries=queries,
        visual_tokens=visual_tokens,
        attentions=attentions if batch.output_attentions else None,
    )
