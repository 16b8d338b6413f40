"""Rows of attribution graphs: exact sums, the frozen model, finite differences, an independent peer's graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from clt_makers import make_clt
from edge_models import make_model

from mechatlas.circuits.graphs.attribute import Settings, attribute
from mechatlas.circuits.graphs.graph import ERROR, FEATURE, LOGIT, TOKEN
from mechatlas.circuits.graphs.influence import prune, scores
from mechatlas.circuits.graphs.run import run_prompt
from mechatlas.circuits.graphs.targets import (
    direction,
    logit_difference,
    salient_logits,
    token_targets,
)
from mechatlas.dictionaries.clt_formats import read_circuit_tracer
from mechatlas.io import read_arrays
from mechatlas.models.transformer import load

PARITY = Path(__file__).parents[1] / "reference" / "parity_clt"
VARIANTS = [
    ("gpt2", {}),
    ("gpt2", {"reads": "mlp_in", "skip": True, "activation": "relu"}),
    ("gpt2", {"decoders": "tied", "activation": "topk"}),
    ("llama", {}),
    ("llama", {"reads": "mlp_in", "skip": True, "decoders": "per_layer"}),
    ("llama", {"decoders": "tied", "skip": True, "activation": "relu"}),
]
TOKENS = torch.tensor([0, 7, 3, 22, 7, 39, 1])


def make_run(kind="gpt2", bos=1, tokens=TOKENS, **settings):
    model = make_model(kind)
    return run_prompt(model, make_clt(d=model.config.d_model, **settings), tokens, bos=bos)


@pytest.mark.parametrize("bos", [0, 1, 2])
@pytest.mark.parametrize(("kind", "settings"), VARIANTS)
def test_every_row_sums_to_its_pre_activation_or_logit(kind, settings, bos):
    run = make_run(kind, bos, **settings)
    graph = attribute(run)
    gaps = graph.gaps()[graph.has_row]
    assert len(gaps) == len(run.active) + (graph.kind == LOGIT).sum() > 20
    assert np.abs(gaps).max() < 1e-10
    # The totals are what the model's own forward pass computes.
    features = graph.kind == FEATURE
    for node in np.flatnonzero(features)[::7]:
        layer, position = graph.layer[node], graph.position[node]
        pre = run.clt.encoder[layer] @ run.read[layer][position] + run.clt.encoder_bias[layer]
        assert abs(graph.total[node] - float(pre[graph.feature[node]])) < 1e-10
        assert abs(graph.value[node] - graph.total[node]) < 1e-10  # a ReLU or jump passes its input
    logits = run.model.forward(run.tokens[None])[0, -1]
    for node in np.flatnonzero(graph.kind == LOGIT):
        wanted = logits[graph.feature[node]] - logits.mean()
        assert abs(graph.total[node] - float(wanted)) < 1e-10


@pytest.mark.parametrize("memory", [1, 2**14, 2**30])
def test_chunks_change_nothing(memory):
    run = make_run("llama")
    whole, parts = attribute(run), attribute(run, settings=Settings(memory=memory))
    assert abs(whole.edges - parts.edges).max() < 1e-12


def frozen_pass(run, change):
    """Run the frozen model forward with ``change(layer) -> [P, d]`` added to each MLP output (-1: the embedding).

    Everything that the MLPs write stays as in the run, but for the skip connection.

    Returns
    -------
    What each layer reads, ``[P, d]``, and the final normalised residual.
    """
    model, clt, weights = run.model, run.clt, run.model.weights
    groups = model.config.n_heads // model.config.n_kv_heads

    def norm(x, weight, bias, scale):
        if model.config.architecture == "gpt2":
            x = x - x.mean(-1, keepdim=True)
        return x * scale * weight + (0 if bias is None else bias)

    x, read = model.embed(run.tokens[None])[0] + change(-1), []
    for index, layer in enumerate(weights.layers):
        normed = norm(x, layer.norm1, layer.norm1_bias, run.attention_scale[index])
        qkv = normed @ layer.w_qkv + (0 if layer.b_qkv is None else layer.b_qkv)
        v = qkv.unflatten(1, (-1, model.config.d_head))[:, -model.config.n_kv_heads :]
        v = v.repeat_interleave(groups, dim=1)
        z = torch.einsum("hqk,khd->qhd", run.pattern[index], v).flatten(1)
        x = x + z @ layer.w_o + (0 if layer.b_o is None else layer.b_o)
        at = x
        if clt.reads == "mlp_in":
            at = norm(x, layer.norm2, layer.norm2_bias, run.mlp_scale[index])
        read.append(at)
        skip = torch.zeros_like(x)
        if clt.skip is not None:
            skip[run.bos :] = ((at - run.read[index]) @ clt.skip[index].mT)[run.bos :]
        x = x + run.mlp_out[index] + skip + change(index)
    return read, norm(x, weights.final_norm, weights.final_norm_bias, run.final_scale)


@pytest.mark.parametrize(("kind", "settings"), VARIANTS)
def test_edges_are_finite_differences_of_the_frozen_model(kind, settings):
    run = make_run(kind, **settings)
    target = logit_difference(run, 3, 5)
    graph = attribute(run, [target])
    edges, clt = graph.edges.toarray(), run.clt
    base, final = frozen_pass(run, lambda layer: 0)
    for x, wanted in zip(base, run.read, strict=True):
        torch.testing.assert_close(x, wanted, atol=1e-10, rtol=0)

    def written(node):
        kind, layer, position, feature = (
            int(getattr(graph, name)[node]) for name in ("kind", "layer", "position", "feature")
        )

        def change(index):
            out = torch.zeros_like(run.final)
            if kind == FEATURE and index in clt.targets(layer):
                row = clt.decoder_rows(layer, index, torch.tensor([feature]))[0]
                out[position] = row * graph.value[node]
            elif kind == ERROR and index == layer:
                out[position] = run.error[layer][position]
            elif kind == TOKEN and index == -1:
                out[position] = run.model.weights.embedding[feature]
            return out

        return change

    features = np.flatnonzero(graph.kind == FEATURE)
    errors, tokens = (np.flatnonzero(graph.kind == kind) for kind in (ERROR, TOKEN))
    sources = [*features[::9], *errors[1::5], *tokens[::2]]
    for source in sources:
        read, last = frozen_pass(run, written(source))
        for node in features:
            layer, position = graph.layer[node], graph.position[node]
            moved = clt.encoder[layer][graph.feature[node]] @ (read[layer] - base[layer])[position]
            assert abs(edges[node, source] - float(moved)) < 1e-9
        moved = float(target.vector @ (last - final)[-1])
        assert abs(edges[-1, source] - moved) < 1e-9


@pytest.fixture(scope="module")
def peer():
    """Return an independent program's numbers and our graph of the same weights, in double precision."""
    model = load(PARITY / "model", dtype="float64")
    clt = read_circuit_tracer(PARITY / "clt_relu", dtype=torch.float64)
    expected = read_arrays(PARITY / "expected.safetensors")
    run = run_prompt(model, clt, torch.from_numpy(expected["tokens"]))
    targets = salient_logits(run, most=len(expected["logit_tokens"]))
    return expected, attribute(run, targets)


