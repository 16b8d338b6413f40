"""The forward pass against transformers and TransformerLens, and every way in which a model folder can be wrong."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mechatlas.io import UserError
from mechatlas.models.config import read_config
from mechatlas.models.device import claim, pick_device
from mechatlas.models.tokenizer import load_tokenizer
from mechatlas.models.transformer import load

VOCAB, CONTEXT = 97, 48


def save_gpt2(folder, **changes):
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": VOCAB, "n_positions": CONTEXT}
    special = {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}
    model = GPT2LMHeadModel(GPT2Config(**{**shape, **special, **changes}))
    # Biases and norms start at 0 and 1: move them, or a forgotten one would not show.
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model.double().eval()


def save_llama(folder, **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**shape, **changes}))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model.double().eval()


LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 24,
}  # fmt: skip
VARIANTS = {
    "gpt2": (save_gpt2, {}),
    "gpt2-untied-relu": (save_gpt2, {"tie_word_embeddings": False, "activation_function": "relu"}),
    "gpt2-scale-by-layer": (save_gpt2, {"scale_attn_by_inverse_layer_idx": True, "n_inner": 20}),
    "llama-grouped": (save_llama, {}),
    "llama-tied-biases": (
        save_llama,
        {
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "hidden_act": "gelu",
        },
    ),
    "llama3-rope-head-dim": (save_llama, {"rope_parameters": LLAMA3_ROPE, "head_dim": 6}),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def tokens():
    return torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (2, CONTEXT)))


@pytest.fixture
def wide_norm(monkeypatch):
    """Let the reference RMSNorm work in float64: as shipped it rounds to float32 inside."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def forward(self, x):
        return self.weight * (
            x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant, tmp_path, tokens, wide_norm):
    save, changes = VARIANTS[variant]
    reference = save(tmp_path, **changes)
    model = load(tmp_path, dtype="float64")
    with torch.no_grad():
        expected = reference(tokens).logits
        ours = model.forward(tokens)
        explicit = model.forward(tokens, {"pattern": lambda value, layer: None})
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(explicit, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("variant", ["gpt2", "llama-grouped"])
def test_losses_equal_cross_entropy_of_the_logits(variant, tmp_path, tokens, monkeypatch):
    save, changes = VARIANTS[variant]
    save(tmp_path, **changes)
    model = load(tmp_path, dtype="float64")
    log_p = model.forward(tokens).log_softmax(-1)
    expected = -log_p[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(model.losses(tokens).double(), expected, atol=1e-5, rtol=0)
    monkeypatch.setattr("mechatlas.models.transformer.LOGITS_PER_CHUNK", 7 * VOCAB)
    torch.testing.assert_close(model.losses(tokens).double(), expected, atol=1e-5, rtol=0)
    halved = model.losses(tokens, {"logits": lambda value, layer: torch.zeros_like(value)})
    torch.testing.assert_close(halved, torch.full_like(halved, np.log(VOCAB)))


def test_hooks_equal_transformer_lens(tmp_path, tokens, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformer_lens.model_bridge import TransformerBridge

    save_gpt2(tmp_path)
    write_tokenizer(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), device="cpu", dtype=torch.float32)
    logits, cache = bridge.run_with_cache(tokens)
    seen = {}
    names = {"pattern": "attn.hook_pattern", "z": "attn.hook_z", "resid_mid": "hook_resid_mid"}
    names |= {"v": "attn.hook_v", "mlp_out": "hook_mlp_out", "attn_scores": "attn.hook_attn_scores"}

    def keep(point):
        return lambda value, layer: seen.__setitem__((point, layer), value)

    ours = load(tmp_path).forward(tokens, {point: keep(point) for point in names})
    torch.testing.assert_close(ours, logits, atol=1e-4, rtol=0)
    future = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1)
    for (point, layer), value in seen.items():
        expected = cache[f"blocks.{layer}.{names[point]}"]
        if point == "attn_scores":
            assert value[..., future].max() == -torch.inf
            value, expected = value.masked_fill(future, 0), expected.masked_fill(future, 0)
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5, msg=f"{point} {layer}")


