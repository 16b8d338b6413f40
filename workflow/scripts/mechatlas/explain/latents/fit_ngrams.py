"""Look-ups and n-grams of a latent, fitted with shrinkage.

The value of a context is the mean train activation over its occurrences, drawn towards what less specific contexts
say by `PSEUDO` made-up occurrences. Contexts are kept in the order of how much they reduce the squared error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mechatlas.explain.latents.conditions import shifted
from mechatlas.explain.latents.programs import Lookup, NGrams, context_codes
from mechatlas.explain.vocabulary import TokenView

PSEUDO = 1.0
#: Groups of distances, each list from the least to the most specific.
GROUPS = (((0,), (0, 2), (0, 1), (0, 1, 2)), ((1,), (1, 2), (0, 1), (0, 1, 2)))
#: Least share of the latent's variance by which a context must reduce the squared error.
LEAST_GAIN = 2e-4


def fit_lookup(view: TokenView, activation: np.ndarray, back: int, most: int) -> Lookup | None:
    """Fit a value for each token ``back`` places before, at most ``most`` of them.

    Parameters
    ----------
    view : TokenView
    activation : float [W, T]
        Train activations, 0 at BOS.
    back, most : int

    Returns
    -------
    Lookup or None
        None if no token is worth a value.
    """
    counted = _counted(view, back)
    tokens = shifted(view.tokens, back)[counted]
    values = activation[counted].astype(np.float64)
    mean = values.mean()
    size = len(view.vocabulary)
    counts, sums = np.bincount(tokens, minlength=size), np.bincount(tokens, values, size)
    shrunk = (sums + PSEUDO * mean) / (counts + PSEUDO)
    kept = _worth(counts, shrunk, mean, values, most)
    kept = kept[shrunk[kept] > mean]
    if not len(kept):
        return None
    kept = np.sort(kept)
    rest = np.setdiff1d(np.flatnonzero(counts), kept)
    otherwise = sums[rest].sum() / max(counts[rest].sum(), 1)
    return Lookup(
        back=back,
        tokens=tuple(kept.tolist()),
        values=tuple(shrunk[kept].tolist()),
        otherwise=float(otherwise),
    )


def fit_ngrams(
    view: TokenView, activation: np.ndarray, groups: Sequence[tuple[int, ...]], most: int
) -> NGrams | None:
    """Fit values of contexts, at most ``most`` of them (see `fit_lookup`)."""
    counted = np.zeros(view.shape, dtype=bool)
    counted[:, 1:] = True
    truth = activation.astype(np.float64)
    mean = float(truth[counted].mean())
    predicted = np.full(view.shape, mean)
    contexts: list[tuple[int | None, ...]] = []
    values: list[float] = []
    for group in groups:
        codes = context_codes(view, group)
        used = counted & (codes >= 0)
        known, place = np.unique(codes[used], return_inverse=True)
        counts = np.bincount(place)
        parent = np.bincount(place, predicted[used]) / counts
        shrunk = (np.bincount(place, truth[used]) + PSEUDO * parent) / (counts + PSEUDO)
        kept = _worth(counts, shrunk, parent, truth[counted], most - len(contexts))
        chosen = np.zeros(len(known), dtype=bool)
        chosen[kept] = True
        predicted[used] = np.where(chosen[place], shrunk[place], predicted[used])
        for i in np.flatnonzero(chosen):
            contexts.append(_context(int(known[i]), group, len(view.vocabulary)))
            values.append(float(shrunk[i]))
    if not contexts:
        return None
    return NGrams(
        groups=tuple(groups), contexts=tuple(contexts), values=tuple(values), otherwise=mean
    )


def _counted(view: TokenView, back: int) -> np.ndarray:
    counted = np.zeros(view.shape, dtype=bool)
    counted[:, max(1, back) :] = True
    return counted


def _worth(
    counts: np.ndarray, value: np.ndarray, parent: np.ndarray | float, truth: np.ndarray, most: int
) -> np.ndarray:
    """Return the contexts that reduce the squared error most, ties by place."""
    gain = counts * (value - parent) ** 2
    least = LEAST_GAIN * len(truth) * truth.var()
    order = np.argsort(-gain, kind="stable")[: max(most, 0)]
    return order[gain[order] > max(least, 1e-12)]


def _context(code: int, group: tuple[int, ...], size: int) -> tuple[int | None, ...]:
    tokens: list[int | None] = [None] * (max(group) + 1)
    for back in reversed(group):
        code, tokens[back] = divmod(code, size)
    return tuple(tokens)
