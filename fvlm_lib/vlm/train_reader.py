"""`fvlm train-reader`: train the small LLaVA that reads drawn screens, from the command line.

What it is and learns from is `reader.py`'s subject. It learns in stages: to look up, on the characters themselves in
place of image tokens, of screens that begin with few fields and get more while nine of ten values are right; to look up
among blank cells; to see, each image token becoming like the embedding of its cell's character; and then to answer
about frames. What takes seconds to import is imported behind the options.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fvlm_lib.options import Parser, add_seed, add_threads, option, run
from fvlm_lib.outputs import check_new_folder, whole
from fvlm_lib.schema import Count, Positive

TRAIN_STREAM, TEST_STREAM = 0, 1  # of random screens
FEWEST_ITEMS, MOST_ITEMS = 2, 12
LOOKS_UP, SEES = 0.95, 0.995
"""Shares of right tokens of values, and of cells whose image token is like their character, that end the stages of
looking up and of seeing."""

WEIGHTS = {"rest": 0.2, "cells": 0.5}
"""What the loss of a sort of target is multiplied with; others count 1."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm train-reader",
        description="Train the small LLaVA that reads drawn screens, checkpoints/demo/reader. Prints losses and shares "
        "of right tokens, and at the end how many questions about unseen screens are answered right. Ctrl-C ends the "
        "training early; what was learnt until then is tested and saved.",
        epilog="example: fvlm train-reader --out checkpoints/retrained/reader",
    )
    add = parser.add_argument
    add("--out", required=True, type=Path, metavar="DIR", help="folder to write; must not exist")
    add("--minutes", type=option(Positive), default=55, help="of training; the rate falls to 0 over them; default 55")
    add("--batch-size", type=option(Count), default=8, metavar="N", help="screens a step; default 8")
    add("--rate", type=option(Positive), default=2e-3, help="learning rate; default %(default)s")
    add(
        "--test-screens",
        type=option(Count),
        default=400,
        metavar="N",
        help="for the share of right answers; default 400",
    )
    add_seed(parser, "weights and screens")
    add_threads(parser, 2)
    args = parser.parse_args(argv)
    return run(parser.prog, lambda: train_reader(args))


def train_reader(args: argparse.Namespace) -> int:
    """Train, test and save a reader; what it had learnt so far, if interrupted. Returns the exit code."""
    check_new_folder(args.out)

    import torch

    from fvlm_lib.vlm.reader import make_reader, make_tokenizer

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model, processor = make_reader(tokenizer)
    began, step, interrupted = time.monotonic(), 0, False
    try:
        for done in _steps(model, tokenizer, args):
            step = done
    except KeyboardInterrupt:
        interrupted = True
        print(f"interrupted at step {step}; what was learnt is tested and saved", flush=True)
    seconds = time.monotonic() - began
    model.eval()
    about = {
        "command": f"fvlm train-reader --minutes {args.minutes:g} --batch-size {args.batch_size} --rate {args.rate:g} "
        f"--seed {args.seed} --threads {args.threads}",
        "seed": args.seed,
        "steps": step,
        "screens": step * args.batch_size,
        "seconds": round(seconds),
        "interrupted": interrupted,
        "num_parameters": model.num_parameters(),
        "test": share_right(model, tokenizer, args.test_screens, args.seed),
        "torch": torch.__version__,
    }
    with whole(args.out) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)
        (part / "training.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(about), flush=True)
    return 130 if interrupted else 0


def _steps(model: Any, tokenizer: Any, args: argparse.Namespace) -> Iterator[int]:
    """Train; gives the number of steps that are done, behind each."""
    import numpy as np
    import torch

    from fvlm_lib.data.drawn_screens import draw_state
    from fvlm_lib.vlm.reader import draw_batch, losses

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01)
    rng = np.random.default_rng([args.seed, TRAIN_STREAM])
    began, step, items = time.monotonic(), 0, float(FEWEST_ITEMS)
    stage, mean = "look up", dict[str, float]()
    while (done := (time.monotonic() - began) / (60 * args.minutes)) < 1:
        most = int(items) if rng.random() < 0.5 else int(rng.integers(FEWEST_ITEMS, int(items) + 1))
        screens = [draw_state(rng, most) for _ in range(args.batch_size)]
        spelled = stage in ("look up", "find")
        batch = draw_batch(screens, tokenizer, rng, spelled, blanks=stage != "look up")
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1, (step + 1) / 100) * min(1, 2 * (1 - done))
        found, right = losses(model, batch, cells_alone=stage == "see")
        loss = torch.stack([WEIGHTS.get(name, 1.0) * value for name, value in found.items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        mean |= {name: 0.95 * mean.get(name, 0.0) + 0.05 * share for name, share in right.items()}
        if mean.get("read", 0.0) > 0.9:
            items = min(MOST_ITEMS, items + 0.05)
        if stage == "look up" and items == MOST_ITEMS and mean["read"] > LOOKS_UP:
            stage, mean = "find", {}
        elif stage == "find" and mean["read"] > LOOKS_UP:
            stage = "see"
        elif stage == "see" and mean["cells"] > SEES:
            stage = "answer"
        if step % 50 == 0:
            shares = " ".join(f"{name} {share:.3f}" for name, share in mean.items())
            seconds = time.monotonic() - began
            print(f"{stage}: step {step}, {seconds:.0f} s, up to {items:.0f} items, right: {shares}", flush=True)
        yield step


def share_right(model: Any, tokenizer: Any, screens: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """By kind of question: right (share), n questions, and the 95% interval (low, high) by Wilson's score, about
    screens that no training draws."""
    import numpy as np
    import pandas as pd
    from scipy.stats import binomtest

    from fvlm_lib.data.drawn_screens import draw_state
    from fvlm_lib.vlm.reader import answered_right, draw_batch

    rng = np.random.default_rng([seed, TEST_STREAM])
    answers = []
    for first in range(0, screens, 8):
        batch = draw_batch([draw_state(rng) for _ in range(min(8, screens - first))], tokenizer, rng)
        answers += [(question.kind, right) for question, right in answered_right(model, batch)]
    found = {}
    for kind, right in pd.DataFrame(answers, columns=["kind", "right"]).groupby("kind", sort=False)["right"]:
        low, high = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
        found[str(kind)] = {
            "right": round(right.mean(), 4),
            "n": len(right),
            "low": round(low, 4),
            "high": round(high, 4),
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
