"""Documents of all kinds of files, and the windows cut from them."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest
import zstandard

from mechatlas.corpus.documents import prepare_documents, read_documents
from mechatlas.corpus.stored import StoredDocuments
from mechatlas.corpus.windows import (
    SPLITS,
    read_windows,
    sample_windows,
    split_of,
    write_windows,
)
from mechatlas.io import UserError, read_provenance, read_table

SHARES = {"train": 0.5, "validation": 0.2, "test": 0.3}
BOS = 9_999


class Characters:
    """A tokenizer whose tokens are code points, so that windows can be read back."""

    bos_id = BOS

    def encode(self, text):
        return [ord(c) for c in text]


def corpus(count=60, length=100):
    """Every document is a run of code points that no other document has."""
    return [
        (f"doc{i}", "".join(chr(1 + i * length + j) for j in range(length))) for i in range(count)
    ]


def sample(documents=None, **changes):
    settings = {"windows": 40, "window_len": 21, "split": SHARES, "pattern_windows": 3, "seed": 1}
    return sample_windows(documents or corpus(), Characters(), **{**settings, **changes})


def test_windows_are_pieces_of_their_documents():
    texts = dict(corpus())
    windows = sample(windows=250)
    assert windows.tokens.shape == (250, 21) and (windows.tokens[:, 0] == BOS).all()
    taken = set()
    for tokens, doc, start in zip(windows.tokens, windows.docs, windows.starts, strict=True):
        assert "".join(map(chr, tokens[1:])) == texts[doc][start : start + 20]
        assert not taken & set(tokens[1:].tolist())  # no overlap, since no character occurs twice
        taken |= set(tokens[1:].tolist())
    # 60 documents hold 5 windows each: every round takes one of each before the next begins.
    for first in range(0, 240, 60):
        assert len(set(windows.docs[first : first + 60])) == 60


def test_split_is_by_document_and_depends_on_seed_and_id_only():
    windows = sample(windows=300)
    for doc in set(windows.docs):
        assert len(set(windows.splits[windows.docs == doc])) == 1
    few = sample(corpus()[:40], windows=40)
    lookup = dict(zip(windows.docs, windows.splits, strict=True))
    assert all(lookup[doc] == code for doc, code in zip(few.docs, few.splits, strict=True))
    shares = np.bincount([split_of(f"d{i}", SHARES, 0) for i in range(4000)]) / 4000
    np.testing.assert_allclose(shares, list(SHARES.values()), atol=0.03)
    assert [split_of(f"d{i}", SHARES, 0) for i in range(50)] != [
        split_of(f"d{i}", SHARES, 1) for i in range(50)
    ]


def test_seed_decides_everything():
    a, b, c = sample(), sample(), sample(seed=2)
    assert np.array_equal(a.tokens, b.tokens) and list(a.docs) == list(b.docs)
    assert list(a.docs) != list(c.docs)


def test_offsets_cover_the_whole_document():
    tails = [sample(corpus(60, 39), windows=60, seed=s).starts for s in range(3)]
    assert set(np.concatenate(tails)) >= {0, 19}


def test_pattern_sample_takes_different_documents_first():
    windows = sample(windows=300, pattern_windows=10)
    for code in range(len(SPLITS)):
        chosen = windows.docs[windows.pattern_sample & (windows.splits == code)]
        available = len(set(windows.docs[windows.splits == code]))
        assert len(chosen) == 10 and len(set(chosen)) == min(10, available)


def test_fewer_windows_than_asked(caplog):
    caplog.set_level(logging.WARNING)
    assert len(sample(windows=1000)) == 300
    assert "hold 300 windows of 21 tokens, fewer than the 1000 asked for" in caplog.text


def test_file_round_trip(tmp_path):
    windows = sample(windows=100)
    write_windows(tmp_path / "w.parquet", windows, seed=1)
    table = pd.read_parquet(tmp_path / "w.parquet")
    assert list(table.columns) == ["window", "doc", "split", "start", "pattern_sample", "tokens"]
    assert read_provenance(tmp_path / "w.parquet")["seed"] == 1
    part = read_windows(tmp_path / "w.parquet", 30, 50)
    assert part.first == 30 and np.array_equal(part.tokens, windows.tokens[30:50])
    whole = read_windows(tmp_path / "w.parquet", tokens=False)
    assert whole.tokens.shape == (100, 0) and np.array_equal(whole.splits, windows.splits)
    assert list(whole.docs) == list(windows.docs)
    assert np.array_equal(whole.pattern_sample, windows.pattern_sample)
    codes = whole.doc_codes
    assert all(
        (codes[i] == codes[j]) == (whole.docs[i] == whole.docs[j])
        for i in range(9)
        for j in range(99)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": 0}, "sampling.windows: 0 is too small"),
        ({"window_len": 1}, "sampling.window_len: 1 is too small"),
        ({"pattern_windows": -1}, "sampling.pattern_windows: -1"),
        ({"window_len": 65, "n_ctx": 64}, "65 is longer than the model's context of 64"),
        ({"window_len": 200}, "200 is longer than every document .the longest has 100 tokens"),
        ({"split": {"train": 1.0}}, "must give a share to train, validation, test"),
        (
            {"documents": corpus(2)},
            r"2 of 2 documents leave a split without documents \(train \d, val",
        ),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(UserError, match=message):
        sample(**changes)


def test_stored_documents_are_looked_up_as_needed(tmp_path):
    table = pd.DataFrame(corpus(), columns=["doc", "text"])
    table.to_parquet(tmp_path / "d.parquet", row_group_size=7)
    stored = StoredDocuments(tmp_path / "d.parquet")
    assert len(stored) == 60 and list(stored) == corpus()
    assert np.array_equal(sample(stored).tokens, sample().tokens)
    with pytest.raises(UserError, match="does not exist"):
        StoredDocuments(tmp_path / "gone.parquet")


def test_no_documents():
    with pytest.raises(UserError, match="the corpus is empty"):
        sample_windows([], Characters(), windows=1, window_len=2, split=SHARES)


def write_sources(folder):
    (folder / "a.txt").write_text("one\r\ntwo\n---\nthree\n---\n  \n")
    rows = [{"text": "four", "n": 1}, {"text": "  "}, {"text": "five"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "b.jsonl").write_text(lines + "\n")
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    pd.DataFrame({"text": ["six", None, "seven"]}).to_parquet(folder / "d.parquet")


def test_text_files_of_every_kind(tmp_path):
    write_sources(tmp_path)
    settings = {"kind": "text", "split_on": "---\n"}
    found = list(read_documents("mine", settings, [f"{tmp_path}/*", f"{tmp_path}/a.txt"]))
    assert [d.text for d in found] == [
        "one\ntwo\n",
        "three\n",
        *["four", "five"] * 2,
        "six",
        "seven",
    ]
    assert len({d.doc_id for d in found}) == len(found)
    whole = list(read_documents("mine", {"kind": "text"}, [tmp_path / "a.txt"]))
    assert len(whole) == 1 and whole[0].text.count("---") == 2


def test_prepare_documents_limits_and_writes(tmp_path):
    write_sources(tmp_path)
    out = tmp_path / "out/documents.parquet"
    settings = {"kind": "text", "documents": 3}
    assert prepare_documents(out, source="mine", settings=settings, files=[f"{tmp_path}/*.*"]) == 3
    assert list(read_table(out)["text"])[1:] == ["four", "five"]
    assert read_provenance(out)["source"] == "mine"
    settings = {"kind": "synthetic", "style": "wiki", "documents": 4}
    assert prepare_documents(out, source="wiki", settings=settings, seed=3) == 4
    assert read_table(out)["doc"].is_unique


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"text", r"x\.csv is of no known kind; use \.txt"),
        ("x.txt", b"\xff\xfe", r"x\.txt is not UTF-8"),
        ("x.txt", b" \n", "the corpus is empty"),
        ("x.jsonl", b'{"text": "a"}\n{"tex', r"x\.jsonl, after line 1: not JSON Lines"),
        ("x.jsonl", b'{"body": "a"}\n', r"line 1 holds no text under 'text' \(it has body\)"),
        ("x.jsonl.zst", b"not zstandard", r"x\.jsonl\.zst is not valid zstandard"),
        ("x.parquet", b"PAR1....", r"x\.parquet is not a valid Parquet file"),
        ("y.txt", b"", r"x\*\.\* matches no file"),
    ],
)
def test_wrong_files_leave_nothing_behind(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    out = tmp_path / "out/documents.parquet"
    with pytest.raises(UserError, match=message):
        prepare_documents(out, source="s", settings={"kind": "text"}, files=[f"{tmp_path}/x*.*"])
    assert not any((tmp_path / "out").glob("*"))
