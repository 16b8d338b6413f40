"""One prompt's run, and the local replacement model that it defines.

In the local replacement model (Ameisen et al. 2025, "Circuit tracing", section 3) attention patterns and the scales of
all norms are those of the prompt, and each MLP output is what the transcoder's features write plus an error. What is
left between features is linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechatlas.circuits.traces import per_sigma
from mechatlas.dictionaries.clt import CrossLayerTranscoder, check_model
from mechatlas.io import UserError
from mechatlas.models.transformer import Transformer


@dataclass(frozen=True)
class Active:
    """Active features, sorted by layer, position, index; int64 [n] each, ``value [n]`` in the model's dtype."""

    layer: Tensor
    position: Tensor
    feature: Tensor
    value: Tensor

    def __len__(self) -> int:
        return len(self.layer)


@dataclass(frozen=True)
class LocalRun:
    """What a prompt of P tokens fixes, L layers, H heads.

    Attributes
    ----------
    model : Transformer
    clt : CrossLayerTranscoder
    tokens : int64 Tensor [P]
    bos : int
        Leading positions whose MLP outputs are constants: features there are not traced.
    pattern : list of Tensor [H, P, P]
    attention_scale, mlp_scale : list of Tensor [P, 1]
        By which the norms of a layer multiply.
    final_scale : Tensor [P, 1]
    read : list of Tensor [P, d]
        What the features of a layer read.
    mlp_out, error : list of Tensor [P, d]
        Outputs of the MLPs; what the transcoder leaves of them (0 at the leading positions).
    final : Tensor [P, d]
        Residual after the last layer.
    active : Active
    """

    model: Transformer
    clt: CrossLayerTranscoder
    tokens: Tensor
    bos: int
    pattern: list[Tensor]
    attention_scale: list[Tensor]
    mlp_scale: list[Tensor]
    final_scale: Tensor
    read: list[Tensor]
    mlp_out: list[Tensor]
    error: list[Tensor]
    final: Tensor
    active: Active

    @property
    def length(self) -> int:
        """Number of tokens P."""
        return len(self.tokens)

    def logits(self, position: int = -1) -> Tensor:
        """Return the model's logits at a position, ``[V]``."""
        weights = self.model.weights
        x = self.model.norm(self.final[position], weights.final_norm, weights.final_norm_bias)
        return self.model.unembed(x)


@torch.inference_mode()
def run_prompt(
    model: Transformer, clt: CrossLayerTranscoder, tokens: Tensor, *, bos: int = 1
) -> LocalRun:
    """Run the model on one prompt and find active features and errors.

    Parameters
    ----------
    model : Transformer
    clt : CrossLayerTranscoder
        Of the same dtype and device.
    tokens : int64 Tensor [P]
    bos : int
        Leading positions without features, 1 if the prompt begins with a BOS token.

    Raises
    ------
    UserError
        If the transcoder is not of this model, the prompt is empty, too long or has unknown tokens, or ``bos`` does not
        fit it.
    """
    _check(model, clt, tokens, bos)
    kept: dict[str, list[Tensor]] = {}

    def keep(point: str):
        return lambda value, layer: kept.setdefault(point, []).append(value[0])

    points = ("resid_pre", "pattern", "resid_mid", "mlp_in", "mlp_out", "resid_post")
    model.forward(tokens[None], {point: keep(point) for point in points}, logits=False)
    read, mlp_out = kept[clt.reads], kept["mlp_out"]
    features = [clt.encode(x, layer) for layer, x in enumerate(read)]
    for active in features:
        active[:bos] = 0
    written = clt.decode(features)
    if clt.skip is not None:
        written = [
            y + clt.skipped(x, i) for i, (y, x) in enumerate(zip(written, read, strict=True))
        ]
    error = [y - yhat for y, yhat in zip(mlp_out, written, strict=True)]
    for rest in error:
        rest[:bos] = 0
    return LocalRun(
        model=model,
        clt=clt,
        tokens=tokens,
        bos=bos,
        pattern=kept["pattern"],
        attention_scale=[per_sigma(model, x) for x in kept["resid_pre"]],
        mlp_scale=[per_sigma(model, x) for x in kept["resid_mid"]],
        final_scale=per_sigma(model, kept["resid_post"][-1]),
        read=read,
        mlp_out=mlp_out,
        error=error,
        final=kept["resid_post"][-1],
        active=_active(features),
    )


def _active(features: list[Tensor]) -> Active:
    found = [(layer, a, *a.nonzero(as_tuple=True)) for layer, a in enumerate(features)]
    return Active(
        torch.cat([torch.full_like(position, layer) for layer, _, position, _ in found]),
        torch.cat([position for _, _, position, _ in found]),
        torch.cat([feature for *_, feature in found]),
        torch.cat([a[position, feature] for _, a, position, feature in found]),
    )


def _check(model: Transformer, clt: CrossLayerTranscoder, tokens: Tensor, bos: int) -> None:
    config = model.config
    check_model(clt, config.n_layers, config.d_model, model.hash)
    if clt.dtype != model.dtype:
        raise ValueError(f"model ({model.dtype}) and transcoder ({clt.dtype}) differ in dtype")
    if tokens.ndim != 1 or not len(tokens):
        raise UserError("the prompt is empty; give at least one token")
    if len(tokens) > config.n_ctx:
        raise UserError(
            f"the prompt has {len(tokens)} tokens, more than the model's context of {config.n_ctx}; shorten it"
        )
    if int(tokens.min()) < 0 or int(tokens.max()) >= config.vocab_size:
        raise UserError(
            f"the prompt has a token outside the vocabulary of {config.vocab_size}; use this model's tokenizer"
        )
    if not 0 <= bos <= len(tokens):
        raise UserError(f"bos: {bos} leading positions do not fit a prompt of {len(tokens)} tokens")
