"""The patch difference on real recordings: its definition, its exactness, and what it refuses."""

import functools
import json
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fvlm_lib.vision.patches import (
    compute_patch_diff,
    expand_mask,
    extract_patch,
    extract_patch_window,
    extract_patches,
    patch_difference_map,
    patch_grid,
)

SCREENS = ROOT / "data" / "screens"
CLIP = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
SIGLIP = {"mean": 0.5, "std": 0.5}


@functools.lru_cache(maxsize=8)
def frame(sequence: str, index: int) -> np.ndarray:
    return np.asarray(Image.open(SCREENS / sequence / f"frame_{index:04d}.png").convert("RGB"))


def pairs(*sequences: str, every: int = 1) -> list[tuple[str, int]]:
    """(sequence, index) of frames to be compared with the one before."""
    return [(name, i) for name in sequences for i in range(1, len(list((SCREENS / name).glob("frame_*.png"))), every)]


def normalised(image: np.ndarray, mean, std, dtype=torch.float32) -> torch.Tensor:
    """(H, W, 3) uint8 to (1, 3, H, W), as the transformers image processors do: rescale, then normalise."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).to(dtype) / 255
    mean, std = torch.as_tensor(mean, dtype=dtype), torch.as_tensor(std, dtype=dtype)
    return ((pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))[None]


def fused(image: np.ndarray, mean, std) -> torch.Tensor:
    """The same as the fast image processors do: rescaling folded into mean and std."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
    mean, std = torch.as_tensor(mean) * 255, torch.as_tensor(std) * 255
    return ((pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))[None]


def all_forms(a: np.ndarray, b: np.ndarray) -> dict[str, tuple]:
    """Both frames in every form that must give the same map: (previous, new, keywords)."""
    ta, tb = torch.from_numpy(a.copy()).permute(2, 0, 1), torch.from_numpy(b.copy()).permute(2, 0, 1)
    return {
        "torch uint8": (ta.contiguous(), tb.contiguous(), {}),
        "torch uint8 strided": (ta, tb, {}),
        "numpy float32": (a.astype(np.float32) / 255, b.astype(np.float32) / 255, {}),
        "numpy float64": (a / 255, b / 255, {}),
        "torch float32 batch": (ta.float()[None] / 255, tb.float()[None] / 255, {}),
        "CLIP": (normalised(a, **CLIP), normalised(b, **CLIP), CLIP),
        "CLIP fused": (fused(a, **CLIP), fused(b, **CLIP), CLIP),
        "CLIP float64": (*(normalised(x, **CLIP, dtype=torch.float64) for x in (a, b)), CLIP),
        "SigLIP": (normalised(a, **SIGLIP), normalised(b, **SIGLIP), SIGLIP),
    }


# --- definition ---


@pytest.mark.parametrize("patch_size", [14, 16, (7, 24), 500])
def test_map_is_the_mean_and_the_maximum_over_each_patchs_own_pixels(patch_size):
    a, b = frame("dialog", 5)[200:341, 300:533], frame("dialog", 6)[200:341, 300:533]
    patch_h, patch_w = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    difference = np.abs(a.astype(int) - b.astype(int))
    grid = patch_grid(141, 233, patch_size)
    mean, largest = np.empty(grid), np.empty(grid)
    for row in range(grid[0]):
        for col in range(grid[1]):
            patch = difference[row * patch_h : (row + 1) * patch_h, col * patch_w : (col + 1) * patch_w]
            mean[row, col] = patch.sum() / (patch.size * 255)
            largest[row, col] = patch.max() / 255
    assert mean.max() > 0.1
    np.testing.assert_array_equal(patch_difference_map(a, b, patch_size), mean)
    np.testing.assert_array_equal(patch_difference_map(a, b, patch_size, metric="max"), largest)


