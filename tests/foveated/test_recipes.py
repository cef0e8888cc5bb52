"""Recipes: the loss and the gradient of each are what it says, and so is what a step costs."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
import torch
from conftest import ROOT, tiny_batch, tiny_model
from torch import Tensor

from fvlm_lib.foveated.flops import count_flops
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.passes import coarse_queries, parallel_pass
from fvlm_lib.foveated.recipe_options import (
    Consistency,
    MultiFine,
    Plain,
    RandomPasses,
    Recipe,
    RecipeOptions,
    Rollout,
    ScheduledSampling,
    pass_name,
)
from fvlm_lib.foveated.recipes import RECIPES, training_loss
from fvlm_lib.foveated.recipes.rollout import score_truncated
from fvlm_lib.foveated.recipes.scheduled_sampling import mixed_queries
from fvlm_lib.foveated.watching import watch

FRAMES = 5
BATCHES = {
    "full": tiny_batch(frames=FRAMES),
    "padded": {  # videos and captions that end at different places
        **tiny_batch(seed=1, frames=FRAMES),
        "frame_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]),
    },
}
ALL = [
    Plain(),
    MultiFine(num_fine=3),
    MultiFine(num_fine=3, scored="last"),
    RandomPasses(),
    ScheduledSampling(rise_to=0.0),
    Rollout(),
    Rollout(coarse_weight=0.5, frames=2),
    Consistency(),
    Consistency(num_fine=2, of="visual_tokens"),
]


@pytest.fixture(scope="module", params=[{}, {"mode_tokens": True}], ids=["released", "mode tokens"])
def model(request) -> FoveatedVLM:
    return tiny_model(**request.param).double()


@pytest.fixture(params=BATCHES)
def batch(request) -> dict[str, Tensor]:
    return BATCHES[request.param]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient(model: FoveatedVLM, loss: Tensor) -> dict[str, Tensor]:
    """Of every weight, zero where the loss does not reach it."""
    weights = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(weights, found, strict=True))


def of_recipe(model: FoveatedVLM, batch: dict[str, Tensor], recipe: RecipeOptions) -> dict[str, Tensor]:
    """Loss and gradient by a recipe."""
    loss, _ = training_loss(model, batch, recipe, draws())
    return {"loss": loss.detach(), **gradient(model, loss)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Up to the float32 of the language model's norms, which round otherwise in runs of another length."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_every_recipe_of_a_config_has_its_loss():
    kinds = get_args(get_args(Recipe)[0])
    assert {*RECIPES} == {*kinds} == {type(recipe) for recipe in ALL}


@pytest.mark.parametrize("recipe", ALL, ids=repr)
def test_the_parts_are_the_ones_that_the_options_name(model, recipe):
    loss, parts = training_loss(model, BATCHES["full"], recipe, draws())
    assert loss.shape == () and {*parts} <= {*recipe.parts}
    assert isinstance(recipe, RandomPasses) or {*parts} == {*recipe.parts}


@pytest.mark.parametrize("recipe", [recipe for recipe in ALL if not isinstance(recipe, Rollout)], ids=repr)
def test_the_loss_after_the_trained_passes_is_among_the_parts_and_none_before_it_but_the_coarse_one(recipe):
    fine = [name for name in recipe.parts if name not in ("coarse", "distance")]
    assert fine[0] == pass_name(recipe.trained_passes)


@pytest.mark.parametrize(
    "recipe",
    [
        MultiFine(num_fine=1),
        MultiFine(num_fine=1, scored="last"),
        RandomPasses(most=1),
        ScheduledSampling(fine=0.0, sequential=0.0),
        ScheduledSampling().at(0.0),
        Consistency(weight=0.0),
    ],
    ids=repr,
)
def test_what_comes_down_to_plain_training_is_plain_training(model, batch, recipe):
    assert_same(of_recipe(model, batch, recipe), of_recipe(model, batch, Plain()))
    assert not recipe.multi_fine  # else findings would hold it against plain training


@pytest.mark.parametrize("recipe", [Rollout(), Consistency(), ScheduledSampling(fine=0.0), MultiFine()], ids=repr)
def test_what_is_meant_against_the_gap_is_not_taken_for_plain_training(recipe):
    assert recipe.multi_fine and not Plain().multi_fine


def test_plain_training_is_fine_and_coarse_and_learns_q_init(model, batch):
    coarse, fine = model.forward_passes(**batch, num_fine=1)
    expected = fine.loss + 0.25 * coarse.loss
    found = of_recipe(model, batch, Plain(coarse_weight=0.25))
    assert_same(found, {"loss": expected.detach(), **gradient(model, expected)})
    assert found["q_init"].abs().max() > 1e-6


def test_multi_fine_weighs_every_pass_or_scores_the_last_alone(model, batch):
    for recipe, weights in (
        (MultiFine(num_fine=3, weight=0.25), (0.5, 1, 0.25, 0.25)),
        (MultiFine(num_fine=3, scored="last"), (0.5, 0, 0, 1)),
    ):
        losses = [output.loss for output in model.forward_passes(**batch, num_fine=3)]
        expected = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        assert_same(of_recipe(model, batch, recipe), {"loss": expected.detach(), **gradient(model, expected)})


def test_the_demo_ladders_loss_is_the_one_that_it_was_trained_with(model):
    """Bit for bit: fine + 0.5 · coarse + 0.5 · second fine pass, added in this order."""
    batch = BATCHES["full"]
    coarse, fine, second = model.forward_passes(**batch, num_fine=2)
    expected = fine.loss + 0.5 * coarse.loss + 0.5 * second.loss
    loss, parts = training_loss(model, batch, MultiFine(num_fine=2, weight=0.5), draws())
    assert torch.equal(loss, expected)
    assert parts == {"coarse": coarse.loss.item(), "fine": fine.loss.item(), "fine_2": second.loss.item()}


def test_a_step_draws_its_number_of_passes(model):
    batch, recipe = BATCHES["full"], RandomPasses(most=3)
    losses = {number: training_loss(model, batch, recipe.passes(number), draws())[0] for number in (1, 2, 3)}
    counts = dict.fromkeys(losses, 0)
    for seed in range(60):
        loss, parts = training_loss(model, batch, recipe, draws(seed))
        number = recipe.parts.index([*parts][-1])
        assert torch.equal(loss, losses[number])
        assert torch.equal(loss, training_loss(model, batch, recipe, draws(seed))[0])
        counts[number] += 1
    assert min(counts.values()) > 8  # of 20 expected; fewer by chance: p < 1e-3


# ---- scheduled sampling ------------------------------------------------------------------------------


def test_with_sequential_queries_alone_the_fine_pass_is_sequential_use(model, batch):
    recipe = ScheduledSampling(fine=0.0, sequential=1.0, rise_to=0.0).at(0.0)
    loss, parts = training_loss(model, batch, recipe, draws())
    inference = model.forward_autoregressive(**batch)
    assert parts["fine"] == pytest.approx(inference.loss.item(), rel=1e-6)
    found = gradient(model, loss)
    assert not found["llm_to_query.weight"].any()  # the queries are detached
    assert found["q_init"].abs().max() > 1e-6  # but for the first


def test_with_queries_of_the_fine_pass_alone_it_is_a_second_fine_pass(model, batch):
    recipe = ScheduledSampling(fine=1.0, sequential=0.0, rise_to=0.0)
    assert_same(of_recipe(model, batch, recipe), of_recipe(model, batch, MultiFine(num_fine=2, scored="last")))


def test_each_frame_asks_by_one_of_three_queries_as_often_as_its_share_says():
    model, inputs = tiny_model().double(), tiny_batch(size=200, frames=FRAMES)
    batch = model.encode_batch(**inputs)
    with torch.no_grad():
        _, asked = parallel_pass(model, batch, coarse_queries(model, batch), fine=False, score=False)
        _, asked_by_fine = parallel_pass(model, batch, asked, fine=True, score=False)
        sequential = watch(model, batch.patch_cache, batch.frame_mask).queries[:, 0]
        mixed = mixed_queries(model, batch, asked, ScheduledSampling(fine=0.25, sequential=0.6), draws())
    # up to frame 1, and of the fine pass's up to frame 2, all three or two are the same
    sources = [(mixed - source).abs().amax(dim=-1)[:, 3:] < 1e-9 for source in (asked, asked_by_fine, sequential)]
    assert (sum(source.int() for source in sources) == 1).all()
    for source, share in zip(sources, (0.15, 0.25, 0.6), strict=True):
        deviation = (share * (1 - share) / source.numel()) ** 0.5
        assert abs(source.double().mean().item() - share) < 4 * deviation


def test_the_shares_rise_linearly_between_two_points():
    recipe = ScheduledSampling(fine=0.2, sequential=0.8, rise_from=0.25, rise_to=0.75)
    for done, risen in ((0.0, 0.0), (0.25, 0.0), (0.5, 0.5), (0.75, 1.0), (0.99, 1.0)):
        step = recipe.at(done)
        assert (step.fine, step.sequential) == pytest.approx((0.2 * risen, 0.8 * risen))
        assert step.at(0.0) == step  # fixed
    with pytest.raises(ValueError, match=r"fine is 0\.6 and sequential 0\.5, together more than 1, all frames"):
        ScheduledSampling(fine=0.6, sequential=0.5)
    with pytest.raises(ValueError, match=r"rise_to is 0\.2; it must be at least rise_from, 0\.3"):
        ScheduledSampling(rise_from=0.3, rise_to=0.2)


# ---- rollout -----------------------------------------------------------------------------------------


def test_rollout_is_sequential_use_and_untruncated_has_its_gradient(model, batch):
    inference = model.forward_autoregressive(**batch).loss
    expected = {"loss": inference.detach(), **gradient(model, inference)}
    assert_same(of_recipe(model, batch, Rollout()), expected)
    assert_same(of_recipe(model, batch, Rollout(frames=FRAMES)), expected)
    # the way of truncated ones, with nothing to truncate
    other = score_truncated(model, model.encode_batch(**batch), FRAMES).loss
    assert_same({"loss": other.detach(), **gradient(model, other)}, expected)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_truncation_changes_the_gradient_and_not_the_loss(model, batch, frames):
    found, whole = of_recipe(model, batch, Rollout(frames=frames)), of_recipe(model, batch, Rollout())
    torch.testing.assert_close(found["loss"], whole["loss"], rtol=1e-6, atol=0)
    assert not torch.allclose(found["llm_to_query.weight"], whole["llm_to_query.weight"], rtol=1e-3)
    for name in ("dino_to_llm.weight", "llm_to_query.weight", "q_init"):
        assert found[name].abs().max() > 1e-6, name


@pytest.mark.parametrize(
    ("frames", "reached"),
    [
        (None, [set(), {0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}]),
        (1, [set(), {0}, set(), set(), set()]),  # of frame 1 on, a query reaches the run that made it, no frame
        (2, [set(), {0}, {0, 1}, set(), {3}]),
        (3, [set(), {0}, {0, 1}, {0, 1, 2}, set()]),
    ],
)
def test_a_querys_gradient_reaches_the_frames_that_were_read_since_the_cut(frames, reached):
    model = tiny_model().double()
    pixels = BATCHES["full"]["pixel_values"].clone().requires_grad_()
    batch = model.encode_batch(pixels, BATCHES["full"]["input_ids"])
    queries = watch(model, batch.patch_cache, batch.frame_mask, cut_every=frames).queries[:, 0]
    weight = model.llm.model.layers[0].mlp.up_proj.weight
    for t, expected in enumerate(reached):
        total = queries[:, t].square().sum()
        of_pixels, of_weight = torch.autograd.grad(
            total, [pixels, weight], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        assert {s for s in range(FRAMES) if of_pixels[:, s].any()} == expected
        assert of_weight.any() == (t > 0)


def test_a_rollout_without_the_coarse_pass_leaves_its_query_alone():
    model = tiny_model().double()
    assert not of_recipe(model, BATCHES["full"], Rollout())["q_static"].any()
    coarse = model.forward_captioning(**BATCHES["full"], use_fine=False).loss
    found = of_recipe(model, BATCHES["full"], Rollout(coarse_weight=0.5))
    assert_same({"q_static": found["q_static"]}, {"q_static": 0.5 * gradient(model, coarse)["q_static"]})


# ---- consistency -------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["queries", "visual_tokens"])
def test_consistency_is_the_distance_to_sequential_use_and_gone_after_all_passes(model, batch, of):
    for num_fine in (1, 2):
        recipe = Consistency(num_fine=num_fine, weight=0.75, of=of)
        coarse, *_, fine = model.forward_passes(**batch, num_fine=num_fine)
        target = getattr(model.forward_autoregressive(**batch), of).detach()
        there = batch.get("frame_mask", torch.ones(3, FRAMES)).bool()
        found = getattr(fine, of)[there]  # of the frames that are there
        distance = ((found - target[there]) ** 2).sum() / (target[there] ** 2).sum()
        expected = fine.loss + 0.5 * coarse.loss + 0.75 * distance
        assert_same(of_recipe(model, batch, recipe), {"loss": expected.detach(), **gradient(model, expected)})
        assert distance > 1e-6
    if not model.config.mode_tokens:  # with them the parallel passes read something else before the frames
        parts = training_loss(model, batch, Consistency(num_fine=FRAMES, of=of), draws())[1]
        assert parts["distance"] < 1e-10


# ---- cost --------------------------------------------------------------------------------------------


def cost(model: FoveatedVLM, recipe: RecipeOptions) -> int:
    """FLOPs of a step."""
    return count_flops(lambda: training_loss(model, BATCHES["full"], recipe, draws())[0].backward())


@pytest.mark.parametrize("done", [0.0, 0.3, 0.9])
def test_a_step_costs_what_its_equivalent_costs(done):
    """Whatever the share of frames that ask by sequential queries; at first there are none."""
    model, step = tiny_model().double(), ScheduledSampling(fine=0.0, sequential=0.5, rise_to=0.5).at(done)
    (equivalent,) = step.equivalents()
    assert equivalent.sequential == (0.5 if done else 0.0) and hash(equivalent) == hash(step.equivalents()[0])
    assert cost(model, step) == cost(model, equivalent)


def test_what_a_recipe_computes_besides_is_in_its_cost():
    model = tiny_model().double()
    plain = cost(model, Plain())
    assert plain < cost(model, MultiFine(num_fine=3, scored="last")) < cost(model, MultiFine(num_fine=3))
    assert cost(model, ScheduledSampling(fine=0.0, sequential=0.0)) == plain
    assert plain < cost(model, Consistency())
    assert cost(model, Rollout()) < cost(model, Rollout(frames=2)) < cost(model, Rollout(frames=2, coarse_weight=0.5))
    drawn = [cost(model, recipe) for recipe in RandomPasses(most=3).equivalents()]
    assert drawn == [cost(model, MultiFine(num_fine=number, scored="last")) for number in (1, 2, 3)]


def test_a_config_with_recipes_is_read_without_torch():
    code = "import sys; import fvlm_lib.foveated.training_config; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "fvlm_lib.foveated.recipe_options" in loaded.split()
    assert not {"torch", "numpy", "transformers"} & {*loaded.split()}
