"""Vision-language models whose files, templates or weights are wrong, and what cannot be asked of them."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import DEMO
from safetensors.torch import load_file, save_file

from corpus import Case, edited, wrong_json
from fvlm_lib.vlm.stream import Decoding, VLMStream
from fvlm_lib.vlm.vlms import load_vlm

RIGHT = DEMO / "llava-tiny"
NAN, INF = float("nan"), float("inf")
FILES = (
    "config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
)  # fmt: skip
LOOP = "{% for i in range(10**5) %}{% for j in range(10**5) %}"
END = "{% endfor %}{% endfor %}"
TEMPLATES = {
    "broken off": ("{% for x in", "cannot be used (unexpected 'end of template', line 1)"),
    "without end": ("{% for m in messages %}{{ m }}", "cannot be used ("),
    "of an unknown filter": ("{{ messages|nope }}", "No filter named 'nope'"),
    "of an unknown tag": ("{% nope %}", "unknown tag 'nope'"),
    "of an undefined name": ("{{ nope.x }}", "'nope' is undefined"),
    "of too wide a range": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "looping silently": (f"{LOOP}{END}", "does not end within 2 seconds"),
    "looping and writing": (f"{LOOP}a{END}", "does not end within 2 seconds"),
    "calling itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
    "filling memory": ("{{ 'a' * 10**10 }}", "needs more than 4 GiB of memory"),
    "writing much": ("{{ 'a' * 10**7 }}", "gives 10,000,000 characters"),
    "of a huge number": ("{{ 10 ** (10 ** 8) }}", "cannot be used ("),
    "reaching for classes": ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
    "reaching for globals": ("{{ cycler.__init__.__globals__.os }}", "access to attribute '__init__'"),
    "changing its messages": ("{{ messages.append(1) }}", "access to attribute 'append'"),
    "including a file": ("{% include '/etc/passwd' %}", "no loader for this environment"),
    "refusing images": ("{{ raise_exception('text alone') }}", "(text alone)"),
    "without the image": ("{{ messages[0].content[1].text }}", "puts into the prompt 0 image tokens"),
    "with two images": ("<image><image>", "puts into the prompt 2 image tokens"),
    "of nothing": ("{# nothing #}", "puts into the prompt 0 image tokens"),
}  # fmt: skip


def _copy(folder: Path) -> None:
    shutil.copytree(RIGHT, folder, dirs_exist_ok=True)


def _load(folder: Path) -> Any:
    return load_vlm(str(folder))


def _right(folder: Path) -> None:
    assert VLMStream(load_vlm(str(RIGHT)), "What is it?").prompt_ids


def _template(folder: Path, template: str) -> Any:
    _copy(folder)
    (folder / "chat_template.jinja").write_text(template)
    return VLMStream(load_vlm(str(folder)), "What is it?")


def _edited(folder: Path, file: str, keys: tuple[str, ...], value: Any) -> Any:
    _copy(folder)
    edited(folder / file, *keys, value=value)
    return VLMStream(load_vlm(str(folder)), "What is it?")


def _removed(folder: Path, file: str) -> Any:
    _copy(folder)
    (folder / file).unlink()
    return VLMStream(load_vlm(str(folder)), "What is it?")


def _weights(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Any:
    _copy(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: changed for name, value in weights.items() if (changed := change(name, value)) is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return load_vlm(str(folder))


def _bytes(folder: Path, change: Callable[[bytes], bytes]) -> Any:
    _copy(folder)
    file = folder / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    return load_vlm(str(folder))


def _prompt(folder: Path, prompt: str, **decoding: Any) -> Any:
    return VLMStream(load_vlm(str(RIGHT)), prompt, decoding=Decoding(**decoding))


def _prefill(folder: Path, prefill: Any, tolerance: float | None = None) -> Any:
    return VLMStream(load_vlm(str(RIGHT)), "What?", prefill=prefill, prefill_tolerance=tolerance)


def _gated(folder: Path, keys: tuple[str, ...], value: Any) -> Any:
    _copy(folder)
    edited(folder / "config.json", *keys, value=value)
    return VLMStream(load_vlm(str(folder)), "What is it?", prefill="gated")


def _case(name: str, run: Callable[..., Any], says: str, names: str = "", **options: Any) -> Case:
    return Case(name, functools.partial(run, **options), says, names)


def _changed(name: str, value: torch.Tensor, part: str, change: Callable[[torch.Tensor], Any]) -> torch.Tensor | None:
    return change(value) if part in name else value


def _first(values: torch.Tensor, value: float) -> torch.Tensor:
    values.view(-1)[0] = value
    return values


_EDITS = [
    ("config.json", ("model_type",), "bert", "is of the architecture 'bert'; known are llava"),
    ("config.json", ("model_type",), None, "has no config that can be loaded"),
    ("config.json", ("vision_config",), None, "vision_config"),
    ("config.json", ("vision_config",), [], "vision_config"),
    ("config.json", ("text_config",), None, "text_config"),
    ("config.json", ("text_config",), "llama", "text_config"),
    ("config.json", ("text_config", "model_type"), "no-such-model", "has no config that can be loaded"),
    ("config.json", ("text_config", "hidden_size"), 48, "do not fit the config"),
    ("config.json", ("text_config", "num_hidden_layers"), 99, "do not fit the config"),
    ("config.json", ("vision_config", "image_size"), 112, "8 x 8"),
    ("config.json", ("vision_config", "patch_size"), 7, "do not fit the config"),
    ("config.json", ("vision_feature_layer",), 99, "read_layer is 99"),
    ("config.json", ("vision_feature_layer",), [1, 2], "do not fit the config"),
    ("config.json", ("image_token_index",), 3, "is not its model's, of id 3"),
    ("processor_config.json", ("image_processor", "size"), {"height": 196, "width": 196}, "14 x 14 patches"),
    ("processor_config.json", ("image_processor", "size"), {"height": 112, "width": 224}, "8 x 16 patches"),
    ("processor_config.json", ("image_processor",), None, "processor"),
    ("processor_config.json", ("image_processor",), [], "processor"),
    ("processor_config.json", ("image_processor", "size"), "large", "processor"),
    ("tokenizer.json", ("model",), None, "processor"),
]  # fmt: skip

CASES = [
    Case("right", _right, None),
    *(case for file in FILES for case in wrong_json(file, _copy, _load)),
    *(
        _case(f"template {name}", _template, says, "the chat template of /", template=template)
        for name, (template, says) in TEMPLATES.items()
    ),
    *(
        _case(f"{file}: {'.'.join(keys)} {json.dumps(value)}", _edited, says, file=file, keys=keys, value=value)
        for file, keys, value, says in _EDITS
    ),
    _case("no config", _removed, "has no config that can be loaded", file="config.json"),
    _case("no weights", _removed, "has no model that can be loaded", file="model.safetensors"),
    _case("no chat template", _removed, "has no chat template; write the whole prompt", file="chat_template.jinja"),
    _case("no tokenizer", _removed, "processor", file="tokenizer.json"),
    _case("no processor", _removed, "processor", file="processor_config.json"),
    *(
        _case(name, _weights, says, change=functools.partial(_changed, part=part, change=change))
        for name, says, part, change in (
            ("a weight missing", "missing: ", "linear_1.weight", lambda value: None),
            ("a NaN", "linear_1.bias has 1 NaN and 0 inf", "linear_1.bias", lambda value: _first(value, NAN)),
            ("infinite", "linear_1.bias has 0 NaN and 64 inf", "linear_1.bias", lambda value: value.fill_(INF)),
            ("all NaN", "(and so in", "", lambda value: value.fill_(NAN)),
            ("another grid", "3 x 3 patches, not 16", "position_embedding.weight", lambda value: value[:10].clone()),
            ("another width", "mismatched: ", "linear_1.bias", lambda value: value[:10].clone()),
        )
    ),
    *(
        _case(name, _bytes, "has no model that can be loaded", change=change)
        for name, change in (
            ("empty weights", lambda content: b""),
            ("half of the weights", lambda content: content[: len(content) // 2]),
            ("a text for weights", lambda content: b"version https://git-lfs.github.com/spec/v1\n"),
        )
    ),
    Case("no such folder", lambda folder: load_vlm(str(folder / "none")), "there is no folder", "none"),
    Case("an empty folder", _load, "has no config that can be loaded"),
    _case("two images asked", _prompt, "the prompt has 2 image tokens", prompt="<image> <image>"),
    _case("a prompt beyond the context", _prompt, "are more than the 2048 positions", prompt="word " * 2000),
    _case("an answer beyond the context", _prompt, "up to 5000 of the answer", prompt="What?", max_new_tokens=5000),
    _case(
        "a prefill that there is none of",
        _prefill,
        "it must be one of full, exact",
        "prefill is 'some'",
        prefill="some",
    ),
    _case(
        "a tolerance of nothing", _prefill, "prefill is 'exact'", "prefill_tolerance", prefill="exact", tolerance=0.1
    ),
    _case("a tolerance below 0", _prefill, "must be at least 0", "prefill_tolerance", prefill="gated", tolerance=-0.1),
    _case(
        "gated, of positions that depend on the length",
        _gated,
        "its rotary positions are dynamic",
        "use the exact prefix",
        keys=("text_config", "rope_parameters"),
        value={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    ),
    *(
        _case(f"decoding {options}", _prompt, says, prompt="What?", **options)
        for options, says in (
            ({"min_new_tokens": 33}, "min_new_tokens is 33, more than max_new_tokens, which is 32"),
            ({"max_new_tokens": 0}, "max_new_tokens is 0"),
            ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0"),
            ({"num_beams": 0}, "num_beams is 0"),
            ({"seed": None}, "seed is null"),
            ({"temperature": INF}, "temperature is inf"),
            ({"top_p": 1.5}, "top_p is 1.5"),
        )
    ),
]
