"""How long a panel takes to redraw after a widget has moved, in the kernel: without the way to the browser and back.

As a command, `fvlm bench-panel` times the tuning panel on a recording. What takes seconds to import is imported
behind the options.
"""

from __future__ import annotations

import argparse
import html
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from fvlm_lib.options import Parser, add_repeats, run
from fvlm_lib.panels.sizes import PATCH_SIZES

if TYPE_CHECKING:
    import ipywidgets


def moves(widget: ipywidgets.Widget, places: Iterable[Any]) -> Callable[[], None]:
    """A call that sets the widget to the next of the places, round and round; the panel redraws before it returns."""
    following = itertools.cycle(places)

    def move() -> None:
        widget.value = next(following)

    return move


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm bench-panel",
        description="Time what the tuning panel computes and draws when threshold, metric, reference or frame are "
        "moved, and apart from it how long reading and comparing the frames takes, once. Last line: JSON.",
        epilog="example: fvlm bench-panel --sequence fade --patch-size 8",
    )
    parser.add_argument("--folder", default="data/screens", help="of recordings, default %(default)s")
    parser.add_argument("--sequence", default="jupyter", help="the recording, default %(default)s")
    parser.add_argument("--patch-size", type=int, choices=PATCH_SIZES, default=16, help="pixels, default %(default)s")
    add_repeats(parser, 50)
    args = parser.parse_args(argv)
    return run(parser.prog, lambda: _measure(parser, args))


def _measure(parser: Parser, args: argparse.Namespace) -> int:
    import pandas as pd

    from fvlm_lib.panels.tuning_panel import TuningPanel
    from fvlm_lib.screens.tuning import compare_patches
    from fvlm_lib.timing import summarize_times, time_in_turn

    panel = TuningPanel(args.folder, args.sequence)
    if panel.bench.name is None:
        print(f"{parser.prog}: {html.unescape(re.sub('<[^>]*>', '', panel.message.value))}", file=sys.stderr)
        return 2
    frames = len(panel.bench.recording)
    if frames < 2:
        raise ValueError(f"the recording {args.sequence} has one frame; at least two are moved between")
    panel.setting.patch_size.value = args.patch_size
    start = time.perf_counter()
    compare_patches(panel.bench.recording, args.patch_size, lambda items, **_: items)
    once = time.perf_counter() - start
    calls = {
        "threshold": moves(panel.setting.threshold, [0.005 * step for step in range(1, 41)]),
        "metric": moves(panel.setting.metric, ["mean", "max"]),
        "reference": moves(panel.setting.reference, ["previous", "encoded"]),
        "frame": moves(panel.player.frame, range(1, frames)),
    }
    times = time_in_turn(calls, args.repeats, args.warmup)
    panel.compare.value = True
    panel.setting.threshold.value = 0.2
    two = time_in_turn({"frame, two settings": calls["frame"]}, args.repeats, args.warmup)
    table = summarize_times(pd.concat([times, two]), "threshold")[["n", "ms", "ms_q1", "ms_q3"]]
    size = " x ".join(map(str, panel.bench.recording[0].shape[:2]))
    patches = panel.traced.steps[0][0].mask.size
    print(f"{args.sequence}: {frames} frames of {size} pixels, {patches} patches; redraw, ms")
    print(table.round(1).to_markdown())
    print(f"frames read and compared, once for a recording: {once:.1f} s")
    facts = {"benchmark": "panel", "sequence": args.sequence, "patch_size": args.patch_size, "once_s": round(once, 2)}
    print(json.dumps(facts | {str(name): row.round(2).to_dict() for name, row in table.iterrows()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
