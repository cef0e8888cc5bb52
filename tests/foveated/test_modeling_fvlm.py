"""The forward modes: the five facts of the design, on random and on trained weights, and their edges."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from conftest import tiny_batch, tiny_model
from transformers import LlamaConfig, Qwen2Config

from fvlm_lib.data.videos import ProceduralVideos
from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.stream import FoveatedStream
from fvlm_lib.gap.evaluation import float64_copy
from fvlm_lib.vision.towers import encode, look, open_tower

EXACT = 1e-9


@pytest.fixture(scope="module")
def model() -> FoveatedVLM:
    return float64_copy(tiny_model())


@pytest.fixture(scope="module")
def trained64(trained) -> FoveatedVLM:
    return float64_copy(trained)


def demo_batch(count: int = 6) -> dict:
    batch = ProceduralVideos(split="test").batch(0, count)
    return {**batch, "pixel_values": batch["pixel_values"].double()}


# ---- fact 1: the fine pass is a Jacobi iteration of the autoregressive recurrence --------------------


@pytest.mark.parametrize("passes", [1, 2, 3, 4])
def test_after_k_fine_passes_the_first_k_frames_are_exact(model, passes):
    batch = tiny_batch()
    inference = model.forward_autoregressive(**batch)
    training = model.forward_captioning(**batch, num_fine=passes)
    distance = (training.queries - inference.queries).abs().amax(dim=(0, 2))  # (T,)
    assert distance[:passes].max() < EXACT
    assert distance[passes] > 1e-3, "the next frame should still differ, else this test shows nothing"


def test_as_many_fine_passes_as_frames_equal_autoregressive(model):
    batch = tiny_batch()
    inference = model.forward_autoregressive(**batch)
    training = model.forward_captioning(**batch, num_fine=5)
    torch.testing.assert_close(training.nll, inference.nll, rtol=0, atol=EXACT)
    torch.testing.assert_close(training.logits, inference.logits, rtol=0, atol=EXACT)


def test_fixed_point_on_trained_weights(trained64):
    batch = demo_batch()
    inference = trained64.forward_autoregressive(**batch)
    one = trained64.forward_captioning(**batch)
    eight = trained64.forward_captioning(**batch, num_fine=8)
    assert (one.nll - inference.nll).abs().max() > 1e-3
    assert (eight.nll - inference.nll).abs().max() < EXACT


def test_fixed_point_through_the_float32_norms_of_transformers(trained):
    model = copy.deepcopy(trained).double()
    batch = demo_batch()
    inference = model.forward_autoregressive(**batch)
    eight = model.forward_captioning(**batch, num_fine=8)
    assert (eight.nll - inference.nll).abs().max() < 1e-6


# ---- fact 2: the same tokens -------------------------------------------------------------------------


def test_all_modes_score_the_same_tokens_and_never_pads(model):
    batch = tiny_batch()
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    batch["input_ids"][0, -1] = 1  # <eos> is scored
    outputs = [*model.forward_passes(**batch, attention_mask=mask, num_fine=2)]
    outputs.append(model.forward_autoregressive(**batch, attention_mask=mask))
    for output in outputs:
        assert output.num_tokens.tolist() == [6, 4, 6]
        assert (output.labels[1, 4:] == -100).all()
        assert output.labels[0, -1] == 1


def test_pad_that_is_also_eos_is_scored_where_it_is_attended(model):
    batch = tiny_batch(size=1)
    batch["input_ids"][:] = 1
    mask = torch.tensor([[1, 1, 1, 0, 0, 0]])
    assert model.forward_captioning(**batch, attention_mask=mask).num_tokens.tolist() == [3]


def test_ignored_labels_are_context_but_not_scored(model):
    batch = tiny_batch(size=1)
    labels = batch["input_ids"].clone()
    labels[:, :2] = -100
    whole, part = (model.forward_autoregressive(**batch, labels=value) for value in (None, labels))
    first_two = torch.nn.functional.cross_entropy(whole.logits[0, :2], batch["input_ids"][0, :2], reduction="sum")
    assert part.num_tokens.tolist() == [4]
    torch.testing.assert_close(part.nll[0], whole.nll[0] - first_two, rtol=0, atol=EXACT)


def test_the_loss_is_the_plain_shifted_cross_entropy(model):
    """Against a computation without any of the model's own scoring: all embeddings in, all logits out."""
    batch = tiny_batch()
    output = model.forward_captioning(**batch)
    embeds = torch.cat([output.visual_tokens, model.llm.get_input_embeddings()(batch["input_ids"])], dim=1)
    logits = model.llm(inputs_embeds=embeds).logits[:, 4:-1]  # the last of 5 visual tokens predicts the first
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["input_ids"], reduction="none").sum(1)
    torch.testing.assert_close(output.nll, nll, rtol=0, atol=EXACT)
    torch.testing.assert_close(output.loss, nll.sum() / 18, rtol=0, atol=EXACT)


