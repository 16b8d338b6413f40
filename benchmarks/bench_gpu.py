"""The numerical stages on one device, each against what it cannot do without, measured in the same run.

Shape of GPT-2 small with random weights; ``quick`` takes a smaller model and fewer repeats. Parts:

- ``matmul``: the rate of a large product in each number format, and of a copy: the two ceilings;
- ``capture``: a pass that keeps the events of all heads, against bare forward passes of the same windows, and what
  further windows cost;
- ``sampling``: greedy, against transformers' ``generate`` and against reading all weights once for each token;
- ``autoencoder`` and ``transcoder``: a training step, against its dense products;
- ``heads``: the effect of patching every head, against one forward pass for each patched prompt;
- ``edges``: EAP, EAP-IG, curves and exact effects, against two forward passes and one backward pass;
- ``graph``: all rows of an attribution graph, against the products with W_O and W_V that they need.

Where it says ``error``, a result is compared with the CPU's in float64, relative to the largest value (rows of a graph
with what they must sum to). Only torch, numpy and safetensors are needed besides the project (and transformers for its
peers). Times are the median of several repeats after a first run that is not counted; on a GPU the clock is read when
all its work is done.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_circuits
import bench_dictionaries
import bench_edges
import bench_graphs
import bench_sampling
import numpy as np
import torch

from mechatlas.models.config import ModelConfig
from mechatlas.models.precision import set_precision
from mechatlas.models.transformer import Transformer
from mechatlas.models.weights import random_weights

GPT2 = ModelConfig("gpt2", 12, 12, 12, 768, 64, 3072, 1024, 50257, 1e-5, "gelu_new", True)
SMALL = ModelConfig("gpt2", 3, 4, 4, 64, 16, 256, 256, 500, 1e-5, "gelu_new", True)
PRECISIONS = ("float32", "tf32", "bfloat16")
PLACE = ("resid_mid", 0)
MANY = "capture of four times as many"
ENOUGH_SECONDS = 8.0  # a run that has taken so long in all is not repeated


@dataclass(frozen=True)
class Bench:
    """Where and at which size: model, repeats of a measurement, and whether this is a short check."""

    device: torch.device
    config: ModelConfig
    repeats: int
    quick: bool

    def model(
        self, dtype: str = "float32", device: str | torch.device | None = None
    ) -> Transformer:
        """Return the random model in a number format; its weights are the same in all."""
        where = self.device if device is None else device
        number = set_precision(dtype, where)
        return Transformer(self.config, random_weights(self.config, 0, str(where), number), "bench")

    def tokens(self, rows: int, length: int) -> torch.Tensor:
        """Return random tokens on the CPU."""
        generator = torch.Generator().manual_seed(rows + length)
        return torch.randint(1, self.config.vocab_size, (rows, length), generator=generator)

    def wait(self) -> None:
        """Return when the device has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def time(self, runs: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
        """Return median, least and largest seconds of each run, and its peak of device memory; the runs take turns.

        The first turn does not count, but for what takes so long that starting up does not matter.
        """
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        peaks: dict[str, float] = {}
        for turn in range(self.repeats + 1):
            for name, run in runs.items():
                if sum(seconds[name]) > ENOUGH_SECONDS:
                    continue
                gc.collect()
                with self._peak(peaks, name):
                    self.wait()
                    start = time.perf_counter()
                    run()
                    self.wait()
                    taken = time.perf_counter() - start
                if turn or taken > ENOUGH_SECONDS:
                    seconds[name].append(taken)
        return {
            name: {
                "seconds": statistics.median(all_),
                "least": min(all_),
                "largest": max(all_),
                **({"peak_mb": peaks[name]} if name in peaks else {}),
            }
            for name, all_ in seconds.items()
        }

    @contextlib.contextmanager
    def _peak(self, peaks: dict[str, float], name: str) -> Iterator[None]:
        if self.device.type != "cuda":
            yield
            return
        torch.cuda.reset_peak_memory_stats(self.device)
        yield
        peaks[name] = torch.cuda.max_memory_allocated(self.device) / 2**20


def matmul(bench: Bench) -> dict[str, Any]:
    """Measure the ceilings: TFLOP/s of a square product in each format, GB/s of a copy (read and written)."""
    n, bytes_ = (512, 2**24) if bench.quick else (8192, 2**31)
    rates = {}
    for dtype in PRECISIONS:
        number = set_precision(dtype, bench.device)
        a, b = (torch.randn(n, n, device=bench.device).to(number) for _ in "ab")
        seconds = bench.time({"product": lambda a=a, b=b: a @ b})["product"]["seconds"]
        rates[dtype] = 2 * n**3 / seconds / 1e12
    old = torch.empty(bytes_, dtype=torch.uint8, device=bench.device)
    new = torch.empty_like(old)
    copied = bench.time({"copy": lambda: new.copy_(old)})["copy"]["seconds"]
    return {"tflop_per_s": rates, "copy_gb_per_s": 2 * bytes_ / copied / 1e9}


def capture(bench: Bench) -> dict[str, Any]:
    """Time a pass over windows in memory, and the forward passes that it consists of."""
    count, length, batch = (8, 32, 4) if bench.quick else (128, 256, 32)
    out: dict[str, Any] = {"windows": count, "window_len": length, "batch_windows": batch}
    windows, many = (_windows(bench.tokens(n, length).numpy()) for n in (count, 4 * count))
    exact = None
    for dtype in PRECISIONS:
        model = bench.model(dtype)
        batches = bench.tokens(count, length).to(bench.device).split(batch)
        runs = {
            "forward": lambda m=model, b=batches: _forward(m, b),
            "forward with patterns": lambda m=model, b=batches: _forward(
                m, b, {"pattern": lambda value, layer: None}
            ),
            "capture": lambda m=model: _capture(m, windows, batch),
            MANY: lambda m=model: _capture(m, many, batch),
            **_peer_forward(bench, dtype, batches),
        }
        times = bench.time(runs)
        seconds = {name: entry["seconds"] for name, entry in times.items()}
        for name, entry in times.items():
            tokens = count * length * (4 if name == MANY else 1)
            entry["tokens_per_s"] = tokens / entry["seconds"]
        further = (seconds[MANY] - seconds["capture"]) / 3
        out[dtype] = {
            "times": times,
            "capture_over_forward": seconds["capture"] / seconds["forward"],
            "further_windows_over_forward": further / seconds["forward"],
            "forward_tflop_per_s": _flops(bench.config, count, length) / seconds["forward"] / 1e12,
        }  # fmt: skip
        with torch.inference_mode():
            final = model.forward(batches[0][:2], logits=False).double().cpu()
            if exact is None:
                whole = bench.model("float64", "cpu")
                exact = whole.forward(batches[0][:2].cpu(), logits=False)
        out[dtype]["error"] = _error(final, exact)
    return out


def sampling(bench: Bench) -> dict[str, Any]:
    """Time greedy sampling of prompts of one length."""
    from mechatlas.models.sampling import sample

    new, cases = (8, (2,)) if bench.quick else (64, (1, 8, 64))
    out: dict[str, Any] = {"new_tokens": new}
    for dtype in ("float32", "bfloat16"):
        model = bench.model(dtype)
        peer = _peer(bench, dtype)
        for rows in cases:
            prompts = bench_sampling.make_prompts(bench.config.vocab_size, rows, False)
            found: dict[str, Any] = {}
            runs = {
                "ours": lambda m=model, p=prompts, f=found: f.update(
                    ours=sample(m, p, new, temperature=0)
                ),
                "products": bench_sampling.products(model, prompts, new),
            }
            if peer is not None:
                runs["generate"] = lambda t=peer, p=prompts, f=found: f.update(
                    generate=bench_sampling.generate(t, p, new)
                )
            times = bench.time(runs)
            case: dict[str, Any] = {"times": times, "rows": rows, "dtype": dtype}
            case["tokens_per_s"] = rows * new / times["ours"]["seconds"]
            case["over_products"] = times["ours"]["seconds"] / times["products"]["seconds"]
            if peer is not None:
                case["faster_than_generate"] = (
                    times["generate"]["seconds"] / times["ours"]["seconds"]
                )
                case["same_tokens"] = float(
                    np.mean(np.array(found["ours"]) == np.array(found["generate"]))
                )
            out[f"{dtype}, {rows} prompts"] = case
    return out


def autoencoder(bench: Bench) -> dict[str, Any]:
    """Time a training step of a TopK autoencoder with sparse and with dense gradients."""
    from mechatlas.dictionaries import trainer as training
    from mechatlas.dictionaries.settings import TrainingSettings

    d = bench.config.d_model
    tokens, latents, k = (64, 512, 8) if bench.quick else (4096, 24576, 32)
    x = torch.randn(tokens, d, generator=torch.Generator().manual_seed(0)).to(bench.device)
    settings = TrainingSettings(latents=latents, k=k, tokens=10**9, batch_tokens=tokens)
    zero = torch.zeros(d, device=bench.device)
    out: dict[str, Any] = {"tokens": tokens, "latents": latents, "k": k, "width": d}
    for dtype in ("float32", "tf32"):
        set_precision(dtype, bench.device)
        trainer = training.SparseTrainer(
            settings, PLACE, PLACE, training.Scaling(zero, zero, 1.0, 1.0)
        )
        encoder = torch.randn(latents, d, device=bench.device)
        z = torch.randn(tokens, latents, device=bench.device)

        def floor(encoder: Any = encoder, z: Any = z) -> None:
            _ = x @ encoder.T, z @ encoder, z.T @ x, z.T @ x, x @ encoder.T

        def step(below: float, trainer: Any = trainer) -> None:
            with bench_dictionaries.sparse_below(below):
                trainer.update(trainer.loss({PLACE: x}, 0), 0)

        times = bench.time(
            {
                "five products": floor,
                "sparse step": lambda s=step: s(1.0),
                "dense step": lambda s=step: s(0.0),
            }
        )
        out[dtype] = _over(times, "five products", tokens)
    return out


def transcoder(bench: Bench) -> dict[str, Any]:
    """Time a training step of a cross-layer transcoder, against the products of its encoders."""
    from mechatlas.dictionaries.clt import LayerScales
    from mechatlas.dictionaries.clt_settings import CltSettings
    from mechatlas.dictionaries.clt_trainer import CltTrainer

    layers, d = bench.config.n_layers, bench.config.d_model
    tokens, features, k = (64, 128, 4) if bench.quick else (2048, 6144, 16)
    generator = torch.Generator().manual_seed(0)
    batch = {
        (point, layer): torch.randn(tokens, d, generator=generator).to(bench.device)
        for point in ("resid_mid", "mlp_out")
        for layer in range(layers)
    }
    zero, one = torch.zeros(layers, d).to(bench.device), torch.ones(layers).to(bench.device)
    out: dict[str, Any] = {
        "tokens": tokens,
        "features_per_layer": features,
        "k": k,
        "layers": layers,
    }
    encoder = torch.randn(features, d, device=bench.device)
    z = torch.randn(tokens, features, device=bench.device)

    def floor() -> None:
        for layer in range(layers):
            x = batch["resid_mid", layer]
            _ = x @ encoder.T, z.T @ x

    for dtype in ("float32", "tf32"):
        set_precision(dtype, bench.device)
        settings = CltSettings(
            features=features, k=k, tokens=10**9, batch_tokens=tokens, activation="batchtopk"
        )
        trainer = CltTrainer(settings, LayerScales(zero, one, zero, one))
        times = bench.time(
            {
                "encoder products": floor,
                "step": lambda t=trainer: t.update(t.loss(batch, 0), 0),
            }
        )
        out[dtype] = _over(times, "encoder products", tokens)
    return out


def heads(bench: Bench) -> dict[str, Any]:
    """Time the effect of every head's output, and a forward pass of as many patched prompts."""
    from mechatlas.circuits.patching import patch

    model, pairs = bench.model(), 2 if bench.quick else 16
    count = bench.config.n_layers * bench.config.n_heads
    data = bench_circuits.make_pairs(model, pairs)
    prompts = data[1].to(bench.device).repeat(bench.config.n_heads, 1)

    @torch.inference_mode()
    def plain() -> None:
        for _ in range(bench.config.n_layers):
            model.forward(prompts, logits=False)

    times = bench.time({"forward of each patch": plain, "all heads": lambda: patch(model, *data)})
    few = [x[:2] for x in data]
    (ours,), (exact,) = patch(model, *few), patch(bench.model("float64", "cpu"), *few)
    return {
        "pairs": pairs,
        "heads": count,
        "times": times,
        "times_faster": times["forward of each patch"]["seconds"] / times["all heads"]["seconds"],
        "error": _error(
            ours.patched - ours.corrupted.mean(), exact.patched - exact.corrupted.mean()
        ),
    }


def edges(bench: Bench) -> dict[str, Any]:
    """Time edge attribution, curves and exact effects."""
    from mechatlas.circuits.attribution import attribute_edges
    from mechatlas.circuits.exact_edges import exact_edge_effects
    from mechatlas.circuits.metrics import make_metric

    model = bench.model()
    times = bench.time(bench_edges.jobs(model, quick=bench.quick))
    seconds = {name: entry["seconds"] for name, entry in times.items()}
    whole = bench.model("float64", "cpu")
    *prompts, metric = bench_edges.make_pairs(whole, 2)
    right, wrong = metric.answers, metric.wrong
    errors = {}
    methods = {"eap": attribute_edges} | ({"exact": exact_edge_effects} if bench.quick else {})
    for name, method in methods.items():
        ours, exact = (
            method(m, *prompts, make_metric("logit_difference", m, right, wrong)).mean
            for m in (model, whole)
        )
        errors[name] = _error(torch.from_numpy(ours), torch.from_numpy(exact))
    return {
        "pairs": bench_edges.PAIRS,
        "times": times,
        "eap_over_floor": seconds["eap"] / seconds["floor"],
        "eap_ig_over_eap": seconds["eap-ig"] / seconds["eap"],
        "error": errors,
    }


def graph(bench: Bench) -> dict[str, Any]:
    """Time all rows of an attribution graph."""
    from mechatlas.circuits.graphs.run import run_prompt
    from mechatlas.dictionaries.clt_formats import load_clt

    tokens = bench_graphs.prompt() % bench.config.vocab_size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clt.safetensors"
        features = 64 if bench.quick else 4096
        bench_graphs.make_clt(bench.model("float32", "cpu"), path, tokens, features)
        model, clt = bench.model(), load_clt(path, device=str(bench.device))
        run = run_prompt(model, clt, tokens.to(bench.device))
    places = run.active.position.tolist(), run.active.layer.tolist()
    times = bench.time(
        {
            "products": lambda: bench_graphs.floor(model, *places),
            "all rows": lambda: bench_graphs.all_rows(run),
            "run and rows": lambda: bench_graphs.all_rows(
                run_prompt(model, clt, tokens.to(bench.device))
            ),
        }
    )
    return {
        "tokens": len(tokens),
        "active_features": len(run.active),
        "times": times,
        "over_products": times["all rows"]["seconds"] / times["products"]["seconds"],
        "error": bench_graphs.largest_gap(run),
    }


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    part.__name__: part
    for part in (matmul, capture, sampling, autoencoder, transcoder, heads, edges, graph)
}


