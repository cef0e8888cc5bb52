"""`fvlm study-train`: one run of a study, trained or gone on with; what the jobs of `study.smk` call.

What takes seconds to import is imported behind the options, so that `--help` and a wrong option do not wait.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fvlm_lib.batch.runs import git_commit
from fvlm_lib.batch.study_config import Run, read_run
from fvlm_lib.options import Parser, run
from fvlm_lib.outputs import check_output, whole

LIBRARY = Path(__file__).resolve().parents[1]
FINISHED = "finished.json"  # in a run's folder


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm study-train",
        description="Train one run of a study, on one CPU thread. An interrupted run goes on from its last saved "
        "state; of a finished one nothing is done.",
        epilog="example: fvlm study-train config/study.yaml --run S--plain--0 --out checkpoints/retrained/again",
    )
    add = parser.add_argument
    add("config", type=Path, metavar="STUDY.yaml", help="the study's config")
    add("--run", required=True, metavar="ID", help="SIZE--RECIPE--SEED")
    add("--out", type=Path, metavar="DIR", help="folder for checkpoints and losses.csv; by default the study's own")
    args = parser.parse_args(argv)

    def work() -> None:
        study, trained = read_run(args.config, args.run)
        folder = args.out or Path(study.run_folder(args.run))
        check_output(folder / "losses.csv", "--out")
        about = train_run(trained, folder)
        if args.out is None:
            _write(Path(study.record(args.run)), about)

    return run(parser.prog, work)


def train_run(trained: Run, folder: Path) -> dict[str, Any]:
    """Train a run into a folder, where that holds it unfinished or not at all; tell what it was finished by: `commit`
    of the library and `cpu_capability` of the processor, as torch calls it.

    Raises ValueError where the folder holds a run of another config or seed.
    """
    import torch
    from transformers.utils import logging

    from fvlm_lib.foveated.train import holds_finished, train

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    about = {"commit": "unknown", "cpu_capability": "unknown"}
    if not holds_finished(trained.config, folder, trained.seed, trained.name):
        train(trained.config, folder, trained.seed, trained.name)
        about = {"commit": library_commit(), "cpu_capability": torch.backends.cpu.get_cpu_capability()}
        _write(folder / FINISHED, about)
    elif (folder / FINISHED).exists():
        about = json.loads((folder / FINISHED).read_text(encoding="utf-8"))
    return about


def library_commit(library: Path = LIBRARY) -> str:
    """The commit that the library is of, with -dirty where files differ from it; "unknown" where git does not know."""
    # an installed library may lie in the checkout of something else
    command = ["git", "ls-files", "--error-unmatch", f"{library.name}/__init__.py"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        subprocess.run(command, cwd=library.parent, capture_output=True, check=True)
        return git_commit(library.parent) or "unknown"
    return "unknown"


def _write(path: Path, about: dict[str, Any]) -> None:
    with whole(path) as part:
        part.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
