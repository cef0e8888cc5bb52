"""Snakemake in a process of its own, which tells what happens as lines of JSON and ends when its parent does.

    python -m fvlm_lib.batch.workflow EVENTS PARENT [snakemake arguments]

EVENTS is the number of an open file descriptor, PARENT that of the process that started this one. The lines come from
Snakemake's own interface for loggers; `progress.py` reads them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from logging import LogRecord
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

from fvlm_lib.batch.processes import PARENT, end_with_parent, stop_group

KEYS = ("rule_name", "jobid", "job_id", "wildcards", "log", "reason", "stats")  # of what Snakemake tells
EVENTS: int | None = None  # the file descriptor; the plugin interface takes classes, so it cannot be handed over


class LogHandler(LogHandlerBase):
    """Writes a line for each event of Snakemake. Beside it, Snakemake's log goes to stderr as ever."""

    writes_to_stream = False
    writes_to_file = False
    has_filter = True  # of its own, which is none: `quiet` is about the log
    has_formatter = False
    needs_rulegraph = False

    def emit(self, record: LogRecord) -> None:
        """Write the record's event, if it is of one."""
        event = getattr(record, "event", None)
        if event is None or EVENTS is None:
            return
        told: dict[str, Any] = {"event": str(event), "message": record.getMessage()}
        told |= {key: getattr(record, key) for key in KEYS if hasattr(record, key)}
        with contextlib.suppress(BrokenPipeError):  # the parent is gone, and this process will be soon
            os.write(EVENTS, (json.dumps(told, default=str) + "\n").encode())


def _stop() -> None:
    """Stop the jobs and this process, as its parent would."""
    stop_group(os.getpid(), signal.SIGTERM, set())


def main(argv: list[str]) -> None:
    """Run Snakemake; ends the process as Snakemake does."""
    global EVENTS
    EVENTS, parent = int(argv[0]), int(argv[1])
    os.environ[PARENT] = str(os.getpid())
    end_with_parent(parent, _stop)
    LoggerPluginRegistry().register_plugin("snakemake_logger_plugin_fvlm", sys.modules[LogHandler.__module__])
    sys.argv = ["snakemake", *argv[2:]]  # what it says of itself in its log
    from snakemake.cli import main as snakemake

    snakemake(argv[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
