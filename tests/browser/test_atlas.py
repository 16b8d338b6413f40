"""The atlas in a real browser: it opens from disk, asks nothing of a network, and what a reader does works.

Needs envs/browser.txt and Debian's chromium; without them these tests are skipped. ``make test-browser`` keeps
screenshots of every view under results/screenshots, to be looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import atlas_world
import pytest
from reading import DESKTOP, PHONE, Reader, browser

pytestmark = pytest.mark.browser
__all__ = ["browser"]  # a fixture, used by its name
VIEWS = {
    "models": "#/",
    "map": "#/tiny?by=class",
    "map-without-tasks": "#/other",
    "head-without-tasks": "#/other/head/1.1",
    "map-values": "#/tiny?by=ioi.drop&sort=value",
    "map-judge": "#/tiny?by=judge.detection.auc",
    "head": "#/tiny/head/1.1",
    "circuit": "#/tiny/circuit/ioi",
    "latents": "#/tiny/latents/wiki/resid",
    "latent": "#/tiny/latent/wiki/resid/0.1",
    "features": "#/tiny/features/wiki/clt",
    "feature": "#/tiny/feature/wiki/clt/1.2",
    "graphs": "#/tiny/graphs",
    "agreement": "#/tiny/agreement",
    "search": "#/search/zebrafish",
}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The atlas of two small made-up models whose texts are hostile."""
    small = atlas_world.Size(layers=2, heads=3, bare=True)
    models = {"tiny": atlas_world.Size(judged=True), "other": small}
    return atlas_world.write_world(tmp_path_factory.mktemp("atlas"), models)


@pytest.fixture
def reader(browser: Any, page_file: Path) -> Iterator[Reader]:
    made = Reader(browser, page_file, DESKTOP, "light")
    yield made
    made.context.close()
    made.check()


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["desktop", "phone"])
def size(request: pytest.FixtureRequest) -> str:
    return request.param


def text_of(reader: Reader, selector: str = "main") -> str:
    return reader.page.inner_text(selector)


def cells(reader: Reader, selector: str = "#map .cell") -> list[str]:
    return [c.get_attribute("data-head") for c in reader.page.query_selector_all(selector)]


# --- what is shown --------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
def test_view_opens_from_disk_without_complaint(view: str, reader: Reader) -> None:
    page = reader.open(VIEWS[view])
    assert "Not here" not in text_of(reader)
    assert page.title().endswith("mechatlas")


def test_addresses_lead_back_to_the_same_view(reader: Reader) -> None:
    page = reader.open("#/tiny")
    page.select_option("label.choice:has-text('colour') select", "ioi.drop")
    page.select_option("label.choice:has-text('order') select", "value")
    kept = page.url
    assert "by=ioi.drop" in kept and "sort=value" in kept
    order = cells(reader)
    reader.open("#/tiny/head/0.0")
    page.goto(kept)
    reader.settle()
    assert cells(reader) == order
    assert page.input_value("label.choice:has-text('colour') select") == "ioi.drop"


def test_unknown_addresses_say_what_there_is(reader: Reader) -> None:
    for address in ("#/nobody", "#/tiny/head/9.9", "#/tiny/circuit/none", "#/tiny/x", "#/%E0%A4%A"):
        reader.open(address)
        if address != "#/%E0%A4%A":
            assert "Not here" in text_of(reader)


def test_numbers_are_those_of_the_tables(reader: Reader, page_file: Path) -> None:
    from mechatlas.io import read_table

    table = read_table(page_file.parents[2] / "tiny" / "cross_table.parquet").set_index("component")
    row = table.loc["L1.H2"]
    reader.open("#/tiny/head/1.2")
    shown = text_of(reader).replace("−", "-")
    assert f"{row['iou']:.2f} [{row['iou_low']:.2f}, {row['iou_high']:.2f}]" in shown
    assert f"{row['ioi.drop']:.0f} % [" in shown
    assert f"{row['ioi.effect']:.2f} [" in shown