@st.composite
def changed_frames(draw):
    """A random uint8 frame, the same with a few pixels changed, and a patch size of its own."""
    height, width, channels = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    before = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    after = before.copy()
    for _ in range(draw(st.integers(0, 5))):
        after[rng.integers(height), rng.integers(width), rng.integers(channels)] = rng.integers(256)
    return before, after, (draw(st.integers(1, 17)), draw(st.integers(1, 17)))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(frames=changed_frames())
def test_any_pair_of_frames_differs_as_the_definition_says_in_every_form(frames):
    a, b, (patch_h, patch_w) = frames
    height, width = a.shape[:2]
    levels = np.abs(a.astype(int) - b.astype(int))
    starts = [(row, col) for row in range(0, height, patch_h) for col in range(0, width, patch_w)]
    patches = [levels[row : row + patch_h, col : col + patch_w] for row, col in starts]
    grid = patch_grid(height, width, (patch_h, patch_w))
    wanted = {
        "mean": np.reshape([patch.sum() / (255 * patch.size) for patch in patches], grid),
        "max": np.reshape([patch.max() / 255 for patch in patches], grid),
    }
    forms = [(a, b), (b, a), (a / 255, b / 255), (a.astype(np.float32) / 255, b.astype(np.float32) / 255)]
    for metric, values in wanted.items():
        for prev, new in forms:
            found = patch_difference_map(prev, new, (patch_h, patch_w), metric=metric)
            np.testing.assert_array_equal(found, values)
            threshold = float(np.median(values))
            mask = compute_patch_diff(prev, new, (patch_h, patch_w), threshold, metric=metric)
            np.testing.assert_array_equal(mask, values > threshold)
    mask = compute_patch_diff(a, b, (patch_h, patch_w), 0)
    spread = expand_mask(mask, height, width, (patch_h, patch_w))
    assert np.array_equal(np.where(spread[..., None], b, a), b)  # what changed makes the new frame of the old one


def test_a_change_of_k_levels_everywhere_is_k_255ths_in_edge_patches_too():
    a = np.full((50, 70, 3), 200, np.uint8)
    for k in (1, 3, 100):
        for metric in ("mean", "max"):
            difference = patch_difference_map(a, a - np.uint8(k), 16, metric=metric)
            assert difference.shape == (4, 5)
            assert (difference == k / 255).all()


def test_black_to_white_is_one_and_equal_frames_are_zero():
    black, white = np.zeros((20, 30, 3), np.uint8), np.full((20, 30, 3), 255, np.uint8)
    assert (patch_difference_map(black, white, 8) == 1.0).all()
    assert (patch_difference_map(white, black, 8) == 1.0).all()
    assert (patch_difference_map(white, white, 8) == 0.0).all()


def test_a_nearly_black_uint8_frame_is_judged_by_its_dtype_not_by_its_maximum():
    a, b = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8, 3), np.uint8)
    assert patch_difference_map(a, b, 8)[0, 0] == 1 / 255


def test_one_level_in_one_channel_of_one_pixel_is_a_change_of_its_patch_alone():
    a = np.full((800, 1280, 3), 128, np.uint8)
    b = a.copy()
    b[799, 1279, 1] += 1
    for frames in [(a, b), (a.astype(np.float32) / 255, b.astype(np.float32) / 255)]:
        mask = compute_patch_diff(*frames, 14, 0)
        assert mask.sum() == 1 and mask[-1, -1]
        # 800 = 57 * 14 + 2 and 1280 = 91 * 14 + 6: the last patch has 2 x 6 pixels
        assert patch_difference_map(*frames, 14)[-1, -1] == 1 / (255 * 3 * 2 * 6)


@pytest.mark.parametrize("metric", ["mean", "max"])
def test_threshold_zero_means_any_change_at_all_even_far_below_a_grey_level(metric):
    a = np.full((32, 32, 3), 0.5)
    b = a.copy()
    b[20, 3, 0] += 1e-12
    assert compute_patch_diff(a, b, 16, 0, metric=metric).tolist() == [[False, False], [True, False]]
    assert not compute_patch_diff(a, a, 16, 0, metric=metric).any()


