"""`fvlm watch`: a foveated model watches a screen, a window or a recording, and says what it sees.

How it watches is `live.py`'s subject. What takes seconds to import is imported behind the options.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import threading
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from fvlm_lib.data.live_frames import open_source
from fvlm_lib.data.record import stop_request
from fvlm_lib.options import Parser, add_device, add_pack, add_threads, option, pack_options, printable, run
from fvlm_lib.outputs import check_output, json_lines
from fvlm_lib.schema import Count, FrameRate, NewTokens, Seconds, SecondsOrNone
from fvlm_lib.vision.settings import EXACT, read_settings

if TYPE_CHECKING:
    from fvlm_lib.foveated.live import LiveFrame

ROW = "{:>6} {:>8}  {:<8} {:>9} {:>14}  {:>8} {:>8} {:>8} {:>8}  {:>7}  {}"
HEADER = ("frame", "s", "path", "encoded", "looks at", "encode", "look", "language", "caption", "dropped", "says")
TIMES = ("encode_ms", "look_ms", "language_ms", "caption_ms")


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm watch",
        description="Watch a screen, a window or a recording with a foveated model, at a rate: a line a frame, with "
        "how it was encoded and how many of its patches, row and column of the patch that the model looks at most with "
        "its share of the look, milliseconds of encoding, look, language model and caption, how many frames came too "
        "late to be watched, and what the model says. Then medians with quartiles; the last line is JSON. Ctrl-C ends "
        "it and keeps what was said.",
        epilog="example: fvlm watch --checkpoint checkpoints/demo/screens/step_4500 --source data/screen-events",
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="folder, state dict file or hub id of a foveated model")
    add(
        "--source",
        required=True,
        help="screen (the first monitor), screen:2 (0 is all together), window:TITLE (the uppermost with TITLE in its "
        "title), or the folder of a recording",
    )
    add("--fps", type=option(FrameRate), default=2.0, help="frames a second that are taken; default %(default)s")
    add("--seconds", type=option(Seconds), help="how long; default until the source ends")
    add("--frames", type=option(Count), metavar="N", help="how many to watch; default all")
    add("--loop", action="store_true", help="begin a recording again at its end")
    add(
        "--caption-every",
        type=option(SecondsOrNone),
        default=1.0,
        metavar="S",
        help="seconds between two captions, 0 for one at every frame; none while nothing changes; default %(default)s",
    )
    add("--max-new-tokens", type=option(NewTokens), default=16, metavar="N", help="of a caption; default %(default)s")
    add(
        "--max-frames",
        type=option(Annotated[Count, Field(ge=2)]),
        metavar="N",
        help="frames that the language model remembers at most, then it keeps the newest half; default as many as it "
        "was trained on, if the checkpoint says so, else as it has positions for",
    )
    add(
        "--settings",
        type=Path,
        metavar="FILE.yaml",
        help="of the differential encoder, such as config/differential.yaml; default: exact, threshold and "
        "tolerance 0. What others cost, fvlm gap --reuse measures",
    )
    add_pack(parser)
    add_threads(parser, 1)
    add_device(parser)
    add("--out", type=Path, metavar="FILE.jsonl", help="a JSON object a frame, written as it is watched")
    args = parser.parse_args(argv)
    return run(parser.prog, lambda: _watch(args), f"{args.out} keeps what was said" if args.out else "")


@dataclass
class Summary:
    """What was watched: milliseconds by part, of the captions only where the model was asked; seconds from the first
    frame to the last; captions in order, one that says the same again left out."""

    times: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in TIMES})
    paths: dict[str, int] = field(default_factory=dict)
    captions: list[tuple[float, str]] = field(default_factory=list)
    watched: int = 0
    dropped: int = 0
    first: float = 0.0
    last: float = 0.0

    def add(self, frame: LiveFrame) -> None:
        """Count one frame."""
        self.first, self.last = (self.first if self.watched else frame.seconds), frame.seconds
        self.watched, self.dropped = self.watched + 1, frame.dropped
        self.paths[frame.path] = self.paths.get(frame.path, 0) + 1
        for name in TIMES:
            if name != "caption_ms" or frame.caption is not None:
                self.times[name].append(getattr(frame, name))
        if frame.caption is not None and (not self.captions or self.captions[-1][1] != frame.caption):
            self.captions.append((frame.seconds, frame.caption))

    @property
    def fps(self) -> float | None:
        """Frames a second that were watched; None of fewer than two."""
        return (self.watched - 1) / (self.last - self.first) if self.last > self.first else None

    def quartiles(self) -> dict[str, dict[str, float]]:
        """By part, milliseconds: median, its quartiles, and of how many; {} of a part that nothing was timed of."""
        found = {}
        for name, values in self.times.items():
            if values:
                low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).round(4).tolist()
                found[name] = {"ms": middle, "ms_q1": low, "ms_q3": high, "n": len(values)}
        return found


def _watch(args: argparse.Namespace) -> None:
    packing = pack_options(args)
    settings = read_settings(args.settings) if args.settings else EXACT
    if args.out:
        check_output(args.out, "--out")
        if args.out.exists():
            raise ValueError(f"--out {args.out} exists; name another, or remove it")
    source = open_source(args.source, args.fps, loop=args.loop)

    import torch

    from fvlm_lib.foveated.live import live_row, open_live, trained_frames, watch_live

    torch.set_num_threads(args.threads)
    model, tokenizer = open_live(args.checkpoint, args.device)
    summary = Summary()
    with stop_request() as stop, _after(args.seconds, stop):
        frames = watch_live(
            model,
            tokenizer,
            source,
            differential=settings,
            caption_every=args.caption_every,
            max_new_tokens=args.max_new_tokens,
            max_frames=args.max_frames or trained_frames(args.checkpoint),
            stop=stop,
            **packing,
        )
        print(ROW.format(*HEADER))
        try:
            with (
                contextlib.closing(frames),
                json_lines(args.out) if args.out else contextlib.nullcontext() as write,
            ):
                for frame in itertools.islice(frames, args.frames):
                    summary.add(frame)
                    row = live_row(frame)
                    print(_line(row), flush=True)
                    if write:
                        write(row)
        finally:  # what goes wrong is said behind what was seen
            _print_summary(summary, args)


@contextlib.contextmanager
def _after(seconds: float | None, stop: threading.Event) -> Iterator[None]:
    """Sets `stop` once so many seconds have passed; None for never."""
    timer = threading.Timer(seconds or 0, stop.set)
    if seconds is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _line(row: Mapping[str, Any]) -> str:
    """A row of `live.live_row` as it is printed."""
    times = (f"{row[name]:.1f}" for name in TIMES[:3])
    line = ROW.format(
        row["frame"],
        f"{row['seconds']:.2f}",
        row["path"],
        f"{row['encoded']}/{row['patches']}",
        f"{row['look_row']}, {row['look_column']}: {row['look_share']:.0%}",
        *times,
        "" if row["caption"] is None else f"{row['caption_ms']:.1f}",
        row["dropped"],
        printable(row["caption"] or ""),
    )
    return line.rstrip()


def _print_summary(summary: Summary, args: argparse.Namespace) -> None:
    paths = ", ".join(f"{count} {path}" for path, count in summary.paths.items())
    rate = "" if summary.fps is None else f", {summary.fps:.1f} a second"
    print(f"{summary.watched} frames watched{rate}, {summary.dropped} dropped{paths and ': '}{paths}")
    for name, found in summary.quartiles().items():
        part, called = name.removesuffix("_ms"), "ms a caption" if name == "caption_ms" else "ms a frame"
        print(f"{part:<9} {found['ms']:8.1f} {called} ({found['ms_q1']:.1f} to {found['ms_q3']:.1f})")
    for seconds, caption in summary.captions:
        print(f"{seconds:8.1f} s  {printable(caption)}")
    facts = {**vars(args), "settings": args.settings and str(args.settings), "out": args.out and str(args.out)}
    facts |= {"watched": summary.watched, "dropped": summary.dropped, "watched_fps": summary.fps}
    facts |= {"paths": summary.paths, "captions": summary.captions}
    print(json.dumps(facts | summary.quartiles()))


if __name__ == "__main__":
    sys.exit(main())
