"""Circuits at the level of nodes, at the shape of GPT-2 small with random weights: 15 tokens, float32.

- ``head outputs``: the effect of every head's output, all pairs at once; the peer is TransformerLens's own sweep, on
  the same weights and pairs, and the effects have to agree;
- ``knock-outs``: every head and MLP removed from the full model on its own;
- ``node pruning``: one pass over all heads and MLPs, each of which is tried and dropped or kept; here most of them go,
  and what is gone costs nothing any more;
- the reference of both does what the published procedure does for every candidate: two passes over the corrupted
  prompts for the means (heads, then MLPs) and one over the clean ones, all with the whole vocabulary's logits. It is
  timed on a few candidates (their cost is the same) and scaled to all;
- ``memory``: what a sweep needs above the loaded model, with the vocabulary of GPT-2 and with a small one.

On a shared machine compare CPU seconds. The last columns say how busy the machine was and which floating-point rate was
reached (operations that have to be done, per second).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPE = {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257, "n_positions": 1024}
PAIRS, LENGTH, DIFFERENT = 16, 15, (2, 4, 10)
SMALL_VOCAB = 1000


def make_model(vocab: int = SHAPE["vocab_size"]) -> Any:
    """Return a random model of GPT-2 small's shape."""
    import torch

    from mechatlas.models.config import ModelConfig
    from mechatlas.models.transformer import Transformer
    from mechatlas.models.weights import random_weights

    width = SHAPE["n_embd"]
    config = ModelConfig(
        "gpt2", SHAPE["n_layer"], SHAPE["n_head"], SHAPE["n_head"], width, width // SHAPE["n_head"], 4 * width,
        SHAPE["n_positions"], vocab, 1e-5, "gelu_new", True,
    )  # fmt: skip
    return Transformer(config, random_weights(config, 0, "cpu", torch.float32))


def make_pairs(model: Any, pairs: int, *, solved: bool = False) -> tuple[Any, ...]:
    """Return random prompts that differ at three positions, with random answers.

    With ``solved`` the answers are those that give a large logit difference, so that pruning has something to lose.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    vocab = model.config.vocab_size
    clean, other = torch.randint(0, vocab, (2, pairs, LENGTH), generator=generator)
    corrupted = clean.clone()
    corrupted[:, DIFFERENT] = other[:, DIFFERENT]
    answers, wrong = torch.randint(0, vocab, (2, pairs), generator=generator)
    if solved:
        with torch.inference_mode():
            logits = model.unembed(model.forward(clean, logits=False)[:, -1])
        answers, wrong = logits.argmax(1), logits.argmin(1)
    return clean, corrupted, answers, wrong


def sweep_flops(pairs: int) -> float:
    """Return the operations that a sweep over all heads cannot avoid.

    A patched head changes the residual from its layer's MLP on, from the first differing token on; the last block
    needs only keys and values of all those tokens and everything of the last one.
    """
    d, layers, heads = SHAPE["n_embd"], SHAPE["n_layer"], SHAPE["n_head"]
    tokens = LENGTH - DIFFERENT[0]
    middle = sum(8 + 12 * (layers - 2 - layer) + 2 for layer in range(layers - 1))
    last = 8 * layers + 2 * (layers - 1)
    return 2 * d * d * heads * pairs * (middle * tokens + last)


def timed(run: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Return wall and CPU seconds and the machine's load, and the result."""
    gc.collect()
    load, wall, cpu = os.getloadavg()[0], time.perf_counter(), time.process_time()
    result = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_s": wall, "cpu_s": cpu, "load": load}, result


