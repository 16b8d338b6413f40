"""Numbers of a finished run in the README and the documentation.

A page holds blocks between ``<!-- numbers: NAME -->`` and ``<!-- end -->``. After a run of the default configuration

    python -m mechatlas.docs_numbers results

writes them again from its files; with ``--check`` nothing is written and the exit status says whether they are up to
date.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mechatlas.io.atomic import atomic_path
from mechatlas.io.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[3]
PAGES = ("README.md", "docs/tutorial.md")
BLOCK = re.compile(r"(<!-- numbers: (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def fill(text: str, results: Path) -> str:
    """Return a page with its blocks written from the results of a run.

    Raises
    ------
    UserError
        If a block has no such name, or the run lacks what it shows.
    """

    def block(match: re.Match[str]) -> str:
        name = match[2]
        if name not in BLOCKS:
            raise UserError(f"no numbers are called {name!r}; choose from {', '.join(BLOCKS)}")
        lines = list(BLOCKS[name](results))
        if not lines:
            raise UserError(
                f"{results} has nothing for the numbers {name!r}; run the default target there first"
            )
        return match[1] + "\n".join(lines) + "\n" + match[3]

    return BLOCK.sub(block, text)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rows = list(rows)
    if not rows:
        return []
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _interval(value: float, low: float, high: float, digits: int = 2) -> str:
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def head_rows(results: Path) -> list[str]:
    """Scores of heads, a row per model and source."""
    rows = []
    for path in sorted(results.glob("*/*/heads/headline.json")):
        model, source = path.parts[-4:-2]
        facts = _json(path)["programs"]
        iou, beats = facts["means"]["iou"], facts["beats"]
        quarter = [r for r in facts["replacement"] if r["share"] == 0.25]
        ratio = {r["order"]: f"{100 * (r['ratio'] - 1):+.1f} %" for r in quarter}
        controls = iou["controls"]
        rows.append([
            f"`{model}`, `{source}`",
            str(facts["heads"]),
            _interval(iou["value"], iou["low"], iou["high"]),
            f"{controls['swapped']:.2f}, {controls['mean_pattern']:.2f}",
            f"{beats['count']} of {beats['of']}",
            f"{ratio['best']} ({ratio['mean_pattern']})",
        ])  # fmt: skip
    head = ["model, text", "heads", "mean IoU", "controls: another head's program, mean pattern",
            "beat every control", "perplexity, 25 % of heads on programs (mean patterns)"]  # fmt: skip
    return _table(head, rows)


def circuit_rows(results: Path) -> list[str]:
    """Circuits of nodes and edges, a row per model and task."""
    rows = []
    for path in sorted(results.glob("*/tasks/*/nodes/circuit.json")):
        model, task = path.parts[-5], path.parts[-3]
        circuit, edges = _json(path), _json(path.parents[1] / "edges" / "circuit.json")
        held, edge_held = (c["faithfulness"]["held_out"] for c in (circuit, edges))
        random = circuit["controls"]["layer"]
        rows.append([
            f"`{model}`, {task}",
            f"{len(circuit['heads'])}, {len(circuit['mlps'])}",
            _interval(held["percent"], held["percent_low"], held["percent_high"], 0),
            f"{random['mean']:.0f}, {random['max']:.0f}",
            str(len(edges["edges"])),
            _interval(edge_held["value"], edge_held["low"], edge_held["high"]),
            f"{edges['control']['mean'] + 0.0:.2f}".replace("-0.00", "0.00"),
        ])  # fmt: skip
    head = ["model, task", "heads, MLPs", "% of the metric kept", "random circuits alike: mean, most", "edges",
            "faithfulness of the edges", "random edges"]  # fmt: skip
    return _table(head, rows)


def latent_rows(results: Path) -> list[str]:
    """Scores of explained latents, a row per dictionary."""
    rows = []
    for path in sorted(results.glob("*/*/latents/*/headline.json")):
        model, source, _, name = path.parts[-5:-1]
        score = _json(path)["explainers"]["programs"]["means"]["correlation"]
        controls = score["controls"]
        rows.append([
            f"`{name}` of `{model}`, `{source}`",
            str(score["latents"]),
            _interval(score["value"], score["low"], score["high"]),
            *(f"{controls[c]:.2f}" for c in ("token_lookup", "random_direction", "shuffled")),
        ])  # fmt: skip
    head = ["dictionary", "latents", "correlation", "token look-up", "random direction", "shuffled"]
    return _table(head, rows)


def graph_rows(results: Path) -> list[str]:
    """Attribution graphs: what they add up to, and what interventions say."""
    rows = []
    for path in sorted(results.glob("*/*/transcoders/*/graphs/*.summary.json")):
        facts, name = _json(path), path.name.removesuffix(".summary.json")
        (free,) = [
            a["correlation"]
            for a in facts["agreement"]
            if (a["kind"], a["measured"]) == ("edge", "free")
        ]
        rows.append([
            name,
            str(facts["tokens"]),
            f"{facts['active_features']:,}",
            f"{facts['largest_gap']:.0e}",
            f"{facts['scores']['replacement_corrected']:.2f}",
            f"{free:.2f}",
        ])  # fmt: skip
    head = ["graph", "tokens", "active features", "largest gap of a sum", "replacement score (corrected)",
            "predicted against measured effects of edges, model free"]  # fmt: skip
    return _table(head, rows)


def best_heads(results: Path, count: int = 5) -> list[str]:
    """The explanations of the heads that are explained best, of the deepest model's first source."""
    paths = sorted(results.glob("demo-4l/*/heads/summary.csv"))
    if not paths:
        return []
    import pandas as pd

    table = pd.read_csv(paths[-1]).sort_values("iou_without_sink", ascending=False, kind="stable")
    rows = [
        [str(row.unit), _cell(row.text), _interval(row.iou_without_sink, row.iou_without_sink_low,
                                            row.iou_without_sink_high)]
        for row in table.head(count).itertuples()
    ]  # fmt: skip
    return _table(["head", "explanation", "IoU without sink"], rows)


