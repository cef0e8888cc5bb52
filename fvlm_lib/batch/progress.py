"""How far a batch is, from what Snakemake tells: one line on a terminal, a plain line now and then elsewhere.

Knows events (`workflow.py` writes them) and the files in which runs say why they failed; starts and stops nothing.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from fvlm_lib.batch.folders import RUNS, run_name
from fvlm_lib.batch.runs import failed_runs

FIRST_LINE, LAST_LINE = 15.0, 600.0  # seconds between plain lines; they grow rarer


class Progress:
    """The state of a batch's jobs. `total`, `done` jobs; `running` and `failed` ones, in words; `errors` of Snakemake
    itself; `planned`: of each job that a dry run names, its rule, ids and reason."""

    def __init__(self, runs: Path, stream: TextIO | None = None) -> None:
        self.total = self.done = 0
        self.counts: dict[str, int] = {}  # jobs of each rule that are not done
        self.running: dict[int, str] = {}
        self.failed: list[str] = []
        self.errors: list[str] = []
        self.planned: list[tuple[str, str, str]] = []
        self._jobs: dict[int, tuple[str, dict[str, Any]]] = {}
        self._runs, self._stream = runs, stream or sys.stdout
        self._bar: tqdm | None = None
        self._begun = self._shown = time.monotonic()
        self._interval = FIRST_LINE

    def take(self, line: str) -> None:
        """Take one event, a line of JSON."""
        event = json.loads(line)
        kind = event["event"]
        if kind == "run_info":
            self.counts = {rule: count for rule, count in event["stats"].items() if rule not in ("all", "total")}
            self.total = sum(self.counts.values())
            self._open()
        elif kind == "job_info" and event["rule_name"] != "all":
            self._jobs[event["jobid"]] = event["rule_name"], event["wildcards"] or {}
            self.running[event["jobid"]] = self._name(event["jobid"])
            ids = "--".join(map(str, self._jobs[event["jobid"]][1].values()))
            self.planned.append((event["rule_name"], ids, event.get("reason") or ""))
        elif kind == "job_finished" and self.running.pop(event["job_id"], None):
            self.done += 1
            self.counts[self._jobs[event["job_id"]][0]] -= 1
            if self._bar is not None:
                self._bar.update()
        elif kind == "job_error" and self.running.pop(event["jobid"], None):
            self.failed.append(self._name(event["jobid"]))
            self.say(f"failed: {self._why(event)}")
        elif kind == "error":
            self.errors.append(event["message"])
        self.show()

    def show(self) -> None:
        """Show the state: on a terminal at once, elsewhere if it is time for a line."""
        failed = f", {len(self.failed)} failed" if self.failed else ""
        if self._bar is not None:
            self._bar.set_postfix_str(f"{len(self.running)} running{failed}")
        elif self.total and time.monotonic() - self._shown > self._interval:
            self._shown, self._interval = time.monotonic(), min(1.5 * self._interval, LAST_LINE)
            left = "time left not known yet"
            if self.done:
                left = f"about {_duration((self._shown - self._begun) / self.done * (self.total - self.done))} left"
            self.say(f"{self.done} of {self.total} jobs done, {len(self.running)} running{failed}, {left}")

    def say(self, text: str) -> None:
        """Print a line, above the one that shows the state."""
        with tqdm.external_write_mode(file=self._stream):
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Take the line of the state away."""
        if self._bar is not None:
            self._bar.close()

    def _open(self) -> None:
        self._begun = time.monotonic()
        if self._stream.isatty() and self._bar is None:
            self._bar = tqdm(
                total=self.total,
                file=self._stream,
                leave=False,
                nrows=20,  # of a terminal that does not tell its size, whose none would hide the line
                smoothing=0,  # jobs differ too much for the speed of the last ones to say anything
                bar_format="{n_fmt} of {total_fmt} jobs done{postfix}, {elapsed} gone, about {remaining} left",
            )

    def _name(self, jobid: int) -> str:
        rule, wildcards = self._jobs[jobid]
        return " ".join([rule, "--".join(map(str, wildcards.values()))]).strip()

    def _why(self, event: Mapping[str, Any]) -> str:
        """What a failed job's own record says, or the last line of its log."""
        rule, wildcards = self._jobs[event["jobid"]]
        if rule in RUNS:
            record = self._runs / f"{run_name(rule, wildcards)}.run.json"
            if lines := failed_runs([record]):
                return lines[0]
        for log in event.get("log") or []:
            with contextlib.suppress(OSError, IndexError):
                return f"{self._name(event['jobid'])}: {Path(log).read_text(errors='replace').splitlines()[-1]}"
        return f"{self._name(event['jobid'])}: see the log"


def _duration(seconds: float) -> str:
    """As people say it: 40 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan_text(planned: list[tuple[str, str, str]], shown: int = 6) -> str:
    """What a dry run would do, as people read it: jobs by rule, and why."""
    if not planned:
        return "nothing to be done: all is up to date"
    lines = [f"{len(planned)} jobs would run:"]
    for rule in dict.fromkeys(rule for rule, _, _ in planned):
        ids = [id for of, id, _ in planned if of == rule and id]
        more = f" and {len(ids) - shown} more" if len(ids) > shown else ""
        lines.append(f"  {rule:<12} {max(len(ids), 1):>4}  {', '.join(ids[:shown])}{more}".rstrip())
    reasons: dict[str, int] = {}
    for _, _, told in planned:
        for reason in told.split("; "):
            kind = reason.split(":")[0].strip()
            reasons[kind] = reasons.get(kind, 0) + 1
    told = ", ".join(f"{kind[:1].lower()}{kind[1:]} ({count})" for kind, count in reasons.items() if kind)
    return "\n".join([*lines, f"because: {told}"])
