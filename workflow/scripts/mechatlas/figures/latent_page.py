"""Sections of the page about latents: what one latent is, with examples, histogram, logits, neighbours and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.figures.html import Html, escape, number, prose, table, with_interval
from mechatlas.figures.latent_results import METRICS
from mechatlas.figures.latents import in_order, variant_words
from mechatlas.figures.words import percent

#: Tokens shown before and after the token of an example.
BEFORE, AFTER = 18, 6
#: Examples of the strongest activations, and of each of some quantiles.
TOP, PER_QUANTILE = 5, 1
#: Latents that get a section, the most important ones of all layers.
SECTIONS = 120
BINS = 24
LEGEND = Html(
    "<p class='mx-example'>Shading: activation as a share of the latent's largest: "
    "<span class='mx-key' style='--a:0.1'>0.1</span> <span class='mx-key' style='--a:0.5'>0.5</span> "
    "<span class='mx-key' style='--a:1'>1</span>; the <span class='mx-query'>framed</span> token is the event.</p>"
)
STYLE = """
<style>
.mx-latent { border: 1px solid var(--line); border-radius: 8px; margin: .5rem 0; padding: 0 .9rem; }
.mx-latent > summary { cursor: pointer; padding: .5rem 0; }
.mx-latent > summary b { margin-right: .6rem; }
.mx-columns { display: flex; flex-wrap: wrap; gap: 0 2.2rem; align-items: flex-start; }
.mx-columns > div { max-width: 100%; min-width: 0; }
.mx-columns h4 { margin: .8rem 0 .2rem; }
.mx-bars rect { fill: var(--link); }
.mx-bars text { fill: var(--soft); font: 10px system-ui, sans-serif; }
.mx-tokens { margin: .1rem 0; font-size: .86rem; }
.mx-tokens code { background: var(--panel); border-radius: 3px; padding: 0 .25rem; white-space: pre; }
</style>
"""


class LatentPages:
    """Makes the sections.

    Parameters
    ----------
    table : data frame
        `mechatlas.figures.latent_results.latent_table`.
    texts : mapping
        Window -> text of its tokens.
    token_text : callable
        Token id -> its text.
    events, activations, scores, neighbours : data frame
    steering, tokens : data frame
        steering.parquet and promoted_tokens.parquet; may be empty.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        texts: Mapping[int, Sequence[str]],
        token_text: Any,
        events: pd.DataFrame,
        activations: pd.DataFrame,
        scores: pd.DataFrame,
        neighbours: pd.DataFrame,
        steering: pd.DataFrame,
        tokens: pd.DataFrame,
    ) -> None:
        self.table, self.texts, self.token_text = table, texts, token_text
        own = activations[activations["control"] == "none"]
        key = ["layer", "latent"]
        self.events = dict(iter(events.groupby(key)))
        self.activations = dict(iter(own.groupby(key)))
        self.scores = dict(iter(scores.groupby(key)))
        self.neighbours = dict(iter(neighbours.groupby(key)))
        self.steering = dict(iter(steering.groupby(key))) if len(steering) else {}
        self.tokens = dict(iter(tokens.groupby(key))) if len(tokens) else {}
        self.shown = set(zip(table["layer"], table["latent"], strict=True))

    def sections(self) -> Html:
        """Return the sections of the most important latents, by layer."""
        order = self.table.sort_values(
            ["layer", "importance", "latent"], ascending=[True, False, True], kind="stable"
        )
        latents = order.drop_duplicates(["layer", "latent"])
        kept = latents.nlargest(SECTIONS, "importance_share", keep="first").index
        shown = latents[latents.index.isin(kept)]
        parts = [STYLE, LEGEND.text]
        for layer, group in shown.groupby("layer"):
            parts.append(f"<h3>Layer {layer}</h3>")
            parts += [self.section(row.layer, row.latent) for row in group.itertuples()]
        rest = len(latents) - len(shown)
        if rest:
            parts.append(
                f"<p class='mx-note'>{rest} less important latents are in the table only.</p>"
            )
        return Html("".join(parts))

    def section(self, layer: int, latent: int) -> str:
        """Return the section of one latent."""
        mine = self.table[(self.table["layer"] == layer) & (self.table["latent"] == latent)]
        first = mine.iloc[0]
        key = (layer, latent)
        summary = (
            f"<summary><b>{escape(first['unit'])}</b>{prose(first['text'] or 'not explained')} "
            f"<span class='mx-note'>correlation {number(first['correlation'])}</span></summary>"
        )
        columns = "".join(
            f"<div>{part}</div>"
            for part in (
                self._facts(first),
                self._histogram(key),
                self._promoted(key),
                self._neighbours(key),
            )
            if part
        )
        return (
            f"<details class='mx-latent' id='{escape(first['unit'])}'>{summary}"
            f"{self._explanations(mine)}<div class='mx-columns'>{columns}</div>"
            f"<h4>Examples</h4>{self.examples(key, float(first['max_activation']))}"
            f"<h4>Scores</h4>{self._scores(key)}</details>"
        )

    def _explanations(self, rows: pd.DataFrame) -> str:
        if len(rows) < 2:
            return ""
        items = (
            f"<li>{escape(row.explainer)}: {prose(row.text or row.reason)} "
            f"<span class='mx-note'>correlation {number(row.correlation)}</span></li>"
            for row in rows.itertuples()
        )
        return f"<ul>{''.join(items)}</ul>"

    def _facts(self, row: pd.Series) -> str:
        rows = [
            ("share of the layer's writing", percent(row["importance_share"], 1)),
            ("firing rate", percent(row["firing_rate"], 2)),
            ("mean activation where active", number(row["mean_activation"])),
            ("largest activation", number(row["max_activation"])),
            ("flags", row["flags"] or number(None)),
        ]
        steering = self.steering.get((row["layer"], row["latent"]))
        if steering is not None:
            own = steering[steering["control"] == "none"].iloc[0]
            words = (
                own["reason"]
                or f"{number(own['divergence'])} nats at strength {number(own['strength'], 1)}"
            )
            rows.append(("steering", words))
        return f"<h4>Statistics (train)</h4>{table(['', 'value'], rows).text}"

    def _histogram(self, key: tuple[int, int]) -> str:
        values = self.activations.get(key)
        if values is None:
            return ""
        found = values["activation"].to_numpy(float)
        counts, edges = np.histogram(found, BINS, range=(0, float(found.max())))
        height = 70
        bars = "".join(
            f"<rect x='{10 * i}' y='{height - h:.1f}' width='9' height='{h:.1f}'>"
            f"<title>{number(edges[i])} to {number(edges[i + 1])}: {count}</title></rect>"
            for i, count in enumerate(counts.tolist())
            if (h := height * np.log1p(count) / np.log1p(counts.max())) > 0
        )
        words = f"{len(found)} active tokens (log scale)"
        return (
            f"<h4>Activations</h4><svg class='mx-bars' width='{10 * BINS}' height='{height + 16}' role='img' "
            f"aria-label='histogram of activations'>{bars}<text x='0' y='{height + 13}'>0</text>"
            f"<text x='{10 * BINS}' y='{height + 13}' text-anchor='end'>{number(float(found.max()))}</text></svg>"
            f"<p class='mx-note'>{words}</p>"
        )

    def _promoted(self, key: tuple[int, int]) -> str:
        found = self.tokens.get(key)
        if found is None:
            return ""
        kinds = {"direct": "by its direction alone", "steered": "by steering"}
        parts = []
        for kind, words in kinds.items():
            for sign, verb in ((1, "promotes"), (-1, "suppresses")):
                rows = found[(found["kind"] == kind) & (found["sign"] == sign)].sort_values("rank")
                if len(rows):
                    shown = " ".join(
                        f"<code title='{number(float(r.value))}'>{escape(self.token_text(r.token)) or '∅'}</code>"
                        for r in rows.head(8).itertuples()
                    )
                    parts.append(f"<p class='mx-tokens'>{verb} {words}: {shown}</p>")
        return f"<h4>Logits</h4>{''.join(parts)}"

    def _neighbours(self, key: tuple[int, int]) -> str:
        found = self.neighbours.get(key)
        if found is None:
            return ""
        prefix = self.table.loc[
            (self.table["layer"] == key[0]) & (self.table["latent"] == key[1]), "unit"
        ].iloc[0]
        prefix = prefix[: prefix.rindex("F") + 1]
        parts = []
        for kind, words in (
            ("similar", "by direction (cosine)"),
            ("coactive", "by activity (Jaccard)"),
        ):
            rows = found[found["kind"] == kind].sort_values("rank")
            items = ", ".join(
                f"{self._link(key[0], r.neighbour, f'{prefix}{r.neighbour}')} {number(float(r.value))}"
                for r in rows.itertuples()
            )
            parts.append(f"<p class='mx-tokens'>{words}: {items or number(None)}</p>")
        return f"<h4>Neighbours</h4>{''.join(parts)}"

    def _link(self, layer: int, latent: int, unit: str) -> str:
        name = escape(unit)
        return f"<a href='#{name}'>{name}</a>" if (layer, latent) in self.shown else name

    def _scores(self, key: tuple[int, int]) -> str:
        rows = self.scores.get(key)
        if rows is None:
            return "<p class='mx-note'>No scores.</p>"
        parts = []
        for explainer, mine in rows.groupby("explainer", sort=False):
            controls = in_order(mine["control"])
            body = []
            for metric, words in METRICS.items():
                here = mine[mine["metric"] == metric].set_index("control")
                if here.empty:
                    continue
                cells = [
                    self._cell(here.loc[c]) if c in here.index else number(None) for c in controls
                ]
                body.append([words, *cells])
            head = (
                f"<p class='mx-note'>{escape(explainer)}</p>"
                if rows["explainer"].nunique() > 1
                else ""
            )
            parts.append(head + table(["score", *map(variant_words, controls)], body).text)
        return "".join(parts)

    def _cell(self, row: pd.Series) -> Any:
        if row["status"] == "scored":
            return with_interval(row["value"], row["low"], row["high"])
        return Html(f"<span class='mx-note' title='{escape(row['reason'])}'>unscored</span>")

    def examples(self, key: tuple[int, int], top: float) -> str:
        """Return highlighted examples: the strongest, and one of each quantile, strong to weak."""
        events = self.events.get(key)
        values = self.activations.get(key)
        if events is None or values is None:
            return "<p class='mx-note'>No events.</p>"
        split = "test" if (events["split"] == "test").any() else events["split"].iloc[0]
        events = events[events["split"] == split]
        strongest = events[events["role"] == "top"].drop_duplicates("doc").head(TOP)
        sample = events[(events["role"] == "quantile")].sort_values(
            ["quantile", "window", "position"], ascending=[False, True, True]
        )
        others = sample.groupby("quantile", sort=False).head(PER_QUANTILE)
        by_window = dict(iter(values.groupby("window")))
        shown = [("strongest", row) for row in strongest.itertuples()]
        shown += [("sample", row) for row in others.itertuples()]
        largest = max(top, float(values["activation"].max()))
        return "".join(
            self._example(row, by_window.get(row.window), largest, name) for name, row in shown
        )

    def _example(self, row: Any, values: pd.DataFrame | None, largest: float, name: str) -> str:
        strings = self.texts[row.window]
        known = (
            {}
            if values is None
            else dict(zip(values["position"], values["activation"], strict=True))
        )
        start, stop = max(1, row.position - BEFORE), min(len(strings), row.position + AFTER + 1)
        parts = ["<span class='mx-gap'>… </span>"] if start > 1 else []
        parts += [
            token_html(strings[at], known.get(at, 0.0) / largest, at == row.position)
            for at in range(start, stop)
        ]
        parts += ["<span class='mx-gap'> …</span>"] if stop < len(strings) else []
        what = name if name == "strongest" else f"quantile {row.quantile + 1}"
        where = (
            f"{what}: activation {number(float(row.activation))}; document {row.doc}, {row.split}"
        )
        return f"<div class='mx-example'><span class='mx-where'>{escape(where)}</span>{''.join(parts)}</div>"


def token_html(text: str, share: float, event: bool) -> str:
    """Return a token as HTML, shaded by a share of the largest activation, framed if it is the event."""
    shown = escape(text) or "∅"
    if share <= 0 and not event:
        return shown
    # A space before a word is not marked: marks of neighbours would run into one another.
    word = shown.lstrip(" ") or shown
    space = shown[: len(shown) - len(word)]
    if share > 0:
        note = f"{share:.2f} of the largest activation"
        word = (
            f"<span class='mx-key' style='--a:{min(1.0, share):.2f}' title='{note}'>{word}</span>"
        )
    return space + (f"<span class='mx-query'>{word}</span>" if event else word)
