"""The paper's tables, made from results/ alone: the numbers, the same as people read them, and a caption's facts.

How a table is written is `paper.py`'s subject, what is read `paper_results.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from fvlm_lib.batch.config import PAPER_TABLES
from fvlm_lib.figures import plots
from fvlm_lib.figures.names import name_policy
from fvlm_lib.figures.paper import Facts
from fvlm_lib.figures.paper_figures import LOSSES
from fvlm_lib.figures.paper_results import (
    Selection,
    gap_facts,
    policy_facts,
    read_gap_table,
    read_policies,
    selected_names,
)
from fvlm_lib.gap.fits import read_fits
from fvlm_lib.gap.report import DOUBT_NOTE, readable_table
from fvlm_lib.gap.scaling import GOOD_R2
from fvlm_lib.screens.measure import bootstrap_policies

Table = tuple[pd.DataFrame, pd.DataFrame, Facts]
"""Numbers, the same as people read them, and facts."""


def gap_table(selection: Selection) -> Table:
    """Losses and gap of every checkpoint."""
    table = read_gap_table(selection)
    caption = (
        "Training and inference loss and their difference, the gap, in nats a token and in % of the training loss. "
        + DOUBT_NOTE
    )
    return table, readable_table(table).drop(columns="coarse"), gap_facts(selection, table, caption)


def scaling_fits(selection: Selection) -> Table:
    """The scaling fits: all laws as numbers, one row a parameter; to read, the power laws, one row a fit. A rejected
    law has its reason, and no intervals."""
    path = selection.results / "scaling_fits.json"
    table = read_gap_table(selection)
    runs = set(table["run"])
    numbers, readable = [], []
    for name, group in read_fits(path).items():
        loss, x = name.split(" by ")
        for fit in group:
            if fit.group not in {*runs, None}:
                continue
            about = {"loss": loss, "against": x, "run": fit.group or "all", "law": fit.form, "formula": fit.formula}
            quality = {"r2_log": fit.r2_log, "rmse_nats": fit.rmse_nats, "num_points": fit.num_points}
            why = {"fitted": fit.fitted, "reason": fit.reason, "rejected": fit.rejected}
            for parameter, estimate in fit.parameters.items() or [(None, None)]:
                values = asdict(estimate) if estimate else {"value": np.nan, "low": np.nan, "high": np.nan}
                if fit.rejected:
                    values |= {"low": np.nan, "high": np.nan}
                numbers.append({**about, "parameter": parameter, **values, **quality, **why})
            if fit.form == "power":
                cells = {"a": "rejected" if fit.fitted else "not fitted", "b": "-"}
                if fit.fitted and not fit.rejected:
                    cells = {key: f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]" for key, e in fit.parameters.items()}
                shown = {"loss": LOSSES[loss].split()[0], "against": plots.AXES[x], "run": fit.group, **cells}
                r2, rmse = ("-" if number is None else f"{number:.2f}" for number in (fit.r2_log, fit.rmse_nats))
                readable.append({**shown, "R2 of log": r2, "RMSE, nats": rmse, "points": str(fit.num_points)})
    caption = (
        "Power laws L = a C^(-b) of the loss L (nats a token) against training C, fitted in log loss: R2 is of log L, "
        f"RMSE of L. Rejected: R2 below {GOOD_R2:g}, or b not determined by the points."
    )
    interval = (
        "95% intervals from refits on resampled evaluation samples and on residuals; checkpoints of one run share "
        "their training."
    )
    facts = gap_facts(selection, table, caption, interval, also=[path])
    return pd.DataFrame(numbers), pd.DataFrame(readable), facts


def policy_table(selection: Selection, tower: str) -> Table:
    """Speed and error of every policy on one tower."""
    rows, sources = read_policies(selection, tower)
    table = bootstrap_policies(rows)

    def cells(name: str, low: str, high: str, form: str) -> list[str]:
        intervals = [
            "" if pd.isna(row[low]) else f" [{row[low]:{form}}, {row[high]:{form}}]" for _, row in table.iterrows()
        ]
        return [f"{value:{form}}{interval}" for value, interval in zip(table[name], intervals, strict=True)]

    readable = pd.DataFrame(
        {
            "policy": table["policy"].map(name_policy),
            "speed-up": cells("total_speedup", "total_speedup_low", "total_speedup_high", ".2f"),
            "median frame": cells("speedup", "speedup_q1", "speedup_q3", ".2f"),
            "mean error": cells("error_mean", "error_mean_low", "error_mean_high", ".4f"),
            "largest error": [f"{value:.2g}" for value in table["error_max"]],
            "drift": [f"{value:.3f}" for value in table["drift"]],
            "cached / partial / full": [
                f"{cached:.0%} / {partial:.0%} / {full:.0%}"
                for cached, partial, full in zip(
                    table["cached"], table["partial"] + table["skipped"], table["full"], strict=True
                )
            ],
        }
    )  # fmt: skip
    caption = (
        "Speed-up over full encodes of all frames after the first (brackets: interval), of the median frame (brackets: "
        "quartiles), relative L2 error of a token, drift (largest difference of a pixel from the one its token was "
        "computed from, as a fraction of the range), and the shares of frames by path; skipped counts as partial."
    )
    return table, readable, policy_facts(rows, sources, caption)


TABLES: dict[str, Callable[..., Table]] = {
    "gap_table": gap_table,
    "scaling_fits": scaling_fits,
    "policies": policy_table,
}


def make_tables(selection: Selection, wanted: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame, Facts]]:
    """Name, numbers, readable table and facts of each wanted table, kinds of `TABLES`; policies are one a tower.

    Raises ValueError, naming what is wrong or missing and what makes it.
    """
    for name, (kind, of) in selected_names(selection, PAPER_TABLES, wanted).items():
        yield name, *TABLES[kind](selection, *([of] if of else []))
