"""Real runs with a language model among the explainers: a hostile corpus, killed and not killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from asked_world import HOSTILE, reply
from llm_server import Call, LlmServer, Reply

from conftest import REPOSITORY, snakemake

pytestmark = pytest.mark.slow

EXPLANATIONS = "results/demo-2l/hostile/heads/explanations/openai.jsonl"
SMALL = {
    "tasks": dict.fromkeys(("ioi", "numerals", "months", "induction")),
    "models": {"demo-4l": None, "demo-2l": {"path": str(REPOSITORY / "resources/models/demo-2l")}},
    "sources": {
        "synthetic-qa": None,
        "synthetic-wiki": None,
        "hostile": {"kind": "text", "files": ["texts.jsonl"]},
    },
    "sampling": {"windows": 90, "window_len": 48, "pattern_windows": 8},
    "capture": {"topk": 40},
    "score": {
        **{"bootstrap": 50, "min_events": 5, "causal_windows": 4, "random_orders": 1},
        **{"replacement_shares": [0.5, 1.0], "controls": ["swapped", "mean_pattern"]},
    },
}
PROGRAMS = ([{"share": 0.4, "form": "previous(offset=1)"}], [], None, [{"share": 1, "form": "?"}])


def explainer(call: Call) -> str | Reply:
    """Answer each head in another way, the same for the same question."""
    digest = int(hashlib.sha256(call.body["messages"][1]["content"].encode()).hexdigest(), 16)
    if digest % 8 == 0:
        return Reply("", refusal="no")
    if digest % 8 == 1:
        return "I would say"
    text = f"Attends to </script><script>alert({digest % 7})</script> \u202e|`{HOSTILE[digest % 6]}"
    return reply(text, PROGRAMS[digest % 4])


def prepare(folder: Path, server: LlmServer, **llm: object) -> list[str]:
    """Make a working directory and return Snakemake's arguments to run in it."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        f"The {w} of Ada and the {w} of Ida met in May ." for w in ("cat", "dog", "mill", "sea")
    ]
    if not (folder / "texts.jsonl").exists():
        with (folder / "texts.jsonl").open("w", encoding="utf-8") as handle:
            for number in range(60):
                places = ((number * 7 + 3 * i + i * i) % 10 for i in range(60))
                parts = [(words + list(HOSTILE))[place] for place in places]
                handle.write(json.dumps({"text": f"Document {number}. " + " ".join(parts)}) + "\n")
    openai = {"model": "scripted", "base_url": server.base_url, "api_key_env": None}
    explain = {"explainers": ["programs", "openai"], "openai": {**openai, "provider": "test"}}
    explain["programs"] = {"steps": 5, "rule_windows": 3}
    config = {**SMALL, "explain": explain, "llm": llm}
    (folder / "asked.yaml").write_text(yaml.safe_dump(config))
    return ["-s", str(REPOSITORY / "Snakefile"), "--cores", "2", "--configfile", "asked.yaml"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked") / "w"
    with LlmServer(explainer) as server:
        snakemake(folder, *prepare(folder, server), timeout=600)
        assert not server.repeated()
    return folder


def test_every_head_is_explained_by_both_or_says_why_not(run: Path) -> None:
    heads = run / "results/demo-2l/hostile/heads"
    records = [json.loads(line) for line in (heads / "explanations.jsonl").open(encoding="utf-8")]
    openai = [r for r in records if r["explainer"] == "openai"]
    assert len(records) == 32 and len(openai) == 16
    explained = [r for r in openai if r["status"] == "explained"]
    assert 0 < len(explained) < 16 and any(r["program"] for r in explained)
    for record in openai:
        assert bool(record["text"]) != bool(record["reason"])
        assert record["text"].isprintable() and len(record["text"]) <= 400
    scores = pd.read_parquet(heads / "scores.parquet")
    iou = scores.query("metric == 'iou' and control == 'none'").set_index(["explainer", "unit"])
    for record in records:
        row = iou.loc[(record["explainer"], record["unit"])]
        scored = record["program"] is not None
        assert (row["status"] == "scored") == scored
        assert scored == bool(0 <= row["value"] <= 1)
        if not scored:
            assert row["reason"] and pd.isna(row["value"])
    curve = pd.read_parquet(heads / "replacement.parquet")
    assert "programs" in set(curve["explainer"])
    headline = json.loads((heads / "headline.json").read_text(encoding="utf-8"))
    assert headline["openai"]["explanations"]["explained"] == len(explained)
    assert headline["openai"]["explanations"]["usage"]["requests"] >= 16


def test_pages_hold_what_the_corpus_and_the_model_wrote_as_text_only(run: Path) -> None:
    page = (run / "results/report/demo-2l/hostile/heads.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1 and "&lt;/script&gt;" in page
    assert not set(page) & set("\u202e\u200b\u200d\u2028\x00\x1b\x07")
    report = (run / "results/demo-2l/hostile/heads/report.md").read_text(encoding="utf-8")
    assert not set(report) & set("\u202e\u200b\u200d\u2028\x00\x1b\x07")
    prose = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", report)
    assert "<script>" not in prose.replace("\\<", "")


def test_killed_while_asking_it_asks_nothing_twice_and_ends_with_the_same_bytes(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    shutil.copytree(run, folder)
    for path in (folder / EXPLANATIONS, *(folder / "resources").rglob("responses.sqlite*")):
        path.unlink()
    with LlmServer(explainer, delay=0.3) as server:
        arguments = prepare(folder, server, concurrency=2)
        command = [sys.executable, "-m", "snakemake", EXPLANATIONS, *arguments]
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while len(server.answered()) < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        before = len(server.answered())
        assert 5 <= before < 16 and not (folder / EXPLANATIONS).exists()
        snakemake(folder, *arguments[:2], "--unlock")
        snakemake(folder, EXPLANATIONS, *arguments)
        # What was under way when the process died had not been answered to anyone.
        lost = server.repeated()
        assert len(lost) <= 2 and not [c for c in lost if c.attempt > 1]
    assert (folder / EXPLANATIONS).read_bytes() == (run / EXPLANATIONS).read_bytes()
