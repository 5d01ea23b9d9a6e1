"""The page on the run folder, and the JSON Schema of its files, from the records that read and write them."""

from __future__ import annotations

import json
import re

from medfed.records.schema import FILES, LINES, SCHEMA_VERSION, File, Line, json_schemas

HEAD = f"""# The run folder

A run leaves its results in `runs/<study>/<hash>-seed<n>`. Every JSON file there is a record of `medfed.records.schema`,
version `{SCHEMA_VERSION}`, which reads and writes it. A file ending in `.jsonl` holds one record per line.

`medfed.records.folder.RunFolder(folder).read(ScoreFile)` returns a file, and `.lines(Round)` the lines of a log.
Folders of version 1, which has no `schema_version`, are read as well. Another version is refused in one sentence.

The folder also holds `report.html`, `checkpoints/` (safetensors), `injection/` (the adapter and the projectors) and
`DONE`, which is written last. `clients/` holds what clients keep between rounds.

(This page is made from the records: `make docs`.)
"""


def schema_files() -> dict[str, str]:
    """Return the content of ``docs/schema`` by file name."""
    return {_slug(name): json.dumps(schema, indent=1) + "\n" for name, schema in json_schemas().items()}


def page() -> str:
    """Return the page: a section per file, with its fields."""
    return "\n".join([HEAD, *(line for kind in (*FILES, *LINES) for line in _section(kind))])


def _section(kind: type[File] | type[Line]) -> list[str]:
    text = re.sub(r":\w+:`([^`]*)`", r"`\1`", (kind.__doc__ or "").replace("``", "`"))
    first = text.split("\n\n", maxsplit=1)[0].strip()
    fields = ", ".join(f"`{name}`" for name in kind.model_fields)
    return [
        f"## `{kind.NAME}`",
        "",
        first,
        "",
        f"Fields: {fields}. Schema: [{_slug(kind.NAME)}](schema/{_slug(kind.NAME)}).",
        "",
    ]


def _slug(name: str) -> str:
    """Return the schema's file name: ``injection/steps.jsonl`` becomes ``steps.jsonl.schema.json``."""
    place = name.replace("predictions/<task>", "predictions")
    return place.rpartition("/")[2] + ".schema.json"
