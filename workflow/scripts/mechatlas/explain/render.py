"""English renderings of programs."""

from __future__ import annotations

import numpy as np

from mechatlas.explain.programs import Program
from mechatlas.explain.scores_form import RELATIONS, Scores, relation_places
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
    """Summarise a predicted pattern by the relation that holds most of it, else by its largest flows."""
    attention = prediction.copy()
    attention[:, 0] = 0
    sink = float(attention[:, 1:, 0].mean())
    attention[:, :, 0] = 0
    total = float(attention.sum())
    if sink > 0.99 or total == 0:
        return f"Rests on BOS ({_percent(sink)})."
    main = _relations(attention, view, least=0.5, lift=1.0)[:1]
    if main:
        text = (
            f"By its score tables attends mostly to {main[0][0]} ({_percent(main[0][1])} off BOS)"
        )
    else:
        text = f"By its score tables attends {_join(_flows(attention, view, flows))}"
        often = _relations(attention, view, least=0.08, lift=4.0)[:2]
        phrases = [f"{words} ({_percent(held)})" for words, held in often]
        text += f"; often to {_join(phrases)}" if phrases else ""
    pair = _strongest_pair(attention, view)
    return f"{text}; strongest pair {pair}; {_percent(sink)} rests on BOS."


def _flows(attention: np.ndarray, view: TokenView, count: int) -> list[str]:
    """The largest flows from a class of queries to what they look at, with their share of the attention off BOS."""
    total = float(attention.sum())
    by_class = np.bincount(view.classes.ravel(), attention.sum(-1).ravel(), minlength=len(CLASSES))
    phrases = []
    for query_class in np.argsort(-by_class, kind="stable")[:count]:
        share = by_class[query_class] / total
        if phrases and share < 0.08:
            break
        rows = attention * (view.classes == query_class)[:, :, None]
        main = _relations(rows, view, least=0.5, lift=1.0)
        target = main[0][0] if main else _key_classes(rows, view)
        phrases.append(f"from {_class_words(query_class)} to {target} ({_percent(share)})")
    return phrases


def _relations(
    rows: np.ndarray, view: TokenView, least: float, lift: float
) -> list[tuple[str, float]]:
    """The relations that say most about where the mass of some rows goes, with the share that each holds, best first.

    Each holds at least ``least`` of the mass, and at least ``lift`` times what the share of the keys that it marks
    would give it. A relation that marks many keys holds much of any attention, so they are ordered by the mass beyond
    that share; one that marks nearly the same places as a better one is left out. ``rows`` [W, T, T] are zero for
    queries that do not count, query 0 among them, and for BOS.
    """
    total = float(rows.sum())
    busy = rows.sum(-1) > 0
    keys = float(np.broadcast_to(np.arange(rows.shape[1]), busy.shape)[busy].sum())
    flat, length = rows.ravel(), rows.shape[-1]
    found: list[tuple[float, str, float, np.ndarray]] = []
    for name, places in zip(RELATIONS, relation_places(view), strict=True):
        mass = float(flat[places].sum()) / total
        expected = float(busy.ravel()[places // length].sum()) / max(keys, 1.0)
        if mass >= max(least, lift * expected) and mass > expected:
            found.append((mass - expected, _RELATION_WORDS[name], mass, places))
    kept: list[tuple[str, float, np.ndarray]] = []
    for _, words, mass, places in sorted(found, key=lambda item: -item[0]):
        both = [
            float(flat[np.intersect1d(places, other, assume_unique=True)].sum()) / total
            for *_, other in kept
        ]
        if all(shared < 0.5 * mass for shared in both):
            kept.append((words, mass, places))
    return [(words, mass) for words, mass, _ in kept]


def _key_classes(rows: np.ndarray, view: TokenView) -> str:
    """Describe where the mass of some rows goes by the one or two largest classes of keys."""
    key_mass = np.bincount(
        np.broadcast_to(view.classes[:, None, :], rows.shape).ravel(), rows.ravel(), len(CLASSES)
    )
    top = np.argsort(-key_mass, kind="stable")[:2]
    kept = [c for c in top if key_mass[c] >= 0.2 * key_mass.sum()] or [top[0]]
    return "earlier " + _join([_class_words(c) for c in kept])


def _strongest_pair(attention: np.ndarray, view: TokenView) -> str:
    unique, inverse = view.memo("token pairs", _token_pairs)
    mass = np.bincount(inverse, attention[:, 1:].ravel())
    code, size = int(unique[mass.argmax()]), len(view.vocabulary)
    show = view.vocabulary.show
    return f"{show(code // size)} to {show(code % size)}"


def _token_pairs(view: TokenView) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of a query's and a key's token as numbers, each once, and which of them each entry [W, T - 1, T] is."""
    codes = view.tokens[:, 1:, None] * len(view.vocabulary) + view.tokens[:, None, :]
    unique, inverse = np.unique(codes, return_inverse=True)
    return unique, inverse.ravel()


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
    if name == "auxiliary":
        return "auxiliary verbs"
    return name + ("es" if name.endswith("s") else "s")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _join(phrases: list[str]) -> str:
    if len(phrases) < 2:
        return "".join(phrases)
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]
