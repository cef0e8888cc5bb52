"""How a time is measured here: warmed up, synchronised, in turn within one run, medians with quartiles.

`time_in_turn` is for any calls. As a command, `python -m fvlm_lib.bench` measures what one evaluation of all
forward modes costs beside coarse->fine alone, since they share one vision encode. It gives the model random
pixels and tokens of the size it wants: what they show makes no difference to the time.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from fvlm_lib.checkpoints import load_checkpoint
from fvlm_lib.gap import pick_device
from fvlm_lib.modeling_fvlm import FoveatedVLM


def synchronize() -> None:
    """Wait for the accelerator, if there is one, so that a clock read after it counts its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def time_in_turn(
    calls: Mapping[str, Callable[[], object]], repeats: int = 20, warmup: int = 3, progress: bool = True
) -> pd.DataFrame:
    """Time each call `repeats` times, one after the other in every round, after `warmup` rounds.

    In turn, so that a machine whose speed drifts slows all of them. Returns one row a call and round:
    name, round, ms.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats is {repeats} and warmup {warmup}; at least 1 and 0 are needed")
    rows = []
    for number in tqdm(range(-warmup, repeats), desc="timing", disable=not progress):
        for name, call in calls.items():
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            if number >= 0:
                rows.append({"name": name, "round": number, "ms": 1e3 * (time.perf_counter() - start)})
    return pd.DataFrame(rows)


def summarize_times(times: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Median and quartiles of each name's times, and of its ratio to `reference` round by round.

    Returns one row a name: n, ms, ms_q1, ms_q3, ratio, ratio_q1, ratio_q3.
    """
    wide = times.pivot(index="round", columns="name", values="ms")
    ratios = wide.div(wide[reference], axis=0)
    table = {"n": wide.count()}
    for key, values in (("ms", wide), ("ratio", ratios)):
        for suffix, quantile in (("", 0.5), ("_q1", 0.25), ("_q3", 0.75)):
            table[key + suffix] = values.quantile(quantile)
    return pd.DataFrame(table).loc[list(dict.fromkeys(times["name"]))]


def peak_memory() -> int:
    """The most bytes of main memory that this process has held at once, all libraries and weights included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def random_batch(model: FoveatedVLM, batch_size: int, num_frames: int, num_tokens: int) -> dict[str, torch.Tensor]:
    """Random frames of the model's own size and random captions without padding, on the model's device."""
    generator = torch.Generator().manual_seed(0)
    size, vocabulary = model.config.image_size, model.config.text_config.vocab_size
    pixels = torch.randn(batch_size, num_frames, 3, size, size, generator=generator)
    input_ids = torch.randint(vocabulary, (batch_size, num_tokens), generator=generator)
    return {"pixel_values": pixels.to(model.device, model.dtype), "input_ids": input_ids.to(model.device)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fvlm_lib.bench",
        description="Time one evaluation of all modes (coarse, fine 1 to 3, autoregressive) on one shared vision "
        "encode, as `gap` does it, beside coarse->fine alone, and beside the modes one after the other with a shared "
        "encode and with two. Inputs are random. Last line: JSON.",
        epilog="example: python -m fvlm_lib.bench --checkpoint checkpoints/demo/S-S/step_3000; at real size: "
        "--checkpoint FOLDER --batch-size 4 --threads 2 --repeats 10, FOLDER made by python -m fvlm_lib.checkpoints "
        "assemble",
    )
    parser.add_argument("--checkpoint", required=True, help="folder, state dict file or hub id")
    parser.add_argument("--batch-size", type=int, default=16, help="default %(default)s")
    parser.add_argument("--num-frames", type=int, default=8, help="of a video, default %(default)s")
    parser.add_argument("--num-tokens", type=int, default=20, help="of a caption, default %(default)s")
    parser.add_argument("--repeats", type=int, default=20, help="default %(default)s")
    parser.add_argument("--warmup", type=int, default=3, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, default %(default)s")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        model = load_checkpoint(args.checkpoint, device=pick_device(args.device))
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
