"""What explaining and scoring read of the latents of one model, source and dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.dictionaries.latent_merge import OWN
from mechatlas.explain.dataset import SourceData
from mechatlas.explain.vocabulary import TokenView
from mechatlas.io import UserError, read_provenance, read_table

#: Layers whose activations are kept in memory.
LAYERS_KEPT = 2


@dataclass(frozen=True)
class Latent:
    """A latent's name and numbers."""

    layer: int
    latent: int
    point: str

    @property
    def unit(self) -> str:
        """Name, such as ``L3.resid_mid.F120``."""
        return f"L{self.layer}.{self.point}.F{self.latent}"

    @property
    def named(self) -> dict[str, Any]:
        """Fields of a record that say which latent it is about."""
        return {"unit": self.unit, "layer": self.layer, "latent": self.latent}


class LatentData(SourceData):
    """Windows, and the activations of the explained latents on them.

    Parameters
    ----------
    windows, model, bos
        See `SourceData`.
    activations : path
        activations.parquet.
    """

    def __init__(
        self, windows: str | Path, activations: str | Path, model: str | Path, bos: str | None
    ) -> None:
        super().__init__(windows, model, bos)
        self.path = activations
        self.facts |= {"activations": read_provenance(activations)}
        self.point: str = self.facts["activations"].get("point", "")
        self._layer = lru_cache(LAYERS_KEPT)(self._read_layer)

    @cached_property
    def latents(self) -> list[Latent]:
        """The explained latents: by layer, the most important first."""
        table = read_table(self.path, columns=["layer", "latent", "control"])
        own = table[table["control"] == OWN].drop_duplicates(["layer", "latent"])
        pairs = zip(own["layer"].tolist(), own["latent"].tolist(), strict=True)
        return [Latent(layer, latent, self.point) for layer, latent in pairs]

    def rows(self, split: str) -> pd.DataFrame:
        """Rows of windows.parquet of one split.

        Raises
        ------
        UserError
            If there are none.
        """
        rows = self.table[self.table["split"] == split]
        if rows.empty:
            raise UserError(f"there are no {split} windows; raise sampling.windows")
        return rows

    def view(self, split: str) -> TokenView:
        """The tokens of one split; what is computed about them serves every latent."""
        if split not in self._views:
            tokens = np.stack(self.rows(split)["tokens"].to_list())
            self._views[split] = TokenView(tokens, self.vocabulary)
        return self._views[split]

    def documents(self, split: str) -> np.ndarray:
        """Document of every window of a split: str [W]."""
        return self.rows(split)["doc"].to_numpy().astype(str)

    def values(self, latent: Latent, split: str, control: str = OWN) -> np.ndarray:
        """Activations of a latent, or of a control that has its number: float32 [W, T], 0 at BOS."""
        numbers = self.rows(split)["window"].to_numpy()
        dense = np.zeros((len(numbers), len(self.table["tokens"].iloc[0])), dtype=np.float32)
        found = self._layer(latent.layer).get((latent.latent, control))
        if found is None:
            return dense
        place = np.minimum(np.searchsorted(numbers, found["window"]), len(numbers) - 1)
        mine = numbers[place] == found["window"].to_numpy()
        position, value = found["position"].to_numpy(), found["activation"].to_numpy()
        dense[place[mine], position[mine]] = value[mine]
        return dense

    def controls(self) -> list[str]:
        """Which controls have activations."""
        found = read_table(self.path, columns=["control"])["control"].unique().tolist()
        return [name for name in found if name != OWN]

    def _read_layer(self, layer: int) -> dict[Any, pd.DataFrame]:
        table = read_table(self.path, filters=[("layer", "==", layer)])
        return dict(iter(table.groupby(["latent", "control"], sort=False)))

    @cached_property
    def _views(self) -> dict[str, TokenView]:
        return {}
