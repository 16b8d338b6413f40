"""Sets of removed nodes against single runs with hooks, and pruning against the plain loop."""

from __future__ import annotations

import pytest
import torch
from edge_models import make_model
from node_reference import logit_difference, removed_run, solved_pairs
from planted import CIRCUIT, planted_model, planted_pairs

from mechatlas.circuits.ablation import ABLATIONS, Ablation, without_each
from mechatlas.circuits.components import Graph
from mechatlas.circuits.least_harmful import prune_least_harmful
from mechatlas.circuits.pruning import PruneSettings, prune
from mechatlas.circuits.stability import first_of_each, stability
from mechatlas.io import UserError

PRUNERS = {"passes": prune, "least harmful": prune_least_harmful}


def some_sets(model, count=7):
    shape = (count, model.config.n_layers, model.config.n_heads + 1)
    keeps = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.4
    keeps[0], keeps[1] = True, False
    keeps[2] = keeps[3] = True
    keeps[2, -1, 1] = keeps[3, 1, -1] = False
    return keeps


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("ablation_kind", ABLATIONS)
def test_equals_one_run_per_set(kind, ablation_kind):
    model = make_model(kind)
    clean, corrupted, answers, wrong = solved_pairs(model, common=2)
    keeps = some_sets(model)
    wanted = torch.stack([removed_run(model, clean, corrupted, k, ablation_kind) for k in keeps])
    for rows in (1, 25, None):
        ablation = Ablation(model, clean, corrupted, answers, wrong, kind=ablation_kind, rows=rows)
        for base in (ablation.full, keeps[4], keeps[1], keeps[5]):
            ablation.rebase(base)
            got = ablation.residuals(keeps)
            torch.testing.assert_close(got, wanted, atol=1e-11, rtol=0)
    difference = torch.stack([logit_difference(model, x, answers, wrong) for x in wanted])
    torch.testing.assert_close(ablation.values(keeps), difference, atol=1e-10, rtol=0)


def test_the_full_set_is_the_model_and_resampling_all_nodes_leaves_only_the_last_embedding():
    model = make_model()
    clean, corrupted, answers, wrong = solved_pairs(model)
    ablation = Ablation(model, clean, corrupted, answers, wrong, kind="resample")
    full, empty = ablation.residuals(torch.stack([ablation.full, ~ablation.full]))
    for x, tokens in ((full, clean), (empty, corrupted)):  # the last token is the same in both
        wanted = model.forward(tokens, logits=False)[:, -1]
        torch.testing.assert_close(x, wanted, atol=1e-11, rtol=0)


def test_common_tokens_run_once():
    model = make_model()
    pairs = solved_pairs(model, common=2)
    firsts = {kind: Ablation(model, *pairs, kind=kind).runs[0].first for kind in ABLATIONS}
    assert firsts == {"mean": 2, "mean_clean": 2, "zero": 0, "resample": 3}


def test_kl_compares_with_the_full_model():
    model = make_model()
    ablation = Ablation(model, *solved_pairs(model), metric="kl")
    values = ablation.values(torch.stack([ablation.full, ~ablation.full]))
    assert values[0].abs().max() < 1e-12 < 0.01 < values[1].min()


def test_without_each():
    keep = torch.tensor([[True, False], [True, True]])
    assert without_each(keep).tolist() == [
        [[False, False], [True, True]], [[True, False], [False, True]], [[True, False], [True, False]],
    ]  # fmt: skip


def plain_pruning(model, pairs, threshold, kind, one_iter=False, keep=()):
    """The published loop, one forward pass per candidate."""
    clean, corrupted, answers, wrong = pairs
    layers, width = model.config.n_layers, model.config.n_heads + 1
    fixed = Graph.of(model.config).node_set(keep)

    def mean(chosen):
        x = removed_run(model, clean, corrupted, chosen, kind)
        return logit_difference(model, x, answers, wrong).mean().item()

    current = torch.ones(layers, width, dtype=torch.bool)
    full, records, number = mean(current), [], 0
    while True:
        before = current.clone()
        heads = list(range(width - 1))
        order = [(a, n) for a in reversed(range(layers)) for n in [width - 1, *heads]]
        if number % 2:
            order = [(a, n) for a in range(layers) for n in [*heads, width - 1]]
        for layer, node in order:
            if not current[layer, node] or fixed[layer, node]:
                continue
            tried = current.clone()
            tried[layer, node] = False
            score = 100 * mean(tried) / full
            records.append((number, layer * width + node, score))
            if 100 - score < threshold:
                current = tried
        number += 1
        if torch.equal(before, current) or (one_iter and number == 2):
            return current, records


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("threshold", [5, 20, 60])
@pytest.mark.parametrize("ablation_kind", ["mean", "resample"])
def test_pruning_equals_the_plain_loop(kind, threshold, ablation_kind):
    model = make_model(kind)
    pairs = solved_pairs(model)
    current, records = plain_pruning(model, pairs, threshold, ablation_kind)
    for rows in (1, 120, None):
        ablation = Ablation(model, *pairs, kind=ablation_kind, rows=rows)
        found = prune(ablation, PruneSettings(threshold=threshold))
        assert torch.equal(found.keep, current)
        assert [r["node"] for r in found.records] == [
            ablation_names(model)[n] for _, n, _ in records
        ]
        assert [r["score"] for r in found.records] == pytest.approx([s for *_, s in records])
    assert current.sum() < current.numel()


def ablation_names(model):
    return Graph.of(model.config).nodes


