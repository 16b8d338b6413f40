"""Training of a cross-layer transcoder: sparse steps against dense ones, and time and memory against the corpus.

Processor seconds, interleaved in one process on one thread, at the width of GPT-2 small:

- ``step``: forward, backward and optimiser with gathered rows of active features against dense products, at the given
  share of active features; ``decode`` the same for what all features write alone;
- ``growth``: a whole training on shards of growing numbers of tokens, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_capture import measure, peak_mb

D, WINDOW_LEN = 768, 128
BATCH = 512  # tokens of a step, the default of the configuration
BARS = {
    "dense / sparse step": (2.0, "least"),
    "growth of memory": (1.1, "most"),
    "growth of time": (1.25, "most"),
}


def step_ratio(layers: int, features: int, k: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Time training steps with sparse and with dense products on random activations."""
    import torch

    from mechatlas.dictionaries import clt_trainer as training
    from mechatlas.dictionaries.clt import LayerScales
    from mechatlas.dictionaries.clt_settings import CltSettings

    draw = torch.Generator().manual_seed(0)
    places = training.clt_places("resid_mid", layers)
    batch = {place: torch.randn(tokens, D, generator=draw) for place in places}
    settings = CltSettings(
        features=features, k=k, activation="topk", tokens=10**9, batch_tokens=tokens
    )
    zero, one = torch.zeros(layers, D), torch.ones(layers)
    trainer = training.CltTrainer(settings, LayerScales(zero, one, zero, one))
    usual = training.SPARSE_BELOW

    def step(below: float) -> None:
        # The trainer chooses by the share of active features; here the choice is forced.
        training.SPARSE_BELOW = below
        trainer.update(trainer.loss(batch, 0), 0)

    try:
        times = measure({"sparse": lambda: step(1.0), "dense": lambda: step(0.0)}, repeats)
    finally:
        training.SPARSE_BELOW = usual
    ratio = times["dense"]["cpu_s"] / times["sparse"]["cpu_s"]
    sizes = {"layers": layers, "features": features, "k": k, "tokens": tokens}
    rate = {name: tokens / t["cpu_s"] for name, t in times.items()}
    return sizes | {
        **{"density": k / features, "times": times, "tokens_per_cpu_s": rate},
        "dense_over_sparse": ratio,
    }


def growth(folder: Path, sizes: list[int], layers: int, features: int) -> list[dict[str, float]]:
    """Train on each number of windows, one pass, in a process of its own."""
    rows = []
    for windows in sizes:
        command = [sys.executable, __file__, "--single", str(folder), "--windows", str(windows)]
        command += ["--layers", str(layers), "--features", str(features)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def single(folder: Path, windows: int, layers: int, features: int) -> dict[str, float]:
    """Write shards of so many windows, train one pass over them; return seconds and peak memory of the training."""
    from mechatlas.capture.patterns import activation_file
    from mechatlas.capture.shards import ShardWriter
    from mechatlas.dictionaries.clt_settings import CltSettings
    from mechatlas.dictionaries.clt_trainer import clt_places
    from mechatlas.dictionaries.clt_training import train_clt

    chunk = folder / f"{windows}"
    chunk.mkdir()
    rng = np.random.default_rng(0)
    row = rng.normal(size=(WINDOW_LEN, D)).astype(np.float32)
    for place in clt_places("resid_mid", layers):
        arrays = {"activations": ("float32", (windows * WINDOW_LEN, D)), "windows": ("int32", (windows,))}  # fmt: skip
        shard = ShardWriter(chunk / activation_file(*place), arrays, {})
        for number in range(windows):
            shard.write("activations", np.roll(row, number, axis=1))
        shard.write("windows", np.arange(windows, dtype=np.int32))
        shard.close()
    index = {"first": 0, "stop": windows, "window_len": WINDOW_LEN}
    (chunk / "index.json").write_text(json.dumps(index))
    tokens = windows * (WINDOW_LEN - 1)
    settings = CltSettings(
        features=features, k=max(1, features // 50), tokens=tokens, batch_tokens=BATCH,
        buffer_windows=32,
    )  # fmt: skip
    wall, cpu = time.perf_counter(), time.process_time()
    train_clt(
        [chunk], layers, settings, train_windows=np.arange(windows),
        validation_windows=np.arange(0), checkpoint=chunk / "checkpoint.safetensors",
        checkpoint_every=10**6,
    )  # fmt: skip
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        **{"windows": windows, "tokens": tokens, "wall_s": wall, "cpu_s": cpu},
        **{"tokens_per_cpu_s": tokens / cpu, "peak_mb": peak_mb()},
    }


def run(quick: bool = False) -> dict[str, Any]:
    """Run the whole benchmark and return its results."""
    import torch

    torch.set_num_threads(1)
    before, repeats = os.getloadavg(), 2 if quick else 5
    shapes = [(4, 2048), (12, 2048)]
    steps = [step_ratio(layers, n, round(n * 0.02), BATCH, repeats) for layers, n in shapes]
    with tempfile.TemporaryDirectory() as name:
        sizes = [64, 128] if quick else [128, 256, 512]
        grown = growth(Path(name), sizes, 2, 1024)
    first, last = grown[0], grown[-1]
    per_token = [row["cpu_s"] / row["tokens"] for row in (first, last)]
    reached = {
        "dense / sparse step": min(step["dense_over_sparse"] for step in steps),
        "growth of memory": last["peak_mb"] / first["peak_mb"],
        "growth of time": per_token[1] / per_token[0],
    }
    return {
        "what": "cross-layer transcoders at width 768, float32, one thread",
        "step": steps,
        "growth": grown,
        "bars": {n: {"bar": bar, "is": kind, "reached": reached[n]} for n, (bar, kind) in BARS.items()},
        "load_average": {"before": before, "after": os.getloadavg()},
    }  # fmt: skip


def table(result: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    lines = [result["what"]]
    for step in result["step"]:
        lines.append(
            f"step of {step['tokens']} tokens, {step['layers']} layers of {step['features']} features, "
            f"{step['k']} active: "
            f"dense {step['times']['dense']['cpu_s']:.2f} CPU s, sparse {step['times']['sparse']['cpu_s']:.2f}, "
            f"ratio {step['dense_over_sparse']:.2f}"
        )
    lines.append(f"{'tokens':<10}{'CPU s':>9}{'tokens/CPU s':>14}{'peak MB':>10}")
    for row in result["growth"]:
        lines.append(
            f"{row['tokens']:<10}{row['cpu_s']:>9.2f}{row['tokens_per_cpu_s']:>14.0f}{row['peak_mb']:>10.0f}"
        )
    for name, entry in result["bars"].items():
        sign = 1 if entry["is"] == "least" else -1
        met = "met" if sign * entry["reached"] >= sign * entry["bar"] else "MISSED"
        lines.append(
            f"{name}: {entry['reached']:.3g}, bar at {entry['is']} {entry['bar']:g}: {met}"
        )
    before, after = result["load_average"]["before"][0], result["load_average"]["after"][0]
    return [*lines, f"load average {before:.1f} before, {after:.1f} after"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--single", type=Path)
    for name in ("--windows", "--layers", "--features"):
        parser.add_argument(name, type=int)
    given = parser.parse_args()
    print(json.dumps(single(given.single, given.windows, given.layers, given.features)))
