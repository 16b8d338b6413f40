"""Prompts of tasks for a model: its answers, filter and balance, the original procedure, files, tasks of one's own."""

from __future__ import annotations

import json
import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_tokenizers import SPLIT_WORDS, gpt2_tokenizer

from mechatlas.io import UserError, read_json, read_jsonl, read_provenance
from mechatlas.models.tokenizer import Tokenizer, load_tokenizer
from mechatlas.models.transformer import Transformer, load
from mechatlas.tasks.answers import EndScores, end_scores
from mechatlas.tasks.audit import audit, audit_text, check_scores, find_leaks
from mechatlas.tasks.build import PromptBuilder
from mechatlas.tasks.collect import Plan, Tally, collect
from mechatlas.tasks.legacy import collect_legacy, replace_in_turn
from mechatlas.tasks.pairs import Pair, PairBatch, stack_pairs
from mechatlas.tasks.prepare import prepare_prompts, read_settings
from mechatlas.tasks.prompt_files import read_prompts, write_prompts
from mechatlas.tasks.registry import load_task, make_task
from mechatlas.tasks.sequence_pairs import SequenceTask

DEMO = Path(__file__).resolve().parents[2] / "resources" / "models" / "demo-4l"
DEMO_TASKS = {
    "ioi": {"kind": "ioi"},
    "numerals": {"kind": "sequence", "sequence": "numerals"},
    "months": {"kind": "sequence", "sequence": "months"},
    "induction": {"kind": "induction"},
}


@pytest.fixture(scope="module")
def demo() -> tuple[Transformer, Tokenizer]:
    torch.set_num_threads(1)
    return load(DEMO), load_tokenizer(DEMO)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Tokenizer:
    return gpt2_tokenizer(tmp_path_factory.mktemp("gpt2"))


def scores(good: np.ndarray) -> EndScores:
    """Return scores of prompts that a model gets right where ``good``."""
    return EndScores(
        np.where(good, 1.0, -1.0), good, np.where(good, 0.6, 0.2), np.full(len(good), 0.25)
    )


class Counting:
    """Endless prompts of two families; token i of a prompt is its number."""

    def pairs(self, builder, split, seed):
        for number in count(1 if split == "discovery" else 1001):
            yield Pair((0, number % 3000), (0, 1), number, number + 1, {}, "ab"[number % 2])


# What a model says.


def test_end_scores_are_those_of_the_full_logits(demo):
    model, tokenizer = demo
    task = make_task("gt", "greater_than", {})
    plan = Plan(prompts=70, held_out=0, filter="none")
    batch = collect(task, PromptBuilder(tokenizer, "gt"), plan, 0).batch
    for part in (batch, stack_without_choices(batch)):
        for corrupted in (False, True):
            found = end_scores(model, part, corrupted=corrupted)
            tokens = torch.from_numpy(part.corrupted if corrupted else part.clean)
            logits = model.forward(tokens)[:, -1].double()
            probabilities, rows = logits.softmax(-1).numpy(), np.arange(len(part))
            logits = logits.numpy()
            expected = logits[rows, part.answers] - logits[rows, part.wrong]
            np.testing.assert_allclose(found.logit_difference, expected, atol=1e-4)
            if part.choices is None:
                right, wrong = probabilities[rows, part.answers], probabilities[rows, part.wrong]
                best = logits.argmax(1) == part.answers
            else:
                right, wrong = (
                    np.array(
                        [probabilities[r, part.choices[part.correct[r] == c]].sum() for r in rows]
                    )
                    for c in (True, False)
                )
                best = [logits[r].argmax() in part.choices[part.correct[r]] for r in rows]
            np.testing.assert_allclose(found.answer, right, atol=1e-6)
            np.testing.assert_allclose(found.wrong, wrong, atol=1e-6)
            assert found.top1.tolist() == list(best)


def stack_without_choices(batch: PairBatch) -> PairBatch:
    rows = zip(batch.clean, batch.corrupted, batch.answers, batch.wrong, strict=True)
    pairs = [Pair(tuple(c), tuple(d), int(a), int(w), {}, "g") for c, d, a, w in rows]
    return stack_pairs("t", pairs, True)


def test_prompts_beyond_the_context_are_refused(demo):
    model, tokenizer = demo
    task = make_task("long", "induction", {"tokens": 300})
    with pytest.raises(
        UserError, match="task long: its prompts have 301 tokens, .* context is 256"
    ):
        collect(task, PromptBuilder(tokenizer, "long"), Plan(), 0, lambda b: end_scores(model, b))


