"""Ordinary sentences of the generated corpora: what surrounds the studied behaviours."""

from __future__ import annotations

import random
from collections.abc import Callable

from mechatlas.corpus import lexicon as lx
from mechatlas.corpus import templates as tp


class Prose:
    """Sentences about one made-up subject, drawn from one random stream.

    Parameters
    ----------
    rng : random.Random
        The document's own random stream.

    Attributes
    ----------
    topic : str
        Made-up proper name of the subject, of several tokens, which recurs in the document.
    people : list of str
        Full names (given name and made-up surname) that recur.
    towns : list of str
        Made-up place names that recur.
    year : int
        The year around which the document's dates lie.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.topic = self.proper_name()
        self.towns = [self.proper_name() for _ in range(3)]
        self.people = [f"{self.name()} {self.proper_name()}" for _ in range(3)]
        self.year = rng.randrange(1120, 1990)

    def pick(self, options: tuple[str, ...] | list[str]) -> str:
        """Return one of ``options``."""
        return options[int(self.rng.random() * len(options))]

    def name(self) -> str:
        """Return a given name, held-out ones included."""
        return self.pick(ALL_NAMES)

    def proper_name(self) -> str:
        """Return a made-up name of two or three syllables."""
        middle = self.pick(lx.SYLLABLES_MIDDLE) if self.rng.random() < 0.6 else ""
        return self.pick(lx.SYLLABLES_START) + middle + self.pick(lx.SYLLABLES_END)

    def noun_phrase(self) -> str:
        """Return a noun with an article and up to one adjective."""
        adjective = self.pick(lx.ADJECTIVES) + " " if self.rng.random() < 0.6 else ""
        return f"the {adjective}{self.pick(lx.NOUNS)}"

    def date(self) -> str:
        """Return a date in one of two notations."""
        day = self.rng.randrange(1, 29)
        year = self.year + self.rng.randrange(0, 60)
        month = self.pick(lx.MONTHS)
        return self.pick([f"{day} {month} {year}", f"{month} {day}, {year}"])

    def sentence(self) -> str:
        """Return one sentence of a randomly chosen kind."""
        return self.pick_kind(SENTENCES)(self)

    def pick_kind(self, kinds: tuple[Callable[[Prose], str], ...]) -> Callable[[Prose], str]:
        """Return one of several sentence builders."""
        return kinds[int(self.rng.random() * len(kinds))]

    def paragraph(self, low: int = 2, high: int = 4) -> str:
        """Return ``low`` to ``high`` sentences."""
        return " ".join(self.sentence() for _ in range(self.rng.randint(low, high)))


def indefinite(word: str) -> str:
    """Return the word with its indefinite article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


ALL_NAMES = lx.NAMES + lx.HELD_OUT_NAMES


def _event(p: Prose) -> str:
    return (
        f"In {p.year + p.rng.randrange(0, 60)} {p.pick(p.people)} {p.pick(lx.VERBS_PAST)} "
        f"{p.noun_phrase()} of {p.pick(p.towns)}."
    )


def _description(p: Prose) -> str:
    return (
        f"{p.topic} is {indefinite(p.pick(lx.ADJECTIVES))} {p.pick(lx.NOUNS)} near {p.pick(p.towns)}, "
        f"known for its {p.pick(lx.ADJECTIVES)} {p.pick(lx.NOUNS)}."
    )


def _passive(p: Prose) -> str:
    phrase = p.noun_phrase()
    return (
        f"{phrase[0].upper()}{phrase[1:]} was {p.pick(lx.ADVERBS)} {p.pick(lx.VERBS_PAST)} "
        f"on {p.date()}."
    )


def _bracket(p: Prose) -> str:
    inner = f" [{p.pick(lx.NOUNS)} {p.rng.randrange(1, 90)}]" if p.rng.random() < 0.4 else ""
    return (
        f"{p.topic} ({p.noun_phrase()} of {p.pick(p.towns)}{inner}) was "
        f"{p.pick(lx.VERBS_PAST)} by {p.pick(p.people)}."
    )


