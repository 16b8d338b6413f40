"""WikiText: articles put together from lines, the tokenisation undone, the download checked against a server."""

from __future__ import annotations

import itertools
import logging
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hub_server import Hub, serving

from mechatlas.corpus.detokenise import detokenise
from mechatlas.corpus.documents import prepare_documents, read_documents
from mechatlas.corpus.synthetic import generate_documents
from mechatlas.io import UserError, read_provenance, read_table

LINES = [
    "",
    " = Copper Hill ( village ) = ",
    "",
    ' Copper Hill is a village , known for its " red " clay . It had 1 @,@ 204 people in 2011 . ',
    " A second paragraph . ",
    " = a + b = c = ",
    " It ends . ",
    "",
    " = = History = = ",
    "",
    " = = = Early @-@ modern period = = = ",
    "",
    " The lord 's hall burned . ",
    "",
    " = Untold = ",
    "",
    " = 2011 – 12 season = ",
    "",
    " = = Matches = = ",
    "",
    " They won 3 – 1 . ",
    "",
]
ARTICLES = {
    "Copper Hill (village)#0": (
        "= Copper Hill (village) =\n\n"
        'Copper Hill is a village, known for its "red" clay. It had 1,204 people in 2011.\n\n'
        "A second paragraph.\n\n= a + b = c =\n\nIt ends.\n\n== History ==\n\n=== Early-modern period ===\n\n"
        "The lord's hall burned.\n"
    ),
    "2011–12 season#2": "= 2011–12 season =\n\n== Matches ==\n\nThey won 3–1.\n",
}


def articles(*paths: Path) -> dict[str, str]:
    found = read_documents("wiki", {"kind": "wikitext"}, list(map(str, paths)))
    return {document.doc_id: document.text for document in found}


def write_rows(path: Path, lines: list[str]) -> Path:
    """One row per line with its end, blank lines empty, as on the hub."""
    pd.DataFrame({"text": [f"{line}\n" if line else "" for line in lines]}).to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["wiki.txt", "wiki.train.raw", "wiki.train.tokens"])
def test_articles_of_text_files(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("".join(f"{line} \n" for line in LINES), encoding="utf-8")
    assert articles(tmp_path / name) == ARTICLES


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 9, 13, 20])
def test_parquet_files_are_one_stream_wherever_they_are_cut(cut: int, tmp_path: Path) -> None:
    write_rows(tmp_path / "train-00000-of-00002.parquet", LINES[:cut])
    write_rows(tmp_path / "train-00001-of-00002.parquet", LINES[cut:])
    assert articles(tmp_path / "train-*.parquet") == ARTICLES


def test_rows_may_hold_several_lines(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["\n".join(LINES)]}).to_parquet(tmp_path / "a.parquet")
    assert articles(tmp_path / "a.parquet") == ARTICLES


def test_what_stands_before_the_first_title_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    write_rows(tmp_path / "a.parquet", LINES[8:])
    assert list(articles(tmp_path / "a.parquet")) == ["2011–12 season#1"]
    assert "3 lines before the first title" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"Plain prose.\n\nMore of it.\n", "holds no article title"),
        ("a.txt", b" = A = \n \xff\n", "is not UTF-8"),
        ("a.jsonl", b"{}", "is no WikiText file; use .parquet, .txt"),
        ("a.parquet", b"PAR1", "is not a valid Parquet file"),
    ],
)
def test_other_files_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        articles(tmp_path / name)


def test_reading_is_lazy_and_its_memory_bounded(tmp_path: Path) -> None:
    body = " ".join(f"word{i} ," for i in range(2500))
    with open(tmp_path / "big.txt", "w", encoding="utf-8") as handle:
        for number in range(400):
            handle.write(f" \n = Title {number} = \n \n {body} \n")
    assert (tmp_path / "big.txt").stat().st_size > 8e6
    tracemalloc.start()
    settings = {"kind": "wikitext"}
    try:
        found = read_documents("wiki", settings, [tmp_path / "big.txt"])
        count = sum(1 for _ in itertools.islice(found, 100))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 100 and peak < 2e6


