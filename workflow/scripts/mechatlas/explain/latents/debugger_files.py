"""Files of the Transformer Debugger: collated activations (one JSON) and scored explanations (JSON Lines) of a unit.

Old files lack ``dataclass_name`` and call some fields otherwise; they are read too. Numbers that do not exist are null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mechatlas.io import UserError, read_json, read_jsonl, write_text

#: Old names of fields.
RENAMED = {
    "idx": "neuron_index",
    "index": "neuron_index",
    "layer": "layer_index",
    "unit": "neuron_id",
    "simulation": "sequence_simulation",
}
SCORES = ("ev_correlation_score", "rsquared_score", "absolute_dev_explained_score")


@dataclass(frozen=True)
class Shown:
    """Tokens and a unit's activation on each."""

    tokens: tuple[str, ...]
    activations: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.activations):
            raise ValueError(
                f"{len(self.tokens)} tokens but {len(self.activations)} activations in a record"
            )


@dataclass(frozen=True)
class CollatedActivations:
    """A unit's strongest and random sequences.

    Attributes
    ----------
    layer, index : int
    top, random : sequence of Shown
    moments : mapping
        ``mean``, ``variance``, ``skewness``, ``kurtosis`` over all tokens; None where unknown.
    """

    layer: int
    index: int
    top: tuple[Shown, ...]
    random: tuple[Shown, ...]
    moments: Mapping[str, float | None] = field(default_factory=dict)


MOMENTS = ("mean", "variance", "skewness", "kurtosis")


def collate(
    layer: int,
    index: int,
    texts: Sequence[Sequence[str]],
    values: np.ndarray,
    top: np.ndarray,
    random: np.ndarray,
) -> CollatedActivations:
    """Collate the activations of a latent.

    Parameters
    ----------
    layer, index : int
    texts : sequence of sequences of str
        Token texts of every window.
    values : float [W, T]
        Activations; position 0 (BOS) is left out of everything.
    top, random : int [n]
        Windows to show.
    """
    flat = values[:, 1:].astype(np.float64).ravel()
    centred = flat - flat.mean()
    variance = float((centred**2).mean())
    moments = {"mean": float(flat.mean()), "variance": variance}
    known = variance > 0
    moments["skewness"] = float((centred**3).mean() / variance**1.5) if known else None
    moments["kurtosis"] = float((centred**4).mean() / variance**2) if known else None

    def shown(windows: np.ndarray) -> tuple[Shown, ...]:
        return tuple(
            Shown(tuple(texts[w][1:]), tuple(values[w, 1:].astype(float).tolist())) for w in windows
        )

    return CollatedActivations(layer, index, shown(top), shown(random), moments)


def write_collated(path: str | Path, unit: CollatedActivations) -> None:
    """Write a ``NeuronRecord``."""
    record = {
        "neuron_id": _unit_id(unit.layer, unit.index),
        "random_sample": [_activation_record(s) for s in unit.random],
        "random_sample_by_quantile": None,
        "quantile_boundaries": None,
        **{name: unit.moments.get(name) for name in MOMENTS},
        "most_positive_activation_records": [_activation_record(s) for s in unit.top],
        "dataclass_name": "NeuronRecord",
    }
    write_text(path, json.dumps(record, ensure_ascii=False, allow_nan=False))


def read_collated(path: str | Path) -> CollatedActivations:
    """Read a ``NeuronRecord``, new or old.

    Raises
    ------
    UserError
        If the file is missing or damaged, lacks a field, or tokens and activations do not belong together.
    """
    data = _renamed(read_json(path))
    try:
        unit = data["neuron_id"]
        return CollatedActivations(
            int(unit["layer_index"]),
            int(unit["neuron_index"]),
            tuple(map(_sequence, data["most_positive_activation_records"])),
            tuple(map(_sequence, data.get("random_sample") or ())),
            {name: data.get(name) for name in MOMENTS},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no collated-activation file ({type(error).__name__}: {error}); fetch it again"
        ) from error


@dataclass(frozen=True)
class Simulated:
    """A simulation of one sequence: expected and true activations of its tokens."""

    tokens: tuple[str, ...]
    expected: tuple[float, ...]
    true: tuple[float, ...]


@dataclass(frozen=True)
class ScoredExplanation:
    """An explanation with the sequences on which it was simulated, and its scores over all their tokens.

    ``scores`` holds `SCORES`; None where a score does not exist.
    """

    text: str
    sequences: tuple[Simulated, ...] = ()
    scores: Mapping[str, float | None] = field(default_factory=dict)