def test_scores_of_a_judge_colour_the_map_and_stand_on_the_pages(
    reader: Reader, page_file: Path
) -> None:
    from mechatlas.io import read_table

    place = page_file.parents[2] / "tiny" / "wiki"

    def shown(path: str, unit: str) -> str:
        scores = read_table(place / path / "judge_scores.parquet")
        rows = scores.query("metric == 'auc' and control == 'none' and unit == @unit")
        value, low, high = rows[["value", "low", "high"]].iloc[0]
        return f"{value:.2f} [{low:.2f}, {high:.2f}]".replace("-", "−")

    page = reader.open("#/tiny?by=judge.detection.auc&sort=value")
    values = page.evaluate(
        "Object.fromEntries(ATLAS.data.get('tiny/core').words.map((w) => [w.head, w.judge['detection.auc'][0]]))"
    )
    known = [name for name, value in values.items() if value is not None]
    assert len(known) == len(values) - 1
    assert cells(reader)[: len(known)] == sorted(known, key=lambda name: -values[name])
    assert "Chance is 0.5. Units whose behaviour is known get 0.95" in text_of(reader)
    reader.open("#/tiny/head/1.2")
    assert f"A judge that reads these words: detection, AUC {shown('heads', 'L1.H2')}" in text_of(
        reader
    )
    page.locator("summary", has_text="all scores by the judge").click()
    table = page.locator("table:has(caption:text('scores by a judge'))")
    assert table.locator("tbody tr").count() == 4
    assert table.locator("tbody tr").last.locator("[title*='<img']").inner_text() == "unscored"
    reader.open("#/tiny/latent/wiki/resid/0.1")
    value = shown("latents/resid", "L0.resid_post.F1")
    assert f"detection, AUC {value}" in text_of(reader)
    reader.open("#/tiny/latents/wiki/resid")
    assert value in text_of(reader)
    reader.open("#/other/head/1.1")
    assert "judge" not in text_of(reader)


def test_attention_is_drawn_from_the_query_to_its_keys(reader: Reader) -> None:
    page = reader.open("#/tiny/head/0.0")
    page.click("button[data-kind=random]")
    example = page.locator(".example").first
    expected = page.evaluate(
        "() => { const own = ATLAS.data.get('tiny/heads-0')['L0.H0'].wiki.random[0];"
        " return own.keys.filter(([at]) => at !== own.query).length; }"
    )
    page.wait_for_selector(".example .arcs path", state="attached")
    assert expected > 1 and example.locator(".arcs path").count() == expected
    ends = example.locator(".arcs path").first.get_attribute("d")
    box, query = example.bounding_box(), example.locator(".query").first.bounding_box()
    start = float(re.match(r"M([\d.]+),", ends)[1])
    assert abs(start - (query["x"] + query["width"] / 2 - box["x"])) < 1.5


# --- what a reader does ---------------------------------------------------------------------------


def test_search_finds_and_opens(reader: Reader) -> None:
    page = reader.open()
    page.keyboard.press("/")
    page.keyboard.type("zebrafish delimiter", delay=10)
    page.wait_for_selector("h1:text('“zebrafish delimiter”')")
    hits = page.locator("a.hit")
    # Every fifth head has that text: two of twelve in one model, one of six in the other.
    assert hits.count() == 3 and "3 explanations" in text_of(reader)
    assert set(page.locator("mark").all_inner_texts()) == {"zebrafish", "delimiter"}
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.wait_for_url("**/head/**")
    reader.settle()
    assert "zebrafish" in text_of(reader)
    reader.open("#/search/aardvark")
    assert page.locator("a.hit").count() == 3 * 4
    page.fill("#query", "no such words")
    page.wait_for_selector("h1:text('0 explanations')")


