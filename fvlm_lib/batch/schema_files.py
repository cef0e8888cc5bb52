"""`fvlm schema`: the JSON Schema of each kind of config, which editors complete and check YAML files by.

A file that begins with `# yaml-language-server: $schema=schema.json` is helped by every editor that speaks to the YAML
language server (VS Code with its YAML extension, Neovim, Emacs, ...). The schemas are made of the classes that check
the files; what only Python can tell, such as that a folder is there, is not in them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fvlm_lib.batch.parameters import Config
from fvlm_lib.batch.study_config import StudyFile
from fvlm_lib.foveated.training_config import TrainingConfig
from fvlm_lib.options import Parser, run
from fvlm_lib.outputs import whole
from fvlm_lib.schema import adapter, settings
from fvlm_lib.vision.settings import SCHEMA_FILE, DifferentialSettings

DIALECT = "https://json-schema.org/draft/2020-12/schema"


@settings
class Ladder:
    """What `fvlm train` trains: runs by name, each on top of the defaults."""

    runs: dict[str, TrainingConfig | None]
    defaults: TrainingConfig | None = None


# file -> what it describes
SCHEMAS: dict[str, tuple[type, str]] = {
    "schema.json": (Config, "Config of a batch (bash run.sh --configfile FILE)"),
    SCHEMA_FILE: (DifferentialSettings, "Settings of the differential encoder"),
    "ladder.schema.json": (Ladder, "Runs to train (fvlm train FILE)"),
    "study.schema.json": (StudyFile, "A study (bash run.sh study --configfile FILE)"),
}


def json_schema(file: str) -> dict[str, Any]:
    """The JSON Schema in one of SCHEMAS."""
    kind, title = SCHEMAS[file]
    schema = adapter(kind).json_schema()
    for part in _parts(schema):
        part.pop("title", None)  # a key's name once more
        part.pop("discriminator", None)  # of OpenAPI
        for name, value in part.get("properties", {}).items():
            if "const" in value:  # it tells which of several kinds this is, so none may be without
                part["required"] = [*part.get("required", []), name]
                value.pop("default", None)
    return {"$schema": DIALECT, "title": title, **schema}


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all schemas in it."""
    if not isinstance(schema, dict):
        return
    yield schema
    for key in ("properties", "$defs"):
        for part in schema.get(key, {}).values():
            yield from _parts(part)
    for key in ("anyOf", "oneOf", "prefixItems"):
        for part in schema.get(key, []):
            yield from _parts(part)
    for key in ("items", "additionalProperties", "propertyNames"):
        yield from _parts(schema.get(key))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see --help."""
    parser = Parser(
        prog="fvlm schema",
        description="Write the JSON Schema of each kind of config, for editors that complete and check YAML by it. A "
        "file that begins with '# yaml-language-server: $schema=schema.json' is helped.",
        epilog="example: fvlm schema config",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=f"gets {', '.join(SCHEMAS)}")
    folder = parser.parse_args(argv).folder

    def work() -> None:
        for file in SCHEMAS:
            with whole(folder / file) as part:
                part.write_text(json.dumps(json_schema(file), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(folder / file)

    return run(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
