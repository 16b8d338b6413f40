"""The data of the atlas: what the files say, the same bytes each time, and nothing in it that could run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from atlas_world import HOSTILE, SOURCE, TASKS, VOCABULARY, Size, write_world
from fake_heads import write_results

from mechatlas.figures.atlas.build import SCRIPTS
from mechatlas.figures.atlas.data import number, prefer_test, score_tree, texts
from mechatlas.figures.atlas.examples import MOST_KEYS, strongest_queries
from mechatlas.figures.examples import top_examples
from mechatlas.io import read_arrays, read_json, read_table

STATIC = Path(__file__).resolve().parents[2] / "workflow/scripts/mechatlas/figures/atlas/static"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    write_world(folder, {"tiny": Size()})
    return folder / "results"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, whose explanations a judge scored."""
    folder = tmp_path_factory.mktemp("judged")
    write_world(folder, {"tiny": Size(judged=True)})
    return folder / "results"


def data(results: Path, name: str) -> object:
    """Return the value of a data file, which is one call with a name and a JSON value."""
    text = (results / "report" / "atlas" / "data" / f"{name}.js").read_text(encoding="ascii")
    found = re.fullmatch(r'ATLAS\.put\("([^"]+)",(.*)\);\n', text, flags=re.DOTALL)
    assert found and found[1] == name
    return json.loads(found[2])


def test_files_are_the_same_bytes_each_time(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path, {"tiny": Size()})
    first, second = (
        {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        for folder in (world / "report", tmp_path / "results" / "report")
    )
    assert first == second and len(first) > 10


def test_every_part_of_the_script_is_in_the_page(world: Path) -> None:
    assert {f"{name}.js" for name in SCRIPTS} == {path.name for path in STATIC.glob("*.js")}
    page = (world / "report" / "atlas" / "index.html").read_text()
    for path in STATIC.glob("*.js"):
        assert path.read_text() in page
    assert not re.search(r"\{\{|/\*(?:style|script)\*/", page)
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)


def test_script_never_makes_markup_of_text() -> None:
    for path in STATIC.glob("*.js"):
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|Function\(",
            path.read_text(),
        )
        assert not found, path.name


def test_texts_are_data_in_which_nothing_hides(world: Path) -> None:
    folder = world / "report" / "atlas"
    page = (folder / "index.html").read_text()
    assert not [text for text in HOSTILE[:2] if text in page]
    for path in folder.glob("data/**/*.js"):
        # Characters that turn or break lines are spelled out, so that no page needs to think of them.
        assert not re.search(r"\\u20(?:2[89ae]|0b)", path.read_text()), path
    tokens = data(world, "tiny/heads-0")["L0.H0"][SOURCE]["random"][0]["pieces"][0][1]
    assert all(isinstance(token, str) for token in tokens)


def test_core_holds_what_the_tables_say(world: Path) -> None:
    core = data(world, "tiny/core")
    table = read_table(world / "tiny" / "cross_table.parquet").set_index("component")
    assert [entry["head"] for entry in core["words"]] == list(table.index)
    for entry in core["words"]:
        row = table.loc[entry["head"]]
        assert entry["iou"] == [number(row[n]) for n in ("iou", "iou_low", "iou_high")]
        assert entry["beats"] == row["beats_every_control"] and entry["class"] == row["class"]
        assert core["says"][entry["head"]][f"{SOURCE}/programs"] == [
            name
            for name in ("previous_token", "duplicate_token", "induction")
            if row[f"says_{name}"] >= 0.3
        ]
    for task, kind in TASKS.items():
        own = core["tasks"][task]
        assert own["kind"] == kind
        circuit = read_json(world / "tiny" / "tasks" / task / "nodes" / "circuit.json")
        heads = {f"L{layer}.H{head}" for layer, head in circuit["heads"]}
        assert {n for n in own["circuit"]["nodes"] if ".H" in n} == heads
        for head, entry in own["heads"].items():
            assert entry["drop"][0] == number(table.loc[head, f"{task}.drop"])
            assert ("nodes" in entry["circuits"].split(", ")) == (head in heads)


def test_graphs_have_the_scores_that_their_own_page_shows(world: Path) -> None:
    (graph,) = data(world, "tiny/core")["graphs"]
    (summary,) = [read_json(path) for path in world.rglob("*.summary.json")]
    for name in ("replacement", "completeness"):
        assert graph[name] == summary["scores"][f"{name}_corrected"]


