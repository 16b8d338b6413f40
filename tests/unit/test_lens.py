"""The logit lens against transformers' hidden states, the test of the next member, and averages over prompts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from edge_models import make_model
from node_reference import activations, solved_pairs
from test_models import save_gpt2, save_llama, wide_norm  # noqa: F401

from mechatlas.circuits import lens
from mechatlas.circuits.averages import mean_rows, pair_means
from mechatlas.circuits.direct import attribution_table, direct_attribution
from mechatlas.circuits.lens import (
    LensReading,
    lens_table,
    lens_targets,
    next_member_test,
    read_lens,
    relative_members,
)
from mechatlas.models.transformer import load
from mechatlas.stats.bootstrap import interval, intervals
from mechatlas.stats.shares import share_interval
from mechatlas.stats.t_test import t_p_values


def random_tokens(vocab, shape=(5, 9), seed=0):
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("save", [save_gpt2, save_llama])
def test_lens_is_the_unembedding_of_each_hidden_state_normed_once(
    save,
    tmp_path,
    monkeypatch,
    wide_norm,  # noqa: F811
):
    torch.manual_seed(0)
    reference = save(tmp_path)
    model = load(tmp_path, dtype="float64")
    tokens = random_tokens(model.config.vocab_size)
    targets = random_tokens(model.config.vocab_size, (5, 3), seed=1)
    with torch.no_grad():
        out = reference(tokens, output_hidden_states=True)
        norm = getattr(reference, "transformer", None)
        norm = reference.model.norm if norm is None else norm.ln_f
        # The last of transformers' hidden states has been through the norm already.
        states = [norm(h) for h in out.hidden_states[:-1]] + [out.hidden_states[-1]]
        logits = torch.stack([reference.lm_head(h) for h in states])
    assert torch.equal(logits[-1], out.logits)
    everywhere = torch.arange(9).expand(5, 9)
    monkeypatch.setattr(lens, "LOGITS_PER_CHUNK", 4 * model.config.vocab_size)
    found = read_lens(model, tokens, targets, positions=everywhere, batch=2)
    assert found.points == (("embed", -1), ("resid_post", 0), ("resid_post", 1))
    assert torch.equal(found.top, logits.argmax(-1))
    log_p = logits.log_softmax(-1)
    order = logits.argsort(-1, descending=True)
    for p, n, s, k in np.ndindex(3, 5, 9, 3):
        token = targets[n, k]
        assert found.log_probabilities[p, n, s, k].item() == pytest.approx(
            log_p[p, n, s, token].item(), abs=1e-8
        )
        assert order[p, n, s, found.ranks[p, n, s, k]] == token
    # Only the end, by default.
    last = read_lens(model, tokens, targets)
    assert torch.equal(last.ranks, found.ranks[:, :, -1:])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_raw_lens_and_the_middle_of_blocks(kind):
    model = make_model(kind)
    tokens, targets = random_tokens(40), random_tokens(40, (5, 2), seed=1)
    points = ("resid_mid", "resid_post")
    found = read_lens(model, tokens, targets, points=points, norm=False)
    assert [layer for point, layer in found.points if point == "resid_mid"] == [0, 1, 2]
    mid = activations(model, tokens, "resid_mid")[1][:, -1]
    place = found.points.index(("resid_mid", 1))
    expected = (mid @ model.weights.unembedding.mT).gather(1, targets)
    torch.testing.assert_close(found.logits[place, :, 0], expected, atol=1e-10, rtol=0)
    normed = read_lens(model, tokens, targets, points=points)
    final = model.forward(tokens)[:, -1].log_softmax(-1).gather(1, targets)
    torch.testing.assert_close(normed.log_probabilities[-1, :, 0], final, atol=1e-10, rtol=0)


def test_absent_tokens_do_not_count():
    model = make_model()
    tokens, targets = random_tokens(40), random_tokens(40, (5, 2), seed=1)
    targets[2:, 1] = -1
    reading = read_lens(model, tokens, targets)
    assert (reading.ranks[:, 2:, 0, 1] == -1).all() and reading.logits[:, 2:, 0, 1].isnan().all()
    table = lens_table(reading, ["answer", "other"], seed=0, replicates=200)
    row = table.query("point == 'resid_post' and layer == 2 and token == 'other'").iloc[0]
    ranks = reading.ranks[-1, :2, 0, 1].double()
    assert (
        row["prompts"] == 2
        and row["rank"] == ranks.mean()
        and row["median_rank"] == np.median(ranks)
    )
    p = reading.log_probabilities[-1, :2, 0, 1].exp().mean()
    assert (
        row["probability"] == pytest.approx(p.item())
        and row["top1"] == (ranks == 0).double().mean()
    )
    behind = (reading.logits[-1, :2, 0, 0] - reading.logits[-1, :2, 0, 1]).mean()
    assert row["below_answer"] == pytest.approx(behind.item())
    own = table[table["token"] == "answer"]
    assert (own["below_answer"] == 0).all() and (own["prompts"] == 5).all()


def test_distractors_by_distance_from_the_answer():
    members, answers = torch.tensor([30, 31, 32, 33]), torch.tensor([31, 33, 30])
    found = relative_members(answers, members, [-1, 2])
    assert found["answer-1"].tolist() == [30, 32, -1] and found["answer+2"].tolist() == [33, -1, 32]
    found = relative_members(answers, members, [-1, 2], cyclic=True)
    assert found["answer-1"].tolist() == [30, 32, 33] and found["answer+2"].tolist() == [33, 31, 32]
    stranger = relative_members(torch.tensor([7]), members, [1], cyclic=True)
    assert stranger["answer+1"].tolist() == [-1]
    wrong = torch.tensor([30, 32, -1])
    others = {
        "io": answers,
        "none": torch.full((3,), -1),
        **relative_members(answers, members, [-1, 2]),
    }
    names, targets = lens_targets(answers, wrong, others)
    assert names == ["answer", "wrong", "answer+2"] and targets.shape == (3, 3)


def reading_of(top):
    """A reading whose most likely tokens are ``top [blocks + 1, N]``."""
    top = torch.tensor(top)[..., None]
    points = (("embed", -1), *(("resid_post", i) for i in range(len(top) - 1)))
    empty = torch.zeros(*top.shape, 1)
    return LensReading(points, top, empty.long(), empty, empty)


def test_next_member_is_counted_block_by_block():
    members = torch.tensor([10, 11, 12, 13, 14])
    answers, before = torch.tensor([13, 13, 14, 12]), torch.tensor([12, 12, 13, 11])
    top = [
        [0, 12, 11, 11],
        [12, 13, 11, 12],  # prompts 1 and 3: the member exactly before gives way here
        [
            13,
            12,
            14,
            12,
        ],  # prompt 0: exactly; prompt 1 relapses; prompt 2: an earlier one gives way
        [13, 13, 14, 0],  # prompt 1 again, now for good; prompt 3 ends wrong
    ]
    table = next_member_test(reading_of(top), answers, before, members)
    assert table["layer"].tolist() == [0, 1, 2] and (table["prompts"] == 4).all()
    assert table["exact"].tolist() == [2, 1, 1]
    assert table["earlier"].tolist() == [2, 2, 1]
    assert table["before"].tolist() == [2, 1, 1] and table["answer"].tolist() == [2, 3, 3]
    assert table["for_good"].tolist() == [0, 2, 1] and table["for_good_exact"].tolist() == [0, 1, 1]
    low, high = share_interval(np.array([2]), np.array([4]))
    assert table["exact_low"][0] == low[0] and table["exact_high"][0] == high[0]
    without = next_member_test(reading_of(top), answers, before)
    assert "earlier" not in without and without["exact"].tolist() == [2, 1, 1]


def test_half_blocks_do_not_split_the_test():
    reading = reading_of([[1, 1], [2, 2]])
    half = LensReading(
        (reading.points[0], ("resid_mid", 0), reading.points[1]),
        torch.cat([reading.top[:1], reading.top[:1] * 0 + 9, reading.top[1:]]),
        *(torch.zeros(3, 2, 1, 1),) * 3,
    )
    answers, before = torch.tensor([2, 2]), torch.tensor([1, 1])
    assert next_member_test(half, answers, before)["exact"].tolist() == [2]


# --- averages -------------------------------------------------------------------------------------


def test_wilson_intervals_are_those_of_scipy():
    from scipy.stats import binomtest

    hits, of = np.array([0, 3, 12, 1531]), np.array([5, 12, 12, 1536])
    low, high = share_interval(hits, of, 0.9)
    for i in range(4):
        known = binomtest(int(hits[i]), int(of[i])).proportion_ci(0.9, method="wilson")
        assert (low[i], high[i]) == pytest.approx((known.low, known.high))
    assert np.isnan(share_interval(np.array([0]), np.array([0]))).all()


def test_many_intervals_are_single_ones():
    values = np.random.default_rng(0).normal(0.1, 1, (4, 201))
    values[1, 3] = np.nan
    values[2, :100] = np.inf
    values[3] += 9
    low, high = intervals(values, 0.9)
    for i, row in enumerate(values):
        assert np.allclose((low[i], high[i]), interval(row, 0.9), equal_nan=True)


def test_p_values_are_those_of_scipy():
    from scipy.stats import ttest_1samp

    values = np.random.default_rng(0).normal([[0.0], [0.5], [20.0]], 1, (3, 12))
    values[1, 3:5] = np.nan
    p = t_p_values(np.concatenate([values, np.zeros((1, 12)), np.full((1, 12), np.nan)]))
    assert np.allclose(p[:3], ttest_1samp(values, 0, axis=1, nan_policy="omit").pvalue, rtol=1e-9)
    assert p[2] < 1e-12 and p[3] == 1 and np.isnan(p[4])


def test_rounding_is_not_significant():
    """A residue of float32 is the same for every prompt, so that a plain t-test is sure of it."""
    residue = np.full((1, 16), np.spacing(np.float32(3))) + np.linspace(0, 1e-9, 16)
    assert t_p_values(residue) == 1 and t_p_values(residue, scale=1e-6) < 1e-12
    mixed = np.concatenate([residue, residue + 2e-4 * np.linspace(0.6, 2, 16)])
    assert t_p_values(mixed)[1] < 1e-6


def test_means_agree_with_a_direct_bootstrap():
    rng = np.random.default_rng(0)
    values = rng.normal([[0.0], [1.0], [5.0]], 1, (3, 40))
    values[2, 10:] = np.nan
    values = np.concatenate([values, np.full((1, 40), np.nan)])
    rows = mean_rows(values, seed=3, replicates=4000)
    assert rows["prompts"].tolist() == [40, 40, 10, 0]
    assert np.allclose(
        rows["mean"], np.nanmean(values[:3], axis=1).tolist() + [np.nan], equal_nan=True
    )
    draws = rng.integers(0, 40, (4000, 40))
    for i in range(3):
        direct = np.nanquantile(np.nanmean(values[i][draws], axis=1), [0.025, 0.975])
        assert np.allclose(rows.loc[i, ["low", "high"]].astype(float), direct, atol=0.06)
    assert rows["p"][0] > 0.05 > rows["p"][1] and rows.loc[3, ["mean", "low", "p"]].isna().all()
    pd.testing.assert_frame_equal(rows, mean_rows(values, seed=3, replicates=4000))


def test_means_of_pairs_are_those_of_each_pair_alone():
    generator = torch.Generator().manual_seed(0)
    values = {
        (a, b): torch.randn(n, 2, 3, generator=generator)
        for a, b, n in (("x", "y", 8), ("r", "s", 5), ("y", "y", 8))
    }
    table = pair_means(values, seed=0, replicates=50)
    assert len(table) == 18 and table["component"][:3].tolist() == ["L0.H0", "L0.H1", "L0.H2"]
    for pair, each in values.items():
        rows = table[(table["query"] == pair[0]) & (table["key"] == pair[1])]
        alone = mean_rows(each.flatten(1).T, seed=0, replicates=50)
        assert np.allclose(rows[["mean", "low", "high"]], alone[["mean", "low", "high"]])
        one = rows.query("layer == 1 and head == 2")["mean"].item()
        assert one == pytest.approx(each[:, 1, 2].mean().item())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_direct_attribution_in_a_table_adds_up(kind):
    model = make_model(kind)
    clean, _, answers, wrong = solved_pairs(model)
    parts = direct_attribution(model, clean, answers, wrong)
    table = attribution_table(parts, seed=0, replicates=100)
    config = model.config
    assert len(table) == config.n_layers * (config.n_heads + 1) + 2
    assert table["share"].sum() == pytest.approx(1) and set(table["prompts"]) == {5}
    assert table["logits"].sum() == pytest.approx(parts.total.mean().item())
    rows = table.set_index("component")
    assert rows["logits"]["L1.H1"] == pytest.approx(parts.heads[:, 1, 1].mean().item())
    assert rows["logits"]["L2.mlp"] == pytest.approx(parts.mlps[:, 2].mean().item())
    assert rows["kind"].value_counts().to_dict()["other"] == 2
    assert (table["logits_low"] <= table["logits"]).all() and (
        table["share_high"] >= table["share_low"]
    ).all()
