"""Rules of a latent: conditions that are found one after the other, each being the one that adds most.

What a set of conditions is worth is the correlation of its indicator with the train activations. For all conditions on
a token's text it follows from sums of activation by token alone, so that a few hundred are compared in one product.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mechatlas.explain.latents.conditions import (
    REGEXES,
    Condition,
    Matches,
    Near,
    OfClass,
    OneOf,
    Seen,
    matching,
    shifted,
)
from mechatlas.explain.latents.programs import Rule
from mechatlas.explain.vocabulary import CLASS_INDEX, CLASSES, TokenView

#: How far back conditions look.
BACKS = (0, 1, 2, 3)
#: Positions that conditions name.
PLACES = tuple(
    Near(start=start, within=within)
    for start in ("sentence", "line", "window")
    for within in (1, 2, 4, 8)
)
#: How much the correlation must rise for another condition or another rule.
LEAST_RISE = 0.01
#: Most tokens that a condition names; what needs more is better said by a look-up or n-grams.
MOST_TOKENS = 24
#: Endings of the strongest tokens that become regular expressions.
ENDINGS = 4


class Target:
    """Train activations that rules are sought for, float64 [N], with what a correlation needs of them."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.size, self.mean, self.std = len(values), float(values.mean()), float(values.std())

    def worth(self, counts: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """Return the correlation of indicators that hold ``counts`` times and cover ``sums`` of the activation."""
        share = counts / self.size
        spread = np.sqrt(share * (1 - share)) * self.std * self.size
        rise = sums - counts * self.mean
        return np.divide(rise, spread, out=np.zeros_like(spread), where=spread > 1e-12)


@dataclass(frozen=True)
class Found:
    """A set of conditions on train tokens: its rule, where it holds, and its worth."""

    conditions: tuple[Condition, ...]
    mask: np.ndarray
    worth: float


class Bank:
    """What can be asked about the tokens of train windows.

    Parameters
    ----------
    view : TokenView
    """

    def __init__(self, view: TokenView) -> None:
        self.view = view
        self.counted = np.zeros(view.shape, dtype=bool)
        self.counted[:, 1:] = True
        #: Token at each distance back of every counted token: int64 [N], -1 where there is none.
        self.back = {back: shifted(view.tokens, back)[self.counted] for back in BACKS}

    @cached_property
    def texts(self) -> tuple[list[Condition], np.ndarray]:
        """Conditions on a token's text and the tokens that they hold for: float64 [M, V]."""
        vocabulary = self.view.vocabulary
        conditions: list[Condition] = [Matches(pattern=pattern) for pattern in REGEXES]
        masks = [matching(vocabulary, pattern) for pattern in REGEXES]
        for name in CLASSES[1:]:
            conditions.append(OfClass(name=name))
            masks.append(vocabulary.classes == CLASS_INDEX[name])
        return conditions, np.array(masks, dtype=np.float64)

    @cached_property
    def places(self) -> list[Condition]:
        """Other conditions."""
        return [*PLACES, Seen(), Seen(seen=False)]

    @cached_property
    def holds(self) -> np.ndarray:
        """Where each of `places` holds: bool [len(places), N]."""
        return np.stack([condition.mask(self.view)[self.counted] for condition in self.places])

    def endings(self, strength: np.ndarray) -> tuple[list[Condition], np.ndarray]:
        """Endings that the strongest tokens share, as `texts`; ``strength`` is activation by token, float [V]."""
        texts = self.view.vocabulary.texts
        shares: Counter[str] = Counter()
        for token in np.argsort(-strength, kind="stable")[:20]:
            text = texts[token].strip()
            for length in (2, 3, 4):
                if len(text) > length and text[-length:].isalpha():
                    shares[text[-length:]] += 1
        found = sorted((-count, ending) for ending, count in shares.items() if count > 1)[:ENDINGS]
        patterns = [f"{ending}$" for _, ending in found if f"{ending}$" not in REGEXES]
        masks = [matching(self.view.vocabulary, pattern) for pattern in patterns]
        shape = (len(patterns), len(texts))
        return [Matches(pattern=p) for p in patterns], np.array(masks, np.float64).reshape(shape)


def fit_rules(
    bank: Bank, activation: np.ndarray, max_conditions: int, max_rules: int
) -> list[tuple[Rule, ...]]:
    """Return lists of rules for a latent, simple ones first: each adds a condition or a rule to one before it.

    Parameters
    ----------
    bank : Bank
    activation : float [W, T]
        Train activations.
    max_conditions : int
        Conditions that hold together in a rule.
    max_rules : int
        Rules in a list.
    """
    truth = activation[bank.counted].astype(np.float64)
    if not truth.any():
        return []
    target = Target(truth)
    results: list[tuple[Rule, ...]] = []
    lists: list[list[Found]] = []
    for tokens in (False, True):  # without and with sets of tokens, which explain more and say less
        steps = _conjunction(bank, target, np.ones(len(truth), bool), max_conditions, tokens)
        results += [(_rule(step, truth),) for step in steps]
        if steps:
            lists.append([steps[-1]])
            results += _further(bank, truth, lists[-1], max_conditions, max_rules, tokens)
    return results


def _further(
    bank: Bank,
    truth: np.ndarray,
    found: list[Found],
    max_conditions: int,
    max_rules: int,
    tokens: bool,
) -> list[tuple[Rule, ...]]:
    """Add rules for what is left by those before."""
    results = []
    worth = found[0].worth
    while len(found) < max_rules:
        left = ~np.logical_or.reduce([one.mask for one in found])
        rest = Target(np.where(left, truth, 0))
        steps = _conjunction(bank, rest, left, max_conditions, tokens)
        if not steps:
            break
        together = correlation(_values([*found, steps[-1]], truth), truth)
        if together < worth + LEAST_RISE:
            break
        found.append(steps[-1])
        worth = together
        results.append(tuple(_rule(one, truth) for one in found))
    return results


def _conjunction(
    bank: Bank, target: Target, within: np.ndarray, most: int, tokens: bool
) -> list[Found]:
    """Find conditions one after the other; every element has one more than that before it."""
    steps: list[Found] = []
    mask, worth, conditions = within, 0.0, ()
    for _ in range(most):
        best = max(
            _candidates(bank, target, mask, tokens),
            key=lambda item: item[0],
            default=(0.0, None),
        )
        if best[1] is None or best[0] < worth + LEAST_RISE:
            break
        worth, condition = best
        mask = mask & condition.mask(bank.view)[bank.counted]
        conditions = (*conditions, condition)
        steps.append(Found(conditions, mask, worth))
    return steps


def _candidates(
    bank: Bank, target: Target, mask: np.ndarray, tokens: bool
) -> list[tuple[float, Condition]]:
    """Return the best condition of each kind and distance to add to a mask, with the worth of both together."""
    found: list[tuple[float, Condition]] = []
    size, places = len(bank.view.vocabulary), np.flatnonzero(mask)
    values = target.values[places]
    for back in BACKS:
        token = bank.back[back][places]
        known = token >= 0
        counts = np.bincount(token[known], minlength=size).astype(np.float64)
        sums = np.bincount(token[known], values[known], size)
        kinds = [bank.texts, bank.endings(sums)] if back == 0 else [bank.texts]
        for conditions, members in kinds:
            if conditions:
                worth = target.worth(members @ counts, members @ sums)
                best = int(worth.argmax())
                condition = conditions[best].model_copy(update={"back": back})
                found.append((float(worth[best]), condition))
        if tokens:
            found.append(_best_tokens(counts, sums, target, back))
    if len(places):
        holds = bank.holds[:, places]
        worth = target.worth(holds.sum(1).astype(np.float64), holds @ values)
        best = int(worth.argmax())
        found.append((float(worth[best]), bank.places[best]))
    return found


def _best_tokens(
    counts: np.ndarray, sums: np.ndarray, target: Target, back: int
) -> tuple[float, Condition]:
    """Return the set of tokens whose indicator correlates best: those with the largest mean activation."""
    seen = np.flatnonzero(sums > 0)
    # Drawn towards 0 by one made-up occurrence: a token that was seen once proves little.
    order = seen[np.argsort(-sums[seen] / (counts[seen] + 1), kind="stable")]
    if not len(order):
        return 0.0, OneOf(tokens=(0,), back=back)
    order = order[:MOST_TOKENS]
    worth = target.worth(np.cumsum(counts[order]), np.cumsum(sums[order]))
    best = int(worth.argmax())
    return float(worth[best]), OneOf(tokens=tuple(order[: best + 1].tolist()), back=back)


def correlation(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Pearson correlation of two arrays of one shape, 0 where one of them is constant."""
    x = predicted.ravel().astype(np.float64) - predicted.mean(dtype=np.float64)
    y = truth.ravel().astype(np.float64) - truth.mean(dtype=np.float64)
    spread = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / spread) if spread > 1e-12 else 0.0


def _values(found: list[Found], truth: np.ndarray) -> np.ndarray:
    values = [
        one.mask * truth[one.mask].mean() if one.mask.any() else one.mask * 0.0 for one in found
    ]
    return np.maximum.reduce(values)


def _rule(found: Found, truth: np.ndarray) -> Rule:
    held = truth[found.mask]
    value = float(held.mean()) if len(held) else 0.0
    return Rule(conditions=found.conditions, value=value)
