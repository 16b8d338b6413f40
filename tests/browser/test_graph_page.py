"""The page of an attribution graph in a real browser: nodes open, texts stay texts, and it can be read by all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from reading import DESKTOP, PHONE, Reader, browser

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

pytestmark = pytest.mark.browser
__all__ = ["browser"]  # a fixture, used by its name
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\u202e",
    "a",
    "b",
    "c",
    "d",
)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np
    import torch
    from clt_makers import make_clt
    from edge_models import make_model

    from mechatlas.circuits.graphs.attribute import attribute
    from mechatlas.circuits.graphs.graph import FEATURE
    from mechatlas.circuits.graphs.influence import prune
    from mechatlas.circuits.graphs.run import run_prompt
    from mechatlas.figures.graph_viewer import viewer_page

    model = make_model()
    tokens = torch.tensor([0, 7, 3, 22, 7, 39, 1])
    graph = attribute(run_prompt(model, make_clt(d=model.config.d_model), tokens))
    pruned = prune(graph, node_threshold=0.9)
    features = np.flatnonzero(pruned.nodes & (graph.kind == FEATURE)).tolist()
    labels = dict.fromkeys(features, HOSTILE[1])
    path = tmp_path_factory.mktemp("graph") / "graph.html"
    page = viewer_page(graph, pruned, HOSTILE, title=HOSTILE[0], slug="graph", labels=labels)
    path.write_text(page, encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_nodes_open_and_nothing_is_wrong(
    size: str, scheme: str, browser: Any, page_file: Path
) -> None:
    made = Reader(browser, page_file, DESKTOP if size == "desktop" else PHONE, scheme)
    page = made.page
    page.goto(made.home)
    page.wait_for_selector("#chart canvas, #chart svg")
    before = page.inner_text("#panel")
    place = page.evaluate(
        """() => {
          const box = document.getElementById("chart"), drawn = echarts.getInstanceByDom(box);
          const nodes = JSON.parse(document.getElementById("graph-data").textContent).nodes;
          const shown = drawn.getOption().series[0].data.filter((one) => nodes[one.members[0]].label.includes("/F"));
          const node = shown.sort((a, b) => b.symbolSize - a.symbolSize)[0];
          box.scrollIntoView({ block: "center" });
          const where = drawn.convertToPixel({ seriesIndex: 0 }, node.value), frame = box.getBoundingClientRect();
          return [frame.left + where[0], frame.top + where[1]];
        }"""
    )
    page.mouse.click(*place)
    after = page.inner_text("#panel")
    assert after != before and HOSTILE[1] in after
    assert page.locator("img").count() == 0 and page.inner_text("h1") == HOSTILE[0]
    made.screenshot(f"graph-page-{size}-{scheme}")
    assert made.violations() == []
    made.context.close()
    made.check()