# ---- fact 3: no company effects ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["coarse", "fine", "autoregressive"])
@pytest.mark.parametrize("weights", ["random", "trained"])
def test_a_sample_does_not_feel_its_company(model, trained64, mode, weights):
    if weights == "random":
        used, batch = model, tiny_batch()
    else:
        used, batch = trained64, demo_batch(3)
        batch = {key: batch[key] for key in ("pixel_values", "input_ids")}

    def run(**inputs):
        if mode == "autoregressive":
            return used.forward_autoregressive(**inputs)
        return used.forward_captioning(**inputs, use_fine=mode == "fine")

    frames, length = batch["pixel_values"].shape[1], batch["input_ids"].shape[1]
    frame_mask = torch.ones(3, frames, dtype=torch.long)
    frame_mask[1, 3:] = 0
    frame_mask[2, 1:] = 0
    text_mask = torch.ones(3, length, dtype=torch.long)
    text_mask[0, 2:] = 0
    text_mask[1, 5:] = 0
    pixels = batch["pixel_values"].clone()
    pixels[1, 3:] = float("nan")  # what stands where no frame is must not matter
    together = run(pixel_values=pixels, input_ids=batch["input_ids"], attention_mask=text_mask, frame_mask=frame_mask)
    for i in range(3):
        alone = run(
            pixel_values=pixels[i : i + 1, : int(frame_mask[i].sum())],
            input_ids=batch["input_ids"][i : i + 1, : int(text_mask[i].sum())],
        )
        assert abs(alone.nll.item() - together.nll[i].item()) < EXACT
        assert alone.num_tokens.item() == together.num_tokens[i].item()


def test_left_padded_captions_score_the_same(model):
    batch = tiny_batch(size=1)
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), batch["input_ids"]], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    plain = model.forward_autoregressive(**batch)
    left = model.forward_autoregressive(batch["pixel_values"], padded, mask)
    torch.testing.assert_close(left.nll, plain.nll, rtol=0, atol=EXACT)


# ---- fact 4: the same encode; fact 5: incremental equals recomputed ----------------------------------


@pytest.mark.parametrize("deep_query", [True, False])
def test_a_shared_encode_gives_what_each_mode_would_encode(deep_query):
    model = float64_copy(tiny_model(deep_query=deep_query))
    batch = tiny_batch()
    cache = model.encode_frames(batch["pixel_values"])
    assert len(cache.keys) == (3 if deep_query else 1)
    for run in (model.forward_captioning, model.forward_autoregressive):
        shared = run(None, batch["input_ids"], patch_cache=cache)
        assert torch.equal(shared.nll, run(**batch).nll)


def test_the_tower_computes_what_transformers_computes(model):
    """Its keys at layer i are the projections of transformers' own hidden states."""
    pixels = tiny_batch()["pixel_values"][:, 0]
    dino = model.encoder.dino
    hidden = dino(pixels, output_hidden_states=True).hidden_states
    cache = encode(open_tower(dino), pixels)
    for i, layer in enumerate(dino.encoder.layer):
        wanted = layer.attention.k_proj(layer.norm1(hidden[i])).unflatten(-1, (2, 8)).transpose(1, 2)
        torch.testing.assert_close(cache.keys[i], wanted, rtol=0, atol=EXACT)


