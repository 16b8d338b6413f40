"""Made-up results of a model of any size, with hostile text in every place where text comes from, and its atlas."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS / "unit"), str(TESTS.parent / "workflow" / "scripts")]

from fake_circuits import write_circuits  # noqa: E402

from mechatlas.circuits.components import Graph  # noqa: E402
from mechatlas.io import read_json, rng_for, write_json, write_jsonl, write_table  # noqa: E402
from mechatlas.score.judge.summary import COLUMNS as JUDGED  # noqa: E402

#: Each would run, add an element or turn the line around if it were taken for markup.
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "\u202eevil",
    "<b id=injected>",
    '"onmouseover="alert(3)',
    "{{catalogue}}",
    "\u2028",
)
WORDS = tuple(f"word{i}" for i in range(60))
VOCABULARY = ("<bos>", *HOSTILE, *WORDS)
SOURCE, DICTIONARY, POINT = "wiki", "resid", "resid_post"
TASKS = {"numerals": "sequence", "ioi": "ioi"}
TEXTS = (
    "Attends to the previous token (92 %).",
    f"By its score tables attends from names to {HOSTILE[0]} (50 %).",
    "By its score tables attends mostly to the token after every earlier occurrence of the current token "
    "(induction) (71 % off BOS); strongest pair '.' to '.'; 5 % rests on BOS.",
    "Attends to the latest delimiter (40 %) and zebrafish tokens.",
    "Rests on BOS.",
)
FACTS = {"bootstrap": 10}


@dataclass(frozen=True)
class Size:
    """How large a model is made up, and how much of it is explained."""

    layers: int = 3
    heads: int = 4
    latents: int = 40
    explained: int = 4
    windows: int = 24
    length: int = 24
    events: int = 12
    #: Without tasks, dictionaries and graphs.
    bare: bool = False
    #: With scores by a judge.
    judged: bool = False


GPT2 = Size(layers=12, heads=12, latents=3072, explained=40, windows=64, length=128, events=24)


def write_world(folder: Path, models: Mapping[str, Size]) -> Path:
    """Write ``folder/results`` of these models and the atlas of them; return the page."""
    import render_atlas

    results, tokenizer = folder / "results", _tokenizer(folder / "tokenizer")
    for name, size in models.items():
        _model(results / name, size)
    entries = {
        name: {
            "path": str(tokenizer), "bos": "<bos>", "sources": [SOURCE], "tasks": {} if size.bare else TASKS,
            "dictionaries": [] if size.bare else [[SOURCE, DICTIONARY]],
            "transcoders": [] if size.bare else [[SOURCE, "clt"]],
            "graphs": [] if size.bare else [[SOURCE, "clt", "ioi"]], "judged": size.judged,
        }
        for name, size in models.items()
    }  # fmt: skip
    atlas = results / "report" / "atlas"
    render_atlas.main(str(results), entries, ["0000"], 0, str(atlas))
    return atlas / "index.html"


def _model(place: Path, size: Size) -> None:
    import tabulate_heads

    _heads(place / SOURCE, size)
    _latents(place / SOURCE / "latents" / DICTIONARY, size)
    judge_scores = place / SOURCE / "heads" / "judge_scores.parquet"
    if size.judged:
        _judge(judge_scores, size.layers, size.heads, "H")
        latents = place / SOURCE / "latents" / DICTIONARY / "judge_scores.parquet"
        _judge(latents, size.layers, size.explained, f"{POINT}.F")
    write_circuits(place, tuple(TASKS), Graph(size.layers, size.heads, size.heads))
    for task in TASKS:
        nodes = place / "tasks" / task / "nodes"
        write_json(nodes / "least_harmful.json", read_json(nodes / "circuit.json"), FACTS)
    graphs = place / SOURCE / "transcoders" / "clt" / "graphs"
    scores = {
        "replacement_corrected": 0.66,
        "completeness_corrected": 0.89,
        "replacement": 0.7,
        "completeness": 0.9,
    }
    summary = {"prompt": HOSTILE[0], "kept_nodes": 110, "kept_edges": 1281, "scores": scores}
    write_json(graphs / "ioi.summary.json", summary, FACTS)
    _features(graphs.parent, size)
    (graphs / "ioi.html").write_text("<!DOCTYPE html><title>graph</title><h1>a graph</h1>")

    tasks = {} if size.bare else TASKS

    def of(path: str) -> list[str]:
        return [str(place / "tasks" / task / path) for task in tasks]

    tabulate_heads.main(
        summaries=[str(place / SOURCE / "heads" / "summary.csv")], sources=[SOURCE], name=place.name,
        roles=of("roles/heads.parquet"), nodes=of("nodes/effects.parquet"), patching=of("patching/effects.parquet"),
        ov=of("lens/ov.parquet"), ov_members=of("lens/ov_members.parquet"), qk_members=of("lens/qk_members.parquet"),
        circuits=of("nodes/circuit.json"), least_harmful=of("nodes/least_harmful.json"),
        edge_circuits=of("edges/circuit.json"), weights=[], latent_tables=[], model="", tasks=tasks, dictionaries=[],
        thresholds={"attention": 0.3, "effect": 0.05}, draws=50, confidence=0.95, seed=0,
        table=str(place / "cross_table.parquet"), written=str(place / "written_latents.parquet"),
        agreement=str(place / "agreement.json"), judge_scores=[str(judge_scores)] if size.judged else [],
    )  # fmt: skip
    if size.bare:
        return
    written = pd.DataFrame(
        {
            "dictionary": f"{SOURCE}/{DICTIONARY}", "component": "L0.H0", "layer": 0, "head": 0, "rank": 1,
            "latent_layer": 0, "latent": [0], "unit": f"L0.{POINT}.F0", "times_chance": 4.2,
        }
    )  # fmt: skip
    write_table(place / "written_latents.parquet", written, FACTS)


def _tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, models

    folder.mkdir(parents=True)
    vocabulary = {token: i for i, token in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="word0"))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>"}))
    return folder


def _heads(place: Path, size: Size) -> None:
    rng = rng_for(0, "fake heads of the atlas")
    tokens = rng.integers(1, len(VOCABULARY), (size.windows, size.length))
    tokens[:, 0] = 0
    windows = pd.DataFrame(
        {
            "window": range(size.windows), "doc": [f"{HOSTILE[0]} {i // 2}" for i in range(size.windows)],
            "split": "test", "start": 0, "pattern_sample": np.arange(size.windows) < 6, "tokens": list(tokens),
        }
    )  # fmt: skip
    write_table(place / "windows.parquet", windows, FACTS)
    (place / "capture" / "0000").mkdir(parents=True)
    units = [(layer, head) for layer in range(size.layers) for head in range(size.heads)]
    for layer in range(size.layers):
        shape = (6, size.heads, size.length, size.length)
        patterns = np.tril(rng.random(shape) ** 6).astype(np.float32)
        patterns /= patterns.sum(-1, keepdims=True) + 1e-9
        arrays = {"patterns": patterns.astype(np.float16), "windows": np.arange(6, dtype=np.int32)}
        save_file(arrays, place / "capture" / "0000" / f"patterns.layer_{layer}.safetensors")
    events = []
    for layer, head in units:
        window = rng.integers(0, size.windows, size.events)
        query = rng.integers(4, size.length, size.events)
        rows = {"layer": layer, "head": head, "window": window, "query": query}
        rows |= {"key": rng.integers(1, query), "attention": rng.random(size.events)}
        rows |= {"write_norm": rng.random(size.events), "role": "top", "split": "test"}
        events.append(pd.DataFrame(rows).assign(doc=[f"d{i // 2}" for i in window]))
    write_table(place / "heads/raw_events.parquet", pd.concat(events), FACTS)
    records, summary, scores = [], [], []
    for i, (layer, head) in enumerate(units):
        text = TEXTS[i % len(TEXTS)]
        part = {"share": 0.9, "form": {"form": "previous", "offset": 1}}
        unit = f"L{layer}.H{head}"
        place_of = {"layer": layer, "head": head, "explainer": "programs"}
        records.append({**place_of, "unit": unit, "text": text, "program": {"parts": [part]}})
        value = float(rng.random())
        numbers = dict.fromkeys(("iou_low", "advantage_low"), value - 0.1)
        numbers |= dict.fromkeys(("iou_high", "advantage_high"), value + 0.1)
        numbers |= dict.fromkeys(("iou", "iou_without_sink", "loss_recovered", "advantage"), value)
        row = {**place_of, "kind": "rules", "text": text, "status": "scored", **numbers}
        row |= {"best_control": "swapped", "beats_every_control": bool(i % 3)}
        summary.append(row | {"cluster": i % 2, "cluster_label": HOSTILE[0]})
        for control in ("none", "swapped"):
            row = {
                **place_of,
                "unit": unit,
                "metric": "iou",
                "control": control,
                "status": "scored",
            }
            scores.append(row | {"value": value, "low": value, "high": value, "reason": ""})
    write_jsonl(place / "heads/explanations.jsonl", records, FACTS)
    write_table(place / "heads/scores.parquet", pd.DataFrame(scores), FACTS)
    pd.DataFrame(summary).to_csv(place / "heads/summary.csv", index=False)
    names = [record["unit"] for record in records]
    clusters = [
        {"id": i, "label": HOSTILE[0], "medoid": names[i], "units": names[i::2]} for i in (0, 1)
    ]
    write_json(place / "heads/clusters.json", {"clusters": clusters}, FACTS)


def _judge(path: Path, layers: int, count: int, name: str) -> None:
    """Scores by a judge: two of every unit, fuzzing of none, the last unit not scored; two planted units."""
    rng = rng_for(0, "fake scores by a judge")
    rows = []
    for layer, number in [(layer, i) for layer in range(layers) for i in range(count)]:
        unit = {"unit": f"L{layer}.{name}{number}", "layer": layer, "head": number}
        unit |= {"explainer": "programs"}
        why = {"status": "unscored", "reason": HOSTILE[0]}
        rows.append({**unit, "scorer": "fuzzing", "metric": "", "control": "none", **why})
        last = layer == layers - 1 and number == count - 1
        for scorer, metric in (
            ("detection", "auc"),
            ("detection", "f1"),
            ("simulation", "correlation"),
        ):
            score = {
                **unit,
                "scorer": scorer,
                "metric": metric,
                "control": "none",
                "failure_rate": 0.02,
            }
            value = float(rng.random())
            own = {
                "value": value,
                "low": value - 0.1,
                "high": value + 0.1,
                "lookup": 0.6,
                "program": 0.7,
            }
            own |= {"gain_over_lookup": value - 0.6, "status": "scored", "reason": ""}
            rows.append(score | (why if last else own))
            if not last:
                beats = {"control": "swapped", "value": 0.4, "beats_control": value > 0.5}
                rows.append(score | own | beats)
    for control, value in (("none", 0.95), ("swapped", 0.45)):
        planted = {"unit": "planted.1", "layer": -1, "head": -1, "explainer": "planted"}
        planted |= {"scorer": "detection", "metric": "auc", "control": control, "value": value}
        rows.append(planted | {"status": "scored", "reason": ""})
    table = pd.DataFrame(rows, columns=list(JUDGED))
    write_table(path, table.astype({"beats_control": object}), FACTS)


def _features(place: Path, size: Size) -> None:
    rng = rng_for(0, "fake features of the atlas")
    layer, feature = (x.ravel() for x in np.indices((size.layers, size.latents)))
    numbers = {n: rng.random(len(layer)) for n in ("density", "mean_active", "max", "decoder_norm")}
    table = pd.DataFrame({"layer": layer, "feature": feature, **numbers})
    table.loc[table["feature"] == 1, ["density", "mean_active"]] = [0.0, np.nan]
    write_table(place / "features.parquet", table, FACTS)
    examples = table.loc[table.index.repeat(3), ["layer", "feature"]].reset_index(drop=True)
    examples["rank"] = examples.index % 3
    examples["window"] = rng.integers(0, size.windows, len(examples))
    examples["position"] = rng.integers(1, size.length, len(examples))
    examples["activation"] = 3.0 - examples["rank"]
    write_table(place / "examples.parquet", examples, FACTS)


def _latents(place: Path, size: Size) -> None:
    rng = rng_for(0, "fake latents of the atlas")
    layer, latent = (x.ravel() for x in np.indices((size.layers, size.latents)))
    statistics = pd.DataFrame(
        {
            "layer": layer, "latent": latent, "split": "train", "importance": rng.random(len(layer)) ** 4,
            "firing_rate": rng.random(len(layer)) * 0.1, "dead": False, "dense": latent % 9 == 0, "single_token": False,
        }
    )  # fmt: skip
    write_table(place / "latent_stats.parquet", statistics, FACTS)
    parts: dict[str, list[dict]] = {
        n: [] for n in ("summary", "events", "acts", "scores", "near", "up")
    }
    for layer in range(size.layers):
        for latent in range(size.explained):
            key = {"layer": layer, "latent": latent}
            unit = f"L{layer}.{POINT}.F{latent}"
            value = float(rng.random())
            numbers = {
                "correlation": value,
                "correlation_low": value - 0.1,
                "correlation_high": value,
            }
            numbers |= {"advantage": 0.2, "advantage_low": 0.1, "advantage_high": 0.3}
            numbers |= {"mean_activation": 1.0, "max_activation": 3.0, "loss_recovered": 0.5}
            said = {"explainer": "programs", "kind": "rule", "best_control": "shuffled"}
            said |= {
                "text": f"Active on {HOSTILE[latent % 5]} and aardvark tokens",
                "steering_auc": 0.6,
            }
            parts["summary"].append(
                {**key, "unit": unit, **said, **numbers, "beats_every_control": True}
            )
            score = {
                "unit": unit,
                "explainer": "programs",
                "metric": "correlation",
                "control": "none",
            }
            parts["scores"].append(
                {
                    **key,
                    **score,
                    "status": "scored",
                    "value": 0.5,
                    "low": 0.4,
                    "high": 0.6,
                    "reason": "",
                }
            )
            parts["near"].append(
                {
                    **key,
                    "kind": "similar",
                    "rank": 1,
                    "neighbour": (latent + 1) % size.explained,
                    "value": 0.4,
                }
            )
            for sign in (1, -1):
                parts["up"].append(
                    {
                        **key,
                        "kind": "direct",
                        "sign": sign,
                        "rank": 1,
                        "token": 1,
                        "value": 0.9 * sign,
                    }
                )
            for i in range(6):
                window, position = (
                    int(rng.integers(0, size.windows)),
                    int(rng.integers(2, size.length)),
                )
                role = {"role": "top" if i < 4 else "quantile", "quantile": -1 if i < 4 else i}
                where = {"window": window, "position": position}
                parts["events"].append(
                    {**key, **where, "doc": f"d{i}", "split": "test", "activation": 2.0, **role}
                )
                parts["acts"].append({**key, **where, "control": "none", "activation": 2.0})
    tables = {
        "events": "raw_events",
        "acts": "activations",
        "scores": "scores",
        "near": "neighbours",
    }
    for name, file in (tables | {"up": "promoted_tokens"}).items():
        write_table(place / f"{file}.parquet", pd.DataFrame(parts[name]), FACTS)
    pd.DataFrame(parts["summary"]).to_csv(place / "summary.csv", index=False)