def simulation_scores(sequences: Sequence[Simulated]) -> dict[str, float | None]:
    """Return the scores of Bills et al. 2023 over all tokens of all sequences together.

    The correlation, ``1 - mean (y - e)^2 / mean y^2`` and ``1 - mean |y - e| / mean |y|``, as the Transformer Debugger
    defines them; None where they do not exist.
    """
    expected = np.concatenate([s.expected for s in sequences]) if sequences else np.zeros(0)
    true = np.concatenate([s.true for s in sequences]) if sequences else np.zeros(0)
    if not len(true):
        return dict.fromkeys(SCORES)
    square, size = float((true**2).mean()), float(np.abs(true).mean())
    spread = expected.std() * true.std()
    correlation = float(np.corrcoef(expected, true)[0, 1]) if spread > 0 else None
    return {
        "ev_correlation_score": correlation,
        "rsquared_score": 1 - float(((true - expected) ** 2).mean()) / square if square else None,
        "absolute_dev_explained_score": (
            1 - float(np.abs(true - expected).mean()) / size if size else None
        ),
    }


def write_scored(
    path: str | Path, layer: int, index: int, explanations: Sequence[ScoredExplanation]
) -> None:
    """Write ``NeuronSimulationResults`` on one line."""
    scored = [
        {
            "explanation": one.text,
            "scored_simulation": {
                "scored_sequence_simulations": [_scored_sequence(s) for s in one.sequences],
                **{name: one.scores.get(name) for name in SCORES},
                "dataclass_name": "ScoredSimulation",
            },
            "dataclass_name": "ScoredExplanation",
        }
        for one in explanations
    ]
    record = {
        **{"neuron_id": _unit_id(layer, index), "scored_explanations": scored},
        "dataclass_name": "NeuronSimulationResults",
    }
    write_text(path, json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def read_scored(path: str | Path) -> tuple[int, int, list[ScoredExplanation]]:
    """Read ``NeuronSimulationResults``: layer, index and explanations.

    Raises
    ------
    UserError
        If the file is missing, damaged or something else.
    """
    lines = read_jsonl(path)
    if len(lines) != 1:
        raise UserError(f"{path} has {len(lines)} lines where one is expected; fetch it again")
    data = _renamed(lines[0])
    try:
        unit = data["neuron_id"]
        found = [_scored_explanation(one) for one in data["scored_explanations"]]
        return int(unit["layer_index"]), int(unit["neuron_index"]), found
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no file of scored explanations ({type(error).__name__}: {error}); fetch it again"
        ) from error


def _unit_id(layer: int, index: int) -> dict[str, Any]:
    return {"neuron_index": index, "layer_index": layer, "dataclass_name": "NeuronId"}


def _activation_record(sequence: Shown) -> dict[str, Any]:
    return {
        "activations": list(sequence.activations),
        "tokens": list(sequence.tokens),
        "dataclass_name": "ActivationRecord",
    }


def _sequence(data: Mapping[str, Any]) -> Shown:
    return Shown(tuple(data["tokens"]), tuple(map(_number, data["activations"])))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _scored_sequence(one: Simulated) -> dict[str, Any]:
    return {
        "sequence_simulation": {
            "tokens": list(one.tokens),
            "expected_activations": list(one.expected),
            "activation_scale": "simulated_normalized_activations",
            "distribution_values": [],
            "distribution_probabilities": [],
            "uncalibrated_simulation": None,
            "dataclass_name": "SequenceSimulation",
        },
        "true_activations": list(one.true),
        **simulation_scores([one]),
        "dataclass_name": "ScoredSequenceSimulation",
    }


def _scored_explanation(data: Mapping[str, Any]) -> ScoredExplanation:
    scored = data["scored_simulation"]
    sequences = [
        Simulated(
            tuple(one["sequence_simulation"]["tokens"]),
            tuple(map(_number, one["sequence_simulation"]["expected_activations"])),
            tuple(map(_number, one["true_activations"])),
        )
        for one in scored["scored_sequence_simulations"]
    ]
    return ScoredExplanation(
        data["explanation"], tuple(sequences), {name: scored.get(name) for name in SCORES}
    )


def _renamed(data: Any) -> Any:
    """Give fields of old files their new names, at any depth."""
    if isinstance(data, list):
        return [_renamed(item) for item in data]
    if isinstance(data, Mapping):
        return {RENAMED.get(name, name): _renamed(value) for name, value in data.items()}
    return data
