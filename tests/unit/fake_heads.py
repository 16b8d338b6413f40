"""Made-up result files of one model and source, small and with hostile text, in the form that the rules write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.explain.records import SHARED
from mechatlas.io import provenance, write_json, write_jsonl, write_table
from mechatlas.score.curve import summarise_curve
from mechatlas.score.patterns import SUMS
from mechatlas.score.summary import SummarySettings, summarise
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


def write_results(
    folder: Path, *, layers: int = 2, heads: int = 4, openai: bool = False
) -> dict[str, Any]:
    """Write every file that reports read; return their paths by the names that the rules use.

    With ``openai`` a language model has explained the heads too: the first not at all, the second without a program.
    """
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
    records = explanations(units)
    write_jsonl(paths["explanations"], records, facts)
    documents = document_scores(units, rng)
    losses, curve = head_losses(units, rng), curve_losses(rng)
    write_table(paths["document_scores"], documents, facts)
    events = head_events(units, rng)
    predicted = pd.concat(
        events.assign(
            explainer="programs",
            control=name,
            prediction=rng.random(len(events)).astype(np.float32),
        )
        for name in ("none", "swapped")
    )
    predicted = predicted[predicted["split"] == "test"]
    if openai:
        asked = openai_explanations(units)
        paths["openai"] = place / "openai.jsonl"
        write_jsonl(paths["openai"], asked, facts)
        records += asked
        documents = also_of_openai(documents, units[2:])
        losses, curve = also_of_openai(losses, units[2:]), also_of_openai(curve, None)
        write_table(paths["document_scores"], documents, facts)
    scores = summarise(documents, predicted, losses, SETTINGS, records)
    write_table(paths["scores"], scores, facts)
    write_table(paths["curve"], summarise_curve(curve, SETTINGS), facts)
    write_table(paths["events"], events, facts)
    write_table(paths["windows"], windows(rng), facts)
    write_json(paths["clusters"], clusters(units), provenance(embedding_model={"name": "none"}))
    result: dict[str, Any] = {name: str(path) for name, path in paths.items()}
    result["explanations"] = [result["explanations"], *([result.pop("openai")] if openai else [])]
    return result


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


def openai_explanations(units: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Records as `mechatlas.explain.language` writes them."""
    records = []
    for place, (layer, head) in enumerate(units):
        text = "" if place == 0 else f"Attends to {HOSTILE} after an earlier copy."
        records.append(
            {
                **{"unit": f"L{layer}.H{head}", "layer": layer, "head": head},
                **{"explainer": "openai", "control": "none", "text": text},
                "kind": "rules" if place > 1 else "text",
                "validation_iou": 0.4 if place > 1 else None,
                "candidates": [],
                "program": {"parts": []} if place > 1 else None,
                "status": "explained" if text else "unexplained",
                "reason": "" if text else "the model refused to answer",
                "program_error": f"part 1: unknown form '{HOSTILE}'" if place == 1 else "",
                **{"chosen_by": "single", "model": "m", "prompt_version": "p", "requests": 1},
                **{"prompt_tokens": 1500, "cached_tokens": 1000, "completion_tokens": 60},
                "price": 0.0005,
            }
        )
    return records


def also_of_openai(table: pd.DataFrame, units: list[tuple[int, int]] | None) -> pd.DataFrame:
    """Repeat the rows of the explainer `programs`, of some heads, as those of `openai`."""
    mine = table[table["explainer"] == "programs"]
    if units is not None:
        mine = mine[[at in units for at in zip(mine["layer"], mine["head"], strict=True)]]
    mine = (
        mine[~mine["control"].isin(["shuffled", "random_weights"])] if "control" in mine else mine
    )
    return pd.concat([table, mine.assign(explainer="openai")], ignore_index=True)


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
                key = {"layer": layer, "head": head, "explainer": "programs", "control": control}
                rows.append(key | {"doc": f"d{doc}"} | sums | counts)
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
    variants = {(-1, -1, SHARED, "model"): 10.0}
    for layer, head in units:
        harm = 0.0 if (layer, head) == units[-1] else 4.0
        variants |= {(layer, head, SHARED, "mean_pattern"): 10 + harm}
        variants |= {(layer, head, "programs", "none"): 10 + harm / 8}
        variants |= {(layer, head, "programs", "swapped"): 10 + harm * 1.2}
    return pd.DataFrame(
        [
            {
                **{
                    "layer": layer,
                    "head": head,
                    "explainer": explainer,
                    "variant": variant,
                    "doc": f"d{doc}",
                    "tokens": 20,
                },
                "loss": loss + rng.normal(scale=0.01),
            }
            for (layer, head, explainer, variant), loss in variants.items()
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
                **{
                    "explainer": "programs",
                    "order": order,
                    "repeat": 0,
                    "share": share,
                    "heads": int(8 * share),
                },
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
