"""How much work each rule has to do: jobs, operations, bytes on disk and in memory.

Operations are floating-point operations where matrix products make up the work (``products``), else a number that grows
as the work does; what one of them costs is measured (see `mechatlas.costs.estimate`). Laws, with L layers, H heads,
width d, T tokens a window, P windows of the pattern sample, F latents or features a layer, k of them active:

- forward pass 2 N + 4 L H d_head T a token (+ 2 V d for logits), a training step five products of a dictionary
  (10 F d a token and layer), that of a cross-layer transcoder 6 F d + 3 k d (L + 1) a token and layer;
- every head on its own (replacing, patching): as many forward passes as there are heads; circuits: as in
  `mechatlas.costs.circuit_passes`, where edges grow as (L H)^2, and so do the rounds of the pruning without an order;
- patterns P L H T^2 numbers of 2 bytes, activations T d numbers of 4 bytes for each point and layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mechatlas.config import sources_of
from mechatlas.config_spread import edge_batches, half_batches, head_batches, latent_batches
from mechatlas.costs.circuit_passes import edge_passes, node_passes
from mechatlas.costs.shapes import Shape
from mechatlas.spread import batch_names

Config = Mapping[str, Any]
TASK_TOKENS = 16  # of a prompt, about
PATTERN_SPLITS = 3
FOREIGN_LATENTS = 32768  # of a dictionary that others made, whose size is in its files
NUMBER = 4  # bytes of a float32
TRAINED_COPIES = 4  # weight, gradient, two moments


@dataclass(frozen=True)
class Work:
    """What the jobs of a rule have to do.

    ``operations`` and ``disk`` (bytes) are of all jobs together, ``memory`` (bytes) is of one, beyond the libraries.
    ``products`` says that operations are those of matrix products; ``gpu`` that a GPU does them if there is one.
    """

    rule: str
    jobs: float
    operations: float
    disk: float = 0.0
    memory: float = 0.0
    products: bool = False
    gpu: bool = False


def work_of(config: Config, shapes: Mapping[str, Shape]) -> list[Work]:
    """Return the work of every rule that makes results with a complete configuration.

    Parameters
    ----------
    config : mapping
        From `mechatlas.config.complete_config`.
    shapes : mapping
        Model's name to its shape.
    """
    found: dict[str, Work] = {}
    for work in _parts(config, shapes):
        old = found.get(work.rule, Work(work.rule, 0, 0.0))
        found[work.rule] = Work(
            work.rule, old.jobs + work.jobs, old.operations + work.operations, old.disk + work.disk,
            max(old.memory, work.memory), work.products, work.gpu,
        )  # fmt: skip
    return [work for work in found.values() if work.jobs]


def captured_points(config: Config, model: str, source: str) -> set[str]:
    """Return the hook points whose activations a capture stores for dictionaries and transcoders."""
    points: set[str] = set(config["capture"]["activations"])
    for entry in _entries(config, "dictionaries", model, source):
        points |= {entry[key] for key in ("reads", "writes") if entry.get(key)}
    for entry in _entries(config, "transcoders", model, source):
        points |= {entry["reads"], "mlp_out"}
    return points


def _parts(config: Config, shapes: Mapping[str, Shape]) -> Iterator[Work]:
    tokens = config["sampling"]["windows"] * config["sampling"]["window_len"]
    for _ in config["sources"]:
        yield Work("prepare_documents", 1, tokens)
    for model, shape in shapes.items():
        for source in sources_of(config, model):
            yield from _heads(config, shape, model, source, tokens)
            for entry in _entries(config, "dictionaries", model, source):
                yield from _dictionary(config, shape, entry, tokens)
            for entry in _entries(config, "transcoders", model, source):
                yield from _transcoder(config, shape, entry, tokens)
        yield from _circuits(config, shape, model)
        yield from _graphs(config, shape, model)


def _heads(config: Config, shape: Shape, model: str, source: str, tokens: int) -> Iterator[Work]:
    sampling, capture, score = config["sampling"], config["capture"], config["score"]
    length, windows = sampling["window_len"], sampling["windows"]
    random = "random_weights" in score["controls"] and "programs" in config["explain"]["explainers"]
    variants, chunks = 1 + random, math.ceil(windows / capture["chunk_windows"])
    heads = shape.layers * shape.heads
    sample = min(PATTERN_SPLITS * sampling["pattern_windows"], windows)
    entries = heads * sample * length**2
    points = len(captured_points(config, model, source))
    # The control stores what dictionaries read, so that it can be measured, too.
    points += random * len(captured_points({**config, "transcoders": {}}, model, source))
    weights = NUMBER * shape.all_weights
    batch = capture["batch_windows"] * shape.heads * length**2 * NUMBER
    yield Work("sample_windows", 1, tokens, disk=NUMBER * tokens)
    yield Work(
        "capture_heads", variants * chunks, variants * shape.forward(tokens, length),
        disk=2 * variants * entries + NUMBER * points * shape.layers * shape.d * tokens,
        memory=weights + 4 * batch, products=True, gpu=True,
    )  # fmt: skip
    yield Work("merge_events", variants, variants * chunks * heads * capture["candidates"])
    steps = config["explain"]["programs"]["steps"]
    layer = NUMBER * sample * shape.heads * length**2
    batches = len(head_batches(shape, config["explain"]["units_per_job"]))
    yield Work(
        "fit_heads" if batches else "explain_heads", variants * (batches or 1),
        variants * entries * steps, memory=4 * layer, gpu=True,
    )  # fmt: skip
    if batches:
        yield Work("explain_heads", variants, 0)
    yield Work("score_heads", variants, variants * entries, memory=2 * layer)
    passes = score["causal_windows"] * (25 + 2 * heads)
    yield Work(
        "replace_heads", 1, passes * shape.forward(length, length, logits=True),
        memory=weights + 3 * batch, products=True, gpu=True,
    )  # fmt: skip
    yield Work("summarise_scores", 1, score["bootstrap"] * heads)
    for rule in ("cluster_explanations", "report_heads", "render_heads"):
        yield Work(rule, 1, heads)


def _dictionary(config: Config, shape: Shape, entry: Config, tokens: int) -> Iterator[Work]:
    layers = shape.layers if entry.get("layers") is None else len(entry["layers"])
    latents = entry.get("latents", FOREIGN_LATENTS)
    size = 2 * latents * shape.d
    length = config["sampling"]["window_len"]
    chunks = math.ceil(config["sampling"]["windows"] / config["capture"]["chunk_windows"])
    weights = NUMBER * shape.all_weights
    encode = 2 * latents * shape.d * tokens * layers
    if entry["kind"] == "trained":
        yield Work(
            "train_sae", 1, 5 * size * entry["tokens"] * layers, disk=NUMBER * size * layers,
            memory=TRAINED_COPIES * NUMBER * size, products=True, gpu=True,
        )  # fmt: skip
    test = config["sampling"]["split"]["test"] * tokens
    yield Work(
        "evaluate_sae", 1, 3 * shape.forward(test, length, logits=True) * layers + 2 * encode,
        memory=weights + NUMBER * size, products=True, gpu=True,
    )  # fmt: skip
    yield Work(
        "capture_latents", chunks, encode, disk=8 * entry.get("k", 32) * tokens * layers,
        memory=NUMBER * size, products=True, gpu=True,
    )  # fmt: skip
    kept = layers * min(config["latents"]["max_latents"], latents)
    yield Work("merge_latents", 1, layers * latents)
    windows = config["latents"]["causal_windows"] + config["latents"]["steering_windows"]
    yield Work(
        "measure_latents", 1, 3 * kept * windows * shape.forward(length, length, logits=True),
        memory=weights, products=True, gpu=True,
    )  # fmt: skip
    batches = len(
        latent_batches(
            shape, entry, config["latents"]["max_latents"], config["explain"]["units_per_job"]
        )
    )
    if batches:
        yield Work("fit_latents", batches, kept)
    yield Work("explain_latents", 1, 0 if batches else kept)
    for rule in ("score_latents", "report_latents", "render_latents"):
        yield Work(rule, 1, kept)


def _transcoder(config: Config, shape: Shape, entry: Config, tokens: int) -> Iterator[Work]:
    layers, d, features = shape.layers, shape.d, entry["features"]
    written = layers * (layers + 1) / 2 if entry["decoders"] == "cross" else layers
    size = features * d * (layers + written)
    step = 6 * features * d * layers + 6 * entry["k"] * d * written
    yield Work(
        "train_clt", 1, step * entry["tokens"], disk=NUMBER * size,
        memory=TRAINED_COPIES * NUMBER * size, products=True, gpu=True,
    )  # fmt: skip
    test = config["sampling"]["split"]["test"] * tokens
    length = config["sampling"]["window_len"]
    yield Work(
        "evaluate_clt", 1, 3 * shape.forward(test, length, logits=True) + step / 3 * test,
        memory=NUMBER * (shape.all_weights + size), products=True, gpu=True,
    )  # fmt: skip


def _circuits(config: Config, shape: Shape, model: str) -> Iterator[Work]:
    circuits, heads = config["circuits"], shape.layers * shape.heads
    memory = NUMBER * shape.all_weights
    tasks = [t for t in config["tasks"].values() if t["models"] is None or model in t["models"]]
    one = shape.forward(TASK_TOKENS, TASK_TOKENS)
    for task in tasks:
        once = (task["prompts"] + task["held_out"]) * one
        swept = len(circuits["patching"]["points"]) * heads * once
        nodes, edges = (
            {part: passes * one for part, passes in law(circuits[key], shape, task).items()}
            for law, key in ((node_passes, "nodes"), (edge_passes, "edges"))
        )
        pruned, traced = sum(nodes.values()), sum(edges.values())
        layers = batch_names(shape.layers, circuits["layers_per_job"])
        halves = half_batches(circuits["nodes"], circuits["parts_per_job"])
        parts = edge_batches(shape, circuits["edges"], circuits["parts_per_job"])
        yield Work("prepare_prompts", 1, 4 * once, memory=memory, products=True, gpu=True)
        for rule, whole, by, share, jobs in (
            ("measure_components", swept, "patch_layers", swept - once, layers),
            ("prune_nodes", pruned, "prune_halves", nodes["halves"], halves),
            ("trace_edges", traced, "trace_parts", traced - edges["rest"], parts),
        ):
            rest = whole - share if jobs else whole
            yield Work(rule, 1, rest, memory=memory, products=True, gpu=True)
            if jobs:
                yield Work(by, len(jobs), share, memory=memory, products=True, gpu=True)
    if tasks:
        yield Work("compare_circuits", 1, len(tasks) * heads, memory=memory, gpu=True)
        yield Work("render_circuits", 1, len(tasks) * heads)


def _graphs(config: Config, shape: Shape, model: str) -> Iterator[Work]:
    for entry in config["graphs"].values():
        if entry["models"] is not None and model not in entry["models"]:
            continue
        names = entry["transcoders"] or config["transcoders"]
        for name in (n for n in names if n in config["transcoders"]):
            for source in sources_of(config, model):
                if config["transcoders"][name] in _entries(config, "transcoders", model, source):
                    rows = config["transcoders"][name]["k"] * shape.layers * TASK_TOKENS
                    each = 4 * shape.d * shape.heads * shape.d_head * shape.layers * TASK_TOKENS / 4
                    yield Work(
                        "attribution_graph", 1, rows * each, disk=6 * rows**2,
                        memory=NUMBER * shape.all_weights, products=True,
                    )  # fmt: skip


def _entries(config: Config, table: str, model: str, source: str) -> list[Config]:
    return [
        entry
        for entry in config[table].values()
        if (entry["models"] is None or model in entry["models"])
        and (entry["sources"] is None or source in entry["sources"])
    ]
