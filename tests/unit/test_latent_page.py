"""The page and tables about latents: what they show is what the files say, and text stays text."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from asked_world import script
from latent_results_world import latent_data, planted_rules, write_world

from mechatlas.explain.latents.fit import LatentFitSettings, explain_all
from mechatlas.explain.latents.records import read_latent_explanations
from mechatlas.figures.examples import WindowTexts
from mechatlas.figures.index import LatentEntry, index_page
from mechatlas.figures.latent_page import LatentPages, token_html
from mechatlas.figures.latent_results import latent_table, table_rows, unscored_rows
from mechatlas.figures.latents import density_histogram, latent_scores, score_by_layer
from mechatlas.figures.style import svg
from mechatlas.io import provenance, read_json, read_jsonl, read_table, write_jsonl, write_table
from mechatlas.score.latents.scoring import LatentScoring
from mechatlas.score.latents.summary import LatentSummarySettings

HOSTILE = "Active on </script><script>alert(1)</script> \u202e|`x`"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    paths = write_world(folder)
    data = latent_data(paths)
    records = explain_all(data, LatentFitSettings(), ("random_direction",), 0)
    other = {**records[0], "explainer": "openai", "text": HOSTILE, "program": None, "reason": ""}
    write_jsonl(folder / "programs.jsonl", records, {})
    write_jsonl(folder / "openai.jsonl", [other], {})
    events = read_table(paths["events"])
    settings = LatentSummarySettings(40, 0.95, 0.05, 5, 0)
    parsed = read_latent_explanations([folder / "programs.jsonl", folder / "openai.jsonl"])
    test_events = events[events["split"] == "test"]
    scores = LatentScoring(data, parsed, test_events, {}, ("swapped",), 0.2, settings).run()
    facts = provenance(bootstrap=40, confidence=0.95, seed=0)
    write_table(folder / "scores.parquet", scores, facts)
    statistics = pd.concat(
        [
            pd.DataFrame(
                {
                    **{"layer": 0, "latent": [*planted_rules(), 77], "split": split},
                    **{"tokens": 2000, "firing_rate": [0.1, 0.05, 0.2, 0.01, 0.0]},
                    "importance": [0.2, 0.5, 0.3, 0.1, 0.0],
                    **{"mean_activation": 1.0, "max_activation": 2.0, "single_token": False},
                    **{"dense": [False, False, True, False, False], "dead": [*4 * [False], True]},
                }
            )
            for split in ("train", "test")
        ]
    )
    write_table(folder / "stats.parquet", statistics, {})
    script("report_latents").main(
        [str(folder / "programs.jsonl"), str(folder / "openai.jsonl")],
        *(str(folder / name) for name in ("scores.parquet", "stats.parquet")),
        [], [], "demo-2l", "wiki", "small",
        *(str(folder / n) for n in ("report.md", "summary.csv", "headline.json", "all.jsonl")),
    )  # fmt: skip
    return folder, data, paths


def pages(world, steering=None, tokens=None):
    folder, data, paths = world
    table = latent_table(
        read_jsonl(folder / "all.jsonl"),
        read_table(folder / "scores.parquet"),
        read_table(folder / "stats.parquet"),
    )
    neighbours = pd.DataFrame(
        {
            **{"layer": 0, "latent": 0, "kind": ["similar", "coactive"], "rank": 1},
            **{"neighbour": [3, 400], "value": [0.5, 0.25]},
        }
    )
    empty = pd.DataFrame()
    return LatentPages(
        table,
        WindowTexts(data.table, data.tokenizer),
        lambda token: f"<t{token}>",
        *(read_table(paths[name]) for name in ("events", "activations")),
        read_table(folder / "scores.parquet"),
        neighbours,
        empty if steering is None else steering,
        empty if tokens is None else tokens,
    )


def test_the_table_has_the_most_important_first_and_the_numbers_of_the_files(world):
    made = pages(world)
    mine = made.table[made.table["explainer"] == "programs"]
    assert mine["latent"].tolist() == [3, 5, 0, 9]
    scores = read_table(world[0] / "scores.parquet")
    for row in mine.itertuples():
        own = scores.query(
            "unit == @row.unit and explainer == 'programs' and metric == 'correlation'"
        ).set_index("control")
        assert row.correlation == own.loc["none", "value"]
        assert row.importance_share == pytest.approx(row.importance / 1.1)
        failing = own.loc[["swapped", "random_direction"]]
        assert row.best_control == failing["value"].idxmax()
        assert row.advantage == pytest.approx(row.correlation - failing["value"].max())
    assert mine.set_index("latent").loc[5, "flags"] == "dense"
    columns, rows = table_rows(made.table)
    assert "explainer" in columns and len(rows) == 5
    openai = made.table[made.table["explainer"] == "openai"].iloc[0]
    assert openai["status"] == "unscored" and openai["reason"] == "a text without a program"


def test_every_latent_has_a_section_with_its_parts(world):
    steering = pd.DataFrame(
        {
            **{"layer": 0, "latent": 0, "control": ["none"], "strength": [3.5]},
            **{"divergence": [0.5], "reason": [""]},
        }
    )
    tokens = pd.DataFrame(
        {
            **{"layer": 0, "latent": 0, "kind": ["direct", "steered"], "sign": [1, -1]},
            **{"rank": 1, "token": [7, 8], "value": [1.0, -1.0]},
        }
    )
    html = pages(world, steering, tokens).sections().text
    sections = re.findall(r"<details class='mx-latent' id='(L0\.resid_mid\.F\d+)'>", html)
    assert sections == [f"L0.resid_mid.F{i}" for i in (3, 5, 0, 9)]
    assert html.count("<details") == html.count("</details>")
    section = html.split("id='L0.resid_mid.F0'")[1].split("</details>")[0]
    for words in ("Statistics", "Activations", "Logits", "Neighbours", "Examples", "Scores"):
        assert f"{words}" in section
    assert "&lt;t7&gt;" in section and "&lt;t8&gt;" in section and "nats at strength 3.5" in section
    assert "href='#L0.resid_mid.F3'" in section and "href='#L0.resid_mid.F400'" not in section
    assert section.count("mx-query") >= 5
    # The framed token of the strongest example is one on which the latent is active.
    data = world[1]
    framed = re.findall(r"<span class='mx-query'>(?:<span[^>]*>)?([^<]+)<", section)
    texts = {data.vocabulary.texts[t].strip() for t in (20, 21, 22)}
    assert {f.strip() for f in framed} <= {t or "∅" for t in texts}


def test_what_others_wrote_is_text(world):
    html = pages(world).sections().text
    assert "<script" not in html and "&lt;script&gt;" in html
    assert not set(html) & set("\u202e\u200b\x00")
    report = (world[0] / "report.md").read_text(encoding="utf-8")
    assert "\u202e" not in report
    prose = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", report)
    assert "<script>" not in prose.replace("\\<", "")


def test_tokens_are_shaded_by_their_share():
    assert token_html(" cat", 0.0, False) == " cat"
    assert token_html(" cat", 0.5, False) == (
        " <span class='mx-key' style='--a:0.50' title='0.50 of the largest activation'>cat</span>"
    )
    assert "mx-query" in token_html("<b>", 0.0, True) and "&lt;b&gt;" in token_html(
        "<b>", 0.0, True
    )


def test_reports_say_why_scores_are_missing(world):
    folder = world[0]
    rows = unscored_rows(read_table(folder / "scores.parquet"))
    reasons = {(metric, reason): count for metric, reason, count, _ in rows}
    assert reasons["loss recovered", "not measured"] == 4
    assert reasons["correlation, all tokens", "a text without a program"] == 1
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "not measured" in report and "## Latents, the most important" in report
    summary = pd.read_csv(folder / "summary.csv")
    assert len(summary) == 5 and {"importance", "correlation_low", "best_control"} <= set(summary)


def test_headline_and_index_link_to_the_page(world):
    numbers = read_json(world[0] / "headline.json")
    assert numbers["explainers"]["openai"]["scored"] == 0
    assert numbers["layers"][0]["dead"] == 1
    entry = LatentEntry(
        "demo-2l", "wiki", "small", {"report": "demo-2l/wiki/latents/small.html"}, numbers
    )
    page = index_page([], {}, latents=[entry])
    assert "href='demo-2l/wiki/latents/small.html'" in page
    assert "Latents of dictionaries" in page and "4 of 4" in page and "0 of 1" in page
    assert "Latents of dictionaries" not in index_page([], {})


def test_figures_are_stable_and_draw_every_latent(world):
    folder = world[0]
    scores = read_table(folder / "scores.parquet")
    own = scores[scores["explainer"] == "programs"]
    statistics = read_table(folder / "stats.parquet")
    for draw in (
        lambda: latent_scores(own, "correlation", "correlation"),
        lambda: score_by_layer(own, "correlation", "correlation"),
        lambda: density_histogram(statistics),
        lambda: latent_scores(own, "steering_auc", "steering AUC"),
    ):
        assert svg(draw()) == svg(draw())
    axes = latent_scores(own, "correlation", "correlation").axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    order = own.query("metric == 'correlation' and control == 'none'").sort_values(
        ["value", "layer", "latent"], ascending=[False, True, True]
    )
    assert labels == order["unit"].tolist()
    assert np.isfinite(axes.get_ylim()).all()
    assert json.loads((folder / "headline.json").read_text())["explainers"]
