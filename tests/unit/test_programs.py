"""Programs predict what a reader of their English would predict."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from mechatlas.explain.forms import (
    Delimiter,
    Distance,
    Duplicate,
    Induction,
    Itself,
    Member,
    Opener,
    Previous,
    SameClass,
    SameWord,
    Start,
    TokenClass,
    Uniform,
)
from mechatlas.explain.programs import AnyForm, Part, Program, parse_program
from mechatlas.explain.scores_form import RELATIONS, C, Scores
from mechatlas.explain.vocabulary import CLASSES, TokenView, Vocabulary, classify
from mechatlas.io import UserError

TEXTS = [
    "<bos>",
    " the",
    " cat",
    " (",
    ")",
    " The",
    "\n",
    ".",
    " May",
    " June",
    " John",
    " 3",
    " 4",
]
VOCABULARY = Vocabulary(TEXTS, 0)


def view_of(*words):
    return TokenView(np.array([[0, *(TEXTS.index(w) for w in words)]]), VOCABULARY)


def pairs(form, view):
    """Set of (query, key) with affinity."""
    return {(int(q), int(k)) for _, q, k in np.argwhere(form.affinity(view) > 0)}


def naive_pairs(view, rule):
    """Brute force: all (q, k), BOS and the future left out, for which a Python rule holds."""
    tokens = [TEXTS[t] for t in view.tokens[0]]
    n = len(tokens)
    return {(q, k) for q in range(n) for k in range(1, q + 1) if rule(tokens, q, k)}


SENTENCE = view_of(
    " the", " cat", " (", " the", " cat", ")", ".", " The", " cat", "\n", " May", " June", " the",
    " cat", " (", " 3", " 4", " 3", ".", " John",
)  # fmt: skip


@pytest.mark.parametrize(
    ("form", "rule"),
    [
        (Itself(), lambda t, q, k: k == q),
        (Previous(offset=3), lambda t, q, k: k == q - 3),
        (Duplicate(), lambda t, q, k: k < q and t[k] == t[q]),
        (Induction(), lambda t, q, k: k < q and t[k - 1] == t[q]),
        (
            Induction(prefix=2),
            lambda t, q, k: 2 <= k < q and t[k - 2 : k] == t[q - 1 : q + 1] and k > 2,
        ),
        (Induction(offset=-1), lambda t, q, k: k + 1 < q and t[k + 1] == t[q]),
        (SameWord(), lambda t, q, k: k < q and t[k] != t[q] and t[k].lower() == t[q].lower()),
        (
            Member(step=-1),
            lambda t, q, k: k < q and (t[k], t[q]) in {(" May", " June"), (" 3", " 4")},
        ),
        (TokenClass(name="month"), lambda t, q, k: k < q and t[k] in (" May", " June")),
        (SameClass(), lambda t, q, k: k < q and classify(t[k]) == classify(t[q])),
        (Uniform(), lambda t, q, k: True),
        (Distance(weights=(0, 0, 1)), lambda t, q, k: q - k == 2),
    ],
    ids=lambda value: getattr(value, "form", None),
)
def test_form_equals_its_brute_force_definition(form, rule):
    assert pairs(form, SENTENCE) == naive_pairs(SENTENCE, rule)


def test_picks_keep_the_nearest_or_the_farthest():
    every = pairs(Duplicate(), SENTENCE)
    by_query = {}
    for q, k in every:
        by_query.setdefault(q, []).append(k)
    assert pairs(Duplicate(pick="last"), SENTENCE) == {(q, max(ks)) for q, ks in by_query.items()}
    assert pairs(Duplicate(pick="first"), SENTENCE) == {(q, min(ks)) for q, ks in by_query.items()}


def test_opener_is_the_bracket_that_is_still_open():
    view = view_of(" (", " the", " (", " cat", ")", " cat", ")", " May")
    assert pairs(Opener(), view) == {(2, 1), (3, 1), (4, 3), (5, 3), (6, 1), (7, 1)}


def test_line_and_sentence_starts_and_delimiters():
    view = view_of(" the", " cat", ".", " The", "\n", " May", " June")
    assert pairs(Start(of="line"), view) == {(q, 1) for q in range(1, 6)} | {(6, 6), (7, 6)}
    assert pairs(Start(of="sentence"), view) == {
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 4),
        (5, 4),
        (6, 6),
        (7, 6),
    }
    assert pairs(Delimiter(), view) == {(3, 3), (4, 3), (5, 5), (6, 5), (7, 5)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" and", "conjunction"), (" 17", "numeral"), (" twelve", "number word"), ("\n\n", "newline"),
        (" (", "opener"), ('"', "quote"), ("?", "sentence end"), ("ing", "word piece"), (" Monday", "weekday"),
        (" Berlin", "capitalised word"), (" house", "word"), ("—", "other punctuation"),
    ],
)  # fmt: skip
def test_token_classes(text, expected):
    assert classify(text) == expected
    assert expected in CLASSES


def test_rows_sum_to_one_and_what_does_not_apply_goes_to_bos():
    program = Program(
        parts=(Part(share=0.6, form=Duplicate()), Part(share=0.3, form=Previous(offset=1)))
    )
    pattern = program.predict(SENTENCE)[0]
    np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-6)
    # Query 1: nothing to duplicate, the previous token is BOS, which parts never choose.
    assert pattern[1, 0] == pytest.approx(1)
    # Query 4 is a second " the": 0.6 on the first, 0.3 on the previous token, the rest on BOS.
    assert pattern[4, [1, 3, 0]] == pytest.approx([0.6, 0.3, 0.1])
    assert not np.triu(pattern, 1).any()


def test_scores_form_is_a_softmax_of_its_tables():
    """Against a scalar re-implementation of the definition, entry by entry."""
    classes = VOCABULARY.classes
    form = Scores(
        sink_class=tuple(0.1 * i for i in range(2 * C)),
        sink_token=((2, 0.7),),
        class_pair=(
            (int(classes[1]), int(classes[2]), 0.5),
            (int(classes[2]) + C, int(classes[1]), -0.4),
        ),
        key_token=((1, 0.3),),
        token_before_key=((1, -0.2),),
        query_factors=((1, (1.0, 2.0)), (2, (0.5, 0.0))),
        key_factors=((2, (0.25, -1.0)),),
        distance=tuple(tuple(0.05 * i + 0.3 * octave for i in range(40)) for octave in range(3)),
        relations={"duplicate": 1.5, "previous": 0.25},
    )
    view = view_of(" the", " cat", " the", " cat", ".")
    tokens = view.tokens[0]

    def score(q, k):
        query_classes = {int(classes[tokens[q]])} | (
            {int(classes[tokens[q - 1]]) + C} if q else set()
        )
        if k == 0:
            return sum(0.1 * c for c in query_classes) + (0.7 if tokens[q] == 2 else 0)
        key_classes = {int(classes[tokens[k]]), int(classes[tokens[k - 1]]) + C}
        total = sum(v for a, b, v in form.class_pair if a in query_classes and b in key_classes)
        total += (0.3 if tokens[k] == 1 else 0) + (-0.2 if tokens[k - 1] == 1 else 0)
        a, b = dict(form.query_factors).get(tokens[q]), dict(form.key_factors).get(tokens[k])
        total += sum(x * y for x, y in zip(a, b, strict=True)) if a and b else 0
        total += 0.05 * (q - k) + 0.3 * int(np.log2(max(q, 1)))
        total += (1.5 if k < q and tokens[k] == tokens[q] else 0) + (0.25 if k == q - 1 else 0)
        return total

    expected = np.zeros((len(tokens), len(tokens)))
    for q in range(len(tokens)):
        row = np.exp([score(q, k) for k in range(q + 1)])
        expected[q, : q + 1] = row / row.sum()
    np.testing.assert_allclose(form.affinity(view)[0], expected, atol=1e-6)


def test_sharpening_multiplies_every_score():
    form = Scores(
        sink_class=tuple(0.1 * i for i in range(2 * C)),
        sink_token=((2, 0.8),),
        class_pair=((1, 3, 0.4),),
        key_token=((1, 0.4),),
        token_before_key=((1, -0.2),),
        query_factors=((1, (1.0, 2.0)), (2, (0.4, 0.0))),
        key_factors=((2, (0.25, -1.0)),),
        distance=((0.0, 0.4, 0.8),),
        relations={"duplicate": 1.6},
    )
    causal = np.tril(np.ones((SENTENCE.shape[1],) * 2, bool))
    np.testing.assert_allclose(
        form.sharpened(1.5).scores(SENTENCE)[0][causal],
        1.5 * form.scores(SENTENCE)[0][causal],
        atol=1e-5,
    )


def test_programs_survive_json():
    program = Program(
        parts=(Part(share=0.5, form=Member(step=1, pick="last")), Part(share=0.25, form=Opener()))
    )
    again = parse_program(program.to_json())
    assert again == program
    np.testing.assert_array_equal(again.predict(SENTENCE), program.predict(SENTENCE))


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"parts": [{"share": 0.6, "form": {"form": "self"}}] * 2}, "more than 1"),
        ({"parts": [{"share": 0.5, "form": {"form": "previous", "offset": 0}}]}, "offset"),
        ({"parts": [{"share": 0.5, "form": {"form": "telepathy"}}]}, "form"),
        ({"parts": [{"share": 0.5, "form": {"form": "class", "name": "verbs"}}]}, "name"),
        ({"parts": [{"share": 0.5, "form": {"form": "self", "extra": 1}}]}, "extra"),
        ({}, "parts"),
    ],
)  # fmt: skip
def test_bad_programs_are_named(data, field):
    with pytest.raises(UserError, match=field):
        parse_program(data)


def test_every_form_says_something_and_never_looks_ahead_or_at_bos():
    forms = [
        TypeAdapter(AnyForm).validate_python(data)
        for data in (
            {"form": "self"}, {"form": "previous"}, {"form": "start"}, {"form": "duplicate"}, {"form": "same_word"},
            {"form": "induction"}, {"form": "delimiter"}, {"form": "opener"}, {"form": "class", "name": "name"},
            {"form": "same_class"}, {"form": "member"}, {"form": "distance", "weights": [1, 2]}, {"form": "uniform"},
        )
    ]  # fmt: skip
    for form in (*forms, *RELATIONS.values()):
        affinity = form.affinity(SENTENCE)
        assert form.english()
        assert not np.triu(affinity[0], 1).any()
        assert not affinity[:, :, 0].any()
        assert affinity.dtype == np.float32
