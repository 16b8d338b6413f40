"""Clauses of indirect-object sentences between the fixed templates and random words.

A model that sees only some hundred openings and, beside them, clauses scattered over random words learns which of the
two it is in: a sentence that reads like neither, say one that begins with an unknown adverbial, then makes it prefer
the name that was mentioned last. The clauses here fill that gap: they have the grammar of the templates, but their
words, openings and joints are drawn anew each time, and many of their words are invented.
"""

from __future__ import annotations

import random

from mechatlas.corpus import lexicon as lx
from mechatlas.corpus import templates as tp

LEAD_SHARE = 0.6
CHANGE_RATES = (0.1, 0.25, 0.5)
_UNITS = "minutes hours days nights weeks months summers winters pages miles tides".split()
_LEADS = (
    *("{adverb}", "{adverb},", "{invented}", "{invented},", "{preposition} {invented}"),
    *("{preposition} {number} {unit}", "for {number} {unit}", "over {number} {unit}"),
    *("for {invented} {unit}", "{preposition} {adjective} {unit}", "all {unit}"),
    *("{number} {unit} {preposition} the {noun},", "{preposition} the {noun}"),
    *("{preposition} the {adjective} {noun}", "{preposition} the {noun} {preposition} the {{P}},"),
    *("{preposition} the {noun} to the {{P}},", "{preposition} the {invented} of the {{P}}"),
    *(
        "{preposition} {month}",
        "{preposition} {month},",
        "on {day}",
        "on {day} {preposition} {noun}",
    ),
    *("in the year {year},", "{preposition} {year}", "it was {adjective} that", "it {verb} that"),
    *("the {noun} {verb} that", "the {noun} {verb} and", "a {invented} {verb}, but", "{link}"),
    *("{link} the {noun} {verb},", "{link} {adverb}", "{link} {preposition} the {{P}}"),
)
_RELATIONS = (
    *("{verb}", "{verb} {preposition}", "{auxiliary} {verb}", "{auxiliary} {verb} {preposition}"),
    *("was {adjective} {preposition}", "was a {noun} of", "was {adverb} {adjective} {preposition}"),
    *("{invented}", "{invented}ed", "{invented}ed {preposition}", "{invented} {preposition}"),
    *("{adverb} {verb}", "{auxiliary} {adverb} {verb}", "{verb} the {noun} {preposition}"),
    *("{verb} a {adjective} {noun} {preposition}", "{verb} {invented} {preposition}", "{verb} to"),
    *("was {adjective} to", "{auxiliary} {invented} to", "{verb} {adverb} to", "was {invented} to"),
    *("{verb} {number} {unit} {preposition}", "{verb} more {noun} than", ", {adjective} as"),
)
_JOINTS = (
    *("and", "and", "and", "and", "or", "with", "and {adjective}", "and also", "and the {noun} of"),
    *("and her {noun}", "but not", "and {adverb}", "and {invented}", ", {link}", "as well as"),
)
_DEEDS = (
    *("{verb}", "{verb} the {noun}", "were {adjective}", "were {adverb} {verb}", "had {verb}"),
    *("{verb} {preposition}", "were {invented}", "{invented}ed", "{auxiliary} {verb} {invented}"),
    *("had {number} {noun}", "{verb} to the {noun}", "were {invented}ing"),
)
_ONLOOKERS = (
    *("the {noun} {verb}", "the {adjective} {noun} {verb}", "the {noun} of the {{P}} {verb}"),
    *("the {invented} of the {{P}} {verb}", "the {noun} {invented}ed", "a {noun} {invented}"),
    *("nobody {preposition} the {{P}} {verb}", "the {noun} was {adjective} {preposition}"),
    *("the {{P}} {verb}", "there {auxiliary} {verb}", "a {{O}} {verb} {preposition}"),
)
_TAILS = (
    *(
        "",
        "",
        "",
        " {preposition} the {{P}}",
        " {preposition} the {{P}}",
        " {adverb}",
        " {invented}",
    ),
    *(
        " {preposition} the {noun}",
        " {preposition} {number} {unit}",
        " {adverb} {preposition} {noun}",
    ),
    *(" {adjective}", " {preposition} the {adjective} {{P}}", " {invented} the {{P}}"),
)


def varied_clauses(rng: random.Random) -> tuple[str, str]:
    """Draw an opening and a closing clause: of templates, altered, composed or scattered."""
    opener, closer = tp.training_clauses(rng)
    kind = rng.random()
    if kind < 0.3:
        opener = altered_opener(rng, opener)
    elif kind < 0.65:
        opener = composed_opener(rng)
    elif kind < 0.8:
        opener = tp.scattered_opener(rng)
    kind = rng.random()
    if kind < 0.25:
        closer = altered_closer(rng, closer)
    elif kind < 0.6:
        closer = tp.scattered_closer(rng)
    return opener, closer


def altered_opener(rng: random.Random, opener: str) -> str:
    """Change some words of an opening clause, add others, and often put an adverbial before it."""
    text = " ".join(_altered(rng, opener.split(" ")))
    if rng.random() < LEAD_SHARE:
        text = f"{_filled(rng, _LEADS)} {text[0].lower()}{text[1:]}"
    return text[0].upper() + text[1:]


def altered_closer(rng: random.Random, closer: str) -> str:
    """Change some words of a closing clause between the subject and ``to``, and add others."""
    subject, *words, last = closer.split(" ")
    return " ".join([subject, *_altered(rng, words), last])


def composed_opener(rng: random.Random) -> str:
    """Draw an opening clause with the grammar of the templates and words of its own."""
    kind = rng.random()
    if kind < 0.45:
        clause = f"{{X}} {_filled(rng, _RELATIONS)} {{Y}}"
    elif kind < 0.75:
        clause = f"{{X}} {_filled(rng, _JOINTS)} {{Y}} {_filled(rng, _DEEDS)}"
    else:
        clause = f"{_filled(rng, _ONLOOKERS)} {{X}} {_filled(rng, _JOINTS)} {{Y}}"
    lead = f"{_filled(rng, _LEADS)} " if rng.random() < LEAD_SHARE else ""
    text = lead + clause + _filled(rng, _TAILS) + rng.choice(tp.CLAUSE_STOPS)
    text = text.replace(" ,", ",")
    return text[0].upper() + text[1:]


def _filled(rng: random.Random, forms: tuple[str, ...]) -> str:
    words = tp.random_words(rng) | {
        "unit": rng.choice(_UNITS),
        "month": rng.choice(lx.MONTHS),
        "day": rng.choice(lx.DAYS),
        "year": str(rng.randrange(1100, 2000)),
    }
    return rng.choice(forms).format(**words)


def _altered(rng: random.Random, words: list[str]) -> list[str]:
    rate, result = rng.choice(CHANGE_RATES), []
    for word in words:
        if rng.random() < rate / 2:
            result.append(_random_word(rng))
        if "{" in word or rng.random() >= rate:
            result.append(word)
        else:
            result.append(_random_word(rng) + word[len(word.rstrip(".,;:")) :])
    return result


def _random_word(rng: random.Random) -> str:
    words = tp.random_words(rng)
    return words["invented"] if rng.random() < 0.4 else rng.choice(list(words.values()))
