"""The definition of dictionaries and our own file format."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dictionary_makers import ACTIVATIONS, random_dictionary, reference
from safetensors.torch import load_file, save_file

from mechatlas.dictionaries import files
from mechatlas.dictionaries.activations import ReLU, TopK
from mechatlas.dictionaries.autoencoder import SparseAutoencoder
from mechatlas.dictionaries.sparse import decode_events, decode_topk
from mechatlas.io import UserError, read_provenance


def inputs(d: int = 12, n: int = 9, seed: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=draw, dtype=torch.float64) * 3 + 1


# --- formulas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "unit_norm"])
@pytest.mark.parametrize("tied", [False, True])
def test_encode_and_forward_agree_with_an_independent_computation(
    activation: str, normalisation: str, tied: bool
) -> None:
    sae = random_dictionary(activation, normalisation=normalisation, tied=tied)
    x = inputs()
    latents, outputs = reference(sae, x.numpy())
    assert np.abs(sae.encode(x).numpy() - latents).max() < 1e-10
    assert np.abs(sae.forward(x).numpy() - outputs).max() < 1e-10
    assert np.abs(sae.decode(sae.encode(x), x).numpy() - outputs).max() < 1e-10
    assert 0 < np.count_nonzero(latents) <= latents.size


def test_a_transcoder_reads_and_writes_different_widths() -> None:
    sae = random_dictionary("jumprelu", d_in=12, d_out=7, subtract_bias=False, skip=True)
    x = inputs().view(3, 3, 12)
    latents, outputs = reference(sae, x.flatten(0, 1).numpy())
    assert sae.forward(x).shape == (3, 3, 7)
    assert np.abs(sae.forward(x).flatten(0, 1).numpy() - outputs).max() < 1e-10
    with pytest.raises(ValueError, match="skip"):
        sae.decode(torch.from_numpy(latents))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_part_of_the_latents_is_the_same_part_of_all(activation: str) -> None:
    sae, x = random_dictionary(activation), inputs()
    chosen = torch.tensor([31, 2, 17])
    for part in (slice(5, 23), chosen):
        torch.testing.assert_close(sae.encode(x, part), sae.encode(x)[:, part], rtol=0, atol=1e-12)


def test_topk_keeps_k_and_its_sparse_form_decodes_to_the_same() -> None:
    sae, x = random_dictionary("topk"), inputs()
    values, indices = sae.encode_topk(x)
    assert values.shape == indices.shape == (9, 5)
    dense = torch.zeros(9, 40, dtype=torch.float64).scatter(1, indices, values)
    torch.testing.assert_close(dense, sae.encode(x), rtol=0, atol=0)
    assert int((sae.encode(x) != 0).sum(1).max()) == 5
    torch.testing.assert_close(
        sae.decode_topk(values, indices), sae.decode(dense), rtol=0, atol=1e-12
    )
    with pytest.raises(ValueError, match="relu, not topk"):
        random_dictionary("relu").encode_topk(x)


def test_topk_without_relu_keeps_signs() -> None:
    sae = random_dictionary("topk")
    signed = SparseAutoencoder(
        sae.encoder, sae.encoder_bias - 50, sae.decoder, sae.decoder_bias, TopK(5, relu=False)
    )
    x = inputs()
    assert bool((signed.encode(x).sum(1) < 0).all())
    latents, _ = reference(signed, x.numpy())
    assert np.abs(signed.encode(x).numpy() - latents).max() < 1e-10


def test_active_finds_what_is_above_a_threshold_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mechatlas.dictionaries.autoencoder.ENTRIES_PER_BLOCK", 80)
    sae, x = random_dictionary("relu"), inputs()
    above = torch.linspace(0, 20, 10, dtype=torch.float64)
    part = slice(10, 20)
    tokens, latents, values = sae.active(x, above, part)
    z = sae.encode(x)[:, part]
    found = torch.zeros_like(z)
    found[tokens, latents] = values
    torch.testing.assert_close(found, torch.where(z > above, z, 0), rtol=0, atol=1e-12)
    assert tokens.tolist() == sorted(tokens.tolist()) and 0 < len(values) < z.numel() / 2
    assert [len(column) for column in sae.active(x[:0])] == [0, 0, 0]


def test_sparse_decodes_agree_with_the_dense_product() -> None:
    draw = torch.Generator().manual_seed(0)
    decoder = torch.randn(30, 6, generator=draw, dtype=torch.float64)
    indices = torch.randint(0, 30, (8, 4), generator=draw)
    values = torch.randn(8, 4, generator=draw, dtype=torch.float64)
    dense = torch.zeros(8, 30, dtype=torch.float64).scatter_add(1, indices, values) @ decoder
    torch.testing.assert_close(decode_topk(values, indices, decoder), dense)
    tokens = torch.arange(8).repeat_interleave(4)
    # A token without any event between others, and one at the end.
    keep = (tokens != 3) & (tokens != 7)
    dense[[3, 7]] = 0
    given = tokens[keep], indices.flatten()[keep], values.flatten()[keep]
    torch.testing.assert_close(decode_events(*given, decoder, 8), dense)


def test_decoding_normalised_inputs_without_the_inputs_is_refused() -> None:
    sae = random_dictionary("topk", normalisation="layer_norm")
    with pytest.raises(ValueError, match="normalises its inputs"):
        sae.decode(sae.encode(inputs()))


def test_another_width_is_one_clear_line() -> None:
    sae = random_dictionary("relu", about={"model": "demo", "reads": "mlp_out", "layer": 2})
    with pytest.raises(UserError, match="demo mlp_out layer 2 reads activations of width 12.*13"):
        sae.encode(inputs(13))


def test_shapes_that_do_not_fit_are_refused() -> None:
    sae = random_dictionary("relu")
    with pytest.raises(UserError, match=r"encoder_bias has shape \[39\]"):
        SparseAutoencoder(sae.encoder, sae.encoder_bias[1:], sae.decoder, sae.decoder_bias, ReLU())
    with pytest.raises(UserError, match="k is 41"):
        SparseAutoencoder(sae.encoder, sae.encoder_bias, None, sae.decoder_bias, TopK(41))
    with pytest.raises(UserError, match="float32"):
        SparseAutoencoder(
            sae.encoder, sae.encoder_bias.float(), sae.decoder, sae.decoder_bias, ReLU()
        )


# --- our own files --------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_dictionary_survives_its_file_bit_for_bit(
    tmp_path: Path, activation: str, tied: bool
) -> None:
    about = {"model": "demo", "layer": 1, "reads": "resid_post"}
    sae = random_dictionary(
        activation, tied=tied, normalisation="layer_norm", dtype=torch.float32, about=about
    )
    files.save(tmp_path / "a.safetensors", sae, {"seed": 3})
    read = files.load(tmp_path / "a.safetensors")
    assert (read.tied, read.subtract_bias, read.about) == (tied, True, about)
    assert read.normalisation == sae.normalisation
    assert files.description(read) == files.description(sae)
    for name, tensor in sae.tensors().items():
        assert torch.equal(read.tensors()[name], tensor), name
    x = inputs().float()
    assert torch.equal(read.forward(x), sae.forward(x))
    assert read_provenance(tmp_path / "a.safetensors")["seed"] == 3
    files.save(tmp_path / "b.safetensors", read, {"seed": 3})
    digests = {hashlib.sha256(p.read_bytes()).digest() for p in tmp_path.glob("*.safetensors")}
    assert len(digests) == 1
    assert files.load(tmp_path / "a.safetensors", dtype=torch.float64).dtype == torch.float64


def rewritten(path: Path, change) -> Path:
    """Change description and tensors of a file."""
    tensors, facts = load_file(path), read_provenance(path)
    change(facts["dictionary"], tensors)
    save_file(tensors, path, {"mechatlas": json.dumps(facts)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.update(activation={"name": "gelu"}), "activation 'gelu' is not known"),
        (lambda d, t: d.pop("normalisation"), "lacks the entry normalisation"),
        (lambda d, t: d.update(normalisation={"kind": "rms"}), "normalisation of inputs is 'rms'"),
        (lambda d, t: d.update(normalisation={}), "is not stated, and the latents depend on it"),
        (lambda d, t: t.pop("decoder"), "lacks tensor decoder"),
        (lambda d, t: d.update(tied=True), "holds a decoder though it is said to be tied"),
        (lambda d, t: t.update(extra=t["decoder_bias"].clone()), "holds extra"),
        (lambda d, t: d.update(latents=41), "says latents 41, not 40"),
        (lambda d, t: d["activation"].update(name="jumprelu"), "lacks its thresholds"),
        (lambda d, t: d.update(format=2), "no dictionary file of this format"),
        (lambda d, t: t["encoder"].view(-1)[3:4].fill_(float("nan")), "encoder holds values"),
        (lambda d, t: t.update(encoder_bias=t["encoder_bias"][1:].clone()), r"shape \[39\]"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, change, message: str) -> None:
    files.save(tmp_path / "a.safetensors", random_dictionary("relu"), {})
    with pytest.raises(UserError, match=message):
        files.load(rewritten(tmp_path / "a.safetensors", change))


def test_missing_and_truncated_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match="does not exist"):
        files.load(path)
    files.save(path, random_dictionary("relu"), {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged or truncated"):
        files.load(path)
