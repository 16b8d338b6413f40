"""What an explainer is asked about a latent. The part that is the same for all latents comes first.

A change of any wording needs a new `PROMPT_VERSION`: answers are stored under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mechatlas.explain.data_block import DESCRIPTION as DATA
from mechatlas.explain.data_block import EXPLANATION_LENGTH, clean_explanation, data_block
from mechatlas.explain.excerpts import Example
from mechatlas.explain.language import Dialogue
from mechatlas.explain.latents.evidence import LatentEvidence
from mechatlas.explain.latents.notation import DESCRIPTION as CONDITIONS
from mechatlas.explain.latents.notation import parse_rules
from mechatlas.explain.latents.programs import LatentProgram
from mechatlas.explain.prompts import Message, object_schema, turn
from mechatlas.explain.replies import Reply, ReplyError, check_form
from mechatlas.explain.vocabulary import Vocabulary
from mechatlas.io import UserError

PROMPT_VERSION = "explain-latent-1"

_TASK = f"""\
You explain latents of a sparse autoencoder that was trained on a language model. At every token a latent has an \
activation, which is 0 on most tokens.

{DATA} The first line says on what share of tokens the latent is active. Every other line is a token: [activation from \
1 to 10, text before, TOKEN], spread over strengths, the latent's strongest tokens among them. Lines with "no" instead \
of a number are tokens on which it is not active, though latents like it are.

Find the rule that decides on which TOKENs the latent is active in text you have not seen: which token it is, what \
stood before, position, kind of word, syntax, topic, meaning. It must hold for tokens with high activation and fail \
for those with "no". Be as general as the tokens allow and as specific as they demand; name words only where the words \
themselves matter."""
_PROGRAM = f"""\
If these conditions can express the rule, even in part, also write it as a program: rules of a strength from 0 to 10 \
and conditions that hold together at a TOKEN; where several rules hold the largest strength counts. null: no condition \
fits.
{CONDITIONS}"""
_ANSWER = """\
Answer with one JSON object only: "notes" (at most 40 words: what the active tokens share that those with "no" lack), \
"text" (the rule in one or two sentences that begin with "Active on", at most {length} characters){program}."""
_PROGRAM_KEY = ', "program" (such as [{"strength":8,"conditions":"regex(\\"ing$\\") & tokens(\\" of\\",back=1)"}])'


class RuleReply(Reply):
    """One rule of a program as a model writes it."""

    strength: float
    conditions: str


class Rules(Reply):
    """The program of a reply."""

    program: list[RuleReply]


def system_prompt(program: bool) -> str:
    """Return the part of the prompt that is the same for all latents."""
    answer = _ANSWER.format(
        length=EXPLANATION_LENGTH - 100, program=_PROGRAM_KEY if program else ""
    )
    return "\n\n".join([_TASK, *([_PROGRAM] if program else []), answer])


def latent_messages(evidence: LatentEvidence, program: bool) -> list[Message]:
    """Return the messages that ask for an explanation of one latent."""
    share = {"active on percent of tokens": float(f"{100 * evidence.rate:.2g}")}
    lines = [share, *map(_line, evidence.active), *map(_line, evidence.inactive)]
    return [
        {"role": "system", "content": system_prompt(program)},
        {"role": "user", "content": data_block(lines)},
    ]


def revision_messages(
    messages: Sequence[Message], reply: str, failures: Sequence[Example]
) -> list[Message]:
    """Return the messages that show an explanation's failures and ask for a better one."""
    asked = (
        "Your rule was tested on other documents. It got these tokens wrong: those with a number it did not expect, "
        'those with "no" it did.\n'
        f"{data_block(map(_line, failures))}\n"
        "Find a rule that holds for all, or keep yours if they are exceptions. Answer with the whole JSON object."
    )
    return [*messages, *turn(reply, asked)]


def answer_schema(program: bool) -> dict[str, Any]:
    """Return the JSON schema of a reply, in the subset that strict structured outputs allow."""
    properties: dict[str, Any] = {"notes": {"type": "string"}, "text": {"type": "string"}}
    if program:
        rule = object_schema({"strength": {"type": "number"}, "conditions": {"type": "string"}})
        properties["program"] = {"anyOf": [{"type": "array", "items": rule}, {"type": "null"}]}
    return object_schema(properties)


def latent_dialogue(vocabulary: Vocabulary) -> Dialogue:
    """Return how latents are asked about."""

    def parse(data: Any, evidence: LatentEvidence) -> tuple[LatentProgram | None, str]:
        try:
            rules = check_form({"program": data}, Rules).program
            pairs = [(rule.strength, rule.conditions) for rule in rules]
            return parse_rules(pairs, vocabulary, evidence.top), ""
        except (ReplyError, UserError) as error:
            return None, clean_explanation(str(error))

    return Dialogue(
        version=PROMPT_VERSION,
        messages=latent_messages,
        revision=revision_messages,
        schema=answer_schema,
        parse=parse,
        forms=lambda program: [part.form for part in program.parts],
        fit_name="validation_correlation",
        nothing="no train event of this latent was captured",
    )


def _line(example: Example) -> list[Any]:
    first: Any = max(1, round(10 * example.strength)) if example.label else "no"
    return [first, *example.values]
