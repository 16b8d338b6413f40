"""Clean and corrupted pairs: tokens, roles, answers, leaks and splits, with three kinds of tokenizers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from fake_tokenizers import gpt2_tokenizer, llama_tokenizer

from mechatlas.corpus import lexicon as lx
from mechatlas.io import UserError
from mechatlas.models.tokenizer import Tokenizer, load_tokenizer
from mechatlas.tasks.audit import find_leaks
from mechatlas.tasks.build import PromptBuilder
from mechatlas.tasks.collect import Plan, collect
from mechatlas.tasks.greater_than_pairs import GreaterThanTask
from mechatlas.tasks.induction_pairs import InductionTask
from mechatlas.tasks.interleaved_pairs import InterleavedTask
from mechatlas.tasks.ioi_pairs import IoiTask
from mechatlas.tasks.pairs import Pair, PairBatch, stack_pairs
from mechatlas.tasks.sequence_pairs import SequenceTask

MODELS = Path(__file__).resolve().parents[2] / "resources" / "models"
EVERYTHING = Plan(prompts=48, held_out=24, filter="none")

TASKS = {
    "ioi-abc": IoiTask(),
    "ioi-swap": IoiTask(names="all", corruption="swap"),
    "ioi-subject": IoiTask(orders=("BABA",), corruption="subject"),
    "numerals": SequenceTask(highest=9),
    "months": SequenceTask("months", corruption="permute"),
    "days": SequenceTask("days"),
    "letters": SequenceTask("letters", corruption="repeat"),
    "falling": SequenceTask("months", step=-1),
    "by-three": SequenceTask("letters", step=3),
    "own": SequenceTask(members=lx.PLACES[:7]),
    "interleaved": InterleavedTask(highest=9),
    "interleaved-random": InterleavedTask(digits="random", highest=9),
    "greater-than": GreaterThanTask(),
    "greater-than-late": GreaterThanTask("late"),
    "induction": InductionTask(),
    "induction-replace": InductionTask(tokens=17, corruption="replace"),
}
SEQUENCES = [name for name, task in TASKS.items() if isinstance(task, SequenceTask)]
MAY_DIFFER = {
    "ioi-abc": {"io", "s1", "s2"},
    "ioi-swap": {"io", "s1", "s2"},
    "ioi-subject": {"s2"},
    "greater-than": {"start"},
    "greater-than-late": {"start"},
    "induction": {"previous", "wrong_previous"},
    "induction-replace": {"previous"},
}
"""Roles whose tokens the corruption may change; elsewhere those of the members."""


@pytest.fixture(scope="session", params=["embedded", "gpt2", "llama"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    if request.param == "embedded":
        return load_tokenizer(MODELS / "demo-4l")
    if request.param == "llama":
        return llama_tokenizer()
    return gpt2_tokenizer(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def batches(tokenizer) -> dict[str, PairBatch]:
    """All prompts of all tasks that the tokenizer allows, unfiltered."""
    made = {}
    for name, task in TASKS.items():
        builder = PromptBuilder(tokenizer, name)
        try:
            made[name] = collect(task, builder, EVERYTHING, 3).batch
        except UserError as error:
            assert "0 centuries whose years are two tokens" in str(error)
    return made


def words_at(batch: PairBatch, tokenizer: Tokenizer, row: int, role: str, corrupted=False) -> str:
    tokens = (batch.corrupted if corrupted else batch.clean)[row]
    return tokenizer.strings([tokens[batch.roles[role][row]]])[0].strip()


def members_of(batch: PairBatch, tokenizer: Tokenizer, row: int, corrupted=False) -> list[str]:
    roles = sorted(role for role in batch.roles if re.fullmatch(r"m\d+", role))
    return [words_at(batch, tokenizer, row, role, corrupted) for role in roles]


def test_which_tasks_a_tokenizer_allows(batches, tokenizer):
    expected = set(TASKS)
    # One tokenizer has no two-digit numbers.
    if len(tokenizer.encode("a 32")) > 2:
        expected -= {"greater-than", "greater-than-late"}
    assert set(batches) == expected


def test_prompts_are_the_tokens_of_their_texts(batches, tokenizer):
    for name, batch in batches.items():
        assert batch.clean.shape == batch.corrupted.shape and len(batch) >= 40, name
        assert (batch.clean[:, 0] == tokenizer.bos_id).all()
        assert not (batch.clean[:, 1:] == tokenizer.bos_id).any()
        if "induction" in name:
            continue
        for row in range(len(batch)):
            clean = tokenizer.decode([*batch.clean[row, 1:], batch.answers[row]])
            assert clean.strip() == (batch.text[row] + batch.answer_text[row]).strip()
            # Where a tokenizer makes the blank before a digit a token, the prompt ends with it.
            corrupted = tokenizer.decode(batch.corrupted[row, 1:])
            assert corrupted.strip() == batch.corrupted_text[row].strip()


def test_splits_share_no_word_and_no_prompt(batches):
    for name, batch in batches.items():
        one, two = batch.of_split("discovery"), batch.of_split("held_out")
        words = [{word for fillers in part.fillers for word in fillers} for part in (one, two)]
        assert not words[0] & words[1], name
        assert len({tuple(row) for row in batch.clean}) == len(batch), name
        assert min(len(one), len(two)) >= 16, name


def test_corruption_changes_the_named_roles_only(batches):
    for name, batch in batches.items():
        members = {role for role in batch.roles if re.fullmatch(r"m\d+", role)}
        allowed = MAY_DIFFER.get(name, members)
        changed = batch.clean != batch.corrupted
        assert changed.any(axis=1).all(), name
        for role in allowed:
            changed[np.arange(len(batch)), batch.roles[role]] = False
        assert not changed.any(), name


def test_no_corruption_leaks_the_answer(batches):
    for name, batch in batches.items():
        assert find_leaks(batch).sum() == 0, name


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_step_in_clean_prompts_and_nowhere_in_corrupted_ones(name, batches, tokenizer):
    task, batch = TASKS[name], batches[name]
    words, count = list(task.words), len(task.words)

    def steps(members: Sequence[str]) -> set[int]:
        found = {words.index(b) - words.index(a) for a, b in pairwise(members)}
        return {step % count for step in found} if task.cyclic else found

    for row in range(len(batch)):
        clean = members_of(batch, tokenizer, row)
        answer, wrong = batch.answer_text[row].strip(), batch.wrong_text[row].strip()
        assert steps([*clean, answer]) == {task.step % count if task.cyclic else task.step}
        assert wrong == clean[-1] and len(clean) == 4
        shown = members_of(batch, tokenizer, row, corrupted=True)
        assert answer not in shown and shown[-1] != clean[-1]
        assert not steps(shown) & {1, task.step}
        assert re.fullmatch(
            r" ?(\w+ (done|lost|born) in \w+\. ){4}\w+ (done|lost|born) in", batch.text[row]
        )
        assert (batch.groups[row] == "born") == (
            batch.fillers[row][0] in lx.NAMES + lx.HELD_OUT_NAMES
        )
    counts = {group: batch.groups.count(group) for group in set(batch.groups)}
    assert max(counts.values()) - min(counts.values()) <= 2


def test_classes_share_their_subjects(tokenizer):
    plan = Plan(prompts=8, held_out=8, filter="none")
    tasks = (SequenceTask("months"), SequenceTask("months", corruption="permute"))
    one, two = (collect(t, PromptBuilder(tokenizer, "t"), plan, 1).batch for t in tasks)
    assert one.text == two.text and one.fillers == two.fillers
    assert one.corrupted_text != two.corrupted_text


def test_ioi_roles_point_at_the_names(batches, tokenizer):
    for name in ("ioi-abc", "ioi-swap", "ioi-subject"):
        batch = batches[name]
        # The names are in the same three places everywhere, so that means over prompts are means over roles.
        places = {
            tuple(sorted(batch.roles[r][i] for r in ("io", "s1", "s2"))) for i in range(len(batch))
        }
        assert len(places) == 1
        for row in range(len(batch)):
            io, s1, s2 = (words_at(batch, tokenizer, row, r) for r in ("io", "s1", "s2"))
            assert s1 == s2 == batch.wrong_text[row].strip() != io == batch.answer_text[row].strip()
            assert batch.text[row].count(io) == 1 and batch.text[row].endswith(" to")
            assert (batch.roles["io"][row] < batch.roles["s1"][row]) == (
                batch.groups[row] == "ABBA"
            )
            new = [words_at(batch, tokenizer, row, r, corrupted=True) for r in ("io", "s1", "s2")]
            expected = {"ioi-swap": [s1, io, io], "ioi-subject": [io, s1, io]}.get(name)
            assert new == expected or (name == "ioi-abc" and len({io, s1, *new}) == 5)
    assert batches["ioi-abc"].groups.count("ABBA") == batches["ioi-abc"].groups.count("BABA")


def test_ioi_splits_have_different_templates(batches):
    def templates(batch: PairBatch) -> set[str]:
        """Return the prompts without their names, places and objects."""
        drawn = {*lx.PLACES, *lx.OBJECTS, *(word for fillers in batch.fillers for word in fillers)}
        return {" ".join(w for w in re.findall(r"\w+", t) if w not in drawn) for t in batch.text}

    batch = batches["ioi-abc"]
    one, two = (templates(batch.of_split(split)) for split in ("discovery", "held_out"))
    assert not one & two and min(len(one), len(two)) > 10


@pytest.mark.parametrize("templates", ["train", "held_out"])
def test_ioi_templates_of_the_corpus_are_aligned(templates):
    # Their clauses differ in length and in where the names are.
    builder = PromptBuilder(load_tokenizer(MODELS / "demo-4l"), "ioi")
    batch = collect(IoiTask(templates=templates), builder, EVERYTHING, 0).batch
    places = np.sort([batch.roles[role] for role in ("io", "s1", "s2")], axis=0)
    assert (places == places[:, :1]).all()


def test_own_ioi_templates(tokenizer):
    text = "When {X} and {Y} went to the {P}, {S} gave a {O} to"
    builder = PromptBuilder(tokenizer, "ioi", leading_blank=False)
    batch = collect(IoiTask(own_templates=(text,)), builder, EVERYTHING, 0).batch
    pattern = r"When (\w+) and (\w+) went to the \w+, (\1|\2) gave a \w+ to"
    assert all(re.fullmatch(pattern, prompt) for prompt in batch.text)
    for wrong in ("{X} and {Y} met", "{Y} and {X} met, {S} to", "Oh, ({X} and {Y} met, {S} to"):
        with pytest.raises(UserError, match="own_templates"):
            IoiTask(own_templates=(wrong,))


def test_greater_than_choices(batches):
    if "greater-than" not in batches:
        pytest.skip("the tokenizer splits years into digits")
    for name in ("greater-than", "greater-than-late"):
        batch = batches[name]
        for row in range(len(batch)):
            found = re.fullmatch(
                r" The (\w+) lasted from the year (\d\d)(\d\d) to the year \2", batch.text[row]
            )
            event, century, start = found.groups()
            assert batch.correct[row].tolist() == [n > int(start) for n in range(100)]
            assert int(batch.answer_text[row]) > int(start) >= int(batch.wrong_text[row])
            assert batch.choices[int(batch.answer_text[row])] == batch.answers[row]
            other = re.search(r"year \d\d(\d\d) to", batch.corrupted_text[row]).group(1)
            # In the corrupted prompt both are right, or neither is.
            right = {
                int(batch.answer_text[row]) > int(other),
                int(batch.wrong_text[row]) > int(other),
            }
            assert right == {other == "01"} and (other == "01") == (name == "greater-than")
            assert batch.fillers[row] == (event, start) and batch.groups[row] == century


def test_induction_looks_up_the_earlier_occurrence(batches):
    def follower(tokens: np.ndarray) -> int | None:
        """Return what followed the last token before, None if it is new."""
        earlier = np.flatnonzero(tokens[:-1] == tokens[-1])
        return int(tokens[earlier[-1] + 1]) if len(earlier) else None

    for name in ("induction", "induction-replace"):
        batch, rows = batches[name], np.arange(len(batches[name]))
        assert len(set(batch.groups)) > 3 or name != "induction"
        assert (batch.clean[rows, batch.roles["previous"]] == batch.clean[:, -1]).all()
        for tokens in (batch.clean, batch.corrupted):
            assert (tokens[rows, batch.roles["source"]] == batch.answers).all()
            assert (tokens[rows, batch.roles["wrong_source"]] == batch.wrong).all()
        for row in rows:
            assert follower(batch.clean[row]) == batch.answers[row]
            expected = batch.wrong[row] if name == "induction" else None
            assert follower(batch.corrupted[row]) == expected
            assert {batch.answers[row], batch.wrong[row]} <= set(batch.corrupted[row])


def test_interleaved_continues_the_months(batches):
    for name in ("interleaved", "interleaved-random"):
        batch = batches[name]
        for row in range(len(batch)):
            months = re.findall("[A-Z][a-z]+", batch.text[row] + batch.answer_text[row])
            places = [lx.MONTHS.index(month) for month in months]
            assert {b - a for a, b in pairwise(places)} == {1} and len(places) == 5
            digits = [int(d) for d in re.findall(r"\d+", batch.text[row])]
            rising = {b - a for a, b in pairwise(digits)}
            assert (rising == {1}) if name == "interleaved" else 1 not in rising
            assert digits[0] % 2 == (batch.split[row] == "discovery")


def test_same_seed_same_prompts(tokenizer):
    def texts(seed: int) -> tuple[str, ...]:
        return collect(IoiTask(), PromptBuilder(tokenizer, "ioi"), EVERYTHING, seed).batch.text

    assert texts(1) == texts(1) != texts(2)


def test_without_bos_and_leading_blank(tokenizer):
    builder = PromptBuilder(tokenizer, "months", bos=False, leading_blank=False)
    try:
        batch = collect(SequenceTask("months"), builder, EVERYTHING, 0).batch
    except UserError as error:
        # The embedded models know whole words only after a blank.
        assert "subjects of 'done' are usable" in str(error)
        return
    assert not batch.bos and batch.length == 23
    # Positions of the published prompts.
    assert [batch.roles[f"m{k}"][0] for k in range(1, 5)] == [3, 8, 13, 18]
    assert batch.roles["end"][0] == 22 and batch.text[0][0] != " "


def test_a_blank_that_is_a_token_joins_the_prompt():
    tokenizer = llama_tokenizer()
    builder = PromptBuilder(tokenizer, "numerals")
    batch = collect(SequenceTask(highest=9), builder, EVERYTHING, 0).batch
    assert tokenizer.strings(batch.clean[0, -2:]) == [" in", " "]
    assert tokenizer.strings([batch.answers[0]]) == [batch.answer_text[0].strip()]


def test_answers_of_several_tokens_are_refused(tmp_path):
    builder = PromptBuilder(gpt2_tokenizer(tmp_path), "numwords")
    with pytest.raises(UserError, match=r"'eleven' is \d tokens.* leave it out"):
        next(SequenceTask("numwords").pairs(builder, "discovery", 0))
    pieces = [(" Map", ""), (" done", "")]
    with pytest.raises(UserError, match=r"the answer ' eleven' is \d tokens"):
        builder.pair(pieces, pieces, " eleven", " two", group="g")
    with pytest.raises(UserError, match=r"the answer ' Zelda' is \d tokens"):
        builder.pair(pieces, pieces, " two", " Zelda", group="g")
    # They differ in their last token only, but the others are not blank.
    with pytest.raises(UserError, match="one is needed"):
        builder.pair(pieces, pieces, " Zelda", " Zelde", group="g")
    with pytest.raises(UserError, match="both ' two'"):
        builder.pair(pieces, pieces, " two", " two", group="g")


def test_unequal_lengths_and_shifted_roles_are_refused(tmp_path):
    builder = PromptBuilder(gpt2_tokenizer(tmp_path), "own")
    clean = [(" Map", "x"), (" done", "")]
    with pytest.raises(UserError, match=r"has 3 tokens and its corrupted partner .* \d;"):
        builder.pair(clean, [(" Zelda", "x"), (" done", "")], " two", " one", group="g")
    with pytest.raises(UserError, match="roles are at"):
        builder.pair(clean, [(" Map", ""), (" done", "x")], " two", " one", group="g")
    pairs = [builder.pair(p, p, " two", " one", group="g") for p in (clean, [*clean, (" in", "")])]
    with pytest.raises(UserError, match=r"has 4 tokens, but ' Map done' has 3"):
        stack_pairs("own", pairs, True)
    for parts in ([(" Ma", ""), ("p", "")], [(" done", ""), ("3", ""), ("2", "")]):
        with pytest.raises(UserError, match="the tokenizer joins"):
            builder.prompt(parts)


def test_settings_out_of_range_are_refused():
    for make in (
        lambda: SequenceTask("dozens"),
        lambda: SequenceTask(step=0),
        lambda: SequenceTask(step=5),
        lambda: SequenceTask(corruption="shuffle"),
        lambda: SequenceTask(members=("a", "a", "b", "c", "d")),
        lambda: InductionTask(tokens=4),
        lambda: InterleavedTask(highest=5),
        lambda: GreaterThanTask("01"),
        lambda: IoiTask(names="mine"),
        lambda: IoiTask(orders=()),
    ):
        with pytest.raises(UserError):
            make()


def test_members_without_a_leak_free_corruption_are_refused(tmp_path):
    builder = PromptBuilder(gpt2_tokenizer(tmp_path), "own")
    task = SequenceTask(members=("A", "B", "C", "D"), shown=3, corruption="permute", step=-1)
    with pytest.raises(UserError, match="without a hint"):
        list(islice(task.pairs(builder, "discovery", 0), 10))


def test_select_keeps_rows_together():
    pairs = [
        Pair((0, i, 9), (0, i + 10, 9), i, i + 1, {"x": 1} if i % 2 else {}, f"g{i}", text=str(i))
        for i in range(5)
    ]
    batch = stack_pairs("t", pairs, True)
    assert batch.roles["x"].tolist() == [-1, 1, -1, 1, -1]
    for rows in (np.array([False, False, False, True, True]), [3, 4]):
        part = batch.select(rows)
        assert part.clean[:, 1].tolist() == [3, 4] and part.corrupted[:, 1].tolist() == [13, 14]
        assert part.groups == ("g3", "g4") and part.text == ("3", "4")
        assert part.roles["x"].tolist() == [1, -1] and part.roles["end"].tolist() == [2, 2]
    assert batch.select([4, 0]).answers.tolist() == [4, 0]
    with pytest.raises(UserError, match="held_out above 0"):
        batch.of_split("held_out")
    with pytest.raises(UserError, match="no prompts"):
        stack_pairs("t", [], True)
