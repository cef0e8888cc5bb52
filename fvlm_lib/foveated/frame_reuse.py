"""A foveated model's frames, encoded by what changed in them: a cache to look into that is updated, not made anew.

Which patches changed, by what path a frame is encoded and what was done is the subject of the differential encoder
(`vision/differential.py`), which this joins to a model's own looks. It works without gradients: a model is trained on
`FoveatedVLM.encode_frames`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fvlm_lib.foveated.inputs import checked_frame_mask
from fvlm_lib.reuse.fastest import PackWeights
from fvlm_lib.vision.differential import DifferentialVisionEncoder
from fvlm_lib.vision.settings import DifferentialSettings, encoder_options
from fvlm_lib.vision.statistics import FrameStatistics
from fvlm_lib.vision.towers import PatchCache, check_look, open_tower

if TYPE_CHECKING:
    from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM


def open_frame_encoder(
    model: FoveatedVLM,
    settings: DifferentialSettings,
    pack_weights: PackWeights = False,
    pack_memory: int | None = None,
) -> DifferentialVisionEncoder:
    """An encoder of one stream of the model's frames, normalised as its config says.

    settings: those of a language model's prefill say nothing here. pack_weights, pack_memory: see `towers.open_tower`.
    Raises TypeError for a tower without an adapter, which there is no looking into, and ValueError for settings that
    do not fit the tower.
    """
    open_tower(model.encoder.dino)  # raises TypeError
    return DifferentialVisionEncoder(
        model.encoder.dino,
        **encoder_options(settings),
        image_mean=model.config.image_mean,
        image_std=model.config.image_std,
        pack_weights=pack_weights,
        pack_memory=pack_memory,
    )


@torch.no_grad()
def encode_changes(model: FoveatedVLM, encoder: DifferentialVisionEncoder, frame: Tensor) -> PatchCache:
    """The cache of the encoder's next frame (1, 3, height, width), of the layers that the model's queries walk.

    Leading dimension 1; views of what the encoder keeps, which its next frame changes in place. What was done with the
    frame is in `encoder.frame_statistics`. Raises ValueError for a frame that cannot be right; what is kept stays.
    """
    tower = open_tower(model.encoder.dino)
    check_look(tower, tower.grid(frame))
    encoder.encode(frame)
    if encoder.patch_cache is None:  # an error, logged, in the differential path
        return model.encode_frames(frame[:, None].to(model.dtype)).frame(0)
    return encoder.patch_cache.last_layers(model.num_query_layers)


@torch.no_grad()
def encode_videos(
    model: FoveatedVLM, pixel_values: Tensor, frame_mask: Tensor | None, settings: DifferentialSettings
) -> tuple[PatchCache, list[list[FrameStatistics]]]:
    """Encode videos, each frame from the one before it; arguments and cache as of `FoveatedVLM.encode_frames`.

    Also returns what was done with every frame of every video, those behind its end left out.
    """
    frame_mask = checked_frame_mask(pixel_values, frame_mask)
    encoder = open_frame_encoder(model, settings)
    videos, statistics = [], []
    for frames, count in zip(pixel_values, frame_mask.sum(dim=1).tolist(), strict=True):
        encoder.reset_cache()
        caches, done = [], []
        for frame in frames[:count].split(1):
            cache = encode_changes(model, encoder, frame)
            caches.append([states.clone() for states in (*cache.keys, *cache.values)])  # the next frame changes them
            assert encoder.frame_statistics is not None
            done.append(encoder.frame_statistics)
        caches += caches[-1:] * (len(frames) - count)  # of absent frames the model masks what is looked at
        videos.append([torch.cat(states) for states in zip(*caches, strict=True)])  # 2 layers of (T, H, P, d)
        statistics.append(done)
    states = [torch.stack(of_videos) for of_videos in zip(*videos, strict=True)]  # (B, T, H, P, d) each
    layers = len(states) // 2
    return PatchCache(
        tuple(states[:layers]), tuple(states[layers:]), num_global_tokens=cache.num_global_tokens
    ), statistics