def best_of(repeats: int, run: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Return the fastest of several repeats."""
    return min((timed(run) for _ in range(repeats)), key=lambda r: r[0]["wall_s"])


def head_outputs(folder: Path, pairs: int, repeats: int, lens: bool) -> dict[str, Any]:
    """Time the sweep over all heads, and TransformerLens's."""
    from mechatlas.circuits.backend import choose
    from mechatlas.circuits.patching import patch
    from mechatlas.models.transformer import load

    save_model(folder)
    model = load(folder)
    data = make_pairs(model, pairs)
    ours, (sweep,) = best_of(repeats, lambda: patch(model, *data))
    ours["gflop_per_s"] = sweep_flops(pairs) / ours["wall_s"] / 1e9
    result = {"pairs": pairs, "matmul": choose(), "ours": ours}
    if lens:
        peer, effects = best_of(1, lens_sweep(folder, *data))
        found = sweep.patched[:, :, 0].mean(-1)
        result |= {
            "transformer_lens": peer,
            "times_faster_wall": peer["wall_s"] / ours["wall_s"],
            "times_faster_cpu": peer["cpu_s"] / ours["cpu_s"],
            "largest_difference": float((found - effects).abs().max()),
            "largest_effect": float((found - sweep.corrupted.mean()).abs().max()),
        }
    return result


def lens_sweep(
    folder: Path, clean: Any, corrupted: Any, answers: Any, wrong: Any
) -> Callable[[], Any]:
    """Return TransformerLens's sweep over all head outputs, ready to run."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    rows = torch.arange(len(clean))

    def metric(logits: Any) -> Any:
        return (logits[rows, -1, answers] - logits[rows, -1, wrong]).mean()

    @torch.inference_mode()
    def run() -> Any:
        _, cache = bridge.run_with_cache(clean)
        return patching.get_act_patch_attn_head_out_all_pos(bridge, corrupted, cache, metric)

    return run


def nodes(pairs: int, repeats: int, sample: int) -> dict[str, Any]:
    """Time all knock-outs and one pass of pruning over all 156 nodes, and the reference on some of them."""
    from mechatlas.circuits.ablation import Ablation, without_each

    model = make_model()
    data = make_pairs(model, pairs, solved=True)
    count = SHAPE["n_layer"] * (SHAPE["n_head"] + 1)

    def knock_outs() -> Any:
        ablation = Ablation(model, *data)
        return ablation.values(without_each(ablation.full))

    alone, _ = best_of(repeats, knock_outs)
    times, records = best_of(repeats, lambda: one_pass(model, data))
    plain, scores = best_of(1, lambda: plain_candidates(model, data, records, sample))
    scaled = {key: plain[key] * count / sample for key in ("wall_s", "cpu_s")}
    faster = {
        f"times_faster_{key}": {name: scaled[f"{key}_s"] / t[f"{key}_s"] for name, t in
                                (("knock_outs", alone), ("pruning", times))}
        for key in ("wall", "cpu")
    }  # fmt: skip
    return {
        "pairs": pairs,
        "candidates": len(records),
        "kept": count - sum(r["removed"] for r in records),
        "knock_outs": alone,
        "pruning": times,
        "three_forwards_each": scaled | {"load": plain["load"], "timed_on": sample},
        **faster,
        "largest_difference": max(
            abs(a - b["score"]) for a, b in zip(scores, records, strict=False)
        ),
    }


def one_pass(model: Any, data: tuple[Any, ...]) -> list[Any]:
    """Prune until the second pass begins."""
    from mechatlas.circuits.ablation import Ablation
    from mechatlas.circuits.pruning import PruneSettings, prune

    class SecondPass(Exception):
        pass

    records: list[Any] = []

    def log(record: Any) -> None:
        if record["pass"]:
            raise SecondPass
        records.append(record)

    with contextlib.suppress(SecondPass):
        prune(Ablation(model, *data), PruneSettings(), log=log)
    return records


def plain_candidates(
    model: Any, data: tuple[Any, ...], records: list[Any], sample: int
) -> list[float]:
    """Score the first candidates of a pass with three forward passes each."""
    import torch

    clean, corrupted, answers, wrong = data
    rows, keep = torch.arange(len(clean)), {}

    def difference(hooks: Any) -> float:
        logits = model.forward(clean, hooks)
        return float((logits[rows, -1, answers] - logits[rows, -1, wrong]).mean())

    def means(point: str) -> dict[int, Any]:
        seen: dict[int, Any] = {}
        model.forward(corrupted, {point: lambda v, layer: seen.__setitem__(layer, v.mean(0))})
        return seen

    def score(gone: dict[str, bool]) -> float:
        z_mean, mlp_mean = means("z"), means("mlp_out")

        def z(value: Any, layer: int) -> Any:
            value = value.clone()
            for head in range(SHAPE["n_head"]):
                if gone.get(f"L{layer}.H{head}"):
                    value[:, :, head] = z_mean[layer][:, head]
            return value

        def mlp_out(value: Any, layer: int) -> Any:
            return mlp_mean[layer].expand_as(value) if gone.get(f"L{layer}.mlp") else value

        return difference({"z": z, "mlp_out": mlp_out})

    with torch.inference_mode():
        full, scores = difference({}), []
        for record in records[:sample]:
            scores.append(100 * score({**keep, record["node"]: True}) / full)
            if record["removed"]:
                keep[record["node"]] = True
    return scores


def memory(pairs: int) -> dict[str, dict[str, float]]:
    """Return peak memory of sweep and pruning above the loaded model, in MB, by vocabulary."""
    found = {}
    for vocab in (SHAPE["vocab_size"], SMALL_VOCAB):
        command = [sys.executable, __file__, "--memory", str(vocab), "--pairs", str(pairs)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[str(vocab)] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_memory(vocab: int, pairs: int) -> dict[str, float]:
    """Sweep once and return the resident memory before and its peak above that, in MB."""
    from mechatlas.circuits.patching import patch

    model = make_model(vocab)
    data = make_pairs(model, pairs)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (Linux)
    before = _status("VmRSS")
    patch(model, *data)
    return {"loaded_mb": before, "above_mb": _status("VmHWM") - before}


def save_model(folder: Path) -> None:
    """Write a random model of GPT-2 small's shape in Hugging Face form."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(**SHAPE)).save_pretrained(folder)


def run(quick: bool) -> dict[str, Any]:
    """Run all parts; ``quick`` takes fewer pairs and no TransformerLens sweep of full size."""
    pairs, repeats = (4, 1) if quick else (PAIRS, 2)
    with tempfile.TemporaryDirectory() as folder:
        heads = head_outputs(Path(folder), pairs, repeats, lens=True)
    return {
        "head_outputs": heads,
        "nodes": nodes(pairs, repeats, 3 if quick else 10),
        "memory": memory(pairs),
    }


def table(result: dict[str, Any]) -> list[str]:
    """Return the lines of the printed table."""
    lines = [f"{'':32}{'wall s':>9}{'cpu s':>9}{'load':>7}{'GFLOP/s':>9}{'faster':>9}"]
    heads, nodes = result["head_outputs"], result["nodes"]
    faster = nodes["times_faster_wall"]
    rows = {
        "all head outputs": (heads["ours"], heads["times_faster_wall"]),
        "  TransformerLens": (heads["transformer_lens"], None),
        "all knock-outs": (nodes["knock_outs"], faster["knock_outs"]),
        "node pruning, one pass": (nodes["pruning"], faster["pruning"]),
        "  three forwards per candidate": (nodes["three_forwards_each"], None),
    }
    for name, (found, times) in rows.items():
        rate = f"{found['gflop_per_s']:.0f}" if "gflop_per_s" in found else ""
        numbers = f"{found['wall_s']:9.2f}{found['cpu_s']:9.2f}{found['load']:7.1f}"
        lines.append(f"{name:32}{numbers}{rate:>9}{'' if times is None else f'{times:.1f}x':>9}")
    lines.append(
        f"largest difference from TransformerLens {heads['largest_difference']:.1e} "
        f"(largest effect {heads['largest_effect']:.1e}); matrix product: {heads['matmul']}"
    )
    lines += [
        f"vocabulary {v}: {m['above_mb']:.0f} MB above the model"
        for v, m in result["memory"].items()
    ]
    return lines


def _status(key: str) -> float:
    """Return a line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    given = parser.parse_args()
    print(json.dumps(measure_memory(given.memory, given.pairs)))
