"""A real run on dictionaries from a folder and on features of a transcoder, with two explainers."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from llm_server import LlmServer

from conftest import REPOSITORY, snakemake
from mechatlas.dictionaries.activations import ReLU
from mechatlas.dictionaries.autoencoder import SparseAutoencoder
from mechatlas.dictionaries.collection import write_collection

LATENTS = 48
SMALL = {
    "tasks": {
        **dict.fromkeys(("ioi", "months", "induction")),
        "numerals": {"models": ["demo-2l"], "prompts": 4, "held_out": 4},
    },
    "models": {"demo-4l": None, "demo-2l": {"path": str(REPOSITORY / "resources/models/demo-2l")}},
    "sources": {
        "synthetic-qa": None,
        "synthetic-wiki": {"kind": "synthetic", "style": "wiki", "documents": 60},
    },
    "sampling": {"windows": 90, "window_len": 32, "pattern_windows": 8},
    "transcoders": {
        "clt": {
            **{"models": ["demo-2l"], "features": 64, "k": 4, "tokens": 8192},
            "batch_tokens": 128,
        }
    },
    "graphs": {
        **dict.fromkeys(("ioi", "induction")),
        "numerals": {"models": ["demo-2l"], "task": "numerals"},
    },
    "graph_sets": {"ioi": None},
    "dictionaries": {
        "resid": None,
        "folder": {
            **{"kind": "folder", "format": "mechatlas", "folder": "mine"},
            "points": ["resid_post"],
        },
        "features": {"kind": "transcoder", "transcoder": "clt"},
    },
    "latents": {"max_latents": 2, "causal_windows": 4, "steering_windows": 1, "topk": 20},
    "score": {"bootstrap": 50, "min_events": 5, "causal_windows": 4},
}
FOLDERS = "results/demo-2l/synthetic-wiki"


def write_dictionaries(folder: Path) -> None:
    """Write random dictionaries of both layers whose latents are active on a few tokens."""
    import torch

    dictionaries = {}
    for layer in (0, 1):
        draw = torch.Generator().manual_seed(layer)
        encoder = torch.randn(LATENTS, 128, generator=draw) / 128**0.5
        parts = (encoder, torch.full((LATENTS,), -1.0), encoder.clone(), torch.zeros(128), ReLU())
        about = {"reads": "resid_post", "layer": layer}
        dictionaries[layer] = SparseAutoencoder(*parts, about=about)
    write_collection(folder, dictionaries, {})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlmServer]:
    folder = tmp_path_factory.mktemp("kinds") / "w"
    write_dictionaries(folder / "mine")
    program = [{"strength": 6, "conditions": 'class("comma or colon")'}]
    answer = json.dumps({"notes": "x", "text": "Active on <b>words</b>.", "program": program})
    with LlmServer(lambda call: answer) as server:
        openai = {"model": "scripted", "base_url": server.base_url, "api_key_env": None}
        explain = {"explainers": ["programs", "openai"], "openai": {**openai, "provider": "test"}}
        (folder / "kinds.yaml").write_text(yaml.safe_dump({**SMALL, "explain": explain}))
        arguments = ["-s", str(REPOSITORY / "Snakefile"), "--configfile", "kinds.yaml"]
        page = f"{FOLDERS}/transcoders/clt/graphs/numerals.html"
        snakemake(folder, "latents", page, *arguments, "--cores", "2", timeout=600)
    return folder, server


@pytest.mark.parametrize(
    ("dictionary", "unit"), [("folder", "L{}.resid_post.F"), ("features", "L{}.clt.F")]
)
def test_both_explainers_are_tested_on_latents_of_either_kind(
    run: tuple[Path, LlmServer], dictionary: str, unit: str
) -> None:
    folder = run[0] / FOLDERS / "latents" / dictionary
    lines = [json.loads(line) for line in (folder / "explanations.jsonl").open(encoding="utf-8")]
    own = [line for line in lines if line["control"] == "none"]
    for explainer in ("programs", "openai"):
        units = [line["unit"] for line in own if line["explainer"] == explainer]
        assert len(units) == 4 and all(
            sum(name.startswith(unit.format(layer)) for name in units) == 2 for layer in (0, 1)
        )
    asked = [line for line in own if line["explainer"] == "openai"]
    assert {line["text"] for line in asked} == {"Active on <b>words</b>."}
    scores = pd.read_parquet(folder / "scores.parquet")
    found = scores[(scores["control"] == "none") & (scores["metric"] == "correlation")]
    assert len(found) == 8 and (found["status"] == "scored").all()
    assert found["value"].between(-1, 1).all() and (found["low"] <= found["high"]).all()
    assert "random_direction" in set(scores["control"])
    # Taking a latent out changes the loss, whichever layers it writes to.
    losses = pd.read_parquet(folder / "causal_losses.parquet")
    sums = losses.groupby(["layer", "latent", "variant"])["loss"].sum().unstack()
    assert (sums["ablated"] - sums["model"]).abs().max() > 1e-4


def test_every_latent_is_asked_about_once(run: tuple[Path, LlmServer]) -> None:
    assert len(run[1].chats()) == 8 and not run[1].repeated()


def test_a_dictionary_from_a_folder_is_only_referred_to(run: tuple[Path, LlmServer]) -> None:
    weights = run[0] / FOLDERS / "dictionaries" / "folder" / "weights"
    assert [path.name for path in weights.glob("*.safetensors")] == []
    index = json.loads((weights / "index.json").read_text())
    assert index["layers"]["1"]["path"] == "mine/layer_1.safetensors"


def test_nodes_of_a_graph_carry_the_explanations_as_text(run: tuple[Path, LlmServer]) -> None:
    folder = run[0] / FOLDERS
    page = (folder / "transcoders/clt/graphs/numerals.html").read_text(encoding="utf-8")
    assert "<b>words" not in page
    public = json.loads((folder / "transcoders/clt/graphs/numerals.json").read_text())
    features = {
        (line["layer"], line["latent"])
        for line in map(
            json.loads, (folder / "latents/features/explanations.jsonl").open(encoding="utf-8")
        )
    }
    named = [node for node in public["nodes"] if node["feature_type"] == "cross layer transcoder"]
    for node in named:
        key = (int(node["layer"]), int(node["node_id"].split("_")[1]))
        assert bool(node["clerp"]) == (key in features)
