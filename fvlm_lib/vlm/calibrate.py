"""Which tolerances hold on a user's own frames: each setting held against a full computation of every frame.

A setting is a tolerance of the vision encode and one of the prefill. The larger either is, the faster and the further
off, so not all pairs need to be run: `walk` goes along the border between those that hold and those that do not, from
the largest vision tolerance with an exact prefill to the smallest. It visits at most as many pairs as there are
tolerances of both kinds, and every pair that it calls good has itself been run. Of those, the fastest is chosen: the
three with the smallest times are timed once more, in turn with the full way, since a machine's speed drifts.

A setting holds where the *largest* divergence of a frame is within what is allowed: a mean, or its interval's end, can
be small while one frame is answered wrongly. What happens on fewer than 3 frames in n may be missing from n frames.
"""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from scipy.stats import binomtest
from tqdm import tqdm

from fvlm_lib.data.screens import ScreenSequence
from fvlm_lib.schema import Fit
from fvlm_lib.stats import bootstrap, ratio
from fvlm_lib.vision.settings import DifferentialSettings, prefill_options, write_settings
from fvlm_lib.vlm.check import Said, compare
from fvlm_lib.vlm.prefills import open_policy, open_prefill
from fvlm_lib.vlm.stream import GREEDY, Answer, Decoding, VLMStream, open_encoder
from fvlm_lib.vlm.vlms import VLM

