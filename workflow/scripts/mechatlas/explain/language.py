"""The explainer `openai`: asks a language model what a unit does, and keeps what does best on validation documents.

What is said to the model, and how a program is read, depends on the kind of unit: see `Dialogue`. For each unit so
many candidates are asked for, each with one more request if the reply cannot be read or its program is not valid.
The best is kept and, if wanted, revised once from its failures; then the better of the two is kept. What "best"
means is in the record (``chosen_by``): "judge" (its AUC on validation pairs), else "program" (their match with
validation data), else "first"; "single" where there was one explanation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from mechatlas.explain.candidates import (
    Candidate,
    best_of,
    criterion,
    pair_auc,
    rounded,
    worst_failures,
)
from mechatlas.explain.cases import Case
from mechatlas.explain.data_block import clean_explanation
from mechatlas.explain.excerpts import Example
from mechatlas.explain.llm.requests import Answer, Request, Usage
from mechatlas.explain.llm.settings import Endpoint
from mechatlas.explain.notation import parse_parts
from mechatlas.explain.programs import Program, form_key
from mechatlas.explain.prompts import (
    PROMPT_VERSION,
    Explained,
    Message,
    Parts,
    answer_schema,
    explanation_messages,
    retry_messages,
    revision_messages,
)
from mechatlas.explain.replies import ReplyError, check_form, read_answer
from mechatlas.io import UserError

EXPLAINER = "openai"
Ask = Callable[[Request], Awaitable[Answer]]
#: Rates examples 0 to 10 by how well a text fits them (None where it could not), for (ask, unit, text, examples).
Rater = Callable[[Ask, str, str, Sequence[Example]], Awaitable[tuple[list[float | None], Usage]]]
#: Ratings, and predicted attention, from which a pair counts as said to be active.
LEAST_RATING, LEAST_ATTENTION = 5.0, 0.1


@dataclass(frozen=True)
class AskSettings:
    """Settings of the explainer `openai` (config: explain.openai), apart from its evidence.

    Attributes
    ----------
    endpoint : Endpoint
    program : bool
        Ask for a program as well.
    candidates : int
    revise : bool
    """

    endpoint: Endpoint
    program: bool = True
    candidates: int = 1
    revise: bool = False


@dataclass(frozen=True)
class Dialogue:
    """How a kind of unit is asked about.

    Attributes
    ----------
    version : str
        Prompt version, under which answers are stored.
    messages : callable
        (evidence, whether a program is wanted) -> messages.
    revision : callable
        (messages, reply, failures) -> messages.
    schema : callable
        Whether a program is wanted -> JSON schema of a reply.
    parse : callable
        (program as the model wrote it, evidence) -> program or None, and what is wrong with it.
    forms : callable
        Names the forms of a program.
    fit_name : str
        Field of a record that holds how well the program fits validation documents.
    nothing : str
        Why a unit without evidence is not explained.
    """

    version: str
    messages: Callable[[Any, bool], list[Message]]
    revision: Callable[[Sequence[Message], str, Sequence[Example]], list[Message]]
    schema: Callable[[bool], Mapping[str, Any]]
    parse: Callable[[Any, Any], tuple[Any, str]]
    forms: Callable[[Any], list[str]]
    fit_name: str
    nothing: str


def parse_head_program(data: Any, evidence: Any) -> tuple[Program | None, str]:
    """Return the program of a head as a model wrote it, or why it is not one."""
    try:
        parts = check_form({"program": data}, Parts).program
        return parse_parts([(part.share, part.form) for part in parts]), ""
    except (ReplyError, UserError) as error:
        return None, clean_explanation(str(error))


HEADS = Dialogue(
    version=PROMPT_VERSION,
    messages=explanation_messages,
    revision=revision_messages,
    schema=answer_schema,
    parse=parse_head_program,
    forms=lambda program: [form_key(part.form) for part in program.parts],
    fit_name="validation_iou",
    nothing="no train event of this head was captured",
)


class Tried(Protocol):
    """Where programs are tried; `mechatlas.explain.validation.Validation` for heads."""

    def fit(self, key: tuple[int, int], program: Any) -> tuple[float, float]:
        """Return how well a program fits a unit's validation documents, for the record and for the choice."""
        ...

    def predict(self, program: Any, examples: Sequence[Example]) -> list[float]:
        """Return what a program predicts at examples, between 0 and 1."""
        ...


def explain_units(
    cases: Iterable[Case],
    settings: AskSettings,
    validation: Tried,
    rate: Rater | None = None,
    dialogue: Dialogue = HEADS,
) -> Iterator[Callable[[Ask], Awaitable[dict[str, Any]]]]:
    """Yield one work per unit for `mechatlas.explain.llm.client.run_units`; its result is an explanation record.

    Parameters
    ----------
    cases : iterable of Case
        Consumed as works are.
    settings : AskSettings
    validation : Tried
        Where programs are tried.
    rate : Rater, optional
        The judge by which candidates are compared.
    dialogue : Dialogue
        How the units are asked about.
    """
    for case in cases:
        yield _Work(case, settings, validation, rate, dialogue)


def first_requests(
    cases: Iterable[Case], settings: AskSettings, dialogue: Dialogue = HEADS
) -> Iterator[Request]:
    """Yield the requests that explaining begins with: one per unit and candidate.

    Not among them is what depends on answers: one more request for each reply that cannot be used, the revision of
    each unit (``settings.revise``), and the judge's requests that compare candidates and revisions.
    """
    for case in cases:
        if case.evidence.active:
            messages = dialogue.messages(case.evidence, settings.program)
            for sample in range(settings.candidates):
                yield _request(settings, dialogue, messages, sample)


