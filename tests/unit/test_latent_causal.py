"""Ablation, replacement and steering of latents in a running model, against the same done by hand in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dictionary_makers import random_dictionary
from planted import LENGTH, VOCAB, planted_model

from mechatlas.dictionaries.hooks import ablate, replace_by_reconstruction
from mechatlas.score.latents.causal import (
    Edit,
    LayerRunner,
    direct_logits,
    output_scale,
    promotion_bins,
    steer_to,
    variants_edits,
)

LAYER = 1


@pytest.fixture(scope="module")
def model():
    return planted_model(noise=0.3)


def tokens(count=7):
    return np.random.default_rng(0).integers(0, VOCAB, (count, LENGTH))


def make(model, point="resid_mid", normalisation="none"):
    about = {"layer": LAYER, "reads": point, "writes": point}
    width = model.config.d_mlp if point == "mlp_post" else model.config.d_model
    return random_dictionary(
        "relu", latents=30, d_in=width, normalisation=normalisation, about=about
    )


def codes(model, sae, toks):
    kept = {}

    def keep(value, layer):
        if layer == LAYER:
            kept["x"] = value

    model.forward(torch.from_numpy(toks), {sae.about["reads"]: keep}, logits=False)
    return sae.encode(kept["x"].flatten(0, 1)).view(*toks.shape, -1)


@pytest.mark.parametrize("point", ("resid_mid", "mlp_post", "attn_out"))
@pytest.mark.parametrize("normalisation", ("none", "layer_norm"))
def test_ablation_is_the_reconstruction_without_the_latent_and_with_the_error(
    model, point, normalisation
):
    toks, sae = tokens(), make(model, point, normalisation)
    z = codes(model, sae, toks)
    latent = int((z[:, 1:] > 0).sum((0, 1)).argmax())
    runner = LayerRunner(model, sae, LAYER, toks, batch_windows=3)
    values = z[..., latent].numpy().copy()
    values[:, 0] = 0
    found = runner.losses(variants_edits(values, {}, np.arange(7), latent)["", "ablated"])
    hooks = replace_by_reconstruction(sae, ablate([latent]), error=True)
    wanted = model.losses(torch.from_numpy(toks), hooks).double().sum(1).numpy()
    base = model.losses(torch.from_numpy(toks)).double().sum(1).numpy()
    assert np.abs(found - wanted).max() < 1e-5  # losses are float32
    assert np.abs(found - base).max() > 1e-3


def test_an_exact_prediction_changes_nothing_and_batches_do_not_matter(model):
    toks, sae = tokens(), make(model)
    values = codes(model, sae, toks)[..., 4].numpy()
    values[:, 0] = 0
    edits = variants_edits(values, {("p", "none"): values}, np.arange(7), 4)
    base = model.losses(torch.from_numpy(toks)).double().sum(1).numpy()
    runs = [LayerRunner(model, sae, LAYER, toks, size) for size in (2, 16)]
    for runner in runs:
        assert np.abs(runner.losses(edits["p", "none"]) - base).max() < 1e-9
    mixed = [Edit(r, d, np.full(LENGTH, 0.5 * d)) for r, d in ((3, 1), (0, 7), (3, 9), (5, 2))]
    one, other = (runner.losses(mixed) for runner in runs)
    assert np.abs(one - other).max() < 1e-5
    for edit, loss in zip(mixed, one, strict=True):
        alone = runs[0].losses([edit])
        assert alone[0] == pytest.approx(loss, abs=1e-5)


def test_steering_reaches_the_divergence_and_adds_the_direction(model):
    toks, sae = tokens(4), make(model)
    runner = LayerRunner(model, sae, LAYER, toks, 3)
    base = runner.log_probabilities(None)
    logits = model.forward(torch.from_numpy(toks))[:, 1:].flatten(0, 1)
    assert (base - logits.float().log_softmax(-1)).abs().max() < 1e-6
    for start in (1e-2, 1.0, 300.0):
        found = steer_to(runner, base, sae.decoder[3], 0.2, start)
        assert found.divergence == pytest.approx(0.2, rel=0.05) and not found.reason

        def add(value, layer, amount=found.strength):
            if layer != LAYER:
                return None
            value = value.clone()
            value[:, 1:] += amount * sae.decoder[3]
            return value

        steered = model.forward(torch.from_numpy(toks), {"resid_mid": add})[:, 1:].flatten(0, 1)
        steered = steered.float().log_softmax(-1)
        kl = (base.exp() * (base - steered)).sum(-1).mean()
        assert float(kl) == pytest.approx(found.divergence, rel=1e-4)
        assert np.abs(found.shift - (steered - base).mean(0).numpy()).max() < 1e-5


def test_a_direction_that_does_nothing_says_so(model):
    sae = make(model)
    runner = LayerRunner(model, sae, LAYER, tokens(2), 2)
    base = runner.log_probabilities(None)
    found = steer_to(runner, base, torch.zeros_like(sae.decoder[0]), 0.2, 1.0)
    assert np.isnan(found.strength) and "instead of 0.2" in found.reason


def test_direct_logits_are_the_gradient_of_the_logits_without_the_norm(model):
    sae = make(model)
    found = direct_logits(model, sae, 5, LAYER)
    direction = sae.decoder[5] - sae.decoder[5].mean()
    wanted = model.unembed(direction * model.weights.final_norm)
    wanted = (wanted - wanted.mean()).numpy()
    assert np.abs(found - wanted).max() < 1e-5
    sae.about["writes"] = "mlp_post"
    assert direct_logits(model, make(model, "mlp_post"), 5, LAYER).shape == (VOCAB,)
    sae.about["writes"] = "attn_in"
    assert direct_logits(model, sae, 5, LAYER) is None


def test_output_scale_is_what_the_dictionary_multiplies_by(model):
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    for kind in ("none", "layer_norm", "unit_norm"):
        sae = random_dictionary("identity", latents=12, d_in=12, normalisation=kind)
        z = torch.zeros(15, 12, dtype=torch.float64)
        one = z.clone()
        one[:, 4] = 1
        flat = x.flatten(0, 1)
        change = sae.decode(one, flat) - sae.decode(z, flat)
        wanted = output_scale(sae.normalisation, x) * sae.decoder[4].expand(3, 5, 12)
        assert (change.view(3, 5, 12) - wanted).abs().max() < 1e-12


def test_promotion_bins_rise_with_the_shift():
    shift = np.random.default_rng(0).normal(size=1000)
    bins = promotion_bins(shift, 10)
    assert (np.bincount(bins) == 100).all()
    order = np.argsort(shift)
    assert (np.diff(bins[order]) >= 0).all()
