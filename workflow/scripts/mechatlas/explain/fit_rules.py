"""Fitting mixtures of symbolic forms to attention patterns by greedy selection.

For one head: every candidate form alone gets its best share from a grid; the best is extended by a second and a third
form, and shares are refined by coordinate steps. What counts throughout is `match` on train rows; the choice between
programs of different size is left to validation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mechatlas.explain.forms import (
    Delimiter,
    Distance,
    Duplicate,
    Form,
    Induction,
    Itself,
    Member,
    Opener,
    Previous,
    SameClass,
    SameWord,
    Start,
    TokenClass,
    Uniform,
)
from mechatlas.explain.programs import Part, Program, normalise
from mechatlas.explain.vocabulary import CLASSES, TokenView


def candidate_forms() -> list[Form]:
    """Return the symbolic forms that are tried, from the simplest to the most particular."""
    picks = ("all", "last")
    return [
        Itself(),
        *(Previous(offset=k) for k in range(1, 5)),
        Uniform(),
        *(Duplicate(pick=p) for p in ("all", "last", "first")),
        *(Induction(pick=p) for p in ("all", "last")),
        Induction(prefix=2),
        Induction(prefix=3),
        Induction(offset=-1),
        SameWord(),
        Delimiter(),
        Opener(),
        Start(of="line"),
        Start(of="sentence"),
        *(SameClass(pick=p) for p in picks),
        Member(),
        Member(step=-1),
        *(TokenClass(name=name, pick=p) for name in CLASSES[1:] for p in picks),
    ]


@dataclass
class Bank:
    """Predictions of all candidates on the train windows.

    Attributes
    ----------
    forms : list of Form
    rows : float32 [C, N]
        Normalised affinities, flattened over (window, query >= 1, key).
    """

    forms: list[Form]
    rows: np.ndarray

    @classmethod
    def build(cls, view: TokenView) -> Bank:
        """Evaluate every candidate on the windows of a view."""
        forms = candidate_forms()
        rows = np.stack([normalise(form.affinity(view))[:, 1:].ravel() for form in forms])
        return cls(forms, rows)


def distance_form(patterns: np.ndarray, reach: int = 64) -> Distance:
    """Fit the distance kernel of a head: mean attention per distance, BOS left out.

    Parameters
    ----------
    patterns : float32 [W, T, T]
    reach : int
        Largest distance that gets a weight.
    """
    length = patterns.shape[-1]
    mean = patterns.mean(0)
    weights = []
    for distance in range(min(reach, length - 1)):
        diagonal = np.diagonal(mean, -distance)[1:]
        weights.append(round(float(diagonal.mean()) if diagonal.size else 0.0, 6))
    if not any(weights):
        weights[0] = 1.0
    return Distance(weights=tuple(weights))


def fit_rules(view: TokenView, patterns: np.ndarray, bank: Bank, max_parts: int) -> list[Program]:
    """Return the best mixture of each size up to ``max_parts`` for one head.

    Parameters
    ----------
    view : TokenView
        The windows that ``bank`` was built on.
    patterns : float32 [W, T, T]
        The head's attention on them.
    bank : Bank
    max_parts : int

    Returns
    -------
    list of Program
        From 1 part to at most ``max_parts`` parts.
    """
    kernel = distance_form(patterns)
    forms = [*bank.forms, kernel]
    rows = np.concatenate([bank.rows, normalise(kernel.affinity(view))[None, :, 1:].reshape(1, -1)])
    fitter = _Mixtures(patterns[:, 1:].ravel(), rows, view.shape)
    singles = [fitter.best_single(c) for c in range(len(forms))]
    order = np.argsort([-single.match for single in singles], kind="stable")
    best = singles[order[0]]
    programs = [fitter.program(best, forms)]
    shortlist = [int(c) for c in order[:SHORTLIST]]
    for _ in range(1, max_parts):
        options = [fitter.extended(best, c) for c in shortlist if c not in best.chosen]
        best = fitter.refined(max(options, key=lambda option: option.match))
        programs.append(fitter.program(best, forms))
    return programs


#: Mean attention off BOS from which a head is judged by what it does there as well.
OFF_SINK = 0.01


def match(predicted: np.ndarray, true: np.ndarray) -> float:
    """How well a predicted pattern fits, for choosing programs: mean of the IoU and of the IoU without BOS.

    A head that rests on BOS nine times out of ten is matched to 0.9 by "rests on BOS", which says nothing about the
    tenth; so both count alike. A head with less than `OFF_SINK` off BOS is judged by the IoU alone.

    Parameters
    ----------
    predicted, true : float32 [W, T, T]
        Query 0 is left out.
    """
    p, t = predicted[:, 1:], true[:, 1:]
    if float(t[:, :, 1:].sum()) < OFF_SINK * t.shape[0] * t.shape[1]:
        return overlap_ratio(p, t)
    return (overlap_ratio(p, t) + overlap_ratio(p[:, :, 1:], t[:, :, 1:])) / 2


def overlap_ratio(p: np.ndarray, t: np.ndarray) -> float:
    """Sum of minima over sum of maxima of two arrays that are not negative; 0 if both are zero."""
    inside = float(np.minimum(p, t).sum(dtype=np.float64))
    union = float(p.sum(dtype=np.float64) + t.sum(dtype=np.float64)) - inside
    return inside / union if union > 0 else 0.0


SHORTLIST = 14
SHARE_GRID = tuple(np.round(np.arange(0.1, 1.01, 0.1), 2))
# What is tried when a form joins a mixture: how much the others keep, and the share of the new one.
KEEP_GRID = (1.0, 0.8, 0.6, 0.4)
JOIN_GRID = (0.05, 0.15, 0.3, 0.5)


@dataclass(frozen=True)
class _Mixture:
    """Candidates, their shares and the `match` they reach on the train rows."""

    chosen: tuple[int, ...]
    shares: tuple[float, ...]
    match: float


class _Mixtures:
    """Mixtures of candidate rows for one head, on the causal entries of its patterns."""

    def __init__(self, target: np.ndarray, rows: np.ndarray, shape: tuple[int, int]) -> None:
        windows, length = shape
        causal = np.tril(np.ones((length, length), bool))[1:]
        bos = np.zeros_like(causal)
        bos[:, 0] = True
        query = np.broadcast_to(np.arange(length - 1)[:, None], causal.shape)[causal]
        offset = (length - 1) * np.arange(windows)[:, None]
        self.query = (query + offset).ravel()
        self.is_bos = np.tile(bos[causal], windows)
        self.row_count = windows * (length - 1)
        self.causal = np.tile(causal.ravel(), windows)
        self.target = target[self.causal]
        self.off_sink = self.row_count - float(self.target[self.is_bos].sum())
        self.rows = rows
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def best_single(self, c: int) -> _Mixture:
        """The share of one candidate that gives most."""
        return max(
            (self._rated((c,), (share,)) for share in SHARE_GRID), key=lambda option: option.match
        )

    def extended(self, mixture: _Mixture, c: int) -> _Mixture:
        """The best way in a coarse grid to let a candidate join a mixture."""
        options = [mixture]
        for keep in KEEP_GRID:
            kept = tuple(keep * share for share in mixture.shares)
            for join in JOIN_GRID:
                if sum(kept) + join <= 1:
                    options.append(self._rated((*mixture.chosen, c), (*kept, join)))
        return max(options[1:], key=lambda option: option.match)

    def refined(self, mixture: _Mixture, step: float = 0.08) -> _Mixture:
        """Move one share at a time while that helps, with ever smaller steps."""
        while step >= 0.01:
            moved = [
                self._rated(mixture.chosen, shares) for shares in _neighbours(mixture.shares, step)
            ]
            best = max([mixture, *moved], key=lambda option: option.match)
            step = step / 2 if best is mixture else step
            mixture = best
        return mixture

    def program(self, mixture: _Mixture, forms: list[Form]) -> Program:
        """Turn a mixture into a program, largest share first."""
        mixture = self.refined(mixture)
        parts = [
            Part(share=round(share, 4), form=forms[c])
            for share, c in zip(mixture.shares, mixture.chosen, strict=True)
            if share > 0
        ]
        return Program(parts=tuple(sorted(parts, key=lambda part: -part.share)))

    def _component(self, c: int) -> tuple[np.ndarray, np.ndarray]:
        """Row values of a candidate on the causal entries, and its sum for each query (1, or 0: does not apply)."""
        if c not in self._cache:
            values = self.rows[c][self.causal]
            applies = np.bincount(self.query, values, minlength=self.row_count) > 0.5
            self._cache[c] = (values, applies.astype(np.float32))
        return self._cache[c]

    def _rated(self, chosen: tuple[int, ...], shares: tuple[float, ...]) -> _Mixture:
        sink = np.ones(self.row_count, dtype=np.float32)
        prediction = np.zeros_like(self.target)
        for share, c in zip(shares, chosen, strict=True):
            values, applies = self._component(c)
            prediction += np.float32(share) * values
            sink -= np.float32(share) * applies
        prediction[self.is_bos] += sink
        overlap = np.minimum(prediction, self.target)
        inside = float(overlap.sum())
        score = inside / (2 * self.row_count - inside)
        if self.off_sink >= OFF_SINK * self.row_count:
            outside = inside - float(overlap[self.is_bos].sum())
            predicted = self.row_count - float(prediction[self.is_bos].sum())
            score = (score + outside / (self.off_sink + predicted - outside)) / 2
        return _Mixture(chosen, shares, score)


def _neighbours(shares: tuple[float, ...], step: float) -> list[tuple[float, ...]]:
    """Shares with one of them moved up or down by a step, where that is allowed."""
    moved = []
    for i in range(len(shares)):
        for change in (step, -step):
            candidate = (*shares[:i], shares[i] + change, *shares[i + 1 :])
            if candidate[i] >= 0 and sum(candidate) <= 1 + 1e-9:
                moved.append(candidate)
    return moved