def test_one_iteration_and_kept_nodes():
    model = make_model("llama")
    pairs = solved_pairs(model)
    settings = PruneSettings(threshold=30, one_iter=True, keep=("L1.mlp", "L2.H3"))
    wanted, records = plain_pruning(model, pairs, 30, "mean", one_iter=True, keep=settings.keep)
    found = prune(Ablation(model, *pairs), settings)
    assert torch.equal(found.keep, wanted) and {r["pass"] for r in found.records} == {0, 1}
    assert found.keep[1, -1] and found.keep[2, 3] and len(records) == len(found.records)
    other = prune_least_harmful(Ablation(model, *pairs), settings)
    assert other.keep[1, -1] and other.keep[2, 3]


@pytest.mark.parametrize("name", PRUNERS)
def test_an_interrupted_run_continues_where_it_stopped(name):
    model = make_model()
    pairs, settings = solved_pairs(model), PruneSettings(threshold=25)
    logged = []
    whole = PRUNERS[name](Ablation(model, *pairs), settings, log=logged.append)
    assert logged == whole.records and len(logged) > 3
    for cut in range(len(logged) + 1):
        new = []
        again = PRUNERS[name](
            Ablation(model, *pairs), settings, decided=logged[:cut], log=new.append
        )
        assert torch.equal(again.keep, whole.keep) and again.score == pytest.approx(whole.score)
        assert len(new) == len(logged) - cut
    assert again.evaluated < 0.6 * whole.evaluated


def test_a_log_of_other_settings_is_refused():
    model = make_model()
    with pytest.raises(UserError, match="other settings"):
        prune(
            Ablation(model, *solved_pairs(model)),
            PruneSettings(),
            decided=[{"pass": 0, "node": "L0.H0"}],
        )


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("ablation_kind", ABLATIONS)
def test_the_planted_circuit_is_found(name, ablation_kind):
    ablation = Ablation(planted_model(), *planted_pairs(), kind=ablation_kind)
    found = PRUNERS[name](ablation, PruneSettings(threshold=20))
    assert tuple(Graph.of(ablation.model.config).names(found.keep)) == CIRCUIT
    assert found.score == pytest.approx(100, abs=3)


def permuted(model, order):
    """The same model with the heads of every layer in another order."""
    config = model.config
    for layer in model.weights.layers:
        blocks = layer.w_qkv.view(config.d_model, 3, config.n_heads, config.d_head)
        layer.w_qkv = blocks[:, :, order].reshape(config.d_model, -1)
        layer.b_qkv = layer.b_qkv.view(3, config.n_heads, -1)[:, order].reshape(-1)
        layer.w_o = layer.w_o.view(config.n_heads, config.d_head, -1)[order].flatten(0, 1)
    return model


def test_least_harmful_pruning_does_not_depend_on_the_order_of_heads():
    pairs, settings = planted_pairs(), PruneSettings(threshold=1)
    order = torch.tensor([2, 0, 3, 1])
    model = planted_model(noise=0.12)
    keep = prune_least_harmful(Ablation(model, *pairs, kind="resample"), settings).keep
    moved = Ablation(permuted(model, order), *pairs, kind="resample")
    other = prune_least_harmful(moved, settings).keep
    assert 3 < keep.sum() < keep.numel()
    assert torch.equal(other[:, :-1], keep[:, :-1][:, order]) and torch.equal(
        other[:, -1], keep[:, -1]
    )


def test_larger_steps_stay_within_the_threshold():
    model = make_model("llama")
    pairs = solved_pairs(model)
    found = prune_least_harmful(Ablation(model, *pairs), PruneSettings(threshold=30), step=4)
    x = removed_run(model, *pairs[:2], found.keep, "mean")
    value = logit_difference(model, x, *pairs[2:]).mean()
    full = logit_difference(model, model.forward(pairs[0], logits=False)[:, -1], *pairs[2:]).mean()
    assert found.score == pytest.approx(float(100 * value / full)) and found.score > 70
    assert max(len(r["removed"]) for r in found.records) > 1


def test_stability_counts_halves():
    model, pairs = planted_model(), planted_pairs()
    seen = []

    def make(index):
        seen.append(index.tolist())
        return Ablation(model, *(x[index] for x in pairs))

    halves = stability(make, 16, PruneSettings(), samples=3, seed=0)
    wanted = Graph.of(model.config).node_set(CIRCUIT)
    assert halves.shape == (3, *wanted.shape) and (halves == wanted).all()
    assert len({tuple(s) for s in seen}) == 3 and all(len(set(s)) == 8 for s in seen)


def test_first_of_each_family():
    assert first_of_each(["a", "b", "a", "a", "b"], 2).tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("threshold", [0, 100, -5, float("nan")])
def test_thresholds_out_of_range_are_user_errors(threshold):
    with pytest.raises(UserError, match="threshold"):
        PruneSettings(threshold=threshold)


def test_user_errors():
    model = make_model()
    clean, corrupted, answers, wrong = solved_pairs(model)
    with pytest.raises(UserError, match="ablation"):
        Ablation(model, clean, corrupted, answers, wrong, kind="median")
    for pruner in PRUNERS.values():
        with pytest.raises(UserError, match="does not do the task"):
            pruner(Ablation(model, clean, corrupted, wrong, answers), PruneSettings())
    with pytest.raises(UserError, match="L9.mlp"):
        prune(Ablation(model, clean, corrupted, answers, wrong), PruneSettings(keep=("L9.mlp",)))