def test_brushing_lists_the_heads_of_a_rectangle(reader: Reader) -> None:
    page = reader.open("#/tiny")
    first, last = (page.locator(f"[data-head='{n}']").bounding_box() for n in ("L1.H1", "L0.H2"))
    page.mouse.move(first["x"] + 8, first["y"] + 8)
    page.mouse.down()
    page.mouse.move(last["x"] + last["width"] - 8, last["y"] + last["height"] - 8, steps=6)
    page.mouse.up()
    rows = page.locator("#chosen tbody tr")
    assert {row.get_attribute("data-row") for row in rows.all()} == {
        "L1.H1",
        "L1.H2",
        "L0.H1",
        "L0.H2",
    }
    assert page.locator("#map .cell.out").count() == 8
    assert "heads=" in page.url and page.url.count("head/") == 0
    page.reload()
    reader.settle()
    assert page.locator("#chosen tbody tr").count() == 4
    page.click("#clear")
    assert page.locator("#map .cell.out").count() == 0


def test_legend_filters_classes_and_values(reader: Reader) -> None:
    page = reader.open("#/tiny?by=class")
    entry = page.locator(".legend button", has_text="induction")
    count = int(re.search(r"\((\d+)\)", entry.inner_text())[1])
    entry.click()
    assert entry.get_attribute("aria-pressed") == "false"
    assert page.locator("#map .cell.out").count() == count > 0
    reader.open("#/tiny?by=iou")
    page.locator("input[data-end=low]").fill("0.5")
    values = page.evaluate("ATLAS.data.get('tiny/core').words.map((w) => w.iou[0])")
    assert page.locator("#map .cell.out").count() == sum(value < 0.5 for value in values) > 0


def test_order_by_value_is_descending(reader: Reader) -> None:
    reader.open("#/tiny?by=iou&sort=value")
    values = reader.page.evaluate(
        "Object.fromEntries(ATLAS.data.get('tiny/core').words.map((w) => [w.head, w.iou[0]]))"
    )
    assert cells(reader) == sorted(values, key=lambda name: -values[name])


def test_tables_sort(reader: Reader) -> None:
    page = reader.open("#/tiny/circuit/ioi")
    head = page.locator("th", has_text="score lost without it")
    assert head.get_attribute("aria-sort") == "descending"

    def column() -> list[float]:
        cells_ = page.locator("table:has(caption:text('removed alone')) tbody td:nth-child(2)")
        return [float(t.split(" ")[0].replace("−", "-")) for t in cells_.all_inner_texts()]

    assert column() == sorted(column(), reverse=True)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending" and column() == sorted(column())


def test_nodes_of_the_circuit_open_heads(reader: Reader) -> None:
    page = reader.open("#/tiny/circuit/ioi")
    place = page.evaluate(
        """() => {
          const box = document.querySelector('.chart'), drawn = echarts.getInstanceByDom(box);
          const series = drawn.getOption().series[0];
          const node = series.data.find((one) => /^L[0-9]+[.]H/.test(one.name));
          box.scrollIntoView({ block: 'center' });
          const at = drawn.convertToPixel({ seriesIndex: 0 }, node.value), frame = box.getBoundingClientRect();
          return { name: node.name, x: frame.left + at[0], y: frame.top + at[1] };
        }"""
    )
    page.mouse.click(place["x"], place["y"])
    page.wait_for_url("**/head/**")
    reader.settle()
    assert text_of(reader, "h1").startswith(place["name"])


def test_circuit_draws_every_edge_and_its_inputs(reader: Reader) -> None:
    page = reader.open("#/tiny/circuit/ioi")
    drawn = page.evaluate(
        "() => { const o = echarts.getInstanceByDom(document.querySelector('.chart')).getOption();"
        " return [o.series[0].links.length, new Set(o.series[0].links.map((l) => l.lineStyle.color)).size]; }"
    )
    edges = page.evaluate("ATLAS.data.get('tiny/task-ioi').edges")
    assert drawn[0] == min(len(edges), 200) and drawn[1] >= 4
    page.locator("summary", has_text="edges as a table").click()
    assert page.locator("table:has(caption:text('edges of the circuit')) tbody tr").count() == min(
        60, len(edges)
    )


