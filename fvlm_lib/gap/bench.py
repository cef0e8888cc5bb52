"""What one evaluation of all forward modes costs beside coarse->fine alone, since they share one vision encode.

`fvlm bench` gives the model random pixels and tokens of the size it wants: what they show makes no difference to
the time. How a time is taken is `timing.py`'s subject. What takes seconds to import is imported behind the options.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from typing import TYPE_CHECKING, Any

from fvlm_lib.options import Parser, add_device, add_repeats, add_threads, option, run
from fvlm_lib.schema import BatchSize, Count

if TYPE_CHECKING:
    from torch import Tensor

    from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM


def peak_memory() -> int:
    """The most bytes of main memory that this process has held at once, all libraries and weights included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def random_batch(model: FoveatedVLM, batch_size: int, num_frames: int, num_tokens: int) -> dict[str, Tensor]:
    """Random frames of the model's own size and random captions without padding, on the model's device."""
    import torch

    generator = torch.Generator().manual_seed(0)
    size, vocabulary = model.config.image_size, model.config.text_config.vocab_size
    pixels = torch.randn(batch_size, num_frames, 3, size, size, generator=generator)
    input_ids = torch.randint(vocabulary, (batch_size, num_tokens), generator=generator)
    return {"pixel_values": pixels.to(model.device, model.dtype), "input_ids": input_ids.to(model.device)}


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm bench",
        description="Time one evaluation of all modes (coarse, fine 1 to 3, autoregressive) on one shared vision "
        "encode, as `gap` does it, beside coarse->fine alone, and beside the modes one after the other with a shared "
        "encode and with two. Inputs are random. Prints medians in ms with quartiles; the last line is JSON.",
        epilog="example: fvlm bench --checkpoint checkpoints/demo/S-S/step_3000; at real size: "
        "--checkpoint FOLDER --batch-size 4 --threads 2 --repeats 10, FOLDER made by fvlm assemble",
    )
    parser.add_argument("--checkpoint", required=True, help="folder, state dict file or hub id")
    parser.add_argument("--batch-size", type=option(BatchSize), default=16, help="videos; default %(default)s")
    parser.add_argument("--num-frames", type=option(Count), default=8, help="of a video; default %(default)s")
    parser.add_argument("--num-tokens", type=option(Count), default=20, help="of a caption; default %(default)s")
    add_repeats(parser)
    add_threads(parser, 1)
    add_device(parser)
    args = parser.parse_args(argv)
    return run(parser.prog, lambda: _measure(args))


def _measure(args: argparse.Namespace) -> None:
    import torch

    from fvlm_lib.devices import pick_device
    from fvlm_lib.foveated.checkpoints import load_checkpoint
    from fvlm_lib.timing import summarize_times, time_in_turn

    torch.set_num_threads(args.threads)
    model = load_checkpoint(args.checkpoint, device=pick_device(args.device))
    positions = model.config.text_config.max_position_embeddings
    needed = args.num_frames + args.num_tokens + (2 if model.config.mode_tokens else 0)
    if needed > positions:
        raise ValueError(
            f"--num-frames {args.num_frames} and --num-tokens {args.num_tokens} take {needed} positions; the language "
            f"model of {args.checkpoint} has {positions}"
        )
    text: dict[str, Any] = random_batch(model, args.batch_size, args.num_frames, args.num_tokens)
    pixels = text.pop("pixel_values")

    def in_turn(share: bool) -> None:
        cache = model.encode_frames(pixels) if share else None
        frames = None if share else pixels
        for _ in model.forward_passes(frames, **text, num_fine=3, patch_cache=cache):
            pass
        model.forward_autoregressive(frames, **text, patch_cache=cache)

    calls = {
        "coarse->fine": lambda: model.forward_captioning(pixels, **text),
        "encode alone": lambda: model.encode_frames(pixels),
        "all modes, shared encode": lambda: model.forward_modes(pixels, **text, num_fine=3),
        "all modes in turn, shared encode": lambda: in_turn(share=True),
        "all modes in turn, two encodes": lambda: in_turn(share=False),
    }
    with torch.no_grad():
        table = summarize_times(time_in_turn(calls, args.repeats, args.warmup), "coarse->fine")
    size = sum(p.numel() for p in model.parameters())
    print(
        f"{args.checkpoint} ({size:,} parameters, {model.dtype}), batch {args.batch_size}, random frames "
        f"{tuple(pixels.shape[1:])}, {args.num_tokens} tokens, {args.threads} thread(s)"
    )
    print(table.round(3).to_markdown())
    print(f"peak memory {peak_memory() / 2**30:.2f} GiB")
    facts = {"benchmark": "shared_encode", **vars(args), "n": args.repeats, "peak_bytes": peak_memory()}
    print(json.dumps(facts | {name: row.round(4).to_dict() for name, row in table.iterrows()}))


if __name__ == "__main__":
    sys.exit(main())
