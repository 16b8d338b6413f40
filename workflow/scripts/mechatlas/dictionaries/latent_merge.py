"""All chunks' codes together: statistics of every latent, and what is needed of those that are explained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mechatlas.capture.draws import hash_of
from mechatlas.corpus.windows import SPLITS, Windows, read_windows
from mechatlas.dictionaries.code_files import Codes, blocks, read_codes, read_index, read_offsets
from mechatlas.dictionaries.directions import direction_codes
from mechatlas.dictionaries.latent_events import (
    NEGATIVES,
    EventSettings,
    latent_events,
    random_tokens,
)
from mechatlas.dictionaries.latent_statistics import latent_statistics, latents_to_explain
from mechatlas.dictionaries.neighbours import (
    COACTIVATION_WINDOWS,
    COACTIVE,
    SIMILAR,
    Coactivation,
    similar_latents,
)
from mechatlas.io import UserError, progress, seed_for

#: The control among activations: a random direction that fires as often as the latent whose number it has.
RANDOM_DIRECTION = "random_direction"
OWN = "none"


@dataclass(frozen=True)
class MergeSettings:
    """What is made of the codes (config: latents).

    Attributes
    ----------
    max_latents : int
        Latents of a layer that are explained, those with the largest importance on train windows.
    neighbours : int
        Of each kind.
    dense_rate : float
        Firing rate from which a latent counts as dense.
    random_directions : bool
        Whether the control is wanted.
    events : EventSettings
    """

    max_latents: int
    neighbours: int
    dense_rate: float
    random_directions: bool
    events: EventSettings


@dataclass
class LayerTables:
    """The tables of one layer: statistics, events, neighbours, activations."""

    statistics: pd.DataFrame
    events: pd.DataFrame
    neighbours: pd.DataFrame
    activations: pd.DataFrame


def merge_layers(
    codes: Sequence[str | Path],
    captures: Sequence[str | Path],
    windows_path: str | Path,
    decoder: Callable[[int], np.ndarray],
    settings: MergeSettings,
) -> Iterator[LayerTables]:
    """Yield the tables of each layer, which do not depend on the number of chunks.

    Parameters
    ----------
    codes, captures : sequence of folders
        In the order of their windows; captures are read for random directions only.
    windows_path : path
    decoder : callable
        Layer -> decoder directions, float [n_latents, d].
    settings : MergeSettings

    Notes
    -----
    Memory is bounded by `mechatlas.dictionaries.code_files.ACTIVATIONS_PER_BLOCK` and the activations of the explained
    latents of one layer.

    Raises
    ------
    UserError
        If codes are missing or damaged, do not belong together, or do not fit the windows or the dictionaries.
    """
    corpus = read_windows(windows_path)
    index = read_index(codes, len(corpus))
    if index["window_len"] != corpus.tokens.shape[1]:
        raise UserError(
            f"{windows_path} has windows of {corpus.tokens.shape[1]} tokens, the codes of {index['window_len']}; "
            "delete the folder of codes and run again"
        )
    random = random_tokens(corpus, settings.events.random_events, settings.events.seed)
    for layer in progress(map(int, index["latents"]), desc="merge", unit="layers"):
        directions, latents = decoder(layer), index["latents"][str(layer)]
        if latents != len(directions):
            raise UserError(
                f"{Path(codes[0]).parent} holds codes of {latents} latents of layer {layer}, the dictionary has "
                f"{len(directions)}; delete the folder and run again"
            )
        merger = _Layer(codes, layer, corpus, directions, settings)
        yield merger.tables(captures, index["point"], random)


class _Layer:
    """The work on one layer."""

    def __init__(
        self,
        codes: Sequence[str | Path],
        layer: int,
        corpus: Windows,
        decoder: np.ndarray,
        settings: MergeSettings,
    ) -> None:
        self.codes, self.layer, self.corpus = codes, layer, corpus
        self.decoder, self.settings = decoder, settings
        self.offsets = read_offsets(codes, layer)
        norms = np.linalg.norm(decoder.astype(np.float64), axis=1)
        frames = [
            latent_statistics(block, corpus, layer, norms, settings.dense_rate)
            for block in blocks(codes, layer)
        ]
        self.statistics = pd.concat(frames, ignore_index=True)
        self.chosen = latents_to_explain(self.statistics, layer, settings.max_latents)

    def read(self, latent: int) -> Codes:
        return read_codes(self.codes, self.layer, latent, latent + 1, self.offsets)

    def tables(self, captures: Sequence[str | Path], point: str, random: np.ndarray) -> LayerTables:
        own = [self.read(latent) for latent in self.chosen]
        neighbours = self._neighbours(own)
        frames, activations = [], []
        for codes in own:
            near = neighbours[neighbours["latent"] == codes.first]
            roles = {
                role: near.loc[near["kind"] == kind, "neighbour"].tolist()
                for role, kind in zip(NEGATIVES, (SIMILAR, COACTIVE), strict=True)
            }
            events = latent_events(
                codes, self.corpus, random, roles, self.read, self.settings.events
            )
            frames.append(self._named(events, codes.first))
            activations.append(self._activations(codes, OWN))
        if self.settings.random_directions:
            rates = self._rates()
            for codes in direction_codes(
                captures,
                point,
                self.layer,
                self.corpus,
                self.chosen,
                rates,
                self.settings.events.seed,
            ):
                activations.append(self._activations(codes, RANDOM_DIRECTION))
        return LayerTables(
            self.statistics,
            pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(),
            neighbours.assign(layer=self.layer)[["layer", *neighbours.columns]],
            pd.concat(activations, ignore_index=True) if activations else pd.DataFrame(),
        )

    def _neighbours(self, own: Sequence[Codes]) -> pd.DataFrame:
        alive = np.zeros(len(self.decoder), bool)
        alive[self.statistics.loc[~self.statistics["dead"], "latent"]] = True
        count = self.settings.neighbours
        similar = similar_latents(self.decoder, self.chosen, alive, count)
        if not own:
            return similar
        train = np.flatnonzero(self.corpus.splits == SPLITS.index("train"))
        seed = seed_for(self.settings.events.seed, "coactivation windows")
        order = np.argsort(hash_of(seed, train), kind="stable")
        train = np.sort(train[order[:COACTIVATION_WINDOWS]])
        length = self.corpus.tokens.shape[1]
        together = Coactivation(own, train, length, len(self.decoder))
        for block in blocks(self.codes, self.layer):
            together.add(block)
        return pd.concat([similar, together.nearest(alive, count)], ignore_index=True)

    def _rates(self) -> list[float]:
        train = self.statistics[self.statistics["split"] == "train"].set_index("latent")
        return train.loc[self.chosen, "firing_rate"].tolist()

    def _named(self, events: pd.DataFrame, latent: int) -> pd.DataFrame:
        window = events["window"].to_numpy(np.int64)
        splits = np.array(SPLITS, dtype=object)[self.corpus.splits[window]]
        named = {"layer": self.layer, "latent": latent, "split": splits}
        return events.assign(**named, doc=self.corpus.docs[window])[list(EVENT_COLUMNS)]

    def _activations(self, codes: Codes, control: str) -> pd.DataFrame:
        named = {"layer": self.layer, "latent": codes.first, "control": control}
        fields = {"window": codes.window, "position": codes.position, "activation": codes.value}
        return pd.DataFrame({**named, **fields})


EVENT_COLUMNS = (
    *("layer", "latent", "window", "doc", "split", "position", "activation", "role"),
    *("quantile", "weight", "neighbour"),
)
