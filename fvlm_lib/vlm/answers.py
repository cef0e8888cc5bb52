"""Answers about the frames of sequences: one line each on the terminal and in a file that can be resumed.

The file has one JSON object a line: first what the run is, then one a frame, with the fields of `Answer` and
`fallbacks`, how many frames an error has sent to a full encode or a full prefill since the command was started. What is
asked and how is decided elsewhere (`predict.py`); how a frame is answered is `stream.py`'s subject.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fvlm_lib.data.screens import ScreenSequence
from fvlm_lib.json_files import kind_of, parse_object
from fvlm_lib.options import printable
from fvlm_lib.outputs import json_line, json_lines
from fvlm_lib.vision.statistics import StreamStatistics
from fvlm_lib.vlm.prefills import PrefillTotals
from fvlm_lib.vlm.stream import Answer, VLMStream

Write = Callable[[Mapping[str, Any]], None]

# a line of the terminal; what is changed is of all patches, what is reused of all tokens of the prompt, what is
# computed of all rows of the language model
ROW = "{:<{width}} {:>5}  {:<8}  {:>15}  {:>13}  {:>8}  {:>9}  {:>10}  {:>9}  {}"
HEADER = (
    "sequence", "frame", "path", "changed/patches", "reused/tokens", "computed", "encode ms", "prefill ms", "decode ms",
    "answer",
)  # fmt: skip


def answer_sequences(
    sequences: Sequence[ScreenSequence], stream: VLMStream, write: Write | None, done: int, skip_bad: bool
) -> list[str]:
    """Answer about every frame after the first `done`, printing a line each under a header and giving its row to
    `write`. Returns the answers.

    Frames of a sequence that was begun before are only followed, so that those after them are answered as if nothing
    had interrupted. Raises ValueError for an image that cannot be read, unless `skip_bad`.
    """
    number = 0  # of the frame, over all sequences
    texts = []
    width = name_width(sequences)
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
                    if frame is not None:
                        stream.follow(frame)
                    continue
                if number == done + 1:
                    tqdm.write(ROW.format(*HEADER, width=width), file=sys.stdout)
                if frame is not None:
                    row |= answer_row(stream.answer(frame, number))
                    texts.append(row["text"])
                    row["fallbacks"] = stream.fallbacks
                tqdm.write(format_row(row, width), file=sys.stdout)
                if write:
                    write(row)
    return texts


def answer_row(answer: Answer) -> dict[str, Any]:
    """An answer as its line of JSON has it: times in ms, rounded to microseconds, other numbers to six digits, null
    where one is not finite; of a check, its fields with check_ before their names."""
    row = asdict(answer)
    del row["token_ids"], row["check"]
    row["new_tokens"] = len(answer.token_ids)
    if answer.check:
        row |= {f"check_{name}": value for name, value in asdict(answer.check).items()}
    return {key: _rounded(key, value) if isinstance(value, float) else value for key, value in row.items()}


def _rounded(key: str, value: float) -> float | None:
    if not math.isfinite(value):
        return None  # which JSON has no number for
    return round(value, 3) if key.endswith("_ms") else float(f"{value:.6g}")


def format_row(row: dict[str, Any], width: int) -> str:
    """One line for the terminal, under HEADER; width: of the sequences' names."""
    if "error" in row:
        return f"{printable(row['sequence']):<{width}} {row['frame']:>5}  skipped: {printable(row['error'])}"
    return ROW.format(
        printable(row["sequence"]),
        row["frame"],
        row["path"],
        f"{row['changed_patches']}/{row['num_patches']}",
        f"{row['reused_tokens']}/{row['prompt_tokens']}",
        f"{row['prefill_rows']:.1%}",
        *(f"{row[f'{name}_ms']:.0f}" for name in ("encode", "prefill", "decode")),
        printable(row["text"]) + _check(row),
        width=width,
    )


def _check(row: dict[str, Any]) -> str:
    """What a check found, in words, behind the answer."""
    if "check_kl" not in row:
        return ""
    same = "same text" if row["check_same_text"] else "another text"
    done = ", so answered in full" if row["check_failed"] else ""
    kl = "not finite" if row["check_kl"] is None else f"{row['check_kl']:.2g}"
    return f"  (checked: KL {kl}, {same}{done})"


def name_width(sequences: Sequence[ScreenSequence]) -> int:
    """How wide the column of the sequences' names is."""
    return max(len("sequence"), *(len(printable(sequence.name)) for sequence in sequences))


def note_of_empty(texts: Sequence[str]) -> str | None:
    """A sentence where every answer is empty, which is seldom what was meant; else None."""
    if not texts or any(text.strip() for text in texts):
        return None
    every = "the only answer is" if len(texts) == 1 else f"all {len(texts)} answers are"
    return f"{every} empty: the model ends at once; --min-new-tokens 1 shows what it says otherwise"


# ---- the output file -----------------------------------------------------------------------------------


@contextlib.contextmanager
def open_output(
    path: Path, run: dict[str, Any], sequences: Sequence[ScreenSequence], resume: bool
) -> Iterator[tuple[Write, int]]:
    """What appends a row to the file, whose first line says what the run is, and how many frames it already has.

    Raises ValueError where the file is of another run, or no such file.
    """
    done = _frames_done(path, run, sequences) if resume and path.exists() else None
    with json_lines(path) as write:
        if done is None:
            write({"run": run})
        yield write, done or 0


def _frames_done(path: Path, run: dict[str, Any], sequences: Sequence[ScreenSequence]) -> int | None:
    """How many frames the file has, once a line that was cut off is removed; None where not even its first is whole."""
    content = path.read_bytes()
    if json_line({"run": run}).startswith(content) and not content.endswith(b"\n"):  # nothing, or a part of it
        os.truncate(path, 0)
        return None
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
    os.truncate(path, len(complete))
    return len(rows)


def _difference(key: str, made: Any, wanted: Any) -> str:
    """Where two values of a run differ, in words: the first key of theirs, if they have keys."""
    if isinstance(made, dict) and isinstance(wanted, dict):
        name = next(name for name in {**wanted, **made} if made.get(name) != wanted.get(name))
        return _difference(f"{key}.{name}", made.get(name), wanted.get(name))
    shown = [text if len(text) <= 80 else text[:79] + "…" for text in map(json.dumps, (made, wanted))]
    return f"{key} is {shown[0]}, now it is {shown[1]}"


def format_statistics(statistics: StreamStatistics, prefills: PrefillTotals) -> str:
    """Totals of an encoder and of the prefills for the terminal, a line each."""
    owed = f"; {statistics.owed} tokens are owed" if statistics.owed else ""
    return (
        f"{statistics.total_frames} frames: {_paths(statistics.frames)}; {statistics.mean_change_ratio:.2%} of patches "
        f"changed on average{owed}\n{sum(prefills.frames.values())} prefills: {_paths(prefills.frames)}; "
        f"{prefills.mean_rows:.2%} of rows computed on average"
    )


def _paths(frames: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {path}" for path, count in frames.items() if count)
