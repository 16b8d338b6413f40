"""The page docs/scale.md, written from the shipped measurements."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import yaml

from mechatlas.config import complete_config
from mechatlas.costs.circuit_passes import edge_passes, node_passes
from mechatlas.costs.estimate import GPU_RATE, Cost, estimate, read_rates, short
from mechatlas.costs.shapes import KNOWN, Shape, shape_of
from mechatlas.costs.work import TASK_TOKENS, work_of

REPOSITORY = Path(__file__).resolve().parents[4]
TOKENS = (10**6, 10**7, 10**8, 10**9)
MODELS = {
    "demo-4l": None,
    "GPT-2": "openai-community/gpt2",
    "GPT-2 XL": "openai-community/gpt2-xl",
    "a 7-billion-parameter Llama": "meta-llama/Llama-2-7b-hf",
}
WINDOW = 128
STAGES = {
    "heads: capture": ("capture_heads", "merge_events"),
    "heads: explain and score": (
        "explain_heads", "score_heads", "replace_heads", "summarise_scores", "cluster_explanations",
        "report_heads", "render_heads",
    ),
    "one autoencoder a layer, 8 d latents": ("train_sae", "evaluate_sae", "capture_latents", "merge_latents"),
    "cross-layer transcoder, 8 d features": ("train_clt", "evaluate_clt"),
    "circuits of one task": (
        "prepare_prompts", "measure_components", "prune_nodes", "trace_edges", "compare_circuits",
        "render_circuits",
    ),
}  # fmt: skip
INTRODUCTION = """# What a large run costs

Written by `python -m mechatlas.costs --docs`; a test compares it. The same forecast for a configuration of your
own, rule by rule:

    snakemake forecast_resources --configfile config/gpt2.yaml      # prints a table; nothing else is run
    python -m mechatlas.costs config/gpt2.yaml --gpu benchmarks/results/gpu.json

## How it is computed

Every rule has a law for its work (`workflow/scripts/mechatlas/costs/work.py`): a forward pass takes 2 N
operations for each token (N: weights of the blocks), 4 H d_head T more in each layer for attention over T
tokens, and 2 V d for logits; a training step of an autoencoder with F latents takes five products, 10 F d; what
is done for every head takes as many forward passes as there are heads, and what is done for every edge grows with
their number, as (L H)^2 (`workflow/scripts/mechatlas/costs/circuit_passes.py`). Seconds for a unit of work, and the
start-up of a job, come from two measured runs on two shared cores (`resources/benchmarks/runs.csv`, processor
seconds; recorded by `python -m mechatlas.costs --record`).

Assumptions:

- Products become faster with width, from what was measured on the embedded models to {rate:.0f} GFLOP/s a core
  at width 768 (a capture, `benchmarks/results/capture.json`), and not beyond.
- A GPU does {gpu:.0f} TFLOP/s in the products of rules that ask for one: what an H200 did in a long capture at the
  shape of GPT-2 small in float32, events included (`benchmarks/results/gpu.json`). Training and patching were
  faster there, and larger models are. `make bench-gpu` measures yours.
- Memory is that of weights in float32 (`dtype: bfloat16` halves it), of gradients and moments in training, and
  of one batch.
- Disk counts windows, patterns, activations, latent codes and weights. Tables, figures and pages are small
  beside them.
- Language models are not in it: `snakemake forecast` tells requests, tokens and price.

What it is good for: orders of magnitude. Two points cannot tell apart start-up and work of a rule whose work
hardly differed, and no model wider than the embedded ones has been run through every rule. What was measured is
in `docs/performance.md`.

## One source, windows of {window} tokens

