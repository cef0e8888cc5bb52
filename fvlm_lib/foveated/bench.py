"""`fvlm bench-stream`: what a frame of a foveated stream costs when it is encoded by what changed, by how much did.

Frames are random and change in random patches; what they show makes no difference to the time but for the rows that a
gated update finds moved, which depend on the weights. How a time is taken is `timing.py`'s subject. What takes seconds
to import is imported behind the options.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvlm_lib.options import Parser, add_device, add_pack, add_repeats, add_threads, option, pack_options, run
from fvlm_lib.schema import Share
from fvlm_lib.vision.settings import DifferentialSettings, read_settings

if TYPE_CHECKING:
    from torch import Tensor

    from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM

# vision tower and frame of a model of random weights, with SmolLM2-135M's sizes as its language model
RANDOM: dict[str, dict[str, int]] = {
    "random:dinov2-small-224": {
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 14, "image_size": 224,
    },
    "random:vit-l-14-336": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14, "image_size": 336,
    },
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm bench-stream",
        description="Time the frames of a foveated stream whose cache is updated where patches changed, by the share "
        "of patches that changed, beside a stream that encodes every frame in full, in turn; and one position of the "
        "language model, which every frame costs in any case. Frames are random. Prints medians in ms with quartiles, "
        "and the ratio to the plain stream round by round; the last line is JSON.",
        epilog="example: fvlm bench-stream --checkpoint random:dinov2-small-224 --shares 0 0.05 --repeats 5",
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        help=f"folder, state dict file or hub id; or, of random weights and real size, one of {', '.join(RANDOM)}",
    )
    add(
        "--shares",
        type=option(Share),
        nargs="+",
        default=[0.0, 0.01, 0.05, 0.2, 0.5, 1.0],
        metavar="X",
        help="of the patches that change from one frame to the next; default 0 0.01 0.05 0.2 0.5 1",
    )
    add("--settings", type=Path, metavar="FILE.yaml", help="of the differential encoder; default: defaults")
    add_pack(parser)
    add_repeats(parser)
    add_threads(parser, 1)
    add_device(parser, default="cpu")
    args = parser.parse_args(argv)
    return run(parser.prog, lambda: _measure(args))


def random_model(name: str) -> FoveatedVLM:
    """A model of `RANDOM`'s sizes, untrained."""
    import torch
    from transformers import Dinov2Config, LlamaConfig

    from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig
    from fvlm_lib.foveated.layouts import SMOLLM2
    from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM

    torch.manual_seed(0)
    vision = Dinov2Config(**RANDOM[name], mlp_ratio=4, use_mask_token=False)  # type: ignore[arg-type]
    return FoveatedVLM(FoveatedVLMConfig(vision_config=vision, text_config=LlamaConfig(**SMOLLM2["SmolLM2-135M"])))


def changing_frame(frame: Tensor, num_patches: int, patch_size: int, generator: Any) -> Tensor:
    """A copy of the frame (3, height, width) in [-1, 1] in which every pixel of `num_patches` random patches is new."""
    import torch

    rows, columns = (side // patch_size for side in frame.shape[1:])
    chosen = torch.randperm(rows * columns, generator=generator)[:num_patches]
    mask = torch.zeros(rows * columns, dtype=torch.bool).index_fill(0, chosen, True).reshape(rows, columns)
    mask = mask.repeat_interleave(patch_size, 0).repeat_interleave(patch_size, 1)
    drawn = 2 * torch.rand(frame.shape, generator=generator) - 1
    return torch.where(mask, drawn, frame)


def _measure(args: argparse.Namespace) -> None:
    packing = pack_options(args)
    settings = read_settings(args.settings) if args.settings else DifferentialSettings()
    if args.checkpoint.startswith("random:") and args.checkpoint not in RANDOM:
        raise ValueError(f"there is no {args.checkpoint}; there are {', '.join(RANDOM)}")

    import torch

    from fvlm_lib.devices import pick_device
    from fvlm_lib.foveated.checkpoints import load_checkpoint
    from fvlm_lib.foveated.stream import FoveatedStream
    from fvlm_lib.timing import summarize_times, time_in_turn

    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    if args.checkpoint in RANDOM:
        model = random_model(args.checkpoint)
        model.to(device)  # type: ignore[arg-type]
    else:
        model = load_checkpoint(args.checkpoint, device=device)
    size, patch_size = model.config.image_size, model.config.vision_config.patch_size
    num_patches = (size // patch_size) ** 2
    rounds, names = args.repeats + args.warmup, [f"{share:.0%} changed" for share in args.shares]
    if (needed := rounds * len(names) + 1) > (positions := model.config.text_config.max_position_embeddings):
        raise ValueError(f"so many rounds and shares are {needed} frames; the language model has {positions} positions")

    counts = [math.ceil(round(share * num_patches, 6)) for share in args.shares]
    generator = torch.Generator().manual_seed(0)
    drawn = [changing_frame(torch.zeros(3, size, size), num_patches, patch_size, generator)]
    for count in counts * rounds:  # in the order in which they are timed
        drawn.append(changing_frame(drawn[-1], count, patch_size, generator))
    frames = [frame.to(model.device, model.dtype) for frame in drawn]
    updated, plain = FoveatedStream(model, settings, **packing), FoveatedStream(model)
    updated.push(frames[0])
    left = iter(frames[1:])
    token = plain.push(frames[0])
    calls = {
        "plain stream": lambda: plain.push(frames[0]),
        **{name: lambda: updated.push(next(left)) for name in names},
    }
    with torch.no_grad():
        calls["language model alone"] = lambda: model.run_llm(token[:, None], None, plain.past_key_values)
        table = summarize_times(time_in_turn(calls, args.repeats, args.warmup), "plain stream")
    table["faster"] = 1 / table["ratio"]
    assert updated.encoder is not None
    sizes = (sum(p.numel() for p in part.parameters()) for part in (model.encoder.dino, model.llm))
    print(
        "{} (tower {:,} parameters, language model {:,}, {}), frames {} x {}, {} patches, {} thread(s), {}".format(
            args.checkpoint, *sizes, model.dtype, size, size, num_patches, args.threads, device
        )
    )
    print(table.round(3).to_markdown())
    taken = {path: count for path, count in updated.encoder.statistics.frames.items() if count}
    print(f"frames by path: {taken}; {updated.encoder.nbytes / 1e6:.0f} MB kept")
    facts = {"benchmark": "stream", **vars(args), "settings": str(args.settings), "n": args.repeats}
    facts |= {
        "frames": taken,
        "kept_bytes": updated.encoder.nbytes,
        "changed_patches": dict(zip(names, counts, strict=True)),
    }
    print(json.dumps(facts | {name: row.round(4).to_dict() for name, row in table.iterrows()}))


if __name__ == "__main__":
    sys.exit(main())
