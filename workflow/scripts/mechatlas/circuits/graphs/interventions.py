"""Runs of a prompt in which features are set, scaled or moved, to see what really follows.

What else may change is a choice:

=========  ==============================================================================================
attention  ``frozen``: patterns and norm scales are those of the prompt; ``free``: computed anew
mlps       ``constant``: only what the changed features write changes (direct effects)
           ``features``: all features follow what they now read, errors stay (the local replacement model)
           ``model``: the model's own MLPs follow, plus what the changed features write more or less
=========  ==============================================================================================

Edges predict (frozen, constant) exactly; (free, model) is the question that a researcher has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechatlas.circuits.graphs.run import LocalRun
from mechatlas.dictionaries.clt import CrossLayerTranscoder
from mechatlas.io import UserError
from mechatlas.models.hooks import Hook, Hooks

ATTENTION, MLPS, HOWS = ("frozen", "free"), ("constant", "features", "model"), ("set", "scale", "add")  # fmt: skip


@dataclass(frozen=True)
class Intervention:
    """A change of a feature.

    Attributes
    ----------
    layer, feature : int
    positions : int or slice
    value : float
    how : str
        ``set`` to the value, ``scale`` by it or ``add`` it.
    """

    layer: int
    feature: int
    positions: int | slice
    value: float
    how: str = "set"


@dataclass(frozen=True)
class Outcome:
    """What V variants of a run give.

    Attributes
    ----------
    read : list of Tensor [V, P, d]
        What the features of each layer read.
    final : Tensor [V, P, d]
        Normalised final residual.
    """

    read: list[Tensor]
    final: Tensor


@torch.inference_mode()
def intervene(
    run: LocalRun,
    variants: Sequence[Sequence[Intervention]],
    *,
    attention: str = "frozen",
    mlps: str = "features",
    constrained: range | Sequence[int] = (),
) -> Outcome:
    """Run a prompt once for each variant, all in one batch.

    Parameters
    ----------
    run : LocalRun
    variants : sequence of sequences of Intervention
        An empty one is the run itself.
    attention, mlps : str
        See the module's page.
    constrained : layers, optional
        Of ``features``: layers whose other features keep their values.

    Raises
    ------
    UserError
        If a choice does not exist, or an intervention names no feature or position of this run.
    """
    _check(run, variants, attention, mlps)
    return _Variants(run, variants, attention == "frozen", mlps, set(constrained)).outcome()


def intervention_hooks(clt: CrossLayerTranscoder, interventions: Sequence[Intervention]) -> Hooks:
    """Return hooks of an ordinary run, also of `mechatlas.models.sampling.sample` with a cache, that change features.

    As (free, model): the model's MLPs stay, plus what the changed features write more or less. Positions count in the
    whole sequence, so a slice without end also changes tokens that are yet to be written.

    Raises
    ------
    UserError
        If an intervention names no feature of the transcoder.
    """
    hooks = Hooks()
    for one in interventions:
        _check_feature(clt, one)
        read, write = _steering(clt, one)
        hooks.append_fwd(clt.reads, read, layers=one.layer)
        hooks.append_fwd("mlp_out", write, layers=clt.targets(one.layer), positions=one.positions)
    return hooks


def _steering(clt: CrossLayerTranscoder, one: Intervention) -> tuple[Hook, Hook]:
    change: list[Tensor] = []
    index = torch.tensor([one.feature], device=clt.device)

    def read(x: Tensor, layer: int) -> None:
        now = clt.encode(x.flatten(0, 1), layer)[:, one.feature].view(x.shape[:2])
        change[:] = [_changed(now, one) - now]

    def write(value: Tensor, layer: int) -> Tensor:
        return value + change[0][..., None] * clt.decoder_rows(one.layer, layer, index)[0]

    return read, write


def _changed(values: Tensor, one: Intervention) -> Tensor:
    if one.how == "set":
        return torch.full_like(values, one.value)
    return values * one.value if one.how == "scale" else values + one.value


class _Variants:
    """One batch; the hooks of its pass."""

    def __init__(
        self,
        run: LocalRun,
        variants: Sequence[Sequence[Intervention]],
        frozen: bool,
        mlps: str,
        constrained: set[int],
    ):
        self.run, self.variants, self.frozen, self.mlps = run, variants, frozen, mlps
        self.constrained = constrained
        self.x: Tensor | None = None
        self.read: list[Tensor] = []
        self.pending: dict[int, Tensor] = {}

    def outcome(self) -> Outcome:
        """Run the pass."""
        hooks = {
            "resid_pre": self._keep,
            "resid_mid": self._keep,
            "mlp_in": self._mlp_in,
            "mlp_out": self._mlp_out,
            "resid_post": self._keep,
        }
        if self.frozen:
            hooks |= {"attn_in": self._attn_in, "final_norm": self._final}
            hooks["pattern"] = lambda value, layer: self.run.pattern[layer].expand_as(value)
        tokens = self.run.tokens.expand(len(self.variants), -1)
        final = self.run.model.forward(tokens, hooks, logits=False)
        return Outcome(self.read, final)

    def _keep(self, value: Tensor, layer: int) -> None:
        self.x = value

    def _attn_in(self, value: Tensor, layer: int) -> Tensor:
        weights = self.run.model.weights.layers[layer]
        return self._norm(weights.norm1, weights.norm1_bias, self.run.attention_scale[layer])

    def _final(self, value: Tensor, layer: int) -> Tensor:
        weights = self.run.model.weights
        return self._norm(weights.final_norm, weights.final_norm_bias, self.run.final_scale)

    def _norm(self, weight: Tensor, bias: Tensor | None, scale: Tensor) -> Tensor:
        """Apply a norm with the scale of the prompt to the residuals at hand."""
        x = self.x
        if self.run.model.config.architecture == "gpt2":
            x = x - x.mean(-1, keepdim=True)
        x = x * scale * weight
        return x if bias is None else x + bias

    def _mlp_in(self, value: Tensor, layer: int) -> Tensor | None:
        weights = self.run.model.weights.layers[layer]
        if self.frozen:
            value = self._norm(weights.norm2, weights.norm2_bias, self.run.mlp_scale[layer])
        self.read.append(self.x if self.run.clt.reads == "resid_mid" else value)
        self._write(self._change(layer), layer)
        return value if self.frozen else None

    def _change(self, layer: int) -> Tensor | None:
        """Return how far a layer's features are from those that its MLP output contains, ``[V, P, F]``."""
        run, read = self.run, self.read[-1]
        here = [
            (variant, one)
            for variant, changes in enumerate(self.variants)
            for one in changes
            if one.layer == layer
        ]
        follows = self.mlps == "features" and layer not in self.constrained
        if not here and not follows:
            return None
        base = self._base(layer)
        if self.mlps == "model" or follows:
            now = run.clt.encode(read, layer)
            now[:, : run.bos] = 0
        else:
            now = base.expand(len(read), -1, -1).clone()
        contained = now.clone() if self.mlps == "model" else base
        for variant, one in here:
            place = now[variant, one.positions, one.feature]
            now[variant, one.positions, one.feature] = _changed(place, one)
        return now - contained

    def _base(self, layer: int) -> Tensor:
        """Return the features of a layer in the prompt's run, ``[P, F]``."""
        active, run = self.run.active, self.run
        here = active.layer == layer
        base = run.final.new_zeros(run.length, run.clt.n_features[layer])
        base[active.position[here], active.feature[here]] = active.value[here]
        return base

    def _write(self, change: Tensor | None, layer: int) -> None:
        if change is None:
            return
        written = self.run.clt.written(change.flatten(0, 1), layer)
        for target, part in zip(self.run.clt.targets(layer), written, strict=True):
            part = part.view(*change.shape[:2], -1)
            self.pending[target] = self.pending[target] + part if target in self.pending else part

    def _mlp_out(self, value: Tensor, layer: int) -> Tensor:
        run = self.run
        if self.mlps != "model":
            value = run.mlp_out[layer].expand_as(value)
            if run.clt.skip is not None:
                skipped = run.clt.skipped(self.read[layer] - run.read[layer], layer)
                skipped[:, : run.bos] = 0
                value = value + skipped
        more = self.pending.pop(layer, None)
        return value if more is None else value + more


