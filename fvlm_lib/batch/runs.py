"""One papermill run: parameters checked, notebook executed, provenance written.

Beside the executed notebook `papermill_runs/gap_S.ipynb` lies `papermill_runs/gap_S.run.json`: status,
complete parameters, versions, git commit, hash of the code, sha256 of the results, error. `report` says
which runs went wrong.

This module knows about notebooks, kernels and files; nothing about models or what a result means, nor
which runs a batch has. Linux and macOS only. Importing it imports nothing heavy.
"""

import argparse
import contextlib
import gc
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fvlm_lib.batch.notebooks import code_cells, code_hash, complete_parameters
from fvlm_lib.options import Parser
from fvlm_lib.options import run as run_command
from fvlm_lib.outputs import check_output, whole

Status = Literal["done", "failed", "running", "interrupted"]


class Stopped(KeyboardInterrupt):
    """A signal asked the run to stop. A KeyboardInterrupt, as asyncio swallows most other exceptions."""


class MissingResult(Exception):
    """The notebook ended without writing all of its results."""


def git_commit(folder: Path | None = None) -> str | None:
    """The commit of a folder, by default the working directory, with -dirty where files differ from it; None where git
    knows none."""
    # Without optional locks, as runs in parallel would fight for the index; without tags, for the hash.
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    return None


def _provenance() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "papermill", "fvlm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    git = None  # if this is not a checkout
    if answer := git_commit():
        git = {"commit": answer.removesuffix("-dirty"), "dirty": answer.endswith("-dirty")}
    return {"versions": versions, "git": git}


def _write_status(output: Path, record: Mapping[str, Any]) -> None:
    with whole(output.with_suffix(".run.json")) as part:  # a reader sees the old record or the new one
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def run_status(path: Path) -> Status:
    """The status in a `.run.json` file; "interrupted" if it says "running" but its process is gone."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["status"] != "running":
        return record["status"]
    import psutil  # needed here alone; ipykernel brings it

    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(record["pid"])
        # A process that began after the run did is another one, which was given the same number.
        began_before = process.create_time() < datetime.fromisoformat(record["started"]).timestamp() + 2
        if began_before and process.status() != psutil.STATUS_ZOMBIE:
            return "running"
    return "interrupted"


def _summary(record: Mapping[str, Any], status: Status) -> str:
    error = record["error"] or {"name": "Killed", "message": f"process {record['pid']} is gone", "cell": None}
    message = next((line.strip() for line in error["message"].splitlines() if line.strip()), "")[:400]
    place = f" in cell [{error['cell']}]" if error["cell"] else ""
    return f"{record['output']}: {status}{place}: {error['name']}: {message}"


def failed_runs(records: Iterable[Path]) -> list[str]:
    """A line for each of these `.run.json` files whose run failed or was interrupted; a missing file has none."""
    lines = []
    for path in records:
        try:
            if path.exists() and (status := run_status(path)) in ("failed", "interrupted"):
                lines.append(_summary(json.loads(path.read_text(encoding="utf-8")), status))
        except (ValueError, KeyError, TypeError) as error:
            lines.append(f"{path}: not the status of a run: {error!r}")
    return lines


def report(folder: Path) -> int:
    """Print a line for each run below the folder that failed or was interrupted; return how many."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give the one the executed notebooks are written to")
    lines = failed_runs(sorted(folder.rglob("*.run.json")))
    print(*lines, sep="\n", end="\n" if lines else "")
    return len(lines)