def test_threshold_one_is_never_exceeded():
    black, white = torch.zeros(3, 16, 16), torch.ones(3, 16, 16)
    assert not compute_patch_diff(black, white, 8, 1.0).any()


def test_grid_covers_the_frame():
    assert patch_grid(800, 1280, 16) == (50, 80)
    assert patch_grid(800, 1280, 14) == (58, 92)
    assert patch_grid(800, 1280, (100, 1281)) == (8, 1)
    assert patch_grid(1, 1, 14) == (1, 1)


# --- the same map in every form ---


@pytest.mark.parametrize(("sequence", "index"), pairs("jupyter", "dialog", "terminal", "idle", every=19))
def test_every_form_of_a_recording_gives_the_same_map_to_the_last_bit(sequence, index):
    a, b = frame(sequence, index - 1), frame(sequence, index)
    for metric, patch_size in (("mean", 14), ("max", 16)):
        expected = patch_difference_map(a, b, patch_size, metric=metric)
        for form, (prev, new, keywords) in all_forms(a, b).items():
            got = patch_difference_map(prev, new, patch_size, metric=metric, **keywords)
            np.testing.assert_array_equal(np.asarray(got), expected, err_msg=f"{form}, {metric}")


@pytest.mark.parametrize("k", [1, 5, 17, 39])
def test_a_difference_equal_to_the_threshold_is_no_change_in_any_form(k):
    a, b = frame("fade", 0), frame("fade", k)
    assert patch_difference_map(a, b, 16).max() == k / 255  # the faded region is k levels darker
    for form, (prev, new, keywords) in {"uint8": (a, b, {}), **all_forms(a, b)}.items():
        assert not compute_patch_diff(prev, new, 16, k / 255, **keywords).any(), form
        assert compute_patch_diff(prev, new, 16, np.nextafter(k / 255, 0), **keywords).any(), form


def test_every_grey_level_pair_survives_normalising_and_back():
    levels = np.arange(256, dtype=np.uint8)
    a, b = (np.repeat(x[..., None], 3, axis=2) for x in np.meshgrid(levels, levels))  # all 65,536 pairs
    expected = patch_difference_map(a, b, 1)
    assert (expected == np.abs(a[..., 0].astype(int) - b[..., 0].astype(int)) / 255).all()
    for form, (prev, new, keywords) in all_forms(a, b).items():
        got = patch_difference_map(prev, new, 1, **keywords)
        np.testing.assert_array_equal(np.asarray(got), expected, err_msg=form)


def test_floats_off_the_grey_levels_are_kept_to_the_documented_tolerance():
    rng = np.random.default_rng(0)
    a, b = rng.random((40, 60, 3)), rng.random((40, 60, 3))
    exact = np.abs(a - b)[:16, :16]
    assert abs(patch_difference_map(a, b, 16)[0, 0] - exact.mean()) <= 1e-3 / 255
    assert abs(patch_difference_map(a, b, 16, metric="max")[0, 0] - exact.max()) <= 1e-3 / 255


def test_half_precision_frames_are_judged_without_error_and_near_the_truth():
    a, b = frame("dialog", 5)[:320], frame("dialog", 6)[:320]
    expected = patch_difference_map(a, b, 16)
    for dtype, tolerance in ((torch.float16, 3e-4), (torch.bfloat16, 4e-3)):
        prev, new = (normalised(x, **CLIP).to(dtype) for x in (a, b))
        got = patch_difference_map(prev, new, 16, **CLIP).numpy()
        assert np.abs(got - expected).max() < tolerance
        assert ((got == 0) == (expected == 0)).all()


# --- layouts and kinds ---


