"""From the gaps of many checkpoints to one table.

Knows gap results (`gap.write_gap`) and a batch's config; how a gap is measured is in `gap.py`, what the table
answers in `findings.py`. `fvlm report CONFIG` prints the table of a batch's results.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fvlm_lib.batch.config import Batch, read_batch_file
from fvlm_lib.batch.folders import batch_runs, folders
from fvlm_lib.batch.runs import failed_runs
from fvlm_lib.gap.results import gap_file, read_gap_result
from fvlm_lib.options import Parser, run
from fvlm_lib.stats import HEAVY_SHARE

ESTIMATES = ["loss_training_fine", "loss_inference_fine", "loss_coarse", "gap_nats", "gap_percent"]
DOUBT_NOTE = (
    f"† This interval may be too narrow: ten samples carry over {HEAVY_SHARE:.0%} of the sum, or failures in fewer "
    "than 3 samples could add as much to it."
)
INTERVAL_NOTE = (
    "Intervals of the table are 95%, of one trained run each, by paired, studentised bootstrap over the evaluation "
    "samples. They say nothing of how another training seed would do."
)


# ---- the table ---------------------------------------------------------------------------------------


def read_results(batch: Batch) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The results of a batch by checkpoint id, and why others cannot be used, also by id."""
    results, problems = {}, {}
    folder = folders(batch.output).results
    for checkpoint_id in batch.checkpoints:
        try:
            parameters = batch.gap_parameters(checkpoint_id)
            results[checkpoint_id] = read_gap_result(gap_file(checkpoint_id, folder), parameters)
        except (OSError, ValueError) as error:
            problems[checkpoint_id] = str(error)
    return results, problems


def gap_table(results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row a checkpoint: id, run, group, seed, step, sizes, training FLOPs, losses and gap each with _low and _high
    (nats a token, gap_percent in percent), numerical_floor, verdict, number of samples scored and skipped;
    doubtful: which of training loss, inference loss and gap have an interval that may be too narrow.

    group: the recipe; seed: of the training; a run is one seed of a group. It is called by its name, and by its seed
    too where that name has several. What a checkpoint does not tell of its training is empty; its name is then its id,
    its group its name. Raises ValueError where two checkpoints have one group, seed and step, or two groups one name.
    """
    rows = []
    for checkpoint_id, result in results.items():
        training = result["training"]
        name = training.get("name") or checkpoint_id
        row: dict[str, Any] = {"id": checkpoint_id, "run": name, "group": training.get("group") or name}
        for key in ("seed", "step", "num_parameters", "num_text_parameters", "training_flops", "multi_fine"):
            row[key] = training.get(key)
        for estimate in ESTIMATES:
            row[estimate] = result[estimate]["value"]
            row[f"{estimate}_low"], row[f"{estimate}_high"] = result[estimate]["low"], result[estimate]["high"]
        for key in ("numerical_floor", "verdict", "verdict_unit", "num_samples", "num_tokens"):
            row[key] = result[key]
        row["doubtful"] = ", ".join(result["warnings"])
        rows.append(row | {"skipped": len(result["skipped"])})
    table = pd.DataFrame(rows).astype({"seed": "Int64"})
    table["run"] = _name_runs(table)
    return table.sort_values(["run", "step"], kind="stable", ignore_index=True)


def _name_runs(table: pd.DataFrame) -> pd.Series:
    """Of a table whose `run` is the name alone, the name, with the seed where the name has several."""
    by_name = table.groupby("run")
    if (wrong := by_name["group"].nunique() > 1).any():
        name = wrong.idxmax()
        groups = " and ".join(sorted(set(table.loc[table["run"] == name, "group"])))
        raise ValueError(f"the name {name} is of the groups {groups}; give each group names of its own in the config")
    for (group, _, _), same in table.groupby(["group", "seed", "step"], dropna=False):
        if len(same) > 1:
            raise ValueError(
                f"{' and '.join(same['id'])} are of one group, {group}, with the same seed and step; give each its own "
                "`seed`, `step` or `name` in the config"
            )
    several = table["run"].map(by_name["seed"].nunique(dropna=False)) > 1
    return table["run"].where(~several, table["run"] + ", seed " + table["seed"].astype("string").fillna("unknown"))


def readable_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table as people read it: `value [low, high]`, losses and gaps in nats a token.

    The percentage is left out where the training loss is too near zero for it to mean anything; `skipped`
    counts samples that could not be used, and is there only if there are any. † marks what DOUBT_NOTE tells.
    """

    def cells(name: str, form: str, sum_of: str) -> list[str]:
        marks = table["doubtful"].str.contains(sum_of).map({True: " †", False: ""})
        return [format_interval(row, name, form) + mark for (_, row), mark in zip(table.iterrows(), marks, strict=True)]

    readable = pd.DataFrame(
        {
            "run": table["run"],
            "step": ["" if pd.isna(step) else whole(step) for step in table["step"]],
            "training": cells("loss_training_fine", ".4f", "training loss"),
            "inference": cells("loss_inference_fine", ".4f", "inference loss"),
            "coarse": [f"{value:.4f}" for value in table["loss_coarse"]],
            "gap": cells("gap_nats", "+.4f", "gap"),
            "gap %": [
                "-" if unit == "nats" else cell
                for cell, unit in zip(cells("gap_percent", "+.1f", "gap"), table["verdict_unit"], strict=True)
            ],
            "verdict": table["verdict"],
        }
    )
    return readable.assign(skipped=table["skipped"]) if table["skipped"].any() else readable


# ---- the findings ------------------------------------------------------------------------------------


def format_interval(row: pd.Series, name: str, form: str) -> str:
    return f"{row[name]:{form}} [{row[name + '_low']:{form}}, {row[name + '_high']:{form}}]"


def whole(value: Any) -> str:
    return f"{int(value):,}"


# ---- scaling -----------------------------------------------------------------------------------------


# ---- into files --------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the command: 1 where a result is missing, else the exit codes of `options.run`."""
    parser = Parser(
        prog="fvlm report",
        description="Print the gap table of a batch from its results, what of it is missing, and which of its runs "
        "failed. Losses and gaps are in nats a token, with 95% intervals; exit code 1: a result is missing.",
        epilog="example: fvlm report config/demo.yaml",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the batch's config")
    args = parser.parse_args(argv)
    return run(parser.prog, lambda: print_report(args.config))


def print_report(config: Path) -> int:
    """Print the table of a batch's results; 1 where some are missing, each with the reason. Raises ValueError."""
    batch = read_batch_file(config, files=False)
    runs = [Path(folders(batch.output).runs, f"{name}.run.json") for name in batch_runs(batch)]
    results, problems = read_results(batch)
    if results:
        table = readable_table(gap_table(results))
        print(table.to_markdown(index=False, disable_numparse=True))
        print(f"\nLosses and gaps in nats a token. {INTERVAL_NOTE}\n{DOUBT_NOTE}")
    for checkpoint_id, problem in problems.items():
        print(f"no result for {checkpoint_id}: {problem}")
    failures = failed_runs(runs)
    for line in failures:
        print(line)
    return 1 if problems or failures else 0


if __name__ == "__main__":
    sys.exit(main())
