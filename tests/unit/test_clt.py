"""Cross-layer transcoders: definition, folding, files."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from clt_makers import dense_outputs, make_clt
from safetensors.torch import load_file, save_file

from mechatlas.dictionaries import clt as definition
from mechatlas.dictionaries.activations import JumpReLU
from mechatlas.dictionaries.clt import CrossLayerTranscoder, LayerScales, check_model, fold
from mechatlas.dictionaries.clt_formats import (
    load_clt,
    read_circuit_tracer,
    save_clt,
    write_circuit_tracer,
)
from mechatlas.io import UserError, read_provenance

VARIANTS = [
    {},
    {"activation": "relu", "skip": True},
    {"activation": "topk", "decoders": "per_layer", "reads": "mlp_in"},
    {"decoders": "tied"},
    {"decoders": "tied", "skip": True, "activation": "relu"},
    {"decoders": "per_layer", "skip": True},
]
FACTS = {"seed": 3}


def make_inputs(clt, n=9, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, clt.d_model, generator=generator, dtype=torch.float64).to(clt.dtype)
        for _ in range(clt.n_layers)
    ]


@pytest.mark.parametrize("sparse_below", [0.0, 1.0])
@pytest.mark.parametrize("settings", VARIANTS)
def test_reconstruction_is_the_formula(settings, sparse_below, monkeypatch):
    monkeypatch.setattr(definition, "SPARSE_BELOW", sparse_below)
    clt = make_clt(**settings)
    inputs, features = make_inputs(clt), []
    for layer, x in enumerate(inputs):
        pre = torch.einsum("nd,fd->nf", x, clt.encoder[layer]) + clt.encoder_bias[layer]
        activation = clt.activation[layer]
        if isinstance(activation, JumpReLU):
            wanted = torch.where(pre > activation.threshold, pre, 0)
        else:
            wanted = pre.clamp_min(0)
            if activation.name == "topk":
                third = pre.sort(descending=True).values[:, 2:3]
                wanted = torch.where(pre >= third, wanted, 0)
        torch.testing.assert_close(clt.encode(x, layer), wanted, atol=1e-12, rtol=0)
        features.append(wanted)
    for y, wanted in zip(
        clt.reconstruct(inputs), dense_outputs(clt, features, inputs), strict=True
    ):
        torch.testing.assert_close(y, wanted, atol=1e-12, rtol=0)


def test_features_write_to_their_own_and_later_layers_only():
    clt = make_clt(decoders="cross")
    inputs = make_inputs(clt)
    before = clt.reconstruct(inputs)
    inputs[1] = inputs[1] + 1
    moved = [
        (a - b).abs().max() > 0.1 for a, b in zip(before, clt.reconstruct(inputs), strict=True)
    ]
    assert moved == [False, True, True]
    single = make_clt(decoders="per_layer")
    inputs = make_inputs(single)
    before = single.reconstruct(inputs)
    inputs[1] = inputs[1] + 1
    moved = [(a - b).abs().max() > 0.1 for a, b in zip(before, single.reconstruct(inputs), strict=True)]  # fmt: skip
    assert moved == [False, True, False]


@pytest.mark.parametrize("settings", VARIANTS)
def test_folded_statistics_change_nothing(settings):
    clt = make_clt(**settings)
    generator = torch.Generator().manual_seed(5)
    mean_in, mean_out = torch.randn(2, 3, 12, generator=generator, dtype=torch.float64)
    scale_in, scale_out = 0.3 + torch.rand(2, 3, generator=generator, dtype=torch.float64)
    folded = fold(clt, LayerScales(mean_in, scale_in, mean_out, scale_out))
    raw = make_inputs(clt)
    normal = [(x - mean_in[i]) * scale_in[i] for i, x in enumerate(raw)]
    for layer in range(3):
        torch.testing.assert_close(
            folded.encode(raw[layer], layer), clt.encode(normal[layer], layer), atol=1e-12, rtol=0
        )
    wanted = [y / scale_out[i] + mean_out[i] for i, y in enumerate(clt.reconstruct(normal))]
    for y, one in zip(folded.reconstruct(raw), wanted, strict=True):
        torch.testing.assert_close(y, one, atol=1e-12, rtol=0)
    rows = [folded.decoder_rows(1, target) for target in folded.targets(1)]
    norms = torch.stack([row.norm(dim=1) for row in rows]).norm(dim=0)
    torch.testing.assert_close(folded.decoder_norms(1), norms)


@pytest.mark.parametrize("settings", VARIANTS)
def test_own_file_round_trips_to_the_bit(settings, tmp_path):
    clt = make_clt(**settings, dtype=torch.float32, about={"model": "m", "model_hash": "h"})
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path in (first, second):
        save_clt(path, clt, FACTS)
    assert first.read_bytes() == second.read_bytes()
    back = load_clt(first)
    assert (back.decoders, back.reads, back.about) == (clt.decoders, clt.reads, clt.about)
    assert [a.name for a in back.activation] == [a.name for a in clt.activation]
    assert back.tensors().keys() == clt.tensors().keys()
    assert all(torch.equal(back.tensors()[name], x) for name, x in clt.tensors().items())
    assert load_clt(first, dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("decoders", ["cross", "per_layer", "tied"])
@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
@pytest.mark.parametrize(("skip", "reads"), [(False, "resid_mid"), (True, "mlp_in")])
def test_folders_of_circuit_tracer_round_trip(decoders, activation, skip, reads, tmp_path):
    clt = make_clt(decoders=decoders, activation=activation, skip=skip, reads=reads)
    write_circuit_tracer(tmp_path / "clt", clt)
    back = read_circuit_tracer(tmp_path / "clt")
    assert back.reads == reads
    inputs = make_inputs(clt)
    for a, b in zip(clt.reconstruct(inputs), back.reconstruct(inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_folder_of_circuit_tracer_has_its_layout(tmp_path):
    clt = make_clt(skip=True)
    write_circuit_tracer(tmp_path / "clt", clt)
    encoder = load_file(tmp_path / "clt" / "W_enc_1.safetensors")
    shapes = {name: tuple(x.shape) for name, x in encoder.items()}
    wanted = {"W_enc_1": (10, 12), "b_enc_1": (10,), "b_dec_1": (12,), "threshold_1": (10,)}
    assert shapes == wanted | {"W_skip_1": (12, 12)}
    assert torch.equal(encoder["W_skip_1"].mT, clt.skip[1])  # there x W, here W x
    decoder = load_file(tmp_path / "clt" / "W_dec_1.safetensors")["W_dec_1"]
    assert torch.equal(decoder[:, 1], clt.decoder_rows(1, 2))
    config = yaml.safe_load((tmp_path / "clt" / "config.yaml").read_text())
    assert config["feature_input_hook"] == "hook_resid_mid"


def damage(folder, name, change):
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "W_dec_1.safetensors").unlink(), "W_dec_1.safetensors does not exist"),
        (lambda f: (f / "W_enc_1.safetensors").unlink(), r"layers \[0, 2\]"),
        (lambda f: (f / "W_enc_2.safetensors").write_bytes(b"x" * 90), "damaged or truncated"),
        (lambda f: damage(f, "W_enc_0.safetensors", lambda t: t.pop("b_enc_0")), "lacks b_enc"),
        (lambda f: damage(f, "W_enc_2.safetensors", lambda t: t.pop("threshold_2")), "lacks threshold.2"),
        (lambda f: damage(f, "W_enc_0.safetensors", lambda t: t["b_enc_0"].fill_(float("nan"))), "not finite"),
        (lambda f: damage(f, "W_enc_0.safetensors", lambda t: t["threshold_0"].neg_()), "negative"),
        (lambda f: (f / "config.yaml").write_text("feature_input_hook: hook_q"), "read hook_q"),
        (lambda f: (f / "config.yaml").write_text("model_kind: transcoder_set"), "other kind"),
        (lambda f: (f / "config.yaml").write_text("a: [b"), "is not YAML"),
    ],
)  # fmt: skip
def test_broken_folders_are_one_clear_line(change, message, tmp_path):
    write_circuit_tracer(tmp_path / "clt", make_clt())
    change(tmp_path / "clt")
    with pytest.raises(UserError, match=message) as error:
        read_circuit_tracer(tmp_path / "clt")
    assert "\n" not in str(error.value)


def test_a_description_that_does_not_fit_is_refused(tmp_path):
    path, clt = tmp_path / "clt.safetensors", make_clt(dtype=torch.float32)
    save_clt(path, clt, FACTS)
    tensors, said = load_file(path), read_provenance(path)["clt"]
    for key, value, message in (
        ("decoders", "tied", "do not fit"),
        ("skip", True, "do not fit"),
        ("format", 9, "version 1"),
        ("activations", [{"name": "swish"}] * 3, "do not fit"),
        ("features", [10, 10, 11], "thresholds of shape"),
        ("d_model", 13, "do not fit"),
        ("reads", "q", "must be one of"),
    ):
        record = json.dumps({"clt": said | {key: value}})
        save_file(tensors, path, metadata={"mechatlas": record})
        with pytest.raises(UserError, match=message):
            load_clt(path)
    with pytest.raises(UserError, match="no transcoder file"):
        save_file(tensors, path)
        load_clt(path)
    with pytest.raises(UserError, match="no counterpart"):
        write_circuit_tracer(tmp_path / "x", make_clt(activation="topk"))


def test_a_transcoder_of_another_model_is_refused():
    clt = make_clt(about={"model": "m", "model_hash": "a" * 64})
    check_model(clt, 3, 12, "a" * 64)
    with pytest.raises(UserError, match="3 layers of width 12, the model 4 of width 12"):
        check_model(clt, 4, 12, "a" * 64)
    with pytest.raises(UserError, match="trained on other weights"):
        check_model(clt, 3, 12, "b" * 64)


def test_parts_that_do_not_fit_are_refused():
    clt = make_clt()
    parts = [clt.encoder, clt.encoder_bias, clt.decoder, clt.decoder_bias, clt.activation]
    with pytest.raises(UserError, match="decoder.0 has shape"):
        CrossLayerTranscoder(*parts, decoders="per_layer")
    with pytest.raises(UserError, match="target scales do not fit"):
        CrossLayerTranscoder(*parts, decoders="tied")
    with pytest.raises(UserError, match="lacks encoder_bias.2"):
        CrossLayerTranscoder(clt.encoder, clt.encoder_bias[:2], *parts[2:])
