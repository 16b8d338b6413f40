"""Replacement model, interventions and the consistency of graphs with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clt_makers import dense_outputs, make_clt
from edge_models import make_model

from mechatlas.circuits.graphs.attribute import attribute
from mechatlas.circuits.graphs.consistency import agreement, consistency_table, total_effects
from mechatlas.circuits.graphs.graph import FEATURE, LOGIT
from mechatlas.circuits.graphs.influence import prune
from mechatlas.circuits.graphs.interventions import (
    Intervention,
    intervene,
    intervention_hooks,
)
from mechatlas.circuits.graphs.run import run_prompt
from mechatlas.circuits.graphs.targets import salient_logits
from mechatlas.dictionaries.clt_replacement import (
    generation_hooks,
    reconstruction_errors,
    replacement_hooks,
)
from mechatlas.io import UserError
from mechatlas.models.sampling import sample

TOKENS = torch.tensor([0, 7, 3, 22, 7, 39, 1])
VARIANTS = [
    ("gpt2", {}),
    ("gpt2", {"reads": "mlp_in", "skip": True}),
    ("llama", {"decoders": "tied"}),
    ("llama", {"decoders": "per_layer", "skip": True, "reads": "mlp_in"}),
]


def make_run(kind="gpt2", **settings):
    model = make_model(kind)
    return run_prompt(model, make_clt(d=model.config.d_model, **settings), TOKENS)


@pytest.mark.parametrize(("kind", "settings"), VARIANTS)
def test_transcoder_plus_errors_is_the_model(kind, settings):
    run = make_run(kind, **settings)
    tokens = torch.stack([TOKENS, TOKENS.flip(0)])
    errors = reconstruction_errors(run.model, run.clt, tokens)
    logits = run.model.forward(tokens)
    for positions in (slice(1, None), slice(None)):
        hooks = replacement_hooks(run.clt, positions=positions, errors=errors)
        assert (run.model.forward(tokens, hooks) - logits).abs().max() < 1e-12 * logits.abs().max()
    bare = run.model.forward(tokens, replacement_hooks(run.clt))
    assert (bare - logits).abs().max() > 0.1


def test_replacement_writes_in_the_scale_of_the_model():
    """The outputs are the formula on what the replaced run reads, and the BOS position keeps its MLP."""
    run = make_run(skip=True)
    clt, seen = run.clt, {"resid_mid": [], "mlp_out": []}
    hooks = replacement_hooks(clt)

    def both(point):
        def hook(x, layer):
            changed = hooks[point](x, layer)
            seen[point].append((x if changed is None else changed)[0])
            return changed

        return hook

    run.model.forward(TOKENS[None], {point: both(point) for point in seen})
    features = [clt.encode(x, i) for i, x in enumerate(seen["resid_mid"])]
    wanted = dense_outputs(clt, features, seen["resid_mid"])
    for y, one in zip(seen["mlp_out"], wanted, strict=True):
        torch.testing.assert_close(y[1:], one[1:], atol=1e-10, rtol=0)
        assert (y[0] - one[0]).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["frozen", "free"])
@pytest.mark.parametrize("mlps", ["constant", "features", "model"])
@pytest.mark.parametrize(("kind", "settings"), VARIANTS)
def test_no_change_is_the_run(kind, settings, mlps, attention):
    run = make_run(kind, **settings)
    outcome = intervene(run, [[], []], attention=attention, mlps=mlps)
    for x, wanted in zip(outcome.read, run.read, strict=True):
        torch.testing.assert_close(x, wanted.expand(2, -1, -1), atol=1e-10, rtol=0)
    logits = run.model.unembed(outcome.final)[:, -1]
    torch.testing.assert_close(logits, run.logits().expand(2, -1), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("kind", "settings"), VARIANTS)
def test_edges_are_the_direct_effects_of_interventions(kind, settings):
    run = make_run(kind, **settings)
    targets = salient_logits(run)
    graph = attribute(run, targets)
    table = consistency_table(run, graph, targets, prune(graph, node_threshold=1, edge_threshold=1))
    edges = table[table["kind"] == "edge"]
    assert len(edges) == 40
    assert np.abs(edges["predicted"] - edges["measured_frozen"]).max() < 1e-9
    assert np.abs(edges["predicted"] - edges["measured_free"]).max() > 1e-3


def test_all_paths_together_predict_a_small_change():
    """A change too small to switch a feature on or off follows the sum over paths (features are ReLUs here)."""
    run = make_run("llama", activation="relu")
    targets = salient_logits(run, most=1)
    graph = attribute(run, targets)
    effects = total_effects(graph).toarray()[-1]
    nodes = np.flatnonzero(graph.kind == FEATURE)[::5]
    step = 1e-5
    variants = [[]] + [
        [Intervention(int(graph.layer[n]), int(graph.feature[n]), int(graph.position[n]), 1 - step, "scale")]
        for n in nodes
    ]  # fmt: skip
    final = intervene(run, variants, mlps="features").final[:, -1]
    measured = (final - final[0]) @ targets[0].vector
    assert np.allclose(measured[1:].numpy() / -step, effects[nodes], rtol=1e-4, atol=1e-6)
    assert (graph.kind[-1], np.abs(effects[nodes]).max() > 0.1) == (LOGIT, True)


def test_set_scale_add_and_slices():
    run = make_run()
    first = int((run.active.layer == 0).nonzero()[0, 0])
    feature, position = int(run.active.feature[first]), int(run.active.position[first])
    value = float(run.active.value[first])

    def final(*args):
        return intervene(run, [[Intervention(0, feature, *args)]], mlps="constant").final

    doubled = final(position, 2.0, "scale")
    torch.testing.assert_close(doubled, final(position, 2 * value, "set"))
    torch.testing.assert_close(doubled, final(position, value, "add"))
    everywhere = final(slice(1, None), 3.0, "add")
    singly = [Intervention(0, feature, p, 3.0, "add") for p in range(1, 7)]
    torch.testing.assert_close(everywhere, intervene(run, [singly], mlps="constant").final)


def test_constrained_layers_keep_their_features():
    run = make_run("llama")
    change = [[], [Intervention(0, 2, slice(1, None), 5.0)]]
    free = intervene(run, change, mlps="features").read
    held = intervene(run, change, mlps="features", constrained=range(3)).read
    direct = intervene(run, change, mlps="constant").read
    for a, b in zip(held, direct, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    assert (free[2] - held[2])[1].abs().max() > 1e-3


def test_free_attention_on_model_mlps_is_a_plain_hook():
    """Adding a feature's decoder rows to the MLP outputs of an ordinary pass is the same."""
    run = make_run("llama", decoders="cross")
    rows = [run.clt.decoder_rows(1, target, torch.tensor([4]))[0] for target in (1, 2)]

    def write(value, layer):
        if layer == 0:
            return None
        value = value.clone()
        value[:, 3] += 2.0 * rows[layer - 1]
        return value

    wanted = run.model.forward(TOKENS[None], {"mlp_out": write}, logits=False)
    change = [[Intervention(1, 4, 3, 2.0, "add")]]
    got = intervene(run, change, attention="free", mlps="model").final
    torch.testing.assert_close(got, wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("kind", "settings"), VARIANTS)
