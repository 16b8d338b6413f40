"""Behaviours of attention heads that words can name and that measurements can show.

A behaviour is known by three things that come from different places: phrases by which an explanation names it, a
measurement on repeated random tokens that no explanation has seen, and the tasks that need it by what they ask. The
behaviours are those whose attention on repeated random tokens is fixed by their definition: previous-token and
induction heads (Elhage et al. 2021; Olsson et al. 2022, arXiv 2209.11895) and duplicate-token heads (Wang et al. 2022,
arXiv 2211.00593).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Behaviour:
    """A behaviour of heads.

    Attributes
    ----------
    words : str
        Its name.
    phrases : str
        Regular expression of the phrases that name it, without regard to case.
    measure : str
        Column of roles/heads.parquet: attention on repeated random tokens, 0 to 1.
    needed_by : tuple of str
        Kinds of tasks that cannot be done as published without heads of this behaviour.
    """

    words: str
    phrases: str
    measure: str
    needed_by: tuple[str, ...]


BEHAVIOURS: Mapping[str, Behaviour] = MappingProxyType(
    {
        "previous_token": Behaviour(
            "previous token",
            r"\b(?:previous|preceding) token\b|\btoken (?:just|immediately|right) before\b",
            "previous_token",
            ("induction", "ioi"),
        ),
        "duplicate_token": Behaviour(
            "duplicate token",
            r"\b(?:earlier|previous) (?:copy|copies|occurrences?) of the same token\b|\bduplicate tokens?\b",
            "duplicate_token",
            ("ioi",),
        ),
        "induction": Behaviour(
            "induction",
            r"\binduction\b"
            r"|\btokens? (?:after|that followed) (?:\w+ )?(?:earlier|previous) (?:copy|copies|occurrences?) of\b",
            "induction",
            ("induction", "ioi"),
        ),
    }
)
#: Words for a head that rests on the sink: all that it says is that it does nothing.
_IDLE = re.compile(
    r"^\s*(?:rests|attends only|always attends) (?:on|to) (?:BOS|the sink)\b"
    r"|otherwise rests on BOS \((?:9[5-9]|100) % or more\)",
    flags=re.IGNORECASE,
)
#: What a head may be called after, with the phrases that say so; the one with the largest share names it.
CLASSES: Mapping[str, str] = MappingProxyType(
    {
        **{behaviour.words: behaviour.phrases for behaviour in BEHAVIOURS.values()},
        "delimiter": r"\b(?:delimiters?|sentence ends|punctuation|full stops?|periods?|newlines?)\b",
        "itself": r"\b(?:the token itself|its own position|the current token only)\b",
        "near tokens": r"\b(?:positions? back|nearby tokens|recent tokens|by distance)\b",
        "start": r"\bfirst token of the (?:line|sentence)\b",
        "bracket": r"\b(?:open bracket|opening bracket|quotation mark)s?\b",
        "same class": r"\bof the same class\b|\bof its sequence\b|\bmembers? of the\b",
    }
)
#: A class names a head only from this share of its attention on.
NAMING_SHARE = 0.25
IDLE, MIXED, UNEXPLAINED = "rests on BOS", "mixed", "not explained"
_PERCENT = re.compile(r"[^.;(]{0,60}?(?:\([^()%]*\)[^.;(]{0,3})?\((\d+(?:\.\d+)?) ?%")


def stated_share(text: str, phrases: str) -> float:
    """Return the share of a head's attention that its explanation gives to what some phrases name.

    Parameters
    ----------
    text : str
    phrases : str
        Regular expression.

    Returns
    -------
    float
        0 if the behaviour is not named; the percentage that stands behind the name if there is one, the largest of
        several mentions; 1 if it is named without a number.
    """
    largest = 0.0
    for found in re.finditer(phrases, text, flags=re.IGNORECASE):
        number = _PERCENT.match(text[found.end() :].lstrip(")"))
        largest = max(largest, float(number[1]) / 100 if number else 1.0)
    return min(1.0, largest)


def says_idle(text: str) -> bool:
    """Tell whether an explanation says that the head rests on the sink and does next to nothing else."""
    return _IDLE.search(text) is not None


def word_class(text: str) -> str:
    """Return what an explanation says mostly, in a word or two: a key of `CLASSES`, or one of the words above."""
    if not text:
        return UNEXPLAINED
    if says_idle(text):
        return IDLE
    shares = {name: stated_share(text, phrases) for name, phrases in CLASSES.items()}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= NAMING_SHARE else MIXED
