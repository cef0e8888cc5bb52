"""A stream of ten thousand frames: what holds for the first holds for the last."""

from __future__ import annotations

import gc
import math

import psutil
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from fvlm_lib.vision.differential import DifferentialVisionEncoder
from fvlm_lib.vision.patches import expand_mask

FRAMES, WARM, THRESHOLD = 10_000, 2_000, 0.05


def screen(index: int, background: torch.Tensor) -> torch.Tensor:
    """A frame (1, 3, 32, 32): a cursor that moves, a corner that fades to and fro over 2,000 frames, and noise of less
    than the threshold."""
    noise = torch.rand(background.shape, generator=torch.Generator().manual_seed(index)) - 0.5
    frame = background + 0.02 * noise
    frame[..., :16, :16] += 0.3 * math.sin(2 * math.pi * index / 2_000)
    row, column = index // 4 % 32, index // 2 % 32
    frame[..., row, column] = 1.0
    return frame.clamp(0, 1)


@pytest.mark.slow
def test_ten_thousand_frames_hold_the_threshold_the_tokens_and_the_memory():
    """After every frame, no pixel differs from the one its token was computed from by more than the threshold; with
    tolerance 0 the tokens are those of a full encode of these pixels; and memory does not grow."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    tower = CLIPVisionModel(config).eval()
    encoder = DifferentialVisionEncoder(tower, diff_threshold=THRESHOLD, tolerance=0.0)
    fresh = DifferentialVisionEncoder(tower)
    background = 0.2 + 0.6 * torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    encoded_from = torch.full_like(background, math.nan)
    drift, worst, process, early = 0.0, 0.0, psutil.Process(), (0, 0)
    for index in range(FRAMES):
        frame = screen(index, background)
        tokens, stats = encoder.encode(frame, return_stats=True)
        encoded_from = torch.where(expand_mask(stats.encoded, 32, 32, (8, 8)), frame, encoded_from)
        drift = max(drift, (frame - encoded_from).abs().max().item())
        assert drift <= THRESHOLD + 1e-6
        if index % 500 == 499:
            fresh.reset_cache()
            exact = fresh.encode(encoded_from)
            worst = max(worst, ((tokens - exact).norm() / exact.norm()).item())
        if index == WARM:
            gc.collect()
            early = process.memory_info().rss, sum(map(torch.is_tensor, gc.get_objects()))
    gc.collect()
    growth = process.memory_info().rss - early[0]
    told = encoder.statistics.frames
    print(f"{told}, largest drift {drift:.4f}, error {worst:.2e}, memory {growth / 2**20:+.1f} MiB")
    assert told["partial"] > FRAMES / 2 and told["cached"] > 0 and not encoder.statistics.fallbacks
    assert worst < 1e-5
    assert growth < 8 * 2**20
    assert sum(map(torch.is_tensor, gc.get_objects())) <= early[1] + 2  # `exact` is one more
