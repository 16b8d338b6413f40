"""Models by name, folder and address, the Transformer Debugger's layout, and what hostile files are allowed to do."""

from __future__ import annotations

import dataclasses
import doctest
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from file_server import serving

from mechatlas.io import UserError
from mechatlas.models import context
from mechatlas.models.cache import KeyValueCache
from mechatlas.models.config import ModelConfig, read_config
from mechatlas.models.context import AutoencoderContext, ModelContext, load
from mechatlas.models.hooks import ALL_POINTS, TDB_POINTS, Hooks, filled
from mechatlas.models.locate import embedded_models
from mechatlas.models.pickles import read_torch
from mechatlas.models.tdb import (
    is_tdb,
    load_tdb,
    piece_names,
    read_layers,
    save_tdb,
    tdb_digest,
)
from mechatlas.models.transformer import Transformer
from mechatlas.models.weights import random_weights

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "resources" / "models" / "demo-2l"
SHAPE = ModelConfig("gpt2", 2, 3, 3, 24, 8, 96, 32, 50, 1e-5, "gelu_new", False)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHATLAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return tmp_path / "cache"


def make(config: ModelConfig = SHAPE, dtype: torch.dtype = torch.float32) -> Transformer:
    weights = random_weights(dataclasses.replace(config, initializer_range=0.3), 0, "cpu", dtype)
    generator = torch.Generator().manual_seed(0)
    for layer in [*weights.layers, weights]:
        for name, tensor in vars(layer).items():
            if isinstance(tensor, torch.Tensor) and tensor.ndim == 1:
                setattr(layer, name, tensor + 0.1 * torch.randn(len(tensor), generator=generator))
    return Transformer(config, weights)


@pytest.fixture
def folder(tmp_path):
    save_tdb(make(), tmp_path / "model")
    return tmp_path / "model"


TOKENS = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(1))


def test_a_debugger_folder_gives_back_the_same_model_and_bytes(folder, tmp_path):
    model, back = make(), load_tdb(folder)
    assert is_tdb(folder) and not is_tdb(DEMO)
    assert back.config == SHAPE and torch.equal(back.forward(TOKENS), model.forward(TOKENS))
    save_tdb(back, tmp_path / "again")
    assert tdb_digest(tmp_path / "again") == tdb_digest(folder) == back.hash
    assert len(list(folder.rglob("*.pt"))) == 16 * 2 + 5 == len(piece_names(2))


