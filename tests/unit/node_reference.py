"""Slow references for the node level: one forward pass per change, written with hooks on the plain forward pass."""

from __future__ import annotations

import torch


def activations(model, tokens, point):
    """Return a hook point's value in every layer."""
    seen = {}
    model.forward(tokens, {point: lambda value, layer: seen.__setitem__(layer, value)})
    return seen


def removed_run(model, clean, corrupted, keep, kind):
    """Return the normalised final residual [N, d] with the nodes outside ``keep`` removed."""
    source = clean if kind == "mean_clean" else corrupted
    written = {}
    for point in ("z", "mlp_out"):
        for layer, value in activations(model, source, point).items():
            if kind == "zero":
                value = torch.zeros_like(value)
            elif kind != "resample":
                value = value.mean(0, keepdim=True).expand_as(value)
            written[point, layer] = value

    def z(value, layer):
        return torch.where(keep[layer, :-1][:, None], value, written["z", layer])

    def mlp_out(value, layer):
        return value if keep[layer, -1] else written["mlp_out", layer]

    return model.forward(clean, {"z": z, "mlp_out": mlp_out}, logits=False)[:, -1]


def patched_run(model, base, source, point, layer, unit, place):
    """Return the normalised final residual [N, d] of the base run with one activation of the source run."""
    new = activations(model, source, point)[layer]

    def hook(value, at):
        if at != layer:
            return None
        where = torch.zeros_like(value, dtype=torch.bool)
        if point == "pattern":
            where[:, unit] = place[:, :, None]
        elif value.ndim == 4:
            where[:, :, unit] = place[:, :, None]
        else:
            where[:] = place[:, :, None]
        return torch.where(where, new, value)

    return model.forward(base, {point: hook}, logits=False)[:, -1]


def logit_difference(model, x, answers, wrong):
    """Return the logit difference [N] from the whole vocabulary's logits."""
    logits, rows = model.unembed(x), torch.arange(len(x))
    return logits[rows, answers] - logits[rows, wrong]


def solved_pairs(model, pairs=5, length=9, seed=0, common=1):
    """Return random pairs that the model "solves": the answer is its most likely token, the wrong one its least."""
    generator = torch.Generator().manual_seed(seed)
    clean, other = torch.randint(
        0, model.config.vocab_size, (2, pairs, length), generator=generator
    )
    clean[:, :common] = clean[0, :common]
    corrupted = clean.clone()
    corrupted[:, [common + 1, common + 3]] = other[:, [common + 1, common + 3]]
    logits = model.forward(clean)[:, -1]
    return clean, corrupted, logits.argmax(1), logits.argmin(1)
