"""Sentences about people that are not indirect-object sentences, so that held-out names are names like the others.

Drills are full of the training names. If the held-out names stood in prose alone, a model would learn two classes of
names with embeddings of their own, and what it learns of the one would not hold for the other. Here the held-out names
stand where names stand in drills: in opening clauses, at the beginning of the next sentence, behind ``to``, in lists
that are read again; but no sentence of two names is followed by one that hands something from one to the other. Nor
does what they do end in ``to``: a model would learn that with held-out names something else than a name follows.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from mechatlas.corpus import lexicon as lx
from mechatlas.corpus import templates as tp
from mechatlas.corpus.varied_clauses import varied_clauses

HELD_OUT_SHARE = 0.6
_RESTS = (
    *("it began to rain.", "there was nothing to eat.", "the doors were closed."),
    *("the {noun} was {adjective}.", "the {noun} {verb} the {noun}.", "nobody {verb} the {noun}."),
)
_DEEDS = (
    *("{verb} the {noun}.", "{auxiliary} {verb} the {adjective} {noun}.", "was {adjective}."),
    *("{adverb} {verb} {preposition} the {noun}.", "gave a {O} away.", "{invented}ed."),
    *("brought the {O} {preposition} the {P}.", "{verb} {number} {noun} {preposition} the {P}."),
    *("handed everything over.", "{verb} the {O} {preposition} the {P}.", "{invented} it."),
)
_STATES = (
    *(
        "belonged to",
        "was new to",
        "meant nothing to",
        "seemed {adjective} to",
        "was {invented} to",
    ),
    *("had been {adjective} to", "was {adverb} known to", "came as a surprise to", "was dear to"),
)
_THINGS = (
    "The {noun}",
    "The {adjective} {noun}",
    "The old {O}",
    "A {O}",
    "The {P}",
    "This {invented}",
)
_CALLS = ("Present:", "The list:", "In this order:", "Guests:", "Read the names:", "They are")


def company(rng: random.Random) -> str:
    """Return a sentence or two about people, most of whose names are held out."""
    return rng.choice(KINDS)(rng)


def _names(rng: random.Random, count: int) -> list[str]:
    pool = lx.HELD_OUT_NAMES if rng.random() < HELD_OUT_SHARE else lx.NAMES
    return rng.sample(pool, count)


def _words(rng: random.Random) -> dict[str, str]:
    return tp.random_words(rng) | {"P": rng.choice(lx.PLACES), "O": rng.choice(lx.OBJECTS)}


def _opening(rng: random.Random, first: str, second: str) -> str:
    opener, _ = varied_clauses(rng)
    values = {**_words(rng), "X": first, "Y": second}
    return tp.text_of(tp.fill(opener, values))


def _pair(rng: random.Random) -> str:
    """Two people, and then something else."""
    clause = _opening(rng, *_names(rng, 2))
    rest = rng.choice(_RESTS).format(**_words(rng))
    return f"{clause} {rest[0].upper() + rest[1:] if clause.endswith('.') else rest}"


def _pair_again(rng: random.Random) -> str:
    """Two people, and then one of them alone."""
    pair = _names(rng, 2)
    return f"{_opening(rng, *pair)} {rng.choice(pair)} {rng.choice(_DEEDS).format(**_words(rng))}"


def _state(rng: random.Random) -> str:
    thing, state = (rng.choice(forms).format(**_words(rng)) for forms in (_THINGS, _STATES))
    return f"{thing} {state} {_names(rng, 1)[0]}{rng.choice(tp.IOI_ENDINGS)}"


def _deed(rng: random.Random) -> str:
    return f"{_names(rng, 1)[0]} {rng.choice(_DEEDS).format(**_words(rng))}"


def _roll_call(rng: random.Random) -> str:
    call, names = rng.choice(_CALLS), _names(rng, rng.randint(3, 6))
    return " ".join([f"{call} {', '.join(names[:-1])} and {names[-1]}."] * 2)


KINDS: tuple[Callable[[random.Random], str], ...] = (
    *(_pair, _pair, _pair_again, _pair_again, _pair_again, _state, _state, _deed, _roll_call),
)
