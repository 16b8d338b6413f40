"""Made-up result files of one model and source, small and with hostile text, in the form that the rules write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.io import provenance, write_json, write_jsonl, write_table
from mechatlas.score.patterns import SUMS
from mechatlas.score.summary import SummarySettings, summarise, summarise_curve
from mechatlas.stats.ranking import BINS

HOSTILE = "<script>alert('x')</script>"
TOKENS = [
    "<bos>",
    HOSTILE,
    " the",
    " cat",
    "\n",
    "\u202eevil",
    "\u200b",
    "`",
    "|",
    "&amp;",
    "\x1b[31m",
    '"',
]
TEXTS = (
    "Attends to the previous token (92 %).",
    "Attends to the first token of the line (61 %); otherwise rests on BOS (30 % or more).",
    f"By its score tables attends from names to {HOSTILE} (50 %).",
)
SETTINGS = SummarySettings(bootstrap=60, confidence=0.95, fdr=0.05, min_events=5, seed=0)
WINDOW_LEN, WINDOWS, DOCUMENTS = 24, 30, 10


def write_results(folder: Path, *, layers: int = 2, heads: int = 4) -> dict[str, str]:
    """Write every file that reports read; return their paths by the names that the rules use."""
    rng = np.random.default_rng(0)
    place = folder / "heads"
    place.mkdir(parents=True)
    paths = {
        "explanations": place / "explanations.jsonl",
        "scores": place / "scores.parquet",
        "document_scores": place / "document_scores.parquet",
        "clusters": place / "clusters.json",
        "curve": place / "replacement.parquet",
        "events": place / "raw_events.parquet",
        "windows": folder / "windows.parquet",
        "model": folder / "model",
    }
    write_tokenizer(paths["model"])
    facts = provenance(bootstrap=60, confidence=0.95, fdr=0.05, min_events=5, seed=0)
    units = [(layer, head) for layer in range(layers) for head in range(heads)]
    write_jsonl(paths["explanations"], explanations(units), facts)
    documents = document_scores(units, rng)
    write_table(paths["document_scores"], documents, facts)
    events = head_events(units, rng)
    predicted = pd.concat(
        events.assign(control=name, prediction=rng.random(len(events)).astype(np.float32))
        for name in ("none", "swapped")
    )
    predicted = predicted[predicted["split"] == "test"]
    scores = summarise(documents, predicted, head_losses(units, rng), SETTINGS)
    write_table(paths["scores"], scores, facts)
    write_table(paths["curve"], summarise_curve(curve_losses(rng), SETTINGS), facts)
    write_table(paths["events"], events, facts)
    write_table(paths["windows"], windows(rng), facts)
    write_json(paths["clusters"], clusters(units), provenance(embedding_model={"name": "none"}))
    return {name: str(path) for name, path in paths.items()}


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<bos>"}
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "model": model, "added_tokens": []})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>"}))
    sizes = {"n_positions": 32, "n_layer": 2, "n_head": 4, "n_embd": 8, "vocab_size": len(TOKENS)}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}))


def explanations(units: list[tuple[int, int]]) -> list[dict[str, Any]]:
    return [
        {
            **{"unit": f"L{layer}.H{head}", "layer": layer, "head": head, "explainer": "programs"},
            **{"control": control, "kind": "rules", "validation_iou": 0.5},
            "text": TEXTS[(layer + head) % len(TEXTS)],
            **{"candidates": [], "program": {}},
        }
        for layer, head in units
        for control in ("none", "shuffled")
    ]


def document_scores(units: list[tuple[int, int]], rng: np.random.Generator) -> pd.DataFrame:
    """Sums per document; each head is better explained than the one before, and every control is worse."""
    rows = []
    for place, (layer, head) in enumerate(units):
        for control, worse in (
            ("none", 0.0),
            ("swapped", 0.2),
            ("shuffled", 0.3),
            ("random_weights", 0.35),
        ):
            for doc in range(DOCUMENTS):
                overlap = 40 + 5 * place - 60 * worse + rng.normal()
                sums = dict.fromkeys(SUMS, 100.0) | {
                    "minimum": overlap,
                    "top1": overlap,
                    "js": overlap,
                }
                sums |= {"minimum_without_sink": overlap / 2, "top1_without_sink": overlap / 2}
                counts = {
                    name: rng.integers(0, 5, BINS).astype(np.int32) for name in ("active", "other")
                }
                key = {"layer": layer, "head": head, "control": control, "doc": f"d{doc}"}
                rows.append(key | sums | counts)
    return pd.DataFrame(rows)


def head_events(units: list[tuple[int, int]], rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for layer, head in units:
        for window in range(WINDOWS):
            query = int(rng.integers(15, WINDOW_LEN))
            key = int(rng.integers(1, query))
            base = {
                **{"layer": layer, "head": head, "window": window, "doc": f"d{window % DOCUMENTS}"},
                **{
                    "split": ("train", "validation", "test")[window % DOCUMENTS % 3],
                    "quantile": -1,
                },
                **{"query": query, "weight": np.nan},
            }
            none = {"anchor_query": -1, "anchor_key": -1}
            strong, weak = float(rng.uniform(0.5, 1)), float(rng.uniform(0, 0.1))
            rows.append(
                base | none | {"key": key, "attention": strong, "write_norm": strong, "role": "top"}
            )
            for role in ("negative_same_query", "random"):
                anchor = {"anchor_query": query, "anchor_key": key} if role != "random" else none
                other = {
                    "key": max(0, key - 3),
                    "attention": weak,
                    "write_norm": weak,
                    "role": role,
                }
                rows.append(base | anchor | other)
    return pd.DataFrame(rows)


def head_losses(units: list[tuple[int, int]], rng: np.random.Generator) -> pd.DataFrame:
    """Losses of single replacements; in the last head the ablation does nothing, so it cannot be scored."""
    variants = {(-1, -1, "model"): 10.0}
    for layer, head in units:
        harm = 0.0 if (layer, head) == units[-1] else 4.0
        variants |= {(layer, head, "mean_pattern"): 10 + harm, (layer, head, "none"): 10 + harm / 8}
        variants |= {(layer, head, "swapped"): 10 + harm * 1.2}
    return pd.DataFrame(
        [
            {
                **{
                    "layer": layer,
                    "head": head,
                    "variant": variant,
                    "doc": f"d{doc}",
                    "tokens": 20,
                },
                "loss": loss + rng.normal(scale=0.01),
            }
            for (layer, head, variant), loss in variants.items()
            for doc in range(DOCUMENTS)
        ]
    )


def curve_losses(rng: np.random.Generator) -> pd.DataFrame:
    orders = {("model", 0.0): 40.0}
    for share in (0.25, 0.5, 1.0):
        orders |= {("best", share): 40 + 2 * share, ("random", share): 40 + 6 * share}
        orders |= {("mean_pattern", share): 40 + 60 * share}
    return pd.DataFrame(
        [
            {
                **{"order": order, "repeat": 0, "share": share, "heads": int(8 * share)},
                **{"doc": f"d{doc}", "loss": loss + rng.normal(scale=0.05), "tokens": 20},
            }
            for (order, share), loss in orders.items()
            for doc in range(DOCUMENTS)
        ]
    )


def windows(rng: np.random.Generator) -> pd.DataFrame:
    tokens = rng.integers(1, len(TOKENS), (WINDOWS, WINDOW_LEN)).astype(np.int32)
    tokens[:, 0] = 0
    return pd.DataFrame(
        {
            "window": np.arange(WINDOWS, dtype=np.int32),
            "doc": [f"d{i % DOCUMENTS}" for i in range(WINDOWS)],
            "split": [("train", "validation", "test")[i % DOCUMENTS % 3] for i in range(WINDOWS)],
            "start": np.zeros(WINDOWS, dtype=np.int32),
            "pattern_sample": np.arange(WINDOWS) < 12,
            "tokens": list(tokens),
        }
    )


def clusters(units: list[tuple[int, int]]) -> dict[str, Any]:
    names = [f"L{layer}.H{head}" for layer, head in units]
    group = {
        **{"id": 0, "label": f"Attends {HOSTILE}", "words": ["token"], "medoid": names[0]},
        **{"size": 3, "units": names[:3], "mean_similarity": 0.9},
    }
    settings = {"method": "HDBSCAN", "min_cluster_size": 3, "min_samples": 1}
    return {"settings": settings, "embedding_model": {}, "clusters": [group], "noise": names[3:]}
