"""The procedural videos: what is drawn is what the caption says, reproducibly, and nothing else leaks."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import replace

import pytest
import torch
from conftest import DEMO, tiny_model

from fvlm_lib.data.videos import CELL, COLOURS, ProceduralVideos, open_videos, zipf
from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.gap.gap import open_evaluation

CLEAN = ProceduralVideos(noise_std=0.0)
GLYPHS = ProceduralVideos(noise_std=0.0, num_glyphs=64, skew=1.0)
SKEWED = ProceduralVideos(noise_std=0.0, num_glyphs=64, skew=1.5)
PROCEDURAL = {"kind": "procedural"}
KNOWN = "known are split, seed, num_frames, num_objects, grid, noise_std, num_glyphs, skew, kind"


def cell(frame: torch.Tensor, row: int, column: int) -> torch.Tensor:
    return frame[:, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]


def target_path(words: list[str], videos: ProceduralVideos) -> list[tuple[int, int]]:
    """Where the target is in each frame, from the caption's first two words: there, and back."""
    direction, lane, last = words[0], int(words[1][4:]), videos.grid - 1
    there = list(range(videos.grid))
    along = (there + there[::-1]) * videos.num_frames
    along = along[: videos.num_frames]
    if direction in ("left", "up"):
        along = [last - a for a in along]
    return [(lane, a) if direction in ("right", "left") else (a, lane) for a in along]


@pytest.mark.parametrize("videos", [CLEAN, ProceduralVideos(noise_std=0.0, num_objects=9, grid=5, num_frames=12)])
def test_the_caption_is_what_the_target_shows(videos):
    batch = videos.batch(0, 40)
    tokenizer = videos.tokenizer()
    for frames, ids in zip(batch["pixel_values"], batch["input_ids"], strict=True):
        words = tokenizer.decode(ids).split()
        assert words[-1] == "<eos>"
        assert len(words) == videos.num_frames + 2
        path = target_path(words, videos)
        for t in range(1, videos.num_frames):
            index = COLOURS.index(words[1 + t])
            colour = torch.tensor([index >> 2 & 1, index >> 1 & 1, index & 1]) * 2.0 - 1
            pixels = cell(frames[t], *path[t]).flatten(1).T  # (CELL², 3)
            shown = pixels[(pixels != 0).any(dim=1)]  # grey is 0
            assert len(shown) >= 12
            assert (shown == colour).all(), (words, t)


def test_the_cue_shows_the_heading_in_frame_0_only():
    batch = CLEAN.batch(0, 40)
    halves = {"right": (..., slice(4, 8)), "left": (..., slice(0, 4)), "down": (slice(4, 8),), "up": (slice(0, 4),)}
    for frames, ids in zip(batch["pixel_values"], batch["input_ids"], strict=True):
        words = CLEAN.tokenizer().decode(ids).split()
        path = target_path(words, CLEAN)
        half = (slice(None), *halves[words[0]]) if words[0] in ("down", "up") else halves[words[0]]
        assert (cell(frames[0], *path[0])[half] == 1).all()
        for t in range(1, 8):
            assert not (cell(frames[t], *path[t])[half] == 1).all()


def test_the_caption_names_the_glyphs_that_the_target_wears():
    batch = GLYPHS.batch(0, 160)
    looks: dict[str, torch.Tensor] = {}
    for frames, ids in zip(batch["pixel_values"], batch["input_ids"], strict=True):
        words = GLYPHS.tokenizer().decode(ids).split()
        path = target_path(words, GLYPHS)
        assert len(words) == 10 and words[-1] == "<eos>"
        for t in range(1, 8):
            pixels = cell(frames[t], *path[t])
            assert torch.equal(looks.setdefault(words[1 + t], pixels), pixels)
    assert len(looks) > 50
    assert len({pixels.numpy().tobytes() for pixels in looks.values()}) == len(looks)  # no two look alike
    blocks = torch.stack([*looks.values()]).unflatten(-1, (4, 2)).unflatten(-3, (4, 2))
    assert (blocks.abs() == 1).all() and (blocks == blocks[..., :1, :, :1]).all()  # corners, 4 x 4 of them


