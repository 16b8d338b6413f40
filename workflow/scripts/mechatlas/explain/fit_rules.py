"""Fitting mixtures of symbolic forms to attention patterns by greedy selection.

For one head: every candidate form alone gets its best share from a grid; the best is extended by a second and a third
form, and shares are refined by coordinate steps. What counts throughout is `match` on train rows; the choice between
programs of different size is left to validation.

A symbolic form is nonzero on few entries (one per row for most), and the overlap of a prediction with the true pattern,
a sum of minima, changes only there. So a form is kept as its entries (see `Support`), what one form changes is summed
over its own entries, and all shares that are tried for it are one array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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
from mechatlas.explain.programs import Part, Program, form_key, normalise
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


@dataclass(frozen=True)
class Support:
    """Where a form's normalised affinity is not zero.

    Attributes
    ----------
    places : int64 [n] or slice
        Among the entries off BOS (see `Bank`), or all of them.
    values : float32 [n]
    applies : float32 [rows]
        1 for rows on which the form finds anything, else 0.
    """

    places: np.ndarray | slice
    values: np.ndarray
    applies: np.ndarray

    @cached_property
    def rows(self) -> float:
        """On how many rows it applies."""
        return float(self.applies.sum())


class Bank:
    """The supports of forms on the windows of a view, each computed when it is first asked for.

    A row is a (window, query >= 1), an entry off BOS a (window, query, key) with 1 <= key <= query; both are counted
    window after window.

    Parameters
    ----------
    view : TokenView
    """

    def __init__(self, view: TokenView) -> None:
        self.view = view
        windows, length = view.shape
        causal = np.tril(np.ones((length - 1, length), dtype=bool), 1)
        causal[:, 0] = False
        self._causal = np.flatnonzero(causal)
        self.rows = windows * (length - 1)
        self._supports: dict[str, Support] = {}

    @classmethod
    def of(cls, view: TokenView) -> Bank:
        """Return the bank of a view, one for all who ask."""
        return view.memo("bank", cls)

    def support(self, form: Form) -> Support:
        """Return the support of a form; that of a `Distance`, which belongs to one head, is not kept."""
        if isinstance(form, Distance):
            return self._computed(form)
        key = form_key(form)
        if key not in self._supports:
            self._supports[key] = self._computed(form)
        return self._supports[key]

    def target(self, patterns: np.ndarray) -> Target:
        """Arrange the true patterns of a head, float32 [W, T, T], as the supports are."""
        rows = patterns[:, 1:]
        return Target(self._off_bos(rows), np.ascontiguousarray(rows[:, :, 0]).ravel())

    def _computed(self, form: Form) -> Support:
        affinity = form.affinity(self.view)
        alike = affinity.strides[0] == 0  # the same for every window, as where only distance counts
        rows = normalise(affinity[: 1 if alike else None, 1:])
        values, applies = self._off_bos(rows), (rows.sum(-1) > 0.5).astype(np.float32).ravel()
        if alike:
            windows = len(affinity)
            values, applies = np.tile(values, windows), np.tile(applies, windows)
        places = np.flatnonzero(values)
        if 2 * len(places) > len(values):
            return Support(slice(None), values, applies)
        return Support(places, values[places], applies)

    def _off_bos(self, rows: np.ndarray) -> np.ndarray:
        return rows.reshape(len(rows), -1)[:, self._causal].ravel()


@dataclass(frozen=True)
class Target:
    """The true pattern of a head: float32 attention off BOS by entry, and on BOS by row."""

    off_bos: np.ndarray
    bos: np.ndarray

    @cached_property
    def off_sink(self) -> float:
        """Attention off BOS, summed over rows."""
        return len(self.bos) - float(self.bos.sum())


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


def fit_rules(bank: Bank, patterns: np.ndarray, max_parts: int) -> list[Program]:
    """Return the best mixture of each size up to ``max_parts`` for one head.

    Parameters
    ----------
    bank : Bank
        Of the windows to fit on.
    patterns : float32 [W, T, T]
        The head's attention on them.
    max_parts : int

    Returns
    -------
    list of Program
        From 1 part to at most ``max_parts`` parts.
    """
    forms = [*candidate_forms(), distance_form(patterns)]
    fitter = _Mixtures(bank.target(patterns), [bank.support(form) for form in forms])
    singles = [fitter.best_single(c) for c in range(len(forms))]
    order = np.argsort([-single.match for single in singles], kind="stable")
    best = singles[order[0]]
    programs = [fitter.program(best, forms)]
    shortlist = [int(c) for c in order[:SHORTLIST]]
    for _ in range(1, max_parts):
        best = fitter.refined(fitter.extended(best, [c for c in shortlist if c not in best.chosen]))
        programs.append(fitter.program(best, forms))
    return programs


def rule_match(program: Program, bank: Bank, target: Target) -> float:
    """Return the `match` of a program of symbolic forms, from their supports.

    Parameters
    ----------
    program : Program
        Without learned parts.
    bank : Bank
    target : Target
        On the same windows.
    """
    fitter = _Mixtures(target, [bank.support(part.form) for part in program.parts])
    shares = tuple(part.share for part in program.parts)
    return fitter.rated(tuple(range(len(shares))), [shares])[0].match


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
    both = np.minimum(p, t)
    inside, mass = _total(both), _total(p) + _total(t)
    off_bos = _total(t) - _total(t[:, :, :1])
    if off_bos < OFF_SINK * t.shape[0] * t.shape[1]:
        return _ratio(inside, mass)
    inside_off = inside - _total(both[:, :, :1])
    mass_off = mass - _total(p[:, :, :1]) - _total(t[:, :, :1])
    return (_ratio(inside, mass) + _ratio(inside_off, mass_off)) / 2


def overlap_ratio(p: np.ndarray, t: np.ndarray) -> float:
    """Sum of minima over sum of maxima of two arrays that are not negative; 0 if both are zero."""
    return _ratio(_total(np.minimum(p, t)), _total(p) + _total(t))


def _ratio(inside: float, mass: float) -> float:
    """Intersection over union from the sum of minima and the sum of both."""
    return inside / (mass - inside) if mass - inside > 0 else 0.0


def _total(values: np.ndarray) -> float:
    """Sum, exact enough for millions of entries: rows in float32, their sums in float64."""
    return float(values.sum(-1).sum(dtype=np.float64))


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
    """Mixtures of supports for one head."""

    def __init__(self, target: Target, supports: Sequence[Support]) -> None:
        self.target, self.supports = target, supports
        self.rows = len(target.bos)

    def best_single(self, c: int) -> _Mixture:
        """The share of one candidate that gives most."""
        return _best(self.rated((c,), [(share,) for share in SHARE_GRID]))

    def extended(self, mixture: _Mixture, candidates: Sequence[int]) -> _Mixture:
        """The best way in a coarse grid to let one of some candidates join a mixture."""
        kept = [tuple(keep * share for share in mixture.shares) for keep in KEEP_GRID]
        options = [
            (at, join) for at, own in enumerate(kept) for join in JOIN_GRID if sum(own) + join <= 1
        ]
        parts = self._parts(mixture.chosen)
        base = _Base(self.target, np.array(kept, dtype=np.float32), *parts)
        found = []
        for c in candidates:
            matches = self._matches(*base.joined(self.supports[c], options))
            found += [
                _Mixture((*mixture.chosen, c), (*kept[at], join), value)
                for (at, join), value in zip(options, matches, strict=True)
            ]
        return _best(found)

    def refined(self, mixture: _Mixture, step: float = 0.08) -> _Mixture:
        """Move one share at a time while that helps, with ever smaller steps."""
        values, applies = self._parts(mixture.chosen)
        reached = np.flatnonzero(values.any(0))
        parts = (values[:, reached], self.target.off_bos[reached], applies)
        while step >= 0.01:
            options = _neighbours(mixture.shares, step)
            best = _best([mixture, *self._rated(mixture.chosen, options, *parts)])
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

    def rated(self, chosen: tuple[int, ...], options: Sequence[_Shares]) -> list[_Mixture]:
        """Mixtures of the chosen candidates, one for each option of shares."""
        if len(chosen) == 1:
            own = self.supports[chosen[0]]
            parts = (own.values[None], self.target.off_bos[own.places], own.applies[None])
        else:
            values, applies = self._parts(chosen)
            parts = (values, self.target.off_bos, applies)
        return self._rated(chosen, options, *parts)

    def _parts(self, chosen: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Values of candidates on all entries off BOS, [parts, n], and the rows where they apply, [parts, rows]."""
        values = np.zeros((len(chosen), len(self.target.off_bos)), dtype=np.float32)
        applies = np.zeros((len(chosen), self.rows), dtype=np.float32)
        for part, c in enumerate(chosen):
            values[part, self.supports[c].places] = self.supports[c].values
            applies[part] = self.supports[c].applies
        return values, applies

    def _rated(
        self,
        chosen: tuple[int, ...],
        options: Sequence[_Shares],
        values: np.ndarray,
        target: np.ndarray,
        applies: np.ndarray,
    ) -> list[_Mixture]:
        shares = np.array(options, dtype=np.float32).reshape(len(options), len(chosen))
        inside = np.minimum(shares @ values, target).sum(1)
        inside_bos = np.minimum(1 - shares @ applies, self.target.bos).sum(1)
        matches = self._matches(inside, inside_bos, shares @ applies.sum(1))
        return [_Mixture(chosen, o, m) for o, m in zip(options, matches, strict=True)]

    def _matches(
        self, inside: np.ndarray, inside_bos: np.ndarray, predicted: np.ndarray
    ) -> list[float]:
        """`match` from the overlap off BOS and on it, and from the attention predicted off BOS."""
        inside = inside.astype(np.float64)
        every = inside + inside_bos
        value = every / (2 * self.rows - every)
        off_sink = self.target.off_sink
        if off_sink >= OFF_SINK * self.rows:
            value = (value + inside / (off_sink + predicted - inside)) / 2
        return value.tolist()


