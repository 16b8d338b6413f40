"""Activation patching against single runs with hooks, against TransformerLens, and against invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from edge_models import make_model
from node_reference import logit_difference, patched_run, solved_pairs
from planted import CIRCUIT, planted_model, planted_pairs

from mechatlas.circuits.effects import (
    above,
    effect_rows,
    effects_table,
    pair_effects,
    text_heatmap,
    top,
)
from mechatlas.circuits.patching import (
    HEAD_POINTS,
    LAYER_POINTS,
    every_position,
    patch,
    role_places,
)
from mechatlas.io import UserError
from mechatlas.models.config import ModelConfig
from mechatlas.models.transformer import Transformer
from mechatlas.models.weights import random_weights


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("point", HEAD_POINTS + LAYER_POINTS)
def test_equals_one_run_per_patch(kind, point):
    model = make_model(kind)
    clean, corrupted, answers, wrong = solved_pairs(model)
    places = {"all": torch.ones_like(clean, dtype=torch.bool)}
    places |= role_places({"a": torch.tensor([2, 4, 5, 2, 8]), "end": torch.full((5,), 8)}, 9)
    for direction, base, source in (("denoise", corrupted, clean), ("noise", clean, corrupted)):
        (sweep,) = patch(
            model, clean, corrupted, answers, wrong, point=point, direction=direction, places=places
        )
        assert sweep.places == ("all", "a", "end")
        layers, units, count, _ = sweep.patched.shape
        assert (layers, count) == (3, 3)
        for layer, unit, index in np.ndindex(layers, units, count):
            place = list(places.values())[index]
            x = patched_run(model, base, source, point, layer, unit, place)
            wanted = logit_difference(model, x, answers, wrong)
            got = sweep.patched[layer, unit, index]
            torch.testing.assert_close(got, wanted, atol=1e-10, rtol=0)
        assert (sweep.patched - sweep.patched[0, 0, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("rows", [1, 60, None])
def test_batch_size_and_shared_passes_change_nothing(rows):
    model = make_model("llama")
    pairs = solved_pairs(model)
    names = ["logit_difference", "kl", "rank", "probability_difference"]
    together = patch(model, *pairs, point="v", metrics=names, rows=rows)
    for name, sweep in zip(names, together, strict=True):
        (alone,) = patch(model, *pairs, point="v", metrics=[name])
        torch.testing.assert_close(sweep.patched, alone.patched, atol=1e-10, rtol=0)
        torch.testing.assert_close(sweep.clean, alone.clean, atol=1e-10, rtol=0)


def test_a_prompt_patched_with_itself_stays_and_everything_patched_restores_it():
    model = make_model()
    clean, corrupted, answers, wrong = solved_pairs(model)
    for point in HEAD_POINTS + LAYER_POINTS:
        (same,) = patch(model, corrupted, corrupted, answers, wrong, point=point)
        assert (same.patched - same.corrupted).abs().max() < 1e-12
    for point, layer in (("resid_pre", 0), ("resid_post", 2), ("resid_post", 0)):
        (sweep,) = patch(model, clean, corrupted, answers, wrong, point=point)
        assert (sweep.clean - sweep.corrupted).abs().min() > 1e-3
        torch.testing.assert_close(sweep.patched[layer, 0, 0], sweep.clean, atol=1e-10, rtol=0)
        assert np.allclose(pair_effects(sweep)[layer, 0, 0], 1, atol=1e-9)


def test_positions_that_agree_have_no_effect():
    model = make_model()
    clean, corrupted, answers, wrong = solved_pairs(model)  # differ at 2 and 4
    (sweep,) = patch(
        model, clean, corrupted, answers, wrong, point="resid_pre", places=every_position(5, 9)
    )
    change = sweep.patched[:, 0] - sweep.corrupted
    assert change[:, :2].abs().max() < 1e-12
    assert change[0, 3].abs().max() < 1e-12  # the embedding at 3 is the same in both
    assert change[1, 3].abs().max() > 1e-6


def test_a_role_that_a_pair_lacks_has_no_value():
    model = make_model()
    pairs = solved_pairs(model)
    places = role_places({"io": torch.tensor([2, -1, 4, 4, -1])}, 9)
    (sweep,) = patch(model, *pairs, places=places)
    assert torch.equal(sweep.patched[1, 1, 0].isnan(), torch.tensor([0, 1, 0, 0, 1]).bool())
    assert (effects_table(sweep, seed=0)["pairs"] == 3).all()


def test_components_are_named_by_what_is_patched():
    model = make_model("llama")
    names = {}
    for point in ("q", "v", "mlp_out", "attn_out"):
        (sweep,) = patch(model, *solved_pairs(model), point=point)
        names[point] = effects_table(sweep, seed=0, replicates=10)["component"].tolist()[-1]
    assert names == {"q": "L2.H3", "v": "L2.KV1", "mlp_out": "L2.mlp", "attn_out": "L2.attn_out"}


def test_a_linear_model_has_the_analytic_effects():
    """Uniform attention, no MLP, a norm whose scale cannot move: the logit difference is linear in every head."""
    config = ModelConfig("llama", 2, 3, 3, 10, 4, 6, 16, 30, 1e30, "silu", False, qkv_bias=False,
                         out_bias=False, mlp_bias=False, initializer_range=1.0)  # fmt: skip
    weights = random_weights(config, 3, "cpu", torch.float64)
    for layer in weights.layers:
        layer.w_qkv[:, :24] = 0
        layer.w_down[:] = 0
        layer.norm1[:] = 1e15
    weights.final_norm[:] = 1e15
    model = Transformer(config, weights)
    clean, corrupted, answers, wrong = solved_pairs(model)
    (sweep,) = patch(model, clean, corrupted, answers, wrong)
    length = clean.shape[1]
    average = torch.tril(torch.ones(length, length, dtype=torch.float64))
    average /= average.sum(1, keepdim=True)
    heads = [
        [layer.w_qkv[:, 24 + 4 * h : 28 + 4 * h] @ layer.w_o[4 * h : 4 * h + 4] for h in range(3)]
        for layer in weights.layers
    ]
    change = weights.embedding[clean] - weights.embedding[corrupted]
    direction = weights.unembedding[answers] - weights.unembedding[wrong]
    for h in range(3):
        first = average @ change @ heads[0][h]
        through = first + average @ first @ sum(heads[1])
        wanted = (through[:, -1] * direction).sum(-1)
        torch.testing.assert_close(
            sweep.patched[0, h, 0] - sweep.corrupted, wanted, atol=1e-8, rtol=1e-8
        )
        later = average @ (change + average @ change @ sum(heads[0])) @ heads[1][h]
        wanted = (later[:, -1] * direction).sum(-1)
        torch.testing.assert_close(
            sweep.patched[1, h, 0] - sweep.corrupted, wanted, atol=1e-8, rtol=1e-8
        )


def test_the_planted_circuit_is_found():
    model = planted_model()
    for direction in ("denoise", "noise"):
        for point in ("z", "v", "pattern", "k", "q"):
            (sweep,) = patch(model, *planted_pairs(), direction=direction, point=point)
            found = set(above(effects_table(sweep, seed=0), 0.2)["component"])
            wanted = {
                "z": set(CIRCUIT),
                "v": {"L0.H2"},
                "pattern": {"L2.H1"},
                "k": {"L2.H1"},
                "q": set(),
            }
            assert found == wanted[point], (direction, point)


def test_effects_average_both_ways():
    change = np.array([[1.0, 2.0, 4.0, np.nan], [0.0, 0.0, 0.0, 0.0]])
    gap = np.array([2.0, 2.0, 16.0, 5.0])
    rows = effect_rows(change, gap, seed=0, replicates=200)
    assert rows["effect"].tolist() == [7 / 20, 0]
    assert rows["mean_of_ratios"].iloc[0] == pytest.approx((0.5 + 1 + 0.25) / 3)
    assert rows["pairs"].tolist() == [3, 4] and rows["ratio_pairs"].tolist() == [3, 4]
    assert rows["low"].iloc[0] >= 0.25 and rows["high"].iloc[0] <= 1
    assert rows["p"].tolist()[1] == 1
    residue = effect_rows(np.full((1, 3), 4e-6), np.array([9.0, 10, 11]), seed=0)
    assert residue["effect"].item() == pytest.approx(4e-7) and residue["p_fdr"].item() == 1
    tiny = effect_rows(np.array([[1.0, 1.0, 1.0]]), np.array([1.0, 1.0, 1e-9]), seed=0)
    assert tiny["ratio_pairs"].item() == 2 and tiny["mean_of_ratios"].item() == 1


def test_intervals_cover_the_true_effect():
    rng = np.random.default_rng(0)
    gap = rng.normal(3, 1, (400, 40))
    change = 0.3 * gap + rng.normal(0, 1, (400, 40))
    inside = [
        bool(
            ((r := effect_rows(c[None], g, seed=i, replicates=300))["low"] <= 0.3).item()
            and (r["high"] >= 0.3).item()
        )
        for i, (c, g) in enumerate(zip(change, gap, strict=True))
    ]
    assert 0.9 <= np.mean(inside) <= 0.98


def test_tables_for_people():
    model = planted_model()
    (sweep,) = patch(model, *planted_pairs())
    table = effects_table(sweep, seed=0)
    best = top(table, 3)
    assert best["effect"].abs().is_monotonic_decreasing and len(best) == 3
    text = text_heatmap(table["effect"].to_numpy().reshape(3, 4)).splitlines()
    assert text[1].split() == ["L0", ".", ".", "+10", "."] and text[0].split() == [
        "H0",
        "H1",
        "H2",
        "H3",
    ]
    assert text_heatmap(np.array([[-0.31, np.nan]])).splitlines()[1].split() == ["L0", "-3", "?"]


@pytest.mark.parametrize(
    "change",
    [{"point": "zz"}, {"direction": "up"}, {"metrics": ["bleu"]}],
)
def test_user_errors(change):
    model = make_model()
    with pytest.raises(UserError):
        patch(model, *solved_pairs(model), **change)


def test_equal_runs_and_negative_thresholds_are_user_errors():
    model = make_model()
    clean, _, answers, wrong = solved_pairs(model)
    (sweep,) = patch(model, clean, clean, answers, wrong)
    with pytest.raises(UserError, match="same in the clean and the corrupted"):
        effects_table(sweep, seed=0)
    (sweep,) = patch(model, *solved_pairs(model))
    with pytest.raises(UserError, match="threshold"):
        above(effects_table(sweep, seed=0), -0.1)


@pytest.fixture(scope="module")
def bridge_case(tmp_path_factory):
    """The same weights in TransformerLens and here, in float32."""
    import os

    os.environ["HF_HUB_OFFLINE"] = "1"
    from test_models import VOCAB, save_gpt2, write_tokenizer
    from transformer_lens.model_bridge import TransformerBridge

    from mechatlas.models.transformer import load

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bridge")
    save_gpt2(folder, n_layer=3)
    write_tokenizer(folder)
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    clean, other = torch.randint(0, VOCAB, (2, 4, 8))
    corrupted = clean.clone()
    corrupted[:, 3] = other[:, 3]
    answers, wrong = torch.randint(0, VOCAB, (2, 4))
    return bridge, load(folder), clean, corrupted, answers, wrong


@pytest.mark.parametrize(
    ("point", "name", "by_position"),
    [
        ("z", "get_act_patch_attn_head_out_all_pos", False),
        ("q", "get_act_patch_attn_head_q_all_pos", False),
        ("k", "get_act_patch_attn_head_k_all_pos", False),
        ("v", "get_act_patch_attn_head_v_all_pos", False),
        ("pattern", "get_act_patch_attn_head_pattern_all_pos", False),
        ("z", "get_act_patch_attn_head_out_by_pos", True),
        ("k", "get_act_patch_attn_head_k_by_pos", True),
        ("pattern", "get_act_patch_attn_head_pattern_by_pos", True),
        ("resid_pre", "get_act_patch_resid_pre", True),
        ("resid_mid", "get_act_patch_resid_mid", True),
        ("attn_out", "get_act_patch_attn_out", True),
        ("mlp_out", "get_act_patch_mlp_out", True),
    ],
)  # fmt: skip
def test_equals_transformer_lens(point, name, by_position, bridge_case):
    from transformer_lens import patching

    bridge, model, clean, corrupted, answers, wrong = bridge_case
    rows = torch.arange(4)

    def metric(logits):
        return (logits[rows, -1, answers] - logits[rows, -1, wrong]).mean()

    with torch.no_grad():
        _, cache = bridge.run_with_cache(clean)
        wanted = getattr(patching, name)(bridge, corrupted, cache, metric)
    places = every_position(4, 8) if by_position else None
    (sweep,) = patch(model, clean, corrupted, answers, wrong, point=point, places=places)
    got = sweep.patched.mean(
        -1
    )  # [L, U, P]; TransformerLens: [L, P], [L, H] or [L, P, H] ([L, H, P] for patterns)
    if point in LAYER_POINTS:
        got = got[:, 0]
    else:
        got = got if by_position else got[..., 0]
        got = got.transpose(1, 2) if by_position and point != "pattern" else got
    assert got.shape == wanted.shape and not math.isclose(float(wanted.std()), 0, abs_tol=1e-4)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
