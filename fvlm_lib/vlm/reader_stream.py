"""A reader on one drawn stream: what it says of any frame by a policy, with what is kept of the frames before.

`StreamReader` runs the model, and remembers what was said. Every question is taken for one that was asked from the
first frame on, so that an answer does not depend on what was looked at before. Tables over many screens are
`reader_measure.py`'s subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from fvlm_lib.data.drawn_screens import Screen, draw
from fvlm_lib.data.drawn_streams import Change
from fvlm_lib.data.screen_questions import Question, all_questions, right_answer, verdict
from fvlm_lib.reuse.policies.full import Full
from fvlm_lib.vlm.reader_measure import MARK, Reuse, check_reader, open_reuse
from fvlm_lib.vlm.stream import Answer, VLMStream
from fvlm_lib.vlm.vlms import VLM

FULL = "full"
"""The policy that keeps nothing, which all others are held against."""


def quietly(items: Iterable[Any], desc: str = "") -> Iterable[Any]:
    """Passes items on, where no progress is shown; called as `tqdm` is."""
    return items


@dataclass(frozen=True, eq=False)
class Read:
    """One answer about a frame.

    encoded: bool (grid_h, grid_w), the patches whose tokens were computed from this frame's pixels. new_tokens: how
    many tokens have another value than before. Both are None where the vision tower keeps nothing, so that all are new.
    """

    answer: Answer
    encoded: np.ndarray | None
    new_tokens: int | None


class StreamReader:
    """Answers about the frames of a drawn stream (`drawn_streams.screen_stream`), by policies as of `compared_reuse`.

    frames: uint8 (height, width, 3) each. progress: of the frames that are followed up to the one asked about, called
    as `tqdm` is. Raises ValueError for a model that sees frames of another size.
    """

    def __init__(
        self,
        vlm: VLM,
        stream: Iterable[tuple[Screen, Change | None]],
        compared: Mapping[str, Reuse],
        progress: Callable[..., Iterable[Any]] = quietly,
    ) -> None:
        check_reader(vlm)
        self._vlm, self._progress = vlm, progress
        self.compared = {FULL: Reuse(None, Full()), **compared}
        pairs = list(stream)
        self.screens: list[Screen] = [screen for screen, _ in pairs]
        self.changes: list[Change | None] = [change for _, change in pairs]
        self.frames: list[np.ndarray] = [draw(screen) for screen in self.screens]
        self._around = vlm.chat(MARK)  # rendered once: it takes half a second
        self._streams: dict[str, VLMStream] = {}
        self._seen: dict[str, tuple[Question, int]] = {}  # what a policy's stream was asked, and of how many frames
        self._read: dict[tuple[str, Question, int], Read] = {}
        self._stream(FULL).answer(self.frames[0])  # the first answer of a process takes longer than all others

    def questions(self, index: int) -> list[Question]:
        """Every question that has an answer on frame `index`."""
        return all_questions(self.screens[index])

    def right_answers(self, question: Question, index: int) -> tuple[str | None, str | None]:
        """What is right of the frame before, and of frame `index`; None where there is none."""
        before = right_answer(question, self.screens[index - 1]) if index else None
        return before, right_answer(question, self.screens[index])

    def telling_question(self, index: int) -> Question:
        """The first question whose answer is another one than on the frame before; the first of all where none is."""
        found = self.questions(index)
        for question in found:
            old, new = self.right_answers(question, index)
            if old is not None and old != new:
                return question
        return found[0]

    def read(self, policy: str, question: Question, index: int) -> Read:
        """What is said about frame `index` by a policy's name; the model is run where that is not known yet."""
        key = policy, question, index
        if key not in self._read:
            self._read[key] = self._answer(*key)
        return self._read[key]

    def by_frame(self, policy: str, question: Question | None = None) -> pd.DataFrame:
        """One row a frame that has an answer to the question (None: the `telling_question` of each).

        Columns: frame, change, question, right, answer, verdict, changed (patches), rows (of the prefill, a share) and
        first_token_ms; of the full computation answer_full, verdict_full, first_token_ms_full.
        """
        rows: list[dict[str, Any]] = []
        for index, change in enumerate(tqdm(self.changes, unit="frame")):
            asked = question or self.telling_question(index)
            old, new = self.right_answers(asked, index)
            if new is None:
                continue
            said, full = (self.read(name, asked, index).answer for name in (policy, FULL))
            rows.append(
                {
                    "frame": index,
                    "change": change or "",
                    "question": asked.text,
                    "right": new,
                    "answer": said.text,
                    "verdict": verdict(said.text, old, new),
                    "changed": said.changed_patches,
                    "rows": said.prefill_rows,
                    "first_token_ms": said.first_token_ms,
                    "answer_full": full.text,
                    "verdict_full": verdict(full.text, old, new),
                    "first_token_ms_full": full.first_token_ms,
                }
            )
        return pd.DataFrame(rows)

    def _stream(self, policy: str) -> VLMStream:
        if policy not in self._streams:
            self._streams[policy] = open_reuse(self._vlm, self._around, self.compared[policy])
        return self._streams[policy]

    def _answer(self, policy: str, question: Question, index: int) -> Read:
        stream = self._stream(policy)
        asked, seen = self._seen.pop(policy, (None, 0))  # of a stream that fails on its way, nothing is known
        if asked != question or seen > index:
            stream.reset()
            stream.ask(self._around.replace(MARK, question.text))
            seen = 0
        if policy != FULL:
            self._catch_up(stream, self.frames[seen:index])
        answer = stream.answer(self.frames[index])
        self._seen[policy] = question, index + 1
        done = stream.encoder.frame_statistics if stream.encoder else None
        if done is None:
            return Read(answer, None, None)
        return Read(answer, done.encoded.cpu().numpy(), done.computed_tokens)

    def _catch_up(self, stream: VLMStream, frames: Sequence[np.ndarray]) -> None:
        """Let a stream see the frames before the one that it is asked about. The last of them is answered: where an
        exact prefix is all that is kept, `follow` leaves none."""
        several = self._progress(frames, desc="following") if len(frames) > 1 else frames
        for number, frame in enumerate(several, start=1):
            if number < len(frames):
                stream.follow(frame)
            else:
                stream.answer(frame)