def test_layout_keyword_and_defaults_read_the_same_pixels():
    a, b = frame("dialog", 5)[:100, :150], frame("dialog", 6)[:100, :150]
    expected = compute_patch_diff(a, b, 16, 0.01)
    assert isinstance(expected, np.ndarray) and expected.dtype == bool and expected.shape == (7, 10)
    first = [x.transpose(2, 0, 1) for x in (a, b)]
    tensors = [torch.from_numpy(x.copy()) for x in (a, b)]
    np.testing.assert_array_equal(compute_patch_diff(*first, 16, 0.01, channels_last=False), expected)
    got = compute_patch_diff(*tensors, 16, 0.01, channels_last=True)
    assert isinstance(got, torch.Tensor) and got.dtype == torch.bool
    np.testing.assert_array_equal(got.numpy(), expected)


def test_grey_images_without_a_channel_axis_and_with_one_are_the_same():
    a, b = frame("dialog", 5)[..., 0], frame("dialog", 6)[..., 0]
    expected = compute_patch_diff(a, b, 16, 0.01)
    assert expected.any()
    np.testing.assert_array_equal(compute_patch_diff(a[..., None], b[..., None], 16, 0.01), expected)
    got = compute_patch_diff(torch.from_numpy(a.copy()), torch.from_numpy(b.copy()), 16, 0.01)
    np.testing.assert_array_equal(got.numpy(), expected)


def test_flipped_views_and_tensors_with_gradients_work_and_nothing_is_written():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    kept = a.copy(), b.copy()
    np.testing.assert_array_equal(patch_difference_map(a[::-1], b[::-1], 10), patch_difference_map(a, b, 10)[::-1])
    x = torch.rand(3, 20, 20, requires_grad=True)
    assert not patch_difference_map(x, torch.rand(3, 20, 20), 5).requires_grad
    assert (a == kept[0]).all() and (b == kept[1]).all()


# --- the caret ---


def blinks() -> list[tuple[str, int, list[int]]]:
    found = []
    for name in ("idle", "jupyter", "dialog", "terminal"):
        actions = SCREENS / name / "actions.json"
        for entry in json.loads(actions.read_text())["frames"] if actions.exists() else ():
            if "changed_box" in entry:
                found.append((name, entry["index"], entry["changed_box"]))
    return found


def test_every_recorded_caret_blink_is_seen_and_nothing_else():
    assert len(blinks()) >= 26
    for name, index, (x, y, width, height) in blinks():
        a, b = frame(name, index - 1), frame(name, index)
        for patch_size in (14, 16, 32):
            expected = np.zeros(patch_grid(800, 1280, patch_size), bool)
            rows = slice(y // patch_size, (y + height - 1) // patch_size + 1)
            columns = slice(x // patch_size, (x + width - 1) // patch_size + 1)
            expected[rows, columns] = True
            np.testing.assert_array_equal(compute_patch_diff(a, b, patch_size, 0), expected)
            np.testing.assert_array_equal(compute_patch_diff(a, b, patch_size, 0.5, metric="max"), expected)
            assert compute_patch_diff(a, b, patch_size, 0.005).any()


# --- speed ---


def test_two_screenshots_are_compared_within_15_ms():
    a, b = frame("dialog", 5), frame("dialog", 6)  # 94% of the pixels differ
    for prev, new, keywords in [(a, b, {}), all_forms(a, b)["torch uint8"]]:
        times = []
        for _ in range(8):
            start = time.perf_counter()
            compute_patch_diff(prev, new, 14, 0.01, **keywords)
            times.append(time.perf_counter() - start)
        assert min(times) <= 0.015


# --- cutting out ---


def test_a_patch_is_its_pixels_in_the_layout_of_the_image_and_a_copy():
    image = frame("jupyter", 3).copy()
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)
    patch = extract_patch(image, 3, 7, 14)
    np.testing.assert_array_equal(patch, image[42:56, 98:112])
    np.testing.assert_array_equal(extract_patch(image[..., 0], 3, 7, 14), image[42:56, 98:112, 0])
    assert torch.equal(extract_patch(tensor, 3, 7, 14), tensor[:, 42:56, 98:112])
    assert torch.equal(extract_patch(tensor[None], 3, 7, 14), tensor[None, :, 42:56, 98:112])
    assert extract_patch(image, 57, 91, 14).shape == (2, 6, 3)
    patch[:] = 0
    assert image[42:56, 98:112].any()


@pytest.mark.parametrize(("row", "col"), [(0, 0), (57, 91), (0, 40), (20, 91), (10, 10)])
@pytest.mark.parametrize("radius", [0, 1, 3])
def test_a_window_is_clipped_at_the_border_and_says_where_its_patch_lies(row, col, radius):
    image = frame("jupyter", 3)
    window, (rows, columns) = extract_patch_window(image, row, col, 14, radius)
    top, left = max(0, row - radius) * 14, max(0, col - radius) * 14
    bottom, right = min(800, (row + radius + 1) * 14), min(1280, (col + radius + 1) * 14)
    np.testing.assert_array_equal(window, image[top:bottom, left:right])
    np.testing.assert_array_equal(window[rows, columns], extract_patch(image, row, col, 14))
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)
    window, (rows, columns) = extract_patch_window(tensor, row, col, 14, radius)
    assert torch.equal(window[..., rows, columns], extract_patch(tensor, row, col, 14))