Processor time without a GPU, or GPU hours with one (the start-up of jobs included); largest memory of a job;
disk. Chunks have at most {chunk:,} windows, so that the jobs of a capture can run side by side. Explanations, and each
of patching, pruning and edges of a task, are one job here; `explain.units_per_job`, `circuits.layers_per_job` and
`circuits.parts_per_job` spread them over several ([how](cluster.md#few-long-jobs)), at the price of one start-up and
one loaded model for each job.
"""
SPREAD = """
## What of a circuit can be spread

One task with `circuits.edges` and `circuits.nodes` of `config/paper-ioi.yaml`, {prompts} prompts to find circuits on
and as many held out, by the laws above, in TFLOP. A GPU as above does {gpu_hour:,.0f} in an hour, a core
{core_hour:,.0f}.

| rule | part | {names} | in how many pieces |
|---|---|---{columns}|---|
{rows}

Pieces are what `circuits.parts_per_job` deals out to jobs (`trace_parts`, `prune_halves`). With many prompts paths,
curves and pruning grow; ACDC and exact effects only with their own `acdc_prompts` and `exact_prompts`. Every job that
needs a ranking of the edges makes it anew, by attribution.

What is not spread is a search in which each decision waits for the one before; it is one piece, however many jobs
there are:

- An order of ACDC. Fewer `acdc_prompts` shorten it.
- The smallest circuit: edges are removed one by one (`edges.minimise: false` leaves that out). The law has only the
  sizes that are tried before; how many edges are left to remove is not known before the run.
- The greedy pruning of nodes, and the pruning without an order. That one tries all nodes that are left in each
  round, so it grows with the square of their number, and from GPT-2 on `prune_nodes` takes longest for it.
  `nodes.least_harmful_step` shortens it: twice the step, half the rounds (`config/paper-llama2.yaml` removes 64 at
  once).

What judges a circuit (knock-outs, curves, random circuits) needs that circuit, and stays with the search for it.
"""
PIECES = (
    ("trace_edges", "acdc", "orders of ACDC", "one for each order"),
    ("trace_edges", "paths", "paths", "one for each input of the `path_receivers` nodes, and the logits"),
    ("trace_edges", "curves", "curves", "one for each method, ranked by strength and by sign"),
    ("trace_edges", "smallest", "smallest circuit", "one"),
    ("trace_edges", "exact", "exact effects of edges", "one for each layer"),
    ("trace_edges", "rest", "attribution, curves of exact effects, random edges", "not spread"),
    ("prune_nodes", "halves", "stability", "one for each half of the prompts"),
    ("prune_nodes", "least_harmful", "pruning without an order", "not spread"),
    ("prune_nodes", "greedy", "greedy pruning", "not spread"),
    ("prune_nodes", "judged", "knock-outs, curves, random circuits", "not spread"),
)  # fmt: skip
PAPER = "paper-ioi.yaml"
CHUNK = 10_000


def page() -> str:
    """Return the page."""
    lines = [
        INTRODUCTION.format(
            rate=max(read_rates().values()) / 1e9, gpu=GPU_RATE / 1e12, window=WINDOW, chunk=CHUNK
        )
    ]
    for name, hub in MODELS.items():
        shape = _shape(name, hub)
        lines += [
            "",
            f"### {name}: {shape.layers} layers, width {shape.d}, {shape.all_weights / 1e6:,.0f} million weights",
        ]
        lines += [
            "",
            "| tokens | stage | jobs | core hours | GPU hours | GB a job | GB disk |",
            "|---|---|---|---|---|---|---|",
        ]
        for tokens in TOKENS:
            costs = {cost.rule: cost for cost in _costs(shape, tokens)}
            for stage, rules in STAGES.items():
                chosen = [costs[rule] for rule in rules if rule in costs]
                # Circuits do not depend on the corpus.
                if stage.startswith("circuits") and tokens != TOKENS[0]:
                    continue
                lines.append(_row(tokens, stage, chosen))
    return "\n".join([*lines, _spread_page()]) + "\n"


def _spread_page() -> str:
    """Return the part of the page on what jobs can share."""
    paper = yaml.safe_load((REPOSITORY / "config" / PAPER).read_text(encoding="utf-8"))
    task, circuits = paper["tasks"]["ioi"], _config(KNOWN[MODELS["GPT-2"]], 1)["circuits"]
    passes = {"trace_edges": {}, "prune_nodes": {}}
    shapes = {name: _shape(name, hub) for name, hub in MODELS.items()}
    for name, shape in shapes.items():
        one = shape.forward(TASK_TOKENS, TASK_TOKENS) / 1e12
        edges = edge_passes(circuits["edges"] | paper["circuits"]["edges"], shape, task)
        nodes = node_passes(circuits["nodes"] | paper["circuits"]["nodes"], shape, task)
        passes["trace_edges"][name] = {part: one * x for part, x in edges.items()}
        passes["prune_nodes"][name] = {part: one * x for part, x in nodes.items()}
    rows = [
        f"| `{rule}` | {what} | "
        + " | ".join(short(passes[rule][name][part]) for name in shapes)
        + f" | {pieces} |"
        for rule, part, what, pieces in PIECES
    ]
    return SPREAD.format(
        prompts=task["prompts"], names=" | ".join(shapes), columns="|---" * (len(shapes) - 1),
        gpu_hour=GPU_RATE * 3600 / 1e12, core_hour=max(read_rates().values()) * 3600 / 1e12, rows="\n".join(rows),
    ).rstrip("\n")  # fmt: skip


def _row(tokens: int, stage: str, costs: list[Cost]) -> str:
    of = "" if stage.startswith("circuits") else f"10^{round(math.log10(tokens))}"
    numbers = [
        sum(c.core_hours for c in costs),
        sum(c.gpu_hours for c in costs),
        max(c.memory_gb for c in costs),
        sum(c.disk_gb for c in costs),
    ]
    jobs = sum(c.jobs for c in costs)
    return f"| {of} | {stage} | {jobs:,.0f} | {' | '.join(map(short, numbers))} |"


def _costs(shape: Shape, tokens: int) -> list[Cost]:
    """Return the costs of a run over so many tokens of one source."""
    return estimate(work_of(_config(shape, tokens), {"model": shape}), shape.d)


def _config(shape: Shape, tokens: int) -> dict[str, Any]:
    raw = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text(encoding="utf-8"))
    config = copy.deepcopy(complete_config(raw, REPOSITORY, REPOSITORY))
    config["models"] = {"model": {}}
    config["sources"] = {"source": {}}
    config["tasks"] = {"ioi": {**config["tasks"]["ioi"], "models": None}}
    config["graphs"] = {}
    config["sampling"] |= {"windows": -(-tokens // WINDOW), "window_len": WINDOW}
    config["capture"]["chunk_windows"] = CHUNK
    sizes = {"models": None, "sources": None, "tokens": tokens}
    config["dictionaries"] = {
        "sae": {**config["dictionaries"]["resid"], **sizes, "latents": 8 * shape.d, "k": 32}
    }
    config["transcoders"] = {
        "clt": {**config["transcoders"]["clt"], **sizes, "features": 8 * shape.d}
    }
    return config


def _shape(name: str, hub: str | None) -> Shape:
    if hub is not None:
        return KNOWN[hub]
    return shape_of(name, {}, REPOSITORY / "resources" / "models" / name)
