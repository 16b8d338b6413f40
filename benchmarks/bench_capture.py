"""Capture of all heads' events against bare forward passes of the same windows, at the shape of GPT-2 small.

Peers, all in float32 on the same threads, interleaved, best of several repeats:

- ``forward``: our forward pass, fused attention, no vocabulary logits: the least that a capture must pay (the
  strict reference);
- ``forward explicit``: the same with the attention pattern made, which every capture of patterns needs;
- ``transformers``: its GPT-2 with fused attention and logits, what most scripts run;
- ``run_with_cache``: TransformerLens keeping patterns and values of all layers.

On a shared machine compare CPU seconds with OMP_NUM_THREADS=1: with more threads, CPU time counts idle threads that
wait for a core held by another job.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257, "n_positions": 1024}
WINDOW_LEN, BATCH = 192, 8


def save_model(folder: Path) -> None:
    """Write a random model of GPT-2 small's shape in Hugging Face form."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(**SHAPE)).save_pretrained(folder)


def save_windows(path: Path, count: int) -> None:
    """Write ``count`` windows of random tokens, a document each, in three splits."""
    from mechatlas.corpus.windows import Windows, write_windows

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, SHAPE["vocab_size"], (count, WINDOW_LEN)).astype(np.int32)
    tokens[:, 0] = SHAPE["vocab_size"] - 1
    splits = (np.arange(count) % 3).astype(np.int8)
    docs = np.array([f"d{i}" for i in range(count)], dtype=object)
    sample = np.arange(count) < 0.1 * count
    write_windows(path, Windows(tokens, docs, splits, np.zeros(count, np.int32), sample))


