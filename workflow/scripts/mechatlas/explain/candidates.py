"""Explanations that a language model gave for one head, and how they are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mechatlas.explain.excerpts import Example
from mechatlas.explain.llm.requests import Usage

#: Most failures shown in a revision.
FAILURES = 8


@dataclass(frozen=True)
class Candidate:
    """One explanation as a model gave it.

    Attributes
    ----------
    text : str
        Empty if the model gave none, for ``reason``.
    reason : str
    program : Program or LatentProgram, optional
    program_error : str
        Why a program that the model wrote is not valid.
    reply : str
        What the model wrote.
    usage : Usage
        Of everything that led to it.
    iou, match : float, optional
        Of its program with validation patterns (see `mechatlas.explain.validation.Validation.fit`).
    auc : float, optional
        Of the judge's ratings of validation pairs.
    """

    text: str
    reason: str = ""
    program: Any = None
    program_error: str = ""
    reply: str = ""
    usage: Usage = field(default_factory=Usage)
    iou: float | None = None
    match: float | None = None
    auc: float | None = None

    def facts(self, forms_of: Callable[[Any], list[str]]) -> dict[str, Any]:
        """Return what a record keeps of a candidate; ``forms_of`` names the forms of its program."""
        forms = None if self.program is None else forms_of(self.program)
        return {
            **{"text": self.text, "reason": self.reason, "forms": forms},
            **{"match": rounded(self.match), "judge_auc": rounded(self.auc)},
        }


def criterion(candidates: Sequence[Candidate]) -> str:
    """Return what candidates are compared by: "judge", "program", or "first" where there is nothing to go by."""
    if any(candidate.auc is not None for candidate in candidates):
        return "judge"
    return "program" if any(c.program is not None for c in candidates) else "first"


def best_of(candidates: Sequence[Candidate]) -> int:
    """Return the place of the best candidate, of equals the first.

    Those with a text go before those without, those with a value of the `criterion` before those without.
    """
    judged = criterion(candidates) == "judge"

    def worth(place: int) -> tuple[Any, ...]:
        candidate = candidates[place]
        value = candidate.auc if judged else candidate.match
        return (not candidate.text, value is None, -(value or 0.0), place)

    return min(range(len(candidates)), key=worth)


def pair_auc(ratings: Sequence[float | None], labels: Sequence[bool]) -> float | None:
    """Return how often an active pair is rated above an inactive one, ties counting half; None without both kinds."""
    known = [(r, label) for r, label in zip(ratings, labels, strict=True) if r is not None]
    active = [r for r, label in known if label]
    inactive = [r for r, label in known if not label]
    if not active or not inactive:
        return None
    wins = sum((a > b) + 0.5 * (a == b) for a in active for b in inactive)
    return wins / (len(active) * len(inactive))


def worst_failures(
    examples: Sequence[Example], values: Sequence[float | None], least: float
) -> list[Example]:
    """Return the examples that are most on the wrong side of ``least``, at most half of `FAILURES` of each kind.

    Parameters
    ----------
    examples : sequence of Example
    values : sequence of float or None
        What was said of each.
    least : float
        Values from here on say "active".
    """
    known = [(v, e) for v, e in zip(values, examples, strict=True) if v is not None]
    missed = sorted(((v, e) for v, e in known if e.label and v < least), key=lambda p: p[0])
    claimed = sorted(((v, e) for v, e in known if not e.label and v >= least), key=lambda p: -p[0])
    half = FAILURES // 2
    return [example for _, example in [*missed[:half], *claimed[:half]]]


def rounded(value: float | None) -> float | None:
    """Return a number as records keep it."""
    return None if value is None else round(float(value), 6)
