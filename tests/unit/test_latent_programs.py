"""Programs of latents: what each form predicts, and that planted rules come back from their activations."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mechatlas.explain.latents.conditions import Matches, Near, OfClass, OneOf, Seen
from mechatlas.explain.latents.fit import (
    Activations,
    LatentFitSettings,
    explain_latent,
    shuffle_tokens,
)
from mechatlas.explain.latents.fit_ngrams import fit_lookup, fit_ngrams
from mechatlas.explain.latents.fit_rules import Bank, correlation
from mechatlas.explain.latents.programs import (
    LatentProgram,
    Lookup,
    NGrams,
    Rule,
    parse_latent_program,
)
from mechatlas.explain.vocabulary import TokenView, Vocabulary
from mechatlas.io import UserError, rng_for

TEXTS = [
    *("<bos>", " the", " of", " a", " in", ".", ",", "\n", " New", " York", " London", " Paris"),
    *(" walking", " talking", " running", " singing", " went", " goes", " red", " blue", " green"),
    *(" 3", " 17", " 1999", " five", " Monday", " cat", " dog", " cats", " houses", " Ada", " saw"),
    *("ing", " quickly", " slowly", " (", ")", " mill", " sea", " is"),
]
ID = {text: i for i, text in enumerate(TEXTS)}


def make_view(windows: int, seed: int, length: int = 48) -> TokenView:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, len(TEXTS), (windows, length))
    tokens[:, 0] = 0
    for row in tokens:  # phrases that chance alone would not bring often
        for low, high, lasts in ((2, 20, (" sea", " mill")), (24, 44, (" sea", " cat"))):
            start = rng.integers(low, high)
            row[start : start + 3] = [ID[" in"], ID[" the"], ID[rng.choice(lasts)]]
    return TokenView(tokens, Vocabulary(TEXTS, 0))


@pytest.fixture(scope="module")
def views():
    return make_view(150, 0), make_view(60, 1), make_view(150, 2)


def texts_of(view):
    return [[TEXTS[t] for t in row] for row in view.tokens]


def planted(rule, view):
    """Activations of a rule that is written as plain Python: a function of the texts up to a token."""
    values = np.zeros(view.shape, np.float32)
    for window, texts in enumerate(texts_of(view)):
        for at in range(1, len(texts)):
            values[window, at] = rule(texts[: at + 1])
    return values


RULES = {
    "tokens": lambda t: 2.0 * (t[-1] in (" New", " sea", " saw")),
    "regex": lambda t: 1.5 * t[-1].endswith("ing"),
    "class": lambda t: 3.0 * bool(re.fullmatch(r" ?\d+", t[-1])),
    "bigram": lambda t: 2.0 * (t[-2:] == [" New", " York"]),
    "previous": lambda t: 1.0 * (t[-2] in (" the", " sea")),
    "conjunction": lambda t: 1.0 * (t[-2] == " of" and t[-1].endswith("ing")),
    "sentence": lambda t: 1.0 * (t[-2] in (".", "\n", "<bos>")),
    "seen": lambda t: 1.0 * (t[-1] in t[1:-1]),
    "lookup": lambda t: {" cat": 4.0, " cats": 2.5, " dog": 1.0}.get(t[-1], 0.0),
    "trigram": lambda t: 1.0 * (t[-3:] in ([" in", " the", " sea"], [" in", " the", " mill"])),
    "either": lambda t: 2.0 * (t[-1] == " Ada") + 1.0 * (t[-2] == " (" and t[-1] != " Ada"),
}
FOUND = {
    "tokens": ("rule", {"tokens"}, {0}),
    "regex": ("rule", {"regex"}, {0}),
    "class": ("rule", {"class", "regex"}, {0}),
    "previous": ("rule", {"tokens"}, {1}),
    "bigram": ("rule", {"tokens"}, {0, 1}),
    "conjunction": ("rule", {"tokens", "regex"}, {0, 1}),
    "sentence": ("rule", {"position"}, {0}),
    "seen": ("rule", {"seen"}, {0}),
}


@pytest.fixture(scope="module")
def explained(views):
    train, validation, _ = views
    bank, records = Bank(train), {}
    for place, (name, rule) in enumerate(RULES.items()):
        unit = {"unit": f"L0.resid_mid.F{place}", "layer": 0, "latent": place}
        known = Activations(validation, planted(rule, validation))
        records[name] = explain_latent(unit, bank, planted(rule, train), known, LatentFitSettings())
    return records


@pytest.mark.parametrize("name", RULES)
def test_planted_rules_come_back(explained, views, name):
    record = explained[name]
    program = parse_latent_program(record["program"])
    truth = planted(RULES[name], views[2])
    score = correlation(program.predict(views[2]), truth)
    assert score > 0.95, record["text"]
    if name in FOUND:
        kind, conditions, backs = FOUND[name]
        assert record["kind"] == kind
        used = [c for part in program.parts for c in part.conditions]
        assert {c.on for c in used} <= conditions and {c.back for c in used} == backs, record[
            "text"
        ]


def test_planted_tokens_are_named(explained):
    named = re.findall("' [A-Za-z]+'", explained["tokens"]["text"])
    assert sorted(named) == ["' New'", "' saw'", "' sea'"]
    assert explained["bigram"]["text"] == "Active on ' York' after ' New'."
    assert explained["previous"]["text"] == "Active on tokens after ' the' or ' sea'."
    assert explained["regex"]["text"] == "Active on tokens that end in 'ing'."
    assert explained["sentence"]["text"] == "Active on the first token of the sentence."
    assert explained["lookup"]["text"].startswith("Active on ' cat' or ' cats', weakly on 1 other")


def test_what_is_fitted_on_shuffled_activations_says_nothing(views):
    train, validation, test = views
    found = []
    for name in ("tokens", "bigram", "class", "regex"):
        values = [planted(RULES[name], view) for view in (train, validation)]
        shuffled = [shuffle_tokens(v, rng_for(0, "shuffled", name)) for v in values]
        assert shuffled[0].sum() == pytest.approx(values[0].sum())
        known = Activations(validation, shuffled[1])
        record = explain_latent({"unit": "u"}, Bank(train), shuffled[0], known, LatentFitSettings())
        program = parse_latent_program(record["program"])
        found.append(correlation(program.predict(test), planted(RULES[name], test)))
    assert np.abs(found).mean() < 0.15 and max(found) < 0.35


def test_shuffling_leaves_no_activation_where_it_was():
    values = np.broadcast_to(np.arange(5.0)[:, None], (5, 40))
    shuffled = shuffle_tokens(values, np.random.default_rng(0))
    assert (shuffled != values).all()
    assert (np.sort(shuffled, axis=0) == values).all()


def test_a_latent_that_is_never_active_is_unexplained_with_a_reason(views):
    train, validation, _ = views
    nothing = np.zeros(train.shape, np.float32)
    known = Activations(validation, np.zeros(validation.shape, np.float32))
    record = explain_latent({"unit": "u"}, Bank(train), nothing, known, LatentFitSettings())
    assert record["program"] is None and record["text"] == "" and "not active" in record["reason"]


def test_conditions_hold_where_they_say(views):
    view = views[2]
    texts = texts_of(view)
    cases = {
        OneOf(tokens=(ID[" cat"], ID[" dog"]), back=1): lambda t: t[-2] in (" cat", " dog"),
        Matches(pattern="ing$", back=2): lambda t: len(t) > 2 and t[-3].endswith("ing"),
        OfClass(name="numeral"): lambda t: t[-1].strip().isdigit(),
        Near(start="window", within=3): lambda t: len(t) <= 4,
        Near(start="sentence"): lambda t: t[-2] in (".", "\n", "<bos>"),
        Seen(): lambda t: t[-1].strip() in [x.strip() for x in t[1:-1]],
        Seen(seen=False): lambda t: t[-1].strip() not in [x.strip() for x in t[1:-1]],
    }
    for condition, rule in cases.items():
        mask = condition.mask(view)
        for window in range(20):
            for at in range(1, view.shape[1]):
                wanted = bool(rule(texts[window][: at + 1])) and at >= condition.back
                assert bool(mask[window, at]) == wanted, (condition, window, at)


def test_ngrams_fall_back_to_less_specific_contexts(views):
    view = views[2]
    a, b, c = ID[" the"], ID[" of"], ID[" sea"]
    program = NGrams(
        groups=((0,), (0, 2), (0, 1), (0, 1, 2)),
        contexts=((c,), (c, None, b), (c, a), (c, a, b)),
        values=(1.0, 2.0, 3.0, 4.0),
        otherwise=0.5,
    )
    predicted = program.predict(view)
    for window, row in enumerate(view.tokens):
        for at in range(1, len(row)):
            before, two = row[at - 1], row[at - 2] if at > 1 else -1
            wanted = 0.5
            if row[at] == c:
                wanted = 1.0
                if two == b:
                    wanted = 2.0
                if before == a:
                    wanted = 4.0 if two == b else 3.0
            assert predicted[window, at] == wanted
    assert (predicted[:, 0] == 0).all()
    assert "' of the sea'" in program.english(view.vocabulary)


def test_a_lookup_is_the_shrunk_mean_of_each_token(views):
    view = views[0]
    values = planted(RULES["lookup"], view)
    lookup = fit_lookup(view, values, 0, 50)
    mean = values[:, 1:].mean()
    for token, value in zip(lookup.tokens, lookup.values, strict=True):
        mine = values[:, 1:][view.tokens[:, 1:] == token]
        assert value == pytest.approx((mine.sum() + mean) / (len(mine) + 1))
    assert {TEXTS[t] for t in lookup.tokens} == {" cat", " cats", " dog"}
    assert fit_lookup(view, values, 0, 1).tokens == (ID[" cat"],)
    assert len(fit_ngrams(view, values, ((0,), (0, 1)), 2).contexts) == 2


def test_a_program_is_the_largest_of_its_parts_and_survives_json(views):
    view = views[2]
    program = LatentProgram(
        parts=(
            Rule(conditions=(OneOf(tokens=(ID[" cat"],)),), value=1.0),
            Lookup(back=1, tokens=(ID[" the"],), values=(2.0,), otherwise=0.25),
        )
    )
    expected = np.maximum(
        (view.tokens == ID[" cat"]) * 1.0,
        np.where(np.roll(view.tokens, 1, 1) == ID[" the"], 2.0, 0.25),
    )
    expected[:, 0] = 0
    assert np.array_equal(program.predict(view), expected)
    assert parse_latent_program(program.to_json()) == program
    assert not LatentProgram(parts=()).predict(view).any()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"parts": [{"form": "guess"}]}, "parts.0"),
        ({"parts": [{"form": "rule", "conditions": [], "value": 1}]}, "conditions"),
        (
            {
                "parts": [
                    {"form": "rule", "conditions": [{"on": "regex", "pattern": "("}], "value": 1}
                ]
            },
            "regular expression",
        ),
        ({"parts": [{"form": "lookup", "tokens": [1], "values": [-1.0]}]}, "values"),
    ],
)
def test_a_wrong_program_is_refused_with_the_field(data, message):
    with pytest.raises(UserError, match=message):
        parse_latent_program(data)
