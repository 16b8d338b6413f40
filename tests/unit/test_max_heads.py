"""Heads beyond explain.max_heads appear nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from asked_world import ask, capture, reply, script
from llm_server import LlmServer

from mechatlas.io import read_jsonl

PROGRAMS = {
    **{"max_parts": 1, "parsimony": 0.02, "rule_windows": 3, "steps": 2, "learning_rate": 0.3},
    **{"penalty": 1e-4, "factors": 2, "batch_windows": 8},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return capture(tmp_path_factory.mktemp("world"), hostile=False)


def explain(world: dict[str, Any], folder: Path, max_heads: int) -> str:
    folder.mkdir(exist_ok=True)
    path = str(folder / "programs.jsonl")
    script("explain_heads").main(
        world["windows"], world["chunks"], world["chunks"], world["model"], None, max_heads,
        PROGRAMS, ["shuffled"], 0, "cpu", 0, path,
    )  # fmt: skip
    return path


def test_only_the_chosen_heads_are_explained_and_scored(
    world: dict[str, Any], tmp_path: Path
) -> None:
    train = pd.read_parquet(world["head_stats"]).query("split == 'train'")
    rows = train.nlargest(3, "write_norm")[["layer", "head"]]
    largest = set(rows.itertuples(index=False, name=None))
    programs = explain(world, tmp_path, 3)
    records = read_jsonl(programs)
    assert {(r["layer"], r["head"]) for r in records} == largest and len(records) == 6
    with LlmServer(lambda call: reply(program=[])) as server:
        asked = ask(world, server, tmp_path, max_heads=3)
    assert {(r["layer"], r["head"]) for r in asked} == largest
    files = [programs, str(tmp_path / "openai.jsonl")]
    places = {name: world[name] for name in ("windows", "chunks", "model")}
    made = {
        name: str(tmp_path / f"{name}.parquet")
        for name in ("documents", "events", "losses", "curve")
    }
    controls = ["swapped", "shuffled", "mean_pattern"]
    script("score_heads").main(
        **places, explanations=files, events=world["events"], bos=None, controls=controls,
        active_attention=0.1, seed=0, document_scores=made["documents"], event_scores=made["events"],
    )  # fmt: skip
    script("replace_heads").main(
        **places, explanations=files, bos=None, controls=controls, causal_windows=2, seed=0,
        shares=[0.1, 0.5], random_orders=1, batch_windows=8, device="cpu", dtype="float32", gpu=0,
        losses=made["losses"], curve_losses=made["curve"],
    )  # fmt: skip
    for name in ("documents", "events", "losses"):
        table = pd.read_parquet(made[name])
        table = table[table["layer"] >= 0]
        found = set(table[["layer", "head"]].itertuples(index=False, name=None))
        assert found == largest, name
        assert set(table["explainer"]) == {"programs", "openai", ""}, name
    # A share is one of all heads of the model, and half of them have no program.
    curve = pd.read_parquet(made["curve"])
    assert set(curve["share"]) == {0.0, 0.1} and set(curve["heads"]) == {0, 2}


def test_a_head_is_explained_by_the_same_forms_whatever_the_others(
    world: dict[str, Any], tmp_path: Path
) -> None:
    few = {r["unit"]: r for r in read_jsonl(explain(world, tmp_path / "few", 3))}
    every = {r["unit"]: r for r in read_jsonl(explain(world, tmp_path / "all", 200))}
    assert len(few) == 3 and len(every) == 16
    for unit, record in few.items():
        tried = [[c["forms"] for c in r["candidates"]] for r in (record, every[unit])]
        assert tried[0] == tried[1]