def test_a_query_that_is_a_patch_token_walks_like_that_patch(model):
    """The walk is the ViT's own: let the query enter as the CLS embedding, and it leaves as CLS does."""
    pixels = tiny_batch()["pixel_values"][:, 0]
    dino = model.encoder.dino
    tower = open_tower(dino)
    seen, attentions = look(tower, encode(tower, pixels), tower.embed(pixels)[:, 0], output_attentions=True)
    assert len(attentions) == 3
    torch.testing.assert_close(seen, dino(pixels).last_hidden_state[:, 0], rtol=0, atol=EXACT)
    for attention in attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))


def test_the_last_layer_computes_keys_and_values_only(model):
    """No query uses the patches' own output of the last layer: without its MLP the cache is the same."""
    broken = copy.deepcopy(model)
    last = broken.encoder.dino.encoder.layer[-1]
    pixels = tiny_batch()["pixel_values"]
    called = []
    last.mlp.register_forward_hook(lambda *_: called.append("mlp"))
    last.attention.q_proj.register_forward_hook(lambda *_: called.append("q_proj"))
    broken.encode_frames(pixels)
    assert called == []


def test_autoregressive_equals_recomputing_every_prefix_from_scratch(model):
    """The KV cache changes nothing: at each frame rerun the language model on all visual tokens so far."""
    batch = tiny_batch()
    cache = model.encode_frames(batch["pixel_values"])
    query, tokens = model.q_init.expand(3, -1), []
    for t in range(5):
        token, _ = model.look(cache.frame(t), query)
        tokens.append(token)
        hidden = model.llm.model(inputs_embeds=torch.stack(tokens, dim=1), use_cache=False).last_hidden_state
        query = model.llm_to_query(hidden[:, -1])
    output = model.forward_autoregressive(**batch)
    torch.testing.assert_close(output.visual_tokens, torch.stack(tokens, dim=1), rtol=0, atol=EXACT)


# ---- the rest ----------------------------------------------------------------------------------------


def test_forward_dispatches(model):
    batch = tiny_batch()
    assert torch.equal(model(**batch).nll, model.forward_captioning(**batch).nll)
    assert torch.equal(model(**batch, mode="autoregressive").nll, model.forward_autoregressive(**batch).nll)
    with pytest.raises(ValueError, match="sideways"):
        model(**batch, mode="sideways")


def test_passes_yield_what_captioning_returns(model):
    batch = tiny_batch()
    coarse, one, two = model.forward_passes(**batch, num_fine=2, output_attentions=True)
    torch.testing.assert_close(coarse.nll, model.forward_captioning(**batch, use_fine=False).nll, rtol=0, atol=EXACT)
    torch.testing.assert_close(one.nll, model.forward_captioning(**batch).nll, rtol=0, atol=EXACT)
    torch.testing.assert_close(two.nll, model.forward_captioning(**batch, num_fine=2).nll, rtol=0, atol=EXACT)
    assert [a.shape for a in two.attentions] == [(3, 5, 2, 5)] * 3  # (B, T, heads, CLS + 4 patches)


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("padded", [False, True])
def test_modes_side_by_side_are_the_modes_one_by_one(model, trained64, weights, padded):
    used, batch = (model, tiny_batch()) if weights == "random" else (trained64, demo_batch(3))
    if padded:
        batch["frame_mask"] = torch.ones(batch["pixel_values"].shape[:2], dtype=torch.long)
        batch["frame_mask"][1, 3:] = 0
        batch["frame_mask"][2, 1:] = 0
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][0, 2:] = 0
    with torch.no_grad():
        wanted = [*used.forward_passes(**batch, num_fine=3), used.forward_autoregressive(**batch)]
        found = used.forward_modes(**batch, num_fine=3)
    assert len(found) == 5
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.nll, other.nll, rtol=0, atol=EXACT)
        for name in ("queries", "visual_tokens", "logits"):
            wanted_value = getattr(other, name)
            if name == "queries" and padded:  # behind a video's end they ask nothing
                keep = batch["frame_mask"].bool()
                torch.testing.assert_close(one.queries[keep], wanted_value[keep], rtol=0, atol=EXACT)
            else:
                torch.testing.assert_close(getattr(one, name), wanted_value, rtol=0, atol=EXACT)
        assert torch.equal(one.num_tokens, other.num_tokens)


