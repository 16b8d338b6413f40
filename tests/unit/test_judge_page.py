"""The section about the judge on a page and in a report."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from fake_heads import write_results
from test_judge_figures import row
from test_report import NAME, NOTEBOOK, OUTPUTS, Page, script

from mechatlas.figures.judge_page import drawn_metrics, judge_markdown, judge_section
from mechatlas.io import provenance, write_table
from mechatlas.score.judge.summary import COLUMNS

HOSTILE = "<script>alert('x')</script>|\u202e"


@pytest.fixture(scope="module")
def judged() -> pd.DataFrame:
    rows = [row("planted.1", "planted", value=0.95), row("planted.1", "planted", "swapped", 0.5)]
    for head in range(3):
        rows += [row(f"L0.H{head}"), row(f"L0.H{head}", control="swapped", q_value=0.1)]
        rows.append(row(f"L0.H{head}", metric="f1"))
    nothing = {"status": "unscored", "reason": HOSTILE, "metric": "", "value": float("nan")}
    rows.append(row("L0.H9", **nothing))
    return pd.DataFrame(rows)[list(COLUMNS)]


def test_without_a_judge_there_is_nothing() -> None:
    assert judge_section(None).text == "" and judge_markdown(None) == ""


def test_section_draws_main_scores_and_escapes_reasons(judged: pd.DataFrame) -> None:
    text = judge_section(judged).text
    assert drawn_metrics(judged) == [("fuzzing", "auc")]
    assert text.count("<figure") == 1 and text.count("<details>") == 1
    assert "<script" not in text and "\u202e" not in text and "fuzzing, F1" in text
    report = judge_markdown(judged)
    assert "<script" not in report.replace("\\<", "") and "\u202e" not in report
    assert "## Scores by a judge" in report and "alert('x')\\</script>\\|" in report


def test_page_and_report_hold_the_section(judged: pd.DataFrame, tmp_path: Path) -> None:
    paths = write_results(tmp_path)
    scores = str(tmp_path / "judge_scores.parquet")
    write_table(scores, judged, provenance())
    made = {name: str(tmp_path / "heads" / file) for name, file in OUTPUTS.items()}
    script("report_heads").main(
        **paths, judge_scores=[scores], bos=None, name=NAME, source="wiki", **made
    )
    assert "## Scores by a judge" in Path(made["report"]).read_text()
    names = ("scores", "clusters", "curve", "events", "windows", "model")
    files = {name: paths[name] for name in names} | {"explanations": made["all_explanations"]}
    script("render_heads").main(
        notebook=str(NOTEBOOK), bos=None, name=NAME, source="wiki", **files, judge_scores=[scores],
        headline=made["headline"], html=str(tmp_path / "heads.html"),
        notebook_out=str(tmp_path / "heads.ipynb"), notebook_log=str(tmp_path / "log.ipynb"),
    )  # fmt: skip
    page = (tmp_path / "heads.html").read_text()
    assert "Scores by a judge" in page and Page(page).tags.count("script") == 1
    assert json.loads((tmp_path / "heads.ipynb").read_text())["cells"]