def test_pieces_are_those_of_the_debuggers_own_converter(folder):
    """Its table, from names of the Hugging Face model; matrices there are [in, out], here [out, in]."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(n_embd=24, n_layer=2, n_head=3, vocab_size=50, n_positions=32, tie_word_embeddings=False,
                   bos_token_id=0, eos_token_id=0)
    )  # fmt: skip
    shutil.rmtree(folder)
    model.save_pretrained(folder / "hf")
    save_tdb(load(folder / "hf").model, folder / "tdb")
    state, expected = model.state_dict(), {}
    renames = {"mlp.c_fc": "mlp.in_layer", "mlp.c_proj": "mlp.out_layer"}
    renames |= {"attn.c_proj": "attn.out_proj", "ln_1": "ln_1", "ln_2": "ln_2"}
    for name, tensor in state.items():
        name = name.removeprefix("transformer.")
        block = re.fullmatch(r"h\.(\d+)\.(.+)\.(weight|bias)", name)
        if block is None:
            first, kind = name.split(".")
            outer = {
                "wte": "tok_embed",
                "wpe": "pos_embed",
                "ln_f": "final_ln",
                "lm_head": "unembed",
            }
            expected[f"{outer[first]}.{kind}"] = tensor
        elif block[2] == "attn.c_attn":
            for part, piece in zip("qkv", tensor.chunk(3, -1), strict=True):
                expected[f"xf_layers.{block[1]}.attn.{part}_proj.{block[3]}"] = piece.T
        else:
            expected[f"xf_layers.{block[1]}.{renames[block[2]]}.{block[3]}"] = (
                tensor.T if tensor.ndim == 2 else tensor
            )
    written = {
        p.stem: torch.load(p, weights_only=True) for p in folder.glob("tdb/model_pieces/*.pt")
    }
    assert written.keys() == expected.keys() == set(piece_names(2))
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    assert json.loads((folder / "tdb/config.json").read_text()) == {
        "enc": "gpt2", "ctx_window": 32, "d_model": 24, "n_layers": 2, "m_attn": 1, "n_heads": 3, "m_mlp": 4,
    }  # fmt: skip
    both = [load(folder / kind, "float64").model.forward(TOKENS) for kind in ("hf", "tdb")]
    assert torch.equal(*both)


def test_the_workflow_says_that_it_takes_no_debugger_folder(folder):
    with pytest.raises(UserError, match="is that of a Transformer Debugger folder"):
        read_config(folder)


def test_equal_embeddings_are_held_once(tmp_path):
    model = make()
    model.weights.unembedding = model.weights.embedding
    save_tdb(model, tmp_path / "m")
    back = load_tdb(tmp_path / "m")
    assert back.config.tie_embeddings and back.weights.unembedding is back.weights.embedding


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"activation": "relu"}, "activation relu"),
        ({"norm_eps": 1e-6}, "norm_eps 1e-06"),
        ({"scale_by_layer": True}, "scale_attn_by_inverse_layer_idx"),
        ({"architecture": "llama"}, "architecture llama"),
    ],
)
def test_models_that_the_layout_cannot_hold_are_not_written(change, word, tmp_path):
    model = make()
    model.config = dataclasses.replace(SHAPE, **change)
    with pytest.raises(UserError, match=f"cannot hold a model with {word}"):
        save_tdb(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def piece(folder: Path, name: str = "xf_layers.1.mlp.in_layer.weight") -> Path:
    return folder / "model_pieces" / f"{name}.pt"


def edit(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: piece(f).unlink(), r"in_layer\.weight\.pt does not exist"),
        (lambda f: piece(f).write_bytes(piece(f).read_bytes()[:900]), r"is not a file of plain tensors"),
        (lambda f: piece(f).write_bytes(b""), r"is not a file of plain tensors"),
        (lambda f: torch.save({"w": torch.ones(3)}, piece(f)), r"holds a dict, not a tensor"),
        (lambda f: torch.save(torch.ones(24, 96), piece(f)), r"has shape \[24, 96\] .*\[24, 96\]|do not belong"),
        (lambda f: edit(f, n_heads=5), r"width 1 x 24 in 5 heads"),
        (lambda f: edit(f, m_attn=0.5), r"width 0\.5 x 24 in 3 heads"),
        (lambda f: edit(f, n_layers="2"), r"n_layers is '2'; it must be a positive number"),
        (lambda f: edit(f, ctx_window=64), r"pos_embed\.weight has shape \[32, 24\] .*\[64, 24\]"),
        (lambda f: edit(f, n_layers=3), r"xf_layers\.2\.ln_1\.weight\.pt does not exist"),
    ],
)  # fmt: skip
def test_wrong_debugger_folders(damage, message, folder):
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


class Attack:
    """A pickle that leaves a file where it was run."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("wrap", ["bare", "saved", "among tensors"])
def test_a_malicious_pickle_is_refused_in_one_line_and_not_run(folder, tmp_path, protocol, wrap):
    target, path = tmp_path / "ran", piece(folder, "tok_embed.weight")
    if wrap == "bare":
        path.write_bytes(pickle.dumps(Attack(target), protocol=protocol))
    else:
        value = Attack(target) if wrap == "saved" else {"w": torch.ones(2), "x": Attack(target)}
        torch.save(value, path, pickle_protocol=max(protocol, 2))
    for read in (lambda: load(folder), lambda: read_torch(path)):
        with pytest.raises(
            UserError, match="a pickle that could run code; it was not loaded"
        ) as caught:
            read()
        assert "\n" not in str(caught.value) and not target.exists()
    pickle.loads(pickle.dumps(Attack(target)))  # the attack itself works
    assert target.exists()


