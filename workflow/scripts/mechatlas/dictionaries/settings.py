"""Settings of the training of a sparse autoencoder (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from mechatlas.io import UserError

ACTIVATIONS = ("relu", "topk", "batchtopk", "jumprelu")
PENALTIES = ("l1", "tanh")


@dataclass(frozen=True)
class TrainingSettings:
    """What is trained, and how. Activations are scaled to mean 0 and E|x|^2 = d before.

    Attributes
    ----------
    latents : int
    activation : str
        ``relu`` with a penalty; ``topk``; ``batchtopk`` (k per token on average while training, a threshold after);
        ``jumprelu`` with thresholds learned for a wanted L0.
    k : int
        Active latents per token: kept by ``topk`` and ``batchtopk``, aimed at by ``jumprelu``.
    sparsity : float, optional
        Weight of the penalty of ``relu`` (by default 1.5 for ``l1`` and 4 for ``tanh``), or of the deviation from ``k``
        of ``jumprelu`` (0.1).
    penalty : str
        Of ``relu``: ``l1`` is the sum of a token's latents z, ``tanh`` that of tanh(c z), which does not shrink large
        ones.
    tanh_scale : float
        That c.
    tokens, batch_tokens : int
        Tokens that training sees (more than there are: several epochs), and those of one step.
    buffer_windows : int
        Windows whose tokens are shuffled together.
    learning_rate, warmup, decay : float
        Peak rate of Adam, and the shares of steps in which it rises and falls.
    ramp : float
        Share of steps in which ``sparsity`` rises from 0.
    clip_norm : float
        Largest norm of the gradient.
    bandwidth : float
        Of the straight-through estimators of ``jumprelu``.
    dead_tokens : int
        A latent that has not been active for so many tokens is dead.
    aux_weight : float
        Of the auxiliary loss of ``topk`` and ``batchtopk``: dead latents learn what the others leave over.
    resamplings : int
        How often, evenly spaced over the first 60 % of the steps, dead latents start anew where the error is large.
    seed : int
    """

    latents: int
    activation: str = "topk"
    k: int = 16
    sparsity: float | None = None
    penalty: str = "l1"
    tanh_scale: float = 0.3
    tokens: int = 1_000_000
    batch_tokens: int = 512
    buffer_windows: int = 512
    learning_rate: float = 1e-3
    warmup: float = 0.05
    decay: float = 0.2
    ramp: float = 0.1
    clip_norm: float = 1.0
    bandwidth: float = 2.0
    dead_tokens: int = 50_000
    aux_weight: float = 1 / 32
    resamplings: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise `UserError` for what cannot be trained."""
        if self.activation not in ACTIVATIONS:
            raise UserError(
                f"activation {self.activation!r} cannot be trained; choose from {', '.join(ACTIVATIONS)}"
            )
        if self.penalty not in PENALTIES:
            raise UserError(
                f"penalty {self.penalty!r} is not known; choose from {', '.join(PENALTIES)}"
            )
        if self.activation != "relu" and not 0 < self.k <= self.latents:
            raise UserError(
                f"k: {self.k} must be between 1 and the number of latents, {self.latents}"
            )
        if self.tokens < self.batch_tokens:
            raise UserError(f"tokens: {self.tokens} is less than one batch ({self.batch_tokens})")

    @property
    def steps(self) -> int:
        """Number of steps of the optimiser."""
        return self.tokens // self.batch_tokens

    @property
    def weight(self) -> float:
        """Weight of the sparsity penalty."""
        if self.sparsity is not None:
            return self.sparsity
        if self.activation == "jumprelu":
            return 0.1
        return 4.0 if self.penalty == "tanh" else 1.5

    def resamples_at(self, step: int) -> bool:
        """Return whether dead latents are resampled after a step (from 0)."""
        if not self.resamplings:
            return False
        every = max(1, int(0.6 * self.steps / self.resamplings))
        return (step + 1) % every == 0 and step + 1 <= every * self.resamplings