def _check(
    run: LocalRun, variants: Sequence[Sequence[Intervention]], attention: str, mlps: str
) -> None:
    for key, value, allowed in (("attention", attention, ATTENTION), ("mlps", mlps, MLPS)):
        if value not in allowed:
            raise UserError(f"{key} is {value!r}; it must be one of {', '.join(allowed)}")
    for changes in variants:
        for one in changes:
            _check_one(run, one)


def _check_feature(clt: CrossLayerTranscoder, one: Intervention) -> None:
    if one.how not in HOWS:
        raise UserError(f"how is {one.how!r}; it must be one of {', '.join(HOWS)}")
    if not 0 <= one.layer < clt.n_layers or not 0 <= one.feature < clt.n_features[one.layer]:
        raise UserError(
            f"feature {one.feature} of layer {one.layer} does not exist in {clt.label} of {clt.n_layers} layers"
        )


def _check_one(run: LocalRun, one: Intervention) -> None:
    _check_feature(run.clt, one)
    length, positions = run.length, one.positions
    if isinstance(positions, slice):
        positions = range(length)[positions]
        inside = not positions or min(positions) >= run.bos
    else:
        inside = run.bos <= positions < length
    if not inside:
        raise UserError(
            f"position {one.positions} has no features: the prompt has {length} tokens, features from {run.bos} on"
        )
