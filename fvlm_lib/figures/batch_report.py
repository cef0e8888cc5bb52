"""What the report of a batch shows: its runs and why some failed, its figures with what each shows, where it is from.

Reads a batch's folders and the records of its runs, and of these alone; measures nothing. How the report becomes a page
is `batch/export.py`'s subject.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fvlm_lib.batch.config import PAPER_FIGURES, Batch, paper_names
from fvlm_lib.batch.folders import NOTEBOOKS, STUDY, batch_runs, folders
from fvlm_lib.batch.runs import failed_runs, run_status
from fvlm_lib.figures.paper import Facts, caption_of
from fvlm_lib.figures.paper_results import Selection
from fvlm_lib.figures.paper_tables import policy_table
from fvlm_lib.gap.findings import SEEDS_NOTE
from fvlm_lib.gap.results import gap_file

TYPES = {".png": "png", ".svg": "svg+xml", ".jpg": "jpeg", ".jpeg": "jpeg"}  # that a page can show
INTERVAL = re.compile(r" (?=[^\[\]]*\]| \[|\[|†)")  # the spaces in and around "0.12 [0.10, 0.14] †"
AGGREGATED = {
    "gap_analysis": "The gap against training steps and training FLOPs, a line a run.",
    "scaling_laws": "Training and inference loss against training steps and FLOPs, with the laws that fit.",
}


@dataclass(frozen=True)
class Shown:
    """A figure: `path`, `caption` in words, and the heading that it stands `under`."""

    path: Path
    caption: str
    under: str


# ---- runs --------------------------------------------------------------------------------------------


def read_records(batch: Batch) -> dict[str, dict[str, Any] | None]:
    """The record of each run of the batch by name; None for one that was not run."""
    records: dict[str, dict[str, Any] | None] = {}
    for name in batch_runs(batch):
        path = _record_path(batch, name)
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        records[name] = record and record | {"status": run_status(path)}
    return records


def failures(batch: Batch) -> list[str]:
    """A line for each run of the batch that failed, was interrupted, or was not run as it needs one of those."""
    missing = [f"{name}: not run" for name, record in read_records(batch).items() if record is None]
    return failed_runs(_record_path(batch, name) for name in batch_runs(batch)) + missing


def run_table(batch: Batch) -> pd.DataFrame:
    """One row a run: run, status, seconds, peak memory in MB, when it was started (UTC), commit, hash of its code."""
    rows = []
    for name, record in read_records(batch).items():
        given = record or {"status": "not run"}
        git = given.get("git") or {}
        rows.append(
            {
                "run": name,
                "status": given["status"],
                "seconds": given.get("seconds"),
                "peak MB": given.get("peak_memory_mb"),
                "started": str(given.get("started", ""))[:19].replace("T", " "),
                "commit": git.get("commit", "")[:10] + (", changed" if git.get("dirty") else ""),
                "code": given.get("code_hash", ""),
            }
        )
    return pd.DataFrame(rows)


def provenance(batch: Batch) -> pd.DataFrame:
    """What the runs were made with: one row a package, commit or seed, and its values, of which there should be one."""
    found: dict[str, set[str]] = {}
    for record in filter(None, read_records(batch).values()):
        for package, version in record["versions"].items():
            found.setdefault(package, set()).add(version)
        git = record["git"]
        commit = git["commit"] + (", with changes" if git["dirty"] else "") if git else "no checkout"
        found.setdefault("commit", set()).add(commit)
    if batch.checkpoints:
        found["seed of the bootstrap"] = {str(batch.gap.get("seed"))}
        if "seed" in (data := batch.gap.get("data") or {}):
            found["seed of the evaluation data"] = {str(data["seed"])}
    return pd.DataFrame([{"what": what, "is": "; ".join(sorted(values))} for what, values in found.items()])


def _record_path(batch: Batch, name: str) -> Path:
    return Path(folders(batch.output).runs, f"{name}.run.json")


# ---- tables ------------------------------------------------------------------------------------------


def changes_table(batch: Batch) -> pd.DataFrame:
    """One row a recording: its frames, the mean share of patches that changed after the first, and frames by path."""
    rows = []
    for name, later, first in _by_recording(batch, "changes", batch.sequences):
        shares = {path: f"{(later['path'] == path).mean():.0%}" for path in ("cached", "partial", "full")}
        changed = f"{(later['changed'] / later['total']).mean():.2%}" if len(later) else ""
        rows.append({"recording": name, "frames": len(later) + len(first), "patches changed": changed, **shares})
    return pd.DataFrame(rows)


def answers_table(batch: Batch) -> pd.DataFrame:
    """One row a recording and vision-language model: answers that are the same by both ways, and the median time to the
    first token of the later frames, in ms, by each."""
    rows = []
    names = [f"{sequence}--{vlm}" for vlm in batch.vlms for sequence in batch.sequences]
    for name, later, first in _by_recording(batch, "predict", names):
        same, answers = later["same_text"].sum() + first["same_text"].sum(), len(later) + len(first)
        times = {way: f"{later[f'first_token_ms{key}'].median():.1f}" for way, key in (("kept", ""), ("full", "_full"))}
        ratio = (later["first_token_ms_full"] / later["first_token_ms"]).median()
        of = dict(zip(("recording", "model"), name.split("--"), strict=True))
        rows.append({**of, "same answers": f"{same} of {answers}", **times, "faster": f"{ratio:.2f}"})
    return pd.DataFrame(rows).rename(columns={"kept": "first token, ms", "full": "first token in full, ms"})


def policy_tables(batch: Batch) -> list[tuple[str, pd.DataFrame, str]]:
    """Of each vision tower with results: its id, speed and error of every policy, and what the columns mean."""
    tables = []
    for tower in batch.towers:
        results = Path(folders(batch.output).results)
        there = [name for name in batch.sequences if (results / "differential" / f"{name}--{tower}.parquet").exists()]
        if there:
            _, readable, facts = policy_table(Selection(results, recordings=there), tower)
            tables.append((tower, readable, caption_of(facts)))
    return tables


def _by_recording(batch: Batch, kind: str, names: Iterable[str]) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Name, later frames and first frame of each result of a kind that is there."""
    for name in names:
        path = Path(folders(batch.output).results, kind, f"{name}.parquet")
        if path.exists():
            table = pd.read_parquet(path)
            yield name, table[table["frame"] > 0], table[table["frame"] == 0]


