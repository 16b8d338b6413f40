"""What a judge is asked. The static part comes first, the claim next, the items last, so that prompt caches help.

Everything that is not ours (text of the corpus, the explanation) stands in a data block as JSON strings. Control items
are JSON objects, ``{"check": n}``, which no text can imitate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mechatlas.explain.data_block import DESCRIPTION, clean_explanation, data_block
from mechatlas.explain.excerpts import UnitKind

#: Changes with every wording, and with it what answers are stored under.
PROMPT_VERSION = "judge-1"
#: Largest answer of every scorer but the intruder.
TOP = 10

Message = Mapping[str, str]

_ITEMS = (
    "{description} Line 1 is a claim about {unit}. The other lines are items: [id,{layout}].{gap}\n"
    "If the claim is right, {question}\n"
    'To [id,{{"check":n}}] answer n. Reply with JSON only, every id once: '
    '{{"answers":[{{"id":"..","value":0}},...]}}'
)
_GRADED = (
    "how likely is it that {}? Grade from 0 (surely not) to " + f"{TOP} (surely). At most half are."
)
_ODD = "{} in all excerpts of an item but one. Which is the odd one? Answer 1 to {}."

_UNIT = {
    "head": (
        "an attention head: at each token (QUERY) a head looks back at earlier tokens (KEYs), or it rests"
    ),
    "latent": "a latent: a number that a model computes at each token, active where it is not 0",
}
_QUESTION = {
    ("head", "detection"): "the head, at this QUERY, looks back at shown text and does not rest",
    ("head", "marked"): "the head, at this QUERY, looks back at this KEY",
    ("latent", "detection"): "the latent is active anywhere in the text",
    ("latent", "marked"): "the latent is active at the TOKEN",
}
_LAYOUT = {
    ("head", "detection"): '"text before","QUERY"',
    ("head", "marked"): '"text before","KEY","text between","QUERY"',
    ("latent", "detection"): '"text"',
    ("latent", "marked"): '"text before","TOKEN"',
}
_GAP = {
    "head": (
        " A text may be [beginning,number of tokens left out,end], or null where KEY and QUERY are one token."
    ),
    "latent": "",
}
_PREDICT = {
    "head": "how strongly the head, at the last token of the list (QUERY), looks back at it",
    "latent": "how active the latent is at it",
}
_WHOLE = (
    "{description} Line 1 is a claim about {unit}. Line 2 lists the tokens of a text. If the claim is right, "
    f"predict for each element {{predict}}: 0 (not at all) to {TOP} (most). Most are 0.\n"
    'An element {{"check":n}} is no token; its value is n. Reply with JSON only, one value for every element, in '
    'order: {{"values":[0,...]}}'
)
_SINGLE = (
    "{description} Line 1 is a claim about {unit}. Line 2 lists the tokens of a text. Line 3 is one element of the "
    "list, [number,token]. If the claim is right, predict for that token {predict}: 0 (not at all) to "
    f"{TOP} (most). Most are 0.\n"
    'For [number,{{"check":n}}] it is n. Reply with the number only.'
)

_VALUE = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "value": {"type": "integer"}},
    "required": ["id", "value"],
    "additionalProperties": False,
}
ANSWERS_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"answers": {"type": "array", "items": _VALUE}},
    "required": ["answers"],
    "additionalProperties": False,
}
VALUES_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"values": {"type": "array", "items": {"type": "integer"}}},
    "required": ["values"],
    "additionalProperties": False,
}


def item_system(kind: UnitKind, scorer: str, examples: int = 5) -> str:
    """Return the static prompt of a scorer whose items have ids: any but the simulation."""
    place = (kind.name, "detection" if scorer == "detection" else "marked")
    layout, question = _LAYOUT[place], _GRADED.format(_QUESTION[place])
    if scorer == "intruder":
        layout = f"[{layout}],...,[{layout}]"
        question = _ODD.format(_QUESTION[place], examples)
    return _ITEMS.format(
        description=DESCRIPTION,
        unit=_UNIT[kind.name],
        layout=layout,
        gap=_GAP[kind.name],
        question=question,
    )


def item_messages(
    kind: UnitKind, scorer: str, text: str, lines: Sequence[Sequence[Any]]
) -> tuple[Message, ...]:
    """Return the messages that ask about items.

    Parameters
    ----------
    kind : UnitKind
    scorer : str
    text : str
        The explanation.
    lines : sequence
        ``[id, piece, ...]`` each, control items included.
    """
    return _messages(item_system(kind, scorer), [_claim(text), *lines])


def whole_messages(kind: UnitKind, text: str, tokens: Sequence[Any]) -> tuple[Message, ...]:
    """Return the messages that ask for one value per element of a list of tokens, control elements included."""
    messages = _messages(_simulation(_WHOLE, kind), [_claim(text), list(tokens)])
    last = {
        "role": "user",
        "content": f"{messages[1]['content']}\nThe list has {len(tokens)} elements.",
    }
    return (messages[0], last)


def single_messages(
    kind: UnitKind, text: str, tokens: Sequence[Any], number: int, element: Any
) -> tuple[Message, ...]:
    """Return the messages that ask for the value of one element, answered by a single number."""
    return _messages(_simulation(_SINGLE, kind), [_claim(text), list(tokens), [number, element]])


def _simulation(prompt: str, kind: UnitKind) -> str:
    return prompt.format(
        description=DESCRIPTION, unit=_UNIT[kind.name], predict=_PREDICT[kind.name]
    )


def _claim(text: str) -> Mapping[str, str]:
    return {"claim": clean_explanation(text)}


def _messages(system: str, values: Sequence[Any]) -> tuple[Message, ...]:
    return (
        {"role": "system", "content": system},
        {"role": "user", "content": data_block(values)},
    )


def pieces_of(text: str) -> list[Any]:
    """Return the pieces of an item as they are stored, as JSON values."""
    return json.loads(text)
