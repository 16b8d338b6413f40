"""Model folders of the Transformer Debugger: ``config.json`` and ``model_pieces/``, one PyTorch file a parameter.

The layout is that of github.com/openai/transformer-debugger (Mossing et al. 2024). Its models are of GPT-2 type, and
matrices are stored as ``[out, in]``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechatlas.io import UserError, atomic_path, file_digest, read_json
from mechatlas.models.config import ModelConfig
from mechatlas.models.pickles import read_tensor
from mechatlas.models.precision import set_precision
from mechatlas.models.transformer import Transformer
from mechatlas.models.weights import Weights, assemble, tensor_shapes

PIECES = "model_pieces"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
EPSILON = 1e-5
MOST_LAYERS = 1000  # of a configuration from elsewhere, each of which means 16 downloads
# Names within a block: ours (of the checkpoint form that `weights` reads), and theirs.
MAPS = {
    "attn.c_attn": ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "attn.c_proj": ("attn.out_proj",),
    "mlp.c_fc": ("mlp.in_layer",),
    "mlp.c_proj": ("mlp.out_layer",),
}
OUTER = {
    "transformer.wte.weight": "tok_embed.weight",
    "transformer.wpe.weight": "pos_embed.weight",
    "transformer.ln_f.weight": "final_ln.weight",
    "transformer.ln_f.bias": "final_ln.bias",
    "lm_head.weight": "unembed.weight",
}


def is_tdb(folder: str | Path) -> bool:
    """Return whether a folder has the layout of the Transformer Debugger."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        return False
    raw = read_json(path)
    return isinstance(raw, dict) and "ctx_window" in raw and "model_type" not in raw


def load_tdb(folder: str | Path, *, device: str = "cpu", dtype: str = "float32") -> Transformer:
    """Load a model folder of the Transformer Debugger.

    Parameters
    ----------
    folder : str or Path
    device, dtype : str
        As for `mechatlas.models.transformer.load`.

    Raises
    ------
    UserError
        If a file is missing, damaged, no plain tensor, of another shape than the rest implies, or if the
        configuration is not one of a GPT-2.
    """
    folder = Path(folder)
    number = set_precision(dtype, device)
    embedding = _piece(folder, "tok_embed.weight")
    config = _config(read_json(folder / "config.json"), len(embedding), folder / "config.json")
    shapes = tensor_shapes(config)

    def read(name: str) -> Tensor:
        parts = [_piece(folder, piece) for piece in pieces_of(name)]
        tensor = parts[0] if name in OUTER else _joined(parts)
        if tuple(tensor.shape) != shapes[name]:
            raise UserError(
                f"{folder / PIECES}: {' + '.join(pieces_of(name))} has shape {list(tensor.shape)} where config.json "
                f"implies {list(shapes[name])}; the files do not belong together"
            )
        return tensor.to(device=device, dtype=number)

    weights = assemble(config, read)
    if torch.equal(weights.embedding, weights.unembedding):
        weights.unembedding = weights.embedding
        config = replace(config, tie_embeddings=True)
    return Transformer(config, weights, lambda: tdb_digest(folder))


def save_tdb(model: Transformer, folder: str | Path, tokenizer: str | Path | None = None) -> None:
    """Write a model of GPT-2 type as a Transformer Debugger folder, whole or not at all.

    Parameters
    ----------
    model : Transformer
    folder : str or Path
        An old one is replaced.
    tokenizer : str or Path, optional
        Folder whose tokenizer files are copied too (that layout has none, but `mechatlas.models.context.load`
        finds them there). The Transformer Debugger itself always takes GPT-2's.

    Raises
    ------
    UserError
        If the model has what that layout cannot say: rotary positions, another activation, epsilon or scale.
    """
    _check_exportable(model.config)
    with atomic_path(folder, folder=True) as temporary:
        (temporary / PIECES).mkdir()
        for name, tensor in _pieces(model.weights):
            torch.save(tensor.detach().cpu().clone(), temporary / PIECES / f"{name}.pt")
        text = json.dumps(_raw(model.config), indent=1) + "\n"
        (temporary / "config.json").write_text(text, encoding="utf-8")
        for file in TOKENIZER_FILES:
            if tokenizer is not None and (Path(tokenizer) / file).is_file():
                (temporary / file).write_bytes((Path(tokenizer) / file).read_bytes())


def piece_names(n_layers: int) -> list[str]:
    """Return the names of all pieces of a model, sorted."""
    names = set(OUTER.values())
    for layer in range(n_layers):
        inner = [*(part for parts in MAPS.values() for part in parts), "ln_1", "ln_2"]
        names.update(f"xf_layers.{layer}.{p}.{kind}" for p in inner for kind in ("weight", "bias"))
    return sorted(names)


def pieces_of(name: str) -> tuple[str, ...]:
    """Return the pieces that make one tensor of the checkpoint form, such as q, k and v side by side."""
    if name in OUTER:
        return (OUTER[name],)
    layer, _, rest = name.removeprefix("transformer.h.").partition(".")
    inner, _, kind = rest.rpartition(".")
    return tuple(f"xf_layers.{layer}.{part}.{kind}" for part in MAPS.get(inner, (inner,)))


