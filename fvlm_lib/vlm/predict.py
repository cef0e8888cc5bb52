"""Command line: frames through a vision-language model, one answer a frame, differential encoding on.

Here is what is made of the options, which are `predict_options.py`'s subject. What happens to a frame is `stream.py`'s,
how answers are written and resumed `answers.py`'s, `--benchmark` `bench.py`'s. What takes seconds to import is imported
where it is used, behind the options, so that `--help` and a wrong option do not wait.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvlm_lib import options
from fvlm_lib.data.screens import ScreenSequence, read_frame
from fvlm_lib.options import pack_options, said
from fvlm_lib.outputs import json_lines
from fvlm_lib.vision.settings import encoder_options, prefill_options
from fvlm_lib.vlm.predict_options import SETTINGS_FILE, open_sequences, open_settings, parse_arguments

if TYPE_CHECKING:
    from fvlm_lib.vision.differential import DifferentialVisionEncoder
    from fvlm_lib.vlm.stream import VLMStream
    from fvlm_lib.vlm.vlms import VLM, Fit


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
        found.append(
            f"the vision tower ({architecture}) has no partial updates: a frame is {small}; what --prefill says of the "
            "prompt holds all the same"
        )
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
    from fvlm_lib.vlm.calibrate import check_frames, run_calibration
    from fvlm_lib.vlm.stream import Decoding, VLMStream, open_encoder
    from fvlm_lib.vlm.vlms import load_vlm

    if args.calibrate:
        check_frames(sequences)
    packing = pack_options(args)
    device = pick_device(args.device)
    dtype = getattr(torch, args.dtype, torch.float32 if device == "cpu" else None)
    vlm = load_vlm(args.model, device, dtype)
    encoder = None if args.disable_differential else open_encoder(vlm, settings, args.diff_skip_small, **packing)
    decoding = Decoding(
        args.max_new_tokens, args.min_new_tokens, args.temperature, args.top_p or 1.0, args.num_beams, args.seed
    )
    prefill = prefill_options(settings)
    checks = {"check_every": args.check_every, "max_kl": args.max_kl if args.check_every else None}
    stream = VLMStream(vlm, args.prompt, encoder, **prefill, **checks, **packing, fit=args.fit, decoding=decoding)
    if encoder and not args.diff_config and SETTINGS_FILE.exists():
        _note(f"the differential settings are those of {SETTINGS_FILE}, under the options")
    for note in notes(vlm, encoder, _first_size(sequences), args.fit):
        _note(note)
    run = {
        "model": args.model,
        "prompt": args.prompt,
        "fit": args.fit,
        "decoding": asdict(decoding),
        "differential": {**encoder_options(settings), "skip_small_updates": args.diff_skip_small} if encoder else None,
        "prefill": settings.prefill,
        "prefill_tolerance": getattr(stream.policy, "tolerance", None),
        **checks,
        "pack": args.pack,
        "device": device,
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
    }
    if args.calibrate:
        about = {key: run[key] for key in ("model", "prompt", "fit", "decoding", "differential", "device", "dtype")}
        run_calibration(
            vlm, args.prompt, sequences, settings, args.max_kl, args.calibrate_output, about,
            keep_prefill=args.prefill in ("full", "exact"), skip_small_updates=args.diff_skip_small,
            fit=args.fit, decoding=decoding, packing=packing,
        )  # fmt: skip
    elif args.benchmark:
        full = VLMStream(vlm, args.prompt, prefill="full", fit=args.fit, decoding=decoding)
        benchmark(stream, full, sequences, run, args.output)
    else:
        with contextlib.ExitStack() as stack:
            write, done = None, 0
            if args.output:
                write, done = stack.enter_context(open_output(args.output, run, sequences, args.resume))
            _note(note_of_empty(answer_sequences(sequences, stream, write, done, args.skip_bad)))
    if args.check_every:
        print(stream.check_totals)
    if args.diff_print_stats and encoder:
        print(format_statistics(encoder.statistics, stream.prefill_totals))


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