def test_filters():
    found = EndScores(
        logit_difference=np.array([2.0, 1.0, 0.5, -1.0]),
        top1=np.array([True, True, False, False]),
        answer=np.array([0.5, 0.5, 0.2, 0.1]),
        wrong=np.array([0.2, 0.3, 0.1, 0.3]),
    )
    passed = {
        rule: found.accepted(rule).tolist() for rule in ("none", "above_wrong", "top1", "confident")
    }
    assert passed["none"] == [True] * 4
    assert passed["above_wrong"] == [True, True, True, False]
    assert passed["top1"] == [True, True, False, False]
    assert passed["confident"] == [True, False, False, False]
    with pytest.raises(UserError, match="'best' is not known"):
        found.accepted("best")
    for settings in ({"filter": "best"}, {"prompts": 0}, {"held_out": -1}, {"max_candidates": 0}):
        with pytest.raises(UserError):
            Plan(**settings)


# Collecting.


def test_the_filter_decides_and_families_stay_balanced(gpt2):
    plan = Plan(prompts=10, held_out=4)

    def measure(batch: PairBatch) -> EndScores:
        # Right on every fourth prompt of one family and on all of the other.
        return scores((batch.answers % 2 == 1) | (batch.answers % 8 == 0))

    collected = collect(Counting(), PromptBuilder(gpt2, "t"), plan, 0, measure)
    batch = collected.batch
    assert [batch.split.count(s) for s in ("discovery", "held_out")] == [10, 4]
    assert batch.of_split("discovery").groups.count("a") == 5
    assert all(a % 2 == 1 or a % 8 == 0 for a in batch.answers)
    tally = collected.tallies["discovery", "a"]
    assert tally.accepted / tally.candidates == pytest.approx(0.25, abs=0.06)
    assert (
        collected.tallies["discovery", "b"].accepted
        == collected.tallies["discovery", "b"].candidates
    )


def test_a_shortfall_is_told_and_nothing_is_an_error(gpt2, caplog):
    builder, plan = PromptBuilder(gpt2, "t"), Plan(prompts=10, held_out=0, max_candidates=3)
    collected = collect(Counting(), builder, plan, 0, lambda b: scores(b.answers % 10 == 0))
    assert len(collected.batch) == 3
    assert "3 of 10 wanted discovery prompts; of 30 candidates" in caplog.text
    with pytest.raises(
        UserError, match=r"0 of 10 wanted .* 0 passed filter: above_wrong; use a weaker filter"
    ):
        collect(Counting(), builder, plan, 0, lambda b: scores(np.zeros(len(b), dtype=bool)))
    with pytest.raises(ValueError, match="needs a model"):
        collect(Counting(), builder, plan, 0)


def test_repeated_prompts_are_taken_once(gpt2):
    class Repeating(Counting):
        def pairs(self, builder, split, seed):
            for pair in super().pairs(builder, split, seed):
                yield pair
                yield pair

    plan = Plan(prompts=8, held_out=0, filter="none")
    collected = collect(Repeating(), PromptBuilder(gpt2, "t"), plan, 0)
    assert len({tuple(row) for row in collected.batch.clean}) == len(collected.batch) == 8
    assert sum(tally.repeated for tally in collected.tallies.values()) > 0


# The audit.


def test_leaks_are_found():
    clean = (0, 5, 6, 7)
    pairs = [
        Pair(clean, (0, 5, 8, 7), 9, 6, {}, "none"),
        Pair(clean, (0, 5, 9, 7), 9, 6, {}, "shows the answer"),
        Pair(clean, (0, 5, 8, 7), 9, 6, {}, "makes it right", corrupted_answer=9),
        Pair(clean, clean, 9, 6, {}, "the clean prompt"),
        Pair((0, 9, 6, 7), (0, 9, 8, 7), 9, 6, {}, "both show it"),
    ]
    assert find_leaks(stack_pairs("t", pairs, True)).tolist() == [False, True, True, True, False]


