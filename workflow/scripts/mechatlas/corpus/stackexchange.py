"""StackExchange questions with their answers, from the output folder of EleutherAI's stackexchange-dataset.

That tool writes one text per question, ``Q:``, title, body, then ``A:`` and the text of each answer that it kept, in
one of three formats, which may lie side by side:

- ``{site}.zip`` with entries ``{site}_{id}.txt`` (a second run appends every entry again; a killed run leaves no
  directory);
- ``{site}_{id}.txt``;
- ``data_{i}_time{t}_{site}.jsonl.zst`` with lines ``{"text": ..., "meta": {"name": "{site}_{id}.txt"}}`` (and the
  same uncompressed); ``current_chunk_incomplete`` is what a killed run leaves.

A question with its answers is one document, as it stands there: a body may hold a line ``A:`` of its own, so nothing
is cut. Its id is ``{site}/{question id}``, by which the content (CC BY-SA) can be attributed and by which documents
are dealt out to train, validation and test.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from mechatlas.corpus.document import Document
from mechatlas.corpus.files import read_lines, zstandard_lines
from mechatlas.corpus.zip_entries import DamagedZip, zip_entries
from mechatlas.io import UserError

logger = logging.getLogger("mechatlas")

ARCHIVES = (".zip", ".jsonl.zst", ".jsonl")  # in the order in which the files of a site are read
SUFFIXES = (*ARCHIVES, ".txt")
QUESTION = re.compile(r"(?P<site>.+)_(?P<id>\d+)\.txt")
CHUNK = re.compile(r"data_\d+_time\d+_(?P<site>.+)")

Texts = Iterator[tuple[str, str]]  # name, text


def dump_files(folder: Path) -> list[Path]:
    """Return the archives in a folder, sorted, and the folder itself if it holds ``.txt`` files.

    There may be a million of those, so they are not listed one by one.
    """
    archives, texts = [], False
    with os.scandir(folder) as entries:
        for entry in entries:
            texts = texts or entry.name.endswith(".txt")
            if entry.name.endswith(ARCHIVES):
                archives.append(Path(entry.path))
    return sorted(archives) + [folder] * texts


def read_stackexchange(files: Sequence[Path]) -> Iterator[Document]:
    """Yield every question once, the sites taking turns, each in the order of its files.

    Parameters
    ----------
    files : sequence of Path
        As `dump_files` gives them: archives, and folders whose ``.txt`` files are read.

    Notes
    -----
    A question that occurs again (the same site and id, in any of the formats) is left out. What is damaged is skipped
    with a warning. One file of each site is open at a time; in memory are the ids of what was read, and the names of
    the ``.txt`` files.
    """
    seen: set[str] = set()
    for name, text in _taking_turns(_sites(files)):
        match = QUESTION.fullmatch(name)
        doc = f"{match['site']}/{int(match['id'])}" if match else name
        if doc not in seen and text.strip():
            seen.add(doc)
            yield Document(doc, text.replace("\r\n", "\n").strip() + "\n")


def _sites(files: Sequence[Path]) -> list[Texts]:
    """Return one stream of texts for each site, sites sorted."""
    sites: dict[str, list[tuple[int, str, Texts]]] = {}
    for path in files:
        if path.is_dir():
            for site, names in _text_files(path).items():
                texts = _from_text_files(path, names)
                sites.setdefault(site, []).append((len(ARCHIVES), str(path), texts))
            continue
        rank = next((i for i, suffix in enumerate(ARCHIVES) if path.name.endswith(suffix)), None)
        if rank is None:
            raise UserError(
                f"{path} is no output of stackexchange-dataset; use {', '.join(SUFFIXES)}"
            )
        stem = path.name.removesuffix(ARCHIVES[rank])
        chunk = CHUNK.fullmatch(stem)
        reader = _from_zip if ARCHIVES[rank] == ".zip" else _from_json_lines
        site = chunk["site"] if chunk else stem
        sites.setdefault(site, []).append((rank, str(path), reader(path)))
    return [_chain(sorted(sites[site], key=lambda s: s[:2])) for site in sorted(sites)]


def _chain(streams: Iterable[tuple[int, str, Texts]]) -> Texts:
    for *_, texts in streams:
        yield from texts


def _taking_turns(streams: Iterable[Texts]) -> Texts:
    waiting = deque(streams)
    while waiting:
        stream = waiting.popleft()
        for item in stream:
            yield item
            waiting.append(stream)
            break


def _text_files(folder: Path) -> dict[str, list[str]]:
    """Return the sorted names of the questions in a folder by site."""
    sites: dict[str, list[str]] = {}
    others = 0
    for name in os.listdir(folder):
        match = QUESTION.fullmatch(name)
        if match:
            sites.setdefault(match["site"], []).append(name)
        others += not match and name.endswith(".txt")
    if others:
        logger.warning("%s: %d .txt files not named SITE_ID.txt are left out", folder, others)
    return {site: sorted(names) for site, names in sites.items()}


def _from_text_files(folder: Path, names: list[str]) -> Texts:
    for name in names:
        # The tool wrote them in the encoding of its machine's locale.
        yield name, (folder / name).read_text(encoding="utf-8", errors="replace")


def _from_zip(path: Path) -> Texts:
    try:
        for name, content in zip_entries(path):
            if name.endswith(".txt"):
                yield name.rpartition("/")[2], content.decode("utf-8", errors="replace")
    except DamagedZip as error:
        logger.warning("%s is damaged: %s; the rest of it is left out", path, error)


def _from_json_lines(path: Path) -> Texts:
    lines: Callable[[Path], Iterator[str]] = (
        zstandard_lines if path.name.endswith(".zst") else read_lines
    )
    unread = 0
    try:
        for number, line in enumerate(lines(path), 1):
            if not line.strip():
                continue
            name, text = _json_row(line)
            if text is None:
                unread += 1
            else:
                yield name or f"{path.name}#{number}", text
    except (UserError, UnicodeDecodeError) as error:
        logger.warning("%s; the rest of it is left out", error)
    if unread:
        logger.warning("%s: %d damaged lines are left out", path, unread)


def _json_row(line: str) -> tuple[str | None, str | None]:
    """Return name and text of a line; no text if it cannot be read."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None, None
    text = row.get("text") if isinstance(row, dict) else None
    meta = row.get("meta") if isinstance(row, dict) else None
    name = meta.get("name") if isinstance(meta, dict) else None
    return name if isinstance(name, str) else None, text if isinstance(text, str) else None
