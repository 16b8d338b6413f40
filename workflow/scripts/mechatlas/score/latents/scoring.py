"""All scores of the latents of one model, source and dictionary: tokens, causal checks, controls, intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.explain.latents.data import Latent, LatentData
from mechatlas.explain.latents.fit_ngrams import fit_lookup
from mechatlas.explain.latents.programs import LatentProgram
from mechatlas.explain.latents.records import latent_programs, swapped_latents
from mechatlas.io import progress
from mechatlas.score.latents.names import (
    ABLATED,
    LOOKUP,
    MODEL,
    OWN,
    RANDOM_DIRECTION,
    TRUE_ACTIVITY,
)
from mechatlas.score.latents.summary import (
    TOKEN_METRICS,
    LatentScores,
    LatentSummarySettings,
    Measured,
    unscored,
)
from mechatlas.score.latents.tokens import LatentTruth
from mechatlas.stats.bootstrap import interval
from mechatlas.stats.ranking import roc_auc

Records = Sequence[Mapping[str, Any]]
Programs = dict[tuple[int, int], LatentProgram]
Found = dict[str, dict[str, Measured]]
#: Most entries of the token look-up that scores are compared with.
LOOKUP_ENTRIES = 100_000


def explainers_of(records: Records) -> list[str]:
    """Return the explainers of records, in the order in which they occur."""
    return list(dict.fromkeys(record["explainer"] for record in records))


def variants_of(
    records: Records, controls: Iterable[str], seed: int
) -> dict[tuple[str, str], Programs]:
    """Return the programs to score on the latents themselves: of each explainer its own, swapped and shuffled."""
    controls = list(controls)
    variants: dict[tuple[str, str], Programs] = {}
    for explainer in explainers_of(records):
        own = latent_programs(records, explainer)
        variants[explainer, OWN] = own
        if "swapped" in controls:
            variants[explainer, "swapped"] = swapped_latents(own, seed)
        if "shuffled" in controls:
            variants[explainer, "shuffled"] = latent_programs(records, explainer, "shuffled")
    return {variant: programs for variant, programs in variants.items() if programs}


class LatentScoring:
    """Scores latents one by one.

    Parameters
    ----------
    data : LatentData
    records : sequence of mapping
        Explanations of all explainers, controls among them.
    events : data frame
        Test events (raw_events.parquet).
    measures : mapping
        ``losses`` and ``promoted`` of `mechatlas.score.latents.measure`; may be empty.
    controls : sequence of str
    active_share : float
    settings : LatentSummarySettings
    """

    def __init__(
        self,
        data: LatentData,
        records: Records,
        events: pd.DataFrame,
        measures: Mapping[str, pd.DataFrame],
        controls: Sequence[str],
        active_share: float,
        settings: LatentSummarySettings,
    ) -> None:
        self.data, self.records, self.controls = data, records, controls
        self.active_share, self.settings = active_share, settings
        self.variants = variants_of(records, controls, settings.seed)
        self.documents = np.unique(data.documents("test"))
        self.scores = LatentScores(settings, len(self.documents))
        self.events = _by_latent(events)
        self.losses = _by_latent(measures.get("losses", pd.DataFrame()))
        self.promoted = _by_latent(measures.get("promoted", pd.DataFrame()))

    def run(self) -> pd.DataFrame:
        """Return scores.parquet of all latents."""
        texts = {
            (r["layer"], r["latent"], r["explainer"]): r
            for r in self.records
            if r["control"] == OWN
        }
        for latent in progress(self.data.latents, desc="score latents", unit="latents"):
            truth = self._truth(latent)
            baseline = self._lookup(latent)
            for explainer in explainers_of(self.records):
                record = texts.get((latent.layer, latent.latent, explainer))
                if record is None:
                    continue
                if record["program"] is None:
                    why = (
                        record.get("reason")
                        or record.get("program_error")
                        or "a text without a program"
                    )
                    self.scores.add(latent, explainer, {OWN: unscored(str(why))})
                    continue
                found = self._tokens(latent, explainer, truth, baseline)
                self._causal(latent, explainer, found)
                self.scores.add(latent, explainer, found)
        return self.scores.table()

    def _truth(self, latent: Latent, control: str = OWN) -> LatentTruth:
        empty = pd.DataFrame(columns=["role", "window", "position"])
        events = self.events.get((latent.layer, latent.latent), empty) if control == OWN else empty
        return LatentTruth(
            self.data, latent, events, self.active_share, self.settings.seed, control
        )

    def _lookup(self, latent: Latent) -> LatentProgram | None:
        train = self.data.values(latent, "train")
        lookup = fit_lookup(self.data.view("train"), train, 0, LOOKUP_ENTRIES)
        return None if lookup is None else LatentProgram(parts=(lookup,))

    def _tokens(
        self, latent: Latent, explainer: str, truth: LatentTruth, baseline: LatentProgram | None
    ) -> Found:
        key = (latent.layer, latent.latent)
        found: Found = {}
        for (who, control), programs in self.variants.items():
            if who == explainer and key in programs:
                found[control] = self.scores.tokens(truth.compare(programs[key]))
        if baseline is not None:
            found[LOOKUP] = self.scores.tokens(truth.compare(baseline))
        random = latent_programs(self.records, explainer, RANDOM_DIRECTION)
        if key in random:
            other = self._truth(latent, RANDOM_DIRECTION)
            sums = other.compare(random[key])
            measured = self.scores.tokens(sums)
            kept = [name for name in TOKEN_METRICS if not name.startswith("auc_negative")]
            found[RANDOM_DIRECTION] = {name: measured[name] for name in kept}
        return found

    def _causal(self, latent: Latent, explainer: str, found: Found) -> None:
        key = (latent.layer, latent.latent)
        for control, measured in self._recovered(key, explainer).items():
            found.setdefault(control, {})["loss_recovered"] = measured
        for control, measured in self._steered(key, explainer).items():
            found.setdefault(control, {})["steering_auc"] = measured

    def _recovered(self, key: tuple[int, int], explainer: str) -> dict[str, Measured]:
        """Return the share of the loss of an ablation that predictions of the activation avoid, by control."""
        rows = self.losses.get(key)
        if rows is None:
            why = (
                "not measured"
                if not self.losses
                else "not active in the windows of the causal check"
            )
            return {OWN: Measured(reason=why)}
        wide = {
            k: self._by_document(g, ["loss"])[:, 0]
            for k, g in rows.groupby(["explainer", "variant"])
        }
        harm = self.scores.measure((wide[ABLATED] - wide[MODEL])[:, None], lambda t: t[:, 0])
        low = (
            interval(harm.values, self.settings.confidence)[0] if harm.values is not None else -1.0
        )
        result = {}
        for (who, control), loss in wide.items():
            if who != explainer:
                continue
            if not low > 0:
                why = "ablating the latent does not raise the loss beyond its interval"
                result[control] = Measured(reason=why)
                continue
            sums = np.stack([wide[ABLATED] - loss, wide[ABLATED] - wide[MODEL]], axis=1)
            result[control] = self.scores.measure(sums, lambda t: t[:, 0] / t[:, 1])
        return result

    def _steered(self, key: tuple[int, int], explainer: str) -> dict[str, Measured]:
        """Return how well steering promotes the tokens that follow where the latent is said to be active."""
        rows = self.promoted.get(key)
        if rows is None:
            why = (
                "not measured"
                if not self.promoted
                else "steering did not reach the wanted divergence"
            )
            return {OWN: Measured(reason=why)}
        result = {}
        for (who, control), group in rows.groupby(["explainer", "control"]):
            if who == explainer or control == TRUE_ACTIVITY:
                counts = self._by_document(group, ["following", "others"])
                following = int(counts[:, 0].sum())
                if following < self.settings.min_events:
                    why = f"said to be active on {following} test tokens, fewer than {self.settings.min_events}"
                    result[str(control)] = Measured(reason=why)
                else:
                    used = counts[:, :, counts.any((0, 1))]
                    result[str(control)] = self.scores.measure(
                        used, lambda t: roc_auc(t[:, 0], t[:, 1])
                    )
        return result

    def _by_document(self, rows: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
        """Return columns of numbers or arrays as float64 [documents, columns, ...], 0 for documents that lack."""
        first = np.stack([np.stack(rows[name].to_list()).astype(np.float64) for name in names], 1)
        out = np.zeros((len(self.documents), *first.shape[1:]))
        np.add.at(out, np.searchsorted(self.documents, rows["doc"].to_numpy().astype(str)), first)
        return out


def _by_latent(frame: pd.DataFrame) -> dict[Any, pd.DataFrame]:
    return dict(iter(frame.groupby(["layer", "latent"]))) if len(frame) else {}
