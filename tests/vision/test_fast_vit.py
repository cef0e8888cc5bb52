from __future__ import annotations

import copy

import pytest
import timm
import torch
from conftest import ROOT
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.timm_wrapper import TimmWrapperConfig, TimmWrapperModel

from fvlm_lib.data.screens import read_sequence
from fvlm_lib.screens.random_fast_vit import initialise_fast_vit
from fvlm_lib.vision.adapters.fast_vit import open_fast_vit
from fvlm_lib.vision.differential import DifferentialVisionEncoder
from fvlm_lib.vision.fast_vit import ConvolutionalTower, MapCache, encode_frame, update
from fvlm_lib.vision.models import open_vision
from fvlm_lib.vision.patches import extract_patches
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vlm.stream import Decoding, VLMStream, open_encoder

SMALL = {"layers": (1, 2, 2, 1, 1), "embed_dims": (8, 16, 32, 32, 64)}
SIZES = {"fastvit_mci3": (256, 320), "fastvit_mci0": (128, 96)}


def random_fast_vit(name: str, dtype: torch.dtype = torch.float64, **options) -> nn.Module:
    """A small one, reproducible."""
    torch.manual_seed(0)
    options = {"inference_mode": True, **(SMALL if name == "fastvit_mci3" else {"layers": (1, 1, 1, 1)}), **options}
    model = timm.create_model(name, num_classes=0, **options).eval().requires_grad_(False)
    initialise_fast_vit(model)
    return model.to(dtype)


def own(model: nn.Module, frame: Tensor) -> Tensor:
    """The model's own tokens (1, P, D)."""
    return model.forward_features(frame).flatten(2).transpose(1, 2)