def test_audit_counts_and_averages():
    pairs = [
        Pair((0, i), (0, 1), 5, 6, {}, "ab"[i % 2], split=split, fillers=("x", "xy"[i % 2]))
        for split in ("discovery", "held_out")
        for i in range(2, 6)
    ]
    batch = stack_pairs("t", pairs, True)
    clean, corrupted = scores(np.arange(8) % 4 > 0), scores(np.zeros(8, dtype=bool))
    rows = audit(batch, clean, corrupted, {("discovery", "a"): Tally(10, 2, 4)})
    assert [(row["split"], row["group"]) for row in rows] == [
        *[("discovery", g) for g in ("all", "a", "b")],
        *[("held_out", g) for g in ("all", "a", "b")],
    ]
    assert rows[0]["prompts"] == 4 and rows[0]["accuracy"] == 0.75 and rows[0]["leaks"] == 0
    assert rows[0]["clean_difference"] == 0.5 and rows[0]["corrupted_difference"] == -1
    assert rows[1]["acceptance"] == 0.5 and rows[2]["acceptance"] is None
    assert rows[1]["repeated_fillers"] == 2 and rows[2]["repeated_fillers"] == 0
    lines = audit_text(rows).splitlines()
    assert len(lines) == 7 and lines[1].split()[:4] == ["discovery", "all", "4", "10"]


def test_a_model_that_fails_is_refused():
    pairs = [Pair((0, i), (0, 1), 5, 6, {}, "g") for i in range(2, 12)]
    batch = stack_pairs("t", pairs, True)
    right, wrong = scores(np.ones(10, dtype=bool)), scores(np.zeros(10, dtype=bool))
    check_scores(batch, right, wrong)
    with pytest.raises(UserError, match=r"clean logit difference is -1.000 .* tasks.t.filter"):
        check_scores(batch, wrong, wrong)
    with pytest.raises(UserError, match="takes nothing away beyond chance"):
        check_scores(batch, right, right)
    # One prompt in ten moves: less than two standard errors.
    barely = scores(np.arange(10) > 0)
    with pytest.raises(UserError, match="beyond chance"):
        check_scores(batch, right, barely)


# The original procedure.


def test_legacy_follows_the_original_procedure(tmp_path):
    refused, gpt2 = [], gpt2_tokenizer(tmp_path, split=())

    def measure(batch: PairBatch) -> EndScores:
        # The model fails on months after the fourth start whenever the first subject is one of a third of all.
        assert batch.bos and (batch.clean[:, 0] == gpt2.bos_id).all() and len(batch) == 8
        months = "January" in batch.text[0]
        good = [
            not (months and c.endswith("/3") and t[0] in "BCK")
            for c, t in zip(batch.cells, batch.text, strict=True)
        ]
        refused.extend(w[0] for w, g in zip(batch.fillers, good, strict=True) if not g)
        return scores(np.array(good))

    plan = Plan(prompts=192, held_out=96)
    batches = {}
    for name in ("numerals", "months"):
        builder = PromptBuilder(gpt2, name, bos=False, leading_blank=False)
        collected = collect_legacy(SequenceTask(name), builder, plan, 0, measure)
        batches[name] = batch = collected.batch
        assert [batch.split.count(s) for s in ("discovery", "held_out")] == [192, 96]
        assert (
            0
            < collected.tallies["discovery", "done"].accepted
            < collected.tallies["discovery", "done"].candidates
        )
        # The published frame, positions and order of starts; no BOS.
        pattern = r"(\w+ (\w+) in \w+\. )(\w+ \2 in \w+\. ){3}\w+ \2 in"
        assert all(re.fullmatch(pattern, text) for text in batch.text)
        assert batch.length == 23 and not (batch.clean == gpt2.bos_id).any()
        assert [batch.roles[f"m{k}"][0] for k in range(1, 5)] == [3, 8, 13, 18]
        assert [cell.split("/")[1] for cell in batch.cells] == [str(i % 8) for i in range(288)]
        assert batch.groups == tuple(np.repeat(["done", "lost", "born"], 64)) + tuple(
            np.repeat(["done", "lost", "born"], 32)
        )
        # Its corruption leaks.
        last = batch.clean[:, 18] == batch.corrupted[:, 18]
        assert 0.02 < last.mean() < 0.3 and find_leaks(batch).any()
    assert refused and batches["months"].fillers == batches["numerals"].fillers
    digits = {month: str(i) for i, month in enumerate(SequenceTask("months").words, 1)}
    for months, numerals in zip(batches["months"].text, batches["numerals"].text, strict=True):
        assert re.sub(r"in (\w+)\.", lambda m: f"in {digits[m.group(1)]}.", months) == numerals