def test_the_peer_finds_the_same_features_and_targets(peer):
    expected, graph = peer
    features = graph.kind == FEATURE
    ours = np.stack([graph.layer, graph.position, graph.feature], 1)[features]
    assert np.array_equal(ours, expected["active_features"])
    assert np.allclose(graph.value[features], expected["activations"], rtol=1e-6)
    assert np.array_equal(graph.feature[graph.kind == LOGIT], expected["logit_tokens"])
    assert np.allclose(graph.value[graph.kind == LOGIT], expected["logit_probabilities"], rtol=1e-6)


def test_the_peer_has_the_same_edges(peer):
    expected, graph = peer
    ours, theirs = graph.shared().edges.toarray(), expected["adjacency"].astype(np.float64)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-6 * np.abs(theirs).max()
    large = np.abs(theirs) > 1e-3 * np.abs(theirs).max()
    assert large.sum() > 1000
    assert (np.abs(ours - theirs)[large] / np.abs(theirs)[large]).max() < 1e-6


def test_the_peer_prunes_and_scores_alike(peer):
    expected, graph = peer
    pruned = prune(graph.shared())
    assert np.array_equal(pruned.nodes, expected["node_mask"])
    assert np.array_equal(pruned.edges.toarray() != 0, expected["edge_mask"])
    found = scores(graph)
    ours = [found["replacement"], found["completeness"]]
    assert np.allclose(ours, expected["scores_replacement_completeness"], rtol=1e-5)
    # The corrected completeness does not count leaves as explained.
    assert found["completeness_corrected"] < found["completeness"]


