"""The report of a batch: a notebook, executed like the others, as one HTML file without its code.

What the report says is the notebook's subject; here it is run and becomes a page, which needs nothing beside itself.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from fvlm_lib.batch.folders import Folders
from fvlm_lib.batch.runs import run
from fvlm_lib.outputs import whole

NOTEBOOK = Path("notebooks/report.ipynb")
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em; }}
h1 {{ font-size: 1.7em; }} h2 {{ font-size: 1.3em; margin-top: 2em; border-bottom: 1px solid #ccc; }}
h3 {{ font-size: 1.05em; margin-top: 1.6em; }}
table {{ border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }}
th, td {{ border: 1px solid #ddd; padding: 3px 8px; text-align: left; vertical-align: top; }}
th {{ background: #f3f3f3; }}
table.sortable th {{ cursor: pointer; }} table.sortable th::after {{ content: " \\2195"; color: #999; }}
th[aria-sort=ascending]::after {{ content: " \\2191" !important; }}
th[aria-sort=descending]::after {{ content: " \\2193" !important; }}
figure {{ margin: 1.5em 0; }} figure img {{ max-width: 100%; }}
figcaption {{ color: #444; font-size: 13px; }}
pre {{ background: #f6f6f6; padding: .6em; overflow-x: auto; font-size: 12px; }}
.failed {{ color: #8c1d18; font-weight: 600; }}
</style>
</head>
<body>
{body}
<script>
// a click on a column's head sorts by it, numbers by value ("0.12 [0.10, 0.14]" by 0.12), and again the other way
for (const head of document.querySelectorAll("table.sortable thead th")) head.addEventListener("click", () => {{
  const table = head.closest("table"), column = head.cellIndex, body = table.tBodies[0];
  const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", order);
  const rows = [...body.rows].map(row => ({{ row, text: row.cells[column].textContent.trim() }}));
  const number = text => parseFloat(text.replace(/,/g, "")), sign = order === "ascending" ? 1 : -1;
  rows.sort((a, b) => {{
    const [x, y] = [number(a.text), number(b.text)];
    if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;  // cells without a number come last
    return sign * (isNaN(x) ? a.text.localeCompare(b.text) : x - y);
  }});
  body.append(...rows.map(item => item.row));
}});
</script>
</body>
</html>
"""


def export_html(executed: Path, page: Path, title: str) -> None:
    """Write an executed notebook as one HTML file: its text and what its cells showed, images within, without code.

    Tables of class `sortable` sort by a click on a column's head. Nothing is loaded from elsewhere.
    """
    from nbconvert import HTMLExporter  # a second of CPU

    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True, anchor_link_text="")
    body, _ = exporter.from_filename(str(executed))
    with whole(page) as part:
        part.write_text(PAGE.format(title=title, body=body), encoding="utf-8")


def write_report(config: str, own: Folders, page: Path, log: Path) -> int:
    """Run the report's notebook on what is there of a batch, and write its page; return the exit code of the run.

    log: gets what the run says, after what is in it.
    """
    executed = Path(own.runs, "report.ipynb")
    with open(log, "a") as said, contextlib.redirect_stderr(said):
        status = run(NOTEBOOK, executed, {"config": config})
    if status == 0:
        export_html(executed, page, f"Batch of {config}")
    return status
