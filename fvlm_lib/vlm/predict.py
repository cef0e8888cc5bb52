"""Command line: frames through a LLaVA- or FastVLM-style model, one answer a frame, differential encoding on.

Here are the options, what they may not say together, and what is made of them. What happens to a frame is
`stream.py`'s subject, how answers are written and resumed `answers.py`'s, `--benchmark` `bench.py`'s. What takes
seconds to import is imported where it is used, behind the options, so that `--help` and a wrong option do not wait.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvlm_lib import options
from fvlm_lib.data.screens import ScreenSequence, read_frame, read_sequence, read_sequences
from fvlm_lib.options import Parser, add_device, add_seed, option, said
from fvlm_lib.outputs import check_output, json_lines
from fvlm_lib.schema import FITS, Beams, Count, CountOrNone, NewTokens, Pixels, Share, Temperature, Tolerance, TopP
from fvlm_lib.vision.settings import DifferentialSettings, read_settings

if TYPE_CHECKING:
    from fvlm_lib.vision.differential import DifferentialVisionEncoder
    from fvlm_lib.vlm.stream import VLMStream
    from fvlm_lib.vlm.vlms import VLM, Fit

SETTINGS_FILE = Path("config/differential.yaml")
# option -> field of DifferentialSettings
_SETTINGS = {
    "diff_threshold": "diff_threshold",
    "diff_max_changed_patches": "max_changed_patches",
    "diff_patch_size": "patch_size",
    "diff_propagate": "propagate",
    "diff_tolerance": "tolerance",
    "diff_max_rows": "max_rows",
    "diff_reference": "reference",
}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked for what can be known without loading anything; exits where options cannot be, or
    contradict each other."""
    parser = Parser(
        prog="fvlm-predict",
        description="Ask a vision-language model about every frame of one or more sequences. Vision tokens of "
        "patches that did not change are kept, and so is the language model's prefix up to the first changed token. "
        "Prints a line a frame: the path of the vision encode (full, partial, cached, ...), changed patches of all, "
        "reused tokens of the prompt's, times in ms, the answer.",
        epilog="examples: fvlm-predict --model llava-hf/llava-1.5-7b-hf --image-dir data/screens/jupyter --output "
        "answers.jsonl   |   fvlm-predict --model FOLDER --sequence-root data/screens --benchmark",
    )
    parser.add_argument(
        "--model", required=True, help="folder or hub id of a LLaVA 1.5, LLaVA-OneVision or FastVLM model"
    )
    given = parser.add_argument_group("frames (one of these)").add_mutually_exclusive_group(required=True)
    given.add_argument("--image", type=Path, metavar="FILE", help="one image")
    given.add_argument("--images", type=Path, nargs="+", metavar="FILE", help="a sequence, in this order")
    given.add_argument("--image-dir", type=Path, metavar="DIR", help="a sequence, in natural order of names")
    given.add_argument("--sequence-root", type=Path, metavar="DIR", help="a folder of such folders; each starts anew")
    parser.add_argument("--sequence-limit", type=option(Count), metavar="N", help="only the first N of --sequence-root")
    parser.add_argument("--skip-bad", action="store_true", help="pass over images that cannot be read, and say so")
    parser.add_argument(
        "--fit",
        choices=FITS,
        default="processor",
        help="how frames are brought to the model's size: as its processor does (may crop the sides off wide screens), "
        "squashed, or padded; default %(default)s",
    )
    asked = parser.add_argument_group("prompt and decoding")
    asked.add_argument("--prompt", default="Describe what is on the screen.", help="default '%(default)s'")
    asked.add_argument(
        "--max-new-tokens", type=option(NewTokens), default=32, metavar="N", help="of an answer; default %(default)s"
    )
    asked.add_argument(
        "--min-new-tokens", type=option(CountOrNone), default=0, metavar="N", help="of an answer; default %(default)s"
    )
    asked.add_argument(
        "--temperature", type=option(Temperature), default=0.0, metavar="T", help="0 is greedy; default %(default)s"
    )
    asked.add_argument(
        "--top-p", type=option(TopP), metavar="P", help="sample from the likeliest tokens of this share; default 1"
    )
    asked.add_argument("--num-beams", type=option(Beams), default=1, metavar="N", help="default %(default)s")
    add_seed(asked, "sampling")
    kept = parser.add_argument_group("what is kept from frame to frame")
    kept.add_argument("--disable-differential", action="store_true", help="encode every frame in full")
    kept.add_argument("--disable-prefix-reuse", action="store_true", help="run the whole prompt for every frame")
    kept.add_argument(
        "--diff-config", type=Path, metavar="FILE", help=f"settings; default {SETTINGS_FILE} if there is one here"
    )
    kept.add_argument(
        "--diff-threshold",
        type=option(Share),
        metavar="X",
        help="what differs by more has changed; a fraction of the full range of a pixel; default 0.05",
    )
    kept.add_argument(
        "--diff-max-changed-patches",
        type=option(CountOrNone),
        metavar="N",
        help="more than these are a full encode; default a quarter of all",
    )
    kept.add_argument(
        "--diff-patch-size", type=option(Pixels), metavar="N", help="pixels; for vision towers that do not say theirs"
    )
    kept.add_argument(
        "--diff-skip-small",
        action="store_true",
        help="for towers without partial updates: keep all tokens up to --diff-max-changed-patches",
    )
    kept.add_argument(
        "--diff-propagate",
        choices=["gated", "budget", "none"],
        help="recompute tokens that feel a change, or at most --diff-max-rows of them a frame and layer, or none",
    )
    kept.add_argument(
        "--diff-tolerance",
        type=option(Tolerance),
        metavar="X",
        help="of gated and budget propagation, relative L2; 0 is exact",
    )
    kept.add_argument("--diff-max-rows", type=option(Count), metavar="N", help="of budget propagation; default 64")
    kept.add_argument("--diff-reference", choices=["encoded", "previous"], help="what patches are compared with")
    kept.add_argument("--diff-print-stats", action="store_true", help="totals of paths and changes at the end")
    add_device(parser)
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="auto: as stored, on a CPU float32",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.jsonl",
        help="one JSON object a frame, written as it comes; must not exist, but for --resume",
    )
    parser.add_argument("--resume", action="store_true", help="go on after the last complete line of --output")
    parser.add_argument(
        "--benchmark",
        action="store_true",
        help="time every frame by both ways, differential and full, in turn; a table, and a last line of JSON",
    )
    args = parser.parse_args(argv)
    try:
        _check(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def _check(args: argparse.Namespace) -> None:
    given = lambda value: value is not None and value is not False  # 0 is given
    flags = [*_SETTINGS, "diff_config", "diff_skip_small", "diff_print_stats"]
    differential = [f"--{name.replace('_', '-')}" for name in flags if given(getattr(args, name))]
    contradictions = [
        (args.disable_differential and differential, ["--disable-differential", *differential[:1]]),
        (
            args.diff_propagate == "none" and args.diff_tolerance is not None,
            ["--diff-propagate none", "--diff-tolerance"],
        ),
        (
            args.diff_propagate in ("gated", "none") and args.diff_max_rows is not None,
            [f"--diff-propagate {args.diff_propagate}", "--diff-max-rows"],
        ),
        (
            args.diff_propagate == "budget" and args.diff_max_changed_patches is not None,
            ["--diff-propagate budget", "--diff-max-changed-patches"],
        ),
        (args.top_p is not None and args.temperature == 0, ["--temperature 0", "--top-p"]),
        (args.resume and args.benchmark, ["--resume", "--benchmark"]),
        (args.skip_bad and args.benchmark, ["--skip-bad", "--benchmark"]),
        (
            args.benchmark and args.disable_differential and args.disable_prefix_reuse,
            ["--benchmark", "--disable-differential with --disable-prefix-reuse"],
        ),
        (args.sequence_limit is not None and not args.sequence_root, ["--sequence-limit", "any but --sequence-root"]),
    ]
    for holds, names in contradictions:
        if holds:
            raise ValueError(f"{' and '.join(names)} contradict each other; leave one out")
    if args.resume and not args.output:
        raise ValueError("--resume needs --output, the file to go on with")
    if args.output:
        check_output(args.output)
    if args.output and args.output.exists() and not args.resume:
        raise ValueError(f"{args.output} exists; go on with it by --resume, or name another --output")
    if args.min_new_tokens > args.max_new_tokens:
        raise ValueError(f"--min-new-tokens is {args.min_new_tokens}, above --max-new-tokens {args.max_new_tokens}")


# ---- from arguments to frames and streams --------------------------------------------------------------


def open_sequences(args: argparse.Namespace) -> list[ScreenSequence]:
    """The sequences that were asked for. Raises ValueError for missing files and folders without images."""
    if args.image:
        return [read_sequence([args.image])]
    if args.images:
        return [read_sequence(args.images)]
    if args.image_dir:
        return [read_sequence(args.image_dir)]
    return read_sequences(args.sequence_root)[: args.sequence_limit]


def open_settings(args: argparse.Namespace) -> DifferentialSettings | None:
    """The differential settings: defaults, then the settings file, then options; None if that is switched off."""
    if args.disable_differential:
        return None
    settings = DifferentialSettings()
    if args.diff_config or SETTINGS_FILE.exists():
        settings = read_settings(args.diff_config or SETTINGS_FILE)
    given = {field: getattr(args, option) for option, field in _SETTINGS.items() if getattr(args, option) is not None}
    propagate = given.get("propagate", settings.propagate)
    if args.diff_max_rows is not None and propagate != "budget":
        raise ValueError(
            f"--diff-max-rows is of budget propagation, and that of the settings is {propagate}; add --diff-propagate "
            "budget"
        )
    # an option for how changes propagate switches off what the settings file says of the other ways
    if given.get("propagate") == "none":
        given["tolerance"] = None
    if given.get("propagate") in ("gated", "none"):
        given["max_rows"] = None
    if given.get("propagate") == "budget":
        given["max_changed_patches"] = None
    found = replace(settings, **given)
    if found.propagate == "none" and args.diff_tolerance is not None:
        raise ValueError(
            "--diff-tolerance is of gated propagation, which the settings file switches off; add --diff-propagate gated"
        )
    return found


def notes(vlm: VLM, encoder: DifferentialVisionEncoder | None, frame_size: tuple[int, int], fit: Fit) -> list[str]:
    """What a user should know before the first answer, in sentences."""
    found = []
    height, width = frame_size
    cut = vlm.share_cut_off(height, width) if fit == "processor" else 0.0
    if cut > 0.01:
        found.append(
            f"the model's processor crops {cut:.0%} of a {width}x{height} frame away; --fit squash or pad keep all"
        )
    if encoder and encoder.vision.tower is None:
        architecture = getattr(encoder.vision.module.config, "architecture", type(encoder.vision.module).__name__)
        small = (
            "kept while its changes are small (--diff-skip-small)"
            if encoder.skip_small_updates
            else "encoded in full if anything changed"
        )
        found.append(f"the vision tower ({architecture}) has no partial updates: a frame is {small}")
    return found


# ---- command line --------------------------------------------------------------------------------------


def benchmark(
    differential: VLMStream,
    full: VLMStream,
    sequences: Sequence[ScreenSequence],
    run: dict[str, Any],
    output: Path | None,
) -> None:
    """Print the table of `bench.py` and, as the last line, JSON of it and of the run; a row a frame to `output`.

    Where the disk fills, what it took is kept, and the rest measured and printed before the OSError is raised.
    """
    import torch
    from tqdm import tqdm

    from fvlm_lib.vlm.answers import name_width, note_of_empty
    from fvlm_lib.vlm.bench import FRAME, FRAME_HEADER, format_answers, format_frame, measure_answers, summarize_answers

    print("ms of encode + prefill + decode, each frame both ways in turn, after a warm-up")
    width, full_disk = name_width(sequences), list[OSError]()
    print(FRAME.format(*FRAME_HEADER, width=width))
    with json_lines(output) if output else contextlib.nullcontext() as write:

        def report(row: dict[str, Any]) -> None:
            tqdm.write(format_frame(row, width), file=sys.stdout)
            if write and not full_disk:
                try:
                    write(row)
                except OSError as error:
                    full_disk.append(error)
                    print(f"note: {said(error)}; the frames from here on are only measured", file=sys.stderr)

        rows = measure_answers(differential, full, sequences, report=report)
    _note(note_of_empty([*rows["text"], *rows["text_full"]]))
    summary = summarize_answers(rows)
    print("\nmedians over frames, quartiles in brackets\n")
    print(format_answers(summary))
    where = {"threads": torch.get_num_threads(), "torch": torch.__version__, "processor": platform.processor()}
    print(json.dumps({"benchmark": "fvlm-predict", **run, **where, "results": summary.round(3).to_dict("records")}))
    if full_disk:
        raise full_disk[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    args = parse_arguments(argv)
    kept = f"{args.output} keeps what is done" if args.output else ""
    if kept and not args.benchmark:
        kept += ", and --resume goes on with it"
    return options.run("fvlm-predict", lambda: run_predict(args), kept)


def run_predict(args: argparse.Namespace) -> None:
    """What `main` does with checked arguments."""
    sequences = open_sequences(args)
    settings = open_settings(args)

    import torch

    from fvlm_lib.devices import pick_device
    from fvlm_lib.vlm.answers import answer_sequences, format_statistics, note_of_empty, open_output
    from fvlm_lib.vlm.stream import Decoding, VLMStream, open_encoder
    from fvlm_lib.vlm.vlms import load_vlm

    device = pick_device(args.device)
    dtype = getattr(torch, args.dtype, torch.float32 if device == "cpu" else None)
    vlm = load_vlm(args.model, device, dtype)
    encoder = open_encoder(vlm, settings, args.diff_skip_small) if settings else None
    decoding = Decoding(
        args.max_new_tokens, args.min_new_tokens, args.temperature, args.top_p or 1.0, args.num_beams, args.seed
    )
    reuse_prefix = not args.disable_prefix_reuse
    stream = VLMStream(vlm, args.prompt, encoder, reuse_prefix=reuse_prefix, fit=args.fit, decoding=decoding)
    if settings and not args.diff_config and SETTINGS_FILE.exists():
        _note(f"the differential settings are those of {SETTINGS_FILE}, under the options")
    for note in notes(vlm, encoder, _first_size(sequences), args.fit):
        _note(note)
    run = {
        "model": args.model,
        "prompt": args.prompt,
        "fit": args.fit,
        "decoding": asdict(decoding),
        "differential": {**asdict(settings), "skip_small_updates": args.diff_skip_small} if settings else None,
        "reuse_prefix": reuse_prefix,
        "device": device,
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
    }
    if args.benchmark:
        full = VLMStream(vlm, args.prompt, None, reuse_prefix=False, fit=args.fit, decoding=decoding)
        benchmark(stream, full, sequences, run, args.output)
    else:
        with contextlib.ExitStack() as stack:
            write, done = None, 0
            if args.output:
                write, done = stack.enter_context(open_output(args.output, run, sequences, args.resume))
            _note(note_of_empty(answer_sequences(sequences, stream, write, done, args.skip_bad)))
    if args.diff_print_stats and encoder:
        print(format_statistics(encoder.statistics))


def _note(sentence: str | None) -> None:
    if sentence:
        print(f"note: {sentence}", file=sys.stderr)


def _first_size(sequences: Sequence[ScreenSequence]) -> tuple[int, int]:
    """(height, width) of the first frame that can be read. Raises ValueError if none can."""
    problem: ValueError | None = None
    for file in (file for sequence in sequences for file in sequence.files):
        try:
            height, width = read_frame(file).shape[:2]
            return height, width
        except ValueError as error:
            problem = problem or error
    raise ValueError(f"none of the images can be read: {problem}")


if __name__ == "__main__":
    sys.exit(main())
