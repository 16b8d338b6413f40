"""Causal checks of latents: what the model loses without one, what a program brings back, and what steering promotes.

Ablation takes a latent's contribution, activation times decoder direction, out of the activation that the dictionary
writes; replacement puts the activation that a program predicts in its place (the "ablate-to-simulation" that Bills et
al. 2023 name). Steering adds the direction at all tokens with the strength at which the mean divergence of next-token
distributions, KL(model || steered), reaches a given size, so that latents are compared at equal force.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mechatlas.dictionaries.autoencoder import SparseAutoencoder
from mechatlas.dictionaries.clt_layers import target_parts
from mechatlas.dictionaries.normalisation import Normalisation
from mechatlas.models.transformer import Transformer

#: How near to the wanted divergence the strength is sought, and in how many steps.
TOLERANCE, STEPS = 0.05, 12
#: Windows whose residuals are kept, at most.
POOL = 512


@dataclass(frozen=True)
class Edit:
    """A change of one latent on one window of the pool.

    Attributes
    ----------
    row : int
        Place in the pool.
    direction : int
        Latent whose decoder direction is added.
    amount : float32 [T]
        How much of it, in units of activation, at each token.
    """

    row: int
    direction: int
    amount: np.ndarray


class LayerRunner:
    """Runs a model from one layer on, with changes in what a dictionary writes there.

    Parameters
    ----------
    model : Transformer
    sae : SparseAutoencoder
        With ``reads`` and ``writes`` in `about`.
    layer : int
    tokens : int64 [W, T]
        The pool of windows.
    batch_windows : int
    """

    def __init__(
        self,
        model: Transformer,
        sae: SparseAutoencoder,
        layer: int,
        tokens: np.ndarray,
        batch_windows: int,
    ) -> None:
        self.model, self.sae, self.layer, self.batch = model, sae, layer, batch_windows
        self.writes = sae.about.get("writes") or sae.about["reads"]
        self.tokens = torch.from_numpy(np.asarray(tokens, np.int64)).to(model.device)
        self.residuals = self._residuals()

    @torch.inference_mode()
    def losses(self, edits: Sequence[Edit]) -> np.ndarray:
        """Return the loss of every edit, summed over its window's predicted tokens: float64 [n], in nats."""
        found = []
        for first in range(0, len(edits), self.batch):
            part = edits[first : first + self.batch]
            rows = torch.tensor([edit.row for edit in part], device=self.model.device)
            amounts = torch.from_numpy(np.stack([edit.amount for edit in part]))
            latents = torch.tensor([edit.direction for edit in part], device=self.sae.device)
            directions = self.sae.decoder[latents][:, None]
            hook = self._adding(amounts.to(self.model.device)[..., None], directions)
            losses = self.model.losses(
                self.tokens[rows], hook, resume=(self.layer, self.residuals[rows])
            )
            found.append(losses.double().sum(1).cpu().numpy())
        return np.concatenate(found) if found else np.zeros(0)

    @torch.inference_mode()
    def log_probabilities(self, direction: Tensor | None, strength: float = 0.0) -> Tensor:
        """Return next-token log-probabilities at all tokens but BOS, [W (T - 1), V], with a direction added there."""
        found = []
        for first in range(0, len(self.tokens), self.batch):
            part = slice(first, first + self.batch)
            hook = None
            if direction is not None:
                amounts = torch.full(self.tokens[part].shape, strength, device=self.model.device)
                amounts[:, 0] = 0
                hook = self._adding(amounts[..., None], direction[None, None])
            logits = self.model.forward(
                self.tokens[part], hook, resume=(self.layer, self.residuals[part])
            )
            found.append(logits[:, 1:].flatten(0, 1).float().log_softmax(-1))
        return torch.cat(found)

    def _adding(self, amounts: Tensor, directions: Tensor) -> dict:
        """Return hooks that add ``amounts [B, T, 1] x directions [B or 1, 1, d]`` to what the dictionary writes."""
        normalisation, parts = (
            self.sae.normalisation,
            target_parts(self.sae, directions, self.layer),
        )

        def add(value: Tensor, at: int) -> Tensor | None:
            if at not in parts:
                return None
            flat = value.flatten(2)
            change = amounts * output_scale(normalisation, flat) * parts[at]
            return (flat + change.to(value.dtype)).view(value.shape)

        return {self.writes: add}

    @torch.inference_mode()
    def _residuals(self) -> Tensor:
        """Return the residual before the layer, [W, T, d]."""
        kept: list[Tensor] = []

        def keep(value: Tensor, at: int) -> None:
            if at == self.layer:
                kept.append(value)

        for part in self.tokens.split(self.batch):
            self.model.forward(part, {"resid_pre": keep}, logits=False)
        return torch.cat(kept)


