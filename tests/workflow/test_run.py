"""Real runs of the whole workflow, small: a GPT-2 and a Llama type, killed and not killed, byte for byte."""

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

from conftest import REPOSITORY, snakemake

pytestmark = pytest.mark.slow

SMALL = {
    "sources": {
        "synthetic-qa": None,
        "synthetic-wiki": {"kind": "synthetic", "style": "wiki", "documents": 80},
    },
    # The other model is random, so it can do no task.
    "tasks": {
        "ioi": None,
        "months": None,
        "induction": None,
        "numerals": {"models": ["demo-2l"], "prompts": 8, "held_out": 8},
    },
    "circuits": {"nodes": {"random_circuits": 10}, "edges": {"acdc_orders": 1}},
    "sampling": {"windows": 90, "window_len": 48, "pattern_windows": 8},
    "capture": {"chunk_windows": 50, "topk": 40},
    "dictionaries": {
        "transcoder": {
            **{"kind": "trained", "models": ["mine"], "reads": "mlp_in", "writes": "mlp_out"},
            **{"latents": 48, "k": 4, "tokens": 2048, "batch_tokens": 128, "dead_tokens": 500},
        }
    },
    "explain": {"programs": {"steps": 5, "rule_windows": 3}},
    "score": {
        "bootstrap": 50,
        "min_events": 5,
        "causal_windows": 4,
        "random_orders": 1,
        "replacement_shares": [0.5, 1.0],
    },
}


def llama(folder: Path) -> Path:
    """A tiny random Llama-type model with grouped key/value heads and the tokenizer of the embedded models."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(REPOSITORY / "resources" / "models" / "demo-2l" / name, folder)
    return folder


def prepare(folder: Path) -> list[str]:
    """Make a working directory and return Snakemake's arguments to run in it."""
    folder.mkdir(parents=True)
    models = {
        "demo-4l": None,
        "demo-2l": {"path": str(REPOSITORY / "resources" / "models" / "demo-2l")},
        "mine": {"path": "models/mine"},
    }
    llama(folder / "models" / "mine")
    (folder / "small.yaml").write_text(yaml.safe_dump({**SMALL, "models": models}))
    return ["-s", str(REPOSITORY / "Snakefile"), "--configfile", "small.yaml", "--cores", "2"]


def manifest(folder: Path) -> str:
    return (folder / "results" / "manifest.sha256").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished uninterrupted run."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    snakemake(folder, *prepare(folder), timeout=600)
    return folder


def test_every_head_of_both_architectures_is_explained_and_scored(run: Path) -> None:
    for model, heads in (("demo-2l", 16), ("mine", 8)):
        folder = run / "results" / model / "synthetic-wiki" / "heads"
        lines = [json.loads(line) for line in (folder / "explanations.jsonl").open()]
        assert len({r["unit"] for r in lines if r["control"] == "none"}) == heads
        assert all(r["text"] for r in lines)
        scores = pd.read_parquet(folder / "scores.parquet")
        own = scores[(scores["control"] == "none") & (scores["metric"] == "iou")]
        assert own["value"].between(0, 1).all() and len(own) == heads
        assert (own["low"] <= own["value"]).all() and (own["value"] <= own["high"]).all()
        assert set(scores["control"]) == {
            "none",
            "swapped",
            "shuffled",
            "mean_pattern",
            "random_weights",
        }
        unscored = scores[scores["status"] == "unscored"]
        assert unscored["value"].isna().all() and unscored["reason"].str.len().gt(0).all()


def test_dictionaries_are_trained_and_measured(run: Path) -> None:
    folder = run / "results" / "mine" / "synthetic-wiki" / "dictionaries"
    table = pd.read_parquet(folder / "transcoder" / "evaluation.parquet")
    value = table.set_index(["layer", "metric"])["value"]
    assert {layer for layer, _ in value.index} == {0, 1}
    assert value[0, "l0"] <= 4 and value[0, "fvu"] > 0
    course = pd.read_parquet(folder / "transcoder" / "training.parquet")
    assert len(course) == 2 * 16
    loss = course.groupby("step")["loss"].mean()
    assert loss.iloc[-4:].mean() < loss.iloc[:4].mean()
    assert len(pd.read_parquet(folder / "frontier.parquet")) == 2
    assert (folder / "frontier.svg").read_text().startswith("<svg")
    assert not (folder / "transcoder" / "checkpoints").exists()


