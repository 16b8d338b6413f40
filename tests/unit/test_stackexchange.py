"""StackExchange texts in every format of stackexchange-dataset, whole, doubled, mixed and damaged."""

from __future__ import annotations

import itertools
import json
import logging
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import zstandard

from mechatlas.corpus.documents import prepare_documents, read_documents
from mechatlas.corpus.stackexchange import dump_files
from mechatlas.corpus.windows import sample_windows
from mechatlas.corpus.zip_entries import DamagedZip, zip_entries
from mechatlas.io import UserError, read_table


def question(site: str, number: int, answers: int = 2) -> str:
    """A text as that tool writes it; the body holds what looks like an answer."""
    kept = "".join(f"A:\n\nAnswer {i} to {number}.\n\n" for i in range(answers))
    return f"Q:\n\nTitle {number} of {site}\n\nBody\r\n\r\nA:\r\n\r\nnot one\n\n{kept}"


def name_of(site: str, number: int) -> str:
    return f"{site}_{number:0>10}.txt"


def write_zip(folder: Path, site: str, numbers: range, mode: str = "w", **options: int) -> Path:
    path = folder / f"{site}.zip"
    with zipfile.ZipFile(path, mode, **options) as archive:
        for number in numbers:
            archive.writestr(name_of(site, number), question(site, number))
    return path


def write_texts(folder: Path, site: str, numbers: range) -> None:
    for number in numbers:
        (folder / name_of(site, number)).write_bytes(question(site, number).encode())


def json_lines(site: str, numbers: range) -> bytes:
    rows = [
        {"text": question(site, n), "meta": {"name": f"{site}_{n}.txt", "x": 1}} for n in numbers
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(folder: Path) -> dict[str, str]:
    found = list(read_documents("se", {"kind": "stackexchange", "folder": str(folder)}))
    assert len({document.doc_id for document in found}) == len(found)
    return {document.doc_id: document.text for document in found}


def expected(site: str, numbers: range) -> dict[str, str]:
    return {
        f"{site}/{n}": question(site, n).replace("\r\n", "\n").rstrip("\n") + "\n" for n in numbers
    }


SITE = "3dprinting.meta.stackexchange"


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    for name in ("zip", "deflated", "txt", "zst", "json"):
        (tmp_path / name).mkdir()
    write_zip(tmp_path / "zip", SITE, range(1, 6))
    write_zip(tmp_path / "deflated", SITE, range(1, 6), compression=zipfile.ZIP_DEFLATED)
    write_texts(tmp_path / "txt", SITE, range(1, 6))
    lines = json_lines(SITE, range(1, 6))
    packed = zstandard.compress(lines[:700]) + zstandard.compress(lines[700:])
    (tmp_path / "zst" / f"data_0_time1600000000_{SITE}.jsonl.zst").write_bytes(packed)
    (tmp_path / "json" / f"data_0_time1600000000_{SITE}.jsonl").write_bytes(lines)
    for name in ("zip", "deflated", "txt", "zst", "json"):
        found = read(tmp_path / name)
        assert found == expected(SITE, range(1, 6)), name
        assert list(found) == [f"{SITE}/{n}" for n in range(1, 6)]


def test_question_and_answers_are_one_text_that_keeps_everything(tmp_path: Path) -> None:
    write_texts(tmp_path, SITE, range(7, 8))
    assert read(tmp_path)[f"{SITE}/7"] == (
        f"Q:\n\nTitle 7 of {SITE}\n\nBody\n\nA:\n\nnot one\n\n"
        "A:\n\nAnswer 0 to 7.\n\nA:\n\nAnswer 1 to 7.\n"
    )


def test_a_question_comes_once_however_often_it_was_written(tmp_path: Path) -> None:
    write_zip(tmp_path, SITE, range(1, 5))
    with pytest.warns(UserWarning, match="Duplicate name"):
        write_zip(tmp_path, SITE, range(1, 7), mode="a")
    write_texts(tmp_path, SITE, range(5, 9))
    (tmp_path / f"data_0_time1_{SITE}.jsonl").write_bytes(json_lines(SITE, range(8, 10)))
    assert read(tmp_path) == expected(SITE, range(1, 10))


def test_sites_take_turns(tmp_path: Path) -> None:
    write_zip(tmp_path, "cooking.stackexchange", range(1, 5))
    write_texts(tmp_path, "stackoverflow", range(1, 3))
    (tmp_path / "data_0_time1_astronomy.jsonl").write_bytes(json_lines("astronomy", range(1, 2)))
    assert [doc.replace("/", " ").split()[0][:4] + doc[-1] for doc in read(tmp_path)] == [
        *("astr1", "cook1", "stac1", "cook2", "stac2", "cook3", "cook4"),
    ]


def test_damaged_files_are_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    write_zip(tmp_path, "good", range(1, 3))
    cut = write_zip(tmp_path, "cut", range(1, 30))
    cut.write_bytes(cut.read_bytes()[:-2000])
    flipped = write_zip(tmp_path, "flipped", range(1, 3))
    flipped.write_bytes(flipped.read_bytes().replace(b"Title 2", b"Title 3"))
    lines = json_lines("torn", range(1, 4))
    (tmp_path / "data_0_time1_torn.jsonl").write_bytes(lines[:-30])
    (tmp_path / "data_0_time1_frame.jsonl.zst").write_bytes(b"no such frame")
    (tmp_path / "current_chunk_incomplete").write_bytes(b"left over")
    (tmp_path / "notes.txt").write_text("not a question")
    assert read(tmp_path) == {
        **expected("good", range(1, 3)),
        **expected("flipped", range(1, 2)),
        **expected("torn", range(1, 3)),
    }
    for part in (
        "cut.zip is damaged: it has no directory",
        "flipped.zip is damaged: an entry is damaged",
        "torn.jsonl: 1 damaged lines",
        "frame.jsonl.zst is not valid zstandard",
        "1 .txt files not named",
    ):
        assert part in caplog.text
    assert len(caplog.records) == 5


def test_nothing_but_damage_is_an_empty_corpus(tmp_path: Path) -> None:
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump" / "a.zip").write_bytes(b"PK")
    settings = {"kind": "stackexchange", "folder": str(tmp_path / "dump")}
    with pytest.raises(UserError, match=r"sources\.se: the corpus is empty"):
        prepare_documents(tmp_path / "out.parquet", source="se", settings=settings)
    assert not (tmp_path / "out.parquet").exists()


def test_rows_without_a_name_are_known_by_their_line(tmp_path: Path) -> None:
    rows = [{"text": "Q:\n\nFirst"}, {"text": "Q:\n\nSecond", "meta": None}, {"meta": {}}]
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "mine.jsonl").write_text(text)
    assert read(tmp_path) == {"mine.jsonl#1": "Q:\n\nFirst\n", "mine.jsonl#2": "Q:\n\nSecond\n"}


