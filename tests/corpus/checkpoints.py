"""Foveated checkpoints and vision towers whose files, weights or sizes are wrong."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import DEMO
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from corpus import Case, edited, wrong_json
from fvlm_lib.foveated.checkpoints import load_checkpoint, load_tokenizer, read_training
from fvlm_lib.gap.gap import open_evaluation
from fvlm_lib.screens.loaded_towers import load_tower

RIGHT = DEMO / "S-S" / "step_0100"
POSITIONS = "encoder.dino.embeddings.position_embeddings"
NAN, INF = float("nan"), float("inf")


def _copy(folder: Path) -> None:
    shutil.copytree(RIGHT, folder, dirs_exist_ok=True)


def _right(folder: Path) -> None:
    _copy(folder)
    assert load_checkpoint(folder).config.query_dim == 64
    assert load_tokenizer(folder)("red")["input_ids"] and read_training(folder)["step"] == 100


def _config(folder: Path, keys: tuple[str, ...], value: Any) -> Any:
    _copy(folder)
    edited(folder / "config.json", *keys, value=value)
    return load_checkpoint(folder)


def _training(folder: Path, key: str, value: Any) -> Any:
    _copy(folder)
    edited(folder / "training.json", key, value=value)
    return read_training(folder)


def _tokenizer(folder: Path, keys: tuple[str, ...], value: Any) -> Any:
    _copy(folder)
    edited(folder / "tokenizer.json", *keys, value=value)
    return load_tokenizer(folder)


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Any:
    _copy(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return load_checkpoint(folder)


def _bytes(folder: Path, change: Callable[[bytes], bytes]) -> Any:
    _copy(folder)
    file = folder / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    return load_checkpoint(folder)


def _state_dict(folder: Path, name: str, write: Callable[[Path], Any]) -> Any:
    write(folder / name)
    return load_checkpoint(folder / name)


class _Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("owned",)


def _pickled(value: Any, protocol: int = 2) -> Callable[[Path], Any]:
    return lambda file: file.write_bytes(pickle.dumps(value, protocol))


def _saved(value: Any) -> Callable[[Path], Any]:
    return lambda file: torch.save(value, file)


def _data(folder: Path, **videos: Any) -> Any:
    return open_evaluation(RIGHT, {"kind": "procedural", "split": "test", **videos}, device="cpu")


def _clip(folder: Path) -> None:
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    CLIPVisionModel(config).save_pretrained(folder)


def _tower(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Any:
    _clip(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return load_tower(str(folder))


def _read_tower(folder: Path) -> Any:
    return load_tower(str(folder))


def _cases(run: Callable[..., Any], table: list[tuple[str, tuple[Any, ...], str]], names: str = "") -> list[Case]:
    return [
        Case(name, functools.partial(_call, run=run, arguments=arguments), says, names)
        for name, arguments, says in table
    ]


def _call(folder: Path, run: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return run(folder, *arguments)


_WRONG_VALUES = [
    (keys, value, says)
    for keys, values, says in (
        (("vision_config",), (None, [], "dinov2", 3), "its vision_config is"),
        (("text_config",), (None, [], "llama", 3), "its text_config is"),
        (("model_type",), (None, "llama", 3, ["fvlm"]), "it must be 'fvlm'"),
        (("query_dim",), (0, -1, 1.5, "64"), "query_dim is"),
        (("visual_norm",), (None, "batch", 3), "visual_norm"),
        (("visual_scale",), (0.0, -1.0, "1"), "visual_scale"),
        (("image_size",), (0, -32, 20, "32", [32, 32]), "image_size is"),
        (("image_mean",), (None, 0.5, [0.5], ["a", "b", "c"], [NAN] * 3), "image_mean"),
        (("image_std",), (None, [1.0, 1.0, 0.0], [1.0, 1.0, -1.0], [INF] * 3), "image_std"),
        (("vision_config", "image_size"), (0, [8, 128], None, "32"), "image_size"),
        (("vision_config", "patch_size"), (0, [8, 8], None), "patch_size"),
        (("vision_config", "hidden_dropout_prob"), (0.1,), "it must be 0"),
        (("text_config", "model_type"), ("no-such-model", None, 3), "does not describe a model"),
    )
    for value in values
]  # fmt: skip

CASES = [
    Case("right", _right, None),
    *wrong_json("config.json", _copy, load_checkpoint),
    *wrong_json("training.json", _copy, read_training),
    *wrong_json("tokenizer.json", _copy, load_tokenizer),
    *wrong_json("tokenizer_config.json", _copy, load_tokenizer),
    *_cases(
        _config,
        [(f"{'.'.join(keys)} {value!r}", (keys, value), says) for keys, value, says in _WRONG_VALUES],
        "config.json",
    ),
    *_cases(
        _training,
        [
            (f"training {key} {value!r}", (key, value), f"its {key} is")
            for key, values in (
                ("step", ("100", 1.5, [1], True)),
                ("seed", ("0", {})),
                ("name", (3, ["S"])),
                ("multi_fine", (1,)),
            )
            for value in values
        ],
        "training.json",
    ),
    *_cases(
        _tokenizer,
        [
            (f"tokenizer {key} {value!r}", ((key,), value), "cannot be read")
            for key, values in (
                ("model", (None, [], "BPE", {})),
                ("added_tokens", (None, "a", [3])),
                ("pre_tokenizer", ("a", {})),
            )
            for value in values
        ],
    ),
    *_cases(
        _weights,
        [
            ("a key missing", (lambda w: w.pop("q_init"),), "missing: q_init"),
            ("all keys missing", (lambda w: [w.pop(key) for key in list(w) if key != "q_init"],), "more"),
            ("a key too many", (lambda w: w.update(extra=torch.zeros(1)),), "unexpected: extra"),
            ("another width", (lambda w: w.update(q_init=torch.zeros(1, 5)),), "q_init is [1, 5], not [1, 64]"),
            (
                "a grid too large",
                (lambda w: w.update({POSITIONS: torch.zeros(1, 26, 64)}),),
                "5 x 5 patches, not 4",
            ),
            ("a grid too small", (lambda w: w.update({POSITIONS: torch.zeros(1, 5, 64)}),), "2 x 2 patches, not 4 x 4"),
            ("positions of no grid", (lambda w: w.update({POSITIONS: torch.zeros(1, 8, 64)}),), "8 patches, not 4 x 4"),
            ("a NaN", (lambda w: w["q_init"][0, 0].fill_(NAN),), "q_init has 1 NaN and 0 infinite of 64"),
            ("infinite", (lambda w: w["q_init"][0, :2].fill_(-INF),), "q_init has 0 NaN and 2 infinite of 64"),
            ("all NaN", (lambda w: [value.fill_(NAN) for value in w.values()],), "(and so in"),
        ],
    ),
    *_cases(
        _bytes,
        [
            (name, (change,), "weights cannot be read")
            for name, change in (
                ("empty weights", lambda content: b""),
                ("eight bytes of weights", lambda content: content[:8]),
                ("half of the weights", lambda content: content[: len(content) // 2]),
                ("all but a byte", lambda content: content[:-1]),
                ("a header without end", lambda content: b"\xff" * 8 + content[8:]),
                ("a text for weights", lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
                ("a pickle for weights", lambda content: pickle.dumps({"q_init": 1})),
            )
        ],
    ),
    *_cases(
        _state_dict,
        [
            ("a pickle with code", ("a.pt", _pickled(_Code())), "it wants to call posix.mkdir"),
            ("a zip with code", ("a.pt", _saved({"q_init": _Code()})), "it wants to call posix.mkdir"),
            ("a newer pickle", ("a.pt", _pickled({"a": 1}, 5)), "a.pt"),
            ("a text as a pickle", ("a.pt", lambda file: file.write_text("hello")), "weights cannot be read"),
            ("an empty pickle", ("a.pt", lambda file: file.write_bytes(b"")), "weights cannot be read"),
            ("a list of tensors", ("a.pt", _saved([torch.zeros(1)])), "holds no state dict"),
            ("a tensor alone", ("a.pt", _saved(torch.zeros(1))), "holds no state dict"),
            ("an empty state dict", ("a.pt", _saved({})), "holds no state dict"),
            ("numbers in a state dict", ("a.pt", _saved({"q_init": 3})), "q_init are no tensors"),
            ("another model's", ("a.pt", _saved({"bert.weight": torch.zeros(1)})), "is no foveated VLM"),
            ("another ending", ("a.bin2", lambda file: file.write_bytes(b"")), "is no state dict"),
        ],
    ),
    Case("no such folder", lambda folder: load_checkpoint(folder / "none"), "there is no checkpoint folder", "none"),
    Case("an empty folder", load_checkpoint, "so it is no checkpoint"),
    Case("no tokenizer", load_tokenizer, "has no tokenizer"),
    *[
        Case(f"videos {videos}", functools.partial(_data, **videos), says)
        for videos, says in (
            ({"num_frames": 128}, "takes 258 positions, but the model has 256"),
            ({"num_frames": 5000}, "takes 10002 positions"),
            ({"grid": 5}, "frames of 40 x 40 pixels, but the model sees 32 x 32"),
            ({"grid": 3}, "frames of 24 x 24 pixels, but the model sees 32 x 32"),
        )
    ],
    *wrong_json("preprocessor_config.json", _clip, _read_tower),
    *_cases(
        _tower,
        [
            (
                "a tower without positions",
                (lambda w: w.pop("embeddings.position_embedding.weight"),),
                "missing: embeddings",
            ),
            (
                "a tower of another grid",
                (lambda w: w.update({"embeddings.position_embedding.weight": torch.zeros(10, 16)}),),
                "3 x 3 patches, not 4 x 4",
            ),
            (
                "a tower with a NaN",
                (lambda w: w["post_layernorm.bias"][0].fill_(NAN),),
                "bias has 1 NaN",
            ),
        ],
    ),
]
