"""The page that links the reports of all models and sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mechatlas.figures.html import Html, escape, number, page, table, with_interval
from mechatlas.figures.reference import HAYES_2026
from mechatlas.figures.results import at_share
from mechatlas.figures.words import percent

TITLE = "mechatlas: heads, circuits, latents"
CIRCUITS = (
    "A circuit is the heads and MLPs that do a task without the rest of the model. Its score is measured on held-out "
    "prompts, in percent of the whole model's, and stands beside that of random circuits with as many heads in every "
    "layer; p is the share of circuits, this one included, that do at least as well."
)


@dataclass(frozen=True)
class Entry:
    """One row of the index.

    Attributes
    ----------
    model, source : str
    links : mapping
        Words -> path relative to the index.
    headlines : mapping
        headline.json: numbers by explainer.
    """

    model: str
    source: str
    links: Mapping[str, str]
    headlines: Mapping[str, Any]


@dataclass(frozen=True)
class LatentEntry:
    """One row of the table of dictionaries: as `Entry`, with headline.json of latents."""

    model: str
    source: str
    dictionary: str
    links: Mapping[str, str]
    headlines: Mapping[str, Any]


@dataclass(frozen=True)
class CircuitEntry:
    """One row of the circuits in the index.

    Attributes
    ----------
    model, task : str
    page : str
        Path of the model's page of circuits, relative to the index.
    circuit : mapping
        nodes/circuit.json.
    """

    model: str
    task: str
    page: str
    circuit: Mapping[str, Any]


@dataclass(frozen=True)
class TranscoderEntry:
    """One row of the transcoders in the index; ``page`` is relative to the index."""

    model: str
    source: str
    transcoder: str
    page: str


def index_page(
    entries: Sequence[Entry],
    facts: Mapping[str, Any],
    *,
    circuits: Sequence[CircuitEntry] = (),
    latents: Sequence[LatentEntry] = (),
    transcoders: Sequence[TranscoderEntry] = (),
    atlas: str | None = None,
) -> str:
    """Return the index as one self-contained page; ``atlas`` is the address of the atlas, relative to it."""
    columns = [
        "model", "source", "explainer", "heads scored", "mean IoU", "beat every control",
        "perplexity, 25 % of heads replaced", "pages and files",
    ]  # fmt: skip
    reference = [
        HAYES_2026.citation, "for comparison", number(None), number(None), f"above {number(HAYES_2026.mean_iou)}",
        number(None), percent(HAYES_2026.ratio - 1, sign=True), "",
    ]  # fmt: skip
    rows = [*(_row(entry, name) for entry in entries for name in entry.headlines), reference]
    body = (
        f"<main><h1>{escape(TITLE)}</h1>{_atlas(atlas)}"
        "<p>Each attention head has an explanation in words, most of them with a small program that can be executed. "
        "The numbers are of documents that no explanation was fitted on. IoU: overlap of predicted and true "
        "attention, from 0 to 1, with its interval. A head beats every control if its IoU without the sink is above "
        "that of explanations that should fail. The last number says how much worse the model predicts "
        "text when a quarter of its heads run on their programs.</p>"
        f"{table(columns, rows).text}{_circuits(circuits)}{_latents(latents)}"
        f"{_transcoders(transcoders)}</main>"
    )
    return page(TITLE, body, facts=facts)


def _atlas(address: str | None) -> str:
    """Return the link to the atlas, empty without one."""
    if address is None:
        return ""
    return (
        f"<p><b><a href='{quote(address)}'>Open the atlas</a></b>: maps of all heads, what each does in words and in "
        "tasks, circuits, latents, attribution graphs, and a search over all explanations.</p>"
        "<h2>Reports</h2>"
    )


def _row(entry: Entry, explainer: str) -> list[Any]:
    headline = entry.headlines[explainer]
    iou, beats = headline["means"].get("iou", {}), headline["beats"]
    replaced = at_share(headline, "best")
    return [
        entry.model,
        entry.source,
        explainer,
        f"{headline['scored']} of {headline['heads']}",
        with_interval(iou.get("value"), iou.get("low"), iou.get("high")),
        f"{percent(beats['count'] / beats['of'])} of {beats['of']}"
        if beats["of"]
        else number(None),
        _change(replaced),
        _links(entry.links),
    ]


def _latents(entries: Sequence[LatentEntry]) -> str:
    """Return the section about latents, empty if there are none."""
    if not entries:
        return ""
    columns = [
        *("model", "source", "dictionary", "explainer", "latents scored", "mean correlation"),
        *("beat every control", "loss recovered", "steering AUC", "pages and files"),
    ]
    rows = [_latent_row(entry, name) for entry in entries for name in entry.headlines["explainers"]]
    return (
        "<h2>Latents of dictionaries</h2>"
        "<p>The most important latents of each layer are explained likewise. Correlation: of predicted and true "
        "activation on all tokens of test documents. Steering AUC: how often steering by a latent promotes a token "
        "that follows where its explanation says it is active more than one that follows anywhere; 0.5 is chance.</p>"
        f"{table(columns, rows).text}"
    )


def _latent_row(entry: LatentEntry, explainer: str) -> list[Any]:
    headline = entry.headlines["explainers"][explainer]
    means, beats = headline["means"], headline["beats"]
    main = means.get("correlation", {})
    return [
        *(entry.model, entry.source, entry.dictionary, explainer),
        f"{headline['scored']} of {headline['latents']}",
        with_interval(main.get("value"), main.get("low"), main.get("high")),
        f"{percent(beats['count'] / beats['of'])} of {beats['of']}"
        if beats["of"]
        else number(None),
        percent(means["loss_recovered"]["value"]) if "loss_recovered" in means else number(None),
        number(means.get("steering_auc", {}).get("value")),
        _links(entry.links),
    ]


def _links(links: Mapping[str, str]) -> Html:
    return Html(" · ".join(f"<a href='{quote(path)}'>{escape(w)}</a>" for w, path in links.items()))


def _circuits(entries: Sequence[CircuitEntry]) -> str:
    """Return the section about circuits, empty without any."""
    if not entries:
        return ""
    columns = ["model", "task", "heads", "MLPs", "held-out score", "random: mean, best, p", "page"]
    rows = table(columns, [_circuit_row(entry) for entry in entries])
    return f"<h2>Circuits</h2><p>{escape(CIRCUITS)}</p>{rows.text}"


def _circuit_row(entry: CircuitEntry) -> list[Any]:
    circuit = entry.circuit
    held = circuit["faithfulness"]["held_out"]
    control = circuit["controls"].get("layer") or {}
    random = [number(control.get(key), 1) for key in ("mean", "max")]
    return [
        entry.model,
        entry.task,
        f"{len(circuit['heads'])} of {circuit['n_layers'] * circuit['n_heads']}",
        f"{len(circuit['mlps'])} of {circuit['n_layers']}",
        with_interval(held["percent"], held["percent_low"], held["percent_high"], 1),
        ", ".join([*random, number(control.get("p"), 3)]),
        Html(f"<a href='{quote(entry.page)}'>circuits</a>"),
    ]


def _transcoders(entries: Sequence[TranscoderEntry]) -> str:
    """Return the section about transcoders, empty without any."""
    if not entries:
        return ""
    rows = [
        [e.model, e.source, e.transcoder, _links({"features and graphs": e.page})] for e in entries
    ]
    return (
        "<h2>Transcoders</h2><p>A transcoder puts sparse features in the place of the MLPs; its page says how well, "
        "what the features do, and links the attribution graphs of prompts.</p>"
        f"{table(['model', 'source', 'transcoder', 'page'], rows).text}"
    )


def _change(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return number(None)
    share = "" if abs(row["share"] - 0.25) < 1e-9 else f" (at {percent(row['share'])})"
    return percent(row["ratio"] - 1, 1, sign=True) + share
