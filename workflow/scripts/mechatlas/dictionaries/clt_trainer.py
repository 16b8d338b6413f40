"""Training of a cross-layer transcoder, step by step (see `mechatlas.dictionaries.loop.Trainable`).

::

    loss = mean_l |y_l - yhat_l|^2 / d
           + sparsity(step) mean_l sum_i tanh(c |W_i| a_i) / d + preactivation mean_l sum_dead relu(t_i - h_i) |W_i| / d
           or, with a fixed number of active features, + aux_weight (what dead features leave of the error, relative)

|W_i| is the norm of everything that feature i writes (Ameisen et al. 2025, section 2; the loss for dead features after
Conerly et al. 2025, "Dictionary learning optimization techniques"; the auxiliary loss after Gao et al. 2024, A.2).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mechatlas.dictionaries.activations import Activation, JumpReLU, ReLU, TopK
from mechatlas.dictionaries.adam import Adam
from mechatlas.dictionaries.clt import CrossLayerTranscoder, LayerScales, fold
from mechatlas.dictionaries.clt_settings import CltSettings
from mechatlas.dictionaries.schedule import ramp, rate_share
from mechatlas.dictionaries.sparse import (
    SPARSE_BELOW,
    Select,
    decode_events,
    encode_events,
    kth_largest,
    select_topk,
)
from mechatlas.dictionaries.straight_through import jump_relu
from mechatlas.dictionaries.stream import ActivationStream, Place
from mechatlas.io import UserError, seed_for

logger = logging.getLogger("mechatlas")

STATISTICS_BATCHES = 64
CHECK_TOKENS = 8192  # of validation windows
THRESHOLD_RATE = 0.01  # how fast the threshold of batchtopk follows that of a batch
METRICS = ("loss", "fvu", "l0", "dead_share", "penalty", "learning_rate", "gradient_norm")


def clt_places(reads: str, n_layers: int) -> list[Place]:
    """Return the places whose activations training needs: what each layer reads, and its MLP's outputs."""
    return [(point, layer) for point in (reads, "mlp_out") for layer in range(n_layers)]


