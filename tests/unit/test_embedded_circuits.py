"""The circuits of the embedded model, found by the rules' own scripts with the default configuration.

Found on some prompts, tested on prompts with other words; facts that a retrained model has to keep.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mechatlas.config import complete_config

REPOSITORY = Path(__file__).parents[2]
MODEL = str(REPOSITORY / "resources" / "models" / "demo-4l")
TABLES = ("effects", "pruning", "curve", "stability", "completeness", "minimality", "random")


def script(name: str):
    folder = str(REPOSITORY / "workflow" / "scripts")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def config():
    given = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text())
    return complete_config(given, REPOSITORY, REPOSITORY)


@pytest.mark.parametrize("task", ["numerals", "months"])
def test_circuits_are_faithful_on_held_out_prompts_and_beat_random_ones(task, config, tmp_path):
    plain = {"model": MODEL, "name": "demo-4l", "device": "cpu", "dtype": "float32"}
    prompts, audit = str(tmp_path / "prompts.jsonl"), str(tmp_path / "audit.json")
    settings = {k: v for k, v in config["tasks"][task].items() if k not in ("models", "keep")}
    script("prepare_prompts").main(prompts, audit, task=task, settings=settings, seed=0, **plain)
    files = {name: str(tmp_path / "nodes" / f"{name}.parquet") for name in TABLES}
    circuit = tmp_path / "nodes" / "circuit.json"
    script("prune_nodes").main(
        prompts, audit, nodes=config["circuits"]["nodes"], steps=str(tmp_path / "steps"),
        options={"seed": 0, "confidence": 0.95, "bootstrap": 200},
        circuit=str(circuit), least_harmful=str(tmp_path / "nodes" / "least_harmful.json"),
        **plain, **files,
    )  # fmt: skip
    found = json.loads(circuit.read_text())
    assert 0 < len(found["heads"]) + len(found["mlps"]) <= 14
    assert found["faithfulness"]["held_out"]["percent"] >= 80
    control = found["controls"]["size"]
    assert control["count"] == 100 and control["max"] < control["percent"]
    random = pd.read_parquet(files["random"]).query("profile == 'size'")["percent"]
    assert len(random) == 100 and random.max() == pytest.approx(control["max"])
    # The node whose loss hurts the full model most is in the circuit.
    effects = pd.read_parquet(files["effects"]).query("base == 'full'")
    worst = effects.loc[effects["drop"].idxmax()]
    inside = found["mlps"] if worst["head"] < 0 else found["heads"]
    place = worst["layer"] if worst["head"] < 0 else [worst["layer"], worst["head"]]
    assert place in inside and worst["low"] > 0
