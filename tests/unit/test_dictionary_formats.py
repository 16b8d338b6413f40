"""Dictionaries in the formats of others, and their traps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from dictionary_makers import random_dictionary, reference
from safetensors.torch import load_file, save_file

from mechatlas.dictionaries.activations import TopK
from mechatlas.dictionaries.autoencoder import SparseAutoencoder
from mechatlas.dictionaries.formats.openai import read_openai, write_openai
from mechatlas.dictionaries.formats.saelens import is_saelens, read_saelens, write_saelens
from mechatlas.dictionaries.formats.transcoders import read_transcoder
from mechatlas.dictionaries.points import check_fits, from_lens_name, lens_name
from mechatlas.dictionaries.published import address
from mechatlas.io import UserError
from mechatlas.models.config import read_config

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = REPOSITORY / "tests" / "reference" / "dictionaries"


def published(activation: str = "ReLU", *, seed: int = 0) -> dict:
    """Return a checkpoint as OpenAI's program saves one: 20 latents of width 8."""
    draw = torch.Generator().manual_seed(seed)
    state = {
        "pre_bias": torch.randn(8, generator=draw),
        "latent_bias": torch.randn(20, generator=draw),
        "stats_last_nonzero": torch.zeros(20, dtype=torch.int64),
        "latents_activation_frequency": torch.ones(20),
        "latents_mean_square": torch.zeros(20),
        "encoder.weight": torch.randn(20, 8, generator=draw),
        "decoder.weight": torch.randn(8, 20, generator=draw),
        "activation": activation,
        "activation_state_dict": {},
    }
    if activation == "TopK":
        state["activation_state_dict"] = {"k": 4, "postact_fn": "ReLU"}
    return state


def saved(path: Path, state: dict) -> Path:
    torch.save(state, path)
    return path


def tokens(seed: int = 7) -> torch.Tensor:
    """Return inputs whose mean and scale are far from 0 and 1."""
    return torch.randn(30, 8, generator=torch.Generator().manual_seed(seed)) * 5 + 3


# --- OpenAI ---------------------------------------------------------------------------------------


def test_v5_latents_are_those_of_normalised_inputs(tmp_path: Path) -> None:
    """Version 5 read without its normalisation loads and runs, and gives another active set."""
    state = published("TopK")
    sae = read_openai(
        saved(tmp_path / "3.pt", state), version="_v5_32k", site="resid_post_mlp", layer=3
    )
    x = tokens()
    # The published formula, by itself.
    centred = x - x.mean(-1, keepdim=True)
    std = centred.std(-1, keepdim=True)
    pre = (centred / (std + 1e-5) - state["pre_bias"]) @ state["encoder.weight"].T + state[
        "latent_bias"
    ]
    top = pre.topk(4, dim=-1)
    z = torch.zeros(30, 20).scatter(-1, top.indices, top.values.relu())
    recons = (z @ state["decoder.weight"].T + state["pre_bias"]) * std + x.mean(-1, keepdim=True)
    torch.testing.assert_close(sae.encode(x), z)
    torch.testing.assert_close(sae.forward(x), recons)
    assert sae.about == {
        **{"origin": "openai", "model": "gpt2", "version": "_v5_32k", "site": "resid_post_mlp"},
        **{"reads": "resid_post", "writes": "resid_post", "layer": 3},
    }
    trapped = read_openai(tmp_path / "3.pt", normalisation="none").encode(x)
    changed = ((trapped > 0) != (z > 0)).any(-1)
    assert changed.float().mean() > 0.9


def test_the_normalisation_is_never_guessed(tmp_path: Path) -> None:
    path = saved(tmp_path / "0.pt", published("TopK"))
    with pytest.raises(UserError, match="does not say whether inputs are normalised"):
        read_openai(path)
    with pytest.raises(UserError, match="activation TopK, but version '_v4' has ReLU"):
        read_openai(path, version="_v4", site="mlp_post_act")
    with pytest.raises(UserError, match="has normalisation layer_norm, not none"):
        read_openai(path, version="_v5_32k", site="resid_post_mlp", normalisation="none")
    with pytest.raises(UserError, match="activation ReLU, but version '_v5_128k' has TopK"):
        read_openai(saved(tmp_path / "1.pt", published()), version="_v5_128k")


