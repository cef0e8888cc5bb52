"""`fvlm study-table`: the results of a study as one tidy table, a row a checkpoint and length of videos.

Also of a study half done: the table is then of what is there, and what is missing is named. How a gap is measured is
`gap.py`'s subject, how a study is run that of `batch/study_launch.py`.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fvlm_lib.batch.study_config import Evaluated, Study, read_study_file
from fvlm_lib.foveated.training_config import training_identity
from fvlm_lib.gap.results import read_gap_result
from fvlm_lib.gap.study_shipping import ship, write_table
from fvlm_lib.json_files import read_object
from fvlm_lib.options import Parser, run
from fvlm_lib.outputs import check_output

SHOWN = 20  # of what is missing, a line each
_TRAINING = ("num_parameters", "num_text_parameters", "training_flops", "seconds_per_step")


def study_table(study: Study) -> tuple[pd.DataFrame, dict[str, str]]:
    """The table of a study's results, and what of them is missing or cannot be used: why, by the id of a run or of an
    evaluation.

    Columns: size, recipe, seed, step, num_frames (of the evaluation's videos); num_parameters, num_text_parameters,
    training_flops and seconds_per_step up to that step; learning_rate; trained_passes, the number of fine passes whose
    loss was trained, null where that was sequential use's; num_samples, num_tokens; for each mode, which are coarse,
    fine_K and autoregressive, nll_MODE (sum over all tokens, nats) and loss_MODE (nats a token) with _low and _high,
    95% bootstrap intervals over samples; gap_fine_K (autoregressive less fine_K, nats a token) likewise; where `jacobi`
    was asked for loss_fine_K and gap_fine_K of all numbers of passes, and query_norm, the mean norm of the query
    recurrence's Jacobian; numerical_floor; library_hash, torch, commit and cpu_capability of the training,
    evaluation_torch of the evaluation; made_by (`Study.made_by`); weights_hash, the first 16 hex digits of the SHA-256
    of the checkpoint's model.safetensors, None where that was removed since.

    Empty where nothing is there.
    """
    rows, missing = [], {}
    for run_id in study.runs:
        try:
            record = read_object(study.record(run_id))
        except FileNotFoundError:
            missing[run_id] = "it is not trained to its end"
            continue
        except (OSError, ValueError) as error:
            missing[run_id] = str(error)
            continue
        for evaluated in study.evaluations.values():
            if evaluated.run == run_id:
                try:
                    rows.append(_row(study, evaluated, record))
                except FileNotFoundError:
                    missing[evaluated.id] = "it is not evaluated"
                except (OSError, ValueError) as error:
                    missing[evaluated.id] = str(error)
    table = pd.DataFrame(rows)
    # null where none was asked for, or there is none
    return (table.astype({"numerical_floor": "float64", "trained_passes": "Int64"}) if rows else table), missing


def _row(study: Study, evaluated: Evaluated, record: Mapping[str, Any]) -> dict[str, Any]:
    """One row. Raises ValueError for a result of another run or other settings, FileNotFoundError where it is not
    there."""
    from fvlm_lib.gap.samples import read_samples  # which takes torch, and seconds; --help does not wait for it

    trained, path = study.runs[evaluated.run], Path(study.result(evaluated.id))
    result = read_gap_result(path, study.gap_parameters(evaluated.id))
    about = result["training"]
    wanted = {**training_identity(trained.config, trained.seed, trained.name), "step": evaluated.step}
    if different := [key for key, value in wanted.items() if about.get(key) != value]:
        raise ValueError(f"{path} is of a checkpoint with another {different[0]} than the study has; remove it")
    samples = read_samples(path.with_suffix(".parquet"))
    row: dict[str, Any] = {
        "size": trained.size,
        "recipe": trained.recipe,
        "seed": trained.seed,
        "step": evaluated.step,
        "num_frames": trained.num_frames,
        **{key: about.get(key) for key in _TRAINING},
        "learning_rate": trained.config.learning_rate,
        "trained_passes": trained.trained_passes,
        "num_samples": result["num_samples"],
        "num_tokens": result["num_tokens"],
    }
    for mode, loss in result["losses"].items():
        total = float(samples[f"nll_{mode}"].sum())
        if not math.isclose(total, loss["value"] * result["num_tokens"], rel_tol=1e-9, abs_tol=1e-9):
            raise ValueError(f"{path} and the table beside it are of two evaluations; remove both")
        row |= {f"nll_{mode}": total, **_estimate(f"loss_{mode}", loss)}
    for mode, gap in result["gap_to_passes"].items():
        row |= _estimate(f"gap_{mode}", gap)
    if jacobi := result.get("jacobi"):
        for passes in jacobi["passes"]:
            for kind in ("loss", "gap"):
                if (name := f"{kind}_fine_{passes['passes']}") not in row:
                    row |= _estimate(name, passes[kind])
        if jacobi["jacobian"]:
            row |= _estimate("query_norm", jacobi["jacobian"]["norm"])
    return {
        **row,
        "numerical_floor": result["numerical_floor"],
        "library_hash": about.get("library_hash"),
        "torch": about.get("torch"),
        "commit": record.get("commit", "unknown"),
        "cpu_capability": record.get("cpu_capability", "unknown"),
        "evaluation_torch": result.get("torch"),
        "made_by": study.made_by(evaluated.id),
        "weights_hash": _weights_hash(study.checkpoint(evaluated.id)),
    }


def _weights_hash(checkpoint: str) -> str | None:
    path = Path(checkpoint, "model.safetensors")
    if not path.exists():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _estimate(name: str, found: Mapping[str, float]) -> dict[str, float]:
    return {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}


def write_study_table(study: Study) -> tuple[pd.DataFrame, dict[str, str]]:
    """Write the table where the study has it, and return it and what is missing from it. Raises ValueError where all
    is."""
    table, missing = study_table(study)
    if table.empty:
        first = next(iter(missing))
        raise ValueError(f"there is no result of the study in {study.output} yet; {first}: {missing[first]}")
    write_table(table, Path(study.table))
    return table, missing


def main(argv: list[str] | None = None) -> int:
    """Run the command: 1 where a result is missing, else the exit codes of `options.run`."""
    parser = Parser(
        prog="fvlm study-table",
        description="Make the table of a study from the results that are there, one row a checkpoint and length of "
        "videos, and name what is missing; exit code 1: something is.",
        epilog="example: fvlm study-table config/study.yaml",
    )
    parser.add_argument("config", type=Path, metavar="STUDY.yaml", help="the study's config")
    parser.add_argument(
        "--ship",
        type=Path,
        metavar="DIR",
        help="also write the table, and the sums of each sample, into this folder; what it holds of other runs of the "
        "study is kept",
    )
    args = parser.parse_args(argv)
    return run(parser.prog, lambda: _make(args.config, args.ship))


def _make(config: Path, shipped: Path | None) -> int:
    study = read_study_file(config)
    check_output(Path(study.table), f"{config}: output:")
    table, missing = write_study_table(study)
    if shipped is not None:
        rows = ship(study, table, shipped)
        print(f"shipped: {shipped}, {len(rows)} rows, {len(rows) - len(table)} of them as they were there")
    runs = sum(id in study.runs for id in missing)
    lacking = f"; {runs} of {len(study.runs)} runs and {len(missing) - runs} evaluations of others are missing"
    print(f"table: {study.table}{lacking if missing else ''}")
    for id in list(missing)[:SHOWN]:
        print(f"missing: {id}: {missing[id]}")
    if len(missing) > SHOWN:
        print(f"... and {len(missing) - SHOWN} more")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