def _quotation(p: Prose) -> str:
    verb = p.pick(["wrote", "said", "remarked", "answered"])
    inner = f"{p.noun_phrase()} is {p.pick(lx.ADJECTIVES)} and {p.pick(lx.ADJECTIVES)}"
    if p.rng.random() < 0.3:
        inner += f" (or {p.pick(lx.ADJECTIVES)})"
    return f'{p.pick(p.people)} {verb}: "{inner[0].upper()}{inner[1:]}."'


def _title(p: Prose) -> str:
    return (
        f'The {p.pick(lx.NOUNS)} "{p.pick(lx.ADJECTIVES).capitalize()} '
        f'{p.pick(lx.NOUNS).capitalize()}" by {p.pick(p.people)} appeared on {p.date()}.'
    )


def _measure(p: Prose) -> str:
    number = p.rng.choice([p.rng.randrange(2, 99), p.rng.randrange(100, 9999)])
    unit = p.pick(["metres", "kilometres", "inhabitants", "tonnes", "pages", "acres"])
    return f"It has {number} {unit}, {p.rng.randrange(2, 60)} per cent more than {p.pick(p.towns)}."


def _list_inline(p: Prose) -> str:
    words = [p.pick(lx.NOUNS) for _ in range(p.rng.randint(3, 5))]
    return f"Its main products are {', '.join(words[:-1])} and {words[-1]}."


def _visit(p: Prose) -> str:
    verb = p.pick(["went", "moved", "travelled", "returned"])
    return f"{p.name()} {verb} to the {p.pick(lx.PLACES)} and {p.pick(lx.VERBS_PAST)} {p.noun_phrase()}."


def _gift(p: Prose) -> str:
    receiver = p.pick(["the teacher", "the museum", "a neighbour", "the council", "nobody"])
    return f"{p.name()} gave a {p.pick(lx.OBJECTS)} to {receiver}."


def _calendar(p: Prose) -> str:
    return (
        f"The {p.pick(lx.PLACES)} opens on {p.pick(lx.DAYS)} at {p.pick(lx.NUMBER_WORDS)} and "
        f"closes in {p.pick(lx.MONTHS)}."
    )


def _friends(p: Prose) -> str:
    return f"{p.name()}, {p.name()} and {p.name()} lived in {p.pick(p.towns)} at that time."


def _pair(p: Prose) -> str:
    """Two people as in an indirect-object sentence, held-out names included, but without one."""
    opener, _ = tp.training_clauses(p.rng)
    first, second = p.rng.sample(ALL_NAMES, 2)
    clause = tp.text_of(tp.fill(opener, {"X": first, "Y": second, "P": p.pick(lx.PLACES)}))
    rest = p.pick(["it began to rain.", "there was nothing to eat.", "the doors were closed."])
    return f"{clause} {rest[0].upper() + rest[1:] if clause.endswith('.') else rest}"


def _errand(p: Prose) -> str:
    return (
        f"{p.name()} {p.pick(lx.VERBS_PAST)} {p.noun_phrase()} in {p.pick(lx.MONTHS)}, "
        f"{p.pick(lx.NUMBER_WORDS)} years after {p.pick(p.people)}."
    )


def _topic_again(p: Prose) -> str:
    phrase = p.noun_phrase()
    return (
        f"Between {p.pick(p.towns)} and {p.topic}, {phrase} {p.pick(lx.VERBS_PAST)} "
        f"{p.noun_phrase()} {p.pick(lx.ADVERBS)}."
    )


SENTENCES: tuple[Callable[[Prose], str], ...] = (
    *(_event, _description, _passive, _bracket, _quotation, _title, _measure, _list_inline),
    *(_visit, _gift, _calendar, _friends, _errand, _topic_again, _pair, _event, _passive),
)
