"""Configs of a batch with one thing wrong: every setting, each with every kind of value that it cannot have; every key
misspelt; ids, files and folders that are none.

A config is read as `bash run.sh -n` reads it (`read_batch_file`). Sentences are told whole but for their lists of what
is known.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from conftest import DEMO

from corpus import Case
from fvlm_lib.batch.config import read_batch_file
from fvlm_lib.vision.settings import read_settings

SETTINGS: dict[str, Any] = {
    "diff_threshold": 0.05, "metric": "max", "max_changed_patches": 3, "patch_size": 16, "reference": "encoded",
    "propagate": "gated", "tolerance": 0.1,
}  # fmt: skip
PROCEDURAL: dict[str, Any] = {
    "kind": "procedural", "split": "test", "seed": 0, "num_objects": 4, "grid": 4, "num_frames": 8, "noise_std": 0.1,
    "num_glyphs": 0, "skew": 0.0,
}  # fmt: skip
FOLDER: dict[str, Any] = {
    "kind": "folder", "path": "clips", "prompt": "", "max_text_tokens": 9, "skip_bad": True, "workers": 2,
    "sampling": "1fps", "max_frames": 4, "frame_rate": 2.0, "still_frames": 2, "crop": "squash", "image_size": 32,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "checkpoints": {
        "a": {
            "path": str(DEMO / "S-S" / "step_3000"), "name": "S", "group": "g", "seed": 1, "step": 3,
            "num_parameters": 9, "num_text_parameters": 8, "training_flops": 1e9, "multi_fine": False,
        },
    },
    "gap": {
        "data": PROCEDURAL, "num_samples": 64, "batch_size": 8, "num_fine": [1, 2], "dtype": "float32",
        "device": "cpu", "seed": 0, "floor_samples": 8, "reuse": {"gated": SETTINGS},
    },
    "shards": 2,
    "scaling": {"num_bootstrap": 9, "seed": 0, "delta": 0.01, "block_length": 1},
    "differential": {
        "sequences": {"s": "screens"},
        "settings": "settings.yaml",
        "towers": {
            "t": {
                "tower": "random:clip-tiny", "image_size": [32, 32], "tolerances": [0.1, 0.0],
                "settings": "settings.yaml", "pack_weights": False, "num_frames": 3, "threads": 1,
            },
        },
        "vlms": {
            "v": {
                "model": "OWNER/MODEL", "sequences": ["s"], "prompt": "What?", "max_new_tokens": 8, "fit": "pad",
                "settings": SETTINGS,
                "num_frames": 3, "num_shown": 2, "device": "cpu", "dtype": "float32", "threads": 1,
            },
        },
    },
    "prefill": {
        "l": {"model": "OWNER/MODEL", "num_screens": 2, "num_lines": 9, "tolerances": [0.1], "seed": 0, "threads": 1},
    },
    "answers": {
        "r": {
            "model": "OWNER/MODEL", "num_screens": 1, "tolerances": [0.1, 0.0], "seed": 0,
            "times_model": "OWNER/LARGER", "device": "cpu", "dtype": "float32", "threads": 1,
        },
    },
    "study": "docs/study",
    "paper": {
        "style": "icml", "figures": ["policies"], "tables": ["policies"], "widths": {"policies": "full"}, "runs": ["S"],
        "checkpoints": ["a"], "sequences": ["s"], "towers": ["t"], "recordings": ["s"], "formats": ["pdf"],
        "output": "plots/paper", "table_output": "results/paper",
    },
    "output": "mine",
    "knowledge": "KNOWLEDGE.md",
}  # fmt: skip

FIGURES = (
    "'gap_training', 'gap_passes', 'mode_losses', 'position_losses', 'scaling_laws', 'changes', 'policies', "
    "'study_compute' or 'study_passes'"
)
MAPPING = "it must be a mapping, `key: value` lines"
WHOLE, NUMBER, FINITE = "it must be a whole number", "it must be a number", "it must be a finite number"
Wrong = list[tuple[Any, str, str]]  # value, how it is shown, what would be right


def whole(low: int, high: int = 10**9) -> Wrong:
    shown: Wrong = [("8", "'8'", WHOLE), (1.5, "1.5", WHOLE), (True, "True", WHOLE), ([1], "[1]", WHOLE)]
    ends = [(low - 1, f"it must be at least {low}"), (high + 1, f"it must be at most {high}")]
    return shown + [(math.nan, "nan", WHOLE), *((value, str(value), said) for value, said in ends)]


def number(*ends: tuple[float, str]) -> Wrong:
    shown: Wrong = [("x", "'x'", NUMBER), (True, "True", NUMBER), ({"a": 1}, "{'a': 1}", NUMBER)]
    shown += [("1e-5", "'1e-5'", f"{NUMBER}~; YAML reads 1e-5 as text, write 1.0e-5")]
    return shown + [
        *((value, repr(value), FINITE) for value in (math.nan, math.inf)),
        *((value, str(value), f"it must be {said}") for value, said in ends),
    ]


def choice(*known: str) -> Wrong:
    said = f"it must be {', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
    return [
        ("zzz", "'zzz'", said),
        (3, "3", said),
        (known[0] + "q", f"'{known[0]}q'", f"{said}~; did you mean {known[0]!r}?"),
    ]


def listed(item: Wrong, least: int = 0) -> Wrong:
    shown: Wrong = [("x", "'x'", "it must be a list"), (3, "3", "it must be a list"), ({}, "{}", "it must be a list")]
    shown += [([], "[]", f"it must be a list of at least {least}")] if least else []
    value, told, said = item[0]
    return [*shown, ([value], f"[0]{told}", said)]


TEXT: Wrong = [(3, "3", "it must be text"), (["a"], "['a']", "it must be text"), ({}, "{}", "it must be text")]
NAME: Wrong = [*TEXT, ("", "''", "it must be text that is not empty")]
FLAG: Wrong = [("yes", "'yes'", "it must be true or false"), (1, "1", "it must be true or false")]
SECTION: Wrong = [(None, "null", MAPPING), ([], "[]", MAPPING), ("x", "'x'", MAPPING), (3, "3", MAPPING)]
SEED = whole(0, 2**32 - 1)
DTYPE = choice("float64", "float32", "bfloat16", "float16")
DEVICE: Wrong = [
    (None, "null", "it must be text"),
    *((name, repr(name), "it must be auto, cpu, cuda, cuda:N or mps") for name in ("bogus", "CPU", "cuda:", "cuda:-1")),
]
SHARE = number((-0.5, "at least 0"), (1.5, "at most 1"))
TOLERANCE = number((-0.5, "at least 0"))
POSITIVE = number((0, "above 0"), (-1, "above 0"))
COUNT, COUNT_OR_NONE, PIXELS, THREADS = whole(1), whole(0), whole(1, 4096), whole(1, 1024)

# Of every setting: the values that it cannot have. "?" at the end of a name: null will do.
GAP: dict[str, Wrong] = {
    "gap": [([], "[]", MAPPING), ("x", "'x'", MAPPING)], "gap.data": SECTION, "gap.num_samples?": whole(2),
    "gap.batch_size": whole(1, 65536), "gap.num_fine": listed(whole(1, 1024), least=1), "gap.dtype?": DTYPE,
    "gap.device": DEVICE, "gap.seed": SEED, "gap.floor_samples": COUNT_OR_NONE,
    "gap.reuse?": [([], "[]", MAPPING), ("x", "'x'", MAPPING)], "gap.reuse.gated": SECTION,
    "gap.reuse.gated.diff_threshold": SHARE, "gap.reuse.gated.tolerance?": TOLERANCE,
}  # fmt: skip
DATA: dict[str, Wrong] = {
    "gap.data.split": choice("train", "validation", "test"), "gap.data.seed": SEED, "gap.data.num_objects": COUNT,
    "gap.data.grid": whole(2, 128), "gap.data.num_frames": whole(2, 10_000), "gap.data.noise_std": SHARE,
    "gap.data.num_glyphs": whole(0, 10_000), "gap.data.skew": number((-0.5, "at least 0"), (11.0, "at most 10")),
}  # fmt: skip
FILES: dict[str, Wrong] = {
    "gap.data.path": TEXT, "gap.data.prompt": TEXT, "gap.data.max_text_tokens?": COUNT, "gap.data.skip_bad": FLAG,
    "gap.data.workers": THREADS, "gap.data.sampling": choice("uniform", "1fps"),
    "gap.data.max_frames": whole(1, 10_000), "gap.data.still_frames": whole(1, 10_000),
    "gap.data.frame_rate": number((-1.0, "at least 0.001"), (1e-300, "at least 0.001"), (1e300, "at most 1000")),
    "gap.data.crop": choice("centre", "squash"), "gap.data.image_size": PIXELS,
    "gap.data.image_mean": [("x", "'x'", "it must be a list"), ([1, 2], "(1, 2)", "it must be a list of at least 3")],
    "gap.data.image_std": [
        (None, "null", "it must be a list"),
        ([1, 1, 0], "[2]0", "it must be above 0"), ([1, 1, math.nan], "[2]nan", FINITE),
        ([1, 1, 1, 1], "(1, 1, 1, 1)", "it must be a list of at most 3"),
    ],
}  # fmt: skip
CHECKPOINTS: dict[str, Wrong] = {
    "checkpoints": SECTION,
    "checkpoints.a": [(value, shown, "it must be a folder, or a mapping with `path`") for value, shown in
                      ((None, "null"), (3, "3"), ([], "[]"), ("", "''"))],
    "checkpoints.a.path": NAME, "checkpoints.a.name?": NAME, "checkpoints.a.group?": NAME, "checkpoints.a.seed?": SEED,
    "checkpoints.a.step?": COUNT_OR_NONE, "checkpoints.a.num_parameters?": COUNT[:5],
    "checkpoints.a.num_text_parameters?": COUNT[:5], "checkpoints.a.training_flops?": POSITIVE,
    "checkpoints.a.multi_fine?": FLAG,
}  # fmt: skip
DIFFERENTIAL: dict[str, Wrong] = {
    "differential": SECTION, "differential.sequences": SECTION, "differential.sequences.s": NAME,
    "differential.settings?": NAME, "differential.towers": SECTION, "differential.towers.t": SECTION,
    "differential.towers.t.tower": NAME, "differential.towers.t.settings?": NAME,
    "differential.towers.t.image_size?": [
        ([32], "(32,)", "it must be a list of at least 2"), ([0, 32], "[0]0", "it must be at least 1"),
    ],
    "differential.towers.t.tolerances": [*listed(TOLERANCE), ([0.1, 0.1], "[0.1, 0.1]", "it names 0.1 twice")],
    "differential.towers.t.pack_weights": FLAG, "differential.towers.t.num_frames?": whole(2),
    "differential.towers.t.threads": THREADS, "differential.vlms": SECTION, "differential.vlms.v": SECTION,
    "differential.vlms.v.model": NAME, "differential.vlms.v.prompt": TEXT,
    "differential.vlms.v.sequences?": listed(TEXT),
    "differential.vlms.v.max_new_tokens": whole(1, 100_000), "differential.vlms.v.fit": choice("processor", "squash",
        "pad"),
    "differential.vlms.v.settings": SECTION, "differential.vlms.v.num_frames?": COUNT,
    "differential.vlms.v.num_shown": whole(1, 50), "differential.vlms.v.device": DEVICE,
    "differential.vlms.v.dtype?": DTYPE, "differential.vlms.v.threads": THREADS,
}  # fmt: skip
TWICE: Wrong = [([0.1, 0.1], "[0.1, 0.1]", "it names 0.1 twice")]
LANGUAGE: dict[str, Wrong] = {
    "prefill": SECTION, "prefill.l": SECTION, "prefill.l.model": NAME, "prefill.l.num_screens": whole(2),
    "prefill.l.num_lines": whole(4, 60), "prefill.l.tolerances": [*listed(TOLERANCE), *TWICE], "prefill.l.seed": SEED,
    "prefill.l.threads": THREADS, "answers": SECTION, "answers.r": SECTION, "answers.r.model": NAME,
    "answers.r.num_screens": COUNT, "answers.r.tolerances": [*listed(TOLERANCE), *TWICE], "answers.r.seed": SEED,
    "answers.r.times_model?": NAME, "answers.r.device": DEVICE, "answers.r.dtype?": DTYPE,
    "answers.r.threads": THREADS,
}  # fmt: skip
OTHER: dict[str, Wrong] = {
    "shards": whole(1, 10_000), "scaling": SECTION, "scaling.num_bootstrap": whole(2, 10**6), "scaling.seed": SEED,
    "scaling.delta": POSITIVE, "scaling.block_length?": COUNT, "output?": TEXT, "knowledge?": NAME, "paper": SECTION,
    "study?": NAME,
    "paper.style": choice("neurips", "iclr", "icml", "cvpr", "acl"), "paper.runs?": listed(TEXT),
    "paper.figures?": listed([("x", "'x'", "it must be " + FIGURES)]),
    "paper.tables?": listed([("x", "'x'", "it must be 'gap_table', 'scaling_fits' or 'policies'")]),
    "paper.formats?": listed(
        [("jpeg2", "'jpeg2'", "it must be 'pdf', 'png', 'svg', 'eps', 'ps', 'pgf', 'jpg', 'tif' or 'webp'")], least=1
    ),
    "paper.widths": SECTION, "paper.checkpoints?": listed(TEXT), "paper.sequences?": listed(TEXT),
    "paper.towers?": listed(TEXT), "paper.recordings?": listed(TEXT), "paper.output?": NAME,
        "paper.table_output?": NAME,
    "paper.widths.policies": [("wide", "'wide'", "it must be 'column' or 'full' or a number"),
                              (9, "9", "it must be 'column' or 'full' or at most 7")],
}  # fmt: skip
SETTING: dict[str, Wrong] = {
    "diff_threshold": SHARE, "metric": choice("max", "mean"), "max_changed_patches?": COUNT_OR_NONE,
    "patch_size?": PIXELS, "reference": choice("encoded", "previous"), "propagate": choice("gated", "budget", "none"),
    "tolerance?": TOLERANCE, "max_rows?": COUNT,
}  # fmt: skip


def changed(content: dict[str, Any], keys: str, value: Any) -> dict[str, Any]:
    """A copy with another value under the keys."""
    new = inner = copy.deepcopy(content)
    *path, last = keys.split(".")
    for key in path:
        inner = inner[key]
    inner[last] = value
    return new


def read(folder: Path, content: Any, file: str = "config.yaml") -> Any:
    """What a config, or settings, of this content are; a text is YAML."""
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    (folder / file).write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return read_settings(file) if file != "config.yaml" else read_batch_file(file, files=False)


def wrong_values(content: dict[str, Any], table: dict[str, Wrong], file: str = "config.yaml") -> Iterator[Case]:
    """Cases of every setting of a table in an otherwise right content."""
    for name, wrong in table.items():
        keys, null = name.removesuffix("?"), ", or null" if name.endswith("?") else ""
        wanted = next((said for value, _, said in wrong if not isinstance(value, list)), wrong[0][2])
        wanted = wanted.partition("~")[0]
        missing: Wrong = [] if null or wrong[0][0] is None or keys == "gap" else [(None, "null", wanted)]
        for value, shown, said in wrong if keys in ("checkpoints.a", "gap") else [*wrong, *missing]:
            index, shown = (
                (shown[:3], shown[3:]) if shown[:1] == "[" and shown[2:3] == "]" and len(shown) > 3 else ("", shown)
            )
            right, _, more = said.partition("~")
            sentence = f"{file}: {keys}{index} is {shown}; {right}"
            if right.startswith("it must be") and not index:
                sentence += null
            run = functools.partial(read, content=changed(content, keys, value), file=file)
            yield Case(f"{file}: {keys}: {value!r}"[:200], run, sentence + more)


def misspelt(content: dict[str, Any], keys: str, file: str = "config.yaml") -> Iterator[Case]:
    """Cases of every key of one mapping with a letter too many."""
    inner = content
    for key in filter(None, keys.split(".")):
        inner = inner[key]
    for key in inner:
        wrong = {(f"{key}x" if name == key else name): value for name, value in inner.items()}
        where = f"{file}: {keys}" if keys else file
        says = f"{where} has the unknown key '{key}x'; did you mean {key!r}? known are "
        if (key == "kind" and "path" in inner) or key == "kind":
            says = f"{where} lacks kind, which must be one of 'folder', 'procedural', 'screens', 'webdataset'"
        run = functools.partial(read, content=changed(content, keys, wrong) if keys else wrong, file=file)
        yield Case(f"{where}: {key}x", run, says)


def right(folder: Path) -> None:
    batch = read(folder, CONFIG)
    assert (batch.gap, batch.shards) == (CONFIG["gap"], 2)
    assert read(folder, changed(CONFIG, "gap.data", FOLDER)).gap["data"] == FOLDER


WITH_FOLDER = changed(CONFIG, "gap.data", FOLDER)

CASES = [
    Case("all of it right", right, None),
    *wrong_values(CONFIG, GAP | DATA | CHECKPOINTS | DIFFERENTIAL | LANGUAGE | OTHER),
    *(
        Case(f"folder, {case.name}", case.run, case.says)
        for case in [*wrong_values(WITH_FOLDER, FILES), *misspelt(WITH_FOLDER, "gap.data")]
    ),
    *wrong_values(SETTINGS, SETTING, "differential.yaml"),
    *misspelt(SETTINGS, "", "differential.yaml"),
    *(
        case
        for keys in (
            "",
            "checkpoints.a",
            "gap",
            "gap.data",
            "scaling",
            "differential",
            "differential.towers.t",
            "differential.vlms.v",
            "gap.reuse.gated",
            "differential.vlms.v.settings",
            "prefill.l",
            "answers.r",
            "paper",
        )
        for case in misspelt(CONFIG, keys)
    ),
]
