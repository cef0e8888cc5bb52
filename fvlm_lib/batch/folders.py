"""Where a batch keeps its results, figures and executed notebooks, and what its runs are called.

Knows names alone; the Snakefile turns them into rules. Imports nothing heavy, since the Snakefile reads it at every
start.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fvlm_lib.batch.config import Batch

# Of each rule that runs a notebook: the notebook, and what a run of it is called.
NOTEBOOKS = {
    "gap": "notebooks/gap_analysis.ipynb",
    "scaling": "notebooks/scaling_analysis.ipynb",
    "changes": "notebooks/changed_patches.ipynb",
    "differential": "notebooks/differential_benchmark.ipynb",
    "predict": "notebooks/predict_sequence.ipynb",
    "prefill": "notebooks/gated_prefill.ipynb",
    "answers": "notebooks/stale_answers.ipynb",
    "study": "notebooks/close_the_gap.ipynb",
    "paper": "notebooks/paper_figures.ipynb",
}
STUDY = "close_the_gap"  # the folder, below results and plots, of what is found in a study
RUNS = {
    "gap": "gap_{id}",
    "scaling": "scaling_analysis",
    "changes": "changes_{sequence}",
    "differential": "differential_{sequence}--{tower}",
    "predict": "predict_{sequence}--{vlm}",
    "prefill": "prefill_{model}",
    "answers": "answers_{reader}",
    "study": "close_the_gap",
    "paper": "paper_figures",
}


@dataclass(frozen=True)
class Folders:
    """The folders of one batch: `results` (tables), `plots` (figures), `runs` (executed notebooks)."""

    results: str
    plots: str
    runs: str


def folders(output: str | None) -> Folders:
    """The folders of a batch whose config says `output`; None is the project's own, at its top level.

    Raises ValueError for a text that is no folder, or that Snakemake would read as a pattern.
    """
    if output is not None and (not isinstance(output, str) or not output.strip() or set(output) & set("{}*?\n")):
        raise ValueError(f"output is {output!r}; it must be a folder such as mine, without {{, }}, * and ?")
    # relative to the working directory and in one spelling, so that mine/ and ./mine are up to date alike
    below = [os.path.normpath(os.path.join(output or "", name)) for name in ("results", "plots", "papermill_runs")]
    return Folders(*below)


def run_name(rule: str, wildcards: Mapping[str, Any]) -> str:
    """What the run of a rule's job is called: the executed notebook's name without its suffix."""
    return RUNS[rule].format(**wildcards)


def batch_runs(batch: Batch) -> dict[str, str]:
    """All runs of a batch by name, each with its rule, in the order of reading."""
    paper = batch.paper_parameters()
    ids: dict[str, list[dict[str, str]]] = {
        "scaling": [{}] if batch.checkpoints else [],
        "paper": [{}] if paper["figures"] or paper["tables"] else [],
        "study": [{}] if batch.study else [],
        "gap": [{"id": id} for id in batch.checkpoints],
        "changes": [{"sequence": name} for name in batch.sequences],
        "differential": [{"sequence": s, "tower": t} for s, t in product(batch.sequences, batch.towers)],
        "predict": [{"sequence": s, "vlm": v} for s, v in batch.asked],
        "prefill": [{"model": id} for id in batch.prefill],
        "answers": [{"reader": id} for id in batch.answers],
    }
    return {run_name(rule, wildcards): rule for rule, several in ids.items() for wildcards in several}
