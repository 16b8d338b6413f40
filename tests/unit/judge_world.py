"""Made-up units whose truth is known, and a judge of known quality behind a real HTTP server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from llm_server import Call, LlmServer, Reply, endpoint_config, llm_config

from mechatlas.explain.excerpts import Excerpts
from mechatlas.explain.forms import Duplicate, Form
from mechatlas.explain.llm.client import run_units
from mechatlas.explain.llm.settings import llm_settings_from
from mechatlas.explain.programs import Part, Program
from mechatlas.explain.vocabulary import TokenView, Vocabulary
from mechatlas.io import rng_for, seed_for
from mechatlas.score.judge.baselines import PairCodes, PairLookup, ProgramBaseline
from mechatlas.score.judge.heads import HeadActivity
from mechatlas.score.judge.items import ItemSettings, UnitName, unit_items
from mechatlas.score.judge.judging import (
    judgement_table,
    subjects_of,
    tasks_of,
    usage_table,
    work_of,
)
from mechatlas.score.judge.scorers import JudgeSettings, judge_settings
from mechatlas.score.judge.summary import JudgeSummarySettings, summarise_judgements

ALL = ("detection", "fuzzing", "pair_auc", "simulation", "intruder")
SIZES = ItemSettings(
    items=100, pairs=50, sequences=20, trials=20, context_tokens=6, max_per_document=5, seed=0
)
SUMMARY = JudgeSummarySettings(
    bootstrap=300, confidence=0.95, fdr=0.05, active_attention=0.1, seed=0
)
LENGTH = 48


class Words:
    """A tokenizer whose tokens are words."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)

    def strings(self, ids: Sequence[int]) -> list[str]:
        return [self.texts[int(i)] for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.strings(ids))


