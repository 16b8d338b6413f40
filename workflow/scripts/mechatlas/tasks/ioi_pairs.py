"""Indirect objects in pairs: ``When Mary and John went to the shop, John gave a drink to`` -> ``Mary``.

The task, its two orders of names (ABBA, BABA) and the ABC corruption are those of Wang et al. 2022 (arXiv 2211.00593),
section 2; names, templates and fillers are our own.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product

from mechatlas.corpus import lexicon as lx
from mechatlas.corpus import templates as tp
from mechatlas.io import UserError, seed_for
from mechatlas.tasks.build import PromptBuilder
from mechatlas.tasks.pairs import Pair
from mechatlas.tasks.pools import need, one_of, split_pool

ORDERS = ("ABBA", "BABA")
NAMES = {
    "train": lx.NAMES,
    "held_out": lx.HELD_OUT_NAMES,
    "all": lx.NAMES + lx.HELD_OUT_NAMES,
}
CORRUPTIONS = ("abc", "swap", "subject")
SLOTS = frozenset({"X", "Y", "S", "P", "O"})
CLAUSE_DRAWS = 1000

Template = tuple[str, str]
"""An opening and a closing clause, see `mechatlas.corpus.templates`."""

_OPENERS = (
    "Then {X} and {Y} went to the {P},",
    "When {X} and {Y} went to the {P},",
    "When {X} and {Y} were in the {P},",
    "When {X} and {Y} met near the {P},",
    "Then {X} and {Y} met outside the {P},",
    "Because {X} and {Y} were at the {P},",
    "Because {X} and {Y} lived near the {P},",
    "Then {X} and {Y} returned from the {P},",
)
_CLOSERS = (
    "{S} gave a {O} to",
    "{S} gave the {O} to",
    "{S} brought a {O} to",
    "{S} brought the {O} to",
    "{S} described the {O} to",
)
STANDARD = tuple(product(_OPENERS, _CLOSERS))
"""Plain sentences, of equal length in tokenizers that know their words."""


@dataclass(frozen=True)
class IoiTask:
    """Sentences with two names, one of them repeated, after which the other one follows.

    Attributes
    ----------
    names : {"train", "held_out", "all"}
        Which names of `mechatlas.corpus.lexicon`.
    templates : {"standard", "train", "held_out"}
        Plain sentences, or clauses that the embedded models' training shows or does not show.
    own_templates : sequence of str
        Templates of one's own in their place, with the slots ``{X}`` and ``{Y}`` (the names in order of mention), then
        ``{S}`` (the repeated one), and at will ``{P}`` (place) and ``{O}`` (object).
    orders : sequence of {"ABBA", "BABA"}
        Whether the indirect object is mentioned first or the subject is.
    corruption : {"abc", "swap", "subject"}
        ``abc``: three unrelated names; ``swap``: the two names exchanged throughout; ``subject``: only the repeated
        name replaced by the other one, so that both positions and names point to the wrong answer.

    Raises
    ------
    UserError
        If a setting is not known or a template lacks a slot.
    """

    names: str = "train"
    templates: str = "standard"
    own_templates: Sequence[str] = ()
    orders: Sequence[str] = ORDERS
    corruption: str = "abc"

    def __post_init__(self) -> None:
        one_of("names", self.names, tuple(NAMES))
        one_of("corruption", self.corruption, CORRUPTIONS)
        for order in self.orders or ("",):
            one_of("orders", order, ORDERS)
        one_of("templates", self.templates, ("standard", "train", "held_out"))
        for text in self.own_templates:
            _check_template(text)

    def pairs(self, builder: PromptBuilder, split: str, seed: int) -> Iterator[Pair]:
        """Yield pairs, balanced over orders; names, and templates if there are several, differ between the splits.

        All templates have the same length and the names in the same places.
        """
        names = split_pool(builder.single_words(NAMES[self.names]), split, seed, "ioi names")
        need(builder.task, "names", names, 5)
        fillers = {"P": builder.single_words(lx.PLACES), "O": builder.single_words(lx.OBJECTS)}
        for slot, words in fillers.items():
            need(builder.task, {"P": "places", "O": "objects"}[slot], words, 1)
        templates = self.aligned_templates(builder, fillers, seed)
        if len(templates) > 1:
            templates = split_pool(templates, split, seed, "ioi templates")
        rng = random.Random(seed_for(seed, "ioi pairs", split, self.names))
        for order in cycle(self.orders):
            values = {slot: rng.choice(words) for slot, words in fillers.items()}
            io, subject, *others = rng.sample(names, 5)
            values |= {"IO": io, "S": subject}
            yield self._pair(builder, rng.choice(templates), order, values, others)

    def aligned_templates(
        self, builder: PromptBuilder, fillers: Mapping[str, Sequence[str]], seed: int
    ) -> tuple[Template, ...]:
        """Return those templates that share the commonest length and places of the names.

        Raises
        ------
        UserError
            If no template can be tokenized.
        """
        values = {slot: words[0] for slot, words in fillers.items()}
        values |= dict(zip(("IO", "S"), builder.single_words(NAMES[self.names])[:2], strict=True))
        layouts: dict[Template, tuple[int, ...]] = {}
        for template in self._all_templates(seed):
            # Without a leading blank a name that begins the text would be another token than the answer.
            if builder.leading_blank or not template[0].startswith("{"):
                prompt = builder.prompt(ioi_pieces(template, ORDERS[0], values))
                places = (prompt.roles[role] for role in ("io", "s1", "s2"))
                layouts[template] = (len(prompt.tokens), *places)
        if not layouts:
            raise UserError(
                f"task {builder.task}: every template begins with a name; name others, or set leading_blank: true"
            )
        counts = Counter(layouts.values())
        common = min(counts, key=lambda layout: (-counts[layout], layout))
        return tuple(template for template, layout in layouts.items() if layout == common)

    def _all_templates(self, seed: int) -> Sequence[Template]:
        if self.own_templates:
            return tuple(_clauses(text) for text in dict.fromkeys(self.own_templates))
        if self.templates == "standard":
            return STANDARD
        if self.templates == "held_out":
            return tuple(product(tp.HELD_OUT_OPENERS, tp.HELD_OUT_CLOSERS))
        rng = random.Random(seed_for(seed, "ioi clauses"))
        return tuple(dict.fromkeys(tp.training_clauses(rng) for _ in range(CLAUSE_DRAWS)))

    def _pair(
        self,
        builder: PromptBuilder,
        template: Template,
        order: str,
        values: Mapping[str, str],
        others: Sequence[str],
    ) -> Pair:
        io, subject = values["IO"], values["S"]
        names = {"io": io, "s1": subject, "s2": subject}
        replaced = {
            "abc": dict(zip(names, others, strict=True)),
            "swap": {"io": subject, "s1": io, "s2": io},
            "subject": {**names, "s2": io},
        }[self.corruption]
        clean = ioi_pieces(template, order, values)
        corrupted = [(f" {replaced[role]}" if role else text, role) for text, role in clean]
        return builder.pair(
            clean,
            corrupted,
            f" {io}",
            f" {subject}",
            group=order,
            fillers=(io, subject, *(others if self.corruption == "abc" else ())),
            corrupted_answer="" if self.corruption == "abc" else f" {subject}",
        )


def ioi_pieces(template: Template, order: str, values: Mapping[str, str]) -> tp.Pieces:
    """Return the pieces of a prompt, each name with its blank a piece of its own.

    Roles: ``io``, ``s1`` (the subject's first mention), ``s2`` (its second).
    """
    pieces = tp.ioi_pieces(*template, values, order)
    (first, role), *rest = pieces
    return [(first if first.startswith(" ") else f" {first}", role), *rest]


def _clauses(text: str) -> Template:
    """Split a template of one's own before the repeated name."""
    opener, closer = text.split(" {S}")
    return opener, "{S}" + closer


def _check_template(text: str) -> None:
    slots = [part.split("}")[0] for part in text.split("{")[1:]]
    names = [slot for slot in slots if slot in ("X", "Y", "S")]
    # With its blank a name is the token that it is as the answer.
    after_blanks = all(f" {{{name}}}" in f" {text}" for name in ("X", "Y", "S"))
    if names != ["X", "Y", "S"] or set(slots) - SLOTS or not after_blanks:
        raise UserError(
            f"own_templates: {text!r} must hold {{X}}, {{Y}} and then {{S}} once each and after a blank, and of other "
            "slots only {P} and {O}; correct it"
        )
