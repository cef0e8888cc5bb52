"""`fvlm gap`: the gap of one checkpoint, from the command line; also `python -m fvlm_lib.gap`.

What takes seconds to import is imported behind the options, so that `--help` and a wrong option do not wait.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fvlm_lib.data.options import PROCEDURAL_SAMPLES
from fvlm_lib.schema import DTYPES
from fvlm_lib.yaml_files import parse_yaml


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fvlm gap",
        description="Measure the train/inference gap of one foveated checkpoint.",
        epilog="example: fvlm gap --checkpoint checkpoints/demo/S-S/step_3000 --output gap.json",
    )
    parser.add_argument("--checkpoint", required=True, help="folder, state dict file or hub id")
    parser.add_argument(
        "--output", required=True, type=Path, help="JSON to write; the per-sample .parquet goes beside it"
    )
    parser.add_argument(
        "--data",
        default="{kind: procedural, split: test}",
        help="the videos, as YAML: '{kind: folder, path: FOLDER}' with a captions.jsonl, '{kind: webdataset, path: "
        "\"test-{00..31}.tar\"}', or procedural ones (default '%(default)s'); what else it takes is in "
        "fvlm_lib.data.videos.open_videos",
    )
    parser.add_argument(
        "--num-samples", type=int, help=f"default: all of them; of procedural ones {PROCEDURAL_SAMPLES}"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="default %(default)s")
    parser.add_argument(
        "--num-fine", type=int, nargs="+", default=[1, 2, 3], help="fine passes; the first is the training mode"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: as stored")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--floor-samples", type=int, default=64, help="samples for the numerical floor; 0: none")
    parser.add_argument(
        "--shard", help="K/N: only score part K of N, and write its table (.parquet) to --output, no gap"
    )
    args = vars(parser.parse_args(argv))

    from fvlm_lib.gap.gap import evaluate_inference_gap, format_gap, open_evaluation, score_shard, write_gap

    output, shard = args.pop("output"), args.pop("shard")
    try:
        parameters = {**args, "data": parse_yaml(args["data"], "--data")}
        part = _read_shard(shard) if shard else None
        opened = {name: args.pop(name) for name in ("checkpoint", "dtype", "device")}
        del args["data"]
        model, videos = open_evaluation(data=parameters["data"], **opened)
        if part:
            del args["seed"], args["floor_samples"]  # of the summary
            score_shard(model, videos, output, *part, **args)
            return 0
        table = output.with_suffix(".parquet")
        gap = evaluate_inference_gap(model, videos, table, **args)
        write_gap(output, gap, table, parameters)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(format_gap(gap))
    return 0


def _read_shard(shard: str) -> tuple[int, int]:
    try:
        number, num_shards = (int(part) for part in shard.split("/"))
    except ValueError:
        raise ValueError(f"--shard is {shard!r}; it must be K/N, such as 1/4") from None
    return number, num_shards


if __name__ == "__main__":
    sys.exit(main())
