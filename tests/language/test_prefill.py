"""Prefill that is kept: exact where it says so, bounded where it does not, and never half done."""

from __future__ import annotations

import itertools

import pytest
import torch
from language_models import NAMES, SHAPE, VOCABULARY, make
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from fvlm_lib.language.prefill import GatedPrefill, Prefilled
from fvlm_lib.reuse.policies import POLICIES, Policy, is_gating
from fvlm_lib.reuse.policies.budget import Budget
from fvlm_lib.reuse.policies.changed import Changed
from fvlm_lib.reuse.policies.deviation import Deviation
from fvlm_lib.reuse.policies.exact import Exact
from fvlm_lib.reuse.policies.first_k import FirstK
from fvlm_lib.reuse.policies.full import Full
from fvlm_lib.reuse.policies.gated import Gated

LENGTH = 60
LAYERS = SHAPE["num_hidden_layers"]
EXACT: list[Policy] = [Full(), Exact(), Gated(0.0), Deviation(1.0), Budget(1_000), FirstK(1_000)]
ATOL = {torch.float64: 1e-9, torch.float32: 1e-4}


def prompt(length: int = LENGTH, seed: int = 0) -> list[int]:
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def embed(model, ids: list[int]) -> torch.Tensor:
    return model.get_input_embeddings()(torch.tensor([ids])).detach()


