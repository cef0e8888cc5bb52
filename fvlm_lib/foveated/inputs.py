"""What the forward modes work on: encoded videos and their captions, checked, with masks and predictors.

Says in the user's terms what cannot be right. Knows nothing of the model but that its language model reads frames
first, then the caption.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from fvlm_lib.scoring import IGNORED_LABEL
from fvlm_lib.vision.towers import PatchCache


class CaptionOptions(TypedDict, total=False):
    """What every forward mode takes besides frames, ids and their mask; told at `FoveatedVLM`."""

    labels: Tensor | None
    frame_mask: Tensor | None
    patch_cache: PatchCache | None
    output_attentions: bool


@dataclass(frozen=True)
class CaptionBatch:
    """Encoded videos and their captions, as `caption_batch` has checked them.

    patch_cache: of the frames, leading dimensions (B, T). frame_mask: bool (B, T). input_ids, labels (B, L), -100
    where nothing is scored. padding: bool (B, N) of all positions, the caption's last; None where nothing is padded,
    since the language model then takes a faster path. predictors (B, L): the position that predicts each text token.
    output_attentions: whether outputs hold the queries' attention.
    """

    patch_cache: PatchCache
    frame_mask: Tensor
    input_ids: Tensor
    labels: Tensor
    padding: Tensor | None
    predictors: Tensor
    output_attentions: bool


def caption_batch(
    patch_cache: PatchCache,
    frame_mask: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    mode_tokens: bool = False,
    output_attentions: bool = False,
) -> CaptionBatch:
    """Captions (B, L) behind encoded frames, of which frame_mask, bool (B, T), says which are there.

    attention_mask, labels: as at `FoveatedVLM`. mode_tokens: whether learnt tokens stand around the frames.
    Raises ValueError for captions without a token, of another number than the videos, and labels on padding.
    """
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
    # a text token is predicted by the last position before it that is not padding
    places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    last_seen = places.masked_fill(~mask, -1).cummax(dim=1).values
    return CaptionBatch(
        patch_cache=patch_cache,
        frame_mask=frame_mask,
        input_ids=input_ids,
        labels=labels,
        padding=None if mask.all() else mask,
        predictors=last_seen[:, -input_ids.shape[1] - 1 : -1],  # (B, L)
        output_attentions=output_attentions,
    )


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
