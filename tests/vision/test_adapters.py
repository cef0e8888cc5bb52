"""Every architecture of tower inside its model: partial updates against the model's own image features.

A model joins by a line in `CASES`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from random_weights import enliven
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3Model,
    InternVLConfig,
    InternVLModel,
    LlamaConfig,
    LlavaConfig,
    LlavaModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
    Qwen2Config,
    Qwen3_5Config,
    Qwen3_5Model,
    Qwen3VLConfig,
    Qwen3VLModel,
)

from fvlm_lib.vision.differential import DifferentialVisionEncoder
from fvlm_lib.vision.models import open_vision
from fvlm_lib.vision.patches import expand_mask, extract_patches
from fvlm_lib.vision.towers import open_tower
from fvlm_lib.vision.updates import encode_frame, update

WIDTH = 24
TEXT = {
    "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 40, "pad_token_id": 0,
}  # fmt: skip
TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 4,
}  # fmt: skip
QWEN = {
    "depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "out_hidden_size": WIDTH,
}  # fmt: skip
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}, "head_dim": 12}


def llava() -> nn.Module:
    text = LlamaConfig(**TEXT)
    return LlavaModel(LlavaConfig(vision_config=CLIPVisionConfig(**TOWER), text_config=text, image_token_index=39))


def idefics3() -> nn.Module:
    text = LlamaConfig(**TEXT)
    return Idefics3Model(Idefics3Config(vision_config=TOWER, text_config=text, scale_factor=2, image_token_id=39))


def internvl() -> nn.Module:
    return InternVLModel(InternVLConfig(vision_config=TOWER, text_config=Qwen2Config(**TEXT), image_token_id=39))


def qwen2_5_vl() -> nn.Module:
    vision = QWEN | {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1, 3]}
    return Qwen2_5_VLModel(Qwen2_5_VLConfig(vision_config=vision, text_config=TEXT | ROPE))


def qwen3_vl() -> nn.Module:
    vision = QWEN | {"patch_size": 16, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 2]}
    return Qwen3VLModel(Qwen3VLConfig(vision_config=vision, text_config=TEXT | ROPE))


def qwen3_5() -> nn.Module:
    vision = QWEN | {"patch_size": 16, "num_position_embeddings": 36}
    text = TEXT | ROPE | {"layer_types": ["full_attention"]}
    return Qwen3_5Model(Qwen3_5Config(vision_config=vision, text_config=text))


def qwen_features(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Patches as Qwen's processors order them: by token, the two pictures of a patch equal."""
    patch = model.visual.config.patch_size
    rows, columns = images.shape[-2] // patch, images.shape[-1] // patch
    flat = images.view(-1, 3, rows // 2, 2, patch, columns // 2, 2, patch).permute(0, 2, 5, 3, 6, 1, 4, 7)
    flat = flat[:, :, :, :, :, :, None].expand(-1, -1, -1, -1, -1, -1, 2, -1, -1).reshape(-1, 3 * 2 * patch * patch)
    output = model.get_image_features(flat, torch.tensor([[1, rows, columns]] * len(images)))
    return [torch.stack(output.pooler_output), *map(torch.stack, getattr(output, "deepstack_features", None) or ())]


def llava_features(model: nn.Module, images: Tensor) -> list[Tensor]:
    return [torch.stack(list(model.get_image_features(images).pooler_output))]


def idefics3_features(model: nn.Module, images: Tensor) -> list[Tensor]:
    (tokens,) = model.get_image_features(images[None]).pooler_output
    return [tokens.unflatten(0, (len(images), -1))]


@dataclass(frozen=True)
class Case:
    """build: a tiny random model. features: its own tokens of images (N, 3, height, width), and what DeepStack adds.
    patch: pixels. shape: images of a frame, rows and columns of patches; other: of another size that it takes."""

    build: Callable[[], nn.Module]
    features: Callable[[nn.Module, Tensor], list[Tensor]]
    patch: int
    shape: tuple[int, int, int]
    other: tuple[int, int, int] | None


CASES = {
    "llava": Case(llava, llava_features, 4, (1, 8, 8), None),
    "idefics3": Case(idefics3, idefics3_features, 4, (3, 8, 8), (4, 8, 8)),
    "internvl": Case(internvl, llava_features, 4, (3, 8, 8), (4, 8, 8)),
    "qwen2_5_vl": Case(qwen2_5_vl, qwen_features, 14, (1, 10, 18), (1, 8, 16)),  # 6 windows, 4 of them partial; 2 whole
    "qwen3_vl": Case(qwen3_vl, qwen_features, 16, (1, 6, 10), (1, 4, 4)),
    "qwen3_5": Case(qwen3_5, qwen_features, 16, (1, 6, 10), (1, 4, 4)),
}
DTYPES = {torch.float64: 1e-8, torch.float32: 1e-4}  # Qwen's norms and rotations round to float32, whatever the dtype


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model of a case, reproducible."""
    torch.manual_seed(0)
    return enliven(CASES[name].build()).to(dtype)


@pytest.fixture(scope="module", params=CASES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name) -> nn.Module:
    return make(name)


def frame(name: str, seed: int = 0, dtype: torch.dtype = torch.float64, other: bool = False) -> Tensor:
    case = CASES[name]
    images, rows, columns = case.other if other else case.shape
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(images, 3, rows * case.patch, columns * case.patch, generator=generator, dtype=dtype)


def touched(name: str, images: Tensor, *patches: tuple[int, int]) -> Tensor:
    """The frame with one pixel of each patch (row, column) of its last image changed."""
    images, side = images.clone(), CASES[name].patch
    for row, column in patches:
        pixel = images[-1, 1, side * row + 3, side * column + 2]
        pixel.copy_((pixel + 0.5) % 1)
    return images


def exact(model: nn.Module, **options: object) -> DifferentialVisionEncoder:
    return DifferentialVisionEncoder(
        model, **{"tolerance": 0.0, "diff_threshold": 0.0, "max_changed_patches": 10**4, **options}
    )


@torch.no_grad()
def assert_own(name: str, model: nn.Module, encoder: DifferentialVisionEncoder, images: Tensor) -> str:
    """The encoder's features of the frame are the model's own; returns its path."""
    tokens, stats = encoder.encode(images, return_stats=True)
    wanted, limit = CASES[name].features(model, images), DTYPES[images.dtype]
    assert len(encoder.deepstack) == len(wanted) - 1
    for found, own in zip((tokens, *encoder.deepstack), wanted, strict=True):
        assert found.dtype == own.dtype
        torch.testing.assert_close(found, own, rtol=limit, atol=limit)
    return stats.path


@pytest.mark.parametrize("dtype", DTYPES)
def test_whatever_changes_features_are_the_models_own(name, dtype):
    model = make(name, dtype)
    encoder = exact(model)
    first, second = frame(name, 0, dtype), frame(name, 1, dtype)
    one = touched(name, second, (2, 5))
    frames = [first, second, second, one, touched(name, one, (0, 0), (5, 7)), touched(name, one, (5, 7)), first]
    paths = [assert_own(name, model, encoder, images) for images in frames]
    assert paths == ["full", "partial", "cached", *["partial"] * 4]
    assert encoder.statistics.fallbacks == 0


def test_without_propagation_other_tokens_stay(name, model):
    plain = exact(model, propagate="none", tolerance=None)
    gated = exact(model, tolerance=1e9)  # nothing moves by as much
    old = frame(name)
    before = plain.encode(old)
    gated.encode(old)
    new = touched(name, old, (2, 5), (0, 1))
    tokens, stats = plain.encode(new, return_stats=True)
    torch.testing.assert_close(tokens, gated.encode(new), rtol=1e-8, atol=1e-8)
    encoded = stats.encoded
    kept = ~plain.vision.tokens_of(encoded).view(tokens.shape[:2])
    assert torch.equal(tokens[kept], before[kept])
    assert not torch.isclose(tokens[~kept], before[~kept]).all(dim=-1).any()
    assert assert_own(name, model, plain, frame(name, 3)) == "partial"


def test_a_batch_is_encoded_in_full_and_the_cache_left_alone(name, model):
    encoder = exact(model)
    if encoder.vision.tiled:
        pytest.skip("several images are one frame")
    images = frame(name)
    encoder.encode(images)
    assert assert_own(name, model, encoder, torch.cat([frame(name, 1), frame(name, 2)])) == "full"
    assert assert_own(name, model, encoder, images) == "cached"


def test_another_size_is_encoded_in_full(name, model):
    if CASES[name].other is None:
        pytest.skip("frames of one size only")
    encoder = exact(model)
    frames = [frame(name), frame(name, other=True), touched(name, frame(name, other=True), (1, 2)), frame(name)]
    assert [assert_own(name, model, encoder, images) for images in frames] == ["full", "full", "partial", "full"]


class Trouble:
    """Raises once, before the second norm of a tower's last block, and says that it did."""

    def __init__(self, encoder: DifferentialVisionEncoder, error: type[BaseException]) -> None:
        self.error = error
        norm = encoder.vision.tower.blocks[-1].norm2
        self.hook = norm.register_forward_pre_hook(self.happen)

    def happen(self, *_: object) -> None:
        self.hook.remove()
        raise self.error


@pytest.mark.parametrize("propagate", ["none", "gated"])
def test_an_interrupt_in_an_update_leaves_the_cache_as_it_was(name, model, propagate):
    encoder = exact(model, propagate=propagate, tolerance=None)
    tower, pixels = encoder.vision.tower, frame(name)[-1:]
    cache = encode_frame(tower, pixels, propagate)
    before = [tensor.clone() for tensor in cache.tensors()]
    new = touched(name, pixels, (2, 5))
    mask = torch.zeros(tower.grid(pixels), dtype=torch.bool)
    mask[2, 5] = True
    patches = extract_patches(new, mask, tower.patch_size)
    Trouble(encoder, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        update(tower, cache, patches, mask)
    assert all(map(torch.equal, before, cache.tensors()))
    update(tower, cache, patches, mask)
    assert not torch.equal(before[-1], cache.tensors()[-1])


def test_an_interrupt_in_an_update_leaves_an_encoder_that_is_right(name, model):
    encoder = exact(model)
    encoder.encode(frame(name))
    new = touched(name, frame(name), (2, 5))
    Trouble(encoder, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        encoder.encode(new)
    assert_own(name, model, encoder, new)
    assert_own(name, model, encoder, frame(name))


def test_an_error_in_the_tower_is_counted_and_the_frame_encoded_in_full(name, model, caplog):
    encoder = exact(model)
    encoder.encode(frame(name))
    new = touched(name, frame(name), (2, 5))
    Trouble(encoder, RuntimeError)
    with caplog.at_level(logging.CRITICAL):  # the traceback that is logged is not this test's subject
        assert assert_own(name, model, encoder, new) == "fallback"
    assert encoder.statistics.fallbacks == 1
    assert_own(name, model, encoder, touched(name, new, (1, 1)))
    assert encoder.statistics.fallbacks == 1


def test_the_tokens_of_a_patch(name, model):
    """By the model itself: of a tower without blocks, a patch moves its own token alone."""
    vision = open_vision(model)
    tower = open_tower(vision.module, read_layer=0)
    old = frame(name)[-1:]
    grid = tower.grid(old)
    for patch in ((0, 0), (2, 5), (grid[0] - 1, grid[1] - 1)):
        mask = torch.zeros(grid, dtype=torch.bool)
        mask[patch] = True
        new = torch.where(expand_mask(mask, *old.shape[-2:], tower.patch_size), 1 - old, old)
        before, after = (vision.finish(vision.select(tower.embed(images)), grid) for images in (old, new))
        moved = (before != after).any(dim=-1)[0]
        assert torch.equal(moved, vision.tokens_of(mask)), patch
        assert moved.sum() == 1


@torch.no_grad()
def test_a_models_own_call_gives_the_encoders_features(name, model):
    """As long as it is attached, in the form that the model itself gives."""
    images = frame(name)
    wanted = CASES[name].features(model, images)
    encoder = exact(model)
    with encoder.attach(model):
        found = CASES[name].features(model, images)
    assert encoder.statistics.total_frames == 1
    for ours, own in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-8, atol=1e-8)


# ---- Qwen's own --------------------------------------------------------------------------------------


@torch.no_grad()
def test_several_images_of_different_sizes_in_one_call():
    model = make("qwen3_vl")
    rows = [torch.rand(grid[0] * grid[1], 3 * 2 * 16 * 16, dtype=torch.float64) for grid in ((4, 6), (2, 4))]
    rows = [part.view(-1, 3, 2, 256)[:, :, :1].expand(-1, -1, 2, -1).reshape(len(part), -1) for part in rows]
    inputs = torch.cat(rows), torch.tensor([[1, 4, 6], [1, 2, 4]])
    own = model.get_image_features(*inputs)
    with exact(model).attach(model):
        found = model.get_image_features(*inputs)
    torch.testing.assert_close(found.pooler_output, own.pooler_output, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.deepstack_features, own.deepstack_features, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_a_tower_alone_gives_its_mergers_tokens(name):
    model = make(name)
    encoder = exact(model.visual)
    assert [assert_own(name, model, encoder, image) for image in (frame(name), frame(name, 1))] == ["full", "partial"]
    with torch.no_grad():
        own = encoder.vision.features(frame(name, 2))
    for found, wanted in zip((own.tokens, *own.deepstack), CASES[name].features(model, frame(name, 2)), strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_change_stays_in_its_window_until_the_first_block_of_full_attention():
    model = make("qwen2_5_vl")
    old = frame("qwen2_5_vl")
    new = touched("qwen2_5_vl", old, (9, 17))  # in the corner's window, 2 x 2 patches
    for layers, reached in ((1, 4), (2, 180)):
        tower = open_tower(model.visual, layers)
        cache = encode_frame(tower, old, "gated")
        before = cache.read()
        mask = torch.zeros(10, 18, dtype=torch.bool)
        mask[9, 17] = True
        after = update(tower, cache, extract_patches(new, mask, tower.patch_size), mask, 0.0)
        assert int((after != before).any(dim=-1).sum()) == reached


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_packed_weights(name):
    """Of one layer that makes queries, keys and values, three are packed."""
    model = make(name, torch.float32)
    encoder = exact(model, pack_weights=True)
    images = frame(name, dtype=torch.float32)
    for step in range(3):
        assert_own(name, model, encoder, images)
        images = touched(name, images, (step, 3))


def test_a_frame_smaller_than_a_window():
    encoder, name = exact(model := make("qwen2_5_vl")), "qwen2_5_vl"
    images = frame(name)[..., :28, :84]
    frames = [images, touched(name, images, (1, 5))]
    assert [assert_own(name, model, encoder, image) for image in frames] == ["full", "partial"]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_half_precision(name):
    encoder = DifferentialVisionEncoder(model := make(name, torch.bfloat16), max_changed_patches=10**4)
    for seed, path in ((0, "full"), (1, "partial")):
        images = frame(name, seed, torch.bfloat16)
        tokens, stats = encoder.encode(images, return_stats=True)
        with torch.no_grad():
            wanted = CASES[name].features(model, images)
        assert stats.path == path
        for found, own in zip((tokens, *encoder.deepstack), wanted, strict=True):
            assert found.dtype == torch.bfloat16
            assert (found - own).float().norm() < 0.05 * own.float().norm()


def test_sides_that_are_no_multiple_of_a_token():
    encoder = exact(make("qwen2_5_vl"))
    with pytest.raises(ValueError, match="9 x 18 patches; its sides must be multiples of 28 pixels"):
        encoder.encode(torch.rand(1, 3, 126, 252, dtype=torch.float64))


def test_a_query_cannot_look_at_a_tower_with_rotary_positions():
    from fvlm_lib.vision.towers import encode

    with pytest.raises(ValueError, match="rotary positions or window attention"):
        encode(open_tower(make("qwen3_vl").visual), frame("qwen3_vl"))
