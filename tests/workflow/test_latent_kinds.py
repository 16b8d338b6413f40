"""A real run on dictionaries from a folder and on features of a transcoder, with two explainers and a judge."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from llm_server import Call, LlmServer
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from conftest import REPOSITORY, snakemake
from mechatlas.dictionaries.activations import ReLU
from mechatlas.dictionaries.autoencoder import SparseAutoencoder
from mechatlas.dictionaries.collection import write_collection
from mechatlas.score.judge.planted_latents import planted_latent_records

pytestmark = pytest.mark.slow

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
#: Two planted latents, and a few items of each kind.
JUDGE = {
    **{"scorers": ["detection", "firing", "simulation"], "planted": 2},
    **{"items": 20, "sequences": 3, "items_per_request": 100},
}
EXPLANATION = json.dumps(
    {
        **{"notes": "x", "text": "Active on <b>words</b>."},
        "program": [{"strength": 6, "conditions": 'class("comma or colon")'}],
    }
)


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


def grade(claim: str, *content: Any) -> int:
    """What the judge answers: 0 to 10 by nothing but what it is asked, so that a test knows it without the judge."""
    asked = json.dumps([claim, *content]).encode()
    return int.from_bytes(hashlib.sha256(asked).digest()[:4]) % 11


def asks_a_judge(call: Call) -> bool:
    return "Line 1 is a claim about a latent" in call.body["messages"][0]["content"]


def answer(call: Call) -> str:
    """Explain every latent alike, and judge by `grade`; control items get the answer that they ask for."""
    if not asks_a_judge(call):
        return EXPLANATION
    block = call.body["messages"][1]["content"]
    lines = re.fullmatch(r"BEGIN-DATA .*?\n(.*)\nEND-DATA .*", block, flags=re.DOTALL)[1]
    claim, *items = map(json.loads, lines.split("\n"))
    if len(items) == 1:  # the tokens of a simulation
        tokens = [token for token in items[0] if isinstance(token, str)]
        graded = iter([grade(claim["claim"], tokens, place) for place in range(len(tokens))])
        return json.dumps(
            {"values": [next(graded) if isinstance(e, str) else e["check"] for e in items[0]]}
        )
    found = [
        {"id": name, "value": content[0]["check"] if isinstance(content[0], dict) else grade(claim["claim"], *content)}
        for name, *content in items
    ]  # fmt: skip
    return json.dumps({"answers": found})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlmServer]:
    folder = tmp_path_factory.mktemp("kinds") / "w"
    write_dictionaries(folder / "mine")
    with LlmServer(answer) as server:
        scripted = {"model": "scripted", "base_url": server.base_url, "api_key_env": None}
        scripted["provider"] = "test"
        explain = {"explainers": ["programs", "openai"], "openai": scripted}
        config = {**SMALL, "explain": explain, "judge": {**JUDGE, **scripted}}
        (folder / "kinds.yaml").write_text(yaml.safe_dump(config))
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
    asked = [call for call in run[1].chats() if not asks_a_judge(call)]
    assert len(asked) == 8 and not run[1].repeated()


def measured(scorer: str, items: pd.DataFrame, claim: str) -> dict[str, float]:
    """What `grade` amounts to on the items of one latent, computed without the library."""
    pieces = items["pieces"].map(json.loads)
    if scorer == "simulation":
        graded = [
            grade(claim, [piece[0] for piece in tokens], place)
            for _, tokens in pieces.groupby(items["group"], sort=False)
            for place in range(len(tokens))
        ]
        return {"correlation": float(np.corrcoef(graded, items["strength"])[0, 1])}
    graded = np.array([grade(claim, *content) for content in pieces])
    if scorer == "detection":
        return {"auc": float(roc_auc_score(items["label"], graded))}
    given = {"y_true": items["label"], "y_pred": graded >= 5, "sample_weight": items["weight"]}
    return {"precision": float(precision_score(**given)), "recall": float(recall_score(**given))}


def claims(folder: Path) -> dict[tuple[str, str, str], str]:
    """Unit, explainer and control -> the text that is judged: its own, or that of the other latent of the layer."""
    lines = [json.loads(line) for line in (folder / "explanations.jsonl").open(encoding="utf-8")]
    own = [line for line in lines if line["control"] == "none"] + planted_latent_records(2)
    found = {}
    for one in own:
        found[one["unit"], one["explainer"], "none"] = one["text"]
        for other in own:
            alike = all(one[key] == other[key] for key in ("layer", "explainer"))
            if alike and one["text"] != other["text"]:
                found[one["unit"], one["explainer"], "swapped"] = other["text"]
    return found


@pytest.mark.parametrize("dictionary", ["folder", "features"])
def test_scores_of_the_judge_are_those_of_its_answers(
    run: tuple[Path, LlmServer], dictionary: str
) -> None:
    folder = run[0] / FOLDERS / "latents" / dictionary
    items = pd.read_parquet(folder / "judge" / "items.parquet")
    scores = pd.read_parquet(folder / "judge_scores.parquet").set_index(
        ["unit", "explainer", "control", "scorer", "metric"]
    )
    known = claims(folder)
    # The explainer says the same of all latents, so that no other text could take its place.
    judged = {key[:3] for key in scores.index}
    assert judged == set(known) and not [k for k in judged if k[1:] == ("openai", "swapped")]
    compared = 0
    for (unit, explainer, control), claim in known.items():
        for scorer in JUDGE["scorers"]:
            asked = items[(items["unit"] == unit) & (items["scorer"] == scorer)]
            if (asked["item"] == "").all():
                assert (asked["reason"] != "").all()
                continue
            for metric, value in measured(scorer, asked, claim).items():
                row = scores.loc[unit, explainer, control, scorer, metric]
                assert row["status"] == "scored" and row["value"] == pytest.approx(value, abs=1e-9)
                assert row["low"] <= value <= row["high"]
                if control == "swapped":
                    own = scores.loc[unit, explainer, "none", scorer, metric]["value"]
                    assert row["difference"] == pytest.approx(own - value, abs=1e-9)
                compared += 1
    assert compared >= 40
    assert scores["failure_rate"].max() == 0 and scores["canary_failures"].max() == 0
    assert "## Scores by a judge" in (folder / "report.md").read_text(encoding="utf-8")


def test_items_of_the_judge_are_places_where_a_latent_is_active_or_not(
    run: tuple[Path, LlmServer],
) -> None:
    folder = run[0] / FOLDERS / "latents" / "features"
    items = pd.read_parquet(folder / "judge" / "items.parquet")
    asked = items[(items["scorer"] == "firing") & (items["layer"] >= 0) & (items["item"] != "")]
    active = pd.read_parquet(folder / "activations.parquet").query("control == 'none'")
    places = {tuple(row) for row in active[["layer", "latent", "window", "position"]].to_numpy()}
    keys = asked[["layer", "head", "window", "query"]].to_numpy()
    assert asked["label"].nunique() == 2 and len(asked) >= 40
    assert asked["label"].tolist() == [tuple(key) in places for key in keys]


def test_each_question_is_put_to_the_judge_once(run: tuple[Path, LlmServer]) -> None:
    asked = [call for call in run[1].chats() if asks_a_judge(call)]
    spent = [
        pd.read_parquet(run[0] / FOLDERS / "latents" / name / "judge" / "judge_usage.parquet")
        for name in ("folder", "features")
    ]
    # Planted latents are the same for both, and what was answered once is not asked again.
    assert len(asked) == len({call.content for call in asked}) > 40
    assert sum(int(one["requests"].sum()) for one in spent) >= len(asked)


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
