"""Records data/text/terminal.jsonl: the text of a real terminal over time.

    python3 -m venv /tmp/terminal && /tmp/terminal/bin/pip install pyte==0.8.2
    /tmp/terminal/bin/python tests/terminal_text.py

A shell runs in a folder of its own behind a pseudo-terminal of 80 x 30 characters, whose screen pyte keeps. Commands
are typed and keys pressed: files are listed, tests run and fail, the file is mended in vim, tests pass, a table of the
machine's state scrolls (vmstat) and is updated in place (`status.py`), a log is paged with less. A frame is kept after
every step, and while a command runs, if the text differs from the one before. Needs bash, vim, git, less and vmstat.
Timings and the machine's state make each recording another one.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import tempfile
import termios
import time
from pathlib import Path

import pyte

STREAM = Path(__file__).resolve().parents[1] / "data" / "text" / "terminal.jsonl"
COLUMNS, ROWS = 80, 30

QUEUE = '''"""A queue of jobs with priorities."""

import heapq


class Queue:
    def __init__(self):
        self._jobs = []
        self._number = 0

    def __len__(self):
        return len(self._jobs)

    def put(self, job, priority=0):
        """Add a job; those of a lower priority number come first."""
        heapq.heappush(self._jobs, (priority, self._number, job))
        self._number += 1

    def get(self):
        """The next job; IndexError if there is none."""
        return heapq.heappop(self._jobs)[0]

    def clear(self):
        """Forget all jobs; returns how many there were."""
        count = len(self._jobs)
        self._jobs = []
        return count
'''
TESTS = """import time
import unittest

from jobs import Queue


class TestQueue(unittest.TestCase):
    def setUp(self):
        time.sleep(0.25)
        self.queue = Queue()

"""
CASES = {  # name: statements
    "empty": ("self.assertEqual(len(self.queue), 0)",),
    "one_job": ("self.queue.put('a')", "self.assertEqual(len(self.queue), 1)"),
    "in_order": ("self.queue.put('b')", "self.queue.put('a')", "self.assertEqual(self.queue.get(), 'b')"),
    "priority": ("self.queue.put('a', 2)", "self.queue.put('b', 1)", "self.assertEqual(self.queue.get(), 'b')"),
    "negative": ("self.queue.put('a')", "self.queue.put('b', -1)", "self.assertEqual(self.queue.get(), 'b')"),
    "clear": ("self.queue.put('a')", "self.assertEqual(self.queue.clear(), 1)"),
    "clear_empty": ("self.assertEqual(self.queue.clear(), 0)",),
}
STATUS = '''"""Draws a table of the machine's state, over itself, once a while."""

import time


def numbers(path):
    with open(path) as file:
        return {line.split()[0].rstrip(":"): line.split()[1:] for line in file if line.split()}


print("\\033[H\\033[2J", end="")
for step in range(12):
    memory, counts = numbers("/proc/meminfo"), numbers("/proc/stat")
    rows = [("step", step), ("load", open("/proc/loadavg").read().split()[0])]
    rows += [(name, f"{int(memory[name][0]) // 1024} MB") for name in ("MemFree", "MemAvailable", "Cached", "Dirty")]
    rows += [(name, counts[name][0]) for name in ("ctxt", "intr", "processes", "procs_running")]
    rows += [(f"cpu {kind}", value) for kind, value in zip(("user", "nice", "system", "idle"), counts["cpu"])]
    print("\\033[H" + "\\n".join(f"{name:<16}{value:>16}\\033[K" for name, value in rows), flush=True)
    time.sleep(0.5)