def run(
    quick: bool, device: str, names: list[str], save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run the named parts (all by default) on a device; a part that fails says why and the others go on.

    ``save`` gets what is there after each part, so that a machine that is taken away leaves the parts before it.
    """
    unknown = set(names) - set(PARTS)
    if unknown:
        sys.exit(f"error: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    bench = Bench(torch.device(device), SMALL if quick else GPT2, 1 if quick else 5, quick)
    out: dict[str, Any] = {"what": "one device, shape of GPT-2 small, random weights", "parts": {}}
    for name in names or PARTS:
        start = time.perf_counter()
        try:
            part = PARTS[name](bench)
        except Exception as error:
            traceback.print_exc()
            part = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        out["parts"][name] = {**part, "part_seconds": time.perf_counter() - start}
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"{name}: {out['parts'][name]['part_seconds']:.0f} s", file=sys.stderr, flush=True)
        save(out)
    return out


def table(result: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    lines = [result["what"], f"{'part':<13}{'run':<26}{'ms':>10}{'peak MB':>9}"]
    for name, part in result["parts"].items():
        lines += _rows(name, part)
    return lines


def _rows(name: str, part: dict[str, Any], label: str = "") -> list[str]:
    """Return a line for each measured time, and one for the plain numbers of a part."""
    if "failed" in part:
        return [f"{name:<13}FAILED {part['failed']}"]
    lines = []
    for run_name, t in part.get("times", {}).items():
        peak = f"{t['peak_mb']:9.0f}" if "peak_mb" in t else ""
        lines.append(f"{name:<13}{f'{run_name} {label}':<26}{1e3 * t['seconds']:10.3f}{peak}")
    plain = {
        key: value
        for key, value in part.items()
        if isinstance(value, int | float) and key not in ("part_seconds", "rows")
    }
    if plain:
        said = ", ".join(f"{key} {value:.4g}" for key, value in plain.items())
        lines.append(f"{name:<13}{label}{' ' if label else ''}{said}")
    for key, value in part.items():
        if isinstance(value, dict) and key != "times":
            lines += _rows(name, value, f"{key}")
    return lines


def _windows(tokens: np.ndarray) -> Any:
    """Return windows, each a document, a few of the first in the pattern sample."""
    from mechatlas.corpus.windows import Windows

    count = len(tokens)
    docs = np.array([f"d{i}" for i in range(count)], dtype=object)
    splits = (np.arange(count) % 3).astype(np.int8)
    sample = np.arange(count) < 12
    return Windows(tokens.astype(np.int32), docs, splits, np.zeros(count, np.int32), sample)


def _capture(model: Transformer, windows: Any, batch: int) -> None:
    """Do what `capture_chunk` does but for reading the windows and writing the tables of events."""
    from mechatlas.capture.sweep import CaptureSettings, Sweep

    settings = CaptureSettings(batch_windows=batch)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        sweep = Sweep(
            model, windows, Path(name), 0, len(windows), settings, {}, windows.tokens.shape[1], batch
        )  # fmt: skip
        sweep.run(windows[start : start + batch] for start in sweep.grid)
        for shard in sweep.shards.values():
            shard.close()


@torch.inference_mode()
def _forward(model: Any, batches: Any, hooks: Any = None) -> None:
    for batch in batches:
        model.forward(batch, hooks, logits=False)


def _peer(bench: Bench, dtype: str) -> Any:
    """Return transformers' model with the same weights, or None without transformers."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return None
    c = bench.config
    config = GPT2Config(
        n_layer=c.n_layers, n_head=c.n_heads, n_embd=c.d_model, vocab_size=c.vocab_size,
        n_positions=c.n_ctx, attn_implementation="sdpa", bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    peer = GPT2LMHeadModel(config).to(bench.device, set_precision(dtype, bench.device)).eval()
    _copy_weights(peer, random_weights(c, 0, str(bench.device), torch.float32))
    return peer


@torch.no_grad()
def _copy_weights(peer: Any, weights: Any) -> None:
    """Give transformers' model our weights, so that both sample the same tokens."""
    body = peer.transformer
    body.wte.weight.copy_(weights.embedding)
    body.wpe.weight.copy_(weights.positions)
    for block, layer in zip(body.h, weights.layers, strict=True):
        parts = (
            (block.ln_1, layer.norm1, layer.norm1_bias),
            (block.attn.c_attn, layer.w_qkv, layer.b_qkv),
            (block.attn.c_proj, layer.w_o, layer.b_o),
            (block.ln_2, layer.norm2, layer.norm2_bias),
            (block.mlp.c_fc, layer.w_up, layer.b_up),
            (block.mlp.c_proj, layer.w_down, layer.b_down),
        )
        for module, weight, bias in parts:
            module.weight.copy_(weight)
            module.bias.copy_(bias)
    body.ln_f.weight.copy_(weights.final_norm)
    body.ln_f.bias.copy_(weights.final_norm_bias)


def _peer_forward(bench: Bench, dtype: str, batches: Any) -> dict[str, Callable[[], None]]:
    peer = _peer(bench, dtype)
    if peer is None:
        return {}

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            peer(batch, use_cache=False)

    return {"transformers": run}


def _flops(config: ModelConfig, windows: int, length: int) -> float:
    """Return the operations of forward passes without the vocabulary."""
    d, layers = config.d_model, config.n_layers
    return (
        windows
        * length
        * (2 * layers * (4 * d * d + 2 * d * config.d_mlp) + 4 * layers * d * length)
    )


def _over(times: dict[str, dict[str, float]], floor: str, tokens: int) -> dict[str, Any]:
    for entry in times.values():
        entry["ratio"] = entry["seconds"] / times[floor]["seconds"]
        entry["tokens_per_s"] = tokens / entry["seconds"]
    ratios = {f"{name} / {floor}": t["ratio"] for name, t in times.items() if name != floor}
    return {"times": times, **ratios}


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest exact value."""
    found, exact = found.double().cpu(), exact.double().cpu()
    return float((found - exact).abs().max() / exact.abs().max())
