"""Explanation records: the lines of explanations.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mechatlas.explain.dataset import HeadData
from mechatlas.explain.programs import Program, parse_program
from mechatlas.explain.vocabulary import TokenView
from mechatlas.io import UserError, read_jsonl, rng_for

Head = tuple[int, int]


class Predictor(Protocol):
    """Anything that predicts attention patterns from tokens."""

    def predict(self, view: TokenView) -> np.ndarray:
        """Return predicted patterns: float32 [W, T, T]."""
        ...


def read_explanations(path: str | Path) -> list[dict[str, Any]]:
    """Read explanation records and parse their programs.

    Returns
    -------
    list of dict
        As in the file, with ``program`` a `Program`.

    Raises
    ------
    UserError
        If a record lacks a field or its program is not valid; the message names the line.
    """
    records = read_jsonl(path)
    for number, record in enumerate(records, 1):
        missing = {"layer", "head", "explainer", "control", "text", "program"} - set(record)
        if missing:
            raise UserError(
                f"{path}, line {number} lacks {', '.join(sorted(missing))}; delete the file and rerun"
            )
        record["program"] = parse_program(record["program"])
    return records


def programs_of(records: Iterable[dict[str, Any]], control: str) -> dict[Head, Program]:
    """Return the programs of one control ("none" for the explanations themselves) by (layer, head)."""
    return {(r["layer"], r["head"]): r["program"] for r in records if r["control"] == control}


def swapped_programs(programs: dict[Head, Program], seed: int) -> dict[Head, Program]:
    """Give every head the program of another head of its layer.

    The heads of a layer are put in a seeded random order and each gets the program of the next, so that no head keeps
    its own and each program is used once. A layer with one head has no swap and is left out.
    """
    swapped = {}
    for layer in sorted({layer for layer, _ in programs}):
        heads = np.array(sorted(head for at, head in programs if at == layer))
        if len(heads) < 2:
            continue
        order = rng_for(seed, "swapped", layer).permutation(heads)
        for head, donor in zip(order, np.roll(order, 1), strict=True):
            swapped[(layer, int(head))] = programs[(layer, int(donor))]
    return swapped


class MeanPattern:
    """The prediction that attention depends on position alone: a head's mean train pattern for every window.

    Parameters
    ----------
    pattern : float32 [T, T]
    """

    def __init__(self, pattern: np.ndarray) -> None:
        self.pattern = pattern

    def predict(self, view: TokenView) -> np.ndarray:
        """Return the mean pattern once per window: float32 [W, T, T]."""
        return np.broadcast_to(self.pattern, (view.shape[0], *self.pattern.shape))


def mean_patterns(data: HeadData) -> dict[Head, np.ndarray]:
    """Mean attention pattern of every head over the train windows: float32 [T, T] each."""
    result = {}
    for layer in range(data.layers):
        mean = data.sample("train", layer).patterns.mean(0)
        result |= {(layer, head): mean[head] for head in range(len(mean))}
    return result


def variants_of(
    records: list[dict[str, Any]],
    controls: Iterable[str],
    seed: int,
    means: Mapping[Head, np.ndarray],
) -> dict[str, dict[Head, Predictor]]:
    """Return what to score on the model itself, by control and head.

    "none" holds the explanations, the other keys those of ``controls`` that need no other model.
    """
    controls = list(controls)
    own = programs_of(records, "none")
    variants: dict[str, dict[Head, Predictor]] = {"none": dict(own)}
    if "swapped" in controls:
        variants["swapped"] = dict(swapped_programs(own, seed))
    if "shuffled" in controls:
        variants["shuffled"] = dict(programs_of(records, "shuffled"))
    if "mean_pattern" in controls:
        variants["mean_pattern"] = {head: MeanPattern(mean) for head, mean in means.items()}
    return variants