def test_one_frame_in_all_modes(model):
    batch = tiny_batch(frames=1)
    coarse, fine, inference = model.forward_modes(**batch)
    torch.testing.assert_close(coarse.nll, model.forward_captioning(**batch, use_fine=False).nll, rtol=0, atol=EXACT)
    torch.testing.assert_close(fine.nll, inference.nll, rtol=0, atol=EXACT)


def test_gradients_reach_every_parameter_of_the_queries():
    model = tiny_model().train()
    batch = tiny_batch(dtype=torch.float32)
    coarse, fine = model.forward_passes(**batch, num_fine=1)
    (fine.loss + 0.5 * coarse.loss).backward()
    for name in ("q_static", "q_init", "llm_to_query.weight", "encoder.query_input_proj.weight"):
        assert model.get_parameter(name).grad.abs().max() > 0, name
    model.zero_grad()
    model.forward_autoregressive(**batch).loss.backward()
    assert model.q_init.grad.abs().max() > 0
    assert model.q_static.grad is None  # there is no coarse pass at inference


def test_query_parameters_start_with_std_one():
    config = tiny_model().config
    config.query_dim = 4096
    model = FoveatedVLM(config)
    for name in ("q_static", "q_init"):
        assert 0.9 < model.get_parameter(name).std() < 1.1, name
    assert model.encoder.query_input_proj.bias is None


@pytest.mark.parametrize("tied", [False, True])
def test_saved_weights_are_loaded_bit_for_bit(tmp_path, tied):
    text = LlamaConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, vocab_size=20,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = tiny_model(text_config=text, visual_norm="scale", visual_scale=0.14)
    model.save_pretrained(tmp_path)
    again = FoveatedVLM.from_pretrained(tmp_path)
    for key in ("query_dim", "visual_norm", "visual_scale", "deep_query"):
        assert getattr(again.config, key) == getattr(model.config, key), key
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    batch = tiny_batch(dtype=torch.float32)
    torch.testing.assert_close(again(**batch).nll, model(**batch).nll)  # where weights lie may change how sums round


def test_other_language_models_work():
    text = Qwen2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48,
        vocab_size=20,
    )  # fmt: skip
    model = float64_copy(tiny_model(text_config=text))
    batch = tiny_batch()
    inference = model.forward_autoregressive(**batch)
    torch.testing.assert_close(model(**batch, num_fine=5).nll, inference.nll, rtol=0, atol=1e-6)


def test_visual_norm_token_ignores_the_size_of_the_projection_and_scale_does_not():
    for norm, same in (("token", True), ("scale", False)):
        model = float64_copy(tiny_model(visual_norm=norm))
        batch = tiny_batch()
        before = model(**batch)
        if norm == "token":
            rms = before.visual_tokens.pow(2).mean(-1).sqrt()
            torch.testing.assert_close(rms, torch.ones_like(rms))
        with torch.no_grad():
            model.dino_to_llm.weight *= 3
            model.dino_to_llm.bias *= 3
        assert torch.allclose(model(**batch).nll, before.nll, rtol=0, atol=EXACT) == same


# ---- generation and streams --------------------------------------------------------------------------


def test_generate_is_greedy_on_the_autoregressive_loss(trained64):
    """The first generated token is the argmax of what scores the caption's first token, and so on."""
    batch = demo_batch(8)
    captions = trained64.generate(batch["pixel_values"], max_new_tokens=10, do_sample=False)
    logits = trained64.forward_autoregressive(batch["pixel_values"], captions).logits
    assert torch.equal(captions, logits.argmax(-1)[:, : captions.shape[1]])
    assert (captions[:, -1] == 1).all(), "ten tokens end in <eos>"


def test_generate_with_videos_of_different_length_and_a_prompt(model):
    batch = tiny_batch()
    frame_mask = torch.ones(3, 5, dtype=torch.long)
    frame_mask[1, 2:] = 0
    prompt = batch["input_ids"][:, :2]
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(batch["pixel_values"], prompt, frame_mask=frame_mask, **options)
    for i, frames in enumerate((5, 2, 5)):
        alone = model.generate(batch["pixel_values"][i : i + 1, :frames], prompt[i : i + 1], **options)
        assert torch.equal(alone[0], together[i])