def test_glyphs_are_the_same_in_every_set_of_videos():
    few, many = (ProceduralVideos("test", seed, noise_std=0.0, num_glyphs=n) for seed, n in ((0, 3), (7, 200)))
    looks = []
    for videos in (few, many):
        batch, found = videos.batch(0, 160), {}
        for frames, ids in zip(batch["pixel_values"], batch["input_ids"], strict=True):
            words = videos.tokenizer().decode(ids).split()
            found |= {words[1 + t]: cell(frames[t], *target_path(words, videos)[t]) for t in range(1, 8)}
        looks.append(found)
    for name in ("glyph0", "glyph1", "glyph2"):
        assert torch.equal(looks[0][name], looks[1][name])


def chi_square(counts: torch.Tensor, skew: float) -> float:
    """Of counts by rank, against those of Zipf's law."""
    expected = torch.arange(1, len(counts) + 1).double() ** -skew
    expected *= counts.sum() / expected.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("videos", [GLYPHS, SKEWED])
def test_the_glyph_of_rank_r_is_worn_as_often_as_zipf_s_law_says(videos):
    ids = videos.batch(0, 1600)["input_ids"][:, 2:-1]
    counts = torch.bincount(ids.flatten() - 10, minlength=64)
    assert chi_square(counts, videos.skew) < 120  # 63 degrees of freedom: p < 2e-5


def test_with_a_skew_targets_tracks_and_numbers_of_objects_are_drawn_by_zipf_s_law_too():
    batch = SKEWED.batch(0, 1600)
    track = (batch["input_ids"][:, 0] - 2) * 4 + batch["input_ids"][:, 1] - 6
    counts = torch.bincount(track, minlength=16)
    assert chi_square(counts.sort(descending=True).values, 1.5) < 50  # 15 degrees of freedom: p < 2e-5
    other = ProceduralVideos("test", 5, num_glyphs=3, skew=1.5, num_objects=1).batch(0, 1600)["input_ids"]
    assert torch.bincount((other[:, 0] - 2) * 4 + other[:, 1] - 6).argmax() == counts.argmax()  # as often in every set

    cells = batch["pixel_values"][:, 1].unflatten(-1, (4, 8)).unflatten(-3, (4, 8))  # (N, 3, 4, 8, 4, 8)
    seen = (cells != 0).any(dim=(1, 3, 5)).sum(dim=(1, 2))  # cells that are not background; tracks may cross
    assert seen.min() >= 1 and seen.max() == 4
    alone = zipf(4, 1.5)[0]
    assert (seen == 1).double().mean() > alone - 4 * (alone * (1 - alone) / 1600) ** 0.5


def test_no_skew_is_the_limit_of_no_law():
    assert zipf(5, 0.0).tolist() == [0.2] * 5
    torch.testing.assert_close(torch.from_numpy(zipf(3, 1.0)), torch.tensor([6 / 11, 3 / 11, 2 / 11]).double())


@pytest.mark.parametrize("videos", [CLEAN, GLYPHS, SKEWED])
def test_the_blind_loss_is_the_entropy_of_the_captions(videos):
    """By the frequencies of 16,000 captions: nothing that is drawn depends on anything else."""
    ids = videos.batch(0, 16_000)["input_ids"]
    track = (ids[:, 0] - 2) * 4 + ids[:, 1] - 6
    entropies = []
    for drawn in (track, ids[:, 2:-1].flatten()):
        share = torch.bincount(drawn).double() / drawn.numel()
        entropies.append(float(-torch.special.xlogy(share, share).sum()))
    assert videos.blind_loss() == pytest.approx((entropies[0] + 7 * entropies[1]) / 10, abs=0.01)


