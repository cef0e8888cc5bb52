"""The options of `fvlm-predict`: what they may not say together, and the frames and settings that they name.

Nothing is loaded here but images' names and a settings file, so that `--help` and a wrong option do not wait.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from fvlm_lib.data.screens import ScreenSequence, read_sequence, read_sequences
from fvlm_lib.options import Parser, add_device, add_pack, add_seed, option
from fvlm_lib.outputs import check_output
from fvlm_lib.schema import (
    FITS,
    Beams,
    Count,
    CountOrNone,
    NewTokens,
    Pixels,
    Prefill,
    Share,
    Temperature,
    Tolerance,
    TopP,
)
from fvlm_lib.vision.settings import DifferentialSettings, read_settings

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
    "prefill": "prefill",
    "prefill_tolerance": "prefill_tolerance",
}
# what --calibrate chooses, or has no use for
_NOT_CALIBRATED = (
    "disable_differential", "diff_tolerance", "prefill_tolerance", "diff_print_stats", "check_every", "benchmark",
    "resume", "output", "skip_bad",
)  # fmt: skip


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked for what can be known without loading anything; exits where options cannot be, or
    contradict each other."""
    parser = Parser(
        prog="fvlm-predict",
        description="Ask a vision-language model about every frame of one or more sequences. Vision tokens of "
        "patches that did not change are kept, and so is the language model's prefix up to the first changed token, or "
        "all that a change does not reach (--prefill gated). Prints a line a frame: the path of the vision encode "
        "(full, partial, cached, ...), changed patches of all, reused tokens of the prompt's, the share of the "
        "language model's rows that was computed, times in ms, the answer.",
        epilog="examples: fvlm-predict --model llava-hf/llava-1.5-7b-hf --image-dir data/screens/jupyter --output "
        "answers.jsonl   |   fvlm-predict --model FOLDER --sequence-root data/screens --benchmark",
    )
    parser.add_argument(
        "--model", required=True, help="folder or hub id of a LLaVA, FastVLM, Qwen-VL, InternVL or SmolVLM model"
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
    kept.add_argument(
        "--disable-differential",
        action="store_true",
        help="encode every frame in full; the settings file is then not read",
    )
    ways = kept.add_mutually_exclusive_group()
    ways.add_argument(
        "--prefill",
        choices=get_args(Prefill),
        help="of the prompt: full runs all of it for every frame, exact what is behind the first changed token, gated "
        "the rows that the change reaches; default exact",
    )
    ways.add_argument(
        "--disable-prefix-reuse", dest="prefill", action="store_const", const="full", help="the same as --prefill full"
    )
    kept.add_argument(
        "--prefill-tolerance",
        type=option(Tolerance),
        metavar="X",
        help="of --prefill gated, relative L2; 0 is exact; default 0.02",
    )
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
        help="more than these are a full encode; default three quarters of all; with --pack auto as measured",
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
    checked = parser.add_argument_group("how far off that is")
    checked.add_argument(
        "--check-every",
        type=option(Count),
        metavar="N",
        help="compute each N-th frame of a sequence in full, too: KL divergence of the first token (nats), agreement "
        "of the greedy text, error of the last hidden state, in its row and at the end",
    )
    checked.add_argument(
        "--max-kl",
        type=option(Tolerance),
        metavar="X",
        help="of --check-every: answer a frame whose KL is above from a full computation, and go on from there; of "
        "--calibrate: what is allowed on any frame",
    )
    checked.add_argument(
        "--calibrate",
        action="store_true",
        help="instead of answers, find the fastest tolerances of the vision encode and the prefill that hold on these "
        "frames (--max-kl); a line each, and a last line of JSON",
    )
    checked.add_argument(
        "--calibrate-output", type=Path, metavar="FILE.yaml", help="settings file to write what was found to"
    )
    add_pack(parser)
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
    encoder_settings = [name for name in _SETTINGS if name.startswith("diff")]
    flags = [*encoder_settings, "diff_config", "diff_skip_small", "diff_print_stats"]
    differential = [f"--{name.replace('_', '-')}" for name in flags if given(getattr(args, name))]
    contradictions = [
        (args.disable_differential and differential, ["--disable-differential", *differential[:1]]),
        (
            args.diff_propagate == "none" and args.diff_tolerance is not None,
            ["--diff-propagate none", "--diff-tolerance"],
        ),
        (
            args.prefill in ("full", "exact") and args.prefill_tolerance is not None,
            [f"--prefill {args.prefill}", "--prefill-tolerance"],
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
        (args.check_every and args.benchmark, ["--check-every", "--benchmark"]),
        (
            args.check_every and args.disable_differential and args.prefill == "full",
            ["--check-every", "--disable-differential with --prefill full"],
        ),
        (args.skip_bad and args.benchmark, ["--skip-bad", "--benchmark"]),
        (
            args.benchmark and args.disable_differential and args.prefill == "full",
            ["--benchmark", "--disable-differential with --prefill full"],
        ),
        *(
            (args.calibrate and given(getattr(args, name)), ["--calibrate", f"--{name.replace('_', '-')}"])
            for name in _NOT_CALIBRATED
        ),
        (args.calibrate and args.temperature > 0, ["--calibrate", "--temperature"]),
        (args.calibrate and args.num_beams > 1, ["--calibrate", "--num-beams"]),
        (args.sequence_limit is not None and not args.sequence_root, ["--sequence-limit", "any but --sequence-root"]),
    ]
    for holds, names in contradictions:
        if holds:
            raise ValueError(f"{' and '.join(names)} contradict each other; leave one out")
    if args.max_kl is not None and not (args.check_every or args.calibrate):
        raise ValueError("--max-kl is of checked frames; add --check-every N")
    if args.calibrate and args.max_kl is None:
        raise ValueError("--calibrate needs --max-kl, the divergence of a first token that is allowed, such as 0.01")
    if args.calibrate_output:
        if not args.calibrate:
            raise ValueError("--calibrate-output is of --calibrate; add it")
        check_output(args.calibrate_output, "--calibrate-output")
        if args.calibrate_output.exists():
            raise ValueError(f"{args.calibrate_output} exists; name another --calibrate-output, or remove it")
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


def open_settings(args: argparse.Namespace) -> DifferentialSettings:
    """The settings: defaults, then the settings file, then options. Raises ValueError for a file that is none, and for
    a tolerance of what is not gated."""
    settings = DifferentialSettings()
    if not args.disable_differential and (args.diff_config or SETTINGS_FILE.exists()):
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
    if given.get("prefill", "gated") != "gated":
        given["prefill_tolerance"] = None
    found = replace(settings, **given)
    if found.propagate == "none" and args.diff_tolerance is not None:
        raise ValueError(
            "--diff-tolerance is of gated propagation, which the settings file switches off; add --diff-propagate gated"
        )
    if found.prefill != "gated" and args.prefill_tolerance is not None:
        raise ValueError(f"--prefill-tolerance is of a gated prefill, but it is {found.prefill}; add --prefill gated")
    return found