def test_a_stream_captions_like_the_whole_video_at_any_moment(trained64):
    """In float64, where no two words are so near each other that rounding chooses."""
    pixels = demo_batch(4)["pixel_values"][3:]
    stream = FoveatedStream(trained64)
    options = {"max_new_tokens": 10, "do_sample": False}
    for t in range(8):
        stream.push(pixels[0, t])
        whole = trained64.generate(pixels[:, : t + 1], **options)
        assert torch.equal(stream.caption(**options), whole)
        assert torch.equal(stream.caption(**options), whole), "asking must not disturb the stream"
    prompt = torch.tensor([[2, 6]])
    assert torch.equal(stream.caption(prompt, **options), trained64.generate(pixels, prompt, **options))


def test_a_stream_holds_one_frame_and_one_position_a_frame(trained):
    stream = FoveatedStream(trained)
    with pytest.raises(ValueError, match="no frame"):
        stream.caption()
    pixels = ProceduralVideos(split="test").batch(3, 4)["pixel_values"]
    sizes = []
    for t in range(8):
        stream.push(pixels[0, t])
        assert stream.past_key_values.get_seq_length() == t + 1
        sizes.append(sum(k.untyped_storage().nbytes() for k in stream.patch_cache.keys))
    assert len(set(sizes)) == 1
    stream.reset()
    assert stream.num_frames == 0


@pytest.mark.parametrize("config", [{}, {"mode_tokens": True}, {"visual_norm": "legacy"}], ids=str)
@pytest.mark.parametrize("most", [2, 5, 6])
def test_a_stream_of_bounded_memory_has_read_the_newest_frames_alone(config, most):
    """Its KV cache, its next query and what it says are those of the language model over these visual tokens alone."""
    model = float64_copy(tiny_model(**config))
    frames = torch.cat([tiny_batch(seed)["pixel_values"][0] for seed in range(4)])  # 20
    stream, tokens, counts = FoveatedStream(model, max_frames=most), [], []
    for frame in frames:
        tokens.append(stream.push(frame))
        counts.append(stream.past_key_values.get_seq_length() - bool(config.get("mode_tokens")))
        fresh = FoveatedStream(model)
        newest = torch.stack(tokens[-counts[-1] :], dim=1)
        with torch.no_grad():
            hidden = model.run_llm(newest, None, fresh.past_key_values)
            query = model.llm_to_query(hidden[:, -1])
        torch.testing.assert_close(stream.query, query, rtol=0, atol=EXACT)
        for kept, own in zip(stream.past_key_values.layers, fresh.past_key_values.layers, strict=True):
            torch.testing.assert_close((kept.keys, kept.values), (own.keys, own.values), rtol=0, atol=EXACT)
        said = model.llm.generate(inputs_embeds=model.before_caption(newest, fine=True), max_new_tokens=4)
        assert torch.equal(stream.caption(max_new_tokens=4), said)
    after = [1 + most // 2 + number % (most - most // 2) for number in range(20 - most)]
    assert counts == [*range(1, most + 1), *after] and stream.num_frames == 20


def test_a_stream_within_its_bound_is_one_without(model):
    frames = tiny_batch()["pixel_values"][0]
    bounded, free = FoveatedStream(model, max_frames=5), FoveatedStream(model)
    assert torch.equal(*(torch.cat([stream.push(frame) for frame in frames]) for stream in (bounded, free)))
    again = bounded.push(frames[0]), free.push(frames[0])
    assert (again[0] - again[1]).abs().max() > 1e-3, "from the sixth frame on it has read other frames"
    bounded.reset()
    assert torch.equal(bounded.push(frames[1]), FoveatedStream(model).push(frames[1])), "a reset forgets them all"


def test_a_stream_of_a_bound_that_cannot_be_is_one_sentence(model):
    with pytest.raises(ValueError, match="max_frames is 1; it must be at least 2, or None for all"):
        FoveatedStream(model, max_frames=1)


def test_a_stream_tells_where_it_looked_and_what_each_part_took_where_it_is_asked_to(model):
    frames = tiny_batch()["pixel_values"][0]
    stream, plain = FoveatedStream(model, max_frames=2, timed=True), FoveatedStream(model, max_frames=2)
    for frame in frames:
        began = time.perf_counter()
        token = stream.push(frame, output_attentions=True)
        ms = 1e3 * (time.perf_counter() - began)
        assert torch.equal(token, plain.push(frame)) and plain.attentions == () and plain.times is None
        times = stream.times.encode, stream.times.look, stream.times.language
        assert min(times) > 0 and sum(times) <= ms
        assert [tuple(layer.shape) for layer in stream.attentions] == [(1, 2, 5)] * 3
        for layer in stream.attentions:
            torch.testing.assert_close(layer.sum(dim=-1), torch.ones(1, 2).double(), rtol=0, atol=EXACT)


# ---- wrong input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(3, 0, 3, 16, 16)}, "frames >= 1"),
        ({"pixel_values": None}, "both None"),
        ({"input_ids": torch.zeros(3, 0, dtype=torch.long)}, "length >= 1"),
        ({"input_ids": torch.zeros(2, 4, dtype=torch.long)}, "2 captions for 3 videos"),
        ({"labels": torch.full((3, 6), -100)}, "sample 0 of the batch has no token to score"),
        ({"attention_mask": torch.tensor([[1] * 6, [0] * 6, [1] * 6])}, "sample 1 of the batch has no token"),
        ({"labels": torch.ones(3, 6, dtype=torch.long), "attention_mask": torch.eye(3, 6).long()}, "labels scores"),
        ({"frame_mask": torch.zeros(3, 5)}, "starts with 0"),
        ({"frame_mask": torch.tensor([[1, 0, 1, 0, 0]] * 3)}, "gap"),
        ({"frame_mask": torch.ones(3, 4)}, r"\(3, 4\)"),
    ],
)
@pytest.mark.parametrize("mode", ["captioning", "autoregressive"])
def test_wrong_input_is_named(model, mode, change, message):
    with pytest.raises(ValueError, match=message):
        model(**{**tiny_batch(), **change}, mode=mode)


