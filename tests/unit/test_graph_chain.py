"""A model with a known circuit of several hops: does the graph show each, and does a cross-layer transcoder hide one?

Token 3 -> neuron of layer 0 -> a head that averages over positions -> neuron of layer 1 -> one of layer 2 -> logit 5.
The MLPs are ReLUs, so that their neurons are an exact transcoder.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mechatlas.circuits.graphs.attribute import attribute
from mechatlas.circuits.graphs.consistency import total_effects
from mechatlas.circuits.graphs.graph import ERROR, LOGIT, node_name
from mechatlas.circuits.graphs.influence import mean_path_length, prune, scores
from mechatlas.circuits.graphs.run import run_prompt
from mechatlas.circuits.graphs.targets import token_targets
from mechatlas.dictionaries.activations import ReLU
from mechatlas.dictionaries.clt import CrossLayerTranscoder
from mechatlas.models.config import ModelConfig
from mechatlas.models.transformer import Transformer
from mechatlas.models.weights import random_weights

D, LAYERS, VOCAB = 24, 3, 8
SEEN, MOVED, FIRST, SECOND = 10, 11, 12, 13  # coordinates of the residual
TOKENS = torch.tensor([0, 3, 1, 2])
CHAIN = ["token/@1", "L0/F0@1", "L1/F0@3", "L2/F0@3"]


@pytest.fixture(scope="module")
def model():
    config = ModelConfig("gpt2", LAYERS, 1, 1, D, D, 4, 16, VOCAB, 1e-5, "relu", False)
    weights = random_weights(config, 0, "cpu", torch.float64)
    for tensor in (weights.embedding, weights.positions, weights.unembedding):
        tensor.zero_()
    for layer in weights.layers:
        for name in ("w_qkv", "b_qkv", "w_o", "b_o", "w_up", "b_up", "w_down", "b_down"):
            getattr(layer, name).zero_()
    for token in range(VOCAB):
        weights.embedding[token, token] = 4.0
    values = slice(2 * D, 3 * D)
    weights.layers[1].w_qkv[:, values][SEEN, SEEN] = 4.0
    weights.layers[1].w_o[SEEN, MOVED] = 1.0
    for layer, (reads, writes) in enumerate(((3, SEEN), (MOVED, FIRST), (FIRST, SECOND))):
        weights.layers[layer].w_up[reads, 0] = 1.0
        weights.layers[layer].b_up[:] = -0.5
        weights.layers[layer].w_down[0, writes] = 3.0
    weights.unembedding[5, SECOND] = 2.0
    return Transformer(config, weights, "chain")


def neurons(model):
    """Return the transcoder for each layer whose features are the neurons."""
    layers = model.weights.layers
    return CrossLayerTranscoder(
        [layer.w_up.mT.contiguous() for layer in layers],
        [layer.b_up for layer in layers],
        [layer.w_down[:, None] for layer in layers],
        [layer.b_down for layer in layers],
        [ReLU()] * LAYERS,
        decoders="per_layer",
        reads="mlp_in",
    )


def shortcut(model):
    """Return a cross-layer transcoder in which the feature of layer 1 also writes what the neuron of layer 2 writes."""
    exact = neurons(model)
    run = run_prompt(model, exact, TOKENS)
    value = {
        int(layer): float(v) for layer, v in zip(run.active.layer, run.active.value, strict=True)
    }
    decoder = [torch.zeros(4, LAYERS - i, D, dtype=torch.float64) for i in range(LAYERS)]
    for layer in (0, 1):
        decoder[layer][:, 0] = exact.decoder[layer][:, 0]
    decoder[1][0, 1] = exact.decoder[2][0, 0] * (value[2] / value[1])
    bias = [*exact.encoder_bias[:2], exact.encoder_bias[2] - 1e3]
    return CrossLayerTranscoder(
        exact.encoder, bias, decoder, exact.decoder_bias, exact.activation, reads="mlp_in"
    )


def graph_of(model, clt):
    run = run_prompt(model, clt, TOKENS)
    graph = attribute(run, token_targets(run, [5]))
    return graph, {node_name(graph, node): node for node in range(len(graph))}


def test_the_graph_shows_each_hop(model):
    graph, at = graph_of(model, neurons(model))
    assert np.nanmax(np.abs(graph.gaps())) < 1e-10
    features = {name.split("@")[0] for name in at if "/F" in name}
    assert features == {name.split("@")[0] for name in CHAIN[1:]}  # no other neuron fires
    assert abs(graph.edges[:, graph.kind == ERROR]).max() < 1e-12
    edges = graph.edges.toarray()
    for source, target in zip(CHAIN, [*CHAIN[1:], "logit/5"], strict=True):
        into = np.abs(edges[at[target]])
        assert into.argmax() == at[source], target
    pruned = prune(graph.shared())
    kept = {node_name(graph.shared(), node) for node in np.flatnonzero(pruned.nodes)}
    assert {*CHAIN, "logit/5"} <= kept
    # Nothing but the last hop reaches the logit directly: LayerNorm's centring aside, the others are 0.
    direct = edges[at["logit/5"]]
    for name in CHAIN[:3]:
        assert abs(direct[at[name]]) < 0.2 * direct[at["L2/F0@3"]]
    total = total_effects(graph).toarray()[at["logit/5"]]
    assert total[at["L0/F0@1"]] > 0.3 * direct[at["L2/F0@3"]]


def test_scores_of_an_exact_transcoder_say_that_nothing_is_missing(model):
    graph, _ = graph_of(model, neurons(model))
    found = scores(graph)
    assert found["completeness_corrected"] == pytest.approx(1)
    assert found["replacement"] == pytest.approx(1)


def test_a_transcoder_that_skips_a_hop_is_shown_by_its_paths(model):
    """It reconstructs this prompt as well, and its graph lacks the neuron of layer 2."""
    exact, _ = graph_of(model, neurons(model))
    short, at = graph_of(model, shortcut(model))
    assert abs(short.edges[:, short.kind == ERROR]).max() < 1e-9
    assert np.nanmax(np.abs(short.gaps())) < 1e-10
    assert "L2/F0@3" not in at
    row = np.abs(short.edges.toarray()[at["logit/5"]])
    assert row.argmax() == at["L1/F0@3"]
    assert mean_path_length(short) < mean_path_length(exact) - 0.5
    assert short.kind[at["logit/5"]] == LOGIT