def test_edges_of_a_circuit_are_all_there_strongest_first(world: Path) -> None:
    edges = data(world, "tiny/task-ioi")["edges"]
    inside = read_json(world / "tiny" / "tasks" / "ioi" / "edges" / "circuit.json")["edges"]
    assert {f"{source} -> {target}" for source, target, *_ in edges} == set(inside)
    strengths = [abs(score) for *_, score in edges]
    assert strengths == sorted(strengths, reverse=True)
    assert {kind for _, _, kind, _ in edges} >= {"q", "k", "v", "mlp"}


def test_random_queries_show_the_stored_attention(world: Path) -> None:
    windows = read_table(world / "tiny" / SOURCE / "windows.parquet")
    stored = read_arrays(world / "tiny" / SOURCE / "capture/0000/patterns.layer_1.safetensors")
    found = data(world, "tiny/heads-1")["L1.H2"][SOURCE]["random"]
    assert len(found) == 4
    for example in found:
        # Two windows share a document; the text around the query tells which one it is.
        rows = [
            stored["patterns"][i, 2, example["query"]].astype(float)
            for i, window in enumerate(stored["windows"])
            if windows["doc"].iloc[window].endswith(example["doc"].rpartition(" ")[2])
        ]
        keys = dict(map(tuple, example["keys"]))
        assert keys and len(keys) <= MOST_KEYS
        gaps = [max(abs(row[at] - value) for at, value in keys.items()) for row in rows]
        assert min(gaps) < 1e-3
        best = rows[int(np.argmin(gaps))]
        shown = np.sort(best[best >= 0.02])[::-1][:MOST_KEYS]
        assert sorted(keys.values(), reverse=True) == pytest.approx(shown.tolist(), abs=1e-3)


def test_strongest_queries_are_those_of_each_head_alone(tmp_path: Path) -> None:
    files = write_results(tmp_path)
    events = read_table(files["events"])
    found = strongest_queries(events)
    units = set(zip(events["layer"], events["head"], strict=True))
    assert units
    for layer, head in units:
        expected = top_examples(events, layer, head, 6)
        assert [e.query for e in found.get((layer, head), [])] == [e.query for e in expected]
        assert [dict(e.keys) for e in found.get((layer, head), [])] == [
            dict(e.keys) for e in expected
        ]


def test_test_documents_are_preferred_where_there_are_any() -> None:
    rows = pd.DataFrame({"unit": [0, 0, 1], "split": ["train", "test", "train"], "row": [0, 1, 2]})
    assert prefer_test(rows, ["unit"])["row"].tolist() == [1, 2]


def test_scores_become_a_tree_with_reasons() -> None:
    rows = pd.DataFrame(
        {
            **{"unit": 3, "explainer": "programs", "metric": ["iou", "auc"], "control": "none"},
            **{
                "status": ["scored", "unscored"],
                "value": [0.123456, np.nan],
                "low": 0.1,
                "high": 0.2,
            },
            "reason": ["", "too few events"],
        }
    )
    tree = score_tree(rows, ["unit"])
    assert tree == {
        (3,): {"programs": {"iou": {"none": [0.1235, 0.1, 0.2]}, "auc": {"none": "too few events"}}}
    }


def test_features_that_write_most_are_listed_with_their_examples(world: Path) -> None:
    rows = data(world, f"tiny/{SOURCE}/transcoder-clt")
    table = read_table(world / "tiny" / SOURCE / "transcoders/clt/features.parquet")
    alive = table[table["density"] > 0]
    assert len(rows) == len(alive) == 3 * 39
    written = alive["density"] * alive["mean_active"] * alive["decoder_norm"]
    first = alive.loc[written[alive["layer"] == 1].idxmax()]
    top = next(row for row in rows if row["layer"] == 1)
    assert top["unit"] == f"L1/F{first['feature']:.0f}"
    assert [example["value"] for example in top["examples"]] == [3, 2, 1]
    windows = read_table(world / "tiny" / SOURCE / "windows.parquet").set_index("window")["tokens"]
    examples = read_table(world / "tiny" / SOURCE / "transcoders/clt/examples.parquet")
    where = examples[(examples["layer"] == 1) & (examples["feature"] == first["feature"])].iloc[0]
    token = texts([VOCABULARY[windows[int(where["window"])][int(where["position"])]]])[0]
    assert top["examples"][0]["tokens"][top["examples"][0]["at"]].strip() == token.strip()


