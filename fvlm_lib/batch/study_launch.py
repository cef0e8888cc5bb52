"""`fvlm study`, which `bash run.sh study` is: a study's trainings and evaluations by Snakemake, and its table.

Lock, signals and progress are those of a batch (`launch.py`).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fvlm_lib.batch.launch import Launched, Signals, launch, run_snakemake, tell_end
from fvlm_lib.batch.progress import Progress
from fvlm_lib.batch.study_config import Study, read_study_file


def run_study(name: str, study: Study, arguments: Sequence[str], lock: int, signals: Signals) -> int:
    """Run a study; return the exit code. Where jobs failed, the table is made of what is there."""
    log_path = Path(study.output, "logs", "study.log")
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, "wb") as log:
        print(f"the study of {name}, {len(study.runs)} runs; its log is {log_path}", flush=True)
        progress = Progress(Path(study.output))
        status = run_snakemake(arguments, lock, log, progress, signals)
    if (ended := tell_end(status, progress, log_path, signals)) is not None:
        return ended
    if status:
        sys.stdout.flush()
        subprocess.run([sys.executable, "-m", "fvlm_lib", "study-table", name], start_new_session=True)
        return 1
    print(f"table: {study.table}")
    return 0


STUDY = Launched(
    prog="fvlm study",
    what="study",
    snakefile="study.smk",
    config="config/study.yaml",
    description="Train every run of a study, or go on with it, evaluate every checkpoint, and make one table.",
    example="fvlm study --configfile config/mine.yaml",
    read=read_study_file,
    run=run_study,
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line, Snakemake's arguments; see `bash run.sh --help`."""
    return launch(STUDY, argv)


if __name__ == "__main__":
    sys.exit(main())
