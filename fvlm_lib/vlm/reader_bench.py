"""`fvlm bench-answers`: right and stale answers about drawn screens that change, by what is kept, from the command
line.

How they are measured is `reader_measure.py`'s subject. What takes seconds to import is imported behind the options, so
that `--help` and a wrong option do not wait.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fvlm_lib.options import Parser, add_seed, add_threads, option, run
from fvlm_lib.outputs import check_table, note_replaced, whole
from fvlm_lib.schema import Count, Tolerance

SHOWN = [
    *("policy", "n", "right", "right_low", "right_high", "broken", "stale", "stale_low", "stale_high", "asked"),
    *("rows", "first_token_ms", "speedup", "gone", "gone_stale", "gone_as_full"),
]


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm bench-answers",
        description="Let a vision-language model that reads drawn screens answer about screens in which one thing "
        "changed, by what is kept of the screen before. Prints right answers, those that a full computation gets right "
        "and this does not (broken), stale ones (of the questions about what changed), rows of the prefill, and time "
        "to first token; by policy; and right answers by case. Questions about what is no longer there are counted "
        "apart (gone): how many answers say what stood there before, how many are those of a full computation. The "
        "last line is JSON.",
        epilog="example: fvlm bench-answers --model checkpoints/demo/reader --screens 5",
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a model that `fvlm train-reader` trained")
    add("--screens", type=option(Count), default=10, metavar="N", help="of each of 20 cases; default %(default)s")
    add(
        "--tolerances",
        type=option(Tolerance),
        nargs="+",
        default=[0.0, 0.02, 0.05, 0.1, 0.2],
        metavar="X",
        help="of gated updates in both stacks, relative L2; 0 is exact; default 0 0.02 0.05 0.1 0.2",
    )
    add(
        "--times",
        metavar="MODEL",
        help="a model of real size, whose answers are not looked at: its times, on one screen of each of 9 kinds of "
        "change, stand in place of the small model's",
    )
    add_seed(parser, "the screens")
    add_threads(parser, 1)
    add("--output", type=Path, metavar="FILE.parquet", help="table to write, a row a screen and policy")
    args = parser.parse_args(argv)
    return run(parser.prog, lambda: _measure(args))


def _measure(args: argparse.Namespace) -> None:
    if args.output:
        check_table(args.output)

    import torch

    from fvlm_lib.vlm.reader_measure import (
        CASES,
        check_reader,
        compared_reuse,
        draw_cases,
        draw_timed,
        measure_reader,
        summarize_reader,
    )
    from fvlm_lib.vlm.vlms import load_vlm

    torch.set_num_threads(args.threads)
    compared = compared_reuse(args.tolerances)
    vlm = load_vlm(args.model)
    check_reader(vlm)
    rows = measure_reader(vlm, draw_cases(args.screens, args.seed), compared)
    table = summarize_reader(rows)
    timed = "the same model"
    if args.times:
        real = measure_reader(load_vlm(args.times), draw_timed(args.seed), compared)
        times = summarize_reader(real).set_index("policy")
        for name in ("first_token_ms", "speedup"):
            table[name] = table["policy"].map(times[name])
        timed = args.times
    print(
        f"{args.model}; {args.screens} screens of {len(CASES)} cases, seed {args.seed}; times of {timed}, float32, "
        f"{args.threads} thread(s)"
    )
    print("shares with 95% intervals over screens, medians of ms\n")
    print(table[SHOWN].round(4).to_markdown(index=False))
    print("\nright, by what changed, what is asked, and whether what changed is asked about\n")
    by_case = rows[~rows["gone"]].pivot_table("is_right", "policy", ["case", "question", "asked"], sort=False)
    by_case.columns = [f"{case}, {question}{', asked' if asked else ''}" for case, question, asked in by_case]
    print(by_case.T.round(3).to_markdown())
    facts = {"benchmark": "answers", "model": args.model, "times": args.times, "threads": args.threads}
    facts |= {"seed": args.seed, "screens": args.screens}
    print(json.dumps(facts | {"results": table.round(6).to_dict("records")}), flush=True)
    if args.output:
        note_replaced(args.output)
        with whole(args.output) as part:
            rows.to_parquet(part, index=False)


if __name__ == "__main__":
    sys.exit(main())
