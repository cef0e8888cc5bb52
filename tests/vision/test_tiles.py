"""Frames of several tiles: the towers and pixel shuffles of SmolVLM, Idefics3 and InternVL, and a cache a tile."""

from __future__ import annotations

import pytest
import torch
from random_weights import enliven
from torch import nn
from transformers import (
    Idefics3Config,
    Idefics3Model,
    InternVLConfig,
    InternVLModel,
    LlamaConfig,
    Qwen2Config,
    SmolVLMConfig,
    SmolVLMModel,
)

from fvlm_lib.vision.differential import DifferentialVisionEncoder
from fvlm_lib.vision.models import open_vision
from fvlm_lib.vision.towers import open_tower
from fvlm_lib.vision.updates import encode_frame

SIDE, PATCH, GRID, TOKENS, WIDTH = 32, 4, 8, 16, 24
TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": SIDE,
    "patch_size": PATCH,
}  # fmt: skip
TEXT = {
    "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40,
    "num_key_value_heads": 1,
}  # fmt: skip


def idefics3(kind: type, config: type) -> nn.Module:
    vision = {"vision_config": TOWER, "text_config": LlamaConfig(**TEXT, pad_token_id=0)}
    return kind(config(**vision, scale_factor=2, image_token_id=39))


def internvl(**options: object) -> nn.Module:
    return InternVLModel(
        InternVLConfig(vision_config={**TOWER, **options}, text_config=Qwen2Config(**TEXT), image_token_id=39)
    )


MODELS = {
    "smolvlm": lambda: idefics3(SmolVLMModel, SmolVLMConfig),
    "idefics3": lambda: idefics3(Idefics3Model, Idefics3Config),
    "internvl": internvl,
    "internvl of 6B": lambda: internvl(
        use_qk_norm=True, norm_type="rms_norm", attention_bias=True, use_mean_pooling=False
    ),
}


def make(name: str) -> nn.Module:
    """A tiny random model in float64, reproducible."""
    torch.manual_seed(0)
    return enliven(MODELS[name]()).double()


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> nn.Module:
    return make(request.param)


@pytest.fixture(scope="module")
def smolvlm() -> nn.Module:
    return make("smolvlm")


def frame(seed: int = 0, tiles: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tiles, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)


def touched(images: torch.Tensor, *patches: tuple[int, int, int]) -> torch.Tensor:
    """The frame with one pixel of each patch (tile, row, column) changed."""
    images = images.clone()
    for tile, row, column in patches:
        pixel = images[tile, 1, PATCH * row + 3, PATCH * column + 2]
        pixel.copy_((pixel + 0.5) % 1)
    return images


def tower_of(model: nn.Module) -> nn.Module:
    return model.vision_tower if hasattr(model, "vision_tower") else model.vision_model


