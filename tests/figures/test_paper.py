"""Figures and tables of a paper: made from small real results, measured and read as a reader would."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import DEMO, ROOT
from planted_study import planted_table, write_results
from readable import check_texts

from fvlm_lib.batch.config import PAPER_FIGURES, PAPER_TABLES, paper_files, read_batch
from fvlm_lib.batch.folders import STUDY
from fvlm_lib.data import screens
from fvlm_lib.figures import palette, paper, paper_figures, paper_tables, study_figures
from fvlm_lib.figures.paper import Facts
from fvlm_lib.figures.paper_results import Selection
from fvlm_lib.gap import gap, report, scaling
from fvlm_lib.gap.fits import fit_losses
from fvlm_lib.gap.samples import read_samples
from fvlm_lib.gap.study_analysis import TABLES
from fvlm_lib.gap.study_results import read_study_results
from fvlm_lib.screens import measure
from fvlm_lib.screens.loaded_towers import load_tower
from fvlm_lib.vision import changes

CHECKPOINTS = {
    "early": DEMO / "S-S" / "step_0100",
    "late": DEMO / "S-S" / "step_3000",
    "multi": DEMO / "S-S-multi" / "step_3000",
}
FACTS = Facts("A caption.", {"things": 3}, {"of chance": 0}, "No intervals.", ("results/x.csv",))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """What a small batch leaves: three checkpoints on eight videos, two recordings of a few frames, a planted study."""
    folder = tmp_path_factory.mktemp("results")
    tables = {}
    for name, path in CHECKPOINTS.items():
        parameters = {
            "checkpoint": str(path), "data": {"kind": "procedural", "split": "test", "seed": 5}, "num_samples": 8,
            "batch_size": 8, "num_fine": [1, 2], "dtype": None, "device": "cpu", "seed": 0, "floor_samples": 0,
        }  # fmt: skip
        model, videos = gap.open_evaluation(path, parameters["data"])
        rows = folder / "gap" / f"{name}.parquet"
        measured = gap.evaluate_inference_gap(model, videos, rows, 8, 8, [1, 2], floor_samples=0, progress=False)
        gap.write_gap(rows.with_suffix(".json"), measured, rows, parameters)
        tables[name] = read_samples(rows)
    contents = {name: json.loads((folder / "gap" / f"{name}.json").read_text()) for name in CHECKPOINTS}
    table = report.gap_table(contents)
    table.to_csv(folder / "gap_table.csv", index=False)
    fits = fit_losses(table, tables, num_bootstrap=2)
    content = {name: [scaling.json_ready(asdict(fit)) for fit in group] for name, group in fits.items()}
    (folder / "scaling_fits.json").write_text(json.dumps(content))
    (folder / "changes").mkdir()
    (folder / "differential").mkdir()
    tower = load_tower(str(CHECKPOINTS["multi"]), [64, 96])
    for name in ("jupyter", "dialog"):
        recording = screens.read_sequence(ROOT / "data" / "screens" / name).head(4)
        traced = list(changes.trace_changes(recording, 16, changes.ChangeTracker()))
        changes.trace_table(traced).to_parquet(folder / "changes" / f"{name}.parquet", index=False)
        masks = np.stack([step.changed_mask for step in traced])
        maps = changes.ChangeMaps(masks, 1, recording[1], 16, 0.05, "max", "encoded")
        maps.save(folder / "changes" / f"{name}.npz")
        rows = measure.measure_policies(tower, recording, measure.policies([0.1, 0.0]), progress=False)
        rows.to_parquet(folder / "differential" / f"{name}--demo.parquet", index=False)
    study = read_study_results(write_results(tmp_path_factory.mktemp("study"), planted_table(seeds=(0, 1))))
    (folder / STUDY).mkdir()
    for name in study_figures.COLUMNS:
        TABLES[name](study).to_csv(folder / STUDY / f"{name}.csv", index=False)
    return folder


@pytest.fixture
def copied(results, tmp_path) -> Path:
    """A copy of the results that a test may spoil."""
    return Path(shutil.copytree(results, tmp_path / "results"))


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def drawn(folder: Path, style: str = "neurips", figures=tuple(PAPER_FIGURES), width=None, **selected):
    """All figures of a venue, by name."""
    venue = paper.find_venue(style)
    widths = dict.fromkeys(PAPER_FIGURES, width) if width else {}
    with plt.rc_context(venue.rc_parameters()):
        found = list(paper_figures.draw_figures(Selection(folder, **selected), figures, venue, widths))
        for _, figure, _ in found:
            figure.canvas.draw()
        return {name: (figure, facts) for name, figure, facts in found}


# ---- figures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("style", "width"), [("neurips", "full"), ("icml", "column"), ("acl", "column")])
def test_every_text_can_be_read_at_the_width_of_the_venue(results, style, width):
    figures = drawn(results, style, width=width)
    assert set(figures) == {
        *(name for name, ids in PAPER_FIGURES.items() if ids is None), "changes_dialog", "changes_jupyter",
        "policies_demo",
    }  # fmt: skip
    for name, (figure, _) in figures.items():
        assert figure.get_figwidth() == paper.VENUES[style].width(width)
        check_texts(figure, style, name)


def test_a_text_that_is_cut_off_or_hidden_is_told_apart(results):
    """The check above sees texts of a tick label that is drawn, and none of one beyond the limits."""
    figure, ax = plt.subplots()
    ax.plot([0, 1], [0, 1])
    ax.set_xticks([0, 0.5, 9])
    ax.set_xlim(0, 1)
    hidden = figure.add_axes((0, 0, 0.1, 0.1))
    hidden.set_title("seen")
    hidden.set_axis_off()
    texts = [text.get_text() for text in paper.visible_texts(figure)]
    assert "0.5" in texts and "seen" in texts
    assert not any(text.startswith("9") for text in texts)


def test_the_same_run_looks_the_same_in_every_figure(results):
    """Also where a figure shows only some of the runs."""
    looks: dict[str, set] = {}
    for checkpoints in (None, ["multi"], ["early", "late"]):
        kinds = ("gap_training", "gap_passes", "scaling_laws")
        for figure, _ in drawn(results, figures=kinds, checkpoints=checkpoints).values():
            for ax in figure.axes:
                for container in ax.containers:
                    line = container.lines[0]
                    look = (matplotlib.colors.to_hex(line.get_color()), line.get_marker())
                    if "hollow" not in container.get_label():
                        looks.setdefault(container.get_label().split(",")[0], set()).add(look)
    assert {name: len(seen) for name, seen in looks.items()} == {"one fine pass": 1, "trained against the gap": 1}


def test_all_colours_of_all_figures_are_of_the_palette(results):
    """But for greys, which stand for no thing: lines of reference, axes."""
    known = {matplotlib.colors.to_hex(colour) for colour in palette.COLOURS.values()}
    for name, (figure, _) in drawn(results).items():
        for ax in figure.axes:
            drawn_with = [line.get_color() for line in ax.lines] + [bar.get_edgecolor() for bar in ax.patches]
            for colour in map(matplotlib.colors.to_rgb, drawn_with):
                is_grey = len({*colour}) == 1
                assert is_grey or matplotlib.colors.to_hex(colour) in known, name


def test_figures_show_the_numbers_of_the_results(results):
    figures = drawn(results, checkpoints=["late", "multi"])
    late = json.loads((results / "gap" / "late.json").read_text())
    (ax,) = figures["gap_passes"][0].axes
    line = next(container.lines[0] for container in ax.containers if container.get_label() == "one fine pass")
    assert line.get_ydata().tolist() == [late["gap_to_passes"][f"fine_{k}"]["value"] for k in (1, 2)]
    first = figures["mode_losses"][0].axes[0]
    shown = [container.lines[0].get_xdata()[0] for container in first.containers]
    assert shown == [loss["value"] for loss in late["losses"].values()]
    _, facts = figures["policies_demo"]
    assert facts.n == {"recordings": 2, "frames": 6}
    _, facts = drawn(results, figures=["policies"], recordings=["dialog"])["policies_demo"]
    assert facts.n == {"recordings": 1, "frames": 3}
    assert facts.interval == "No intervals: one recording."


# ---- files -------------------------------------------------------------------------------------------


def test_seeds_of_a_recipe_are_lines_of_one_colour(copied):
    """Two seeds of S-S: the multi-fine checkpoint passed off as another seed, which its training.json does not say."""
    contents = {name: json.loads((copied / "gap" / f"{name}.json").read_text()) for name in CHECKPOINTS}
    assert [content["training"]["seed"] for content in contents.values()] == [0, 0, 0]  # from training.json
    contents["multi"]["training"] |= {"name": "S-S", "seed": 1}
    (copied / "gap" / "multi.json").write_text(json.dumps(contents["multi"]))
    report.gap_table(contents).to_csv(copied / "gap_table.csv", index=False)
    (figure, facts), (passes, _) = drawn(copied, figures=("gap_training", "gap_passes"), runs=["S-S"]).values()
    for ax in (figure.axes[0], passes.axes[0]):
        lines = [line for line in ax.lines if line.get_marker() not in ("None", "_")]
        assert len({line.get_color() for line in lines}) == 1
        assert len({line.get_marker() for line in lines}) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["S-S: mean and range of 2 seeds"]
    assert [container.get_label() for container in passes.axes[0].containers] == ["S-S, seed 0", "S-S, seed 1"]
    assert "Of several seeds: each (thin), their mean, and the band" in facts.caption
    assert facts.seeds["of training"] == {"S-S, seed 0": 0, "S-S, seed 1": 1}


def test_a_saved_figure_is_as_wide_as_said_with_fonts_embedded_and_facts_beside_it(results, tmp_path):
    venue = paper.find_venue("icml")
    with plt.rc_context(venue.rc_parameters()):
        for name, figure, facts in paper_figures.draw_figures(Selection(results), ["gap_passes", "policies"], venue):
            files = paper.save_figure(figure, tmp_path, name, facts, "icml")
            assert [file.suffix for file in files] == [".pdf", ".png", ".json"]
            content = files[0].read_bytes()
            (box,) = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+) [\d.]+ ?\]", content)
            assert float(box) == pytest.approx(72 * 3.25, abs=0.01)
            assert b"/FontFile2" in content
            assert b"/Type3" not in content
            written = json.loads(files[2].read_text())
            assert written["smallest_text_pt"] == 7
            assert written["width_inches"] == 3.25
            assert written["files"] == [f"{name}.pdf", f"{name}.png"]
            assert all(Path(source).exists() for source in written["sources"])
            assert {"n", "seeds", "interval", "caption"} <= set(written)
        for name, figure, facts in paper_figures.draw_figures(Selection(results), ["gap_passes", "policies"], venue):
            again = paper.save_figure(figure, tmp_path / "again", name, facts, "icml", ["pdf"])
            assert again[0].read_bytes() == (tmp_path / f"{name}.pdf").read_bytes()
    passes = json.loads((tmp_path / "gap_passes.json").read_text())
    assert passes["n"]["evaluation samples"] == 8
    assert passes["seeds"] == {"of training": 0, "of the evaluation data": 5, "of the bootstrap": 0}
    assert "paired bootstrap" in passes["interval"]


def test_a_text_too_small_and_an_unknown_format_are_refused(tmp_path):
    figure, ax = plt.subplots()
    with pytest.raises(ValueError, match=r"'docx' is no format of a figure; known are .*pdf"):
        paper.save_figure(figure, tmp_path, "x", FACTS, "icml", ["docx"])
    ax.set_title("tiny", fontsize=5)
    with pytest.raises(ValueError, match=r"the text 'tiny' of the figure x is 5\.0 pt"):
        paper.save_figure(figure, tmp_path, "x", FACTS, "icml")
    assert list(tmp_path.iterdir()) == []


def test_tables_hold_the_results_with_intervals(results, tmp_path):
    for name, numbers, readable, facts in paper_tables.make_tables(Selection(results), tuple(PAPER_TABLES)):
        paper.write_table(tmp_path, name, numbers, readable, facts)
    late = json.loads((results / "gap" / "late.json").read_text())
    row = pd.read_csv(tmp_path / "gap_table.csv").set_index("id").loc["late"]
    for end, key in (("", "value"), ("_low", "low"), ("_high", "high")):
        assert row[f"gap_nats{end}"] == pytest.approx(late["gap_nats"][key], rel=1e-12)
    text = (tmp_path / "gap_table.md").read_text()
    value = late["loss_inference_fine"]
    assert f"{value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]" in text
    assert "n: 3 checkpoints, 8 evaluation samples" in text
    policies = pd.read_csv(tmp_path / "policies_demo.csv").set_index("policy")
    rows = pd.concat(pd.read_parquet(path) for path in (results / "differential").glob("*.parquet"))
    later = rows[(rows["frame"] > 0) & (rows["policy"] == "none")]
    assert policies.loc["none", "error_mean"] == pytest.approx(later["error_mean"].mean(), rel=1e-12)
    assert policies.loc["none", "total_speedup"] == pytest.approx(later["ms_full"].sum() / later["ms"].sum(), rel=1e-12)
    fits = pd.read_csv(tmp_path / "scaling_fits.csv")
    assert set(fits["law"]) == {"power", "offset_power", "joint"}
    assert fits["reason"].str.contains("needs at least").all()  # two checkpoints a run at most
    assert "not fitted" in (tmp_path / "scaling_fits.md").read_text()


def test_a_rejected_law_has_neither_line_nor_interval(copied):
    """Of two runs one follows a power law, one stays on a plateau and drops."""
    x = [100, 300, 1000, 3000]
    law = scaling.fit_law("power", x, [3.0, 2.0, 1.3, 0.9], num_bootstrap=100, group="S-S")
    drop = scaling.fit_law("power", x, [1.73, 1.25, 0.11, 0.0003], num_bootstrap=20, group="S-S-multi")
    assert law.rejected is None and drop.rejected is not None

    def write(fits):
        content = {"loss_training_fine by step": [scaling.json_ready(asdict(fit)) for fit in fits]}
        (copied / "scaling_fits.json").write_text(json.dumps(content))

    write([law, drop])
    numbers, readable, facts = paper_tables.scaling_fits(Selection(copied))
    assert numbers["parameter"].tolist() == ["a", "b"] * 2
    assert numbers.loc[:1, "low"].notna().all() and numbers.loc[2:, ["low", "high"]].isna().all(axis=None)
    assert numbers["rejected"].fillna("").tolist() == ["", "", drop.rejected, drop.rejected]
    assert readable["a"].tolist()[1] == "rejected" and readable["b"].tolist()[1] == "-"
    assert readable["b"].tolist()[0].startswith(f"{law.parameters['b'].value:.3g} [")
    assert readable["R2 of log"].tolist() == [f"{fit.r2_log:.2f}" for fit in (law, drop)]
    assert "R2 below 0.95, or b not determined by the points" in facts.caption
    figure, facts = drawn(copied, figures=["scaling_laws"])["scaling_laws"]
    notes = [[text.get_text() for text in ax.texts if "law" in text.get_text()] for ax in figure.axes]
    assert sorted(notes) == [[], *[["no power law fits"]] * 3]
    assert f"(training loss of S-S by training step, R² of log loss {law.r2_log:.2f})" in facts.caption
    write([drop])
    _, facts = drawn(copied, figures=["scaling_laws"])["scaling_laws"]
    assert "No power law a·C^-b is drawn: of none its R² of log loss is at least 0.95 and" in facts.caption


def test_latex_is_escaped_with_true_minus_signs_and_powers_of_ten():
    table = pd.DataFrame(
        {"run_1 & co": [r"a_b & 50% #1 ~ ^ \ {x} $2", "[odd]"], "gap": ["-1.5e-05 [-0.2, +3e+12]", "S-2 to 4-5"]}
    )
    text = paper.latex_table(table, FACTS)
    assert text.startswith("% A caption. n: 3 things. Seeds: of chance 0. No intervals.\n")
    assert r"run\_1 \& co & gap \\" in text
    assert r"a\_b \& 50\% \#1 \textasciitilde " in text
    assert r"\textbackslash" in text and r"\{x\} \$2" in text
    assert r"$-1.5\times 10^{-5}$\\{\scriptsize [$-$0.2, $+3\times 10^{12}$]}" in text
    assert "\n{[}odd] & S-2 to 4-5 " in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex, with booktabs")
def test_latex_compiles_within_the_width_of_the_text(results, tmp_path):
    names = []
    for name, numbers, readable, facts in paper_tables.make_tables(Selection(results), tuple(PAPER_TABLES)):
        paper.write_table(tmp_path, name, numbers, readable, facts)
        names.append(name)
    odd = pd.DataFrame({"a_1 & b": [r"a_b & 50% #1 ~ ^ \ {x} $2", "[odd]"], "b": ["-1.5e-05 [-0.2, +3e+12]", "-1"]})
    paper.write_table(tmp_path, "odd", odd, odd, FACTS)
    inputs = "\n\n".join(rf"{{\footnotesize\noindent\input{{{name}.tex}}}}" for name in [*names, "odd"])
    (tmp_path / "all.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\textwidth=5.5in\begin{document}" + inputs + r"\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=tmp_path, capture_output=True
    )
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log
    assert "Overfull" not in log


def test_change_maps_come_back_as_they_were(results, tmp_path):
    maps = changes.ChangeMaps.load(results / "changes" / "jupyter.npz")
    table = pd.read_parquet(results / "changes" / "jupyter.parquet")
    assert maps.changed.sum(axis=(1, 2)).tolist() == table["changed"].tolist()
    assert maps.frequency().mean() == pytest.approx((table["changed"] / table["total"])[1:].mean())
    assert (maps.frame, maps.patch_size, maps.threshold, maps.metric, maps.reference) == (1, 16, 0.05, "max", "encoded")
    assert (replace(maps, changed=maps.changed[:1]).frequency() == 0).all()


# ---- what cannot be read -----------------------------------------------------------------------------


def test_no_results_yet_says_what_makes_them(tmp_path):
    for kind in PAPER_FIGURES:
        with pytest.raises(ValueError, match=r"`bash run\.sh` makes it"):
            drawn(tmp_path, figures=[kind])
    for kind in PAPER_TABLES:
        with pytest.raises(ValueError, match=r"`bash run\.sh` makes it"):
            list(paper_tables.make_tables(Selection(tmp_path), [kind]))


@pytest.mark.parametrize(
    ("figures", "selected", "message"),
    [
        (["gap_passes"], {"checkpoints": ["lat"]}, r"no checkpoint 'lat' in .*; known are early, late, multi"),
        (["gap_training"], {"runs": ["L"]}, r"no run 'L' in .*; known are S-S, S-S-multi"),
        (["changes"], {"sequences": ["idle"]}, r"no sequence 'idle' in .*; known are dialog, jupyter"),
        (["policies"], {"towers": ["clip"]}, r"no tower 'clip' in .*; known are demo"),
        (["policies"], {"recordings": ["idle"]}, r"no recording 'idle' in .* of tower demo; known are dialog, jupyter"),
        (["gaps"], {}, r"no figure or table 'gaps' for the paper; known are gap_training,"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(results, figures, selected, message):
    with pytest.raises(ValueError, match=message):
        drawn(results, figures=figures, **selected)


def test_a_wrong_style_or_width_is_named(results):
    with pytest.raises(ValueError, match="no style 'nips'; known are neurips, iclr, icml, cvpr, acl"):
        paper.find_venue("nips")
    for width, message in (("wide", "'wide' is none; it is 'column'"), (9, r"9 inches does not fit; 1 to 5\.5 inches")):
        with pytest.raises(ValueError, match=message):
            drawn(results, figures=["gap_passes"], width=width)
    venue = paper.find_venue("acl")
    with pytest.raises(ValueError, match="widths names 'policy'; the figures are gap_training"):
        list(paper_figures.draw_figures(Selection(results), ["policies"], venue, {"policy": "full"}))


def test_results_of_an_older_version_are_named_with_what_makes_them_anew(copied):
    def refused(figure: str, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            drawn(copied, figures=[figure])
        assert "bash run.sh" in str(caught.value)

    path = copied / "differential" / "jupyter--demo.parquet"
    pd.read_parquet(path).drop(columns=["drift", "ms"]).to_parquet(path)
    refused("policies", r"jupyter--demo\.parquet lacks ms, drift, so it is of another version")
    path = copied / "changes" / "jupyter.npz"
    np.savez(path, masks=np.zeros((2, 2, 2)))
    refused("changes", r"jupyter\.npz holds no change maps")
    path.write_bytes(b"no archive")
    refused("changes", r"jupyter\.npz holds no change maps")
    path = copied / "scaling_fits.json"
    path.write_text(json.dumps({"loss_training_fine by step": [{"form": "power"}]}))
    refused("scaling_laws", r"scaling_fits\.json holds no scaling fits")
    path = copied / "gap" / "late.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 0}))
    refused("gap_passes", r"late\.json has schema 0, this version reads 3")
    table = pd.read_csv(copied / "gap_table.csv")
    table.assign(step=np.nan).to_csv(copied / "gap_table.csv", index=False)
    with pytest.raises(ValueError, match="does not tell step and training_flops of early; give them in the config"):
        drawn(copied, figures=["gap_training"])
    table.drop(columns="gap_nats_low").to_csv(copied / "gap_table.csv", index=False)
    refused("gap_training", r"gap_table\.csv lacks gap_nats_low")


# ---- in the batch ------------------------------------------------------------------------------------


def test_a_batch_makes_what_it_has_results_for():
    differential = {"sequences": {"a": "x", "b": "y"}, "towers": {"t": {"tower": "random:clip-tiny"}}}
    batch = read_batch({"differential": differential, "paper": {"sequences": ["b"], "style": "icml"}})
    files = paper_files(batch.paper_parameters())
    assert files == [
        *(f"plots/paper/{name}.{suffix}" for name in ("changes_b", "policies_t") for suffix in ("pdf", "png", "json")),
        *(f"results/paper/policies_t.{suffix}" for suffix in ("csv", "md", "tex")),
    ]
    with pytest.raises(ValueError, match=r"paper\.towers names 'u', which is not in this config; it has t"):
        read_batch({"differential": differential, "paper": {"towers": ["u"]}})
    with pytest.raises(ValueError, match="no figure or table 'all'"):
        paper_files({**batch.paper_parameters(), "figures": ["all"]})


def test_the_files_of_the_batch_are_those_that_are_drawn(results):
    ids = {"sequences": ["dialog", "jupyter"], "towers": ["demo"]}
    kinds = {"figures": list(PAPER_FIGURES), "tables": list(PAPER_TABLES), "formats": [], "table_output": "t"}
    promised = paper_files({**ids, **kinds, "output": "f"})
    assert set(PAPER_FIGURES) == set(paper_figures.FIGURES)
    tables = [name for name, *_ in paper_tables.make_tables(Selection(results), list(PAPER_TABLES))]
    assert promised == [
        *(f"f/{name}.json" for name in drawn(results)),
        *(f"t/{name}.{suffix}" for name in tables for suffix in ("csv", "md", "tex")),
    ]
