"""Replies of language models, read strictly: the whole reply is one JSON object of a known form, or it is an error."""

from __future__ import annotations

import json
import re
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

#: Longer replies are refused before they are parsed.
LONGEST = 100_000
_FENCE = re.compile(r"\A\s*```(?:json|JSON)?[ \t]*\n(.*)\n[ \t]*```\s*\Z", flags=re.DOTALL)


class ReplyError(Exception):
    """A reply that cannot be used.

    Attributes
    ----------
    reason : str
        In words that a table can show; never holds text of the reply.
    retry : bool
        Whether asking again may help; not where the model refused.
    """

    def __init__(self, reason: str, *, retry: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry = retry


class Reply(BaseModel):
    """Base of the forms of replies: no other fields, no conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AnswerLike(Protocol):
    """What is read of an answer (`mechatlas.explain.llm.requests.Answer`)."""

    text: str
    finish_reason: str


R = TypeVar("R", bound=BaseModel)


def read_answer(answer: AnswerLike, form: type[R]) -> R:
    """Read an answer; one that was refused or cut off is an error whatever it says.

    Raises
    ------
    ReplyError
        See `read_reply`.
    """
    if answer.finish_reason in ("refusal", "content_filter"):
        raise ReplyError("the model refused to answer", retry=False)
    if answer.finish_reason == "length":
        raise ReplyError("the answer was cut off at max_tokens")
    return read_reply(answer.text, form)


def read_reply(text: str, form: type[R]) -> R:
    """Read a reply as one JSON object of a form.

    Parameters
    ----------
    text : str
        The whole reply. A code fence around the object is allowed, anything else is not.
    form : subclass of pydantic's BaseModel
        Usually of `Reply`.

    Raises
    ------
    ReplyError
        If the text is empty, is not JSON, is not an object, names a field twice, or does not have the form.
    """
    return check_form(read_object(text), form)


def check_form(data: Any, form: type[R]) -> R:
    """Turn plain JSON values into a form.

    Raises
    ------
    ReplyError
        If they do not have it; the reason names the field.
    """
    try:
        return form.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        known = {name for model in _models(form) for name in model.model_fields}
        # Names that the model made up are not repeated: they may be text of the corpus.
        where = ".".join(str(part) for part in first["loc"] if part in known) or "the object"
        raise ReplyError(f"{where}: {_kind(first['type'])}") from None


def read_object(text: str) -> dict[str, Any]:
    """Read a reply as one JSON object; see `read_reply`."""
    if not text.strip():
        raise ReplyError("the answer is empty")
    if len(text) > LONGEST:
        raise ReplyError("the answer is too long to be read")
    fenced = _FENCE.match(text)
    try:
        data = json.loads(
            fenced.group(1) if fenced else text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
        )
    except (json.JSONDecodeError, RecursionError) as error:
        raise ReplyError("the answer is not one JSON object") from error
    except ValueError as error:  # a number with thousands of digits
        raise ReplyError("the answer holds a number that cannot be read") from error
    if not isinstance(data, dict):
        raise ReplyError("the answer is not one JSON object")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ReplyError("the answer names a field twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise ReplyError("the answer holds a number that is not finite")


def _models(form: type[BaseModel]) -> list[type[BaseModel]]:
    """Return a form and the forms that its fields hold, at any depth."""
    found: list[type[BaseModel]] = [form]
    for model in found:
        for field in model.model_fields.values():
            found += [m for m in _inside(field.annotation) if m not in found]
    return found


def _inside(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in _inside(part)]


def _kind(kind: str) -> str:
    words = {
        "missing": "is missing",
        "extra_forbidden": "holds a field that was not asked for",
        "value_error": "has a value that is not allowed",
    }
    if kind in words:
        return words[kind]
    return (
        "has the wrong type"
        if kind.endswith(("_type", "_parsing"))
        else "has a value that is not allowed"
    )
