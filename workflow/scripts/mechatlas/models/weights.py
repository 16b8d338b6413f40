"""Model weights: read from safetensors, checked against the config, or initialised at random.

Both architectures end in the same form (`Layer`): matrices are ``[in, out]``, applied as ``x @ W + b``, with
queries, keys and values side by side in one matrix.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mechatlas.io import UserError, file_digest, read_json, seed_for
from mechatlas.models.config import ModelConfig, config_digest_text

Shapes = dict[str, tuple[int, ...]]
Reader = Callable[[str], Tensor]


@dataclass
class Layer:
    """Weights of one block. A bias that the model does not have is None, and so is ``w_gate`` in GPT-2.

    ``w_qkv [d_model, (H + 2 Hkv) d_head]``, ``w_o [H d_head, d_model]``, ``w_gate`` and ``w_up
    [d_model, d_mlp]``, ``w_down [d_mlp, d_model]``.
    """

    norm1: Tensor
    norm1_bias: Tensor | None
    w_qkv: Tensor
    b_qkv: Tensor | None
    w_o: Tensor
    b_o: Tensor | None
    norm2: Tensor
    norm2_bias: Tensor | None
    w_gate: Tensor | None
    b_gate: Tensor | None
    w_up: Tensor
    b_up: Tensor | None
    w_down: Tensor
    b_down: Tensor | None


@dataclass
class Weights:
    """All weights: embedding ``[V, d]``, positions ``[n_ctx, d]`` or None, unembedding ``[V, d]``."""

    embedding: Tensor
    positions: Tensor | None
    layers: list[Layer]
    final_norm: Tensor
    final_norm_bias: Tensor | None
    unembedding: Tensor


def tensor_shapes(config: ModelConfig) -> Shapes:
    """Return the name and shape of every tensor of a checkpoint, as Hugging Face stores it."""
    return dict(_gpt2_shapes(config) if config.architecture == "gpt2" else _llama_shapes(config))


def load_weights(
    folder: str | Path, config: ModelConfig, device: str, dtype: torch.dtype
) -> Weights:
    """Read the weights of a model folder (one safetensors file, or shards with an index).

    Raises
    ------
    UserError
        If a file is missing, truncated or damaged, or a tensor is missing or has another shape than
        ``config`` says. The message names file and tensor.
    """
    from safetensors import SafetensorError, safe_open

    files = weight_files(folder)
    handles, home = {}, {}
    for path in files:
        try:
            handles[path] = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
        home.update(dict.fromkeys(handles[path].keys(), path))
    find = _finder(config, home, files[0])
    shapes = tensor_shapes(config)

    def read(name: str) -> Tensor:
        stored = find(name)
        path = home[stored]
        try:
            tensor = handles[path].get_tensor(stored)
        except SafetensorError as error:
            raise _damaged(path, error) from error
        if tuple(tensor.shape) != shapes[name]:
            raise UserError(
                f"{path}: tensor {stored} has shape {list(tensor.shape)} where config.json implies "
                f"{list(shapes[name])}; the two files do not belong together"
            )
        return tensor.to(device=device, dtype=dtype)

    return assemble(config, read)


def random_weights(config: ModelConfig, seed: int, device: str, dtype: torch.dtype) -> Weights:
    """Initialise weights as GPT-2 was (Radford et al. 2019, section 2.3).

    Matrices and embeddings are normal with standard deviation ``config.initializer_range``, divided by
    sqrt(2 n_layers) where a block writes to the residual stream; biases are zero, norms are the identity.
    Each tensor has its own seed, so the values depend on nothing else.
    """
    shapes = tensor_shapes(config)
    residual = ("c_proj.weight", "o_proj.weight", "down_proj.weight")

    def draw(name: str) -> Tensor:
        if name.endswith(".bias"):
            tensor = torch.zeros(shapes[name])
        elif len(shapes[name]) == 1:
            tensor = torch.ones(shapes[name])
        else:
            std = config.initializer_range
            if name.endswith(residual):
                std /= math.sqrt(2 * config.n_layers)
            generator = torch.Generator().manual_seed(seed_for(seed, "weights", name))
            tensor = torch.empty(shapes[name]).normal_(0.0, std, generator=generator)
        return tensor.to(device=device, dtype=dtype)

    return assemble(config, draw)


def assemble(config: ModelConfig, read: Reader) -> Weights:
    """Bring tensors in checkpoint form, given by name, into the form of `Weights`."""
    return (
        _assemble_gpt2(config, read)
        if config.architecture == "gpt2"
        else _assemble_llama(config, read)
    )


def weight_files(folder: str | Path) -> list[Path]:
    """Return the safetensors files of a model folder, sorted."""
    folder = Path(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise UserError(
                f"{index} names {outside[0]!r}, which is not a file of {folder}; download the model folder again"
            )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise UserError(
                f"{index} names {', '.join(missing) or 'no file'}, which {folder} does not hold; "
                "download the model folder again"
            )
        return [folder / name for name in names]
    if list(folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"{folder} holds its weights as pytorch_model.bin, a pickle that could run any code; convert it "
            "with transformers (save_pretrained writes model.safetensors)"
        )
    raise UserError(
        f"{folder} holds no model.safetensors; point the model's path at a full model folder"
    )


def weights_hash(folder: str | Path) -> str:
    """Return the SHA-256 of the weights file, or of the list of digests of all shards."""
    digests = [file_digest(path) for path in weight_files(folder)]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def random_hash(config: ModelConfig, seed: int) -> str:
    """Return the hash that identifies `random_weights` of a config and seed."""
    return hashlib.sha256(f"random\n{seed}\n{config_digest_text(config)}".encode()).hexdigest()


def _gpt2_shapes(c: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "transformer.wte.weight", (c.vocab_size, c.d_model)
    yield "transformer.wpe.weight", (c.n_ctx, c.d_model)
    maps = {
        "attn.c_attn": (c.d_model, 3 * c.d_model),
        "attn.c_proj": (c.d_model, c.d_model),
        "mlp.c_fc": (c.d_model, c.d_mlp),
        "mlp.c_proj": (c.d_mlp, c.d_model),
    }
    for layer in range(c.n_layers):
        prefix = f"transformer.h.{layer}."
        for norm in ("ln_1", "ln_2"):
            yield f"{prefix}{norm}.weight", (c.d_model,)
            yield f"{prefix}{norm}.bias", (c.d_model,)
        for name, (rows, columns) in maps.items():
            yield f"{prefix}{name}.weight", (rows, columns)
            yield f"{prefix}{name}.bias", (columns,)
    yield "transformer.ln_f.weight", (c.d_model,)
    yield "transformer.ln_f.bias", (c.d_model,)
    if not c.tie_embeddings:
        yield "lm_head.weight", (c.vocab_size, c.d_model)


def _llama_shapes(c: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (c.vocab_size, c.d_model)
    queries, keys = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
    maps = {
        "self_attn.q_proj": (queries, c.d_model, c.qkv_bias),
        "self_attn.k_proj": (keys, c.d_model, c.qkv_bias),
        "self_attn.v_proj": (keys, c.d_model, c.qkv_bias),
        "self_attn.o_proj": (c.d_model, queries, c.out_bias),
        "mlp.gate_proj": (c.d_mlp, c.d_model, c.mlp_bias),
        "mlp.up_proj": (c.d_mlp, c.d_model, c.mlp_bias),
        "mlp.down_proj": (c.d_model, c.d_mlp, c.mlp_bias),
    }
    for layer in range(c.n_layers):
        prefix = f"model.layers.{layer}."
        yield f"{prefix}input_layernorm.weight", (c.d_model,)
        yield f"{prefix}post_attention_layernorm.weight", (c.d_model,)
        for name, (rows, columns, bias) in maps.items():
            yield f"{prefix}{name}.weight", (rows, columns)
            if bias:
                yield f"{prefix}{name}.bias", (rows,)
    yield "model.norm.weight", (c.d_model,)
    if not c.tie_embeddings:
        yield "lm_head.weight", (c.vocab_size, c.d_model)


def _assemble_gpt2(config: ModelConfig, read: Reader) -> Weights:
    layers = []
    for layer in range(config.n_layers):

        def at(name: str, prefix: str = f"transformer.h.{layer}.") -> tuple[Tensor, Tensor]:
            return read(f"{prefix}{name}.weight"), read(f"{prefix}{name}.bias")

        layers.append(
            Layer(
                *at("ln_1"), *at("attn.c_attn"), *at("attn.c_proj"), *at("ln_2"),
                None, None, *at("mlp.c_fc"), *at("mlp.c_proj"),
            )
        )  # fmt: skip
    embedding = read("transformer.wte.weight")
    return Weights(
        embedding,
        read("transformer.wpe.weight"),
        layers,
        read("transformer.ln_f.weight"),
        read("transformer.ln_f.bias"),
        embedding if config.tie_embeddings else read("lm_head.weight"),
    )


def _assemble_llama(config: ModelConfig, read: Reader) -> Weights:
    layers = []
    for layer in range(config.n_layers):

        def at(
            *names: str, bias: bool, prefix: str = f"model.layers.{layer}."
        ) -> list[Tensor | None]:
            matrix = torch.cat([read(f"{prefix}{name}.weight") for name in names])
            biases = [read(f"{prefix}{name}.bias") for name in names if bias]
            # Stored as [out, in]; the transposed view costs nothing and multiplies as fast.
            return [matrix.mT, torch.cat(biases) if bias else None]

        qkv = (f"self_attn.{name}_proj" for name in "qkv")
        layers.append(
            Layer(
                read(f"model.layers.{layer}.input_layernorm.weight"), None,
                *at(*qkv, bias=config.qkv_bias),
                *at("self_attn.o_proj", bias=config.out_bias),
                read(f"model.layers.{layer}.post_attention_layernorm.weight"), None,
                *at("mlp.gate_proj", bias=config.mlp_bias),
                *at("mlp.up_proj", bias=config.mlp_bias),
                *at("mlp.down_proj", bias=config.mlp_bias),
            )
        )  # fmt: skip
    embedding = read("model.embed_tokens.weight")
    unembedding = embedding if config.tie_embeddings else read("lm_head.weight")
    return Weights(embedding, None, layers, read("model.norm.weight"), None, unembedding)


def _finder(config: ModelConfig, home: dict[str, Path], first: Path) -> Callable[[str], str]:
    """Return a function from a tensor's full name to the name under which the files hold it."""
    prefix = "transformer." if config.architecture == "gpt2" else "model."

    def find(name: str) -> str:
        # Checkpoints saved from the bare model (such as the first GPT-2 release) lack the prefix.
        for stored in (name, name.removeprefix(prefix)):
            if stored in home:
                return stored
        raise UserError(
            f"{first.parent}: tensor {name} is in none of its safetensors files; "
            "config.json and weights do not belong together, or the download is incomplete"
        )

    return find


def _damaged(path: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path} is damaged or truncated ({reason}); restore or download it again")
