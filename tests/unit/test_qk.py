"""What heads look for and promote, against loops over single heads; planted heads; all lenses on a task."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from edge_models import make_model
from node_reference import activations, solved_pairs
from planted import planted_model, planted_pairs

from mechatlas.circuits.attention import (
    attention_table,
    mean_patterns,
    one_template,
    pattern_rows,
    position_names,
    repeated_pairs,
    repeated_token_attention,
    repeated_token_scores,
    role_attention,
    uniform_attention,
)
from mechatlas.circuits.lenses import LensSettings, MemberOrder, measure_lenses
from mechatlas.circuits.members import (
    following,
    matrix_rows,
    mean_residuals,
    ov_member_table,
    ov_table,
    qk_member_table,
)
from mechatlas.circuits.ov import ov_matrix, ov_ranks, token_residuals
from mechatlas.circuits.qk import match_table, position_attention, role_matches, token_matches
from mechatlas.io import rng_for
from mechatlas.tasks.pairs import PairBatch

KINDS = pytest.mark.parametrize("kind", ["gpt2", "llama"])


def roles_of(pairs=5, end=8):
    return {
        "a": torch.tensor([2, 3, -1, 4, 5]),
        "b": torch.tensor([5, 2, 4, 4, 6]),
        "none": torch.full((pairs,), -1),
        "end": torch.full((pairs,), end),
    }


def scaled_scores(model, tokens):
    """Attention logits ``[N, L, H, T, T]`` by explicit products of queries and keys."""
    q, k = (activations(model, tokens, point) for point in ("q", "k"))
    group = model.config.n_heads // model.config.n_kv_heads
    layers = []
    for layer in q:
        keys = torch.stack([k[layer][:, :, h // group] for h in range(model.config.n_heads)], dim=2)
        scale = math.sqrt(model.config.d_head) * (layer + 1 if model.config.scale_by_layer else 1)
        layers.append(torch.einsum("nqhe,nkhe->nhqk", q[layer], keys) / scale)
    return torch.stack(layers, dim=1), q, k, group


@KINDS
@pytest.mark.parametrize("bos", [True, False])
def test_role_matches_are_differences_of_attention_logits(kind, bos):
    model = make_model(kind)
    tokens, roles = solved_pairs(model)[0], roles_of()
    found = role_matches(model, tokens, roles, bos=bos, batch=2)
    scores, q, k, group = scaled_scores(model, tokens)
    # The hook on the scores agrees, so these are the model's own.
    seen = activations(model, tokens, "attn_scores")[1]
    masked = scores[:, 1].masked_fill(torch.ones(9, 9).triu(1).bool(), -math.inf)
    torch.testing.assert_close(seen, masked, atol=1e-10, rtol=0)
    assert ("none", "end") not in found and ("end", "a") in found and ("b", "end") not in found
    for (query, key), (score, content) in found.items():
        for n in range(5):
            i, j = int(roles[query][n]), int(roles[key][n])
            if i < 0 or j < 0 or j > i:
                assert score[n].isnan().all() and content[n].isnan().all()
                continue
            others = [t for t in range(int(bos), i + 1) if t != j]
            expected = scores[n, :, :, i, j] - scores[n, :, :, i, others].mean(-1)
            torch.testing.assert_close(score[n], expected, atol=1e-10, rtol=0)
            rest = [m for m in range(5) if m != n and roles[key][m] >= 0]
            for layer, head in np.ndindex(3, model.config.n_heads):
                scale = math.sqrt(model.config.d_head)
                scale *= layer + 1 if model.config.scale_by_layer else 1
                mean = sum(
                    q[layer][n, i, head] @ k[layer][m, int(roles[key][m]), head // group]
                    for m in rest
                ) / (len(rest) * scale)
                apart = scores[n, layer, head, i, j] - mean
                assert content[n, layer, head].item() == pytest.approx(apart.item(), abs=1e-10)


def test_scores_are_those_of_the_pattern():
    """exp of a difference of scores is the ratio of attention weights."""
    model = make_model("llama")
    tokens = solved_pairs(model)[0]
    roles = {"key": torch.full((5,), 1), "end": torch.full((5,), 2)}
    score = role_matches(model, tokens, roles, bos=True)["end", "key"][0]
    pattern = activations(model, tokens, "pattern")[1]
    ratio = (pattern[:, :, 2, 1] / pattern[:, :, 2, 2]).log()
    torch.testing.assert_close(score[:, 1], ratio, atol=1e-10, rtol=0)


def test_a_lone_key_has_nothing_to_compare_with():
    model = make_model()
    tokens = solved_pairs(model)[0]
    roles = {"start": torch.zeros(5, dtype=torch.int64), "end": torch.tensor([8, -1, -1, -1, -1])}
    found = role_matches(model, tokens, roles, bos=False)
    assert found["start", "start"][0].isnan().all() and found["end", "end"][1].isnan().all()
    assert found["end", "start"][0][0].isfinite().all()


def test_planted_induction_head_looks_for_the_token_after_the_same_one():
    model = planted_model()
    clean = planted_pairs()[0]
    first = (clean[:, :-1] == clean[:, -1:]).int().argmax(1)
    roles = {
        "after": first + 1,
        "other": torch.full_like(first, 9),
        "end": torch.full_like(first, 11),
    }
    table = match_table(role_matches(model, clean, roles, bos=True), seed=0)
    best = table.sort_values("content", ascending=False).iloc[0]
    assert (best["component"], best["query"], best["key"]) == ("L2.H1", "end", "after")
    assert best["content_low"] > 1 and best["content_p_fdr"] < 0.05 and best["prompts"] == 16
    noise = table.query("component == 'L2.H1' and query == 'end' and key == 'other'").iloc[0]
    assert noise["content"] < 0.2


def test_planted_previous_token_head_shows_by_position_alone():
    model = planted_model()
    found = position_attention(model, seed=0, bos=0, offsets=3)
    assert found.shape == (3, 4, 3)
    assert found[0, 2, 1] > 0.95 and found[..., 1].flatten().topk(2).values[1] < 0.4
    assert found[0, 2, 0] < 0.05


@KINDS
def test_position_attention_is_the_pattern_of_mean_residuals(kind):
    model = make_model(kind)
    found = position_attention(model, seed=0, bos=None, offsets=2, length=6, count=1)
    # With one sequence the mean residual is that sequence's, so the pattern is the model's own.
    tokens = rng_for(0, "position attention").choice(np.arange(40), (1, 6))
    pattern = activations(model, torch.from_numpy(tokens), "pattern")
    for layer in range(3):
        for offset in range(2):
            own = torch.stack([pattern[layer][0, :, i, i - offset] for i in range(offset, 6)]).mean(
                0
            )
            torch.testing.assert_close(found[layer, :, offset], own, atol=1e-10, rtol=0)


@KINDS
def test_token_matches_are_products_of_queries_and_keys(kind):
    model = make_model(kind)
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(n, model.config.d_model, dtype=torch.float64, generator=generator)
        for n in (3, 4)
    )
    found = token_matches(model, x, y)
    config, dh = model.config, model.config.d_head
    assert found.shape == (3, config.n_heads, 3, 4)
    for layer, head in np.ndindex(3, config.n_heads):
        block = model.weights.layers[layer]
        column = config.n_heads + head // (config.n_heads // config.n_kv_heads)
        parts = []
        for z, c in ((x, head), (y, column)):
            part = slice(c * dh, (c + 1) * dh)
            out = model.norm(z, block.norm1, block.norm1_bias) @ block.w_qkv[:, part]
            parts.append(out if block.b_qkv is None else out + block.b_qkv[part])
        scale = math.sqrt(dh) * (layer + 1 if config.scale_by_layer else 1)
        torch.testing.assert_close(
            found[layer, head], parts[0] @ parts[1].mT / scale, atol=1e-10, rtol=0
        )


# --- members --------------------------------------------------------------------------------------


def test_mean_residuals_average_the_occurrences():
    model = make_model()
    tokens = torch.tensor([[7, 3, 3, 9], [3, 7, 1, 2]])
    own, x = mean_residuals(model, tokens, torch.tensor([[1, 2], [0, -1]]))
    each = token_residuals(model, tokens, torch.tensor([[1, 2], [0, 1]]))
    assert own.tolist() == [3]
    torch.testing.assert_close(x[0], (each[0, 0] + each[0, 1] + each[1, 0]) / 3, atol=1e-12, rtol=0)


def test_following_members():
    own, members = torch.tensor([5, 9, 7, 4]), torch.tensor([9, 7, 5])
    assert following(own, members).tolist() == [-1, 7, 5, -1]
    assert following(own, members, cyclic=True).tolist() == [9, 7, 5, -1]
    assert following(own, members, -2).tolist() == [9, -1, -1, -1]


@pytest.mark.parametrize("step", [1, -2])
def test_member_tables_count_rows_of_the_matrices(step):
    model = make_model("llama")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, model.config.d_model, dtype=torch.float64, generator=generator)
    others = torch.randn(4, model.config.d_model, dtype=torch.float64, generator=generator)
    own = torch.tensor([3, 14, 15, 9, 2, 6])
    ov, qk = ov_matrix(model, x, own), token_matches(model, x, x)
    apart = token_matches(model, x, others)
    written = ov_member_table(model, own, x, step=step, seed=0, replicates=50)
    sought = qk_member_table(model, x, others, step=step, seed=0, replicates=50)
    for row, (layer, head) in enumerate(np.ndindex(3, 4)):
        a, b = ov[layer, head], qk[layer, head]
        inside = [i for i in range(6) if 0 <= i + step < 6]
        assert written["copy_hits"][row] == sum(int(a[i].argmax() == i) for i in range(6))
        assert written["next_hits"][row] == sum(int(a[i].argmax() == i + step) for i in inside)
        assert written["next_of"][row] == len(inside) and written["copy_of"][row] == 6
        gain = np.mean([float(a[i, i + step] - a[i, i]) for i in inside])
        assert written["next_minus_copy"][row] == pytest.approx(gain)
        assert sought["duplicate_hits"][row] == sum(int(b[i].argmax() == i) for i in range(6))
        before = [i for i in range(6) if 0 <= i - step < 6]
        assert sought["previous_hits"][row] == sum(int(b[i].argmax() == i - step) for i in before)
        wins = [
            float(b[i, j] > apart[layer, head, i, o])
            for i in range(6) for j in range(6) if i != j for o in range(4)
        ]  # fmt: skip
        assert sought["similar"][row] == pytest.approx(np.mean(wins))
    assert set(written["chance"]) == {1 / 6}


def test_ov_table_counts_the_most_promoted():
    model = make_model()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, model.config.d_model, dtype=torch.float64, generator=generator)
    own = torch.tensor([1, 2, 3, 4, 5])
    after = torch.tensor([2, 3, -1, 5, -1])
    targets = {"copy": own, "next": after, "ordinal": torch.full((5,), -1)}
    table = ov_table(model, x, targets, best=7, sign=-1)
    assert set(table["target"]) == {"copy", "next"} and set(table["sign"]) == {-1}
    ranks = ov_ranks(model, x, torch.stack([own, after.clamp(min=0)], dim=1), sign=-1)
    row = table.query("component == 'L1.H1' and target == 'next'").iloc[0]
    held = ranks[1, 1, [0, 1, 3], 1]
    assert row["of"] == 3 and row["hits"] == int((held < 7).sum())
    assert row["median_rank"] == held.double().median() and row["chance"] == 7 / 40


def test_matrices_in_rows():
    matrix = torch.arange(12.0).view(1, 2, 2, 3)
    table = matrix_rows(matrix, ["a", "b"], ["x", "y", "z"], "value")
    row = table.query("head == 1 and attended == 'b' and promoted == 'y'")
    assert len(table) == 12 and row["value"].item() == matrix[0, 1, 1, 1]


# --- attention ------------------------------------------------------------------------------------


@KINDS
def test_mean_patterns_and_their_rows(kind):
    model = make_model(kind)
    tokens = solved_pairs(model)[0]
    found = mean_patterns(model, tokens, batch=2)
    expected = torch.stack(list(activations(model, tokens, "pattern").values())).mean(1)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    table = pattern_rows(found, [str(t) for t in range(9)])
    assert len(table) == 3 * model.config.n_heads * 45 and (table["key"] <= table["query"]).all()
    row = table.query("component == 'L1.H1' and query == 7 and key_label == '3'")
    assert row["attention"].item() == pytest.approx(expected[1, 1, 7, 3].item())
    sums = table.groupby(["component", "query"])["attention"].sum()
    assert np.allclose(sums, 1)


def test_templates_and_names_of_positions():
    roles = {"a": torch.tensor([1, 2, 1]), "end": torch.tensor([3, 3, 3])}
    rows = one_template(roles)
    assert rows.tolist() == [True, False, True]
    tokens = torch.tensor([[0, 5, 6, 8], [0, 7, 6, 9]])
    same = {"a": torch.tensor([1, 1]), "b": torch.tensor([-1, -1])}
    assert position_names(tokens, same, lambda t: f"t{t}") == ["t0", "a", "t6", "…"]


def test_attention_by_role_with_chance():
    model = make_model()
    tokens, roles = solved_pairs(model)[0], roles_of()
    pairs = role_attention(model, tokens, roles)
    repeated = repeated_token_attention(model, seed=0, bos=0, length=4, count=3)
    assert repeated["induction"].shape == (3, 3, 2)
    means = repeated_token_scores(model, seed=0, bos=0, length=4, count=3)
    assert torch.equal(means["induction"], repeated["induction"].mean(0))
    chance = uniform_attention(model, roles, 0, length=4)
    assert chance["a"] == pytest.approx(np.mean([1 / 3, 1 / 4, 1 / 5, 1 / 6]))
    assert chance["repeated"] == pytest.approx(np.mean([1 / (t + 1) for t in (5, 6, 7, 8)]))
    table = attention_table(pairs | repeated_pairs(repeated), chance, seed=0, replicates=50)
    assert not ((table["query"] == "b") & (table["key"] == "end")).any()
    row = table.query("component == 'L2.H1' and query == 'end' and key == 'a'").iloc[0]
    own = pairs["end", "a"][:, 2, 1]
    assert row["prompts"] == 4 and row["attention"] == pytest.approx(own.nanmean().item())
    assert row["low"] <= row["attention"] <= row["high"] and row["chance"] == pytest.approx(1 / 9)
    assert (table.query("query == 'repeated'")["prompts"] == 3).all()


# --- all of them ----------------------------------------------------------------------------------


def planted_batch():
    clean, corrupted, answers, wrong = (x.numpy() for x in planted_pairs())
    first = (clean[:, :-1] == clean[:, -1:]).argmax(1)
    roles = {"source": first + 1, "end": np.full(16, 11)}
    return PairBatch(
        "planted", clean, corrupted, answers, wrong, roles, ("g",) * 16, ("discovery",) * 16, True
    )


NAMES = {
    "logit_lens", "transitions", "direct", "attention", "patterns", "positions", "qk", "qk_members", "ov",
    "ov_members", "matrices",
}  # fmt: skip


def test_all_lenses_of_a_task_without_a_sequence():
    model, settings = planted_model(), LensSettings(0, replicates=100, batch=5)
    tables = measure_lenses(model, planted_batch(), lambda t: f"t{t}", settings, bos=0)
    assert set(tables) == NAMES
    assert tables["transitions"].empty and tables["matrices"].empty
    final = tables["logit_lens"].query("norm == 'final' and point == 'resid_post' and layer == 2")
    assert set(final["token"]) == {"answer", "wrong"}
    assert final.set_index("token")["top1"]["answer"] == 1
    top = tables["direct"].sort_values("share", ascending=False)
    assert top["component"].iloc[0] == "L2.H1" and top["share"].iloc[0] > 0.9
    copying = tables["ov"].query("target == 'copy' and sign == 1").sort_values("share")
    assert copying["component"].iloc[-1] == "L2.H1" and copying["share"].iloc[-1] == 1
    assert "next" not in tables["ov_members"] and "previous" not in tables["qk_members"]
    again = measure_lenses(model, planted_batch(), lambda t: f"t{t}", settings, bos=0)
    for name in NAMES:
        pd.testing.assert_frame_equal(tables[name], again[name])


def test_all_lenses_of_a_sequence():
    model = planted_model()
    batch = planted_batch()
    answers = torch.from_numpy(batch.answers)
    order = MemberOrder(torch.arange(1, 20), 1, False, torch.tensor([0, -1] * 9 + [5]))
    tables = measure_lenses(
        model, batch, lambda t: f"t{t}", LensSettings(0, replicates=50), bos=0, order=order
    )
    assert set(tables) == NAMES
    tokens = set(tables["logit_lens"]["token"])
    assert {"answer-1", "answer+2"} <= tokens and "source" not in tokens
    known = int((answers > 1).sum())
    one = tables["logit_lens"].query("token == 'answer-1' and layer == -1 and norm == 'raw'")
    assert one["prompts"].item() == known
    assert (
        tables["transitions"]["layer"].tolist() == [0, 1, 2] and "earlier" in tables["transitions"]
    )
    words = {f"t{t}" for t in set(batch.answers.tolist())}
    assert set(tables["matrices"]["attended"]) == words
    assert len(tables["matrices"]) == 12 * len(words) ** 2
    assert set(tables["ov"]["target"]) <= {"copy", "next", "ordinal"}