def _request(
    settings: AskSettings, dialogue: Dialogue, messages: Sequence[Message], sample: int
) -> Request:
    schema = dialogue.schema(settings.program)
    return Request(settings.endpoint, tuple(messages), schema, dialogue.version, sample=sample)


@dataclass(frozen=True)
class _Work:
    """The explanation of one unit."""

    case: Case
    settings: AskSettings
    validation: Tried
    rate: Rater | None
    dialogue: Dialogue

    async def __call__(self, ask: Ask) -> dict[str, Any]:
        evidence = self.case.evidence
        if not evidence.active:
            nothing = Candidate("", reason=self.dialogue.nothing)
            return self._record([nothing], 0, Usage())
        messages = self.dialogue.messages(evidence, self.settings.program)
        samples = range(self.settings.candidates)
        candidates = list(await asyncio.gather(*(self._ask(ask, messages, i) for i in samples)))
        if len(candidates) > 1:
            candidates = [await self._rated(ask, candidate) for candidate in candidates]
        best, extra = best_of(candidates), Usage()
        if self.settings.revise and candidates[best].text:
            failures, extra = await self._failures(ask, candidates[best])
            if failures:
                asked = self.dialogue.revision(messages, candidates[best].reply, failures)
                revised = await self._ask(ask, asked, 0)
                candidates = [await self._rated(ask, c) for c in [*candidates, revised]]
                best = best_of(candidates)
        return self._record(candidates, best, extra)

    async def _ask(self, ask: Ask, messages: Sequence[Message], sample: int) -> Candidate:
        """Ask, and ask once more if the reply or its program cannot be used."""
        first, retry = self._read(await ask(self._request(messages, sample)))
        problem = first.reason or first.program_error
        if problem and retry:
            again = retry_messages(messages, first.reply, problem)
            second, _ = self._read(await ask(self._request(again, sample)))
            # A text whose program is wrong is better than no text.
            kept = first if first.text and second.program is None else second
            first = replace(kept, usage=first.usage + second.usage)
        if first.program is None:
            return first
        iou, match = self.validation.fit(self.case.evidence.key, first.program)
        return replace(first, iou=iou, match=match)

    def _read(self, answer: Answer) -> tuple[Candidate, bool]:
        """Return what an answer says, and whether asking again may help where it cannot be used."""
        try:
            reply = read_answer(answer, Explained)
            text = clean_explanation(reply.text)
            if not text:
                raise ReplyError("text: is empty")
        except ReplyError as error:
            failed = Candidate("", error.reason, reply=answer.text, usage=answer.usage)
            return failed, error.retry
        program, problem = self._program(reply.program)
        return Candidate(text, "", program, problem, answer.text, answer.usage), True

    def _request(self, messages: Sequence[Message], sample: int) -> Request:
        return _request(self.settings, self.dialogue, messages, sample)

    def _program(self, data: Any) -> tuple[Any, str]:
        """Return the program of a reply, or why it is not one; neither if there is none."""
        if data is None or not self.settings.program:
            return None, ""
        return self.dialogue.parse(data, self.case.evidence)

    async def _rated(self, ask: Ask, candidate: Candidate) -> Candidate:
        """Have the judge say how well a candidate tells the validation pairs apart."""
        if self.rate is None or candidate.auc is not None or not candidate.text:
            return candidate
        pairs = self.case.compare
        ratings, usage = await self.rate(ask, self.case.evidence.unit, candidate.text, pairs)
        auc = pair_auc(ratings, [pair.label for pair in pairs])
        return replace(candidate, auc=auc, usage=candidate.usage + usage)

    async def _failures(self, ask: Ask, candidate: Candidate) -> tuple[list[Example], Usage]:
        """Return the pairs that a candidate gets wrong, by the judge or else by its program, and what that cost."""
        probe = self.case.probe
        if self.rate is not None and probe:
            unit = self.case.evidence.unit
            ratings, usage = await self.rate(ask, unit, candidate.text, probe)
            return worst_failures(probe, ratings, LEAST_RATING), usage
        if candidate.program is None:
            return [], Usage()
        predicted = self.validation.predict(candidate.program, probe)
        return worst_failures(probe, predicted, LEAST_ATTENTION), Usage()

    def _record(self, candidates: Sequence[Candidate], best: int, extra: Usage) -> dict[str, Any]:
        evidence, kept = self.case.evidence, candidates[best]
        usage = sum((candidate.usage for candidate in candidates), extra)
        return {
            **evidence.named,
            **{"explainer": EXPLAINER, "control": "none", "text": kept.text},
            "kind": "rules" if kept.program is not None else "text",
            self.dialogue.fit_name: rounded(kept.iou),
            "candidates": [candidate.facts(self.dialogue.forms) for candidate in candidates],
            "program": None if kept.program is None else kept.program.to_json(),
            **{"status": "explained" if kept.text else "unexplained", "reason": kept.reason},
            "program_error": kept.program_error,
            "chosen_by": criterion(candidates) if len(candidates) > 1 else "single",
            **{"model": self.settings.endpoint.model, "prompt_version": self.dialogue.version},
            **{name: getattr(usage, name) for name in USAGE},
        }


#: Fields of a record that say what it cost.
USAGE = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "price")


def ask_settings(openai: Mapping[str, Any], endpoint: Endpoint) -> AskSettings:
    """Return the settings that ``explain.openai`` of a completed configuration describes."""
    return AskSettings(endpoint, openai["program"], openai["candidates"], openai["revise"])
