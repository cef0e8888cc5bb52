"""Config files that are none, ids and sections that do not go together, and what a config names that is not there."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

from corpus import Case
from corpus.config import CONFIG, FIGURES, MAPPING, PROCEDURAL, WHOLE, changed, read
from fvlm_lib.batch.config import read_batch_file

ID = "letters, digits, '_', '.' and '-', at most 100, make an id"


def text(name: str, content: str, says: str) -> Case:
    return Case(name, functools.partial(read, content=content), says)


def other(name: str, keys: str, value: Any, says: str) -> Case:
    return Case(name, functools.partial(read, content=changed(CONFIG, keys, value)), f"config.yaml{says}")


def absent(name: str, keys: str, value: Any, says: str) -> Case:
    """A config that is right, but for what it names, which is not there."""

    def run(folder: Path) -> Any:
        read(folder, CONFIG)
        (folder / "screens").mkdir()
        (folder / "screens" / "0.png").touch()
        (folder / "empty").mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        read_batch_file("config.yaml")  # which is right
        (folder / "config.yaml").write_text(yaml.safe_dump(changed(CONFIG, keys, value)))
        return read_batch_file("config.yaml")

    return Case(name, run, f"config.yaml: {says}")


CASES = [
    text(
        "data at the top",
        "data: {kind: procedural}",
        "config.yaml has the unknown key 'data'; did you mean 'gap.data'? known are checkpoints, gap, shards, ",
    ),
    text("empty", "", "config.yaml lists no checkpoints; it needs `checkpoints:` with `id: folder` lines"),
    text("comments alone", "# nothing\n", "config.yaml lists no checkpoints"),
    text("null", "null", "config.yaml lists no checkpoints"),
    text("a list", "- a", f"config.yaml is ['a']; {MAPPING}"),
    text("a text", "words", f"config.yaml is 'words'; {MAPPING}"),
    text("a number", "3", f"config.yaml is 3; {MAPPING}"),
    text("no YAML", "a: b: c", "config.yaml cannot be read as YAML in line 1 (mapping values are not allowed here)"),
    text("tabs", "gap:\n\tdata: 1", "config.yaml cannot be read as YAML in line 2 (while scanning for the next token"),
    text("two documents", "a: 1\n---\nb: 2", "config.yaml cannot be read as YAML in line 2"),
    text("nested deeply", "a: " + "[" * 5000, "config.yaml cannot be read as YAML (it is nested too deeply)"),
    text("Python's tags", "a: !!python/name:os.system x", "config.yaml cannot be read as YAML in line 1 (could not"),
    text("an alias of nothing", "a: *b", "config.yaml cannot be read as YAML in line 1 (found undefined alias 'b')"),
    text("a mapping in itself", "gap: &gap {data: *gap}", "config.yaml: gap.data"),
    text("a number of 5000 digits", f"shards: {'9' * 5000}", "config.yaml cannot be read as YAML (Exceeds the limit"),
    text("a date", "shards: 2026-01-01", f"config.yaml: shards is datetime.date(2026, 1, 1); {WHOLE}"),
    text(
        "an id given twice", "checkpoints:\n  a: x\n  a: y", "config.yaml: line 3 gives the key 'a' again, after line 2"
    ),
    text("a section given twice", "shards: 1\ngap: {}\nshards: 2", "config.yaml: line 3 gives the key 'shards' again"),
    text(
        "an id that is a number",
        "checkpoints: {3: x}",
        "checkpoints has the key 3; a key must be text, so write it in quotes",
    ),
    text("an id that is true", "checkpoints: {on: x}", "config.yaml: checkpoints has the key True; a key must be text"),
    text("a key that is a number", "3: x", "config.yaml has the key 3; a key must be text, so write it in quotes"),
    *(
        other(f"the id {id!r}", "checkpoints", {id: "x"}, f": checkpoints has the key {id!r}; {ID}")
        for id in ("a/b", "../a", ".a", "-a", "a b", "", "é", "a\nb")
    ),
    other(
        "a half with --",
        "differential.sequences",
        {"a--b": "x"},
        ": differential.sequences has the key 'a--b'; results are named SEQUENCE--TOWER, so an id has no '--' in it",
    ),
    other(
        "no checkpoints", "checkpoints", {}, ": paper.checkpoints names 'a', which is not in this config; it has none"
    ),
    other("no gap", "gap", None, " lacks gap, which says what the checkpoints are evaluated on"),
    other("one folder twice", "checkpoints", {"a": "x", "b": "./x"}, ": a and b are the same folder, ./x; keep one"),
    other(
        "a kind of data that is none",
        "gap.data",
        {"kind": "foldr", "path": "x"},
        ": gap.data.kind is 'foldr'; it must be one of 'procedural', 'screens', 'folder', 'webdataset'; did you mean "
        "'folder'?",
    ),
    other("a kind of data that is null", "gap.data.kind", None, ": gap.data.kind is null; it must be one of"),
    other("a folder without path", "gap.data", {"kind": "folder"}, ": gap.data lacks path"),
    other("shards of a webdataset without path", "gap.data", {"kind": "webdataset"}, ": gap.data lacks path"),
    other(
        "shards of a webdataset, none",
        "gap.data",
        {"kind": "webdataset", "path": []},
        ": gap.data.path is []; it must be",
    ),
    other(
        "shards of a webdataset, numbers",
        "gap.data",
        {"kind": "webdataset", "path": ["a", 3]},
        ": gap.data.path[1] is 3; it must be text",
    ),
    other(
        "more objects than lanes",
        "gap.data.num_objects",
        17,
        ": gap.data: num_objects is 17; a grid of 4 has lanes for at most 16",
    ),
    other(
        "more pixels than memory",
        "gap.data",
        PROCEDURAL | {"grid": 128, "num_frames": 1000},
        ": gap.data: num_frames 1000 "
        "of 1024 x 1024 pixels (grid 128) take 201 GB for 16 videos; at most 4 GB are drawn at a time",
    ),
    other("more shards than samples", "shards", 65, ": shards is 65; 64 samples make at most 64"),
    other("a tower without a name", "differential.towers.t", {"threads": 1}, ": differential.towers.t lacks tower"),
    other("a model without a name", "differential.vlms.v", {}, ": differential.vlms.v lacks model"),
    other("a language model without a name", "prefill.l", {}, ": prefill.l lacks model"),
    other("a reader without a name", "answers.r", {"num_screens": 1}, ": answers.r lacks model"),
    other("the id of a reader", "answers", {"a/b": {"model": "a/b"}}, f": answers has the key 'a/b'; {ID}"),
    other(
        "the width of no figure",
        "paper.widths",
        {"policy": "full"},
        ": paper.widths has the key 'policy'; it must be " + FIGURES,
    ),
    other(
        "a figure twice",
        "paper.figures",
        ["policies", "policies"],
        ": paper.figures is ['policies', 'policies']; it names 'policies' twice",
    ),
    *(
        other(
            f"paper: {key} of others",
            f"paper.{key}",
            ["x"],
            f": paper.{key} names 'x', which is not in this config; it has",
        )
        for key in ("checkpoints", "sequences", "towers", "recordings")
    ),
    other("no settings file", "differential.settings", "no.yaml", ": differential: there is no settings file no.yaml"),
    Case("no config file", lambda folder: read_batch_file("no.yaml"), "there is no file no.yaml"),
    Case("a folder for a config", lambda folder: read_batch_file(folder), "cannot be read (Is a directory)"),
    Case(
        "not UTF-8",
        lambda folder: ((folder / "a.yaml").write_bytes(b"a: \xff"), read_batch_file("a.yaml")),
        "a.yaml is not UTF-8 text (invalid start byte at byte 3)",
    ),
    absent(
        "no recording", "differential.sequences.s", "none", "differential.sequences.s: none: no such file or directory"
    ),
    absent(
        "a recording without images",
        "differential.sequences.s",
        "empty",
        "differential.sequences.s: empty: has no images",
    ),
    absent(
        "a random tower that is none",
        "differential.towers.t.tower",
        "random:x",
        "differential.towers.t.tower is 'random:x'",
    ),
    absent(
        "no tower",
        "differential.towers.t.tower",
        "a/b/c",
        "differential.towers.t.tower is 'a/b/c', and there is no such folder; a hub id is like OWNER/MODEL",
    ),
    absent(
        "a tower without config.json",
        "differential.towers.t.tower",
        "empty",
        "differential.towers.t.tower is 'empty', a folder without a config.json",
    ),
    absent(
        "no settings of a tower",
        "differential.towers.t.settings",
        "no.yaml",
        "differential.towers.t.settings: there is no settings file no.yaml",
    ),
    absent(
        "no model",
        "differential.vlms.v.model",
        "./model",
        "differential.vlms.v.model is './model', and there is no such",
    ),
    absent(
        "no language model",
        "prefill.l.model",
        "./model",
        "prefill.l.model is './model', and there is no such folder; a hub id is like OWNER/MODEL",
    ),
    absent(
        "no reader",
        "answers.r.model",
        "./reader",
        "answers.r.model is './reader', and there is no such folder; a hub id is like OWNER/MODEL",
    ),
    absent(
        "a reader without config.json",
        "answers.r.model",
        "empty",
        "answers.r.model is 'empty', a folder without a config.json",
    ),
    absent(
        "no model of real size",
        "answers.r.times_model",
        "random:clip-tiny",
        "answers.r.times_model is 'random:clip-tiny', and there is none such; it must be a folder or a hub id",
    ),
    absent("no folder of videos", "gap.data", {"kind": "folder", "path": "none"}, "data: none has no captions.jsonl"),
    absent(
        "no shards",
        "gap.data",
        {"kind": "webdataset", "path": "{0..3}.tar"},
        "data: no file matches '0.tar' (of '{0..3}",
    ),
    absent(
        "another grid",
        "gap.data.grid",
        5,
        "gap.data for checkpoint a: grid is 5, frames of 40 x 40 pixels, but the model sees 32 x 32",
    ),
    absent(
        "more frames than positions",
        "gap.data.num_frames",
        128,
        "gap.data for checkpoint a: num_frames is 128, which with the caption takes 258 positions",
    ),
]
