"""Edge-level circuit analysis at the shape of GPT-2 small: 32,491 edges, 15 tokens, random weights, float32.

Each job has a bar. Attribution is compared with the passes it cannot do without, measured in the same run: two forward
passes and one backward pass for activations only, by autograd on our own model, without vocabulary logits. Exact
effects and curves have bars in seconds, so the rate of a plain matrix product on this machine stands beside them, and
what share of it was reached. Runs take turns, the best of several repeats counts; CPU time and load are recorded. On a
machine that is shared, compare CPU seconds with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOKENS, DIFFERENT = 15, (2, 4, 10)
LAYERS, HEADS, WIDTH, VOCAB = 12, 12, 768, 50257
PAIRS, CURVE_PAIRS, STEPS = 16, 4, 5
BARS = {
    "eap / floor": 1.5,
    "eap-ig / eap": 5.0,
    "exact s": 90.0,
    "curve s": 2.0,
    "eap peak MB": 2000.0,
}
SINGLE = ("eap", "eap-ig", "exact", "curve", "none")


def make_model(vocab: int = VOCAB) -> Any:
    """Return a random model."""
    import torch

    from mechatlas.models.config import ModelConfig
    from mechatlas.models.transformer import Transformer
    from mechatlas.models.weights import random_weights

    config = ModelConfig(
        "gpt2", LAYERS, HEADS, HEADS, WIDTH, WIDTH // HEADS, 4 * WIDTH, 1024, vocab, 1e-5, "gelu_new", True
    )  # fmt: skip
    return Transformer(config, random_weights(config, 0, "cpu", torch.float32), "benchmark")


def make_pairs(model: Any, count: int) -> tuple:
    """Return clean and corrupted tokens, end positions and a metric by which the clean prompts are better."""
    import torch

    from mechatlas.circuits.metrics import make_metric

    vocab, generator = model.config.vocab_size, torch.Generator().manual_seed(0)
    clean, other = torch.randint(0, vocab, (2, count, TOKENS), generator=generator)
    corrupted = clean.clone()
    corrupted[:, DIFFERENT] = other[:, DIFFERENT]
    end = torch.full((count,), TOKENS - 1)
    with torch.no_grad():
        low, high = (
            model.forward(x.to(model.device), logits=False)[:, -1] for x in (corrupted, clean)
        )
    difference = model.unembed(high - low)
    answers, wrong = difference.argmax(-1), difference.argmin(-1)
    return clean, corrupted, end, make_metric("logit_difference", model, answers, wrong)


def floor(model: Any, pairs: tuple) -> None:
    """Do two forward passes and one backward pass to the embeddings, without gradients of weights."""
    import torch

    clean, corrupted, end, metric = pairs
    clean, corrupted, end = (x.to(model.device) for x in (clean, corrupted, end))
    with torch.no_grad():
        model.forward(corrupted, logits=False)
    leaf = model.embed(clean).requires_grad_()
    final = model.forward(clean, {"embed": lambda x, layer: leaf}, logits=False)
    metric(final[torch.arange(len(end), device=end.device), end]).sum().backward()


def jobs(model: Any, quick: bool = False) -> dict[str, Callable[[], Any]]:
    """Return what is timed."""
    import numpy as np

    from mechatlas.circuits.attribution import attribute_edges
    from mechatlas.circuits.backend import fast_matmul
    from mechatlas.circuits.curves import Faithfulness, trace_curve
    from mechatlas.circuits.exact_edges import exact_edge_effects

    pairs, few, one = (make_pairs(model, n) for n in (PAIRS, CURVE_PAIRS, 1))
    scores = attribute_edges(model, *few).mean

    def bare() -> None:
        with fast_matmul():
            floor(model, pairs)

    def curve() -> None:
        trace_curve(Faithfulness(model, *few), scores, np.random.default_rng(0))

    found = {
        "floor": bare,
        "eap": lambda: attribute_edges(model, *pairs),
        "eap-ig": lambda: attribute_edges(model, *pairs, method="eap-ig-inputs", steps=STEPS),
        "curve": curve,
        "exact": lambda: exact_edge_effects(model, *one),
    }
    if quick:
        del found["exact"]
    return found


def flops() -> dict[str, float]:
    """Return the floating-point operations of each job (two per multiplication and addition), attention left out."""
    d, edges = WIDTH, 32_491
    forward = 24 * d * d * LAYERS  # per token
    contraction = (
        2 * edges * d + LAYERS * 8 * d * d
    )  # with what each head writes and each reader's gradient
    tokens, changed = PAIRS * TOKENS, TOKENS - DIFFERENT[0]
    last = (8 + 4 * HEADS * changed / d + 16) * d * d  # at the end only, no keys and values
    exact = 0.0
    for layer in range(LAYERS):
        sources = 1 + layer * (HEADS + 1)
        rest = (LAYERS - 2 - layer) * 24 * d * d * changed + last if layer < LAYERS - 1 else 0.0
        rows = changed if layer < LAYERS - 1 else 1
        into_heads = (
            2 + 8
        ) * d * d // HEADS * rows + 8 * d * d * rows  # z W_O, z W_O W, second matrix
        exact += sources * (3 * HEADS * (into_heads + rest) + 6 * d * d * changed)
        exact += (sources + HEADS) * (16 * d * d * rows + rest)
    return {
        "floor": 3 * tokens * forward,
        "eap": tokens * (3 * forward + contraction),
        "eap-ig": tokens * ((2 + 2 * STEPS) * forward + contraction),
        "curve": CURVE_PAIRS * (12 * changed + 2 * TOKENS) * forward
        + CURVE_PAIRS * 10 * changed * 2 * edges * d,
        "exact": exact,
    }


def matmul_rate() -> float:
    """Return GFLOP/s of a matrix product of the shape of an MLP's first."""
    import torch

    from mechatlas.circuits.backend import fast_matmul

    a, b, best = torch.randn(1500, WIDTH), torch.randn(WIDTH, 4 * WIDTH), float("inf")
    with fast_matmul():
        for _ in range(20):
            start = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - start)
    return 2 * a.shape[0] * WIDTH * 4 * WIDTH / best / 1e9