def test_no_document_is_in_two_splits_and_test_documents_are_scored(run: Path) -> None:
    folder = run / "results" / "demo-2l" / "synthetic-wiki"
    windows = pd.read_parquet(folder / "windows.parquet")
    assert (windows.groupby("doc")["split"].nunique() == 1).all()
    scored = set(pd.read_parquet(folder / "heads" / "document_scores.parquet")["doc"])
    assert scored <= set(windows.loc[windows["split"] == "test", "doc"])


def test_manifest_covers_and_verifies_the_results(run: Path) -> None:
    checked = subprocess.run(
        ["sha256sum", "-c", "--quiet", "results/manifest.sha256"], cwd=run, capture_output=True
    )
    assert checked.returncode == 0, checked.stdout
    listed = {line.split("  ", 1)[1] for line in manifest(run).splitlines()}
    on_disk = {
        path.relative_to(run).as_posix()
        for path in (run / "results").rglob("*")
        if path.is_file() and not {"benchmarks", "steps", ".seals"} & set(path.parts)
    }
    missing = on_disk - listed - {"results/manifest.sha256"}
    assert not {path for path in missing if ".snakemake_timestamp" not in path}


def test_pages_load_nothing_from_elsewhere(run: Path) -> None:
    report = run / "results" / "report"
    pages = list(report.rglob("*.html"))
    names = {page.relative_to(report).as_posix() for page in pages}
    heads = {f"{model}/synthetic-wiki/heads.html" for model in ("demo-2l", "mine")}
    assert heads | {"index.html", "mine/synthetic-wiki/latents/transcoder.html"} <= names
    for page in pages:
        assert not re.findall(r'(?:src|href)="(?:https?:)?//[^"]*"', page.read_text()), page


def test_second_run_has_nothing_to_do(run: Path) -> None:
    output = snakemake(
        run, "-s", str(REPOSITORY / "Snakefile"), "--configfile", "small.yaml", "--cores", "2"
    )
    assert "Nothing to be done" in output


def test_logs_show_progress_in_plain_lines(run: Path) -> None:
    text = (run / "logs" / "explain_heads" / "demo-2l" / "synthetic-wiki.log").read_text()
    assert re.search(r"explain layers: 2/2 layer, [\d.]+ layer/s", text)
    assert "\r" not in text


def test_killed_at_three_points_it_ends_with_the_same_bytes(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    arguments = prepare(folder)
    for seconds in (6, 11, 17):
        process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        snakemake(folder, *arguments[:4], "--unlock")
    snakemake(folder, *arguments, timeout=600)
    assert _shared(folder) == _shared(run)
    assert not [p for p in (folder / "results").rglob(".tmp-*") if _old(p)]


def _shared(folder: Path) -> dict[str, str]:
    """Checksums by file, taken from the files themselves."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in (line.split("  ", 1)[1] for line in manifest(folder).splitlines())
    }


def _old(path: Path) -> bool:
    return path.exists() and time.time() - path.stat().st_mtime > 60


@pytest.mark.parametrize(
    ("files", "sampling", "says"),
    [
        ({"a.txt": ""}, {}, "empty"),
        ({"a.txt": "word " * 500}, {}, "documents"),
        ({f"{i}.txt": "too short" for i in range(9)}, {}, "longest"),
    ],
)
def test_bad_corpora_end_with_one_clear_line(
    files: dict[str, str], sampling: dict, says: str, tmp_path: Path
) -> None:
    arguments = prepare(tmp_path / "w")
    for name, text in files.items():
        (tmp_path / "w" / name).write_text(text)
    config = yaml.safe_load((tmp_path / "w" / "small.yaml").read_text())
    config["sources"] = {
        "synthetic-wiki": None,
        "synthetic-qa": None,
        "notes": {"kind": "text", "files": ["*.txt"]},
    }
    (tmp_path / "w" / "small.yaml").write_text(yaml.safe_dump(config))
    output = snakemake(
        tmp_path / "w", *arguments, "results/mine/notes/windows.parquet", check=False
    )
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert errors and says in errors[0], output[-2000:]
    assert not (tmp_path / "w" / "results" / "mine" / "notes" / "windows.parquet").exists()


def test_truncated_weights_end_with_one_clear_line(run: Path, tmp_path: Path) -> None:
    arguments = prepare(tmp_path / "w")
    weights = tmp_path / "w" / "models" / "mine" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4000])
    output = snakemake(
        tmp_path / "w", *arguments, "results/mine/synthetic-wiki/capture/0000", check=False
    )
    assert "model.safetensors" in output
    assert "Traceback" not in output
