"""Which events a language model is shown, and what the forms are called."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from asked_world import capture, cases

from mechatlas.explain import notation
from mechatlas.explain.evidence import assert_split, matched_negatives, stratified
from mechatlas.explain.fit_rules import candidate_forms
from mechatlas.explain.llm.requests import Request, estimate_tokens
from mechatlas.explain.llm.settings import endpoint_from
from mechatlas.explain.programs import form_key
from mechatlas.explain.prompts import (
    PROMPT_VERSION,
    answer_schema,
    explanation_messages,
    revision_messages,
    system_prompt,
)
from mechatlas.explain.selection import heads_to_explain
from mechatlas.io import UserError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return capture(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def known(world: dict[str, Any]) -> list:
    return list(cases(world, candidates=2))


# --- events ---------------------------------------------------------------------------------------


def test_evidence_is_of_train_documents_and_comparison_of_validation_documents(
    world: dict[str, Any], known: list
) -> None:
    windows = pd.read_parquet(world["windows"]).set_index("window")
    assert len(known) == 16
    for case in known:
        shown = [*case.evidence.active, *case.evidence.inactive]
        assert {windows["split"][e.window] for e in shown} == {"train"}
        assert len(case.evidence.active) == 16 and len(case.evidence.inactive) == 8
        tested = [*case.compare, *case.probe]
        assert {windows["split"][e.window] for e in tested} == {"validation"}
        assert not {e.doc for e in case.compare} & {e.doc for e in case.probe}
        for pairs in (case.compare, case.probe):
            labels = Counter(e.label for e in pairs)
            assert labels[True] == labels[False] > 0 and len(pairs) <= 20


def test_shown_pairs_are_what_the_table_of_events_holds(world: dict[str, Any], known: list) -> None:
    events = pd.read_parquet(world["events"])
    windows = pd.read_parquet(world["windows"]).set_index("window")
    case = known[5]
    mine = events.query("layer == 0 and head == 5 and split == 'train'")
    place = ["window", "query", "key"]
    table = mine.drop_duplicates([*place, "role"]).set_index([*place, "role"])
    strongest = mine[mine["role"] == "top"]["write_norm"].max()
    roles = Counter(e.role for e in case.evidence.active)
    assert roles["top"] >= 4 and roles["quantile"] >= 8
    assert len({(e.window, e.place) for e in case.evidence.active}) == 16
    assert len({e.doc for e in case.evidence.active}) == 16
    attention = [e.strength for e in case.evidence.active]
    assert attention == sorted(attention, reverse=True)
    for example in [*case.evidence.active, *case.evidence.inactive]:
        row = table.loc[(example.window, *example.place, example.role)]
        assert row["attention"] == pytest.approx(example.strength)
        assert windows["doc"][example.window] == example.doc
    for example in case.evidence.inactive:
        row = table.loc[(example.window, *example.place, example.role)]
        assert row["write_norm"] < 0.1 * strongest
    assert len({e.role for e in case.evidence.inactive}) == 3


def test_a_document_is_shown_again_only_when_no_other_is_left() -> None:
    rows = [
        {"role": role, "quantile": q, "doc": doc, "window": w, "query": 5, "key": k, "write_norm": n}
        for role, q, doc, w, k, n in [
            *(("top", -1, "a", 0, 1, 9.0), ("top", -1, "a", 0, 2, 8.0), ("top", -1, "b", 1, 1, 7.0)),
            *(("quantile", 1, "a", 0, 1, 9.0), ("quantile", 1, "c", 2, 1, 3.0)),
            *(("quantile", 0, "c", 2, 2, 1.0), ("quantile", 0, "a", 0, 4, 1.0)),
        ]
    ]  # fmt: skip
    events = pd.DataFrame(rows)
    chosen = stratified(events, 3, np.random.default_rng(0))
    assert sorted(chosen["doc"]) == ["a", "b", "c"]
    more = stratified(events, 10, np.random.default_rng(0))
    # The pair that is there as a top event and in a stratum counts once.
    assert len(more) == 6 and not more.duplicated(["window", "query", "key"]).any()
    assert stratified(events.head(0), 3, np.random.default_rng(0)).empty


def test_negatives_take_turns_over_events_and_kinds() -> None:
    kinds = ("negative_same_query", "negative_same_key", "negative_same_distance")
    top = [
        {"role": "top", "window": w, "query": 9, "key": 3, "write_norm": 10 - w, "anchor_query": -1, "anchor_key": -1}
        for w in range(5)
    ]  # fmt: skip
    others = [
        {"role": kind, "window": w, "query": 9 - i, "key": 2 - i, "write_norm": 0.1, "anchor_query": 9, "anchor_key": 3}
        for w in range(5) for i, kind in enumerate(kinds)
    ]  # fmt: skip
    events = pd.DataFrame(top + others)
    first = matched_negatives(events, events.iloc[[2]], 3)
    assert first["window"].tolist() == [2, 0, 1] and set(first["role"]) == set(kinds)
    every = matched_negatives(events, events.iloc[[2]], 100)
    assert len(every) == 15 and not every.duplicated(["window", "query", "key"]).any()
    assert matched_negatives(events.head(5), events.head(1), 4).empty


def test_a_document_of_another_split_is_refused(world: dict[str, Any], tmp_path: Path) -> None:
    assert_split(["a"], {"a": "train"}, "train")
    with pytest.raises(UserError, match="document b is of the split test"):
        assert_split(["a", "b"], {"a": "train", "b": "test"}, "train")
    # A table of events that was captured on other splits than those of the windows.
    moved = pd.read_parquet(world["windows"])
    moved["split"] = moved["split"].map(
        {"train": "test", "test": "train", "validation": "validation"}
    )
    moved.to_parquet(tmp_path / "windows.parquet")
    with pytest.raises(UserError, match="events are to serve as train"):
        next(iter(cases({**world, "windows": str(tmp_path / "windows.parquet")})))


def test_heads_with_the_largest_write_norm_on_train_documents_are_explained() -> None:
    rows = [
        {"layer": layer, "head": head, "split": split, "write_norm": norm}
        for (layer, head), norm in {(0, 0): 1.0, (0, 1): 5.0, (1, 0): 3.0, (1, 1): 5.0}.items()
        for split, norm in (("train", norm), ("test", 100 - 10 * norm))
    ]
    table = pd.DataFrame(rows)
    assert heads_to_explain(table, 2) == [(0, 1), (1, 1)]
    assert heads_to_explain(table, 3) == [(0, 1), (1, 0), (1, 1)]
    assert heads_to_explain(table.drop(columns="write_norm"), 4) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with pytest.raises(UserError, match="write_norm"):
        heads_to_explain(table.drop(columns="write_norm"), 3)


# --- prompts --------------------------------------------------------------------------------------


def lines_of(text: str) -> list[Any]:
    """Return the values of the one data block of a message."""
    lines = text.split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith("BEGIN-DATA"))
    code = lines[start].split()[1]
    end = lines.index(f"END-DATA {code}")
    return [json.loads(line) for line in lines[start + 1 : end]]


def test_the_prompt_marks_tokens_by_their_place_and_shows_negatives_as_such(known: list) -> None:
    evidence = known[3].evidence
    system, user = explanation_messages(evidence, True)
    assert (
        system["content"]
        == system_prompt(True)
        == explanation_messages(known[7].evidence, True)[0]["content"]
    )
    means, *pairs = lines_of(user["content"])
    assert means == {
        "to BOS": round(100 * evidence.sink), "to the QUERY itself": round(100 * evidence.itself)
    }  # fmt: skip
    assert [p[0] for p in pairs] == [
        *(round(100 * e.strength) for e in evidence.active), *["no"] * len(evidence.inactive)
    ]  # fmt: skip
    assert [p[1:] for p in pairs] == [e.values for e in (*evidence.active, *evidence.inactive)]
    assert "program" not in system_prompt(False)


def test_hostile_text_stands_inside_strings_only(known: list) -> None:
    seen = ""
    for case in known:
        text = explanation_messages(case.evidence, True)[1]["content"]
        text.encode("utf-8")
        assert not set(text) & set("\x00\x07\x1b\u202e\u202c\u200b\u200d\u2028\r")
        values = lines_of(text)
        assert len(values) == 1 + 24 and text.count("\n") == 26
        seen += "".join(p if isinstance(p, str) else "" for v in values[1:] for p in v)
        failures = revision_messages([], "x", case.compare[:3])[1]["content"]
        assert len(lines_of(failures)) == 3
    # The corpus is indeed hostile.
    marks = ("END-DATA", "script", "\u202e", "\u200b", "```", "[INST]", "instructions", "\u05e9")
    assert sum(mark in seen for mark in marks) >= 5


def test_prompts_are_small(known: list) -> None:
    endpoint = endpoint_from(_openai())
    sizes = [
        estimate_tokens(
            Request(endpoint, tuple(explanation_messages(c.evidence, True)), answer_schema(True), PROMPT_VERSION)
        )
        for c in known
    ]  # fmt: skip
    # Hostile text is all signs and rare characters, which take more tokens than prose.
    assert max(sizes) <= 2500 and float(np.mean(sizes)) < 2300


def _openai() -> dict[str, Any]:
    from llm_server import endpoint_config

    return endpoint_config("http://127.0.0.1:1/v1")


# --- notation -------------------------------------------------------------------------------------


def test_every_symbolic_form_is_described_with_all_its_parameters() -> None:
    lines = {line.split("(")[0]: line for line in notation.DESCRIPTION.split("\n")}
    for name, kind in notation.SYMBOLIC.items():
        inside = lines[name].split("(", 1)[1].split("):")[0]
        named = {part.split("=")[0] for part in inside.split(",") if part}
        assert named == set(kind.model_fields) - {"form"}, name
        assert kind().form == name if name != "class" else True


def test_forms_are_read_as_they_are_written() -> None:
    for form in candidate_forms():
        assert notation.parse_form(form_key(form)) == form
    spaced = notation.parse_form(" class ( name = 'comma or colon' , pick = last ) ")
    assert form_key(spaced) == "class(name=comma or colon,pick=last)"
    assert form_key(notation.parse_form("member(step=-1)")) == "member(step=-1,pick=all)"
    assert notation.parse_form("self") == notation.parse_form("self()")
    program = notation.parse_parts([(0.5, "previous"), (0.25, "induction(prefix=2)")])
    assert [part.share for part in program.parts] == [0.5, 0.25]
    assert notation.parse_parts([]).sink == 1


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([(0.5, "telepathy()")], "part 1: unknown form 'telepathy'"),
        ([(0.5, "previous(1)")], "part 1: previous: '1' is not a parameter"),
        ([(0.5, "previous(of=line)")], "'of' is not a parameter"),
        ([(0.5, "previous(offset=1,offset=2)")], "'offset' is not a parameter"),
        ([(0.5, "previous(offset=99)")], "previous: offset: Input should be less"),
        ([(0.2, "self()"), (0.5, "duplicate(pick=any)")], "part 2: duplicate: pick"),
        ([(0.5, "class(name=vowel)")], "class: name"),
        ([(0.5, "scores()")], "unknown form 'scores'"),
        ([(0.5, "__import__('os')")], "unknown form '__import__'"),
        ([(0.5, "<script>\u202e" * 50)], "not of the form"),
        ([(0.7, "self()"), (0.7, "previous()")], "more than 1"),
        ([(-0.1, "self()")], "share"),
        ([(float("inf"), "self()")], "share"),
        ([(0.1, "self()")] * 9, "parts"),
    ],
)
def test_wrong_programs_are_refused_saying_where(parts: list, says: str) -> None:
    with pytest.raises(UserError) as caught:
        notation.parse_parts(parts)
    assert says in str(caught.value) and "\u202e" not in str(caught.value)
