"""WikiText (Merity et al. 2016): articles put together from its lines, and its tokenisation undone.

The corpus is a stream of lines, in text files as in the Parquet files of the Hugging Face hub (one row per line).
A line such as `` = = History = = `` between blank lines is a heading, its level the number of equals signs; a heading
of level 1 is the title of an article. Here a heading becomes a line ``== History ==`` with as many equals signs on
either side, as Wikipedia's own markup has it; headings and paragraphs have a blank line between them, and the text
reads as it did before it was tokenised (see `mechatlas.corpus.detokenise`), as far as that can be known.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mechatlas.corpus.detokenise import detokenise
from mechatlas.corpus.document import Document
from mechatlas.corpus.files import read_lines, read_parquet
from mechatlas.io import UserError

logger = logging.getLogger("mechatlas")

HEADING = re.compile(r"((?:= )+)(.+?)((?: =)+)")
TEXT_SUFFIXES = (".txt", ".raw", ".tokens")
SUFFIXES = (".parquet", *TEXT_SUFFIXES)


def read_wikitext(source: str, paths: Sequence[Path]) -> Iterator[Document]:
    """Yield the articles of WikiText files one by one.

    Parameters
    ----------
    source : str
        Key of the source, for messages.
    paths : sequence of Path
        Parquet files with a column ``text``, or text files (.txt, .raw, .tokens). They are read as one stream, in the
        order given: an article may go on in the next file.

    Yields
    ------
    Document
        With the id ``{title}#{number}``; the number counts titles from 0. An article without any paragraph is left
        out.

    Raises
    ------
    UserError
        If a file is of no known kind, damaged, or no line of any file is a title.
    """
    number = -1
    title, blocks, paragraphs, before = "", [], 0, 0
    for level, text in _blocks(line for path in paths for line in _lines(source, path)):
        if level == 1:
            if paragraphs:
                yield _article(title, number, blocks)
            title, blocks, paragraphs, number = text, [], 0, number + 1
        if number < 0:
            before += 1
            continue
        blocks.append(f"{'=' * level} {text} {'=' * level}" if level else text)
        paragraphs += not level
    if paragraphs:
        yield _article(title, number, blocks)
    _check(source, paths, number, before)


def _article(title: str, number: int, blocks: list[str]) -> Document:
    return Document(f"{title}#{number}", "\n\n".join(blocks) + "\n")


def _check(source: str, paths: Sequence[Path], number: int, before: int) -> None:
    where = ", ".join(map(str, paths))
    if number < 0:
        raise UserError(
            f"sources.{source}: {where} holds no article title (a line ` = Title = ` between blank lines); "
            "name WikiText files, or read other text with kind: text"
        )
    if before:
        logger.warning("%s: %d lines before the first title are left out", where, before)


def _blocks(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield (level, text) of headings and (0, text) of paragraphs.

    Paragraphs can look like headings (formulas); those have no blank lines around them.
    """
    previous, current = "", None
    for line in lines:
        following = line.strip()
        if current:
            yield _block(current, isolated=not previous and not following)
        previous, current = current or "", following
    if current:
        yield _block(current, isolated=not previous)


def _block(line: str, *, isolated: bool) -> tuple[int, str]:
    match = HEADING.fullmatch(line) if isolated else None
    if match and match[1].count("=") == match[3].count("="):
        return match[1].count("="), detokenise(match[2])
    return 0, detokenise(line)


def _lines(source: str, path: Path) -> Iterator[str]:
    if path.suffix in TEXT_SUFFIXES:
        yield from read_lines(path)
    elif path.suffix == ".parquet":
        for row in read_parquet(path, "text"):
            yield from row.removesuffix("\n").split("\n")
    else:
        raise UserError(
            f"sources.{source}.files: {path} is no WikiText file; use {', '.join(SUFFIXES)}"
        )
