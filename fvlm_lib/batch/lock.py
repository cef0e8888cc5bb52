"""One batch a folder: a lock that the operating system holds for as long as anything writes, and no longer.

`flock` belongs to the open file and not to a number written in it: all processes that got the file from the one that
locked it hold the lock together, and it is free when the last of them has ended, however it ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

import psutil


class Locked(ValueError):
    """Another process holds the lock; the message names it."""


def take_lock(path: Path, patience: float = 5.0) -> int:
    """Lock a file, made where it is missing, and return its file descriptor.

    Raises Locked, or ValueError where the file system has no locks.

    patience: seconds that it may take others to let go, as the last jobs of a batch that was killed do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(descriptor)
                raise Locked(_told(path)) from None
            time.sleep(0.1)
        except OSError as error:
            os.close(descriptor)
            what = f"{path} cannot be locked ({error.strerror})"
            raise ValueError(f"{what}; the folder must be on a file system that has locks") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)  # for the message alone
    return descriptor


def holders(path: Path) -> list[psutil.Process]:
    """The processes of this machine that have the file open, the one whose number is in it first."""
    found, first = [], None
    with contextlib.suppress(OSError, ValueError):
        first = int(path.read_text())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(Path(file.path) == path.resolve() for file in process.open_files()):
                found.append(process)
    return sorted(found, key=lambda process: process.pid != first)


def _told(path: Path) -> str:
    folder = path.resolve().parent.parent
    for process in holders(path):
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            told = f"process {process.pid}: {command[:120]}"
            return f"a batch is running in {folder} already ({told}); wait for it or stop it"
    return f"a batch is running in {folder} already, on another machine or as another user; wait for it or stop it"
