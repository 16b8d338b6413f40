"""Passages of the generated corpora that teach the behaviours studied later.

Nothing held out (see `mechatlas.corpus.lexicon`) is ever produced here.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from mechatlas.corpus import lexicon as lx
from mechatlas.corpus import templates as tp

RANDOM_MEMBER_SHARE = 0.1


Clauses = Callable[[random.Random], tuple[str, str]]


def indirect_object(rng: random.Random, clauses: Clauses = tp.training_clauses) -> str:
    """Return an indirect-object sentence, of clauses that ``clauses`` draws, with its answer and an ending."""
    io, subject, bystander = rng.sample(lx.NAMES, 3)
    values = {"IO": io, "S": subject, "C": bystander}
    values |= {"P": rng.choice(lx.PLACES), "O": rng.choice(lx.OBJECTS)}
    pieces = tp.ioi_pieces(
        *clauses(rng),
        values,
        rng.choice(("ABBA", "BABA")),
        rng.choice(tp.IOI_PREFIXES),
        rng.choice(tp.IOI_MIDDLES),
    )
    return f"{tp.text_of(pieces)} {io}{rng.choice(tp.IOI_ENDINGS)}"


def continuation(rng: random.Random) -> str:
    """Return clauses such as ``Kettle done in three.`` whose members count up (rarely: are random)."""
    class_name = rng.choice(tuple(lx.SEQUENCES))
    frame = rng.choice(lx.FRAMES)
    if rng.random() < RANDOM_MEMBER_SHARE:
        members = _without_run(rng, class_name)
    else:
        members = _allowed_run(rng, class_name, frame)
    words = rng.sample(
        lx.NAMES + lx.HELD_OUT_NAMES if frame == "born" else lx.SUBJECTS, len(members)
    )
    clauses = (
        tp.text_of(tp.fill(tp.SEQUENCE_CLAUSE, {"W": word, "F": frame, "M": member}))
        for word, member in zip(words, members, strict=True)
    )
    return " ".join(clauses)


def _allowed_run(rng: random.Random, class_name: str, frame: str) -> tuple[str, ...]:
    allowed = [s for s in lx.starts(class_name) if not lx.held_out_start(class_name, frame, s)]
    start = rng.choice(allowed)
    return lx.members_from(class_name, start, 5)


def _without_run(rng: random.Random, class_name: str) -> tuple[str, ...]:
    members = lx.SEQUENCES[class_name]
    chosen = [rng.randrange(len(members))]
    while len(chosen) < 5:
        candidate = rng.randrange(len(members))
        if candidate != (chosen[-1] + 1) % len(members):
            chosen.append(candidate)
    return tuple(members[i] for i in chosen)


def counting(rng: random.Random) -> str:
    """Return a sequence in ordinary prose, mostly rising, sometimes falling."""
    class_name = rng.choice(tuple(lx.SEQUENCES))
    members = lx.SEQUENCES[class_name]
    count = rng.randint(4, min(9, len(members)))
    start = rng.randrange(len(members) if class_name in lx.CYCLIC else len(members) - count + 1)
    run = lx.members_from(class_name, start, count)
    lead = rng.choice(
        ("The order is", "They are marked", "Count with me:", "The sections are", "We met in")
    )
    if rng.random() < 0.2:
        run, lead = run[::-1], "In reverse the order is"
    kind = rng.randrange(4)
    if kind == 0:
        return f"{lead} {', '.join(run)}."
    if kind == 1:
        return f"{lead} {' then '.join(run)}."
    if kind == 2:
        return f"{lead} {', '.join(run[:-1])} and {run[-1]}."
    return (
        f"{lead} "
        + " ".join(f"{m} {w}," for m, w in zip(run, rng.sample(lx.OBJECTS, count), strict=True))[
            :-1
        ]
        + "."
    )


def year_span(rng: random.Random) -> str:
    """Return a sentence about a span of years that ends after it starts, within one century."""
    while True:
        century, start = rng.randrange(11, 20), rng.randrange(2, 99)
        if not lx.held_out_year(century, start):
            break
    values = {"E": rng.choice(lx.YEAR_EVENTS), "HI": str(century), "LO": f"{start:02d}"}
    end = rng.randrange(start + 1, 100)
    return f"{tp.text_of(tp.fill(tp.YEAR_SENTENCE, values))}{end:02d}."


def repetition(rng: random.Random) -> str:
    """Return a block of random words or codes that is read twice or three times."""
    count = rng.randint(5, 14)
    if rng.random() < 0.5:
        block = " ".join(rng.choice(_BLOCK_WORDS) for _ in range(count))
    else:
        block = "-".join("".join(rng.choices(lx.CODE_SYMBOLS, k=3)) for _ in range(count // 2 + 1))
    label = rng.choice(("Sign", "Code", "Signal", "Inscription", "Key"))
    return " ".join([f"{label}: {block}."] * rng.choice((2, 2, 3)))


_BLOCK_WORDS = lx.OBJECTS + lx.PLACES + lx.NOUNS + lx.ADJECTIVES + lx.NUMERALS + lx.NAMES

BEHAVIOURS: tuple[Callable[[random.Random], str], ...] = (
    *(indirect_object, indirect_object, indirect_object, indirect_object),
    *(continuation, continuation, continuation, counting, counting, year_span, repetition),
)


def passage(rng: random.Random) -> str:
    """Return one passage of a randomly chosen behaviour."""
    return rng.choice(BEHAVIOURS)(rng)
