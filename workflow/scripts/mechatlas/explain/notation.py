"""Symbolic forms as short text, such as ``induction(prefix=2,offset=1,pick=last)``: how language models write them.

The notation is that of `mechatlas.explain.programs.form_key`. Forms with tables of numbers (``distance``, ``scores``)
cannot be written in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from mechatlas.explain import forms
from mechatlas.explain.data_block import clean_explanation
from mechatlas.explain.programs import Program, parse_program
from mechatlas.explain.vocabulary import CLASSES
from mechatlas.io import UserError

SYMBOLIC: dict[str, type[forms.Form]] = {
    kind.model_fields["form"].default: kind
    for kind in (
        forms.Itself,
        forms.Previous,
        forms.Start,
        forms.Duplicate,
        forms.SameWord,
        forms.Induction,
        forms.Delimiter,
        forms.Opener,
        forms.TokenClass,
        forms.SameClass,
        forms.Member,
        forms.Uniform,
    )
}
#: What language models are told about the forms. A test holds it against `SYMBOLIC`.
DESCRIPTION = f"""\
self(): the QUERY itself
previous(offset=N): the token N back, N 1 to 64
start(of=line|sentence): first token of the QUERY's line or sentence
duplicate(pick=P): earlier copies of the QUERY token
same_word(pick=P): earlier spellings of its word with other case or leading space
induction(prefix=N,offset=1|-1,pick=P): the token after (1) or before (-1) an earlier occurrence of the last N tokens, \
N 1 to 4
delimiter(): the latest of . , ; : ? ! or line break
opener(): the innermost bracket or quotation mark still open
class(name=C,pick=P): earlier tokens of class C
same_class(pick=P): earlier tokens of the QUERY's class
member(step=N,pick=P): members of the QUERY's sequence (numbers, months, weekdays, letters) N steps on; any without step
uniform(): all tokens alike
P: all, last or first. C: {", ".join(CLASSES[1:])}."""
_FORM = re.compile(r"\s*([a-z_]+)\s*(?:\(([^()]*)\))?\s*")


def parse_form(text: str) -> forms.Form:
    """Read one form.

    Raises
    ------
    UserError
        If it is not in the notation, unknown, or has a parameter or value that the form does not have.
    """
    found = _FORM.fullmatch(text[:200])
    if found is None:
        raise UserError(f"{_shown(text)} is not of the form name(parameter=value, ...)")
    name, inside = found.group(1), found.group(2) or ""
    if name not in SYMBOLIC:
        raise UserError(f"unknown form {_shown(name)}")
    fields: dict[str, Any] = {"form": name}
    for part in filter(str.strip, inside.split(",")):
        key, sign, value = (piece.strip() for piece in part.partition("="))
        if not sign or key in fields or key not in SYMBOLIC[name].model_fields:
            raise UserError(f"{name}: {_shown(key)} is not a parameter of it")
        fields[key] = _value(value)
    try:
        return SYMBOLIC[name].model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise UserError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def parse_parts(parts: Sequence[tuple[float, str]]) -> Program:
    """Build a program from shares and forms in the notation.

    Raises
    ------
    UserError
        Saying which part is wrong, and why.
    """
    data = []
    for number, (share, text) in enumerate(parts, 1):
        try:
            data.append({"share": share, "form": parse_form(text).model_dump(mode="json")})
        except UserError as error:
            raise UserError(f"part {number}: {error}") from None
    return parse_program({"parts": data})


def _value(text: str) -> Any:
    text = text.strip("'\"")
    if re.fullmatch(r"[+-]?\d{1,9}", text):
        return int(text)
    return None if text in ("None", "null", "any") else text


def _shown(text: str) -> str:
    return repr(clean_explanation(text, 40))
