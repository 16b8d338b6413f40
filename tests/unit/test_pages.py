"""The README and the documentation: links lead somewhere, names exist, snippets run, numbers come from a run."""

from __future__ import annotations

import ast
import functools
import json
import re
from pathlib import Path

import pytest
import yaml
from fake_circuits import write_circuits
from fake_heads import write_results
from pages import REPOSITORY, anchors, blocks, links, pages, read

from mechatlas import docs_numbers
from mechatlas.config import load_schema
from mechatlas.io import UserError

LIBRARY = REPOSITORY / "workflow" / "scripts"
FILE_ENDINGS = tuple(f".{end}" for end in "parquet json jsonl py csv yaml ipynb html".split())


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    here = REPOSITORY / page
    for target in links(page):
        path, _, anchor = target.partition("#")
        found = (here.parent / path) if path else here
        assert found.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(found), f"{page}: {target}; there are {sorted(anchors(found))}"


def test_the_site_lists_every_page_once() -> None:
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())

    def files(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [
            f
            for part in (entry.values() if isinstance(entry, dict) else entry)
            for f in files(part)
        ]

    listed = files(site["nav"])
    assert len(set(listed)) == len(listed)
    written = {page.removeprefix("docs/") for page in pages() if page.startswith("docs/")}
    made = {name for name in listed if name == "config.md" or name.startswith("api/")}
    assert set(listed) - made == written
    packages = {path.parent.name for path in (LIBRARY / "mechatlas").glob("*/__init__.py")}
    assert {Path(name).stem for name in made if "/" in name} == packages


# --- names ------------------------------------------------------------------------------------------


@functools.cache
def names_in(path: Path) -> set[str]:
    """Names that a module defines or imports, without importing it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.alias):
            found.add(node.id if isinstance(node, ast.Name) else (node.asname or node.name))
    return found


def exists(name: str) -> bool:
    """Whether a dotted name is a package, a module, or something that a module has."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        place = LIBRARY.joinpath(*parts[:size])
        rest = parts[size:]
        if place.is_dir() and not rest:
            return True
        module = (
            place.with_suffix(".py")
            if place.with_suffix(".py").is_file()
            else place / "__init__.py"
        )
        if module.is_file():
            return not rest or (len(rest) <= 2 and rest[0] in names_in(module))
    return False


@pytest.mark.parametrize("page", pages())
def test_names_of_the_library_exist(page: str) -> None:
    names = set(re.findall(r"\bmechatlas(?:\.\w+)+", read(page)))
    missing = {n for n in names if not exists(n) and not n.endswith(FILE_ENDINGS)}
    assert not missing


def test_a_name_that_is_gone_is_seen() -> None:
    assert exists("mechatlas.models.context.load") and exists("mechatlas.circuits.graphs")
    assert not exists("mechatlas.models.context.laod") and not exists("mechatlas.model")


def keys() -> set[str]:
    """Dotted keys of the configuration, with the names of tables' entries as ``*``."""

    def walk(schema: dict, prefix: tuple[str, ...]) -> set[tuple[str, ...]]:
        found = {prefix}
        for name, child in schema.get("properties", {}).items():
            found |= walk(child, (*prefix, name))
        others = schema.get("additionalProperties")
        if isinstance(others, dict):
            for branch in others.get("oneOf", [others]):
                found |= walk(branch, (*prefix, "*"))
        return found

    return {".".join(key) for key in walk(load_schema(), ())}


@pytest.mark.parametrize("page", pages())
def test_keys_of_the_configuration_exist(page: str) -> None:
    known, sections = keys(), load_schema()["properties"]
    for name in re.findall(r"`((?:\w+\.)+\w+)(?::[^`]*)?`", read(page)):
        first = name.split(".")[0]
        if first not in sections or name.endswith(FILE_ENDINGS):
            continue
        parts = name.split(".")
        tried = {name, ".".join([first, "*", *parts[2:]])}
        assert tried & known, f"{page}: {name} is no key of the configuration"


# --- snippets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages())
def test_imports_of_snippets_exist(page: str) -> None:
    for block in blocks(page):
        if block.language not in ("", "python") or "import " not in block.text:
            continue
        for module, names in re.findall(
            r"^from (mechatlas[\w.]*) import ([\w, ]+)$", block.text, re.MULTILINE
        ):
            for name in names.split(","):
                assert exists(f"{module}.{name.strip()}"), f"{page}: from {module} import {name}"


@pytest.mark.parametrize("page", pages())
def test_python_blocks_are_python(page: str) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, page, "exec")