def test_files_of_a_folder(tmp_path: Path) -> None:
    assert dump_files(tmp_path) == []
    for name in ("b.zip", "a.jsonl.zst", "current_chunk_incomplete", "c.jsonl", "d.csv"):
        (tmp_path / name).touch()
    archives = [tmp_path / name for name in ("a.jsonl.zst", "b.zip", "c.jsonl")]
    assert dump_files(tmp_path) == archives
    (tmp_path / f"{SITE}_1.txt").touch()
    assert dump_files(tmp_path) == [*archives, tmp_path]


def test_a_question_is_in_one_split(tmp_path: Path) -> None:
    write_zip(tmp_path, SITE, range(1, 120))
    out = tmp_path / "documents.parquet"
    settings = {"kind": "stackexchange", "folder": str(tmp_path), "documents": 100}
    assert prepare_documents(out, source="se", settings=settings) == 100
    table = read_table(out)

    class Characters:
        bos_id = 0

        def encode(self, text: str) -> list[int]:
            return list(map(ord, text))

    shares = {"train": 0.5, "validation": 0.2, "test": 0.3}
    documents = zip(table["doc"], table["text"], strict=True)
    windows = sample_windows(documents, Characters(), windows=300, window_len=16, split=shares)
    assert all(
        len(set(windows.splits[windows.docs == doc])) == 1
        for doc in set(windows.docs)
    )  # fmt: skip
    assert set(windows.splits) == {0, 1, 2}


# --- archives -------------------------------------------------------------------------------------


def test_zip_entries_are_those_of_the_standard_library(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = b"a comment with PK\5 in it"
        archive.mkdir("folder")
        archive.writestr("folder/größe.txt", "ä" * 1000, zipfile.ZIP_DEFLATED)
        archive.writestr("plain.txt", b"")
        with archive.open("long.txt", "w", force_zip64=True) as entry:
            entry.write(b"content")
    with zipfile.ZipFile(path) as archive:
        wanted = [(i.filename, archive.read(i)) for i in archive.infolist() if not i.is_dir()]
    assert list(zip_entries(path)) == wanted


def test_large_archives_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(66_000):  # more than the original format can count
            archive.writestr(zipfile.ZipInfo(name_of("s", number)), b"x")
    tracemalloc.start()
    try:
        count = sum(1 for _ in itertools.islice(zip_entries(path), 0, None, 1000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 66 and peak < 1e6


def test_archives_beyond_four_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with open(path, "wb") as handle:
        handle.truncate(2**32 + 1)  # a hole, which takes no space on the disk
    write_zip(tmp_path, "a", range(3), mode="a")
    assert [name for name, _ in zip_entries(path)] == [name_of("a", n) for n in range(3)]
    assert next(zip_entries(path))[1].decode() == question("a", 0)


def test_encrypted_and_strange_entries_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(DamagedZip, match="method 14"):
        list(zip_entries(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DamagedZip, match="encrypted"):
        list(zip_entries(path))
