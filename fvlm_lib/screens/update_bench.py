"""How fast partial updates are, by number of changed patches, beside the tower's own full forward.

`fvlm bench-updates` times a CLIP ViT-L/14-336 with random weights, or another tower. Times do not depend on the
weights, except for gated updates, where they decide how many tokens are recomputed. Errors on real recordings
are `measure.py`'s subject. What takes seconds to import is imported where it is used, so that `--help` does not wait.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from fvlm_lib.options import Parser, add_pack, add_repeats, add_size, add_threads, option, pack_options, run
from fvlm_lib.schema import RANDOM_TOWERS, Count, Tolerance

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fvlm_lib.vision.fast_vit import ConvolutionalTower, MapCache
    from fvlm_lib.vision.opened_tower import Tower
    from fvlm_lib.vision.towers import PatchCache

DEFAULT_TOLERANCE = 0.02  # that of `reuse/policies/gated.py`


def alternating_update(
    tower: Tower | ConvolutionalTower,
    cache: PatchCache | MapCache,
    frames: tuple[Tensor, Tensor],
    count: int,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Callable[[], Tensor]:
    """A call that updates `cache` back and forth between two frames (1, C, H, W), in `count` random patches, at a
    tolerance if it is one that propagates; it returns the tokens."""
    import torch

    from fvlm_lib.reuse.policies.gated import Gated
    from fvlm_lib.vision.caches import update_cache
    from fvlm_lib.vision.patches import extract_patches

    rows, columns = frames[0].shape[-2] // tower.patch_size[0], frames[0].shape[-1] // tower.patch_size[1]
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(count))
    changed = torch.zeros(rows * columns, dtype=torch.bool)
    changed[order[:count]] = True
    changed = changed.view(rows, columns)
    patches = [extract_patches(frame, changed, tower.patch_size) for frame in frames]
    calls = 0

    def call() -> Tensor:
        nonlocal calls
        calls += 1
        update_cache(Gated(tolerance), tower, cache, patches[calls % 2], changed)
        return cache.read()

    return call


def read_seconds(model: nn.Module, repeats: int = 5) -> float:
    """Seconds to read the model's matrices from memory once: the fastest of some products with a vector."""
    import torch

    from fvlm_lib.reuse.products import busy_seconds

    # kernels of convolutions as matrices
    weights = [parameter.detach().flatten(1) for parameter in model.parameters() if parameter.ndim > 1]
    vectors = {size: torch.randn(size) for size in {weight.shape[1] for weight in weights}}

    def read() -> None:
        for weight in weights:
            torch.mv(weight, vectors[weight.shape[1]])

    return min(busy_seconds(read) for _ in range(repeats))


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm bench-updates",
        description="Time partial updates of a vision tower by number of changed patches, beside its full forward. "
        "Prints medians in ms with quartiles, also of a full encode of which all is kept; the last line is JSON.",
        epilog="example: fvlm bench-updates --counts 1 12 58 --pack",
    )
    add = parser.add_argument
    add("--tower", default=RANDOM_TOWERS[0], help="folder, hub id or a random one; default %(default)s")
    add(
        "--counts",
        type=option(Count),
        nargs="+",
        default=[1, 5, 12, 29, 58, 576],
        metavar="N",
        help="changed patches; default 1 5 12 29 58 576",
    )
    add(
        "--gated",
        type=option(Count),
        nargs="*",
        default=[58],
        metavar="N",
        help="changed patches that gated updates are timed at; default 58",
    )
    add(
        "--tolerance",
        type=option(Tolerance),
        default=DEFAULT_TOLERANCE,
        help="of gated updates, relative L2; 0 is exact; default %(default)s",
    )
    add_size(parser)
    add_pack(parser)
    add_repeats(parser, warmup=2)
    add_threads(parser, 2)
    args = parser.parse_args(argv)

    def work() -> None:
        import torch

        with torch.inference_mode():
            _measure(args)

    return run(parser.prog, work)


def _measure(args: argparse.Namespace) -> None:
    import numpy as np
    import pandas as pd
    import torch

    from fvlm_lib.screens.loaded_towers import load_tower
    from fvlm_lib.timing import summarize_times, time_in_turn
    from fvlm_lib.vision.caches import encode_cache
    from fvlm_lib.vision.differential import DifferentialVisionEncoder
    from fvlm_lib.vision.models import open_vision
    from fvlm_lib.vision.opened_tower import Tower
    from fvlm_lib.vision.patches import compute_patch_diff, patch_grid

    packing = pack_options(args)
    torch.set_num_threads(args.threads)
    loaded = load_tower(args.tower, args.size)
    vision = open_vision(loaded.model, **packing)
    tower = vision.tower
    if tower is None:
        raise ValueError(f"{args.tower} has no partial updates: there is no adapter for {type(vision.module).__name__}")
    total = math.prod(patch_grid(*loaded.image_size, tower.patch_size))
    if wrong := [count for count in (*args.counts, *args.gated) if count > total]:
        raise ValueError(f"{wrong[0]} patches cannot change; the tower has {total}")
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(1, 3, *loaded.image_size, generator=generator) for _ in range(2))
    cache = encode_cache(tower, one)
    gated_cache = encode_cache(tower, one, "gated") if args.gated else None

    encoder = DifferentialVisionEncoder(loaded.model, propagate="none")
    encoder.encode(one)
    screen = np.random.default_rng(0).integers(0, 256, (800, 1280, 3), dtype=np.uint8)
    calls: dict[str, Callable[[], object]] = {
        "full": lambda: encoder.vision.own(one),
        "full, kept": lambda: encode_cache(tower, one, "gated" if args.gated else "none"),
        "unchanged frame": lambda: encoder.encode(one),
        "patch diff 1280x800": lambda: compute_patch_diff(screen, ~screen, 14, 0.05, metric="max"),
    }
    changed = {}
    for count in args.counts:
        changed[name := f"{count} changed, none"] = count
        calls[name] = alternating_update(tower, cache, (one, other), count)
    for count in args.gated:
        assert gated_cache is not None
        changed[name := f"{count} changed, gated {args.tolerance:g}"] = count
        calls[name] = alternating_update(tower, gated_cache, (one, other), count, args.tolerance)
    table = summarize_times(time_in_turn(calls, args.repeats, args.warmup), "full")

    # no update is faster than reading the weights once, nor than its share of the full encode's arithmetic
    reading = 1e3 * read_seconds(loaded.model)
    full = table.loc["full", "ms"]
    table["faster"] = 1 / table["ratio"]
    shares = {name: (count + 1) / (total + 1) for name, count in changed.items()}
    table["floor_ms"] = pd.Series({name: max(reading, full * share) for name, share in shares.items()})
    table["of_floor"] = table["floor_ms"] / table["ms"]
    packed = isinstance(tower, Tower) and tower.packed
    weights = f"packed ({args.pack})" if packed else "not packed"
    print(f"{args.tower}, float32, {args.threads} threads, weights {weights}")
    if isinstance(tower, Tower) and tower.products:
        print(f"packed copies: {tower.products.packed_bytes / 1e6:.0f} MB")
    print(f"cache: {cache.nbytes / 1e6:.0f} MB, with gates {gated_cache.nbytes / 1e6 if gated_cache else 0:.0f} MB")
    print(table.round(3).to_markdown())
    facts = {
        "benchmark": "updates",
        "tower": args.tower,
        "packed": packed,
        "pack": args.pack,
        "threads": args.threads,
    }
    rows = json.loads(table.round(4).to_json(orient="index"))
    print(json.dumps(facts | rows))


if __name__ == "__main__":
    sys.exit(main())
