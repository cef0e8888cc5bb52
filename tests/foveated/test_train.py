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
    train.train(replace(TINY, multi_fine_weight=0.5), out, seed=3, name="tiny")
    rows = list(csv.DictReader((out / "losses.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert set(rows[0]) == {"step", "learning_rate", "gradient_norm", "loss", "coarse", "fine", "fine_2"}
    for row in rows:
        parts = float(row["fine"]) + 0.5 * float(row["coarse"]) + 0.5 * float(row["fine_2"])
        assert float(row["loss"]) == pytest.approx(parts, rel=1e-4)
    for step in (6, 12):
        training = json.loads((out / f"step_{step:04d}" / "training.json").read_text())
        assert (training["step"], training["seed"], training["name"]) == (step, 3, "tiny")
        assert training["training_flops"] % step == 0
        assert training["num_parameters"] == sum(p.numel() for p in load_checkpoint(out / "step_0006").parameters())
    assert not (out / train.STATE).exists()


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    train.train(TINY, tmp_path / "whole", name="tiny")

    class Interrupted(Exception):
        pass

    original, calls = train.training_loss, []

    def interrupting(*args):
        calls.append(1)
        if len(calls) == 9:  # one call counts FLOPs, so this is step 8; the last state is of step 5
            raise Interrupted
        return original(*args)

    monkeypatch.setattr(train, "training_loss", interrupting)
    with pytest.raises(Interrupted):
        train.train(TINY, tmp_path / "cut", name="tiny")
    monkeypatch.setattr(train, "training_loss", original)
    train.train(TINY, tmp_path / "cut", name="tiny")
    whole, cut = (weights(tmp_path / name / "step_0012") for name in ("whole", "cut"))
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name
    assert (tmp_path / "whole" / "losses.csv").read_text() == (tmp_path / "cut" / "losses.csv").read_text()


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
        loss, parts = train.training_loss(model, videos.batch(0, 8), config)
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
        _, parts = train.training_loss(train.build_model(config, videos, 0), videos.batch(0, 16), config)
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
        assert (config.multi_fine_weight > 0) == (run == "screens-multi")


def test_the_learning_rate_warms_up_and_falls():
    config = train.TrainingConfig(learning_rate=1.0, warmup_steps=10, steps=100, checkpoint_steps=(100,))
    rates = [train.learning_rate_at(step, config) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == rates[10] == rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


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
