"""The file ``circuit.json``: a circuit with how it was found and how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechatlas.circuits.components import Graph, head_name, mlp_name
from mechatlas.io import UserError, read_json, write_json
from mechatlas.models.transformer import Transformer

SHAPE = ("n_layers", "n_heads", "n_kv_heads")


@dataclass(frozen=True)
class Circuit:
    """A set of nodes, maybe of edges, of one model.

    Attributes
    ----------
    heads : tuple of (int, int)
        Layer and head.
    mlps : tuple of int
        Layers.
    edges : tuple of str or None
        Names such as ``L1.H2 -> L3.H5.q``; None for a circuit of nodes.
    task, method, model_hash : str
        ``model_hash`` identifies the weights.
    shape : tuple of int
        Layers, heads, key/value heads of the model.
    facts : mapping
        Settings and evaluation, such as ``settings``, ``faithfulness``, ``completeness``, ``minimality``, ``controls``.
    """

    heads: tuple[tuple[int, int], ...]
    mlps: tuple[int, ...]
    task: str
    method: str
    model_hash: str
    shape: tuple[int, int, int]
    edges: tuple[str, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keep(self) -> Tensor:
        """The set of nodes, bool ``[L, H + 1]``."""
        names = [head_name(*head) for head in self.heads] + [mlp_name(layer) for layer in self.mlps]
        return torch.from_numpy(Graph(*self.shape).node_set(names))

    def with_facts(self, facts: Mapping[str, Any]) -> Circuit:
        """Return the circuit with further facts."""
        return replace(self, facts={**self.facts, **facts})


def make_circuit(
    model: Transformer,
    keep: Tensor,
    *,
    task: str,
    method: str,
    edges: Sequence[str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Circuit:
    """Describe a set of nodes, bool ``[L, H + 1]``, of a model."""
    config = model.config
    heads = tuple((int(a), int(b)) for a, b in keep[:, :-1].nonzero())
    mlps = tuple(int(layer) for layer in keep[:, -1].nonzero()[:, 0])
    shape = config.n_layers, config.n_heads, config.n_kv_heads
    edges = None if edges is None else tuple(edges)
    return Circuit(heads, mlps, task, method, model.hash, shape, edges, dict(facts or {}))


def write_circuit(path: str | Path, circuit: Circuit, facts: Mapping[str, Any]) -> None:
    """Write a circuit with the provenance ``facts``; the keys ``heads`` and ``mlps`` are those of published files."""
    value = {
        "task": circuit.task,
        "method": circuit.method,
        "model_hash": circuit.model_hash,
        **dict(zip(SHAPE, circuit.shape, strict=True)),
        "heads": [list(head) for head in circuit.heads],
        "mlps": list(circuit.mlps),
    }
    if circuit.edges is not None:
        value["edges"] = list(circuit.edges)
    write_json(path, {**value, **circuit.facts}, facts)


def read_circuit(path: str | Path, model: Transformer, *, any_weights: bool = False) -> Circuit:
    """Read a circuit for a model.

    Files that hold only ``heads`` and ``mlps`` (the published form) are read as circuits of that model.

    Parameters
    ----------
    path : str or Path
    model : Transformer
    any_weights : bool
        Accept a circuit of other weights of the same shape.

    Raises
    ------
    UserError
        If the file is missing, damaged, lacks heads or MLPs, or does not match the model.
    """
    raw = read_json(path)
    if not isinstance(raw, dict) or not all(
        isinstance(raw.get(k), list) for k in ("heads", "mlps")
    ):
        raise UserError(
            f"{path}: a circuit needs the lists heads and mlps; write it with this workflow"
        )
    config = model.config
    shape = config.n_layers, config.n_heads, config.n_kv_heads
    found = tuple(raw.get(key, value) for key, value in zip(SHAPE, shape, strict=True))
    digest = raw.get("model_hash", model.hash)
    if found != shape:
        raise UserError(
            f"{path}: the circuit is of a model of {found[0]} layers and {found[1]} heads, this one has {shape[0]} and "
            f"{shape[1]}; give the circuit of this model"
        )
    if digest != model.hash and not any_weights:
        raise UserError(
            f"{path}: the circuit was found on other weights ({digest[:12]}..., not {model.hash[:12]}...); "
            "find it again on this model"
        )
    known = {"task", "method", "model_hash", "heads", "mlps", "edges", *SHAPE}
    circuit = Circuit(
        heads=tuple((int(layer), int(head)) for layer, head in raw["heads"]),
        mlps=tuple(int(layer) for layer in raw["mlps"]),
        task=raw.get("task", ""),
        method=raw.get("method", ""),
        model_hash=digest,
        shape=shape,
        edges=tuple(raw["edges"]) if "edges" in raw else None,
        facts={key: value for key, value in raw.items() if key not in known},
    )
    _check_names(path, circuit)
    return circuit


def _check_names(path: str | Path, circuit: Circuit) -> None:
    graph = Graph(*circuit.shape)
    try:
        _ = circuit.keep
        for edge in circuit.edges or ():
            graph.edge(edge)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