MODES = ["forward", "forward_captioning", "forward_passes", "forward_autoregressive", "forward_modes"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_takes_the_same_batch_and_no_other_name(model, mode):
    batch = tiny_batch()
    options = {"labels": batch["input_ids"], "frame_mask": torch.ones(3, 5), "patch_cache": None}
    run = getattr(model, mode)
    run(**batch, attention_mask=torch.ones(3, 6), **options, output_attentions=True)
    run(batch["pixel_values"], batch["input_ids"], torch.ones(3, 6))
    with pytest.raises(TypeError, match="'frames_mask'"):
        run(**batch, frames_mask=torch.ones(3, 5))
    with pytest.raises(TypeError, match="'input_ids'"):
        run(batch["pixel_values"])


def test_a_wrong_batch_is_refused_when_the_passes_are_asked_for(model):
    with pytest.raises(ValueError, match="both None"):
        model.forward_passes(None, tiny_batch()["input_ids"])


@pytest.mark.parametrize("config", [{}, {"mode_tokens": True}, {"visual_norm": "legacy"}])
def test_modes_side_by_side_give_attention_too(config):
    model = float64_copy(tiny_model(**config))
    batch = tiny_batch()
    wanted = [*model.forward_passes(**batch, output_attentions=True)]
    wanted.append(model.forward_autoregressive(**batch, output_attentions=True))
    found = model.forward_modes(**batch, output_attentions=True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.attentions, other.attentions, rtol=0, atol=EXACT)
    assert all(output.attentions is None for output in model.forward_modes(**batch))


def test_no_fine_pass_is_an_error(model):
    with pytest.raises(ValueError, match="num_fine is 0"):
        model(**tiny_batch(), num_fine=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual_norm": "legacy?"}, "visual_norm"),
        ({"visual_scale": 0.0}, "visual_scale"),
        ({"vision_config": {"drop_path_rate": 0.1}}, "drop_path_rate"),
        ({"text_config": {"model_type": "gemma2", "final_logit_softcapping": 30.0}}, "final_logit_softcapping"),
    ],
)
def test_a_config_that_cannot_be_right_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FoveatedVLMConfig(**change)
