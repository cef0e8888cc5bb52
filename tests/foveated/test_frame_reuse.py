"""A foveated model on frames of which only what changed is encoded: streams and evaluation, beside full encodes."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import DEMO, ROOT, tiny_batch, tiny_model
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from fvlm_lib.data.screens import read_sequence
from fvlm_lib.data.videos import ProceduralVideos
from fvlm_lib.foveated.checkpoints import load_checkpoint
from fvlm_lib.foveated.flops import count_flops
from fvlm_lib.foveated.frame_reuse import encode_videos
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.stream import FoveatedStream
from fvlm_lib.gap.evaluation import float64_copy
from fvlm_lib.screens.loaded_towers import squash
from fvlm_lib.vision import differential
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vision.towers import look, open_tower

EXACT = 1e-9
SAME = DifferentialSettings(diff_threshold=0.0, tolerance=0.0)  # as the plain stream


@pytest.fixture(scope="module")
def model() -> FoveatedVLM:
    return float64_copy(tiny_model())


def screens(sequence: str, count: int, size: tuple[int, int] = (48, 80)) -> list[torch.Tensor]:
    """The first frames of a recording (3, height, width) in [-1, 1], float64."""
    frames = read_sequence(ROOT / "data" / "screens" / sequence).head(count)
    pixels = [torch.from_numpy(squash(frame, size)).permute(2, 0, 1).double() for frame in frames]
    return [frame / 127.5 - 1 for frame in pixels]


def touched(frame: torch.Tensor, row: int = 9, column: int = 9) -> torch.Tensor:
    """The frame with one pixel changed by half the range."""
    frame = frame.clone()
    frame[1, row, column] += -1.0 if frame[1, row, column] > 0 else 1.0
    return frame


def push_all(stream: FoveatedStream, frames: list[torch.Tensor]) -> torch.Tensor:
    """The visual tokens (T, D) of all frames."""
    return torch.cat([stream.push(frame) for frame in frames])


class Fault:
    """An interrupt where a layer is run next, or for the so many-th time, once."""

    def __init__(self, layer: nn.Module, call: int = 1) -> None:
        self.raised, self.left = False, call
        self.hook = layer.register_forward_pre_hook(self)

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if self.left:
            return
        self.hook.remove()
        self.raised = True
        raise KeyboardInterrupt


# ---- the same as the plain stream --------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reference": "previous"},
        {"max_changed_patches": 5},
        {"max_changed_patches": 1000},
        {"metric": "mean"},
        {"propagate": "budget", "max_rows": 1000},
    ],
)
@pytest.mark.parametrize("sequence", ["terminal", "idle", "reader-form"])
def test_without_tolerance_it_is_the_plain_stream(model, sequence, settings):
    frames = screens(sequence, 6)
    stream = FoveatedStream(model, DifferentialSettings(diff_threshold=0.0, tolerance=0.0, **settings))
    plain = FoveatedStream(model)
    torch.testing.assert_close(push_all(stream, frames), push_all(plain, frames), rtol=0, atol=1e-6)
    captions = [each.caption(max_new_tokens=4, do_sample=False) for each in (stream, plain)]
    assert torch.equal(*captions)
    taken = stream.encoder.statistics.frames
    assert taken["full"] + taken["partial"] + taken["cached"] == 6
    assert taken["full"] < 6, "with full encodes alone this shows nothing"


@pytest.mark.parametrize("config", [{"deep_query": False}, {"mode_tokens": True}, {"visual_norm": "legacy"}])
def test_every_kind_of_model_has_its_differential_stream(config):
    model = float64_copy(tiny_model(**config))
    frames = screens("terminal", 4)
    stream = FoveatedStream(model, SAME)
    torch.testing.assert_close(push_all(stream, frames), push_all(FoveatedStream(model), frames), rtol=0, atol=1e-6)
    assert len(stream.patch_cache.keys) == (3 if model.config.deep_query else 1)


SHAPE = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
}  # fmt: skip
TOWERS = {
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SHAPE, intermediate_size=32)),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SHAPE, intermediate_size=32)),
    "registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SHAPE, mlp_ratio=2)),
}


def with_tower(model: FoveatedVLM, tower: nn.Module) -> FoveatedVLM:
    """The model with another vision tower of the same width."""
    model = copy.deepcopy(model)
    model.encoder.dino = tower.eval()
    return model


@pytest.mark.parametrize("name", TOWERS)
def test_any_tower_with_an_adapter_can_be_updated_and_looked_into(model, name):
    torch.manual_seed(0)
    other = with_tower(model, TOWERS[name]().double())
    frames = screens("terminal", 4, (32, 32))
    stream = FoveatedStream(other, SAME)
    torch.testing.assert_close(push_all(stream, frames), push_all(FoveatedStream(other), frames), rtol=0, atol=1e-6)
    assert stream.encoder.statistics.frames["full"] == 1


def test_packed_weights_do_not_change_what_is_seen():
    model, frames = tiny_model(), [frame.float() for frame in screens("terminal", 4)]
    packed = FoveatedStream(model, SAME, pack_weights=True)
    assert packed.encoder.vision.tower.packed
    torch.testing.assert_close(push_all(packed, frames), push_all(FoveatedStream(model), frames), rtol=1e-4, atol=1e-4)


# ---- what it costs, and what it is off by ------------------------------------------------------------


def test_a_frame_on_which_nothing_changed_costs_a_look_and_a_position(model):
    frame = screens("idle", 1)[0]
    stream = FoveatedStream(model, DifferentialSettings())
    stream.push(frame)
    used = []
    for layer in model.encoder.dino.encoder.layer:  # a query has no keys: whatever makes some is the tower's work
        used.append(layer.attention.k_proj.register_forward_hook(lambda *_: pytest.fail("the tower was run")))
    again = copy.deepcopy(stream)
    flops = count_flops(lambda: stream.push(frame))
    for hook in used:
        hook.remove()

    def look_and_read() -> None:
        token, _ = again.model.look(again.patch_cache, again.query)
        again.model.llm_to_query(again.model.run_llm(token[:, None], None, again.past_key_values)[:, 0])

    assert flops == count_flops(look_and_read)
    assert flops < count_flops(lambda: FoveatedStream(model).push(frame)) / 5
    assert stream.encoder.statistics.frames["cached"] == 1
    assert stream.encoder.statistics.mean_change_ratio == 0.0


def test_the_error_falls_with_the_tolerance():
    model = float64_copy(load_checkpoint(DEMO / "S-S-multi" / "step_3000"))
    frames = screens("terminal", 8)
    exact = push_all(FoveatedStream(model), frames)
    errors, rows = [], []
    for tolerance in (0.2, 0.05, 0.01, 0.0):
        stream = FoveatedStream(model, DifferentialSettings(diff_threshold=0.0, tolerance=tolerance))
        errors.append(float((push_all(stream, frames) - exact).norm() / exact.norm()))
        rows.append(stream.encoder.statistics.frames["partial"])
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-4 and errors[-1] < 1e-6
    assert min(rows) > 3, "most frames must be updates"


def test_what_a_budget_owes_is_paid_by_frames_on_which_nothing_changes(model):
    before, after = screens("terminal", 2)
    stream = FoveatedStream(
        model, DifferentialSettings(diff_threshold=0.0, tolerance=0.0, propagate="budget", max_rows=7)
    )
    stream.push(before)
    stream.push(after)
    assert stream.encoder.statistics.owed > 0
    for _ in range(80):
        stream.push(after)
        if not stream.encoder.statistics.owed:
            break
    assert stream.encoder.statistics.owed == 0
    for kept, wanted in zip(stream.patch_cache.keys, model.encode_frames(after[None, None]).frame(0).keys, strict=True):
        torch.testing.assert_close(kept, wanted, rtol=0, atol=EXACT)


def test_the_limit_and_the_reference_are_the_encoders(model):
    frame = screens("idle", 1)[0]
    limited = FoveatedStream(model, DifferentialSettings(max_changed_patches=1))
    push_all(limited, [frame, touched(frame), touched(touched(frame), 20, 40), touched(frame, 40, 70)])
    assert limited.encoder.statistics.frames == {"full": 2, "partial": 2, "cached": 0, "skipped": 0, "fallback": 0}
    assert limited.encoder.frame_statistics.changed_patches > 1
    drift = [frame.clamp(-0.5, 0.5) + 0.03 * t for t in range(8)]  # of the range 2, so 0.015 at a time
    for reference, updates in (("encoded", 1), ("previous", 0)):
        stream = FoveatedStream(model, DifferentialSettings(diff_threshold=0.1, reference=reference))
        push_all(stream, drift)
        assert stream.encoder.statistics.frames["cached"] == 7 - updates


# ---- what goes wrong ---------------------------------------------------------------------------------


def test_frames_may_change_their_size(model):
    sizes = [(48, 80), (48, 80), (64, 64), (80, 48), (48, 80)]
    frames = [screens("terminal", 2, size)[-1] for size in sizes]
    stream = FoveatedStream(model, SAME)
    torch.testing.assert_close(push_all(stream, frames), push_all(FoveatedStream(model), frames), rtol=0, atol=1e-6)
    assert stream.encoder.statistics.frames["full"] == 4 and stream.encoder.statistics.frames["cached"] == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(3, 33, 48), r"a frame of 33 x 48 pixels is not made of patches of \(8, 8\)"),
        (torch.zeros(1, 48, 80), r"must be \(1, 3, height, width\)"),
        (torch.zeros(2, 3, 48, 80), r"frame has shape \(2, 3, 48, 80\)"),
        (torch.full((3, 48, 80), float("nan")), "NaN"),
        (torch.full((3, 48, 80), 9.0), "mean and std"),
    ],
)
def test_a_frame_that_cannot_be_right_is_one_sentence_and_what_was_seen_stays(model, wrong, message):
    frames = screens("terminal", 3)
    stream = FoveatedStream(model, SAME)
    tokens = [stream.push(frames[0]), stream.push(frames[1])]
    said = stream.caption(max_new_tokens=4, do_sample=False)
    with pytest.raises(ValueError, match=message) as raised:
        stream.push(wrong.double())
    assert "\n" not in str(raised.value)
    assert torch.equal(stream.caption(max_new_tokens=4, do_sample=False), said)
    tokens.append(stream.push(frames[2]))
    torch.testing.assert_close(torch.cat(tokens), push_all(FoveatedStream(model), frames), rtol=0, atol=1e-6)
    assert stream.num_frames == 3 == stream.past_key_values.get_seq_length()


def test_a_tower_without_an_adapter_is_one_sentence(model):
    other = with_tower(model, ViTModel(ViTConfig(**SHAPE, intermediate_size=32)))
    with pytest.raises(TypeError, match=r"^no adapter for the vision model ViTModel; there is one for .*$"):
        FoveatedStream(other, DifferentialSettings())


def test_settings_that_do_not_fit_the_tower_are_one_sentence(model):
    with pytest.raises(ValueError, match=r"patch_size is 14; the tower's patches are \(8, 8\) pixels"):
        FoveatedStream(model, DifferentialSettings(patch_size=14))


@pytest.mark.parametrize("where", ["first layer of the tower", "last layer of the tower", "language model"])
@pytest.mark.parametrize("settings", [None, SAME], ids=["plain", "differential"])
def test_an_interrupt_leaves_the_stream_as_it_was(model, where, settings):
    frames = screens("terminal", 5)
    wanted = push_all(FoveatedStream(model), frames)
    stream = FoveatedStream(model, settings)
    push_all(stream, frames[:3])
    layers = {
        "first layer of the tower": model.encoder.dino.encoder.layer[0].attention.k_proj,
        "last layer of the tower": model.encoder.dino.encoder.layer[2].attention.k_proj,
        "language model": model.llm.base_model.layers[1],
    }
    said, query = stream.caption(max_new_tokens=4, do_sample=False), stream.query
    fault = Fault(layers[where])
    with pytest.raises(KeyboardInterrupt):
        stream.push(frames[3])
    assert fault.raised and stream.num_frames == 3 and stream.query is query
    assert torch.equal(stream.caption(max_new_tokens=4, do_sample=False), said)
    assert {layer.keys.shape[-2] for layer in stream.past_key_values.layers} == {3}
    torch.testing.assert_close(push_all(stream, frames[3:]), wanted[3:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("call", [1, 2], ids=["of what is kept", "of the frame"])
def test_an_interrupt_where_the_kv_cache_begins_anew_leaves_the_stream_as_it_was(model, call):
    """The fourth frame has the language model run over the token that is kept, then over its own."""
    frames = screens("terminal", 5)
    wanted = push_all(FoveatedStream(model, max_frames=3), frames)
    stream = FoveatedStream(model, SAME, max_frames=3)
    push_all(stream, frames[:3])
    said, query = stream.caption(max_new_tokens=4, do_sample=False), stream.query
    fault = Fault(model.llm.base_model.layers[1], call)
    with pytest.raises(KeyboardInterrupt):
        stream.push(frames[3])
    assert fault.raised and stream.num_frames == 3 and stream.query is query
    assert torch.equal(stream.caption(max_new_tokens=4, do_sample=False), said)
    torch.testing.assert_close(push_all(stream, frames[3:]), wanted[3:], rtol=0, atol=1e-6)


def test_an_error_in_the_differential_path_is_a_full_encode(model, monkeypatch, caplog):
    frames = screens("terminal", 6)
    frames = [frames[0], frames[1], frames[1], *frames[2:]]
    stream = FoveatedStream(model, SAME)
    tokens = [stream.push(frames[0])]
    with monkeypatch.context() as patched:
        patched.setattr(differential, "update_cache", lambda *_: 1 / 0)
        tokens.append(stream.push(frames[1]))
    assert stream.encoder.statistics.fallbacks == 1 and "division by zero" in caplog.text
    tokens += [stream.push(frame) for frame in frames[2:]]
    torch.testing.assert_close(torch.cat(tokens), push_all(FoveatedStream(model), frames), rtol=0, atol=1e-6)


def test_reset_forgets_what_was_seen(model):
    frames = screens("terminal", 4)
    stream = FoveatedStream(model, DifferentialSettings(tolerance=0.5))
    push_all(stream, frames)
    stream.reset()
    assert stream.patch_cache is None and stream.num_frames == 0 and stream.encoder.patch_cache is None
    again = push_all(stream, frames[1:])
    assert torch.equal(again, push_all(FoveatedStream(model, DifferentialSettings(tolerance=0.5)), frames[1:]))
    assert stream.encoder.statistics.frames["full"] == 2, "the statistics stay"


# ---- evaluation --------------------------------------------------------------------------------------


def screen_batch() -> dict[str, torch.Tensor]:
    """Two recordings as videos of 5 and 3 frames, with captions."""
    videos = [torch.stack(screens(name, 5)) for name in ("terminal", "reader-form")]
    batch = tiny_batch(size=2)
    frame_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return {"input_ids": batch["input_ids"], "pixel_values": torch.stack(videos), "frame_mask": frame_mask}


def test_videos_encoded_by_what_changed_hold_the_same_frames(model):
    batch = screen_batch()
    batch["pixel_values"][1, 3:] = float("nan")  # absent
    wanted = model.encode_frames(batch["pixel_values"], batch["frame_mask"])
    found, statistics = encode_videos(model, batch["pixel_values"], batch["frame_mask"], SAME)
    there = batch["frame_mask"].bool()
    for kept, own in zip((*found.keys, *found.values), (*wanted.keys, *wanted.values), strict=True):
        torch.testing.assert_close(kept[there], own[there], rtol=0, atol=EXACT)
    assert [len(video) for video in statistics] == [5, 3]
    assert [video[0].path for video in statistics] == ["full", "full"]
    assert {frame.path for video in statistics for frame in video[1:]} <= {"partial", "cached"}
    with torch.no_grad():
        plain = model.forward_autoregressive(**batch)
        encoded = model.forward_autoregressive(**batch, differential=SAME)
    torch.testing.assert_close(encoded.nll, plain.nll, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoded.visual_tokens, plain.visual_tokens, rtol=0, atol=1e-6)


def test_an_evaluation_sees_what_a_stream_sees(model):
    batch, settings = screen_batch(), DifferentialSettings(tolerance=0.3)
    output = model.forward_autoregressive(**batch, differential=settings)
    for sample, count in enumerate((5, 3)):
        tokens = push_all(FoveatedStream(model, settings), list(batch["pixel_values"][sample, :count]))
        torch.testing.assert_close(output.visual_tokens[sample, :count], tokens, rtol=0, atol=EXACT)
    plain = model.forward_autoregressive(**batch)
    assert (output.nll - plain.nll).abs().min() > 1e-6, "else this test shows nothing"


def test_every_layer_kept_is_looked_into_like_a_full_encode(model):
    """Also where a query walks the last layer alone."""
    shallow = float64_copy(tiny_model(deep_query=False))
    pixels = screen_batch()["pixel_values"][:1]
    found, _ = encode_videos(shallow, pixels, None, SAME)
    query = torch.randn(1, 5, 16, dtype=torch.float64)
    tower = open_tower(shallow.encoder.dino)
    torch.testing.assert_close(look(tower, found, query)[0], look(tower, shallow.encode_frames(pixels), query)[0])


def test_pixels_that_are_encoded_already_cannot_be_encoded_by_what_changed(model):
    batch = screen_batch()
    cache = model.encode_frames(batch["pixel_values"], batch["frame_mask"])
    with pytest.raises(ValueError, match="does not go with a patch_cache"):
        model.forward_autoregressive(**batch, patch_cache=cache, differential=SAME)
    with pytest.raises(ValueError, match="does not go with a patch_cache"):
        model.forward_autoregressive(**{**batch, "pixel_values": None}, differential=SAME)


def test_the_loss_of_a_trained_model_is_that_of_full_encodes(trained):
    batch = ProceduralVideos(split="test", noise_std=0.0).batch(0, 4)
    plain = trained.forward_autoregressive(**batch)
    exact = trained.forward_autoregressive(**batch, differential=SAME)
    torch.testing.assert_close(exact.nll, plain.nll, rtol=1e-4, atol=1e-4)
    stale = trained.forward_autoregressive(**batch, differential=DifferentialSettings(diff_threshold=1.0))
    assert stale.loss > plain.loss + 0.5, "what moves is not seen any more"
