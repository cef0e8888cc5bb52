"""The differential encoder: its policy, its references, its errors, and what callers can rely on."""

from __future__ import annotations

import logging
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from fvlm_lib.vision import differential
from fvlm_lib.vision.changes import ChangeTracker, choose_path, trace_changes, typical_frame
from fvlm_lib.vision.differential import DifferentialVisionEncoder

VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def lively(model: nn.Module) -> nn.Module:
    """Weights large enough that a wrong token shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.eval()


@pytest.fixture
def clip() -> nn.Module:
    return lively(CLIPVisionModel(CLIPVisionConfig(**VISION)))


@pytest.fixture(scope="module")
def llava() -> LlavaForConditionalGeneration:
    text = LlamaConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=40,
    )  # fmt: skip
    config = LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=text, image_token_index=39)
    return lively(LlavaForConditionalGeneration(config))


def frame(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def touched(image: torch.Tensor, *patches: tuple[int, int], by: float = 0.5) -> torch.Tensor:
    """The frame with one pixel changed by `by` in each of the patches (row, column)."""
    image = image.clone()
    for row, column in patches:
        pixel = image[0, 1, 8 * row + 3, 8 * column + 4]
        pixel.copy_(pixel + by if pixel + by <= 1 else pixel - by)
    return image


def paths(encoder: DifferentialVisionEncoder, frames: list[torch.Tensor]) -> list[str]:
    return [encoder.encode(image, return_stats=True)[1].path for image in frames]


# ---- the policy --------------------------------------------------------------------------------------


def test_first_unchanged_small_large_and_resized_frames(clip):
    encoder = DifferentialVisionEncoder(clip, max_changed_patches=2)
    one = touched(frame(), (1, 2))
    three = touched(one, (0, 0), (0, 1), (3, 3))
    assert paths(encoder, [frame(), frame(), one, one, three]) == ["full", "cached", "partial", "cached", "full"]
    assert encoder.statistics.frames == {"full": 2, "partial": 1, "cached": 2, "skipped": 0, "fallback": 0}
    assert encoder.statistics.changed_patches == 0 + 1 + 0 + 3
    assert encoder.statistics.mean_change_ratio == 4 / (4 * 16)
    assert encoder.statistics.total_frames == 5


@pytest.mark.parametrize(
    ("changed", "limit", "can_update", "skip", "path"),
    [
        (None, 5, True, True, "full"),
        (0, 0, True, False, "cached"),
        (5, 5, True, False, "partial"),
        (6, 5, True, False, "full"),
        (5, 5, False, True, "skipped"),
        (6, 5, False, True, "full"),
        (1, 5, False, False, "full"),
    ],
)
def test_choose_path(changed, limit, can_update, skip, path):
    assert choose_path(changed, limit, can_update=can_update, skip_small_updates=skip) == path


def test_what_is_owed_is_gone_on_with_where_nothing_changes():
    assert [choose_path(changed, 5, owed=3) for changed in (None, 0, 1, 6)] == ["full", "partial", "partial", "full"]
    assert choose_path(0, 5, owed=3, can_update=False) == "cached"


def test_reset_forgets_the_frame_and_keeps_the_totals(clip):
    encoder = DifferentialVisionEncoder(clip)
    assert paths(encoder, [frame(), frame()]) == ["full", "cached"]
    encoder.reset_cache()
    assert paths(encoder, [frame()]) == ["full"]
    assert encoder.statistics.total_frames == 3
    encoder.reset_statistics()
    assert encoder.statistics.total_frames == 0


def test_a_batch_is_encoded_in_full_and_the_cache_left_alone(clip):
    encoder = DifferentialVisionEncoder(clip)
    encoder.encode(frame())
    both = torch.cat([frame(1), frame(2)])
    torch.testing.assert_close(encoder.encode(both), clip(both).last_hidden_state, rtol=1e-4, atol=1e-4)
    assert paths(encoder, [frame()]) == ["cached"]


def test_another_resolution_is_encoded_in_full():
    from conftest import tiny_model

    dino = tiny_model().encoder.dino
    encoder = DifferentialVisionEncoder(dino)
    wide = torch.rand(1, 3, 16, 32)
    assert paths(encoder, [frame(), wide, wide, frame()]) == ["full", "full", "cached", "full"]


def test_what_was_done_with_a_frame_is_a_dict_and_has_attributes(clip):
    encoder = DifferentialVisionEncoder(clip)
    frames = [frame(), frame(), touched(frame(), (1, 2)), torch.cat([frame(1), frame(2)])]
    every = [encoder.encode(image, return_stats=True)[1] for image in frames]
    assert [stats["path"] for stats in every] == ["full", "cached", "partial", "full"]
    assert [stats["changed_patches"] for stats in every] == [16, 0, 1, 16]
    names = ["path", "changed_patches", "num_patches", "computed_tokens", "encoded", "owed"]
    for stats in every:
        assert isinstance(stats, dict)
        assert list(stats) == names, "none vanishes, 0 neither"
        assert "path" in stats
        assert "paths" not in stats
        for name, value in dict(stats).items():
            assert value is getattr(stats, name)
        assert stats["encoded"].shape == (4, 4)
    again = pickle.loads(pickle.dumps(every[2]))
    assert again["path"] == again.path == "partial"
    assert torch.equal(again.encoded, every[2].encoded)


# ---- the tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("propagate", ["none", "gated"])
def test_all_patches_changed_equals_the_model(clip, propagate):
    encoder = DifferentialVisionEncoder(clip, propagate=propagate, max_changed_patches=16)
    encoder.encode(frame())
    tokens, stats = encoder.encode(frame(9), return_stats=True)
    assert (stats.path, stats.changed_patches) == ("partial", 16)
    torch.testing.assert_close(tokens, clip(frame(9)).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_the_limit_is_three_quarters_or_follows_the_measured_products(clip):
    assert DifferentialVisionEncoder(clip).limit((4, 4)) == 12
    assert DifferentialVisionEncoder(clip, max_changed_patches=3, pack_weights="auto").limit((4, 4)) == 3
    assert DifferentialVisionEncoder(clip, propagate="budget").limit((4, 4)) == 16
    encoder = DifferentialVisionEncoder(clip, pack_weights="auto")
    tower = encoder.vision.tower
    seconds = [tower.products.seconds(rows) for rows in range(18)]  # the class token and 16 patches
    limit = encoder.limit((4, 4))
    assert 0 <= limit < 16
    assert seconds[limit + 2] > 0.75 * seconds[17]
    assert limit == 0 or seconds[limit + 1] <= 0.75 * seconds[17]


def test_tolerance_zero_equals_the_model_after_many_small_changes(clip):
    encoder = DifferentialVisionEncoder(clip, diff_threshold=0.0, tolerance=0.0, max_changed_patches=16)
    image = frame()
    for step in range(8):
        image = touched(image, (step % 4, step // 3), by=0.3)
        tokens = encoder.encode(image)
    torch.testing.assert_close(tokens, clip(image).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_what_the_caller_gets_is_no_live_reference(clip):
    encoder = DifferentialVisionEncoder(clip)
    for image in (frame(), frame(), touched(frame(), (1, 1))):
        wanted = encoder.encode(image).clone()
        encoder.encode(image).zero_()
        assert torch.equal(encoder.encode(image), wanted)


def test_llava_tokens_are_the_models_own(llava):
    own = torch.stack(list(llava.get_image_features(frame()).pooler_output))
    encoder = DifferentialVisionEncoder(llava, tolerance=0.0, diff_threshold=0.0)
    torch.testing.assert_close(encoder.encode(frame()), own, rtol=1e-4, atol=1e-5)
    changed = touched(frame(), (2, 2), (0, 3))
    tokens, stats = encoder.encode(changed, return_stats=True)
    assert stats.path == "partial"
    own = torch.stack(list(llava.get_image_features(changed).pooler_output))
    torch.testing.assert_close(tokens, own, rtol=1e-4, atol=1e-4)
    assert tokens.shape == (1, 16, 24)


def test_with_none_only_the_changed_tokens_are_projected(llava):
    encoder = DifferentialVisionEncoder(llava, propagate="none")
    before = encoder.encode(frame())
    rows = []
    hook = llava.model.multi_modal_projector.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[1]))
    after, stats = encoder.encode(touched(frame(), (1, 2)), return_stats=True)
    hook.remove()
    assert rows == [stats.computed_tokens] == [1]
    assert (after != before).any(dim=-1).nonzero()[:, 1].tolist() == [6]


def test_a_context_radius_recomputes_the_neighbours_too(clip):
    encoder = DifferentialVisionEncoder(clip, propagate="none", context_radius=1)
    before = encoder.encode(frame())
    after, stats = encoder.encode(touched(frame(), (0, 0)), return_stats=True)
    assert stats.changed_patches == 1
    assert (after != before).any(dim=-1)[0].nonzero().flatten().tolist() == [0, 1, 2, 5, 6]  # CLS, a 2x2 corner


# ---- references --------------------------------------------------------------------------------------


def fade(levels: int, start: int = 100) -> list[torch.Tensor]:
    """Grey frames, one grey level brighter each."""
    return [torch.full((1, 3, 32, 32), (start + i) / 255) for i in range(levels)]


def test_no_token_is_staler_than_the_threshold_however_slowly_a_screen_fades(clip):
    for threshold in (2 / 255, 0.02, 0.05):
        encoder = DifferentialVisionEncoder(clip, diff_threshold=threshold, max_changed_patches=0)
        for image in fade(40):
            encoder.encode(image)
            assert (encoder.tracker.pixels - image).abs().max() <= threshold + 1e-6


def test_compared_with_the_previous_frame_drift_gets_through(clip):
    encoder = DifferentialVisionEncoder(clip, diff_threshold=2 / 255, reference="previous")
    assert paths(encoder, fade(40)) == ["full"] + ["cached"] * 39
    encoded = DifferentialVisionEncoder(clip, diff_threshold=2 / 255)
    assert paths(encoded, fade(40)).count("full") == 14  # every third frame is more than two levels away


def test_each_patch_is_compared_with_the_pixels_of_its_own_token(clip):
    encoder = DifferentialVisionEncoder(clip, diff_threshold=0.2)
    first = torch.full((1, 3, 32, 32), 0.5)
    second = first.clone()
    second[..., :8, :8] = 0.9  # encoded anew
    second[..., 8:16, 8:16] = 0.65  # within the threshold
    third = second.clone()
    third[..., :8, :8] = 0.95  # within the threshold of the second frame
    third[..., 8:16, 8:16] = 0.75  # beyond it from the first frame, not from the second
    counts = [encoder.encode(image, return_stats=True)[1].changed_patches for image in (first, second, third)]
    assert counts == [16, 1, 1]


def test_uint8_float_and_normalised_frames_take_the_same_path(clip):
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    other = one.copy()
    other[3, 4] ^= 64
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    masks = []
    for convert, options in (
        (lambda image: image, {}),
        (lambda image: image.astype(np.float32) / 255, {}),
        (lambda image: ((image / 255 - mean) / std).astype(np.float32), {"mean": mean, "std": std}),
    ):
        tracker = ChangeTracker(threshold=64 / 255, **options)
        assert tracker.changed(convert(one), 8) is None
        tracker.encoded(convert(one), 8)
        masks.append(tracker.changed(convert(other), 8))
    assert np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], masks[2])


def test_a_trace_takes_the_paths_of_the_encoder(clip):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)]
    for step in range(6):
        following = frames[-1].copy()
        following[: 8 * step, :8] ^= 128
        frames.append(following)
    encoder = DifferentialVisionEncoder(clip, max_changed_patches=2)
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None] / 255 for image in frames]
    traced = list(trace_changes(frames, 8, ChangeTracker(), max_changed_patches=2))
    assert [t.path for t in traced] == paths(encoder, tensors)
    assert traced[0].changed is None
    assert [t.changed for t in traced[1:]] == [0, 1, 2, 3, 4, 4]
    assert [int(t.changed_mask.sum()) for t in traced] == [16, 0, 1, 2, 3, 4, 4]  # also of frames encoded in full


def test_a_typical_frame_is_one_on_which_something_changed():
    table = pd.DataFrame(
        {"frame": range(5), "path": ["full", "cached", "full", "full", "full"], "changed": [9, 0, 7, 9, 8]}
    )
    assert typical_frame(table) == 4  # of full encodes alone, by the median of what changed
    assert typical_frame(table.assign(path=["full", "cached", "full", "partial", "full"])) == 3
    assert typical_frame(table[:2]) == 0


# ---- towers without partial updates ------------------------------------------------------------------


class Convolutional(nn.Module):
    """A tower that no adapter knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).flatten(2).transpose(1, 2)


