"""`fvlm train`: one run of the demo ladder from the command line; how it is trained is `train.py`'s subject.

What takes seconds to import is imported behind the options, so that `--help` and a wrong option do not wait.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fvlm_lib.foveated.training_config import read_training_config
from fvlm_lib.options import Parser, add_device, add_seed, add_threads, run
from fvlm_lib.outputs import check_output


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm train",
        description="Train one run of a ladder of small foveated VLMs on drawn videos. An interrupted run goes on "
        "from its last saved state; a finished one is never overwritten.",
        epilog="example: fvlm train config/ladder.yaml --run S-S --out checkpoints/retrained/S-S",
    )
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG.yaml", help="file with `defaults:` and `runs:`")
    add("--run", required=True, metavar="NAME", help="which of the file's runs")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for checkpoints and losses.csv")
    add_seed(parser, "weights and videos")
    add_device(parser, "cpu")
    add_threads(parser, 1, "models this small gain nothing by more")
    args = parser.parse_args(argv)

    def work() -> None:
        config = read_training_config(args.config, args.run)
        check_output(args.out / "losses.csv", "--out")

        import torch
        from transformers.utils import logging

        from fvlm_lib.devices import pick_device
        from fvlm_lib.foveated.train import train

        torch.set_num_threads(args.threads)
        logging.disable_progress_bar()
        train(config, args.out, args.seed, args.run, pick_device(args.device))

    return run(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