TOLERANCES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Of the prefill, where 0 is the exact prefix, which says the same and needs no gate; of the vision encode, also
infinity, which recomputes nothing that did not change itself (`propagate` "none")."""
NUM_TIMED = 3
"""So many of those that hold are timed again; each keeps a state of its own."""


@dataclass(frozen=True)
class Calibration:
    """table: a row a setting that was run, in their order (`summarize`), the full way first. chosen: the settings of
    the fastest that holds, None where none does. row: its row. speedup: the median of the frames' own ratios to the
    full way, timed in turn."""

    table: pd.DataFrame
    chosen: DifferentialSettings | None = None
    row: pd.Series | None = None
    speedup: float = math.nan


def calibrate(
    vlm: VLM,
    prompt: str,
    sequences: Sequence[ScreenSequence],
    settings: DifferentialSettings,
    max_kl: float,
    *,
    keep_prefill: bool = False,
    skip_small_updates: bool = False,
    fit: Fit = "processor",
    decoding: Decoding = GREEDY,
    packing: Mapping[str, Any] | None = None,
    tolerances: Sequence[float] = TOLERANCES,
    progress: bool = True,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Calibration:
    """Find the fastest tolerances on whose frames the first token's KL divergence from a full computation is at most
    `max_kl` nats.

    settings: what is not calibrated. Where `propagate` is not "gated", or the tower has no partial updates, the vision
    encode stays as it is; with keep_prefill, the prefill does. packing: `pack_weights` and `pack_memory` of both.
    report: gets each row of the table as it comes.

    Raises ValueError for fewer than two frames of one sequence, of which the first is always computed in full, and for
    a language model that cannot be gated.
    """
    check_frames(sequences)
    if not keep_prefill:
        open_prefill(vlm, open_policy("gated"))  # where it is refused, before all work
    full = VLMStream(vlm, prompt, prefill="full", fit=fit, decoding=decoding)
    reference = _run(full, sequences, "full", progress)
    rows = [summarize(pd.DataFrame(_frame(*said, *said, vlm) | {"name": name} for name, said in reference.items()))]
    rows[0] |= {"vision": "full", "prefill": "full", "holds": True}  # itself
    report(rows[0])
    found: list[DifferentialSettings] = []

    def opened(chosen: DifferentialSettings) -> VLMStream:
        options = dict(packing or {})
        encoder = open_encoder(vlm, chosen, skip_small_updates, **options)
        return VLMStream(vlm, prompt, encoder, **prefill_options(chosen), **options, fit=fit, decoding=decoding)

    def holds(vision: float | None, prefill: float | None) -> bool:
        chosen = _with(settings, vision, prefill)
        names = [
            "as set" if tolerance is None else f"{tolerance:g}" if way == "gated" else way
            for tolerance, way in ((vision, chosen.propagate), (prefill, chosen.prefill))
        ]
        said = _run(opened(chosen), sequences, f"vision {names[0]}, prefill {names[1]}", progress)
        frames = pd.DataFrame(_frame(*said[name], *reference[name], vlm) | {"name": name} for name in said)
        row = summarize(frames) | {"vision": names[0], "prefill": names[1]}
        row["holds"] = row["kl_max"] <= max_kl
        rows.append(row)
        report(row)
        if row["holds"]:
            found.append(chosen)
        return bool(row["holds"])

    partial = open_encoder(vlm, settings, skip_small_updates).vision.tower is not None
    visions = [*tolerances, math.inf] if settings.propagate == "gated" and partial else [None]
    prefills = [None] if keep_prefill else list(tolerances)
    walk(visions, prefills, holds)
    table = pd.DataFrame(rows)
    held = table[table["holds"]][1:]  # in the order of `found`, behind the full way
    if held.empty:
        return Calibration(table)
    places = np.argsort(held["ms"].to_numpy())[:NUM_TIMED]
    streams = {"full": full} | {str(place): opened(found[place]) for place in places}
    times = _time_in_turn(streams, sequences, progress)
    place = int(times.drop(columns="full").median().idxmin())
    speedup = float((times["full"] / times[str(place)]).median())
    return Calibration(table, found[place], held.iloc[place], speedup)


def check_frames(sequences: Sequence[ScreenSequence]) -> None:
    """Raise ValueError where no sequence has two frames."""
    if all(len(sequence) < 2 for sequence in sequences):
        raise ValueError(
            "a calibration needs a sequence of at least two frames, since the first is computed in full; give more"
        )


def walk(visions: Sequence[float | None], prefills: Sequence[float | None], holds: Callable[[Any, Any], bool]) -> None:
    """Ask of pairs of tolerances whether they hold, along the border of those that do: both rise, and a pair holds
    where one holds that is larger in both."""
    place, column = len(visions) - 1, 0
    while place >= 0 and column < len(prefills):
        if holds(visions[place], prefills[column]):
            column += 1
        else:
            place -= 1


def _with(settings: DifferentialSettings, vision: float | None, prefill: float | None) -> DifferentialSettings:
    """None leaves them as they are."""
    if vision is not None:
        none = math.isinf(vision)
        settings = replace(settings, propagate="none" if none else "gated", tolerance=None if none else vision)
    if prefill is not None:
        settings = replace(settings, prefill="gated" if prefill else "exact", prefill_tolerance=prefill or None)
    return settings


def _run(
    stream: VLMStream, sequences: Sequence[ScreenSequence], name: str, progress: bool
) -> dict[tuple[str, int, int], tuple[Answer, Said]]:
    """What is said of every frame, by the sequence's name and place, and the frame's."""
    found = {}
    with tqdm(total=sum(map(len, sequences)), desc=name, unit="frame", file=sys.stderr, disable=not progress) as bar:
        for place, sequence in enumerate(sequences):
            stream.reset()
            for index in range(len(sequence)):
                answer, said = stream.watch(sequence[index])
                bar.update()
                if index:  # the first is computed in full, whatever the setting
                    found[sequence.name, place, index] = answer, said
    return found


def _time_in_turn(streams: dict[str, VLMStream], sequences: Sequence[ScreenSequence], progress: bool) -> pd.DataFrame:
    """Times to first token in ms, a row a later frame that changed (any, where none did), a column a stream."""
    rows: list[dict[str, float]] = []
    with tqdm(
        total=sum(map(len, sequences)), desc="in turn", unit="frame", file=sys.stderr, disable=not progress
    ) as bar:
        for sequence in sequences:
            for stream in streams.values():
                stream.reset()
            for index in range(len(sequence)):
                frame, order = sequence[index], list(streams)
                order = order[index % len(order) :] + order[: index % len(order)]  # which goes first changes
                answers = {name: streams[name].answer(frame) for name in order}
                bar.update()
                if index:
                    changed = any(answer.path != "cached" for name, answer in answers.items() if name != "full")
                    rows.append({name: answers[name].first_token_ms for name in streams} | {"changed": changed})
    times = pd.DataFrame(rows)
    return (times[times["changed"]] if times["changed"].any() else times).drop(columns="changed")


def _frame(answer: Answer, said: Said, full_answer: Answer, full: Said, vlm: VLM) -> dict[str, Any]:
    check = compare(vlm.model.lm_head, said, full)
    return {
        "path": answer.path,
        "kl": check.kl,
        "hidden_error": check.hidden_error,
        "same": check.same_text,
        "rows": answer.prefill_rows,
        "ms": answer.first_token_ms,
        "encode_ms": answer.encode_ms,
        "prefill_ms": answer.prefill_ms,
        "speedup": full_answer.first_token_ms / answer.first_token_ms,
    }


def summarize(frames: pd.DataFrame) -> dict[str, Any]:
    """Of the later frames of all sequences at one setting. n; changed, how many of them the encode saw a change on.
    Over those: rows (mean share of the language model's rows computed), and medians of ms, encode_ms, prefill_ms and
    speedup (the frame's own ratio to the full way). Over all: kl, the mean with the 95% interval kl_low, kl_high
    (bootstrap over frames; none of one frame), kl_max and worst, on which frame; same, how many said the same greedily,
    its share with the 95% interval same_low, same_high (Wilson); hidden_error, the largest."""
    changed = frames[frames["path"] != "cached"]
    timed = changed if len(changed) else frames
    count, same = len(frames), int(frames["same"].sum())
    finite = bool(np.isfinite(frames["kl"]).all())
    row: dict[str, Any] = {"n": count, "changed": len(changed), "rows": float(timed["rows"].mean())}
    row |= {name: float(timed[name].median()) for name in ("ms", "encode_ms", "prefill_ms", "speedup")}
    row |= {"kl": float(frames["kl"].mean(skipna=False)), "kl_low": math.nan, "kl_high": math.nan}
    if count > 1 and finite:
        columns = {"kl": frames["kl"].to_numpy(), "one": np.ones(count)}
        estimate = bootstrap(columns, {"kl": ratio("kl", "one")})["kl"]
        row |= {"kl_low": max(0.0, estimate.low), "kl_high": estimate.high}
    place = int(np.argmax(frames["kl"].to_numpy()))  # NaN is the largest
    name, _, index = frames["name"].iloc[place]
    interval = binomtest(same, count).proportion_ci(method="wilson")
    return row | {
        "kl_max": float(frames["kl"].iloc[place]),
        "worst": f"{name}/{index}",
        "same": same,
        "same_low": float(interval.low),
        "same_high": float(interval.high),
        "hidden_error": float(frames["hidden_error"].max()),
    }


# ---- for the terminal ----------------------------------------------------------------------------------

LINE = "{:>7}  {:>7}  {:>8}  {:>14}  {:>6}  {:>26}  {:>8}  {:>20}  {}"
COLUMNS = (
    "vision", "prefill", "computed", "first token ms", "faster", "KL, mean [95%]", "largest", "same text [95%]", "holds"
)  # fmt: skip


def format_setting(row: dict[str, Any]) -> str:
    """One setting on a line under COLUMNS."""
    interval = "" if math.isnan(row["kl_low"]) else f" [{row['kl_low']:.2g}, {row['kl_high']:.2g}]"
    return LINE.format(
        row["vision"],
        row["prefill"],
        f"{row['rows']:.1%}",
        f"{row['ms']:.0f}",
        f"{row['speedup']:.2f}",
        f"{row['kl']:.2g}{interval}",
        f"{row['kl_max']:.2g}",
        f"{row['same']}/{row['n']} [{row['same_low']:.2f}, {row['same_high']:.2f}]",
        "yes" if row["holds"] else "no",
    )


def run_calibration(
    vlm: VLM,
    prompt: str,
    sequences: Sequence[ScreenSequence],
    settings: DifferentialSettings,
    max_kl: float,
    output: Path | None,
    run: dict[str, Any],
    **options: Any,
) -> None:
    """Print a line a setting as it comes, what was chosen as YAML, and, as the last line, JSON of it and of the run;
    the chosen settings to `output`.

    Raises ValueError, behind the JSON, where no setting holds; nothing is written then.
    """
    print(f"first token against a full computation of every frame; KL in nats, allowed {max_kl:g}; medians of ms")
    print(LINE.format(*COLUMNS))
    done = calibrate(
        vlm, prompt, sequences, settings, max_kl, **options,
        report=lambda row: tqdm.write(format_setting(row), file=sys.stdout),
    )  # fmt: skip
    if done.chosen is not None and done.row is not None:
        found = done.row
        told = (
            f"KL at most {found['kl_max']:.2g} nats on {found['n']} frames after a first, {found['changed']} of them "
            f"changed (allowed {max_kl:g}); what happens on fewer than 3 in {found['n']} may be missing from them"
        )
        names = ("propagate", "tolerance", "prefill", "prefill_tolerance")
        chosen = {name: value for name, value in asdict(done.chosen).items() if name in names}
        print(f"\nthe fastest that holds, {done.speedup:.2f} times faster than in full: {told}")
        print(yaml.safe_dump(chosen, sort_keys=False), end="")
        if output:
            write_settings(output, done.chosen, f"Calibrated with {vlm.name}: {told}.")
            print(f"written to {output}; it is read by --diff-config {output}")
    facts = {"threads": torch.get_num_threads(), "torch": torch.__version__, "processor": platform.processor()}
    results = [{key: _plain(value) for key, value in row.items()} for row in done.table.to_dict("records")]
    chosen_settings = asdict(done.chosen) if done.chosen else None
    outcome = {"chosen": chosen_settings, "speedup": _plain(done.speedup), "results": results}
    print(json.dumps({"benchmark": "calibrate", **run, "max_kl": max_kl, **facts, **outcome}), flush=True)
    if done.chosen is None:
        best = done.table[1:].sort_values("kl_max").iloc[0]
        raise ValueError(
            f"no tolerance holds: the KL is {best['kl_max']:.2g} at best, on frame {best['worst']}, where {max_kl:g} "
            "is allowed; allow more, or lower the threshold of changes (--diff-threshold 0)"
        )


def _plain(value: Any) -> Any:
    """A number that JSON has, or null."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