def output_scale(normalisation: Normalisation, x: Tensor) -> Tensor | float:
    """Return by what a dictionary multiplies its decoder's output, [B, T, 1] or 1."""
    if normalisation.kind == "layer_norm":
        return x.std(-1, keepdim=True)
    if normalisation.kind == "unit_norm":
        return x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    return 1.0


@dataclass(frozen=True)
class Steered:
    """What steering at a given divergence does.

    Attributes
    ----------
    strength : float
        In units of activation; NaN if the divergence was not reached.
    divergence : float
        Mean KL(model || steered) in nats.
    shift : float32 [V]
        Mean change of each token's log-probability.
    reason : str
        Why there is no result.
    """

    strength: float
    divergence: float
    shift: np.ndarray
    reason: str = ""


def steer_to(
    runner: LayerRunner, base: Tensor, direction: Tensor, divergence: float, start: float
) -> Steered:
    """Find the strength at which steering along a direction has a mean divergence, and what it does then.

    Parameters
    ----------
    runner : LayerRunner
        Its pool are the windows on which the mean is taken.
    base : Tensor [N, V]
        Log-probabilities of the model itself.
    direction : Tensor [d]
    divergence : float
        KL(model || steered) in nats per token.
    start : float
        First strength that is tried.

    Notes
    -----
    The divergence grows with the square of small strengths, so the strength is multiplied by the root of the missing
    factor, at most 4 at a time, and bisected once the wanted size lies between two tries.
    """
    probabilities = base.exp()
    low, high, strength = 0.0, np.inf, max(start, 1e-3)
    steered, found = base, float("nan")
    for _ in range(STEPS):
        steered = runner.log_probabilities(direction, strength)
        found = float((probabilities * (base - steered)).sum(-1).mean())
        if not np.isfinite(found):
            high = strength
        elif abs(found - divergence) <= TOLERANCE * divergence:
            shift = (steered - base).mean(0).float().cpu().numpy()
            return Steered(strength, found, shift)
        elif found < divergence:
            low = strength
        else:
            high = strength
        factor = np.clip(np.sqrt(divergence / found), 0.25, 4.0) if found > 0 else 4.0
        guess = strength * factor
        inside = low < guess < high
        strength = guess if inside else (low + min(high, 4 * max(low, strength))) / 2
    reason = (
        f"the divergence is {found:.3g} nats at strength {strength:.3g} instead of {divergence:g}"
    )
    return Steered(float("nan"), found, np.zeros(base.shape[-1], np.float32), reason)


def direct_logits(
    model: Transformer, sae: SparseAutoencoder, latent: int, layer: int
) -> np.ndarray | None:
    """Return what a latent's direction adds to each logit when nothing else reacts, float32 [V], mean removed.

    None if what the dictionary writes does not reach the residual stream by a linear map.
    """
    writes = sae.about.get("writes") or sae.about["reads"]
    # A feature of a transcoder writes to several layers, all by way of the residual stream.
    direction = torch.stack([*target_parts(sae, sae.decoder[latent], layer).values()]).sum(0)
    weights = model.weights
    if writes == "mlp_post":
        direction = direction @ weights.layers[layer].w_down
    elif writes == "z":
        direction = direction @ weights.layers[layer].w_o
    elif writes not in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"):
        return None
    if model.config.architecture == "gpt2":
        direction = direction - direction.mean()
    logits = model.unembed((direction * weights.final_norm).to(model.dtype)).float()
    return (logits - logits.mean()).cpu().numpy()


def promotion_bins(shift: np.ndarray, bins: int) -> np.ndarray:
    """Return for each token of the vocabulary a bin, by how much steering promotes it: int64 [V], equally many each.

    Parameters
    ----------
    shift : float [V]
    bins : int
    """
    rank = np.argsort(np.argsort(shift, kind="stable"), kind="stable")
    return rank * bins // len(shift)


def latent_windows(values: np.ndarray, order: np.ndarray, most: int) -> np.ndarray:
    """Return the first windows in an order on which a latent is active, at most so many: int64 [n]."""
    active = values.max(1) > 0
    return order[active[order]][:most]


def variants_edits(
    values: np.ndarray,
    predictions: Mapping[tuple[str, str], np.ndarray],
    rows: np.ndarray,
    latent: int,
) -> dict[tuple[str, str], list[Edit]]:
    """Return the edits of one latent: under ("", "ablated") it is taken out, else replaced by a prediction.

    Parameters
    ----------
    values : float32 [W, T]
        True activations on the pool.
    predictions : mapping
        (explainer, control) -> predicted activations, float32 [W, T].
    rows : int [n]
        Windows of the pool that are run.
    latent : int
    """
    edits = {("", "ablated"): [Edit(int(row), latent, -values[row]) for row in rows]}
    for variant, predicted in predictions.items():
        edits[variant] = [Edit(int(row), latent, predicted[row] - values[row]) for row in rows]
    return edits
