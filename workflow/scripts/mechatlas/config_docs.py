"""The page that documents every key of the configuration, written from the schema.

Run ``python -m mechatlas.config_docs`` to write ``config/README.md`` again after a change of the schema; with
``--check`` nothing is written and the exit status says whether the page is up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from mechatlas.config import SCHEMA, load_schema
from mechatlas.io.atomic import atomic_path

PAGE = SCHEMA.parents[2] / "config" / "README.md"
HEAD = """# Configuration

This page is written from `workflow/schemas/config.schema.yaml` by `python -m mechatlas.config_docs`; do not edit it.

`config/config.yaml` is the embedded default. Another run of this Snakemake workflow is a file of differences:

    snakemake --cores 2 --resources gpu=1 --configfile mine.yaml

Mappings are merged key by key, so the embedded models and sources stay unless they are set to null:

    models:
      demo-4l: null
      demo-2l: null
      mine: {path: path/to/a/hugging-face/folder}
    sources:
      synthetic-wiki: null
      synthetic-qa: null
      notes: {kind: text, files: ["notes/*.txt"]}

With `--replace-workflow-config` the file replaces the default as a whole. Unknown keys are refused; all mistakes are
reported at once, each with the nearest known key, before anything runs.

## Keys

| key | type | default | meaning |
|---|---|---|---|
"""


def page() -> str:
    """Return the page as Markdown."""
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in _rows(load_schema(), ""))


def _rows(schema: Mapping[str, Any], key: str) -> Iterator[list[str]]:
    if key:
        yield [f"`{key}`", _type(schema), _default(schema), _prose(schema)]
    prefix = f"{key}." if key else ""
    for name, child in schema.get("properties", {}).items():
        yield from _rows(child, prefix + name)
    others = schema.get("additionalProperties")
    if isinstance(others, Mapping):
        for branch in others.get("oneOf", [others]):
            for name, child in branch["properties"].items():
                row = next(_rows(child, f"{prefix}NAME.{name}"))
                required = "required" if name in branch["required"] else row[2]
                yield [row[0], row[1], required, f"({branch['title']}) {row[3]}"]


def _type(schema: Mapping[str, Any]) -> str:
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    kind = schema.get("type", "")
    name = kind if isinstance(kind, str) else " or ".join(kind)
    if name == "object":
        return "mapping"
    if "items" in schema:
        return name.replace("array", f"list of {_type(schema['items'])}")
    return name + _range(schema)


def _range(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    parts = [f"{sign} {schema[name]}" for name, sign in signs.items() if name in schema]
    return f" {', '.join(parts)}" if parts else ""


def _default(schema: Mapping[str, Any]) -> str:
    if "default" not in schema or schema.get("type") == "object":
        return ""
    return f"`{json.dumps(schema['default'])}`"


def _prose(schema: Mapping[str, Any]) -> str:
    return " ".join(schema.get("description", "").split()).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Write the page, or compare it; return the exit status."""
    if arguments == ["--check"]:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
            return 0
        sys.stderr.write(f"{PAGE} is out of date; run: python -m mechatlas.config_docs\n")
        return 1
    with atomic_path(PAGE) as temporary:
        temporary.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
