"""`fvlm batch`, which `bash run.sh` is: the batch of a config from the lock on its folder to its report.

Snakemake runs in a process group of its own, with the jobs (`workflow.py`); this process holds the lock, shows how far
the batch is, passes signals on, and makes the report at the end, also where jobs failed. The lock is passed on as
Snakemake's and the jobs' standard input, which is the one file that every process hands on: it is held while any of
them can still write.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from fvlm_lib.batch.config import Batch, read_batch_file
from fvlm_lib.batch.export import write_report
from fvlm_lib.batch.folders import Folders, folders
from fvlm_lib.batch.lock import take_lock
from fvlm_lib.batch.processes import kill_group, stop_group
from fvlm_lib.batch.progress import Progress, plan_text

LOCK = Path(".snakemake/batch.lock")
LOCAL = "profiles/local"
KEPT = "what was finished is kept, and the same command goes on"
PATIENCE = 30.0  # seconds that jobs have to end after a signal, before they are killed
# What Snakemake does beside running jobs, and then talks to the terminal itself.
WRITING = {"--unlock", "--touch", "-t", "--delete-all-output", "--delete-temp-output", "--cleanup-metadata", "--cm"}
READING = {
    "--lint", "--list-rules", "--list", "-l", "--list-target-rules", "--lt", "--dag", "--rulegraph", "--filegraph",
    "--d3dag", "--summary", "-S", "--detailed-summary", "-D", "--archive", "--report", "--version", "-v",
}  # fmt: skip


@dataclass
class Signals:
    """Remembers the signals that this process got; the first of them decides the exit code."""

    got: list[int] = field(default_factory=list)

    def listen(self) -> None:
        """From now on. A signal that is ignored already, as SIGHUP by nohup, stays so."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _: self.got.append(number))
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a script; Snakemake must hear it
            signal.signal(signal.SIGINT, lambda *_: None)


@dataclass(frozen=True)
class Launched:
    """What a command runs by Snakemake: `fvlm batch`, or `fvlm study`.

    prog: what the command is called; what: what it runs, in an error. config: by default; None: the profile's own.
    description, example: for --help. read: checks a config file, and raises ValueError. run: runs what was read, given
    the config's name, what `read` returned, Snakemake's arguments, the lock and the signals; returns the exit code.
    """

    prog: str
    what: str
    snakefile: str
    config: str | None
    description: str
    example: str
    read: Callable[[str], Any]
    run: Callable[[str, Any, Sequence[str], int, Signals], int]


def run_snakemake(arguments: Sequence[str], lock: int, log: IO[bytes], progress: Progress, signals: Signals) -> int:
    """Run Snakemake until it and its jobs have ended, on a signal too; return its exit code, -n after signal n.

    lock: the file descriptor that all of them hold. log: gets what they print. `progress` takes the events.
    """
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "fvlm_lib.batch.workflow", str(writing), str(os.getpid()), *arguments]
    process = subprocess.Popen(
        command, stdin=lock, stdout=log, stderr=log, pass_fds=[writing], start_new_session=True
    )  # fmt: skip
    os.close(writing)
    told: set[int] = set()
    rest, open_pipe, deadline = b"", True, 0.0
    while process.poll() is None:
        if open_pipe and select.select([reading], [], [], 0.5)[0]:
            new = os.read(reading, 1 << 16)
            open_pipe, (*lines, rest) = bool(new), (rest + new).split(b"\n")
            for line in lines:
                progress.take(line.decode())
        elif not open_pipe:
            time.sleep(0.05)
        progress.show()
        if signals.got:
            deadline = deadline or time.monotonic() + PATIENCE
            stop_group(process.pid, signals.got[0], told)
            if len(signals.got) > 1 or time.monotonic() > deadline:
                kill_group(process.pid)
    os.close(reading)
    progress.close()
    # Jobs outlive a Snakemake that was killed outright, by a moment: they watch for its end.
    deadline = time.monotonic() + PATIENCE
    while stop_group(process.pid, signal.SIGTERM, told):
        if time.monotonic() > deadline:
            kill_group(process.pid)
        time.sleep(0.1)
    return process.returncode


