"""`fvlm bench-prefill`: policies of prefill on text screens that change, from the command line.

How they are measured is `prefill_measure.py`'s subject. What takes seconds to import is imported behind the options, so
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
    "n",
    "rows",
    "kl",
    "kl_low",
    "kl_high",
    "kl_max",
    "agrees",
    "right",
    "right_full",
    "stale",
    "asks",
    "ms",
    "speedup",
]


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm bench-prefill",
        description="Let a language model read generated screens of `name: value` lines, then each screen after one "
        "change, by several policies of prefill and in full. Prints the share of rows computed, the KL divergence of "
        "the answer's token (nats, full || kept), right and stale answers, and times; by policy, and for each kind of "
        "change. Stale is the answer that was right before, of those that changed (asks) and that a full prefill gets "
        "right. The last line is JSON.",
        epilog="example: fvlm bench-prefill --model checkpoints/text-screens --screens 20",
    )
    add = parser.add_argument
    add("--model", required=True, help="folder, hub id or .gguf file of a causal language model")
    add(
        "--screens",
        type=option(Count),
        default=40,
        metavar="N",
        help="of each kind of change (asked, other, count, compare, insert, scroll); default %(default)s",
    )
    add("--lines", type=option(Count), default=40, metavar="N", help="of a screen; default %(default)s")
    add(
        "--tolerances",
        type=option(Tolerance),
        nargs="+",
        default=[0.0, 0.01, 0.02, 0.05, 0.1, 0.2],
        metavar="X",
        help="of the gated policy, relative L2; 0 is exact; default 0 0.01 0.02 0.05 0.1 0.2",
    )
    add("--gated-only", action="store_true", help="only the gated policy, without those that others publish")
    add_seed(parser, "the screens")
    add_threads(parser, 1)
    add("--output", type=Path, metavar="FILE.parquet", help="table to write, a row a screen and policy")
    args = parser.parse_args(argv)
    return run(parser.prog, lambda: _measure(args))


def _measure(args: argparse.Namespace) -> None:
    if args.output:
        check_table(args.output)

    import torch

    from fvlm_lib.data.text_screens import KINDS, text_screen
    from fvlm_lib.vlm.prefill_measure import compared_policies, measure_prefill, summarize_prefill
    from fvlm_lib.vlm.text_models import load_text_model

    torch.set_num_threads(args.threads)
    pairs = [text_screen(kind, i, lines=args.lines, seed=args.seed) for i in range(args.screens) for kind in KINDS]
    policies = compared_policies(args.tolerances)
    if args.gated_only:
        policies = {name: policy for name, policy in policies.items() if name.startswith("gated")}
    rows = measure_prefill(load_text_model(args.model), pairs, policies)
    tables = {"policy": summarize_prefill(rows), "policy and kind": summarize_prefill(rows, ("policy", "kind"))}
    print(f"{args.model}, {args.threads} thread(s); {len(pairs)} screens of {args.lines} lines, seed {args.seed}")
    for by, table in tables.items():
        names = by.split(" and ")
        print(f"\nby {by}; means over screens with 95% intervals, medians of ms\n")
        print(table[[*names, *SHOWN]].round(4).to_markdown(index=False))
    facts = {"benchmark": "prefill", "model": args.model, "threads": args.threads, "seed": args.seed}
    print(json.dumps(facts | {"results": tables["policy"].round(6).to_dict("records")}), flush=True)
    if args.output:
        note_replaced(args.output)
        with whole(args.output) as part:
            rows.to_parquet(part, index=False)


if __name__ == "__main__":
    sys.exit(main())
