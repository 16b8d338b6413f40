"""Sentence templates of the studied behaviours, shared by the generated corpora and by the tasks.

A template is plain text with slots in braces. `fill` turns it into pieces ``(text, role)``, so that the corpora
can join them into prose and the tasks can turn them into tokens without ever searching a string.

Slots of an indirect-object sentence: ``{X}`` and ``{Y}`` are the two names in the order of their first mention,
``{S}`` the repeated one (the subject), ``{P}`` a place, ``{O}`` an object, ``{C}`` a bystander. The answer, the
name that is not repeated, follows the closing clause. An opening clause and a closing clause with a held-out
text never occur in training.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from mechatlas.corpus import lexicon as lx

Pieces = list[tuple[str, str]]

_SET_OPENERS = (
    "Then {X} and {Y} went to the {P},",
    "After {X} and {Y} came back from the {P},",
    "When {X} and {Y} arrived at the {P},",
    "As {X} sat beside {Y} in the {P},",
    "{X} invited {Y} to the {P}.",
    "The {P} was empty when {X} and {Y} looked inside.",
    "A letter brought {X} and {Y} to the {P}.",
    "Because {X} and {Y} had missed the last train,",
    "{X} had a quarrel with {Y} about the {P}, but afterwards",
    "Since {X} and {Y} shared a room near the {P},",
    "{X} was older than {Y}.",
    "In the {P} there were only {X} and {Y}.",
    "{X}, unlike {Y}, liked the {P}.",
    "Neither {X} nor {Y} had been to the {P} before, and",
    "Everyone in the {P} listened to {X} and {Y}.",
    "{X} came with {Y}, and soon",
)
_PAIRS = "worked sang danced argued slept rested stayed dined".split()
_MEETINGS = "met found joined followed visited called helped greeted thanked watched remembered surprised".split()
_WHERE = "in at near outside inside by".split()
_LEADS = (
    *("", "", "One day ", "That autumn ", "In those days ", "It is said that ", "After lunch "),
    *("Near the {P} ", "During the long strike ", "As usual ", "According to the letter, "),
    *("Nobody knew why ", "Two days after the storm, ", "The {P} was closed, but "),
)
_GAPS = (
    *(
        "was a cousin of",
        "sat two rows behind",
        "had once worked for",
        "was looking for",
        "ran into",
    ),
    *("shared a taxi with", "was a good friend of", "played cards with", "lost a game against"),
    *("waited an hour for", "took a photograph of", "was never as tall as", "lived across from"),
    *("had the same teacher as", "cooked dinner for", "often thought of", "owed some money to"),
    *("stood in the long queue before", "had been to school with", "was a little afraid of"),
    *("asked", "liked", "missed", "had heard a lot about", "came in a minute after"),
    *("spent the whole winter with", "bought a ticket for", "told the truth about"),
)
_TAILS = (
    *(".", " at the {P}.", " all week.", ", and then", ", but then", " without much success."),
    *(" near the old {P} of the town.", " and nobody minded.", " very early that morning.", ","),
    *(" at the {P}, and", " for a while.", " in the {P} again."),
)
_ALLIES = (
    *("and", "and old", "and also", "as well as", "together with", "or perhaps", "and little"),
    *("and her friend", "and, of course,", "and his neighbour"),
)
_ACTS = (
    *(
        " went for a walk.",
        " were tired.",
        " had been friends since school.",
        " ate bread in the {P}.",
    ),
    *(" stayed until noon at the {P}.", " slept,", " crossed the {P}, and", " rested for an hour."),
    *(" came home late,", " had nothing to do at the {P}.", " laughed."),
)
IOI_OPENERS = (
    _SET_OPENERS,
    tuple(f"{lead}{{X}} {gap} {{Y}}{tail}" for lead in _LEADS for gap in _GAPS for tail in _TAILS),
    tuple(f"{lead}{{X}} {ally} {{Y}}{act}" for lead in _LEADS for ally in _ALLIES for act in _ACTS),
    tuple(
        form.format(verb=verb, where=where)
        for form in (
            "{{X}} and {{Y}} {verb} {where} the {{P}}.",
            "Because {{X}} and {{Y}} {verb} {where} the {{P}},",
            "For an hour {{X}} and {{Y}} {verb} {where} the {{P}}, and then",
        )
        for verb in _PAIRS
        for where in _WHERE
    ),
    tuple(
        form.format(verb=verb, where=where, Where=where.capitalize())
        for form in (
            "{{X}} {verb} {{Y}} {where} the {{P}}.",
            "When {{X}} {verb} {{Y}} {where} the {{P}},",
            "{{X}} {verb} {{Y}} {where} the {{P}}, and",
            "{Where} the {{P}} {{X}} {verb} {{Y}}.",
        )
        for verb in _MEETINGS
        for where in _WHERE
    ),
)
"""Families of opening clauses; a family is drawn first, so that the large ones do not drown the small."""
_GIVING = (
    "gave handed passed sent offered lent threw showed brought mailed read granted presented shipped"
).split()
_GIFTS = (
    *(
        "a {O}",
        "the {O}",
        "the old {O}",
        "another {O}",
        "one more {O}",
        "the first {O}",
        "a new {O}",
    ),
    *("a very old {O}", "the other {O}", "the {O} from the {P}", "a heavy {O}"),
)
_MANNERS = ("", " later", " kindly", " at once", " secretly")
IOI_CLOSERS = (
    (
        "{S} decided to give the {O} to",
        "{S} quietly said something to",
        "{S} wanted to bring a {O} to",
        "{S} wrote a long letter to",
        "{S} took the {O} and gave it to",
        "{S} was ready to speak to",
        "{S} explained the plan to",
        "{S} had to hand the {O} to",
        "{S} bowed to",
        "{S} described the {P} to",
        "{S} ran over to",
        "{S} brought the {O} straight to",
        "{S} gave the {O} back to",
        "{S} pushed the {O} across to",
        "{S} gave up and went to",
        "{S} handed a very large {O} to",
        "{S} wrapped a red {O} and gave it to",
        "{S} read the news to",
        "{S} gave a {O} and a {O} to",
        "{S} paid for the {O} and passed it on to",
    ),
    tuple(
        f"{{S}}{manner} {verb} {gift} to"
        for manner in _MANNERS
        for verb in _GIVING
        for gift in _GIFTS
    ),
)
"""Families of closing clauses."""
SCATTERED_SHARE = 0.6
_PHRASES = (
    *(
        "the {noun}",
        "a {adjective} {noun}",
        "the {{P}}",
        "a {{O}}",
        "{adverb}",
        "{verb}",
        "{number}",
    ),
    *("{preposition} the {noun}", "{preposition} the {{P}}", "{preposition} {adjective} {noun}"),
    *(
        "{verb} the {noun}",
        "{auxiliary} {verb}",
        "{auxiliary} {adverb} {verb}",
        "{verb} {preposition}",
    ),
    *("{auxiliary} {adjective}", "{link}", "{link} {adverb}", "{number} {noun} {preposition}"),
    *("of", "{preposition}", "{auxiliary}", "{adjective}", "{noun}", "the"),
    *("to", "to the {noun}", "{verb} to", "{invented} to"),
    *("{invented}", "{invented}", "{invented} {preposition}", "{invented} the {noun}"),
    *(
        "{auxiliary} {invented}",
        "the {invented}",
        "{invented} {invented}",
        "{preposition} {invented}",
    ),
)
# English letter frequencies, roughly.
_LETTERS = "eeeeeeetttttaaaaoooooiiiinnnnsssshhhrrrdddllluucccmmwwffggyyppbbvkxjqz"
_PREPOSITIONS = (
    "in at on near by with from of for after before over under about against without around along "
    "between through during until towards across inside outside beyond"
).split()
_AUXILIARIES = (
    "was were had is are would could did has will must might never also always still".split()
)
_LINKS = "and but or when because since as although where who which that if than then".split()
_JOINTS = ("and", "or", "with", "of", "and then", "near", "but not", "for", "to", "from", "by")
CLAUSE_STOPS = (".", ".", ",", ", and", ", but", " and", " when", ";", ":", ", so", ", because")
HELD_OUT_OPENERS = (
    "While {X} and {Y} were waiting in the {P},",
    "On the road to the {P}, {X} talked with {Y}.",
    "For many years {X} lived next to {Y} at the {P}.",
    "Yesterday {X} saw {Y} behind the {P}, so",
    "The owner of the {P} knew {X} and {Y} well.",
)
HELD_OUT_CLOSERS = (
    "{S} sold a {O} to",
    "{S} carried the {O} over to",
    "{S} returned the {O} to",
    "{S} promised a small {O} to",
    "{S} left the {O} to",
)
IOI_PREFIXES = (
    "",
    "",
    "",
    "In the evening it rained.",
    "It was a cold morning.",
    "Nobody remembers the year.",
    "The story is well known in the valley.",
    "At first everything was quiet, and the doors of the council hall were closed.",
    "Some weeks later, in the middle of the harvest, the weather changed again.",
    "{C} was not there.",
    "{C} had already gone home, and the others were tired.",
)
IOI_MIDDLES = (
    "",
    "",
    "",
    "",
    "The room was dark.",
    "It was almost noon.",
    "There was little time, and the wind was strong.",
    "{C} watched from the window.",
    "Nobody else was there except {C}.",
)
IOI_ENDINGS = (
    ".",
    ".",
    ".",
    " and went home.",
    " before dinner.",
    ", who smiled.",
    " without a word.",
    " because it was late.",
)
SEQUENCE_CLAUSE = "{W} {F} in {M}."
SEQUENCE_OPEN = "{W} {F} in"
YEAR_SENTENCE = "The {E} lasted from the year {HI}{LO} to the year {HI}"


def training_clauses(rng: random.Random) -> tuple[str, str]:
    """Draw an opening and a closing clause of the kinds that occur in training."""
    return rng.choice(rng.choice(IOI_OPENERS)), rng.choice(rng.choice(IOI_CLOSERS))


def scattered_clauses(rng: random.Random) -> tuple[str, str]:
    """Draw clauses as `training_clauses` does, but scatter many of either kind over random words.

    Among random words only the names themselves tell who is meant, whatever the sentence says about them.
    """
    opener, closer = training_clauses(rng)
    if rng.random() < SCATTERED_SHARE:
        opener = scattered_opener(rng)
    if rng.random() < SCATTERED_SHARE:
        closer = scattered_closer(rng)
    return opener, closer


def scattered_opener(rng: random.Random) -> str:
    """Draw an opening clause with up to three random phrases before, between and after the two names."""
    between = _phrases(rng, 1, 3) if rng.random() < 0.7 else [rng.choice(_JOINTS)]
    words = [*_phrases(rng, 0, 3), "{X}", *between, "{Y}", *_phrases(rng, 0, 3)]
    text = " ".join(words) + rng.choice(CLAUSE_STOPS)
    return text[0].upper() + text[1:]


def scattered_closer(rng: random.Random) -> str:
    """Draw a closing clause with one to three random phrases between the subject and ``to``."""
    return " ".join(["{S}", *_phrases(rng, 1, 3), "to"])


def _phrases(rng: random.Random, low: int, high: int) -> list[str]:
    return [_phrase(rng) for _ in range(rng.randint(low, high))]


def _phrase(rng: random.Random) -> str:
    kind = rng.choice(_PHRASES)
    return kind.format(**random_words(rng))


def random_words(rng: random.Random) -> dict[str, str]:
    """Draw a word of every kind that phrases are made of: kind to word."""
    return {
        "invented": invented_word(rng),
        "adjective": rng.choice(lx.ADJECTIVES),
        "adverb": rng.choice(lx.ADVERBS),
        "auxiliary": rng.choice(_AUXILIARIES),
        "link": rng.choice(_LINKS),
        "noun": rng.choice(lx.NOUNS),
        "number": rng.choice(lx.NUMBER_WORDS),
        "preposition": rng.choice(_PREPOSITIONS),
        "verb": rng.choice(lx.VERBS_PAST),
    }


def invented_word(rng: random.Random) -> str:
    """Draw a word of two to seven letters that the tokenizer has to spell in pieces."""
    return "".join(rng.choice(_LETTERS) for _ in range(rng.randint(2, 7)))


def held_out_clauses(rng: random.Random) -> tuple[str, str]:
    """Draw an opening and a closing clause, neither of which occurs in training."""
    return rng.choice(HELD_OUT_OPENERS), rng.choice(HELD_OUT_CLOSERS)


_SLOT = re.compile(r"\{([A-Z]+)\}")


def fill(
    template: str, values: Mapping[str, str], roles: Mapping[str, str] | None = None
) -> Pieces:
    """Replace the slots of a template and return its pieces in order.

    Parameters
    ----------
    template : str
    values : mapping
        Slot to text; every slot of the template must be present.
    roles : mapping, optional
        Slot to role; pieces of fixed text and slots that are not named have the role ``""``.

    Returns
    -------
    list of (str, str)
        Pieces whose texts joined give the filled template; a blank before a slot belongs to the slot's piece, as
        byte-level tokenizers attach it to the word.
    """
    pieces: Pieces = []
    position = 0
    for match in _SLOT.finditer(template):
        fixed = template[position : match.start()]
        blank = " " if fixed.endswith(" ") else ""
        if fixed[: len(fixed) - len(blank)]:
            pieces.append((fixed[: len(fixed) - len(blank)], ""))
        pieces.append((blank + values[match.group(1)], (roles or {}).get(match.group(1), "")))
        position = match.end()
    if template[position:]:
        pieces.append((template[position:], ""))
    return pieces


def text_of(pieces: Pieces) -> str:
    """Join the texts of pieces."""
    return "".join(text for text, _ in pieces)


def ioi_pieces(
    opener: str,
    closer: str,
    values: Mapping[str, str],
    order: str,
    prefix: str = "",
    middle: str = "",
) -> Pieces:
    """Build an indirect-object prompt up to the place of the answer.

    Parameters
    ----------
    opener, closer : str
        One of the opening and one of the closing clauses.
    values : mapping
        ``IO`` and ``S`` (names) and the slots ``P``, ``O``, ``C``.
    order : {"ABBA", "BABA"}
        ``ABBA``: the indirect object is mentioned first; ``BABA``: the subject is.
    prefix, middle : str
        Sentences before the opening clause and between the clauses; may hold ``{C}``.

    Returns
    -------
    list of (str, str)
        Pieces with the roles ``io``, ``s1``, ``s2``, each exactly once. The text begins without a blank.
    """
    first, second = ("IO", "S") if order == "ABBA" else ("S", "IO")
    slots = {**values, "X": values[first], "Y": values[second]}
    roles = {"X": "io" if first == "IO" else "s1", "Y": "s1" if first == "IO" else "io"}
    sentences = [(prefix, {}), (opener, roles), (middle, {}), (closer, {"S": "s2"})]
    if middle and not opener.endswith("."):
        # A clause that ends with a comma runs on into the closing one, so the aside goes in front of it.
        sentences = [(prefix, {}), (middle, {}), (opener, roles), (closer, {"S": "s2"})]
    pieces: Pieces = []
    for template, names in sentences:
        if template:
            pieces.extend(fill((" " if pieces else "") + template, slots, names))
    return pieces
