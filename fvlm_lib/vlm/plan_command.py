"""`fvlm plan`: what to expect of a model on a stream of frames, before any weights are loaded.

What is counted is `plan.py`'s subject, what is measured `plan_times.py`'s. What takes seconds to import is imported
where it is used, so that `--help` does not wait.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from fvlm_lib.options import Parser, add_pack, add_threads, frame_size, option, pack_options, run
from fvlm_lib.schema import RANDOM_TOWERS, Count, CountOrNone

if TYPE_CHECKING:
    from fvlm_lib.vision.fast_vit import ConvolutionalTower
    from fvlm_lib.vision.opened_tower import Grid, Tower
    from fvlm_lib.vlm.plan import Part
    from fvlm_lib.vlm.plan_times import Times
    from fvlm_lib.vlm.weightless import Weightless

COUNTS = (1, 5, 12, 29, 58)
"""Changed patches that are planned for."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm plan",
        description="Tell what to expect of a model before running it, from its config alone: the arithmetic of the "
        "vision tower and the language model by layer, how far one changed patch reaches by layer, and how much "
        "faster than a full encode an update should be by number of changed patches. No weights are loaded; times come "
        "from a few blocks with random ones, measured for some seconds. The last line is JSON.",
        epilog=f"example: fvlm plan --model {RANDOM_TOWERS[0]} --size 1280x800",
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="FOLDER",
        help="folder or hub id of a vision-language model, a vision tower or a foveated checkpoint (of a folder only "
        f"the JSON files are read), or {', '.join(RANDOM_TOWERS)}",
    )
    add(
        "--size",
        type=frame_size,
        default=(800, 1280),
        metavar="WxH",
        help="width and height in pixels of the frames that come; default 1280x800",
    )
    add(
        "--counts",
        type=option(Count),
        nargs="+",
        metavar="N",
        help=f"changed patches; default {' '.join(map(str, COUNTS))}, as far as a frame has so many",
    )
    add(
        "--text-tokens",
        type=option(CountOrNone),
        default=32,
        metavar="N",
        help="tokens of the prompt beside the frame's; default %(default)s",
    )
    add(
        "--measure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure some blocks on this machine; without, arithmetic alone; default --measure",
    )
    add_pack(parser)
    add_threads(parser, 2)
    args = parser.parse_args(argv)
    return run(parser.prog, lambda: _plan(args))


def _plan(args: argparse.Namespace) -> None:
    import torch

    from fvlm_lib.vision.fast_vit import ConvolutionalTower
    from fvlm_lib.vlm.plan import plan_text, plan_tower
    from fvlm_lib.vlm.plan_times import plan_times
    from fvlm_lib.vlm.weightless import open_weightless

    packing = pack_options(args)
    torch.set_num_threads(args.threads)
    weightless = open_weightless(args.model, args.size)
    tower = weightless.vision.tower
    grid = tower.grid(weightless.frame) if tower else None
    if args.counts is None:
        args.counts = [count for count in COUNTS if grid is None or count <= grid[0] * grid[1]]
    if grid and (wrong := [count for count in args.counts if count > grid[0] * grid[1]]):
        raise ValueError(f"{wrong[0]} patches cannot change; a frame has {grid[0] * grid[1]}")
    parts = [part for part in (plan_tower(weightless), plan_text(weightless, args.text_tokens)) if part]
    print(_head(args, weightless, grid))
    for part in parts:
        print(f"\n{_arithmetic(part)}")
    facts: dict[str, Any] = {
        "plan": args.model,
        "frame": list(weightless.frame.shape[-2:]),
        "frames": len(weightless.frame),
        "gflops": {part.name: part.flops / 1e9 for part in parts},
        "weights_mb": {part.name: part.nbytes / 1e6 for part in parts},
    }
    if isinstance(tower, ConvolutionalTower):
        facts |= _map_updates(args, weightless, tower)
    elif tower is None or grid is None:
        print(
            f"\n{type(weightless.vision.module).__name__} has no adapter: a frame in which nothing changed costs "
            "nothing, any other is encoded in full, so the factor is 1."
        )
        facts["updates"] = [{"changed": count, "factor": 1.0} for count in args.counts]
    else:
        facts |= _updates(
            args, weightless, tower, grid, plan_times(tower, grid, args.counts, **packing) if args.measure else None
        )
    print(json.dumps(facts))


def _head(args: argparse.Namespace, weightless: Weightless, grid: Grid | None) -> str:
    count, _, height, width = weightless.frame.shape
    frames = f"{count} frames" if count > 1 else "a frame"
    patches = f", {grid[1]} x {grid[0]} patches" if grid else ""
    comes = f"{args.size[1]} x {args.size[0]}"
    return f"{args.model}: a screen of {comes} pixels is {frames} of {width} x {height} to the vision tower{patches}"