def frame_of(size: tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(1, 3, *size, dtype=dtype)


def put(frame: Tensor, changed: Tensor, patch: int, new: Tensor) -> Tensor:
    """The frame with the patches of `new` that are marked."""
    where = changed.repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    return torch.where(where, new, frame)


def updated(tower: ConvolutionalTower, cache: MapCache, frame: Tensor, changed: Tensor, tolerance: float) -> Tensor:
    return update(tower, cache, extract_patches(frame, changed, tower.patch_size), changed, tolerance)


def relative(tokens: Tensor, exact: Tensor) -> float:
    return ((tokens - exact).norm() / exact.norm()).item()


def marked(grid: tuple[int, int], *patches: tuple[int, int]) -> Tensor:
    changed = torch.zeros(grid, dtype=torch.bool)
    for row, column in patches:
        changed[row, column] = True
    return changed


PATCHES = {
    "the middle": [(1, 1)],
    "corners": [(0, 0), (-1, -1)],
    "borders": [(0, 1), (2, 0), (1, -1)],
    "several": [(0, 2), (1, 2), (3, 1)],
    "all": [(row, column) for row in range(4) for column in range(-1, 4)],
    "none": [],
}


@pytest.mark.parametrize("name", SIZES)
def test_tolerance_0_equals_the_full_encode_over_many_frames(name):
    model, size = random_fast_vit(name), SIZES[name]
    tower = open_fast_vit(model)
    patch = tower.patch_size[0]
    assert patch == (64 if name == "fastvit_mci3" else 32)
    frame = frame_of(size)
    cache = encode_frame(tower, frame)
    before = own(model, frame)
    torch.testing.assert_close(cache.read(), before, rtol=1e-9, atol=1e-9 * before.abs().max().item())
    for patches in (*PATCHES.values(), PATCHES["the middle"]):
        changed = marked(tower.grid(frame), *((r % tower.grid(frame)[0], c) for r, c in patches if c < 3))
        frame = put(frame, changed, patch, frame_of(size))
        exact = own(model, frame)
        tokens = updated(tower, cache, frame, changed, 0.0)
        torch.testing.assert_close(tokens, exact, rtol=1e-9, atol=1e-9 * exact.abs().max().item())
        assert relative(before, exact) > 1e-3 or not changed.any()  # what was there would not do
        before = exact


def test_every_map_is_that_of_a_fresh_encode():
    model = random_fast_vit("fastvit_mci3")
    tower, frame = open_fast_vit(model), frame_of((256, 320))
    cache = encode_frame(tower, frame)
    changed = marked((4, 5), (0, 4), (2, 2))
    frame = put(frame, changed, 64, frame_of((256, 320)))
    updated(tower, cache, frame, changed, 0.0)
    for kept, fresh in zip(cache.tensors(), encode_frame(tower, frame).tensors(), strict=True):
        torch.testing.assert_close(kept, fresh, rtol=1e-9, atol=1e-9 * fresh.abs().max().item())


def test_float32_is_exact_up_to_its_rounding():
    model = random_fast_vit("fastvit_mci3", torch.float32)
    tower, frame = open_fast_vit(model), frame_of((192, 192), torch.float32)
    cache = encode_frame(tower, frame)
    for place in [(0, 0), (1, 1), (2, 1), (1, 1)]:
        changed = marked((3, 3), place)
        frame = put(frame, changed, 64, frame_of((192, 192), torch.float32))
        assert relative(updated(tower, cache, frame, changed, 0.0), own(model, frame)) < 1e-5


def test_a_larger_tolerance_computes_less_and_errs_more():
    model = random_fast_vit("fastvit_mci3")
    tower, size = open_fast_vit(model), (512, 512)
    first = frame_of(size)
    start, changed = encode_frame(tower, first), marked((8, 8), (3, 4))
    second = put(first, changed, 64, frame_of(size))
    errors, work = [], []
    for tolerance in (0.0, 0.01, 0.05, 0.2):
        cache = copy.deepcopy(start)
        with FlopCounterMode(display=False) as counter:
            tokens = updated(tower, cache, second, changed, tolerance)
        errors.append(relative(tokens, own(model, second)))
        work.append(counter.get_total_flops())
        assert errors[-1] <= 1.5 * tolerance + 1e-9
    assert errors == sorted(errors) and errors[1] < errors[-1] / 4
    assert work == sorted(work, reverse=True) and work[-1] < 0.7 * work[0]
    with FlopCounterMode(display=False) as counter:
        encode_frame(tower, second)
    assert work[2] < counter.get_total_flops() / 2


def test_slow_drift_adds_up_until_it_is_seen():
    model = random_fast_vit("fastvit_mci3")
    tower, size = open_fast_vit(model), (256, 256)
    first, target = frame_of(size), frame_of(size)
    cache, changed = encode_frame(tower, first), marked((4, 4), (1, 2), (2, 2))
    for step in range(1, 41):  # far below the tolerance, each
        frame = put(first, changed, 64, first + step / 40 * (target - first))
        updated(tower, cache, frame, changed, 0.05)
    exact = own(model, frame)
    assert relative(cache.read(), exact) < relative(own(model, first), exact) / 3


def test_pixels_that_do_not_differ_cost_nothing():
    model = random_fast_vit("fastvit_mci3")
    tower, frame = open_fast_vit(model), frame_of((256, 256))
    cache = encode_frame(tower, frame)
    with FlopCounterMode(display=False) as counter:
        updated(tower, cache, frame, torch.ones(4, 4, dtype=torch.bool), 0.0)
    assert counter.get_total_flops() == 0


def test_ungated_updates_stay_within_the_changed_patches():
    model = random_fast_vit("fastvit_mci3")
    tower, first = open_fast_vit(model), frame_of((256, 256))
    cache, changed = encode_frame(tower, first, gated=False), marked((4, 4), (1, 2))
    before = cache.read()
    second = put(first, changed, 64, frame_of((256, 256)))
    tokens = updated(tower, cache, second, changed, 0.0)
    assert (tokens != before).any(dim=2).tolist() == [changed.flatten().tolist()]
    exact = own(model, second)[0][changed.flatten()]
    assert relative(tokens[0][changed.flatten()], exact) < relative(before[0][changed.flatten()], exact)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("place", ["stem.1.act", "stages.2.blocks.1.mlp.act", "stages.4.blocks.0.token_mixer.proj"])
def test_whatever_is_raised_leaves_the_cache_as_it_was(raised, place):
    model = random_fast_vit("fastvit_mci3")
    tower, first = open_fast_vit(model), frame_of((256, 256))
    cache, changed = encode_frame(tower, first), marked((4, 4), (0, 2))
    second = put(first, changed, 64, frame_of((256, 256)))
    kept = [rows.clone() for rows in cache.tensors()]

    def interrupt(*_: object) -> None:
        raise raised

    hook = model.get_submodule(place).register_forward_hook(interrupt)
    with pytest.raises(raised):
        updated(tower, cache, second, changed, 0.0)
    hook.remove()
    assert all(torch.equal(now, then) for now, then in zip(cache.tensors(), kept, strict=True))
    torch.testing.assert_close(updated(tower, cache, second, changed, 0.0), own(model, second), rtol=1e-9, atol=1e-9)


def test_the_frame_that_was_given_is_not_written_to():
    tower = open_fast_vit(random_fast_vit("fastvit_mci3"))
    first = frame_of((128, 128)).contiguous(memory_format=torch.channels_last)
    given = first.clone()
    cache = encode_frame(tower, first)
    updated(tower, cache, frame_of((128, 128)), torch.ones(2, 2, dtype=torch.bool), 0.0)
    assert torch.equal(first, given)


def test_the_cache_says_what_it_takes():
    tower = open_fast_vit(random_fast_vit("fastvit_mci3"))
    cache = encode_frame(tower, frame_of((128, 128)))
    assert cache.nbytes == sum(rows.numel() * 8 for rows in cache.tensors())
    assert [len(rows) for rows in cache.maps][:2] == [128 * 128, 32 * 32] and len(cache.maps[-1]) == 4


def test_wrong_input_is_refused():
    tower = open_fast_vit(random_fast_vit("fastvit_mci3"))
    with pytest.raises(ValueError, match="128 x 96 pixels is not made of patches"):
        encode_frame(tower, frame_of((128, 96)))
    frame, changed = frame_of((128, 128)), marked((2, 2), (0, 1))
    cache = encode_frame(tower, frame)
    patches = extract_patches(frame, changed, 64)
    with pytest.raises(ValueError, match=r"tolerance is -0\.1"):
        update(tower, cache, patches, changed, -0.1)
    with pytest.raises(ValueError, match="patches has shape"):
        update(tower, cache, patches[:, :, :32], changed)
    with pytest.raises(ValueError, match=r"changed is torch\.bool of shape"):
        update(tower, cache, patches, changed[:1])
    with pytest.raises(ValueError, match="NaN or infinite"):
        update(tower, cache, patches * torch.nan, changed)


# ---- behind the encoder ------------------------------------------------------------------------------


def wrapped(**model_args) -> TimmWrapperModel:
    """The tower as transformers has it."""
    config = TimmWrapperConfig(architecture="fastvit_mci3", model_args={"inference_mode": True, **SMALL, **model_args})
    model = TimmWrapperModel(config).eval()
    if "inference_mode" not in model_args:
        model.timm_model = random_fast_vit("fastvit_mci3", torch.float32)
    return model


def test_the_encoder_updates_a_fast_vit():
    model = wrapped()
    encoder = DifferentialVisionEncoder(model, tolerance=0.0, diff_threshold=0.0)
    frame = frame_of((256, 192), torch.float32)
    encoder.encode(frame)
    changed = marked((4, 3), (1, 1))
    frame = put(frame, changed, 64, frame_of((256, 192), torch.float32))
    tokens, stats = encoder.encode(frame, return_stats=True)
    assert stats.path == "partial" and stats.changed_patches == 1 and torch.equal(stats.encoded, changed)
    assert 1 < stats.computed_tokens <= 12
    assert relative(tokens, own(model.timm_model, frame)) < 1e-5
    tokens, stats = encoder.encode(frame, return_stats=True)
    assert stats.path == "cached"
    other = frame_of((128, 128), torch.float32)
    tokens, stats = encoder.encode(other, return_stats=True)
    assert stats.path == "full" and tokens.shape == (1, 4, 128)
    two = frame_of((128, 128), torch.float32).expand(2, -1, -1, -1)
    torch.testing.assert_close(encoder.encode(two), own(model.timm_model, two))
    assert encoder.encode(other, return_stats=True)[1].path == "cached"


def test_with_a_tolerance_fewer_tokens_are_new():
    frame = frame_of((512, 512), torch.float32)
    second = put(frame, marked((8, 8), (4, 4)), 64, frame_of((512, 512), torch.float32))
    computed = []
    for tolerance in (0.0, 0.3):
        encoder = DifferentialVisionEncoder(wrapped(), tolerance=tolerance)
        encoder.encode(frame)
        computed.append(encoder.encode(second, return_stats=True)[1].computed_tokens)
    assert computed[0] == 64 and 0 < computed[1] <= 64


def test_a_budget_of_rows_is_refused():
    with pytest.raises(ValueError, match="propagate is 'budget'; a convolutional tower takes 'gated' or 'none'"):
        DifferentialVisionEncoder(wrapped(), propagate="budget")


def test_a_fast_vit_with_branches_has_no_partial_updates():
    model = wrapped(inference_mode=False)
    assert open_vision(model).tower is None
    with pytest.raises(TypeError, match=r"reparameterize_model"):
        open_fast_vit(model.timm_model)


@pytest.mark.parametrize("recording", ["jupyter", "terminal"])
def test_a_fast_vlm_answers_with_updates_as_without(vlms, recording):
    vlm, decoding = vlms["fast_vlm"], Decoding(max_new_tokens=4)
    settings = DifferentialSettings(diff_threshold=0.0, tolerance=0.0)
    fast = VLMStream(vlm, "What is on the screen?", open_encoder(vlm, settings), decoding=decoding)
    full = VLMStream(vlm, "What is on the screen?", prefill="full", decoding=decoding)
    paths = set()
    for frame in read_sequence(ROOT / "data" / "screens" / recording).head(10):
        answer = fast.answer(frame)
        assert answer.token_ids == full.answer(frame).token_ids
        paths.add(answer.path)
    assert "partial" in paths
