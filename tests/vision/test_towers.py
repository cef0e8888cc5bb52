"""Towers: every adapter against transformers, updates against plain loops, gating, packing, and wrong input."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import enliven
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from fvlm_lib.reuse import packing
from fvlm_lib.reuse.attention import attention
from fvlm_lib.reuse.blocks import joined
from fvlm_lib.vision.patches import extract_patches
from fvlm_lib.vision.towers import PatchCache, encode, look, open_tower
from fvlm_lib.vision.updates import encode_frame, update

LAYERS, WIDTH, HEADS, SIDE, PATCH, GRID = 3, 32, 4, 32, 8, 4
SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "patch_size": PATCH}


def build(name: str) -> nn.Module:
    sized = {**SHAPE, "image_size": SIDE}
    models = {
        "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**sized, intermediate_size=48)),
        "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**sized, intermediate_size=48)),
        "siglip2": lambda: Siglip2VisionModel(Siglip2VisionConfig(**SHAPE, intermediate_size=48, num_patches=9)),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**sized, mlp_ratio=2)),
        "dinov2 swiglu": lambda: Dinov2Model(Dinov2Config(**sized, mlp_ratio=2, use_swiglu_ffn=True)),
        "registers": lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**sized, mlp_ratio=2, num_register_tokens=3)
        ),
    }
    return models[name]()


NAMES = ("clip", "siglip", "siglip2", "dinov2", "dinov2 swiglu", "registers")


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A tiny random model, reproducible."""
    torch.manual_seed(0)
    return enliven(build(name)).to(dtype)


def frames(dtype: torch.dtype = torch.float64, side: int = SIDE) -> torch.Tensor:
    return torch.randn(2, 1, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype)


