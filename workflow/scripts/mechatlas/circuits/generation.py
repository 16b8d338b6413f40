"""What removing heads does to generation: exact match of answers of several tokens.

Greedy generation gives exactly the answer if and only if every token of the answer is the most likely one after the
prompt and the tokens before it. So one forward pass over prompt and answer decides, whatever the answer's length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mechatlas.circuits.controls import random_circuits
from mechatlas.circuits.engine import rows_at_once
from mechatlas.models.transformer import LOGITS_PER_CHUNK, Transformer


@torch.inference_mode()
def exact_match(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    keeps: Tensor,
    *,
    means: Tensor | None = None,
) -> Tensor:
    """Return whether greedy generation gives each answer while heads are removed.

    Parameters
    ----------
    model : Transformer
    prompts, answers : sequence of token ids
        Of any lengths.
    keeps : bool Tensor [V, L, H]
        Heads that stay; the others write zero, or their mean.
    means : Tensor [L, H, dh], optional
        Mean output of every head over prompts and positions (`mean_outputs`).

    Returns
    -------
    bool Tensor [V, N]
    """
    out = torch.zeros(len(keeps), len(prompts), dtype=torch.bool)
    lengths = [(len(p), len(a)) for p, a in zip(prompts, answers, strict=True)]
    for length, steps in sorted(set(lengths)):
        rows = [i for i, found in enumerate(lengths) if found == (length, steps)]
        tokens = torch.tensor([[*prompts[i], *answers[i]] for i in rows], device=model.device)
        size = max(1, rows_at_once(model.device) // (tokens.numel() or 1))
        for part in torch.arange(len(keeps)).split(size):
            x = _final(model, tokens[:, :-1], keeps[part], means, steps)
            matched = _argmax(model, x) == tokens[:, length:]
            out[part[:, None], torch.tensor(rows)] = matched.all(-1).cpu()
    return out


def match_against_random(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    circuit: Tensor,
    *,
    seed: int,
    count: int = 50,
    means: Tensor | None = None,
) -> dict[str, float | None | list[float]]:
    """Compare removing a circuit's heads with removing random heads, as many in every layer.

    Returns
    -------
    dict
        Shares of exact answers: ``full`` (nothing removed), ``circuit``, ``random`` (of each random set), ``mean`` and
        ``min`` of those, and ``p``: share of sets (the circuit included) whose removal does at least as much harm.
    """
    removed = torch.cat([circuit[None], random_circuits(circuit, count, seed=seed)])[..., :-1]
    keeps = torch.cat([torch.ones_like(removed[:1]), ~removed])
    full, own, *random = (
        exact_match(model, prompts, answers, keeps, means=means).double().mean(1).tolist()
    )
    return {
        "full": full,
        "circuit": own,
        "mean": float(np.mean(random)) if random else None,
        "min": min(random, default=None),
        "p": (1 + sum(value <= own for value in random)) / (1 + len(random)),
        "random": random,
    }


@torch.inference_mode()
def mean_outputs(model: Transformer, tokens: Tensor, *, batch: int = 64) -> Tensor:
    """Return the mean z of every head over prompts ``[N, T]`` and positions, ``[L, H, dh]``."""
    config = model.config
    sums = torch.zeros(
        config.n_layers, config.n_heads, config.d_head, dtype=model.dtype, device=model.device
    )

    def add(value: Tensor, layer: int) -> None:
        sums[layer] += value.sum((0, 1))

    for part in tokens.to(model.device).split(batch):
        model.forward(part, {"z": add}, logits=False)
    return sums / tokens.numel()


@torch.inference_mode()
def generate(
    model: Transformer,
    tokens: Tensor,
    steps: int,
    *,
    keep: Tensor | None = None,
    means: Tensor | None = None,
) -> Tensor:
    """Continue prompts ``[N, T]`` greedily by ``steps`` tokens, ``[N, T + steps]``, with heads ``keep [L, H]`` left."""
    if keep is None:
        keep = torch.ones(model.config.n_layers, model.config.n_heads, dtype=torch.bool)
    tokens = tokens.to(model.device)
    for _ in range(steps):
        following = _argmax(model, _final(model, tokens, keep[None], means, 1))[0]
        tokens = torch.cat([tokens, following], dim=1)
    return tokens


def _final(
    model: Transformer, tokens: Tensor, keeps: Tensor, means: Tensor | None, steps: int
) -> Tensor:
    """Return the normalised final residuals of the last ``steps`` tokens, ``[V, N, steps, d]``."""
    gates = keeps.to(model.device).repeat_interleave(len(tokens), dim=0)
    first = int(keeps.all(-1).all(0).int().cumprod(0).sum())  # the first layer that lacks a head
    residuals: list[Tensor] = []
    if 0 < first < model.config.n_layers:  # up to there all are the same

        def keep(x: Tensor, layer: int) -> None:
            if layer == first:
                residuals.append(x.repeat(len(keeps), 1, 1))

        model.forward(tokens, {"resid_pre": keep}, logits=False)

    def gate(z: Tensor, layer: int) -> Tensor:
        replaced = 0 if means is None else means[layer]
        return torch.where(gates[:, layer, None, :, None], z, replaced)

    resume = (first, residuals[0]) if residuals else None
    every = tokens.repeat(len(keeps), 1)
    x = model.forward(every, {"z": gate}, logits=False, resume=resume)
    return x[:, -steps:].unflatten(0, (len(keeps), len(tokens)))


def _argmax(model: Transformer, x: Tensor) -> Tensor:
    """Return the most likely token after residuals ``[..., d]``, a bounded number of them at a time."""
    rows = x.flatten(0, -2).split(max(1, LOGITS_PER_CHUNK // model.config.vocab_size))
    return torch.cat([model.unembed(part).argmax(-1) for part in rows]).view(x.shape[:-1])
