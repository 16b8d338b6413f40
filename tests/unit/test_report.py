"""The report, the table, the executed notebook, its page and the index."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_heads import DOCUMENTS, HOSTILE, write_results

from mechatlas.figures import notebook as notebook_module
from mechatlas.figures.index import Entry, index_page
from mechatlas.figures.markdown import code, markdown_table
from mechatlas.figures.notebook import execute_notebook
from mechatlas.figures.results import (
    at_share,
    best_median_worst,
    head_table,
    read_results,
    unscored_rows,
)
from mechatlas.figures.words import explainer_rows, headline_items
from mechatlas.io import UserError, read_json
from mechatlas.score.overall import beats_every_control, mean_over_heads

SCRIPTS = Path(__file__).resolve().parents[2] / "workflow" / "scripts"
NOTEBOOK = SCRIPTS.parent / "notebooks" / "heads.ipynb"
NAME = "<i>demo</i>"


def script(name: str):
    sys.path.insert(0, str(SCRIPTS))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("results")
    paths = write_results(folder)
    return reported(paths, folder)


OUTPUTS = {
    "report": "report.md",
    "summary": "summary.csv",
    "headline": "headline.json",
    "all_explanations": "all.jsonl",
}


def reported(paths: dict[str, str], folder: Path) -> dict[str, str]:
    made = {name: str(folder / "heads" / file) for name, file in OUTPUTS.items()}
    script("report_heads").main(
        **paths, judge_scores=[], bos=None, name=NAME, source="wiki", **made
    )
    return paths | made


def read(paths: dict[str, str]):
    return read_results(*(paths[name] for name in ("explanations", "scores", "clusters", "curve")))


# --- tables ---------------------------------------------------------------------------------------


def test_head_table_joins_scores_controls_and_clusters(paths: dict[str, str]) -> None:
    found = read(paths)
    table = head_table(found)
    assert table["unit"].tolist() == [
        f"L{layer}.H{head}" for layer in range(2) for head in range(4)
    ]
    row = table.iloc[2]
    scores = found.scores.query("unit == 'L0.H2' and metric == 'iou'").set_index("control")
    assert row["iou"] == scores["value"]["none"] and row["iou_low"] == scores["low"]["none"]
    scores = found.scores.query(
        "unit == 'L0.H2' and metric == 'iou_without_sink' and control not in ('none', 'random_weights')"
    ).set_index("control")
    best = scores["value"].idxmax()
    assert row["best_control"] == best == "swapped"
    assert (
        row["advantage"] == scores["difference"][best]
        and row["advantage_q_value"] == scores["q_value"][best]
    )
    assert (
        row["cluster"] == 0
        and pd.isna(table["cluster"].iloc[3])
        and HOSTILE in row["cluster_label"]
    )


def test_a_head_without_a_score_is_unscored_with_its_reason(paths: dict[str, str]) -> None:
    found = read(paths)
    scores = found.scores.copy()
    first = (scores["unit"] == "L0.H0") & scores["metric"].isin(["iou", "iou_without_sink"])
    scores.loc[first, ["value", "low", "high", "difference", "q_value"]] = np.nan
    scores.loc[first, "status"] = "unscored"
    scores.loc[first, "reason"] = "3 test events, fewer than 50"
    row = head_table(type(found)(found.explanations, scores, found.clusters, found.curve)).iloc[0]
    assert row["status"] == "unscored" and row["reason"] == "3 test events, fewer than 50"
    assert np.isnan(row["iou"]) and row["best_control"] == "" and row["beats_every_control"] is None
    last = head_table(found).iloc[-1]
    assert "loss_recovered: mean-pattern ablation does not raise" in last["unscored"]
    listed = {(metric, count) for metric, _, count, _ in unscored_rows(found)}
    assert ("loss recovered", 1) in listed and ("AUC, same key", 8) in listed


def test_summary_is_one_row_per_head(paths: dict[str, str]) -> None:
    with open(paths["summary"], newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    table = head_table(read(paths))
    assert [row["unit"] for row in rows] == table["unit"].tolist()
    assert [row["text"] for row in rows] == table["text"].tolist()
    assert np.allclose([float(row["iou"]) for row in rows], table["iou"], rtol=1e-5)
    assert (
        rows[3]["cluster"] == "" and rows[0]["cluster"] == "0" and rows[-1]["loss_recovered"] == ""
    )


def test_best_median_worst() -> None:
    table = pd.DataFrame({"layer": 0, "head": range(5), "iou": [0.1, 0.9, np.nan, 0.5, 0.4]})
    assert [(name, row["head"]) for name, row in best_median_worst(table)] == [
        *(("best", 1), ("median", 3), ("worst", 0)),
    ]
    assert [name for name, _ in best_median_worst(table.iloc[[0]])] == ["best"]
    assert best_median_worst(table.iloc[[2]]) == []


# --- numbers for the whole model ------------------------------------------------------------------


def test_mean_over_heads_agrees_with_a_direct_bootstrap(paths: dict[str, str]) -> None:
    documents = pd.read_parquet(paths["document_scores"])
    mean, low, high = mean_over_heads(documents, "none", 2000, 0.95, 0)["iou"]
    own = documents[documents["control"] == "none"]
    sums = own.set_index(["layer", "head", "doc"])[["minimum", "maximum"]].unstack("doc")
    minimum, maximum = sums["minimum"].to_numpy(), sums["maximum"].to_numpy()
    assert mean == pytest.approx((minimum.sum(1) / maximum.sum(1)).mean())
    rng = np.random.default_rng(1)
    draws = rng.integers(0, DOCUMENTS, (2000, DOCUMENTS))
    direct = [(minimum[:, d].sum(1) / maximum[:, d].sum(1)).mean() for d in draws]
    assert np.allclose((low, high), np.quantile(direct, (0.025, 0.975)), atol=4e-4)


def test_one_control_that_is_not_beaten_counts() -> None:
    rows = [
        ("a", "none", None), ("a", "swapped", True), ("a", "shuffled", True), ("a", "random_weights", False),
        ("b", "swapped", True), ("b", "shuffled", False), ("c", "swapped", None),
    ]  # fmt: skip
    scores = pd.DataFrame(rows, columns=["unit", "control", "beats_control"])
    scores["metric"] = "iou_without_sink"
    assert beats_every_control(scores).to_dict() == {"a": True, "b": False}


def test_headline(paths: dict[str, str]) -> None:
    headlines = read_json(paths["headline"])
    headline = headlines["programs"]
    assert list(headlines) == ["programs"]
    assert headline["explanations"] == {
        **{"heads": 8, "explained": 8, "with_program": 8, "failures": {}},
    }
    scores = pd.read_parquet(paths["scores"])
    own = scores.query("metric == 'iou' and control == 'none'")["value"]
    assert headline["means"]["iou"]["value"] == pytest.approx(own.mean())
    assert headline["means"]["iou"]["low"] < own.mean() < headline["means"]["iou"]["high"]
    assert headline["means"]["correlation"]["value"] is None
    assert headline["heads"] == headline["scored"] == 8 and headline["beats"] == {
        "count": 8,
        "of": 8,
    }
    best, mean = at_share(headline, "best"), at_share(headline, "mean_pattern")
    assert best["share"] == 0.25 and best["ratio"] < mean["ratio"]
    assert headline["perplexity"] == pytest.approx(np.exp(2), rel=0.01)
    words = " ".join(" ".join(item) for item in headline_items(headline))
    assert f"{own.mean():.2f}" in words and "100 %" in words


# --- Markdown -------------------------------------------------------------------------------------


def test_code_spans_hold_backticks() -> None:
    assert code("a") == "`a`" and code("``a") == "``` ``a ```" and code("a`b\n") == "``a`b↵``"


def test_markdown_tables_line_up_and_keep_their_columns() -> None:
    lines = markdown_table(["a", "b"], [["x|y", "1"], ["z\n", "22"]]).splitlines()
    assert len({len(line) for line in lines}) == 1 and "x\\|y" in lines[2] and len(lines) == 4


def test_report_names_every_head_and_hides_no_markup(paths: dict[str, str]) -> None:
    text = Path(paths["report"]).read_text()
    prose = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
    for row in head_table(read(paths)).itertuples():
        assert f"**{row.unit}**" in text
    assert "<script>" not in prose and "\\<script\\>" in prose
    assert not re.search("[\x00-\x09\x0b-\x1f\u200b\u202e]", text)
    assert "2606.19317" in text and "## Replacement curve" in text


# --- notebook and pages ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rendered(paths: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two executions, the second with another home, another kernel of the same name and another place for the log."""
    folder = tmp_path_factory.mktemp("pages")
    home = folder / "home"
    kernel = home / ".local/share/jupyter/kernels/python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(
        '{"argv": ["/nonexistent"], "display_name": "x", "language": "python"}'
    )
    before = sorted(home.rglob("*"))
    names = (
        "scores",
        "clusters",
        "curve",
        "headline",
        "events",
        "windows",
        "model",
    )
    files = {name: paths[name] for name in names} | {"explanations": paths["all_explanations"]}
    for run in ("first", "second"):
        with pytest.MonkeyPatch.context() as patch:
            if run == "second":
                patch.setenv("HOME", str(home))
                # The cache of fonts is matplotlib's and not ours to place.
                patch.setenv("MPLCONFIGDIR", str(folder / "matplotlib"))
            script("render_heads").main(
                notebook=str(NOTEBOOK), bos=None, name=NAME, source="wiki", **files,
                html=str(folder / run / "heads.html"), notebook_out=str(folder / run / "heads.ipynb"),
                notebook_log=str(folder / "logs" / f"{run}.ipynb"),
            )  # fmt: skip
    assert sorted(home.rglob("*")) == before
    return [folder / "first", folder / "second"]