# ---- findings and figures ----------------------------------------------------------------------------


def read_findings(batch: Batch) -> str:
    """The questions with their answers and evidence, as Markdown; why there are none where they are missing or older
    than what they are made of."""
    path = Path(folders(batch.output).results, "findings.md")
    if not path.exists() or not _is_current(path, _gaps(batch)):
        return "No findings: they are made when every checkpoint has a result."
    return _folded(path.read_text().split(SEEDS_NOTE)[0])


def read_study_findings(batch: Batch) -> str:
    """The same of the batch's study."""
    path = Path(folders(batch.output).results, STUDY, "findings.md")
    if not path.exists() or not _is_current(path, [f"{batch.study}/study.parquet"]):
        return f"No findings of the study: `bash run.sh` makes them of {batch.study}."
    return _folded(path.read_text())


def _folded(findings: str) -> str:
    """Evidence, which is lists, folded away."""
    folded = r"<details><summary>Evidence</summary>\n\n\g<0>\n\n</details>"
    return re.sub(r"^- .*(\n- .*)*", folded, findings, flags=re.MULTILINE)


def find_figures(batch: Batch) -> list[Shown]:
    """The figures that the batch's runs wrote, in the order of reading; none older than what it is made of."""
    own = folders(batch.output)
    shown = []
    if batch.checkpoints:
        shown += [Shown(Path(own.plots, f"{name}.png"), caption, "All runs") for name, caption in AGGREGATED.items()]
        shown = [figure for figure in shown if _is_current(figure.path, _gaps(batch))]
    parameters = batch.paper_parameters()
    for name in paper_names(PAPER_FIGURES, parameters["figures"], parameters):
        facts_path = Path(parameters["output"], f"{name}.json")
        if facts_path.exists():
            facts = json.loads(facts_path.read_text())
            path = next((Path(f"{parameters['output']}/{file}") for file in facts["files"] if _can_show(file)), None)
            if path and _is_current(path, facts["sources"]):
                shown.append(Shown(path, _caption(facts_path), "For the paper"))
    records = read_records(batch)
    titles = {rule: _title(Path(notebook)) for rule, notebook in NOTEBOOKS.items()}
    for name, rule in batch_runs(batch).items():
        record = records[name]
        if rule in ("scaling", "paper") or not record or record["status"] != "done":
            continue
        id = name.removeprefix(f"{rule}_").replace("--", ", ")
        for file in filter(_can_show, record["results"]):
            facts = Path(file).with_suffix(".json")
            told = _caption(facts) if str(facts) in record["results"] and facts.exists() else f"{id}: {titles[rule]}"
            shown.append(Shown(Path(file), told, titles[rule]))
    return [figure for figure in shown if figure.path.exists()]


def _caption(path: Path) -> str:
    """The caption of a figure, of the facts beside it."""
    facts = json.loads(path.read_text())
    return caption_of(Facts(**{field: facts[field] for field in Facts.__dataclass_fields__}))


def _gaps(batch: Batch) -> list[str]:
    return [gap_file(id, folders(batch.output).results) for id in batch.checkpoints]


def _can_show(file: str) -> bool:
    return Path(file).suffix in TYPES


def _is_current(path: Path, sources: Sequence[str]) -> bool:
    """Whether a file is there, and none of its sources is missing or was made after it."""
    times = [Path(source).stat().st_mtime if Path(source).exists() else float("inf") for source in sources]
    return path.exists() and path.stat().st_mtime >= max(times, default=0.0)


def _title(notebook: Path) -> str:
    """The question that a notebook is titled by."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "".join(cells[0]["source"]).splitlines()[0].lstrip("# ")


# ---- into HTML ---------------------------------------------------------------------------------------


def sortable_html(table: pd.DataFrame) -> str:
    """A table that the page sorts by a click on a column's head."""
    # an interval is not broken over lines
    table = table.map(lambda cell: INTERVAL.sub("\N{NO-BREAK SPACE}", cell) if isinstance(cell, str) else cell)
    return table.to_html(index=False, border=0, classes="sortable", na_rep="", escape=True)


def figure_html(shown: Shown) -> str:
    """A figure within the page, with its caption."""
    content = base64.b64encode(shown.path.read_bytes()).decode()
    source = f"data:image/{TYPES[shown.path.suffix]};base64,{content}"
    caption = html.escape(shown.caption)
    return (
        f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}<br><code>{shown.path}</code></figcaption>'
        "</figure>"
    )
