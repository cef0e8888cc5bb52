"""Time to first token and decoding of a vision-language model on recordings, differential beside full.

`measure_answers` answers about every frame by both ways in turn, in one run, and returns one row a frame;
`summarize_answers` makes the table. What a stream keeps is `stream.py`'s subject.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
    from fvlm_lib.__main__ import run_as

    run_as("predict")

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from tqdm import tqdm

from fvlm_lib.data.screens import ScreenSequence
from fvlm_lib.options import printable
from fvlm_lib.vlm.stream import Answer, VLMStream

FRAME = "{:<{width}} {:>5}  {:<8}  {:>15}  {:>8}  {:>20}  {:>20}  {}"
FRAME_HEADER = ("sequence", "frame", "path", "changed/patches", "computed", "kept, ms", "full, ms", "answers")
_TIMES = ("preprocess_ms", "encode_ms", "prefill_ms", "decode_ms", "first_token_ms")


def measure_answers(
    differential: VLMStream,
    full: VLMStream,
    sequences: Sequence[ScreenSequence],
    progress: bool = True,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> pd.DataFrame:
    """Answer about every frame of every sequence by both streams in turn; one row a frame, each also to `report`.

    Columns: sequence, frame, path, changed, total (patches), prompt_tokens, reused_tokens, prefill_path, prefill_rows,
    text, text_full, same_text (token for token), and for each time of an `Answer` its ms and ms of the full way,
    `_full` behind.
    Both are warmed up on the first frame; which goes first changes from frame to frame.
    """
    for stream in (differential, full):
        stream.answer(sequences[0][0])
    rows = []
    for sequence in sequences:
        differential.reset()
        full.reset()
        for index in tqdm(range(len(sequence)), desc=printable(sequence.name), unit="frame", disable=not progress):
            frame = sequence[index]
            streams = {"": differential, "_full": full}
            order = list(streams) if index % 2 == 0 else list(streams)[::-1]
            answers = {suffix: streams[suffix].answer(frame, index) for suffix in order}
            rows.append({"sequence": sequence.name, "frame": index, **_row(answers[""], answers["_full"])})
            report(rows[-1])
    return pd.DataFrame(rows)


def _row(answer: Answer, full: Answer) -> dict[str, Any]:
    return {
        "path": answer.path,
        "changed": answer.changed_patches,
        "total": answer.num_patches,
        "prompt_tokens": answer.prompt_tokens,
        "reused_tokens": answer.reused_tokens,
        "prefill_path": answer.prefill_path,
        "prefill_rows": answer.prefill_rows,
        "text": answer.text,
        "text_full": full.text,
        "same_text": answer.token_ids == full.token_ids,
        **{time: getattr(answer, time) for time in _TIMES},
        **{f"{time}_full": getattr(full, time) for time in _TIMES},
    }


def telling_frames(rows: pd.DataFrame, count: int) -> list[int]:
    """Up to `count` frames of one sequence that show what there is: the first of each path, then the first ones
    whose texts differ, then any."""
    by_path = rows.drop_duplicates("path")["frame"]
    order = [*by_path, *rows.loc[~rows["same_text"], "frame"], *rows["frame"]]
    return sorted(list(dict.fromkeys(order))[:count])


def summarize_answers(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians with quartiles (_q1, _q3) of a `measure_answers` table, a row a group of frames.

    Groups: of each sequence the first frame and the later ones apart; of all together also the later frames on
    which nothing had changed. Columns: n; first_token_ms and first_token_ms_full; speedup, the median of the frames'
    own ratios; prefill_rows; decode_ms and decode_ms_full; same_text, in how many frames both said the same.
    """
    later = rows["frame"] > 0
    groups = {(name, "first"): (rows["sequence"] == name) & ~later for name in rows["sequence"].unique()}
    groups |= {(name, "later"): (rows["sequence"] == name) & later for name in rows["sequence"].unique()}
    groups |= {
        ("all", "first"): ~later,
        ("all", "later"): later,
        ("all", "unchanged"): later & (rows["path"] == "cached"),
    }
    return pd.DataFrame(
        {"sequence": name, "frames": kind, **_summary(rows[chosen])}
        for (name, kind), chosen in groups.items()
        if chosen.any()
    )


def _summary(rows: pd.DataFrame) -> dict[str, float]:
    measured = {
        "first_token_ms": rows["first_token_ms"],
        "first_token_ms_full": rows["first_token_ms_full"],
        "speedup": rows["first_token_ms_full"] / rows["first_token_ms"],
        "prefill_rows": rows["prefill_rows"],
        "decode_ms": rows["decode_ms"],
        "decode_ms_full": rows["decode_ms_full"],
    }
    summary: dict[str, float] = {"n": len(rows)}
    for name, values in measured.items():
        for suffix, quantile in (("", 0.5), ("_q1", 0.25), ("_q3", 0.75)):
            summary[name + suffix] = float(values.quantile(quantile))
    return summary | {"same_text": int(rows["same_text"].sum())}


def format_frame(row: dict[str, Any], width: int) -> str:
    """One frame of `measure_answers` on a line under FRAME_HEADER; width: of the sequences' names."""
    ways = [
        " + ".join(f"{row[f'{name}_ms{suffix}']:.0f}" for name in ("encode", "prefill", "decode"))
        for suffix in ("", "_full")
    ]
    changed, same = f"{row['changed']}/{row['total']}", "same text" if row["same_text"] else "texts differ"
    return FRAME.format(
        printable(row["sequence"]),
        row["frame"],
        row["path"],
        changed,
        f"{row['prefill_rows']:.1%}",
        *ways,
        same,
        width=width,
    )


def format_answers(summary: pd.DataFrame) -> str:
    """The summary for a terminal: medians, quartiles in brackets."""

    def shown(row: pd.Series, name: str, digits: int) -> str:
        return f"{row[name]:.{digits}f} [{row[f'{name}_q1']:.{digits}f}, {row[f'{name}_q3']:.{digits}f}]"

    table = pd.DataFrame(
        {
            "sequence": row["sequence"],
            "frames": row["frames"],
            "n": row["n"],
            "first token, ms": shown(row, "first_token_ms", 0),
            "full, ms": shown(row, "first_token_ms_full", 0),
            "times faster": shown(row, "speedup", 2),
            "rows computed": f"{row['prefill_rows']:.1%}",
            "decode, ms": shown(row, "decode_ms", 0),
            "full decode, ms": shown(row, "decode_ms_full", 0),
            "same text": f"{row['same_text']}/{row['n']}",
        }
        for _, row in summary.iterrows()
    )
    return table.to_markdown(index=False)
