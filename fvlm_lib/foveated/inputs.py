"""Masks of a batch: which frames and words are there, and which position predicts each word.

Checks what the forward modes are given, and says it in the user's terms. Knows nothing of the model but that
its language model reads frames first, then the caption.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fvlm_lib.scoring import IGNORED_LABEL


class CaptionInputs:
    """The caption's side of a batch: ids, labels, masks, and which position predicts each text token.

    `padding` (B, N) of all positions is None where nothing is padded, since the language model then takes a
    faster path.
    """

    def __init__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        frame_mask: Tensor,
        mode_tokens: bool,
    ) -> None:
        if input_ids.ndim != 2 or input_ids.shape[1] == 0:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; it must be (batch, length >= 1)")
        if input_ids.shape[0] != frame_mask.shape[0]:
            raise ValueError(f"{input_ids.shape[0]} captions for {frame_mask.shape[0]} videos; one each is needed")
        text_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        text_mask = text_mask.bool()
        if labels is None:
            labels = input_ids.masked_fill(~text_mask, IGNORED_LABEL)
        elif ((labels != IGNORED_LABEL) & ~text_mask).any():
            raise ValueError("labels scores a position where attention_mask is 0; set it to -100 there")
        mask = torch.cat([mask_before_caption(frame_mask, mode_tokens), text_mask], dim=1)  # (B, N)
        self.input_ids = input_ids
        self.labels = labels
        self.padding = None if mask.all() else mask
        # a text token is predicted by the last position before it that is not padding
        places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        last_seen = places.masked_fill(~mask, -1).cummax(dim=1).values
        self.predictors = last_seen[:, -input_ids.shape[1] - 1 : -1]  # (B, L)


def mask_before_caption(frame_mask: Tensor, mode_tokens: bool) -> Tensor:
    """The mask (B, T) of what precedes a caption, or (B, 1 + T + 1) with mode tokens around the frames."""
    return F.pad(frame_mask, (1, 1), value=True) if mode_tokens else frame_mask


def padding_mask(frame_mask: Tensor, before: int) -> Tensor | None:
    """The mask (B, before + T) of frames behind `before` other positions; None where nothing is padded."""
    return None if frame_mask.all() else F.pad(frame_mask, (before, 0), value=True)


def checked_frame_mask(frames: Tensor, frame_mask: Tensor | None) -> Tensor:
    """frame_mask as bool (B, T) for `frames` (B, T, ...), all ones for None; ValueError where it can't be."""
    if frames.ndim != 5 or frames.shape[1] == 0:
        raise ValueError(
            f"pixel_values has shape {tuple(frames.shape)}; it must be (batch, frames >= 1, 3, height, width)"
        )
    if frame_mask is None:
        return torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
    frame_mask = frame_mask.bool()
    if frame_mask.shape != frames.shape[:2]:
        raise ValueError(f"frame_mask has shape {tuple(frame_mask.shape)}; the frames need {tuple(frames.shape[:2])}")
    if not frame_mask[:, 0].all():
        sample = int((~frame_mask[:, 0]).nonzero()[0])
        raise ValueError(f"frame_mask of sample {sample} starts with 0; every video needs a first frame")
    if (frame_mask[:, 1:] & ~frame_mask[:, :-1]).any():
        raise ValueError("frame_mask has a gap; a video's frames must come first, its padding behind them")
    return frame_mask
