"""A whole attribution graph against circuit-tracer's on the same weights, at the shape of GPT-2 small.

Random weights, a random cross-layer transcoder of 2,048 features a layer, 16 tokens, float32, as in `bench_graphs`.
Each program runs in a process of its own with the same number of threads; ours runs before and after the peer's, and
the faster of the two counts. Then rows are compared where both programs have them (features, errors, tokens, targets):
all of them as computed in float32, where rounding alone makes a difference, and those of the targets and of the most
influential features in float64, which shows whether they are the same.

circuit-tracer needs an environment of its own (requirements.txt). Its Python is looked for in `benchmarks/peers/.venv`
and in the variable MECHATLAS_PEER_PYTHON; without it this benchmark is skipped.
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
from bench_graphs import HEADS, LAYERS, VOCAB, WIDTH, make_clt, make_graph, make_model, prompt

HERE = Path(__file__).resolve().parent
BATCH = 64  # rows that circuit-tracer computes at once
COMPARED = 118  # features that it traces in float64, two batches with the targets
BARS = {
    "peer / ours": (10.0, "least"),
    "peak MB": (1500.0, "most"),
    "largest difference, float64": (1e-6, "most"),
}


def peer_python() -> Path | None:
    """Return the Python of the environment that has circuit-tracer, or None."""
    for name in (os.environ.get("MECHATLAS_PEER_PYTHON"), HERE / ".venv" / "bin" / "python"):
        if name and Path(name).is_file():
            command = [str(name), "-c", "import importlib.util as u; assert u.find_spec('circuit_tracer')"]  # fmt: skip
            environment = os.environ | {"PYTHONPATH": ""}
            if not subprocess.run(
                command, capture_output=True, check=False, env=environment
            ).returncode:
                return Path(name)
    return None


def write_job(folder: Path) -> None:
    """Write model, transcoder and prompt for both programs."""
    from safetensors.torch import save_file

    from mechatlas.dictionaries.clt_formats import load_clt, write_circuit_tracer

    model = make_model()
    make_clt(model, folder / "clt.safetensors")
    write_circuit_tracer(folder / "clt", load_clt(folder / "clt.safetensors"))
    save_file(transformer_lens_weights(model), folder / "model.safetensors")
    config = {
        "n_layers": LAYERS,
        "d_model": WIDTH,
        "n_heads": HEADS,
        "d_head": WIDTH // HEADS,
        "d_mlp": 4 * WIDTH,
        "n_ctx": 1024,
        "d_vocab": VOCAB,
        "eps": model.config.norm_eps,
    }
    job = {"config": config, "tokens": prompt().tolist(), "batch_size": BATCH}
    (folder / "job.json").write_text(json.dumps(job))
    # Peak memory is that of reading a file from the disk: of one that was just written, all is mapped at once.
    with (folder / "clt.safetensors").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def transformer_lens_weights(model: Any) -> dict[str, Any]:
    """Return the weights of a model of GPT-2's type under TransformerLens' names and in its shapes."""
    w, heads = model.weights, model.config.n_heads
    named = {
        "embed.W_E": w.embedding,
        "pos_embed.W_pos": w.positions,
        "ln_final.w": w.final_norm,
        "ln_final.b": w.final_norm_bias,
        "unembed.W_U": w.unembedding.mT,
        "unembed.b_U": w.unembedding.new_zeros(len(w.unembedding)),
    }
    for i, layer in enumerate(w.layers):
        at = f"blocks.{i}."
        for name, matrix, bias in zip(
            "QKV", layer.w_qkv.chunk(3, 1), layer.b_qkv.chunk(3), strict=True
        ):
            named[f"{at}attn.W_{name}"] = matrix.unflatten(1, (heads, -1)).movedim(1, 0)
            named[f"{at}attn.b_{name}"] = bias.unflatten(0, (heads, -1))
        named |= {
            f"{at}attn.W_O": layer.w_o.unflatten(0, (heads, -1)),
            f"{at}attn.b_O": layer.b_o,
            f"{at}ln1.w": layer.norm1,
            f"{at}ln1.b": layer.norm1_bias,
            f"{at}ln2.w": layer.norm2,
            f"{at}ln2.b": layer.norm2_bias,
            f"{at}mlp.W_in": layer.w_up,
            f"{at}mlp.b_in": layer.b_up,
            f"{at}mlp.W_out": layer.w_down,
            f"{at}mlp.b_out": layer.b_down,
        }
    return {name: tensor.clone().contiguous() for name, tensor in named.items()}


def job(command: list[str]) -> dict[str, float]:
    """Run one program and return what it prints last."""
    # Each Python finds its own packages; ours are told by the path of this process.
    path = os.pathsep.join(sys.path) if command[0] == sys.executable else ""
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, dtype: str) -> dict[str, float]:
    """Compare both graphs in the rows and columns that both have.

    ``largest_difference`` is that of an edge as a share of the largest edge of its row.
    """
    from safetensors.numpy import load_file

    from mechatlas.circuits.graphs.graph import FEATURE, LOGIT, load_graph

    theirs = load_file(folder / f"theirs.{dtype}.safetensors")
    ours = load_graph(folder / f"ours.{dtype}.safetensors").shared()
    features, targets = ours.kind == FEATURE, ours.kind == LOGIT
    names = np.stack([ours.layer, ours.position, ours.feature], 1)[features].tolist()
    place = {tuple(name): node for name, node in zip(names, np.flatnonzero(features), strict=True)}
    missing = [name for name in theirs["features"].tolist() if tuple(name) not in place]
    if missing or not np.array_equal(ours.feature[targets], theirs["targets"]):
        sys.exit(f"error: the programs find other active features ({missing[:3]}) or targets")
    known = [place[tuple(name)] for name in theirs["features"].tolist()]
    nodes = np.concatenate([known, np.flatnonzero(~features)])
    rows = np.concatenate([np.arange(len(known)), np.arange(len(nodes))[-int(targets.sum()) :]])
    largest = 0.0
    for part in np.array_split(rows, 32):
        mine = ours.edges[nodes[part]].toarray()[:, nodes].astype(float)
        peer = theirs["edges"][part].astype(float)
        largest = max(largest, float((np.abs(mine - peer).max(1) / np.abs(peer).max(1)).max()))
    return {"rows": len(rows), "columns": len(nodes), "largest_difference": largest}


def run(quick: bool = False) -> dict[str, Any]:
    """Run the whole benchmark and return its results; without the peer only why it was skipped."""
    import torch

    peer = peer_python()
    if peer is None:
        return {"skipped": "circuit-tracer is not installed: see benchmarks/peers/requirements.txt"}
    loads = [os.getloadavg()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_job(folder)
        own = [sys.executable, __file__, "--single", str(folder), "--dtype"]
        other = [str(peer), str(HERE / "circuit_tracer_job.py"), str(folder)]
        ours = [job([*own, "float32"])]
        theirs = job([*other, "float32"])
        loads.append(os.getloadavg())
        print(f"ours {ours[0]}\ncircuit-tracer {theirs}", flush=True)
        if not quick:
            ours.append(job([*own, "float32"]))
        job([*own, "float64"])
        job([*other, "float64", str(COMPARED)])
        compared = {dtype: compare(folder, dtype) for dtype in ("float32", "float64")}
    best = min(ours, key=lambda one: one["cpu_s"])
    reached = {
        "peer / ours": theirs["cpu_s"] / best["cpu_s"],
        "peak MB": max(one["peak_mb"] for one in ours),
        "largest difference, float64": compared["float64"]["largest_difference"],
    }
    return {
        "what": f"graph of {len(prompt())} tokens, {compared['float32']['rows']} rows, "
        f"{compared['float32']['columns']} nodes that both programs have",
        "threads": torch.get_num_threads(),
        "ours": ours,
        "circuit-tracer": theirs,
        "compared": compared,
        "bars": {n: {"bar": bar, "is": kind, "reached": reached[n]} for n, (bar, kind) in BARS.items()},
        "load_average": {"before": loads[0], "between": loads[1], "after": os.getloadavg()},
    }  # fmt: skip


def table(result: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    if "skipped" in result:
        return [f"circuit_tracer skipped: {result['skipped']}"]
    lines = [result["what"]]
    for name, t in [*(("ours", t) for t in result["ours"]), ("circuit-tracer", result["circuit-tracer"])]:  # fmt: skip
        lines.append(
            f"{name:<16}{t['wall_s']:>8.1f} s{t['cpu_s']:>8.1f} CPU s{t['peak_mb']:>8.0f} MB"
        )
    for dtype, found in result["compared"].items():
        lines.append(
            f"{dtype}: {found['rows']} rows differ by at most {found['largest_difference']:.2g} of their largest edge"
        )
    for name, entry in result["bars"].items():
        sign = 1 if entry["is"] == "least" else -1
        met = sign * entry["reached"] >= sign * entry["bar"]
        lines.append(
            f"{name}: {entry['reached']:.3g}, bar at {entry['is']} {entry['bar']:g}: {'met' if met else 'MISSED'}"
        )
    before, after = result["load_average"]["before"][0], result["load_average"]["after"][0]
    return [
        *lines,
        f"threads {result['threads']}, load average {before:.1f} before, {after:.1f} after",
    ]


def single(folder: Path, dtype: str) -> dict[str, float]:
    """Make our graph of the folder's job; return its seconds and the peak memory of this process."""
    from mechatlas.circuits.graphs.graph import save_graph

    model = make_model(dtype=dtype)
    wall, cpu = time.perf_counter(), time.process_time()
    graph = make_graph(model, folder / "clt.safetensors")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    status = Path("/proc/self/status").read_text().splitlines()
    high = next(line for line in status if line.startswith("VmHWM"))
    save_graph(folder / f"ours.{dtype}.safetensors", graph, {})
    return {"wall_s": wall, "cpu_s": cpu, "peak_mb": int(high.split()[1]) / 1024}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--single", type=Path, required=True)
    parser.add_argument("--dtype", required=True)
    given = parser.parse_args()
    print(json.dumps(single(given.single, given.dtype)))
