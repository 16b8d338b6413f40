"""Sampling: the cache, padding and batches change nothing, and draws have the right distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_models import LLAMA3_ROPE, VOCAB, save_gpt2, save_llama

from mechatlas.io import UserError
from mechatlas.models import sampling
from mechatlas.models.cache import KeyValueCache
from mechatlas.models.hooks import Hooks, filled
from mechatlas.models.sampling import choose, sample
from mechatlas.models.transformer import load

MODELS = {
    "gpt2": (save_gpt2, {}),
    "llama": (save_llama, {"rope_parameters": LLAMA3_ROPE}),  # with grouped heads
}
LENGTHS = (5, 1, 11, 7, 5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    made = {}
    for name, (save, changes) in MODELS.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = folder, save(folder, **changes)
    return made


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(3)
    return [rng.integers(0, VOCAB, length).tolist() for length in LENGTHS]


def disturbances():
    """Hooks of every kind that sampling must give the same with and without a cache."""
    return {
        "none": None,
        "neurons": Hooks().append_fwd("mlp_post", filled([3, 30]), layers=1),
        "heads": {"z": lambda z, layer: z * 0.5 if layer == 0 else None},
        "keys and values": Hooks().append_fwd("k", filled(1)).append_fwd2("v", filled(0, 2.0)),
        "pattern": Hooks().append_fwd("pattern", lambda p, layer: p * 0.8, layers=0),
        "scores": Hooks().append_fwd("attn_scores", lambda s, layer: s * 0.5),
        "denominator": Hooks().append_fwd("attn_denominator", lambda s, layer: s + 1),
        "norms": Hooks().append_fwd("mlp_in_scale", lambda s, layer: s * 1.5),
        "logits": Hooks().append_fwd("logits", filled(7, 9.0)),
        "positions": Hooks().append_fwd("resid_mid", filled(0, 3.0), positions=slice(6, 12)),
        "late logits": Hooks().append_fwd("logits", filled(5, 99.0), positions=[12, 13]),
    }


@pytest.mark.parametrize(
    ("name", "hooks"),
    [("gpt2", hooks) for hooks in disturbances()]
    + [("llama", hooks) for hooks in ("none", "keys and values", "scores", "positions")],
)
def test_the_cache_and_the_batch_change_no_token(folders, prompts, name, hooks):
    model, hooks = load(folders[name][0], dtype="float64"), disturbances()[hooks]
    for settings in ({"temperature": 0}, {"temperature": 0.7, "top_p": 0.9, "seed": 5}):
        together = sample(model, prompts, 7, hooks=hooks, **settings)
        assert together == sample(model, prompts, 7, hooks=hooks, cached=False, **settings)
        alone = [sample(model, [prompt], 7, hooks=hooks, **settings)[0] for prompt in prompts]
        assert together == alone


@pytest.mark.parametrize("name", MODELS)
def test_float32_samples_agree_too(folders, prompts, name):
    model = load(folders[name][0])
    together = sample(model, prompts, 12, temperature=0.8, seed=1)
    assert together == sample(model, prompts, 12, temperature=0.8, seed=1, cached=False)
    assert together == [
        sample(model, [prompt], 12, temperature=0.8, seed=1)[0] for prompt in prompts
    ]


def test_hooks_change_what_is_sampled(folders, prompts):
    model = load(folders["gpt2"][0], dtype="float64")
    plain = sample(model, prompts, 9, temperature=0)
    changed = {
        name: sample(model, prompts, 9, temperature=0, hooks=hooks) != plain
        for name, hooks in disturbances().items()
        if name != "none"
    }
    assert all(changed.values()), changed
    forced = sample(model, prompts, 9, temperature=0, hooks=disturbances()["late logits"])
    # The logits at position p choose the token at p + 1.
    for prompt, tokens in zip(prompts, forced, strict=True):
        whole = [*prompt, *tokens]
        assert all(
            whole[p + 1] == 5 for p in (12, 13) if p + 1 < len(whole) and p >= len(prompt) - 1
        )


@pytest.mark.parametrize("name", MODELS)
def test_logits_with_a_cache_equal_those_without(folders, name):
    model = load(folders[name][0], dtype="float64")
    tokens = torch.randint(0, VOCAB, (3, 20))
    wanted = model.forward(tokens)
    cache = KeyValueCache(model.config, 3, 20, dtype=torch.float64)
    parts = [model.forward(part, cache=cache) for part in tokens.split([7, 1, 1, 8, 3], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), wanted, atol=1e-11, rtol=0)
    # Rows of different length: cut, then continued by the rest of another sequence.
    cache.truncate([20, 4, 11])
    cache.truncate([12, 4, 11])
    more = torch.stack([tokens[row, start : start + 8] for row, start in enumerate((12, 4, 11))])
    got = torch.cat([model.forward(part, cache=cache) for part in more.split([3, 1, 4], dim=1)], 1)
    for row, start in enumerate((12, 4, 11)):
        torch.testing.assert_close(got[row], wanted[row, start : start + 8], atol=1e-11, rtol=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_greedy_sampling_equals_transformers(folders, prompts, name, dtype):
    folder, reference = folders[name]
    model = load(folder, dtype=dtype)
    reference = reference.to(model.dtype)
    # Without one, transformers stops a row there.
    reference.generation_config.eos_token_id = None
    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        wanted = reference.generate(
            padded, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0
        )
    assert sample(model, prompts, 12, temperature=0) == wanted[:, width:].tolist()


def test_a_sample_depends_on_its_prompt_and_the_seed_only(folders, prompts):
    model = load(folders["gpt2"][0])
    draws = sample(model, [*prompts, prompts[0], prompts[2]], 8, seed=4)
    assert draws[1] == sample(model, [prompts[1]], 8, seed=4)[0]
    assert sample(model, prompts[::-1], 8, seed=4) == draws[:5][::-1]
    assert draws[5] != draws[0] and draws[6] != draws[2]  # second samples of the same prompts
    assert sample(model, [prompts[0]] * 2, 8, seed=4)[1] == draws[5]
    assert sample(model, prompts, 8, seed=5) != draws[:5]
    assert sample(model, [prompts[0]], 5, seed=4)[0] == draws[0][:5]


@pytest.mark.parametrize(("temperature", "top_p"), [(2.0, None), (1.3, 0.6)])
def test_draws_follow_the_distribution(folders, prompts, temperature, top_p):
    from scipy.stats import chisquare
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

    model = load(folders["gpt2"][0], dtype="float64")
    logits = model.forward(torch.tensor([prompts[2]]))[:, -1]
    logits = TemperatureLogitsWarper(temperature)(None, logits)
    if top_p is not None:
        logits = TopPLogitsWarper(top_p)(None, logits)
    wanted = logits.softmax(-1)[0].numpy()
    count = 1200
    drawn = np.ravel(
        sample(model, [prompts[2]] * count, 1, temperature=temperature, top_p=top_p, seed=2)
    )
    found = np.bincount(drawn, minlength=VOCAB)
    assert found[wanted == 0].sum() == 0
    likely = wanted * count >= 5
    rest = [found[~likely].sum()], [wanted[~likely].sum() * count]
    found, expected = (
        np.append(a[likely], b) for a, b in zip((found, wanted * count), rest, strict=True)
    )
    found, expected = found[expected > 0], expected[expected > 0]
    assert chisquare(found, expected).pvalue > 1e-3


def test_quantiles_choose_the_token_whose_share_they_fall_in():
    logits = torch.tensor([0.2, 0.5, 0.0, 0.3]).log().expand(6, -1)
    uniforms = np.array([0.0, 0.19, 0.21, 0.69, 0.71, 0.9999])
    assert choose(logits, uniforms, 1.0).tolist() == [0, 0, 1, 1, 3, 3]
    assert choose(logits, uniforms, 1.0, top_p=0.5).tolist() == [1] * 6
    assert choose(logits, uniforms, 1.0, top_p=0.51).tolist() == [1, 1, 1, 3, 3, 3]
    assert choose(logits).tolist() == [1] * 6


def test_a_batch_is_cut_where_its_cache_would_grow_too_large(folders, monkeypatch):
    model = load(folders["llama"][0])
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCAB, 1 + n % 20).tolist() for n in range(40)]
    expected = sample(model, prompts, 6, temperature=0)
    sizes = []

    class Watched(KeyValueCache):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            sizes.append(self._buffer.nbytes)

    monkeypatch.setattr(sampling, "KeyValueCache", Watched)
    assert sample(model, prompts, 6, temperature=0, cache_bytes=50_000) == expected
    assert len(sizes) >= 5 and max(sizes) <= 50_000
    sizes.clear()
    assert sample(model, prompts, 6, temperature=0, cache_bytes=1) == expected
    assert len(sizes) == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_tokens": 0}, "num_tokens: 0 is too small"),
        ({"temperature": -1.0}, "temperature: -1.0 is not a number from 0 up"),
        ({"temperature": float("nan")}, "temperature: nan is not a number"),
        ({"top_p": 0.0}, "top_p: 0.0 is not above 0"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        (
            {"prompts": [[1] * 40]},
            "prompt 0 of 40 tokens and 9 new ones exceed the model's context of 48",
        ),
        ({"prompts": [[1, VOCAB]]}, "prompt 0 holds a token outside 0 to 96"),
        ({"hooks": {"resid_mid": lambda x, layer: x / 0}}, "the logits are not numbers"),
    ],
)
def test_wrong_requests_are_refused(folders, change, message):
    model = load(folders["gpt2"][0])
    request = {"prompts": [[1, 2]], "num_tokens": 9} | change
    with pytest.raises(UserError, match=message):
        sample(model, **request)


def test_a_cache_refuses_what_it_cannot_hold(folders):
    model = load(folders["gpt2"][0])
    with pytest.raises(UserError, match="49 tokens are more than the model's context of 48"):
        KeyValueCache(model.config, 1, 49)
    cache = KeyValueCache(model.config, 2, 6)
    model.forward(torch.zeros(2, 4, dtype=torch.long), cache=cache)
    with pytest.raises(UserError, match="no room for 3 more in a cache of 6"):
        model.forward(torch.zeros(2, 3, dtype=torch.long), cache=cache)
    assert cache.lengths == [4, 4]
    with pytest.raises(ValueError, match="cannot be cut"):
        cache.truncate([5, 2])
    with pytest.raises(ValueError, match="holds no gradients"):
        model.forward(
            torch.zeros(2, 1, dtype=torch.long),
            Hooks().append_bwd("embed", lambda g, layer: g),
            cache=cache,
        )
    with pytest.raises(ValueError, match="give one of the two"):
        model.forward(
            torch.zeros(2, 1, dtype=torch.long), resume=(1, torch.zeros(2, 1, 24)), cache=cache
        )