def find_config(arguments: Sequence[str], launched: Launched | None = None) -> tuple[str, str, bool]:
    """Of Snakemake's arguments, the config, the profile and whether nothing is to run. launched: by default a batch.

    Raises ValueError where there is not one config, or where `--config` changes what it says.
    """
    launched = launched or BATCH
    parser = argparse.ArgumentParser(
        prog=launched.prog,
        allow_abbrev=False,
        description=f"{launched.description} Snakemake's own options are passed on.",
        epilog=f"examples: {launched.example}; {launched.prog} -n; {launched.prog} --cores 8",
    )
    add = parser.add_argument
    default = launched.config or "the profile's own"
    add("--configfile", "--configfiles", nargs="+", default=[], metavar="FILE", help=f"by default {default}")
    add("--profile", metavar="FOLDER", help=f"how it runs, by default {LOCAL}")
    add("--dry-run", "--dryrun", "-n", action="store_true", help="only say what would run, and why")
    add("--config", "-C", nargs="*", help=argparse.SUPPRESS)
    # -np and the like, which argparse would refuse for its p
    known, _ = parser.parse_known_args([re.sub(r"^-n[a-zA-Z]+$", "-n", argument) for argument in arguments])
    if known.config is not None:
        raise ValueError("--config is not for batches, whose jobs read the file again; write it into a copy")
    configs, profile = known.configfile or ([launched.config] if launched.config else []), known.profile or LOCAL
    with contextlib.suppress(OSError):  # a profile of Snakemake's own folders, which is its to find
        given = (yaml.safe_load(Path(profile, "config.yaml").read_text()) or {}).get("configfile", [])
        configs = configs or ([given] if isinstance(given, str) else given)
    if len(configs) != 1:
        raise ValueError(f"a {launched.what} is of one config, as --configfile config/mine.yaml, not of {len(configs)}")
    return configs[0], profile, known.dry_run


def open_folders(own: Folders) -> IO[bytes]:
    """Make a batch's folders and open its log, so that one that cannot be written is found out before anything runs."""
    for folder in (own.results, own.plots, own.runs):
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
    return open(Path(own.runs, "batch.log"), "wb")


def dry_run(arguments: Sequence[str], signals: Signals) -> int:
    """Say what would run."""
    with open(os.devnull) as nothing, tempfile.TemporaryFile() as log:
        progress = Progress(Path())
        status = run_snakemake(arguments, nothing.fileno(), log, progress, signals)
        if signals.got:
            return _stopped(signals)
        if status:
            print(*_errors(progress, log), sep="\n", file=sys.stderr)
        else:
            print(plan_text(progress.planned))
    return status


def run_batch(name: str, batch: Batch, arguments: Sequence[str], lock: int, signals: Signals) -> int:
    """Run a batch, print its table and make its report; return the exit code."""
    own = folders(batch.output)
    log_path, report = Path(own.runs, "batch.log"), Path(own.results, "report.html")
    with open_folders(own) as log:
        print(f"the batch of {name}; its log is {log_path}", flush=True)
        progress = TableProgress(Path(own.runs), name, bool(batch.checkpoints))
        status = run_snakemake(arguments, lock, log, progress, signals)
    if (ended := tell_end(status, progress, log_path, signals)) is not None:
        return ended
    progress.print_table()
    try:
        made = write_report(name, own, report, log_path)
    except (ValueError, OSError) as error:
        print(f"no report: {error}", file=sys.stderr)
        return 1
    if made >= 128 or signals.got:
        signals.got.append(made - 128)
        return _stopped(signals)
    print(f"report: {report}" if made == 0 else f"no report: see the end of {log_path}")
    return 1 if status or made else 0