@pytest.mark.parametrize("variant", ["gpt2", "llama-grouped"])
def test_value_norms_and_output_weights(variant, tmp_path, tokens):
    save, changes = VARIANTS[variant]
    save(tmp_path, **changes)
    model = load(tmp_path, dtype="float64")
    seen = {}
    model.forward(
        tokens, {n: lambda x, i, n=n: seen.__setitem__((n, i), x) for n in ("v", "z", "attn_out")}
    )
    w_o = model.output_weights(1)
    heads = model.config.n_heads
    values = seen["v", 1].repeat_interleave(heads // model.config.n_kv_heads, dim=2)
    expected = torch.einsum("bthe,hed->bhtd", values, w_o).norm(dim=-1)
    torch.testing.assert_close(model.value_norms(seen["v", 1], 1), expected)
    written = torch.einsum("bthe,hed->btd", seen["z", 1], w_o)
    bias = model.weights.layers[1].b_o
    torch.testing.assert_close(seen["attn_out", 1], written if bias is None else written + bias)


def test_replaced_values_take_effect(tmp_path, tokens):
    save_gpt2(tmp_path)
    model = load(tmp_path, dtype="float64")
    plain = model.forward(tokens, logits=False)
    uniform = torch.ones(CONTEXT, CONTEXT, dtype=torch.float64).tril()
    uniform = (uniform / uniform.sum(-1, keepdim=True)).expand(2, 3, -1, -1)
    values = {}
    hooks = {
        "v": lambda v, layer: values.__setitem__(layer, v),
        "pattern": lambda p, layer: uniform if layer == 1 else None,
        "z": lambda z, layer: values.__setitem__(("z", layer), z),
    }
    changed = model.forward(tokens, hooks, logits=False)
    means = values[1].cumsum(1) / torch.arange(1, CONTEXT + 1)[:, None, None]
    torch.testing.assert_close(values["z", 1], means)
    assert (changed - plain).abs().max() > 1e-3
    with pytest.raises(ValueError, match="no such hook points: patern"):
        model.forward(tokens, {"patern": lambda p, layer: None})


def test_random_init_is_seeded_and_gpt2_like(tmp_path, tokens):
    save_gpt2(tmp_path, n_embd=96)
    (tmp_path / "model.safetensors").unlink()  # the control needs the config only
    a, b, c = (load(tmp_path, init="random", seed=s) for s in (1, 1, 2))
    assert torch.equal(a.forward(tokens), b.forward(tokens)) and a.hash == b.hash
    assert not torch.equal(a.forward(tokens), c.forward(tokens)) and a.hash != c.hash
    layer = a.weights.layers[0]
    assert abs(layer.w_qkv.std().item() - 0.3) < 0.01
    assert abs(layer.w_down.std().item() - 0.3 / 2) < 0.01
    assert (layer.norm1 == 1).all() and (layer.b_qkv == 0).all()


def test_shards_and_prefixless_names(tmp_path, tokens):
    reference = save_gpt2(tmp_path / "whole")
    expected = load(tmp_path / "whole").forward(tokens)
    shutil.copytree(tmp_path / "whole", tmp_path / "shards")
    (tmp_path / "shards/model.safetensors").unlink()
    reference.float().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert torch.equal(load(tmp_path / "shards").forward(tokens), expected)
    assert load(tmp_path / "shards").hash != load(tmp_path / "whole").hash
    tensors = load_file(tmp_path / "whole/model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare | {"h.0.attn.bias": torch.ones(1)}, tmp_path / "whole/model.safetensors")
    assert torch.equal(load(tmp_path / "whole").forward(tokens), expected)


def test_bfloat16_stays_close(tmp_path, tokens):
    for name in ("gpt2", "llama-grouped"):
        save, changes = VARIANTS[name]
        save(tmp_path / name, **changes, initializer_range=0.05)
        exact = load(tmp_path / name).forward(tokens)
        coarse = load(tmp_path / name, dtype="bfloat16").forward(tokens)
        assert coarse.dtype == torch.bfloat16
        assert (coarse - exact).abs().max() < 0.05 * exact.abs().max()


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def corrupt(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)


def drop_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.bias"]
    save_file(tensors, folder / "model.safetensors")


def as_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model\.safetensors is damaged or truncated"),
        (corrupt, r"model\.safetensors is damaged or truncated"),
        (drop_tensor, r"tensor transformer\.h\.1\.mlp\.c_fc\.bias is in none"),
        (as_pickle, r"pytorch_model\.bin, a pickle"),
        (lambda f: (f / "model.safetensors").unlink(), r"holds no model\.safetensors"),
        (lambda f: (f / "config.json").unlink(), r"config\.json does not exist"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json is damaged"),
        (
            lambda f: edit_config(f, vocab_size=50),
            r"transformer\.wte\.weight has shape \[97, 24\].*\[50, 24\]",
        ),
        (
            lambda f: edit_config(f, activation_function="swish9"),
            r"activation 'swish9' is not supported",
        ),
        (lambda f: edit_config(f, model_type="bert"), r"model_type 'bert'.*gpt2, llama"),
        (lambda f: edit_config(f, n_head=5), r"24 is not a multiple of its 5 heads"),
        (lambda f: edit_config(f, n_layer=0), r"n_layer is 0; it must be a positive integer"),
    ],
)
def test_wrong_model_folders(damage, message, tmp_path):
    save_gpt2(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_unsupported_rope_and_long_input(tmp_path, tokens):
    save_llama(tmp_path)
    with pytest.raises(UserError, match="49 tokens is longer than the model's context of 48"):
        load(tmp_path).forward(torch.zeros(1, 49, dtype=torch.long))
    edit_config(tmp_path, rope_parameters=None, rope_scaling={"type": "yarn", "factor": 2.0})
    with pytest.raises(UserError, match="rotary embedding of type 'yarn'"):
        read_config(tmp_path)


def test_rope_in_the_old_config_form(tmp_path):
    save_llama(tmp_path, rope_parameters=LLAMA3_ROPE)
    new = read_config(tmp_path)
    old = {k: v for k, v in LLAMA3_ROPE.items() if k != "rope_theta"}
    edit_config(tmp_path, rope_parameters=None, rope_theta=500.0, rope_scaling=old)
    assert read_config(tmp_path) == new


def write_tokenizer(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCAB - 1]
    backend = Tokenizer(models.BPE({"<bos>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, []))
    backend.add_special_tokens(["<bos>"])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<bos>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_tokenizer(tmp_path):
    tmp_path.mkdir(exist_ok=True)
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("ABBA: 12")
    assert tokenizer.bos_id == 0 and 0 not in ids
    assert tokenizer.decode(ids) == "ABBA: 12".replace(" ", "") or "".join(tokenizer.strings(ids))
    assert "".join(tokenizer.strings(tokenizer.encode("ABBA"))) == "ABBA"
    assert load_tokenizer(tmp_path, bos="A").bos_id == tokenizer.id_of("A")
    assert load_tokenizer(tmp_path, bos="A").hash != tokenizer.hash
    with pytest.raises(UserError, match="BOS token 'ZZ' is not in the vocabulary"):
        load_tokenizer(tmp_path, bos="ZZ")
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="neither a bos_token nor an eos_token"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer model"):
        load_tokenizer(tmp_path)


def test_device(monkeypatch, caplog, tmp_path):
    assert pick_device(0) == pick_device(1, "cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(1, "cuda") == "cpu" and "no GPU" in caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert pick_device(1) == "cuda:0"
    with pytest.raises(UserError, match="device: 'tpu' is unknown"):
        pick_device(1, "tpu")
    assert [claim(2, tmp_path), claim(2, tmp_path)] == [0, 1]


def test_fetch_without_network(tmp_path, monkeypatch):
    from mechatlas.models.fetch import fetch_model

    with pytest.raises(UserError, match="revision 'main' of a/b is not a full commit hash"):
        fetch_model("a/b", "main", tmp_path / "m")
    # Nothing listens there, whatever the machine's network.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetch_model("a/b", "0" * 40, tmp_path / "m")
    assert not list(tmp_path.iterdir())
