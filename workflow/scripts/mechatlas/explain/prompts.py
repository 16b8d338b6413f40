"""What an explainer is asked. The part that is the same for all heads comes first, so that prompt caches hold it.

A change of any wording needs a new `PROMPT_VERSION`: answers are stored under it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.explain.data_block import DESCRIPTION as DATA
from mechatlas.explain.data_block import EXPLANATION_LENGTH, data_block
from mechatlas.explain.evidence import Evidence
from mechatlas.explain.excerpts import GAP, HEAD, Example
from mechatlas.explain.notation import DESCRIPTION as FORMS
from mechatlas.explain.replies import Reply

PROMPT_VERSION = "explain-head-1"
Message = dict[str, str]

_TASK = f"""\
You explain attention heads of a language model. At every token, the QUERY, a head spreads attention that sums to 1 \
over this and earlier tokens, its KEYs. Attention that is not needed rests on BOS, the first token, which is not shown.

{DATA} The first line holds the head's mean attention in percent: to BOS, and to the QUERY itself. Every other line \
is a pair: [attention in percent, {HEAD.layout[1:-1]}], spread over strengths, the head's strongest pairs among \
them. Pairs with "no" instead of a number get next to none, though they share QUERY, KEY or distance with a strong \
pair. {GAP} Nothing after the QUERY counts.

Find the rule that decides which KEYs a QUERY attends to in text you have not seen: what the KEY is, what the QUERY \
is, how they relate (same token, what stood before or after an earlier copy, position, distance, kind of word, \
syntax, meaning). It must hold for the pairs with high attention and fail for those with "no". Be as general as the \
pairs allow and as specific as they demand; name words only where the words themselves matter."""
_PROGRAM = f"""\
If these forms can express the rule, even in part, also write it as a program: parts of a share and a form. At a \
QUERY each part spreads its share over the KEYs that its form names; what is left, or finds no KEY, rests on BOS. \
Shares add up to at most 1, roughly to the attention off BOS where the rule applies. [] means "always rests on BOS", \
null "no form fits".
{FORMS}"""
_ANSWER = """\
Answer with one JSON object only: "notes" (at most 40 words: what the pairs share that those with "no" lack), "text" \
(the rule in one or two sentences that begin with "Attends to", at most {length} characters){program}."""
_PROGRAM_KEY = ', "program" (such as [{"share":0.6,"form":"previous(offset=1)"}])'


class Part(Reply):
    """One part of a program as a model writes it."""

    share: float
    form: str


class Parts(Reply):
    """The program of a reply."""

    program: list[Part]


class Explained(Reply):
    """A reply to `explanation_messages`; its program is read apart, as a text may stand without it."""

    text: str
    notes: str = ""
    program: Any = None


def system_prompt(program: bool) -> str:
    """Return the part of the prompt that is the same for all heads."""
    answer = _ANSWER.format(
        length=EXPLANATION_LENGTH - 100, program=_PROGRAM_KEY if program else ""
    )
    return "\n\n".join([_TASK, *([_PROGRAM] if program else []), answer])


def explanation_messages(evidence: Evidence, program: bool) -> list[Message]:
    """Return the messages that ask for an explanation of one head.

    Parameters
    ----------
    evidence : Evidence
    program : bool
        Whether to ask for a program as well.
    """
    means = {"to BOS": _percent(evidence.sink), "to the QUERY itself": _percent(evidence.itself)}
    lines = [means, *map(_line, evidence.active), *map(_line, evidence.inactive)]
    return [
        {"role": "system", "content": system_prompt(program)},
        {"role": "user", "content": data_block(lines)},
    ]


def answer_schema(program: bool) -> Mapping[str, Any]:
    """Return the JSON schema of a reply, in the subset that strict structured outputs allow."""
    properties: dict[str, Any] = {"notes": {"type": "string"}, "text": {"type": "string"}}
    if program:
        part = object_schema({"share": {"type": "number"}, "form": {"type": "string"}})
        properties["program"] = {"anyOf": [{"type": "array", "items": part}, {"type": "null"}]}
    return object_schema(properties)


def retry_messages(messages: Sequence[Message], reply: str, reason: str) -> list[Message]:
    """Return the messages that ask once more after a reply that could not be used.

    Parameters
    ----------
    messages : sequence
        What was asked.
    reply : str
        The reply; only its beginning is sent back.
    reason : str
        What is wrong with it.
    """
    asked = f"This could not be used: {reason}. Answer again with the whole JSON object and nothing else."
    return [*messages, *turn(reply, asked)]


def revision_messages(
    messages: Sequence[Message], reply: str, failures: Sequence[Example]
) -> list[Message]:
    """Return the messages that show an explanation's failures and ask for a better one.

    Parameters
    ----------
    messages : sequence
        What was asked.
    reply : str
        The reply that was tested.
    failures : sequence of Example
        Validation pairs that the explanation gets wrong.
    """
    asked = (
        "Your rule was tested on other documents. It got these pairs wrong: those with a number it did not expect, "
        'those with "no" it did.\n'
        f"{data_block(map(_line, failures))}\n"
        "Find a rule that holds for all pairs, or keep yours if they are exceptions. Answer with the whole JSON object."
    )
    return [*messages, *turn(reply, asked)]


def turn(reply: str, asked: str) -> list[Message]:
    """Return a model's reply and what is asked next."""
    # What a model wrote may hold half of a surrogate pair, which no request can carry.
    said = reply[:4000].encode("utf-8", "replace").decode("utf-8")
    # Some endpoints refuse a message without content.
    return [
        {"role": "assistant", "content": said or "(nothing)"},
        {"role": "user", "content": asked},
    ]


def _line(example: Example) -> list[Any]:
    first: Any = _percent(example.strength) if example.label else "no"
    return [first, *example.values]


def _percent(share: float) -> int:
    return round(100 * share)


def object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an object that has exactly these properties."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