def test_graphs_lead_to_their_pages(reader: Reader) -> None:
    page = reader.open("#/tiny/graphs")
    page.click("a.graph")
    page.wait_for_selector("h1:text('a graph')")
    reader.asked = [url for url in reader.asked if "/transcoders/" not in url]


def test_keys_walk(reader: Reader) -> None:
    page = reader.open("#/tiny")
    page.locator("[data-head='L0.H0']").focus()
    focused = "document.activeElement.dataset.head"
    for key, expected in (
        ("ArrowRight", "L0.H1"),
        ("ArrowUp", "L1.H1"),
        ("ArrowLeft", "L1.H0"),
        ("ArrowDown", "L0.H0"),
    ):
        page.keyboard.press(key)
        assert page.evaluate(focused) == expected
    page.keyboard.press("Enter")
    page.wait_for_url("**/head/0.0")
    for key, expected in (("j", "0.1"), ("k", "0.0"), ("ArrowRight", "0.1"), ("ArrowUp", "1.1")):
        reader.settle()
        page.keyboard.press(key)
        page.wait_for_url(f"**/head/{expected}")
    reader.settle()
    page.keyboard.press("m")
    page.wait_for_url("**#/tiny")
    reader.settle()
    page.keyboard.press("?")
    assert page.locator("dialog[open]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    reader.settle()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_typing_in_the_search_is_no_command(reader: Reader) -> None:
    page = reader.open("#/tiny")
    page.click("#query")
    page.keyboard.type("jkmt?")
    assert page.input_value("#query") == "jkmt?"
    assert page.locator("dialog[open]").count() == 0


# --- safety, access, size -------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
def test_hostile_texts_stay_texts(view: str, reader: Reader) -> None:
    page = reader.open(VIEWS[view])
    for summary in page.locator("summary").all():
        summary.click()
    for chart in page.locator(".chart").all():
        chart.hover()
    assert (
        page.locator("main img, #injected, main script, main [onmouseover], main [onerror]").count()
        == 0
    )
    if view in ("head", "latent", "search"):
        assert "<img src=x onerror=alert(1)>" in text_of(reader) or view == "search"
    assert "\u202e" not in text_of(reader)


def test_search_for_markup_is_a_search(reader: Reader) -> None:
    page = reader.open("#/search/" + "%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    assert page.locator("a.hit").count() > 0 and page.locator("main img").count() == 0


@pytest.mark.parametrize("view", VIEWS)
def test_view_is_accessible_and_fits(
    view: str, scheme: str, size: str, browser: Any, page_file: Path
) -> None:
    made = Reader(browser, page_file, DESKTOP if size == "desktop" else PHONE, scheme)
    page = made.open(VIEWS[view])
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= (DESKTOP if size == "desktop" else PHONE)["width"]
    made.screenshot(f"{view}-{size}-{scheme}")
    assert made.violations() == []
    made.context.close()
    made.check()


def test_large_model_is_painted_within_two_seconds(
    browser: Any, tmp_path_factory: pytest.TempPathFactory, record_property: Any
) -> None:
    """144 heads, 12 x 3,072 latents, circuits of some thousand edges: from the address to the first map."""
    file = atlas_world.write_world(tmp_path_factory.mktemp("large"), {"gpt2": atlas_world.GPT2})
    made = Reader(browser, file, DESKTOP, "light")
    page = made.open("#/gpt2")
    assert page.locator("#map .cell").count() == 144
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    record_property("first_contentful_paint_ms", round(paint))
    record_property("map_drawn_ms", round(page.evaluate("performance.now()")))
    assert paint < 2000
    made.open("#/gpt2/latents/wiki/resid?all=1")
    assert "of 36864" in text_of(made)
    made.open("#/gpt2/circuit/ioi")
    assert page.evaluate("ATLAS.data.get('gpt2/task-ioi').edges.length") > 2000
    made.context.close()
    made.check()
