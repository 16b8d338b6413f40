"""Dictionaries against the matrix products that they cannot do without.

Ratios of processor seconds, measured interleaved in one process on one thread, at the width of GPT-2 small:

- ``encode``: latents of tokens, and where they are active, over the bare matrix product of tokens and encoder;
- ``decode``: TopK's sparse decode (`decode_topk`), the same by gather and index_add and by a CSR matrix, over the dense
  product;
- ``step``: a training step with sparse and with dense gradients, over the dense matrix products of a step (encoder and
  decoder, forward and backward: five of N x F x d);
- ``stream``: bytes of activations read for each token, seconds and peak memory for growing numbers of windows, each in
  a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench_capture import measure, peak_mb

D, WINDOW_LEN = 768, 128
PLACE = ("resid_post", 0)


def encode_ratio(tokens: int, latents: int, repeats: int) -> dict[str, Any]:
    """Time encoding with the choice of active latents against the bare product."""
    import torch

    from mechatlas.dictionaries.activations import ReLU
    from mechatlas.dictionaries.autoencoder import SparseAutoencoder

    draw = torch.Generator().manual_seed(0)
    encoder = torch.randn(latents, D, generator=draw) / D**0.5
    x = torch.randn(tokens, D, generator=draw)
    # About two in a thousand are active, as in published dictionaries.
    bias = torch.full((latents,), -2.9)
    sae = SparseAutoencoder(encoder, bias, encoder, torch.zeros(D), ReLU())
    weight = encoder.T
    runs = {
        "product": lambda: x @ weight,
        "encode": lambda: sae.encode(x),
        "encode and select": lambda: sae.active(x),
    }
    times = measure(runs, repeats)
    found = len(sae.active(x)[2]) / tokens
    return _over(times, "product") | {"tokens": tokens, "latents": latents, "active": found}


def decode_ratio(tokens: int, latents: int, k: int, repeats: int) -> dict[str, Any]:
    """Time ways to decode k latents per token against the dense product."""
    import torch

    from mechatlas.dictionaries.sparse import decode_topk

    draw = torch.Generator().manual_seed(0)
    decoder = torch.randn(latents, D, generator=draw)
    indices = torch.rand(tokens, latents, generator=draw).topk(k).indices
    values = torch.rand(tokens, k, generator=draw)
    dense = torch.zeros(tokens, latents).scatter(1, indices, values)
    rows = torch.arange(tokens).repeat_interleave(k)
    offsets = torch.arange(0, tokens * k + 1, k)

    def gathered() -> Any:
        parts = decoder[indices.flatten()] * values.flatten()[:, None]
        return torch.zeros(tokens, D).index_add_(0, rows, parts)

    def csr() -> Any:
        parts = offsets, indices.flatten(), values.flatten()
        matrix = torch.sparse_csr_tensor(*parts, dense.shape, check_invariants=False)
        return matrix @ decoder

    runs = {
        "dense product": lambda: dense @ decoder,
        "decode_topk": lambda: decode_topk(values, indices, decoder),
        "gather and index_add": gathered,
        "csr": csr,
    }
    return _over(measure(runs, repeats), "dense product") | {
        "tokens": tokens,
        "latents": latents,
        "k": k,
    }


def step_ratio(tokens: int, latents: int, k: int, repeats: int) -> dict[str, Any]:
    """Time a training step with sparse and with dense gradients against its dense matrix products."""
    import torch

    from mechatlas.dictionaries import trainer as training
    from mechatlas.dictionaries.settings import TrainingSettings

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, D, generator=draw)
    settings = TrainingSettings(latents=latents, k=k, tokens=10**9, batch_tokens=tokens)
    scaling = training.Scaling(torch.zeros(D), torch.zeros(D), 1.0, 1.0)
    trainer = training.SparseTrainer(settings, PLACE, PLACE, scaling)
    encoder, z = torch.randn(latents, D), torch.randn(tokens, latents)

    def floor() -> None:
        x @ encoder.T, z @ encoder, z.T @ x, z.T @ x, x @ encoder.T

    def step(below: float) -> None:
        with sparse_below(below):
            trainer.update(trainer.loss({PLACE: x}, 0), 0)

    runs = {
        "five products": floor,
        "sparse step": lambda: step(1.0),
        "dense step": lambda: step(0.0),
    }
    times = measure(runs, repeats)
    return _over(times, "five products") | {
        **{"tokens": tokens, "latents": latents, "k": k, "density": k / latents},
        "dense_over_sparse": times["dense step"]["cpu_s"] / times["sparse step"]["cpu_s"],
    }


@contextlib.contextmanager
def sparse_below(share: float) -> Iterator[None]:
    """Force the trainer's choice between sparse and dense steps, which it makes by the share of active latents."""
    from mechatlas.dictionaries import trainer as training

    usual, training.SPARSE_BELOW = training.SPARSE_BELOW, share
    try:
        yield
    finally:
        training.SPARSE_BELOW = usual