def test_documents_limit_ids_and_columns(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", LINES * 3)
    out = tmp_path / "documents.parquet"
    settings = {"kind": "wikitext", "documents": 5}
    assert (
        prepare_documents(out, source="w", settings=settings, files=[tmp_path / "a.parquet"]) == 5
    )
    table = read_table(out)
    assert list(table["doc"])[1:4] == ["2011–12 season#2", "Copper Hill (village)#3", "2011–12 season#5"]  # fmt: skip
    assert table["doc"].is_unique


# --- spacing --------------------------------------------------------------------------------------

SENTENCES = [
    'He said "no", then "yes" (twice), and left.',
    "The players' names weren't on the teacher's list; they're lost, aren't they?",
    "In the '70s, rock 'n' roll cost $2.50 (US$3,000 today), or £4: a well-known price!",
    "It is 5–6 km long at 21:30, 150 km/h and/or more; 12% of [some] 1,234,567.89 units.",
    "O'Neil moved to L'Aquila – not Rome – in 2011–12. I'd say so; you'll see: we've 'em.",
    "At 30 °C (86 °F), 45° N, the R&B band ranked #1 with… nothing.",
    "She called it 'odd' and 'very odd indeed', as if Linnaeus' idea were new.",
    '"Quote at the start", and one at the end: "the end."',
    "“Curly” quotes ‘stay’ curly, don’t they?",
    "A $10 million grant. Wait... what?!",
]


def tokenise(text: str) -> str:
    """Put spaces as the corpus has them: a plain re-telling of the tokeniser's rules, for one line."""
    text = re.sub(r"(?<=\w)-(?=\w)", " @-@ ", text)
    text = re.sub(r"(?<=\d)([,.])(?=\d)", r" @\1@ ", text)
    text = re.sub(r"([^\w\s@'’.,\-&]|(?<![@\d]),(?!@)|,(?=\s)|(?<=\s)\.\.\.)", r" \1 ", text)
    text = re.sub(r"(\.\.\.|\.)(?=\s|$|\")", r" \1 ", text)
    text = re.sub(r"(?<=[^\W\d])'(?=[^\W\d])", " \0", text)
    text = text.replace("'", " ' ").replace("\0", "'")
    text = re.sub(r"’", " ’ ", text)
    text = re.sub(r"(?<=\w)&(?=\w)", " & ", text)
    return " ".join(text.split())


@pytest.mark.parametrize("sentence", SENTENCES)
def test_spacing_is_restored(sentence: str) -> None:
    spaced = tokenise(sentence)
    assert spaced != sentence
    assert detokenise(f" {spaced} ") == sentence


def test_generated_prose_survives_the_round_trip() -> None:
    lines = [
        " ".join(line.split())
        for document in generate_documents("wiki", 40, 0)
        for line in document.text.split("\n")
        if line.strip() and not line.startswith("=")
    ]
    wrong = [line for line in lines if detokenise(tokenise(line)) != line]
    assert len(lines) > 200 and len(wrong) <= 0.01 * len(lines), wrong[:5]


def test_unpaired_marks_and_lone_tokens() -> None:
    assert detokenise('An " open quote') == 'An "open quote'
    assert detokenise('end of it . "') == 'end of it."'
    assert detokenise("") == "" and detokenise("'") == "'" and detokenise(",") == ","
    assert detokenise("the <unk> 's <unk> / cm3 , ( <unk> )") == "the <unk>'s <unk>/cm3, (<unk>)"
    assert detokenise("a / / b") == "a / / b"
    assert detokenise("from @-@ and 5 @-@") == "from-and 5-"


# --- download -------------------------------------------------------------------------------------

REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
CONFIG = "wikitext-2-raw-v1"
README = "---\nconfigs:\n" + f"- config_name: {CONFIG}\n  data_files:\n" + "".join(
    f"  - split: {split}\n    path: {CONFIG}/{split}-*\n" for split in ("test", "validation")
) + "---\n"  # fmt: skip
FETCH = (
    "import sys; from mechatlas.corpus.fetch import fetch_wikitext\n"
    "fetch_wikitext('out/w.parquet', 'out/w.sha256', source='wiki', config=sys.argv[1], split='test',"
    " revision=sys.argv[2])"
)


def fetch(place: Path, address: str, config: str = CONFIG, revision: str = REVISION, **more: str):
    scripts = Path(__file__).resolve().parents[2] / "workflow" / "scripts"
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(place / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(scripts),
        **more,
    }
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment = {k: v for k, v in environment.items() if k != name or k in more}
    return subprocess.run(
        [sys.executable, "-c", FETCH, config, revision],
        cwd=place, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    folder = tmp_path_factory.mktemp("hub")
    parts = {
        "test-00000-of-00002": LINES[:5],
        "test-00001-of-00002": LINES[5:],
        "validation-00000-of-00001": LINES,
    }
    files = {"README.md": README.encode()}
    for name, lines in parts.items():
        content = write_rows(folder / f"{name}.parquet", lines).read_bytes()
        files[f"{CONFIG}/{name}.parquet"] = content
    return Hub("Salesforce/wikitext", REVISION, files)


def test_download_at_a_revision_with_its_checksum(hub: Hub, tmp_path: Path) -> None:
    with serving(hub) as address:
        done = fetch(tmp_path, address)
    assert done.returncode == 0, done.stderr
    assert any(f"/resolve/{REVISION}/{CONFIG}/test-00001" in request for request in hub.requests)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["w.parquet", "w.sha256"]
    checked = subprocess.run(["sha256sum", "-c", "out/w.sha256"], cwd=tmp_path, capture_output=True)
    assert checked.returncode == 0
    assert pq.read_schema(tmp_path / "out/w.parquet").names == ["text"]
    assert read_provenance(tmp_path / "out/w.parquet")["revision"] == REVISION
    assert articles(tmp_path / "out/w.parquet") == ARTICLES


@pytest.mark.parametrize(
    "change",
    [{"config": "wikitext-9"}, {"revision": "0" * 40}, {"HF_HUB_OFFLINE": "1"}],
    ids=["no such corpus", "no such revision", "offline"],
)
def test_failed_download_is_one_clear_line(change: dict, hub: Hub, tmp_path: Path) -> None:
    with serving(hub) as address:
        done = fetch(tmp_path, address, **change)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "UserError: sources.wiki: Salesforce/wikitext" in last and "sources.wiki.files" in last
    assert not list((tmp_path / "out").iterdir())
