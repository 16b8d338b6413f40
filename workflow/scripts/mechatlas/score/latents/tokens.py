"""How well predicted activations match true ones on test tokens, as sums per document.

Two sets of tokens are used, as in Bills et al. 2023: all tokens of test windows (what they call random-only: places
come at their true rates), and the tokens of the windows with the strongest activations together with as many random
ones (top-and-random). Explanations that are texts are scored on such sets by a judge; programs predict everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechatlas.explain.latents.data import Latent, LatentData
from mechatlas.explain.latents.programs import LatentProgram
from mechatlas.io import rng_for
from mechatlas.stats.ranking import BINS, score_bins

MOMENTS = ("n", "x", "y", "xx", "yy", "xy")
#: Sums of both sets of tokens, then of decisions.
SUMS = (
    *MOMENTS,
    *(f"{name}_top_and_random" for name in MOMENTS),
    *("hits", "predicted_active", "truly_active"),
)
#: Counts by score bin.
COUNTS = ("active", "other", "event_active", "negative_similar", "negative_coactive")
#: Strongest windows, each of another document, and as many random windows, of the set top-and-random.
TOP_WINDOWS = 20


@dataclass(frozen=True)
class Calibration:
    """What is taken from validation documents: activation = slope x prediction + level, and the decision's threshold.

    ``threshold`` is the prediction from which the decision "active" has the highest F1.
    """

    slope: float
    level: float
    threshold: float


def calibrate(predicted: np.ndarray, true: np.ndarray, least: float) -> Calibration:
    """Fit a calibration on validation tokens; ``least`` is the activation from which a token counts as active."""
    x, y = predicted.astype(np.float64).ravel(), true.astype(np.float64).ravel()
    spread = ((x - x.mean()) ** 2).sum()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 1e-12 else 0.0
    values = np.unique(x[x > 0])
    values = values[:: max(1, len(values) // 100)]
    active = y >= least
    best, threshold = -1.0, np.inf
    for value in values:
        said = x >= value
        f1 = 2 * (said & active).sum() / max(said.sum() + active.sum(), 1)
        if f1 > best:
            best, threshold = float(f1), float(value)
    return Calibration(slope, float(y.mean() - slope * x.mean()), threshold)


@dataclass(frozen=True)
class TokenSums:
    """What one prediction of a latent's activations amounts to, by document.

    Attributes
    ----------
    sums : float64 [documents, len(SUMS)]
    counts : mapping
        Each of `COUNTS` -> int64 [documents, BINS].
    calibration : Calibration
    """

    sums: np.ndarray
    counts: Mapping[str, np.ndarray]
    calibration: Calibration

    def moments(self, suffix: str = "") -> np.ndarray:
        """Return the moments of one set of tokens, float64 [documents, 6]."""
        places = [SUMS.index(f"{name}{suffix}") for name in MOMENTS]
        return self.sums[:, places]

    @property
    def decisions(self) -> np.ndarray:
        """Return hits, tokens said to be active, and truly active ones: float64 [documents, 3]."""
        return self.sums[:, -3:]


class LatentTruth:
    """One latent's activations on validation and test documents, with which predictions are compared.

    Parameters
    ----------
    data : LatentData
    latent : Latent
    events : data frame
        Test events of the latent (raw_events.parquet), for hard negatives; may be empty.
    active_share : float
        Share of the largest train activation from which a token counts as active.
    seed : int
    control : str
        Whose activations are true: the latent's ("none"), or those of a control that has its number.
    """

    def __init__(
        self,
        data: LatentData,
        latent: Latent,
        events: pd.DataFrame,
        active_share: float,
        seed: int,
        control: str = "none",
    ) -> None:
        self.data = data
        largest = float(data.values(latent, "train", control).max())
        self.least = max(active_share * largest, float(np.finfo(np.float32).tiny))
        self.validation = data.values(latent, "validation", control)
        self.test = data.values(latent, "test", control)
        documents = data.documents("test")
        self.documents, self.inverse = np.unique(documents, return_inverse=True)
        rng = rng_for(seed, "top and random", latent.unit)
        self.chosen = top_and_random(self.test, documents, rng)
        self.places = _places(events, data.rows("test")["window"].to_numpy())

    def compare(self, program: LatentProgram) -> TokenSums:
        """Compare a program's predictions with the truth."""
        validation = program.predict(self.data.view("validation"))
        known = calibrate(validation[:, 1:], self.validation[:, 1:], self.least)
        predicted = program.predict(self.data.view("test"))
        by_document = np.zeros((len(self.documents), len(SUMS)))
        sums = _sums(predicted, self.test, self.chosen, known, self.least)
        np.add.at(by_document, self.inverse, sums)
        counts = _counts(predicted, self)
        return TokenSums(by_document, counts, known)


def top_and_random(true: np.ndarray, documents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the windows of the set top-and-random: bool [W]."""
    strongest = true.max(1)
    order = np.argsort(-strongest, kind="stable")
    order = order[strongest[order] > 0]
    _, first = np.unique(documents[order], return_index=True)
    top = order[np.sort(first)][:TOP_WINDOWS]
    chosen = np.zeros(len(true), dtype=bool)
    chosen[top] = True
    rest = np.flatnonzero(~chosen)
    chosen[rng.choice(rest, min(len(top), len(rest)), replace=False)] = True
    return chosen


def _sums(
    predicted: np.ndarray, true: np.ndarray, chosen: np.ndarray, known: Calibration, least: float
) -> np.ndarray:
    """Return `SUMS` by window, float64 [W, len(SUMS)]."""
    x, y = predicted[:, 1:].astype(np.float64), true[:, 1:].astype(np.float64)
    moments = np.stack(
        [np.full(len(x), x.shape[1]), *(v.sum(1) for v in (x, y, x * x, y * y, x * y))], axis=1
    )
    said, active = x >= known.threshold, y >= least
    decisions = np.stack([(said & active).sum(1), said.sum(1), active.sum(1)], axis=1)
    return np.concatenate([moments, moments * chosen[:, None], decisions], axis=1)


def _places(events: pd.DataFrame, windows: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return row and position of events by count kind; an event that is both top and of a quantile is one."""
    found = {}
    kinds = {
        "event_active": ("top", "quantile"),
        "negative_similar": ("negative_similar",),
        "negative_coactive": ("negative_coactive",),
    }
    for kind, roles in kinds.items():
        mine = events[events["role"].isin(roles)].drop_duplicates(["window", "position"])
        row = np.searchsorted(windows, mine["window"].to_numpy(np.int64))
        found[kind] = (row, mine["position"].to_numpy(np.int64))
    return found


def _counts(predicted: np.ndarray, truth: LatentTruth) -> dict[str, np.ndarray]:
    """Return `COUNTS` by document, int64 [documents, BINS] each."""
    bins = score_bins(predicted / max(float(predicted.max()), 1e-12))
    active, documents = truth.test >= truth.least, len(truth.documents)
    rows = np.broadcast_to(truth.inverse[:, None], predicted.shape)

    def counted(row: np.ndarray, score: np.ndarray) -> np.ndarray:
        codes = row.astype(np.int64) * BINS + score
        return np.bincount(codes, minlength=documents * BINS).reshape(documents, BINS)

    inside = np.zeros(predicted.shape, dtype=bool)
    inside[:, 1:] = True
    result = {
        "active": counted(rows[active & inside], bins[active & inside]),
        "other": counted(rows[~active & inside], bins[~active & inside]),
    }
    for kind, (row, position) in truth.places.items():
        result[kind] = counted(truth.inverse[row], bins[row, position])
    return result