def test_latents_are_listed_by_importance_with_their_words(world: Path) -> None:
    index = data(world, f"tiny/{SOURCE}/resid/index")
    assert index["share"] == sorted(index["share"], reverse=True) and len(index["share"]) == 3 * 40
    by_layer = pd.DataFrame({"layer": index["layer"], "share": index["share"]}).groupby("layer")[
        "share"
    ]
    assert by_layer.sum().to_numpy() == pytest.approx(1, abs=0.02)
    unit = index["words"][0]["unit"]
    details = data(world, f"tiny/{SOURCE}/resid/layer-0")[unit]
    assert details["histogram"]["counts"][-1] == 6 and details["histogram"]["top"] == 2.0
    for example in details["examples"]:
        assert example["values"][example["at"]] == 2.0


def test_heads_and_latents_show_what_a_judge_said(judged: Path) -> None:
    core = data(judged, "tiny/core")
    marks = core["judges"][SOURCE]
    assert [mark["name"] for mark in marks] == ["detection.auc", "simulation.correlation"]
    assert marks[0]["planted"] == [0.95, 0.45] and marks[1]["planted"] == [None, None]
    assert [mark["chance"] for mark in marks] == [0.5, 0.0]
    scores = read_table(judged / "tiny" / SOURCE / "heads/judge_scores.parquet")
    auc = scores.query("metric == 'auc'").set_index(["unit", "control"])
    table = read_table(judged / "tiny" / "cross_table.parquet").set_index("component")
    for entry in core["words"][:-1]:
        row = auc.loc[entry["head"], "none"]
        shown = [number(row[name]) for name in ("value", "low", "high")]
        assert entry["judge"]["detection.auc"] == shown
        assert table.loc[entry["head"], "judge.detection.auc_beats_other"] == (row["value"] > 0.5)
    assert core["words"][-1]["judge"]["detection.auc"] == [None, None, None]

    first, last = (data(judged, f"tiny/heads-{layer}") for layer in (0, 2))
    rows = first["L0.H1"][SOURCE]["judge"]["programs"]
    assert [row["label"] for row in rows] == [
        *("detection, AUC", "detection, F1", "simulation, correlation", "fuzzing")
    ]
    own = auc.loc["L0.H1", "none"]
    assert rows[0]["own"][0] == number(own["value"]) and rows[0]["beats"] == (own["value"] > 0.5)
    assert (rows[0]["other"], rows[0]["lookup"], rows[0]["program"]) == (0.4, 0.6, 0.7)
    assert rows[3]["own"] == HOSTILE[0] and rows[3]["beats"] is None
    assert last["L2.H3"][SOURCE]["judge"]["programs"][0]["own"] == HOSTILE[0]


def test_latents_show_what_a_judge_said(judged: Path) -> None:
    index = data(judged, f"tiny/{SOURCE}/resid/index")
    scores = read_table(judged / "tiny" / SOURCE / "latents/resid/judge_scores.parquet")
    auc = scores.query("metric == 'auc' and control == 'none'").set_index("unit")["value"]
    assert [mark["name"] for mark in index["judges"]] == ["detection.auc", "simulation.correlation"]
    for entry in index["words"][:-1]:
        assert entry["judge"]["detection.auc"][0] == number(auc[entry["unit"]])
    assert index["words"][-1]["judge"]["detection.auc"] == [None, None, None]
    rows = data(judged, f"tiny/{SOURCE}/resid/layer-1")["L1.resid_post.F2"]["judge"]["programs"]
    assert rows[0]["own"][0] == number(auc["L1.resid_post.F2"]) and rows[0]["planted"] == [
        0.95,
        0.45,
    ]


def test_without_a_judge_nothing_of_it_is_in_the_data(world: Path, judged: Path) -> None:
    """Less what the judge adds, the data are the same."""

    def without(value: object) -> object:
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if k not in ("judge", "judges")}
        return [without(one) for one in value] if isinstance(value, list) else value

    for path in sorted((world / "report/atlas/data").rglob("*.js")):
        name = path.relative_to(world / "report/atlas/data").with_suffix("").as_posix()
        bare = data(world, name)
        assert without(bare) == bare == without(data(judged, name)), name
    columns = set(read_table(world / "tiny" / "cross_table.parquet").columns)
    added = set(read_table(judged / "tiny" / "cross_table.parquet").columns) - columns
    assert added and all(name.startswith("judge.") for name in added)
