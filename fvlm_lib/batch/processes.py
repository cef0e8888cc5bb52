"""Processes that end together: one that watches for its parent's end, and a group that is told to stop.

A batch is three storeys of processes, of which any may be killed alone: the command, Snakemake in a process group of
its own with its jobs, and the kernels of the jobs, which watch for themselves. POSIX only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable

import psutil

PARENT = "FVLM_BATCH_PROCESS"  # of Snakemake's jobs: the number of its process


def end_with_parent(parent: int, stop: Callable[[], object], interval: float = 0.2) -> None:
    """Call `stop`, once, from another thread, when this process's parent is no longer the one of that number."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval)
        stop()

    threading.Thread(target=watch, daemon=True).start()


def end_with_batch() -> None:
    """In a job of a batch: end as by SIGTERM when Snakemake is gone, killed outright. Elsewhere this does nothing."""
    parent = os.environ.get(PARENT)
    if parent and parent == str(os.getppid()):
        end_with_parent(int(parent), lambda: os.kill(os.getpid(), signal.SIGTERM))


def group_members(group: int) -> list[int]:
    """The processes of a process group that still run."""
    members = []
    for process in psutil.process_iter(["pid", "status"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.info["pid"]) == group:
                members.append(process.info["pid"])
    return members


def stop_group(group: int, number: int, told: set[int]) -> list[int]:
    """Send signal `number` to the members of a group that were not told before, and return the members.

    Its leader, Snakemake, gets SIGINT: after SIGTERM it would wait for jobs on a cluster, which SIGINT cancels.
    """
    members = group_members(group)
    for pid in members:
        if pid not in told:
            told.add(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGINT if pid == group else number)
    return members


def kill_group(group: int) -> None:
    """Kill all of a group outright; one that is gone already is as good."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
