"""The README and the pages of the documentation, taken apart: commands, configurations, snippets, links, names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")
SHELL = ("sh", "console")


class Block(NamedTuple):
    """A piece of code of a page: its language (empty for indented ones) and its text."""

    page: str
    language: str
    text: str


def pages() -> list[str]:
    """Return the README and every page, relative to the repository."""
    return ["README.md", *sorted(f"docs/{p.name}" for p in (REPOSITORY / "docs").glob("*.md"))]


def read(page: str) -> str:
    """Return the text of a page."""
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """Return the fenced and the indented blocks of a page."""
    text = read(page)
    fenced = [Block(page, language, code) for language, code in _FENCE.findall(text)]
    prose = _FENCE.sub("\n", text)
    indented = re.findall(r"(?:^(?: {4}.*)?\n)+", prose, flags=re.MULTILINE)
    plain = [re.sub(r"^ {4}", "", part, flags=re.MULTILINE) for part in indented if part.strip()]
    return fenced + [Block(page, "", part.strip("\n") + "\n") for part in plain]


PROGRAMS = re.compile(
    r"(?:\.venv/bin/)?(?:snakemake|python3?|make|pip|export|generate-slurm-partition-config)\b"
)


def commands(page: str) -> Iterator[str]:
    """Yield the commands of a page: lines of shell blocks, indented lines that call a program, backquoted ones."""
    for block in blocks(page):
        lines = re.sub(r"\\\n\s*", " ", block.text).splitlines()
        for line in (line.removeprefix("$ ").strip() for line in lines):
            shell = block.language in SHELL and line and not line.startswith("#")
            if shell or (block.language == "" and PROGRAMS.match(line)):
                yield without_comment(line)
    prose = _FENCE.sub("\n", read(page))
    yield from re.findall(r"`(snakemake --?[^`]+)`", prose)


def without_comment(line: str) -> str:
    """Return a command without the remark behind it and without the folder of its program."""
    words = re.split(r"\s{2,}#|\s#\s", line)[0].strip()
    return words.removeprefix(".venv/bin/")


def arguments(command: str) -> list[str]:
    """Return the words of a command after the program."""
    return shlex.split(command)[1:]


def configurations(page: str) -> Iterator[tuple[str, str]]:
    """Yield (file name, content) of the configurations of a page: blocks that begin with the name of a YAML file."""
    for block in blocks(page):
        found = re.match(r"# (\S+\.yaml)\n", block.text)
        if found and block.language in ("", "yaml"):
            # In an indented block commands may follow.
            yield found[1], re.split(r"^(?:export|snakemake) ", block.text, flags=re.MULTILINE)[0]


def links(page: str) -> Iterator[str]:
    """Yield the targets of the links and pictures of a page that are in the repository."""
    prose = _FENCE.sub("\n", read(page))
    for found in _LINK.finditer(prose):
        target = found[1] or found[2]
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(path: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub and MkDocs make them."""
    text = _FENCE.sub("\n", path.read_text(encoding="utf-8"))
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        name = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
        found.add(re.sub(r"[\s]+", "-", name))
    return found