@torch.no_grad()
def own(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The model's own tokens (tiles, tokens, width)."""
    if isinstance(model, InternVLModel):
        return model.get_image_features(images).pooler_output
    (tokens,) = model.get_image_features(images[None]).pooler_output
    return tokens.unflatten(0, (len(images), -1))


def exact(model: nn.Module, **options: object) -> DifferentialVisionEncoder:
    return DifferentialVisionEncoder(
        model, tolerance=0.0, diff_threshold=0.0, max_changed_patches=GRID * GRID, **options
    )  # fmt: skip


def assert_tokens(tokens: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(tokens, wanted, rtol=1e-9, atol=1e-9)


# ---- towers and pixel shuffle ------------------------------------------------------------------------


def test_the_tower_is_what_transformers_computes(model):
    module = tower_of(model)
    for pixels in (frame(tiles=1), frame(1, tiles=1)[..., :20, :28]):  # also 5 x 7 patches
        with torch.no_grad():
            wanted = module(pixels).last_hidden_state
        for propagate in ("none", "gated"):
            assert_tokens(encode_frame(open_tower(module), pixels, propagate).read(), wanted)


def test_a_tower_alone_takes_a_batch_as_unrelated_frames(model):
    module = tower_of(model)
    encoder = DifferentialVisionEncoder(module)
    with torch.no_grad():
        assert_tokens(encoder.encode(frame()), module(frame()).last_hidden_state)
    assert encoder.statistics.frames["full"] == 3


def test_each_token_is_made_of_a_square_of_neighbours(model):
    rows = open_vision(model).token_rows((GRID, GRID))
    assert rows.shape == (TOKENS, 4)
    squares = {tuple(sorted(token)) for token in rows.tolist()}
    assert squares == {
        tuple(sorted(GRID * (2 * row + y) + 2 * column + x for y in range(2) for x in range(2)))
        for row in range(4)
        for column in range(4)
    }


@pytest.mark.parametrize("grid", [(4, 16), (5, 5), (8, 6)])
def test_tiles_that_cannot_be_shuffled_are_refused(model, grid):
    with pytest.raises(ValueError, match=f"a tile of {grid[0]} x {grid[1]} patches"):
        open_vision(model).token_rows(grid)
    encoder = DifferentialVisionEncoder(model)
    encoder.encode(frame())
    with pytest.raises(ValueError, match=f"a tile of {grid[0]} x {grid[1]} patches"):
        encoder.encode(torch.rand(2, 3, PATCH * grid[0], PATCH * grid[1], dtype=torch.float64))
    assert encoder.encode(frame(), return_stats=True)[1].path == "cached"


# ---- a cache a tile ----------------------------------------------------------------------------------


@pytest.mark.parametrize("propagate", ["none", "gated"])
def test_nothing_one_patch_and_all_patches_changed(model, propagate):
    encoder = DifferentialVisionEncoder(
        model, diff_threshold=0.0, max_changed_patches=GRID * GRID, propagate=propagate,
        tolerance=0.0 if propagate == "gated" else None,
    )  # fmt: skip
    first, second, last = frame(), touched(frame(), (1, 2, 5)), frame(7)
    steps = [(first, "full", 192), (first, "cached", 0), (second, "partial", 1), (last, "partial", 192)]
    for images, path, changed in steps:
        tokens, stats = encoder.encode(images, return_stats=True)
        assert (stats.path, stats.changed_patches, stats.num_patches) == (path, changed, 192)
        assert tokens.shape == (3, TOKENS, WIDTH)
        if propagate == "gated" or changed != 1:
            assert_tokens(tokens, own(model, images))
    assert encoder.statistics.frames == {"full": 1, "partial": 2, "cached": 1, "skipped": 0, "fallback": 0}
    assert (encoder.statistics.changed_patches, encoder.statistics.num_patches) == (193, 3 * 192)


def test_with_none_only_the_token_of_the_changed_patch_is_projected(model):
    encoder = DifferentialVisionEncoder(model, propagate="none")
    before = encoder.encode(frame())
    tokens, stats = encoder.encode(touched(frame(), (2, 3, 4)), return_stats=True)
    assert stats.computed_tokens == 1
    assert (tokens != before).any(dim=-1).nonzero().tolist() == [[2, 4 * 1 + 2]]
    assert stats.encoded.nonzero().tolist() == [[2, 3, 4]]
    assert encoder.vision.tokens_of(stats.encoded).nonzero().flatten().tolist() == [2 * TOKENS + 4 * 1 + 2]


def test_only_the_tiles_that_changed_are_computed(model):
    encoder = exact(model)
    before = encoder.encode(frame())
    calls = []
    hook = encoder.vision.tower.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    tokens, stats = encoder.encode(touched(frame(), (0, 1, 1), (2, 0, 0)), return_stats=True)
    hook.remove()
    assert (len(calls), stats.path) == (2, "partial")
    assert torch.equal(tokens[1], before[1])
    assert [stats.encoded[tile].sum() for tile in range(3)] == [1, 0, 1]


def test_many_small_changes_at_tolerance_zero_are_exact(model):
    encoder, images = exact(model), frame()
    for step in range(6):
        images = touched(images, (step % 3, step, 7 - step), (2, step // 2, 1))
        tokens = encoder.encode(images)
    assert_tokens(tokens, own(model, images))


def test_a_tile_of_which_most_changed_is_encoded_in_full_and_the_others_are_kept(model):
    encoder = DifferentialVisionEncoder(model, tolerance=0.0, diff_threshold=0.0)
    encoder.encode(frame())
    images = frame()
    images[1] = frame(5)[1]
    tokens, stats = encoder.encode(images, return_stats=True)
    assert (stats.path, stats.changed_patches, stats.computed_tokens) == ("partial", 64, TOKENS)
    assert_tokens(tokens, own(model, images))


def test_what_tiles_are_owed_is_paid_on_the_next_frames(smolvlm):
    encoder = DifferentialVisionEncoder(smolvlm, propagate="budget", max_rows=16, tolerance=1e-9, diff_threshold=0.0)
    encoder.encode(frame())
    images = touched(frame(), (0, 1, 1), (2, 5, 5))
    owed = []
    while not owed or (owed[-1] and len(owed) < 100):
        tokens, stats = encoder.encode(images, return_stats=True)
        assert (stats.path, encoder.statistics.owed) == ("partial", stats.owed)
        owed.append(stats.owed)
    assert owed[0] > 0
    assert owed[-1] == 0
    torch.testing.assert_close(tokens, own(smolvlm, images), rtol=1e-6, atol=1e-6)
    assert encoder.encode(images, return_stats=True)[1].path == "cached"


def test_another_number_of_tiles_is_a_full_encode(model):
    encoder = exact(model)
    for images, path in [
        (frame(), "full"), (frame(tiles=5), "full"), (frame(tiles=5), "cached"), (frame(tiles=1), "full"),
        (frame(tiles=1), "cached"), (frame(), "full"),
    ]:  # fmt: skip
        tokens, stats = encoder.encode(images, return_stats=True)
        assert stats.path == path
        assert_tokens(tokens, own(model, images))


def test_pixels_behind_the_last_whole_patch_are_not_looked_at(model):
    encoder = exact(model)
    wider = torch.cat([frame(), frame(3)[..., :2]], dim=-1)
    wider = torch.cat([wider, wider[:, :, :2]], dim=-2)  # 34 x 34, as SigLIP's tiles of 384 have patches of 14
    assert_tokens(encoder.encode(wider), own(model, wider))
    wider[:, :, 33, 33] += 0.5
    assert encoder.encode(wider, return_stats=True)[1].path == "cached"
    wider = touched(wider, (1, 7, 7))
    assert_tokens(encoder.encode(wider), own(model, wider))


def test_reset_forgets_all_tiles(model):
    encoder = exact(model)
    encoder.encode(frame())
    encoder.reset_cache()
    assert encoder.encode(frame(), return_stats=True)[1].path == "full"


def test_what_the_caller_gets_is_no_live_reference(smolvlm):
    encoder = exact(smolvlm)
    for images in (frame(), frame(), touched(frame(), (1, 1, 1))):
        wanted = encoder.encode(images).clone()
        encoder.encode(images).zero_()
        assert torch.equal(encoder.encode(images), wanted)


# ---- errors and interrupts ---------------------------------------------------------------------------


class _Raises:
    """A hook that raises when it is called for the n-th time."""

    def __init__(self, error: type[BaseException], on: int) -> None:
        self.error, self.left = error, on

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if not self.left:
            raise self.error


def modules_of(model: nn.Module, encoder: DifferentialVisionEncoder) -> dict[str, nn.Module]:
    """Where an update may break: in the first and the last block, and in the projector."""
    blocks = encoder.vision.tower.blocks
    projector = model.connector if hasattr(model, "connector") else model.multi_modal_projector
    return {"first": blocks[0].norm1, "last": blocks[-1].mlp, "projector": [*projector.modules()][-1]}


@pytest.mark.parametrize("place", ["first", "last", "projector"])
@pytest.mark.parametrize("on", [1, 2])
def test_after_an_interrupt_the_next_frame_is_right(model, place, on):
    encoder = exact(model)
    encoder.encode(frame())
    second = touched(frame(), (0, 1, 1), (2, 4, 4))
    hook = modules_of(model, encoder)[place].register_forward_pre_hook(_Raises(KeyboardInterrupt, on))
    with pytest.raises(KeyboardInterrupt):
        encoder.encode(second)
    hook.remove()
    third = touched(frame(), (1, 0, 0), (2, 7, 7))  # without what changed in the frame that was interrupted
    assert_tokens(encoder.encode(third), own(model, third))
    assert_tokens(encoder.encode(second), own(model, second))


@pytest.mark.parametrize("on", [1, 2])
def test_an_error_in_the_tower_sends_its_tile_to_the_models_own_call(model, on, caplog):
    encoder = exact(model)
    encoder.encode(frame())
    second = touched(frame(), (0, 1, 1), (2, 4, 4))
    hook = modules_of(model, encoder)["first"].register_forward_pre_hook(_Raises(RuntimeError, on))
    tokens, stats = encoder.encode(second, return_stats=True)
    hook.remove()
    assert (stats.path, encoder.statistics.fallbacks) == ("fallback", 1)
    assert "the frame is encoded in full" in caplog.text
    assert_tokens(tokens, own(model, second))
    third = touched(second, (0, 5, 5), (1, 6, 6))
    assert_tokens(encoder.encode(third), own(model, third))


def test_pixels_that_cannot_be_right_leave_all_tiles_as_they_were(model):
    encoder = exact(model)
    encoder.encode(frame())
    wrong = touched(frame(), (0, 1, 1))
    wrong[2, 0, 5, 5] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        encoder.encode(wrong)
    assert encoder.encode(frame(), return_stats=True)[1].path == "cached"
    assert encoder.statistics.total_frames == 2


# ---- in place of the model's own call ----------------------------------------------------------------


def call(model: nn.Module, images: torch.Tensor, **options: object) -> torch.Tensor:
    output = model.get_image_features(images if isinstance(model, InternVLModel) else images[None], **options)
    return output.pooler_output if isinstance(model, InternVLModel) else torch.cat(output.pooler_output)


def test_the_models_image_call_is_replaced_in_its_own_form(model):
    wanted = call(model, frame())
    encoder = exact(model)
    with encoder.attach(model):
        tokens = call(model, frame())
        assert tokens.shape == wanted.shape
        assert_tokens(tokens, wanted)
    assert encoder.statistics.total_frames == 1
    call(model, frame())
    assert encoder.statistics.total_frames == 1


def test_padded_tiles_are_the_models_own_subject(smolvlm):
    encoder = exact(smolvlm)
    images, mask = frame(), torch.ones(1, 3, SIDE, SIDE, dtype=torch.long)
    with encoder.attach(smolvlm):
        call(smolvlm, images, pixel_attention_mask=mask)
        assert encoder.statistics.total_frames == 1
        mask[0, 1, :, 12:] = 0
        images[1, :, :, 12:] = 0
        padded = call(smolvlm, images, pixel_attention_mask=mask)
    assert encoder.statistics.total_frames == 1
    assert_tokens(padded, call(smolvlm, images, pixel_attention_mask=mask))
    assert (padded - call(smolvlm, images)).abs().max() > 0.01, "the mask matters"