def tell_end(status: int, progress: Progress, log_path: Path, signals: Signals) -> int | None:
    """Say how Snakemake ended, where not well; the exit code, unless there is something to be made of what was done."""
    if signals.got:
        return _stopped(signals)
    if status < 0:
        killer = signal.Signals(-status).name
        print(f"Snakemake was killed by {killer}; {KEPT}", file=sys.stderr)
        return 128 - status
    if status:
        if not progress.failed:
            with open(log_path, "rb") as log:
                print(*_errors(progress, log), sep="\n", file=sys.stderr)
        undone = progress.total - progress.done - len(progress.failed)
        waiting = f", {undone} not run as they need what failed" if undone else ""
        print(f"{progress.done} of {progress.total} jobs done, {len(progress.failed)} failed{waiting}; see {log_path}")
    return None


class TableProgress(Progress):
    """Also prints the gap table, as soon as all that it is made of is there."""

    def __init__(self, runs: Path, config: str, table: bool) -> None:
        super().__init__(runs)
        self._config, self._wanted = config, table

    def take(self, line: str) -> None:
        waited = self.counts.get("gap", 0)
        super().take(line)
        if waited and not self.counts["gap"]:
            self.print_table()

    def print_table(self) -> None:
        """Print it, unless it was or there is none."""
        if self._wanted:
            self._wanted = False
            command = [sys.executable, "-m", "fvlm_lib", "report", self._config]
            # in a session of its own, as this process alone hears a Ctrl-C
            printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, start_new_session=True).stdout
            self.say(printed.rstrip() + "\n")


def _errors(progress: Progress, log: IO[bytes]) -> list[str]:
    """Why Snakemake did not come to run jobs: what it said, else the end of its log."""
    if progress.errors:
        return progress.errors
    log.seek(0)
    return [line for line in log.read().decode(errors="replace").splitlines() if line.strip()][-10:]


def _stopped(signals: Signals) -> int:
    name = signal.Signals(signals.got[0]).name
    print(f"stopped by {name}; {KEPT}", file=sys.stderr)
    return 128 + signals.got[0]


def launch(launched: Launched, argv: Sequence[str] | None = None) -> int:
    """Run it; `argv` are Snakemake's arguments. 2 for what the user can put right, said in one line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    signals = Signals()
    signals.listen()
    try:
        name, profile, dry = find_config(arguments, launched)
        # in this order, as an option that takes several values would take the targets that follow it
        ours = ["--snakefile", launched.snakefile, "--configfile", name, "--profile", profile]
        if (READING | WRITING) & {*arguments}:
            if WRITING & {*arguments} and not dry:
                os.dup2(take_lock(LOCK), 0)
            os.execvp("snakemake", ["snakemake", *ours, *arguments])
        ours = ["--logger", "fvlm", *ours]
        found = launched.read(name)
        if dry:
            return dry_run([*ours, *arguments], signals)
        lock = take_lock(LOCK)
        # Snakemake's own lock is one of files, which a batch that was killed leaves; ours is free, so that is stale.
        if any(Path(".snakemake/locks").glob("*")):
            subprocess.run(["snakemake", *ours[2:], "--unlock"], stdin=lock, capture_output=True)
        return launched.run(name, found, [*ours, *arguments], lock, signals)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _read_batch(name: str) -> Batch:
    batch = read_batch_file(name)
    for id in batch.missing_checkpoints():
        where = f"{name}: checkpoint {id}: there is no {batch.checkpoints[id]}"
        print(f"{where}; unless that is an id of a model hub, its run will fail", file=sys.stderr)
    return batch


BATCH = Launched(
    prog="fvlm batch",
    what="batch",
    snakefile="Snakefile",
    config=None,
    description="Run the batch of a config: print its gap table, write its report.",
    example="fvlm batch --configfile config/mine.yaml",
    read=_read_batch,
    run=run_batch,
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line, Snakemake's arguments; see `bash run.sh --help`."""
    return launch(BATCH, argv)


if __name__ == "__main__":
    sys.exit(main())
