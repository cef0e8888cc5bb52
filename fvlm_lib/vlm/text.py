"""`fvlm text`: a question to a language model about every screen of a text stream, from the command line.

How a screen is answered is `text_stream.py`'s subject. What takes seconds to import is imported behind the options, so
that `--help` and a wrong option do not wait.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import asdict
from pathlib import Path

from fvlm_lib.data.text_stream import read_text_stream
from fvlm_lib.options import Parser, add_device, add_seed, option, printable, run
from fvlm_lib.outputs import check_output, json_lines
from fvlm_lib.schema import Beams, Count, NewTokens, Temperature, Tolerance

ROW = "{:>6}  {:<8}  {:>13}  {:>6}  {:>10}  {:>9}  {}"
HEADER = ("screen", "prefill", "reused/tokens", "rows", "prefill ms", "decode ms", "answer")


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm text",
        description="Ask a language model about every screen of a stream of text: a terminal's, an accessibility "
        "tree's, a page's. What was computed for one screen is kept for the next. Prints a line a screen: how the "
        "prompt was prefilled, reused tokens of all, the share of rows computed over all layers, times in ms, the "
        "answer.",
        epilog="example: fvlm text --model checkpoints/text-screens --stream data/text/terminal.jsonl --prompt 'What "
        "was the last command?' --prefill gated --prefill-tolerance 0.02",
    )
    add = parser.add_argument
    add("--model", required=True, help="folder, hub id or .gguf file of a causal language model")
    add(
        "--stream",
        required=True,
        type=Path,
        metavar="FILE.jsonl",
        help='JSON lines, one a screen: {"text": "what was on it"}',
    )
    add("--prompt", default="What is on the screen?", help="the question; default '%(default)s'")
    add(
        "--prefill",
        choices=["full", "exact", "gated"],
        default="exact",
        help="the whole prompt; what is behind the first token that changed; or what the change reaches by more than "
        "--prefill-tolerance; default %(default)s",
    )
    add("--prefill-tolerance", type=option(Tolerance), metavar="X", help="relative L2; 0 is exact; default 0.02")
    add(
        "--check-every",
        type=option(Count),
        metavar="N",
        help="each N-th screen is also computed in full: KL divergence of the first token, same text or not",
    )
    add(
        "--max-kl",
        type=option(Tolerance),
        metavar="X",
        help="nats; a checked screen above it is answered from the full computation",
    )
    add("--max-new-tokens", type=option(NewTokens), default=32, metavar="N", help="of an answer; default %(default)s")
    add("--temperature", type=option(Temperature), default=0.0, metavar="T", help="0 is greedy; default %(default)s")
    add("--num-beams", type=option(Beams), default=1, metavar="N", help="default %(default)s")
    add_seed(parser, "sampling")
    add_device(parser)
    add("--output", type=Path, metavar="FILE.jsonl", help="one JSON object a screen, written as it comes")
    args = parser.parse_args(argv)
    if args.prefill_tolerance is not None and args.prefill != "gated":
        parser.error(f"--prefill-tolerance is of --prefill gated, but --prefill is {args.prefill}; leave one out")
    if args.max_kl is not None and args.check_every is None:
        parser.error("--max-kl is of checks; add --check-every N, how many screens are from one to the next")
    kept = f"{args.output} keeps what is done" if args.output else ""
    return run(parser.prog, lambda: _answer(args), kept)


def _answer(args: argparse.Namespace) -> None:
    screens = read_text_stream(args.stream)
    if args.output:
        check_output(args.output)
        if args.output.exists():
            raise ValueError(f"{args.output} exists; name another --output, or remove it")

    from tqdm import tqdm

    from fvlm_lib.devices import pick_device
    from fvlm_lib.vlm.stream import Decoding
    from fvlm_lib.vlm.text_models import load_text_model
    from fvlm_lib.vlm.text_stream import TextStream

    decoding = Decoding(
        max_new_tokens=args.max_new_tokens, temperature=args.temperature, num_beams=args.num_beams, seed=args.seed
    )
    stream = TextStream(
        load_text_model(args.model, pick_device(args.device)),
        args.prompt,
        prefill=args.prefill,
        prefill_tolerance=args.prefill_tolerance,
        pack_weights="auto",
        decoding=decoding,
        check_every=args.check_every,
        max_kl=args.max_kl,
    )
    print(ROW.format(*HEADER))
    with json_lines(args.output) if args.output else contextlib.nullcontext() as write:
        for number, screen in enumerate(tqdm(screens, unit="screen", file=sys.stderr)):
            answer = stream.answer(screen, number)
            reused = f"{answer.reused_tokens}/{answer.prompt_tokens}"
            times = (f"{answer.prefill_ms:.0f}", f"{answer.decode_ms:.0f}")
            row = ROW.format(
                number, answer.prefill_path, reused, f"{answer.prefill_rows:.1%}", *times, printable(answer.text)
            )
            tqdm.write(row, file=sys.stdout)
            if write:
                write({"screen": number, **asdict(answer)})
    totals = stream.prefill_totals
    paths = ", ".join(f"{count} {path}" for path, count in totals.frames.items() if count)
    print(f"{len(screens)} screens: {paths}; {totals.mean_rows:.1%} of rows computed on average")
    if args.check_every:
        print(stream.check_totals)


if __name__ == "__main__":
    sys.exit(main())
