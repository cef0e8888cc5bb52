"""`fvlm gap`: the gap of one checkpoint, from the command line; also `python -m fvlm_lib.gap`.

What takes seconds to import is imported behind the options, so that `--help` and a wrong option do not wait.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from fvlm_lib.batch.parameters import Jacobi, Reuse, Samples
from fvlm_lib.data.options import PROCEDURAL_SAMPLES, Data
from fvlm_lib.options import Parser, add_device, add_seed, option, run
from fvlm_lib.outputs import check_output, note_replaced
from fvlm_lib.schema import DTYPES, BatchSize, CountOrNone, FinePasses, Positive, check
from fvlm_lib.yaml_files import parse_yaml


def _part(text: str) -> str:
    number, slash, total = text.partition("/")
    if not (slash and number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise ValueError("it must be K/N with K from 1 to N, such as 1/4")
    return text


Part = Annotated[str, AfterValidator(_part)]


def parser() -> Parser:
    """The command's options."""
    made = Parser(
        prog="fvlm gap",
        description="Measure the train/inference gap of one foveated checkpoint: the loss of captions when frames are "
        "watched one after the other, as at inference, less the loss by the parallel passes that were trained. Prints "
        "losses and gap in nats a token with 95% intervals, and a verdict; writes them as JSON, and a table with one "
        "row a sample beside it.",
        epilog="example: fvlm gap --checkpoint checkpoints/demo/S-S/step_3000 --output gap.json",
    )
    add = made.add_argument
    add("--checkpoint", required=True, help="folder, state dict file or hub id")
    add(
        "--output", required=True, type=Path, metavar="FILE.json", help="to write; the per-sample table goes beside it "
        "as FILE.parquet"
    )  # fmt: skip
    add(
        "--data",
        default="{kind: procedural, split: test}",
        metavar="YAML",
        help="the videos: '{kind: folder, path: FOLDER}' with a captions.jsonl, '{kind: webdataset, path: "
        "\"test-{00..31}.tar\"}', or drawn ones: '{kind: screens, split: test}', or procedural (default "
        "'%(default)s'); what else it takes is in fvlm_lib.data.videos.open_videos",
    )
    add(
        "--num-samples", type=option(Samples), help=f"videos to score; default all, of drawn ones "
        f"{PROCEDURAL_SAMPLES}"
    )  # fmt: skip
    add("--batch-size", type=option(BatchSize), default=32, help="videos scored at once; default %(default)s")
    add(
        "--num-fine",
        type=option(FinePasses),
        nargs="+",
        default=[1, 2, 3],
        metavar="K",
        help="numbers of fine passes to score; the first is the training mode; default 1 2 3",
    )
    add("--dtype", choices=DTYPES, help="of the weights and of all arithmetic; default as stored")
    add_device(made)
    add_seed(made, "the bootstrap that makes the intervals")
    add(
        "--floor-samples",
        type=option(CountOrNone),
        default=64,
        help="samples scored again in float64, for the numerical floor; 0 for none; default %(default)s",
    )
    add(
        "--reuse",
        metavar="YAML",
        help="settings of the differential encoder by a name each, such as '{gated: {tolerance: 0.02}}': the inference "
        "loss is also taken with frames encoded by what changed, as these say",
    )
    add(
        "--jacobi",
        action="store_true",
        help="also score 1 to as many fine passes as frames, and tell how many come near sequential use, and by how "
        "much an error of a query grows from a frame to the next (the norm of its Jacobian); their tables go beside "
        "--output as FILE.passes.parquet and FILE.jacobian.parquet",
    )
    add(
        "--within",
        type=option(Positive),
        metavar="NATS",
        help=f"of --jacobi: a loss so many nats a token from that of sequential use is near; default {Jacobi.within:g}",
    )
    add(
        "--within-query",
        type=option(Positive),
        metavar="SHARE",
        help="of --jacobi: queries so far from those of sequential use, as a share of these, are near; default "
        f"{Jacobi.within_query:g}",
    )
    add(
        "--norm-samples",
        type=option(CountOrNone),
        metavar="N",
        help=f"of --jacobi: videos that the norm is taken on, 0 for none; default {Jacobi.norm_samples}",
    )
    add(
        "--shard",
        type=option(Part),
        metavar="K/N",
        help="only score part K of N, and write its table to --output FILE.parquet; no gap",
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    made = parser()
    args = vars(made.parse_args(argv))
    return run(made.prog, lambda: _work(args))


def _work(args: dict[str, Any]) -> None:
    output, shard = args.pop("output"), args.pop("shard")
    table = output if shard else output.with_suffix(".parquet")
    if shard and output.suffix != ".parquet":
        raise ValueError(f"--output is {output}; of a --shard it is a table, so its name must end in .parquet")
    if not shard and output == table:
        raise ValueError(f"--output is {output}, which its own table would replace; name a .json file")
    if twice := {passes for passes in args["num_fine"] if args["num_fine"].count(passes) > 1}:
        raise ValueError(f"--num-fine has {min(twice)} twice; name each number of passes once")
    for file in (output, table):
        check_output(file)
    data = parse_yaml(args["data"], "--data")
    check(Data, data, "--data")
    if args["reuse"] is not None:
        args["reuse"] = parse_yaml(args["reuse"], "--reuse")
        check(Reuse, args["reuse"], "--reuse")
    options = {name: args.pop(name) for name in ("within", "within_query", "norm_samples")}
    options = {name: value for name, value in options.items() if value is not None}
    jacobi = Jacobi(**options) if args.pop("jacobi") else None
    if jacobi is None and options:
        alone = next(iter(options)).replace("_", "-")
        raise ValueError(f"--{alone} is of --jacobi, which is not there; give both or neither")
    if jacobi and shard:
        raise ValueError("--jacobi is of all samples, and --shard of a part; give one of them")
    parameters = {**args, "data": data, "jacobi": jacobi and asdict(jacobi)}

    from fvlm_lib.gap.gap import evaluate_inference_gap, format_gap, open_evaluation, score_shard, write_gap
    from fvlm_lib.gap.jacobi import check_jacobi_files, evaluate_jacobi, format_jacobi, jacobi_files
    from fvlm_lib.gap.samples import holds_samples, read_samples

    if not holds_samples(table):
        raise ValueError(f"{table}, which would be replaced, is no table of a gap; name another --output")
    if jacobi:
        check_jacobi_files(output)
    opened = {name: args.pop(name) for name in ("checkpoint", "dtype", "device")}
    del args["data"]
    model, videos = open_evaluation(data=data, **opened)
    note_replaced(*dict.fromkeys((output, table)), *(jacobi_files(output) if jacobi else ()))
    if shard:
        del args["seed"], args["floor_samples"]  # of the summary
        number, total = map(int, shard.split("/"))
        score_shard(model, videos, output, number, total, **args)
        return
    gap = evaluate_inference_gap(model, videos, table, **args)
    print(format_gap(gap), flush=True)  # before the disk is asked to take it
    curve = None
    if jacobi:
        numbers = read_samples(table)["sample"].tolist()
        curve = evaluate_jacobi(model, videos, output, numbers, jacobi, args["batch_size"], args["seed"])
        print(f"\n{format_jacobi(curve)}", flush=True)
    write_gap(output, gap, table, parameters, jacobi=curve)


if __name__ == "__main__":
    sys.exit(main())
