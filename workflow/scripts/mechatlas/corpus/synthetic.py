"""Seeded generator of encyclopedia-like articles and question/answer threads.

Document ``i`` of a style depends only on the style, the seed and ``i``, so a longer corpus begins with the shorter
one. The text mixes ordinary sentences (`mechatlas.corpus.prose`) with passages of the behaviours that later analyses
study (`mechatlas.corpus.behaviours`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from mechatlas.corpus import lexicon as lx
from mechatlas.corpus.behaviours import Clauses, indirect_object, passage
from mechatlas.corpus.company import company
from mechatlas.corpus.document import Document
from mechatlas.corpus.prose import Prose, indefinite
from mechatlas.corpus.templates import scattered_clauses, training_clauses
from mechatlas.corpus.varied_clauses import varied_clauses
from mechatlas.io import UserError, seed_for

SECTIONS = (
    "History",
    "Geography",
    "Description",
    "Economy",
    "Legacy",
    "Reception",
    "Construction",
    "People",
)
DRILL_SENTENCES = 12
DRILL_OTHER_SHARE = 0.4
COMPANY_SHARE = 0.2
VARIED_SENTENCES = 8
LISTS = ("Notable residents", "Buildings", "Works", "Timeline", "Landmarks")


def generate_documents(style: str, count: int, seed: int) -> Iterator[Document]:
    """Yield the first ``count`` documents of a style.

    Parameters
    ----------
    style : {"wiki", "qa"}
        Encyclopedia-like articles or question/answer threads.
    count : int
        Number of documents, at least 0.
    seed : int
        Base seed; see `mechatlas.io.seed_for`.

    Raises
    ------
    UserError
        If the style is unknown or ``count`` is negative.
    """
    if style not in STYLES:
        raise UserError(
            f"style: unknown style {style!r} of generated text; use one of {', '.join(STYLES)}"
        )
    if count < 0:
        raise UserError(f"count: {count} documents of generated text; give 0 or more")
    return (generate_document(style, index, seed) for index in range(count))


def generate_document(style: str, index: int, seed: int) -> Document:
    """Return document ``index`` of a style (see `generate_documents`)."""
    rng = random.Random(seed_for(seed, "synthetic", style, index))
    return Document(f"{style}-{seed}-{index:07d}", STYLES[style](Prose(rng)))


def generate_drills(count: int, seed: int, kind: str = "drill") -> Iterator[Document]:
    """Yield documents of behaviour passages alone, most of them indirect-object sentences, for training.

    As with `generate_documents`, document ``i`` depends only on the kind, the seed and ``i``. The text begins with a
    blank, as prompts do.

    Parameters
    ----------
    count, seed : int
        As in `generate_documents`.
    kind : {"drill", "scattered", "varied"}
        Clauses of the templates alone, of `mechatlas.corpus.templates.scattered_clauses`, or of
        `mechatlas.corpus.varied_clauses.varied_clauses`; varied drills also hold sentences of
        `mechatlas.corpus.company`.
    """
    for index in range(count):
        rng = random.Random(seed_for(seed, "synthetic", kind, index))
        yield Document(f"{kind}-{seed}-{index:07d}", DRILLS[kind](rng))


def _drill(rng: random.Random, clauses: Clauses = training_clauses) -> str:
    p = Prose(rng)
    parts = []
    for _ in range(DRILL_SENTENCES):
        # An indirect-object sentence stands between any two other passages, see `_mixed`.
        if rng.random() < DRILL_OTHER_SHARE:
            parts.append(p.sentence() if rng.random() < 0.5 else passage(rng))
        parts.append(indirect_object(rng, clauses))
    return " " + " ".join(parts) + "\n"


def _scattered_drill(rng: random.Random) -> str:
    return _drill(rng, scattered_clauses)


def _varied_drill(rng: random.Random) -> str:
    p = Prose(rng)
    parts = []
    # Half of the drills begin with an indirect-object sentence, as prompts do.
    begin = rng.randrange(2)
    for index in range(VARIED_SENTENCES):
        if index >= begin:
            if rng.random() < COMPANY_SHARE:
                parts.append(company(rng))
            if rng.random() < DRILL_OTHER_SHARE:
                parts.append(p.sentence() if rng.random() < 0.5 else passage(rng))
        parts.append(indirect_object(rng, varied_clauses))
    return " " + " ".join(parts) + "\n"


def _mixed(p: Prose, behaviours: int) -> str:
    """Return ordinary sentences with ``behaviours`` passages among them.

    A passage never comes first and never follows another one, so that two passages cannot join into something that is
    held out.
    """
    parts = [p.sentence() for _ in range(behaviours + p.rng.randint(0, 2))]
    gaps = set(p.rng.sample(range(len(parts)), behaviours))
    texts = [[part, passage(p.rng)] if i in gaps else [part] for i, part in enumerate(parts)]
    return " ".join(text for group in texts for text in group)


def _article(p: Prose) -> str:
    blocks = [f"= {p.topic} =", _lead(p) + " " + _mixed(p, 1)]
    for section in p.rng.sample(SECTIONS, 3):
        blocks.append(f"== {section} ==")
        blocks.extend(_mixed(p, p.rng.randint(1, 3)) for _ in range(p.rng.randint(1, 2)))
    blocks.append(f"== {p.pick(LISTS)} ==")
    blocks.append(_items(p))
    return "\n\n".join(blocks) + "\n"


def _lead(p: Prose) -> str:
    return (
        f"{p.topic} ({p.pick(lx.ADJECTIVES)} {p.pick(lx.NOUNS)}, {p.year}) is {indefinite(p.pick(lx.NOUNS))} in "
        f"{p.pick(p.towns)}, first mentioned by {p.pick(p.people)} on {p.date()}."
    )


def _items(p: Prose) -> str:
    count = p.rng.randint(3, 6)
    marks = ["*"] * count if p.rng.random() < 0.5 else [f"{n}." for n in range(1, count + 1)]
    return "\n".join(
        f"{mark} {p.pick(p.people)} ({p.year + p.rng.randrange(60)}), {p.pick(lx.ADJECTIVES)} {p.pick(lx.NOUNS)}"
        for mark in marks
    )


def _thread(p: Prose) -> str:
    adjective, noun = p.pick(lx.ADJECTIVES), p.pick(lx.NOUNS)
    title = p.pick(QUESTIONS).format(
        topic=p.topic, noun=noun, adjective=adjective, a_noun=indefinite(noun)
    )
    body = f"I have read about {p.topic} in {p.pick(p.towns)}. {_mixed(p, p.rng.randint(1, 3))}"
    blocks = ["Q:", title, body]
    if p.rng.random() < 0.5:
        blocks.append(f"What I tried (so far):\n\n{_steps(p)}")
    for _ in range(p.rng.randint(1, 2)):
        blocks += ["A:", f"{p.pick(ANSWERS)} {_mixed(p, p.rng.randint(2, 3))}", _quoted(p, title)]
        blocks += [_mixed(p, p.rng.randint(1, 2))]
    blocks.append(f"{p.name()}: thanks, {p.pick(lx.ADVERBS)} solved. {_mixed(p, 1)}")
    return "\n\n".join(blocks) + "\n"


def _steps(p: Prose) -> str:
    count = p.rng.randint(3, 5)
    return "\n".join(
        f"{n}. I {p.pick(lx.VERBS_PAST)} {p.noun_phrase()}" for n in range(1, count + 1)
    )


def _quoted(p: Prose, title: str) -> str:
    verb = p.pick(("check", "set", "call"))
    sentence = p.sentence()
    call = f"{p.pick(lx.NOUNS)}({p.pick(lx.NOUNS)}[{p.rng.randrange(12)}])"
    return f'You asked "{title}" {sentence} Then {verb} {call}.'


QUESTIONS = (
    "How do I find the {adjective} {noun} of {topic}?",
    "Why is {topic} called {a_noun}?",
    "Where is the {adjective} {noun} in {topic}?",
    "What does {topic} have to do with the {noun}?",
    "Who paid for the {adjective} {noun}?",
)
ANSWERS = (
    "There is a short answer.",
    "It depends on what you need.",
    "This is a common question.",
    "Yes, but not always.",
    "I had the same problem.",
)
STYLES: dict[str, Callable[[Prose], str]] = {"wiki": _article, "qa": _thread}
DRILLS: dict[str, Callable[[random.Random], str]] = {
    "drill": _drill,
    "scattered": _scattered_drill,
    "varied": _varied_drill,
}
