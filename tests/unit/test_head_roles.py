"""Direct attribution, attention scores, OV scores, role labels, and generation without heads."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from edge_models import make_model
from node_reference import activations, logit_difference, solved_pairs
from planted import BEFORE, PREDICTION, TOKEN, VOCAB, planted_model, planted_pairs

from mechatlas.circuits import ov
from mechatlas.circuits.attention import repeated_token_scores, role_attention
from mechatlas.circuits.direct import direct_attribution
from mechatlas.circuits.generation import exact_match, generate, match_against_random, mean_outputs
from mechatlas.circuits.patching import patch
from mechatlas.circuits.roles import RoleThresholds, label_roles, measure_roles


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_direct_attribution_adds_up_and_is_the_share_with_the_scale_frozen(kind):
    model = make_model(kind)
    clean, _, answers, wrong = solved_pairs(model)
    parts = direct_attribution(model, clean, answers, wrong)
    final = model.forward(clean, logits=False)[:, -1]
    total = logit_difference(model, final, answers, wrong)
    torch.testing.assert_close(parts.total, total, atol=1e-10, rtol=0)
    # Leaving a head out of the final residual, scale kept, takes away exactly its share.
    z = activations(model, clean, "z")[1][:, -1, 1]
    wrote = z @ model.output_weights(1)[1]
    x = activations(model, clean, "resid_post")[2][:, -1]
    weights, epsilon = model.weights, model.config.norm_eps
    if kind == "gpt2":
        wrote = wrote - wrote.mean(-1, keepdim=True)
        scale = (x.var(-1, unbiased=False, keepdim=True) + epsilon).rsqrt()
    else:
        scale = (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    without = final - wrote * scale * weights.final_norm
    lost = total - logit_difference(model, without, answers, wrong)
    torch.testing.assert_close(parts.heads[:, 1, 1], lost, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_role_attention_is_the_pattern_at_the_roles(kind):
    model = make_model(kind)
    clean = solved_pairs(model)[0]
    roles = {
        "a": torch.tensor([2, 3, -1, 4, 5]),
        "b": torch.tensor([5, 2, 4, 4, 6]),
        "end": torch.full((5,), 8),
    }
    roles["none"] = torch.full((5,), -1)
    found = role_attention(model, clean, roles, batch=2)
    patterns = torch.stack(list(activations(model, clean, "pattern").values()), dim=1)
    assert set(found) == {(q, k) for q in ("a", "b", "end") for k in ("a", "b", "end")}
    for (query, key), got in found.items():
        for n in range(5):
            q, k = int(roles[query][n]), int(roles[key][n])
            if q < 0 or k < 0 or k > q:
                assert got[n].isnan().all()
            else:
                torch.testing.assert_close(got[n], patterns[n, :, :, q, k], atol=1e-12, rtol=0)


def test_planted_heads_show_on_repeated_random_tokens():
    # The planted context is short, so the sequences are too; every other head looks everywhere alike.
    scores = repeated_token_scores(planted_model(), seed=0, bos=0, length=5)
    assert scores["previous_token"].shape == (3, 4)
    assert scores["previous_token"].argmax() == 2 and scores["previous_token"][0, 2] > 0.95
    assert scores["induction"].argmax() == 9 and scores["induction"][2, 1] > 0.95
    assert scores["duplicate_token"].max() < 0.3


def test_sequences_fit_the_context():
    assert repeated_token_scores(planted_model(), seed=0, bos=0)["induction"].shape == (3, 4)
    assert repeated_token_scores(planted_model(), seed=0, bos=None)["induction"][2, 1] > 0.9


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("sign", [1, -1])
def test_ov_is_the_product_of_single_heads(kind, sign, monkeypatch):
    model = make_model(kind)
    config, weights = model.config, model.weights
    x = torch.randn(
        4, config.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    targets = torch.tensor([[3, 7], [9, 0], [1, 1], [5, 39]])
    monkeypatch.setattr(ov, "ROWS_PER_CHUNK", 300)
    matrix = ov.ov_matrix(model, x, torch.arange(config.vocab_size), sign=sign)
    ranks = ov.ov_ranks(model, x, targets, sign=sign)
    for layer, head in np.ndindex(config.n_layers, config.n_heads):
        block, group = weights.layers[layer], head // (config.n_heads // config.n_kv_heads)
        start = (config.n_heads + config.n_kv_heads + group) * config.d_head
        part = slice(start, start + config.d_head)
        v = model.norm(x, block.norm1, block.norm1_bias) @ block.w_qkv[:, part]
        v = v if block.b_qkv is None else v + block.b_qkv[part]
        out = sign * v @ model.output_weights(layer)[head]
        logits = model.unembed(model.norm(out, weights.final_norm, weights.final_norm_bias))
        torch.testing.assert_close(matrix[layer, head], logits, atol=1e-10, rtol=0)
        order = logits.argsort(-1, descending=True)
        wanted = [[(order[i] == t).nonzero().item() for t in row] for i, row in enumerate(targets)]
        assert ranks[layer, head].tolist() == wanted
    share = ov.hit_share(ranks, 5)
    assert share.shape == (config.n_layers, config.n_heads, 2)
    assert torch.equal(share[0, 0], (ranks[0, 0] < 5).double().mean(0))


def test_token_residuals_are_those_after_the_first_block():
    model = make_model()
    clean = solved_pairs(model)[0]
    positions = torch.tensor([[0, 3], [1, 1], [8, 2], [4, 4], [5, 0]])
    wanted = activations(model, clean, "resid_post")[0]
    got = ov.token_residuals(model, clean, positions)
    assert torch.equal(got[2, 0], wanted[2, 8]) and torch.equal(got[4, 1], wanted[4, 0])


def planted_table(model=None):
    model = model or planted_model()
    clean, corrupted, answers, wrong = planted_pairs()
    first = (clean[:, :-1] == clean[:, -1:]).int().argmax(1)
    roles = {"s1": first, "io": first + 1, "end": torch.full((16,), clean.shape[1] - 1)}
    (sweep,) = patch(model, clean, corrupted, answers, wrong)
    effects = ((sweep.patched[:, :, 0] - sweep.corrupted) / (sweep.clean - sweep.corrupted)).mean(
        -1
    )
    return measure_roles(
        model, clean, answers, wrong, roles, seed=0, bos=0, effects=effects.numpy(), best=2
    )


def label(table, **changes):
    options = {"answer_role": "io", "repeat_role": "s1", "thresholds": RoleThresholds()}
    labels = label_roles(table, **{**options, **changes})
    return {c: x for c, x in zip(table["component"], labels, strict=True) if x}


def test_labels_of_the_planted_heads_are_measured():
    assert label(planted_table()) == {
        "L0.H2": ("previous token",),
        "L2.H1": ("mover", "reader", "induction"),
    }


def test_a_head_with_negated_output_is_a_negative_mover():
    model = planted_model()
    model.weights.layers[2].w_o[20:40] *= -1
    clean, _, answers, wrong = planted_pairs()
    table = planted_table(model)
    # The logit difference is negative now; the share of a negative mover is of the model's own sign.
    table["attribution"] *= -1
    assert "negative mover" in label(table)["L2.H1"]


def test_successors_need_the_members():
    """A head that moves every token one on in a sequence of tokens."""
    model = planted_model()
    layer = model.weights.layers[2]
    layer.w_o[20:40] = 0
    shift = torch.eye(VOCAB, dtype=torch.float64).roll(1, 1)  # row t is one at t + 1
    layer.w_o[20:40, PREDICTION] = shift
    clean, _, answers, wrong = planted_pairs()
    roles = {"m": torch.full((16,), 5), "n": torch.full((16,), 6), "end": torch.full((16,), 11)}
    options = {"seed": 0, "bos": 0, "best": 1}
    table = measure_roles(
        model, clean, answers, wrong, roles, members=torch.arange(VOCAB), **options
    )
    assert (
        table["succession"].argmax() == 9
        and table["succession"][9] == 1
        and table["copying"][9] == 0
    )
    without = measure_roles(model, clean, answers, wrong, roles, **options)
    assert without["succession"].isna().all()
    rows = pd.DataFrame([{**table.loc[9], "attribution": 0.5}])
    assert label(rows, answer_role=None, repeat_role=None)["L2.H1"] == ("induction", "successor")


def test_inhibition_needs_attention_an_effect_and_no_writing_of_its_own():
    row = {
        "component": "L1.H0",
        "attribution": 0.0,
        "attention_end_s2": 0.6,
        "effect": -0.2,
        "copying": 0,
    }
    row |= {
        "negative_copying": 0,
        "duplicate_token": 0,
        "previous_token": 0,
        "induction": 0,
        "succession": np.nan,
    }
    options = {"repeat_role": "s2"}
    assert label(pd.DataFrame([row]), **options) == {"L1.H0": ("inhibition", "reader")}
    for change in (
        {"attribution": 0.3},
        {"effect": 0.01},
        {"effect": np.nan},
        {"attention_end_s2": 0.1},
    ):
        assert "inhibition" not in label(pd.DataFrame([row | change]), **options).get("L1.H0", ())


def greedy(model, prompt, steps, keep, means):
    """Generate token by token with the kept heads of one set."""
    tokens = list(prompt)
    for _ in range(steps):

        def hook(z, layer):
            out = z.clone()
            for head in range(z.shape[2]):
                if not keep[layer, head]:
                    out[:, :, head] = 0 if means is None else means[layer, head]
            return out

        logits = model.forward(torch.tensor([tokens]), {"z": hook})[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_exact_match_is_that_of_token_by_token_generation(kind):
    model = make_model(kind)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 40, n).tolist() for n in (4, 4, 6, 5)]
    shape = model.config.n_layers, model.config.n_heads
    keeps = torch.from_numpy(rng.random((3, *shape)) < 0.6)
    keeps[0] = True
    means = mean_outputs(model, torch.from_numpy(rng.integers(0, 40, (6, 5))), batch=4)
    steps = [2, 3, 2, 1]
    answers = [
        greedy(model, p, s, keeps[0], None)[len(p) :] for p, s in zip(prompts, steps, strict=True)
    ]
    answers[2] = greedy(model, prompts[2], 2, keeps[1], means)[6:]
    for given in (None, means):
        found = exact_match(model, prompts, answers, keeps, means=given)
        wanted = [
            [
                greedy(model, p, len(a), k, given) == [*p, *a]
                for p, a in zip(prompts, answers, strict=True)
            ]
            for k in keeps
        ]
        assert found.tolist() == wanted
    assert found.any() and not found.all()
    whole = generate(model, torch.tensor(prompts[:2]), 3, keep=keeps[1], means=means)
    assert whole.tolist() == [greedy(model, p, 3, keeps[1], means) for p in prompts[:2]]


def test_layers_before_the_first_that_lacks_a_head_run_once(monkeypatch):
    model, calls = make_model(), []
    rng = np.random.default_rng(1)
    prompts = rng.integers(0, 40, (4, 5)).tolist()
    shape = model.config.n_layers, model.config.n_heads
    keeps = torch.from_numpy(rng.random((3, *shape)) < 0.5)
    keeps[:, 0] = True
    answers = [greedy(model, p, 2, keeps[i % 3], None)[5:] for i, p in enumerate(prompts)]
    wanted = [
        [greedy(model, p, 2, k, None) == [*p, *a] for p, a in zip(prompts, answers, strict=True)]
        for k in keeps
    ]
    forward = type(model).forward

    def counted(self, tokens, *arguments, resume=None, **options):
        calls.append((len(tokens), resume and resume[0]))
        return forward(self, tokens, *arguments, resume=resume, **options)

    monkeypatch.setattr(type(model), "forward", counted)
    assert exact_match(model, prompts, answers, keeps).tolist() == wanted
    assert calls == [(4, None), (12, 1)]


def test_mean_outputs():
    model = make_model()
    tokens = solved_pairs(model)[0]
    wanted = torch.stack([z.mean((0, 1)) for z in activations(model, tokens, "z").values()])
    torch.testing.assert_close(mean_outputs(model, tokens, batch=2), wanted, atol=1e-12, rtol=0)


def test_removing_the_planted_heads_harms_generation_more_than_removing_others():
    model = planted_model()
    clean, _, answers, _ = planted_pairs(30, seed=2)
    circuit = torch.zeros(3, 5, dtype=torch.bool)
    circuit[0, 2] = circuit[2, 1] = True
    result = match_against_random(model, clean.tolist(), answers[:, None].tolist(), circuit, seed=0)
    assert result["full"] == 1 and result["circuit"] < 0.2 < 0.4 < result["mean"]
    assert len(result["random"]) == 15 and result["p"] < 0.6  # no more such sets exist
    assert TOKEN.stop < BEFORE.start  # the parts of the planted residual do not overlap