'''
MESSAGES = [
    "Queue of jobs", "Lower priorities come first", "Test an empty queue", "Number jobs, so that equals keep order",
    "Docstrings", "Clear", "clear says how many jobs there were", "Test negative priorities",
    "Table of the machine's state", "Redraw in place",
]  # fmt: skip
Step = tuple[str, float, float]  # keys, seconds until the frame, seconds in which frames are kept meanwhile


def make_project(folder: Path) -> None:
    """A small project with a mistake in it, and its history."""
    (folder / "jobs.py").write_text(QUEUE)
    tests = "".join(
        "".join([f"    def test_{name}(self):\n", *(f"        {statement}\n" for statement in statements), "\n"])
        for name, statements in CASES.items()
    )
    (folder / "test_jobs.py").write_text(TESTS + tests + "\nif __name__ == '__main__':\n    unittest.main()\n")
    (folder / "status.py").write_text(STATUS)
    (folder / ".vimrc").write_text("set nocompatible number noswapfile viminfo= shortmess+=I\n")
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in
           (("NAME", "Demo"), ("EMAIL", "demo@example.com"))}  # fmt: skip
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=folder, check=True)
    subprocess.run(["git", "add", "jobs.py", "test_jobs.py", "status.py"], cwd=folder, check=True)
    for i, message in enumerate(MESSAGES):
        when = {
            f"GIT_{role}_DATE": f"2026-11-{2 + i:02d}T1{i % 10}:{7 * i % 60:02d}:00Z"
            for role in ("AUTHOR", "COMMITTER")
        }
        command = ["git", "commit", "-q", "--allow-empty", "-m", message]
        subprocess.run(command, cwd=folder, check=True, env={**os.environ, **who, **when, "HOME": str(folder)})


def steps() -> list[Step]:
    """What is typed."""

    def typed(text: str, pieces: int) -> list[Step]:
        size = -(-len(text) // pieces)
        return [(text[i : i + size], 0.3, 0) for i in range(0, len(text), size)]

    def line(text: str, wait: float = 0.6, meanwhile: float = 0) -> list[Step]:
        return [*typed(text, 2), ("\r", wait, meanwhile)]

    return [
        *line("ls -go"),
        *line("wc -l *.py"),
        *line("python3 -m unittest -v", 1.0, 4.0),
        *line("vim jobs.py", 1.0),
        *[("/heappop\r", 0.5, 0), ("f0", 0.3, 0), ("r2", 0.4, 0), ("G", 0.4, 0), ("o\r", 0.3, 0)],
        *typed("    def peek(self):", 3),
        ("\r", 0.3, 0),
        *typed('        """The next job, which stays; None if there is none."""', 5),
        ("\r", 0.3, 0),
        *typed("        return self._jobs[0][2] if self._jobs else None", 5),
        *[("\x1b", 0.6, 0), (":%s/job/task/g\r", 0.6, 0), ("u", 0.5, 0), ("gg", 0.4, 0), ("\x06", 0.4, 0)],
        *[("\x02", 0.4, 0), ("dd", 0.4, 0), ("u", 0.4, 0), (":wq", 0.3, 0), ("\r", 0.6, 0)],
        *line("git diff --stat | cat"),
        *line("python3 -m unittest -v 2>&1 | tail -n 5", 1.0, 4.0),
        *line("vmstat -S M 1 8", 1.0, 8.0),
        *line("python3 status.py", 1.0, 7.0),
        *line("git log", 0.8),
        *[
            ("j", 0.3, 0),
            ("j", 0.3, 0),
            ("j", 0.3, 0),
            (" ", 0.4, 0),
            (" ", 0.4, 0),
            ("b", 0.4, 0),
            ("/Clear\r", 0.4, 0),
        ],
        *[("q", 0.5, 0)],
        *line("clear"),
        *line("git log --oneline | head -n 5"),
        *line("for i in 1 2 3 4 5 6 7 8; do echo build part $i of 8; sleep 0.4; done", 0.5, 4.0),
    ]


class Terminal:
    """A shell behind a pseudo-terminal, and what its screen shows."""

    def __init__(self, folder: Path):
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self.stream = pyte.ByteStream(self.screen)
        environment = {
            "HOME": str(folder), "PATH": os.environ["PATH"], "PS1": "$ ", "TERM": "linux", "LANG": "C.UTF-8",
            "LESS": "R", "PYTHONDONTWRITEBYTECODE": "1", "GIT_PAGER": "less", "PWD": str(folder),
        }  # fmt: skip
        self.shell, self.file = pty.fork()
        if self.shell == 0:
            os.chdir(folder)
            os.execvpe("bash", ["bash", "--norc", "--noprofile"], environment)
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

    def read_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self.file], [], [], left)[0]:
                self.stream.feed(os.read(self.file, 65536))

    def close(self) -> None:
        """End the shell, and wait for it: it leaves its history."""
        os.write(self.file, b"\x04")
        os.waitpid(self.shell, 0)

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip("\n")


def record(folder: Path) -> list[str]:
    """The texts of a session in a folder."""
    terminal = Terminal(folder)
    terminal.read_for(1)
    texts = [terminal.text()]

    def keep() -> None:
        if terminal.text() != texts[-1]:
            texts.append(terminal.text())

    for keys, wait, meanwhile in steps():
        os.write(terminal.file, keys.encode())
        end = time.monotonic() + meanwhile
        while time.monotonic() < end:
            terminal.read_for(0.5)
            keep()
        terminal.read_for(wait)
        keep()
    terminal.close()
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/terminal_text.py", description=__doc__.split("\n\n")[0])
    parser.parse_args()
    folder = Path(tempfile.gettempdir()) / "demo"
    folder.mkdir()  # its name is on the screen; one that is there is someone's
    make_project(folder)
    texts = record(folder)
    shutil.rmtree(folder)
    names = [str(Path.home()), os.uname().nodename, os.environ.get("USER") or "root"]
    private = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names))
    for text in texts:
        if found := private.search(text):
            raise SystemExit(f"a frame shows {found[0]!r}; nothing was written")
    STREAM.parent.mkdir(parents=True, exist_ok=True)
    STREAM.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8"
    )
    print(f"{len(texts)} frames in {STREAM}, {STREAM.stat().st_size} bytes")


if __name__ == "__main__":
    main()