def checksums(folder: str | Path) -> str:
    """Return the SHA-256 of config and pieces, as ``sha256sum -c`` reads them."""
    folder = Path(folder)
    files = [folder / "config.json", *sorted((folder / PIECES).glob("*.pt"))]
    return "".join(f"{file_digest(f)}  {f.relative_to(folder)}\n" for f in files)


def tdb_digest(folder: str | Path) -> str:
    """Return the hash of a folder: the SHA-256 of its list of `checksums`."""
    return hashlib.sha256(checksums(folder).encode()).hexdigest()


def read_layers(path: str | Path) -> int:
    """Return the number of layers that a ``config.json`` of this layout names; raise `UserError` if it is none."""
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} is not a JSON object; it is no model configuration")
    layers = _number(raw, "n_layers", path, int)
    if layers > MOST_LAYERS:
        raise UserError(
            f"{path}: n_layers is {layers}; no model of this layout has more than {MOST_LAYERS}"
        )
    return layers


def _piece(folder: Path, name: str) -> Tensor:
    return read_tensor(folder / PIECES / f"{name}.pt")


def _joined(parts: list[Tensor]) -> Tensor:
    """Bring linear maps ``[out, in]`` (or biases) side by side into our form ``[in, out]``."""
    tensor = torch.cat([part.mT if part.ndim == 2 else part for part in parts], dim=-1)
    return tensor.contiguous()


def _pieces(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    yield "tok_embed.weight", weights.embedding
    yield "pos_embed.weight", weights.positions
    for number, layer in enumerate(weights.layers):
        tensors = {
            "attn.c_attn": (layer.w_qkv, layer.b_qkv),
            "attn.c_proj": (layer.w_o, layer.b_o),
            "mlp.c_fc": (layer.w_up, layer.b_up),
            "mlp.c_proj": (layer.w_down, layer.b_down),
        }
        prefix = f"xf_layers.{number}"
        for name, (matrix, bias) in tensors.items():
            parts = MAPS[name]
            both = zip(matrix.chunk(len(parts), -1), bias.chunk(len(parts), -1), strict=True)
            for part, (m, b) in zip(parts, both, strict=True):
                yield f"{prefix}.{part}.weight", m.mT.contiguous()
                yield f"{prefix}.{part}.bias", b
        yield f"{prefix}.ln_1.weight", layer.norm1
        yield f"{prefix}.ln_1.bias", layer.norm1_bias
        yield f"{prefix}.ln_2.weight", layer.norm2
        yield f"{prefix}.ln_2.bias", layer.norm2_bias
    yield "final_ln.weight", weights.final_norm
    yield "final_ln.bias", weights.final_norm_bias
    yield "unembed.weight", weights.unembedding


def _config(raw: Any, vocab_size: int, path: Path) -> ModelConfig:
    if not isinstance(raw, dict):
        raise UserError(f"{path} is not a JSON object; it is no model configuration")
    width, heads = _number(raw, "d_model", path, int), _number(raw, "n_heads", path, int)
    if _number(raw, "m_attn", path, (int, float)) != 1 or width % heads:
        raise UserError(
            f"{path}: attention of width {raw['m_attn']} x {width} in {heads} heads is not supported; m_attn must be 1 "
            "and d_model a multiple of n_heads"
        )
    return ModelConfig(
        architecture="gpt2",
        n_layers=_number(raw, "n_layers", path, int),
        n_heads=heads,
        n_kv_heads=heads,
        d_model=width,
        d_head=width // heads,
        d_mlp=int(width * _number(raw, "m_mlp", path, (int, float))),
        n_ctx=_number(raw, "ctx_window", path, int),
        vocab_size=vocab_size,
        norm_eps=EPSILON,
        activation="gelu_new",
        tie_embeddings=False,
    )


def _raw(config: ModelConfig) -> dict[str, Any]:
    ratio = config.d_mlp / config.d_model
    return {
        "enc": "gpt2",
        "ctx_window": config.n_ctx,
        "d_model": config.d_model,
        "n_layers": config.n_layers,
        "m_attn": 1,
        "n_heads": config.n_heads,
        "m_mlp": int(ratio) if ratio.is_integer() else ratio,
    }


def _check_exportable(config: ModelConfig) -> None:
    wrong = []
    if config.architecture != "gpt2":
        wrong.append(f"architecture {config.architecture}")
    if config.activation not in ("gelu_new", "gelu_pytorch_tanh"):
        wrong.append(f"activation {config.activation}")
    if config.norm_eps != EPSILON:
        wrong.append(f"norm_eps {config.norm_eps}")
    if config.scale_by_layer:
        wrong.append("scale_attn_by_inverse_layer_idx")
    if int(config.d_model * (config.d_mlp / config.d_model)) != config.d_mlp:
        wrong.append(f"an MLP of width {config.d_mlp} that is no multiple of {config.d_model}")
    if wrong:
        raise UserError(
            f"the Transformer Debugger's layout cannot hold a model with {', '.join(wrong)}; it is for GPT-2 only"
        )


def _number(raw: Mapping[str, Any], key: str, path: str | Path, kind: Any) -> Any:
    value = raw.get(key, 1 if key == "m_attn" else None)
    if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise UserError(f"{path}: {key} is {value!r}; it must be a positive number")
    return value