def test_any_tower_works_by_caching_whole_frames():
    tower = Convolutional()
    changed = touched(frame(), (0, 1))
    encoder = DifferentialVisionEncoder(tower, patch_size=8)
    assert paths(encoder, [frame(), frame(), changed]) == ["full", "cached", "full"]
    torch.testing.assert_close(encoder.encode(changed), tower(changed))
    skipping = DifferentialVisionEncoder(tower, grid_size=(4, 4), max_changed_patches=1, skip_small_updates=True)
    far = touched(changed, (2, 2))
    assert paths(skipping, [frame(), changed, far, far]) == ["full", "skipped", "full", "cached"]


def test_skipped_changes_add_up():
    """What was skipped stays different from the pixels of its token, so it counts again in the next frame."""
    encoder = DifferentialVisionEncoder(Convolutional(), patch_size=8, max_changed_patches=1, skip_small_updates=True)
    one = touched(frame(), (0, 0))
    two = touched(one, (1, 1))
    assert paths(encoder, [frame(), one, two]) == ["full", "skipped", "full"]


def test_a_grid_that_cannot_be_inferred_is_an_error():
    with pytest.raises(ValueError, match="Convolutional has no patch_size"):
        DifferentialVisionEncoder(Convolutional())


# ---- errors ------------------------------------------------------------------------------------------


