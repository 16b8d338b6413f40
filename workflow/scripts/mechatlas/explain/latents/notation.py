"""Rules of latents as short text, such as ``regex("ing$") & tokens(" of", back=1)``: how language models write them.

Tokens are given by their text, leading space included; a text that is no token of the vocabulary is an error.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from mechatlas.explain.data_block import clean_explanation
from mechatlas.explain.latents.conditions import Condition, Matches, Near, OfClass, OneOf, Seen
from mechatlas.explain.latents.programs import LatentProgram, parse_latent_program
from mechatlas.explain.vocabulary import CLASSES, Vocabulary
from mechatlas.io import UserError

#: What language models are told about the conditions. A test holds it against `CONDITIONS`.
DESCRIPTION = f"""\
tokens(" a"," b"): the token is one of these, each written as a token with its leading space if it has one
regex("..."): the token's own text matches a Python regular expression
class("C"): the token is of class C
position("sentence",N): it is among the first N tokens of its sentence; also "line" and "window"
seen(): its word stood earlier in the text; seen(False): it did not
Any of them with back=N looks at the token N places before, N 1 to 8. Conditions are joined by &.
C: {", ".join(CLASSES[1:])}."""
CONDITIONS: Mapping[str, tuple[type[Condition], tuple[str, ...]]] = {
    "tokens": (OneOf, ()),
    "regex": (Matches, ("pattern",)),
    "class": (OfClass, ("name",)),
    "position": (Near, ("start", "within")),
    "seen": (Seen, ("seen",)),
}


def parse_conditions(text: str, vocabulary: Vocabulary) -> tuple[Condition, ...]:
    """Read conditions joined by ``&``.

    Raises
    ------
    UserError
        If the text is not in the notation, or names an unknown condition, parameter or token.
    """
    # "class" is a word of Python's, so it cannot be called there.
    source = text[:2000].replace("class(", "class_(")
    try:
        tree = ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(f"{_shown(text)} is not of the form name(value) & name(value)") from None
    return tuple(_condition(node, vocabulary) for node in _joined(tree, text))


def parse_rules(
    rules: Sequence[tuple[float, str]], vocabulary: Vocabulary, top: float
) -> LatentProgram:
    """Build a program from strengths (0 to 10) and conditions in the notation.

    Parameters
    ----------
    rules : sequence of (float, str)
    vocabulary : Vocabulary
    top : float
        Activation that a strength of 10 stands for.

    Raises
    ------
    UserError
        Saying which rule is wrong, and why.
    """
    parts: list[dict[str, Any]] = []
    for number, (strength, text) in enumerate(rules, 1):
        try:
            if not 0 <= strength <= 10:
                raise UserError(f"strength {strength:g} is not between 0 and 10")
            conditions = [c.model_dump(mode="json") for c in parse_conditions(text, vocabulary)]
        except UserError as error:
            raise UserError(f"rule {number}: {error}") from None
        parts.append({"form": "rule", "conditions": conditions, "value": strength / 10 * top})
    return parse_latent_program({"parts": parts})


def _joined(node: ast.expr, text: str) -> list[ast.Call]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        return [*_joined(node.left, text), *_joined(node.right, text)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return [node]
    raise UserError(f"{_shown(text)} is not of the form name(value) & name(value)")


def _condition(node: ast.Call, vocabulary: Vocabulary) -> Condition:
    assert isinstance(node.func, ast.Name)
    name = node.func.id.rstrip("_")
    if name not in CONDITIONS:
        raise UserError(f"unknown condition {_shown(name)}")
    kind, order = CONDITIONS[name]
    values = [_constant(argument, name) for argument in node.args]
    fields = {keyword.arg or "": _constant(keyword.value, name) for keyword in node.keywords}
    if name == "tokens":
        fields["tokens"] = [_token(value, vocabulary) for value in values]
    elif len(values) > len(order):
        raise UserError(f"{name} takes {len(order)} values, not {len(values)}")
    else:
        fields |= dict(zip(order, values, strict=False))
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise UserError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _constant(node: ast.expr, name: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | bool):
        return node.value
    raise UserError(f"{name}: only texts, numbers, True and False may stand in it")


def _token(text: Any, vocabulary: Vocabulary) -> int:
    known = _tokens_by_text(vocabulary)
    if text not in known:
        raise UserError(f"tokens: {_shown(str(text))} is no single token; use regex, or its parts")
    return known[text]


def _tokens_by_text(vocabulary: Vocabulary) -> dict[str, int]:
    found = vocabulary.__dict__.get("_tokens_by_text")
    if found is None:
        found = {text: token for token, text in reversed(list(enumerate(vocabulary.texts)))}
        vocabulary.__dict__["_tokens_by_text"] = found
    return found


def _shown(text: str) -> str:
    return repr(clean_explanation(text, 40))