def wanted(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[:, -1]


def put(prefill: GatedPrefill, model, ids: list[int], **options) -> Prefilled:
    return prefill(embed(model, ids), input_ids=ids, **options)


def replaced(ids: list[int], *places: int) -> list[int]:
    return [(token + 1) % VOCABULARY if i in places else token for i, token in enumerate(ids)]


CHANGES = {
    "middle": replaced(prompt(), 20, 21, 22),
    "first": replaced(prompt(), 0),
    "last": replaced(prompt(), LENGTH - 1),
    "all": prompt(seed=1),
    "inserted": [*prompt()[:10], 1, 2, 3, *prompt()[10:]],
    "inserted at the top": [4, 5, *prompt()],
    "scrolled": [*prompt()[4:50], 7, 8, 9, 6, *prompt()[50:]],
    "shorter": prompt()[:40],
    "cut out": [*prompt()[:20], *prompt()[35:]],
    "changed and moved": replaced([1, *prompt()], 30, 31),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("policy", EXACT, ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("name", NAMES)
def test_tolerance_0_is_a_full_prefill_whatever_changed(name, policy, change):
    """And so is every policy that is told to compute everything."""
    for dtype in (torch.float64, torch.float32) if name == "llama" else (torch.float64,):
        model = make(name, dtype)
        prefill = GatedPrefill(model, policy)
        for ids in (prompt(), CHANGES[change], prompt()):
            found = put(prefill, model, ids)
            torch.testing.assert_close(found.logits, wanted(model, ids), rtol=0, atol=ATOL[dtype])


def test_what_every_other_policy_leaves_is_an_error():
    """Those that are not exact differ from a full prefill, or they would compute everything."""
    model = make("llama")
    observed = torch.arange(LENGTH) < 50
    for policy in (Gated(0.5), Changed(), FirstK(2), Deviation(0.1), Budget(4)):
        prefill = GatedPrefill(model, policy)
        put(prefill, model, prompt(), observed=observed)
        found = put(prefill, model, CHANGES["middle"], observed=observed)
        assert 0 < found.statistics.computed_share < 0.6
        assert (found.logits - wanted(model, CHANGES["middle"])).abs().max() > 1e-6


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_of_the_registry(name):
    """First full; nothing changed, nothing computed; updates computed where it says so; what it said is not touched."""
    model = make("llama")
    prefill = GatedPrefill(model, name)
    first = put(prefill, model, prompt())
    assert (first.statistics.path, first.statistics.computed_share) == ("full", 1.0)
    torch.testing.assert_close(first.logits, wanted(model, prompt()), rtol=0, atol=1e-9)
    again = put(prefill, model, prompt())
    assert (again.statistics.path, again.statistics.computed_share) == ("cached", 0.0)
    assert torch.equal(again.logits, first.logits)
    kept = [layer.keys.clone() for layer in first.past_key_values.layers]
    for ids in CHANGES.values():
        found = put(prefill, model, ids)
        assert found.statistics.tokens == len(ids) == found.past_key_values.get_seq_length()
        assert tuple(found.statistics.computed.shape) == (LAYERS, len(ids)) and found.logits.isfinite().all()
    assert all(map(torch.equal, kept, [layer.keys for layer in first.past_key_values.layers]))
    prefill.reset()
    assert put(prefill, model, prompt()).statistics.path == "full"


def test_which_rows_policies_compute():
    model = make("llama")
    observed = torch.zeros(LENGTH, dtype=torch.bool)
    observed[10:20] = observed[30:50] = True  # two observations

    def rows(policy: Policy) -> set[int]:
        prefill = GatedPrefill(model, policy)
        put(prefill, model, prompt(), observed=observed)
        computed = put(prefill, model, replaced(prompt(), 35, 36), observed=observed).statistics.computed
        assert not is_gating(policy) and torch.equal(computed[0], computed[-1])
        return {*computed[0].nonzero().squeeze(1).tolist()}

    assert rows(Full()) == {*range(LENGTH)}
    assert rows(Exact()) == {*range(35, LENGTH)}
    assert rows(Changed()) == {35, 36, *range(50, LENGTH)}
    assert rows(FirstK(3)) == {*range(10), 10, 11, 12, *range(20, 33), 35, 36, *range(50, LENGTH)}


def test_deviation_falls_from_layer_to_layer_about_its_share():
    model = make("llama")
    prefill = GatedPrefill(model, Deviation(0.2))
    put(prefill, model, prompt())
    computed = put(prefill, model, CHANGES["middle"]).statistics.computed
    start = 20  # rows before the first change are not looked at
    counts = computed[:, start:].sum(dim=1).tolist()
    assert counts[0] == LENGTH - start  # keys and values of all
    assert counts[1] == 10 and counts[2] == 8  # of 40: 0.25, then 0.2 of those; the last half computes 0.15
    assert all(computed[:, [20, 21, 22, LENGTH - 1]].all(dim=0))


@pytest.mark.parametrize("tolerances", [(0.0, 0.005, 0.02, 0.1, 0.5)])
def test_rows_fall_with_the_tolerance(tolerances):
    model = make("llama")
    shares = []
    for tolerance in tolerances:
        prefill = GatedPrefill(model, Gated(tolerance))
        put(prefill, model, prompt())
        shares.append(put(prefill, model, CHANGES["middle"]).statistics.computed_share)
    assert shares == sorted(shares, reverse=True) and shares[0] == (LENGTH - 20) / LENGTH > shares[-1]


def test_changed_rows_are_computed_at_any_tolerance():
    model = make("llama")
    nudged = embed(model, prompt())
    nudged[0, 30] *= 1 + 1e-4  # far below the tolerance
    changed = torch.arange(LENGTH) == 30
    for given, expected in ((changed, {30, LENGTH - 1}), (~changed & changed, {LENGTH - 1}), (None, {30, LENGTH - 1})):
        prefill = GatedPrefill(model, Gated(1e6))
        put(prefill, model, prompt())
        found = prefill(nudged, changed=given)
        assert {*found.statistics.computed.all(dim=0).nonzero().squeeze(1).tolist()} == expected


@pytest.mark.parametrize("policy", [Gated(0.0), Gated(0.05), Exact()], ids=str)
def test_a_hundred_prompts_do_not_add_up_errors(policy):
    """Lines that scroll, again and again: keys are turned a hundred times."""
    model = make("llama", torch.float32)
    prefill = GatedPrefill(model, policy)
    stream = prompt(400)
    for step in range(100):
        ids = [1, 2, 3, *stream[3 * step : 3 * step + 60], 4, 5]
        found = put(prefill, model, ids)
    error = (found.logits - wanted(model, ids)).norm() / wanted(model, ids).norm()
    assert error < (0.5 if policy == Gated(0.05) else 1e-4)


def test_budget_is_bounded_and_pays_what_it_owes():
    model = make("llama")
    prefill = GatedPrefill(model, Budget(8))
    put(prefill, model, prompt())
    owed = []
    for _ in range(60):
        found = put(prefill, model, CHANGES["middle"])
        assert found.statistics.computed.sum(dim=1).max() <= 16  # of either half
        owed.append(found.statistics.owed)
        if not found.statistics.owed:
            break
    assert owed[0] > 0 == owed[-1] and found.statistics.path == "partial"
    torch.testing.assert_close(found.logits, wanted(model, CHANGES["middle"]), rtol=0, atol=1e-9)
    assert put(prefill, model, CHANGES["middle"]).statistics.path == "cached"


def test_multimodal_positions_given_from_outside_and_changed():
    """Positions are turned to where they are given, in place too: in all rows that see or are one that moved."""
    model = make("qwen2")
    first = torch.arange(LENGTH)[None]
    second = first.clone()
    second[:, 30:] += 5
    prefill = GatedPrefill(model, Gated(0.0))
    put(prefill, model, prompt(), position_ids=first)
    found = put(prefill, model, prompt(), position_ids=second)
    with torch.no_grad():
        expected = model(torch.tensor([prompt()]), position_ids=second).logits[:, -1]
    torch.testing.assert_close(found.logits, expected, rtol=0, atol=1e-9)
    assert found.statistics.moved_tokens == 30


def test_multimodal_positions_are_those_of_the_model():
    """Qwen2.5-VL's: three a token, given from outside."""
    text = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": VOCABULARY, "max_position_embeddings": 512, "initializer_range": 0.3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    model = Qwen2_5_VLForConditionalGeneration(config).eval().double()
    prefill = GatedPrefill(model, Gated(0.0))
    first = torch.arange(LENGTH).expand(3, 1, -1).clone()
    second = first.clone()
    second[1, 0, 20:30] = 20 + torch.arange(10) // 5  # an image's rows and columns
    second[2, 0, 20:30] = 20 + torch.arange(10) % 5
    for ids, positions in ((prompt(), first), (CHANGES["middle"], second), (prompt(), first)):
        found = prefill(embed(model, ids), position_ids=positions)
        with torch.no_grad():
            hidden = model.model.language_model(inputs_embeds=embed(model, ids), position_ids=positions)[0]
        torch.testing.assert_close(found.hidden, hidden[:, -1], rtol=0, atol=1e-9)
    assert found.statistics.moved_tokens == 9  # all but the image's first


def deepstack_model():
    """A Qwen3-VL whose language model adds features to the outputs of its first layers."""
    torch.manual_seed(0)
    text = {key: value for key, value in SHAPE.items() if key != "max_position_embeddings"}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen3VLConfig(
        text_config=text | {"head_dim": 8, "rope_parameters": rope},
        vision_config=vision | {"deepstack_visual_indexes": [0]},
    )
    return Qwen3VLForConditionalGeneration(config).eval().double()


def image_features(seed: int, count: int = 12) -> list[torch.Tensor]:
    """Of two layers."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 32, generator=generator, dtype=torch.float64) for _ in range(2)]


def spread(features: list[torch.Tensor], length: int, start: int = 20) -> list[torch.Tensor]:
    """Over the rows of a prompt, the image's from `start` on."""
    spread = [torch.zeros(length, 32, dtype=torch.float64) for _ in features]
    for rows, of_layer in zip(spread, features, strict=True):
        rows[start : start + len(of_layer)] = of_layer
    return spread


@pytest.mark.parametrize("policy", [Full(), Exact(), Gated(0.0), Deviation(1.0)], ids=str)
def test_what_is_added_at_the_first_layers_is_the_models_own(policy):
    model = deepstack_model()
    prefill = GatedPrefill(model, policy)
    one_row = [features.clone() for features in image_features(0)]
    one_row[1][5] += 1.0  # at the second layer alone, of embeddings that are the same
    shown = [(prompt(), image_features(0)), (prompt(), one_row), (CHANGES["middle"], one_row)]
    shown += [(CHANGES["middle"], image_features(1)), (prompt(40), image_features(0)), (prompt(), image_features(0))]
    for ids, features in shown:
        found = prefill(embed(model, ids), additions=spread(features, len(ids)))
        mask = torch.zeros(1, len(ids), dtype=torch.bool)
        mask[0, 20:32] = True
        with torch.no_grad():
            hidden = model.model.language_model(
                inputs_embeds=embed(model, ids), visual_pos_masks=mask, deepstack_visual_embeds=features
            )[0]
        torch.testing.assert_close(found.hidden, hidden[:, -1], rtol=0, atol=1e-9)


def test_rows_whose_additions_alone_changed_are_computed_behind_that_layer():
    model = deepstack_model()
    prefill = GatedPrefill(model, Gated(0.0))
    features = image_features(0)
    prefill(embed(model, prompt()), additions=spread(features, LENGTH))
    assert prefill(embed(model, prompt()), additions=spread(features, LENGTH)).statistics.path == "cached"
    features[1][5] += 1.0
    computed = prefill(embed(model, prompt()), additions=spread(features, LENGTH)).statistics.computed
    assert not computed[:, :25].any() and computed[2, 25:].all()


@pytest.mark.parametrize(
    ("additions", "said"),
    [
        ([torch.zeros(LENGTH, 31).double()], r"has one of torch.float64 and shape \(60, 31\); each must be"),
        ([torch.zeros(LENGTH, 32)], "has one of torch.float32 and shape"),
        ([torch.full((LENGTH, 32), float("inf")).double()], "NaN or infinite"),
        ([torch.zeros(LENGTH, 32).double()] * 4, "has 4 tensors, but there are 3 layers"),
    ],
)
def test_additions_that_cannot_be(additions, said):
    model = deepstack_model()
    prefill = GatedPrefill(model)
    with pytest.raises(ValueError, match=said):
        prefill(embed(model, prompt()), additions=additions)
    prefill(embed(model, prompt()), additions=spread(image_features(0), LENGTH))
    with pytest.raises(ValueError, match="has 0 tensors, but the last prompt had 2"):
        prefill(embed(model, prompt()))


def test_generate_goes_on_from_the_cache_and_leaves_the_kept_rows():
    model = make("llama")
    prefill = GatedPrefill(model, Gated(0.0))
    put(prefill, model, prompt())
    ids = CHANGES["middle"]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(torch.tensor([ids]), **options)
    for _ in range(2):
        found = put(prefill, model, ids)
        before = [tensor.clone() for tensor in prefill._state.rows.tensors()]
        found.past_key_values.crop(-1)
        said = model.generate(torch.tensor([ids]), past_key_values=found.past_key_values, **options)
        assert torch.equal(said, expected)
        assert all(map(torch.equal, before, prefill._state.rows.tensors()))
    assert int(found.logits.argmax()) == int(expected[0, len(ids)])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("policy", [Gated(0.0), Gated(0.05), Exact(), Deviation(0.2), Budget(5)], ids=str)
@pytest.mark.parametrize("change", ["middle", "inserted"])
def test_what_is_cut_off_leaves_the_state_as_it_was(policy, change, error):
    model = make("llama")
    prefill = GatedPrefill(model, policy)
    put(prefill, model, prompt())
    state = prefill._state
    before = [tensor.clone() for tensor in state.rows.tensors()]

    def fail(*_):
        raise error("in the middle")

    for module in (model.model.layers[-1].mlp, model.lm_head):
        handle = module.register_forward_hook(fail)
        with pytest.raises(error, match="in the middle"):
            put(prefill, model, CHANGES[change])
        handle.remove()
        assert prefill._state is state and all(map(torch.equal, before, state.rows.tensors()))
    other = GatedPrefill(model, policy)
    put(other, model, prompt())
    assert torch.equal(put(prefill, model, CHANGES[change]).logits, put(other, model, CHANGES[change]).logits)


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_as_documented(name):
    model = make(name)
    config = model.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width, channels = config.hidden_size, getattr(config, "head_dim", None) or config.hidden_size // heads
    plain = 2 * LAYERS * LENGTH * groups * channels + LENGTH * width
    gates = LAYERS * LENGTH * (2 * width + 3 * heads * channels + heads)
    for policy, elements in ((Exact(), plain), (Gated(), plain + gates)):
        prefill = GatedPrefill(model, policy)
        assert prefill.nbytes == 0
        for ids in (prompt(), CHANGES["scrolled"], prompt()):
            put(prefill, model, ids)
            assert prefill.nbytes == elements * 8
    plain = 2 * 36 * 1000 * 2 * 128
    ours = plain + 1000 * 2048 + 36 * 1000 * (2 * 2048 + 3 * 2048 + 16)  # of the docstring's 3B model
    documented = " ".join(GatedPrefill.__doc__.split())
    assert f"that is {ours / 1e6:.0f} million elements, {2 * ours / 1e9:.2f} GB in bfloat16" in documented
    assert f"keys and values are {2 * plain / 1e9:.2f} GB" in documented


def test_wrong_input_is_one_sentence_and_leaves_the_state():
    model = make("llama", torch.float32)
    prefill = GatedPrefill(model, Gated(0.0))
    good = put(prefill, model, prompt())
    state, embeds = prefill._state, embed(model, prompt())
    long = torch.zeros(1, 513, 32)
    cases = [
        ((embeds[0],), {}, "inputs_embeds has shape (60, 32); it must be (1, tokens, 32)"),
        ((embeds[:, :0],), {}, "inputs_embeds has shape (1, 0, 32); it must be (1, tokens, 32)"),
        ((embeds.double(),), {}, "inputs_embeds is torch.float64; the model LlamaModel is torch.float32"),
        ((embeds / 0,), {}, "inputs_embeds has values that are NaN or infinite; all must be finite"),
        ((long,), {}, "the prompt has 513 tokens, but the context of LlamaModel is 512"),
        ((embeds,), {"input_ids": [1]}, "input_ids has 1 tokens, but inputs_embeds 60"),
        (
            (embeds,),
            {"changed": torch.ones(3, dtype=torch.bool)},
            "changed is torch.bool of shape (3,); it must be bool (60,)",
        ),
        ((embeds,), {"observed": torch.ones(60)}, "observed is torch.float32 of shape (60,); it must be bool (60,)"),
        (
            (embeds,),
            {"position_ids": torch.ones(1, 3)},
            "position_ids is torch.float32 of shape (1, 3); it must be of whole numbers, (1, 60) or (3, 1, 60)",
        ),
        (
            (embeds,),
            {"position_ids": torch.ones(3, 1, 60, dtype=torch.long)},
            "position_ids has another number of dimensions than those of the last prompt; reset() first",
        ),
    ]
    for args, options, sentence in cases:
        with pytest.raises(ValueError) as raised:
            prefill(*args, **options)
        assert str(raised.value) == sentence
    assert prefill._state is state and torch.equal(put(prefill, model, prompt()).logits, good.logits)
    with pytest.raises(ValueError, match="policy is 'gate'; it must be one of full, exact, gated, changed"):
        GatedPrefill(model, "gate")
    for wrong in (
        lambda: Gated(-1.0), lambda: Gated(float("nan")), lambda: Budget(0), lambda: Deviation(2.0), lambda: FirstK(-1),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            wrong()


def test_a_vision_language_model_has_its_language_model_opened(tmp_path):
    from vlm_folders import save_llava

    from fvlm_lib.vlm.vlms import load_vlm

    vlm = load_vlm(str(save_llava(tmp_path / "llava")))
    prefill = GatedPrefill(vlm.model, Gated(0.0))
    embeds = vlm.model.get_input_embeddings()(torch.arange(20)[None]).detach()
    other = embeds.flip(1)
    for each in (embeds, other):
        with torch.no_grad():
            expected = vlm.model(inputs_embeds=each).logits[:, -1]
        torch.testing.assert_close(prefill(each).logits, expected, rtol=0, atol=1e-4)


def test_pairs_of_changes_in_turn():
    """Whatever follows on whatever."""
    model = make("qwen3")
    prefill = GatedPrefill(model, Gated(0.0))
    for first, second in itertools.product(CHANGES.values(), repeat=2):
        put(prefill, model, first)
        found = put(prefill, model, second)
        torch.testing.assert_close(found.logits, wanted(model, second), rtol=0, atol=1e-9)


@pytest.mark.parametrize("policy", [Gated(0.05), Deviation(0.2), Budget(6)], ids=str)
def test_a_fork_goes_on_by_its_own_policy_and_leaves_the_first_as_it_was(policy):
    model = make("llama")
    base, alone = GatedPrefill(model, Gated(0.0)), GatedPrefill(model, policy)
    for prefill in (base, alone):
        put(prefill, model, prompt())
    before = [tensor.clone() for tensor in base._state.rows.tensors()]
    found = put(base.fork(policy), model, CHANGES["middle"])
    assert torch.equal(found.logits, put(alone, model, CHANGES["middle"]).logits)
    assert all(map(torch.equal, before, base._state.rows.tensors()))
    with pytest.raises(ValueError, match="cannot go on from rows that are kept for"):
        base.fork(Exact())


@pytest.mark.parametrize("pack_weights", [False, True, "auto"])
def test_products_of_few_rows_change_nothing_but_rounding(pack_weights):
    model = make("llama", torch.float32)
    prefill = GatedPrefill(model, Gated(0.0), pack_weights=pack_weights)
    for ids in (prompt(), CHANGES["middle"], CHANGES["scrolled"]):
        torch.testing.assert_close(put(prefill, model, ids).logits, wanted(model, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_the_models_own(dtype):
    """To the model in float64 of the same weights; its own prefill in half precision is as far away."""
    half = make("llama", dtype)
    exact = make("llama", dtype).double()
    prefill = GatedPrefill(half, Gated(0.0))
    for ids in (prompt(), CHANGES["middle"], CHANGES["scrolled"], CHANGES["inserted"]):
        reference = wanted(exact, ids)
        errors = [
            (logits.double() - reference).norm() for logits in (put(prefill, half, ids).logits, wanted(half, ids))
        ]
        assert errors[0] < 3 * errors[1] + 0.02 * reference.norm()


def test_a_budget_finishes_the_rows_that_it_begins():
    """What moved in a block's input is computed to its end: its attention alone may have moved least of all."""
    model = make("llama")
    prefill = GatedPrefill(model, Budget(8, 0.1))
    put(prefill, model, prompt())
    for _ in range(60):
        found = put(prefill, model, CHANGES["middle"])
        assert found.statistics.computed.sum(dim=1).max() <= 8  # the second half's rows are those of the first
        if not found.statistics.owed:
            break
    assert found.statistics.owed == 0
