"""The numbers of settings as HTML: two settings beside each other, and what the benchmark has measured of one."""

from __future__ import annotations

import html
from collections.abc import Sequence

import pandas as pd

from fvlm_lib.panels.compare import Choice, TracedChoice
from fvlm_lib.reuse.policies.gated import DEFAULT_TOLERANCE
from fvlm_lib.screens.measure import SETTING_COLUMNS, measured_at
from fvlm_lib.vision.changes import default_limit
from fvlm_lib.vision.settings import DifferentialSettings


def describe_choices(
    names: Sequence[str],
    choices: Sequence[Choice],
    traced: Sequence[TracedChoice],
    index: int,
    size: Sequence[tuple[int, int]],
    measured: pd.DataFrame | str,
) -> str:
    """The numbers of several settings as an HTML table, a column each; what differs is bold.

    index: of the frame shown. size: height and width of the frames as each sees them. measured: of `read_measured`, or
    why there is nothing.
    """
    columns = [
        _numbers(choice, done, index, shape, measured)
        for choice, done, shape in zip(choices, traced, size, strict=True)
    ]
    cell = "<td style='padding:0 14px 0 0;line-height:1.5;font-weight:{}'>{}</td>"
    rows = []
    for line in columns[0]:
        values = [column[line] for column in columns]
        weight = "bold" if len({*values}) > 1 else "normal"
        cells = "".join(cell.format(weight, html.escape(value)) for value in values)
        rows.append(f"<tr>{cell.format('normal', line)}{cells}</tr>")
    heads = "".join(f"<th style='text-align:left;padding:0 14px 0 0'>{html.escape(name)}</th>" for name in ("", *names))
    return f"<table style='margin:4px 0'><tr>{heads}</tr>{''.join(rows)}</table>"


def _numbers(
    choice: Choice, traced: TracedChoice, index: int, size: tuple[int, int], measured: pd.DataFrame | str
) -> dict[str, str]:
    settings, (step, difference) = choice.settings, traced.steps[index]
    limit = default_limit(difference.shape) if settings.max_changed_patches is None else settings.max_changed_patches
    later = traced.table[traced.table["frame"] > 0]
    total = max(later["total"].sum(), 1)
    paths = later["path"].value_counts()
    changed = "all" if step.changed is None else str(step.changed)
    numbers = {
        "threshold": f"{settings.diff_threshold:g}, {settings.metric} of a patch",
        "compared with": {"encoded": "the pixels of its token", "previous": "the previous frame"}[settings.reference],
        "partial update": f"up to {limit} patches",
        "frames": f"{size[0]} × {size[1]}, patches of {choice.patch}",
        "this frame": f"{step.path}, {changed} of {difference.size} changed",
        "encoded anew": f"{later['encoded'].sum() / total:.2%}",
        "changed": f"{later['changed'].sum() / total:.2%}",
        "frames cached, partial, full": ", ".join(str(paths.get(path, 0)) for path in ("cached", "partial", "full")),
    }
    speedup = error = "not measured"
    if not isinstance(measured, str):
        rows = measured_at(measured, settings, size, choice.patch)
        rows = rows[own_policy(rows, settings)]
        if len(rows):
            speedup = ", ".join(f"{value:.2f}" for value in rows["total_speedup"])
            error = ", ".join(
                "–" if row.tower.startswith("random:") else f"{row.error_mean:.3g}" for row in rows.itertuples()
            )
    return numbers | {"speed-up": speedup, "mean error, relative L2": error}


def own_policy(rows: pd.DataFrame, settings: DifferentialSettings) -> pd.Series:
    """Of `measured_at`'s rows, those that were measured with what these settings do about the other tokens."""
    tolerance = DEFAULT_TOLERANCE if settings.tolerance is None else settings.tolerance
    return (rows["tolerance"] == tolerance) if settings.propagate == "gated" else (rows["policy"] == "none")


# ---- what was measured ----------------------------------------------------------------------


def describe_measured(
    measured: pd.DataFrame | str,
    settings: DifferentialSettings,
    size: tuple[int, int],
    patch: int,
    command: str | None,
) -> str:
    """What the benchmark says of these settings, as HTML; measured: of `read_measured`, or why there is nothing.

    Only what was measured at this very setting and size (height, width) is shown, nothing is interpolated. Where
    there is nothing: what was measured, and the `command` that measures this.
    """
    title = "<b>Expected time and error</b>: "
    if isinstance(measured, str):
        return title + html.escape(measured)
    rows = measured_at(measured, settings, size, patch)
    if len(rows):
        return (
            f"{title}measured at this setting on this recording, after the first frame. Errors are relative L2 of a "
            f"token; bold is the tolerance of the settings.{_measured_table(rows, own_policy(rows, settings))}"
        )
    have = measured[measured["policy"].str.match("none|gated")][SETTING_COLUMNS].drop_duplicates()
    known = "".join(
        f"<li>frames of {row.height} × {row.width} in patches of {row.patch_size}: threshold {row.diff_threshold:g}, "
        f"{row.metric}, {row.reference}, partial updates up to {row.max_changed_patches} patches</li>"
        for row in have.itertuples()
    )
    text = f"{title}not measured at this setting. On this recording were measured:<ul>{known}</ul>"
    if command is None:
        return text + "Choose under <i>frames seen at</i> how a tower sees them, to see or measure its time and error."
    return f"{text}To measure this one, save it and run<pre style='white-space:pre-wrap'>{html.escape(command)}</pre>"


def _measured_table(rows: pd.DataFrame, bold: pd.Series) -> str:
    heads = ["tower", "policy", "ms a frame", "ms in full", "speed-up", "mean error", "largest error", "frames", "file"]
    lines = []
    for row, heavy in zip(rows.itertuples(), bold, strict=True):
        errors = [f"{row.error_mean:.3g}", f"{row.error_max:.3g}"]
        if row.tower.startswith("random:"):
            errors = ["–", "–"]  # of random weights they mean nothing
        cells = [row.tower, row.policy, f"{row.ms:.2f}", f"{row.ms_full:.2f}", f"{row.total_speedup:.2f}", *errors]
        weight = "bold" if heavy else "normal"
        cells = [
            f"<td style='padding:0 7px 0 0;line-height:1.3;overflow-wrap:anywhere'>{html.escape(str(cell))}</td>"
            for cell in (*cells, row.n, row.file)
        ]
        lines.append(f"<tr style='font-weight:{weight}'>{''.join(cells)}</tr>")
    header = "".join(
        f"<th style='padding:0 7px 0 0;line-height:1.3;overflow-wrap:anywhere;text-align:left'>{head}</th>"
        for head in heads
    )
    return f"<div style='overflow-x:auto'><table><tr>{header}</tr>{''.join(lines)}</table></div>"
