"""An attribution graph at the shape of GPT-2 small: random weights, 2,048 features a layer, 16 tokens, float32.

The time is compared with the linear floor, measured in the same run: the products with W_O and W_V that the gradients
of all rows need, one gradient for each position up to the target's, and nothing else. Peak memory is that of a process
of its own, which maps the transcoder's file.
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

LAYERS, HEADS, WIDTH, VOCAB = 12, 12, 768, 50257
FEATURES, TOKENS, PER_TOKEN = 2048, 16, 20
BARS = {"graph / floor": 3.0, "peak MB": 1500.0, "largest gap": 1e-3}


def make_model(vocab: int = VOCAB, dtype: str = "float32") -> Any:
    """Return a random model; its weights are float32 numbers in any dtype."""
    import torch

    from mechatlas.models.config import ModelConfig
    from mechatlas.models.transformer import Transformer
    from mechatlas.models.weights import random_weights

    config = ModelConfig(
        "gpt2", LAYERS, HEADS, HEADS, WIDTH, WIDTH // HEADS, 4 * WIDTH, 1024, vocab, 1e-5, "gelu_new", True
    )  # fmt: skip
    return Transformer(config, random_weights(config, 0, "cpu", getattr(torch, dtype)), "")


def prompt() -> Any:
    """Return the prompt, int64 [TOKENS]."""
    import torch

    return torch.randint(1, 1000, (TOKENS,), generator=torch.Generator().manual_seed(1))


def make_clt(model: Any, path: Path, tokens: Any = None, features: int = FEATURES) -> None:
    """Write a random transcoder whose biases let `PER_TOKEN` features of each layer and token be active."""
    import torch

    from mechatlas.dictionaries.activations import ReLU
    from mechatlas.dictionaries.clt import CrossLayerTranscoder
    from mechatlas.dictionaries.clt_formats import save_clt

    generator, read = torch.Generator().manual_seed(2), []
    tokens = prompt() if tokens is None else tokens
    layers, width = model.config.n_layers, model.config.d_model
    with torch.inference_mode():
        model.forward(tokens[None], {"resid_mid": lambda x, layer: read.append(x[0])})
    encoder = [torch.randn(features, width, generator=generator) for _ in range(layers)]
    bias = []
    for rows, x in zip(encoder, read, strict=True):
        # The threshold lies between two pre-activations, so that rounding decides about no feature.
        pre = (x[1:] @ rows.mT).flatten()
        cut = pre.topk(PER_TOKEN * (len(tokens) - 1) + 1).values[-2:].mean()
        bias.append((-cut).expand(features).contiguous())
    decoder = [
        0.01 * torch.randn(features, layers - i, width, generator=generator) for i in range(layers)
    ]
    zero = [torch.zeros(width) for _ in range(layers)]
    save_clt(path, CrossLayerTranscoder(encoder, bias, decoder, zero, [ReLU()] * layers), {})


def make_graph(model: Any, path: Path) -> Any:
    """Return the graph of the prompt, in the model's dtype."""
    from mechatlas.circuits.graphs.attribute import attribute
    from mechatlas.circuits.graphs.run import run_prompt
    from mechatlas.dictionaries.clt_formats import load_clt

    return attribute(run_prompt(model, load_clt(path, dtype=model.dtype), prompt()))


def all_rows(run: Any) -> list[Any]:
    """Compute the rows of all active features, position by position, without making a sparse matrix of them."""
    from mechatlas.circuits.backend import fast_matmul
    from mechatlas.circuits.graphs.backward import Backward

    with fast_matmul():
        backward, active = Backward(run), run.active
        found = []
        for position in active.position.unique().tolist():
            index = (active.position == position).nonzero()[:, 0].flip(0)  # layers descend
            found.append(backward.rows(backward.feature_targets(index), position))
    return found


def largest_gap(run: Any) -> float:
    """Return by how much a row misses the pre-activation that it sums to, relative to the largest of these."""
    import torch

    sums = torch.cat([rows.double().sum(1).flip(0) for rows in all_rows(run)])
    active, wanted = run.active, torch.empty_like(sums)
    order = torch.argsort(active.position, stable=True)
    for layer, read in enumerate(run.read):
        here = active.layer[order] == layer
        pre = run.clt.pre_activations(read, layer)
        wanted[here] = pre[active.position[order[here]], active.feature[order[here]]].double()
    return float((sums - wanted).abs().max() / wanted.abs().max())


