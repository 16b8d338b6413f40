"""The generated corpora: determinism, structure, and what they must never show."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from mechatlas.corpus import lexicon as lx
from mechatlas.corpus import templates as tp
from mechatlas.corpus.behaviours import indirect_object
from mechatlas.corpus.company import company
from mechatlas.corpus.synthetic import (
    DRILLS,
    generate_document,
    generate_documents,
    generate_drills,
)
from mechatlas.corpus.varied_clauses import varied_clauses
from mechatlas.io import UserError

COUNT = 600


@pytest.fixture(scope="module")
def texts() -> list[str]:
    documents = [d for style in ("wiki", "qa") for d in generate_documents(style, COUNT, 5)]
    drills = [d for kind in DRILLS for d in generate_drills(COUNT, 5, kind)]
    return [d.text for d in documents + drills]


def test_same_seed_gives_same_documents_and_another_seed_others():
    first = list(generate_documents("wiki", 5, 1))
    assert first == list(generate_documents("wiki", 5, 1))
    assert not {d.text for d in first} & {d.text for d in generate_documents("wiki", 5, 2)}
    assert not {d.text for d in first} & {d.text for d in generate_documents("qa", 5, 1)}


def test_a_longer_corpus_begins_with_the_shorter_one():
    assert list(generate_documents("qa", 4, 3)) == list(generate_documents("qa", 9, 3))[:4]
    assert generate_document("qa", 8, 3) == list(generate_documents("qa", 9, 3))[8]


def test_document_ids_are_unique():
    ids = [d.doc_id for style in ("wiki", "qa") for d in generate_documents(style, 50, 3)]
    assert len(set(ids)) == 100


def test_unknown_style_and_negative_count_are_refused_at_once():
    with pytest.raises(UserError, match="poem"):
        generate_documents("poem", 1, 0)
    with pytest.raises(UserError, match="-1"):
        generate_documents("wiki", -1, 0)


def test_brackets_and_quotes_are_balanced(texts):
    for text in texts:
        depth: list[str] = []
        for char in text:
            if char in "([":
                depth.append(char)
            elif char in ")]":
                assert depth and depth.pop() == {")": "(", "]": "["}[char]
        assert not depth
        for paragraph in text.split("\n"):
            assert paragraph.count('"') % 2 == 0


def test_styles_have_their_structure(texts):
    assert all(re.match(r"= \w+ =\n\n", t) and t.count("\n\n== ") == 4 for t in texts[:COUNT])
    assert all(t.startswith("Q:\n\n") and "\n\nA:\n\n" in t for t in texts[COUNT : 2 * COUNT])


def test_every_passage_kind_is_common(texts):
    together = "\n".join(texts)
    characters = len(together)
    marks = {
        "indirect object": r"(?:gave|handed|passed|sent|offered|lent|threw) (?:a|the) \w+ to [A-Z]",
        "frame": r"(?:\w+ (?:done|lost|born) in \w+\. ?){5}",
        "years": r"from the year \d{4} to the year \d{4}",
        "repetition": r"(?:Sign|Code|Signal|Inscription|Key): (.+?)\. (?:\w+): \1\.",
        "counting": r"(?:order is|marked|with me:|sections are|met in) \w+",
        "nested brackets": r"\([^()\[\]]*\[[^\]]*\]\)",
    }
    for name, pattern in marks.items():
        assert len(re.findall(pattern, together)) * 10_000 > characters, name


def test_held_out_names_never_take_part_in_indirect_object_sentences(texts):
    closers = [c for family in tp.IOI_CLOSERS for c in family]
    words = {"O": r"\w+", "P": r"\w+", "S": ""}
    verbs = "|".join(c.replace("{S} ", "").format(**words) for c in closers)
    held_out = "|".join(lx.HELD_OUT_NAMES)
    together = "\n".join(texts)
    answers = re.findall(rf"(?:{verbs}) ([A-Z]\w+)", together)
    assert len(answers) > 1_000
    assert not set(answers) & set(lx.HELD_OUT_NAMES)
    assert not re.search(rf"\b(?:{held_out}) (?:{verbs}) (?:{'|'.join(lx.NAMES)})\b", together)
    # They are names like the others everywhere else.
    assert min(Counter(re.findall(rf"\b(?:{held_out})\b", together)).values()) > 10


def test_held_out_templates_never_occur(texts):
    together = "\n".join(texts)
    name, places, objects = "[A-Z][a-z]+", "|".join(lx.PLACES), "|".join(lx.OBJECTS)
    slots = dict.fromkeys("XYS", name) | {"P": f"(?:{places})", "O": f"(?:{objects})"}

    def pattern(template: str) -> str:
        parts = [slots.get(p, re.escape(p)) for p in re.split(r"\{(\w)\}", template)]
        return "".join(parts) + r"(?!\w)"

    for template in tp.HELD_OUT_OPENERS + tp.HELD_OUT_CLOSERS:
        assert not re.search(pattern(template), together), template
    families = tp.IOI_OPENERS + tp.IOI_CLOSERS
    for family in families:
        shown = [bool(re.search(pattern(template), together)) for template in family[::25]]
        assert any(shown)
    training = {template for family in families for template in family}
    assert not training & set(tp.HELD_OUT_OPENERS + tp.HELD_OUT_CLOSERS)


HELD_OUT_WORDS = "waiting talked saw yesterday owner many years next carried returned promised"
"""Of the content words of the held-out templates, those that training never shows in an indirect-object sentence."""


def test_words_of_held_out_templates_stay_out_of_training_clauses():
    rng = random.Random(1)
    held_out = " ".join(tp.HELD_OUT_OPENERS + tp.HELD_OUT_CLOSERS).lower()
    words = set(HELD_OUT_WORDS.split())
    assert words <= set(re.findall(r"\w+", held_out))
    for clauses in (tp.training_clauses, tp.scattered_clauses, varied_clauses):
        for _ in range(3_000):
            found = set(re.findall(r"\w+", " ".join(clauses(rng)).lower()))
            assert not found & words


def test_varied_clauses_name_two_people_once_and_one_again():
    rng = random.Random(2)
    drawn = [varied_clauses(rng) for _ in range(2_000)]
    for opener, closer in drawn:
        slots = re.findall(r"\{(\w+)\}", opener)
        assert [s for s in slots if s not in "PO"] == ["X", "Y"], opener
        assert opener[0] == opener[0].upper() and opener[-1] != " " and "  " not in opener
        assert closer.startswith("{S} ") and closer.endswith(" to") and closer.count("{S}") == 1
    assert len(set(drawn)) == len(drawn)
    before = Counter(opener.split("{X}")[0] for opener, _ in drawn)
    assert 0.1 < before[""] / len(drawn) < 0.5
    assert len(before) > 0.3 * len(drawn)


def test_held_out_names_keep_company_but_hand_nothing_over():
    rng = random.Random(3)
    names = re.compile(rf"\b(?:{'|'.join(lx.NAMES + lx.HELD_OUT_NAMES)})\b")
    told = Counter()
    for _ in range(3_000):
        assert not set(re.findall(r"\w+", indirect_object(rng, varied_clauses))) & set(
            lx.HELD_OUT_NAMES
        )
        text = company(rng)
        found = names.findall(text)
        told.update(found)
        if len(found) > 2 and found[: len(found) // 2] == found[len(found) // 2 :]:
            continue  # A list that is read twice.
        # Once somebody is mentioned again, nobody else is.
        again = [i for i, name in enumerate(found) if name in found[:i]]
        assert again in ([], [len(found) - 1]), text
    assert 0.5 < sum(told[n] for n in lx.HELD_OUT_NAMES) / told.total() < 0.7
    assert all(told[n] > 50 for n in lx.HELD_OUT_NAMES)


def _frame_runs(text: str):
    clause = re.compile(r"(\w+) (done|lost|born) in (\w+)\.(?: |$)")
    run: list[tuple[str, str]] = []
    end = None
    for match in clause.finditer(text):
        if run and (match.start() != end or run[-1][0] != match.group(2)):
            yield run
            run = []
        run.append((match.group(2), match.group(3)))
        end = match.end()
    if run:
        yield run


def test_held_out_starts_are_never_continued_and_the_others_are(texts):
    index = {m: (c, i) for c, members in lx.SEQUENCES.items() for i, m in enumerate(members)}
    seen = Counter()
    for run in (r for t in texts for p in t.split("\n") for r in _frame_runs(p)):
        for first in range(len(run) - 4):
            members = [m for _, m in run[first : first + 5]]
            name, start = index[members[0]]
            if tuple(members) == lx.members_from(name, start, 5):
                seen[name, run[0][0], start] += 1
    for name in lx.SEQUENCES:
        for frame in lx.FRAMES:
            possible = lx.starts(name)
            held_out = {s for s in possible if lx.held_out_start(name, frame, s)}
            shown = {s for s in possible if seen[name, frame, s]}
            assert held_out and not held_out & shown
            assert len(shown) >= 0.8 * (len(possible) - len(held_out))
            # What is held out in this frame is shown in another.
            assert all(
                any(not lx.held_out_start(name, other, s) for other in lx.FRAMES) for s in held_out
            )


def test_held_out_years_never_start_a_span_and_spans_rise(texts):
    spans = re.findall(r"from the year (\d\d)(\d\d) to the year (\d\d)(\d\d)", "\n".join(texts))
    assert len(spans) > 300
    for century, start, century_end, end in spans:
        assert century == century_end and end > start
        assert not lx.held_out_year(int(century), int(start))
    assert any(lx.held_out_year(c, s) for c in range(11, 20) for s in range(2, 99))


def test_position_does_not_give_away_the_indirect_object():
    rng = random.Random(0)
    names = set(lx.NAMES)
    first_is_answer, places, distances = 0, Counter(), Counter()
    for _ in range(2_000):
        words = re.findall(r"\w+", indirect_object(rng))
        found = [(i, w) for i, w in enumerate(words) if w in names]
        # The sentence ends with the answer, and the name before it is the repeated one.
        answer, subject = found[-1][1], found[-2][1]
        mention = next(i for i, w in found if w == answer)
        first_is_answer += mention < next(i for i, w in found if w == subject)
        places[mention] += 1
        distances[found[-1][0] - mention] += 1
    assert 0.45 < first_is_answer / 2_000 < 0.55
    # Guessing the commonest place or distance finds the answer's first mention in few sentences.
    assert max(places.values()) < 0.25 * 2_000
    assert max(distances.values()) < 0.25 * 2_000


def test_name_lists_are_disjoint_and_large():
    assert not set(lx.NAMES) & set(lx.HELD_OUT_NAMES)
    assert len(set(lx.NAMES)) + len(set(lx.HELD_OUT_NAMES)) >= 150
    assert not set(lx.NAMES + lx.HELD_OUT_NAMES) & set(lx.SUBJECTS + lx.MONTHS + lx.DAYS)