@pytest.mark.parametrize(("version", "site"), [("", "mlp_post_act"), ("_v4", "resid_delta_attn")])
def test_older_versions_have_relu_and_raw_inputs(tmp_path: Path, version: str, site: str) -> None:
    state = published()
    # The first files do not name their activation.
    del state["activation"], state["activation_state_dict"]
    sae = read_openai(saved(tmp_path / "0.pt", state), version=version, site=site)
    x = tokens()
    latents, outputs = reference(sae, x.numpy())
    pre = (x - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]
    assert np.abs(latents - pre.relu().double().numpy()).max() < 1e-4
    torch.testing.assert_close(
        sae.forward(x).double(), torch.from_numpy(outputs), rtol=0, atol=1e-4
    )
    assert sae.n_latents == 20


def test_tied_checkpoints_are_tied_or_refused(tmp_path: Path) -> None:
    state = published()
    del state["decoder.weight"]
    with pytest.raises(UserError, match="so it has no decoder"):
        read_openai(saved(tmp_path / "a.pt", state), version="")
    state["decoder.linear.weight"] = state["encoder.weight"].clone()
    sae = read_openai(saved(tmp_path / "b.pt", state), version="")
    assert sae.tied
    torch.testing.assert_close(
        sae.decode(torch.eye(20)) - sae.decoder_bias, state["encoder.weight"]
    )
    state["decoder.linear.weight"] = -state["encoder.weight"]
    with pytest.raises(UserError, match="tied checkpoint whose decoder"):
        read_openai(saved(tmp_path / "c.pt", state), version="")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(activation="Gelu"), "activation 'Gelu' is not known"),
        (lambda s: s.update(extra=torch.zeros(1)), "holds extra, which this reader"),
        (lambda s: s.pop("latent_bias"), "lacks latent_bias"),
        (lambda s: s.update(latent_bias=torch.zeros(21)), r"encoder_bias has shape \[21\]"),
        (lambda s: s["pre_bias"].fill_(float("inf")), "decoder_bias holds values that are not"),
    ],
)
def test_a_strange_checkpoint_is_refused(tmp_path: Path, change, message: str) -> None:
    state = published()
    change(state)
    with pytest.raises(UserError, match=message):
        read_openai(saved(tmp_path / "a.pt", state), version="")


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "a.pt", published() | {"activation_state_dict": Malicious()})
    with pytest.raises(UserError, match="damaged, truncated or no state dict"):
        read_openai(path, version="")
    assert not (tmp_path / "executed").exists()


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", published())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged, truncated"):
        read_openai(path, version="")


@pytest.mark.parametrize("activation", ["relu", "topk", "identity"])
@pytest.mark.parametrize("tied", [False, True])
def test_openai_round_trip(tmp_path: Path, activation: str, tied: bool) -> None:
    kind = "layer_norm" if activation == "topk" else "none"
    sae = random_dictionary(activation, normalisation=kind, tied=tied, dtype=torch.float32)
    write_openai(tmp_path / "a.pt", sae)
    read = read_openai(tmp_path / "a.pt", normalisation=kind)
    x = torch.randn(6, 12)
    assert torch.equal(read.forward(x), sae.forward(x)) and read.tied == tied


