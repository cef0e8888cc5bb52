"""Loading is strict, says what is wrong, and never executes a file."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import DEMO, tiny_model
from safetensors.torch import load_file, save_file

from fvlm_lib.checkpoints import CheckpointError, load_checkpoint


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_comes_back_in_eval_mode_and_the_asked_dtype(folder):
    model = load_checkpoint(folder, dtype=torch.float64)
    assert not model.training
    assert model.q_init.dtype == torch.float64
    assert torch.equal(model.q_init.float(), tiny_model().q_init)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("q_init"), "missing: q_init"),
        (lambda w: w.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda w: w.update(q_init=torch.zeros(1, 5)), "mismatched.*q_init"),
    ],
)
def test_keys_that_do_not_fit_are_listed(folder, change, message):
    edit_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_truncated_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        load_checkpoint(folder)


def test_a_pickle_is_not_even_opened(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        load_checkpoint(folder)
    assert not (folder / "owned").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not valid JSON"),
        ({"model_type": "bert"}, "model_type 'bert'; it must be 'fvlm'"),
        (
            {"model_type": "fvlm", "text_config": {"model_type": "no-such-model"}},
            r"does not describe a model.*no-such-model",
        ),
        ({"model_type": "fvlm", "visual_norm": "batch"}, r"does not describe a model.*batch"),
    ],
)
def test_a_config_that_is_no_foveated_vlm(folder, config, message):
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_missing_folder_or_config(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint folder .*nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_checkpoint(tmp_path)


def test_the_demo_ladder_is_complete_and_small(tmp_path):
    folders = sorted(DEMO.glob("*/step_*"))
    assert len(folders) == 12
    assert sum(f.stat().st_size for f in DEMO.rglob("*") if f.is_file()) < 20e6
    for folder in folders:
        training = json.loads((folder / "training.json").read_text())
        assert training["seed"] == 0
        assert training["step"] == int(folder.name[5:])
        assert training["library_hash"]
        assert (folder.parent / "losses.csv").exists()


def test_a_hub_id_is_no_folder_and_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        load_checkpoint("someone/some-model")
    shutil.rmtree(tmp_path, ignore_errors=True)
