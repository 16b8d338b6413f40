"""The replacement model: MLP outputs are what the transcoder writes, in the model's scale, maybe plus errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mechatlas.dictionaries.clt import CrossLayerTranscoder
from mechatlas.models.hooks import Hook, Hooks
from mechatlas.models.transformer import Transformer

Functions = dict[str, Hook]


def replacement_hooks(
    clt: CrossLayerTranscoder,
    *,
    positions: slice = slice(1, None),
    errors: Sequence[Tensor] | None = None,
) -> Functions:
    """Return hooks that put the transcoder in the place of all MLPs.

    Parameters
    ----------
    clt : CrossLayerTranscoder
    positions : slice
        Of the tokens of a pass; elsewhere the MLPs stay. By default all but the BOS token, on which transcoders are
        not trained.
    errors : list of Tensor [B, T, d], optional
        Added to the outputs of each layer at these positions, such as those of `reconstruction_errors`.

    Notes
    -----
    A pass must go through all layers in order. Features are encoded from the replaced run, so errors of early layers
    reach the features of later ones.
    """
    pending: dict[int, Tensor] = {}

    def read(x: Tensor, layer: int) -> None:
        kept = x[:, positions]
        flat = kept.reshape(-1, x.shape[-1])
        if layer == 0:
            pending.clear()
        written = clt.written(clt.encode(flat, layer), layer)
        for target, part in zip(clt.targets(layer), written, strict=True):
            pending[target] = pending[target] + part if target in pending else part
        skip = clt.skipped(flat, layer)
        own = pending.pop(layer) + clt.decoder_bias[layer]
        pending[layer] = (own if skip is None else own + skip).view(*kept.shape[:2], -1)

    def write(value: Tensor, layer: int) -> Tensor:
        value, output = value.clone(), pending.pop(layer)
        if errors is not None:
            output = output + errors[layer][:, positions]
        value[:, positions] = output
        return value

    return {clt.reads: read, "mlp_out": write}


def generation_hooks(clt: CrossLayerTranscoder, *, first: int = 1) -> Hooks:
    """Return hooks for `mechatlas.models.sampling.sample`: the replacement model, also with a cache.

    ``first`` is the first position, counted in the whole sequence, whose MLPs are replaced.
    """
    functions = replacement_hooks(clt, positions=slice(None))
    hooks = Hooks().append_fwd(clt.reads, functions[clt.reads])
    return hooks.append_fwd("mlp_out", functions["mlp_out"], positions=slice(first, None))


@torch.inference_mode()
def reconstruction_errors(
    model: Transformer, clt: CrossLayerTranscoder, tokens: Tensor
) -> list[Tensor]:
    """Return what the transcoder leaves of each MLP's output in the model's own run, ``[B, T, d]`` for each layer.

    With these errors the replacement model computes the logits of the model.
    """
    kept: dict[str, list[Tensor]] = {clt.reads: [], "mlp_out": []}
    hooks = {point: lambda x, layer, into=into: into.append(x) for point, into in kept.items()}
    model.forward(tokens, hooks, logits=False)
    flat = [x.flatten(0, 1) for x in kept[clt.reads]]
    return [
        y - yhat.view_as(y) for y, yhat in zip(kept["mlp_out"], clt.reconstruct(flat), strict=True)
    ]
