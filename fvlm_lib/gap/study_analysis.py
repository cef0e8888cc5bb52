"""All tables of a study's analysis by name, as `notebooks/close_the_gap.ipynb` writes and `study_report.py` tells them.

What each of them says is the subject of the module that makes it.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from fvlm_lib.gap.study_contrasts import COLUMNS, equal_compute_contrasts, recipe_contrasts
from fvlm_lib.gap.study_effects import effects
from fvlm_lib.gap.study_laws import laws
from fvlm_lib.gap.study_means import compute_frontier, length_curves, passes_curves
from fvlm_lib.gap.study_norms import norm_points
from fvlm_lib.gap.study_results import PLAIN, StudyResults


def checkpoints(results: StudyResults) -> pd.DataFrame:
    """Which checkpoints the other tables rest on: size, recipe, seed, step, and the num_samples and num_tokens that
    each was evaluated on, of videos of the training's length."""
    return results.trained[["size", "recipe", "seed", "step", "num_samples", "num_tokens"]]


TABLES: dict[str, Callable[[StudyResults], pd.DataFrame]] = {
    "means": compute_frontier,
    "contrasts": recipe_contrasts,
    "equal_compute": equal_compute_contrasts,
    "effects": effects,
    "passes": passes_curves,
    "lengths": length_curves,
    "laws": laws,
    "norms": norm_points,
    "checkpoints": checkpoints,
}


def analyse_study(results: StudyResults) -> dict[str, pd.DataFrame]:
    """Each of TABLES; those that compare recipes with plain are empty where the study has no such recipe."""
    compared = () if PLAIN in results.recipes else ("contrasts", "equal_compute")
    none = pd.DataFrame(columns=[*COLUMNS])
    return {name: none if name in compared else make(results) for name, make in TABLES.items()}
