"""Latents with known rules on an embedded model's vocabulary: the files that explaining and scoring read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from mechatlas.corpus.windows import Windows, write_windows
from mechatlas.dictionaries.code_files import Codes
from mechatlas.dictionaries.latent_events import EventSettings, latent_events, random_tokens
from mechatlas.dictionaries.latent_merge import EVENT_COLUMNS
from mechatlas.explain.latents.data import LatentData
from mechatlas.io import write_table
from mechatlas.models.tokenizer import load_tokenizer

MODEL = Path(__file__).resolve().parents[2] / "resources" / "models" / "demo-2l"
POINT = "resid_mid"
SPLITS = ("train", "validation", "test")
Rule = Callable[[np.ndarray], np.ndarray]
EVENTS = EventSettings(
    topk=60, max_per_document=5, quantiles=5, events_per_quantile=10, random_events=80, negatives=60,
    seed=0,
)  # fmt: skip


def planted_rules() -> dict[int, Rule]:
    """Rules as functions of the tokens of windows, int [W, T]: two on the token, one on the token before."""

    def before(tokens: np.ndarray) -> np.ndarray:
        moved = np.zeros_like(tokens)
        moved[:, 1:] = tokens[:, :-1]
        return moved

    return {
        0: lambda t: 2.0 * np.isin(t, (20, 21, 22)),
        3: lambda t: 1.0 * np.isin(before(t), (30, 31)),
        # Active on what the first is active on, but only after some tokens: hard to tell apart by the token.
        5: lambda t: 3.0 * (np.isin(t, (20, 40, 41)) & (before(t) < 40)),
        9: lambda t: 1.0 * np.isin(t, (50,)) + 0.5 * np.isin(t, (51,)),
    }


def make_tokens(windows: int, length: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 60, (windows, length))
    tokens[:, 0] = 0
    return tokens.astype(np.int32)


def write_world(folder: Path, rules: Mapping[int, Rule] | None = None, layers: int = 1) -> dict:
    """Write windows.parquet, activations.parquet, raw_events.parquet; return their paths and LatentData."""
    rules = rules or planted_rules()
    count, length = 150, 40
    tokens = make_tokens(count, length, 0)
    docs = np.array([f"d{w // 2}" for w in range(count)], dtype=object)
    splits = np.array([(0, 0, 1, 2, 2)[(w // 2) % 5] for w in range(count)], np.int8)
    windows = Windows(tokens, docs, splits, np.zeros(count, np.int32), np.zeros(count, bool))
    write_windows(folder / "windows.parquet", windows)
    codes = {latent: _codes(latent, rule(tokens)) for latent, rule in rules.items()}
    random = random_tokens(windows, EVENTS.random_events, 0)
    order = list(codes)
    events, activations = [], []
    for layer in range(layers):
        for place, (latent, own) in enumerate(codes.items()):
            near, other = (order[(place + step) % len(order)] for step in (1, 2))
            roles = {"negative_similar": [near], "negative_coactive": [other]}
            found = latent_events(own, windows, random, roles, codes.__getitem__, EVENTS)
            found = found.assign(layer=layer, latent=latent)
            window = found["window"].to_numpy(np.int64)
            found["split"] = np.array(SPLITS, dtype=object)[splits[window]]
            found["doc"] = docs[window]
            events.append(found[list(EVENT_COLUMNS)])
            for control in ("none", "random_direction"):
                use = own if control == "none" else _codes(latent, rule_of_noise(tokens, latent))
                fields = {"window": use.window, "position": use.position, "activation": use.value}
                named = {"layer": layer, "latent": latent, "control": control}
                activations.append(pd.DataFrame({**named, **fields}))
    write_table(folder / "raw_events.parquet", pd.concat(events, ignore_index=True), {})
    table = pd.concat(activations, ignore_index=True)
    write_table(folder / "activations.parquet", table, {"point": POINT})
    paths = {name: str(folder / f"{name}.parquet") for name in ("windows", "activations")}
    return {**paths, "events": str(folder / "raw_events.parquet"), "model": str(MODEL)}


def rule_of_noise(tokens: np.ndarray, seed: int) -> np.ndarray:
    """Activations that do not depend on the tokens."""
    rng = np.random.default_rng(seed + 100)
    return rng.random(tokens.shape) * (rng.random(tokens.shape) < 0.07)


def _codes(latent: int, values: np.ndarray) -> Codes:
    values = values.copy()
    values[:, 0] = 0
    window, position = np.nonzero(values)
    fields = (window.astype(np.int32), position.astype(np.int32))
    return Codes(
        latent, np.array([0, len(window)]), *fields, values[window, position].astype(np.float32)
    )


def latent_data(world: dict) -> LatentData:
    return LatentData(world["windows"], world["activations"], world["model"], None)


def vocabulary_texts() -> list[str]:
    tokenizer = load_tokenizer(MODEL, None)
    return tokenizer.strings(range(tokenizer.vocab_size))