def test_masked_patches_come_in_reading_order_and_are_what_a_patch_embedding_sees():
    torch.manual_seed(0)
    image = torch.rand(3, 4 * 14, 6 * 14, dtype=torch.float64)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[0, 5] = mask[2, 1] = mask[3, 3] = True
    patches = extract_patches(image, mask, 14)
    assert patches.shape == (3, 3, 14, 14)
    for patch, (row, col) in zip(patches, [(0, 5), (2, 1), (3, 3)], strict=True):
        assert torch.equal(patch, extract_patch(image, row, col, 14))
    embedding = torch.nn.Conv2d(3, 8, 14, stride=14, dtype=torch.float64)
    whole = embedding(image[None])[0].permute(1, 2, 0)  # (4, 6, 8)
    torch.testing.assert_close(embedding(patches).flatten(1), whole[mask], rtol=0, atol=1e-12)
    assert torch.equal(extract_patches(image[None], mask, 14), patches)
    assert extract_patches(image, torch.zeros_like(mask), 14).shape == (0, 3, 14, 14)


def test_a_mask_of_patches_as_a_mask_of_pixels():
    mask = np.array([[True, False, False], [False, False, True]])
    pixels = expand_mask(mask, 20, 40, 16)
    assert pixels.shape == (20, 40)
    assert pixels[:16, :16].all() and pixels[16:, 32:].all() and pixels.sum() == 256 + 4 * 8
    assert torch.equal(expand_mask(torch.from_numpy(mask), 20, 40, 16), torch.from_numpy(pixels))


def test_copying_the_changed_pixels_makes_the_changed_patches_equal():
    reference, new = frame("jupyter", 1).copy(), frame("jupyter", 9)
    mask = compute_patch_diff(reference, new, 14, 0.01)
    pixels = expand_mask(mask, 800, 1280, 14)
    reference[pixels] = new[pixels]
    assert 0 < mask.sum() < mask.size
    assert (patch_difference_map(reference, new, 14) <= 0.01).all()
    assert not compute_patch_diff(reference, new, 14, 0)[mask].any()


# --- what is refused ---

OK = np.zeros((32, 48, 3), np.uint8)
FLOAT = OK.astype(np.float32)
NAN = np.where(np.arange(48)[None, :, None] == 7, np.float32(np.nan), FLOAT)


@pytest.mark.parametrize("threshold", [-0.01, 1.01, float("nan"), 255])
def test_a_threshold_outside_0_to_1_is_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold .*\[0, 1\]"):
        compute_patch_diff(OK, OK, 16, threshold)