def test_an_error_in_the_differential_path_is_counted_logged_and_never_a_wrong_answer(clip, monkeypatch, caplog):
    encoder = DifferentialVisionEncoder(clip)
    encoder.encode(frame())

    def broken(*args):
        raise RuntimeError("out of luck")

    changed = touched(frame(), (1, 1))
    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr(differential, "update_cache", broken)
        tokens, stats = encoder.encode(changed, return_stats=True)
    assert stats.path == "fallback"
    assert encoder.statistics.fallbacks == 1
    assert "out of luck" in caplog.text
    torch.testing.assert_close(tokens, clip(changed).last_hidden_state, rtol=1e-4, atol=1e-4)
    again = touched(changed, (2, 2))
    assert paths(encoder, [changed, again, touched(again, (0, 0))]) == ["cached", "full", "partial"]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(1, 1, 32, 32), r"must be \(1, 3, height, width\)"),
        (torch.rand(1, 3, 0, 32), "least 1"),
        (torch.full((1, 3, 32, 32), float("nan")), "NaN"),
        (torch.rand(1, 3, 32, 32) * 9, "mean and std"),
        (torch.rand(3, 32, 32), r"\(1, channels, height, width\)"),
    ],
)
def test_a_frame_that_cannot_be_right_leaves_the_cache_as_it_was(clip, image, message):
    encoder = DifferentialVisionEncoder(clip)
    wanted = encoder.encode(frame())
    with pytest.raises(ValueError, match=message):
        encoder.encode(image)
    tokens, stats = encoder.encode(frame(), return_stats=True)
    assert stats.path == "cached"
    assert torch.equal(tokens, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diff_threshold": 1.5}, "threshold is 1.5"),
        ({"diff_threshold": float("nan")}, "threshold is nan"),
        ({"patch_size": 14}, "patch_size is 14"),
        ({"patch_size": 8, "grid_size": (4, 4)}, "both given"),
        ({"reference": "last"}, "'last'"),
        ({"propagate": "all"}, "'all'"),
        ({"metric": "median"}, "'median'"),
        ({"max_changed_patches": -1}, "max_changed_patches is -1"),
        ({"context_radius": -1}, "context_radius is -1"),
        ({"context_radius": 1.5}, "context_radius is 1.5; it must be a whole number"),
        ({"skip_small_updates": "no"}, "skip_small_updates is 'no'; it must be true or false"),
        ({"tolerance": -1.0}, "tolerance is -1.0"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"tolerance": float("inf")}, "tolerance is inf; it must be a finite number"),
        ({"tolerance": "0.1"}, "tolerance is '0.1'; it must be a number"),
        ({"max_changed_patches": 1.5}, "max_changed_patches is 1.5"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"max_rows": 5}, "max_rows is 5 and propagate 'gated'; it goes with 'budget'"),
        ({"max_rows": 0, "propagate": "budget"}, "max_rows is 0; it must be at least 1"),
        ({"max_changed_patches": 5, "propagate": "budget"}, "max_changed_patches is 5 and propagate 'budget', which"),
        ({"pack_memory": 5}, "pack_memory is 5, but pack_weights is False; it goes with 'auto'"),
        ({"pack_weights": "some"}, "pack_weights is 'some'; it must be true or false or 'auto'"),
    ],
)
def test_wrong_arguments_are_named(clip, options, message):
    with pytest.raises(ValueError, match=message):
        DifferentialVisionEncoder(clip, **options)


