"""Prompt builders: tokens, roles, answers and the measurement of behaviours."""

from __future__ import annotations

import numpy as np
import pytest

from mechatlas.corpus import lexicon as lx
from mechatlas.corpus import templates as tp
from mechatlas.io import UserError
from mechatlas.tasks.behaviours import end_logits, induction_top1, measure, measure_choices
from mechatlas.tasks.greater_than import build_greater_than
from mechatlas.tasks.induction import build_induction, repeated_tokens
from mechatlas.tasks.ioi import build_ioi
from mechatlas.tasks.prompts import Prompt, batch_of, encode_pieces
from mechatlas.tasks.sequences import build_sequences, held_out_starts

BOS = 0


class WordTokenizer:
    """A reference tokenizer: a word with its blank, a pair of digits or a mark is one token."""

    def __init__(self) -> None:
        self.words = ["<bos>"]

    def encode(self, text: str) -> list[int]:
        import re

        ids = []
        for piece in re.findall(r" ?[A-Za-z]+| ?\d{1,2}| ?[^\w\s]+|\s", text):
            if piece not in self.words:
                self.words.append(piece)
            ids.append(self.words.index(piece))
        return ids

    def text(self, row: np.ndarray, length: int) -> str:
        return "".join(self.words[i] for i in row[1:length])


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer()


def test_fill_keeps_the_text_and_marks_the_slots():
    pieces = tp.fill("Then {X} met {Y}.", {"X": "Ada", "Y": "Leo"}, {"X": "io"})
    assert tp.text_of(pieces) == "Then Ada met Leo."
    assert [p for p in pieces if p[1]] == [(" Ada", "io")]


@pytest.mark.parametrize("names", ["train", "held_out"])
@pytest.mark.parametrize("templates", ["train", "held_out"])
def test_ioi_roles_point_at_the_names(tokenizer, names, templates):
    batch = build_ioi(tokenizer.encode, BOS, 60, 1, names, templates)
    pool = lx.NAMES if names == "train" else lx.HELD_OUT_NAMES
    rows = np.arange(len(batch))
    assert (batch.tokens[:, 0] == BOS).all()
    assert (batch.tokens[rows, batch.roles["io"]] == batch.answers).all()
    assert (batch.tokens[rows, batch.roles["s1"]] == batch.wrong).all()
    assert (batch.tokens[rows, batch.roles["s2"]] == batch.wrong).all()
    for row, length, answer, wrong in zip(
        batch.tokens, batch.lengths, batch.answers, batch.wrong, strict=True
    ):
        assert tokenizer.words[answer].strip() in pool
        assert list(row[:length]).count(answer) == 1 and list(row[:length]).count(wrong) == 2
        assert tokenizer.text(row, length).endswith(" to")
        assert (row[length:] == BOS).all()


def test_ioi_orders_are_balanced_and_positions_vary(tokenizer):
    batch = build_ioi(tokenizer.encode, BOS, 100, 1)
    io_first = batch.roles["io"] < batch.roles["s1"]
    assert io_first.sum() == 50
    assert [g == "ABBA" for g in batch.groups] == io_first.tolist()
    assert len(set(batch.roles["io"].tolist())) > 8
    assert len(set((batch.end - batch.roles["io"]).tolist())) > 6


def test_same_seed_same_prompts(tokenizer):
    one = build_ioi(tokenizer.encode, BOS, 10, 1)
    two = build_ioi(tokenizer.encode, BOS, 10, 1)
    other = build_ioi(tokenizer.encode, BOS, 10, 2)
    assert (one.tokens == two.tokens).all()
    assert one.tokens.shape != other.tokens.shape or (one.tokens != other.tokens).any()


@pytest.mark.parametrize("name", list(lx.SEQUENCES))
@pytest.mark.parametrize("frame", lx.FRAMES)
def test_sequences_continue_by_one(tokenizer, name, frame):
    batch = build_sequences(tokenizer.encode, BOS, name, frame, 24, 3)
    members = lx.SEQUENCES[name]
    assert (batch.lengths == batch.lengths[0]).all()
    rows = np.arange(len(batch))
    shown = [
        [tokenizer.words[i].strip() for i in batch.tokens[rows, batch.roles[f"m{k}"]]]
        for k in range(1, 5)
    ]
    for index, answer in enumerate(batch.answers):
        places = [members.index(column[index]) for column in shown]
        places.append(members.index(tokenizer.words[answer].strip()))
        assert {(b - a) % len(members) for a, b in zip(places, places[1:], strict=False)} == {1}
        assert tokenizer.words[batch.wrong[index]].strip() == shown[3][index]
    assert tokenizer.text(batch.tokens[0], batch.lengths[0]).endswith(f" {frame} in")


