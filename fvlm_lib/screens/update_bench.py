"""How fast partial updates are, by number of changed patches, beside the tower's own full forward.

`fvlm bench-updates` times a CLIP ViT-L/14-336 with random weights. Times do not depend on the
weights, except for gated updates, where they decide how many tokens are recomputed. Errors on real recordings
are `measure.py`'s subject.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fvlm_lib.screens.loaded_towers import RANDOM_CLIP, load_tower
from fvlm_lib.timing import summarize_times, time_in_turn
from fvlm_lib.vision.differential import DifferentialVisionEncoder
from fvlm_lib.vision.patches import compute_patch_diff, extract_patches
from fvlm_lib.vision.towers import PatchCache, Tower, open_tower
from fvlm_lib.vision.updates import DEFAULT_TOLERANCE, encode_frame, update


def alternating_update(
    tower: Tower, cache: PatchCache, frames: tuple[Tensor, Tensor], count: int, tolerance: float | None
) -> Callable[[], Tensor]:
    """A call that updates `cache` back and forth between two frames (1, C, H, W), in `count` random patches."""
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
        return update(tower, cache, patches[calls % 2], changed, tolerance)

    return call


def read_seconds(model: nn.Module, repeats: int = 5) -> float:
    """Seconds to read the model's matrices from memory once: the fastest of some products with a vector."""
    weights = [parameter.detach() for parameter in model.parameters() if parameter.ndim == 2]
    vectors = {size: torch.randn(size) for size in {weight.shape[1] for weight in weights}}
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for weight in weights:
            torch.mv(weight, vectors[weight.shape[1]])
        best = min(best, time.perf_counter() - start)
    return best


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fvlm bench-updates",
        description="Time partial updates of a vision tower by number of changed patches. Last line: JSON.",
        epilog="example: fvlm bench-updates --counts 1 12 58 --pack",
    )
    parser.add_argument("--tower", default=RANDOM_CLIP, help="default %(default)s; or a folder or hub id")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 5, 12, 29, 58, 576], help="changed patches")
    parser.add_argument("--gated", type=int, nargs="*", default=[58], help="counts that gated updates are timed at")
    parser.add_argument("--tolerance", type=float, default=DEFAULT_TOLERANCE, help="default %(default)s")
    parser.add_argument("--pack", action="store_true", help="pack weights for products of few rows")
    parser.add_argument("--repeats", type=int, default=20, help="default %(default)s")
    parser.add_argument("--warmup", type=int, default=2, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads, default %(default)s")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        loaded = load_tower(args.tower)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(1, 3, *loaded.image_size, generator=generator) for _ in range(2))
    tower = open_tower(loaded.model, pack_weights=args.pack)
    cache = encode_frame(tower, one)
    assert cache.blank is not None
    gated_cache = encode_frame(tower, one, "gated") if args.gated else None
    total = len(cache.blank) - cache.num_global_tokens
    if wrong := [count for count in (*args.counts, *args.gated) if not 1 <= count <= total]:
        print(f"{parser.prog}: {wrong[0]} patches cannot change; the tower has {total}", file=sys.stderr)
        return 2

    encoder = DifferentialVisionEncoder(loaded.model, propagate="none")
    encoder.encode(one)
    screen = np.random.default_rng(0).integers(0, 256, (800, 1280, 3), dtype=np.uint8)
    calls: dict[str, Callable[[], object]] = {
        "full": lambda: loaded.model(one).last_hidden_state,
        "unchanged frame": lambda: encoder.encode(one),
        "patch diff 1280x800": lambda: compute_patch_diff(screen, ~screen, 14, 0.05, metric="max"),
    }
    changed = {}
    for count in args.counts:
        changed[name := f"{count} changed, none"] = count
        calls[name] = alternating_update(tower, cache, (one, other), count, None)
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
    print(f"{args.tower}, float32, {args.threads} threads, weights {'packed' if tower.packed else 'not packed'}")
    print(f"cache: {cache.nbytes / 1e6:.0f} MB, with gates {gated_cache.nbytes / 1e6 if gated_cache else 0:.0f} MB")
    print(table.round(3).to_markdown())
    facts = {"benchmark": "updates", "tower": args.tower, "packed": tower.packed, "threads": args.threads}
    rows = json.loads(table.round(4).to_json(orient="index"))
    print(json.dumps(facts | rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