def _arithmetic(part: Part) -> str:
    """The part's arithmetic as a table, layers that take the same in one line."""
    import pandas as pd

    alike: dict[tuple[str, int, int], list[str]] = {}
    for layer in part.layers:
        kind = layer.name.rstrip("0123456789")
        alike.setdefault((kind, layer.flops, layer.attention), []).append(layer.name[len(kind) :])
    rows = [
        {
            "layers": kind + ranges(numbers),
            "GFLOPs": f"{flops * len(numbers) / 1e9:.3g}",
            "share": f"{flops * len(numbers) / part.flops:.1%}",
            "of it attention": f"{attention / flops:.1%}",
        }
        for (kind, flops, attention), numbers in alike.items()
        if flops
    ]
    rest = f", {part.rows} rows" if part.rows else ""
    title = f"{part.name}: {part.flops / 1e9:.4g} GFLOPs a frame{rest}, weights {part.nbytes / 1e6:.0f} MB"
    return f"{title}\n\n{pd.DataFrame(rows).to_markdown(index=False)}"


def ranges(numbers: list[str]) -> str:
    """Rising numbers in few words: 0-6, 8."""
    parts: list[list[str]] = []
    for number in numbers:
        if parts and number.isdigit() and int(number) == int(parts[-1][-1]) + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(part) for part in parts)


def _map_updates(args: argparse.Namespace, weightless: Weightless, tower: ConvolutionalTower) -> dict[str, Any]:
    """Print how far a change reaches in the maps, and what updates take; returns the same as facts."""
    import pandas as pd
    from transformers import AutoModel

    from fvlm_lib.screens.random_fast_vit import initialise_fast_vit
    from fvlm_lib.vlm.plan import reach_of_maps
    from fvlm_lib.vlm.plan_times import plan_map_times

    size = weightless.frame.shape[-2], weightless.frame.shape[-1]
    maps = reach_of_maps(tower, size)
    shares = "; ".join(f"{share:.2%} of {width} x {height}" for (height, width), share in maps)
    print(
        f"\nAt tolerance 0 one changed patch, in the middle, reaches these shares of the maps: {shares}. How soon "
        "a change falls below a tolerance above 0 the weights decide: measure it with fvlm bench-policies."
    )
    facts: dict[str, Any] = {"reach": [share for _, share in maps]}
    if args.measure:
        model = AutoModel.from_config(weightless.vision.module.config).eval()
        initialise_fast_vit(model.timm_model)  # else a change soon ends, and with it the update
        times = plan_map_times(model, size, args.counts)
        rows = [
            {"changed": one.changed, "ms": one.ms, "factor": one.factor, "exact_ms": one.gated_ms,
             "exact_factor": one.gated_factor} for one in times.updates
        ]  # fmt: skip
        print(f"\nA full encode should take {times.full_ms:.0f} ms ({args.threads} threads).")
        print(f"\n{pd.DataFrame(rows).round(2).to_markdown(index=False)}")
        print(
            "\nMeasured with random weights: the positions of the changed patches alone, and all that they reach, at "
            "tolerance 0. A tolerance above 0 is between the two."
        )
        facts |= {"full_ms": times.full_ms, "reading_ms": times.reading_ms, "updates": rows}
    return facts


def _updates(
    args: argparse.Namespace, weightless: Weightless, tower: Tower, grid: Grid, times: Times | None
) -> dict[str, Any]:
    """Print how far a change reaches, and what updates take; returns the same as facts."""
    import pandas as pd

    from fvlm_lib.vlm.plan import num_rows, reach, update_flops, updated_rows, width

    shares = reach(tower, grid, grid[0] // 2 * grid[1] + grid[1] // 2)
    alike: dict[float, list[str]] = {}
    for i, share in enumerate(shares):
        alike.setdefault(share, []).append(str(i))
    reached = "; ".join(f"{share:.2%} behind block {ranges(blocks)}" for share, blocks in alike.items())
    print(f"\nAt tolerance 0 one changed patch, in the middle, reaches these shares of the rows: {reached}.")
    row = weightless.frame.new_empty(1, 1, width(tower), dtype=weightless.vision.dtype)
    full = update_flops(tower, grid, grid[0] * grid[1], row)
    rows = []
    for i, count in enumerate(args.counts):
        flops = update_flops(tower, grid, count, row)
        found = {
            "changed": count,
            "rows": len(updated_rows(tower, grid, count)),
            "gflops": flops / 1e9,
            "less_arithmetic": full / flops,
        }
        if times:
            one = times.updates[i]
            found |= {"ms": one.ms, "factor": one.factor, "gated_ms": one.gated_ms, "gated_factor": one.gated_factor}
        rows.append(found)
    facts: dict[str, Any] = {"reach": shares, "rows": num_rows(tower, grid), "updates": rows}
    if times:
        facts |= {"full_ms": times.full_ms, "reading_ms": times.reading_ms, "floor_factor": times.floor_factor}
        print(
            f"\nA full encode should take {times.full_ms:.0f} ms ({args.threads} threads); reading the weights once "
            f"takes {times.reading_ms:.0f} ms, so no update is more than {times.floor_factor:.1f} times faster."
        )
    print(f"\n{pd.DataFrame(rows).round(2).to_markdown(index=False)}")
    print(
        "\nThe changed patches and the global tokens are computed at every block, against all keys that they see. "
        "Gated is at least that long: it looks at every row and computes those that moved, which real weights decide."
    )
    if times:
        print(
            "Measured on some blocks with random weights, counted as often as there are such; left out is what is no "
            "block: projecting patches, and tokens into the language model."
        )
    return facts


if __name__ == "__main__":
    sys.exit(main())