def test_videos_without_glyphs_are_those_of_before_there_were_any():
    """The demo's checkpoints were trained on them. Noise is left out of the hash: its last bits are the C library's."""
    digest = hashlib.sha256()
    for videos in (CLEAN, ProceduralVideos("test", 5, noise_std=0.0, num_objects=9, grid=5, num_frames=12)):
        batch = videos.batch(10, 40)
        digest.update(batch["pixel_values"].numpy().tobytes() + batch["input_ids"].numpy().tobytes())
    assert digest.hexdigest()[:16] == "ad211b53a8f772dd"
    noisy = ProceduralVideos("test").batch(0, 1)["pixel_values"][0, 3, 1, 5, :4]
    torch.testing.assert_close(noisy, torch.tensor([-0.02152, 0.156655, -0.085522, -0.099214]), atol=1e-5, rtol=0)


def test_a_sample_is_the_same_however_batched():
    videos = ProceduralVideos(seed=3)
    whole = videos.batch(0, 50)
    for start, stop in ((0, 1), (15, 17), (7, 50), (31, 33)):
        part = videos.batch(start, stop)
        for key in whole:
            assert torch.equal(part[key], whole[key][start:stop]), (key, start, stop)


def test_splits_and_seeds_are_apart():
    sets = [ProceduralVideos(split=split, seed=seed) for split in ("train", "validation", "test") for seed in (0, 1)]
    firsts = [videos.batch(0, 4)["pixel_values"] for videos in sets]
    for i, one in enumerate(firsts):
        for other in firsts[i + 1 :]:
            assert not torch.equal(one, other)


def test_direction_lane_and_colours_are_uniform():
    ids = ProceduralVideos(noise_std=0.0).batch(0, 1600)["input_ids"]
    for column, (first, count) in {0: (2, 4), 1: (6, 4), 2: (10, 8), 8: (10, 8)}.items():
        counts = torch.bincount(ids[:, column] - first, minlength=count).double()
        expected = 1600 / count
        assert ((counts - expected) ** 2 / expected).sum() < 30  # chi², 7 degrees of freedom: p < 1e-4


def test_the_blind_floor_is_the_design_s_number():
    assert math.isclose(ProceduralVideos().blind_loss(), 1.7329, abs_tol=5e-5)


def test_the_blind_floor_of_glyphs_is_their_entropy_and_that_of_tracks():
    surprise = [(r * sum(1 / k for k in range(1, 65))) for r in range(1, 65)]  # 1 / probability of rank r
    entropy = sum(math.log(s) / s for s in surprise)
    surprise = [(r * sum(1 / k for k in range(1, 17))) for r in range(1, 17)]
    tracks = sum(math.log(s) / s for s in surprise)
    assert math.isclose(GLYPHS.blind_loss(), (tracks + 7 * entropy) / 10)


