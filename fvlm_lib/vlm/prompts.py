"""A prompt as the language model takes it: embeddings, positions, and what is added to rows at its first layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """A prompt of N tokens.

    embeds: (1, N, D). observed: bool (N,), the tokens of the image, or of the screen's text. input_ids: N token ids, by
    which moved tokens are found; None for prompts with an image. position_ids: (3, 1, N) multimodal rotary positions;
    None is 0 to N - 1. additions: (N, D) each, added to the outputs of the first layers (DeepStack; Meng et al., 2024).
    """

    embeds: Tensor
    observed: Tensor
    input_ids: Sequence[int] | None = None
    position_ids: Tensor | None = None
    additions: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.embeds.shape[1]

    def prefix_of(self, other: Prompt) -> int:
        """How many tokens both begin with: of the same embedding, position and additions."""
        least = min(len(self), len(other))
        same = (self.embeds[0, :least] == other.embeds[0, :least]).all(dim=-1)
        for mine, others in zip(self.additions, other.additions, strict=True):
            same &= (mine[:least] == others[:least]).all(dim=-1)
        if self.position_ids is not None and other.position_ids is not None:
            same &= (self.position_ids[:, 0, :least] == other.position_ids[:, 0, :least]).all(dim=0)
        return int(same.long().cumprod(dim=0).sum())

    def generation_positions(self) -> Tensor | None:
        """Multimodal positions as transformers' `generate` counts on from them: those of the text before the three."""
        if self.position_ids is None:
            return None
        text = torch.arange(len(self), device=self.position_ids.device)
        return torch.cat([text.view(1, 1, -1), self.position_ids])