def test_snippets_about_results_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "results" / "demo-4l"
    write_results(model / "synthetic-wiki", layers=3)
    write_circuits(model)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    found = [block for block in blocks("docs/pandas.md") if block.language == "python"]
    assert len(found) >= 6
    for block in found:
        exec(compile(block.text, "docs/pandas.md", "exec"), names)
        assert capsys.readouterr().out.strip(), block.text
    assert len(names["own"]) == 12 and len(names["both"]) == 12


# --- numbers ----------------------------------------------------------------------------------------


def small_run(folder: Path) -> Path:
    """A few result files with known numbers."""
    heads = folder / "demo-4l" / "wiki" / "heads"
    heads.mkdir(parents=True)
    iou = {"value": 0.5, "low": 0.4, "high": 0.6, "controls": {"swapped": 0.2, "mean_pattern": 0.3}}
    curve = [
        {"order": o, "share": 0.25, "ratio": r} for o, r in (("best", 1.02), ("mean_pattern", 1.5))
    ]
    facts = {
        "heads": 8,
        "means": {"iou": iou},
        "beats": {"count": 7, "of": 8},
        "replacement": curve,
    }
    (heads / "headline.json").write_text(json.dumps({"programs": facts}))
    write_circuits(folder / "demo-4l", ("numerals",))
    return folder


def test_numbers_are_written_from_a_run(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    page = "before\n<!-- numbers: heads -->\nold\n<!-- end -->\nafter\n"
    filled = docs_numbers.fill(page, run)
    assert (
        filled.startswith("before\n<!-- numbers: heads -->\n| model, text |")
        and "old" not in filled
    )
    assert (
        "| `demo-4l`, `wiki` | 8 | 0.50 [0.40, 0.60] | 0.20, 0.30 | 7 of 8 | +2.0 % (+50.0 %) |"
        in filled
    )
    assert filled.endswith("<!-- end -->\nafter\n") and docs_numbers.fill(filled, run) == filled
    circuit = docs_numbers.circuit_rows(run)
    assert circuit[2].split(" | ")[2] == "84 [79, 88]"
    line = docs_numbers.headline(run)[0]
    assert "7 of 8 explanations" in line and "+2.0 % perplexity" in line


def test_numbers_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no numbers are called 'haeds'; choose from headline"):
        docs_numbers.fill("<!-- numbers: haeds -->\n<!-- end -->", tmp_path)
    with pytest.raises(
        UserError, match="has nothing for the numbers 'heads'; run the default target"
    ):
        docs_numbers.fill("<!-- numbers: heads -->\n<!-- end -->", tmp_path)


def test_words_of_explanations_stay_words_in_a_table() -> None:
    assert docs_numbers._cell("a | b\n<script> `x`") == "a \\| b \\<script\\> \\`x\\`"


def test_every_block_of_numbers_is_filled() -> None:
    for page in docs_numbers.PAGES:
        found = docs_numbers.BLOCK.findall(read(page))
        assert found and all(name in docs_numbers.BLOCKS for _, name, _ in found)
    bodies = re.findall(
        r"<!-- numbers: \w+ -->\n(.*?)<!-- end -->", read("docs/tutorial.md"), re.DOTALL
    )
    assert len(bodies) == 6 and all(re.search(r"\d", body) for body in bodies)