def test_notebook_and_page_are_the_same_bytes_twice(rendered: list[Path]) -> None:
    first, second = rendered
    for name in ("heads.html", "heads.ipynb"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


class Page(HTMLParser):
    """Everything in a page that could load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = {name: value or "" for name, value in attrs}
        assert not any(name.startswith("on") for name in given), given
        if (
            tag == "link"
            or {"src", "srcset", "data", "action", "background", "poster"} & given.keys()
        ):
            self.loads.append(given.get("src", str(given)))


def test_page_loads_nothing_and_runs_only_its_own_script(rendered: list[Path]) -> None:
    text = (rendered[0] / "heads.html").read_text()
    page = Page(text)
    assert page.loads and all(link.startswith("data:image/svg+xml;base64,") for link in page.loads)
    assert page.tags.count("script") == 1 and "iframe" not in page.tags and "i" not in page.tags
    assert "http" not in re.sub(r"data:[^']*", "", text) and "@import" not in text
    assert not set(text) & set("\u202e\u200b\x1b")
    assert "<title>Attention heads of &lt;i&gt;demo&lt;/i&gt; on wiki</title>" in text
    assert "<meta name='viewport'" in text and '<meta name="mechatlas"' in text


def test_page_shows_every_head_and_section(rendered: list[Path], paths: dict[str, str]) -> None:
    text = (rendered[0] / "heads.html").read_text()
    for unit in head_table(read(paths))["unit"]:
        assert f"<td>{unit}</td>" in text
    for words in (
        "Map of heads",
        "Explanations",
        "Examples",
        "Against the controls",
        "Clusters",
        "Loss recovered",
    ):
        assert words in text
    assert text.count("<figure") >= 8 and "2606.19317" in text and "Warning" not in text


def test_executed_notebook_holds_what_a_notebook_should(
    rendered: list[Path], paths: dict[str, str]
) -> None:
    import nbformat

    executed = nbformat.read(rendered[0] / "heads.ipynb", as_version=4)
    nbformat.validate(executed)
    assert executed.metadata.kernelspec.name == "python3" and executed.metadata.mechatlas["version"]
    assert "papermill" not in json.dumps(executed.metadata)
    injected = [c for c in executed.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert paths["scores"] in injected[0].source
    outputs = [o for c in executed.cells if c.cell_type == "code" for o in c.outputs]
    assert outputs and {o.output_type for o in outputs} == {"execute_result"}


def test_without_controls_no_head_beats_them() -> None:
    columns = {"metric": ["iou"], "beats_control": [None], "control": ["none"], "unit": ["L0.H0"]}
    assert beats_every_control(pd.DataFrame(columns)).empty


def test_page_shows_markup_as_it_is_and_all_else_as_plain_text() -> None:
    import nbformat

    v4 = nbformat.v4
    outputs = [
        v4.new_output("stream", text="<b>one\ntwo"),
        v4.new_output("execute_result", data={"text/plain": "<i>", "text/html": "<u>three</u>"}),
        v4.new_output("execute_result", data={"text/plain": "<i>four</i>"}),
    ]
    cells = [
        v4.new_markdown_cell("## Words\n\n*five* six"),
        v4.new_code_cell("seven = '<s>'", outputs=outputs),
        v4.new_code_cell("nothing_shown = 8", metadata={"tags": ["injected-parameters"]}),
    ]
    text = notebook_module.notebook_page(v4.new_notebook(cells=cells), "Page", {})
    assert "<h2>Words</h2>" in text and "<em>five</em> six" in text
    assert "<pre>&lt;b&gt;one\ntwo</pre>" in text and "<pre>&lt;i&gt;four&lt;/i&gt;</pre>" in text
    assert "<u>three</u>" in text and "&lt;i&gt;</pre>" not in text
    assert "seven" in text and "<s>" not in text and "nothing_shown" not in text


def test_user_error_in_a_notebook_is_one_sentence(tmp_path: Path) -> None:
    import nbformat

    cells = [
        nbformat.v4.new_code_cell("path = ''", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("from mechatlas.io import read_table; read_table(path)"),
    ]
    metadata = {
        "language_info": {"name": "python"},
        "kernelspec": {"name": "python3", "display_name": "x"},
    }
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "a.ipynb")
    with pytest.raises(UserError, match="^missing.parquet does not exist; run the rule"):
        execute_notebook(tmp_path / "a.ipynb", tmp_path / "log.ipynb", {"path": "missing.parquet"})
    assert (tmp_path / "log.ipynb").exists()
    (tmp_path / "b.ipynb").write_text("{")
    with pytest.raises(UserError, match="b.ipynb is not a notebook"):
        execute_notebook(tmp_path / "b.ipynb", tmp_path / "log.ipynb", {})


def test_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_PATH", "/somewhere")
    monkeypatch.delenv("IPYTHONDIR", raising=False)
    with notebook_module.jupyter_folders():
        assert os.environ["JUPYTER_PATH"] != "/somewhere" and "IPYTHONDIR" in os.environ
    assert os.environ["JUPYTER_PATH"] == "/somewhere" and "IPYTHONDIR" not in os.environ


def test_folders_of_killed_processes_are_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process that is killed leaves its folder; the next one removes it, but not that of one that lives."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, signal, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from mechatlas.figures.notebook import jupyter_folders\n"
        "with jupyter_folders(): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    library = str(Path(notebook_module.__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": library}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment)
    (left,) = tmp_path.glob("mx-*")
    with notebook_module.jupyter_folders() as one:
        assert not left.exists()
        with notebook_module.jupyter_folders() as other:
            assert one.exists() and other.exists()
    assert list(tmp_path.iterdir()) == []


def test_index_links_what_is_there(paths: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "results" / "report"
    page, summary = (
        place / "m" / "s" / "heads.html",
        tmp_path / "results" / "m" / "s" / "heads" / "summary.csv",
    )
    for path in (page, summary, summary.with_name("report.md")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    headline = summary.with_name("headline.json")
    shutil.copy(paths["headline"], headline)
    script("render_index").main(
        [str(page)], [str(summary)], [str(headline)], [["m", "s"]], str(place / "index.html")
    )
    text = (place / "index.html").read_text()
    links = re.findall(r"href='([^']*)'", text)
    assert len(links) == 3 and all((place / link).is_file() for link in links)
    assert Page(text).loads == [] and "http" not in text
    assert f"{read_json(headline)['programs']['means']['iou']['value']:.2f} [" in text


def test_index_links_the_atlas_first(paths: dict[str, str], tmp_path: Path) -> None:
    page = tmp_path / "results" / "report" / "index.html"
    summary = tmp_path / "results" / "m" / "s" / "heads" / "summary.csv"
    script("render_index").main(
        [str(tmp_path / "results/report/m/s/heads.html")], [str(summary)], [paths["headline"]], [["m", "s"]],
        str(page), atlas=str(tmp_path / "results" / "report" / "atlas"),
    )  # fmt: skip
    links = re.findall(r"href='([^']*)'", page.read_text())
    assert links[0] == "atlas/index.html" and links[1] == "m/s/heads.html"


def test_index_escapes_names(paths: dict[str, str]) -> None:
    entry = Entry(HOSTILE, "s", {"report": "a b/'x.html"}, read_json(paths["headline"]))
    text = index_page([entry], {})
    assert text.count("<script") == 1 and "a%20b/%27x.html" in text


# --- several explainers ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("both")
    return reported(write_results(folder, openai=True), folder)


def test_each_explainer_has_its_numbers_and_failures(
    both: dict[str, str], paths: dict[str, str]
) -> None:
    headlines, alone = read_json(both["headline"]), read_json(paths["headline"])
    assert headlines["programs"] == alone["programs"]
    openai = headlines["openai"]
    assert openai["explanations"] == {
        **{"heads": 8, "explained": 7, "with_program": 6},
        "failures": {"the model refused to answer": 1},
        "usage": {
            **{"requests": 8, "prompt_tokens": 12000, "cached_tokens": 8000},
            **{"completion_tokens": 480, "price": pytest.approx(0.004)},
        },
    }
    assert openai["heads"] == 8 and openai["scored"] == 6
    columns, rows = explainer_rows(headlines)
    row = dict(zip(columns, rows[1], strict=True))
    assert row["failure rate"] == "12 %" and row["price"] == "0.0040"
    assert row["why not"] == "the model refused to answer (1)"
    unknown = {"openai": {"explanations": openai["explanations"] | {"usage": None}}}
    unknown["openai"]["explanations"]["usage"] = {
        **openai["explanations"]["usage"],
        "price": None,
    }
    assert explainer_rows(unknown)[1][0][-1] == "unknown"


def test_all_explanations_are_in_one_file_and_one_table(both: dict[str, str]) -> None:
    lines = [json.loads(line) for line in Path(both["all_explanations"]).read_text().splitlines()]
    assert len(lines) == 16 and {line["control"] for line in lines} == {"none"}
    table = head_table(read_results(both["all_explanations"], *(both[n] for n in RESULTS)))
    assert table["explainer"].value_counts().to_dict() == {"programs": 8, "openai": 8}
    mine = table[table["explainer"] == "openai"].reset_index(drop=True)
    assert mine["reason"][0] == "the model refused to answer" and mine["status"][0] == "unscored"
    assert mine["reason"][1].startswith("part 1: unknown form") and np.isnan(mine["iou"][1])
    assert np.isfinite(mine["iou"][2])


RESULTS = ("scores", "clusters", "curve")


def test_pages_of_several_explainers_hold_no_markup_of_a_model(
    both: dict[str, str], tmp_path: Path
) -> None:
    names = (*RESULTS, "headline", "events", "windows", "model")
    files = {name: both[name] for name in names} | {"explanations": both["all_explanations"]}
    script("render_heads").main(
        notebook=str(NOTEBOOK), bos=None, name=NAME, source="wiki", **files,
        html=str(tmp_path / "heads.html"), notebook_out=str(tmp_path / "heads.ipynb"),
        notebook_log=str(tmp_path / "log.ipynb"),
    )  # fmt: skip
    text = (tmp_path / "heads.html").read_text()
    assert Page(text).tags.count("script") == 1
    assert "not explained: the model refused to answer" in text
    assert "<h4>programs</h4>" in text and "<h4>openai</h4>" in text
    assert "<td>openai</td>" in text and "Warning" not in text and "0.0040" in text
    report = Path(both["report"]).read_text()
    prose = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", report)
    assert "<script>" not in prose.replace("\\<", "")
    assert "## Scores of the explainer openai" in report and "L0.H0 (openai)" in report
    page = index_page([Entry("m", "s", {"report": "a.html"}, read_json(both["headline"]))], {})
    assert page.count("<td>openai</td>") == 1 and Page(page).tags.count("script") == 1
