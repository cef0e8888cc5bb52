"""The JSON Schemas beside the configs: they are those of the code, and what they say is what the code says."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from conftest import ROOT

from fvlm_lib.batch.schema_files import SCHEMAS, json_schema, main
from fvlm_lib.schema import adapter, check
from fvlm_lib.vision.settings import DifferentialSettings, write_settings
from fvlm_lib.yaml_files import read_yaml

CONFIGS = sorted((ROOT / "config").glob("*.yaml"))
RIGHT = {"checkpoints": {"a": "x", "b": {"path": "y"}}, "gap": {"data": {"kind": "procedural"}}}


@pytest.mark.parametrize("file", SCHEMAS)
def test_the_stored_schema_is_that_of_the_code(file):
    """Else run `fvlm schema config`."""
    jsonschema.Draft202012Validator.check_schema(json_schema(file))
    assert json.loads((ROOT / "config" / file).read_text()) == json_schema(file)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_names_its_schema_and_is_right_by_it(path):
    named = path.read_text().splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert named in SCHEMAS
    jsonschema.validate(json.loads(json.dumps(read_yaml(path))), json_schema(named))
    check(SCHEMAS[named][0], read_yaml(path), path.name)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"gap": {"data": {"kind": "folder", "path": "x", "image_mean": [0, 0, 0]}, "num_samples": None}},
        {"gap": {"data": {"kind": "webdataset", "path": ["a", "b"]}}},
        {"differential": {"towers": {"t": {"tower": "x", "image_size": [32, 32], "tolerances": [0]}}}},
        {"paper": {"widths": {"policies": 3.5, "changes": "full"}}},
        {"shard": 2},
        {"shards": 0},
        {"shards": True},
        {"checkpoints": {"a": None}},
        {"checkpoints": {"a": {"step": 3}}},
        {"gap": {}},
        {"gap": {"data": {}}},
        {"gap": {"data": {"path": "x"}}},
        {"gap": {"data": {"kind": "folder"}}},
        {"gap": {"data": {"kind": "folder", "path": ["x"]}}},
        {"gap": {"data": {"kind": "procedural", "grid": "4"}}},
        {"gap": {"data": {"kind": "procedural"}, "device": "bogus"}},
        {"differential": {"towers": {"t": {"tower": "x", "image_size": [32]}}}},
        {"differential": {"vlms": {"v": {"model": "x", "settings": {"tolerance": -1}}}}},
        {"paper": {"widths": {"policy": "full"}}},
        {"paper": None},
    ],
)
def test_an_editor_says_what_the_code_says(change):
    def wrong(raises: type[Exception], test: Any) -> bool:
        try:
            test()
        except raises:
            return True
        return False

    config = RIGHT | change
    by_code = wrong(ValueError, lambda: check(SCHEMAS["schema.json"][0], config, "config"))
    assert wrong(jsonschema.ValidationError, lambda: jsonschema.validate(config, json_schema("schema.json"))) == by_code


def test_the_command_writes_them_and_saved_settings_name_theirs(tmp_path, capsys):
    write_settings(tmp_path / "mine.yaml", DifferentialSettings())
    assert (tmp_path / "mine.yaml").read_text().startswith("# Settings of the differential encoder")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / file) for file in SCHEMAS]
    for file in SCHEMAS:
        assert (tmp_path / file).read_text() == (ROOT / "config" / file).read_text()
    write_settings(tmp_path / "mine.yaml", DifferentialSettings())
    assert (tmp_path / "mine.yaml").read_text() == (ROOT / "config" / "differential.yaml").read_text()


def test_every_setting_is_described_where_its_name_does_not_say_all():
    described = [part for part in adapter(SCHEMAS["schema.json"][0]).json_schema()["$defs"].values()]
    assert all(part.get("description") for part in described)
