"""English renderings of programs."""

from __future__ import annotations

import numpy as np

from mechatlas.explain.programs import Program
from mechatlas.explain.scores_form import RELATIONS, Scores
from mechatlas.explain.vocabulary import CLASSES, TokenView

# Names of relations as they read after "to".
_RELATION_WORDS = {name: form.english() for name, form in RELATIONS.items()}


def render(program: Program, view: TokenView) -> str:
    """Return a program as one or two English sentences.

    Parameters
    ----------
    program : Program
    view : TokenView
        Windows on which the learned tables are summarised (train windows); symbolic parts do not need them.
    """
    learned = [part for part in program.parts if isinstance(part.form, Scores)]
    if learned:
        return _render_scores(program.predict(view), view)
    parts = [part for part in program.parts if part.share >= 0.005]
    if not parts:
        return "Rests on BOS."
    phrases = [f"{part.form.english()} ({_percent(part.share)})" for part in parts]
    text = f"Attends to {_join(phrases)}"
    if program.sink >= 0.05:
        text += f"; otherwise rests on BOS ({_percent(program.sink)} or more)"
    return text + "."


def _render_scores(prediction: np.ndarray, view: TokenView, flows: int = 3) -> str:
    """Summarise a predicted pattern by its largest flows from query class to key."""
    attention = prediction[:, 1:].copy()
    sink = float(attention[:, :, 0].mean())
    attention[:, :, 0] = 0
    total = float(attention.sum())
    if sink > 0.97 or total == 0:
        return f"Rests on BOS ({_percent(sink)})."
    phrases = []
    by_class = _mass_by_query_class(attention, view)
    for query_class in np.argsort(-by_class, kind="stable")[:flows]:
        if by_class[query_class] < 0.08 * total:
            break
        rows = attention * (view.classes[:, 1:] == query_class)[:, :, None]
        share = by_class[query_class] / total
        phrases.append(
            f"from {_class_words(query_class)} to {_target(rows, view)} ({_percent(share)})"
        )
    text = (
        f"By its score tables attends {_join(phrases)}"
        if phrases
        else "Attends to many tokens a little"
    )
    pair = _strongest_pair(attention, view)
    if pair:
        text += f"; strongest pair {pair}"
    return f"{text}; {_percent(sink)} rests on BOS."


def _mass_by_query_class(attention: np.ndarray, view: TokenView) -> np.ndarray:
    mass = attention.sum(-1).ravel()
    return np.bincount(view.classes[:, 1:].ravel(), mass, minlength=len(CLASSES))


def _target(rows: np.ndarray, view: TokenView) -> str:
    """Describe where the mass of some rows goes: by a relation if one holds most of it, else by key class."""
    total = rows.sum()
    best, held = "", 0.0
    for name, form in RELATIONS.items():
        marks = view.memo(name, form.affinity)[:, 1:] > 0
        mass = float(rows[marks].sum() / total)
        # A relation that marks fewer keys says more, so it has to hold less of the mass.
        if mass > 0.6 and mass - 0.2 * float(marks.sum() / marks[:, :, 0].size) / 10 > held:
            best, held = name, mass
    if best:
        return _RELATION_WORDS[best]
    key_mass = np.bincount(
        np.broadcast_to(view.classes[:, None, :], rows.shape).ravel(), rows.ravel(), len(CLASSES)
    )
    top = np.argsort(-key_mass, kind="stable")[:2]
    kept = [c for c in top if key_mass[c] >= 0.2 * total] or [top[0]]
    return "earlier " + _join([_class_words(c) for c in kept])


def _strongest_pair(attention: np.ndarray, view: TokenView) -> str:
    size = len(view.vocabulary)
    codes = view.tokens[:, 1:, None] * size + view.tokens[:, None, :]
    unique, inverse = np.unique(codes, return_inverse=True)
    mass = np.bincount(inverse.ravel(), attention.ravel())
    code = int(unique[mass.argmax()])
    show = view.vocabulary.show
    return f"{show(code // size)} to {show(code % size)}"


def _class_words(index: int) -> str:
    name = CLASSES[index]
    plural = {
        "opener": "opening brackets",
        "closer": "closing brackets",
        "quote": "quotation marks",
    }
    if name in plural:
        return plural[name]
    if name in ("comma or colon", "other punctuation", "BOS"):
        return {"comma or colon": "commas and colons"}.get(name, name)
    return name + ("es" if name.endswith("s") else "s")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _join(phrases: list[str]) -> str:
    if len(phrases) < 2:
        return "".join(phrases)
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]
