"""The definition of a cross-layer transcoder: features that write the MLP outputs of their own and later layers.

::

    pre_l = x_l encoder_l' + encoder_bias_l          x_l: what layer l reads, `reads`
    a_l   = activation_l(pre_l)
    y_l   = sum_{s <= l} a_s decoder_{s -> l} + decoder_bias_l + x_l skip_l'

(Ameisen et al. 2025, "Circuit tracing", section 2). With decoders of kind ``per_layer`` only s = l is left, which is a
transcoder per layer (Dunefsky et al. 2024; with skip Paulo et al. 2025); with ``tied`` a feature writes one direction
to all its layers, scaled for each. Weights are in the scale of the model: statistics by which inputs and outputs were
normalised in training are folded into them (see `fold`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mechatlas.dictionaries.activations import Activation, JumpReLU, TopK
from mechatlas.dictionaries.sparse import decode_events
from mechatlas.io import UserError

DECODERS = ("cross", "per_layer", "tied")
READS = ("resid_mid", "mlp_in")
# Above this share of active features the dense product is faster than gathering rows (benchmarks: clt).
SPARSE_BELOW = 0.05


class CrossLayerTranscoder:
    """A cross-layer transcoder of a model of L layers and width d.

    Parameters
    ----------
    encoder : list of Tensor [F_l, d]
        For each layer a row for each feature.
    encoder_bias : list of Tensor [F_l]
    decoder : list of Tensor [F_l, T_l, d]
        What a feature of layer l writes to its T_l targets: L - l layers from l on if decoders are ``cross``, else 1.
    decoder_bias : list of Tensor [d]
    activation : list of ReLU, TopK or JumpReLU
        One for each layer. Thresholds are positive, as they are trained as logarithms.
    decoders : str
        One of `DECODERS`.
    target_scale : list of Tensor [F_l, L - l], optional
        Of ``tied`` decoders: by what the direction is multiplied for each target.
    skip : list of Tensor [d, d], optional
        Linear connection past the features, within each layer; ``[d_out, d_in]``.
    reads : str
        One of `READS`: the residual stream before the MLP, or what the MLP reads (after the norm).
    about : mapping, optional
        Where it belongs, as JSON values: ``model``, ``model_hash`` and whatever else is known.

    Raises
    ------
    UserError
        If shapes, dtypes or kinds do not fit each other.
    """

    def __init__(
        self,
        encoder: Sequence[Tensor],
        encoder_bias: Sequence[Tensor],
        decoder: Sequence[Tensor],
        decoder_bias: Sequence[Tensor],
        activation: Sequence[Activation],
        *,
        decoders: str = "cross",
        target_scale: Sequence[Tensor] | None = None,
        skip: Sequence[Tensor] | None = None,
        reads: str = "resid_mid",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.encoder, self.encoder_bias = list(encoder), list(encoder_bias)
        self.decoder, self.decoder_bias = list(decoder), list(decoder_bias)
        self.activation, self.decoders, self.reads = list(activation), decoders, reads
        self.target_scale = None if target_scale is None else list(target_scale)
        self.skip = None if skip is None else list(skip)
        self.about = dict(about or {})
        _check(self)

    @property
    def n_layers(self) -> int:
        """Number of layers L."""
        return len(self.encoder)

    @property
    def d_model(self) -> int:
        """Width d."""
        return self.encoder[0].shape[1]

    @property
    def n_features(self) -> list[int]:
        """Features of each layer."""
        return [len(rows) for rows in self.encoder]

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return self.encoder[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder[0].device

    def sources(self, layer: int) -> range:
        """Return the layers whose features write to a layer."""
        return range(layer, layer + 1) if self.decoders == "per_layer" else range(layer + 1)

    def targets(self, layer: int) -> range:
        """Return the layers that the features of a layer write to."""
        last = layer + 1 if self.decoders == "per_layer" else self.n_layers
        return range(layer, last)

    def pre_activations(self, x: Tensor, layer: int) -> Tensor:
        """Return pre-activations ``[..., F]`` of what a layer reads, ``[..., d]``."""
        return F.linear(x, self.encoder[layer], self.encoder_bias[layer])

    def encode(self, x: Tensor, layer: int) -> Tensor:
        """Return the features ``[..., F]`` of what a layer reads, ``[..., d]``."""
        return self.activation[layer](self.pre_activations(x, layer))

    def decoder_rows(self, layer: int, target: int, features: Tensor | None = None) -> Tensor:
        """Return what features (int64 [n], all by default) of a layer write to a target layer, ``[n, d]``."""
        features = slice(None) if features is None else features
        if self.decoders == "tied":
            scale = self.target_scale[layer][features, target - layer]
            return self.decoder[layer][features, 0] * scale[:, None]
        return self.decoder[layer][features, target - layer]

    def decode(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return what the features of all layers, ``[N, F]`` each, write to each layer, ``[N, d]``, with biases.

        The rows of active features are gathered where few are active, else the whole product is taken.
        """
        outputs = [bias.expand(len(features[0]), -1) for bias in self.decoder_bias]
        for layer, active in enumerate(features):
            for target, part in zip(self.targets(layer), self.written(active, layer), strict=True):
                outputs[target] = outputs[target] + part
        return outputs

    def written(self, active: Tensor, layer: int) -> list[Tensor]:
        """Return what a layer's features ``[N, F]`` write to each of its targets, ``[N, d]``, without biases."""
        if self.decoders == "tied":
            rows, scale = self.decoder[layer][:, 0], self.target_scale[layer]
            return [decode_layer(active * column, rows) for column in scale.unbind(1)]
        # One product for all targets, as the rows of a feature lie side by side.
        rows = self.decoder[layer]
        written = decode_layer(active, rows.flatten(1)).unflatten(1, rows.shape[1:])
        return list(written.unbind(1))

    def skipped(self, x: Tensor, layer: int) -> Tensor | None:
        """Return what the skip connection adds to a layer's output given what it reads; None if there is none."""
        return None if self.skip is None else F.linear(x, self.skip[layer])

    def reconstruct(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the MLP outputs ``[N, d]`` of all layers from what they read, ``[N, d]`` each."""
        outputs = self.decode([self.encode(x, layer) for layer, x in enumerate(inputs)])
        if self.skip is None:
            return outputs
        return [
            y + self.skipped(x, i) for i, (y, x) in enumerate(zip(outputs, inputs, strict=True))
        ]

    def decoder_norms(self, layer: int) -> Tensor:
        """Return for each feature of a layer the norm of all that it writes, ``[F]``."""
        norms = self.decoder[layer].flatten(1).norm(dim=1)
        return norms * self.target_scale[layer].norm(dim=1) if self.decoders == "tied" else norms

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> CrossLayerTranscoder:
        """Return the transcoder with its tensors on a device and in a dtype; unchanged tensors are shared."""

        def moved(tensors: Sequence[Tensor] | None) -> list[Tensor] | None:
            return tensors and [x.to(device=device, dtype=dtype) for x in tensors]

        activation = [
            JumpReLU(*moved([a.threshold])) if isinstance(a, JumpReLU) else a
            for a in self.activation
        ]
        return CrossLayerTranscoder(
            moved(self.encoder), moved(self.encoder_bias), moved(self.decoder),
            moved(self.decoder_bias), activation, decoders=self.decoders,
            target_scale=moved(self.target_scale), skip=moved(self.skip), reads=self.reads,
            about=self.about,
        )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by its name in our files, such as ``encoder.3``."""
        parts = {
            "encoder": self.encoder,
            "encoder_bias": self.encoder_bias,
            "decoder": self.decoder,
            "decoder_bias": self.decoder_bias,
            "threshold": [a.threshold for a in self.activation if isinstance(a, JumpReLU)],
            "target_scale": self.target_scale or (),
            "skip": self.skip or (),
        }
        return {f"{name}.{i}": x for name, values in parts.items() for i, x in enumerate(values)}

    @property
    def label(self) -> str:
        """What messages call it."""
        of = f" of {self.about['model']}" if "model" in self.about else ""
        return f"the {'cross-layer ' if self.decoders != 'per_layer' else ''}transcoder{of}"


def decode_layer(active: Tensor, rows: Tensor) -> Tensor:
    """Return ``active [N, F] @ rows [F, n]``, from the non-zero entries alone where they are few."""
    events = active.nonzero() if active.device.type == "cpu" else None
    if events is None or len(events) > SPARSE_BELOW * active.numel():
        return active @ rows
    token, feature = events.unbind(1)
    return decode_events(token, feature, active[token, feature], rows, len(active))


@dataclass(frozen=True)
class LayerScales:
    """How inputs and outputs of each layer were normalised in training: ``(x - mean) * scale``.

    Attributes
    ----------
    input_mean, output_mean : Tensor [L, d]
    input_scale, output_scale : Tensor [L]
    """

    input_mean: Tensor
    input_scale: Tensor
    output_mean: Tensor
    output_scale: Tensor


def fold(clt: CrossLayerTranscoder, scales: LayerScales) -> CrossLayerTranscoder:
    """Return the transcoder on raw inputs and outputs that equals ``clt`` on normalised ones.

    Features keep their pre-activations, so thresholds stay. Decoders are divided by the scale of the layer written to.
    """
    layers, tied = range(clt.n_layers), clt.decoders == "tied"
    encoder = [clt.encoder[i] * scales.input_scale[i] for i in layers]
    bias = [clt.encoder_bias[i] - encoder[i] @ scales.input_mean[i] for i in layers]
    per_target = [1 / scales.output_scale[list(clt.targets(i))] for i in layers]
    out = [clt.decoder_bias[i] / scales.output_scale[i] + scales.output_mean[i] for i in layers]
    skip = None
    if clt.skip is not None:
        skip = [clt.skip[i] * (scales.input_scale[i] / scales.output_scale[i]) for i in layers]
        out = [out[i] - skip[i] @ scales.input_mean[i] for i in layers]
    return CrossLayerTranscoder(
        encoder,
        bias,
        clt.decoder if tied else [clt.decoder[i] * per_target[i][:, None] for i in layers],
        out,
        clt.activation,
        decoders=clt.decoders,
        target_scale=[clt.target_scale[i] * per_target[i] for i in layers] if tied else None,
        skip=skip,
        reads=clt.reads,
        about=clt.about,
    )


def check_model(clt: CrossLayerTranscoder, n_layers: int, d_model: int, model_hash: str) -> None:
    """Raise `UserError` if the transcoder is not of a model of this shape and, where it says, these weights."""
    if (clt.n_layers, clt.d_model) != (n_layers, d_model):
        raise UserError(
            f"{clt.label} has {clt.n_layers} layers of width {clt.d_model}, the model {n_layers} of width {d_model}; "
            "give the transcoder of this model"
        )
    known = clt.about.get("model_hash")
    if known and model_hash and known != model_hash:
        raise UserError(
            f"{clt.label} was trained on other weights ({known[:12]}..., not {model_hash[:12]}...); "
            "train it again on this model"
        )


def _check(clt: CrossLayerTranscoder) -> None:
    for key, allowed in (("decoders", DECODERS), ("reads", READS)):
        if getattr(clt, key) not in allowed:
            raise UserError(
                f"{clt.label}: {key} is {getattr(clt, key)!r}; it must be one of {', '.join(allowed)}"
            )
    if not clt.encoder:
        raise UserError(f"{clt.label} has no layers")
    if (clt.decoders == "tied") != (clt.target_scale is not None):
        raise UserError(
            f"{clt.label}: decoders {clt.decoders} and target scales do not fit each other"
        )
    wanted = _shapes(clt)
    for name, tensor in clt.tensors().items():
        if tuple(tensor.shape) != wanted.pop(name, None):
            raise UserError(
                f"{clt.label}: {name} has shape {list(tensor.shape)}, which does not fit {clt.n_layers} layers of "
                f"width {clt.d_model} with decoders {clt.decoders}; save the transcoder again"
            )
        if (tensor.dtype, tensor.device) != (clt.dtype, clt.device):
            raise UserError(
                f"{clt.label}: {name} is {tensor.dtype} on {tensor.device}, not as encoder.0"
            )
        if name.startswith("threshold") and not bool((tensor >= 0).all()):
            raise UserError(
                f"{clt.label}: {name} has values below 0; thresholds must not be negative"
            )
    if wanted:
        raise UserError(f"{clt.label} lacks {', '.join(wanted)}")
    for layer, activation in enumerate(clt.activation):
        if isinstance(activation, TopK) and not 0 < activation.k <= clt.n_features[layer]:
            raise UserError(
                f"{clt.label}: k is {activation.k}, but layer {layer} has {clt.n_features[layer]} features"
            )


def _shapes(clt: CrossLayerTranscoder) -> dict[str, tuple[int, ...]]:
    """Return the shape that every tensor must have, by its name."""
    d, shapes = clt.d_model, {}
    jumps = any(isinstance(a, JumpReLU) for a in clt.activation)
    for layer, n in enumerate(clt.n_features):
        width = len(clt.targets(layer))
        shapes |= {f"encoder.{layer}": (n, d), f"encoder_bias.{layer}": (n,)}
        shapes[f"decoder.{layer}"] = (n, 1 if clt.decoders == "tied" else width, d)
        shapes[f"decoder_bias.{layer}"] = (d,)
        if jumps:
            shapes[f"threshold.{layer}"] = (n,)
        if clt.target_scale is not None:
            shapes[f"target_scale.{layer}"] = (n, width)
        if clt.skip is not None:
            shapes[f"skip.{layer}"] = (d, d)
    return shapes
