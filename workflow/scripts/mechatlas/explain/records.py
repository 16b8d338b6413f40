"""Explanation records: the lines of explanations/{explainer}.jsonl and of explanations.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mechatlas.io import UserError, read_jsonl, read_provenance, rng_for
from mechatlas.stats.shuffles import derangement

if TYPE_CHECKING:  # most of who reads records needs neither programs nor tables
    from mechatlas.explain.dataset import HeadData
    from mechatlas.explain.programs import Program
    from mechatlas.explain.vocabulary import TokenView

Head = tuple[int, int]
#: Explainer and control: what a prediction of a head comes from.
Variant = tuple[str, str]
#: The control of explanations themselves.
OWN = "none"
#: The explainer of what belongs to a head and not to anyone's explanation of it, such as its mean pattern.
SHARED = ""
MEAN_PATTERN: Variant = (SHARED, "mean_pattern")


class Predictor(Protocol):
    """Anything that predicts attention patterns from tokens."""

    def predict(self, view: TokenView) -> np.ndarray:
        """Return predicted patterns: float32 [W, T, T]."""
        ...


def read_explanations(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read explanation records of one or several explainers and parse their programs.

    Parameters
    ----------
    paths : iterable of path
        JSON Lines, one file per explainer.

    Returns
    -------
    list of dict
        As in the files, in their order, with ``program`` a `Program`, or None where there is none.

    Raises
    ------
    UserError
        If a record lacks a field, its program is not valid or it is there twice; the message names the line.
    """
    from mechatlas.explain.programs import parse_program

    records: list[dict[str, Any]] = []
    seen: set[tuple[Any, ...]] = set()
    for path in paths:
        for number, record in enumerate(read_jsonl(path), 1):
            missing = {"layer", "head", "explainer", "control", "text", "program"} - set(record)
            if missing:
                raise UserError(
                    f"{path}, line {number} lacks {', '.join(sorted(missing))}; delete the file and rerun"
                )
            key = tuple(record[name] for name in ("layer", "head", "explainer", "control"))
            if key in seen:
                raise UserError(
                    f"{path}, line {number} explains {record.get('unit', key)} again; "
                    "delete the file and rerun"
                )
            seen.add(key)
            if record["program"] is not None:
                record["program"] = parse_program(record["program"])
            records.append(record)
    return records


def made_by(paths: Iterable[str | Path]) -> dict[str, Any]:
    """Return the provenance of explanation files by explainer, which their names say."""
    return {Path(path).stem: read_provenance(path) for path in paths}


def explainers_of(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the explainers of records, in the order in which they occur."""
    return list(dict.fromkeys(record["explainer"] for record in records))


def programs_of(
    records: Iterable[Mapping[str, Any]], explainer: str, control: str = OWN
) -> dict[Head, Program]:
    """Return the programs of one explainer and control by (layer, head); texts without a program are left out."""
    return {
        (r["layer"], r["head"]): r["program"]
        for r in records
        if r["explainer"] == explainer and r["control"] == control and r["program"] is not None
    }


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
        donors = heads[derangement(len(heads), rng_for(seed, "swapped", layer))]
        for head, donor in zip(heads, donors, strict=True):
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
) -> dict[Variant, dict[Head, Predictor]]:
    """Return what to score on the model itself, by explainer and control, and by head.

    Control `OWN` holds the explanations, the others those of ``controls`` that need no other model: "swapped" and
    "shuffled" of each explainer that has any, and `MEAN_PATTERN` for every head that someone explained.
    """
    controls = list(controls)
    variants: dict[Variant, dict[Head, Predictor]] = {}
    for explainer in explainers_of(records):
        own = programs_of(records, explainer)
        variants[(explainer, OWN)] = dict(own)
        if "swapped" in controls:
            variants[(explainer, "swapped")] = dict(swapped_programs(own, seed))
        if "shuffled" in controls:
            variants[(explainer, "shuffled")] = dict(programs_of(records, explainer, "shuffled"))
    if "mean_pattern" in controls:
        explained = {head for programs in variants.values() for head in programs}
        variants[MEAN_PATTERN] = {
            head: MeanPattern(mean) for head, mean in means.items() if head in explained
        }
    return {variant: programs for variant, programs in variants.items() if programs}