def transformers_states(model: nn.Module, pixels: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """hidden_states and last_hidden_state of transformers' own forward."""
    inputs = {"pixel_values": pixels}
    if isinstance(model, Siglip2VisionModel):
        grid = pixels.shape[-2] // PATCH, pixels.shape[-1] // PATCH
        every = torch.ones(grid, dtype=torch.bool)
        patches = extract_patches(pixels, every, PATCH).permute(0, 2, 3, 1).flatten(1)  # (n, ph pw C)
        padded = F.pad(patches, (0, 0, 0, 5), value=7.0)  # 5 patches of padding, masked away
        inputs = {
            "pixel_values": padded[None],
            "pixel_attention_mask": (torch.arange(len(padded)) < len(patches)).long()[None],
            "spatial_shapes": torch.tensor([grid]),
        }
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    real = slice(None) if not isinstance(model, Siglip2VisionModel) else slice(len(patches))
    return tuple(state[:, real] for state in output.hidden_states), output.last_hidden_state[:, real]


def mask_of(*positions: tuple[int, int], grid: int = GRID) -> torch.Tensor:
    mask = torch.zeros(grid, grid, dtype=torch.bool)
    for position in positions:
        mask[position] = True
    return mask


SOME = mask_of((0, 1), (2, 2), (3, 0))
NONE, ALL = mask_of(), torch.ones(GRID, GRID, dtype=torch.bool)


def mixed(old: torch.Tensor, new: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The old frame with the marked patches of the new one."""
    return torch.where(mask.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1), new, old)


def put(tower, cache, pixels, mask=SOME, tolerance=None):
    return update(tower, cache, extract_patches(pixels, mask, PATCH), mask, tolerance)


def contents(cache: PatchCache) -> list[torch.Tensor]:
    tensors = [*cache.keys, *cache.values, cache.blank, cache.output]
    tensors += [value for gate in cache.gates for value in vars(gate).values() if isinstance(value, torch.Tensor)]
    return [tensor.clone() for tensor in tensors]


def relative(tokens: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest relative L2 error of a token."""
    return float(((tokens - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())


@pytest.fixture(scope="module")
def clip():
    return make("clip")


@pytest.fixture(scope="module")
def registers():
    return make("registers")


# ---- adapters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("propagate", ["none", "gated"])
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_what_transformers_computes(name, propagate):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model, pixels = make(name, dtype), frames(dtype)[0]
        hidden, last = transformers_states(model, pixels)
        layers = [*range(-LAYERS - 1, LAYERS + 1)]
        for read_layer, wanted in [*((i, hidden[i]) for i in layers), (None, last)]:
            tokens = encode_frame(open_tower(model, read_layer), pixels, propagate).read()
            assert tokens.dtype == wanted.dtype
            assert relative(tokens, wanted) < tolerance, (read_layer, dtype)


def test_layers_above_the_one_that_is_read_are_not_computed(clip):
    model, pixels = make("clip"), frames()[0]
    wanted = encode_frame(open_tower(clip, -2), pixels).read()
    model.encoder.layers[-1].forward = None
    for module in model.encoder.layers[-1].modules():
        module.forward = None
    tower = open_tower(model, -2)
    cache = encode_frame(tower, pixels)
    assert torch.equal(cache.read(), wanted)
    put(tower, cache, frames()[1])
    with pytest.raises(TypeError, match="not callable"):
        encode_frame(open_tower(model, -1), pixels)


@pytest.mark.parametrize("name", NAMES)
def test_frames_of_another_size(name):
    model = make(name)
    pixels = frames(side=40)
    pixels = pixels[..., :24]  # 5 x 3 patches
    if name in ("clip", "siglip"):
        with pytest.raises(ValueError, match=r"40 x 24 pixels; the tower takes \(32, 32\)"):
            encode_frame(open_tower(model), pixels[0])
        with torch.no_grad():
            wanted = model(pixels[0], interpolate_pos_encoding=True).last_hidden_state
    else:
        wanted = transformers_states(model, pixels[0])[1]
    tower = open_tower(model, interpolate_pos_encoding=True)
    cache = encode_frame(tower, pixels[0])
    assert relative(cache.read(), wanted) < 1e-12
    every = torch.ones(5, 3, dtype=torch.bool)
    tokens = put(tower, cache, pixels[1], every)
    assert relative(tokens, encode_frame(tower, pixels[1]).read()) < 1e-12


def test_an_architecture_or_layer_that_is_not_there(clip):
    with pytest.raises(TypeError, match="Linear"):
        open_tower(nn.Linear(2, 2))
    for layer in (LAYERS + 1, -LAYERS - 2):
        with pytest.raises(ValueError, match=f"read_layer is {layer}"):
            open_tower(clip, layer)


# ---- partial updates ---------------------------------------------------------------------------------


def plain_update(model: nn.Module, old: torch.Tensor, new: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """'none' on DINOv2 with registers, token by token and head by head, from transformers' hidden states."""
    hidden = transformers_states(model, old)[0]
    num_global = 1 + model.config.num_register_tokens
    tokens = [*range(num_global), *(num_global + int(i) for i in mask.flatten().nonzero())]
    embedded = model.embeddings(mixed(old, new, mask))[0]
    x = {i: embedded[i] for i in tokens}
    size = WIDTH // HEADS
    for layer, states in zip(model.encoder.layer, hidden, strict=False):
        inputs = [x.get(i, states[0, i]) for i in range(states.shape[1])]
        keys = [layer.attention.k_proj(layer.norm1(row)) for row in inputs]
        values = [layer.attention.v_proj(layer.norm1(row)) for row in inputs]
        for i in tokens:
            query = layer.attention.q_proj(layer.norm1(x[i]))
            heads = []
            for h in range(HEADS):
                part = slice(h * size, (h + 1) * size)
                weights = torch.stack([(query[part] * key[part]).sum() / size**0.5 for key in keys]).softmax(0)
                heads.append(sum(w * value[part] for w, value in zip(weights, values, strict=True)))
            middle = x[i] + layer.layer_scale1(layer.attention.o_proj(torch.cat(heads)))
            x[i] = middle + layer.layer_scale2(layer.mlp(layer.norm2(middle)))
    result = hidden[-1][0].clone()
    for i in tokens:
        result[i] = x[i]
    return model.layernorm(result)[None]


@torch.no_grad()
def test_none_is_the_plain_computation(registers):
    old, new = frames()
    tower = open_tower(registers)
    cache = encode_frame(tower, old)
    before = cache.read()
    tokens = put(tower, cache, new)
    assert relative(tokens, plain_update(registers, old, new, SOME)) < 1e-12
    stay = F.pad(~SOME.flatten(), (4, 0))
    assert torch.equal(tokens[:, stay], before[:, stay])
    assert torch.equal(cache.read(), tokens)
    full = encode_frame(tower, mixed(old, new, SOME)).read()
    assert relative(tokens, full) > 0.01, "else this example shows nothing"


@pytest.mark.parametrize("name", NAMES)
def test_infinite_tolerance_equals_none(name):
    tower, (old, new) = open_tower(make(name)), frames()
    plain, gated = encode_frame(tower, old), encode_frame(tower, old, "gated")
    again = mask_of((1, 1), (2, 2))
    for mask, pixels in ((SOME, new), (again, new * 2)):
        tokens = put(tower, gated, pixels, mask, float("inf"))
        assert relative(tokens, put(tower, plain, pixels, mask)) < 1e-12


@pytest.mark.parametrize("propagate", ["none", "gated"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_changed_and_all_changed(name, propagate):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        tower, (old, new) = open_tower(make(name, dtype)), frames(dtype)
        cache = encode_frame(tower, old, propagate)
        before = contents(cache)
        tokens = put(tower, cache, new, NONE)
        assert torch.equal(tokens, encode_frame(tower, old, propagate).read())
        assert all(map(torch.equal, before, contents(cache)))
        fresh = encode_frame(tower, new, propagate)
        assert relative(put(tower, cache, new, ALL), fresh.read()) < tolerance
        for kept, wanted in zip(contents(cache), contents(fresh), strict=True):
            torch.testing.assert_close(kept, wanted, rtol=100 * tolerance, atol=100 * tolerance)


def test_pixels_that_did_not_change_change_nothing(clip):
    tower, old = open_tower(clip), frames()[0]
    cache = encode_frame(tower, old)
    assert relative(put(tower, cache, old), encode_frame(tower, old).read()) < 1e-12


@pytest.mark.parametrize("propagate", ["none", "gated"])
def test_global_tokens_are_refreshed_with_every_update(registers, propagate):
    tower, (old, new) = open_tower(registers), frames()
    cache = encode_frame(tower, old, propagate)
    before = cache.read()
    tokens = put(tower, cache, new, tolerance=None if propagate == "none" else float("inf"))
    moved = (tokens - before).norm(dim=-1)[0]
    assert (moved[:4] > 1e-3).all()


# ---- gated -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_zero_tolerance_equals_the_full_encode(name):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        tower, (frame, new) = open_tower(make(name, dtype)), frames(dtype)
        cache = encode_frame(tower, frame, "gated")
        for mask in (SOME, mask_of((1, 1)), mask_of((0, 1), (3, 3)), ALL, SOME):  # updates build on updates
            new = new.flip(-1) * 1.1
            frame = mixed(frame, new, mask)
            tokens = put(tower, cache, new, mask, 0.0)
            assert relative(tokens, encode_frame(tower, frame).read()) < tolerance


MASKS = st.lists(st.lists(st.booleans(), min_size=GRID**2, max_size=GRID**2), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(NAMES),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    masks=MASKS,
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
)
def test_any_updates_at_tolerance_zero_equal_a_full_encode(name, dtype, masks, seed, scale):
    """Whichever patches change, by however much, one update after the other."""
    tower, generator = open_tower(make(name, dtype)), torch.Generator().manual_seed(seed)
    frame, *new = torch.randn(len(masks) + 1, 1, 3, SIDE, SIDE, generator=generator, dtype=dtype)
    cache = encode_frame(tower, frame, "gated")
    for changed, pixels in zip(masks, new, strict=True):
        mask = torch.tensor(changed).view(GRID, GRID)
        pixels = frame + scale * pixels
        frame = mixed(frame, pixels, mask)
        tokens = put(tower, cache, pixels, mask, 0.0)
        assert relative(tokens, encode_frame(tower, frame).read()) < (1e-10 if dtype == torch.float64 else 1e-4)


def test_error_falls_with_the_tolerance(clip):
    tower, (old, new) = open_tower(clip), frames()
    new = old + 0.2 * new
    wanted = encode_frame(tower, mixed(old, new, SOME)).read()
    errors = []
    for tolerance in (float("inf"), 0.2, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.0):
        tokens = put(tower, encode_frame(tower, old, "gated"), new, SOME, tolerance)
        errors.append(float((tokens - wanted).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1.4 * errors[5] > 2 * errors[7] > 0
    assert errors[-1] < 1e-10


def test_drift_below_the_tolerance_adds_up_until_it_is_seen(registers):
    """A hundred small steps may not be further from the truth than one step of the same tolerance."""
    tower, (old, new) = open_tower(registers), frames()
    cache = encode_frame(tower, old, "gated")
    errors = []
    for step in range(1, 101):
        frame = old + (mixed(old, new, SOME) - old) * step / 100
        tokens = put(tower, cache, frame, SOME, 0.02)
        errors.append(relative(tokens, encode_frame(tower, frame).read()))
    stale = put(tower, encode_frame(tower, old, "gated"), new, SOME, float("inf"))
    unbounded = relative(stale, encode_frame(tower, frame).read())
    assert max(errors) < unbounded / 2
    assert max(errors[50:]) < 2 * max(errors[:50])


# ---- the cache ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("propagate", ["none", "gated"])
def test_what_a_caller_gets_is_a_copy(clip, propagate):
    tower, (old, new) = open_tower(clip), frames()
    cache = encode_frame(tower, old, propagate)
    cache.read().zero_()
    for mask in (NONE, SOME):
        tokens = put(tower, cache, new, mask)
        kept = tokens.clone()
        tokens.zero_()
        assert torch.equal(cache.read(), kept)
    pixels = extract_patches(new, SOME, PATCH)
    tokens = update(tower, cache, pixels, SOME)
    pixels.zero_()
    assert torch.equal(cache.read(), tokens)


@pytest.mark.parametrize("propagate", ["none", "gated"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_update_that_is_cut_off_leaves_the_cache_as_it_was(propagate, error):
    model, (old, new) = make("clip"), frames()
    tower = open_tower(model)
    cache = encode_frame(tower, old, propagate)
    put(tower, cache, new)
    before = contents(cache)

    def fail(*_):
        raise error("in the middle")

    handle = model.encoder.layers[-1].mlp.register_forward_hook(fail)
    with pytest.raises(error, match="in the middle"):
        put(tower, cache, old, ALL)
    handle.remove()
    assert all(map(torch.equal, before, contents(cache)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_is_as_documented(name, dtype):
    tower = open_tower(make(name, dtype))
    tokens = GRID**2 + tower.num_global_tokens
    plain = (2 * LAYERS + 3) * tokens * WIDTH
    gates = LAYERS * tokens * (5 * WIDTH + HEADS)
    for propagate, elements in (("none", plain), ("gated", plain + gates)):
        cache = encode_frame(tower, frames(dtype)[0], propagate)
        assert cache.nbytes == elements * dtype.itemsize
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in cache.tensors()}
        assert sum(storages.values()) == cache.nbytes


@pytest.mark.parametrize("propagate", ["none", "gated"])
def test_no_growth_and_no_decay_over_many_updates(clip, propagate):
    tower = open_tower(make("clip", torch.float32))
    old, new = frames(torch.float32)
    cache = encode_frame(tower, old, propagate)
    places = [(tensor.data_ptr(), tensor.untyped_storage().nbytes()) for tensor in cache.tensors()]
    tolerance = None if propagate == "none" else 0.2
    for step in range(200):
        put(tower, cache, (new, old)[step % 2], SOME, tolerance)
    assert [(tensor.data_ptr(), tensor.untyped_storage().nbytes()) for tensor in cache.tensors()] == places
    if propagate == "gated":  # corrections have been added and subtracted 200 times
        for keys, values, gate in zip(cache.keys, cache.values, cache.gates, strict=True):
            attended, _ = attention(gate.queries, keys, values)
            assert relative(gate.attended, joined(attended)[0]) < 1e-4


def test_a_look_into_an_updated_cache_is_a_look_into_a_fresh_one(registers):
    tower, (old, new) = open_tower(registers), frames()
    cache = encode_frame(tower, old, "gated")
    put(tower, cache, new, SOME, 0.0)
    fresh = encode(tower, mixed(old, new, SOME))
    query = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    seen, attentions = look(tower, cache, query, output_attentions=True)
    wanted, wanted_attentions = look(tower, fresh, query, output_attentions=True)
    torch.testing.assert_close(seen, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(attentions, wanted_attentions, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_a_query_that_enters_as_the_first_token_leaves_as_it(name):
    tower, pixels = open_tower(make(name), -2), frames()[0]
    cache = encode_frame(tower, pixels)
    with torch.no_grad():
        seen, _ = look(tower, cache, tower.embed(pixels)[:, 0])
    torch.testing.assert_close(seen, cache.read()[:, 0], rtol=0, atol=1e-12)


def test_caches_made_under_inference_mode_can_be_updated_and_looked_into_outside(clip):
    tower, (old, new) = open_tower(clip), frames()
    with torch.inference_mode():
        cache = encode_frame(tower, old)
    tokens = put(tower, cache, new)
    tokens.add_(1).requires_grad_()
    (tokens * tokens).sum().backward()


# ---- packed weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("propagate", ["none", "gated"])
@pytest.mark.parametrize("pack", [False, True, "auto"])
def test_products_for_few_rows_compute_the_same(name, propagate, pack):
    model, (old, new) = make(name, torch.float32), frames(torch.float32)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    plain, lean = open_tower(model), open_tower(model, pack_weights=pack)
    assert pack == "auto" or lean.packed == pack
    caches = [encode_frame(tower, old, propagate) for tower in (plain, lean)]
    assert relative(caches[1].read(), caches[0].read()) < 1e-5
    tolerance = None if propagate == "none" else float("inf")
    for mask in (SOME, mask_of((1, 1)), ALL):
        results = [put(tower, cache, new, mask, tolerance) for tower, cache in zip((plain, lean), caches, strict=True)]
        assert relative(results[1], results[0]) < 1e-5
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_every_number_of_rows_gives_what_the_layers_give(pack, bias):
    layers = [nn.Linear(16, size, bias=bias) for size in (16, 8, 24)]
    together = packing.FewRowsLinears(*layers, pack=pack)
    with torch.no_grad():
        for rows in (*range(1, 60), 384, 385, 577):
            x = torch.randn(rows, 16)
            for out, layer in zip(together(x), layers, strict=True):
                torch.testing.assert_close(out, layer(x), rtol=1e-5, atol=1e-6)


def test_weights_that_cannot_be_packed_are_told(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        assert not open_tower(make("clip"), pack_weights=True).packed
    assert "torch.float64 on cpu" in caplog.text
    monkeypatch.setattr(packing, "ROWS_HINT", "what an operator would refuse")
    with caplog.at_level(logging.WARNING):
        tower = open_tower(make("clip", torch.float32), pack_weights=True)
    assert not tower.packed and "oneDNN" in caplog.text
    encode_frame(tower, frames(torch.float32)[0])


# ---- wrong input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(2, 3, 32, 32), r"\(2, 3, 32, 32\)"),
        (torch.zeros(1, 1, 32, 32), r"\(1, 3, height, width\)"),
        (torch.zeros(3, 32, 32), r"\(3, 32, 32\)"),
        (torch.zeros(1, 3, 0, 32), "0 x 32"),
        (torch.zeros(1, 3, 30, 32), "30 x 32 pixels is not made of patches"),
        (torch.zeros(1, 3, 40, 40), "40 x 40"),
    ],
)
def test_frames_that_cannot_be_encoded_are_named(clip, pixels, message):
    with pytest.raises(ValueError, match=message):
        encode_frame(open_tower(clip), pixels.double())


def test_updates_that_cannot_be_right_are_named(clip):
    tower, (old, new) = open_tower(clip), frames()
    cache, gated = encode_frame(tower, old), encode_frame(tower, old, "gated")
    before = contents(cache) + contents(gated)
    patches = extract_patches(new, SOME, PATCH)
    broken = patches.clone()
    broken[1, 0, 3, 3] = float("nan")
    wrong = [
        ((tower, cache, patches[:2], SOME), r"\(2, 3, 8, 8\)"),
        ((tower, cache, patches[:, :1], SOME), r"\(3, 1, 8, 8\)"),
        ((tower, cache, patches[..., :4], SOME), r"\(3, 3, 8, 4\)"),
        ((tower, cache, broken, SOME), "NaN"),
        ((tower, cache, patches, SOME.long()), "torch.int64"),
        ((tower, cache, patches, SOME[:3]), "16 patches"),
        ((tower, cache, patches, SOME, 0.1), "propagate='none'"),
        ((tower, gated, patches, SOME, -0.1), "-0.1"),
        ((tower, gated, patches, SOME, float("nan")), "nan"),
        ((open_tower(clip, -2), cache, patches, SOME), "3 layers and the tower 2"),
        ((tower, encode(tower, old), patches, SOME), "encode_frame"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            update(*arguments)
    assert all(map(torch.equal, before, contents(cache) + contents(gated)))
    with pytest.raises(ValueError, match="sideways"):
        encode_frame(tower, old, "sideways")
    with pytest.raises(ValueError, match="no tokens"):
        encode(tower, old).read()