def test_numbers_may_be_numpys(clip):
    options = {"diff_threshold": np.float32(0.5), "max_changed_patches": np.int64(1), "tolerance": np.float64(0.25)}
    encoder = DifferentialVisionEncoder(clip, **options)
    changes = [touched(frame(), (1, 1), by=0.4), touched(frame(), (1, 1), by=0.6), frame(9)]
    assert paths(encoder, [frame(), *changes]) == ["full", "cached", "partial", "full"]


# ---- attaching ---------------------------------------------------------------------------------------


def test_attached_the_model_uses_the_encoder_and_is_restored(llava):
    ids = torch.tensor([[1, *[39] * 16, 5]])
    plain = llava(input_ids=ids, pixel_values=frame()).logits
    encoder = DifferentialVisionEncoder(llava)
    with encoder.attach(llava):
        first = llava(input_ids=ids, pixel_values=frame()).logits
        second = llava(input_ids=ids, pixel_values=frame()).logits
    torch.testing.assert_close(first, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(first, second)
    assert encoder.statistics.frames["cached"] == 1
    assert encoder.frame_statistics.path == "cached" and not encoder.frame_statistics.encoded.any()
    assert torch.equal(llava(input_ids=ids, pixel_values=frame()).logits, plain)
    assert encoder.statistics.total_frames == 2
    assert "get_image_features" not in vars(llava.model)


def test_attached_is_restored_after_an_error(llava):
    encoder = DifferentialVisionEncoder(llava)
    with pytest.raises(KeyboardInterrupt), encoder.attach(llava):
        raise KeyboardInterrupt
    assert "get_image_features" not in vars(llava.model)
    with pytest.raises(TypeError, match="neither get_image_features nor encode_images"):
        encoder.attach(nn.Linear(1, 1)).__enter__()


@pytest.mark.parametrize("place", ["block", "projector"])
def test_after_an_interrupt_the_next_frame_is_right(llava, place):
    encoder = DifferentialVisionEncoder(llava, tolerance=0.0, diff_threshold=0.0)
    encoder.encode(frame())
    projector = llava.model.multi_modal_projector
    module = projector if place == "projector" else encoder.vision.tower.blocks[-1].norm1

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hook = module.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        encoder.encode(touched(frame(), (1, 1)))
    hook.remove()
    changed = touched(frame(), (2, 2))  # without what changed in the frame that was interrupted
    own = torch.stack(list(llava.get_image_features(changed).pooler_output))
    torch.testing.assert_close(encoder.encode(changed), own, rtol=1e-4, atol=1e-4)


def test_siglip_works_as_a_plain_tower():
    siglip = lively(SiglipVisionModel(SiglipVisionConfig(**VISION)))
    encoder = DifferentialVisionEncoder(siglip, tolerance=0.0, diff_threshold=0.0)
    encoder.encode(frame())
    changed = touched(frame(), (3, 1))
    torch.testing.assert_close(encoder.encode(changed), siglip(changed).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_memory_does_not_grow_over_a_thousand_frames(clip):
    encoder = DifferentialVisionEncoder(clip)
    sizes = set()
    for step in range(1000):
        encoder.encode(touched(frame(), (step % 4, step % 3)))
        sizes.add(encoder._cache.nbytes + encoder._tokens.nbytes + encoder.tracker.pixels.nbytes)
    assert len(sizes) == 1


# ---- a bounded number of tokens a frame --------------------------------------------------------------


def test_a_budget_pays_in_later_frames_until_the_tokens_are_those_of_a_full_encode(clip):
    clip = clip.double()
    encoder = DifferentialVisionEncoder(clip, diff_threshold=0.0, propagate="budget", max_rows=3, tolerance=0.0)
    encoder.encode(frame().double())
    other = frame(1).double()  # all 16 patches change
    exact = clip(other).last_hidden_state
    owed, errors = [], []
    for _ in range(200):
        tokens, stats = encoder.encode(other, return_stats=True)
        assert encoder.statistics.owed == stats.owed
        if stats.path == "cached":
            break
        assert stats.path == "partial" and stats.computed_tokens <= 17
        owed.append(stats.owed)
        errors.append((tokens - exact).abs().max().item())
    assert stats.path == "cached" and stats.owed == 0
    assert owed[0] > 0 and owed[-1] == 0 and len(owed) > 17 / 3
    assert errors[0] > 1e-3 and errors[-1] < 1e-9
    torch.testing.assert_close(tokens, exact, rtol=0, atol=1e-9)
    assert encoder.statistics.frames["full"] == 1


@pytest.mark.parametrize("max_rows", [1, 5, 17])
def test_a_budget_bounds_what_either_half_of_a_layer_computes(clip, max_rows):
    encoder = DifferentialVisionEncoder(clip, propagate="budget", max_rows=max_rows, tolerance=0.0)
    encoder.encode(frame())
    before = [{name: tensor.clone() for name, tensor in gate.tensors().items()} for gate in encoder._cache.gates]
    encoder.encode(frame(1))
    for gate, kept in zip(encoder._cache.gates, before, strict=True):
        for name in ("inputs", "used", "change"):
            assert (gate.tensors()[name] != kept[name]).any(dim=-1).sum() <= max_rows


def test_with_a_tolerance_a_budget_owes_what_a_gated_update_would_compute(clip):
    unbounded = DifferentialVisionEncoder(clip, propagate="budget", max_rows=17, tolerance=0.05)
    gated = DifferentialVisionEncoder(clip, propagate="gated", tolerance=0.05)
    changed = touched(frame(), (1, 2), (3, 3))
    for encoder in (unbounded, gated):
        encoder.encode(frame())
    (tokens, stats), expected = unbounded.encode(changed, return_stats=True), gated.encode(changed)
    assert stats.path == "partial" and stats.owed == 0
    assert unbounded.encode(changed, return_stats=True)[1].path == "cached"
    assert (tokens - expected).norm() < 0.05 * expected.norm()
    few = DifferentialVisionEncoder(clip, propagate="budget", max_rows=1, tolerance=0.001)
    few.encode(frame())
    assert few.encode(changed, return_stats=True)[1].owed > 0
    few.reset_statistics()  # the totals; what is owed is still paid
    assert few.encode(changed, return_stats=True)[1].path == "partial"
    few.reset_cache()
    assert few.encode(changed, return_stats=True)[1]["owed"] == 0 and few.statistics.owed == 0


def test_what_is_owed_is_paid_for_the_pixels_that_were_seen_last(clip):
    """A patch that changes again and back, while it is owed, ends at the token of its last pixels."""
    clip = clip.double()
    encoder = DifferentialVisionEncoder(clip, diff_threshold=0.0, propagate="budget", max_rows=2, tolerance=0.0)
    frames = [frame(seed).double() for seed in (0, 1, 0, 2)]
    for image in [*frames, *[frames[-1]] * 200]:
        tokens, stats = encoder.encode(image, return_stats=True)
    assert stats.path == "cached"
    torch.testing.assert_close(tokens, clip(frames[-1]).last_hidden_state, rtol=0, atol=1e-9)


def test_of_a_frame_that_is_no_multiple_of_the_patch_the_tower_sees_whole_patches():
    """SigLIP's 384 pixels at a patch of 14: the model drops the last six, and so does a partial update."""
    model = lively(
        SiglipVisionModel(SiglipVisionConfig(**{**VISION, "image_size": 34}, vision_use_head=False))
    ).double()
    encoder = DifferentialVisionEncoder(model, diff_threshold=0.0, tolerance=0.0)
    frame = torch.rand(1, 3, 34, 34, dtype=torch.float64)
    encoder.encode(frame)
    for place, changed in ((slice(32, 34), 0), (slice(8, 10), 1)):
        frame = frame.clone()
        frame[..., place, place] = 0.5
        tokens, stats = encoder.encode(frame, return_stats=True)
        assert stats.changed_patches == changed
        with torch.no_grad():
            torch.testing.assert_close(tokens, model(frame).last_hidden_state, rtol=0, atol=1e-9)
