"""What reuse makes of answers about drawn screens that change: right, stale, or otherwise wrong.

Every policy reads a screen, then the screen after one change, and answers a question about the latter whose right
answer is known. *Stale* is the answer that was right before. `measure_reader` gives one row a case and policy,
`summarize_reader` the table with intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from tqdm import tqdm

from fvlm_lib.data.drawn_screens import SIZE, draw
from fvlm_lib.data.drawn_streams import Change, ScreenPair, screen_pair
from fvlm_lib.data.screen_questions import QuestionKind, verdict
from fvlm_lib.reuse.policies import Policy
from fvlm_lib.reuse.policies.budget import Budget
from fvlm_lib.reuse.policies.changed import Changed
from fvlm_lib.reuse.policies.deviation import Deviation
from fvlm_lib.reuse.policies.exact import Exact
from fvlm_lib.reuse.policies.first_k import FirstK
from fvlm_lib.reuse.policies.full import Full
from fvlm_lib.reuse.policies.gated import Gated
from fvlm_lib.vision.settings import DifferentialSettings
from fvlm_lib.vlm.generation import Decoding
from fvlm_lib.vlm.stream import VLMStream, open_encoder
from fvlm_lib.vlm.vlms import VLM

MOST_WORDS = 12
"""Tokens of the longest right answer, "A42, F17: A", and its end."""

DISSOLVED = 24
"""Frames over which a value dissolves into another one, each differing by less than the default threshold."""

MARK = "<question>"
"""What stands for the question where a prompt is rendered once for many of them."""


@dataclass(frozen=True)
class Case:
    """A kind of change, a kind of question, whether the answer changes with it, and over how many frames it does.

    gone: what is asked about is not there afterwards; no answer is right, and such cases are counted apart.
    """

    name: str
    change: Change
    question: QuestionKind
    asked: bool
    frames: int = 1
    gone: bool = False


CASES = (
    Case("value", "value", "read", True),
    Case("value", "value", "compare", True),
    Case("value", "value", "read", False),
    Case("value", "value", "compare", False),
    Case("glyph", "glyph", "read", True),
    Case("glyph", "glyph", "read", False),
    Case("box", "box", "state", True),
    Case("box", "box", "count", True),
    Case("box", "box", "state", False),
    Case("dialog", "dialog", "read", False),
    Case("dialog", "dialog", "count", True),
    Case("scroll", "scroll", "read", False),
    Case("theme", "theme", "read", False),
    Case("theme", "theme", "state", False),
    Case("pointer", "pointer", "compare", False),
    Case("bar", "bar", "count", False),
    Case("select", "select", "read", False),
    Case("dissolve", "value", "read", True, DISSOLVED),
    Case("covered", "dialog", "read", True, gone=True),
    Case("scrolled away", "scroll", "read", True, gone=True),
)


@dataclass(frozen=True)
class Reuse:
    """What is kept from frame to frame: in the vision tower (None: nothing), and in the language model."""

    vision: DifferentialSettings | None
    prefill: Policy


def compared_reuse(tolerances: Sequence[float]) -> dict[str, Reuse]:
    """Ways to compare, by name: nothing kept; vision tokens of unchanged patches kept, with the exact prefix, as they
    are (`none`), with a threshold that is too high, and against the last frame in place of the one that a token was
    computed from; gated in both stacks at the tolerances; and, behind gated vision, the prefills that others
    publish."""
    none = DifferentialSettings(propagate="none")
    vision = DifferentialSettings(tolerance=0.02)
    found = {
        "full": Reuse(None, Full()),
        "none": Reuse(none, Exact()),
        "threshold 0.5": Reuse(replace(none, diff_threshold=0.5), Exact()),
        "mean threshold 0.02": Reuse(replace(none, diff_threshold=0.02, metric="mean"), Exact()),
        "last frame": Reuse(replace(none, reference="previous"), Exact()),
    }
    found |= {
        f"gated {tolerance:g}": Reuse(DifferentialSettings(tolerance=tolerance), Gated(tolerance))
        for tolerance in tolerances
    }
    prefills: dict[str, Policy] = {
        "changed": Changed(), "first_k 1": FirstK(1), "first_k 16": FirstK(16), "deviation 0.1": Deviation(0.1),
        "deviation 0.2": Deviation(0.2), "budget 16": Budget(16),
    }  # fmt: skip
    return found | {name: Reuse(vision, policy) for name, policy in prefills.items()}


def open_reuse(vlm: VLM, prompt: str, reuse: Reuse) -> VLMStream:
    """A stream that keeps what `reuse` says; its answers are no longer than the longest right one."""
    encoder = open_encoder(vlm, reuse.vision) if reuse.vision else None
    return VLMStream(vlm, prompt, encoder, prefill=reuse.prefill, decoding=Decoding(max_new_tokens=MOST_WORDS))


def draw_cases(count: int, seed: int = 0) -> list[tuple[Case, ScreenPair]]:
    """So many screens of every case, in turn; cases of the same change and question are given the same screens."""
    return [
        (case, screen_pair(case.change, case.question, i, asked=case.asked, gone=case.gone, seed=seed))
        for i in range(count)
        for case in CASES
    ]


def draw_timed(seed: int = 0) -> list[tuple[Case, ScreenPair]]:
    """One screen of each kind of change, for the times of a model whose answers are not looked at: what is asked and
    answered changes them little, and a model of real size takes minutes for each."""
    return list({case.change: (case, pair) for case, pair in reversed(draw_cases(1, seed))}.values())[::-1]


def frames_of(case: Case, pair: ScreenPair) -> Iterator[np.ndarray]:
    """The frames of a pair, uint8 (H, W, 3): before, what comes between, after."""
    before, after = draw(pair.before).astype(np.float32), draw(pair.after).astype(np.float32)
    for step in range(case.frames + 1):
        share = step / case.frames
        yield (before * (1 - share) + after * share).round().astype(np.uint8)


def check_reader(vlm: VLM) -> None:
    """ValueError for a model that sees frames of another size than drawn screens have, so cannot be one that reads
    them."""
    if vlm.image_size != SIZE:
        size = "any size" if vlm.image_size is None else f"{vlm.image_size[0]} x {vlm.image_size[1]} pixels"
        raise ValueError(
            f"{vlm.name} sees frames of {size}, but drawn screens have {SIZE[0]} x {SIZE[1]}; name a folder that "
            "`fvlm train-reader` wrote"
        )


def measure_reader(
    vlm: VLM,
    cases: Sequence[tuple[Case, ScreenPair]],
    compared: Mapping[str, Reuse],
    progress: bool = True,
) -> pd.DataFrame:
    """One row a case and policy. Columns: case, question, asked, gone, index, policy; answer, right (what is right;
    None where nothing is), is_right, is_stale (`screen_questions.verdict`), changed (share of patches), rows (of the
    prefill), encode_ms and first_token_ms. Policies take turns on every case; the frame before the last is answered,
    too."""
    around = vlm.chat(MARK)  # rendered once: it takes half a second
    streams = {name: open_reuse(vlm, around, reuse) for name, reuse in compared.items()}
    rows = []
    for index, (case, pair) in enumerate(tqdm(cases, unit="screen", disable=not progress)):
        *earlier, before, last = frames_of(case, pair)
        for name, stream in streams.items():
            stream.reset()
            stream.ask(around.replace(MARK, pair.question.text))
            for frame in earlier:
                stream.follow(frame)
            stream.answer(before)
            said = stream.answer(last)
            judged = verdict(said.text, pair.old, pair.new)
            rows.append(
                {
                    "case": case.name,
                    "question": case.question,
                    "asked": case.asked,
                    "gone": case.gone,
                    "index": index,
                    "policy": name,
                    "answer": said.text,
                    "right": pair.new,
                    "is_right": judged == "right",
                    "is_stale": judged == "stale",
                    "changed": said.changed_patches / max(1, said.num_patches),
                    "rows": said.prefill_rows,
                    "encode_ms": said.encode_ms,
                    "first_token_ms": said.first_token_ms,
                }
            )
    return pd.DataFrame(rows)


def summarize_reader(rows: pd.DataFrame, by: Sequence[str] = ("policy",)) -> pd.DataFrame:
    """One row a policy (or group of `by`), in the order of the table: n; right, as a share with its 95% interval _low,
    _high (Wilson, over screens, of this one model); broken, how many a full computation answers right and this does
    not; stale of asked, counts, with the interval of their share; rows, mean; first_token_ms, median, and speedup, the
    median of the ratios to the full computation of the same screen. Where what is asked about is gone, answers are in
    none of these but counted apart: gone, how many there are; gone_stale, how many say what stood there before;
    gone_as_full, how many are what a full computation says."""
    full = rows[rows["policy"] == "full"].set_index("index")
    rows = rows.assign(
        broken=rows["index"].map(full["is_right"]) & ~rows["is_right"],
        as_full=rows["index"].map(full["answer"]) == rows["answer"],
        ratio=rows["index"].map(full["first_token_ms"]) / rows["first_token_ms"],
    )
    gone = dict(iter(rows[rows["gone"]].groupby(list(by))))
    found = []
    for which, group in rows[~rows["gone"]].groupby(list(by), sort=False):
        line: dict[str, object] = dict(zip(by, which, strict=True)) | {"n": len(group)}
        stale, asked = int(group["is_stale"].sum()), int(group["asked"].sum())
        for name, hits, tries in (("right", int(group["is_right"].sum()), len(group)), ("stale", stale, asked)):
            low, high = binomtest(hits, tries).proportion_ci(method="wilson") if tries else (0.0, 1.0)
            line |= {name: hits / tries if tries else np.nan, f"{name}_low": low, f"{name}_high": high}
        line |= {"asked": asked, "broken": int(group["broken"].sum()), "rows": group["rows"].mean()}
        line |= {"first_token_ms": group["first_token_ms"].median(), "speedup": group["ratio"].median()}
        apart = gone.get(which, rows[:0])
        line |= {"gone": len(apart), "gone_stale": int(apart["is_stale"].sum())}
        line |= {"gone_as_full": int(apart["as_full"].sum())}
        found.append(line)
    return pd.DataFrame(found)
