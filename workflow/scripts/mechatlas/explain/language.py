"""The explainer `openai`: asks a language model what a head does, and keeps what does best on validation documents.

For each head so many candidates are asked for, each with one more request if the reply cannot be read or its program
is not valid. The best is kept and, if wanted, revised once from its failures; then the better of the two is kept. What
"best" means is in the record (``chosen_by``): "judge" (its AUC on validation pairs), else "program" (their match with
validation patterns), else "first"; "single" where there was one explanation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
from mechatlas.explain.programs import Program
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
from mechatlas.explain.validation import Validation
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


def explain_units(
    cases: Iterable[Case],
    settings: AskSettings,
    validation: Validation,
    rate: Rater | None = None,
) -> Iterator[Callable[[Ask], Awaitable[dict[str, Any]]]]:
    """Yield one work per head for `mechatlas.explain.llm.client.run_units`; its result is an explanation record.

    Parameters
    ----------
    cases : iterable of Case
        Consumed as works are.
    settings : AskSettings
    validation : Validation
        Where programs are tried.
    rate : Rater, optional
        The judge by which candidates are compared.
    """
    for case in cases:
        yield _Work(case, settings, validation, rate)


def first_requests(cases: Iterable[Case], settings: AskSettings) -> Iterator[Request]:
    """Yield the requests that explaining begins with: one per head and candidate.

    Not among them is what depends on answers: one more request for each reply that cannot be used, the revision of
    each head (``settings.revise``), and the judge's requests that compare candidates and revisions.
    """
    for case in cases:
        if case.evidence.active:
            messages = explanation_messages(case.evidence, settings.program)
            for sample in range(settings.candidates):
                yield _request(settings, messages, sample)


def _request(settings: AskSettings, messages: Sequence[Message], sample: int) -> Request:
    schema = answer_schema(settings.program)
    return Request(settings.endpoint, tuple(messages), schema, PROMPT_VERSION, sample=sample)


@dataclass(frozen=True)
class _Work:
    """The explanation of one head."""

    case: Case
    settings: AskSettings
    validation: Validation
    rate: Rater | None

    async def __call__(self, ask: Ask) -> dict[str, Any]:
        evidence = self.case.evidence
        if not evidence.active:
            nothing = Candidate("", reason="no train event of this head was captured")
            return self._record([nothing], 0, Usage())
        messages = explanation_messages(evidence, self.settings.program)
        samples = range(self.settings.candidates)
        candidates = list(await asyncio.gather(*(self._ask(ask, messages, i) for i in samples)))
        if len(candidates) > 1:
            candidates = [await self._rated(ask, candidate) for candidate in candidates]
        best, extra = best_of(candidates), Usage()
        if self.settings.revise and candidates[best].text:
            failures, extra = await self._failures(ask, candidates[best])
            if failures:
                asked = revision_messages(messages, candidates[best].reply, failures)
                revised = await self._ask(ask, asked, 0)
                candidates = [await self._rated(ask, c) for c in [*candidates, revised]]
                best = best_of(candidates)
        return self._record(candidates, best, extra)

    async def _ask(self, ask: Ask, messages: Sequence[Message], sample: int) -> Candidate:
        """Ask, and ask once more if the reply or its program cannot be used."""
        first, retry = self._read(await ask(_request(self.settings, messages, sample)))
        problem = first.reason or first.program_error
        if problem and retry:
            again = retry_messages(messages, first.reply, problem)
            second, _ = self._read(await ask(_request(self.settings, again, sample)))
            # A text whose program is wrong is better than no text.
            kept = first if first.text and second.program is None else second
            first = replace(kept, usage=first.usage + second.usage)
        if first.program is None:
            return first
        head = (self.case.evidence.layer, self.case.evidence.head)
        iou, match = self.validation.fit(head, first.program)
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

    def _program(self, data: Any) -> tuple[Program | None, str]:
        """Return the program of a reply, or why it is not one; neither if there is none."""
        if data is None or not self.settings.program:
            return None, ""
        try:
            parts = check_form({"program": data}, Parts).program
            return parse_parts([(part.share, part.form) for part in parts]), ""
        except (ReplyError, UserError) as error:
            return None, clean_explanation(str(error))

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
            **{"unit": evidence.unit, "layer": evidence.layer, "head": evidence.head},
            **{"explainer": EXPLAINER, "control": "none", "text": kept.text},
            "kind": "rules" if kept.program is not None else "text",
            "validation_iou": rounded(kept.iou),
            "candidates": [candidate.facts() for candidate in candidates],
            "program": None if kept.program is None else kept.program.to_json(),
            **{"status": "explained" if kept.text else "unexplained", "reason": kept.reason},
            "program_error": kept.program_error,
            "chosen_by": criterion(candidates) if len(candidates) > 1 else "single",
            **{"model": self.settings.endpoint.model, "prompt_version": PROMPT_VERSION},
            **{name: getattr(usage, name) for name in USAGE},
        }


#: Fields of a record that say what it cost.
USAGE = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "price")


def ask_settings(openai: Mapping[str, Any], endpoint: Endpoint) -> AskSettings:
    """Return the settings that ``explain.openai`` of a completed configuration describes."""
    return AskSettings(endpoint, openai["program"], openai["candidates"], openai["revise"])
