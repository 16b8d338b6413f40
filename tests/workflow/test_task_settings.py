"""What a task says for itself about its circuit, and questions that are asked when circuits are removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import job_counts
from mechatlas.config import complete_config
from test_config import changed, errors_of
from test_dag import AFTER_CIRCUITS, AFTER_COMPARISON, FROM_PROMPTS

NUMERALS = {"kind": "sequence", "sequence": "numerals"}


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (["L1.mlp", "L9.H1"], ["tasks.numerals.keep: mine has no L9.H1", "2 layers of 2 heads"]),
        (["L1.H2"], ["mine has no L1.H2"]),
        (["L1.MLP"], ["tasks.numerals.keep", "'L1.MLP'"]),
        (["L1.mlp", "L1.mlp"], ["tasks.numerals.keep", "twice"]),
    ],
)
def test_kept_nodes_that_do_not_exist_are_one_line(keep: list, says: list, place: Path) -> None:
    config = changed("tasks/numerals", NUMERALS | {"keep": keep})
    (line,) = errors_of(config, place)
    assert all(part in line for part in says)


def test_nodes_are_checked_against_the_models_of_the_task(place: Path) -> None:
    config = changed("models/other", None)
    config["tasks"] = {
        "numerals": NUMERALS | {"keep": ["L9.H1"], "models": ["other"]},
        "months": NUMERALS | {"keep": ["L1.H1"], "models": ["mine"]},
        "days": NUMERALS,
    }
    complete = complete_config(config, place, place)["tasks"]
    assert [task["keep"] for task in complete.values()] == [["L9.H1"], ["L1.H1"], None]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"kind": "arithmetics"}, ["circuits.generation.questions.q.kind", "'arithmetic'"]),
        ({"kind": "arithmetic", "digits": 4}, ["questions.q.digits", "at most 3"]),
        ({"kind": "days_later", "digits": 2}, ["questions.q.digits", "unknown key"]),
        ({"kind": "steps", "step": 0}, ["questions.q.step", "at least 1"]),
    ],
)
def test_questions_that_do_not_exist_are_one_line(entry: dict, says: list, place: Path) -> None:
    (line,) = errors_of(changed("circuits/generation/questions/q", entry), place)
    assert all(part in line for part in says)


def test_questions_may_not_be_called_like_a_task(place: Path) -> None:
    config = changed("circuits/generation/questions/numerals", {"kind": "steps"})
    (line,) = errors_of(config | {"tasks": {"numerals": NUMERALS}}, place)
    assert "circuits.generation.questions.numerals" in line and "choose another" in line


def test_what_a_change_makes_run_again(finished: Path) -> None:
    planned = job_counts(finished, "--config", "tasks={months: {keep: [L0.mlp]}}")
    # On the command line the task comes to be the first one, which the page of a transcoder shows.
    assert planned["prune_nodes"] == 1
    assert planned.keys() - FROM_PROMPTS == AFTER_CIRCUITS | {"prune_nodes"}
    # What holds for all tasks is not for one that names its own, and that may be none.
    planned = job_counts(
        finished, "--config", "tasks={months: {keep: []}}", "circuits={nodes: {keep: [L1.H0]}}"
    )
    assert planned["prune_nodes"] == 3
    sums = "circuits={generation: {questions: {sums: {kind: arithmetic, digits: 2}}}}"
    assert job_counts(finished, "--config", sums).keys() == AFTER_COMPARISON
