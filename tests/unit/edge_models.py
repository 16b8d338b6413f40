"""Tiny random models and pairs, and a slow double-precision reference of a run under a circuit."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from mechatlas.circuits.components import Graph
from mechatlas.circuits.metrics import make_metric
from mechatlas.models.config import ModelConfig
from mechatlas.models.transformer import Transformer, rotate
from mechatlas.models.weights import random_weights

SHAPES = {
    "gpt2": ModelConfig(
        "gpt2", 3, 2, 2, 12, 6, 20, 16, 40, 1e-5, "gelu_new", True, scale_by_layer=True
    ),
    "llama": ModelConfig(
        "llama", 3, 4, 2, 16, 4, 20, 16, 40, 1e-5, "silu", False, True, False, False
    ),
}


def make_model(kind="gpt2", dtype=torch.float64, seed=0, std=0.6):
    config = replace(SHAPES[kind], initializer_range=std)
    weights = random_weights(config, seed, "cpu", dtype)
    generator = torch.Generator().manual_seed(seed)
    tensors = [weights.final_norm, weights.final_norm_bias]
    for layer in weights.layers:
        tensors += [x for x in vars(layer).values() if x is not None and x.ndim == 1]
    for x in tensors:  # biases and norms must not be 0 and 1, or a forgotten one would not show
        if x is not None:
            x += 0.3 * torch.randn(x.shape, generator=generator).to(dtype)
    return Transformer(config, weights, "test")


def make_pairs(model, pairs=3, length=7, seed=0):
    """Pairs that differ at positions 2 and 4 and end at different positions."""
    generator = torch.Generator().manual_seed(seed)
    clean, other = torch.randint(
        0, model.config.vocab_size, (2, pairs, length), generator=generator
    )
    corrupted = clean.clone()
    corrupted[:, [2, 4]] = other[:, [2, 4]]
    end = torch.tensor([length - 1 - i % 2 for i in range(pairs)])
    answers, wrong = torch.randint(0, model.config.vocab_size, (2, pairs), generator=generator)
    return clean, corrupted, end, make_metric("logit_difference", model, answers, wrong)


def naive_run(model, clean, corrupted, end, circuit, low=None):
    """Return the normalised final residual [N, d] under a circuit, one destination at a time.

    ``circuit`` may hold shares between 0 (corrupted) and 1 (as in this run).
    """
    config, graph, weights = model.config, Graph.of(model.config), model.weights
    low = naive_sources(model, corrupted) if low is None else low
    current = [model.embed(clean)]
    bias = torch.zeros(config.d_model, dtype=model.dtype)

    def read(destination):
        total = bias.clone()
        for source in range(graph.visible[destination]):
            share = 1.0 * circuit[source, destination]
            total = total + share * current[source] + (1 - share) * low[source]
        return total

    for index, layer in enumerate(weights.layers):
        first, heads, shared = index * graph.readers, config.n_heads, config.n_kv_heads
        for head in range(heads):
            group = head // (heads // shared)
            readers = (head, heads + group, heads + shared + group)
            inputs = [read(first + reader) for reader in readers]
            current.append(naive_head(model, index, head, *inputs))
        if layer.b_o is not None:
            bias = bias + layer.b_o
        current.append(model.mlp(read(first + graph.readers - 1), index))
    x = read(graph.n_destinations - 1)[torch.arange(len(end)), end]
    return model.norm(x, weights.final_norm, weights.final_norm_bias)


def naive_sources(model, tokens):
    """Return what every source writes in an ordinary run."""
    config, layers = model.config, model.weights.layers
    x = model.embed(tokens)
    sources = [x]
    for index, layer in enumerate(layers):
        heads = [naive_head(model, index, h, x, x, x) for h in range(config.n_heads)]
        x = x + sum(heads) + (0 if layer.b_o is None else layer.b_o)
        sources += [*heads, model.mlp(x, index)]
        x = x + sources[-1]
    return sources


def naive_head(model, index, head, x_q, x_k, x_v):
    """Return what one head writes, given the inputs of its query, key and value."""
    config, layer, dh = model.config, model.weights.layers[index], model.config.d_head
    group = head // (config.n_heads // config.n_kv_heads)

    def project(x, column):
        columns = slice(column * dh, (column + 1) * dh)
        y = model.norm(x, layer.norm1, layer.norm1_bias) @ layer.w_qkv[:, columns]
        return y if layer.b_qkv is None else y + layer.b_qkv[columns]

    q, k = project(x_q, head), project(x_k, config.n_heads + group)
    v = project(x_v, config.n_heads + config.n_kv_heads + group)
    length = q.shape[1]
    if config.architecture == "llama":
        cos, sin = (a[:, 0] for a in model.rotary(length))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    scores = q @ k.mT / math.sqrt(dh) / (index + 1 if config.scale_by_layer else 1)
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    return scores.softmax(-1) @ v @ layer.w_o[head * dh : (head + 1) * dh]