def _execute(notebook: Path, output: Path, parameters: dict[str, Any], signals: Iterable[int]) -> None:
    """Execute with papermill, in a kernel of this interpreter that does not outlive this call.

    Any of the signals raises Stopped. On return they are ignored, for the caller to tidy up in peace.
    """
    # jsonschema, which papermill imports, builds a parser for URIs if it can: without it, papermill 2.7
    # imports in 0.3 s instead of 1.2 s (measured), and nothing here has URIs to check.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import papermill
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager

    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of parameters that it overlooked
    # The path of a Unix socket has some 100 characters at most, and $TMPDIR may be long.
    folder = tempfile.mkdtemp(prefix="fvlm-", dir="/tmp" if len(tempfile.gettempdir()) > 70 else None)
    kernels: list[Any] = []
    starting, held = False, list[int]()

    class Kernel(AsyncKernelManager):
        def __init__(self, **options: Any) -> None:
            # Without folders to search, ipykernel's native spec is left, whose program is sys.executable.
            # An installed spec named python3 would come before it, and may be of another environment.
            specs = KernelSpecManager(kernel_dirs=[])
            # Sockets in a folder of this run's own: runs in parallel would race for TCP ports.
            files = {"ip": f"{folder}/k", "connection_file": f"{folder}/kernel.json"}
            super().__init__(transport="ipc", kernel_spec_manager=specs, **files, **options)
            kernels.append(self)

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            nonlocal starting
            starting = True
            await super().start_kernel(**options)
            starting = False
            if held:
                raise Stopped(held[0])

    def stop(number: int, frame: Any) -> None:
        held.append(number)
        logging.disable(logging.CRITICAL)  # what is said of the death of a kernel that was stopped
        if not starting:  # else a process might be left behind that is not on record yet
            raise Stopped(number)

    try:
        for number in signals:
            signal.signal(number, stop)
        papermill.execute_notebook(
            *(str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, output)),
            parameters=parameters,
            kernel_name="python3",  # whatever name the notebook was saved with
            language="python",
            progress_bar=sys.stderr.isatty(),
            kernel_manager_class=Kernel,
            extra_arguments=["--IPKernelApp.log_level=50"],  # a kernel that is stopped logs tracebacks
        )
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        for kernel in kernels:  # gone by now, unless stopped while starting; its children may be left
            if (group := getattr(kernel.provisioner, "pgid", None)) and group != os.getpgrp():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)
                if kernel.provisioner.process:
                    kernel.provisioner.process.wait()  # it may still be making files in the folder
        shutil.rmtree(folder, ignore_errors=True)


def _cells_started(output: Path) -> int | None:
    """The code cell that a half-executed notebook came to, as the 3 of its `[3]`; None before the first."""
    with contextlib.suppress(ValueError):
        cells = [metadata.get("papermill", {}) for source, metadata in code_cells(output) if source.strip()]
        return sum(bool(cell.get("start_time")) for cell in cells) or None
    return None


