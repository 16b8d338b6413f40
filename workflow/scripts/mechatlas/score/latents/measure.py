"""Causal measurements of all explained latents, layer by layer, as tables by document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechatlas.capture.draws import hash_of
from mechatlas.dictionaries.autoencoder import SparseAutoencoder
from mechatlas.dictionaries.directions import random_directions
from mechatlas.explain.latents.data import Latent, LatentData
from mechatlas.explain.latents.programs import LatentProgram
from mechatlas.explain.vocabulary import TokenView
from mechatlas.io import seed_for
from mechatlas.models.transformer import Transformer
from mechatlas.score.latents.causal import (
    POOL,
    LayerRunner,
    Steered,
    direct_logits,
    latent_windows,
    promotion_bins,
    steer_to,
    variants_edits,
)
from mechatlas.score.latents.names import ABLATED, MODEL, RANDOM_DIRECTION, TRUE_ACTIVITY
from mechatlas.score.latents.tokens import calibrate

Variant = tuple[str, str]
#: Tokens of each sign that are listed.
LISTED = 10
#: Groups of the vocabulary, equally many tokens each, by how much steering promotes them.
BINS = 256


@dataclass(frozen=True)
class MeasureSettings:
    """How much is measured (config: latents).

    Attributes
    ----------
    causal_windows : int
        Test windows on which a latent is ablated and replaced, those on which it is active.
    steering_windows : int
        Test windows on which steering is measured.
    divergence : float
        KL(model || steered) to which strengths are matched, nats per token.
    batch_windows : int
    active_share : float
    seed : int
    """

    causal_windows: int
    steering_windows: int
    divergence: float
    batch_windows: int
    active_share: float
    seed: int


@dataclass
class LayerMeasures:
    """Tables of one layer.

    Attributes
    ----------
    losses : data frame
        layer, latent, explainer, variant, doc, loss (nats), tokens.
    steering : data frame
        layer, latent, control, strength, divergence, reason.
    promoted : data frame
        layer, latent, explainer, control, doc, following, others (counts by how much steering promotes the token).
    tokens : data frame
        layer, latent, kind ("direct" or "steered"), sign (1 or -1), rank, token, value.
    """

    losses: pd.DataFrame
    steering: pd.DataFrame
    promoted: pd.DataFrame
    tokens: pd.DataFrame


def measure_layer(
    model: Transformer,
    sae: SparseAutoencoder,
    data: LatentData,
    layer: int,
    programs: Mapping[Variant, Mapping[tuple[int, int], LatentProgram]],
    settings: MeasureSettings,
) -> LayerMeasures:
    """Measure the explained latents of one layer.

    Parameters
    ----------
    model : Transformer
    sae : SparseAutoencoder
        Of this layer.
    data : LatentData
    layer : int
    programs : mapping
        (explainer, control) -> (layer, latent) -> program.
    settings : MeasureSettings
    """
    work = _Layer(model, sae, data, layer, programs, settings)
    for latent in data.latents:
        if latent.layer == layer:
            work.measure(latent)
    return work.tables()


class _Layer:
    """The work on one layer."""

    def __init__(
        self,
        model: Transformer,
        sae: SparseAutoencoder,
        data: LatentData,
        layer: int,
        programs: Mapping[Variant, Mapping[tuple[int, int], LatentProgram]],
        settings: MeasureSettings,
    ) -> None:
        self.model, self.sae, self.data = model, sae, data
        self.layer, self.programs, self.settings = layer, programs, settings
        rows = data.rows("test")
        number = hash_of(seed_for(settings.seed, "causal windows"), rows["window"].to_numpy())
        #: Test windows in a random order, as rows of the split; the pool is the first of them.
        self.pool = np.argsort(number, kind="stable")[:POOL]
        tokens = data.view("test").tokens[self.pool]
        self.view = TokenView(tokens, data.vocabulary)
        self.documents = data.documents("test")[self.pool]
        self.runner = LayerRunner(model, sae, layer, tokens, settings.batch_windows)
        few = tokens[: settings.steering_windows]
        self.steerer = LayerRunner(model, sae, layer, few, settings.batch_windows)
        self.base = self.steerer.log_probabilities(None)
        width, count = sae.decoder.shape[1], len(data.latents)
        self.random = torch.from_numpy(
            random_directions(layer, count, width, seed_for(settings.seed, "steering"))
        ).to(sae.decoder)
        self.names, self.inverse = np.unique(self.documents, return_inverse=True)
        self.everywhere = np.ones(tokens.shape, dtype=bool)
        #: Length of the last direction that was steered by, times its strength: where the next search begins.
        self.force = 0.0
        self.model_loss: dict[int, float] = {}
        self.losses: list[pd.DataFrame] = []
        self.steering: list[dict[str, Any]] = []
        self.promoted: list[dict[str, Any]] = []
        self.tokens: list[dict[str, Any]] = []

    def measure(self, latent: Latent) -> None:
        key = (self.layer, latent.latent)
        values = self.data.values(latent, "test")[self.pool]
        mine = {variant: p[key] for variant, p in self.programs.items() if key in p}
        predictions = {variant: program.predict(self.view) for variant, program in mine.items()}
        self._replace(latent, values, predictions)
        largest = float(self.data.values(latent, "train").max())
        place = self.data.latents.index(latent)
        norm = self.sae.decoder[latent.latent].norm()
        own = self._steer(latent, self.sae.decoder[latent.latent], "none", largest)
        other = self._steer(latent, self.random[place] * norm, RANDOM_DIRECTION, largest)
        self._promote(latent, own, other, mine, predictions, values, largest)
        self._list(latent, own)

    def _replace(
        self, latent: Latent, values: np.ndarray, predictions: Mapping[Variant, np.ndarray]
    ) -> None:
        """Measure losses with the latent taken out, and with its activation replaced by predictions."""
        order = np.arange(len(values))
        rows = latent_windows(values, order, self.settings.causal_windows)
        if not len(rows):
            return
        edits = variants_edits(values, predictions, rows, latent.latent)
        flat = [edit for part in edits.values() for edit in part]
        losses = self.runner.losses(flat).reshape(len(edits), len(rows))
        found = {MODEL: self._model_losses(rows), **dict(zip(edits, losses, strict=True))}
        names, inverse = np.unique(self.documents[rows], return_inverse=True)
        tokens = np.bincount(inverse) * (values.shape[1] - 1)
        for (explainer, variant), loss in found.items():
            frame = pd.DataFrame(
                {"doc": names, "loss": np.bincount(inverse, loss), "tokens": tokens}
            )
            named = {"layer": self.layer, "latent": latent.latent, "explainer": explainer}
            self.losses.append(frame.assign(**named, variant=variant))

    def _model_losses(self, rows: np.ndarray) -> np.ndarray:
        new = [int(row) for row in rows if int(row) not in self.model_loss]
        nothing = np.zeros(self.view.shape[1], np.float32)
        edits = variants_edits(
            np.zeros((len(self.view.tokens), len(nothing)), np.float32), {}, np.array(new, int), 0
        )
        found = self.runner.losses(edits[ABLATED])
        self.model_loss |= dict(zip(new, found.tolist(), strict=True))
        return np.array([self.model_loss[int(row)] for row in rows])

    def _steer(
        self, latent: Latent, direction: torch.Tensor, control: str, start: float
    ) -> Steered:
        norm = max(float(direction.norm()), 1e-12)
        start = self.force / norm if self.force else start
        found = steer_to(self.steerer, self.base, direction, self.settings.divergence, start)
        strength = None if np.isnan(found.strength) else found.strength
        if strength is not None:
            self.force = strength * norm
        self.steering.append(
            {
                **{"layer": self.layer, "latent": latent.latent, "control": control},
                **{"strength": strength, "divergence": found.divergence, "reason": found.reason},
            }
        )
        return found

    def _promote(
        self,
        latent: Latent,
        own: Steered,
        other: Steered,
        programs: Mapping[Variant, LatentProgram],
        predictions: Mapping[Variant, np.ndarray],
        values: np.ndarray,
        largest: float,
    ) -> None:
        """Count which tokens follow where the latent is said to be active, by how much steering promotes them."""
        least = max(self.settings.active_share * largest, 1e-30)
        said = {("", TRUE_ACTIVITY): values >= least}
        validation = self.data.values(latent, "validation")[:, 1:]
        for variant, program in programs.items():
            predicted = program.predict(self.data.view("validation"))[:, 1:]
            said[variant] = (
                predictions[variant] >= calibrate(predicted, validation, least).threshold
            )
        if not own.reason:
            for (explainer, control), mask in said.items():
                self._count(latent, explainer, control, own.shift, mask)
        if not other.reason:
            for (explainer, control), mask in said.items():
                if control == "none":
                    self._count(latent, explainer, RANDOM_DIRECTION, other.shift, mask)

    def _count(
        self, latent: Latent, explainer: str, control: str, shift: np.ndarray, mask: np.ndarray
    ) -> None:
        bins = promotion_bins(shift, BINS)
        following, others = (self._following(bins, where) for where in (mask, self.everywhere))
        for place, document in enumerate(self.names):
            self.promoted.append(
                {
                    **{"layer": self.layer, "latent": latent.latent, "explainer": explainer},
                    **{"control": control, "doc": document},
                    **{"following": following[place], "others": others[place]},
                }
            )

    def _following(self, bins: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Count by document and bin the tokens that follow the marked ones (BOS never): int64 [documents, BINS]."""
        row, at = np.nonzero(mask[:, 1:-1])
        codes = self.inverse[row] * BINS + bins[self.view.tokens[row, at + 2]]
        counts = np.bincount(codes, minlength=len(self.names) * BINS)
        return counts.reshape(len(self.names), BINS)

    def _list(self, latent: Latent, own: Steered) -> None:
        direct = direct_logits(self.model, self.sae, latent.latent, self.layer)
        kinds = {"direct": direct, "steered": None if own.reason else own.shift}
        for kind, values in kinds.items():
            if values is None:
                continue
            order = np.argsort(-values, kind="stable")
            for sign, tokens in ((1, order[:LISTED]), (-1, order[::-1][:LISTED])):
                for rank, token in enumerate(tokens, 1):
                    named = {"layer": self.layer, "latent": latent.latent, "kind": kind}
                    shown = {"sign": sign, "rank": rank, "token": int(token)}
                    self.tokens.append(named | shown | {"value": float(values[token])})

    def tables(self) -> LayerMeasures:
        losses = pd.concat(self.losses, ignore_index=True) if self.losses else pd.DataFrame()
        return LayerMeasures(
            losses if losses.empty else losses[LOSS_COLUMNS],
            pd.DataFrame(self.steering),
            pd.DataFrame(self.promoted),
            pd.DataFrame(self.tokens),
        )


LOSS_COLUMNS = ["layer", "latent", "explainer", "variant", "doc", "loss", "tokens"]


def concatenated(parts: Sequence[LayerMeasures]) -> dict[str, pd.DataFrame]:
    """Return the tables of all layers by their names."""
    names = ("losses", "steering", "promoted", "tokens")
    tables = {}
    for name in names:
        frames = [getattr(part, name) for part in parts if not getattr(part, name).empty]
        tables[name] = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return tables