def word(number: int) -> str:
    return " " + "".join(
        "bdfgklmnprst"[(number // 12**i) % 12] + "aeiou"[number % 5] for i in (0, 1)
    )


@dataclass
class World:
    """Text with one window per document, in which tokens come back at random places."""

    texts: Sequence[str]
    test: pd.DataFrame
    train: np.ndarray
    vocabulary: Vocabulary

    def tokens(self, windows: np.ndarray) -> np.ndarray:
        return np.stack(self.test.set_index("window").loc[windows, "tokens"].to_list())

    @property
    def test_tokens(self) -> np.ndarray:
        return np.stack(self.test["tokens"].to_list())


def make_world(seed: int = 0, windows: int = 100, texts: Sequence[str] | None = None) -> World:
    rng = np.random.default_rng(seed)
    texts = texts or ["<bos>", *(word(i) for i in range(1, 120))]
    # Ranks as in text: a few tokens come often, most seldom.
    share = 1 / (np.arange(1, len(texts)) + 5.0)
    tokens = rng.choice(
        np.arange(1, len(texts)), (2 * windows, LENGTH), p=share / share.sum()
    ).astype(np.int64)
    tokens[:, 0] = 0
    test = pd.DataFrame(
        {
            "window": np.arange(windows) + 1000,
            "doc": [f"doc{i}" for i in range(windows)],
            "tokens": list(tokens[:windows]),
        }
    )
    return World(texts, test, tokens[windows:], Vocabulary(list(texts), 0))


def program_of(form: Form | None = None, share: float = 0.9) -> Program:
    return Program(parts=(Part(share=share, form=form or Duplicate(pick="last")),))


def head_items(
    world: World,
    programs: Sequence[Program],
    scorers: Sequence[str] = ALL,
    sizes: ItemSettings = SIZES,
    first: int = 0,
    heads: int | None = None,
) -> pd.DataFrame:
    """Items of the first ``heads`` made-up heads of one layer; the attention of each is what its program predicts."""
    view = TokenView(world.test_tokens, world.vocabulary)
    patterns = np.stack([program.predict(view) for program in programs], axis=1)
    train_view, pairs = TokenView(world.train, world.vocabulary), PairCodes(world.train)
    frames = []
    for head, program in enumerate(programs[:heads]):
        name = f"L0.H{first + head}"
        activity = HeadActivity(
            *(world.test, world.test["window"].to_numpy(), patterns, head, None),
            *(Excerpts(Words(world.texts), sizes.context_tokens), 0.1, sizes.seed, name),
        )
        baselines = {
            "program": ProgramBaseline(program, world.tokens, world.vocabulary),
            "lookup": PairLookup(pairs, program.predict(train_view), world.tokens),
        }
        frames.append(
            unit_items(UnitName(name, 0, first + head), activity, scorers, sizes, baselines)
        )
    return pd.concat(frames, ignore_index=True)


def records_of(items: pd.DataFrame, explainer: str = "programs") -> list[dict[str, Any]]:
    """An explanation record for every unit; its text holds the unit's name, which the judge knows it by."""
    units = items.drop_duplicates("unit")
    return [
        {
            **{"unit": row.unit, "layer": row.layer, "head": row.head, "explainer": explainer},
            **{"control": "none", "text": f"Attends as {row.unit} does.", "reason": ""},
        }
        for row in units.itertuples()
    ]


def read_block(call: Call) -> list[Any]:
    """The JSON values of the data block of a request."""
    lines = call.body["messages"][-1]["content"].split("\n")
    code = lines[0].removeprefix("BEGIN-DATA ")
    assert lines[0].startswith("BEGIN-DATA ") and lines.count(f"END-DATA {code}") == 1
    return [json.loads(line) for line in lines[1 : lines.index(f"END-DATA {code}")]]


def to_json(answers: Mapping[str, int]) -> str:
    return json.dumps({"answers": [{"id": k, "value": v} for k, v in answers.items()]})


Respond = Callable[[Any, str], int]


class ScriptedJudge:
    """Answers from the labels of items, wrongly with a given chance that is drawn anew for each item.

    Parameters
    ----------
    items : data frame
    error : float
        Chance of a wrong answer; in a simulation, of an answer drawn from all the stretch's values.
    respond : callable, optional
        Answers an item itself: takes the item's row (for the intruder the rows of the trial) and its id.
    """

    def __init__(
        self, items: pd.DataFrame, error: float = 0.0, respond: Respond | None = None
    ) -> None:
        self.error, self.respond = error, respond
        # What is asked of one unit may look the same for another, so items are found by claim, too.
        self.rows: dict[tuple[str, str], Any] = {}
        for (unit, scorer), group in items[items["item"] != ""].groupby(["unit", "scorer"]):
            claim = f"Attends as {unit} does."
            if scorer in ("intruder", "simulation"):
                for _, rows in group.groupby("group", sort=False):
                    key = json.dumps([json.loads(p) for p in rows["pieces"]])
                    self.rows[(claim, scorer + key)] = rows
            else:
                for row in group.itertuples():
                    name = "detection" if scorer == "detection" else "marked"
                    self.rows[(claim, name + row.pieces)] = row
        self.values = {
            unit: (10 * (rows["strength"] > 0.1)).astype(int).tolist()
            for unit, rows in items[items["scorer"] == "simulation"].groupby("unit")
        }

    def __call__(self, call: Call) -> str | Reply:
        claim, *lines = read_block(call)
        system = call.body["messages"][0]["content"]
        if "lists the tokens" in system:
            return self.simulated(claim["claim"], lines, call)
        found = {}
        for position, (name, *pieces) in enumerate(lines):
            if isinstance(pieces[0], dict):
                found[name] = pieces[0]["check"]
            else:
                found[name] = self.one(claim["claim"], system, name, pieces, position)
        return to_json(found)

    def one(self, claim: str, system: str, name: str, pieces: list[Any], position: int) -> int:
        trial = isinstance(pieces[0], list) and len(pieces) == 5
        use = (
            "intruder"
            if trial
            else ("detection" if "rest" in system and "looks back at shown" in system else "marked")
        )
        text = json.dumps(pieces) if trial else json.dumps(pieces, separators=(",", ":"))
        row = self.rows.get((claim, use + text))
        if row is None:  # the explanation is another unit's
            row = next(r for (_, key), r in self.rows.items() if key == use + text)
        if self.respond is not None:
            return self.respond(row, name)
        if trial:
            return self.intruder(row)
        wrong = _chance(row.unit, row.scorer, row.item) < self.error
        return 10 * int(bool(row.label) != wrong)

    def intruder(self, rows: pd.DataFrame) -> int:
        right = int(rows["label"].to_numpy().argmax())
        first = rows.iloc[0]
        if _chance(first["unit"], first["group"]) >= self.error:
            return right + 1
        return 1 + (right + 1 + seed_for(2, first["unit"], first["group"]) % 4) % 5

    def simulated(self, claim: str, lines: list[Any], call: Call) -> str | Reply:
        elements = lines[0]
        tokens = json.dumps([[e] for e in elements if isinstance(e, str)])
        rows = self.rows[(claim, "simulation" + tokens)]
        unit = rows["unit"].iloc[0]
        guesses = iter(
            self.guess(unit, item, s)
            for item, s in zip(rows["item"], rows["strength"], strict=True)
        )
        values = [e["check"] if isinstance(e, dict) else next(guesses) for e in elements]
        if len(lines) == 1:
            return json.dumps({"values": values})
        value = values[lines[1][0] - 1]
        # The mean of this distribution is the value, some of it on a token that is no number.
        top = {str(value): np.log(0.5), " x": np.log(0.3)}
        return Reply(str(value), logprobs=[top])

    def guess(self, unit: str, item: str, strength: float) -> int:
        if _chance(unit, "simulation", item) >= self.error:
            return 10 * int(strength > 0.1)
        values = self.values[unit]
        return values[seed_for(1, unit, item) % len(values)]


def _chance(*names: str) -> float:
    return float(rng_for(5, *names).random())


@dataclass
class Run:
    """What came of judging."""

    judgements: pd.DataFrame
    usage: pd.DataFrame
    scores: pd.DataFrame
    calls: list[Call]

    def metric(self, metric: str, control: str = "none") -> pd.DataFrame:
        return self.scores.query("metric == @metric and control == @control").set_index("unit")


def settings_for(server: LlmServer | str, **changes: Any) -> JudgeSettings:
    section = {"items_per_request": 25, "simulation": "all_at_once", "max_tokens": 1000} | changes
    return judge_settings(endpoint_config(server) | section, seed=0)


def judge_world(
    folder: Path,
    items: pd.DataFrame,
    answer: Callable[[Call], Any],
    records: Sequence[Mapping[str, Any]] | None = None,
    controls: Sequence[str] = (),
    **changes: Any,
) -> Run:
    """Judge items through HTTP, as the rule does, and summarise."""
    with LlmServer(answer) as server:
        settings = settings_for(server, **changes)
        tasks = tasks_of(items, subjects_of(records or records_of(items), controls, 0))
        asked = [i for i, task in enumerate(tasks) if task.subject.text]
        llm = llm_settings_from(llm_config(folder / "answers.sqlite", retries=0))
        found = run_units(llm, [work_of(tasks[i], settings) for i in asked], "judge")
        judged = dict(zip(asked, found, strict=True))
        judgements, usage = judgement_table(tasks, judged), usage_table(tasks, judged)
        scores = summarise_judgements(items, judgements, usage, SUMMARY)
        return Run(judgements, usage, scores, server.chats())