def test_replacement_in_turn_may_replace_again():
    assert replace_in_turn("a in 1. b in 2.", ["1", "2"], ["2", "7"]) == "a in 7. b in 7."
    assert replace_in_turn("12", ["2"], ["12"]) == "112"


def test_legacy_is_for_the_published_classes_only():
    for settings in ({"sequence": "days"}, {"step": -1}, {"shown": 3}, {"highest": 9}):
        with pytest.raises(UserError, match="legacy: the original procedure"):
            read_settings("t", {"kind": "sequence", "legacy": True, **settings})
    with pytest.raises(UserError, match="only tasks of kind sequence"):
        read_settings("t", {"kind": "induction", "legacy": True})
    assert not read_settings("t", {"kind": "sequence", "legacy": True}).bos


# Names in the config, and tasks of one's own.

OWN = """
class Opposites:
    def __init__(self, pairs=(("hot", "cold"),)):
        self.words = pairs

    def pairs(self, builder, split, seed):
        a, b = ("Anchor", "Apple"), ("Arrow", "Basket")
        for one, two in (a, b) if split == "discovery" else (b, a):
            yield builder.pair(
                [(f" {one}", "word"), (" in", "")], [(f" {two}", "word"), (" in", "")],
                f" {two}", f" {one}", group="own", fillers=(one,),
            )

class Nothing:
    pass
"""


def test_a_task_in_a_file_of_ones_own(tmp_path, gpt2):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    entry = {"kind": "python", "file": str(file), "class": "Opposites", "prompts": 2, "held_out": 0}
    settings = read_settings("mine", {**entry, "settings": {"pairs": 3}, "filter": "none"})
    assert settings.task.words == 3 and settings.plan.prompts == 2
    batch = collect(settings.task, PromptBuilder(gpt2, "mine"), settings.plan, 0).batch
    assert batch.text == (" Anchor in", " Arrow in") and batch.roles["word"].tolist() == [1, 1]
    for change, message in (
        ({"file": str(tmp_path / "no.py")}, r"tasks.mine.file: .*no.py does not exist"),
        ({"class": "Oposites"}, r"tasks.mine.class: .*did you mean 'Opposites'"),
        ({"class": "Nothing"}, r"has no method pairs"),
        ({"settings": {"nonsense": 1}}, r"tasks.mine.settings: Opposites cannot be made"),
        ({"clas": 1}, r"unknown key 'clas'"),
    ):
        with pytest.raises(UserError, match=message):
            read_settings("mine", {**entry, **change})
    file.write_text("class Broken:\n  def")
    with pytest.raises(UserError, match="cannot be imported"):
        load_task("mine", file, "Broken", {})


def test_unknown_kinds_and_keys_are_named():
    for entry, message in (
        ({}, "tasks.t.kind is missing"),
        ({"kind": "iio"}, "tasks.t.kind: 'iio' is not known; did you mean 'ioi'"),
        ({"kind": "ioi", "corupt": "abc"}, "tasks.t.corupt: unknown key"),
        (
            {"kind": "ioi", "corruption": "xyz"},
            "tasks.t.corruption: 'xyz' is not known; choose from abc",
        ),
        ({"kind": "ioi", "filter": "best"}, "tasks.t.filter: 'best'"),
        ({"kind": "ioi", "prompts": 0}, "tasks.t.prompts: 0 is too small"),
    ):
        with pytest.raises(UserError, match=message):
            read_settings("t", entry)


# Files.


@pytest.mark.parametrize("task", DEMO_TASKS)
def test_prompts_of_the_default_tasks(task, demo, tmp_path):
    model, tokenizer = demo
    prompts, table = tmp_path / "prompts.jsonl", tmp_path / "audit.json"
    settings = {**DEMO_TASKS[task], "prompts": 24, "held_out": 12}
    arguments = dict(name="demo-4l", task=task, settings=settings, seed=0)
    prepare_prompts(prompts, table, model=model, tokenizer=tokenizer, **arguments)
    batch = read_prompts(prompts, tokenizer=tokenizer.hash)
    assert batch.task == task and batch.bos
    assert [batch.split.count(s) for s in ("discovery", "held_out")] == [24, 12]
    assert len(read_prompts(prompts, split="held_out")) == 12
    written = read_jsonl(prompts)
    again = end_scores(model, batch).logit_difference
    np.testing.assert_allclose(again, [line["clean_difference"] for line in written], atol=1e-5)
    assert (again > 0).all()
    rows = read_json(table)["rows"]
    assert rows[0]["group"] == "all" and rows[0]["acceptance"] > 0.9
    assert sum(row["leaks"] for row in rows) == 0
    facts = read_provenance(prompts)
    assert facts["model_hash"] == model.hash and facts["settings"] == settings
    before = prompts.read_bytes(), table.read_bytes()
    prepare_prompts(prompts, table, model=model, tokenizer=tokenizer, **arguments)
    assert (prompts.read_bytes(), table.read_bytes()) == before


