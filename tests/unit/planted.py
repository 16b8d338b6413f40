"""A model whose circuit is known because its weights are set by hand.

Three layers of four heads. ``L0.H2`` attends to the token before and writes which it was; ``L2.H1`` attends from the
last token to the place before which that token stood, and writes what stands there: together they do induction (Elhage
et al. 2021). All other heads and all MLPs are small noise. The residual stream has four parts: the token (V), the
position (T), the token before (V), the prediction (V).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mechatlas.models.config import ModelConfig
from mechatlas.models.transformer import Transformer
from mechatlas.models.weights import Layer, Weights

VOCAB, LENGTH, LAYERS, HEADS = 20, 12, 3, 4
WIDTH = 3 * VOCAB + LENGTH
TOKEN, POSITION = slice(0, VOCAB), slice(VOCAB, VOCAB + LENGTH)
BEFORE = slice(VOCAB + LENGTH, 2 * VOCAB + LENGTH)
PREDICTION = slice(2 * VOCAB + LENGTH, WIDTH)
PREVIOUS_TOKEN_HEAD, INDUCTION_HEAD = (0, 2), (2, 1)
CIRCUIT = ("L0.H2", "L2.H1")
GAIN = 6.0  # so that the wanted key wins the softmax by far


def planted_model(dtype: torch.dtype = torch.float64, noise: float = 0.02) -> Transformer:
    """Return the model."""
    config = ModelConfig(
        architecture="gpt2", n_layers=LAYERS, n_heads=HEADS, n_kv_heads=HEADS, d_model=WIDTH, d_head=VOCAB,
        d_mlp=32, n_ctx=LENGTH, vocab_size=VOCAB, norm_eps=1e-5, activation="gelu_new", tie_embeddings=False,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return noise * torch.randn(*shape, generator=generator, dtype=torch.float64)

    layers = [_layer(draw) for _ in range(LAYERS)]
    embedding = torch.zeros(VOCAB, WIDTH, dtype=torch.float64)
    embedding[:, TOKEN] = torch.eye(VOCAB, dtype=torch.float64)
    positions = torch.zeros(LENGTH, WIDTH, dtype=torch.float64)
    positions[:, POSITION] = torch.eye(LENGTH, dtype=torch.float64)
    unembedding = torch.zeros(VOCAB, WIDTH, dtype=torch.float64)
    unembedding[:, PREDICTION] = torch.eye(VOCAB, dtype=torch.float64)
    one = torch.ones(WIDTH, dtype=torch.float64)
    shift = torch.eye(LENGTH, dtype=torch.float64).roll(1, 0)  # row i is one at i - 1
    shift[0] = 0
    _set(layers, PREVIOUS_TOKEN_HEAD, (POSITION, GAIN * shift), POSITION, TOKEN, BEFORE)
    _set(layers, INDUCTION_HEAD, (TOKEN, GAIN * torch.eye(VOCAB)), BEFORE, TOKEN, PREDICTION)
    weights = Weights(embedding, positions, layers, one, torch.zeros_like(one), unembedding)
    _cast(weights, dtype)
    return Transformer(config, weights, "planted")


def planted_pairs(count: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return clean and corrupted prompts ``[N, T]``, answers and wrong answers ``[N]``.

    Clean: ``... a b ... d ... a`` with answer b and wrong answer d; corrupted: the first a is another token, so that
    nothing says what follows. All tokens but a differ.
    """
    generator = torch.Generator().manual_seed(seed)
    clean = torch.stack(
        [1 + torch.randperm(VOCAB - 1, generator=generator)[:LENGTH] for _ in range(count)]
    )
    clean[:, 0] = 0
    at = torch.randint(1, LENGTH // 2, (count,), generator=generator)
    rows, spare = torch.arange(count), clean[:, -1].clone()
    clean[:, -1] = clean[rows, at]
    corrupted = clean.clone()
    corrupted[rows, at] = spare
    wrong_at = torch.where(at > 2, 1, LENGTH - 3)
    return clean, corrupted, clean[rows, at + 1], clean[rows, wrong_at]


def _layer(draw) -> Layer:
    one, zero = torch.ones(WIDTH, dtype=torch.float64), torch.zeros(WIDTH, dtype=torch.float64)
    inner = HEADS * VOCAB
    return Layer(
        norm1=one, norm1_bias=zero, w_qkv=draw(WIDTH, 3 * inner), b_qkv=draw(3 * inner),
        w_o=draw(inner, WIDTH), b_o=draw(WIDTH), norm2=one, norm2_bias=zero, w_gate=None, b_gate=None,
        w_up=draw(WIDTH, 32), b_up=draw(32), w_down=draw(32, WIDTH), b_down=draw(WIDTH),
    )  # fmt: skip


def _set(
    layers: list[Layer],
    head: tuple[int, int],
    query: tuple[slice, Tensor],
    key: slice,
    value: slice,
    out: slice,
) -> None:
    """Let a head compare ``query`` parts (after a map) with ``key`` parts and move ``value`` parts to ``out`` parts."""
    layer, index = layers[head[0]], head[1]
    part, mapping = query
    columns = [
        slice((i * HEADS + index) * VOCAB, (i * HEADS + index + 1) * VOCAB) for i in range(3)
    ]
    for column in columns:
        layer.w_qkv[:, column] = 0
        layer.b_qkv[column] = 0
    rows = columns[0]
    layer.w_o[rows] = 0
    size = mapping.shape[1]
    layer.w_qkv[part, rows.start : rows.start + size] = mapping.to(torch.float64)
    layer.w_qkv[key, columns[1].start : columns[1].start + size] = torch.eye(
        size, dtype=torch.float64
    )
    layer.w_qkv[value, columns[2]] = torch.eye(VOCAB, dtype=torch.float64)
    layer.w_o[rows, out] = torch.eye(VOCAB, dtype=torch.float64)


def _cast(weights: Weights, dtype: torch.dtype) -> None:
    for holder in (weights, *weights.layers):
        for name, value in vars(holder).items():
            if isinstance(value, Tensor):
                setattr(holder, name, value.to(dtype))