def run(
    notebook: Path, output: Path, parameters: Mapping[str, Any], results: Sequence[Path] = (), code: str = ""
) -> int:
    """Execute the notebook into `output`, in the current directory, and write `output`'s `.run.json`.

    Returns the exit code. 0: done. 1: failed, a cell raised or a file of `results` was not written; 128 + n:
    stopped by signal n; the half-executed notebook stays and the results are removed. `code` is a hash for
    the record, by default `code_hash(notebook)`. Raises ValueError for wrong input, before a kernel starts
    and with the results of a former run untouched. Call it from the main thread, for its signal handlers.
    """
    if output.suffix != ".ipynb" or notebook.resolve() in (path.resolve() for path in (output, *results)):
        raise ValueError(f"the output must be another .ipynb file than the notebook {notebook}, not {output}")
    started = datetime.now(UTC)
    record: dict[str, Any] = {"status": "running", "pid": os.getpid(), "started": started.isoformat()}
    record |= {"notebook": str(notebook), "output": str(output), "parameters": dict(parameters)}
    record |= {"code_hash": code, "results": {}, "error": None, **_provenance()}
    try:
        record["parameters"] = complete_parameters(notebook, parameters)
        record["code_hash"] = code or code_hash(notebook)
    except ValueError as wrong:
        # Results of a former run keep its record; if there are none, the report must tell of this one.
        if not any(path.exists() for path in results or [output]):
            error = {"name": "ValueError", "message": str(wrong), "cell": None}
            _write_status(output, record | {"status": "failed", "error": error})
        raise
    for path in (output, *results):
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
    _write_status(output, record)

    # A signal that is ignored already, as by nohup, stays so.
    stopping = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = {n: old for n in stopping if (old := signal.getsignal(n)) != signal.SIG_IGN}
    status: Status = "failed"
    try:
        try:
            _execute(notebook, output, dict(parameters), handlers)
            if missing := [str(path) for path in results if not path.is_file()]:
                raise MissingResult(f"the notebook ended without writing {', '.join(missing)}")
            record["results"] = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in results}
            status, exit_code = "done", 0
        except Stopped as stopped:
            number, cell = stopped.args[0], _cells_started(output)
            status, exit_code, name = "interrupted", 128 + number, signal.Signals(number).name
            record["error"] = {"name": name, "message": "stopped by a signal", "cell": cell}
        except Exception as error:  # papermill's own, the kernel's death, a missing result, a full disk
            exit_code, name = 1, getattr(error, "ename", type(error).__name__)
            cell = None if isinstance(error, MissingResult) else _cells_started(output)
            record["error"] = {"name": name, "message": getattr(error, "evalue", str(error)), "cell": cell}
        for path in results if exit_code else ():
            path.unlink(missing_ok=True)
        ended = datetime.now(UTC)
        # The largest process this one waited for, which is the kernel; in KiB, on macOS in bytes.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        record["peak_memory_mb"] = round(peak / 2 ** (20 if sys.platform == "darwin" else 10), 1)
        record["seconds"] = round((ended - started).total_seconds(), 2)
        _write_status(output, record | {"status": status, "ended": ended.isoformat()})
    finally:
        if status == "interrupted":
            gc.collect()  # asyncio speaks of a broken-off task only when that is collected
            logging.disable(logging.NOTSET)
        for number, old in handlers.items():
            signal.signal(number, old)
    if exit_code:
        print(_summary(record, status), file=sys.stderr)
    return exit_code


def _parameters(text: str) -> dict[str, Any]:
    try:
        given = json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a JSON object or @FILE ({error})") from None
    if not isinstance(given, dict):
        raise argparse.ArgumentTypeError(f'is {text!r}; it must be a JSON object, such as {{"seed": 1}}')
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see --help, and `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Execute a notebook with papermill. Its parameters are checked before a kernel starts;\n"
        "beside the executed x.ipynb, x.run.json records what was run, with what, and how it ended.",
        epilog="""example, from the project's root:
  fvlm run notebooks/gap_analysis.ipynb --output papermill_runs/gap_S.ipynb \\
      --parameters '{"checkpoint": "checkpoints/S", "num_samples": 512}' --results results/gap/S.json

exit codes: 0 done; 1 the notebook failed (see --output, which ends at the error); 2 wrong input;
  130 and 143 stopped by SIGINT and SIGTERM""",
    )
    add = parser.add_argument
    add("notebook", nargs="?", type=Path, help="the notebook; it runs in the current directory")
    add("--output", type=Path, help="where the executed notebook goes, replacing a former one")
    add("--parameters", default={}, type=_parameters, metavar="JSON", help="a JSON object, or @FILE")
    add("--results", nargs="+", type=Path, default=[], metavar="FILE", help="files the notebook must write")
    add("--code-hash", default="", metavar="HASH", help="for the record; computed by default")
    add("--report", type=Path, metavar="FOLDER", help="instead: a line per failed or interrupted run")
    options = parser.parse_args(arguments)
    if not options.report and not (options.notebook and options.output):
        parser.error("give a notebook and its --output, or --report and a folder")

    def work() -> int:
        if options.report:
            report(options.report)
            return 0
        for file in (options.output, *options.results):
            check_output(file, "--output" if file == options.output else "--results")
        return run(options.notebook, options.output, options.parameters, options.results, options.code_hash)

    return run_command(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
