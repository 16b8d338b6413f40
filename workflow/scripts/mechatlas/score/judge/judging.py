"""Judging all explanations of a model: who is asked about what, and the tables that come of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.explain.data_block import EXPLANATION_LENGTH
from mechatlas.explain.excerpts import HEAD, LATENT
from mechatlas.explain.llm.requests import Request
from mechatlas.io import rng_for
from mechatlas.score.judge.scorers import (
    Ask,
    Judged,
    JudgeSettings,
    Subject,
    first_requests,
    judge_items,
)
from mechatlas.score.judge.simulation import first_simulation_requests, simulate

KINDS = {kind.name: kind for kind in (HEAD, LATENT)}
JUDGED, UNSCORED = "judged", "unscored"
JUDGEMENTS = ("unit", "explainer", "control", "scorer", "item", "value", "status", "reason")
USAGE = (
    *("unit", "explainer", "control", "scorer", "requests", "prompt_tokens", "cached_tokens"),
    *("completion_tokens", "price", "canary_failures"),
)


@dataclass(frozen=True)
class Task:
    """One explanation, one scorer, and the items of both."""

    subject: Subject
    scorer: str
    items: pd.DataFrame


def subjects_of(
    records: Iterable[Mapping[str, Any]], controls: Sequence[str], seed: int
) -> list[Subject]:
    """Return what to judge: the explanations, and for control "swapped" each unit with another one's text.

    Parameters
    ----------
    records : iterable of mapping
        Explanation records; those of other controls than "none" are passed over.
    controls : sequence of str
    seed : int

    Notes
    -----
    The texts of one explainer and layer are put in a random order and every unit gets the next one's that differs
    from its own, so that each text is used about equally often. A unit to which no text differs has no such control.
    """
    own = [record for record in records if record["control"] == "none"]
    subjects = [Subject(r["unit"], r["explainer"], "none", r["text"], _reason(r)) for r in own]
    if "swapped" in controls:
        for key in sorted({(r["explainer"], r["layer"]) for r in own}):
            group = [r for r in own if (r["explainer"], r["layer"]) == key and r["text"]]
            subjects += _swapped(group, rng_for(seed, "swapped texts", *key))
    return subjects


def _reason(record: Mapping[str, Any]) -> str:
    return "" if record["text"] else record.get("reason") or "there is no explanation"


def _swapped(group: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> Iterator[Subject]:
    order = [group[i] for i in rng.permutation(len(group))]
    for place, record in enumerate(order):
        later = [*order[place + 1 :], *order[:place]]
        donor = next((other for other in later if other["text"] != record["text"]), None)
        if donor is not None:
            yield Subject(record["unit"], record["explainer"], "swapped", donor["text"])


def tasks_of(items: pd.DataFrame, subjects: Iterable[Subject]) -> list[Task]:
    """Pair subjects with the items of their unit, one task for each scorer that has items."""
    usable = items[items["item"] != ""]
    by_unit = {
        str(unit): {str(scorer): rows for scorer, rows in group.groupby("scorer", sort=False)}
        for unit, group in usable.groupby("unit", sort=False)
    }
    return [
        Task(subject, scorer, rows)
        for subject in subjects
        for scorer, rows in by_unit.get(subject.unit, {}).items()
    ]


def work_of(task: Task, settings: JudgeSettings) -> Callable[[Ask], Awaitable[Judged]]:
    """Return a task as a function of ``ask``, for `mechatlas.explain.llm.client.run_units`."""

    async def work(ask: Ask) -> Judged:
        kind = KINDS[str(task.items["kind"].iloc[0])]
        if task.scorer == "simulation":
            return await simulate(ask, settings, kind, task.subject, task.items)
        return await judge_items(ask, settings, kind, task.subject, task.scorer, task.items)

    return work


def requests_of(task: Task, settings: JudgeSettings) -> Iterator[Request]:
    """Yield the requests that a task begins with (re-asks come on top), for a forecast."""
    kind = KINDS[str(task.items["kind"].iloc[0])]
    if task.scorer == "simulation":
        return first_simulation_requests(settings, kind, task.subject, task.items)
    return first_requests(settings, kind, task.subject, task.scorer, task.items)


def expected_requests(
    items: pd.DataFrame,
    records: Iterable[Mapping[str, Any]],
    explainers: Sequence[str],
    controls: Sequence[str],
    settings: JudgeSettings,
) -> Iterator[Request]:
    """Yield the requests of a judging run, also of explanations that do not exist yet.

    For a unit that an explainer has not explained a text of the greatest length stands in, so that the sum of tokens is
    an upper bound but for re-asks.

    Parameters
    ----------
    items : data frame
        items.parquet.
    records : iterable of mapping
        Explanation records as far as there are any, those of planted units included.
    explainers : sequence of str
        Whose explanations will be judged, planted units left out.
    controls, settings
        See `subjects_of` and `mechatlas.score.judge.scorers.JudgeSettings`.
    """
    found = [dict(record) for record in records if record["control"] == "none"]
    known = {(record["unit"], record["explainer"]) for record in found}
    units = items[items["layer"] >= 0].drop_duplicates("unit")
    for explainer in explainers:
        for row in units.itertuples():
            if (row.unit, explainer) not in known:
                text = f"{row.unit} {'word ' * EXPLANATION_LENGTH}"[:EXPLANATION_LENGTH]
                named = {"unit": row.unit, "layer": row.layer, "explainer": explainer}
                found.append({**named, "control": "none", "text": text})
    for task in tasks_of(items, subjects_of(found, controls, settings.seed)):
        if task.subject.text:
            yield from requests_of(task, settings)


def judgement_table(tasks: Sequence[Task], judged: Mapping[int, Judged]) -> pd.DataFrame:
    """Return one row per task and item: columns `JUDGEMENTS`.

    Parameters
    ----------
    tasks : sequence of Task
    judged : mapping
        By place in ``tasks``; tasks without an explanation have none.
    """
    frames = []
    for place, task in enumerate(tasks):
        names = task.items["item"].tolist()
        found = judged.get(place)
        values = [np.nan if found is None else found.values.get(n, np.nan) for n in names]
        why = dict.fromkeys(names, task.subject.reason) if found is None else found.reasons
        frame = _named(task, item=names, value=np.array(values, dtype=np.float64))
        frame["status"] = np.where(frame["value"].notna(), JUDGED, UNSCORED)
        frame["reason"] = [why.get(name, "") for name in names]
        frames.append(frame[list(JUDGEMENTS)])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=JUDGEMENTS)


def usage_table(tasks: Sequence[Task], judged: Mapping[int, Judged]) -> pd.DataFrame:
    """Return one row per judged task: columns `USAGE`; an unknown price is missing."""
    rows = []
    for place, found in judged.items():
        subject, usage = tasks[place].subject, found.usage
        row = (*subject.names, tasks[place].scorer, usage.requests, usage.prompt_tokens)
        row += (usage.cached_tokens, usage.completion_tokens, usage.price, found.canary_failures)
        rows.append(row)
    return pd.DataFrame(rows, columns=USAGE).astype({"price": "float64"})


def _named(task: Task, **columns: Any) -> pd.DataFrame:
    unit, explainer, control = task.subject.names
    frame = pd.DataFrame(columns)
    return frame.assign(unit=unit, explainer=explainer, control=control, scorer=task.scorer)
