"""Figure and tables of the judge's scores."""

import numpy as np
import pandas as pd
import pytest

from mechatlas.figures.html import table
from mechatlas.figures.judge import (
    judge_figure,
    judge_rows,
    judge_unit_rows,
    spend_rows,
    unscored_judge_rows,
)
from mechatlas.figures.judge_scores import ceiling_and_floor, shown_metrics
from mechatlas.figures.style import svg
from mechatlas.score.judge.summary import COLUMNS

HOSTILE = "<script>alert('x')</script> \u202e"


def row(unit, explainer="openai", control="none", value=0.8, **changes):
    base = dict.fromkeys(COLUMNS, np.nan) | {
        **{"unit": unit, "layer": 0, "head": 0, "explainer": explainer, "scorer": "fuzzing"},
        **{"metric": "auc", "control": control, "value": value, "low": value - 0.1, "high": value + 0.1},
        **{"program": 0.9, "gain_over_program": value - 0.9, "gain_over_program_low": value - 1.0},
        **{"gain_over_program_high": value - 0.8, "lookup": 0.6, "gain_over_lookup": value - 0.6},
        **{"gain_over_lookup_low": value - 0.7, "gain_over_lookup_high": value - 0.5},
        **{"items": 100, "unscored_items": 5, "failure_rate": 0.05, "requests": 4, "prompt_tokens": 1000},
        **{"cached_tokens": 100, "completion_tokens": 50, "price": 0.001, "status": "scored", "reason": ""},
        "beats_control": None,
    }  # fmt: skip
    return base | changes


@pytest.fixture
def scores():
    rows = [
        row("planted.1", "planted", value=0.95, layer=-1),
        row("planted.1", "planted", "swapped", 0.5, layer=-1),
    ]
    for head, value in enumerate((0.8, 0.65, 0.72)):
        rows.append(row(f"L0.H{head}", value=value))
        rows.append(
            row(f"L0.H{head}", control="swapped", value=0.5, q_value=0.01, beats_control=head < 2)
        )
        rows.append(row(f"L0.H{head}", "programs", value=value - 0.1, price=np.nan))
    missing = {"status": "unscored", "reason": HOSTILE, "metric": "", "value": np.nan}
    empty = dict.fromkeys(("requests", "items", "unscored_items", "failure_rate", "price"), np.nan)
    rows.append(row("L0.H9", **missing, **empty))
    return pd.DataFrame(rows)[list(COLUMNS)]


def test_means_gains_controls_and_failures(scores):
    assert ceiling_and_floor(scores, "fuzzing", "auc") == (0.95, 0.5)
    assert shown_metrics(scores) == [("fuzzing", "auc")]
    columns, rows = judge_rows(scores)
    first = dict(zip(columns, rows[0], strict=True))
    assert first["explainer"] == "openai" and first["units"] == "3 of 4"
    assert first["mean"] == "0.72" and first["ceiling"] == "0.95" and first["floor"] == "0.50"
    assert first["gain over program"] == "−0.18 (above 0: 0 of 3)"
    assert first["gain over look-up"] == "+0.12 (above 0: 2 of 3)"
    assert first["beat it"] == "2 of 3" and first["unanswered"] == "5.0 %"
    assert len(rows) == 2 and rows[1][1] == "programs"


def test_spend_counts_every_explanation_once(scores):
    columns, rows = spend_rows(scores)
    found = {r[0]: dict(zip(columns, r, strict=True)) for r in rows}
    assert found["openai"]["requests"] == "24" and found["openai"]["price"] == "0.0060"
    assert found["programs"]["price"] == "unknown" and found["all"]["price"] == "unknown"
    assert found["all"]["explanations"] == "11" and found["openai"]["prompt tokens"] == "6,000"


def test_reasons_are_listed_and_escaped(scores):
    rows = unscored_judge_rows(scores)
    assert rows == [("fuzzing", "openai", HOSTILE, 1, "L0.H9")]
    shown = table(["score", "explainer", "reason", "units", "which"], rows).text
    assert "<script>" not in shown and "\u202e" not in shown and "U+202E" in shown
    units = judge_unit_rows(scores, "fuzzing", "auc")
    assert units[1][:3] == ["L0.H0", "openai", "0.80 [0.70, 0.90]"] and units[1][5] == "0.010"


def test_the_figure_is_byte_stable_and_draws_without_scores(scores):
    first = svg(judge_figure(scores, "fuzzing", "auc"))
    assert first == svg(judge_figure(scores, "fuzzing", "auc")) and first.startswith("<svg")
    nothing = scores.assign(value=np.nan)
    assert svg(judge_figure(nothing, "fuzzing", "auc")).startswith("<svg")