def measure(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Return wall and CPU seconds of the fastest repeat of each run; the runs take turns."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(repeats):
        for name, run in runs.items():
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            old = best.get(name, {"wall_s": np.inf, "cpu_s": np.inf})
            best[name] = {"wall_s": min(wall, old["wall_s"]), "cpu_s": min(cpu, old["cpu_s"])}
    return best


def forward_flops(windows: int, *, logits: bool) -> float:
    """Return the floating-point operations of forward passes (two per multiplication and addition)."""
    d, tokens = SHAPE["n_embd"], windows * WINDOW_LEN
    matrices = SHAPE["n_layer"] * 12 * d * d + (SHAPE["vocab_size"] * d if logits else 0)
    return tokens * (2 * matrices + 4 * SHAPE["n_layer"] * d * WINDOW_LEN)


def ratios(folder: Path, windows: int, repeats: int, lens: bool) -> dict[str, Any]:
    """Time capture and its references on the same windows."""
    import torch
    from transformers import GPT2LMHeadModel

    from mechatlas.capture.sweep import CaptureSettings, capture_chunk
    from mechatlas.corpus.windows import read_windows
    from mechatlas.models.transformer import load

    path = folder / "windows.parquet"
    save_windows(path, windows)
    model = load(folder / "model")
    reference = GPT2LMHeadModel.from_pretrained(folder / "model", attn_implementation="sdpa").eval()
    batches = torch.from_numpy(read_windows(path).tokens.astype(np.int64)).split(BATCH)

    @torch.inference_mode()
    def over(run: Callable[[Any], Any]) -> None:
        for batch in batches:
            run(batch)

    seen = {"pattern": lambda value, layer: None}
    settings = CaptureSettings(batch_windows=BATCH)
    runs = {
        "forward": lambda: over(lambda x: model.forward(x, logits=False)),
        "capture": lambda: capture_chunk(
            model, path, folder / "chunk", first=0, stop=windows, settings=settings
        ),
        "forward explicit": lambda: over(lambda x: model.forward(x, seen, logits=False)),
        "transformers": lambda: over(lambda x: reference(x, use_cache=False)),
    }
    if lens:
        bridge = _bridge(folder / "model")
        names = lambda name: name.endswith(("hook_pattern", "hook_v"))  # noqa: E731
        runs["run_with_cache"] = lambda: over(
            lambda x: bridge.run_with_cache(x, names_filter=names)
        )
    over(lambda x: model.forward(x[:1], logits=False))
    times = measure(runs, repeats)
    for name, entry in times.items():
        entry["tokens_per_s"] = windows * WINDOW_LEN / entry["wall_s"]
        flops = forward_flops(windows, logits=name in ("transformers", "run_with_cache"))
        entry["gflop_per_s"] = flops / entry["wall_s"] / 1e9
        entry["capture_over_this_wall"] = times["capture"]["wall_s"] / entry["wall_s"]
        entry["capture_over_this_cpu"] = times["capture"]["cpu_s"] / entry["cpu_s"]
    return times


def growth(folder: Path, sizes: list[int]) -> list[dict[str, float]]:
    """Time a capture of each size in a process of its own and report its peak memory."""
    rows = []
    for windows in sizes:
        save_windows(folder / "windows.parquet", windows)
        command = [sys.executable, __file__, "--single", str(folder), "--windows", str(windows)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def marginal(result: dict[str, Any]) -> dict[str, float]:
    """Return seconds per further window, and their ratio to the bare forward pass of a window.

    This is the cost in a long run, without what a chunk pays once (opening and writing its files).
    """
    first, *_, last = result["growth"]
    bare, windows = result["times"]["forward"], last["windows"] - first["windows"]
    out = {}
    for key in ("wall_s", "cpu_s"):
        out[key] = (last[key] - first[key]) / windows
        out[f"{key}_ratio"] = out[key] / (bare[key] / result["windows"])
    return out


def single(folder: Path, windows: int) -> dict[str, float]:
    """Capture once; return size, seconds and peak resident memory before and after."""
    from mechatlas.capture.sweep import CaptureSettings, capture_chunk
    from mechatlas.models.transformer import load

    model = load(folder / "model")
    settings = CaptureSettings(batch_windows=BATCH)
    path = folder / "windows.parquet"
    start, cpu = time.perf_counter(), time.process_time()
    capture_chunk(model, path, folder / "chunk", first=0, stop=windows, settings=settings)
    return {
        "windows": windows,
        "wall_s": time.perf_counter() - start,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": peak_mb(),
    }


def peak_mb() -> float:
    """Return the peak resident memory of this process in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike getrusage, this does not count what the parent process had when it started this one.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(quick: bool = False) -> dict[str, Any]:
    """Run the whole benchmark and return its results."""
    import torch

    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "model")
        result = {
            "what": "capture of all heads' events, GPT-2-small shape, float32",
            "threads": torch.get_num_threads(),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "window_len": WINDOW_LEN,
            "batch_windows": BATCH,
            "windows": 16 if quick else 32,
        }
        result["times"] = ratios(folder, result["windows"], 2 if quick else 4, lens=not quick)
        result["growth"] = growth(folder, [8, 16, 32] if quick else [16, 48, 96])
    result["marginal"] = marginal(result)
    result["load_average"] = {"before": load_before, "after": os.getloadavg()}
    return result


def table(result: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    head = f"{'run':<18}{'wall s':>9}{'CPU s':>9}{'tokens/s':>10}{'GFLOP/s':>9}{'capture/this':>14}{'CPU':>7}"
    lines = [result["what"], head]
    for name, t in result["times"].items():
        lines.append(
            f"{name:<18}{t['wall_s']:>9.2f}{t['cpu_s']:>9.2f}{t['tokens_per_s']:>10.0f}{t['gflop_per_s']:>9.0f}"
            f"{t['capture_over_this_wall']:>14.2f}{t['capture_over_this_cpu']:>7.2f}"
        )
    lines.append(f"{'windows':<18}{'wall s':>9}{'CPU s':>9}{'peak MB':>10}{'s/window':>9}")
    for row in result["growth"]:
        per_window = row["wall_s"] / row["windows"]
        lines.append(
            f"{row['windows']:<18}{row['wall_s']:>9.2f}{row['cpu_s']:>9.2f}{row['peak_mb']:>10.0f}{per_window:>9.3f}"
        )
    m = result["marginal"]
    lines.append(
        f"per further window: {m['wall_s']:.3f} s wall ({m['wall_s_ratio']:.2f} of a bare forward), "
        f"{m['cpu_s']:.3f} s CPU ({m['cpu_s_ratio']:.2f})"
    )
    before, after = result["load_average"]["before"][0], result["load_average"]["after"][0]
    lines.append(
        f"threads {result['threads']}, load average {before:.1f} before, {after:.1f} after"
    )
    return lines


def _bridge(folder: Path) -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--single", type=Path)
    parser.add_argument("--windows", type=int)
    given = parser.parse_args()
    print(json.dumps(single(given.single, given.windows)))