def test_rows_of_the_peers_model_are_complete_only_with_our_nodes(peer):
    _, graph = peer
    assert np.nanmax(np.abs(graph.gaps())) < 1e-10
    assert np.nanmax(np.abs(graph.shared().gaps())) > 0.1


def test_custom_targets_and_their_order():
    run = make_run()
    vector = torch.randn(run.final.shape[1], dtype=torch.float64)
    targets = [direction(run, vector, "mine"), *token_targets(run, [4, 2])]
    graph = attribute(run, targets)
    assert graph.labels == {len(graph) - 3: "mine"}
    assert graph.feature[-3:].tolist() == [-1, 4, 2]
    assert np.abs(graph.gaps()[-3:]).max() < 1e-10


@pytest.mark.parametrize("mass", [0.5, 0.9])
def test_what_is_discarded_is_reported(mass):
    run = make_run("llama")
    whole, thin = attribute(run), attribute(run, settings=Settings(kept_mass=mass))
    rows = whole.has_row
    before, after = (np.asarray(abs(g.edges).sum(1)).ravel()[rows] for g in (whole, thin))
    assert (after >= mass * before - 1e-9).all() and thin.edges.nnz < whole.edges.nnz
    assert np.allclose(thin.discarded_abs[rows], before - after)
    assert np.abs(thin.gaps()[rows]).max() < 1e-10
    stored = thin.edges.toarray()
    assert np.allclose(stored[stored != 0], whole.edges.toarray()[stored != 0])


def test_a_capped_graph_has_the_most_influential_features_and_exact_rows():
    run = make_run("llama")
    whole, capped = attribute(run), attribute(run, settings=Settings(max_features=12))
    assert (capped.kind == FEATURE).sum() == 12
    assert np.abs(capped.gaps()[capped.has_row]).max() < 1e-10

    def key(graph):
        return np.stack([graph.layer, graph.position, graph.feature], 1)[graph.kind == FEATURE]

    score = prune(whole).influence[whole.kind == FEATURE]
    best = {tuple(row) for row in key(whole)[np.argsort(-score)[:12]]}
    shared = len(best & {tuple(row) for row in key(capped)})
    assert shared >= 9  # ranked by the rows known so far, so not the same to the last
    every = attribute(run, settings=Settings(max_features=len(run.active)))
    assert abs(every.edges - whole.edges).max() < 1e-12


def test_positions_without_active_features_and_no_features_at_all():
    run = make_run(activation="relu")
    for layer in range(3):
        run.clt.encoder_bias[layer] -= 1e3
    silent = run_prompt(run.model, run.clt, TOKENS)
    graph = attribute(silent)
    assert len(silent.active) == 0 and (graph.kind == FEATURE).sum() == 0
    assert np.abs(graph.gaps()[graph.has_row]).max() < 1e-10
    found = scores(graph)
    assert 0 < found["completeness_corrected"] < 1
