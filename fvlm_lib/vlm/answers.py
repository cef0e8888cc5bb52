"""Answers about the frames of sequences: one line each on the terminal and in a file that can be resumed.

The file has one JSON object a line: first what the run is, then one a frame, with the fields of `Answer` and
`fallbacks`, how many frames an error has sent to a full encode since the command was started. What is asked and how
is decided elsewhere (`predict.py`); how a frame is answered is `stream.py`'s subject.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from fvlm_lib.data.screens import ScreenSequence
from fvlm_lib.json_files import kind_of, parse_object
from fvlm_lib.vision.statistics import StreamStatistics
from fvlm_lib.vlm.stream import Answer, VLMStream


def answer_sequences(
    sequences: Sequence[ScreenSequence], stream: VLMStream, output: TextIO | None, done: int, skip_bad: bool
) -> None:
    """Answer about every frame after the first `done`, printing a line each and writing one of JSON to `output`.

    Frames of a sequence that was begun before are only encoded, so that those after them are answered as if nothing
    had interrupted. Raises ValueError for an image that cannot be read, unless `skip_bad`.
    """
    number = 0  # of the frame, over all sequences
    with tqdm(total=sum(map(len, sequences)), unit="frame", file=sys.stderr) as bar:
        for sequence in sequences:
            stream.reset()
            is_done = number + len(sequence) <= done
            for index, file in enumerate(sequence.files):
                number += 1
                bar.update()
                if is_done:
                    continue
                row: dict[str, Any] = {"sequence": sequence.name, "frame": index, "file": file.name}
                frame = None
                try:
                    frame = sequence[index]
                except ValueError as error:
                    if not skip_bad:
                        raise
                    row["error"] = str(error)
                if number <= done:
                    if frame is not None and stream.encoder:  # without one, nothing is carried on
                        stream.encode(frame)
                    continue
                if frame is not None:
                    row |= answer_row(stream.answer(frame, number))
                    row["fallbacks"] = stream.encoder.statistics.fallbacks if stream.encoder else 0
                tqdm.write(format_row(row), file=sys.stdout)
                if output:
                    output.write(json.dumps(row, ensure_ascii=False) + "\n")
                    output.flush()


def answer_row(answer: Answer) -> dict[str, Any]:
    """An answer as its line of JSON has it: times in ms, rounded to microseconds."""
    row = asdict(answer)
    del row["token_ids"]
    row["new_tokens"] = len(answer.token_ids)
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}


def printable(text: str) -> str:
    """A text on one line, without the control characters that a model may say to a terminal."""
    return "".join(character if character.isprintable() else "·" for character in " ".join(text.split()))


def format_row(row: dict[str, Any]) -> str:
    """One line for the terminal: frame, path, changed patches, reused prefix, ms, text."""
    start = f"{row['sequence']} {row['frame']:4d}"
    if "error" in row:
        return f"{start}  skipped: {row['error']}"
    patches = f"{row['changed_patches']}/{row['num_patches']}"
    reused = f"{row['reused_tokens']}/{row['prompt_tokens']}"
    times = " + ".join(f"{row[f'{name}_ms']:.0f}" for name in ("encode", "prefill", "decode"))
    text = printable(row["text"])
    return f"{start}  {row['path']:8} changed {patches:>9}  reused {reused:>9}  {times} ms  {text}"


# ---- the output file -----------------------------------------------------------------------------------


def open_output(
    path: Path, run: dict[str, Any], sequences: Sequence[ScreenSequence], resume: bool
) -> tuple[TextIO, int]:
    """The file to append to, its first line saying what the run is, and how many frames it already has.

    Raises ValueError where the file is of another run, or no such file.
    """
    header = json.dumps({"run": run}) + "\n"
    content = path.read_bytes() if resume and path.exists() else b""
    if header.encode().startswith(content) and not content.endswith(b"\n"):  # nothing, or the first line cut off
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w" if content else "a", encoding="utf-8")
        file.write(header)
        file.flush()
        return file, 0
    complete = content[: content.rfind(b"\n") + 1]  # a line that was cut off is written again
    lines = complete.split(b"\n")[:-1]  # an answer may hold what splitlines takes for a line's end
    try:
        if not lines:
            raise ValueError("it has no whole line")
        first, *rows = [parse_object(line, f"its line {number}") for number, line in enumerate(lines, start=1)]
        if not isinstance(made := first.get("run"), dict):
            raise ValueError(f"the run in its line 1 is {kind_of(made)}")
    except ValueError as error:
        raise ValueError(
            f"{path} is no output of fvlm-predict, so it cannot be resumed ({error}); name another --output"
        ) from None
    other = f"{path} is of another run, so it cannot be resumed; name another --output"
    for key, value in run.items():
        if made.get(key) != value:
            raise ValueError(f"{other} (its {_difference(key, made.get(key), value)})")
    frames = [(sequence.name, index, file.name) for sequence in sequences for index, file in enumerate(sequence.files)]
    for line, row in enumerate(rows):
        about = (row.get("sequence"), row.get("frame"), row.get("file"))
        if line >= len(frames) or about != frames[line]:
            raise ValueError(
                f"{other} (its line {line + 2} is about {about[0]}/{about[2]}, which is not that frame now)"
            )
    with path.open("r+b") as file_to_cut:
        file_to_cut.truncate(len(complete))
    return path.open("a", encoding="utf-8"), len(rows)


def _difference(key: str, made: Any, wanted: Any) -> str:
    """Where two values of a run differ, in words: the first key of theirs, if they have keys."""
    if isinstance(made, dict) and isinstance(wanted, dict):
        name = next(name for name in {**wanted, **made} if made.get(name) != wanted.get(name))
        return _difference(f"{key}.{name}", made.get(name), wanted.get(name))
    shown = [text if len(text) <= 80 else text[:79] + "…" for text in map(json.dumps, (made, wanted))]
    return f"{key} is {shown[0]}, now it is {shown[1]}"


def format_statistics(statistics: StreamStatistics) -> str:
    """Totals of an encoder for the terminal, one line."""
    paths = ", ".join(f"{count} {path}" for path, count in statistics.frames.items() if count)
    return (
        f"{statistics.total_frames} frames: {paths}; {statistics.mean_change_ratio:.2%} of patches changed on average"
    )