def floor(model: Any, positions: list[int], layers: list[int]) -> None:
    """Do the products with W_O and W_V for the gradients of features at these positions and layers."""
    import torch

    from mechatlas.circuits.backend import fast_matmul

    depth, width, length = model.config.n_layers, model.config.d_model, max(positions) + 1
    w_o = [layer.w_o.mT for layer in model.weights.layers]
    w_v = [layer.w_qkv[:, -width:].mT.contiguous() for layer in model.weights.layers]
    where = torch.tensor(positions) * depth + torch.tensor(layers)
    counts = torch.bincount(where, minlength=length * depth).view(length, depth)
    with fast_matmul(), torch.inference_mode():
        for position, per_layer in enumerate(counts.tolist()):
            g = w_o[0].new_ones(sum(per_layer) * (position + 1), width)
            started = 0
            for layer in range(depth - 1, -1, -1):
                started += per_layer[layer] * (position + 1)
                if started:
                    (g[:started] @ w_o[layer]) @ w_v[layer]


def measure(job: Any, repeats: int) -> tuple[float, float, Any]:
    """Return wall and CPU seconds of the fastest repeat, and the last result."""
    best, result = (float("inf"), float("inf")), None
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        result = job()
        best = min(best, (time.perf_counter() - wall, time.process_time() - cpu))
    return *best, result


def peak(path: Path) -> float:
    """Return the peak resident memory in MB of a process that makes the model and the graph."""
    command = [sys.executable, __file__, "--single", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["peak_mb"]


def run(quick: bool = False) -> dict[str, Any]:
    """Run the whole benchmark and return its results."""
    import numpy as np
    import torch

    from mechatlas.circuits.graphs.graph import FEATURE

    before, model = os.getloadavg(), make_model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clt.safetensors"
        make_clt(model, path)
        wall, cpu, graph = measure(lambda: make_graph(model, path), 1 if quick else 3)
        features = graph.kind == FEATURE
        places = graph.position[features].tolist(), graph.layer[features].tolist()
        floor_wall, floor_cpu, _ = measure(lambda: floor(model, *places), 1 if quick else 3)
        memory = peak(path)
    rows = int(graph.has_row.sum())
    gaps = np.abs(graph.gaps()[graph.has_row]) / np.abs(graph.total[graph.has_row]).max()
    reached = {
        "graph / floor": cpu / floor_cpu,
        "peak MB": memory,
        "largest gap": float(gaps.max()),
    }
    return {
        "what": f"graph of {TOKENS} tokens, {int(features.sum())} active features, {graph.edges.nnz} edges",
        "threads": torch.get_num_threads(),
        "graph": {"wall_s": wall, "cpu_s": cpu, "ms_per_row": 1e3 * wall / rows},
        "floor": {"wall_s": floor_wall, "cpu_s": floor_cpu},
        "bars": {name: {"bar": BARS[name], "reached": value} for name, value in reached.items()},
        "load_average": {"before": before, "after": os.getloadavg()},
    }


def table(result: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    lines = [result["what"]]
    for name in ("graph", "floor"):
        t = result[name]
        lines.append(f"{name:<8}{t['wall_s']:>8.2f} s{t['cpu_s']:>8.2f} CPU s")
    lines.append(f"{result['graph']['ms_per_row']:.2f} ms per row")
    for name, entry in result["bars"].items():
        verdict = "met" if entry["reached"] <= entry["bar"] else "MISSED"
        lines.append(f"{name}: {entry['reached']:.3g}, bar {entry['bar']:g}: {verdict}")
    before, after = result["load_average"]["before"][0], result["load_average"]["after"][0]
    return [
        *lines,
        f"threads {result['threads']}, load average {before:.1f} before, {after:.1f} after",
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--single", type=Path, required=True)
    make_graph(make_model(), parser.parse_args().single)
    status = Path("/proc/self/status").read_text().splitlines()
    high = next(line for line in status if line.startswith("VmHWM"))
    print(json.dumps({"peak_mb": int(high.split()[1]) / 1024}))