def growth(folder: Path, sizes: list[int]) -> list[dict[str, float]]:
    """Stream one epoch of each size in a process of its own."""
    rows = []
    for windows in sizes:
        command = [sys.executable, __file__, "--single", str(folder), "--windows", str(windows)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def single(folder: Path, windows: int) -> dict[str, float]:
    """Write shards of so many windows, stream them once; return seconds, bytes read per token and peak memory."""
    from mechatlas.capture.patterns import activation_file
    from mechatlas.capture.shards import ShardWriter
    from mechatlas.dictionaries.stream import ActivationStream

    chunk = folder / f"{windows}"
    chunk.mkdir()
    shape = (windows * WINDOW_LEN, D)
    arrays = {"activations": ("float32", shape), "windows": ("int32", (windows,))}
    shard = ShardWriter(chunk / activation_file(*PLACE), arrays, {})
    row = np.random.default_rng(0).normal(size=(WINDOW_LEN, D)).astype(np.float32)
    for _ in range(windows):
        shard.write("activations", row)
    shard.write("windows", np.arange(windows, dtype=np.int32))
    shard.close()
    start, cpu = time.perf_counter(), time.process_time()
    stream = ActivationStream(
        [chunk], [PLACE], range(windows), batch_tokens=1024, buffer_windows=128
    )
    steps = stream.tokens_per_epoch // 1024
    for step in range(steps):
        stream.batch(step)
    return {
        "windows": windows,
        "wall_s": time.perf_counter() - start,
        "cpu_s": time.process_time() - cpu,
        "bytes_per_token": stream.bytes_read / (steps * 1024),
        "peak_mb": peak_mb(),
    }


def run(quick: bool = False) -> dict[str, Any]:
    """Run the whole benchmark and return its results."""
    import torch

    torch.set_num_threads(1)
    load_before = os.getloadavg()
    repeats = 2 if quick else 5
    latents = 8192 if quick else 32768
    with tempfile.TemporaryDirectory() as name:
        result = {
            "what": "dictionaries at width 768, float32, one thread",
            "encode": encode_ratio(256 if quick else 1024, latents, repeats),
            "decode": decode_ratio(256 if quick else 1024, latents, 32, repeats),
            "step": [
                step_ratio(512, 4096 if quick else 16384, k, repeats)
                for k in ((82,) if quick else (32, 328))
            ],
            "stream": growth(Path(name), [256, 512] if quick else [512, 1024, 2048]),
        }
    return result | {"load_average": {"before": load_before, "after": os.getloadavg()}}


def table(result: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    lines = [result["what"]]
    parts = [("encode", result["encode"]), ("decode", result["decode"])]
    for name, part in [*parts, *(("step", step) for step in result["step"])]:
        sizes = ", ".join(
            f"{key} {part[key]:g}" for key in part if key not in ("times", "dense_over_sparse")
        )
        lines.append(f"{name}: {sizes}")
        for run_name, t in part["times"].items():
            lines.append(f"  {run_name:<24}{t['cpu_s'] * 1e3:>10.1f} ms{t['ratio']:>8.2f}")
    lines.append(f"{'windows':<10}{'CPU s':>9}{'bytes/token':>13}{'peak MB':>10}{'ms/window':>11}")
    for row in result["stream"]:
        lines.append(
            f"{row['windows']:<10}{row['cpu_s']:>9.2f}{row['bytes_per_token']:>13.0f}{row['peak_mb']:>10.0f}"
            f"{1e3 * row['cpu_s'] / row['windows']:>11.2f}"
        )
    before, after = result["load_average"]["before"][0], result["load_average"]["after"][0]
    return [*lines, f"load average {before:.1f} before, {after:.1f} after"]


def _over(times: dict[str, dict[str, float]], floor: str) -> dict[str, Any]:
    for entry in times.values():
        entry["ratio"] = entry["cpu_s"] / times[floor]["cpu_s"]
    return {"times": times}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--single", type=Path)
    parser.add_argument("--windows", type=int)
    given = parser.parse_args()
    print(json.dumps(single(given.single, given.windows)))