def _cell(text: str) -> str:
    """Return text as it is shown in a cell of a Markdown table."""
    text = " ".join(str(text).split())
    return re.sub(r"([|<>*_`\[\]])", r"\\\1", text)


def size_rows(results: Path) -> list[str]:
    """How many jobs a run had, how long they took together, and how many files its manifest lists."""
    times = sorted((results / "benchmarks").rglob("*.tsv"))
    seconds = sum(float(path.read_text().splitlines()[1].split("\t")[0]) for path in times)
    manifest = results / "manifest.sha256"
    if not times or not manifest.exists():
        return []
    files = len(manifest.read_text().splitlines())
    minutes = f"{seconds / 60:.0f} minutes of job time together"
    return [f"{len(times)} measured jobs, {minutes}; the manifest lists {files} files."]


def headline(results: Path) -> list[str]:
    """One line each about heads, circuits and graphs of the deeper embedded model."""
    lines = []
    for path in sorted(results.glob("demo-4l/*/heads/headline.json"))[-1:]:
        facts = _json(path)["programs"]
        iou, beats = facts["means"]["iou"], facts["beats"]
        (best,) = [r for r in facts["replacement"] if (r["order"], r["share"]) == ("best", 0.25)]
        lines.append(
            f"- heads of `demo-4l` on `{path.parts[-3]}`: {beats['count']} of {beats['of']} explanations beat every "
            f"control on test documents; mean IoU {_interval(iou['value'], iou['low'], iou['high'])} (another head's "
            f"explanation {iou['controls']['swapped']:.2f}); {100 * (best['ratio'] - 1):+.1f} % perplexity with a "
            "quarter of the heads replaced by programs"
        )
    for path in sorted(results.glob("demo-4l/tasks/*/nodes/circuit.json")):
        circuit = _json(path)
        held, controls = circuit["faithfulness"]["held_out"], circuit["controls"]
        kept = _interval(held["percent"], held["percent_low"], held["percent_high"], 0)
        heads, mlps = (
            f"{len(circuit[k])} {w}" for k, w in (("heads", "head(s)"), ("mlps", "MLP(s)"))
        )
        lines.append(
            f"- {path.parts[-3]}: {heads} and {mlps} keep {kept} % of the logit difference on held-out prompts; the "
            f"best random circuit of the size keeps {controls['size']['max']:.0f} %, with the same MLPs and as many "
            f"heads in each layer {controls['layer']['max']:.0f} %"
        )
    found = sorted(results.glob("demo-4l/*/transcoders/*/graphs/*.summary.json"))
    if found:
        gap = max(_json(path)["largest_gap"] for path in found)
        lines.append(
            f"- {len(found)} attribution graphs, in which the inputs of every node add up to its value within "
            f"{gap:.0e} (float32)"
        )
    return lines


BLOCKS: dict[str, Callable[[Path], list[str]]] = {
    "headline": headline,
    "heads": head_rows,
    "circuits": circuit_rows,
    "latents": latent_rows,
    "graphs": graph_rows,
    "best_heads": best_heads,
    "size": size_rows,
}


def main(arguments: Sequence[str]) -> int:
    """Write the blocks of all pages, or compare them; return the exit status."""
    check = "--check" in arguments
    (folder,) = [a for a in arguments if a != "--check"] or ["results"]
    old = []
    for name in PAGES:
        page = REPOSITORY / name
        text = page.read_text(encoding="utf-8")
        try:
            new = fill(text, Path(folder))
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
        if new == text:
            continue
        old.append(name)
        if not check:
            with atomic_path(page) as temporary:
                temporary.write_text(new, encoding="utf-8")
    if check and old:
        sys.stderr.write(
            f"out of date: {', '.join(old)}; run: python -m mechatlas.docs_numbers {folder}\n"
        )
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