def measure(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Return wall and CPU seconds of the fastest repeat of each run; the runs take turns, slow ones run once."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(repeats):
        for name, run in runs.items():
            if best.get(name, {}).get("wall_s", 0) > 30:
                continue
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            now = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
            best[name] = {key: min(now[key], best.get(name, now)[key]) for key in now}
    return best


def single(name: str, vocab: int) -> dict[str, float]:
    """Do one job in this process and return the peak resident memory in MB."""
    model = make_model(vocab)
    if name != "none":
        jobs(model)[name]()
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in status if line.startswith("VmHWM"))
    return {"peak_mb": int(peak.split()[1]) / 1024}


def peak(name: str, vocab: int = VOCAB) -> float:
    """Return the peak memory of a job in a process of its own."""
    command = [sys.executable, __file__, "--single", name, "--vocab", str(vocab)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["peak_mb"]


def run(quick: bool = False) -> dict[str, Any]:
    """Run the whole benchmark and return its results."""
    import torch

    from mechatlas.circuits.backend import choose

    before = os.getloadavg()
    model = make_model()
    times = measure(jobs(model, quick), 2 if quick else 5)
    rate, work = matmul_rate(), flops()
    for name, entry in times.items():
        entry["gflop"] = work[name] / 1e9
        entry["gflop_per_s"] = work[name] / entry["wall_s"] / 1e9
        entry["share_of_matmul"] = entry["gflop_per_s"] / rate
    small = 1000
    memory = {
        "eap": peak("eap"),
        "eap beyond the model": peak("eap") - peak("none"),
        f"eap beyond the model, {small} words": peak("eap", small) - peak("none", small),
    }
    if not quick:
        memory["exact"] = peak("exact")
    wall = {name: entry["wall_s"] for name, entry in times.items()}
    reached = {
        "eap / floor": wall["eap"] / wall["floor"],
        "eap-ig / eap": wall["eap-ig"] / wall["eap"],
        "curve s": wall["curve"],
        "eap peak MB": memory["eap"],
    }
    if "exact" in wall:
        reached["exact s"] = wall["exact"]
    return {
        "what": f"edges of GPT-2 small's shape, {TOKENS} tokens, float32; {PAIRS} pairs (curve {CURVE_PAIRS}, exact 1)",
        "threads": torch.get_num_threads(),
        "matmul_precision": choose(),
        "matmul_gflop_per_s": rate,
        "times": times,
        "peak_mb": memory,
        "bars": {name: {"bar": BARS[name], "reached": value} for name, value in reached.items()},
        "load_average": {"before": before, "after": os.getloadavg()},
    }


def table(result: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    lines = [
        result["what"],
        f"{'job':<10}{'wall s':>9}{'CPU s':>9}{'GFLOP':>10}{'GFLOP/s':>9}{'of matmul':>11}",
    ]
    for name, t in result["times"].items():
        lines.append(
            f"{name:<10}{t['wall_s']:>9.2f}{t['cpu_s']:>9.2f}{t['gflop']:>10.0f}{t['gflop_per_s']:>9.0f}"
            f"{t['share_of_matmul']:>11.0%}"
        )
    lines += [f"{name}: {value:.0f} MB" for name, value in result["peak_mb"].items()]
    for name, entry in result["bars"].items():
        verdict = "met" if entry["reached"] <= entry["bar"] else "MISSED"
        lines.append(f"{name}: {entry['reached']:.2f}, bar {entry['bar']:g}: {verdict}")
    before, after = result["load_average"]["before"][0], result["load_average"]["after"][0]
    lines.append(
        f"threads {result['threads']}, matrix product {result['matmul_gflop_per_s']:.0f} GFLOP/s "
        f"({result['matmul_precision']}), load average {before:.1f} before, {after:.1f} after"
    )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--single", choices=SINGLE, required=True)
    parser.add_argument("--vocab", type=int, default=VOCAB)
    given = parser.parse_args()
    print(json.dumps(single(given.single, given.vocab)))
