"""Fitting mixtures of symbolic forms to attention patterns by greedy selection.

For one head: every candidate form alone gets its best share in closed form; the best few are extended by a second and a
third form; the shares of each mixture are found by expectation-maximisation on the train rows. Selection is by the
intersection over union on train rows; the choice between programs of different size is left to validation.
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
        Normalised affinities, flattened over (window, query >= 1, key); last comes the sink.
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
    target = patterns[:, 1:].ravel()
    kernel = distance_form(patterns)
    forms = [*bank.forms, kernel]
    rows = np.concatenate([bank.rows, normalise(kernel.affinity(view))[None, :, 1:].reshape(1, -1)])
    fitter = _Mixtures(target, rows, view.shape)
    order = np.argsort([-fitter.iou((c,)) for c in range(len(forms))], kind="stable")
    programs, chosen = [], (int(order[0]),)
    programs.append(fitter.program(chosen, forms))
    shortlist = [int(c) for c in order[:14]]
    for _ in range(1, max_parts):
        options = [(*chosen, c) for c in shortlist if c not in chosen]
        chosen = max(options, key=fitter.iou)
        programs.append(fitter.program(chosen, forms))
    return programs


class _Mixtures:
    """Shares and quality of mixtures of candidate rows for one head.

    Only entries with attention or prediction above a hair matter, so rows are kept on the causal triangle.
    """

    def __init__(self, target: np.ndarray, rows: np.ndarray, shape: tuple[int, int]) -> None:
        windows, length = shape
        causal = np.broadcast_to(
            np.tril(np.ones((length, length), bool))[1:], (windows, length - 1, length)
        )
        bos = np.zeros((length - 1, length), bool)
        bos[:, 0] = True
        self.is_bos = np.broadcast_to(bos, causal.shape)[causal]
        self.target = target.reshape(causal.shape)[causal]
        self.rows = rows
        self.causal = causal.ravel()
        self.row_count = windows * (length - 1)
        query = np.broadcast_to(
            np.arange(windows * (length - 1)).reshape(windows, -1, 1), causal.shape
        )
        self.query = query[causal]
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._shares: dict[tuple[int, ...], np.ndarray] = {}

    def _component(self, c: int) -> tuple[np.ndarray, np.ndarray]:
        """Row values of a candidate on the causal entries, and whether it applies to each query."""
        if c not in self._cache:
            values = self.rows[c][self.causal]
            applies = np.bincount(self.query, values, minlength=self.row_count) > 0.5
            self._cache[c] = (values, applies)
        return self._cache[c]

    def mixture(self, chosen: tuple[int, ...], shares: np.ndarray) -> np.ndarray:
        """Predicted attention on the causal entries."""
        prediction = np.zeros_like(self.target)
        sink = np.ones(self.row_count, dtype=np.float32)
        for share, c in zip(shares, chosen, strict=True):
            values, applies = self._component(c)
            prediction += np.float32(share) * values
            sink -= np.float32(share) * applies
        prediction[self.is_bos] += sink
        return prediction

    def shares(self, chosen: tuple[int, ...], steps: int = 8) -> np.ndarray:
        """Shares by expectation-maximisation, each counted where its form applies."""
        key = tuple(sorted(chosen))
        if key not in self._shares:
            shares = np.full(len(key), 0.9 / len(key))
            applied = [max(1, int(self._component(c)[1].sum())) for c in key]
            for _ in range(steps):
                ratio = self.target / np.maximum(self.mixture(key, shares), 1e-6)
                for i, c in enumerate(key):
                    held = float((ratio * self._component(c)[0]).sum()) * shares[i]
                    shares[i] = held / applied[i]
                shares /= max(1.0, shares.sum())
            self._shares[key] = shares
        by_candidate = dict(zip(key, self._shares[key], strict=True))
        return np.array([by_candidate[c] for c in chosen])

    def iou(self, chosen: tuple[int, ...]) -> float:
        """Intersection over union of target and mixture over all causal entries."""
        overlap = float(np.minimum(self.mixture(chosen, self.shares(chosen)), self.target).sum())
        return overlap / (2 * self.row_count - overlap)

    def program(self, chosen: tuple[int, ...], forms: list[Form]) -> Program:
        """Turn a mixture into a program, largest share first."""
        shares = np.floor(self.shares(chosen) * 1e4) / 1e4
        parts = [Part(share=float(s), form=forms[c]) for s, c in zip(shares, chosen, strict=True)]
        return Program(parts=tuple(sorted(parts, key=lambda part: -part.share)))
