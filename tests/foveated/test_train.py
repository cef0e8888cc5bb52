"""Training: it learns, resumes to the same weights, and never overwrites."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from fvlm_lib.data.screen_videos import ScreenVideos
from fvlm_lib.data.videos import ProceduralVideos, draw_videos
from fvlm_lib.foveated import train, train_command
from fvlm_lib.foveated.checkpoints import load_checkpoint
from fvlm_lib.foveated.flops import count_flops
from fvlm_lib.foveated.recipe_options import (
    Consistency,
    MultiFine,
    Plain,
    RandomPasses,
    Rollout,
    ScheduledSampling,
    Then,
)
from fvlm_lib.foveated.recipes import training_loss
from fvlm_lib.foveated.training_config import read_training_config
from fvlm_lib.gap.gap import open_evaluation

TINY = train.TrainingConfig(
    vision_width=16,
    vision_heads=2,
    text_width=16,
    text_heads=2,
    text_mlp_width=16,
    videos={"num_frames": 4},
    batch_size=4,
    steps=12,
    warmup_steps=4,
    checkpoint_steps=(6, 12),
    state_every=5,
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder).state_dict()


def test_a_run_leaves_checkpoints_and_its_curve(tmp_path):
    out = tmp_path / "run"
    train.train(replace(TINY, recipe=MultiFine(num_fine=2, weight=0.5)), out, seed=3, name="tiny")
    rows = list(csv.DictReader((out / "losses.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert set(rows[0]) == {"step", "learning_rate", "gradient_norm", "loss", "coarse", "fine", "fine_2"}
    for row in rows:
        parts = float(row["fine"]) + 0.5 * float(row["coarse"]) + 0.5 * float(row["fine_2"])
        assert float(row["loss"]) == pytest.approx(parts, rel=1e-4)
    for step in (6, 12):
        training = json.loads((out / f"step_{step:04d}" / "training.json").read_text())
        assert (training["step"], training["seed"], training["name"]) == (step, 3, "tiny")
        assert training["multi_fine"] is True and training["training_flops"] % step == 0
        assert training["num_parameters"] == sum(p.numel() for p in load_checkpoint(out / "step_0006").parameters())
    assert not (out / train.STATE).exists()


@pytest.mark.parametrize(
    "recipes",
    [
        {"recipe": Plain()},
        {"recipe": MultiFine(num_fine=3, scored="last")},
        {"recipe": RandomPasses(most=3)},
        {"recipe": ScheduledSampling()},
        {"recipe": Rollout(frames=2)},
        {"recipe": Consistency()},
        {"recipe": Rollout(), "then": Then(after=0.5, recipe=MultiFine())},  # q_static begins behind the last state
        {"recipe": Plain(), "then": Then(after=0.25, recipe=ScheduledSampling())},
    ],
    ids=lambda recipes: "-".join(getattr(recipe, "recipe", recipe).kind for recipe in recipes.values()),
)
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path, monkeypatch, recipes):
    config = replace(TINY, **recipes)
    train.train(config, tmp_path / "whole", name="tiny")

    class Interrupted(Exception):
        pass

    original = train.learning_rate_at

    def interrupting(index, config):
        if index == 7:  # step 8; the last state is of step 5
            raise Interrupted
        return original(index, config)

    monkeypatch.setattr(train, "learning_rate_at", interrupting)
    with pytest.raises(Interrupted):
        train.train(config, tmp_path / "cut", name="tiny")
    monkeypatch.setattr(train, "learning_rate_at", original)
    train.train(config, tmp_path / "cut", name="tiny")
    whole, cut = (weights(tmp_path / name / "step_0012") for name in ("whole", "cut"))
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name
    assert (tmp_path / "whole" / "losses.csv").read_text() == (tmp_path / "cut" / "losses.csv").read_text()
    told = [json.loads((tmp_path / name / "step_0012" / "training.json").read_text()) for name in ("whole", "cut")]
    assert [told[0].pop("seconds_per_step") > 0, told[1].pop("seconds_per_step") > 0] == [True, True]
    assert told[0] == told[1]


def test_a_second_recipe_takes_over_and_each_step_costs_what_its_own_does(tmp_path):
    then = Then(after=0.5, recipe=ScheduledSampling(fine=0.0, sequential=1.0, rise_to=0.5))
    config = replace(TINY, then=then, checkpoint_steps=(3, 6, 8, 12))
    out = tmp_path / "run"
    train.train(config, out, name="tiny")
    rows = list(csv.DictReader((out / "losses.csv").open()))
    assert [*rows[0]] == ["step", "learning_rate", "gradient_norm", "loss", "coarse", "fine"]
    assert [config.recipe_at(index).kind for index in (0, 5, 6, 11)] == ["plain"] * 2 + ["scheduled_sampling"] * 2
    shares = [config.recipe_at(index).sequential for index in range(6, 12)]
    assert shares == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])

    videos = draw_videos(config.drawn_videos(0))
    model, batch = train.build_model(config, videos, 0), videos.batch(0, 4)

    def cost(index: int) -> int:
        options, generator = config.recipe_at(index), train.step_generator(0, index)
        return count_flops(lambda: training_loss(model, batch, options, generator)[0].backward())

    costs = [cost(index) for index in range(12)]
    assert costs[6] == costs[5] < costs[7]
    for step in config.checkpoint_steps:
        told = json.loads((out / f"step_{step:04d}" / "training.json").read_text())
        assert told["training_flops"] == sum(costs[:step]) and told["multi_fine"] is (step > 7)


def test_passes_that_are_drawn_are_told_and_cost_their_mean(tmp_path):
    config = replace(TINY, recipe=RandomPasses(most=2))
    train.train(config, tmp_path / "run", name="tiny")
    rows = list(csv.DictReader((tmp_path / "run" / "losses.csv").open()))
    assert {(bool(row["fine"]), bool(row["fine_2"])) for row in rows} == {(True, False), (False, True)}
    flops = []
    for number in (1, 2):
        alone = replace(TINY, recipe=MultiFine(num_fine=number, scored="last"), steps=1, checkpoint_steps=(1,))
        train.train(alone, tmp_path / str(number), name="tiny")
        told = json.loads((tmp_path / str(number) / "step_0001" / "training.json").read_text())
        assert told["multi_fine"] == (number == 2)
        flops.append(told["training_flops"])
    told = json.loads((tmp_path / "run" / "step_0012" / "training.json").read_text())
    assert told["training_flops"] == 6 * sum(flops) and told["multi_fine"] is True


def test_random_numbers_of_steps_are_those_of_the_step_and_the_seed():
    first = {torch.rand((), generator=train.step_generator(seed, index)).item() for seed in (0, 1) for index in (0, 1)}
    assert len(first) == 4
    again = torch.rand((), generator=train.step_generator(1, 1)).item()
    assert again in first and again != torch.rand((), generator=train.step_generator(1 << 31, 1)).item()


def test_nothing_is_overwritten(tmp_path):
    out = tmp_path / "run"
    train.train(TINY, out, name="tiny")
    with pytest.raises(FileExistsError, match="finished"):
        train.train(TINY, out, name="tiny")
    with pytest.raises(ValueError, match="another config or seed"):
        train.train(TINY, out, seed=1, name="tiny")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="not a training run"):
        train.train(TINY, tmp_path / "mine", name="tiny")


def test_the_loss_falls():
    config = replace(TINY, learning_rate=1e-2)
    videos = ProceduralVideos(num_frames=4)
    model = train.build_model(config, videos, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss, parts = training_loss(model, videos.batch(0, 8), config.recipe, train.step_generator(0, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(parts["fine"])
    assert losses[-1] < 0.5 * losses[0]


def test_a_batch_starts_near_the_loss_of_guessing():
    """The initial weights neither explode nor favour a word: about ln(vocabulary) nats a token."""
    for ladder, run in (("ladder", "S-S"), ("ladder", "M-S"), ("screens", "screens")):
        config = read_training_config(ROOT / "config" / f"{ladder}.yaml", run)
        videos = draw_videos(config.drawn_videos(0))
        model, generator = train.build_model(config, videos, 0), train.step_generator(0, 0)
        _, parts = training_loss(model, videos.batch(0, 16), config.recipe, generator)
        assert math.log(len(videos.vocabulary)) - 0.4 < parts["fine"] < math.log(len(videos.vocabulary)) + 1.6


def test_a_run_on_screens_leaves_a_checkpoint_that_is_evaluated_on_them(tmp_path):
    config = replace(TINY, videos={"kind": "screens", "num_frames": 3}, steps=2, warmup_steps=1, checkpoint_steps=(2,))
    train.train(config, tmp_path / "run", seed=1, name="screens")
    folder = tmp_path / "run" / "step_0002"
    model, videos = open_evaluation(folder, {"kind": "screens", "split": "test", "num_frames": 3}, device="cpu")
    assert videos == ScreenVideos("test", num_frames=3) and model.config.vision_config.patch_size == 16
    assert json.loads((folder / "training.json").read_text())["config"]["videos"] == config.videos
    with pytest.raises(ValueError, match="grid is 4, frames of 32 x 32 pixels, but the model sees 128 x 128"):
        open_evaluation(folder, {"kind": "procedural"}, device="cpu")
    with pytest.raises(ValueError, match="kind is screens, frames of 128 x 128 pixels, but the model sees 32 x 32"):
        open_evaluation(ROOT / "checkpoints" / "demo" / "S-S" / "step_0100", {"kind": "screens"}, device="cpu")


def test_the_videos_of_a_training_are_of_its_seed_and_procedural_where_no_kind_is_named():
    assert draw_videos(TINY.drawn_videos(3)) == ProceduralVideos("train", 3, num_frames=4)
    for run in ("screens", "screens-multi"):
        config = read_training_config(ROOT / "config" / "screens.yaml", run)
        assert draw_videos(config.drawn_videos(5)) == ScreenVideos("train", 5)
        assert config.recipe == (MultiFine(num_fine=2, weight=0.5) if run == "screens-multi" else Plain())


def test_the_learning_rate_warms_up_and_falls():
    config = train.TrainingConfig(learning_rate=1.0, warmup_steps=10, steps=100, checkpoint_steps=(100,))
    rates = [train.learning_rate_at(step, config) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == rates[10] == rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    stays = replace(config, last_rate=1.0)
    assert {train.learning_rate_at(step, stays) for step in range(10, 100)} == {1.0}


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match="tiny: the loss is nan at step"):
        train.train(replace(TINY, learning_rate=1e30, gradient_clip=1e30), tmp_path / "run", name="tiny")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("runs: {A: {}}", "has no run 'B'; it has A"),
        ("runs: {B: {stepss: 3}}", "ladder.yaml: run 'B' has the unknown key 'stepss'; did you mean 'steps'?"),
        ("runs: {B: {batch_size: many}}", "ladder.yaml: run 'B': batch_size is 'many'; it must be a whole number"),
        ("runs: {B: {text_heads: 3}}", "text_width is 64, which text_heads, 3, does not divide"),
        ("runs: {B: {videos: {grid: 0}}}", "videos: grid is 0; it must be at least 2"),
        ("runs: {B: {videos: {kind: folder, path: x}}}", "videos: kind is 'folder'; it must be one of 'procedural', "),
        (
            "runs: {B: {videos: {kind: screens, grid: 4}}}",
            "videos has the unknown key 'grid'; known are split, seed, num",
        ),
        (
            "runs: {B: {recipe: {kind: multifine}}}",
            "run 'B': recipe.kind is 'multifine'; it must be one of 'plain', 'multi_fine', 'random_passes', "
            "'scheduled_sampling', 'rollout', 'consistency'; did you mean 'multi_fine'?",
        ),
        ("runs: {B: {recipe: {num_fine: 2}}}", "run 'B': recipe lacks kind, which must be one of 'consistency', "),
        ("runs: {B: {recipe: {kind: multi_fine, num_fine: 0}}}", "recipe.num_fine is 0; it must be at least 1"),
        ("runs: {B: {recipe: {kind: plain, num_fine: 2}}}", "recipe has the unknown key 'num_fine'; known are coarse"),
        (
            "runs: {B: {recipe: {kind: scheduled_sampling, fine: 0.9}}}",
            "run 'B': recipe: fine is 0.9 and sequential 0.5, together more than 1, all frames",
        ),
        ("runs: {B: {then: {after: 1, recipe: {kind: plain}}}}", "then.after is 1; it must be below 1"),
        ("runs: {B: {then: {after: 0.8}}}", "run 'B': then lacks recipe"),
        ("runs: {B: {then: {after: 0.8, recipe: {kind: rollout, frames: 0}}}}", "then.recipe.frames is 0; it must be"),
        ("runs: {B: 3}", "ladder.yaml: runs.B is 3; it must be a mapping"),
        ("runs: {B: {steps: 10}}", "checkpoint_steps has 100"),
        ("runs: {B: {learning_rate: 0}}", "learning_rate is 0; it must be above 0"),
        ("run: {B: {}}", "ladder.yaml has the unknown key 'run'; did you mean 'runs'?"),
        ("null", "ladder.yaml is null; it must be a mapping"),
        ("runs: [B]", "ladder.yaml: runs is ['B']; it must be a mapping"),
        ("runs: {", "ladder.yaml cannot be read as YAML"),
    ],
)
def test_a_wrong_config_ends_with_one_sentence(tmp_path, capsys, content, message):
    (tmp_path / "ladder.yaml").write_text(content)
    assert train_command.main([str(tmp_path / "ladder.yaml"), "--run", "B", "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
