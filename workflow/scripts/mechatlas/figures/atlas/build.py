"""The folder of the atlas: one page, its data as scripts beside it, the charting library with its licence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from mechatlas.figures.atlas import heads as head_data
from mechatlas.figures.atlas.data import number, write_data
from mechatlas.figures.atlas.features import write_features
from mechatlas.figures.atlas.judge import judge_marks
from mechatlas.figures.atlas.latents import write_latents
from mechatlas.figures.atlas.tasks import task_summary, write_task
from mechatlas.figures.examples import WindowTexts
from mechatlas.figures.html import visible_characters
from mechatlas.io import atomic_path, read_json, read_table
from mechatlas.models.tokenizer import load_tokenizer

#: The parts of the script, in the order in which they need each other.
SCRIPTS = (
    *("base", "scales", "measures", "tables", "judge", "examples", "map", "head", "agreement"),
    *("circuit", "latents", "features", "graphs", "search", "home", "keys", "start"),
)
LIBRARY = ("echarts.min.js", "LICENSE", "NOTICE")
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'self' file:; style-src 'unsafe-inline'; img-src data: blob:"


@dataclass(frozen=True)
class ModelEntry:
    """What the atlas shows of a model.

    Attributes
    ----------
    path : str
        Model folder (tokenizer only).
    bos : str or None
    sources : sequence of str
    tasks : mapping
        Task -> kind.
    dictionaries : sequence of (source, dictionary)
        Whose latents are explained.
    transcoders : sequence of (source, transcoder)
    graphs : sequence of (source, transcoder, graph)
    judged : bool
        Whether a judge scored the explanations.
    """

    path: str
    bos: str | None
    sources: Sequence[str]
    tasks: Mapping[str, str] = field(default_factory=dict)
    dictionaries: Sequence[Sequence[str]] = ()
    transcoders: Sequence[Sequence[str]] = ()
    graphs: Sequence[Sequence[str]] = ()
    judged: bool = False


def write_atlas(
    atlas: str | Path,
    results: str | Path,
    models: Mapping[str, ModelEntry],
    chunks: Sequence[str],
    seed: int,
    facts: Mapping[str, Any],
) -> None:
    """Write the atlas.

    Parameters
    ----------
    atlas : path
        Folder to be made; it is whole or absent.
    results : path
        Folder of all results.
    models : mapping
        Model -> what is shown.
    chunks : sequence of str
        Names of capture folders.
    seed : int
    facts : mapping
        Provenance, kept in the page.
    """
    results = Path(results)
    with atomic_path(atlas, folder=True) as folder:
        here = Path(os.path.relpath(results, atlas))
        catalogue = [
            _write_model(folder, results, here, name, entry, chunks, seed)
            for name, entry in models.items()
        ]
        (folder / "index.html").write_text(page(catalogue, facts), encoding="utf-8")
        vendor = files("mechatlas.figures") / "vendor" / "echarts"
        (folder / "echarts").mkdir()
        for name in LIBRARY:
            with (
                (vendor / name).open("rb") as source,
                open(folder / "echarts" / name, "wb") as copy,
            ):
                shutil.copyfileobj(source, copy)


def page(catalogue: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """Return the page: style and script inside, data beside it."""
    folder = files("mechatlas.figures.atlas") / "static"
    read = lambda name: (folder / name).read_text(encoding="utf-8")  # noqa: E731
    script = "\n".join(read(f"{name}.js") for name in SCRIPTS)
    record = escape(json.dumps(facts, ensure_ascii=True, sort_keys=True), quote=True)
    # "<" would let a text end the element; as an escape it is the same text to the parser of JSON.
    embedded = json.dumps(catalogue, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    return (
        read("index.html")
        .replace("{{policy}}", POLICY)
        .replace("{{facts}}", record)
        .replace("/*style*/", read("atlas.css"))
        .replace("{{catalogue}}", embedded)
        .replace("/*script*/", f'(() => {{\n"use strict";\n{script}\n}})();')
    )


def _write_model(
    folder: Path,
    results: Path,
    here: Path,
    name: str,
    entry: ModelEntry,
    chunks: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Write the data of one model and return its entry in the catalogue."""
    place = results / name
    table = read_table(place / "cross_table.parquet")
    layers, count = (int(table[column].max()) + 1 for column in ("layer", "head"))
    tokenizer = load_tokenizer(entry.path, entry.bos)
    sources = {source: place / source for source in entry.sources}
    captured = {
        s: [str(path / "capture" / chunk) for chunk in chunks] for s, path in sources.items()
    }
    head_data.write_heads(folder, name, sources, layers, tokenizer, captured, seed, entry.judged)
    tasks = {}
    for task, kind in entry.tasks.items():
        tasks[task] = task_summary(place / "tasks" / task, task, kind, table)
        write_task(folder, name, task, place / "tasks" / task)
    texts = {
        s: WindowTexts(read_table(p / "windows.parquet"), tokenizer) for s, p in sources.items()
    }
    dictionaries = [
        write_latents(
            *(folder, name, source, dictionary),
            sources[source] / "latents" / dictionary,
            texts[source],
            lambda token: tokenizer.strings([token])[0],
            entry.judged,
        )
        for source, dictionary in entry.dictionaries
    ]
    transcoders = [
        write_features(
            *(folder, name, source, transcoder),
            sources[source] / "transcoders" / transcoder,
            texts[source],
        )
        for source, transcoder in entry.transcoders
    ]
    record = read_json(place / "agreement.json")
    core = {
        **{"model": name, "layers": layers, "heads": count, "sources": list(entry.sources)},
        "explainers": list(dict.fromkeys(table["explainer"])),
        "words": head_data.words(table),
        "clusters": {s: head_data.clusters(p / "heads/clusters.json") for s, p in sources.items()},
        "shows": head_data.shows(table),
        "says": head_data.says(table, record["thresholds"]["attention"]),
        "written": head_data.written(read_table(place / "written_latents.parquet")),
        "tasks": tasks,
        "dictionaries": dictionaries,
        "transcoders": transcoders,
        "graphs": [_graph(results, here, name, *graph) for graph in entry.graphs],
        **{key: record[key] for key in ("thresholds", "draws", "confidence")},
        **{key: record[key] for key in ("agreement", "disagreements")},
        "pages": _pages(name, entry),
    }
    if entry.judged:
        core["judges"] = {s: judge_marks(p / "heads") for s, p in sources.items()}
    write_data(folder, f"{name}/core", core)
    return {
        **{"model": name, "layers": layers, "heads": count, "sources": list(entry.sources)},
        "tasks": list(entry.tasks),
        "dictionaries": [list(place) for place in entry.dictionaries],
        "transcoders": [list(place) for place in entry.transcoders],
        "graphs": len(entry.graphs),
    }


def _pages(name: str, entry: ModelEntry) -> list[list[str]]:
    """Return the other pages of a model: words and address, relative to the atlas."""
    pages = [[f"heads on {s}", f"../{name}/{s}/heads.html"] for s in entry.sources]
    if entry.tasks:
        pages.append(["circuits", f"../{name}/circuits.html"])
    return pages + [
        [f"latents of {d} on {s}", f"../{name}/{s}/latents/{d}.html"] for s, d in entry.dictionaries
    ]


def _graph(
    results: Path, here: Path, model: str, source: str, transcoder: str, graph: str
) -> dict[str, Any]:
    """Return what is said of an attribution graph, with the address of its page."""
    inside = Path(model) / source / "transcoders" / transcoder / "graphs"
    said = read_json(results / inside / f"{graph}.summary.json")
    return {
        **{"source": source, "transcoder": transcoder, "graph": graph},
        "href": (here / inside / f"{graph}.html").as_posix(),
        "prompt": visible_characters(said["prompt"]),
        "nodes": said["kept_nodes"],
        "edges": said["kept_edges"],
        "replacement": number(said["scores"]["replacement_corrected"]),
        "completeness": number(said["scores"]["completeness_corrected"]),
    }