def test_a_blind_model_comes_to_the_blind_floor():
    """Train without pixels: the loss on fresh videos comes to the exact floor."""
    videos = ProceduralVideos(noise_std=0.0)
    small = tiny_model().config
    torch.manual_seed(0)
    model = FoveatedVLM(
        FoveatedVLMConfig(
            vision_config=small.vision_config.to_dict() | {"image_size": 32},
            text_config=small.text_config.to_dict() | {"vocab_size": len(videos.vocabulary)},
        )
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def blind_loss(videos: ProceduralVideos, start: int, stop: int) -> torch.Tensor:
        ids = videos.batch(start, stop)["input_ids"]
        return model(torch.zeros(len(ids), 2, 3, 32, 32), ids, use_fine=False).loss

    steps = 150
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimizer.zero_grad()
        blind_loss(videos, 32 * step, 32 * step + 32).backward()
        optimizer.step()
    with torch.no_grad():
        measured = blind_loss(replace(videos, split="validation"), 0, 1000).item()
    assert abs(measured - videos.blind_loss()) < 0.015


@pytest.mark.parametrize("videos", [ProceduralVideos(), GLYPHS])
def test_the_tokenizer_agrees_with_the_ids(videos):
    batch = videos.batch(0, 5)
    texts = videos.tokenizer().batch_decode(batch["input_ids"])
    assert videos.tokenizer()(texts)["input_ids"] == batch["input_ids"].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (None, "data is null; it must be a mapping, `key: value` lines"),
        ([], "data is []; it must be a mapping, `key: value` lines"),
        ({}, "data lacks kind, which must be one of 'folder', 'procedural', 'screens', 'webdataset'"),
        ({"kind": "films"}, "data: kind is 'films'; it must be one of 'procedural', 'screens', 'folder', 'webdataset'"),
        (PROCEDURAL | {"num_frame": 1}, "data has the unknown key 'num_frame'; did you mean 'num_frames'? " + KNOWN),
        (PROCEDURAL | {"split": "dev"}, "data: split is 'dev'; it must be 'train', 'validation' or 'test'"),
        (PROCEDURAL | {"num_frames": 0}, "data: num_frames is 0; it must be at least 2"),
        (PROCEDURAL | {"grid": 1}, "data: grid is 1; it must be at least 2"),
        (PROCEDURAL | {"num_objects": 17}, "data: num_objects is 17; a grid of 4 has lanes for at most 16"),
        (PROCEDURAL | {"noise_std": -1.0}, "data: noise_std is -1.0; it must be at least 0"),
        (PROCEDURAL | {"noise_std": math.nan}, "data: noise_std is nan; it must be a finite number"),
        (PROCEDURAL | {"num_glyphs": -1}, "data: num_glyphs is -1; it must be at least 0"),
        (PROCEDURAL | {"num_glyphs": 10**9}, "data: num_glyphs is 1000000000; it must be at most 10000"),
        (PROCEDURAL | {"seed": -1}, "data: seed is -1; it must be at least 0"),
        (
            PROCEDURAL | {"num_frames": 1000, "grid": 128},
            "data: num_frames 1000 of 1024 x 1024 pixels (grid 128) take 201 GB for 16 videos; at most 4 GB are drawn "
            "at a time",
        ),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        open_videos(options)


def test_sizes_at_their_bounds():
    ProceduralVideos().check_model(32, len(CLEAN.vocabulary), 8 + CLEAN.batch(0, 1)["input_ids"].shape[1])
    with pytest.raises(ValueError, match="captions of 18 words, but the model knows 17"):
        ProceduralVideos().check_model(32, 17, 64)
    with pytest.raises(ValueError, match="takes 18 positions, but the model has 17"):
        ProceduralVideos().check_model(32, 18, 17)
    GLYPHS.check_model(32, len(GLYPHS.vocabulary), 18)
    with pytest.raises(ValueError, match="grid is 4, num_glyphs 64, captions of 74 words, but the model knows 18"):
        GLYPHS.check_model(32, 18, 64)


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="samples 3 to 3"):
        CLEAN.batch(3, 3)


# ---- checkpoints that cannot read them ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("videos", "said"),
    [
        ({}, None),
        ({"num_frames": 127}, None),  # 127 + 129 of 256 positions
        ({"num_frames": 128}, "num_frames is 128, which with the caption takes 258 positions, but the model has 256"),
        ({"grid": 5}, "grid is 5, frames of 40 x 40 pixels, but the model sees 32 x 32"),
        ({"grid": 2}, "grid is 2, frames of 16 x 16 pixels, but the model sees 32 x 32"),
    ],
)
def test_videos_that_a_checkpoint_cannot_read_are_refused_with_numbers(videos, said):
    data = {"kind": "procedural", "split": "test", **videos}
    checkpoint = DEMO / "S-S" / "step_0100"
    if said is None:
        assert open_evaluation(checkpoint, data)[1] == ProceduralVideos("test", **videos)
        return
    with pytest.raises(ValueError, match=said):
        open_evaluation(checkpoint, data)


def test_words_that_a_checkpoint_numbers_otherwise_are_refused():
    videos, tokenizer = ProceduralVideos(grid=5), ProceduralVideos(grid=4).tokenizer()
    with pytest.raises(ValueError, match=r"of 19 words, .* numbers 9 otherwise or not at all: black, .* and 4 more"):
        videos.check_words(tokenizer)
    videos.check_words(videos.tokenizer())
