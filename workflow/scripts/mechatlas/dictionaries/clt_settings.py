"""Settings of the training of a cross-layer transcoder (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from mechatlas.io import UserError

ACTIVATIONS = ("jumprelu", "relu", "topk", "batchtopk")
DECODERS = ("cross", "per_layer", "tied")
READS = ("resid_mid", "mlp_in")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class CltSettings:
    """What is trained, and how. Inputs and outputs of each layer are scaled to mean 0 and E|x|^2 = d before.

    Attributes
    ----------
    features : int
        Of each layer.
    activation : str
        ``jumprelu`` or ``relu`` with the tanh penalty; ``topk``: k features of each layer and token; ``batchtopk``:
        k on average over tokens and layers while training, those that write most, and thresholds after.
    k : int
        See ``activation``.
    decoders, reads : str
    skip : bool
        Linear connection past the features within each layer.
    sparsity, tanh_scale : float
        Weight and c of the penalty sum_i tanh(c |decoder_i| a_i) / d of a token and layer.
    preactivation : float
        Weight of sum_i relu(threshold_i - pre_i) |decoder_i| / d over dead features (``jumprelu``, ``relu``).
    tokens, batch_tokens, buffer_windows : int
        Tokens that training sees, those of a step, windows that are shuffled together.
    learning_rate, warmup, decay : float
        Peak rate of Adam, and the shares of steps in which it rises and falls.
    ramp : float
        Share of steps in which ``sparsity`` rises from 0.
    clip_norm : float
    first_threshold, bandwidth : float
        Where thresholds of ``jumprelu`` begin, and the width of their straight-through estimator.
    dead_tokens : int
        A feature that has not been active for so many tokens is dead.
    aux_weight : float
        Of what dead features learn of the remaining error (``topk``, ``batchtopk``).
    patience : int
        Stop when the error on validation windows has not improved in so many checks, one for each checkpoint; 0 never
        stops early.
    dtype : str
        Of products with all features: ``float32`` or ``bfloat16``. Weights, moments and sparse sums are float32.
    seed : int
    """

    features: int
    activation: str = "batchtopk"
    k: int = 16
    decoders: str = "cross"
    reads: str = "resid_mid"
    skip: bool = False
    sparsity: float = 1.0
    tanh_scale: float = 4.0
    preactivation: float = 1e-3
    tokens: int = 1_000_000
    batch_tokens: int = 512
    buffer_windows: int = 256
    learning_rate: float = 2e-3
    warmup: float = 0.05
    decay: float = 0.3
    ramp: float = 0.7
    clip_norm: float = 1.0
    first_threshold: float = 0.1
    bandwidth: float = 1.0
    dead_tokens: int = 50_000
    aux_weight: float = 1 / 32
    patience: int = 0
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise `UserError` for what cannot be trained."""
        for key, allowed in (
            ("activation", ACTIVATIONS),
            ("decoders", DECODERS),
            ("reads", READS),
            ("dtype", DTYPES),
        ):
            if getattr(self, key) not in allowed:
                raise UserError(
                    f"{key}: {getattr(self, key)!r} is not known; choose from {', '.join(allowed)}"
                )
        if "topk" in self.activation and not 0 < self.k <= self.features:
            raise UserError(
                f"k: {self.k} must be between 1 and the number of features, {self.features}"
            )
        if self.tokens < self.batch_tokens:
            raise UserError(f"tokens: {self.tokens} is less than one batch ({self.batch_tokens})")
        if self.first_threshold <= 0 or self.bandwidth <= 0:
            raise UserError("first_threshold and bandwidth must be above 0")

    @property
    def steps(self) -> int:
        """Number of steps of the optimiser."""
        return self.tokens // self.batch_tokens