def test_nothing_is_written_for_a_task_that_the_model_cannot_do(demo, tmp_path):
    model, tokenizer = demo
    random = load(DEMO, init="random", seed=1)
    prompts = tmp_path / "prompts.jsonl"
    with pytest.raises(UserError, match="task numerals: "):
        prepare_prompts(
            prompts,
            tmp_path / "audit.json",
            name="random",
            task="numerals",
            settings={"kind": "sequence", "filter": "none"},
            model=random,
            tokenizer=tokenizer,
            seed=0,
        )
    assert not list(tmp_path.iterdir())


def test_a_batch_survives_its_file(gpt2, tmp_path):
    plan, path = Plan(prompts=9, held_out=9, filter="none"), tmp_path / "prompts.jsonl"
    for kind in ("ioi", "greater_than", "interleaved"):
        batch = collect(make_task(kind, kind, {}), PromptBuilder(gpt2, kind), plan, 0).batch
        write_prompts(path, batch, {"score": np.arange(18.0)}, {"tokenizer": gpt2.hash})
        again = read_prompts(path)
        for name, value in vars(batch).items():
            other = getattr(again, name)
            if name == "roles":
                assert set(value) == set(other)
                assert all((value[role] == other[role]).all() for role in value)
            elif isinstance(value, np.ndarray):
                assert value.dtype == other.dtype and (value == other).all()
            else:
                assert value == other, name
    with pytest.raises(UserError, match="another model's tokenizer"):
        read_prompts(path, tokenizer="other")


def test_damaged_prompt_files_are_refused(gpt2, tmp_path):
    path = tmp_path / "prompts.jsonl"
    builder = PromptBuilder(gpt2, "ioi")
    batch = collect(make_task("ioi", "ioi", {}), builder, Plan(2, 0, "none"), 0).batch
    write_prompts(path, batch, {}, {})
    lines = path.read_text().splitlines()
    record = json.loads(lines[1])
    broken = (
        {"clean": record["clean"][:-1]},
        {"corrupted": record["corrupted"][:-1]},
        {"clean": "text"},
        {"split": "test"},
        {"roles": {"end": 99}},
        {"roles": {}},
        {"answer": None, "corrupted": [-1] * len(record["clean"])},
    )
    for change in broken:
        path.write_text(lines[0] + "\n" + json.dumps({**record, **change}) + "\n")
        with pytest.raises(UserError, match="line 2: not a prompt of a task"):
            read_prompts(path)
    path.write_text("")
    with pytest.raises(UserError, match="holds no prompts"):
        read_prompts(path)
    with pytest.raises(UserError, match="does not exist"):
        read_prompts(tmp_path / "other.jsonl")


def test_words_that_the_tokenizer_splits_are_left_out(gpt2):
    batch = collect(
        make_task("ioi", "ioi", {"names": "all"}),
        PromptBuilder(gpt2, "ioi"),
        Plan(200, 0, "none"),
        0,
    ).batch
    assert not {word for words in batch.fillers for word in words} & set(SPLIT_WORDS)


def test_the_example_of_the_documentation_works(tmp_path):
    text = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    file = tmp_path / "capitals.py"
    file.write_text(re.search(r"```python\n(.*?)```", text, re.S).group(1))
    task = load_task("capitals", file, "Capitals", {})

    class Words:
        """A tokenizer with one token for each word."""

        bos_id, words = 0, ["<s>"]

        def encode(self, text):
            parts = re.findall(r" ?\w+", text)
            self.words += [part for part in parts if part not in self.words]
            return [self.words.index(part) for part in parts]

        def decode(self, ids):
            return "".join(self.words[i] for i in ids)

    plan = Plan(prompts=3, held_out=3, filter="none")
    batch = collect(task, PromptBuilder(Words(), "capitals"), plan, 0).batch
    assert len(batch) == 6 and not find_leaks(batch).any()
    assert batch.text[0] == " The capital of Egypt is" and batch.answer_text[0] == " Cairo"
    assert batch.roles["country"].tolist() == [4] * 6
