"""Greedy sampling with a cache of keys and values: tokens per second, against transformers' ``generate``.

Same weights, prompts, number of new tokens and threads, float32; the runs take turns, best of several repeats:

- ``ours``: `mechatlas.models.sampling.sample`;
- ``generate``: transformers with its key-value cache, greedy; ragged prompts are padded on the left, with a mask;
- ``products``: the floor. Only the matrix products of the weights, once for all prompt tokens and then for each further
  token: nothing that samples can do without them.

Shapes: GPT-2 small with random weights, and the embedded model demo-4l. ``rows`` prompts at once; the ``ragged`` ones
have 8 to 48 tokens, the others 32. The tokens of both are compared (``equal``). On a shared machine
compare CPU seconds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench_capture import measure, peak_mb, save_model

DEMO = Path(__file__).resolve().parents[1] / "resources" / "models" / "demo-4l"
LENGTH, SHORTEST, LONGEST = 32, 8, 48
CASES = (
    ("gpt2-small shape", 1, False), ("gpt2-small shape", 8, False), ("gpt2-small shape", 8, True),
    ("demo-4l", 1, False), ("demo-4l", 16, False), ("demo-4l", 16, True),
)  # fmt: skip


def make_prompts(vocab: int, rows: int, ragged: bool) -> list[list[int]]:
    """Return random prompts, of one length or of several."""
    rng = np.random.default_rng(rows)
    lengths = rng.integers(SHORTEST, LONGEST + 1, rows) if ragged else [LENGTH] * rows
    return [rng.integers(1, vocab, length).tolist() for length in lengths]


def generate(reference: Any, prompts: list[list[int]], new: int) -> list[list[int]]:
    """Continue prompts greedily with transformers."""
    import torch

    width = max(map(len, prompts))
    rows = [([0] * (width - len(p)) + p, [0] * (width - len(p)) + [1] * len(p)) for p in prompts]
    tokens, mask = torch.tensor(rows, device=reference.device).unbind(1)
    with torch.inference_mode():
        out = reference.generate(
            tokens, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0
        )
    return out[:, width:].tolist()


def products(model: Any, prompts: list[list[int]], new: int) -> Callable[[], None]:
    """Return a function that does the matrix products of a run and nothing else."""
    import torch
    from torch.nn.functional import linear

    weights, rows = model.weights, len(prompts)
    matrices = [m for w in weights.layers for m in (w.w_qkv, w.w_o, w.w_up, w.w_down)]
    matrices += [w.w_gate for w in weights.layers if w.w_gate is not None]

    @torch.inference_mode()
    def run() -> None:
        for step in range(new):
            count = rows if step else sum(map(len, prompts))
            widths = {len(m) for m in matrices}
            inputs = {width: matrices[0].new_zeros(count, width) for width in widths}
            for matrix in matrices:
                linear(inputs[len(matrix)], matrix.mT)
            weights.unembedding @ matrices[0].new_zeros(model.config.d_model, rows)

    return run


def case(folder: Path, rows: int, ragged: bool, new: int, repeats: int) -> dict[str, Any]:
    """Time one model, batch and kind of prompts."""
    from transformers import AutoModelForCausalLM

    from mechatlas.models.sampling import sample
    from mechatlas.models.transformer import load

    model = load(folder)
    reference = AutoModelForCausalLM.from_pretrained(folder).eval()
    # Both shall make all tokens: by default transformers stops a row at the end token.
    reference.generation_config.eos_token_id = None
    prompts = make_prompts(model.config.vocab_size, rows, ragged)
    found: dict[str, list[list[int]]] = {}
    runs = {
        "ours": lambda: found.update(ours=sample(model, prompts, new, temperature=0)),
        "generate": lambda: found.update(generate=generate(reference, prompts, new)),
        "products": products(model, prompts, new),
    }
    for run in runs.values():
        run()
    times = measure(runs, repeats)
    for entry in times.values():
        entry["tokens_per_s"] = rows * new / entry["wall_s"]
        entry["tokens_per_cpu_s"] = rows * new / entry["cpu_s"]
    ours = times["ours"]
    return {
        "rows": rows,
        "ragged": ragged,
        "new_tokens": new,
        "times": times,
        "faster_than_generate_wall": times["generate"]["wall_s"] / ours["wall_s"],
        "faster_than_generate_cpu": times["generate"]["cpu_s"] / ours["cpu_s"],
        "over_products_cpu": ours["cpu_s"] / times["products"]["cpu_s"],
        "equal": found["ours"] == found["generate"],
    }


def run(quick: bool = False) -> dict[str, Any]:
    """Run all cases."""
    import torch

    load_before = os.getloadavg()
    cases = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "model")
        save_model(folder)
        for shape, rows, ragged in CASES:
            place, new = (DEMO, 64) if shape == "demo-4l" else (folder, 12 if quick else 32)
            cases.append({"model": shape, **case(place, rows, ragged, new, 1 if quick else 5)})
    return {
        "what": "greedy sampling with a key-value cache, float32",
        "threads": torch.get_num_threads(),
        "cases": cases,
        "peak_mb": peak_mb(),
        "load_average": {"before": load_before, "after": os.getloadavg()},
    }


def table(result: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    lines = [
        result["what"],
        f"{'model':<18}{'prompts':>14}{'tokens/s':>10}{'generate':>10}{'products':>10}"
        f"{'faster':>8}{'CPU':>6}{'/products':>11}  equal",
    ]
    for c in result["cases"]:
        speeds = [c["times"][name]["tokens_per_s"] for name in ("ours", "generate", "products")]
        lines.append(
            f"{c['model']:<18}{c['rows']:>7}{' ragged' if c['ragged'] else '':>7}"
            + "".join(f"{speed:>10.0f}" for speed in speeds)
            + f"{c['faster_than_generate_wall']:>8.2f}{c['faster_than_generate_cpu']:>6.2f}"
            f"{c['over_products_cpu']:>11.2f}  {c['equal']}"
        )
    before, after = result["load_average"]["before"][0], result["load_average"]["after"][0]
    lines.append(
        f"threads {result['threads']}, load average {before:.1f} before, {after:.1f} after"
    )
    return lines