def measure_scales(stream: ActivationStream, reads: str, n_layers: int) -> LayerScales:
    """Measure means and scales of all layers over the first batches of a stream, at most an epoch.

    Raises
    ------
    UserError
        If the activations of a layer are constant.
    """
    batches = max(1, min(STATISTICS_BATCHES, stream.tokens_per_epoch // stream.batch_tokens))
    first: dict[Place, Tensor] = {}
    second: dict[Place, Tensor] = {}
    for number in range(batches):
        for place, x in stream.batch(number).items():
            x = x.double()
            first[place] = first.get(place, 0) + x.sum(0)
            second[place] = second.get(place, 0) + x.square().sum(0)
    count = batches * stream.batch_tokens
    parts = {}
    for point in (reads, "mlp_out"):
        mean = torch.stack([first[point, layer] for layer in range(n_layers)]) / count
        square = torch.stack([second[point, layer] for layer in range(n_layers)]) / count
        variance = (square - mean.square()).sum(1)
        if not bool((variance > 0).all()):
            layer = int((variance <= 0).nonzero()[0])
            raise UserError(
                f"activations of {point} in layer {layer} are constant; nothing to learn"
            )
        parts[point] = mean.float(), (mean.shape[1] / variance).sqrt().float()
    return LayerScales(*parts[reads], *parts["mlp_out"])


class CltTrainer:
    """A transcoder in training.

    Parameters
    ----------
    settings : CltSettings
    scales : LayerScales
        Of L layers.
    check : ActivationStream, optional
        Validation activations, for an early stop.
    check_every : int
        Steps between checks.

    Notes
    -----
    Everything inside is in scaled units; `result` gives the transcoder in those of the model.
    """

    metrics = METRICS

    def __init__(
        self,
        settings: CltSettings,
        scales: LayerScales,
        check: ActivationStream | None = None,
        check_every: int = 1000,
    ):
        self.settings, self.scales = settings, scales
        self.check, self.check_every = check, check_every
        self.n_layers, self.d = scales.input_mean.shape
        self.device = scales.input_mean.device
        self.parameters = self._initial()
        self.adam = Adam(self.parameters)
        self.silent = torch.zeros(
            self.n_layers, settings.features, dtype=torch.int64, device=self.device
        )
        self.threshold = torch.zeros(1, device=self.device)
        #: Lowest error on validation windows so far, and checks since then.
        self.best = torch.tensor([float("inf"), 0.0], dtype=torch.float64)
        self.latest = torch.zeros(self.n_layers, len(METRICS))
        self._seen: dict[str, Any] = {}

    @property
    def finished(self) -> bool:
        """Whether the error on validation windows has not improved for as many checks as the settings allow."""
        return 0 < self.settings.patience <= int(self.best[1])

    @property
    def dead(self) -> Tensor:
        """Which features are dead, bool [L, F]."""
        return self.silent >= self.settings.dead_tokens

    def loss(self, batch: Mapping[Place, Tensor], step: int) -> Tensor:
        """Return the loss of a batch."""
        inputs, targets = self.scaled(batch)
        half = self.settings.dtype == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            outputs, penalties = self._outputs(inputs, targets, step)
        errors = [y - out for y, out in zip(targets, outputs, strict=True)]
        squares = torch.stack([error.square().sum() for error in errors])
        variance = torch.stack([(y - y.mean(0)).square().sum() for y in targets])
        self._seen |= {"fvu": squares.detach() / variance, "penalty": penalties.detach()}
        self._seen["tokens"] = len(targets[0])
        loss = squares.sum() / (len(targets[0]) * self.d * self.n_layers) + penalties.mean()
        self._seen["loss"] = loss.detach()
        return loss

    def update(self, loss: Tensor, step: int) -> None:
        """Make one step of Adam and count how long features have been silent."""
        settings = self.settings
        loss.backward()
        with torch.no_grad():
            norm = self.adam.clip(settings.clip_norm)
            share = rate_share(step, settings.steps, settings.warmup, settings.decay)
            self.adam.step(step + 1, settings.learning_rate * share)
            self.silent += self._seen["tokens"]
            self.silent[self._seen["fired"]] = 0
        seen, one = self._seen, torch.ones(self.n_layers, device=self.device)
        columns = [
            *(seen["loss"] * one, seen["fvu"], seen["l0"], self.dead.float().mean(1)),
            *(seen["penalty"] * one, settings.learning_rate * share * one, norm * one),
        ]
        self.latest = torch.stack([column.float() for column in columns], 1)
        self._seen = {}
        if self.check is not None and (step + 1) % self.check_every == 0:
            fvu = self.validation_fvu(self.check)
            best, since = self.best.tolist()
            latest = [fvu, 0.0] if fvu < best else [best, since + 1]
            self.best[:] = torch.tensor(latest, dtype=self.best.dtype)
            logger.info("validation: %.4f of the variance unexplained", fvu)

    def measure(self) -> Tensor:
        """Return the numbers of the latest step, float32 [L, metrics]."""
        return self.latest

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, moments and counters."""
        state = {f"weight.{name}": p.detach() for name, p in self.parameters.items()}
        counters = {"silent": self.silent, "threshold": self.threshold, "best": self.best}
        return state | self.adam.tensors() | counters

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over weights, moments and counters."""
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
        self.adam.load(tensors)
        for name in ("silent", "threshold", "best"):
            getattr(self, name).copy_(tensors[name])

    def scaled(self, batch: Mapping[Place, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return scaled inputs and targets of all layers, ``[N, d]`` each."""
        s, reads = self.scales, self.settings.reads
        layers = range(self.n_layers)
        inputs = [(batch[reads, i] - s.input_mean[i]) * s.input_scale[i] for i in layers]
        targets = [(batch["mlp_out", i] - s.output_mean[i]) * s.output_scale[i] for i in layers]
        return inputs, targets

    def result(self, about: Mapping[str, Any]) -> CrossLayerTranscoder:
        """Return the transcoder for unscaled activations."""
        return fold(self._current(about), self.scales)

    @torch.no_grad()
    def validation_fvu(self, stream: ActivationStream) -> float:
        """Return the mean over layers of the fraction of variance unexplained on the first tokens of a stream."""
        clt = self._current({})
        tokens = min(CHECK_TOKENS, stream.tokens_per_epoch)
        batches = max(1, tokens // stream.batch_tokens)
        sums = torch.zeros(2, self.n_layers, dtype=torch.float64)
        for number in range(batches):
            inputs, targets = self.scaled(stream.batch(number))
            for layer, (y, out) in enumerate(zip(targets, clt.reconstruct(inputs), strict=True)):
                sums[0, layer] += (y - out).square().sum().double()
                sums[1, layer] += (y - y.mean(0)).square().sum().double()
        return float((sums[0] / sums[1]).mean())

    def _initial(self) -> dict[str, Tensor]:
        """Return new parameters: uniform, encoders within 1/sqrt(F), decoders within 1/sqrt(L d)."""
        settings, layers = self.settings, self.n_layers
        features, d = settings.features, self.d
        draw = torch.Generator().manual_seed(seed_for(settings.seed, "transcoder"))

        def uniform(*shape: int, bound: float) -> Tensor:
            return bound * (2 * torch.rand(*shape, generator=draw) - 1)

        made: dict[str, Tensor] = {}
        for layer in range(layers):
            width = layers - layer if settings.decoders == "cross" else 1
            made[f"encoder.{layer}"] = uniform(features, d, bound=features**-0.5)
            made[f"encoder_bias.{layer}"] = torch.zeros(features)
            made[f"decoder.{layer}"] = uniform(features, width, d, bound=(layers * d) ** -0.5)
            made[f"decoder_bias.{layer}"] = torch.zeros(d)
            if settings.decoders == "tied":
                made[f"target_scale.{layer}"] = torch.ones(features, layers - layer)
            if settings.activation == "jumprelu":
                first = torch.full((features,), settings.first_threshold)
                made[f"log_threshold.{layer}"] = first.log()
            if settings.skip:
                made[f"skip.{layer}"] = torch.zeros(d, d)
        return {name: p.to(self.device).requires_grad_() for name, p in made.items()}

    def _of(self, name: str) -> list[Tensor]:
        return [self.parameters[f"{name}.{layer}"] for layer in range(self.n_layers)]

    def _current(self, about: Mapping[str, Any]) -> CrossLayerTranscoder:
        """Return the transcoder of scaled activations."""
        settings = self.settings

        def copies(name: str) -> list[Tensor]:
            return [p.detach().clone() for p in self._of(name)]

        return CrossLayerTranscoder(
            copies("encoder"),
            copies("encoder_bias"),
            copies("decoder"),
            copies("decoder_bias"),
            [self._activation(layer) for layer in range(self.n_layers)],
            decoders=settings.decoders,
            target_scale=copies("target_scale") if settings.decoders == "tied" else None,
            skip=copies("skip") if settings.skip else None,
            reads=settings.reads,
            about=about,
        )

    def _activation(self, layer: int) -> Activation:
        kind = self.settings.activation
        if kind == "jumprelu":
            return JumpReLU(self.parameters[f"log_threshold.{layer}"].detach().exp())
        if kind == "batchtopk":
            return JumpReLU(self.threshold / self._norms(layer).detach().clamp_min(1e-12))
        return TopK(self.settings.k) if kind == "topk" else ReLU()

    def _norms(self, layer: int) -> Tensor:
        """Return the norm of all that each feature of a layer writes, ``[F]``."""
        norms = self.parameters[f"decoder.{layer}"].flatten(1).norm(dim=1)
        if self.settings.decoders == "tied":
            norms = norms * self.parameters[f"target_scale.{layer}"].norm(dim=1)
        return norms

    def _outputs(
        self, inputs: list[Tensor], targets: list[Tensor], step: int
    ) -> tuple[list[Tensor], Tensor]:
        """Return outputs ``[N, d]`` of all layers, and penalties ``[L]`` (one for all layers in the sparse case)."""
        outputs = [bias.expand_as(inputs[0]) for bias in self._of("decoder_bias")]
        if self.settings.skip:
            outputs = [
                out + F.linear(x, skip)
                for out, x, skip in zip(outputs, inputs, self._of("skip"), strict=True)
            ]
        if "topk" in self.settings.activation:
            # Gathered rows gain nothing from a short format, and a threshold in it would be too coarse.
            with torch.autocast(self.device.type, enabled=False):
                self._add_events(inputs, outputs)
            error = [(y - out).detach() for y, out in zip(targets, outputs, strict=True)]
            return outputs, self.settings.aux_weight * self._auxiliary(inputs, error)
        return outputs, self._add_dense(inputs, outputs, step)

    def _add_dense(self, inputs: list[Tensor], outputs: list[Tensor], step: int) -> Tensor:
        """Add what all features write to the outputs; return the penalties ``[L]``."""
        settings, dead = self.settings, self.dead
        weight = settings.sparsity * ramp(step, settings.steps, settings.ramp)
        penalties, counts, fired = [], [], []
        for layer, x in enumerate(inputs):
            pre = F.linear(x, *self._encoder(layer))
            if settings.activation == "jumprelu":
                threshold = self.parameters[f"log_threshold.{layer}"].exp()
                active = jump_relu(pre, threshold, settings.bandwidth)
            else:
                threshold, active = torch.zeros(1, device=pre.device), torch.relu(pre)
            self._write(layer, active, outputs)
            norms = self._norms(layer)
            size = torch.tanh(settings.tanh_scale * norms * active).sum(-1).mean()
            lacking = (torch.relu(threshold - pre) * norms)[:, dead[layer]].sum(-1).mean()
            penalties.append((weight * size + settings.preactivation * lacking) / self.d)
            on = active.detach() > 0
            fired.append(on.any(0))
            counts.append(on.sum() / len(x))
        self._seen |= {"fired": torch.stack(fired), "l0": torch.stack(counts)}
        return torch.stack(penalties)

    def _add_events(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Add what the selected features write to the outputs."""
        selects = self._selects(inputs)
        fired, counts = torch.zeros_like(self.silent, dtype=torch.bool), []
        for layer, (x, (select, pre)) in enumerate(zip(inputs, selects, strict=True)):
            tokens, features, values = encode_events(x, *self._encoder(layer), select, pre)
            shape = len(x), self.settings.features
            if len(values) <= SPARSE_BELOW * shape[0] * shape[1]:
                for first, rows, scale in self._rows(layer):
                    scaled = values if scale is None else values * scale[features]
                    part = decode_events(tokens, features, scaled, rows, len(x))
                    self._spread(part, first, outputs)
            else:
                active = values.new_zeros(shape).index_put((tokens, features), values)
                self._write(layer, active, outputs)
            fired[layer, features] = True
            counts.append(len(values) / len(x))
        self._seen |= {"fired": fired, "l0": torch.tensor(counts, device=self.device)}

    def _selects(self, inputs: list[Tensor]) -> list[tuple[Select, Tensor | None]]:
        """Return for each layer a function that selects features, and the pre-activations if that took them.

        The features of batchtopk compete over layers, too.
        """
        settings = self.settings
        if settings.activation == "topk":
            return [(select_topk(settings.k), None)] * self.n_layers
        with torch.no_grad():
            norms = [self._norms(layer) for layer in range(self.n_layers)]
            pres = [F.linear(x, *self._encoder(i)) for i, x in enumerate(inputs)]
            written = [(pre * norm).flatten() for pre, norm in zip(pres, norms, strict=True)]
            every = torch.cat(written).float()
            cut = kth_largest(every, settings.k * self.n_layers * len(inputs[0])).clamp_min(0)
            self.threshold.lerp_(cut[None], THRESHOLD_RATE if bool(self.threshold) else 1.0)

        def select(pre: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
            return ((pre * norm >= cut) & (pre > 0)).nonzero(as_tuple=True)

        return [
            (lambda pre, norm=norm: select(pre, norm), own)
            for norm, own in zip(norms, pres, strict=True)
        ]

    def _encoder(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.parameters[f"encoder.{layer}"], self.parameters[f"encoder_bias.{layer}"]

    def _rows(self, layer: int) -> list[tuple[int, Tensor, Tensor | None]]:
        """Return what the features of a layer write: first target, rows of it and the following ones, scales."""
        decoder = self.parameters[f"decoder.{layer}"]
        if self.settings.decoders != "tied":
            return [(layer, decoder.flatten(1), None)]
        scales = self.parameters[f"target_scale.{layer}"].unbind(1)
        return [(layer + i, decoder[:, 0], scale) for i, scale in enumerate(scales)]

    def _write(self, layer: int, active: Tensor, outputs: list[Tensor]) -> None:
        for first, rows, scale in self._rows(layer):
            self._spread((active if scale is None else active * scale) @ rows, first, outputs)

    def _spread(self, part: Tensor, first: int, outputs: list[Tensor]) -> None:
        """Add ``[N, T d]`` to the outputs of T layers from the first on."""
        for i, piece in enumerate(part.split(self.d, dim=1)):
            outputs[first + i] = outputs[first + i] + piece

    def _auxiliary(self, inputs: list[Tensor], errors: list[Tensor]) -> Tensor:
        """Return what dead features leave of the errors, relative to these, where there are dead features."""
        dead, zero = self.dead, inputs[0].new_zeros(())
        if self.settings.aux_weight == 0 or not bool(dead.any()):
            return zero[None]
        written = [torch.zeros_like(error) for error in errors]
        for layer, x in enumerate(inputs):
            index = dead[layer].nonzero()[:, 0]
            if len(index) == 0:
                continue
            pre = F.linear(x, *(part[index] for part in self._encoder(layer)))
            values, chosen = pre.topk(min(len(index), max(1, self.d // 2)), dim=-1)
            active = torch.zeros_like(pre).scatter(-1, chosen, torch.relu(values))
            for first, rows, scale in self._rows(layer):
                part = (active if scale is None else active * scale[index]) @ rows[index]
                self._spread(part, first, written)
        left = torch.stack([(e - w).square().sum() for e, w in zip(errors, written, strict=True)])
        whole = torch.stack([error.square().sum() for error in errors])
        return (left.sum() / whole.sum())[None]