def test_hooks_for_generation_are_the_same_intervention(kind, settings):
    run = make_run(kind, **settings)
    changes = [Intervention(0, 2, slice(2, None), 3.0), Intervention(1, 5, 4, 2.0, "add")]
    hooks = intervention_hooks(run.clt, changes)
    wanted = intervene(run, [changes], attention="free", mlps="model").final
    got = run.model.forward(TOKENS[None], hooks, logits=False)
    torch.testing.assert_close(got, wanted, atol=1e-10, rtol=0)
    prompts = [TOKENS.tolist()[:5], TOKENS.tolist()[:3]]
    tokens = [sample(run.model, prompts, 6, temperature=0, hooks=hooks, cached=c) for c in (True, False)]  # fmt: skip
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(("kind", "settings"), VARIANTS)
def test_the_replacement_model_generates_with_a_cache(kind, settings):
    run = make_run(kind, **settings)
    hooks = generation_hooks(run.clt)
    wanted = run.model.forward(TOKENS[None], replacement_hooks(run.clt))
    torch.testing.assert_close(run.model.forward(TOKENS[None], hooks), wanted, atol=1e-10, rtol=0)
    prompts = [TOKENS.tolist()[:5], TOKENS.tolist()[:3]]
    cached, plain = (
        sample(run.model, prompts, 8, temperature=0, hooks=hooks, cached=c) for c in (True, False)
    )
    assert cached == plain
    # Token by token by the replacement model itself.
    tokens = prompts[1]
    for token in cached[1]:
        logits = run.model.forward(torch.tensor([tokens]), replacement_hooks(run.clt))
        assert int(logits[0, -1].argmax()) == token
        tokens = [*tokens, token]


def test_agreement_summarises():
    run = make_run()
    targets = salient_logits(run)
    graph = attribute(run, targets)
    table = consistency_table(run, graph, targets, prune(graph), edges=10, nodes=5)
    summary = agreement(table).set_index(["kind", "measured"])
    assert summary.loc[("edge", "frozen"), "correlation"] == pytest.approx(1)
    assert summary.loc[("edge", "frozen"), "slope"] == pytest.approx(1)
    assert summary["rows"].tolist() == [10, 10, 5, 5]


def test_interventions_that_name_nothing_are_one_clear_line():
    run = make_run()
    for change, message in (
        (Intervention(3, 0, 1, 0.0), "does not exist"),
        (Intervention(0, 10, 1, 0.0), "does not exist"),
        (Intervention(0, 0, 0, 0.0), "features from 1 on"),
        (Intervention(0, 0, 7, 0.0), "has 7 tokens"),
        (Intervention(0, 0, slice(0, 3), 0.0), "has no features"),
        (Intervention(0, 0, 1, 0.0, "double"), "one of set, scale, add"),
    ):
        with pytest.raises(UserError, match=message):
            intervene(run, [[change]])
    with pytest.raises(UserError, match="one of frozen, free"):
        intervene(run, [[]], attention="thawed")


def test_bad_prompts_are_one_clear_line():
    model = make_model()
    clt = make_clt(d=model.config.d_model)
    for tokens, message in (
        (torch.tensor([], dtype=torch.int64), "empty"),
        (torch.zeros(17, dtype=torch.int64), "17 tokens, more than"),
        (torch.tensor([1, 40]), "outside the vocabulary of 40"),
    ):
        with pytest.raises(UserError, match=message):
            run_prompt(model, clt, tokens)
    with pytest.raises(UserError, match="give the transcoder of this model"):
        run_prompt(model, make_clt(d=8), TOKENS)
    with pytest.raises(UserError, match="mass"):
        salient_logits(run_prompt(model, clt, TOKENS), mass=1.5)
