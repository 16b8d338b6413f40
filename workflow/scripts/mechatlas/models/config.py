"""What a Hugging Face ``config.json`` of a GPT-2 or Llama type says about the model (no torch here)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechatlas.io import UserError, read_json

ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu")
LLAMA3_ROPE = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)


@dataclass(frozen=True)
class Llama3Rope:
    """Frequency scaling of the Llama 3.1 rotary embedding (Grattafiori et al. 2024, section 3.4)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a transformer and the constants of its formulas.

    Attributes
    ----------
    architecture : str
        ``"gpt2"`` (LayerNorm, learned positions, one MLP matrix each way) or ``"llama"`` (RMSNorm, rotary
        positions, gated MLP, grouped-query attention).
    n_layers, n_heads, n_kv_heads : int
        ``n_kv_heads`` equals ``n_heads`` unless keys and values are shared by groups of heads.
    d_model, d_head, d_mlp, n_ctx, vocab_size : int
    norm_eps : float
    activation : str
        One of `ACTIVATIONS`.
    tie_embeddings : bool
        Whether the unembedding is the transposed embedding.
    qkv_bias, out_bias, mlp_bias : bool
        Which linear maps have a bias.
    rope_theta : float
        Base of the rotary frequencies (``llama`` only).
    rope_scaling : Llama3Rope or None
    scale_by_layer : bool
        GPT-2's ``scale_attn_by_inverse_layer_idx``.
    initializer_range : float
        Standard deviation of randomly initialised weights.
    """

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    n_ctx: int
    vocab_size: int
    norm_eps: float
    activation: str
    tie_embeddings: bool
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    rope_theta: float = 10000.0
    rope_scaling: Llama3Rope | None = None
    scale_by_layer: bool = False
    initializer_range: float = 0.02


def read_config(folder: str | Path) -> ModelConfig:
    """Read the ``config.json`` of a model folder.

    Raises
    ------
    UserError
        If the folder or file is missing or broken, a value is missing or not positive, or the model type,
        the activation or the rotary scaling is not supported.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; point the model's path at a Hugging Face model folder "
            "(config.json, tokenizer.json, model.safetensors)"
        )
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} is not a JSON object; save the model again with save_pretrained")
    if "ctx_window" in raw and "model_type" not in raw:
        raise UserError(
            f"{path} is that of a Transformer Debugger folder, which mechatlas.models.context.load reads but the "
            "workflow does not; give it the same model in Hugging Face format"
        )
    readers = {"gpt2": _gpt2, "llama": _llama}
    kind = raw.get("model_type")
    if kind not in readers:
        raise UserError(
            f"{path}: model_type {kind!r} is not supported; use a model of one of the types "
            f"{', '.join(readers)}"
        )
    return _checked(readers[kind](raw, path), path)


def config_digest_text(config: ModelConfig) -> str:
    """Return a canonical text of a config, for hashing."""
    from dataclasses import asdict

    return json.dumps(asdict(config), sort_keys=True)


def _gpt2(raw: Mapping[str, Any], path: Path) -> ModelConfig:
    if not raw.get("scale_attn_weights", True) or raw.get("add_cross_attention", False):
        raise UserError(
            f"{path}: scale_attn_weights: false and add_cross_attention: true are not supported; "
            "use a standard GPT-2 decoder"
        )
    d_model, n_heads = _integer(raw, "n_embd", path), _integer(raw, "n_head", path)
    return ModelConfig(
        architecture="gpt2",
        n_layers=_integer(raw, "n_layer", path),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_model=d_model,
        d_head=_head_size(d_model, n_heads, path),
        d_mlp=raw.get("n_inner") or 4 * d_model,
        n_ctx=_integer(raw, "n_positions" if "n_positions" in raw else "n_ctx", path),
        vocab_size=_integer(raw, "vocab_size", path),
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        activation=raw.get("activation_function", "gelu_new"),
        tie_embeddings=raw.get("tie_word_embeddings", True),
        scale_by_layer=raw.get("scale_attn_by_inverse_layer_idx", False),
        initializer_range=raw.get("initializer_range", 0.02),
    )


def _llama(raw: Mapping[str, Any], path: Path) -> ModelConfig:
    d_model, n_heads = (
        _integer(raw, "hidden_size", path),
        _integer(raw, "num_attention_heads", path),
    )
    theta, scaling = _rope(raw, path)
    bias = raw.get("attention_bias", False)
    return ModelConfig(
        architecture="llama",
        n_layers=_integer(raw, "num_hidden_layers", path),
        n_heads=n_heads,
        n_kv_heads=raw.get("num_key_value_heads") or n_heads,
        d_model=d_model,
        d_head=raw.get("head_dim") or _head_size(d_model, n_heads, path),
        d_mlp=_integer(raw, "intermediate_size", path),
        n_ctx=_integer(raw, "max_position_embeddings", path),
        vocab_size=_integer(raw, "vocab_size", path),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        activation=raw.get("hidden_act", "silu"),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=raw.get("mlp_bias", False),
        rope_theta=theta,
        rope_scaling=scaling,
        initializer_range=raw.get("initializer_range", 0.02),
    )


def _rope(raw: Mapping[str, Any], path: Path) -> tuple[float, Llama3Rope | None]:
    # transformers < 5 wrote rope_theta at the top and rope_scaling beside it; 5 writes one rope_parameters.
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    theta = float(rope.get("rope_theta", raw.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) or 1.0
    if kind not in ("default", "llama3") or partial != 1.0:
        raise UserError(
            f"{path}: rotary embedding of type {kind!r} with partial_rotary_factor {partial} is not "
            "supported; use a model with rope_type default or llama3 and a factor of 1"
        )
    if kind == "default":
        return theta, None
    missing = [name for name in LLAMA3_ROPE if name not in rope]
    if missing:
        raise UserError(f"{path}: rope_type llama3 lacks {', '.join(missing)}; add the values")
    return theta, Llama3Rope(*(rope[name] for name in LLAMA3_ROPE))


def _integer(raw: Mapping[str, Any], key: str, path: Path) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UserError(f"{path}: {key} is {value!r}; it must be a positive integer")
    return value


def _head_size(d_model: int, n_heads: int, path: Path) -> int:
    if d_model % n_heads:
        raise UserError(
            f"{path}: the model width {d_model} is not a multiple of its {n_heads} heads; "
            "correct config.json"
        )
    return d_model // n_heads


def _checked(config: ModelConfig, path: Path) -> ModelConfig:
    if config.activation not in ACTIVATIONS:
        raise UserError(
            f"{path}: activation {config.activation!r} is not supported; use a model with one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    if config.n_heads % config.n_kv_heads:
        raise UserError(
            f"{path}: {config.n_heads} heads cannot share {config.n_kv_heads} key/value heads evenly; "
            "correct config.json"
        )
    if config.architecture == "llama" and config.d_head % 2:
        raise UserError(
            f"{path}: head size {config.d_head} is odd; rotary positions need an even one"
        )
    return config