@pytest.mark.parametrize("patch_size", [0, -3, 1.5, (16, 0), (16, 16, 16)])
def test_a_patch_size_that_is_none_is_refused(patch_size):
    with pytest.raises(ValueError, match="patch_size"):
        compute_patch_diff(OK, OK, patch_size, 0.1)


@pytest.mark.parametrize(
    ("prev", "new", "keywords", "message"),
    [
        (OK, OK[..., :1], {}, "has 3 channels and new frame 1"),
        (OK, OK[:16], {}, "is 32 x 48 pixels and new frame 16 x 48"),
        (OK[:0], OK[:0], {}, r"shape \(0, 48, 3\).*at least 1"),
        (OK, FLOAT, {}, "uint8 and new frame a ndarray of float32"),
        (torch.zeros(3, 32, 48, dtype=torch.uint8), OK, {}, "one kind"),
        (OK.astype(np.int32), OK.astype(np.int32), {}, "dtype int32.*uint8"),
        (FLOAT, NAN, {}, "new frame has NaN"),
        (NAN, FLOAT, {}, "previous frame has NaN"),
        (NAN, NAN, {"mean": 0.5, "std": 0.5}, "previous frame has NaN"),
        (FLOAT, FLOAT + np.float32(np.inf), {}, "new frame ranges from inf"),
        (FLOAT, FLOAT + 255, {}, "new frame ranges from 255 to 255.*0 to 1"),
        (FLOAT - 1.8, FLOAT, {}, "previous frame ranges from -1.8.*mean and std"),
        (FLOAT + 9, FLOAT, {"mean": 0.5, "std": 0.5}, "previous frame ranges from 5 to 5.*may be wrong"),
        (FLOAT, FLOAT, {"mean": 0.5}, "give both"),
        (FLOAT, FLOAT, {"std": 0.5}, "give both"),
        (FLOAT, FLOAT, {"mean": [0.5, 0.5], "std": 0.5}, "mean .*each of 3 channels"),
        (FLOAT, FLOAT, {"mean": 0.5, "std": [0.5, 0.0, 0.5]}, "std .*above 0"),
        (OK, OK, {"mean": 0.5, "std": 0.5}, "uint8 frames"),
        (OK, OK, {"metric": "median"}, "metric 'median'"),
        (OK[None].repeat(2, 0), OK[None].repeat(2, 0), {}, "must be one image"),
        (torch.from_numpy(OK), torch.from_numpy(OK), {}, "32 channels.*channels_last=True"),
        (OK.transpose(2, 0, 1), OK.transpose(2, 0, 1), {}, "48 channels.*channels_last=False"),
        ([[0]], [[0]], {}, "frame is a list: must be a numpy array or a torch tensor"),
    ],
)
def test_frames_that_cannot_be_compared_are_refused_with_the_reason(prev, new, keywords, message):
    with pytest.raises(ValueError, match=message):
        compute_patch_diff(prev, new, 16, 0.1, **keywords)


def test_positions_radii_images_and_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"patch \(2, 0\): outside the grid of 2 rows and 3 columns"):
        extract_patch(OK, 2, 0, 16)
    with pytest.raises(ValueError, match=r"patch \(0, -1\)"):
        extract_patch(OK, 0, -1, 16)
    with pytest.raises(ValueError, match="radius -1"):
        extract_patch_window(OK, 0, 0, 16, -1)
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="32 x 47 pixels: must be a multiple"):
        extract_patches(torch.zeros(3, 32, 47), mask, 16)
    with pytest.raises(ValueError, match=r"mask is torch.bool of shape \(3, 2\)"):
        extract_patches(torch.zeros(3, 32, 48), mask.T, 16)
    with pytest.raises(ValueError, match=r"mask is torch.int64"):
        extract_patches(torch.zeros(3, 32, 48), mask.long(), 16)
    with pytest.raises(ValueError, match=r"must be bool of shape \(2, 4\)"):
        expand_mask(mask, 32, 49, 16)
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        patch_grid(0, 5, 16)
