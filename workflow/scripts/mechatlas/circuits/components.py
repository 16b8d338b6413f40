"""The parts of a model and their numbering: nodes (heads, MLPs) and the edges between them.

The residual stream is a sum of what the embedding, the heads and the MLPs write. Sources write to it, destinations read
from it (through a norm): each head's query, key and value input, each MLP's input, and the logits. An edge leads from a
source to a destination that reads later. Sets of nodes are boolean arrays ``[L, H + 1]``: column h is head h, the last
column the MLP, so that node n = l(H+1) + h is source n + 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mechatlas.io import UserError
from mechatlas.models.config import ModelConfig

EMBED, LOGITS = "embed", "logits"


@dataclass(frozen=True)
class Graph:
    """Nodes and edges of a model with sequential blocks (attention, then MLP).

    Attributes
    ----------
    n_layers, n_heads, n_kv_heads : int
        With grouped-query attention (``n_kv_heads < n_heads``) keys and values are read once per key/value head.

    Notes
    -----
    Source 0 is the embedding, 1 + l(H+1) + h head h of layer l, 1 + l(H+1) + H its MLP. With D = H + 2 Hkv + 1,
    destination lD + h is the query of head h, lD + H + g and lD + H + Hkv + g are key and value of key/value head g,
    lD + D - 1 is the MLP, the last one the logits. All sources before a destination come first, so
    ``visible`` (how many sources a destination can read) describes all edges.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int

    @classmethod
    def of(cls, config: ModelConfig) -> Graph:
        """Return the graph of a model."""
        return cls(config.n_layers, config.n_heads, config.n_kv_heads)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a set of nodes: ``(L, H + 1)``."""
        return self.n_layers, self.n_heads + 1

    @property
    def readers(self) -> int:
        """Destinations per layer."""
        return self.n_heads + 2 * self.n_kv_heads + 1

    @property
    def n_sources(self) -> int:
        """Number of sources."""
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_destinations(self) -> int:
        """Number of destinations."""
        return self.n_layers * self.readers + 1

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Names of heads and MLPs in the order of a flattened set of nodes."""
        return tuple(
            name
            for layer in range(self.n_layers)
            for name in (*(head_name(layer, h) for h in range(self.n_heads)), mlp_name(layer))
        )

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of all sources."""
        return EMBED, *self.nodes

    @cached_property
    def destinations(self) -> tuple[str, ...]:
        """Names of all destinations, such as ``L1.H2.q``, ``L1.mlp``, ``logits``.

        Where heads share keys and values, those are named ``L1.KV0.k``.
        """
        shared = "H" if self.n_kv_heads == self.n_heads else "KV"
        names = []
        for layer in range(self.n_layers):
            names += [f"{head_name(layer, h)}.q" for h in range(self.n_heads)]
            names += [f"L{layer}.{shared}{g}.{x}" for x in "kv" for g in range(self.n_kv_heads)]
            names.append(mlp_name(layer))
        return *names, LOGITS

    @cached_property
    def visible(self) -> np.ndarray:
        """How many sources each destination can read, int64 ``[n_destinations]``."""
        before = 1 + np.arange(self.n_layers) * (self.n_heads + 1)
        per_layer = np.repeat(before[:, None], self.readers, axis=1)
        per_layer[:, -1] += self.n_heads
        return np.append(per_layer.ravel(), self.n_sources)

    @cached_property
    def edges(self) -> np.ndarray:
        """Which edges exist, bool ``[n_sources, n_destinations]``."""
        return np.arange(self.n_sources)[:, None] < self.visible

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.visible.sum())

    def source(self, name: str) -> int:
        """Return the index of a source; raise `UserError` if the model has none of that name."""
        return self._find(name, self.sources, "embed, L0.H0 (a head), L0.mlp")

    def destination(self, name: str) -> int:
        """Return the index of a destination; raise `UserError` if the model has none of that name."""
        return self._find(name, self.destinations, "L0.H0.q, L0.mlp, logits")

    def edge(self, name: str) -> tuple[int, int]:
        """Return source and destination of an edge such as ``L1.H2 -> L3.H5.q``.

        Raises
        ------
        UserError
            If a part of the name is unknown or the destination reads before the source writes.
        """
        source, arrow, destination = (part.strip() for part in name.partition("->"))
        pair = self.source(source), self.destination(destination)
        if not arrow or not self.edges[pair]:
            raise UserError(
                f"edge {name!r}: {destination} reads before {source} writes; name a later destination"
            )
        return pair

    def edge_name(self, source: int, destination: int) -> str:
        """Return the name of an edge."""
        return f"{self.sources[source]} -> {self.destinations[destination]}"

    def node_set(self, names: Iterable[str]) -> np.ndarray:
        """Return the set of the named heads and MLPs, bool ``[L, H + 1]``."""
        chosen = np.zeros(self.shape, dtype=bool)
        for name in names:
            index = self.source(name) - 1
            if index < 0:
                raise UserError("the embedding is part of every circuit; name heads and MLPs only")
            chosen.flat[index] = True
        return chosen

    def names(self, chosen: np.ndarray) -> list[str]:
        """Return the names of a set of nodes, by layer."""
        return [self.nodes[n] for n in np.flatnonzero(np.asarray(chosen).reshape(self.shape))]

    def _find(self, name: str, names: Sequence[str], examples: str) -> int:
        if name not in self._indices[names]:
            raise UserError(
                f"component {name!r} is not one of this model of {self.n_layers} layers and "
                f"{self.n_heads} heads; names look like {examples}"
            )
        return self._indices[names][name]

    @cached_property
    def _indices(self) -> dict[Sequence[str], dict[str, int]]:
        return {x: {n: i for i, n in enumerate(x)} for x in (self.sources, self.destinations)}


def head_name(layer: int, head: int) -> str:
    """Return the name of a head: ``L3.H5``."""
    return f"L{layer}.H{head}"


def mlp_name(layer: int) -> str:
    """Return the name of an MLP: ``L3.mlp``."""
    return f"L{layer}.mlp"


def parse_node(name: str) -> tuple[int, int | None]:
    """Return layer and head (None for an MLP) of the name of a node; raise `UserError` if it is none."""
    match = re.fullmatch(r"L(\d+)\.(?:H(\d+)|mlp)", name)
    if match is None:
        raise UserError(f"component {name!r}: a head is named like L3.H5, an MLP like L3.mlp")
    return int(match[1]), None if match[2] is None else int(match[2])