class _Base:
    """A mixture at several levels, prepared for others to join it."""

    def __init__(
        self, target: Target, shares: np.ndarray, values: np.ndarray, applies: np.ndarray
    ) -> None:
        self.target = target
        self.predicted = shares @ values
        self.overlap = np.minimum(self.predicted, target.off_bos)
        self.inside = self.overlap.sum(1)
        self.sink = 1 - shares @ applies
        self.off_bos = shares @ applies.sum(1)

    def joined(
        self, support: Support, options: Sequence[tuple[int, float]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What `_Mixtures._matches` needs when a form joins at (level, share): only its entries change."""
        level = np.array([at for at, _ in options], dtype=np.int64)
        share = np.array([share for _, share in options], dtype=np.float32)[:, None]
        others = self.inside - self.overlap[:, support.places].sum(1)
        predicted = self.predicted[:, support.places][level] + share * support.values
        here = np.minimum(predicted, self.target.off_bos[support.places]).sum(1)
        sink = np.minimum(self.sink[level] - share * support.applies, self.target.bos).sum(1)
        return others[level] + here, sink, self.off_bos[level] + share[:, 0] * support.rows


_Shares = tuple[float, ...]


def _best(options: Sequence[_Mixture]) -> _Mixture:
    """The option that matches best, of equals the first."""
    return max(options, key=lambda option: option.match)


def _neighbours(shares: _Shares, step: float) -> list[_Shares]:
    """Shares with one of them moved up or down by a step, where that is allowed."""
    moved = []
    for i in range(len(shares)):
        for change in (step, -step):
            candidate = (*shares[:i], shares[i] + change, *shares[i + 1 :])
            if candidate[i] >= 0 and sum(candidate) <= 1 + 1e-9:
                moved.append(candidate)
    return moved
