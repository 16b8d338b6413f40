"""Training of one sparse autoencoder or transcoder of a layer, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mechatlas.dictionaries.activations import JumpReLU, ReLU, TopK
from mechatlas.dictionaries.adam import Adam
from mechatlas.dictionaries.autoencoder import SparseAutoencoder
from mechatlas.dictionaries.schedule import ramp, rate_share
from mechatlas.dictionaries.settings import TrainingSettings
from mechatlas.dictionaries.sparse import (
    SPARSE_BELOW,
    decode_events,
    encode_events,
    select_batch_topk,
    select_topk,
)
from mechatlas.dictionaries.straight_through import jump_relu
from mechatlas.dictionaries.straight_through import step as step_function
from mechatlas.dictionaries.stream import ActivationStream, Place
from mechatlas.io import UserError, rng_for, seed_for

FIRST_THRESHOLD = 0.1
STATISTICS_BATCHES = 32
#: Share of the mean norm of living encoder rows that a resampled one starts with (Bricken et al. 2023).
RESAMPLED_NORM = 0.2
#: How fast the threshold of batchtopk follows the smallest kept activation of a batch.
THRESHOLD_RATE = 0.01


@dataclass(frozen=True)
class Scaling:
    """Means and one factor for the inputs and targets, so that E|x - mean|^2 factor^2 = d.

    Attributes
    ----------
    mean_in, mean_out : Tensor [d_in], [d_out]
    factor_in, factor_out : float
    """

    mean_in: Tensor
    mean_out: Tensor
    factor_in: float
    factor_out: float


def measure_scaling(stream: ActivationStream, reads: Place, writes: Place) -> Scaling:
    """Measure the scaling over an epoch of a stream, or over its first batches if it is longer.

    Raises
    ------
    UserError
        If the activations are constant.
    """
    batches = min(STATISTICS_BATCHES, -(-stream.tokens_per_epoch // stream.batch_tokens))
    sums: dict[Place, list[Tensor]] = {}
    for number in range(batches):
        for place, x in stream.batch(number).items():
            x = x.double()
            sums.setdefault(place, []).append(torch.stack([x.sum(0), x.square().sum(0)]))
    count = batches * stream.batch_tokens

    def moments(place: Place) -> tuple[Tensor, float]:
        first, second = torch.stack(sums[place]).sum(0) / count
        variance = float((second - first.square()).clamp_min(0).sum())
        if variance <= 0:
            raise UserError(
                f"activations of {place[0]} in layer {place[1]} are constant; nothing to learn"
            )
        return first.float(), (len(first) / variance) ** 0.5

    (mean_in, factor_in), (mean_out, factor_out) = moments(reads), moments(writes)
    return Scaling(mean_in, mean_out, factor_in, factor_out)


class SparseTrainer:
    """A dictionary in training (see `mechatlas.dictionaries.loop.Trainable`).

    Parameters
    ----------
    settings : TrainingSettings
    reads, writes : (point, layer)
        Equal for an autoencoder, different for a transcoder.
    scaling : Scaling

    Notes
    -----
    Everything inside is in scaled units; `result` gives the dictionary in those of the model.
    """

    metrics = ("loss", "fvu", "l0", "penalty", "dead_share", "learning_rate", "gradient_norm")

    def __init__(
        self, settings: TrainingSettings, reads: Place, writes: Place, scaling: Scaling
    ) -> None:
        self.settings, self.reads, self.writes, self.scaling = settings, reads, writes, scaling
        device = scaling.mean_in.device
        d_in, d_out, latents = len(scaling.mean_in), len(scaling.mean_out), settings.latents
        draw = torch.Generator().manual_seed(seed_for(settings.seed, "dictionary", *reads))
        decoder = F.normalize(torch.randn(latents, d_out, generator=draw), dim=-1)
        encoder = decoder.clone()
        if reads != writes:
            encoder = F.normalize(torch.randn(latents, d_in, generator=draw), dim=-1)
        tensors = {
            "encoder": encoder,
            "encoder_bias": torch.zeros(latents),
            "decoder": decoder,
            "decoder_bias": torch.zeros(d_out),
        }
        if settings.activation == "jumprelu":
            tensors["log_threshold"] = torch.full((latents,), FIRST_THRESHOLD).log()
        self.parameters = {n: t.to(device).requires_grad_() for n, t in tensors.items()}
        self.adam = Adam(self.parameters)
        #: Tokens since each latent was last active.
        self.silent = torch.zeros(latents, dtype=torch.int64, device=device)
        #: Running mean of the smallest activation that batchtopk keeps.
        self.threshold = torch.zeros(1, device=device)
        self.latest = torch.zeros(len(self.metrics))
        self._seen: dict[str, Tensor] = {}

    def loss(self, batch: Mapping[Place, Tensor], step: int) -> Tensor:
        """Return reconstruction error per value plus penalties, in scaled units."""
        x = (batch[self.reads] - self.scaling.mean_in) * self.scaling.factor_in
        y = (batch[self.writes] - self.scaling.mean_out) * self.scaling.factor_out
        if self.settings.activation in ("topk", "batchtopk"):
            output, penalty = self._sparse(x, y)
        else:
            output, penalty = self._dense(x, step)
        error = y - output
        self._seen |= {"x": x, "error": error.detach(), "penalty": penalty.detach()}
        variance = (y - y.mean(0)).square().sum()
        self._seen["fvu"] = error.detach().square().sum() / variance
        loss = error.square().mean() + penalty
        self._seen["loss"] = loss.detach()
        return loss

    def update(self, loss: Tensor, step: int) -> None:
        """Make one step of Adam, keep decoder rows at norm 1, count dead latents and resample them when due."""
        settings, decoder = self.settings, self.parameters["decoder"]
        loss.backward()
        with torch.no_grad():
            # A gradient along a row would only change its norm, which is taken back below.
            along = (decoder.grad * decoder).sum(-1, keepdim=True)
            decoder.grad.addcmul_(along, decoder, value=-1)
            norm = self.adam.clip(settings.clip_norm)
            rate = settings.learning_rate * rate_share(
                step, settings.steps, settings.warmup, settings.decay
            )
            self.adam.step(step + 1, rate)
            decoder.div_(decoder.norm(dim=-1, keepdim=True))
            self.silent += len(self._seen["x"])
            self.silent[self._seen["fired"]] = 0
            dead = self.silent >= settings.dead_tokens
            if settings.resamples_at(step) and bool(dead.any()):
                self._resample(dead.nonzero()[:, 0], step)
        seen = self._seen
        numbers = [seen["loss"], seen["fvu"], seen["l0"], seen["penalty"], dead.float().mean()]
        self.latest = torch.stack([n.float().cpu() for n in [*numbers, torch.tensor(rate), norm]])
        self._seen = {}

    def measure(self) -> Tensor:
        """Return the numbers of the latest step."""
        return self.latest

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, moments and counters."""
        state = {f"weight.{name}": p.detach() for name, p in self.parameters.items()}
        return state | self.adam.tensors() | {"silent": self.silent, "threshold": self.threshold}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over weights, moments and counters."""
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
        self.adam.load(tensors)
        self.silent.copy_(tensors["silent"])
        self.threshold.copy_(tensors["threshold"])

    def result(self, about: Mapping[str, Any]) -> SparseAutoencoder:
        """Return the trained dictionary for unscaled activations: the scaling is folded into the weights.

        Decoder rows keep norm 1, so that an activation is the length of what its latent writes.
        """
        weights = {name: p.detach().clone() for name, p in self.parameters.items()}
        scaling, autoencoder = self.scaling, self.reads == self.writes
        bias = weights["decoder_bias"] / scaling.factor_out + scaling.mean_out
        encoder = weights["encoder"] * (scaling.factor_in / scaling.factor_out)
        encoder_bias = weights["encoder_bias"] / scaling.factor_out
        if not autoencoder:
            encoder_bias = encoder_bias - encoder @ scaling.mean_in
        return SparseAutoencoder(
            encoder,
            encoder_bias,
            weights["decoder"],
            bias,
            self._activation(weights),
            subtract_bias=autoencoder,
            about={
                "layer": self.reads[1],
                "reads": self.reads[0],
                "writes": self.writes[0],
                **about,
            },
        )

    def _activation(self, weights: Mapping[str, Tensor]) -> ReLU | TopK | JumpReLU:
        settings, factor = self.settings, self.scaling.factor_out
        if settings.activation == "jumprelu":
            return JumpReLU(weights["log_threshold"].exp() / factor)
        if settings.activation == "batchtopk":
            return JumpReLU((self.threshold / factor).expand(settings.latents).clone())
        return TopK(settings.k) if settings.activation == "topk" else ReLU()

    def _encoder_input(self, x: Tensor) -> Tensor:
        return x - self.parameters["decoder_bias"] if self.reads == self.writes else x

    def _dense(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return outputs ``[N, d]`` and penalty of relu and jumprelu."""
        p, settings = self.parameters, self.settings
        weight = settings.weight * ramp(step, settings.steps, settings.ramp)
        pre = F.linear(self._encoder_input(x), p["encoder"], p["encoder_bias"])
        if settings.activation == "relu":
            z = torch.relu(pre)
            size = z if settings.penalty == "l1" else torch.tanh(settings.tanh_scale * z)
            # Per value of the activation, like the error.
            penalty = weight * size.sum(-1).mean() / x.shape[-1]
        else:
            threshold = p["log_threshold"].exp()
            z = jump_relu(pre, threshold, settings.bandwidth)
            l0 = step_function(pre, threshold, settings.bandwidth).sum(-1).mean()
            penalty = weight * (l0 / settings.k - 1).square()
        active = z.detach() > 0
        self._seen["fired"] = active.any(0)
        self._seen["l0"] = active.sum() / len(x)
        return z @ p["decoder"] + p["decoder_bias"], penalty

    def _sparse(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs ``[N, d]`` and auxiliary loss of topk and batchtopk."""
        p, settings = self.parameters, self.settings
        batchwise = settings.activation == "batchtopk"
        select = select_batch_topk(settings.k) if batchwise else select_topk(settings.k)
        inputs = self._encoder_input(x)
        tokens, latents, values = self._events(inputs, select)
        if batchwise and len(values):
            self.threshold.lerp_(values.detach().min()[None], THRESHOLD_RATE)
        fired = torch.zeros_like(self.silent, dtype=torch.bool)
        fired[latents] = True
        self._seen["fired"] = fired
        self._seen["l0"] = torch.tensor(len(values) / len(x))
        output = self._decode(tokens, latents, values, len(x)) + p["decoder_bias"]
        return output, settings.aux_weight * self._auxiliary(inputs, (y - output).detach())

    def _events(self, x: Tensor, select: Any) -> tuple[Tensor, Tensor, Tensor]:
        p, settings = self.parameters, self.settings
        if settings.k <= SPARSE_BELOW * settings.latents:
            return encode_events(x, p["encoder"], p["encoder_bias"], select)
        pre = F.linear(x, p["encoder"], p["encoder_bias"])
        tokens, latents = select(pre.detach())
        return tokens, latents, pre[tokens, latents]

    def _decode(self, tokens: Tensor, latents: Tensor, values: Tensor, n_tokens: int) -> Tensor:
        decoder, settings = self.parameters["decoder"], self.settings
        if settings.k <= SPARSE_BELOW * settings.latents:
            return decode_events(tokens, latents, values, decoder, n_tokens)
        z = values.new_zeros(n_tokens, settings.latents)
        return z.index_put((tokens, latents), values) @ decoder

    def _auxiliary(self, x: Tensor, error: Tensor) -> Tensor:
        """Return the error, relative to its size, of the dead latents' reconstruction of it (Gao et al. 2024, A.2)."""
        p = self.parameters
        dead = (self.silent >= self.settings.dead_tokens).nonzero()[:, 0]
        if len(dead) == 0 or self.settings.aux_weight == 0:
            return error.new_zeros(())
        pre = F.linear(x, p["encoder"][dead], p["encoder_bias"][dead])
        # As many as half the width, which they recommend.
        values, chosen = pre.topk(min(len(dead), max(1, error.shape[-1] // 2)), dim=-1)
        z = torch.zeros_like(pre).scatter(-1, chosen, torch.relu(values))
        size = error.square().mean().clamp_min(1e-12)
        return (error - z @ p["decoder"][dead]).square().mean() / size

    def _resample(self, dead: Tensor, step: int) -> None:
        """Point dead latents at the errors of tokens drawn with probability proportional to their squared loss."""
        p, seen = self.parameters, self._seen
        loss = seen["error"].square().sum(-1).double().cpu().numpy()
        if not loss.sum() > 0:
            return
        rng = rng_for(self.settings.seed, "resample", *self.reads, step)
        weights = loss**2 / (loss**2).sum()
        possible = int((weights > 0).sum())
        dead = dead[: min(len(dead), possible)]
        drawn = torch.from_numpy(rng.choice(len(loss), len(dead), replace=False, p=weights))
        drawn = drawn.to(dead.device)
        directions = F.normalize(seen["error"][drawn], dim=-1)
        alive = self.silent < self.settings.dead_tokens
        norm = p["encoder"][alive].norm(dim=-1).mean() if bool(alive.any()) else 1.0
        read = directions if self.reads == self.writes else F.normalize(seen["x"][drawn], dim=-1)
        p["decoder"][dead] = directions
        p["encoder"][dead] = RESAMPLED_NORM * norm * read
        p["encoder_bias"][dead] = 0
        if "log_threshold" in p:
            p["log_threshold"][dead] = torch.tensor(FIRST_THRESHOLD).log().to(dead.device)
        for moments in (self.adam.first, self.adam.second):
            for name in p.keys() - {"decoder_bias"}:
                moments[name][dead] = 0
        self.silent[dead] = 0