def test_what_the_format_cannot_say_is_not_written(tmp_path: Path) -> None:
    for sae in (random_dictionary("jumprelu"), random_dictionary("topk")):
        with pytest.raises(UserError, match="save it as safetensors"):
            write_openai(tmp_path / "a.pt", sae)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("site", "version", "layer", "message"),
    [
        ("resid_post_mlp", "_v4", 0, "site 'resid_post_mlp' does not exist in version '_v4'"),
        ("mlp_out", "", 0, "site 'mlp_out' does not exist"),
        ("mlp_post_act", "_v6", 0, "version '_v6' is not known"),
        ("mlp_post_act", "", 12, "layer 12 is out of range"),
    ],
)
def test_what_was_not_published_is_refused(
    site: str, version: str, layer: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        address(site, version, layer)


def test_addresses_are_those_that_are_published() -> None:
    base = "https://openaipublic.blob.core.windows.net/sparse-autoencoder/gpt2-small"
    assert address("mlp_post_act", "", 0) == f"{base}/mlp_post_act/autoencoders/0.pt"
    assert (
        address("resid_post_attn", "_v5_128k", 11)
        == f"{base}/resid_post_attn_v5_128k/autoencoders/11.pt"
    )


# --- SAELens --------------------------------------------------------------------------------------

SAVED = sorted(path.parent.name for path in PEERS.glob("*/cfg.json"))


@pytest.mark.parametrize("name", SAVED)
def test_saelens_dictionaries_give_what_saelens_computes(name: str) -> None:
    sae, expected = read_saelens(PEERS / name), load_file(PEERS / name / "expected.safetensors")
    torch.testing.assert_close(sae.encode(expected["x"]), expected["latents"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.forward(expected["x"]), expected["output"], atol=1e-5, rtol=1e-5)
    assert (sae.about["layer"], sae.about["model"], sae.about["writes"]) == (3, "gpt2", "mlp_out")
    assert sae.about["reads"] == ("resid_mid" if "transcoder" in name else "mlp_out")


@pytest.mark.parametrize("name", [name for name in SAVED if name != "topk"])
def test_saelens_round_trip(tmp_path: Path, name: str) -> None:
    sae = read_saelens(PEERS / name)
    write_saelens(tmp_path / "a", sae, {})
    assert is_saelens(tmp_path / "a")
    kept = load_file(PEERS / name / "sae_weights.safetensors")
    written = load_file(tmp_path / "a" / "sae_weights.safetensors")
    assert kept.keys() == written.keys()
    assert all(torch.equal(kept[key], written[key]) for key in kept)
    config = json.loads((tmp_path / "a" / "cfg.json").read_text())
    original = json.loads((PEERS / name / "cfg.json").read_text())
    assert {key: config[key] for key in original if key != "metadata"} == {
        key: value for key, value in original.items() if key != "metadata"
    }
    again = read_saelens(tmp_path / "a")
    x = torch.randn(4, 6)
    assert torch.equal(again.forward(x), sae.forward(x)) and again.about == sae.about


def old_config(**changes) -> dict:
    """Return a configuration as SAELens wrote before version 6."""
    config = {
        "d_in": 6,
        "d_sae": 10,
        "hook_point": "blocks.2.hook_resid_pre",
        "model_name": "gpt2-small",
    }
    return config | changes


def with_config(folder: Path, config: dict, source: str = "standard") -> Path:
    shutil.copytree(PEERS / source, folder)
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def test_old_saelens_configurations_are_understood(tmp_path: Path) -> None:
    sae = read_saelens(with_config(tmp_path / "a", old_config()))
    assert sae.about["reads"] == "resid_pre" and sae.about["layer"] == 2 and sae.subtract_bias
    config = old_config(activation_fn_str="topk", activation_fn_kwargs={"k": 3})
    topk = read_saelens(with_config(tmp_path / "b", config))
    assert topk.activation == TopK(3)


def test_a_dictionary_of_a_centred_model_centres_its_inputs(tmp_path: Path) -> None:
    """SAELens's first GPT-2 dictionaries were trained on a residual stream whose mean is folded away."""
    config = json.loads((PEERS / "standard" / "cfg.json").read_text())
    config["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    sae = read_saelens(with_config(tmp_path / "a", config))
    plain, x = read_saelens(PEERS / "standard"), tokens()[:, :6]
    mean = x.mean(-1, keepdim=True)
    torch.testing.assert_close(sae.encode(x), plain.encode(x - mean))
    torch.testing.assert_close(sae.forward(x), plain.forward(x - mean) + mean)
    with pytest.raises(UserError, match="SAELens has no autoencoder"):
        write_saelens(tmp_path / "b", sae, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalize_activations": True}, "needs statistics that are not in the folder"),
        ({"normalize_activations": "expected_average_only_in"}, "fold them into the weights"),
        ({"activation_fn": "gelu"}, "activation 'gelu' is not known"),
        ({"architecture": "gated"}, "architecture 'gated' is not supported"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor is not supported"),
        ({"d_in": 7}, "says d_in 7 and d_sae 10, but the weights are for 6 and 10"),
        ({"hook_point": "blocks.0.attn.hook_pattern"}, "hook 'blocks.0.attn.hook_pattern'"),
        ({"architecture": "jumprelu"}, "architecture jumprelu has tensors"),
        ({"activation_fn": "topk"}, "k is None"),
        ({"hook_head_index": 3}, "dictionary of one head"),
    ],
)
def test_saelens_dictionaries_that_would_be_wrong_are_refused(
    tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_saelens(with_config(tmp_path / "a", old_config(**changes)))


def test_a_saelens_config_without_normalisation_is_refused(tmp_path: Path) -> None:
    config = json.loads((PEERS / "standard" / "cfg.json").read_text())
    del config["normalize_activations"]
    with pytest.raises(UserError, match="lacks normalize_activations"):
        read_saelens(with_config(tmp_path / "a", config))


# --- circuit-tracer -------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1])
def test_transcoders_give_what_circuit_tracer_computes(layer: int) -> None:
    folder = PEERS / "circuit_tracer"
    expected = load_file(folder / "expected.safetensors")
    sae, x = read_transcoder(folder, layer), expected[f"x_{layer}"]
    torch.testing.assert_close(sae.encode(x), expected[f"latents_{layer}"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.forward(x), expected[f"output_{layer}"], atol=1e-5, rtol=1e-5)
    assert (sae.about["reads"], sae.about["writes"]) == ("mlp_in", "mlp_out")
    assert (sae.skip is not None) == (layer == 1) and sae.about["layer"] == layer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_kind": "cross_layer_transcoder"}, "model_kind is 'cross_layer_transcoder'"),
        ({"feature_input_hook": None}, "lacks feature_input_hook"),
        ({"transcoders": ["hf://owner/repo/a.safetensors"]}, "download it and name the local file"),
        ({"transcoders": []}, "layer 0 is out of range"),
        ({"feature_output_hook": "hook_nowhere"}, "hook 'hook_nowhere'"),
    ],
)
def test_transcoder_folders_that_would_be_wrong_are_refused(
    tmp_path: Path, changes: dict, message: str
) -> None:
    folder = tmp_path / "a"
    shutil.copytree(PEERS / "circuit_tracer", folder)
    config = yaml.safe_load((folder / "config.yaml").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=message):
        read_transcoder(folder, 0)


def test_a_transcoder_with_unknown_tensors_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    shutil.copytree(PEERS / "circuit_tracer", folder)
    tensors = load_file(folder / "layer_0.safetensors")
    save_file(tensors | {"log_thresholds": torch.zeros(10)}, folder / "layer_0.safetensors")
    with pytest.raises(UserError, match="holds the unknown log_thresholds"):
        read_transcoder(folder, 0)
    with pytest.raises(UserError, match="no transcoder of layer 5"):
        read_transcoder(folder, 5)


# --- places ---------------------------------------------------------------------------------------


def test_hook_names_map_both_ways() -> None:
    assert lens_name("mlp_post", 3) == "blocks.3.mlp.hook_post"
    assert from_lens_name("blocks.11.hook_resid_mid", "x") == ("resid_mid", 11)
    assert from_lens_name("mlp.hook_out", "x") == ("mlp_out", None)


def about(**place) -> SparseAutoencoder:
    return random_dictionary(d_in=128, about={"layer": 1, "reads": "mlp_out"} | place)


def test_a_dictionary_of_another_model_is_refused() -> None:
    config = read_config(REPOSITORY / "resources" / "models" / "demo-4l")
    assert check_fits(about(), config, "dictionaries.a").d_in == 128
    with pytest.raises(UserError, match="dictionaries.a: layer 4 is out of range"):
        check_fits(about(layer=4), config, "dictionaries.a")
    with pytest.raises(UserError, match="mlp_post of width 128, but in this model.* width 512"):
        check_fits(about(reads="mlp_post"), config, "dictionaries.a")
