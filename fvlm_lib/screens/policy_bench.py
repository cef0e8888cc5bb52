"""`fvlm bench-policies`: time and error of encoding policies on a recording, from the command line.

How they are measured is `measure.py`'s subject. What takes seconds to import is imported behind the options, so that
`--help` and a wrong option do not wait.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fvlm_lib.data.screens import read_sequence
from fvlm_lib.options import Parser, add_pack, add_size, add_threads, option, pack_options, run
from fvlm_lib.outputs import check_table, note_replaced, whole
from fvlm_lib.schema import RANDOM_TOWERS, Count, Tolerance
from fvlm_lib.vision.settings import DifferentialSettings, read_settings

KINDS = ("exact", "pseudocode", "none", "gated", "budget")
"""First words of the policies' names."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm bench-policies",
        description="Encode a recording by several policies (whole frames kept by exact match, partial updates without "
        "propagation and gated ones, a published pseudocode) and in full, frame by frame in turn. Prints ms a frame, "
        "speed-up and relative L2 error of the tokens; the last line is JSON.",
        epilog="example: fvlm bench-policies data/screens/jupyter --tower checkpoints/demo/reader",
    )
    add = parser.add_argument
    add("recording", type=Path, metavar="DIR", help="a folder of screenshots, in natural order of names")
    add(
        "--tower",
        required=True,
        help="folder or hub id of a vision tower or a foveated checkpoint; or, for times alone, one of "
        f"{', '.join(RANDOM_TOWERS)}",
    )
    add(
        "--policies",
        nargs="+",
        choices=KINDS,
        default=KINDS,
        metavar="KIND",
        help=f"of {', '.join(KINDS)}; default all. Of a tower that cuts frames into tiles, the first two are not there",
    )
    add(
        "--tolerances",
        type=option(Tolerance),
        nargs="+",
        default=[0.1, 0.02, 0.0],
        metavar="X",
        help="of gated updates, relative L2; 0 is exact; default 0.1 0.02 0",
    )
    add(
        "--max-rows",
        type=option(Count),
        nargs="*",
        default=[64],
        metavar="R",
        help="of budget updates, tokens a half layer (the top r of Eventful Transformers); default 64",
    )
    add("--settings", type=Path, metavar="FILE.yaml", help="which patches changed, and how many may; default: defaults")
    add("--frames", type=option(Count), metavar="N", help="only the first N")
    add(
        "--changed",
        type=option(Count),
        metavar="N",
        help="only N of the frames that changed, evenly spread, each after the one before it, and the first frame",
    )
    add_size(parser)
    add_pack(parser)
    add_threads(parser, 1)
    add("--output", type=Path, metavar="FILE.parquet", help="table to write, a row a frame and policy")
    args = parser.parse_args(argv)
    return run(parser.prog, lambda: _measure(args))


def _measure(args: argparse.Namespace) -> None:
    if args.output:
        check_table(args.output)
    packing = pack_options(args)
    settings = read_settings(args.settings) if args.settings else DifferentialSettings()
    recording = read_sequence(args.recording)
    recording = recording.head(args.frames) if args.frames else recording
    if len(recording) < 2:
        raise ValueError(f"{args.recording} gives {len(recording)} frame; what is kept shows from the second on")

    import torch

    from fvlm_lib.screens.loaded_towers import load_tower
    from fvlm_lib.screens.measure import changed_frames, measure_policies, policies, summarize_policies

    torch.set_num_threads(args.threads)
    compared = policies(args.tolerances, settings=settings, max_rows=args.max_rows, **packing)
    rows = measure_policies(
        load_tower(args.tower, args.size),
        recording,
        [policy for policy in compared if policy.name.split()[0] in args.policies],
        frames=changed_frames(recording, args.changed, settings.diff_threshold) if args.changed else None,
    )
    table = summarize_policies(rows).drop(columns="tower").set_index("policy")
    count = rows["frame"].nunique()
    print(f"{args.tower}, float32, {args.threads} thread(s); {recording.name}, {count} frames; ms a frame")
    print(table.round(4).to_markdown())
    facts = {"benchmark": "policies", "tower": args.tower, "recording": recording.name, "threads": args.threads}
    print(json.dumps(facts | json.loads(table.round(6).to_json(orient="index"))), flush=True)
    if args.output:
        note_replaced(args.output)
        with whole(args.output) as part:
            rows.to_parquet(part, index=False)


if __name__ == "__main__":
    sys.exit(main())