def test_sequences_use_the_asked_starts_only(tokenizer):
    held_out = held_out_starts("months", "lost")
    batch = build_sequences(tokenizer.encode, BOS, "months", "lost", 20, 3, held_out)
    assert {int(g.split("/")[2]) for g in batch.groups} == set(held_out)
    with pytest.raises(UserError, match="starts"):
        build_sequences(tokenizer.encode, BOS, "months", "lost", 4, 3, [8])
    with pytest.raises(UserError, match="dozens"):
        build_sequences(tokenizer.encode, BOS, "dozens", "lost", 4, 3)


def test_induction_answers_follow_the_earlier_occurrence():
    batch = build_induction(range(1, 200), BOS, 40, 12, 5)
    rows = np.arange(40)
    last = batch.tokens[rows, batch.end]
    assert (batch.tokens[rows, batch.roles["previous"]] == last).all()
    assert (batch.tokens[rows, batch.roles["source"]] == batch.answers).all()
    assert (batch.roles["source"] == batch.roles["previous"] + 1).all()
    assert (batch.wrong != batch.answers).all()
    for row, wrong in zip(batch.tokens, batch.wrong, strict=True):
        assert wrong in row[1:13]
    with pytest.raises(UserError, match="period 300"):
        repeated_tokens(range(1, 200), BOS, 2, 300, 5)


def test_greater_than_choices(tokenizer):
    batch = build_greater_than(tokenizer.encode, BOS, 50, 2)
    for index in range(50):
        start = tokenizer.words[batch.tokens[index, batch.roles["start"][index]]]
        century = tokenizer.words[batch.tokens[index, batch.roles["century"][index]]]
        assert lx.held_out_year(int(century), int(start))
        right = {tokenizer.words[c] for c in batch.choices[batch.correct[index]]}
        assert right == {f"{n:02d}" for n in range(int(start) + 1, 100)}
        assert tokenizer.words[batch.answers[index]] in right
        assert tokenizer.words[batch.wrong[index]] not in right
        assert tokenizer.text(batch.tokens[index], batch.lengths[index]).endswith(f"year{century}")


def test_a_split_answer_is_refused():
    with pytest.raises(UserError, match="tokens in this model's tokenizer"):
        build_ioi(lambda text: [ord(c) for c in text], BOS, 2, 1)
    with pytest.raises(UserError, match="tokens in this model's tokenizer"):
        build_sequences(lambda text: [ord(c) for c in text], BOS, "months", "done", 2, 1)


def test_a_tokenizer_that_joins_pieces_is_refused():
    with pytest.raises(UserError, match="joins parts"):
        encode_pieces([("ab", ""), ("cd", "x")], lambda text: [len(text)], BOS)


def test_measure_reads_the_last_token_of_each_prompt():
    prompts = [
        Prompt((BOS, 3), {}, 3, 4),
        Prompt((BOS, 5, 6, 7), {}, 7, 6),
        Prompt((BOS, 2), {}, 9, 2),
    ]
    batch = batch_of("echo", prompts)

    def echo(tokens: np.ndarray) -> np.ndarray:
        return 2.5 * np.eye(10)[tokens]

    assert (end_logits(echo, batch).argmax(axis=1) == [3, 7, 2]).all()
    score = measure(echo, batch)
    assert score.count == 3
    assert score.accuracy == score.top1 == pytest.approx(2 / 3)
    assert score.logit_difference == pytest.approx((2.5 + 2.5 - 2.5) / 3)


def test_measure_choices_adds_up_probabilities(tokenizer):
    batch = build_greater_than(tokenizer.encode, BOS, 8, 2)
    count = len(tokenizer.words)

    def flat(tokens: np.ndarray) -> np.ndarray:
        return np.zeros((*tokens.shape, count))

    right = batch.correct.sum(axis=1)
    expected = ((2 * right - 100) / count).mean()
    assert measure_choices(flat, batch)["probability_difference"] == pytest.approx(expected)

    def last_choice(tokens: np.ndarray) -> np.ndarray:
        return np.eye(count)[np.full(tokens.shape, batch.choices[99])] * 50

    result = measure_choices(last_choice, batch)
    assert result["accuracy"] == 1.0
    assert result["probability_difference"] == pytest.approx(1.0)


def test_induction_top1_of_a_copier_and_of_a_constant():
    tokens = repeated_tokens(range(1, 50), BOS, 70, 10, 1)

    def copier(rows: np.ndarray) -> np.ndarray:
        return np.eye(50)[np.roll(rows, 9, axis=1)]

    def constant(rows: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.eye(50)[7], (*rows.shape, 50))

    assert induction_top1(copier, tokens, 10) == 1.0
    assert induction_top1(constant, tokens, 10) == pytest.approx(
        float((tokens[:, 12:] == 7).mean())
    )
