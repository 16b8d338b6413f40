"""Undo the tokenisation of WikiText: spaces around punctuation, quotes and brackets, and split contractions.

The tokeniser of that corpus (Moses' English one, with `` @-@ ``, `` @,@ `` and `` @.@ `` for the hyphens, commas and
points inside a word or number) put a space between all tokens. Where the original spacing cannot be known for certain,
the more frequent one in edited English is taken: no space beside a slash between words, or beside an en dash or colon
between numbers, but spaces beside any other dash.
"""

from __future__ import annotations

import re

SEPARATOR = re.compile(r"\s?@([-,.])@\s?")
LEFT = frozenset(", . ; : ! ? % ) ] } ” ... .... … ′ ″".split())  # no space before
RIGHT = frozenset("( [ { “ ‘ £ € ¥ ₤ #".split())  # no space after
JOINS_WORDS = frozenset("/ ⁄ ‑".split())  # no space on either side, between words
JOINS_NUMBERS = frozenset("– :".split())  # likewise, between numbers
QUOTES = ('"', "'")
APOSTROPHES = ("'", "’")
ENDINGS = frozenset("s t m d re ve ll S T M D RE VE LL".split())  # of contractions
DOLLARS = frozenset("US NZ HK AU CA C S".split())  # not A: A $10 million grant
APOSTROPHE_REACH = 8  # tokens within which a single quote that opens is expected to close


def detokenise(line: str) -> str:
    """Return one paragraph or heading of WikiText with its original spacing, as far as that can be known.

    Quotation marks are taken in pairs within the paragraph. White space becomes single spaces.
    """
    tokens = SEPARATOR.sub(r"\1", line).split()
    opened = dict.fromkeys(QUOTES, False)
    pieces: list[str] = []
    glued = True  # nothing to separate the first token from
    for place, token in enumerate(tokens):
        left, right = (False, False) if token[0].isalnum() else _joins(tokens, place, opened)
        if not (glued or left):
            pieces.append(" ")
        pieces.append(token)
        glued = right
    return "".join(pieces)


def _joins(tokens: list[str], place: int, opened: dict[str, bool]) -> tuple[bool, bool]:
    """Return whether a token that is no word joins the one before it and the one after it."""
    token = tokens[place]
    before = tokens[place - 1] if place else ""
    after = tokens[place + 1] if place + 1 < len(tokens) else ""
    if token in APOSTROPHES and after in ENDINGS and _is_word(before, -1):
        return True, True
    if token in QUOTES:
        return _quote(tokens, place, opened, before, after)
    if token in JOINS_NUMBERS and before[-1:].isdigit() and after[:1].isdigit():
        return True, True
    if token in JOINS_WORDS:
        joined = _is_word(before, -1) and _is_word(after, 0)
        return joined, joined
    if token == "$":
        return before in DOLLARS, True
    if token == "&":
        joined = len(before) == len(after) == 1 and (before + after).isupper()
        return joined, joined
    if token == "°":
        # 30 °C, but 45° N.
        return after not in ("C", "F"), after in ("C", "F")
    # The tokeniser never leaves an apostrophe at the start of a word that did not begin with more of the word.
    return token in LEFT or token == "’" or (token[0] == "'" and len(token) > 1), token in RIGHT


def _is_word(token: str, place: int) -> bool:
    """Whether a token has a letter or digit at a place, or stands for a rare word (in the corpora that are not raw)."""
    return token == "<unk>" or (token != "" and token[place].isalnum())


def _quote(
    tokens: list[str], place: int, opened: dict[str, bool], before: str, after: str
) -> tuple[bool, bool]:
    token = tokens[place]
    if token == "'" and not opened[token]:
        if after[:1].isdigit() and before[-1:] != "s":
            return False, True  # '70s
        if after == "n" and tokens[place + 2 : place + 3] == ["'"]:
            return False, True  # rock 'n' roll
        if before == "n" and place > 1 and tokens[place - 2] == "'":
            return True, False
        if before[-1:] in ("s", "z", "x") and _possessive(tokens, place, after):
            return True, False
    closes = opened[token] or (not after and place > 0)
    opened[token] = not closes
    return closes, not closes


def _possessive(tokens: list[str], place: int, after: str) -> bool:
    """Whether a single quote after an s belongs to the word (the players' names)."""
    later = tokens[place + 1 : place + 1 + APOSTROPHE_REACH]
    return after[:1].islower() or "'" not in later