def test_a_pickle_in_the_place_of_safetensors_is_refused_and_not_run(tmp_path):
    shutil.copytree(DEMO, tmp_path / "m")
    target = tmp_path / "ran"
    (tmp_path / "m/model.safetensors").write_bytes(pickle.dumps(Attack(target)))
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or truncated"):
        load(tmp_path / "m")
    (tmp_path / "m/model.safetensors").rename(tmp_path / "m/pytorch_model.bin")
    with pytest.raises(UserError, match="a pickle that could run any code"):
        load(tmp_path / "m")
    assert not target.exists()


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    shutil.copytree(DEMO, tmp_path / "m")
    (tmp_path / "m/model.safetensors").rename(tmp_path / "secret.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../secret.safetensors"}}
    (tmp_path / "m/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"'\.\./secret\.safetensors', which is not a file of"):
        load(tmp_path / "m")


def test_no_code_of_a_model_folder_is_trusted_and_no_pickle_is_read():
    sources = [p for area in ("workflow", "benchmarks") for p in (ROOT / area).rglob("*.py")]
    assert len(sources) > 100
    for path in sources:
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text, path
        for call in re.findall(r"torch\.load\((.*?)\)", text, re.DOTALL):
            assert "weights_only=True" in call, path
        assert not re.search(r"pickle\.loads?\(|joblib\.load|allow_pickle=True", text), path


@pytest.mark.parametrize(
    "name", ["../demo-2l", "demo-2l/../../x", "/no/such/folder", "~/model", "a/b/c", "", "demo\x00"]
)
def test_names_that_lead_elsewhere_are_refused(name, cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if name:
        with pytest.raises(UserError, match="does not exist; correct the path"):
            load(name)
    else:
        with pytest.raises(UserError):
            load(name)
    assert not cache.exists()


def test_names_folders_and_repositories(cache, monkeypatch):
    assert embedded_models() == ["demo-2l", "demo-4l"]
    model = load("demo-2l", dtype="float64")
    assert model.name == "demo-2l" and model.model.dtype == torch.float64
    assert model.config == load(str(DEMO)).config
    assert model.decode(model.encode("The river")[1:]) == "The river"
    with pytest.raises(
        UserError, match="owner/name is no folder .*40 digits of a commit as revision"
    ):
        load("owner/name")
    with pytest.raises(UserError, match="revision 'main' of owner/name is not a full commit hash"):
        load("owner/name", revision="main")
    with pytest.raises(UserError, match="is not a full commit hash"):
        load("owner/name", revision="/../../../" + "0" * 40)
    assert not cache.exists()
    # Nothing listens there, whatever the machine's network.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"owner/name at 0+ cannot be downloaded .*path: FOLDER"):
        load("owner/name", revision="0" * 40)
    with pytest.raises(UserError, match="not an https address"):
        load("http://example.org/gpt2")
    with pytest.raises(
        UserError, match="subject-models/gpt2/small/config.json cannot be downloaded"
    ):
        load("gpt2-small")
    assert not [p for p in cache.rglob("*") if p.is_file() and not p.name.startswith(".lock")]


def test_download_once_check_always(folder, cache):
    expected = make().forward(TOKENS)
    with serving(folder) as files:
        model = load(files.address)
        assert torch.equal(model.model.forward(TOKENS), expected)
        assert sorted(files.requests) == sorted(
            ["config.json", *(f"model_pieces/{name}.pt" for name in piece_names(2))]
        )
        digest = tdb_digest(folder)
        assert model.model.hash == digest
        files.requests.clear()
        load(files.address + "/", revision=digest)
        assert files.requests == []
        with pytest.raises(UserError, match=f"holds the content {digest}, not revision 12ab"):
            load(files.address, revision="12ab")
        (kept,) = (cache / "models").glob("[!.]*")
        (kept / "model_pieces/final_ln.bias.pt").write_bytes(b"rot")
        with pytest.raises(UserError, match="is not what was downloaded from .*; remove it"):
            load(files.address)


def test_a_download_that_breaks_off_leaves_no_model_and_goes_on_later(folder, cache):
    with serving(folder) as files:
        files.broken = {"model_pieces/unembed.weight.pt"}
        with pytest.raises(UserError, match=r"unembed\.weight\.pt cannot be downloaded"):
            load(files.address)
        assert not list((cache / "models").glob("[!.]*"))
        before = [p.name for p in cache.rglob("*.pt") if not p.name.startswith(".")]
        files.broken, files.requests = set(), []
        assert torch.equal(load(files.address).model.forward(TOKENS), make().forward(TOKENS))
        assert len(before) > 5 and len(files.requests) == 37 - len(before)
        (kept,) = (cache / "models").glob("[!.]*")
        assert sorted(p.name for p in kept.iterdir()) == [
            "SHA256SUMS",
            "config.json",
            "model_pieces",
        ]
        os.remove(folder / "config.json")
        shutil.rmtree(kept)
        with pytest.raises(UserError, match=r"config\.json cannot be downloaded \(HTTP 404\)"):
            load(files.address)


def test_configurations_from_elsewhere_are_bounded(tmp_path):
    for layers in (0, -1, True, 2.5, None, 10**9):
        (tmp_path / "config.json").write_text(json.dumps({"n_layers": layers}))
        with pytest.raises(UserError, match="n_layers is"):
            read_layers(tmp_path / "config.json")


def test_a_debugger_folder_takes_a_tokenizer_from_elsewhere(tmp_path):
    demo = load("demo-2l")
    save_tdb(demo.model, tmp_path / "bare")
    save_tdb(demo.model, tmp_path / "full", tokenizer=DEMO)
    bare, full = load(tmp_path / "bare"), load(tmp_path / "full")
    lent = load(tmp_path / "bare", tokenizer="demo-2l")
    wanted = demo.sample("The river", 8, temperature=0)
    assert full.sample("The river", 8, temperature=0) == wanted
    assert lent.sample("The river", 8, temperature=0) == wanted
    assert bare.sample(demo.encode("The river"), 8, temperature=0).tokens == wanted.tokens
    assert bare.sample(demo.encode("The river"), 8).strings is None
    with pytest.raises(UserError, match="came without a tokenizer; give token ids"):
        bare.sample("The river")


def test_the_example_of_the_docstring():
    results = doctest.testmod(context, optionflags=doctest.ELLIPSIS)
    assert results.attempted >= 8 and results.failed == 0


def test_the_code_of_the_documentation_runs(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "resources").symlink_to(ROOT / "resources")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/models.md", "exec"), names)
    assert len(blocks) == 6 and is_tdb(tmp_path / "copy")
    assert names["plain"].strings[0] in capsys.readouterr().out
    assert names["silenced"] != names["plain"] != names["drawn"]


def test_the_table_of_the_documentation_names_every_point():
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [
        line.split("|") for line in text.split("### Points")[1].splitlines() if line[:3] == "| `"
    ]
    pairs = {}
    for row in rows:
        points = re.findall(r"`(\w+)`", row[1])
        theirs = re.findall(r"`([\w.]+)`", row[4])
        stem = theirs[0].rpartition(".")[0] if theirs else ""
        theirs = [stem + name if name.startswith(".") else name for name in theirs]
        pairs |= dict(zip(points, theirs or [None], strict=True))
    assert set(pairs) == set(ALL_POINTS)
    assert {theirs: ours for ours, theirs in pairs.items() if theirs} == TDB_POINTS


def test_one_prompt_or_many_as_text_or_tokens():
    model = load("demo-2l")
    one, ids = model.sample("The river", 6, seed=3), model.encode("The river")
    assert one.strings == [model.decode(one.tokens[0])]
    assert model.sample(["The river"], 6, seed=3) == one
    for prompt in (ids, [ids], torch.tensor(ids), torch.tensor([ids])):
        assert model.sample(prompt, 6, seed=3) == one
    assert len(model.sample(["The river", ids, "A"], 6).tokens) == 3
    assert model.encode("The river", bos=False) == ids[1:] and ids[0] == model.tokenizer.bos_id


def test_forward_goes_on_from_its_cache():
    model = ModelContext("m", make(dtype=torch.float64))
    logits, cache = model.forward(TOKENS[:, :7])
    assert isinstance(cache, KeyValueCache) and cache.lengths == [7, 7]
    more, same = model.forward(TOKENS[:, 7:], cache=cache)
    assert same is cache and cache.lengths == [12, 12]
    expected = model.model.forward(TOKENS)
    torch.testing.assert_close(torch.cat([logits, more], 1), expected, atol=1e-12, rtol=0)


def test_activations_are_what_the_model_goes_on_with():
    model = ModelContext("m", make(dtype=torch.float64))
    hooks = Hooks().append_fwd2("mlp_post", filled(3), layers=0)
    found = model.activations(TOKENS, ["mlp_post", "resid_post"], hooks=hooks)
    assert found.keys() == {(p, i) for p in ("mlp_post", "resid_post") for i in (0, 1)}
    assert (found["mlp_post", 0][..., 3] == 0).all() and (found["mlp_post", 1][..., 3] != 0).any()
    again = model.activations(TOKENS, "mlp_post", hooks=hooks)  # which were left as they were
    assert torch.equal(again["mlp_post", 1], found["mlp_post", 1]) and list(hooks) == ["mlp_post"]
    assert model.activations(TOKENS, "z", 1).keys() == {("z", 1)}
    plain = model.activations(TOKENS, "logits")["logits", 2]
    assert torch.equal(plain, model.model.forward(TOKENS))
    changed = model.activations(TOKENS, "mlp_post", 0, hooks={"mlp_post": lambda v, i: v * 2})
    seen = model.activations(TOKENS, "mlp_post", 0)
    assert torch.equal(changed["mlp_post", 0], 2 * seen["mlp_post", 0])
    with pytest.raises(ValueError, match="no such hook points: nowhere"):
        model.activations(TOKENS, "nowhere")


class Dictionary:
    """The least that satisfies the interface."""

    def __init__(self, reads, layer, decoder):
        self.about, self.decoder = {"reads": reads, "layer": layer}, decoder
        self.n_latents, self.d_out = decoder.shape
        self.d_in = self.d_out

    def encode(self, x, latents=slice(None)):
        return (x @ self.decoder.T)[..., latents]

    def decode(self, z, x=None):
        return z @ self.decoder


@pytest.mark.parametrize("point", ["mlp_post", "z", "resid_mid"])
def test_promoted_logits_are_the_direct_effect_of_what_latents_write(point):
    model = ModelContext("m", make(dtype=torch.float64))
    width = 96 if point == "mlp_post" else 24
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, width, dtype=torch.float64, generator=generator)
    dictionary = Dictionary(point, 1, rows)
    assert isinstance(dictionary, AutoencoderContext)
    found = model.latent_logits(dictionary, slice(1, 3))
    # By an experiment: add a little to the point, let it pass nothing but the residual stream and a frozen final norm.
    tokens, step = TOKENS[:1], 1e-6
    scale = model.activations(tokens, "final_norm_scale")["final_norm_scale", 2]
    mid = model.activations(tokens, "mlp_out")["mlp_out", 1]

    def run(extra):
        hooks = Hooks().append_fwd("final_norm_scale", lambda v, i: scale)
        if point != "mlp_post":  # the MLP would read it too
            hooks.append_fwd("mlp_out", lambda v, i: mid, layers=1)
        hooks.append_fwd(point, lambda v, i: v + extra.view(v.shape[2:]), layers=1)
        logits = model.model.forward(tokens, hooks)[0, -1] * scale[0, -1]
        return logits - logits.mean()

    for row, effect in zip(rows[1:3], found, strict=True):
        measured = (run(step * row) - run(-step * row)) / (2 * step)
        torch.testing.assert_close(effect, measured, atol=1e-7, rtol=1e-6)
    with pytest.raises(ValueError, match="mlp_pre does not write linearly"):
        model.write_directions("mlp_pre", 0, rows)


def test_dictionaries_run_in_samples_with_and_without_a_cache():
    from mechatlas.dictionaries.activations import ReLU
    from mechatlas.dictionaries.autoencoder import SparseAutoencoder
    from mechatlas.dictionaries.hooks import ablate, merge_hooks, replace_by_reconstruction, steer

    model = ModelContext("m", make(dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def dictionary(reads, writes=None):
        about = {"layer": 1, "reads": reads, "writes": writes or reads}
        parts = draw(40, 24), draw(40), draw(40, 24), draw(24)
        return SparseAutoencoder(*parts, ReLU(), about=about)

    one, over = dictionary("resid_mid"), dictionary("mlp_in", "mlp_out")
    assert isinstance(one, AutoencoderContext)
    assert model.latent_logits(over, slice(3, 5)).shape == (2, 50)
    prompts = [[4, 7, 1], [9], [3] * 8]
    plain = model.sample(prompts, 9, temperature=0)
    for hooks in (
        replace_by_reconstruction(one),
        replace_by_reconstruction(one, ablate([1, 5, 9]), error=True, positions=slice(4, 9)),
        replace_by_reconstruction(over),
        merge_hooks(replace_by_reconstruction(over), steer(one, 3, 9.0), {"z": lambda z, i: z * 2}),
    ):
        changed = model.sample(prompts, 9, temperature=0, hooks=hooks)
        assert changed == model.sample(prompts, 9, temperature=0, hooks=hooks, cached=False)
        assert changed != plain
