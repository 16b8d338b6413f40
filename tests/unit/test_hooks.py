"""Hook points against formulas written out here, and what the three stages of hooks see and do."""

from __future__ import annotations

import math

import pytest
import torch
from test_models import save_gpt2, save_llama

from mechatlas.models.hooks import ALL_POINTS, TDB_POINTS, Hooks, filled
from mechatlas.models.transformer import Transformer, load

ROWS, TOKENS, HEADS, WIDTH, HEAD, MLP, VOCAB = 2, 8, 3, 24, 8, 96, 97


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Transformer:
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    save_gpt2(folder)
    return load(folder, dtype="float64")


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, VOCAB, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1))


def debugger_pass(model, tokens):
    """Yield (point, layer, value) of a GPT-2, one equation a line, with the shapes the Transformer Debugger gives."""
    weights, seen = model.weights, []

    def see(name, layer, value):
        seen.append((name, layer, value))
        return value

    def norm(x, name, layer, gain, bias):
        x = see(f"{name}.post_mean_subtraction", layer, x - x.mean(-1, keepdim=True))
        scale = see(f"{name}.scale", layer, (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt())
        return see(f"{name}.post_scale", layer, x / scale) * gain + bias

    torso = "resid.torso"
    x = weights.embedding[tokens] + weights.positions[:TOKENS]
    see("resid.post_emb", 0, x)
    for i, w in enumerate(weights.layers):
        n = norm(x, f"{torso}.ln_attn", i, w.norm1, w.norm1_bias)
        see(f"{torso}.post_ln_attn", i, n)
        q, k, v = (n @ w.w_qkv + w.b_qkv).chunk(3, -1)
        q, k = q / HEAD**0.25, k / HEAD**0.25
        q, k, v = (part.reshape(ROWS, TOKENS, HEADS, HEAD) for part in (q, k, v))
        for name, part in zip("qkv", (q, k, v), strict=True):
            see(f"attn.{name}", i, part)
        scores = torch.einsum("bqhd,bkhd->bqkh", q, k)
        later = torch.arange(TOKENS)[None, :] > torch.arange(TOKENS)[:, None]
        scores = see("attn.qk_logits", i, scores.masked_fill(later[..., None], -math.inf))
        numerators = (scores - scores.amax(2, keepdim=True)).exp()
        total = see("attn.qk_softmax_denominator", i, numerators.sum(2, keepdim=True))
        pattern = see("attn.qk_probs", i, numerators / total)
        z = see("attn.v_out", i, torch.einsum("bqkh,bkhd->bqhd", pattern, v))
        delta = see(f"{torso}.delta_attn", i, z.reshape(ROWS, TOKENS, WIDTH) @ w.w_o + w.b_o)
        x = see(f"{torso}.post_attn", i, x + delta)
        n = norm(x, f"{torso}.ln_mlp", i, w.norm2, w.norm2_bias)
        see(f"{torso}.post_ln_mlp", i, n)
        pre = see("mlp.pre_act", i, n @ w.w_up + w.b_up)
        inner = math.sqrt(2 / math.pi) * (pre + 0.044715 * pre**3)
        post = see("mlp.post_act", i, 0.5 * pre * (1 + inner.tanh()))
        delta = see(f"{torso}.delta_mlp", i, post @ w.w_down + w.b_down)
        x = see(f"{torso}.post_mlp", i, x + delta)
    last = len(weights.layers)
    x = norm(x, "resid.ln_f", last, weights.final_norm, weights.final_norm_bias)
    see("resid.post_ln_f", last, x)
    see("logits", last, x @ weights.unembedding.T)
    return seen


def as_ours(name, value):
    """Bring a value of theirs into our form: heads before queries, and scores scaled once instead of q and k."""
    if name in ("attn.qk_logits", "attn.qk_softmax_denominator", "attn.qk_probs"):
        return value.permute(0, 3, 1, 2)
    return value * HEAD**0.25 if name in ("attn.q", "attn.k") else value


SHAPES = {
    "q": (ROWS, TOKENS, HEADS, HEAD), "k": (ROWS, TOKENS, HEADS, HEAD), "v": (ROWS, TOKENS, HEADS, HEAD),
    "z": (ROWS, TOKENS, HEADS, HEAD), "attn_scores": (ROWS, HEADS, TOKENS, TOKENS),
    "attn_denominator": (ROWS, HEADS, TOKENS, 1), "pattern": (ROWS, HEADS, TOKENS, TOKENS),
    "attn_in_scale": (ROWS, TOKENS, 1), "mlp_in_scale": (ROWS, TOKENS, 1), "final_norm_scale": (ROWS, TOKENS, 1),
    "mlp_pre": (ROWS, TOKENS, MLP), "mlp_post": (ROWS, TOKENS, MLP), "logits": (ROWS, TOKENS, VOCAB),
}  # fmt: skip


def test_the_debuggers_27_points_have_our_names_values_shapes_and_order(model, tokens):
    expected = debugger_pass(model, tokens)
    assert len(TDB_POINTS) == 27 and {name for name, _, _ in expected} == set(TDB_POINTS)
    seen = []
    hooks = Hooks()
    for point in TDB_POINTS.values():
        hooks.append_fwd(point, lambda v, layer, point=point: seen.append((point, layer, v)))
    model.forward(tokens, hooks)
    order = [(point, layer) for point, layer, _ in seen]
    assert order == [(TDB_POINTS[name], layer) for name, layer, _ in expected]
    for (point, _, value), (name, _, wanted) in zip(seen, expected, strict=True):
        assert value.shape == SHAPES.get(point, (ROWS, TOKENS, WIDTH)), point
        torch.testing.assert_close(value, as_ours(name, wanted), atol=1e-11, rtol=1e-11, msg=point)


@pytest.mark.parametrize("save", [save_gpt2, save_llama])
def test_watching_every_point_changes_nothing(save, tmp_path, tokens):
    save(tmp_path)
    model, seen = load(tmp_path, dtype="float64"), set()
    hooks = Hooks()
    for point in ALL_POINTS:
        hooks.append_fwd(point, lambda v, layer, point=point: seen.add((point, layer)))
    torch.testing.assert_close(
        model.forward(tokens, hooks), model.forward(tokens), atol=1e-11, rtol=0
    )
    assert {point for point, _ in seen} == set(ALL_POINTS)


def test_a_llama_has_the_points_of_its_norms(tmp_path, tokens):
    save_llama(tmp_path)
    model, seen = load(tmp_path, dtype="float64"), {}
    names = ("resid_pre", "attn_in_centred", "attn_in_scale", "attn_in_scaled", "attn_in")
    model.forward(tokens, {n: lambda v, layer, n=n: seen.__setitem__((n, layer), v) for n in names})
    x = seen["resid_pre", 1]
    assert torch.equal(seen["attn_in_centred", 1], x)  # no mean is subtracted
    scale = (x.pow(2).mean(-1, keepdim=True) + model.config.norm_eps).sqrt()
    torch.testing.assert_close(seen["attn_in_scale", 1], scale)
    torch.testing.assert_close(seen["attn_in_scaled", 1], x / scale)
    torch.testing.assert_close(seen["attn_in", 1], x / scale * model.weights.layers[1].norm1)


def test_values_replaced_inside_norm_and_softmax_take_effect(model, tokens):
    plain, changed = {}, {}
    names = ("attn_in", "pattern", "final_norm")
    keep = lambda place: {  # noqa: E731
        n: lambda v, layer, n=n: place.__setitem__((n, layer), v) for n in names
    }
    model.forward(tokens, keep(plain))
    double = lambda value, layer: value * 2  # noqa: E731
    for point in ("attn_in_scale", "attn_denominator", "final_norm_scaled"):
        model.forward(tokens, keep(changed) | {point: double})
        layer = model.weights.layers[0]
        if point == "attn_in_scale":
            wanted = (plain["attn_in", 0] - layer.norm1_bias) / 2 + layer.norm1_bias
            torch.testing.assert_close(changed["attn_in", 0], wanted)
        elif point == "attn_denominator":
            torch.testing.assert_close(changed["pattern", 0], plain["pattern", 0] / 2)
        else:
            bias = model.weights.final_norm_bias
            torch.testing.assert_close(
                changed["final_norm", 2], (plain["final_norm", 2] - bias) * 2 + bias
            )


def test_stages_run_in_their_own_order_whatever_the_order_of_the_calls(model, tokens):
    calls, gradients = [], []
    hooks = (
        Hooks()
        .append_fwd2("resid_mid", lambda v, i: calls.append("second") or v * 3, layers=1)
        .append_bwd("resid_mid", lambda g, i: gradients.append(("early", g)) or g * 5, layers=1)
        .append_bwd("resid_mid", lambda g, i: gradients.append(("late", g)) or g * 7, layers=1)
        .append_fwd("resid_mid", lambda v, i: calls.append("first") or v * 2, layers=1)
        .append_bwd("embed", lambda g, i: gradients.append(("embed", g)))
    )
    model.forward(tokens, hooks)[:, -1, 0].sum().backward()
    assert calls == ["first", "second"]
    assert [name for name, _ in gradients] == ["late", "early", "embed"]
    # By hand: y = 2 x at the point, the rest of the model reads 3 y.
    seen = {}
    model.forward(tokens, {"resid_mid": lambda v, i: seen.__setitem__(i, v)})
    y = (2 * seen[1]).requires_grad_()
    mid = 3 * y
    x = mid + model.mlp(mid, 1)
    logits = model.unembed(model.norm(x, model.weights.final_norm, model.weights.final_norm_bias))
    (wanted,) = torch.autograd.grad(logits[:, -1, 0].sum(), y)
    torch.testing.assert_close(gradients[0][1], wanted)
    torch.testing.assert_close(gradients[1][1], wanted * 7)
    start = model.embed(tokens).requires_grad_()
    mids = []
    model.forward(tokens, {"resid_mid": lambda v, i: mids.append(v)}, resume=(0, start))
    (at_start,) = torch.autograd.grad(mids[1], start, grad_outputs=wanted * 35 * 2)
    torch.testing.assert_close(gradients[2][1], at_start)


def test_zeros_after_the_gradient_point_make_the_gradient_zero_and_zeros_before_do_not(
    model, tokens
):
    def gradient(append):
        found = []
        hooks = Hooks().append_bwd("mlp_post", lambda g, i: found.append(g), layers=0)
        append(hooks)("mlp_post", lambda v, i: v * 0, layers=0)
        model.forward(tokens, hooks).sum().backward()
        return found[0].abs().max()

    assert gradient(lambda hooks: hooks.append_fwd2) == 0
    assert gradient(lambda hooks: hooks.append_fwd) > 1e-3


def test_gradient_hooks_do_nothing_where_no_gradient_is_taken(model, tokens):
    def never(gradient, layer):
        raise AssertionError

    hooks = Hooks().append_bwd("resid_post", never)
    with torch.inference_mode():
        assert torch.equal(model.forward(tokens, hooks), model.forward(tokens))


def test_layers_positions_and_conditions_choose_where_a_hook_acts(model, tokens):
    def changed(point, **where):
        before, after = {}, {}
        model.forward(tokens, {point: lambda v, i: before.__setitem__(i, v)})
        hooks = Hooks().append_fwd(point, filled(2), **where)
        hooks.append_fwd(point, lambda v, i: after.__setitem__(i, v))
        model.forward(tokens, hooks)
        first = {i: (after[i] != before[i]) for i in before}
        return first

    assert changed("mlp_post", layers=1)[0].sum() == 0
    both = changed("mlp_post", layers=[0, 1])
    assert both[0][..., 2].all() and both[0][..., :2].sum() == both[0][..., 3:].sum() == 0
    at = changed("resid_pre", positions=[1, 5], layers=0)[0][..., 2]
    assert at.nonzero()[:, 1].tolist() == [1, 5, 1, 5]
    assert changed("resid_pre", positions=slice(6, None), layers=0)[0][..., 2].sum() == 4
    assert changed("resid_pre", positions=-1, layers=0)[0].sum() == 0
    # Queries are on axis 2 of a pattern: queries 3 and later lose key 2.
    queries = changed("pattern", positions=range(3, 8), layers=0)[0]
    assert queries[:, :, 3:, 2].all() and queries.sum() == ROWS * HEADS * 5
    assert changed("z", when=lambda value, layer: layer == 1)[0].sum() == 0


def test_a_hook_may_keep_state(model, tokens):
    class Counter:
        calls = 0

        def __call__(self, value, layer):
            self.calls += 1

    counter = Counter()
    hooks = Hooks().append_fwd("resid_post", counter)
    model.forward(tokens, hooks)
    model.forward(tokens, hooks)
    assert counter.calls == 4


def test_filled_heads_are_those_of_the_axis(model, tokens):
    seen = []
    hooks = Hooks().append_fwd("z", filled([0, 2], axis=-2), layers=1)
    hooks.append_fwd2("z", lambda v, i: seen.append(v), layers=1)
    model.forward(tokens, hooks)
    assert (seen[0][:, :, [0, 2]] == 0).all() and (seen[0][:, :, 1] != 0).all()


def test_wrong_hooks_are_refused_when_they_are_set():
    with pytest.raises(ValueError, match="no such hook points: mlp.post_act"):
        Hooks().append_fwd("mlp.post_act", filled(3))
    with pytest.raises(ValueError, match="step 2"):
        Hooks().append_fwd("z", filled(3), positions=slice(0, 8, 2))
    with pytest.raises(ValueError, match="need a forward pass"):
        Hooks().append_fwd("z", filled(3), positions=2)["z"](torch.ones(1, 4, 2, 4), 0)
