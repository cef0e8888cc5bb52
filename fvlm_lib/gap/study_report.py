"""`fvlm study-report`: what a study says, as findings and tables, from the folder that its results are shipped in.

The questions and their answers are the subject of `study_findings.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fvlm_lib import outputs
from fvlm_lib.gap.findings import Finding, replace_section
from fvlm_lib.gap.study_analysis import analyse_study
from fvlm_lib.gap.study_findings import NOTE, study_findings
from fvlm_lib.gap.study_results import StudyResults, read_study_results
from fvlm_lib.options import Parser, run

MARKERS = "study"
TITLES = {  # of those of `study_analysis.TABLES` that are told
    "means": "Means over seeds; on the frontier: none has fewer training FLOPs and a lower mean loss",
    "contrasts": "Recipes minus plain, after equal steps",
    "equal_compute": "Recipes minus plain, for equal training FLOPs",
    "effects": "Effects",
    "passes": "Gap and loss by number of fine passes, at the last step",
    "lengths": "Gap and loss by length of the videos",
    "laws": "Scaling laws",
}


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table as people read it: a value with its interval in one cell, which is empty where it was not measured."""
    shown: dict[str, list[str]] = {}
    for name in table:
        ends = (f"{name}_low", f"{name}_high") if f"{name}_low" in table else ("low", "high")
        with_ends = f"{name}_low" in table or name in ("difference", "coefficient")
        if name not in ("low", "high") and not str(name).endswith(("_low", "_high")):
            columns = [table[name], *(table[end] for end in ends)] if with_ends else [table[name]]
            shown[str(name).replace("_", " ")] = [_cell(*values) for values in zip(*columns, strict=True)]
    return pd.DataFrame(shown)


def _cell(value: object, low: float | None = None, high: float | None = None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        told = f"{value:.3g}" if abs(value) >= 1e4 else f"{value:.4f}"
        return told if low is None or pd.isna(low) else f"{told} [{low:.4f}, {high:.4f}]"
    return str(value)


def study_markdown(results: StudyResults) -> str:
    """Findings and tables as Markdown."""
    tables = analyse_study(results)
    parts = [findings_section(study_findings(results, tables))]
    tables["passes"] = tables["passes"].query(f"step == {results.last_step}")
    for name, title in TITLES.items():
        if len(table := tables[name]):
            text = readable(table).to_markdown(index=False, disable_numparse=True)
            parts += [f"**{title}**", text]
    return "\n\n".join(parts) + "\n"


def findings_section(findings: Sequence[Finding]) -> str:
    """Findings as Markdown, with what their intervals are."""
    parts = []
    for finding in findings:
        parts.append(f"**{finding.question}** {finding.answer[:1].upper()}{finding.answer[1:]}.")
        if finding.evidence:
            parts.append("\n".join(f"- {line}" for line in finding.evidence))
    return "\n\n".join([*parts, NOTE])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm study-report",
        description="Print what the results of a study say: findings, each judged by its interval over training seeds, "
        "and the tables that they rest on.",
        epilog="example: fvlm study-report docs/study",
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="with study.parquet, and samples.parquet if it was shipped")
    add(
        "--output",
        type=Path,
        metavar="FILE.md",
        help="write all of it to a Markdown file, and print the findings alone",
    )
    markers = f"between its lines <!-- begin {MARKERS} --> and <!-- end {MARKERS} -->"
    add("--into", type=Path, metavar="FILE.md", help=f"a Markdown file; the findings go {markers}, and are not printed")
    args = parser.parse_args(argv)
    return run(parser.prog, lambda: report(args.folder, args.output, args.into))


def report(folder: Path, output: Path | None = None, into: Path | None = None) -> None:
    """Print a study's report, or put it into files. Raises ValueError."""
    if output:
        outputs.check_output(output)
    results = read_study_results(folder)
    if output:
        with outputs.whole(output) as part:
            part.write_text(study_markdown(results), encoding="utf-8")
    if into:
        replace_section(into, MARKERS, findings_section(study_findings(results)))
    elif output:
        print(findings_section(study_findings(results)))
    else:
        print(study_markdown(results), end="")


if __name__ == "__main__":
    sys.exit(main())
