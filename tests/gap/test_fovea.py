"""What is shown of one video is what the model computes: attention, entropy, distances, losses, caption."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import DEMO

from fvlm_lib.data.videos import ProceduralVideos
from fvlm_lib.gap.fovea import find_checkpoints, watch_video

VIDEOS = ProceduralVideos("test")
MODES = ["coarse", "fine_1", "autoregressive"]


@pytest.fixture(scope="module")
def watched(trained):
    return watch_video(trained, VIDEOS, 3)


def test_losses_and_tokens_are_those_of_the_forward_modes(trained, watched):
    batch = VIDEOS.batch(3, 4)
    with torch.no_grad():
        outputs = {
            "coarse": trained.forward_captioning(**batch, use_fine=False),
            "fine_1": trained.forward_captioning(**batch),
            "autoregressive": trained.forward_autoregressive(**batch),
        }
    assert list(watched.losses) == MODES
    for mode, output in outputs.items():
        assert watched.losses[mode].sum() == pytest.approx(output.nll.item(), rel=1e-5, abs=1e-4)
    assert watched.tokens == VIDEOS.tokenizer().convert_ids_to_tokens(batch["input_ids"][0].tolist())
    np.testing.assert_array_equal(
        watched.frames[0], ((batch["pixel_values"][0, 0] + 1) * 127.5).round().permute(1, 2, 0)
    )


def test_attention_is_split_into_patches_and_the_rest(watched):
    for mode in MODES:
        raw = watched.attentions[mode]
        assert raw.shape == (2, 8, 17)
        np.testing.assert_allclose(raw.sum(axis=-1), 1, atol=1e-5)
        for layer in (None, 0, 1):
            patches, rest = watched.on_patches(mode, layer)
            np.testing.assert_allclose(patches.sum(axis=1), 1, atol=1e-12)
            chosen = raw.mean(axis=0) if layer is None else raw[layer]
            np.testing.assert_allclose(patches * (1 - rest)[:, None], chosen[:, 1:], atol=1e-12)
            np.testing.assert_allclose(rest, chosen[:, 0], atol=1e-5)


def test_the_first_query_is_shared_and_as_many_passes_as_frames_are_exact(trained, watched):
    assert watched.query_distance[0] == 0
    assert watched.query_distance[1:].min() > 0.01
    first = [watched.attentions[mode][:, 0] for mode in ("fine_1", "autoregressive")]
    np.testing.assert_allclose(*first, atol=1e-5)
    converged = watch_video(trained, VIDEOS, 3, num_fine=8)
    assert converged.query_distance.max() < 1e-3
    np.testing.assert_allclose(converged.losses["fine_8"], converged.losses["autoregressive"], atol=1e-4)


def test_entropy_is_between_one_patch_and_all_alike(watched):
    table = watched.by_frame()
    assert table.groupby("mode", sort=False).size().to_dict() == dict.fromkeys(MODES, 8)
    assert table["entropy_share"].between(0, 1).all()
    patches, _ = watched.on_patches("coarse")
    expected = -(patches[5] * np.log(patches[5])).sum()
    assert table.loc[5, "entropy"] == pytest.approx(expected)
    assert table.loc[5, "entropy_share"] == pytest.approx(expected / np.log(16))
    one, alike = (type(watched)(watched.frames, (4, 4), {"coarse": a}, watched.query_distance, [], {}, []) for a in (
        np.eye(17)[None, [3]], np.full((1, 1, 17), 1 / 17)
    ))  # fmt: skip
    assert one.entropy("coarse")[0] == 0
    assert alike.entropy("coarse")[0] == pytest.approx(np.log(16))


def test_the_caption_is_what_generate_says(trained, watched):
    said = trained.generate(VIDEOS.batch(3, 4)["pixel_values"], max_new_tokens=10, do_sample=False)[0]
    assert watched.generated == VIDEOS.tokenizer().convert_ids_to_tokens(said.tolist())
    assert watched.generated[:2] == watched.tokens[:2]


def test_videos_of_other_words_are_refused(trained):
    with pytest.raises(ValueError, match=r"the caption of video 0 has token .* another kind or grid"):
        watch_video(trained, ProceduralVideos("test", grid=8), 0)


def test_checkpoints_are_found_by_their_config(tmp_path):
    assert [path.relative_to(DEMO).as_posix() for path in find_checkpoints(DEMO)][:2] == [
        "M-S/step_0100",
        "M-S/step_0300",
    ]
    assert len(find_checkpoints(DEMO)) == 14
    for name, content in (("other", {"model_type": "llama"}), ("list", [1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"no foveated checkpoint; `bash run\.sh retrain`"):
        find_checkpoints(tmp_path)
